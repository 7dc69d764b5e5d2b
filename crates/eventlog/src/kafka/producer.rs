//! The way to Kafka: batches in order, bounded in bytes, completed by the brokers' acknowledgement.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use catchment_types::{EventBatch, Offset};
use parking_lot::Mutex;
use rdkafka::Message;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};
use tokio::sync::{Semaphore, oneshot};

use super::client::{Context, RECORD_BYTES_MAX};
use super::partition::Partition;
use super::record;
use crate::{LogError, Pending};

/// How often a flush looks whether it is to be given up.
const FLUSH_STEP: Duration = Duration::from_millis(200);

/// What was submitted, over all partitions.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) events: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) batches: AtomicU64,
    pub(super) queued_bytes: AtomicU64,
}

/// Of one partition: what is on its way.
#[derive(Debug)]
pub(super) struct Lane {
    room: Semaphore,
    bytes_max: u32,
    /// Held while the records of a batch are handed over, so that they stay together. True once closed.
    order: Mutex<bool>,
}

impl Lane {
    pub(super) fn new(bytes_max: u32) -> Self {
        Self { room: Semaphore::new(bytes_max as usize), bytes_max, order: Mutex::new(false) }
    }
}

/// Writes to all partitions of a topic.
pub(super) struct Producer {
    producer: ThreadedProducer<Deliveries>,
    topic: String,
    /// How errors name the log.
    place: PathBuf,
    context: Context,
    counters: Arc<Counters>,
    given_up: AtomicBool,
}

impl Producer {
    pub(super) fn new(
        settings: &ClientConfig,
        topic: &str,
        place: &str,
        context: Context,
        counters: Arc<Counters>,
    ) -> Result<Self, KafkaError> {
        let producer = settings.create_with_context(Deliveries(context.clone()))?;
        let given_up = AtomicBool::new(false);
        Ok(Self { producer, topic: topic.to_owned(), place: place.into(), context, counters, given_up })
    }

    /// Waits for room, then hands the batch over. A batch larger than the whole queue waits until it is empty.
    pub(super) async fn submit(&self, to: &Arc<Partition>, batch: EventBatch) -> Result<Pending, LogError> {
        let bytes = batch.as_bytes().len();
        let cost = bytes + batch.len() as usize * record::OVERHEAD_BYTES;
        self.check_sizes(&batch)?;
        let permits = u32::try_from(cost).unwrap_or(u32::MAX).min(to.lane.bytes_max);
        let Ok(permit) = to.lane.room.acquire_many(permits).await else { return Err(LogError::Closed) };
        let closed = to.lane.order.lock();
        if *closed {
            return Err(LogError::Closed);
        }
        if let Some(message) = self.context.health.fatal() {
            return Err(self.failed(message));
        }
        permit.forget();
        let (done, pending) = Pending::new();
        self.counters.queued_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        let on_its_way = Arc::new(OnItsWay {
            partition: Arc::clone(to),
            counters: Arc::clone(&self.counters),
            // One more than events: ours, so that it is not complete before all are handed over.
            left: AtomicU32::new(batch.len() + 1),
            first: AtomicU64::new(Offset::MAX),
            error: Mutex::new(None),
            done: Mutex::new(Some(done)),
            events: batch.len(),
            bytes: bytes as u64,
            permits,
        });
        let mut handed_over = 0;
        for event in &batch {
            let record = record::from_event(&event, &self.topic, to.id, Arc::clone(&on_its_way));
            if let Err((error, _)) = self.producer.send(record) {
                on_its_way.fail(self.failed(error.to_string()));
                break;
            }
            handed_over += 1;
        }
        on_its_way.settle(batch.len() - handed_over + 1);
        drop(closed);
        Ok(pending)
    }

