//! The thread that owns a partition's files: takes what waits, writes it in one piece, makes it durable once, tells
//! everybody. While it waits for the disk the next group gathers, so groups grow with the load by themselves.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use catchment_types::{Offset, Timestamp};

use super::config::LogConfig;
use super::device::Device;
use super::folder::Folder;
use super::format::{BLOCK_BYTES_MAX, Encoder, HEADER_BYTES, Header};
use super::partition::Partition;
use super::queue::{Group, Taken};
use super::recovery::Recovered;
use super::retention::Retention;
use super::segment::Segment;
use crate::SyncPolicy;
use crate::{EventBlock, LogError};

/// Encoded bytes of a group: bounds the memory for it, and how long its first waits for its last.
const GROUP_BYTES_MAX: usize = 4 << 20;
/// A file grows by this much at once; the zeros are written out with the group that needed them.
const GROW_BYTES: u64 = 4 << 20;
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
/// How often retention looks at an idle partition.
const RETENTION_INTERVAL: Duration = Duration::from_secs(30);

/// Encoded bytes that are written at once; several times as many fit into a segment.
fn group_bytes_max(config: &LogConfig) -> usize {
    GROUP_BYTES_MAX.min((config.segment_bytes / 8) as usize)
}

/// Encoded bytes of a block, unless one batch alone has more.
pub(super) fn block_bytes_max(config: &LogConfig) -> usize {
    BLOCK_BYTES_MAX.min(group_bytes_max(config))
}

/// A partition's writer.
pub(super) struct Writer {
    partition: Arc<Partition>,
    config: LogConfig,
    device: Arc<dyn Device>,
    folder: Folder,
    retention: Retention,
    active: Arc<Segment>,
    /// Where in the active segment the next block goes.
    position: u64,
    next_offset: Offset,
    encoder: Encoder,
    /// The blocks in the encoder, and where in the segment they go.
    placed: Vec<(Header, u64)>,
    group_bytes_max: usize,
    /// When unsynced bytes are to be written out, for [`SyncPolicy::IntervalMs`].
    sync_due: Option<Instant>,
    retention_due: Instant,
    /// Whether the last group found no room.
    full: bool,
}

/// Why a group was not written.
enum GroupError {
    /// Nothing of it is on disk; the next may succeed.
    Full,
    /// Unknown what is on disk.
    Failed(io::Error),
}

impl Writer {
    /// A writer that goes on where recovery ended.
    pub(super) fn new(
        partition: Arc<Partition>,
        recovered: Recovered,
        config: LogConfig,
        device: Arc<dyn Device>,
    ) -> Self {
        Self {
            retention: Retention::new(&config),
            encoder: Encoder::new(config.compression),
            placed: Vec::new(),
            group_bytes_max: group_bytes_max(&config),
            partition,
            device,
            folder: recovered.folder,
            active: recovered.active,
            position: recovered.position,
            next_offset: recovered.next_offset,
            config,
            sync_due: None,
            retention_due: Instant::now(),
            full: false,
        }
    }

    /// Works until the queue is closed and empty.
    pub(super) fn run(mut self) {
        let _closing = Closing(self.partition.clone());
        let mut group = Group::default();
        loop {
            let deadline = self.sync_due.map_or(self.retention_due, |due| due.min(self.retention_due));
            let taken = self.partition.queue.take(&mut group, self.group_bytes_max, deadline);
            let result = match taken {
                Taken::Group => {
                    self.linger(&mut group);
                    self.commit(&mut group)
                }
                Taken::Timeout => Ok(()),
                Taken::Closed => self.sync_at_close(),
            };
            let result = result.and_then(|()| self.do_what_is_due());
            if let Err(error) = result {
                return self.fail(&mut group, &error);
            }
            if taken == Taken::Closed {
                return;
            }
        }
    }

    /// Waits for more to come into the group, if configured.
    fn linger(&self, group: &mut Group) {
        if self.config.linger_us > 0 {
            std::thread::sleep(Duration::from_micros(self.config.linger_us.into()));
            let room = self.group_bytes_max.saturating_sub(group.bytes());
            self.partition.queue.take(group, room, Instant::now());
        }
    }

    /// Writes a group and completes it. `Err` only if the device failed; the group is still to be completed then.
    fn commit(&mut self, group: &mut Group) -> io::Result<()> {
        // What the sinks have is never given away anew, even if the log lost its end (not synced, or damaged).
        self.next_offset = self.next_offset.max(self.partition.released());
        let mut first_offset = self.next_offset;
        let place = |events| {
            let block = EventBlock { first_offset, events };
            first_offset = block.end_offset();
            block
        };
        let blocks: Vec<_> = group.take_blocks().into_iter().map(place).collect();
        match self.write(&blocks) {
            Ok(()) => self.tell_room(true),
            Err(GroupError::Full) => {
                self.tell_room(false);
                let path = self.partition.path.clone();
                self.partition.queue.complete(group, Err(LogError::Full { path }));
                return Ok(());
            }
            Err(GroupError::Failed(error)) => return Err(error),
        }
        let first_offset = self.next_offset;
        let counters = &self.partition.counters;
        for block in &blocks {
            self.next_offset = block.end_offset();
            counters.events.fetch_add(block.events.len().into(), Ordering::Relaxed);
            counters.bytes.fetch_add(block.events.as_bytes().len() as u64, Ordering::Relaxed);
        }
        counters.stored_bytes.fetch_add(self.encoder.bytes().len() as u64, Ordering::Relaxed);
        counters.commits.fetch_add(1, Ordering::Relaxed);

        self.partition.publish(blocks, self.position);
        self.partition.queue.complete(group, Ok(first_offset));
        self.partition.notify();
        Ok(())
    }

