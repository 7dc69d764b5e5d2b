//! The topic of a log: found, made if there is none, and looked at. All functions block the thread.

use std::time::{Duration, Instant};

use catchment_types::Offset;
use rdkafka::admin::{
    AdminClient, AdminOptions, ConfigResource, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError as Error, RDKafkaErrorCode};
use tokio::runtime::Handle;

use super::client::{Context, RECORD_BYTES_MAX, of_reader, settings};
use super::{KafkaError, KafkaTarget};

/// How long brokers may take for an answer when a log is opened or looked at.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(10);
/// How long brokers may take to tell each other of a new topic.
const NEW_TOPIC_MAX: Duration = Duration::from_secs(30);
/// Errors that are looked through for the reason when nobody answers.
const EVENTS_MAX: u32 = 50;
const MAX_MESSAGE_BYTES: &str = "max.message.bytes";

/// What a cluster says of itself and of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// The cluster's identifier, if it has told.
    pub cluster: Option<String>,
    /// What version its first broker is of, as far as that can be told; none if it does not say.
    pub version: Option<String>,
    /// Number of brokers.
    pub brokers: usize,
    /// Partitions of the topic; none if there is no topic yet.
    pub partitions: Option<u32>,
    /// Partitions that nobody can write to now.
    pub leaderless: Vec<i32>,
    /// Largest record that the topic takes, in bytes, if it has told.
    pub record_bytes_max: Option<u64>,
    /// How long one request took.
    pub latency: Duration,
}

/// A client that asks.
pub(super) struct Asker<'a> {
    pub(super) target: &'a KafkaTarget,
    pub(super) consumer: BaseConsumer<Context>,
    context: Context,
    admin_settings: ClientConfig,
}

impl<'a> Asker<'a> {
    pub(super) fn new(
        target: &'a KafkaTarget,
        context: &Context,
        cache_bytes_max: usize,
    ) -> Result<Self, KafkaError> {
        let base = settings(target)?;
        let consumer = of_reader(base.clone(), cache_bytes_max)
            .create_with_context(context.clone())
            .map_err(|error| KafkaError::refused(target, "make a client for", &error))?;
        Ok(Self { target, consumer, context: context.clone(), admin_settings: base })
    }

    fn admin(&self) -> Result<AdminClient<Context>, KafkaError> {
        let admin = self.admin_settings.create_with_context(self.context.clone());
        admin.map_err(|error| KafkaError::refused(self.target, "make a client for", &error))
    }

    /// Asks for the topic, once.
    pub(super) fn probe(&self) -> Result<Probe, KafkaError> {
        let unreachable = |error: &Error| {
            // What went wrong with the connections is told aside.
            for _ in 0..EVENTS_MAX {
                let _ = self.consumer.poll(Duration::from_millis(1));
            }
            let reason = self.context.health.connection().unwrap_or_else(|| error.to_string());
            KafkaError::Unreachable { target: self.target.to_string(), reason }
        };
        let ask = || self.consumer.fetch_metadata(Some(&self.target.topic), ANSWER_MAX);
        ask().map_err(|error| unreachable(&error))?;
        // The first answer has waited for the connection.
        let began = Instant::now();
        let metadata = ask().map_err(|error| unreachable(&error))?;
        let latency = began.elapsed();
        let topic = metadata.topics().iter().find(|topic| topic.name() == self.target.topic);
        let partitions = topic.filter(|topic| topic.error().is_none()).map(|topic| topic.partitions());
        if let Some(error) = topic.and_then(|topic| topic.error()) {
            let code = RDKafkaErrorCode::from(error);
            if code != RDKafkaErrorCode::UnknownTopicOrPartition && code != RDKafkaErrorCode::UnknownTopic {
                return Err(KafkaError::refused(self.target, "read of", &Error::MetadataFetch(code)));
            }
        }
        Ok(Probe {
            cluster: self.consumer.client().fetch_cluster_id(ANSWER_MAX),
            brokers: metadata.brokers().len(),
            partitions: partitions.map(|partitions| partitions.len() as u32).filter(|&count| count > 0),
            leaderless: partitions
                .into_iter()
                .flatten()
                .filter(|partition| partition.leader() < 0)
                .map(|partition| partition.id())
                .collect(),
            version: None,
            record_bytes_max: None,
            latency,
        })
    }

    /// Asks for the limit of the topic's records.
    pub(super) fn record_bytes_max(&self, runtime: &Handle) -> Option<u64> {
        let topic = self.describe(&ResourceSpecifier::Topic(&self.target.topic), runtime)?;
        topic.get(MAX_MESSAGE_BYTES)?.value.as_ref()?.parse().ok()
    }

