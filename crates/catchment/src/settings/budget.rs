//! How the one memory budget is shared.
//!
//! | part of `memory_bytes_max` | for | setting |
//! | --- | --- | --- |
//! | 1/16 | events on their way to the disk | `log.queue_bytes_max`, for each partition |
//! | 1/16 | recent events, for readers near the log's end | `log.cache_bytes_max`, for each partition |
//! | 1/16 | bodies of HTTP requests | `gateway.http.buffered_bytes_max` |
//! | 1/32 | retained MQTT messages | `gateway.mqtt.retained_bytes_max` |
//! | 1/32 | MQTT subscriptions | `gateway.mqtt.subscriptions_bytes_max` |
//! | 3/32 | rows that are enough for a flush (part of the next)  | `history.flush_bytes` |
//! | 1/4 | rows that are not in files yet; above it, the log is read no further | (follows the budget) |
//! | 1/4 | latest values and open minutes of all devices | (follows the budget) |
//! | 1/4 | queries | `serve.sql.memory_bytes` |
//!
//! A share is the default of its setting: what is set by hand stays as it is. Connections' own buffers, metadata of files
//! and the program itself live in what the parts leave of theirs.

use super::Settings;

/// The budget unless another is named.
pub(super) const MEMORY_BYTES_DEFAULT: u64 = 2 << 30;
/// The least with which every part still works.
pub(crate) const MEMORY_BYTES_MIN: u64 = 256 << 20;

/// The shares that are settings of their own.
pub(super) fn shares(total: u64, partitions: u32) -> Vec<(&'static str, u64)> {
    let of_partition = |bytes: u64| (bytes / u64::from(partitions)).clamp(64 << 10, 1 << 30);
    vec![
        ("log.queue_bytes_max", of_partition(total / 16)),
        ("log.cache_bytes_max", of_partition(total / 16)),
        // Never less than one request of the largest size.
        ("gateway.http.buffered_bytes_max", (total / 16).max(40 << 20)),
        ("gateway.mqtt.retained_bytes_max", total / 32),
        ("gateway.mqtt.subscriptions_bytes_max", total / 32),
        ("history.flush_bytes", total / 32 * 3),
        ("serve.sql.memory_bytes", total / 4),
    ]
}

impl Settings {
    /// Memory of rows that are not in files yet, bytes.
    pub(crate) fn row_bytes_max(&self) -> usize {
        usize::try_from(self.memory_bytes_max / 4).unwrap_or(usize::MAX)
    }

    /// Memory of one partition's latest values and open minutes, bytes.
    pub(crate) fn snapshot_bytes_max(&self, partitions: u32) -> usize {
        let share = self.memory_bytes_max / 4 / u64::from(partitions.max(1));
        usize::try_from(share).unwrap_or(usize::MAX)
    }
}
