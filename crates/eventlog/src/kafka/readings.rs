//! Decoded rows to topics that others read: `{topic}.readings` and `{topic}.rejects`.
//!
//! | part of the record | what |
//! | --- | --- |
//! | key | device id |
//! | value | JSON object, see [`crate::readings`] |
//! | timestamp | when the event was received, in ms |
//! | header `type` | of the event |
//! | header `content_type` | `application/json` |
//! | headers `timestamp`, `received_at` | when it was measured and received, µs since the epoch in decimal digits |
//!
//! Rows of a partition of the log go to the partition of the same number, so that those of a device keep their order.
//! Topics that are missing are made, with the brokers' retention.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use catchment_types::PartitionId;
use parking_lot::Mutex;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError as Error, RDKafkaErrorCode as Code};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, ProducerContext, ThreadedProducer};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};

use super::client::{Context, of_writer, settings};
use super::log::blocking;
use super::topic::Asker;
use super::{KafkaError, KafkaTarget, record};
use crate::LogError;
use crate::readings::{PublishReadings, ReadingsBatch, Row, RowKind};

/// Bytes on their way, over all partitions; a larger batch goes alone.
const BYTES_MAX: u32 = 64 << 20;

/// A topic of rows.
struct Topic {
    name: String,
    partitions: u32,
}

/// Publishes to a cluster.
pub struct KafkaReadings {
    producer: ThreadedProducer<Deliveries>,
    readings: Topic,
    rejects: Topic,
    room: Semaphore,
    /// How errors name it.
    place: PathBuf,
}

impl KafkaReadings {
    /// Connects, and makes the topics beside that of the log, `target`, if there are none.
    ///
    /// # Errors
    /// The brokers do not answer, or refuse us.
    pub async fn open(target: KafkaTarget, partitions: u32) -> Result<Arc<Self>, KafkaError> {
        let runtime = Handle::current();
        blocking(move || {
            let context = Context::default();
            let topic = |suffix: &str| {
                let mut of_rows = target.clone();
                of_rows.topic = format!("{}.{suffix}", target.topic);
                of_rows.config.trim = false;
                let partitions = Asker::new(&of_rows, &context, 0)?.partitions(0, partitions, &runtime)?;
                Ok(Topic { name: of_rows.topic, partitions })
            };
            let (readings, rejects) = (topic("readings")?, topic("rejects")?);
            let producer = of_writer(settings(&target)?, 0)
                .create_with_context(Deliveries(context))
                .map_err(|error| KafkaError::refused(&target, "write beside", &error))?;
            let place = format!("{target}.readings").into();
            Ok(Arc::new(Self {
                producer,
                readings,
                rejects,
                room: Semaphore::new(BYTES_MAX as usize),
                place,
            }))
        })
        .await
    }

    fn refused(&self, error: &Error) -> LogError {
        LogError::Refused { path: self.place.clone(), message: error.to_string() }
    }

    fn send(&self, partition: PartitionId, row: &Row<'_>, rows: &Arc<Rows>) -> Result<(), Error> {
        let topic = match row.kind {
            RowKind::Reading => &self.readings,
            RowKind::Reject => &self.rejects,
        };
        let (timestamp, received_at) = (row.timestamp.as_micros(), row.received_at.as_micros());
        let headers = [
            ("type", row.event_type),
            ("content_type", "application/json"),
            ("timestamp", &timestamp.to_string()),
            ("received_at", &received_at.to_string()),
        ];
        let with = |headers: OwnedHeaders, (key, value)| headers.insert(Header { key, value: Some(value) });
        let record = BaseRecord::with_opaque_to(&topic.name, Arc::clone(rows))
            .partition((partition % topic.partitions) as i32)
            .key(row.device_id)
            .payload(row.json)
            .timestamp((received_at / 1000).max(1))
            .headers(headers.into_iter().fold(OwnedHeaders::new_with_capacity(4), with));
        self.producer.send(record).map_err(|(error, _)| error)
    }
}

#[async_trait]
impl PublishReadings for KafkaReadings {
    async fn publish(&self, partition: PartitionId, batch: &ReadingsBatch) -> Result<(), LogError> {
        let count = batch.rows().len();
        let cost = u32::try_from(batch.bytes() + count * record::OVERHEAD_BYTES).unwrap_or(BYTES_MAX);
        // Nobody closes it.
        let _room = self.room.acquire_many(cost.min(BYTES_MAX)).await.map_err(|_| LogError::Closed)?;
        let (done, published) = oneshot::channel();
        let rows = Arc::new(Rows {
            // One more than rows: ours, so that it is not complete before all are handed over.
            left: AtomicU32::new(count as u32 + 1),
            error: Mutex::new(None),
            done: Mutex::new(Some(done)),
        });
        let mut unsent = count as u32 + 1;
        for row in batch.rows() {
            if let Err(error) = self.send(partition, &row, &rows) {
                rows.error.lock().get_or_insert(error);
                break;
            }
            unsent -= 1;
        }
        rows.settle(unsent);
        match published.await {
            Ok(None) => Ok(()),
            Ok(Some(error)) => Err(self.refused(&error)),
            Err(_) => Err(LogError::Closed),
        }
    }
}

impl std::fmt::Debug for KafkaReadings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaReadings").field("place", &self.place).finish_non_exhaustive()
    }
}

/// Rows of which some are not acknowledged yet. Each record has a share of them.
struct Rows {
    left: AtomicU32,
    error: Mutex<Option<Error>>,
    done: Mutex<Option<oneshot::Sender<Option<Error>>>>,
}

impl Rows {
    /// Counts records that nothing more will be heard of. The last completes the batch.
    fn settle(&self, records: u32) {
        if self.left.fetch_sub(records, Ordering::AcqRel) == records
            && let Some(done) = self.done.lock().take()
        {
            // Who published may have gone.
            let _ = done.send(self.error.lock().take());
        }
    }
}

/// Hears of each record what became of it.
struct Deliveries(Context);

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.0.log(level, facility, message);
    }

    fn error(&self, error: Error, reason: &str) {
        // Brokers close connections that are idle.
        if error.rdkafka_error_code() != Some(Code::AllBrokersDown) {
            self.0.error(error, reason);
        }
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Arc<Rows>;

    fn delivery(&self, result: &DeliveryResult<'_>, rows: Arc<Rows>) {
        match result {
            Ok(_) => self.0.health.good(),
            Err((error, _)) => {
                rows.error.lock().get_or_insert(error.clone());
            }
        }
        rows.settle(1);
    }
}
