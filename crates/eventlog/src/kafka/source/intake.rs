//! The work of a source: reads as a member of the group, hands over, commits.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use catchment_types::{DEFAULT_REALM, EventBatch, EventBatchBuilder, PartitionId, partition_of};
use parking_lot::Mutex;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError as Error, RDKafkaErrorCode as Code};
use rdkafka::message::BorrowedMessage;
use rdkafka::{Message, Offset as KafkaOffset, TopicPartitionList};
use tokio::runtime::Handle;

use super::super::KafkaError;
use super::super::client::{Context, of_source, settings};
use super::super::topic::ANSWER_MAX;
use super::{SourceTarget, record};
use crate::{EventLog, LogError};

/// A batch is handed over when it has so many records or bytes, or when no more have come.
const RECORDS_MAX: usize = 10_000;
const BYTES_MAX: usize = 4 << 20;
/// How long the thread waits for records before it looks whether it is to stop.
const STEP: Duration = Duration::from_millis(100);
/// Events of each partition of the log that are looked at for records that are there already.
const RECALLED_EVENTS: u64 = 250_000;
const READ_BYTES: usize = 4 << 20;
/// Pause after the log has refused.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// How long it waits at its end for offsets to be committed.
const LEAVE_MAX: Duration = Duration::from_secs(5);
/// What marks have of an offset.
const OFFSET_BITS: u64 = (1 << 40) - 1;
/// What is passed over is told so often at the most.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Marks of events that tell which record an event came from.
pub trait RecordMarks: Send + Sync + 'static {
    /// The mark of a record of this source; 0, if it can have none.
    fn mark(&self, partition: u32, offset: u64, fingerprint: u32) -> u128;
    /// Partition and offset (its lower 40 bits) of the record that a mark is of, if it is of this source.
    fn record(&self, mark: u128) -> Option<(u32, u64)>;
}

/// What a source has done, from its start on.
#[derive(Debug, Default)]
pub struct SourceFigures {
    /// Records that are events in the log.
    pub taken: AtomicU64,
    /// Records that were there already.
    pub duplicates: AtomicU64,
    /// Records that can be no event.
    pub refused: AtomicU64,
}

/// A source at work, on a thread of its own.
pub struct KafkaSource {
    name: String,
    figures: Arc<SourceFigures>,
    context: Context,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl KafkaSource {
    /// Begins to bring records into `log`. Brokers that do not answer are tried for ever.
    ///
    /// # Errors
    /// A setting or a file that cannot be used.
    pub fn start(
        target: SourceTarget,
        log: Arc<dyn EventLog>,
        marks: Arc<dyn RecordMarks>,
    ) -> Result<Self, KafkaError> {
        let name = target.to_string();
        let context = Context::of_source();
        let moves = Arc::new(Mutex::new(Moves::default()));
        let refused = |error: Error| KafkaError::refused(&target.kafka, "read from", &error);
        let consumer = of_source(settings(&target.kafka)?, &target.kafka.group(), target.from_the_end)
            .create_with_context::<_, BaseConsumer<Member>>(Member {
                context: context.clone(),
                topic: target.kafka.topic.clone(),
                moves: Arc::clone(&moves),
            })
            .map_err(refused)?;
        consumer.subscribe(&[&target.kafka.topic]).map_err(refused)?;
        let (figures, stop) = (Arc::new(SourceFigures::default()), Arc::new(AtomicBool::new(false)));
        let intake = Intake {
            builders: std::iter::repeat_with(EventBatch::builder).take(log.partitions() as usize).collect(),
            target,
            log,
            marks,
            consumer: Arc::new(consumer),
            moves,
            figures: Arc::clone(&figures),
            stop: Arc::clone(&stop),
            runtime: Handle::current(),
            seen: HashSet::new(),
            told: None,
        };
        let thread = std::thread::Builder::new().name("kafka-source".to_owned()).spawn(move || intake.run());
        let thread = thread.map_err(|error| KafkaError::Refused {
            action: "start a thread for",
            target: name.clone(),
            message: error.to_string(),
        })?;
        Ok(Self { name, figures, context, stop, thread })
    }

    /// Brokers, topic and group, without secrets.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it has done.
    #[must_use]
    pub fn figures(&self) -> Arc<SourceFigures> {
        Arc::clone(&self.figures)
    }

    /// What keeps it from its work, if anything does.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.context.health.trouble()
    }

