//! Topics of Kafka whose records become events.

use std::sync::Arc;

use catchment_eventlog::EventLog;
#[cfg(feature = "kafka")]
use catchment_eventlog::kafka::source::{KafkaSource, RecordMarks};
#[cfg(feature = "kafka")]
use catchment_gateway::SourceMarks;
use prometheus_client::registry::Registry;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::settings::Settings;

#[cfg(feature = "kafka")]
struct Marks(SourceMarks);

#[cfg(feature = "kafka")]
impl RecordMarks for Marks {
    fn mark(&self, partition: u32, offset: u64, fingerprint: u32) -> u128 {
        self.0.mark(partition, offset, fingerprint)
    }

    fn record(&self, mark: u128) -> Option<(u32, u64)> {
        self.0.record(mark)
    }
}

/// Starts all of them, in `tasks`, until `stop`.
///
/// # Errors
/// A setting or a file that cannot be used. Brokers that do not answer are no error.
#[cfg(feature = "kafka")]
pub(super) fn start(
    settings: &Settings,
    log: &Arc<dyn EventLog>,
    metrics: &mut Registry,
    stop: &CancellationToken,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<()> {
    let mut figures = Vec::new();
    for target in settings.kafka_sources() {
        // Marks are found again by this name, whoever reads.
        let marks = Marks(SourceMarks::new(&target.to_string()));
        let source = KafkaSource::start(target.clone(), Arc::clone(log), Arc::new(marks))?;
        figures.push((source.name().to_owned(), source.figures()));
        let stopped = stop.clone().cancelled_owned();
        tasks.spawn(async move {
            stopped.await;
            source.stop().await;
        });
    }
    metrics.register_collector(Box::new(super::metrics::SourceFigures(figures)));
    Ok(())
}

/// Says that there is no Kafka in this build, where it is asked for.
///
/// # Errors
/// There is a topic among the sources.
#[cfg(not(feature = "kafka"))]
pub(super) fn start(
    settings: &Settings,
    _: &Arc<dyn EventLog>,
    _: &mut Registry,
    _: &CancellationToken,
    _: &mut JoinSet<()>,
) -> anyhow::Result<()> {
    match settings.kafka_sources().next() {
        Some(target) => anyhow::bail!("the source {target} cannot be read: Kafka is not in this build"),
        None => Ok(()),
    }
}
