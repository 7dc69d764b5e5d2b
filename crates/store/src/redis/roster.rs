//! What each process says of itself to the others, for a time: so that one knows what others want, and forgets it when they
//! are gone.
//!
//! A process's text is a key that expires; the names of processes are in a set; a channel tells that something changed. Who
//! misses that hears of it within seconds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::client::{RedisClient, RedisFailure};

/// Between two times that a process repeats itself, and looks at the others.
const REPEAT: Duration = Duration::from_secs(3);
/// How long what it said counts, in seconds. The third repetition in a row that fails is the first to be missed.
const HOLDS_S: u64 = 10;
const RETRY: Duration = Duration::from_millis(500);

/// Texts by process.
pub(super) type Others = Arc<BTreeMap<Arc<str>, Arc<str>>>;

/// The texts of one kind.
#[derive(Debug)]
pub(super) struct Roster {
    client: RedisClient,
    kind: &'static str,
    own: watch::Sender<Option<Arc<str>>>,
    others: watch::Sender<Others>,
}

impl Roster {
    /// A roster on which this process has nothing to say yet.
    #[must_use]
    pub(super) fn new(client: RedisClient, kind: &'static str) -> Arc<Self> {
        Arc::new(Self { client, kind, own: watch::Sender::new(None), others: watch::Sender::default() })
    }

    /// What this process says from now on; nothing: it is not on the roster.
    pub(super) fn say(&self, text: Option<Arc<str>>) {
        self.own.send_if_modified(|own| {
            let is_new = *own != text;
            *own = text;
            is_new
        });
    }

    /// What the others say; what they said before counts as new.
    #[must_use]
    pub(super) fn others(&self) -> watch::Receiver<Others> {
        let mut others = self.others.subscribe();
        others.mark_changed();
        others
    }

    /// Works until `stop`, then takes this process from the roster.
    pub(super) async fn run(self: Arc<Self>, stop: CancellationToken) {
        loop {
            let worked = tokio::select! {
                () = stop.cancelled() => break,
                worked = self.work() => worked,
            };
            if let Err(error) = worked {
                tracing::debug!(%error, kind = self.kind, "other processes are not heard");
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
        // If Redis is away, what was said expires.
        let _ = tokio::time::timeout(RETRY, self.tell(None, true)).await;
    }

    /// Says and hears until the connection breaks.
    async fn work(&self) -> Result<(), RedisFailure> {
        let mut own = self.own.subscribe();
        // The connection ends with its sink.
        let (mut sink, mut changes) = self.client.subscriber().await?.split();
        sink.subscribe(self.channel()).await.map_err(|error| self.client.failure(&error))?;
        let mut repeat = tokio::time::interval(REPEAT);
        repeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        own.mark_changed();
        loop {
            tokio::select! {
                changed = own.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    let text = own.borrow_and_update().clone();
                    self.tell(text.as_deref(), true).await?;
                }
                _ = repeat.tick() => {
                    let text = self.own.borrow().clone();
                    if text.is_some() {
                        self.tell(text.as_deref(), false).await?;
                    }
                    self.hear().await?;
                }
                change = changes.next() => match change {
                    Some(change) if change.get_payload_bytes() == self.client.process.as_bytes() => {}
                    Some(_) => self.hear().await?,
                    None => return Err(self.client.failed("the connection ended".to_owned())),
                }
            }
        }
    }

    async fn tell(&self, text: Option<&str>, is_new: bool) -> Result<(), RedisFailure> {
        let (set, key, process) = (self.set(), self.key(&self.client.process), &*self.client.process);
        let mut say = ::redis::pipe();
        match text {
            Some(text) => {
                say.cmd("SET").arg(key).arg(text).arg("EX").arg(HOLDS_S).ignore();
                say.cmd("SADD").arg(set).arg(process).ignore();
            }
            None => {
                say.cmd("DEL").arg(key).ignore();
                say.cmd("SREM").arg(set).arg(process).ignore();
            }
        }
        if is_new {
            say.cmd("PUBLISH").arg(self.channel()).arg(process).ignore();
        }
        self.client.ask_all(&say).await
    }

    async fn hear(&self) -> Result<(), RedisFailure> {
        let names: Vec<String> = self.client.ask(::redis::cmd("SMEMBERS").arg(self.set())).await?;
        let names: Vec<_> = names.into_iter().filter(|name| **name != *self.client.process).collect();
        let mut others = BTreeMap::new();
        if !names.is_empty() {
            let keys: Vec<_> = names.iter().map(|name| self.key(name)).collect();
            let texts: Vec<Option<String>> = self.client.ask(::redis::cmd("MGET").arg(keys)).await?;
            let mut gone = Vec::new();
            for (name, text) in names.into_iter().zip(texts) {
                match text {
                    Some(text) => drop(others.insert(name.into(), text.into())),
                    None => gone.push(name),
                }
            }
            if !gone.is_empty() {
                self.client.ask::<u64>(::redis::cmd("SREM").arg(self.set()).arg(gone)).await?;
            }
        }
        self.others.send_if_modified(|before| {
            let is_new = **before != others;
            if is_new {
                *before = Arc::new(others);
            }
            is_new
        });
        Ok(())
    }

    fn set(&self) -> String {
        self.client.keys.of(&format!("roster:{}", self.kind))
    }

    fn key(&self, process: &str) -> String {
        self.client.keys.of(&format!("roster:{}:{process}", self.kind))
    }

    /// Has the name of the set: keys and channels do not meet.
    fn channel(&self) -> String {
        self.set()
    }
}