    /// Ends: what was read is made durable and committed first.
    pub async fn stop(self) {
        self.stop.store(true, Ordering::Release);
        // A panic in there was told by its hook.
        let _ = tokio::task::spawn_blocking(move || self.thread.join()).await;
    }
}

impl std::fmt::Debug for KafkaSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaSource").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Partitions that came and went since the last look, and what is to be committed of those that are ours.
#[derive(Debug, Default)]
struct Moves {
    came: Vec<i32>,
    went: Vec<i32>,
    /// Of partitions the offset after the last record that is durable, until it is committed: the broker refuses
    /// commits while the group is rebalanced.
    owed: BTreeMap<i32, i64>,
}

/// The work of a source.
struct Intake {
    target: SourceTarget,
    log: Arc<dyn EventLog>,
    marks: Arc<dyn RecordMarks>,
    consumer: Arc<BaseConsumer<Member>>,
    moves: Arc<Mutex<Moves>>,
    figures: Arc<SourceFigures>,
    stop: Arc<AtomicBool>,
    runtime: Handle,
    /// One a partition of the log.
    builders: Vec<EventBatchBuilder>,
    /// Marks in the log's newest events, of records of the partitions that we were given.
    seen: HashSet<u128>,
    told: Option<Instant>,
}

/// Records that were read together.
#[derive(Default)]
struct Batch {
    records: usize,
    bytes: usize,
    /// Of each partition the offset after its last record.
    next: BTreeMap<i32, i64>,
}

fn is_of(record: Option<(u32, u64)>, id: i32) -> bool {
    record.is_some_and(|(partition, _)| i32::try_from(partition) == Ok(id))
}

impl Intake {
    fn run(mut self) {
        while !self.stop.load(Ordering::Acquire) {
            match self.read() {
                Ok(batch) if batch.next.is_empty() => self.commit(),
                Ok(batch) if self.make_durable().is_ok() => {
                    self.moves.lock().owed.extend(batch.next);
                    self.commit();
                }
                _ => break,
            }
        }
        let until = Instant::now() + LEAVE_MAX;
        while !self.moves.lock().owed.is_empty() && Instant::now() < until {
            // A rebalance gets on only in here. What this reads is not committed, and read by others.
            let _ = self.consumer.poll(STEP);
            self.commit();
        }
    }

