//! The log itself: opens the topic, puts writing and reading together.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use catchment_types::{EventBatch, Offset, PartitionId};
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError as Error;
use rdkafka::{Offset as KafkaOffset, TopicPartitionList};
use thiserror::Error as ThisError;
use tokio::runtime::Handle;

use super::client::{Context, of_writer, settings};
use super::partition::Partition;
use super::producer::{Counters, Producer};
use super::topic::{Asker, Probe, settled_watermarks};
use super::watch::{Watch, serve_events};
use super::{KafkaGroup, KafkaTarget};
use crate::embedded::LogConfig;
use crate::{EventLog, LogError, LogStats, Pending, ReadBatch};

/// How often a waiting reader looks by itself: the cursor may have been moved by another.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How often a reader tries to move the cursor, which the client allows only a moment after the start.
const SEEK_AGAIN: Duration = Duration::from_millis(20);

/// Why Kafka is no log for us. Has no secret in it.
#[derive(Debug, ThisError)]
pub enum KafkaError {
    /// No answer.
    #[error("no broker of {target} answers: {reason}; check that address, network and listeners are right")]
    Unreachable {
        /// Brokers and topic.
        target: String,
        /// What the client says.
        reason: String,
    },
    /// An answer that is a refusal.
    #[error("cannot {action} {target}: {message}")]
    Refused {
        /// What was tried.
        action: &'static str,
        /// Brokers and topic.
        target: String,
        /// What the broker says.
        message: String,
    },
    /// The topic has another number of partitions.
    #[error(
        "the topic of {target} has {existing} partitions, {configured} are configured: devices belong to partitions by their \
         number, so it stays; set log.partitions = {existing} (or 0), or name another topic"
    )]
    Partitions {
        /// Brokers and topic.
        target: String,
        /// How many it has.
        existing: u32,
        /// How many were asked for.
        configured: u32,
    },
    /// The password's file.
    #[error("the password for Kafka cannot be read from {path}: {source}")]
    Password {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl KafkaError {
    pub(super) fn refused(target: &KafkaTarget, action: &'static str, error: &Error) -> Self {
        Self::Refused { action, target: target.to_string(), message: error.to_string() }
    }
}

/// Connects and looks, without changing anything.
///
/// # Errors
/// The brokers do not answer, or refuse us.
pub async fn probe(target: KafkaTarget) -> Result<Probe, KafkaError> {
    let runtime = Handle::current();
    blocking(move || {
        let asker = Asker::new(&target, &Context::default(), 0)?;
        let mut probe = asker.probe()?;
        probe.version = asker.version(&runtime);
        if probe.partitions.is_some() {
            probe.record_bytes_max = asker.record_bytes_max(&runtime);
        }
        Ok(probe)
    })
    .await
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, KafkaError> + Send + 'static,
) -> Result<T, KafkaError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// The event log in a topic of Kafka. Dropping it without [`EventLog::close`] gives up what is not acknowledged.
pub struct KafkaLog {
    place: PathBuf,
    cluster: String,
    partitions: Vec<Arc<Partition>>,
    producer: Arc<Producer>,
    counters: Arc<Counters>,
    context: Context,
    closed: AtomicBool,
    stop: Arc<AtomicBool>,
    stop_watch: Option<mpsc::Sender<()>>,
    events: Option<JoinHandle<()>>,
}

impl KafkaLog {
    /// Connects, and makes the topic if there is none. Of `config` it takes `partitions`, `queue_bytes_max`,
    /// `cache_bytes_max` (fetched ahead), `retention_hours` and `linger_us`.
    ///
    /// # Errors
    /// The brokers do not answer, refuse us, or have a topic that does not fit.
    pub async fn open(target: KafkaTarget, config: LogConfig) -> Result<Arc<Self>, KafkaError> {
        let runtime = Handle::current();
        blocking(move || Self::connect(&target, &config, runtime)).await
    }

    fn connect(target: &KafkaTarget, config: &LogConfig, runtime: Handle) -> Result<Arc<Self>, KafkaError> {
        let context = Context::default();
        let asker = Asker::new(target, &context, config.cache_bytes_max)?;
        let count = asker.partitions(config.partitions, config.partitions_of_new(), &runtime)?;
        let cluster = asker.probe()?.cluster.unwrap_or_default();
        let consumer = Arc::new(asker.consumer);
        let topic: Arc<str> = target.topic.as_str().into();
        let place: Arc<str> = target.to_string().into();

        let refused = |error: Error| KafkaError::refused(target, "read from", &error);
        let mut assignment = TopicPartitionList::new();
        for id in 0..count as i32 {
            // Where reading begins is told by the first read; until then the partition is paused.
            assignment.add_partition_offset(&topic, id, KafkaOffset::End).map_err(refused)?;
        }
        let mut partitions = Vec::new();
        for id in 0..count as i32 {
            let range = settled_watermarks(&consumer, &topic, id).map_err(refused)?;
            partitions.push(Arc::new(Partition::new(id, Arc::clone(&place), range, config.queue_bytes_max)));
        }
        consumer.assign(&assignment).and_then(|()| consumer.pause(&assignment)).map_err(refused)?;
        for partition in &partitions {
            partition
                .read_by(&consumer, &topic)
                .ok_or_else(|| refused(Error::Subscription("a partition has no queue".to_owned())))?;
        }
        let counters = Arc::new(Counters::default());
        let writer = of_writer(settings(target)?, config.linger_us);
        let producer = Producer::new(&writer, &topic, &place, context.clone(), Arc::clone(&counters))
            .map_err(|error| KafkaError::refused(target, "write to", &error))?;

        let stop = Arc::new(AtomicBool::new(false));
        let (stop_watch, watch_stopped) = mpsc::channel();
        let mut log = Self {
            place: place.to_string().into(),
            cluster,
            partitions: partitions.clone(),
            producer: Arc::new(producer),
            counters,
            context: context.clone(),
            closed: AtomicBool::new(false),
            stop: Arc::clone(&stop),
            stop_watch: Some(stop_watch),
            events: None,
        };
        let retention = Duration::from_secs(u64::from(config.retention_hours) * 3600);
        let watch = Watch {
            consumer: Arc::clone(&consumer),
            admin_settings: settings(target)?,
            context,
            topic,
            partitions,
            retention: target.config.trim.then_some(retention),
            runtime,
        };
        log.events = Some(Self::start("kafka-events", move || serve_events(&consumer, &stop), target)?);
        // It may be waiting for brokers that do not answer when the log is dropped, and ends by itself then.
        Self::start("kafka-watch", move || watch.run(&watch_stopped), target)?;
        Ok(Arc::new(log))
    }

    fn start(
        name: &'static str,
        work: impl FnOnce() + Send + 'static,
        target: &KafkaTarget,
    ) -> Result<JoinHandle<()>, KafkaError> {
        std::thread::Builder::new().name(name.to_owned()).spawn(work).map_err(|error| KafkaError::Refused {
            action: "start a thread for",
            target: target.to_string(),
            message: error.to_string(),
        })
    }

    /// Joins the consumer group of those who share a history, by [`KafkaTarget::group`].
    ///
    /// # Errors
    /// The brokers do not answer, or do not let us in.
    pub async fn join(&self, target: KafkaTarget) -> Result<Arc<KafkaGroup>, KafkaError> {
        let (partitions, context) = (self.partitions.clone(), self.context.clone());
        blocking(move || KafkaGroup::join(&target, partitions, context)).await
    }

    /// The partitions that are fetched now, because somebody reads them here or has until a moment ago.
    #[must_use]
    pub fn fetched(&self) -> Vec<PartitionId> {
        (0..)
            .zip(&self.partitions)
            .filter(|(_, partition)| partition.is_fetched())
            .map(|(id, _)| id)
            .collect()
    }

    /// The identifier of the cluster: with the topic's name it tells whether this is the same log as before, at whatever
    /// address.
    #[must_use]
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    fn partition(&self, id: PartitionId) -> Result<&Arc<Partition>, LogError> {
        let partition = usize::try_from(id).ok().and_then(|id| self.partitions.get(id));
        partition.ok_or(LogError::NoSuchPartition { partition: id, partitions: self.partitions() })
    }
}

#[async_trait]
impl EventLog for KafkaLog {
    fn partitions(&self) -> u32 {
        self.partitions.len() as u32
    }

    async fn submit(&self, partition: PartitionId, batch: EventBatch) -> Result<Pending, LogError> {
        let partition = self.partition(partition)?;
        self.producer.submit(partition, batch).await
    }

    async fn read(
        &self,
        partition: PartitionId,
        from: Offset,
        bytes_max: usize,
    ) -> Result<ReadBatch, LogError> {
        let partition = self.partition(partition)?;
        loop {
            let arrived = partition.arrived.notified();
            tokio::pin!(arrived);
            // Before the look, so that what arrives in between is not missed.
            arrived.as_mut().enable();
            if let Some(batch) = partition.take(from, bytes_max)? {
                return Ok(batch);
            }
            if self.closed.load(Ordering::Acquire) && from >= partition.range().end {
                return Err(LogError::Closed);
            }
            let again = if from < partition.range().end { SEEK_AGAIN } else { LOOK_AGAIN };
            // Either of the two: both lead to the next look.
            let _ = tokio::time::timeout(again, arrived).await;
        }
    }

    fn range(&self, partition: PartitionId) -> Range<Offset> {
        self.partition(partition).map_or(0..0, |partition| partition.range())
    }

    fn release(&self, partition: PartitionId, before: Offset) {
        if let Ok(partition) = self.partition(partition) {
            partition.released.fetch_max(before, Ordering::Relaxed);
        }
    }

    fn stats(&self) -> LogStats {
        let counted = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        LogStats {
            // Kafka's own figures tell these.
            disk_bytes: 0,
            stored_bytes: 0,
            queued_bytes: counted(&self.counters.queued_bytes),
            appended_events: counted(&self.counters.events),
            appended_bytes: counted(&self.counters.bytes),
            commits: counted(&self.counters.batches),
            corrupted_blocks: self.partitions.iter().map(|partition| counted(&partition.corrupted)).sum(),
        }
    }

    fn trouble(&self) -> Option<String> {
        self.context.health.trouble().map(|reason| format!("{}: {reason}", self.place.display()))
    }

    async fn close(&self) {
        self.producer.close(&self.partitions);
        let producer = Arc::clone(&self.producer);
        // A panic in there is told by its hook; there is nothing to flush then.
        let _ = tokio::task::spawn_blocking(move || producer.flush()).await;
        self.closed.store(true, Ordering::Release);
        self.partitions.iter().for_each(|partition| partition.arrived.notify_waiters());
    }
}

impl Drop for KafkaLog {
    fn drop(&mut self) {
        self.producer.close(&self.partitions);
        self.producer.give_up();
        self.stop.store(true, Ordering::Relaxed);
        self.stop_watch = None;
        self.partitions.iter().for_each(|partition| partition.stop_reading());
        if let Some(thread) = self.events.take() {
            // A thread that panicked has said so already.
            let _ = thread.join();
        }
    }
}

impl std::fmt::Debug for KafkaLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaLog").field("place", &self.place).finish_non_exhaustive()
    }
}
