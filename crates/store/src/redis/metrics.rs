//! What is counted about Redis.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Figures of the snapshot in Redis, of the relay and of the answers that are kept. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct RedisMetrics {
    pub(super) up: Gauge,
    pub(super) pending_devices: Gauge,
    pub(super) lag_seconds: Gauge<f64, AtomicU64>,
    pub(super) written_devices: Counter,
    pub(super) refused_devices: Counter,
    pub(super) failures: Counter,
    pub(super) rebuilds: Counter,
    pub(super) relay_sent: Counter,
    pub(super) relay_received: Counter,
    pub(super) relay_gaps: Counter,
    pub(super) cache_hits: Counter,
    pub(super) cache_misses: Counter,
    pub(super) cache_failures: Counter,
}

impl RedisMetrics {
    /// Names the figures `catchment_snapshot_…`, `catchment_live_relay_…` and `catchment_answers_…`.
    pub fn register(&self, registry: &mut Registry) {
        let snapshot = registry.sub_registry_with_prefix("catchment_snapshot");
        let engine = snapshot.sub_registry_with_label(("engine".into(), "redis".into()));
        engine.register("up", "1 while Redis takes what is written, 0 while it does not", self.up.clone());
        snapshot.register(
            "pending_devices",
            "Devices whose latest values are not in Redis yet",
            self.pending_devices.clone(),
        );
        snapshot.register(
            "lag_seconds",
            "For how long there has been something that is not in Redis yet; 0 when nothing is left",
            self.lag_seconds.clone(),
        );
        snapshot.register("written_devices", "Devices written to Redis", self.written_devices.clone());
        snapshot.register(
            "refused_devices",
            "Devices not written because another process owns their partition now",
            self.refused_devices.clone(),
        );
        snapshot.register("write_failures", "Writes that Redis failed", self.failures.clone());
        snapshot.register(
            "rebuilds",
            "Times that everything was written anew because Redis was restarted or emptied",
            self.rebuilds.clone(),
        );
        let relay = registry.sub_registry_with_prefix("catchment_live_relay");
        relay.register("sent", "Messages published for other processes", self.relay_sent.clone());
        relay.register("received", "Messages taken from other processes", self.relay_received.clone());
        relay.register(
            "gaps",
            "Times that subscribers were told that something may be missing",
            self.relay_gaps.clone(),
        );
        let answers = registry.sub_registry_with_prefix("catchment_answers");
        answers.register("hits", "Answers given from the cache", self.cache_hits.clone());
        answers.register("misses", "Answers that were not in the cache", self.cache_misses.clone());
        answers.register(
            "failures",
            "Look-ups and stores that Redis failed; the query was run",
            self.cache_failures.clone(),
        );
    }
}
