//! Figures for Prometheus, with the names that the embedded history has for the same.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::tables::TableId;

/// Label of figures a table.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TableLabel {
    table: &'static str,
}

/// Figures of history on ClickHouse. Cheap to clone; clones share the figures.
#[derive(Debug, Clone)]
pub(super) struct Metrics {
    up: Gauge,
    flushes: Counter,
    flush_failures: Counter,
    flush_seconds: Histogram,
    buffered_bytes: Gauge,
    rows: Family<TableLabel, Counter>,
    bytes: Family<TableLabel, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            up: Gauge::default(),
            flushes: Counter::default(),
            flush_failures: Counter::default(),
            flush_seconds: Histogram::new(exponential_buckets(0.005, 2.0, 14)),
            buffered_bytes: Gauge::default(),
            rows: Family::default(),
            bytes: Family::default(),
        }
    }
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
        registry.register("flushes", "Flushes that brought rows into ClickHouse", self.flushes.clone());
        registry.register(
            "flush_failures",
            "Flushes that failed; their rows stay in memory",
            self.flush_failures.clone(),
        );
        registry.register_with_unit(
            "flush",
            "Time of a flush, all partitions",
            Unit::Seconds,
            self.flush_seconds.clone(),
        );
        registry.register_with_unit(
            "buffered",
            "Memory of rows that no flush has taken yet",
            Unit::Bytes,
            self.buffered_bytes.clone(),
        );
        registry.register("rows", "Rows brought into ClickHouse", self.rows.clone());
        registry.register_with_unit("written", "Size of inserts", Unit::Bytes, self.bytes.clone());
    }

    pub(super) fn up(&self, is_up: bool) {
        self.up.set(i64::from(is_up));
    }

    pub(super) fn flushed(&self, table: TableId, rows: u64, bytes: u64) {
        let label = TableLabel { table: table.name() };
        self.rows.get_or_create(&label).inc_by(rows);
        self.bytes.get_or_create(&label).inc_by(bytes);
    }

    pub(super) fn flush_succeeded(&self, took: Duration) {
        self.flushes.inc();
        self.flush_seconds.observe(took.as_secs_f64());
    }

    pub(super) fn flush_failed(&self) {
        self.flush_failures.inc();
    }

    pub(super) fn buffered(&self, bytes: usize) {
        self.buffered_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }
}
