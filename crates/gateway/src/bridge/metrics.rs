//! What bridges count, as Prometheus metrics named `catchment_bridge_…`, each by bridge.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    bridge: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfReason {
    bridge: String,
    reason: &'static str,
}

/// Counters and gauges of all bridges. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct BridgeMetrics {
    connected: Family<Of, Gauge>,
    queued: Family<Of, Gauge>,
    connects: Family<Of, Counter>,
    failures: Family<OfReason, Counter>,
    received: Family<Of, Counter>,
    duplicates: Family<Of, Counter>,
    published: Family<Of, Counter>,
    refused: Family<OfReason, Counter>,
    dropped: Family<OfReason, Counter>,
}

impl BridgeMetrics {
    /// Registers everything. The registry adds `_total` to counters.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "catchment_bridge_connected",
            "1 while the bridge is connected and its subscriptions are granted",
            self.connected.clone(),
        );
        registry.register(
            "catchment_bridge_queued_messages",
            "Messages that wait for the other broker",
            self.queued.clone(),
        );
        registry.register(
            "catchment_bridge_failures",
            "Connections to the other broker that were not made, or ended, by reason",
            self.failures.clone(),
        );
        registry.register(
            "catchment_bridge_refused_messages",
            "Messages that were acknowledged and not taken, or that the other broker did not take, by reason",
            self.refused.clone(),
        );
        registry.register(
            "catchment_bridge_dropped_messages",
            "Messages that were not sent to the other broker, by reason",
            self.dropped.clone(),
        );
        let counters = [
            ("connects", "Times that the bridge was connected", &self.connects),
            ("received_messages", "Messages that came from the other broker", &self.received),
            (
                "duplicate_messages",
                "Messages that it sent again and that were in the log already",
                &self.duplicates,
            ),
            (
                "published_messages",
                "Messages sent to the other broker, those of QoS 1 and 2 when it had acknowledged them",
                &self.published,
            ),
        ];
        for (name, help, family) in counters {
            registry.register(format!("catchment_bridge_{name}"), help, family.clone());
        }
    }

    /// Those of one bridge, all there from the start.
    pub(super) fn of(&self, bridge: &str) -> OneBridge {
        let of = || Of { bridge: bridge.to_owned() };
        OneBridge {
            bridge: bridge.to_owned(),
            connected: self.connected.get_or_create(&of()).clone(),
            queued: self.queued.get_or_create(&of()).clone(),
            connects: self.connects.get_or_create(&of()).clone(),
            received: self.received.get_or_create(&of()).clone(),
            duplicates: self.duplicates.get_or_create(&of()).clone(),
            published: self.published.get_or_create(&of()).clone(),
            failures: self.failures.clone(),
            refused: self.refused.clone(),
            dropped: self.dropped.clone(),
        }
    }
}

/// What one bridge counts.
#[derive(Debug)]
pub(crate) struct OneBridge {
    bridge: String,
    pub(crate) connected: Gauge,
    pub(crate) queued: Gauge,
    pub(crate) connects: Counter,
    pub(crate) received: Counter,
    pub(crate) duplicates: Counter,
    pub(crate) published: Counter,
    failures: Family<OfReason, Counter>,
    refused: Family<OfReason, Counter>,
    dropped: Family<OfReason, Counter>,
}

impl OneBridge {
    fn of(&self, reason: &'static str) -> OfReason {
        OfReason { bridge: self.bridge.clone(), reason }
    }

    /// A connection was not made, or has ended.
    pub(super) fn failed(&self, reason: &'static str) {
        self.failures.get_or_create(&self.of(reason)).inc();
    }

    /// A message was acknowledged and not taken, by us or by the other broker.
    pub(crate) fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&self.of(reason)).inc();
    }

    /// Messages are not sent.
    pub(crate) fn dropped(&self, reason: &'static str, messages: u64) {
        if messages > 0 {
            self.dropped.get_or_create(&self.of(reason)).inc_by(messages);
        }
    }
}
