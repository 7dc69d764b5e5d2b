//! Figures of flushes, the same of every engine of history.

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
pub(crate) struct TableLabel {
    table: &'static str,
}

impl From<TableId> for TableLabel {
    fn from(table: TableId) -> Self {
        Self { table: table.name() }
    }
}

/// Figures of flushes. Clones share the figures.
#[derive(Debug, Clone)]
pub(crate) struct FlushMetrics {
    flushes: Counter,
    failures: Counter,
    seconds: Histogram,
    buffered_bytes: Gauge,
    rows: Family<TableLabel, Counter>,
    bytes: Family<TableLabel, Counter>,
}

impl Default for FlushMetrics {
    fn default() -> Self {
        Self {
            flushes: Counter::default(),
            failures: Counter::default(),
            seconds: Histogram::new(exponential_buckets(0.005, 2.0, 14)),
            buffered_bytes: Gauge::default(),
            rows: Family::default(),
            bytes: Family::default(),
        }
    }
}

impl FlushMetrics {
    /// Adds the figures to a registry that has the prefix already.
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register("flushes", "Flushes that brought rows into history", self.flushes.clone());
        registry.register(
            "flush_failures",
            "Flushes that failed; their rows stay in memory",
            self.failures.clone(),
        );
        registry.register_with_unit("flush", "Time of a flush", Unit::Seconds, self.seconds.clone());
        registry.register_with_unit(
            "buffered",
            "Memory of rows that no flush has taken yet",
            Unit::Bytes,
            self.buffered_bytes.clone(),
        );
        registry.register("rows", "Rows brought into history", self.rows.clone());
        registry.register_with_unit(
            "written",
            "Size of what was written for them: files, or inserts",
            Unit::Bytes,
            self.bytes.clone(),
        );
    }

    pub(crate) fn flushed(&self, table: TableId, rows: u64, bytes: u64) {
        self.rows.get_or_create(&table.into()).inc_by(rows);
        self.bytes.get_or_create(&table.into()).inc_by(bytes);
    }

    pub(crate) fn succeeded(&self, took: Duration) {
        self.flushes.inc();
        self.seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn failed(&self) {
        self.failures.inc();
    }

    pub(crate) fn buffered(&self, bytes: usize) {
        self.buffered_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }
}
