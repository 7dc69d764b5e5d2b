//! What waits for a partition's writer: bounded in bytes, one lock, one wake-up.
//!
//! Batches are joined to blocks as they come, which compress better and are read with less work. So their own memory, still in the
//! processor's cache, is free for the next batch at once, and the writer copies only blocks that are far from full.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use catchment_types::{EventBatch, Offset};
use parking_lot::{Condvar, Mutex};
use tokio::sync::{Semaphore, oneshot};

use crate::{LogError, Pending};

/// Memory of a submission besides its events, roughly: bounds many tiny ones.
const OVERHEAD_BYTES: usize = 128;
/// A batch of this size is a block by itself, without being copied.
const SHARED_BYTES_MIN: usize = 256 << 10;
/// Memory for blocks that is kept for the next ones.
const SPARES_MAX: usize = 2;

/// Who waits for a batch that is on its way to disk.
#[derive(Debug)]
struct Submission {
    events: u32,
    bytes: usize,
    permits: u32,
    done: oneshot::Sender<Result<Offset, LogError>>,
}

/// Batches that are one block.
#[derive(Debug)]
struct Block {
    bytes: Memory,
    events: u32,
    submissions: usize,
}

#[derive(Debug)]
enum Memory {
    Joined(Vec<u8>),
    /// Of a large batch.
    Shared(Bytes),
}

impl Memory {
    fn len(&self) -> usize {
        match self {
            Self::Joined(bytes) => bytes.len(),
            Self::Shared(bytes) => bytes.len(),
        }
    }
}

/// What is written at once.
#[derive(Debug, Default)]
pub(super) struct Group {
    submissions: Vec<Submission>,
    blocks: Vec<Block>,
    spares: Vec<Vec<u8>>,
}

impl Group {
    /// Its encoded bytes.
    pub(super) fn bytes(&self) -> usize {
        self.submissions.iter().map(|submission| submission.bytes).sum()
    }

    /// Its blocks, for as long as readers want them.
    pub(super) fn take_blocks(&mut self) -> Vec<EventBatch> {
        let Self { blocks, spares, .. } = self;
        let blocks = blocks.drain(..).filter(|block| block.events > 0);
        let into_batch = |block: Block| {
            let bytes = match block.bytes {
                Memory::Shared(bytes) => bytes,
                // Blocks stay in memory for readers: of what one holds on to, a quarter at most is not used.
                Memory::Joined(bytes) if bytes.len() >= bytes.capacity() / 4 * 3 => bytes.into(),
                Memory::Joined(mut bytes) => {
                    let copy = Bytes::copy_from_slice(&bytes);
                    bytes.clear();
                    spares.push(bytes);
                    copy
                }
            };
            EventBatch::from_encoded(bytes, block.events)
        };
        blocks.map(into_batch).collect()
    }
}

/// What woke the writer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// There is a group to write.
    Group,
    /// The time is over.
    Timeout,
    /// Closed, and nothing is left.
    Closed,
}

/// The queue between submitters and the writer.
#[derive(Debug)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    wake: Condvar,
    room: Semaphore,
    bytes_max: u32,
    /// Of batches that are joined.
    block_bytes_max: usize,
}

#[derive(Debug, Default)]
struct Waiting {
    submissions: VecDeque<Submission>,
    /// Their events, in order.
    blocks: VecDeque<Block>,
    spares: Vec<Vec<u8>>,
    /// Of the submissions that are not done, those being written included.
    bytes: u64,
    writer_sleeps: bool,
    closed: bool,
    failed: Option<LogError>,
}

impl Queue {
    /// `bytes_max` may wait; batches are joined to blocks of at most `block_bytes_max`.
    pub(super) fn new(bytes_max: u32, block_bytes_max: usize) -> Self {
        let room = Semaphore::new(bytes_max as usize);
        Self { waiting: Mutex::default(), wake: Condvar::new(), room, bytes_max, block_bytes_max }
    }

