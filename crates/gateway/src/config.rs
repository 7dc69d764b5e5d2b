//! What an operator can set: the sections `gateway.mqtt` and `gateway.http`, and the routes.

use catchment_types::{BadName, check_device_id, check_event_type};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::mqtt::TopicLimits;
use crate::route::{BadRoute, RouteBook, RouteRule};

/// Everything about taking devices in. Every field has a default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GatewayConfig {
    /// Which topics are events. More can be added while running.
    pub routes: Vec<RouteRule>,
    /// What becomes of the other topics.
    pub unrouted: UnroutedConfig,
    /// Longest time, in seconds, that a stop waits for connections to settle what they have on its way to the log.
    pub drain_s_max: u64,
    /// MQTT.
    pub mqtt: MqttConfig,
    /// HTTP ingest.
    pub http: HttpConfig,
}

/// What becomes of messages of topics that no route takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UnroutedConfig {
    /// What is done with them.
    pub action: UnroutedAction,
    /// With `keep`: the device that their events are of.
    pub device_id: String,
    /// With `keep`: the type of these events.
    #[serde(rename = "type")]
    pub event_type: String,
}

/// What is done with messages of topics that no route takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnroutedAction {
    /// They go to subscribers and are not kept.
    Broker,
    /// They are kept as events of one device, with their topic, and go to subscribers.
    Keep,
    /// They are refused.
    Refuse,
}

impl Default for UnroutedConfig {
    fn default() -> Self {
        let name = || "unrouted".to_owned();
        Self { action: UnroutedAction::Broker, device_id: name(), event_type: name() }
    }
}

/// MQTT limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MqttConfig {
    /// Connections at one time; further ones are closed at once.
    pub connections_max: usize,
    /// Sessions kept in memory, connected or not.
    pub sessions_max: usize,
    /// Seconds that a new connection has to send CONNECT.
    pub connect_s_max: u64,
    /// Longest keep-alive, in seconds, and the one for clients that ask for none; 0: as they wish.
    pub keep_alive_s_max: u16,
    /// Longest time, in seconds, that a session outlives its connection.
    pub session_expiry_s_max: u32,
    /// Largest packet, in bytes, with its header.
    pub packet_bytes_max: usize,
    /// Largest CONNECT, in bytes: who sends it is not known yet.
    pub connect_bytes_max: usize,
    /// Longest client id, in bytes.
    pub client_id_bytes_max: usize,
    /// Longest topic or filter, in bytes.
    pub topic_bytes_max: usize,
    /// Most levels of a topic or filter.
    pub topic_levels_max: usize,
    /// Topic aliases that a 5.0 client may use.
    pub topic_aliases_max: u16,
    /// Topic aliases that the server uses towards a 5.0 client that allows as many.
    pub outgoing_topic_aliases_max: u16,
    /// Longest time, in seconds, that a client may take nothing of what it is sent; then its connection is closed.
    pub write_s_max: u64,
    /// Seconds between two publications of the server's own figures below `$SYS/broker`; 0: never.
    pub sys_interval_s: u64,
    /// Messages of QoS 1 and 2 that a 5.0 client may have unacknowledged (receive maximum).
    pub receive_maximum: u16,
    /// Events of one connection that may be on their way to the log; over it the connection is not read.
    pub inflight_events_max: usize,
    /// Encoded bytes of these events.
    pub inflight_bytes_max: usize,
    /// Filters of one client.
    pub subscriptions_per_client_max: usize,
    /// Bytes that the subscriptions of a realm may take together.
    pub subscriptions_bytes_max: usize,
    /// Whether a client gets a message once for each of its filters with wildcards that match, eight times at most, as from
    /// most brokers, or once with the identifiers of all of them. Where a filter is the topic itself, it always comes once.
    /// The standard allows both (5.0, 3.3.4); some clients expect the one or the other.
    pub overlapping_copies: bool,
    /// Messages of QoS 1 and 2 that may be on their way to one client.
    pub outgoing_messages_max: u16,
    /// Messages that may wait for one client.
    pub session_queue_messages_max: usize,
    /// Bytes of these messages.
    pub session_queue_bytes_max: usize,
    /// What a 5.0 client hears that sends more than its limits allow.
    pub over_limit: OverLimit,
    /// Bytes of messages that may wait for all sessions together that survive a restart, each message counted once.
    pub kept_bytes_max: usize,
    /// Size, in bytes, at which a file of the session journal is closed.
    pub journal_segment_bytes: u64,
    /// Bytes that may wait to be written to the session journal before publishers have to wait.
    pub journal_queue_bytes_max: usize,
    /// Retained messages.
    pub retained_messages_max: usize,
    /// Bytes that these messages and their topics take.
    pub retained_bytes_max: usize,
}

