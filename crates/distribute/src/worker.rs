//! The worker of one partition.

use std::sync::Arc;
use std::time::{Duration, Instant};

use catchment_decode::WorkerDecoders;
use catchment_eventlog::{EventBlock, LogError, ReadBatch};
use catchment_store::history::Start;
use catchment_store::shard::Shard;
use catchment_types::{Offset, PartitionId, Timestamp};
use tokio::sync::watch;

use crate::metrics::PartitionLabel;
use crate::publish::Publisher;
use crate::supervisor::Shared;

/// First and longest pause after something that failed.
pub(crate) const RETRY_MIN: Duration = Duration::from_millis(100);
pub(crate) const RETRY_MAX: Duration = Duration::from_secs(5);
/// How often a waiting worker looks whether rows of *other* partitions were written; its own shard tells it at once.
const ROOM_POLL: Duration = Duration::from_millis(50);

/// Reads one partition. Can be dropped between any two blocks.
pub(crate) struct Worker {
    shared: Arc<Shared>,
    shard: Arc<Shard>,
    partition: PartitionId,
    next: Offset,
    /// Events below this go to history before any other is taken in; none once they have.
    repeat_to: Option<Offset>,
    committed: watch::Receiver<Vec<Offset>>,
    decoders: WorkerDecoders,
    publisher: Option<Publisher>,
    retry: Duration,
}

impl Worker {
    pub(crate) fn new(shared: Arc<Shared>, partition: PartitionId, start: Start) -> Self {
        let shard = Arc::clone(&shared.parts.shards[partition as usize]);
        let decoders = WorkerDecoders::new(Arc::clone(&shared.parts.decoders));
        let committed = shared.parts.history.subscribe_committed();
        let publish = shared.parts.publish.clone();
        let publisher = publish.map(|to| Publisher::new(to, partition));
        let repeat_to = Some(start.repeat_to).filter(|&to| to > start.offset);
        let (next, retry) = (start.offset, RETRY_MIN);
        Self { shared, shard, partition, next, repeat_to, committed, decoders, publisher, retry }
    }

    /// Works until told to stop, and then until the log's present end.
    pub(crate) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        loop {
            self.wait_for_room().await;
            let stopping = *stop.borrow_and_update();
            if stopping && self.next >= self.shared.parts.log.range(self.partition).end {
                return;
            }
            let read =
                self.shared.parts.log.read(self.partition, self.next, self.shared.config.read_bytes_max);
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
                    self.shared.parts.metrics.read_errors.inc();
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
            self.shared.parts.metrics.skipped.inc_by(count);
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
            if let Some(to) = self.repeat_to
                && block.end_offset() > to
            {
                if block.first_offset < to {
                    self.ingest(block, to).await;
                }
                self.finish_repeat(to).await;
            }
            self.ingest(block, Offset::MAX).await;
            // A block takes milliseconds: the sockets' tasks share these threads.
            tokio::task::yield_now().await;
        }
        if let Some(to) = self.repeat_to
            && batch.next > to
        {
            self.finish_repeat(to).await;
        }
        if batch.next > self.next {
            self.shard.skip_to(batch.next);
            self.advance(batch.next);
        }
        self.show_lag(None);
    }

    /// Waits until history has just the events below `to`, which it may have in part already.
    async fn finish_repeat(&mut self, to: Offset) {
        if self.next < to {
            // The log has lost what was left of them.
            self.shard.skip_to(to);
            self.advance(to);
        }
        let at = self.partition as usize;
        let has = |committed: &Vec<Offset>| committed.get(at).is_none_or(|&committed| committed >= to);
        // An error means that history has ended, and with it this worker.
        let _ = self.committed.wait_for(has).await;
        self.repeat_to = None;
    }

    /// Takes the events of a block that are below `until` and were not taken before.
    async fn ingest(&mut self, block: &EventBlock, until: Offset) {
        if let Some(publisher) = &mut self.publisher {
            publisher.publish(block, self.next, until, &mut self.decoders).await;
        }
        let live_hub = &self.shared.parts.live;
        let mut live = live_hub.batch();
        let EventBlock { first_offset, events } = block;
        let wanted = self.next..until;
        let report = self.shard.ingest(*first_offset, events, wanted, &mut self.decoders, live.as_mut());
        if let Some(batch) = live {
            live_hub.publish(batch);
        }
        let metrics = &self.shared.parts.metrics;
        metrics.events.inc_by(report.events);
        metrics.readings.inc_by(report.readings);
        metrics.rejects.inc_by(report.rejects);
        self.advance(self.next.max(block.end_offset().min(until)));
        self.show_lag(report.last_received_at);
    }

    fn advance(&mut self, next: Offset) {
        self.next = next;
        self.shared.show(self.partition, Some(next));
    }

    fn show_lag(&self, last_received_at: Option<Timestamp>) {
        let label = PartitionLabel { partition: self.partition };
        let lag = self.shared.parts.log.range(self.partition).end.saturating_sub(self.next);
        let metrics = &self.shared.parts.metrics;
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
        // What is repeated goes to history only when it is whole: to wait for room before that would be for ever. It is
        // as much as history takes at once.
        if self.repeat_to.is_some() || !self.shared.over_budget() {
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
        self.shared.parts.metrics.wait_seconds.inc_by(since.elapsed().as_secs_f64());
    }
}

#[cfg(test)]
mod tests;
