//! What the gateway counts, as Prometheus metrics named `catchment_gateway_…`.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::mqtt::KeepMetrics;

/// One label.
type Label = [(&'static str, &'static str); 1];

/// How long things took that take from 0.2 ms to 13 s.
#[derive(Debug, Clone)]
pub(crate) struct Times(Histogram);

impl Default for Times {
    fn default() -> Self {
        Self(Histogram::new(exponential_buckets(0.0002, 2.0, 17)))
    }
}

impl Times {
    pub(crate) fn observe(&self, seconds: f64) {
        self.0.observe(seconds);
    }
}

/// Counters and gauges of a gateway. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct GatewayMetrics {
    pub(crate) connections: Gauge,
    pub(crate) connections_total: Counter,
    pub(crate) connections_refused: Family<Label, Counter>,
    pub(crate) admission: Family<Label, Counter>,
    pub(crate) limited: Family<Label, Counter>,
    pub(crate) disconnects: Family<Label, Counter>,
    pub(crate) sessions: Gauge,
    pub(crate) subscriptions: Gauge,
    pub(crate) subscriptions_refused: Counter,
    pub(crate) received_bytes: Counter,
    pub(crate) sent_bytes: Counter,
    pub(crate) received_messages: Counter,
    pub(crate) mqtt_events: Counter,
    pub(crate) mqtt_event_bytes: Counter,
    pub(crate) http_events: Counter,
    pub(crate) http_event_bytes: Counter,
    pub(crate) http_requests: Family<Label, Counter>,
    pub(crate) unrouted: Family<Label, Counter>,
    pub(crate) refused: Family<Label, Counter>,
    pub(crate) acknowledged: Counter,
    pub(crate) acknowledge_seconds: Times,
    pub(crate) delivered: Counter,
    pub(crate) deliveries_dropped_full: Counter,
    pub(crate) deliveries_dropped_expired: Counter,
    pub(crate) deliveries_dropped_too_large: Counter,
    pub(crate) peers: Gauge,
    pub(crate) peer_subscriptions: Gauge,
    pub(crate) peers_sent: Counter,
    pub(crate) peers_received: Counter,
    pub(crate) peers_dropped: Counter,
    pub(crate) retained_messages: Gauge,
    pub(crate) retained_bytes: Gauge,
    pub(crate) retained_refused: Counter,
    pub(crate) kept: KeepMetrics,
    pub(crate) kept_waiting_bytes: Gauge,
    pub(crate) kept_stuck: Gauge,
}

impl GatewayMetrics {
    /// Registers everything. The registry adds `_total` to counters.
    pub fn register(&self, registry: &mut Registry) {
        let gauges = [
            ("connections", "MQTT connections now", &self.connections),
            ("sessions", "MQTT sessions kept, connected or not", &self.sessions),
            ("subscriptions", "MQTT subscriptions", &self.subscriptions),
            ("peers", "Other gateways of the platform", &self.peers),
            (
                "peer_subscriptions",
                "Filters that other gateways' clients subscribe to, as they are told",
                &self.peer_subscriptions,
            ),
            ("retained_messages", "Retained MQTT messages", &self.retained_messages),
            (
                "retained_bytes",
                "Bytes that retained MQTT messages and their topics take",
                &self.retained_bytes,
            ),
            ("kept_waiting_bytes", "Bytes of messages that wait for kept sessions", &self.kept_waiting_bytes),
            ("journal_stuck", "1 while there is no room on disk to keep sessions", &self.kept_stuck),
            ("journal_disk_bytes", "Bytes of the session journal's closed files", &self.kept.disk_bytes),
        ];
        let counters = [
            ("connections_accepted", "MQTT connections that were let in", &self.connections_total),
            (
                "subscriptions_refused",
                "MQTT subscriptions for which there was no room, of the client or of all",
                &self.subscriptions_refused,
            ),
            ("received_bytes", "Bytes that MQTT connections have sent us", &self.received_bytes),
            ("sent_bytes", "Bytes sent on MQTT connections", &self.sent_bytes),
            ("received_messages", "MQTT messages that clients have published", &self.received_messages),
            ("mqtt_events", "Events handed to the log from MQTT", &self.mqtt_events),
            ("mqtt_event_bytes", "Payload bytes of these events", &self.mqtt_event_bytes),
            ("http_events", "Events made durable from HTTP", &self.http_events),
            ("http_event_bytes", "Payload bytes of these events", &self.http_event_bytes),
            (
                "acknowledged_messages",
                "MQTT messages acknowledged after they were durable",
                &self.acknowledged,
            ),
            ("delivered_messages", "MQTT messages sent to subscribers", &self.delivered),
            (
                "dropped_full",
                "MQTT messages dropped since a subscriber's queue was full",
                &self.deliveries_dropped_full,
            ),
            ("dropped_expired", "MQTT messages that expired in a queue", &self.deliveries_dropped_expired),
            (
                "dropped_too_large",
                "MQTT messages over a client's packet size",
                &self.deliveries_dropped_too_large,
            ),
            (
                "retained_refused",
                "Retained MQTT messages for which there was no room",
                &self.retained_refused,
            ),
            ("peer_sent_messages", "MQTT messages for clients of other gateways", &self.peers_sent),
            ("peer_received_messages", "MQTT messages that came from other gateways", &self.peers_received),
            (
                "peer_dropped_messages",
                "MQTT messages for clients of other gateways that could not be brought there",
                &self.peers_dropped,
            ),
            ("journal_bytes", "Bytes written to the session journal", &self.kept.written_bytes),
            ("journal_commits", "Group commits of the session journal", &self.kept.commits),
            (
                "journal_compactions",
                "Times that the session journal was written anew",
                &self.kept.compactions,
            ),
            ("journal_damaged", "Places of the session journal found damaged", &self.kept.damaged),
        ];
        let families = [
            ("connections_refused", "MQTT connections not let in, by reason", &self.connections_refused),
            ("admission", "Clients and requests let in or not, by decision", &self.admission),
            (
                "limited",
                "Reads and requests put off since a limit of rate was reached, by way in",
                &self.limited,
            ),
            ("disconnects", "MQTT connections ended, by reason", &self.disconnects),
            (
                "unrouted_messages",
                "Messages of topics that no route takes, by what became of them",
                &self.unrouted,
            ),
            ("refused_messages", "MQTT messages refused, by reason", &self.refused),
            ("http_requests", "HTTP ingest requests, by outcome", &self.http_requests),
        ];
        for (name, help, gauge) in gauges {
            registry.register(format!("catchment_gateway_{name}"), help, gauge.clone());
        }
        for (name, help, counter) in counters {
            registry.register(format!("catchment_gateway_{name}"), help, counter.clone());
        }
        for (name, help, family) in families {
            registry.register(format!("catchment_gateway_{name}"), help, family.clone());
        }
        registry.register(
            "catchment_gateway_acknowledge_seconds",
            "From handing what a read of an MQTT connection brought to the log, to its acknowledgement",
            self.acknowledge_seconds.0.clone(),
        );
    }

    /// Counts messages of topics that no route takes.
    pub(crate) fn count_unrouted(&self, outcome: &'static str, messages: u64) {
        self.unrouted.get_or_create(&[("outcome", outcome)]).inc_by(messages);
    }

    pub(crate) fn count(family: &Family<Label, Counter>, reason: &'static str) {
        family.get_or_create(&[("reason", reason)]).inc();
    }
}
