//! Brings MQTT messages to the gateways of other processes, by Redis.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use catchment_gateway::Gateway;
use catchment_store::redis::{PeerChannel, RedisClient, RedisTarget, SharedRetained};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::retained::Retained;

/// How often a change of what clients subscribe to is looked for, and told.
const SAY_EVERY: Duration = Duration::from_millis(50);

/// Starts it, in `tasks`, until `stop`; waits for what other gateways have retained. While Redis is away, messages reach the
/// clients of their own gateway only. What is given is to be closed when the gateway is.
///
/// # Errors
/// Certificates cannot be used.
pub(super) async fn start(
    gateway: &Arc<Gateway>,
    target: &RedisTarget,
    stop: &CancellationToken,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<Arc<Retained>> {
    let client = RedisClient::new(target).context("--snapshot: Redis")?;
    let channel = PeerChannel::new(client.clone());
    let receiver = Arc::clone(gateway);
    let receive = move |bytes: &[u8]| {
        if !receiver.take_from_peer(bytes) {
            tracing::debug!("a message that is none of another gateway's, or of another version");
        }
    };
    tasks.spawn(Arc::clone(&channel).run(receive, stop.clone()));
    tasks.spawn(until(stop, say(Arc::clone(gateway), Arc::clone(&channel))));
    tasks.spawn(until(stop, hear(Arc::clone(gateway), Arc::clone(&channel))));
    let retained = Retained::new(Arc::clone(gateway), SharedRetained::new(client));
    tasks.spawn(until(stop, Arc::clone(&retained).keep(channel.heard())));
    tasks.spawn(until(stop, send(Arc::clone(gateway), channel)));
    retained.wait_learned().await;
    Ok(retained)
}

fn until<F: Future<Output = ()>>(stop: &CancellationToken, work: F) -> impl Future<Output = ()> + use<F> {
    let stop = stop.clone();
    async move {
        let _ = stop.run_until_cancelled(work).await;
    }
}

async fn say(gateway: Arc<Gateway>, channel: Arc<PeerChannel>) {
    let mut look = tokio::time::interval(SAY_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = None;
    loop {
        look.tick().await;
        let generation = gateway.interest_generation();
        if told != Some(generation) {
            told = Some(generation);
            channel.say(gateway.interest());
        }
    }
}

async fn hear(gateway: Arc<Gateway>, channel: Arc<PeerChannel>) {
    let mut others = channel.others();
    while others.changed().await.is_ok() {
        let said = Arc::clone(&others.borrow_and_update());
        gateway.set_peers(&said);
    }
}

async fn send(gateway: Arc<Gateway>, channel: Arc<PeerChannel>) {
    loop {
        let messages = gateway.take_for_peers().await;
        let parts = messages.iter().map(|message| (&*message.to, &*message.bytes));
        if let Err(error) = channel.send(parts).await {
            tracing::debug!(%error, messages = messages.len(), "messages did not reach other gateways");
            gateway.lost_for_peers(messages.len());
        }
    }
}
