//! Keeps the retained messages of this gateway and of Redis the same, for gateways that come later or were cut off.

use std::sync::Arc;
use std::time::Duration;

use catchment_gateway::{Gateway, Learned, RetainedChange};
use catchment_store::redis::{RedisFailure, RetainedEntry, SharedRetained};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

/// How often changes are written.
const WRITE_EVERY: Duration = Duration::from_millis(50);
/// Messages that are written or compared together.
const TOGETHER_MAX: usize = 500;
/// How often Redis is asked whether it has lost what it had.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// After this time all other gateways know of this one: what they retained before, and had not written when this one read it, is
/// written.
const KNOWN_AFTER: Duration = Duration::from_secs(5);
/// How often all are read again, so that what is over is taken out of Redis.
const READ_EVERY: Duration = Duration::from_secs(3600);
const RETRY: Duration = Duration::from_millis(500);
/// How long a start waits for the messages of the others.
const LEARN_MAX: Duration = Duration::from_secs(5);
/// How long a stop goes on writing.
const CLOSE_MAX: Duration = Duration::from_secs(2);

/// The retained messages of a gateway that has others beside it.
pub(super) struct Retained {
    gateway: Arc<Gateway>,
    shared: SharedRetained,
    /// Whether those of the others are known.
    learned: watch::Sender<bool>,
}

impl Retained {
    /// Marks what changes in a gateway from now on.
    pub(super) fn new(gateway: Arc<Gateway>, shared: SharedRetained) -> Arc<Self> {
        gateway.share_retained();
        Arc::new(Self { gateway, shared, learned: watch::Sender::default() })
    }

    /// Waits until those of the others are known, or Redis has had time enough to tell them.
    pub(super) async fn wait_learned(&self) {
        let mut learned = self.learned.subscribe();
        if tokio::time::timeout(LEARN_MAX, learned.wait_for(|learned| *learned)).await.is_err() {
            tracing::warn!(
                "Redis does not tell what other gateways have retained; until it does, only this one's retained messages are known"
            );
        }
    }

    /// Keeps both the same. `heard` is another number whenever the gateway may have missed something.
    pub(super) async fn keep(self: Arc<Self>, mut heard: watch::Receiver<u64>) {
        while heard.changed().await.is_ok() {
            if let Err(error) = self.until_missed(&mut heard).await {
                tracing::debug!(%error, "retained messages are not kept for other gateways now");
                tokio::time::sleep(RETRY).await;
                heard.mark_changed();
            }
        }
    }

    /// Writes what the gateway has changed at last; to be called when nobody publishes any more.
    pub(super) async fn close(&self) {
        match tokio::time::timeout(CLOSE_MAX, self.write_changes()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "the last changes of retained messages are not in Redis")
            }
            Err(_) => {
                tracing::warn!("Redis does not answer: the last changes of retained messages are not there")
            }
        }
    }

    /// Brings both to the same, and then writes what changes, until something may have been missed.
    async fn until_missed(&self, heard: &mut watch::Receiver<u64>) -> Result<(), RedisFailure> {
        heard.mark_unchanged();
        self.meet().await?;
        self.learned.send_replace(true);
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
            let taken = Taken::new(&self.gateway);
            for of_realm in taken.changes.chunk_by(|a, b| a.realm == b.realm) {
                self.shared.put(&of_realm[0].realm, &entries(of_realm)).await?;
            }
            if taken.written() < TOGETHER_MAX {
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
                self.shared.put(&realm, &entries).await?;
                let Some(next) = next else { break };
                after = Some(next);
            }
        }
        Ok(())
    }
}

/// Changes on their way to Redis; unless they are written, they are marked again, also where the writing is broken off.
struct Taken<'a> {
    gateway: &'a Gateway,
    changes: Vec<RetainedChange>,
}

impl<'a> Taken<'a> {
    fn new(gateway: &'a Gateway) -> Self {
        Self { gateway, changes: gateway.changed_retained(TOGETHER_MAX) }
    }

    /// How many they were.
    fn written(mut self) -> usize {
        std::mem::take(&mut self.changes).len()
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.gateway.mark_retained(&self.changes);
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
