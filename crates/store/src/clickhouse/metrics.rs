//! Figures for Prometheus.

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::history::FlushMetrics;

/// Figures of history on ClickHouse. Cheap to clone; clones share the figures.
#[derive(Debug, Clone, Default)]
pub(super) struct Metrics {
    up: Gauge,
    pub(super) flush: FlushMetrics,
}

impl Metrics {
    /// Adds the figures as `catchment_history_…`.
    pub(super) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("catchment_history");
        registry.register(
            "up",
            "1 while ClickHouse does its work, 0 while something keeps it from that",
            self.up.clone(),
        );
        self.flush.register(registry);
    }

    pub(super) fn up(&self, is_up: bool) {
        self.up.set(i64::from(is_up));
    }
}