    /// Waits for room, then appends. A batch larger than the whole queue waits until it is empty.
    pub(super) async fn push(&self, batch: EventBatch) -> Result<Pending, LogError> {
        let bytes = batch.as_bytes().len();
        let permits = u32::try_from(bytes + OVERHEAD_BYTES).unwrap_or(u32::MAX).min(self.bytes_max);
        let Ok(permit) = self.room.acquire_many(permits).await else {
            return Err(self.waiting.lock().refusal().unwrap_or(LogError::Closed));
        };
        let (done, pending) = Pending::new();
        let mut waiting = self.waiting.lock();
        if let Some(refusal) = waiting.refusal() {
            return Err(refusal);
        }
        permit.forget();
        waiting.bytes += bytes as u64;
        waiting.submissions.push_back(Submission { events: batch.len(), bytes, permits, done });
        waiting.join(&batch, self.block_bytes_max);
        let wake = std::mem::take(&mut waiting.writer_sleeps);
        drop(waiting);
        if wake {
            self.wake.notify_one();
        }
        Ok(pending)
    }

    /// Moves all blocks that wait into `group`, but at most `bytes_max` unless the first alone is larger. Waits for
    /// something to come until `deadline`.
    pub(super) fn take(&self, group: &mut Group, bytes_max: usize, deadline: Instant) -> Taken {
        let mut waiting = self.waiting.lock();
        while waiting.submissions.is_empty() {
            if waiting.closed {
                return Taken::Closed;
            }
            waiting.writer_sleeps = true;
            if self.wake.wait_until(&mut waiting, deadline).timed_out() && waiting.submissions.is_empty() {
                waiting.writer_sleeps = false;
                return if waiting.closed { Taken::Closed } else { Taken::Timeout };
            }
        }
        let mut bytes = 0;
        let blocks = waiting.blocks.iter().take_while(|block| {
            let first = bytes == 0;
            bytes += block.bytes.len();
            first || bytes <= bytes_max
        });
        let blocks = blocks.count();
        let mut submissions = 0;
        group.blocks.extend(waiting.blocks.drain(..blocks).inspect(|block| submissions += block.submissions));
        group.submissions.extend(waiting.submissions.drain(..submissions));
        waiting.spares.append(&mut group.spares);
        waiting.spares.truncate(SPARES_MAX);
        Taken::Group
    }

    /// Completes a group: each submission with its first offset, or all with the same error. Makes room.
    pub(super) fn complete(&self, group: &mut Group, mut result: Result<Offset, LogError>) {
        let permits = group.submissions.iter().map(|submission| submission.permits as usize).sum();
        self.waiting.lock().bytes -= group.bytes() as u64;
        group.blocks.clear();
        for submission in group.submissions.drain(..) {
            // A submitter that went away does not want to know.
            let _ = submission.done.send(result.clone());
            result = result.map(|offset| offset + Offset::from(submission.events));
        }
        self.room.add_permits(permits);
    }

    /// Encoded bytes that are not durable yet.
    pub(super) fn bytes(&self) -> u64 {
        self.waiting.lock().bytes
    }

    /// Refuses submissions from now on; those that are in are still written.
    pub(super) fn close(&self) {
        self.waiting.lock().closed = true;
        self.room.close();
        self.wake.notify_one();
    }

    /// Closes; those that are in are refused too. For a writer that goes.
    pub(super) fn abandon(&self) {
        self.close();
        let mut group = self.waiting.lock().take_all();
        self.complete(&mut group, Err(LogError::Closed));
    }

    /// Refuses submissions from now on, those that wait included. Returns once the queue is closed.
    pub(super) fn fail(&self, error: &LogError) {
        let mut group = {
            let mut waiting = self.waiting.lock();
            waiting.failed = Some(error.clone());
            waiting.take_all()
        };
        self.room.close();
        self.complete(&mut group, Err(error.clone()));
        let mut waiting = self.waiting.lock();
        while !waiting.closed {
            self.wake.wait(&mut waiting);
        }
    }
}

