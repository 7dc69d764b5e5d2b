//! The event log: durable, partitioned, replayable. The only source of truth of Catchment.
//!
//! An acknowledgement to a device means that its event is in here, at the durability the operator chose. Everything
//! behind the log (snapshot, history, rollups) can be rebuilt from it.
//!
//! [`EventLog`] is the seam; [`embedded`] is the engine that runs in one data folder, [`kafka`] the one for many machines.
//! Every engine passes the same [`conformance`] suite.

pub mod conformance;
pub mod embedded;
mod group;
pub mod kafka;
pub mod readings;
mod sync;

use std::future::Future;
use std::ops::Range;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};

use async_trait::async_trait;
use catchment_types::{EventBatch, Offset, PartitionId};
use thiserror::Error;
use tokio::sync::oneshot;

pub use self::group::{Assigned, ConsumerGroup, GroupError, SoleMember};
pub use self::sync::SyncPolicy;

/// A durable log of events in partitions. All methods may be called from any thread.
#[async_trait]
pub trait EventLog: Send + Sync + 'static {
    /// Number of partitions, fixed when the log was created.
    fn partitions(&self) -> u32;

    /// Hands a batch over to be made durable, in order with everything that the same caller submitted to this
    /// partition before. Waits only while the partition's queue is full (back-pressure); does not wait for
    /// durability, which the returned [`Pending`] does.
    ///
    /// # Errors
    /// [`LogError::Full`] when there is no room on disk, [`LogError::Closed`] after [`EventLog::close`],
    /// [`LogError::Failed`] after an error of the device.
    async fn submit(&self, partition: PartitionId, batch: EventBatch) -> Result<Pending, LogError>;

    /// Reads blocks from offset `from` on, about `bytes_max` bytes of encoded events but at least one block. Waits
    /// until there is something at or after `from`. Only durable events are served. `from` below the start of what is
    /// kept reads from the start and tells the gap in [`ReadBatch::skipped`].
    ///
    /// # Errors
    /// [`LogError::Closed`] when the log was closed while waiting; I/O errors.
    async fn read(
        &self,
        partition: PartitionId,
        from: Offset,
        bytes_max: usize,
    ) -> Result<ReadBatch, LogError>;

    /// The offsets that are kept: from the oldest up to, but not including, the next that will be durable.
    fn range(&self, partition: PartitionId) -> Range<Offset>;

    /// Tells that no sink needs anything before `before` any more; retention may drop it from then on, never earlier.
    fn release(&self, partition: PartitionId, before: Offset);

    /// What is on disk and in the queues now.
    fn stats(&self) -> LogStats;

    /// What keeps the engine from its work now, if anything does: for those who operate it.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// Makes everything submitted durable, then refuses further work. Idempotent.
    async fn close(&self);
}

/// An append that is on its way; resolves to the offset of the batch's first event once the batch is durable.
#[derive(Debug)]
pub struct Pending(oneshot::Receiver<Result<Offset, LogError>>);

impl Pending {
    /// A pending append and the end that completes it. Dropping that end without a word means [`LogError::Closed`].
    #[must_use]
    pub fn new() -> (oneshot::Sender<Result<Offset, LogError>>, Self) {
        let (sender, receiver) = oneshot::channel();
        (sender, Self(receiver))
    }
}

impl Future for Pending {
    type Output = Result<Offset, LogError>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map(|result| result.unwrap_or(Err(LogError::Closed)))
    }
}

/// Events with the offset of the first; the others follow one by one.
#[derive(Debug, Clone)]
pub struct EventBlock {
    /// Offset of the first event.
    pub first_offset: Offset,
    /// The events.
    pub events: EventBatch,
}

impl EventBlock {
    /// The offset after the last event.
    #[must_use]
    pub fn end_offset(&self) -> Offset {
        self.first_offset + Offset::from(self.events.len())
    }
}

/// What one read yields.
#[derive(Debug, Clone, Default)]
pub struct ReadBatch {
    /// Blocks in order. The first may begin before the offset asked for: the reader skips those events.
    pub blocks: Vec<EventBlock>,
    /// Where to read on.
    pub next: Offset,
    /// Offsets that are gone: dropped by retention, or in a corrupted block. Counted and logged by the engine.
    pub skipped: Vec<Range<Offset>>,
}

/// Figures of an engine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogStats {
    /// Bytes of segments on disk (for the embedded engine, including preallocated room).
    pub disk_bytes: u64,
    /// Encoded bytes submitted and not durable yet.
    pub queued_bytes: u64,
    /// Events made durable since the start.
    pub appended_events: u64,
    /// Encoded bytes of these, before compression.
    pub appended_bytes: u64,
    /// Bytes written for them, after compression.
    pub stored_bytes: u64,
    /// Group commits (fsyncs) since the start.
    pub commits: u64,
    /// Blocks that were found corrupted since the start.
    pub corrupted_blocks: u64,
}

/// Why the log refuses. The variants tell the caller what to do.
#[derive(Debug, Clone, Error)]
pub enum LogError {
    /// No room: nothing was kept; try again once there is.
    #[error("the event log has no room left at {path}: free disk space or shorten the log's retention")]
    Full {
        /// Folder of the log.
        path: PathBuf,
    },
    /// The log is shutting down: nothing was kept; connect again later.
    #[error("the event log is closed")]
    Closed,
    /// The device failed; whether the batch is kept is unknown. The partition refuses work until a restart.
    #[error(
        "the event log failed at {path}: {message}; whether the last events are kept shows after a restart"
    )]
    Failed {
        /// File or folder.
        path: PathBuf,
        /// What the system said.
        message: String,
    },
    /// The engine refused this, which says nothing of what comes next. Of a batch, whether any of it is kept is unknown.
    #[error("the event log at {path} refuses: {message}")]
    Refused {
        /// Folder or address.
        path: PathBuf,
        /// What the engine said.
        message: String,
    },
    /// No such partition.
    #[error("the event log has no partition {partition}, only 0 to {last}", last = .partitions.saturating_sub(1))]
    NoSuchPartition {
        /// What was asked for.
        partition: PartitionId,
        /// How many there are.
        partitions: u32,
    },
}