/// What becomes of messages over a client's limits. MQTT 3.1.1 has no word for a refusal: there it is always `wait`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OverLimit {
    /// They wait in the network: the connection is not read until it may send again.
    #[default]
    Wait,
    /// QoS 1 and 2 are answered with 0x97 "quota exceeded", QoS 0 is dropped; both are counted.
    Refuse,
}

/// HTTP ingest limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpConfig {
    /// Largest request body as sent, in bytes.
    pub body_bytes_max: usize,
    /// Largest request body after decompression, in bytes.
    pub decompressed_bytes_max: usize,
    /// Largest NDJSON body after decompression, in bytes: it is taken in line by line, and needs little memory.
    pub lines_bytes_max: u64,
    /// Longest time, in seconds, in which nothing of a body comes.
    pub stall_s_max: u64,
    /// Most events in one request that is taken as a whole.
    pub events_max: usize,
    /// Largest event, in bytes.
    pub event_bytes_max: usize,
    /// Bytes of bodies that all requests together may hold in memory; over it requests are told to come again.
    pub buffered_bytes_max: usize,
    /// Seconds that an `Idempotency-Key` is known.
    pub idempotency_s_max: u64,
    /// Most keys that are known at a time; the oldest are forgotten first.
    pub idempotency_keys_max: usize,
    /// Seconds that a request waits for the log before it is told to come again.
    pub durable_s_max: u64,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            routes: vec![RouteRule::default()],
            unrouted: UnroutedConfig::default(),
            drain_s_max: 5,
            mqtt: MqttConfig::default(),
            http: HttpConfig::default(),
        }
    }
}

impl Default for MqttConfig {
    fn default() -> Self {
        Self {
            connections_max: 10_000,
            sessions_max: 100_000,
            connect_s_max: 10,
            keep_alive_s_max: 0,
            session_expiry_s_max: 86_400,
            packet_bytes_max: 1 << 20,
            connect_bytes_max: 128 << 10,
            client_id_bytes_max: 256,
            topic_bytes_max: 1024,
            topic_levels_max: 32,
            topic_aliases_max: 64,
            outgoing_topic_aliases_max: 32,
            write_s_max: 30,
            sys_interval_s: 10,
            receive_maximum: 1024,
            inflight_events_max: 8192,
            inflight_bytes_max: 4 << 20,
            subscriptions_per_client_max: 1000,
            subscriptions_bytes_max: 64 << 20,
            overlapping_copies: true,
            outgoing_messages_max: 128,
            session_queue_messages_max: 1000,
            session_queue_bytes_max: 4 << 20,
            over_limit: OverLimit::default(),
            kept_bytes_max: 128 << 20,
            journal_segment_bytes: 16 << 20,
            journal_queue_bytes_max: 2 << 20,
            retained_messages_max: 100_000,
            retained_bytes_max: 64 << 20,
        }
    }
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            body_bytes_max: 8 << 20,
            decompressed_bytes_max: 32 << 20,
            lines_bytes_max: 1 << 30,
            stall_s_max: 30,
            events_max: 10_000,
            event_bytes_max: 1 << 20,
            buffered_bytes_max: 256 << 20,
            idempotency_s_max: 86_400,
            idempotency_keys_max: 200_000,
            durable_s_max: 10,
        }
    }
}