impl Waiting {
    /// Adds a batch to the last block, if it fits.
    fn join(&mut self, batch: &EventBatch, block_bytes_max: usize) {
        let (events, bytes) = (batch.len(), batch.as_bytes());
        if bytes.len() >= SHARED_BYTES_MIN.min(block_bytes_max) {
            return self.blocks.push_back(Block {
                bytes: Memory::Shared(bytes.clone()),
                events,
                submissions: 1,
            });
        }
        if let Some(block) = self.blocks.back_mut()
            && let Memory::Joined(joined) = &mut block.bytes
            && joined.len() + bytes.len() <= block_bytes_max
        {
            joined.extend_from_slice(bytes);
            block.events += events;
            block.submissions += 1;
            return;
        }
        // Growing step by step would copy it once more.
        let mut joined = self.spares.pop().unwrap_or_else(|| Vec::with_capacity(block_bytes_max));
        joined.extend_from_slice(bytes);
        self.blocks.push_back(Block { bytes: Memory::Joined(joined), events, submissions: 1 });
    }

    fn take_all(&mut self) -> Group {
        self.blocks.clear();
        Group { submissions: self.submissions.drain(..).collect(), ..Group::default() }
    }

    fn refusal(&self) -> Option<LogError> {
        self.failed.clone().or_else(|| self.closed.then_some(LogError::Closed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A batch of `events` that together have so many bytes, all of them `mark`.
    fn batch(mark: u8, bytes: usize, events: u32) -> EventBatch {
        EventBatch::from_encoded(vec![mark; bytes].into(), events)
    }

    #[tokio::test]
    async fn batches_come_out_in_order_in_blocks_and_each_knows_its_offset() {
        const BLOCK: usize = 1 << 20;
        let queue = Queue::new(64 << 20, BLOCK);
        let sizes =
            [10, 200_000, SHARED_BYTES_MIN, 20, 2 * BLOCK, 250_000, 250_000, 250_000, 250_000, 250_000];
        let mut pending = Vec::new();
        for (mark, &bytes) in sizes.iter().enumerate() {
            pending.push(queue.push(batch(mark as u8, bytes, 2)).await.unwrap());
        }
        let total: usize = sizes.iter().sum();
        assert_eq!(queue.bytes(), total as u64);

        let (mut group, mut found, mut blocks, mut offset) = (Group::default(), Vec::new(), Vec::new(), 100);
        while queue.bytes() > 0 {
            assert_eq!(queue.take(&mut group, BLOCK, Instant::now()), Taken::Group);
            let taken = group.take_blocks();
            let events: u32 = taken.iter().map(EventBatch::len).sum();
            blocks.extend(taken.iter().map(|block| block.as_bytes().len()));
            taken.iter().for_each(|block| found.extend_from_slice(block.as_bytes()));
            queue.complete(&mut group, Ok(offset));
            offset += Offset::from(events);
        }
        let wanted: Vec<u8> = (0u8..).zip(sizes).flat_map(|(mark, bytes)| vec![mark; bytes]).collect();
        assert!(found == wanted, "every byte, in order");
        assert_eq!(blocks, [200_010, SHARED_BYTES_MIN, 20, 2 * BLOCK, 1_000_000, 250_000]);
        for (number, pending) in pending.into_iter().enumerate() {
            assert_eq!(pending.await.unwrap(), 100 + 2 * number as Offset);
        }
        assert_eq!(queue.take(&mut group, BLOCK, Instant::now()), Taken::Timeout);
        assert!(queue.waiting.lock().spares.len() <= SPARES_MAX);
    }

    #[tokio::test]
    async fn who_waits_is_told_when_the_writer_goes() {
        let queue = Queue::new(1 << 20, 1 << 10);
        let (small, large) =
            (queue.push(batch(1, 10, 1)).await.unwrap(), queue.push(batch(2, 5000, 1)).await.unwrap());
        queue.abandon();
        for pending in [small, large] {
            assert!(matches!(pending.await, Err(LogError::Closed)));
        }
        assert!(queue.push(batch(3, 10, 1)).await.is_err());
        assert_eq!(queue.bytes(), 0);
        assert!(queue.waiting.lock().blocks.is_empty());
    }
}
