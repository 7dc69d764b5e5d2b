//! What listeners and TLS count: `catchment_listener_…` and `catchment_tls_…`.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::config::Protocol;

type Of = [(&'static str, &'static str); 1];
type OfListener = [(&'static str, &'static str); 2];

/// Counters and gauges of transport. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct TransportMetrics {
    accepted: Family<Of, Counter>,
    refused: Family<OfListener, Counter>,
    handshakes: Family<OfListener, Counter>,
    reloads: Family<Of, Counter>,
    expiry: Family<Of, Gauge>,
    pub(super) opening: Gauge,
    pub(super) revoked: Counter,
}

impl TransportMetrics {
    /// Registers everything. The registry adds `_total` to counters.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("catchment_listener_accepted", "Connections accepted", self.accepted.clone());
        registry.register(
            "catchment_listener_refused",
            "Connections ended before their protocol began, by reason",
            self.refused.clone(),
        );
        registry.register(
            "catchment_listener_opening",
            "Connections whose clients have not been let in yet",
            self.opening.clone(),
        );
        registry.register("catchment_tls_handshakes", "TLS handshakes, by outcome", self.handshakes.clone());
        registry.register(
            "catchment_tls_reloads",
            "Times that certificates, keys and revocation lists were read anew, by outcome",
            self.reloads.clone(),
        );
        registry.register(
            "catchment_tls_revoked_connections",
            "Connections cut since their certificate is no longer good",
            self.revoked.clone(),
        );
        registry.register(
            "catchment_tls_expiry_timestamp_seconds",
            "When the first of these ends: server (certificate), client_ca, crl (next update)",
            self.expiry.clone(),
        );
    }

    pub(super) fn accepted(&self, protocol: Protocol) {
        self.accepted.get_or_create(&[("listener", protocol.name())]).inc();
    }

    pub(super) fn refused(&self, protocol: Protocol, reason: &'static str) {
        self.refused.get_or_create(&[("listener", protocol.name()), ("reason", reason)]).inc();
    }

    pub(super) fn handshake(&self, protocol: Protocol, outcome: &'static str) {
        self.handshakes.get_or_create(&[("listener", protocol.name()), ("outcome", outcome)]).inc();
    }

    pub(super) fn reload(&self, outcome: &'static str) {
        self.reloads.get_or_create(&[("outcome", outcome)]).inc();
    }

    /// `end`: seconds since 1970.
    pub(super) fn set_expiry(&self, of: &'static str, end: i64) {
        self.expiry.get_or_create(&[("of", of)]).set(end);
    }
}
