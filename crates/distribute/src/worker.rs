//! The worker of one partition.

use std::sync::Arc;
use std::time::{Duration, Instant};

use catchment_decode::{Decoders, WorkerDecoders};
use catchment_eventlog::{EventBlock, EventLog, LogError, ReadBatch};
use catchment_store::live::LiveHub;
use catchment_store::shard::Shard;
use catchment_types::{Offset, PartitionId, Timestamp};
use tokio::sync::watch;

use crate::metrics::PartitionLabel;
use crate::{DistributeConfig, DistributeMetrics};

/// First and longest pause after a read that failed.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// How often a waiting worker looks whether rows of *other* partitions were written; its own shard tells it at once.
const ROOM_POLL: Duration = Duration::from_millis(50);

/// What all workers use.
pub(crate) struct Shared {
    pub(crate) log: Arc<dyn EventLog>,
    pub(crate) shards: Vec<Arc<Shard>>,
    pub(crate) decoders: Arc<Decoders>,
    pub(crate) live: Arc<LiveHub>,
    pub(crate) metrics: DistributeMetrics,
    pub(crate) config: DistributeConfig,
    pub(crate) processed: watch::Sender<Vec<Offset>>,
}

impl Shared {
    fn over_budget(&self) -> bool {
        let held: usize = self.shards.iter().map(|shard| shard.held_bytes()).sum();
        held > self.config.budget_bytes
    }
}

/// Reads one partition.
pub(crate) struct Worker {
    shared: Arc<Shared>,
    shard: Arc<Shard>,
    partition: PartitionId,
    next: Offset,
    decoders: WorkerDecoders,
    retry: Duration,
}

impl Worker {
    pub(crate) fn new(shared: Arc<Shared>, partition: PartitionId, start: Offset) -> Self {
        let shard = Arc::clone(&shared.shards[partition as usize]);
        let decoders = WorkerDecoders::new(Arc::clone(&shared.decoders));
        Self { shared, shard, partition, next: start, decoders, retry: RETRY_MIN }
    }

    /// Works until told to stop, and then until the log's present end.
    pub(crate) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        loop {
            self.wait_for_room().await;
            let stopping = *stop.borrow_and_update();
            if stopping && self.next >= self.shared.log.range(self.partition).end {
                return;
            }
            let read = self.shared.log.read(self.partition, self.next, self.shared.config.read_bytes_max);
            let read = tokio::select! {
                read = read => read,
                // A dropped sender means the same as a word from it: nobody waits for more.
                _ = stop.changed(), if !stopping => continue,
            };
            match read {
                Ok(batch) => {
                    self.retry = RETRY_MIN;
                    self.process(batch).await;
                }
                Err(LogError::Closed) => return,
                Err(error @ LogError::NoSuchPartition { .. }) => {
                    tracing::error!(partition = self.partition, %error, "the partition is not read");
                    return;
                }
                Err(error) => {
                    self.shared.metrics.read_errors.inc();
                    tracing::error!(partition = self.partition, offset = self.next, %error, "reading the log failed; trying again");
                    tokio::time::sleep(self.retry).await;
                    self.retry = (self.retry * 2).min(RETRY_MAX);
                }
            }
        }
    }

    async fn process(&mut self, batch: ReadBatch) {
        for range in &batch.skipped {
            let count = range.end.saturating_sub(range.start);
            self.shared.metrics.skipped.inc_by(count);
            tracing::warn!(
                partition = self.partition,
                from = range.start,
                to = range.end,
                count,
                "the log no longer has these events"
            );
        }
        for block in &batch.blocks {
            self.decoders.refresh();
            self.ingest(block);
            // A block takes milliseconds: the sockets' tasks share these threads.
            tokio::task::yield_now().await;
        }
        if batch.next > self.next {
            self.shard.skip_to(batch.next);
            self.advance(batch.next);
        }
        self.show_lag(None);
    }

    fn ingest(&mut self, block: &EventBlock) {
        let mut live = self.shared.live.batch();
        let EventBlock { first_offset, events } = block;
        let report = self.shard.ingest(*first_offset, events, self.next, &mut self.decoders, live.as_mut());
        if let Some(batch) = live {
            self.shared.live.publish(batch);
        }
        let metrics = &self.shared.metrics;
        metrics.events.inc_by(report.events);
        metrics.readings.inc_by(report.readings);
        metrics.rejects.inc_by(report.rejects);
        self.advance(self.next.max(block.end_offset()));
        self.show_lag(report.last_received_at);
    }

    fn advance(&mut self, next: Offset) {
        self.next = next;
        let at = self.partition as usize;
        self.shared.processed.send_modify(|processed| processed[at] = next);
    }

    fn show_lag(&self, last_received_at: Option<Timestamp>) {
        let label = PartitionLabel { partition: self.partition };
        let lag = self.shared.log.range(self.partition).end.saturating_sub(self.next);
        let metrics = &self.shared.metrics;
        metrics.lag_events.get_or_create(&label).set(lag.cast_signed());
        if lag == 0 {
            metrics.lag_seconds.get_or_create(&label).set(0.0);
        } else if let Some(last) = last_received_at {
            let micros = Timestamp::now().as_micros().saturating_sub(last.as_micros()).max(0);
            metrics.lag_seconds.get_or_create(&label).set(micros as f64 / 1e6);
        }
    }

    /// Waits while history has too much to write.
    async fn wait_for_room(&self) {
        if !self.shared.over_budget() {
            return;
        }
        let since = Instant::now();
        loop {
            let room = self.shard.room_notify().notified();
            tokio::pin!(room);
            // Registered before the look, so that rows taken in between are not missed.
            room.as_mut().enable();
            if !self.shared.over_budget() {
                break;
            }
            let _ = tokio::time::timeout(ROOM_POLL, room).await;
            self.show_lag(None);
        }
        self.shared.metrics.wait_seconds.inc_by(since.elapsed().as_secs_f64());
    }
}

#[cfg(test)]
mod tests;
