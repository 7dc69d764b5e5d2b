//! Figures for Prometheus.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::data_file::FileList;
use super::flush_metrics::{FlushMetrics, TableLabel};
use crate::tables::TableId;

/// Figures of history. Cheap to clone; clones share the figures.
#[derive(Debug, Clone, Default)]
pub(super) struct HistoryMetrics {
    pub(super) flush: FlushMetrics,
    files: Family<TableLabel, Gauge>,
    file_bytes: Family<TableLabel, Gauge>,
    compacted_files: Family<TableLabel, Counter>,
    expired_files: Family<TableLabel, Counter>,
    archived_files: Family<TableLabel, Counter>,
    archive_up: Family<TableLabel, Gauge>,
    maintenance_failures: Counter,
}

impl HistoryMetrics {
    /// Adds the figures as `catchment_history_…`.
    pub(super) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("catchment_history");
        self.flush.register(registry);
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
            "archive_up",
            "Whether the archive was looked after in the last round of maintenance",
            self.archive_up.clone(),
        );
        registry.register(
            "maintenance_failures",
            "Rounds of compaction, retention and checkpoints that failed",
            self.maintenance_failures.clone(),
        );
    }

    pub(super) fn files(&self, table: TableId, files: &FileList) {
        let gauge = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        self.files.get_or_create(&table.into()).set(gauge(files.len() as u64));
        self.file_bytes.get_or_create(&table.into()).set(gauge(files.iter().map(|file| file.bytes).sum()));
    }

    pub(super) fn compacted(&self, table: TableId, files: usize) {
        self.compacted_files.get_or_create(&table.into()).inc_by(files as u64);
    }

    pub(super) fn expired(&self, table: TableId, files: usize) {
        self.expired_files.get_or_create(&table.into()).inc_by(files as u64);
    }

    pub(super) fn archived(&self, table: TableId, files: usize) {
        self.archived_files.get_or_create(&table.into()).inc_by(files as u64);
    }

    pub(super) fn archive_is_up(&self, table: TableId, is_up: bool) {
        self.archive_up.get_or_create(&table.into()).set(is_up.into());
    }

    pub(super) fn maintenance_failed(&self) {
        self.maintenance_failures.inc();
    }
}
