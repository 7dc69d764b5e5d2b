//! The log's figures for Prometheus, read when they are asked for.

use std::fmt;
use std::sync::Arc;

use catchment_eventlog::EventLog;
use catchment_store::registry::Registry;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

/// `catchment_log_…`.
pub(super) struct LogFigures {
    pub(super) log: Arc<dyn EventLog>,
    /// The engine's name.
    pub(super) engine: &'static str,
}

impl fmt::Debug for LogFigures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LogFigures({})", self.engine)
    }
}

impl Collector for LogFigures {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let stats = self.log.stats();
        let up = ConstGauge::new(i64::from(self.log.trouble().is_none()));
        let help = "1 while the engine of the log does its work, 0 while something keeps it from that";
        let mut described = encoder.encode_descriptor("catchment_log_up", help, None, up.metric_type())?;
        up.encode(described.encode_family(&[("engine", self.engine)])?)?;
        let counters = [
            ("appended_events", "Events made durable", None, stats.appended_events),
            (
                "appended",
                "Encoded bytes of these, before compression",
                Some(Unit::Bytes),
                stats.appended_bytes,
            ),
            ("stored", "Bytes written for them, after compression", Some(Unit::Bytes), stats.stored_bytes),
            ("commits", "Group commits", None, stats.commits),
            ("corrupted_blocks", "Blocks found corrupted", None, stats.corrupted_blocks),
        ];
        let gauges = [
            ("disk", "Bytes of segments on disk", stats.disk_bytes),
            ("queued", "Encoded bytes that are not durable yet", stats.queued_bytes),
        ];
        for (name, help, unit, value) in counters {
            let counter = ConstCounter::new(value);
            let name = format!("catchment_log_{name}");
            counter.encode(encoder.encode_descriptor(
                &name,
                help,
                unit.as_ref(),
                counter.metric_type(),
            )?)?;
        }
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            let name = format!("catchment_log_{name}");
            gauge.encode(encoder.encode_descriptor(
                &name,
                help,
                Some(&Unit::Bytes),
                gauge.metric_type(),
            )?)?;
        }
        Ok(())
    }
}

/// `catchment_registry_up`.
pub(super) struct RegistryFigures {
    pub(super) registry: Arc<Registry>,
    /// The engine's name.
    pub(super) engine: &'static str,
}

impl fmt::Debug for RegistryFigures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RegistryFigures({})", self.engine)
    }
}

impl Collector for RegistryFigures {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let up = ConstGauge::new(i64::from(self.registry.trouble().is_none()));
        let help = "1 while the engine of the registry answers, 0 while it does not";
        let mut described =
            encoder.encode_descriptor("catchment_registry_up", help, None, up.metric_type())?;
        up.encode(described.encode_family(&[("engine", self.engine)])?)
    }
}

/// `catchment_source_…`, of topics of Kafka whose records are taken in: name and figures of each.
#[cfg(feature = "kafka")]
pub(super) struct SourceFigures(
    pub(super) Vec<(String, Arc<catchment_eventlog::kafka::source::SourceFigures>)>,
);

#[cfg(feature = "kafka")]
impl fmt::Debug for SourceFigures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

#[cfg(feature = "kafka")]
impl Collector for SourceFigures {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        use std::sync::atomic::{AtomicU64, Ordering};

        use catchment_eventlog::kafka::source::SourceFigures as Figures;
        use prometheus_client::metrics::MetricType;

        type Field = fn(&Figures) -> &AtomicU64;
        let counters: [(&str, &str, Field); 3] = [
            ("taken_records", "Records that became events", |figures| &figures.taken),
            ("duplicate_records", "Records that were events already", |figures| &figures.duplicates),
            ("refused_records", "Records that can be no event", |figures| &figures.refused),
        ];
        for (name, help, field) in counters.into_iter().filter(|_| !self.0.is_empty()) {
            let name = format!("catchment_source_{name}");
            let mut described = encoder.encode_descriptor(&name, help, None, MetricType::Counter)?;
            for (source, figures) in &self.0 {
                let counter = ConstCounter::new(field(figures).load(Ordering::Relaxed));
                counter.encode(described.encode_family(&[("source", source.as_str())])?)?;
            }
        }
        Ok(())
    }
}
