//! One partition of the topic: what is in it, what is on its way, and where we read.
//!
//! Offsets of a partition are Kafka's own. Reading goes on by itself in the background (librdkafka fetches ahead, bounded
//! in bytes); a read at another offset than where the last one ended moves the cursor, which costs a round trip. There is
//! one cursor: readers at different places, as at a start, take turns. Who has moved it keeps it until it has brought what
//! it was moved for, or for [`TURN_MAX`] if its reader has gone.
//!
//! A partition is paused until somebody reads it, and again once nobody has for [`IDLE_MAX`]: readers that wait look at it
//! once a second at least. The cursor is then set anew, to the offset that is asked for.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use catchment_types::{EventBatch, EventBatchBuilder, Offset};
use parking_lot::Mutex;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::{Message, Offset as KafkaOffset, TopicPartitionList};
use tokio::sync::Notify;

use super::client::Context;
use super::producer::Lane;
use super::record;
use crate::{EventBlock, LogError, ReadBatch};

/// Events that are there and do not come within this time are asked for again.
const STALL_MAX: Duration = Duration::from_secs(1);
/// A gap is believed when it is still there after the cursor was set to its beginning so many times.
const DOUBTS_MAX: u32 = 2;
/// How long the cursor stays where a reader has moved it, though nothing comes.
const TURN_MAX: Duration = Duration::from_secs(5);
/// A partition that nobody has looked at for so long is read by nobody.
const IDLE_MAX: Duration = Duration::from_secs(3);

/// See the module's head.
pub(super) struct Partition {
    pub(super) id: i32,
    /// How errors name the log.
    pub(super) place: Arc<str>,
    pub(super) lane: Lane,
    /// Something was fetched, or reading is over.
    pub(super) arrived: Arc<Notify>,
    start: AtomicU64,
    end: AtomicU64,
    /// What no sink needs any more ends here.
    pub(super) released: AtomicU64,
    pub(super) corrupted: AtomicU64,
    cursor: Mutex<Option<Cursor>>,
}

struct Cursor {
    consumer: Arc<BaseConsumer<Context>>,
    queue: PartitionQueue<Context>,
    topic: Arc<str>,
    /// Nothing is fetched.
    is_paused: bool,
    /// When a reader last asked.
    asked: Instant,
    /// The offset that comes next, if that is known.
    position: Option<Offset>,
    /// When it was moved there, or last gave something.
    moved: Instant,
    /// Since when a reader waits for what comes there.
    turn: Option<Instant>,
    doubts: u32,
}

impl Partition {
    pub(super) fn new(id: i32, place: Arc<str>, range: Range<Offset>, queue_bytes_max: u32) -> Self {
        Self {
            id,
            place,
            lane: Lane::new(queue_bytes_max),
            arrived: Arc::new(Notify::new()),
            start: AtomicU64::new(range.start),
            end: AtomicU64::new(range.end),
            released: AtomicU64::new(0),
            corrupted: AtomicU64::new(0),
            cursor: Mutex::new(None),
        }
    }

    /// Will be read by `consumer`, which is assigned to the partition and has paused it.
    pub(super) fn read_by(&self, consumer: &Arc<BaseConsumer<Context>>, topic: &Arc<str>) -> Option<()> {
        let mut queue = consumer.split_partition_queue(topic, self.id)?;
        let arrived = Arc::clone(&self.arrived);
        queue.set_nonempty_callback(move || arrived.notify_waiters());
        let (consumer, topic) = (Arc::clone(consumer), Arc::clone(topic));
        *self.cursor.lock() = Some(Cursor {
            consumer,
            queue,
            topic,
            is_paused: true,
            asked: Instant::now(),
            position: None,
            moved: Instant::now(),
            turn: None,
            doubts: 0,
        });
        Some(())
    }

    /// Lets go of the consumer.
    pub(super) fn stop_reading(&self) {
        *self.cursor.lock() = None;
        self.arrived.notify_waiters();
    }

    /// Pauses if nobody reads. Gives whether somebody does.
    pub(super) fn look_for_readers(&self) -> bool {
        let mut slot = self.cursor.lock();
        let Some(cursor) = slot.as_mut() else { return false };
        if !cursor.is_paused && cursor.asked.elapsed() >= IDLE_MAX {
            cursor.pause(self.id);
        }
        !cursor.is_paused
    }

    pub(super) fn is_fetched(&self) -> bool {
        self.cursor.lock().as_ref().is_some_and(|cursor| !cursor.is_paused)
    }

    pub(super) fn range(&self) -> Range<Offset> {
        let end = self.end.load(Ordering::Acquire);
        self.start.load(Ordering::Acquire).min(end)..end
    }

    /// Learns that there are events below `end`.
    pub(super) fn reaches(&self, end: Offset) {
        self.end.fetch_max(end, Ordering::AcqRel);
    }

    /// Learns that nothing is left below `start`.
    pub(super) fn begins(&self, start: Offset) {
        self.start.fetch_max(start, Ordering::AcqRel);
    }

