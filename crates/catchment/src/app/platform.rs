//! What the status page and `/readyz` say about the parts that only the composition root knows.

use std::net::SocketAddr;
use std::sync::Arc;

use catchment_distribute::{Distributor, Processed};
use catchment_eventlog::EventLog;
use catchment_gateway::GatewayMetrics;
use catchment_gateway::transport::Protocol;
use catchment_serve::status::{
    Engine as EngineStatus, GatewayStatus, HistoryStatus, Listener, PartitionStatus, Platform, PlatformStatus,
};
use catchment_store::history::{History, HistoryHealth};
use catchment_store::registry::Registry;
use catchment_types::Offset;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry as MetricsRegistry;
use tokio::sync::watch;

use super::Addresses;
use super::snapshot::Trouble;
use crate::engines::{Engine, Seam};

/// A partition that is further behind than this after a start is not ready to answer.
const LAG_EVENTS_MAX: u64 = 100_000;

/// Tells what stands in the way of answers.
type Reasons = Arc<dyn Fn() -> Vec<String> + Send + Sync>;

/// The running parts.
pub(super) struct RunningPlatform {
    listeners: Vec<Listener>,
    engines: Vec<EngineStatus>,
    log: Arc<dyn EventLog>,
    history: Arc<dyn History>,
    registry: Arc<Registry>,
    committed: watch::Receiver<Vec<Offset>>,
    /// None when this process works on no partition.
    processed: Option<watch::Receiver<Processed>>,
    trouble: Option<Reasons>,
    awaited: Option<Reasons>,
    gateway: GatewayFigures,
    snapshot: Option<Trouble>,
}

impl RunningPlatform {
    pub(super) fn new(
        engines: &[(Seam, Engine)],
        addresses: &Addresses,
        log: &Arc<dyn EventLog>,
        history: &Arc<dyn History>,
        registry: &Arc<Registry>,
        distributor: Option<&Distributor>,
        gateway: &GatewayMetrics,
    ) -> Self {
        let listener = |(protocol, address): &(Protocol, SocketAddr)| match protocol {
            Protocol::Pg => Listener { name: "postgres".to_owned(), url: format!("postgresql://{address}") },
            protocol => {
                Listener { name: protocol.name().to_owned(), url: format!("{}://{address}", protocol.name()) }
            }
        };
        let engine = |(seam, engine): &(Seam, Engine)| EngineStatus {
            part: seam.name().to_owned(),
            url: engine.to_string(),
        };
        // Otherwise other processes have answers meanwhile.
        let answers_alone = engines.contains(&(Seam::Snapshot, Engine::Memory))
            || engines
                .iter()
                .any(|(seam, engine)| *seam == Seam::History && !matches!(engine, Engine::ClickHouse(_)));
        Self {
            listeners: addresses.0.iter().map(listener).collect(),
            engines: engines.iter().filter(|(_, engine)| *engine != Engine::Off).map(engine).collect(),
            log: Arc::clone(log),
            history: Arc::clone(history),
            registry: Arc::clone(registry),
            committed: history.subscribe_committed(),
            processed: distributor.map(Distributor::processed),
            trouble: distributor.map(Distributor::trouble),
            awaited: distributor.filter(|_| answers_alone).map(Distributor::awaited),
            gateway: GatewayFigures::new(gateway),
            snapshot: None,
        }
    }

    /// With what the snapshot's engine says of itself.
    pub(super) fn with_snapshot(self, snapshot: Trouble) -> Self {
        Self { snapshot: Some(snapshot), ..self }
    }

    /// Those that are worked on here.
    fn partitions(&self) -> Vec<PartitionStatus> {
        let Some(processed) = &self.processed else { return Vec::new() };
        let decoded = processed.borrow().clone();
        let committed = self.committed.borrow().clone();
        let of_each = (0..).zip(decoded).zip(committed);
        let status = |((partition, decoded), committed_offset): ((_, Option<Offset>), _)| {
            Some(PartitionStatus {
                partition,
                log_offset: self.log.range(partition).end,
                decoded_offset: decoded?,
                committed_offset,
            })
        };
        of_each.filter_map(status).collect()
    }

    fn failing(&self) -> Option<String> {
        match self.history.health() {
            HistoryHealth::Healthy => None,
            HistoryHealth::Failing { since, attempts, message } => Some(format!(
                "rows cannot be brought into history since {since} ({attempts} attempts): {message}"
            )),
        }
    }
}

impl Platform for RunningPlatform {
    fn status(&self) -> PlatformStatus {
        let log = self.log.stats();
        let gateway = self.gateway.read();
        PlatformStatus {
            listeners: self.listeners.clone(),
            engines: self.engines.clone(),
            gateway: GatewayStatus {
                connections: gateway.sum("catchment_gateway_connections"),
                events_total: log.appended_events,
                bytes_total: log.appended_bytes,
                refused_total: gateway.sum("catchment_gateway_refused_messages_total"),
            },
            partitions: self.partitions(),
            history: HistoryStatus {
                buffered_bytes: self.history.buffered_bytes() as u64,
                failing: self.failing(),
            },
        }
    }

    fn not_ready(&self) -> Vec<String> {
        let mut reasons: Vec<String> = self
            .partitions()
            .into_iter()
            .filter(|partition| {
                partition.log_offset.saturating_sub(partition.decoded_offset) > LAG_EVENTS_MAX
            })
            .map(|partition| {
                let behind = partition.log_offset.saturating_sub(partition.decoded_offset);
                format!("partition {} is {behind} events behind the log", partition.partition)
            })
            .collect();
        reasons.extend(self.log.trouble().map(|trouble| format!("the event log does not answer: {trouble}")));
        reasons.extend(
            self.registry.trouble().map(|trouble| format!("the registry does not answer: {trouble}")),
        );
        reasons.extend(self.trouble.iter().chain(&self.awaited).flat_map(|reasons| reasons()));
        reasons.extend(self.failing());
        reasons.extend(self.snapshot.as_ref().and_then(Trouble::tell));
        reasons
    }
}

/// The gateway's figures, read the way Prometheus reads them: what it counts has no other face.
struct GatewayFigures(MetricsRegistry);

/// One reading of them.
struct GatewayText(String);

impl GatewayFigures {
    fn new(metrics: &GatewayMetrics) -> Self {
        let mut registry = MetricsRegistry::default();
        metrics.register(&mut registry);
        Self(registry)
    }

    fn read(&self) -> GatewayText {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &self.0);
        GatewayText(text)
    }
}

impl GatewayText {
    /// The sum over all labels of a metric.
    fn sum(&self, name: &str) -> u64 {
        let value = |line: &str| {
            let rest = line.strip_prefix(name).filter(|rest| rest.starts_with([' ', '{']))?;
            rest.rsplit(' ').next()?.parse::<f64>().ok()
        };
        self.0.lines().filter_map(value).sum::<f64>() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_summed_over_labels() {
        let text =
            GatewayText("# HELP a_total x\na_total{r=\"x y\"} 2\na_total{r=\"z\"} 3\na_total_b 9\n".into());
        assert_eq!((text.sum("a_total"), text.sum("b")), (5, 0));
        let metrics = GatewayFigures::new(&GatewayMetrics::default()).read();
        assert!(metrics.0.contains("\ncatchment_gateway_connections 0\n"), "{}", metrics.0);
    }
}