    /// Reads what is there, up to a batch, into the builders. Fails when it is to end.
    fn read(&mut self) -> Result<Batch, LogError> {
        let consumer = Arc::clone(&self.consumer);
        let (mut batch, mut wait) = (Batch::default(), STEP);
        while batch.records < RECORDS_MAX && batch.bytes < BYTES_MAX {
            // Partitions move only inside of this call.
            let message = consumer.poll(wait);
            let (came, went) = {
                let mut moves = self.moves.lock();
                (std::mem::take(&mut moves.came), std::mem::take(&mut moves.went))
            };
            if !went.is_empty() {
                self.forget(&went, &mut batch);
            }
            if !came.is_empty() {
                self.recall(&came)?;
            }
            let message = match message {
                None => break,
                // Told through the context.
                Some(Err(_)) => continue,
                Some(Ok(message)) => message,
            };
            wait = Duration::ZERO;
            let (partition, offset) = (message.partition(), message.offset());
            batch.records += 1;
            batch.bytes += message.payload_len() + message.key_len();
            batch.next.insert(partition, offset + 1);
            let mark = self.mark(&message);
            if self.seen.remove(&mark) {
                self.figures.duplicates.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            let taken = record::with_event(&self.target, &message, |mut event| {
                event.mark = mark;
                let to = partition_of(DEFAULT_REALM, event.device_id, self.builders.len() as u32);
                self.builders[to as usize].push(&event).map_err(|error| error.to_string())
            });
            match taken {
                Ok(()) => {
                    self.figures.taken.fetch_add(1, Ordering::Relaxed);
                }
                Err(reason) => {
                    self.figures.refused.fetch_add(1, Ordering::Relaxed);
                    if self.told.is_none_or(|last| last.elapsed() >= TELL_EVERY) {
                        self.told = Some(Instant::now());
                        tracing::warn!(source = %self.target, partition, offset, reason, "a record is no event, and is passed over");
                    }
                }
            }
        }
        Ok(batch)
    }

    /// Lets go of what was read of partitions that are another's now, who reads it again.
    fn forget(&mut self, went: &[i32], batch: &mut Batch) {
        let marks = &*self.marks;
        let is_gone = |mark: u128| went.iter().any(|&id| is_of(marks.record(mark), id));
        batch.next.retain(|partition, _| !went.contains(partition));
        self.seen.retain(|&mark| !is_gone(mark));
        for builder in self.builders.iter_mut().filter(|builder| !builder.is_empty()) {
            for event in builder.take().iter().filter(|event| !is_gone(event.mark)) {
                // It was in there before.
                let _ = builder.push(&event);
            }
        }
    }

    fn mark(&self, message: &BorrowedMessage<'_>) -> u128 {
        let millis = message.timestamp().to_millis().unwrap_or_default();
        let checksum = crc32c::crc32c(&millis.to_le_bytes());
        let checksum = crc32c::crc32c_append(checksum, message.key().unwrap_or_default());
        let fingerprint = crc32c::crc32c_append(checksum, message.payload().unwrap_or_default());
        match (u32::try_from(message.partition()), u64::try_from(message.offset())) {
            (Ok(partition), Ok(offset)) => self.marks.mark(partition, offset, fingerprint),
            _ => 0,
        }
    }

    /// Looks which records of partitions that came are in the log already. Those that are committed do not come again.
    fn recall(&mut self, came: &[i32]) -> Result<(), LogError> {
        let from = self.committed(came);
        let is_open = |&mark: &u128| {
            let record = self.marks.record(mark).filter(|_| mark != 0);
            record.is_some_and(|(partition, offset)| from.get(&partition).is_some_and(|&from| offset >= from))
        };
        let found = loop {
            match self.runtime.block_on(find(&*self.log, is_open)) {
                Ok(found) => break found,
                Err(error) => self.pause_after(error)?,
            }
        };
        tracing::info!(source = %self.target, partitions = ?came, "reads these partitions");
        self.seen.extend(found);
        Ok(())
    }

    /// Waits before the log is tried again; fails when that is of no use, or nobody wants it any more.
    fn pause_after(&self, error: LogError) -> Result<(), LogError> {
        if matches!(error, LogError::Closed) || self.stop.load(Ordering::Acquire) {
            return Err(error);
        }
        tracing::error!(source = %self.target, %error, "the log does not take records; trying again");
        std::thread::sleep(RETRY_PAUSE);
        Ok(())
    }

    /// Of partitions the offset from which nothing is committed, as marks have it.
    fn committed(&self, partitions: &[i32]) -> HashMap<u32, u64> {
        let topic = &self.target.kafka.topic;
        let mut asked = TopicPartitionList::with_capacity(partitions.len());
        for &partition in partitions {
            asked.add_partition(topic, partition);
        }
        let answer = self.consumer.committed_offsets(asked, ANSWER_MAX).ok();
        let from = |&partition: &i32| {
            let found = answer.as_ref().and_then(|answer| answer.find_partition(topic, partition));
            let offset = match found.map(|found| found.offset()) {
                Some(KafkaOffset::Offset(offset)) => u64::try_from(offset).unwrap_or(0),
                // Unknown: then all that is found may come again.
                _ => 0,
            };
            Some((u32::try_from(partition).ok()?, offset & OFFSET_BITS))
        };
        partitions.iter().filter_map(from).collect()
    }

    /// Waits until everything that was read is durable. Tries again for ever, until the log is closed.
    fn make_durable(&mut self) -> Result<(), LogError> {
        let mut left: Vec<(PartitionId, EventBatch)> = (0..)
            .zip(&mut self.builders)
            .filter(|(_, builder)| !builder.is_empty())
            .map(|(to, builder)| (to, builder.take()))
            .collect();
        while !left.is_empty() {
            let log = Arc::clone(&self.log);
            let outcome = self.runtime.block_on(async {
                let submitted = left.iter().map(|(to, batch)| log.submit(*to, batch.clone()));
                let mut results = Vec::new();
                for pending in futures::future::join_all(submitted).await {
                    results.push(match pending {
                        Ok(pending) => pending.await.map(drop),
                        Err(error) => Err(error),
                    });
                }
                results
            });
            let mut refused = None;
            let mut outcome = outcome.into_iter();
            left.retain(|_| match outcome.next() {
                Some(Err(error)) => {
                    refused = Some(error);
                    true
                }
                _ => false,
            });
            if let Some(error) = refused {
                self.pause_after(error)?;
            }
        }
        Ok(())
    }

    fn commit(&self) {
        commit(&self.consumer, &self.target.kafka.topic, &self.moves);
    }
}

/// Commits what is owed. What is refused stays owed as long as the partition is ours; else it is read again by whoever
/// has the partition next, and comes twice.
fn commit(consumer: &BaseConsumer<Member>, topic: &str, moves: &Mutex<Moves>) {
    // Only the thread of the source adds to it, and it is here.
    let owed = moves.lock().owed.clone();
    if owed.is_empty() {
        return;
    }
    let mut offsets = TopicPartitionList::with_capacity(owed.len());
    for (&partition, &next) in &owed {
        // An offset of a record and one more is an offset.
        let _ = offsets.add_partition_offset(topic, partition, KafkaOffset::Offset(next));
    }
    match consumer.commit(&offsets, CommitMode::Sync) {
        Ok(()) => moves.lock().owed.clear(),
        Err(error) => tracing::debug!(topic, %error, "offsets are not committed yet"),
    }
}

/// Marks of the log's newest events.
async fn find(log: &dyn EventLog, is_open: impl Fn(&u128) -> bool) -> Result<HashSet<u128>, LogError> {
    let mut found = HashSet::new();
    for partition in 0..log.partitions() {
        let range = log.range(partition);
        let mut next = range.start.max(range.end.saturating_sub(RECALLED_EVENTS));
        while next < range.end {
            let read = log.read(partition, next, READ_BYTES).await?;
            let events = read.blocks.iter().flat_map(|block| &block.events);
            found.extend(events.map(|event| event.mark).filter(&is_open));
            // A read always gets further; if one did not, there would be no end.
            next = read.next.max(next + 1);
        }
    }
    Ok(found)
}

/// Hears what becomes of the membership.
struct Member {
    context: Context,
    topic: String,
    moves: Arc<Mutex<Moves>>,
}

impl ClientContext for Member {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.context.log(level, facility, message);
    }

