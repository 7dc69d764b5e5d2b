//! One partition as its readers, its submitters and its writer share it.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use catchment_types::{EventBatch, Offset};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::queue::Queue;
use super::segment::{Segment, SegmentRead};
use super::tail::Tail;
use crate::{EventBlock, LogError, LogStats, Pending, ReadBatch};

/// Releasing goes no further, since offsets go on from there and must not run out.
const RELEASE_MAX: Offset = 1 << 62;

/// A partition while the log is open.
#[derive(Debug)]
pub(super) struct Partition {
    pub(super) path: PathBuf,
    pub(super) queue: Queue,
    pub(super) counters: Counters,
    kept: Mutex<Kept>,
    progress: watch::Sender<Progress>,
    released: AtomicU64,
    /// Whether sinks are so far behind that submitters wait.
    crowded: AtomicBool,
    caught_up: Notify,
    backlog_bytes_max: u64,
}

/// What readers are told of.
#[derive(Debug, Clone, Copy)]
struct Progress {
    end: Offset,
    closed: bool,
}

/// What can be read.
#[derive(Debug)]
struct Kept {
    /// In order, at least one.
    segments: VecDeque<Arc<Segment>>,
    tail: Tail,
    /// The offset after the last durable event.
    end: Offset,
}

/// Figures since the start; see [`LogStats`].
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) events: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) stored_bytes: AtomicU64,
    pub(super) commits: AtomicU64,
    pub(super) damage: AtomicU64,
    /// Bytes of the spare file now.
    pub(super) spare_bytes: AtomicU64,
}

/// Where the blocks for a read are.
enum Source {
    Memory(Vec<EventBlock>),
    Disk { segment: Arc<Segment>, end: Offset },
}

impl Partition {
    pub(super) fn new(
        path: PathBuf,
        segments: Vec<Arc<Segment>>,
        end: Offset,
        queue: Queue,
        cache_bytes_max: usize,
        backlog_bytes_max: u64,
    ) -> Self {
        Self {
            path,
            queue,
            counters: Counters::default(),
            kept: Mutex::new(Kept { segments: segments.into(), tail: Tail::new(cache_bytes_max), end }),
            progress: watch::Sender::new(Progress { end, closed: false }),
            released: AtomicU64::new(0),
            crowded: AtomicBool::new(false),
            caught_up: Notify::new(),
            backlog_bytes_max,
        }
    }

    pub(super) async fn submit(&self, batch: EventBatch) -> Result<Pending, LogError> {
        if batch.as_bytes().len() > super::BATCH_BYTES_MAX {
            let message = format!("a batch of {} bytes is too large to be stored", batch.as_bytes().len());
            return Err(LogError::Failed { path: self.path.clone(), message });
        }
        if self.crowded.load(Ordering::Acquire) {
            self.wait_for_sinks().await;
        }
        self.queue.push(batch).await
    }

    /// Waits until sinks have caught up, or the writer has ended and the queue says why.
    async fn wait_for_sinks(&self) {
        loop {
            let caught_up = self.caught_up.notified();
            if !self.crowded.load(Ordering::Acquire) {
                return;
            }
            tokio::select! {
                () = caught_up => {}
                () = self.closed() => return,
            }
        }
    }

    /// Looks whether sinks are too far behind; called when that may have changed.
    fn look_at_backlog(&self) {
        let released = self.released();
        let backlog: u64 = {
            let kept = self.kept.lock();
            let whole = kept.segments.iter().zip(kept.segments.iter().skip(1));
            whole.filter(|(_, next)| next.base() > released).map(|(segment, _)| segment.allocated()).sum()
        };
        let is_crowded = backlog > self.backlog_bytes_max;
        if self.crowded.swap(is_crowded, Ordering::AcqRel) == is_crowded {
            return;
        }
        let path = self.path.display();
        if is_crowded {
            tracing::warn!(%path, backlog, "sinks are behind by log.backlog_bytes_max: who appends waits for them");
        } else {
            tracing::info!(%path, "sinks have caught up: appends go on");
            self.caught_up.notify_waiters();
        }
    }

    /// See [`crate::EventLog::read`].
    pub(super) async fn read(&self, from: Offset, bytes_max: usize) -> Result<ReadBatch, LogError> {
        let mut batch = ReadBatch { next: from, ..ReadBatch::default() };
        while batch.blocks.is_empty() {
            self.wait_beyond(batch.next).await?;
            match self.locate(&mut batch, bytes_max) {
                None => {}
                Some(Source::Memory(blocks)) => batch.append(blocks),
                Some(Source::Disk { segment, end }) => {
                    let read = self.read_segment(segment, batch.next, end, bytes_max).await?;
                    self.counters.damage.fetch_add(read.damage, Ordering::Relaxed);
                    batch.append(read.blocks);
                    if read.exhausted {
                        batch.skip_to(end);
                    }
                }
            }
        }
        Ok(batch)
    }

    async fn wait_beyond(&self, offset: Offset) -> Result<(), LogError> {
        if self.kept.lock().end > offset {
            return Ok(());
        }
        let mut progress = self.progress.subscribe();
        let progress = progress.wait_for(|progress| progress.end > offset || progress.closed).await;
        match progress {
            Ok(progress) if progress.end > offset => Ok(()),
            _ => Err(LogError::Closed),
        }
    }