    /// What was fetched from `from` on, about `bytes_max` of it; nothing if there is nothing yet.
    pub(super) fn take(&self, from: Offset, bytes_max: usize) -> Result<Option<ReadBatch>, LogError> {
        let mut slot = self.cursor.lock();
        let Some(cursor) = slot.as_mut() else { return Err(LogError::Closed) };
        cursor.asked = Instant::now();
        if cursor.is_paused && !cursor.resume(self.id) {
            return Ok(None);
        }
        if cursor.position != Some(from) {
            let is_taken = cursor.turn.is_some_and(|since| since.elapsed() < TURN_MAX);
            if is_taken || !cursor.seek(self.id, from) {
                return Ok(None);
            }
            // Who waits for events that are still to come leaves the cursor to others.
            cursor.turn = (from < self.range().end).then(Instant::now);
        }
        let mut taken = Taken::new(from);
        while taken.bytes() < bytes_max.max(1) {
            let message = match cursor.queue.poll(Duration::ZERO) {
                None | Some(Err(KafkaError::PartitionEOF(_))) => break,
                Some(Ok(message)) => message,
                // Told with the next read, if it lasts.
                Some(Err(_)) if !taken.is_empty() => break,
                Some(Err(error)) => return Err(self.read_error(&error)),
            };
            let Ok(offset) = Offset::try_from(message.offset()) else { continue };
            if offset < taken.next {
                continue;
            }
            if offset > taken.next && cursor.doubts < DOUBTS_MAX {
                // Kafka's own deletion makes gaps; but this may also have been fetched before the cursor was moved.
                drop(message);
                cursor.doubts += 1;
                cursor.seek(self.id, taken.next);
                break;
            }
            cursor.doubts = 0;
            if let Err(reason) = taken.push(offset, &message) {
                self.corrupted.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(partition = self.id, offset, reason, "a record is no event, and is skipped");
            }
        }
        if taken.is_empty() {
            // A move that the client lost, for instance while it learned who leads the partition, is made again.
            if from < self.range().end && cursor.moved.elapsed() >= STALL_MAX {
                cursor.position = None;
            }
            return Ok(None);
        }
        let batch = taken.finish();
        cursor.position = Some(batch.next);
        cursor.moved = Instant::now();
        cursor.turn = None;
        self.reaches(batch.next);
        Ok(Some(batch))
    }

    fn read_error(&self, error: &KafkaError) -> LogError {
        LogError::Refused { path: PathBuf::from(&*self.place), message: error.to_string() }
    }
}

impl Cursor {
    fn pause(&mut self, partition: i32) {
        match self.consumer.pause(&self.this_one(partition)) {
            Ok(()) => {
                self.is_paused = true;
                self.position = None;
                self.turn = None;
            }
            // Tried again with the next look.
            Err(error) => tracing::debug!(partition, %error, "a partition cannot be paused yet"),
        }
    }

    /// Fetches again, from where is then to be told by a move; false if that is not possible yet.
    fn resume(&mut self, partition: i32) -> bool {
        match self.consumer.resume(&self.this_one(partition)) {
            Ok(()) => self.is_paused = false,
            Err(error) => tracing::debug!(partition, %error, "a partition cannot be resumed yet"),
        }
        !self.is_paused
    }

    fn this_one(&self, partition: i32) -> TopicPartitionList {
        let mut list = TopicPartitionList::with_capacity(1);
        list.add_partition(&self.topic, partition);
        list
    }

    /// Moves to an offset; false if that is not possible yet.
    fn seek(&mut self, partition: i32, to: Offset) -> bool {
        let offset = KafkaOffset::Offset(i64::try_from(to).unwrap_or(i64::MAX));
        match self.consumer.seek(&self.topic, partition, offset, Duration::ZERO) {
            Ok(()) => {
                self.position = Some(to);
                self.moved = Instant::now();
                true
            }
            Err(error) => {
                if error.rdkafka_error_code() != Some(RDKafkaErrorCode::State) {
                    tracing::debug!(partition, to, %error, "the cursor cannot be moved yet");
                }
                self.position = None;
                false
            }
        }
    }
}

/// Records on their way to blocks: a new block after each gap.
struct Taken {
    batch: ReadBatch,
    builder: EventBatchBuilder,
    block_begins: Offset,
    next: Offset,
    bytes: usize,
}

impl Taken {
    fn new(from: Offset) -> Self {
        let (batch, builder) = (ReadBatch::default(), EventBatch::builder());
        Self { batch, builder, block_begins: from, next: from, bytes: 0 }
    }

    fn bytes(&self) -> usize {
        self.bytes + self.builder.bytes_len()
    }

    fn is_empty(&self) -> bool {
        self.builder.is_empty() && self.batch.blocks.is_empty() && self.batch.skipped.is_empty()
    }

    fn push(&mut self, offset: Offset, message: &BorrowedMessage<'_>) -> Result<(), &'static str> {
        if offset > self.next {
            self.skip(self.next..offset);
        }
        // The library panics at a header whose name is not UTF-8, and anybody may write to a topic.
        let event = catch_unwind(AssertUnwindSafe(|| record::to_event(message))).ok().flatten();
        let pushed = event
            .ok_or("its texts are not UTF-8")
            .and_then(|event| self.builder.push(&event).map_err(|_| "a part of it is too long for an event"));
        match pushed {
            Ok(()) => self.next = offset + 1,
            Err(_) => self.skip(offset..offset + 1),
        }
        pushed
    }

    fn skip(&mut self, range: Range<Offset>) {
        self.end_block();
        self.next = range.end;
        self.block_begins = range.end;
        match self.batch.skipped.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.batch.skipped.push(range),
        }
    }

    fn end_block(&mut self) {
        if !self.builder.is_empty() {
            let events = self.builder.take();
            self.bytes += events.as_bytes().len();
            self.batch.blocks.push(EventBlock { first_offset: self.block_begins, events });
        }
    }

    fn finish(mut self) -> ReadBatch {
        self.end_block();
        self.batch.next = self.next;
        self.batch
    }
}
