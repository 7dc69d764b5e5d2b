//! The section `history` of the configuration.

use std::time::Duration;

use catchment_types::Timestamp;
use serde::{Deserialize, Serialize};

use crate::tables::TableId;

/// How history is written and how long it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HistoryConfig {
    /// Rows go to files at the latest after this time, milliseconds; at least 1,000. Queries see them before.
    pub flush_interval_ms: u64,
    /// Rows go to files as soon as they take this much memory, bytes.
    pub flush_bytes: usize,
    /// How often compaction, retention and the removal of dead files are looked at, milliseconds; at least 1,000.
    pub maintenance_interval_ms: u64,
    /// How often devices and latest values are saved for the next start, milliseconds; at least 1,000. What came since is
    /// read from the tables then.
    pub snapshot_interval_ms: u64,
    /// This many files of about one size in a day (rollups: month) are merged into one; at least 2.
    pub compact_files_min: usize,
    /// Files of this size are not merged any further, bytes.
    pub compact_bytes_max: u64,
    /// Days for which `raw_events` and `raw_metrics` are kept, and then archived if there is an archive; 0 keeps them for ever.
    pub raw_retention_days: u32,
    /// Days after which what is archived goes for good; 0 keeps it for ever.
    pub archive_retention_days: u32,
    /// Days for which the rollups are kept, whole months at a time; 0 keeps them for ever.
    pub rollup_retention_days: u32,
    /// Days for which `rejects` is kept; 0 keeps them for ever.
    pub reject_retention_days: u32,
    /// Files that were merged or expired are deleted after this time, milliseconds: as long as a query may run.
    pub vacuum_grace_ms: u64,
}

impl Default for HistoryConfig {
    fn default() -> Self {
        Self {
            flush_interval_ms: 30_000,
            flush_bytes: 192 << 20,
            maintenance_interval_ms: 30_000,
            snapshot_interval_ms: 300_000,
            compact_files_min: 8,
            compact_bytes_max: 128 << 20,
            raw_retention_days: 7,
            archive_retention_days: 0,
            rollup_retention_days: 365,
            reject_retention_days: 7,
            vacuum_grace_ms: 600_000,
        }
    }
}

impl HistoryConfig {
    /// Time between flushes.
    #[must_use]
    pub fn flush_interval(&self) -> Duration {
        Duration::from_millis(self.flush_interval_ms.max(1000))
    }

    /// Time between rounds of maintenance.
    #[must_use]
    pub fn maintenance_interval(&self) -> Duration {
        Duration::from_millis(self.maintenance_interval_ms.max(1000))
    }

    /// Time between savings of the snapshot.
    #[must_use]
    pub fn snapshot_interval(&self) -> Duration {
        Duration::from_millis(self.snapshot_interval_ms.max(1000))
    }

    /// Days for which a table is kept; none is for ever.
    #[must_use]
    pub fn retention_days(&self, table: TableId) -> Option<u32> {
        let days = match table {
            TableId::RawEvents | TableId::RawMetrics => self.raw_retention_days,
            TableId::MetricRollups => self.rollup_retention_days,
            TableId::Rejects => self.reject_retention_days,
        };
        (days > 0).then_some(days)
    }

    /// Files taken out before this time may be deleted at `now`.
    pub(super) fn vacuum_before(&self, now: Timestamp) -> Timestamp {
        let grace_us = i64::try_from(self.vacuum_grace_ms).unwrap_or(i64::MAX).saturating_mul(1000);
        Timestamp(now.as_micros().saturating_sub(grace_us))
    }
}
