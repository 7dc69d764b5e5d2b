//! Figures for Prometheus.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::history::{FlushMetrics, TableLabel};
use crate::tables::TableId;

/// Figures of history on ClickHouse. Cheap to clone; clones share the figures.
#[derive(Debug, Clone, Default)]
pub(super) struct Metrics {
    up: Gauge,
    archive_up: Gauge,
    archived_rows: Family<TableLabel, Counter>,
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
        registry.register(
            "archive_up",
            "Whether the archive was looked after in the last round, in the process that moves rows there",
            self.archive_up.clone(),
        );
        registry.register("archived_rows", "Rows copied to the archive", self.archived_rows.clone());
        self.flush.register(registry);
    }

    pub(super) fn archive_is_up(&self, is_up: bool) {
        self.archive_up.set(is_up.into());
    }

    pub(super) fn archived(&self, table: TableId, rows: u64) {
        self.archived_rows.get_or_create(&table.into()).inc_by(rows);
    }

    pub(super) fn up(&self, is_up: bool) {
        self.up.set(i64::from(is_up));
    }
}
