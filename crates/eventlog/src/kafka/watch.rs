//! Threads beside the log: one serves librdkafka's events, one looks after the partitions' ends and their retention.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime};

use catchment_types::Offset;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset as KafkaOffset, TopicPartitionList};
use tokio::runtime::Handle;

use super::client::Context;
use super::partition::Partition;
use super::topic::{ANSWER_MAX, watermarks};

/// How often the ends of partitions that are read here are asked for: what others write shows at the latest then. Of those
/// that nobody here reads, one is asked for, in turn.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often old records are deleted.
const TRIM_EVERY: Duration = Duration::from_secs(60);
const SERVE_STEP: Duration = Duration::from_millis(100);

/// Serves events of the consumer until told to stop. Records do not come this way: each partition has its own queue.
pub(super) fn serve_events(consumer: &BaseConsumer<Context>, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        // Errors have been told through the context.
        let _ = consumer.poll(SERVE_STEP);
    }
}

/// What looks after the partitions.
pub(super) struct Watch {
    pub(super) consumer: Arc<BaseConsumer<Context>>,
    /// Of the client that deletes, which is made when there is something to delete.
    pub(super) admin_settings: ClientConfig,
    pub(super) context: Context,
    pub(super) topic: Arc<str>,
    pub(super) partitions: Vec<Arc<Partition>>,
    /// Records that are younger stay; none: nothing is deleted.
    pub(super) retention: Option<Duration>,
    pub(super) runtime: Handle,
}

impl Watch {
    /// Looks until the other end of `stop` is gone.
    pub(super) fn run(&self, stop: &Receiver<()>) {
        let mut trimmed: Option<Instant> = None;
        let mut turns = (0..self.partitions.len()).cycle();
        while stop.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
            let turn = turns.next();
            let is_due = |(at, partition): &(usize, &Arc<Partition>)| {
                // For its effect, too: it pauses those that nobody reads.
                partition.look_for_readers() || Some(*at) == turn
            };
            let due = self.partitions.iter().enumerate().filter(is_due).map(|(_, partition)| partition);
            if !self.look(due) {
                continue;
            }
            if trimmed.is_none_or(|last| last.elapsed() >= TRIM_EVERY) {
                trimmed = Some(Instant::now());
                self.trim();
            }
        }
    }

    fn look<'a>(&self, partitions: impl Iterator<Item = &'a Arc<Partition>>) -> bool {
        for partition in partitions {
            match watermarks(&self.consumer, &self.topic, partition.id) {
                Ok(range) => {
                    partition.begins(range.start);
                    partition.reaches(range.end);
                }
                Err(error) => {
                    self.context.health.bad(&error.to_string());
                    return false;
                }
            }
        }
        self.context.health.good();
        true
    }

    /// Deletes what is older than the retention and that no sink needs.
    fn trim(&self) {
        let Some(retention) = self.retention else { return };
        let Some(oldest) = SystemTime::now().checked_sub(retention) else { return };
        let Ok(oldest) = oldest.duration_since(SystemTime::UNIX_EPOCH) else { return };
        let oldest_ms = i64::try_from(oldest.as_millis()).unwrap_or(i64::MAX);
        let mut asked = TopicPartitionList::new();
        for partition in &self.partitions {
            // The offset of a request for offsets is a time.
            let added = asked.add_partition_offset(&self.topic, partition.id, KafkaOffset::Offset(oldest_ms));
            if added.is_err() {
                return;
            }
        }
        let found = match self.consumer.offsets_for_times(asked, ANSWER_MAX) {
            Ok(found) => found,
            Err(error) => return tracing::warn!(%error, "how old records are could not be found out"),
        };
        let mut deleted = TopicPartitionList::new();
        for partition in &self.partitions {
            let released = partition.released.load(Ordering::Relaxed);
            let found = found.find_partition(&self.topic, partition.id).map(|found| found.offset());
            let before = match found {
                Some(KafkaOffset::Offset(first_kept)) => {
                    released.min(Offset::try_from(first_kept).unwrap_or(0))
                }
                // Everything is older.
                Some(KafkaOffset::End) => released,
                _ => continue,
            };
            if before > partition.range().start
                && let Ok(before) = i64::try_from(before)
            {
                let _ = deleted.add_partition_offset(&self.topic, partition.id, KafkaOffset::Offset(before));
            }
        }
        if deleted.count() == 0 {
            return;
        }
        let options = AdminOptions::new().request_timeout(Some(ANSWER_MAX));
        let admin: Result<AdminClient<Context>, _> =
            self.admin_settings.create_with_context(self.context.clone());
        let deleting =
            admin.and_then(|admin| self.runtime.block_on(admin.delete_records(&deleted, &options)));
        match deleting {
            Ok(_) => {
                tracing::debug!(partitions = deleted.count(), "old records are deleted");
                self.look(self.partitions.iter());
            }
            Err(error) => tracing::warn!(%error, "old records could not be deleted; the topic grows"),
        }
    }
}
