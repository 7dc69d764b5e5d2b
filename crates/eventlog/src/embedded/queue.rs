//! What waits for a partition's writer: bounded in bytes, one lock, one wake-up.

use std::collections::VecDeque;
use std::time::Instant;

use catchment_types::{EventBatch, Offset};
use parking_lot::{Condvar, Mutex};
use tokio::sync::{Semaphore, oneshot};

use crate::{LogError, Pending};

/// Memory of a submission besides its events, roughly: bounds many tiny ones.
const OVERHEAD_BYTES: usize = 128;

/// A batch on its way to disk, and who waits for it.
#[derive(Debug)]
pub(super) struct Submission {
    pub(super) batch: EventBatch,
    pub(super) done: oneshot::Sender<Result<Offset, LogError>>,
    permits: u32,
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
}

#[derive(Debug, Default)]
struct Waiting {
    submissions: VecDeque<Submission>,
    /// Of the submissions that are not done, those being written included.
    bytes: u64,
    writer_sleeps: bool,
    closed: bool,
    failed: Option<LogError>,
}

impl Queue {
    pub(super) fn new(bytes_max: u32) -> Self {
        let room = Semaphore::new(bytes_max as usize);
        Self { waiting: Mutex::default(), wake: Condvar::new(), room, bytes_max }
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
        waiting.submissions.push_back(Submission { batch, done, permits });
        let wake = std::mem::take(&mut waiting.writer_sleeps);
        drop(waiting);
        if wake {
            self.wake.notify_one();
        }
        Ok(pending)
    }

    /// Moves everything that waits into `group`, but at most `bytes_max` unless the first alone is larger. Waits for
    /// something to come until `deadline`.
    pub(super) fn take(&self, group: &mut Vec<Submission>, bytes_max: usize, deadline: Instant) -> Taken {
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
        let count = waiting.submissions.iter().take_while(|submission| {
            let first = bytes == 0;
            bytes += submission.batch.as_bytes().len();
            first || bytes <= bytes_max
        });
        let count = count.count();
        group.extend(waiting.submissions.drain(..count));
        Taken::Group
    }

    /// Completes a group: each submission with its first offset, or all with the same error. Makes room.
    pub(super) fn complete(&self, group: &mut Vec<Submission>, mut result: Result<Offset, LogError>) {
        let bytes: usize = group.iter().map(|submission| submission.batch.as_bytes().len()).sum();
        let permits = group.iter().map(|submission| submission.permits as usize).sum();
        self.waiting.lock().bytes -= bytes as u64;
        for submission in group.drain(..) {
            // A submitter that went away does not want to know.
            let _ = submission.done.send(result.clone());
            result = result.map(|offset| offset + Offset::from(submission.batch.len()));
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
        let mut group = self.waiting.lock().submissions.drain(..).collect();
        self.complete(&mut group, Err(LogError::Closed));
    }

    /// Refuses submissions from now on, those that wait included. Returns once the queue is closed.
    pub(super) fn fail(&self, error: &LogError) {
        let mut group = {
            let mut waiting = self.waiting.lock();
            waiting.failed = Some(error.clone());
            waiting.submissions.drain(..).collect()
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
    fn refusal(&self) -> Option<LogError> {
        self.failed.clone().or_else(|| self.closed.then_some(LogError::Closed))
    }
}
