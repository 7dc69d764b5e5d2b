//! What all clients of Kafka here share: settings, the log lines and errors of librdkafka, whether the brokers answer.

use std::fs;
use std::sync::Arc;

use parking_lot::Mutex;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::{KafkaError as OpenError, KafkaTarget};

/// Largest record, in bytes. Topics are made so; the brokers' own limit for a request is 100 MiB by default.
pub(super) const RECORD_BYTES_MAX: usize = 16 << 20;

/// What is known of the brokers.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// They are somebody else's, whose records we take.
    is_source: bool,
    trouble: Mutex<Option<String>>,
    fatal: Mutex<Option<String>>,
    /// What went wrong with a connection last.
    connection: Mutex<Option<String>>,
}

impl Health {
    /// They answer.
    pub(super) fn good(&self) {
        let mut trouble = self.trouble.lock();
        if trouble.take().is_some() {
            tracing::info!("Kafka answers again");
        }
    }

    /// They do not, or refuse us. Logged once until they answer again.
    pub(super) fn bad(&self, reason: &str) {
        let mut trouble = self.trouble.lock();
        if trouble.is_none() {
            match self.is_source {
                true => tracing::warn!(reason, "Kafka does not answer; its records are taken once it does"),
                false => tracing::warn!(
                    reason,
                    "Kafka does not answer; events wait, and devices for their acknowledgements"
                ),
            }
        }
        *trouble = Some(reason.to_owned());
    }

    /// Why nothing goes on now, if it does not.
    pub(super) fn trouble(&self) -> Option<String> {
        self.fatal().or_else(|| self.trouble.lock().clone())
    }

    /// What is known of a failure to connect.
    pub(super) fn connection(&self) -> Option<String> {
        self.connection.lock().clone().or_else(|| self.trouble())
    }

    /// Why nothing will go on until a restart.
    pub(super) fn fatal(&self) -> Option<String> {
        self.fatal.lock().clone()
    }
}

/// Called by librdkafka.
#[derive(Debug, Clone, Default)]
pub(super) struct Context {
    pub(super) health: Arc<Health>,
}

impl Context {
    /// For the brokers of a source.
    pub(super) fn of_source() -> Self {
        Self { health: Arc::new(Health { is_source: true, ..Health::default() }) }
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                tracing::error!(facility, "{message}");
            }
            // A broker that is away is told once, by `Health`; the library repeats it with every attempt.
            _ => tracing::debug!(facility, "{message}"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::Fatal) => {
                tracing::error!(reason, "Kafka's client has failed for good");
                *self.health.fatal.lock() = Some(reason.to_owned());
            }
            // One broker of several, or a connection that was idle: others serve.
            Some(RDKafkaErrorCode::BrokerTransportFailure | RDKafkaErrorCode::Resolve) => {
                tracing::debug!(reason, "a broker has gone");
                *self.health.connection.lock() = Some(reason.to_owned());
            }
            // Comes after what was wrong with the last of them, which tells more.
            Some(RDKafkaErrorCode::AllBrokersDown) => {
                let last = self.health.connection.lock().clone();
                self.health.bad(last.as_deref().unwrap_or(reason));
            }
            Some(RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SSL) => {
                *self.health.connection.lock() = Some(reason.to_owned());
                self.health.bad(reason);
            }
            // We are in no group, and need no right to one.
            Some(RDKafkaErrorCode::GroupAuthorizationFailed) => {}
            _ => self.health.bad(reason),
        }
    }
}

impl ConsumerContext for Context {}

/// Settings of all clients of a cluster.
///
/// # Errors
/// The file of the password cannot be read.
pub(super) fn settings(target: &KafkaTarget) -> Result<ClientConfig, OpenError> {
    let config = &target.config;
    let security = target.security();
    let mut settings = ClientConfig::new();
    settings
        .set("bootstrap.servers", target.brokers.join(","))
        .set("client.id", concat!("catchment-", env!("CARGO_PKG_VERSION")))
        .set("security.protocol", security.name())
        .set("socket.keepalive.enable", "true")
        // A broker that comes back is found within a second.
        .set("reconnect.backoff.max.ms", "1000")
        // Who leads a partition that was just made, or has moved, is asked again soon.
        .set("topic.metadata.refresh.interval.ms", "10000")
        // A request that an outage swallowed holds up others of its kind for so long: with the library's minute, a producer was seen to be
        // silent for all of it after its brokers were back.
        .set("socket.timeout.ms", "10000")
        .set_log_level(RDKafkaLogLevel::Info);
    if security.is_sasl() {
        let password = match &config.password_file {
            None => config.password.reveal().to_owned(),
            Some(path) => {
                let text = fs::read_to_string(path);
                let text = text.map_err(|source| OpenError::Password { path: path.clone(), source })?;
                text.trim_end_matches(['\r', '\n']).to_owned()
            }
        };
        settings.set("sasl.mechanism", &config.mechanism);
        settings.set("sasl.username", &config.user).set("sasl.password", password);
    }
    if security.is_tls() {
        // Those of the system, wherever it has them: the library's own OpenSSL knows only the place where it was built.
        settings.set("ssl.ca.location", "probe");
    }
    let files = [
        ("ssl.ca.location", &config.ca_file),
        ("ssl.certificate.location", &config.certificate_file),
        ("ssl.key.location", &config.key_file),
    ];
    for (name, path) in files {
        if let Some(path) = path {
            settings.set(name, path.to_string_lossy());
        }
    }
    for (name, value) in &config.client {
        settings.set(name, value);
    }
    Ok(settings)
}