/// A configuration that cannot work.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// A limit that lets nothing through, or more than the protocol has.
    #[error("gateway.{field} is {value}; it must be from {min} to {max}")]
    OutOfRange {
        /// Which field.
        field: &'static str,
        /// What it is.
        value: u64,
        /// Least value.
        min: u64,
        /// Greatest value.
        max: u64,
    },
    /// A route that is not one.
    #[error("gateway.routes: {0}; {hint}", hint = .0.hint)]
    Route(#[from] BadRoute),
    /// A name of `gateway.unrouted` that cannot be one.
    #[error("gateway.unrouted: {0}")]
    Unrouted(#[from] BadName),
}

impl GatewayConfig {
    /// Checks everything that serde cannot.
    ///
    /// # Errors
    /// Names the field and what it may be.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.routes().map(|_| ())
    }

    pub(crate) fn routes(&self) -> Result<RouteBook, ConfigError> {
        const MIB: u64 = 1 << 20;
        let (mqtt, http) = (&self.mqtt, &self.http);
        let fields = [
            ("mqtt.connections_max", mqtt.connections_max as u64, 1, 10_000_000),
            ("mqtt.sessions_max", mqtt.sessions_max as u64, 1, 100_000_000),
            ("mqtt.connect_s_max", mqtt.connect_s_max, 1, 3600),
            ("mqtt.packet_bytes_max", mqtt.packet_bytes_max as u64, 256, 256 * MIB),
            ("mqtt.connect_bytes_max", mqtt.connect_bytes_max as u64, 256, 1 << 20),
            ("mqtt.client_id_bytes_max", mqtt.client_id_bytes_max as u64, 23, 65_535),
            ("mqtt.topic_bytes_max", mqtt.topic_bytes_max as u64, 16, 65_535),
            ("mqtt.topic_levels_max", mqtt.topic_levels_max as u64, 3, 128),
            ("mqtt.receive_maximum", mqtt.receive_maximum.into(), 1, 65_535),
            ("mqtt.outgoing_topic_aliases_max", mqtt.outgoing_topic_aliases_max.into(), 0, 1024),
            ("mqtt.write_s_max", mqtt.write_s_max, 1, 3600),
            ("mqtt.sys_interval_s", mqtt.sys_interval_s, 0, 86_400),
            ("mqtt.inflight_events_max", mqtt.inflight_events_max as u64, 1, 1 << 20),
            ("mqtt.inflight_bytes_max", mqtt.inflight_bytes_max as u64, 1, 1024 * MIB),
            ("mqtt.outgoing_messages_max", mqtt.outgoing_messages_max.into(), 1, 16_384),
            ("mqtt.session_queue_messages_max", mqtt.session_queue_messages_max as u64, 1, 1 << 30),
            ("mqtt.session_queue_bytes_max", mqtt.session_queue_bytes_max as u64, 1, 1 << 40),
            ("mqtt.kept_bytes_max", mqtt.kept_bytes_max as u64, 1, 1 << 40),
            ("mqtt.journal_segment_bytes", mqtt.journal_segment_bytes, 64 << 10, 1024 * MIB),
            ("mqtt.journal_queue_bytes_max", mqtt.journal_queue_bytes_max as u64, 64 << 10, 1024 * MIB),
            ("http.body_bytes_max", http.body_bytes_max as u64, 1, 1024 * MIB),
            ("http.decompressed_bytes_max", http.decompressed_bytes_max as u64, 1, 1024 * MIB),
            ("http.lines_bytes_max", http.lines_bytes_max, 1, 1 << 50),
            ("http.stall_s_max", http.stall_s_max, 1, 3600),
            ("http.events_max", http.events_max as u64, 1, 10_000_000),
            ("http.event_bytes_max", http.event_bytes_max as u64, 1, 256 * MIB),
            (
                "http.buffered_bytes_max",
                http.buffered_bytes_max as u64,
                // Everything is in memory twice while it is encoded.
                2 * (http.body_bytes_max as u64 + http.decompressed_bytes_max as u64),
                1 << 40,
            ),
            ("http.idempotency_s_max", http.idempotency_s_max, 1, 30 * 86_400),
            ("http.idempotency_keys_max", http.idempotency_keys_max as u64, 1, 100_000_000),
            ("http.durable_s_max", http.durable_s_max, 1, 3600),
        ];
        for (field, value, min, max) in fields {
            if !(min..=max).contains(&value) {
                return Err(ConfigError::OutOfRange { field, value, min, max });
            }
        }
        check_device_id(&self.unrouted.device_id)?;
        check_event_type(&self.unrouted.event_type)?;
        Ok(RouteBook::new(&self.routes)?)
    }
}

impl MqttConfig {
    pub(crate) fn topic_limits(&self) -> TopicLimits {
        TopicLimits { bytes_max: self.topic_bytes_max, levels_max: self.topic_levels_max }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_sound_and_unknown_fields_are_refused() {
        assert_eq!(GatewayConfig::default().check(), Ok(()));
        let read = |text| serde_json::from_str::<GatewayConfig>(text);
        assert_eq!(read("{}").unwrap(), GatewayConfig::default());
        assert!(
            read(r#"{"mqtt": {"connection_max": 1}}"#).unwrap_err().to_string().contains("connection_max")
        );
        let config = read(r#"{"mqtt": {"receive_maximum": 0}}"#).unwrap();
        let error = config.check().unwrap_err().to_string();
        assert_eq!(error, "gateway.mqtt.receive_maximum is 0; it must be from 1 to 65535");
    }
}
