//! What the workers count.

use std::sync::atomic::AtomicU64;

use catchment_types::PartitionId;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Label of what is told apart by partition.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct PartitionLabel {
    pub(crate) partition: PartitionId,
}

/// Figures of the partition workers. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct DistributeMetrics {
    pub(crate) events: Counter,
    pub(crate) readings: Counter,
    pub(crate) rejects: Counter,
    pub(crate) skipped: Counter,
    pub(crate) read_errors: Counter,
    pub(crate) wait_seconds: Counter<f64, AtomicU64>,
    pub(crate) lag_events: Family<PartitionLabel, Gauge>,
    pub(crate) lag_seconds: Family<PartitionLabel, Gauge<f64, AtomicU64>>,
}

impl DistributeMetrics {
    /// Names the figures `catchment_distribute_…`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("catchment_distribute");
        registry.register("events", "Events processed", self.events.clone());
        registry.register("readings", "Readings decoded", self.readings.clone());
        registry.register("rejects", "Values, times or documents that did not decode", self.rejects.clone());
        registry.register(
            "skipped_events",
            "Offsets that the log no longer has: dropped by retention or corrupted",
            self.skipped.clone(),
        );
        registry.register("read_errors", "Reads that the log failed", self.read_errors.clone());
        registry.register(
            "backpressure_seconds",
            "Time that workers waited for history to write rows",
            self.wait_seconds.clone(),
        );
        registry.register(
            "lag_events",
            "Events in the log that are not processed yet",
            self.lag_events.clone(),
        );
        registry.register(
            "lag_seconds",
            "From the arrival of the last processed event to its processing; 0 when nothing is left",
            self.lag_seconds.clone(),
        );
    }
}