    /// Refuses a batch whose records Kafka would refuse, before any of it is sent.
    fn check_sizes(&self, batch: &EventBatch) -> Result<(), LogError> {
        if batch.as_bytes().len() + record::OVERHEAD_BYTES <= RECORD_BYTES_MAX {
            return Ok(());
        }
        let size = |event: catchment_types::Event<'_>| {
            record::OVERHEAD_BYTES + event.payload.len() + event.topic.len() + event.tags.len()
        };
        match batch.iter().map(size).max() {
            Some(largest) if largest > RECORD_BYTES_MAX => Err(LogError::Refused {
                path: self.place.clone(),
                message: format!(
                    "an event of {largest} bytes is larger than a record may be, {RECORD_BYTES_MAX}"
                ),
            }),
            _ => Ok(()),
        }
    }

    fn failed(&self, message: String) -> LogError {
        match self.context.health.fatal() {
            Some(message) => LogError::Failed { path: self.place.clone(), message },
            None => LogError::Refused { path: self.place.clone(), message },
        }
    }

    /// Refuses further work.
    pub(super) fn close(&self, partitions: &[Arc<Partition>]) {
        for partition in partitions {
            *partition.lane.order.lock() = true;
            partition.lane.room.close();
        }
    }

    /// Waits until everything is acknowledged, or until it is given up. Blocks the thread.
    pub(super) fn flush(&self) {
        while self.producer.flush(FLUSH_STEP).is_err() && !self.given_up.load(Ordering::Relaxed) {}
    }

    /// Ends a flush that waits for brokers which do not answer.
    pub(super) fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
    }
}

/// A batch of which some records are not acknowledged yet. Each record has a share of it.
pub(super) struct OnItsWay {
    partition: Arc<Partition>,
    counters: Arc<Counters>,
    left: AtomicU32,
    first: AtomicU64,
    error: Mutex<Option<LogError>>,
    done: Mutex<Option<oneshot::Sender<Result<Offset, LogError>>>>,
    events: u32,
    bytes: u64,
    permits: u32,
}

impl OnItsWay {
    fn fail(&self, error: LogError) {
        self.error.lock().get_or_insert(error);
    }

    /// Counts records that nothing more will be heard of. The last completes the batch.
    fn settle(&self, records: u32) {
        if self.left.fetch_sub(records, Ordering::AcqRel) != records {
            return;
        }
        let result = match self.error.lock().take() {
            Some(error) => Err(error),
            None => {
                self.counters.events.fetch_add(self.events.into(), Ordering::Relaxed);
                self.counters.bytes.fetch_add(self.bytes, Ordering::Relaxed);
                self.counters.batches.fetch_add(1, Ordering::Relaxed);
                match self.first.load(Ordering::Acquire) {
                    // The brokers had it already, when it was sent again, and do not tell where.
                    Offset::MAX => Ok(self.partition.range().end),
                    first => Ok(first),
                }
            }
        };
        self.counters.queued_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.partition.lane.room.add_permits(self.permits as usize);
        if let Some(done) = self.done.lock().take() {
            // A submitter that went away does not want to know.
            let _ = done.send(result);
        }
    }
}

/// Hears of each record what became of it.
struct Deliveries(Context);

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.0.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // Brokers close connections that are idle, as this one is when no device speaks; the one that reads never is.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            self.0.error(error, reason);
        }
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Arc<OnItsWay>;

    fn delivery(&self, result: &DeliveryResult<'_>, batch: Arc<OnItsWay>) {
        match result {
            Ok(message) => {
                self.0.health.good();
                if let Ok(offset) = Offset::try_from(message.offset()) {
                    batch.first.fetch_min(offset, Ordering::AcqRel);
                    batch.partition.reaches(offset + 1);
                }
            }
            Err((error, _)) => {
                let place = PathBuf::from(&*batch.partition.place);
                let message = error.to_string();
                batch.fail(match self.0.health.fatal() {
                    Some(message) => LogError::Failed { path: place, message },
                    None => LogError::Refused { path: place, message },
                });
            }
        }
        batch.settle(1);
    }
}