    /// Logs when the disk gets full and when it has room again, not for every group in between.
    fn tell_room(&mut self, room: bool) {
        let path = self.partition.path.display();
        match (room, self.full) {
            (false, false) => {
                tracing::error!(%path, "the disk is full: the event log refuses appends until there is room")
            }
            (true, true) => tracing::info!(%path, "the disk has room again: the event log goes on"),
            _ => {}
        }
        self.full = !room;
    }

    /// Brings blocks to disk as durably as configured. On error the position is as before.
    fn write(&mut self, blocks: &[EventBlock]) -> Result<(), GroupError> {
        self.encode(blocks);
        if self.position > 0 && self.end_position() > self.config.segment_bytes {
            self.roll()?;
            self.encode(blocks);
        }
        self.grow()?;
        if let Err(error) = self.device.write(self.active.file(), self.encoder.bytes(), self.position) {
            return Err(self.undo(error));
        }
        match self.config.sync {
            SyncPolicy::Fsync => self.device.sync(self.active.file()).map_err(GroupError::Failed)?,
            SyncPolicy::IntervalMs(ms) => {
                self.sync_due.get_or_insert_with(|| Instant::now() + Duration::from_millis(ms.into()));
            }
            SyncPolicy::Never => {}
        }
        self.position = self.end_position();
        self.placed.iter().for_each(|(header, position)| self.active.note(header, *position));
        Ok(())
    }

    fn encode(&mut self, blocks: &[EventBlock]) {
        let now = Timestamp::now();
        self.encoder.clear(2 * self.group_bytes_max);
        self.placed.clear();
        for block in blocks {
            let position = self.end_position();
            self.placed.push((self.encoder.push(block, self.active.nonce(), now), position));
        }
    }

    fn end_position(&self) -> u64 {
        self.position + self.encoder.bytes().len() as u64
    }

    /// Writes zeros ahead so that the group, and more after it, overwrites what the file system knows already.
    fn grow(&self) -> Result<(), GroupError> {
        let (allocated, end) = (self.active.allocated(), self.end_position());
        if end <= allocated {
            return Ok(());
        }
        let wanted = end.next_multiple_of(GROW_BYTES).min(self.config.segment_bytes.max(end));
        let mut at = allocated;
        while at < wanted {
            let piece = ZEROS.len().min((wanted - at) as usize);
            if let Err(error) = self.device.write(self.active.file(), &ZEROS[..piece], at) {
                // Leave the little room there is to the others.
                self.active.file().set_len(allocated).map_err(GroupError::Failed)?;
                return Err(GroupError::from(error));
            }
            at += piece as u64;
        }
        self.active.set_allocated(wanted);
        Ok(())
    }

    /// After a failed write: makes sure that nothing of the group is found again, then it is as if it never was.
    fn undo(&self, error: io::Error) -> GroupError {
        match GroupError::from(error) {
            GroupError::Full => {
                match self.device.write(self.active.file(), &[0; HEADER_BYTES], self.position) {
                    Ok(()) => GroupError::Full,
                    Err(error) => GroupError::Failed(error),
                }
            }
            failed => failed,
        }
    }

    /// Goes on in a new segment.
    fn roll(&mut self) -> Result<(), GroupError> {
        self.sync_now().map_err(GroupError::Failed)?;
        self.retain();
        let segment = Arc::new(self.folder.create(self.next_offset)?);
        self.count_spare();
        self.partition.push_segment(segment.clone());
        self.active = segment;
        self.position = 0;
        Ok(())
    }

    fn do_what_is_due(&mut self) -> io::Result<()> {
        let now = Instant::now();
        if self.sync_due.is_some_and(|due| due <= now) {
            self.sync_now()?;
        }
        if self.retention_due <= now {
            self.retain();
        }
        Ok(())
    }

    /// Writes out what a policy other than fsync left.
    fn sync_now(&mut self) -> io::Result<()> {
        if self.sync_due.take().is_some() {
            self.device.sync(self.active.file())?;
        }
        Ok(())
    }

    /// A log that was closed is durable, whatever the policy.
    fn sync_at_close(&mut self) -> io::Result<()> {
        match self.config.sync {
            SyncPolicy::Fsync => Ok(()),
            SyncPolicy::IntervalMs(_) => self.sync_now(),
            SyncPolicy::Never => self.device.sync(self.active.file()),
        }
    }

    fn retain(&mut self) {
        self.retention.apply(&self.partition, &mut self.folder);
        self.count_spare();
        self.retention_due = Instant::now() + RETENTION_INTERVAL;
    }

    fn count_spare(&self) {
        self.partition.counters.spare_bytes.store(self.folder.spare_bytes(), Ordering::Relaxed);
    }

    /// Refuses everything until the log is closed.
    fn fail(&self, group: &mut Group, error: &io::Error) {
        let path = self.active.path().to_owned();
        tracing::error!(file = %path.display(), %error, "the event log failed: the partition refuses work until a restart");
        let error = LogError::Failed { path, message: error.to_string() };
        self.partition.queue.complete(group, Err(error.clone()));
        self.partition.queue.fail(&error);
    }
}

impl From<io::Error> for GroupError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full,
            _ => Self::Failed(error),
        }
    }
}

/// Tells everybody that the writer is gone, even if it panicked.
struct Closing(Arc<Partition>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.queue.abandon();
        self.0.set_closed();
    }
}