/// Settings of the client that reads. `bytes_max` is what it holds in memory of each partition.
pub(super) fn of_reader(mut settings: ClientConfig, bytes_max: usize) -> ClientConfig {
    let kibibytes = (bytes_max >> 10).clamp(1 << 10, 1 << 20);
    settings
        // Offsets are committed with the data, by history; no group is joined. The client wants a name all the same.
        .set("group.id", "catchment")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "earliest")
        .set("check.crcs", "true")
        .set("allow.auto.create.topics", "false")
        .set("queued.max.messages.kbytes", kibibytes.to_string())
        .set("fetch.message.max.bytes", (4 << 20).to_string())
        .set("fetch.queue.backoff.ms", "5")
        // A request that waits for events at the end holds up one for those at another place.
        .set("fetch.wait.max.ms", "100");
    settings
}

/// Settings of a member of a group. What `settings` has of these already, because the operator chose it, stays.
fn in_group(mut settings: ClientConfig, group: &str) -> ClientConfig {
    let defaults = [
        // A partition that moves interrupts the work on that partition alone. Eager assignors take all from all.
        ("partition.assignment.strategy", "cooperative-sticky"),
        // No `group.instance.id`: a static member that stops in order does not leave, and is waited for like one that was killed.
        // A process that was killed or hangs is missed after this; a broker's own limit below is 6 s by default.
        ("session.timeout.ms", "10000"),
        // Others learn within this that one has left in order.
        ("heartbeat.interval.ms", "1000"),
        // How long others wait for one that has to hand a partition over, which takes at most 30 s.
        ("max.poll.interval.ms", "60000"),
    ];
    for (name, value) in defaults {
        if settings.get(name).is_none() {
            settings.set(name, value);
        }
    }
    settings
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("allow.auto.create.topics", "false");
    settings
}

/// Settings of a member that reads nothing.
pub(super) fn of_member(settings: ClientConfig, group: &str) -> ClientConfig {
    let mut settings = in_group(settings, group);
    settings
        .set("auto.offset.reset", "latest")
        // What may come before a partition is paused.
        .set("queued.max.messages.kbytes", "64")
        .set("fetch.message.max.bytes", "1024");
    settings
}

/// Settings of a member that reads somebody else's topic.
pub(super) fn of_source(settings: ClientConfig, group: &str, from_the_end: bool) -> ClientConfig {
    let mut settings = in_group(settings, group);
    settings
        .set("auto.offset.reset", if from_the_end { "latest" } else { "earliest" })
        .set("check.crcs", "true")
        .set("queued.max.messages.kbytes", "16384")
        .set("fetch.message.max.bytes", (4 << 20).to_string());
    settings
}

/// Settings of the client that writes.
pub(super) fn of_writer(mut settings: ClientConfig, linger_us: u32) -> ClientConfig {
    /// Requests then carry what comes in meanwhile; below, each event is a request of its own under light load.
    const LINGER_US_DEFAULT: u32 = 2000;
    let linger_us = if linger_us == 0 { LINGER_US_DEFAULT } else { linger_us };
    settings
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("compression.codec", "lz4")
        .set("linger.ms", format!("{:.3}", f64::from(linger_us) / 1e3))
        // What was taken waits as long as it takes: devices wait for their acknowledgements, and nothing is lost.
        .set("message.timeout.ms", "0")
        .set("message.max.bytes", RECORD_BYTES_MAX.to_string())
        // The queue is bounded by the bytes of what is not acknowledged, in `producer`.
        .set("queue.buffering.max.messages", "0")
        .set("queue.buffering.max.kbytes", i32::MAX.to_string());
    settings
}
