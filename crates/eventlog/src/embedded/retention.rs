//! Which segments may go: the oldest, whole, released by every sink, and either old enough or one too many.
//!
//! The segment that is written to always stays.

use catchment_types::Timestamp;

use super::config::LogConfig;
use super::folder::Folder;
use super::partition::Partition;

/// The limits of one partition.
pub(super) struct Retention {
    age_us_max: i64,
    bytes_max: u64,
    segment_bytes: u64,
    warned: bool,
}

impl Retention {
    pub(super) fn new(config: &LogConfig) -> Self {
        Self {
            age_us_max: i64::from(config.retention_hours) * 60 * Timestamp::MINUTE,
            bytes_max: config.retention_bytes / u64::from(config.partitions.max(1)),
            segment_bytes: config.segment_bytes,
            warned: false,
        }
    }

    /// Drops what may go, leaving room for one more segment.
    pub(super) fn apply(&mut self, partition: &Partition, folder: &mut Folder) {
        let released = partition.released();
        let oldest_kept = Timestamp(Timestamp::now().as_micros() - self.age_us_max);
        loop {
            let next_segment = if folder.spare_bytes() > 0 { 0 } else { self.segment_bytes };
            let bytes = partition.segment_bytes() + folder.spare_bytes() + next_segment;
            let too_large = bytes > self.bytes_max;
            let mut held = None;
            let dropped = partition.pop_segment_if(|oldest, next| {
                let too_old = next.started_at().is_some_and(|newer| newer < oldest_kept);
                let released = next.base() <= released;
                held = (too_large && !released).then(|| oldest.path().to_owned());
                (too_old || too_large) && released
            });
            if let Some(path) = held
                && !std::mem::replace(&mut self.warned, true)
            {
                tracing::warn!(
                    file = %path.display(),
                    "the event log is over log.retention_bytes, but a sink still needs its oldest events: kept"
                );
            }
            let Some(segment) = dropped else { return };
            self.warned = false;
            folder.discard(segment, self.segment_bytes);
        }
    }
}
