//! Push between processes: what workers here publish reaches subscribers elsewhere, and the other way round.
//!
//! Each process says on the roster `live` what its own subscribers want ([`wants`]). A process whose workers have it
//! publishes it ([`send`]); whoever wants it is subscribed to the channels ([`receive`]) and hands it to its own hub. So nothing is
//! published that nobody wants, and no worker waits.
//!
//! - On `live:{realm}:{device}:{type}`: `{"from":PROCESS,"number":N,"device_id":…,"type":…,"readings":[{"timestamp":µs,
//!   "received_at":µs,"metric":…,"value":…}]}`
//! - On `tail:{realm}:{device}:{type}`: the same with `"events":[{"topic":…,"received_at":µs,"payload":…,
//!   "payload_encoding":"text"|"base64"}]`
//! - On `lag:{realm}`: `{"from":…,"number":…,"follow":"readings"|"events","lagged":N}`, when so many could not be published.
//!
//! Messages of a process are numbered: one that comes twice, because a channel and a pattern both fit, is taken once. A device's
//! order is kept, as one process has it at a time and publishes by one connection.

mod message;
mod receive;
mod send;
mod wants;

use std::sync::Arc;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::client::RedisClient;
use super::metrics::RedisMetrics;
use super::roster::Roster;
use crate::live::LiveHub;

/// Stands between the hubs of processes.
#[derive(Debug)]
pub struct LiveRelay {
    client: RedisClient,
    hub: Arc<LiveHub>,
    roster: Arc<Roster>,
    metrics: RedisMetrics,
}

impl LiveRelay {
    /// A relay of this process's hub.
    #[must_use]
    pub fn new(client: RedisClient, hub: Arc<LiveHub>, metrics: RedisMetrics) -> Arc<Self> {
        let roster = Roster::new(client.clone(), "live");
        Arc::new(Self { client, hub, roster, metrics })
    }

    /// Works until `stop`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut parts = JoinSet::new();
        parts.spawn(Arc::clone(&self.roster).run(stop.clone()));
        parts.spawn(send::run(Arc::clone(&self), stop.clone()));
        parts.spawn(receive::run(self, stop));
        while let Some(ended) = parts.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a part of the relay between processes ended badly");
            }
        }
    }
}