    fn error(&self, error: Error, reason: &str) {
        match error.rdkafka_error_code() {
            Some(Code::GroupAuthorizationFailed) => self.context.health.bad(reason),
            _ => self.context.error(error, reason),
        }
    }
}

impl ConsumerContext for Member {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, change: &Rebalance<'_>) {
        if let Rebalance::Revoke(_) = change {
            commit(consumer, &self.topic, &self.moves);
        }
    }

    fn post_rebalance(&self, _: &BaseConsumer<Self>, change: &Rebalance<'_>) {
        let ids = |list: &TopicPartitionList| {
            list.elements().iter().map(|element| element.partition()).collect::<Vec<_>>()
        };
        match change {
            Rebalance::Assign(came) => {
                self.context.health.good();
                self.moves.lock().came.extend(ids(came));
            }
            Rebalance::Revoke(went) => {
                let went = ids(went);
                let mut moves = self.moves.lock();
                moves.came.retain(|partition| !went.contains(partition));
                for partition in &went {
                    if moves.owed.remove(partition).is_some() {
                        tracing::warn!(
                            topic = self.topic,
                            partition,
                            "another reads this partition before all that is taken was committed: its last records may come twice"
                        );
                    }
                }
                moves.went.extend(went);
            }
            Rebalance::Error(_) => {}
        }
    }
}
