//! Brings MQTT messages to the gateways of other processes, by Redis, and keeps retained ones there for those that come later.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use catchment_gateway::{Gateway, Learned, RetainedChange};
use catchment_store::redis::{
    PeerChannel, RedisClient, RedisFailure, RedisTarget, RetainedEntry, SharedRetained,
};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

/// How often a change of what clients subscribe to is looked for, and told.
const SAY_EVERY: Duration = Duration::from_millis(50);

/// How often changed retained messages are written.
const WRITE_EVERY: Duration = Duration::from_millis(50);
/// Retained messages that are written or compared together.
const TOGETHER_MAX: usize = 500;
/// How often Redis is asked whether it has lost what it had.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// After this time all other gateways know of this one: what they retained before, and had not written when this one read it, is
/// written.
const KNOWN_AFTER: Duration = Duration::from_secs(5);
/// How often all are read again, so that what is over is taken out of Redis.
const READ_EVERY: Duration = Duration::from_secs(3600);
const RETRY: Duration = Duration::from_millis(500);
/// How long a start waits for the retained messages of the others.
const LEARN_MAX: Duration = Duration::from_secs(5);

/// Starts it, in `tasks`, until `stop`; waits for what other gateways have retained. While Redis is away, messages reach the
/// clients of their own gateway only.
///
/// # Errors
/// Certificates cannot be used.
pub(super) async fn start(
    gateway: &Arc<Gateway>,
    target: &RedisTarget,
    stop: &CancellationToken,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<()> {
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
    gateway.share_retained();
    let keeping = Keeping { gateway: Arc::clone(gateway), shared: SharedRetained::new(client) };
    let learned = watch::Sender::new(false);
    let mut first = learned.subscribe();
    tasks.spawn(until(stop, keep_retained(keeping, channel.heard(), learned)));
    tasks.spawn(until(stop, send(Arc::clone(gateway), channel)));
    if tokio::time::timeout(LEARN_MAX, first.wait_for(|learned| *learned)).await.is_err() {
        tracing::warn!(
            "Redis does not tell what other gateways have retained; until it does, only this one's retained messages are known"
        );
    }
    Ok(())
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

/// Keeps the retained messages of this gateway and of Redis the same.
async fn keep_retained(keeping: Keeping, mut heard: watch::Receiver<u64>, learned: watch::Sender<bool>) {
    while heard.changed().await.is_ok() {
        if let Err(error) = keeping.until_missed(&mut heard, &learned).await {
            tracing::debug!(%error, "retained messages are not kept for other gateways now");
            tokio::time::sleep(RETRY).await;
            heard.mark_changed();
        }
    }
}

struct Keeping {
    gateway: Arc<Gateway>,
    shared: SharedRetained,
}

impl Keeping {
    /// Brings both to the same, and then writes what changes, until something may have been missed.
    async fn until_missed(
        &self,
        heard: &mut watch::Receiver<u64>,
        learned: &watch::Sender<bool>,
    ) -> Result<(), RedisFailure> {
        heard.mark_unchanged();
        self.meet().await?;
        learned.send_replace(true);
        let mut write = tokio::time::interval(WRITE_EVERY);
        write.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut look = tokio::time::interval(LOOK_EVERY);
        let again = tokio::time::sleep(KNOWN_AFTER);
        tokio::pin!(again);
        loop {
            tokio::select! {
                // Nobody says anything any more: the process ends.
                changed = heard.changed() => {
                    if changed.is_ok() {
                        heard.mark_changed();
                    }
                    return Ok(());
                }
                _ = write.tick() => self.write_changes().await?,
                () = &mut again => {
                    self.learn().await?;
                    again.as_mut().reset(Instant::now() + READ_EVERY);
                }
                _ = look.tick() => if !self.shared.is_marked().await? {
                    self.meet().await?;
                }
            }
        }
    }

    /// What changed here is written first: what is gone must not come back.
    async fn meet(&self) -> Result<(), RedisFailure> {
        self.write_changes().await?;
        self.learn().await?;
        self.write_missing().await?;
        self.shared.mark().await
    }

    async fn write_changes(&self) -> Result<(), RedisFailure> {
        loop {
            let changes = self.gateway.changed_retained(TOGETHER_MAX);
            for of_realm in changes.chunk_by(|a, b| a.realm == b.realm) {
                if let Err(error) = self.shared.put(&of_realm[0].realm, &entries(of_realm)).await {
                    self.gateway.mark_retained(&changes);
                    return Err(error);
                }
            }
            if changes.len() < TOGETHER_MAX {
                return Ok(());
            }
        }
    }

    async fn learn(&self) -> Result<(), RedisFailure> {
        for realm in self.shared.realms().await? {
            let mut cursor = 0;
            loop {
                let (next, found) = self.shared.scan(&realm, cursor).await?;
                for found in found {
                    if self.gateway.learn_retained(&realm, found.bytes()).await == Learned::Over {
                        self.shared.forget(&realm, &found).await?;
                    }
                }
                if next == 0 {
                    break;
                }
                cursor = next;
            }
        }
        Ok(())
    }

    async fn write_missing(&self) -> Result<(), RedisFailure> {
        for realm in self.gateway.realms() {
            let mut after = None;
            loop {
                let (page, next) = self.gateway.all_retained(&realm, after.as_deref(), TOGETHER_MAX);
                let mut entries = entries(&page);
                let mut missing = self.shared.missing(&realm, &entries).await?.into_iter();
                entries.retain(|_| missing.next() == Some(true));
                if !entries.is_empty() {
                    self.shared.put(&realm, &entries).await?;
                }
                let Some(next) = next else { break };
                after = Some(next);
            }
        }
        Ok(())
    }
}

fn entries(changes: &[RetainedChange]) -> Vec<RetainedEntry> {
    let entry = |change: &RetainedChange| RetainedEntry {
        topic: change.topic().to_owned(),
        stamp: change.stamp(),
        bytes: change.encode(),
    };
    changes.iter().map(entry).collect()
}