    /// Finds where to read on; steps over what retention dropped. Nothing if there is nothing after that.
    fn locate(&self, batch: &mut ReadBatch, bytes_max: usize) -> Option<Source> {
        let kept = self.kept.lock();
        batch.skip_to(kept.start());
        if batch.next >= kept.end {
            return None;
        }
        let blocks = kept.tail.read(batch.next, bytes_max);
        if !blocks.is_empty() {
            return Some(Source::Memory(blocks));
        }
        let after = kept.segments.partition_point(|segment| segment.base() <= batch.next);
        let segment = kept.segments.get(after.checked_sub(1)?)?;
        let end = kept.segments.get(after).map_or(kept.end, |next| next.base());
        Some(Source::Disk { segment: segment.clone(), end })
    }

    async fn read_segment(
        &self,
        segment: Arc<Segment>,
        from: Offset,
        end: Offset,
        bytes_max: usize,
    ) -> Result<SegmentRead, LogError> {
        let path = segment.path().to_owned();
        let read = tokio::task::spawn_blocking(move || segment.read(from, end, bytes_max));
        match read.await {
            Ok(Ok(read)) => Ok(read),
            Ok(Err(error)) => Err(LogError::Failed { path, message: error.to_string() }),
            // The runtime is going down.
            Err(_) => Err(LogError::Closed),
        }
    }

    pub(super) fn range(&self) -> Range<Offset> {
        let kept = self.kept.lock();
        kept.start()..kept.end
    }

    pub(super) fn release(&self, before: Offset) {
        self.released.fetch_max(before.min(RELEASE_MAX), Ordering::AcqRel);
        self.look_at_backlog();
    }

    /// Nothing before this offset is needed any more.
    pub(super) fn released(&self) -> Offset {
        self.released.load(Ordering::Acquire)
    }

    /// Adds this partition's figures.
    pub(super) fn add_stats(&self, stats: &mut LogStats) {
        let counters = &self.counters;
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        stats.disk_bytes += self.segment_bytes() + value(&counters.spare_bytes);
        stats.queued_bytes += self.queue.bytes();
        stats.appended_events += value(&counters.events);
        stats.appended_bytes += value(&counters.bytes);
        stats.stored_bytes += value(&counters.stored_bytes);
        stats.commits += value(&counters.commits);
        stats.corrupted_blocks += value(&counters.damage);
    }

    /// Bytes of all segments' files.
    pub(super) fn segment_bytes(&self) -> u64 {
        self.kept.lock().segments.iter().map(|segment| segment.allocated()).sum()
    }

    /// Shows durable blocks to readers: they end at `position` of the last segment.
    pub(super) fn publish(&self, blocks: Vec<EventBlock>, position: u64) {
        let mut kept = self.kept.lock();
        if let Some(segment) = kept.segments.back() {
            segment.set_written(position);
        }
        for block in blocks {
            kept.end = block.end_offset();
            kept.tail.push(block);
        }
    }

    /// Wakes the readers that wait for what was published.
    pub(super) fn notify(&self) {
        let end = self.kept.lock().end;
        self.progress.send_modify(|progress| progress.end = end);
    }

    /// Ends the waiting of readers and of [`Partition::closed`]; called when the writer is done.
    pub(super) fn set_closed(&self) {
        self.progress.send_modify(|progress| progress.closed = true);
    }

    /// Waits until the writer is done.
    pub(super) async fn closed(&self) {
        // Fails only when the sender is gone, which `self` holds.
        let _ = self.progress.subscribe().wait_for(|progress| progress.closed).await;
    }

    /// Goes on in a new segment.
    pub(super) fn push_segment(&self, segment: Arc<Segment>) {
        self.kept.lock().segments.push_back(segment);
        self.look_at_backlog();
    }

    /// Takes the oldest segment out if `drop_it` says so, given the segment and the one after it.
    pub(super) fn pop_segment_if(
        &self,
        drop_it: impl FnOnce(&Segment, &Segment) -> bool,
    ) -> Option<Arc<Segment>> {
        let mut kept = self.kept.lock();
        match (kept.segments.front(), kept.segments.get(1)) {
            (Some(oldest), Some(next)) if drop_it(oldest, next) => kept.segments.pop_front(),
            _ => None,
        }
    }
}

impl Kept {
    fn start(&self) -> Offset {
        self.segments.front().map_or(self.end, |segment| segment.base())
    }
}

impl ReadBatch {
    /// Adds blocks, telling the gaps before and between them.
    fn append(&mut self, blocks: Vec<EventBlock>) {
        for block in blocks {
            self.skip_to(block.first_offset);
            self.next = block.end_offset();
            self.blocks.push(block);
        }
    }

    /// Steps over what is gone before `offset`.
    fn skip_to(&mut self, offset: Offset) {
        if offset > self.next {
            match self.skipped.last_mut() {
                Some(last) if last.end == self.next => last.end = offset,
                _ => self.skipped.push(self.next..offset),
            }
            self.next = offset;
        }
    }
}
