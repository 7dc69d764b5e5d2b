//! The broker's own figures as retained messages below `$SYS/broker`, as users of other brokers know them. They are those of
//! the whole server, the same in every realm, and published when they have changed.

use std::time::Duration;

use super::broker::Broker;
use crate::metrics::GatewayMetrics;

/// Publishes the figures in a realm.
pub(crate) fn publish_figures(broker: &Broker, metrics: &GatewayMetrics, uptime: Duration) {
    let (connected, sessions) = (metrics.connections.get(), metrics.sessions.get());
    let dropped = metrics.deliveries_dropped_full.get()
        + metrics.deliveries_dropped_expired.get()
        + metrics.deliveries_dropped_too_large.get();
    let (retained, retained_bytes) = broker.retained.size();
    let figures = [
        ("version", concat!("Catchment ", env!("CARGO_PKG_VERSION")).to_owned()),
        ("uptime", format!("{} seconds", uptime.as_secs())),
        ("clients/connected", connected.to_string()),
        ("clients/disconnected", (sessions - connected).max(0).to_string()),
        ("clients/total", sessions.max(connected).to_string()),
        ("subscriptions/count", metrics.subscriptions.get().to_string()),
        ("retained messages/count", retained.to_string()),
        ("retained messages/bytes", retained_bytes.to_string()),
        ("messages/received", metrics.received_messages.get().to_string()),
        ("messages/sent", metrics.delivered.get().to_string()),
        ("messages/dropped", dropped.to_string()),
        ("bytes/received", metrics.received_bytes.get().to_string()),
        ("bytes/sent", metrics.sent_bytes.get().to_string()),
        ("events/received", (metrics.mqtt_events.get() + metrics.http_events.get()).to_string()),
    ];
    for (name, value) in figures {
        broker.publish_sys(&format!("$SYS/broker/{name}"), value.as_bytes());
    }
}
