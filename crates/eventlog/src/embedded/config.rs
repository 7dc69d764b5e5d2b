//! What an operator can choose about the embedded log.

use std::thread::available_parallelism;

use serde::{Deserialize, Serialize};

use super::error::OpenError;
use crate::SyncPolicy;

/// Configuration of the embedded log. Every field has a default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// Number of partitions, 1 to 1,024; fixed once the log exists. Each has its own writer thread and its own worker.
    /// 0: those that the log has; a new one gets as many as there are processors, at most 16. More do not make it
    /// faster: each has a file that is synced on its own.
    pub partitions: u32,
    /// Size of one segment file, in bytes; retention drops whole segments.
    pub segment_bytes: u64,
    /// Encoded bytes that may wait for the disk, for each partition; submitters wait beyond that.
    pub queue_bytes_max: u32,
    /// Recent encoded bytes kept in memory for readers near the end, for each partition.
    pub cache_bytes_max: usize,
    /// Hours that events are kept at least, unless `retention_bytes` is reached before.
    pub retention_hours: u32,
    /// Bytes on disk, over all partitions, from which on the oldest released segments are dropped early.
    pub retention_bytes: u64,
    /// Bytes on disk, over all partitions, of whole segments that some sink still needs; beyond that submitters wait, and so
    /// do devices, until sinks have caught up.
    pub backlog_bytes_max: u64,
    /// When an append counts as durable.
    pub sync: SyncPolicy,
    /// How blocks are compressed.
    pub compression: Compression,
    /// Microseconds that a writer waits for company before it takes a group. 0: groups form by themselves while the
    /// previous one is on its way to disk.
    pub linger_us: u32,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            partitions: 0,
            segment_bytes: 64 << 20,
            queue_bytes_max: 16 << 20,
            cache_bytes_max: 16 << 20,
            retention_hours: 7 * 24,
            retention_bytes: 16 << 30,
            backlog_bytes_max: 16 << 30,
            sync: SyncPolicy::default(),
            compression: Compression::default(),
            linger_us: 0,
        }
    }
}

/// How blocks are compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// LZ4; blocks that do not get smaller are stored as they are.
    #[default]
    Lz4,
    /// Not at all.
    None,
}

/// Smallest segment: below, a group commit would not fit several times.
const SEGMENT_BYTES_MIN: u64 = 64 << 10;
/// Largest segment: recovery reads one whole.
const SEGMENT_BYTES_MAX: u64 = 4 << 30;
const PARTITIONS_MAX: u32 = 1024;
const AUTOMATIC_PARTITIONS_MAX: usize = 16;
const QUEUE_BYTES_MIN: u32 = 64 << 10;

impl LogConfig {
    /// How many partitions a log has that is made with this configuration.
    #[must_use]
    pub fn partitions_of_new(&self) -> u32 {
        match self.partitions {
            0 => available_parallelism().map_or(1, |cores| cores.get().min(AUTOMATIC_PARTITIONS_MAX) as u32),
            chosen => chosen,
        }
    }

    /// Checks the limits and how they fit together.
    ///
    /// # Errors
    /// Names the setting and its limits.
    pub fn check(&self) -> Result<(), OpenError> {
        let refuse = |setting, value: u64, limits| Err(OpenError::Setting { setting, value, limits });
        if self.partitions > PARTITIONS_MAX {
            return refuse("partitions", self.partitions.into(), "1 to 1024, or 0 for one a processor");
        }
        if !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&self.segment_bytes) {
            return refuse("segment_bytes", self.segment_bytes, "64 KiB (65536) to 4 GiB (4294967296)");
        }
        if self.queue_bytes_max < QUEUE_BYTES_MIN {
            return refuse("queue_bytes_max", self.queue_bytes_max.into(), "at least 64 KiB (65536)");
        }
        let bytes_min = 2 * self.segment_bytes * u64::from(self.partitions_of_new());
        for (setting, bytes) in
            [("retention_bytes", self.retention_bytes), ("backlog_bytes_max", self.backlog_bytes_max)]
        {
            if bytes < bytes_min {
                let limits = "at least two segments for each partition: 2 × segment_bytes × partitions";
                return refuse(setting, bytes, limits);
            }
        }
        match self.sync {
            SyncPolicy::IntervalMs(0) => refuse("sync.interval_ms", 0, "at least 1; or sync = \"fsync\""),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn toml_forms() {
        let parse = |text: &str| toml::from_str::<LogConfig>(text);
        assert_eq!(parse("").unwrap(), LogConfig::default());
        assert_eq!(parse("sync = \"never\"").unwrap().sync, SyncPolicy::Never);
        assert_eq!(parse("sync = { interval_ms = 20 }").unwrap().sync, SyncPolicy::IntervalMs(20));
        assert!(parse("segments = 1").is_err());
        LogConfig::default().check().unwrap();
    }

    #[test]
    fn limits_name_the_setting() {
        let text = |config: LogConfig| config.check().unwrap_err().to_string();
        let base = LogConfig::default();
        assert!(text(LogConfig { partitions: 1025, ..base.clone() }).contains("partitions"));
        assert!(text(LogConfig { retention_bytes: 1, ..base.clone() }).contains("retention_bytes"));
        assert!(text(LogConfig { backlog_bytes_max: 1, ..base.clone() }).contains("backlog_bytes_max"));
        assert!(text(LogConfig { sync: SyncPolicy::IntervalMs(0), ..base }).contains("interval_ms"));
    }
}