    /// Asks a broker what version it is of. Kafka has no request for that, but up to 3.9 a setting that has the version unless
    /// somebody has set it to an older one.
    pub(super) fn version(&self, runtime: &Handle) -> Option<String> {
        let metadata = self.consumer.fetch_metadata(Some(&self.target.topic), ANSWER_MAX).ok()?;
        let broker = metadata.brokers().first()?.id();
        let settings = self.describe(&ResourceSpecifier::Broker(broker), runtime)?;
        // What is no Kafka but speaks like it has neither this nor the one below.
        settings.get("log.dirs").or_else(|| settings.get("log.dir"))?;
        let Some(setting) = settings.get("inter.broker.protocol.version") else {
            return Some("4.0 or later".to_owned());
        };
        setting.value.as_ref()?.split('-').next().map(str::to_owned)
    }

    fn describe(&self, what: &ResourceSpecifier<'_>, runtime: &Handle) -> Option<ConfigResource> {
        let options = AdminOptions::new().request_timeout(Some(ANSWER_MAX));
        let described = runtime.block_on(self.admin().ok()?.describe_configs([what], &options)).ok()?;
        described.into_iter().flatten().next()
    }

    /// The number of partitions of the topic, which is made if there is none. `configured`: how many there must be; 0:
    /// as many as there are, `of_new` if it is made.
    pub(super) fn partitions(
        &self,
        configured: u32,
        of_new: u32,
        runtime: &Handle,
    ) -> Result<u32, KafkaError> {
        let existing = match self.probe()?.partitions {
            Some(existing) => existing,
            None => self.make(of_new, runtime)?,
        };
        if configured != 0 && existing != configured {
            return Err(KafkaError::Partitions { target: self.target.to_string(), existing, configured });
        }
        Ok(existing)
    }

    fn make(&self, partitions: u32, runtime: &Handle) -> Result<u32, KafkaError> {
        let replication = match self.target.config.replication {
            0 => -1,
            replicas => i32::from(replicas),
        };
        let record_bytes_max = RECORD_BYTES_MAX.to_string();
        let topic =
            NewTopic::new(&self.target.topic, partitions as i32, TopicReplication::Fixed(replication))
                .set(MAX_MESSAGE_BYTES, &record_bytes_max)
                .set("cleanup.policy", "delete");
        // Then what history has not committed is never deleted; we delete what it has, when it is old enough.
        let topic = if self.target.config.trim {
            topic.set("retention.ms", "-1").set("retention.bytes", "-1")
        } else {
            topic
        };
        let options =
            AdminOptions::new().request_timeout(Some(ANSWER_MAX)).operation_timeout(Some(ANSWER_MAX));
        let made = runtime.block_on(self.admin()?.create_topics([&topic], &options));
        match made.map(|mut results| results.pop()) {
            Ok(Some(Ok(_))) => tracing::info!(topic = self.target.topic, partitions, "the topic is made"),
            // Somebody else was faster: what it is like now is looked at below.
            Ok(Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists)))) => {}
            Ok(Some(Err((_, code)))) => {
                return Err(KafkaError::refused(self.target, "make", &Error::AdminOp(code)));
            }
            Ok(None) => {}
            Err(error) => return Err(KafkaError::refused(self.target, "make", &error)),
        }
        let deadline = Instant::now() + NEW_TOPIC_MAX;
        loop {
            let probe = self.probe()?;
            match probe.partitions {
                Some(existing) if probe.leaderless.is_empty() => return Ok(existing),
                _ if Instant::now() > deadline => {
                    let reason = format!("after {NEW_TOPIC_MAX:?} the new topic still has no leaders");
                    return Err(KafkaError::Unreachable { target: self.target.to_string(), reason });
                }
                _ => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }
}

/// The offsets that a partition has, once a broker leads it: those of a new topic agree on that only by and by.
pub(super) fn settled_watermarks<C>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    partition: i32,
) -> Result<std::ops::Range<Offset>, Error>
where
    C: rdkafka::consumer::ConsumerContext + ClientContext,
{
    use RDKafkaErrorCode as Code;
    let deadline = Instant::now() + NEW_TOPIC_MAX;
    loop {
        match watermarks(consumer, topic, partition) {
            Err(error)
                if Instant::now() < deadline
                    && matches!(
                        error.rdkafka_error_code(),
                        Some(
                            Code::NotLeaderForPartition
                                | Code::LeaderNotAvailable
                                | Code::UnknownTopicOrPartition
                                | Code::UnknownPartition
                        )
                    ) =>
            {
                std::thread::sleep(Duration::from_millis(50));
            }
            settled => return settled,
        }
    }
}

/// The offsets that a partition has.
pub(super) fn watermarks<C>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    partition: i32,
) -> Result<std::ops::Range<Offset>, Error>
where
    C: rdkafka::consumer::ConsumerContext + ClientContext,
{
    let (low, high) = consumer.fetch_watermarks(topic, partition, ANSWER_MAX)?;
    let offset = |offset: i64| Offset::try_from(offset).unwrap_or(0);
    Ok(offset(low)..offset(high))
}
