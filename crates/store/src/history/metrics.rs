//! Figures for Prometheus.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::data_file::FileList;
use crate::tables::TableId;

/// Label of figures a table.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TableLabel {
    table: &'static str,
}

/// Figures of history. Cheap to clone; clones share the figures.
#[derive(Debug, Clone)]
pub(super) struct HistoryMetrics {
    flushes: Counter,
    flush_failures: Counter,
    flush_seconds: Histogram,
    buffered_bytes: Gauge,
    rows: Family<TableLabel, Counter>,
    bytes: Family<TableLabel, Counter>,
    files: Family<TableLabel, Gauge>,
    file_bytes: Family<TableLabel, Gauge>,
    compacted_files: Family<TableLabel, Counter>,
    expired_files: Family<TableLabel, Counter>,
    archived_files: Family<TableLabel, Counter>,
    maintenance_failures: Counter,
}

impl Default for HistoryMetrics {
    fn default() -> Self {
        Self {
            flushes: Counter::default(),
            flush_failures: Counter::default(),
            flush_seconds: Histogram::new(exponential_buckets(0.005, 2.0, 14)),
            buffered_bytes: Gauge::default(),
            rows: Family::default(),
            bytes: Family::default(),
            files: Family::default(),
            file_bytes: Family::default(),
            compacted_files: Family::default(),
            expired_files: Family::default(),
            archived_files: Family::default(),
            maintenance_failures: Counter::default(),
        }
    }
}

impl HistoryMetrics {
    /// Adds the figures as `catchment_history_…`.
    pub(super) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("catchment_history");
        registry.register("flushes", "Flushes that brought rows into files", self.flushes.clone());
        registry.register(
            "flush_failures",
            "Flushes that failed; their rows stay in memory",
            self.flush_failures.clone(),
        );
        registry.register_with_unit(
            "flush",
            "Time of a flush, all tables",
            Unit::Seconds,
            self.flush_seconds.clone(),
        );
        registry.register_with_unit(
            "buffered",
            "Memory of rows that no flush has taken yet",
            Unit::Bytes,
            self.buffered_bytes.clone(),
        );
        registry.register("rows", "Rows brought into files", self.rows.clone());
        registry.register_with_unit("written", "Size of files flushed", Unit::Bytes, self.bytes.clone());
        registry.register("files", "Files that count", self.files.clone());
        registry.register_with_unit(
            "files",
            "Size of files that count",
            Unit::Bytes,
            self.file_bytes.clone(),
        );
        registry.register("compacted_files", "Files merged into others", self.compacted_files.clone());
        registry.register("expired_files", "Files taken out by retention", self.expired_files.clone());
        registry.register("archived_files", "Files moved to the archive", self.archived_files.clone());
        registry.register(
            "maintenance_failures",
            "Rounds of compaction, retention and checkpoints that failed",
            self.maintenance_failures.clone(),
        );
    }

    pub(super) fn flushed(&self, table: TableId, rows: u64, bytes: u64) {
        self.rows.get_or_create(&label(table)).inc_by(rows);
        self.bytes.get_or_create(&label(table)).inc_by(bytes);
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

    pub(super) fn files(&self, table: TableId, files: &FileList) {
        let gauge = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        self.files.get_or_create(&label(table)).set(gauge(files.len() as u64));
        self.file_bytes.get_or_create(&label(table)).set(gauge(files.iter().map(|file| file.bytes).sum()));
    }

    pub(super) fn compacted(&self, table: TableId, files: usize) {
        self.compacted_files.get_or_create(&label(table)).inc_by(files as u64);
    }

    pub(super) fn expired(&self, table: TableId, files: usize) {
        self.expired_files.get_or_create(&label(table)).inc_by(files as u64);
    }

    pub(super) fn archived(&self, table: TableId, files: usize) {
        self.archived_files.get_or_create(&label(table)).inc_by(files as u64);
    }

    pub(super) fn maintenance_failed(&self) {
        self.maintenance_failures.inc();
    }
}

fn label(table: TableId) -> TableLabel {
    TableLabel { table: table.name() }
}
