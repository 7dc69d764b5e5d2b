//! From other processes' workers to the subscribers here.
//!
//! The channels are those of what the subscribers want together; they change with it, and each stays for as long as somebody
//! wants it. A device without a type, or a pattern, is a pattern of channels: since Redis looks at every pattern with each message,
//! many of them become the one of all.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use catchment_types::DEFAULT_REALM;
use futures::StreamExt as _;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::LiveRelay;
use super::message::Incoming;
use super::wants::{Want, Wants};
use crate::live::Follow;
use crate::redis::client::RedisFailure;
use crate::redis::layout::Keys;

/// Changes of what is wanted are gathered for so long.
const GATHER: Duration = Duration::from_millis(10);
const RETRY: Duration = Duration::from_millis(250);
/// A connection whose other end vanished would be silent for ever.
const PING_INTERVAL: Duration = Duration::from_secs(5);
const CHANNELS_MAX: usize = 1_000;
const PATTERNS_MAX: usize = 64;
/// Messages taken in before others have a turn, and subscribers get what they want of them.
const MESSAGES_MAX: usize = 256;
/// Processes whose last number is remembered.
const PROCESSES_MAX: usize = 1_000;

/// Receives until `stop`.
pub(super) async fn run(relay: Arc<LiveRelay>, stop: CancellationToken) {
    let mut receiver = Receiver { relay, seen: HashMap::new(), was_connected: false };
    loop {
        let worked = tokio::select! {
            () = stop.cancelled() => return,
            worked = receiver.work() => worked,
        };
        if let Err(error) = worked {
            tracing::debug!(%error, "readings of other processes do not come");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

struct Receiver {
    relay: Arc<LiveRelay>,
    /// The last number of each process.
    seen: HashMap<String, u64>,
    was_connected: bool,
}

impl Receiver {
    /// Connects when somebody wants something, and receives until the connection breaks or nobody does any more.
    async fn work(&mut self) -> Result<(), RedisFailure> {
        let mut changes = self.relay.hub.subscribe_changes();
        let mut wants = Wants::of(&self.relay.hub.filters());
        while wants.is_empty() {
            self.relay.roster.say(None);
            self.was_connected = false;
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            wants = Wants::of(&self.relay.hub.filters());
        }
        let failed = |error: ::redis::RedisError| self.relay.client.failure(&error);
        let (mut sink, mut messages) = self.relay.client.subscriber().await?.split();
        let mut channels = Channels::default();
        channels.follow(&mut sink, &wants, &self.relay.client.keys).await.map_err(failed)?;
        // Who sends is told after the ears are open.
        self.say(&wants);
        if std::mem::replace(&mut self.was_connected, true) {
            self.relay.metrics.relay_gaps.inc();
            self.relay.hub.lag(Follow::Readings, 1);
            self.relay.hub.lag(Follow::Events, 1);
        }
        let mut waiting = Vec::new();
        let mut ping = tokio::time::interval(PING_INTERVAL);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                changed = changes.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    tokio::time::sleep(GATHER).await;
                    changes.mark_unchanged();
                    let wants = Wants::of(&self.relay.hub.filters());
                    if wants.is_empty() {
                        return Ok(());
                    }
                    let failed = |error: ::redis::RedisError| self.relay.client.failure(&error);
                    channels.follow(&mut sink, &wants, &self.relay.client.keys).await.map_err(failed)?;
                    self.say(&wants);
                }
                _ = ping.tick() => match tokio::time::timeout(PING_INTERVAL, sink.ping::<::redis::Value>()).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => return Err(self.relay.client.failure(&error)),
                    Err(_) => return Err(self.relay.client.failed("no answer to a ping".to_owned())),
                },
                message = messages.next() => {
                    let ended = || self.relay.client.failed("the connection ended".to_owned());
                    waiting.push(message.ok_or_else(ended)?);
                    while waiting.len() < MESSAGES_MAX
                        && let Some(Some(message)) = futures::FutureExt::now_or_never(messages.next())
                    {
                        waiting.push(message);
                    }
                    self.take(waiting.drain(..));
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    fn say(&self, wants: &Wants) {
        self.relay.roster.say(serde_json::to_string(wants).ok().map(Arc::from));
    }

    fn take(&mut self, messages: impl Iterator<Item = ::redis::Msg>) {
        let hub = &self.relay.hub;
        let Some(mut batch) = hub.batch_from_elsewhere() else { return };
        for message in messages {
            let incoming: Incoming<'_> = match serde_json::from_slice(message.get_payload_bytes()) {
                Ok(incoming) => incoming,
                Err(error) => {
                    tracing::debug!(%error, channel = message.get_channel_name(), "not a message of ours");
                    continue;
                }
            };
            if *incoming.from == *self.relay.client.process {
                continue;
            }
            if self.seen.len() >= PROCESSES_MAX && !self.seen.contains_key(&incoming.from) {
                self.seen.clear();
            }
            let last = self.seen.entry(incoming.from.clone()).or_default();
            if incoming.number <= *last {
                continue;
            }
            *last = incoming.number;
            self.relay.metrics.relay_received.inc();
            match incoming.lag() {
                Some((follow, count)) => {
                    self.relay.metrics.relay_gaps.inc();
                    hub.lag(follow, count);
                }
                None => incoming.give(&mut batch),
            }
        }
        hub.publish(batch);
    }
}

/// What is subscribed to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Channels {
    exact: BTreeSet<String>,
    patterns: BTreeSet<String>,
}

impl Channels {
    fn of(wants: &Wants, keys: &Keys) -> Self {
        let mut channels = Self::default();
        channels.exact.insert(keys.of(&format!("lag:{DEFAULT_REALM}")));
        for (kind, want) in [("live", &wants.readings), ("tail", &wants.events)] {
            if let Some(want) = want {
                channels.add(&keys.of(&format!("{kind}:{DEFAULT_REALM}:")), want);
            }
        }
        channels
    }

    fn add(&mut self, stem: &str, want: &Want) {
        let any = BTreeSet::from(["*".to_owned()]);
        let (devices, types) = (want.devices.as_ref().unwrap_or(&any), want.types.as_ref().unwrap_or(&any));
        let mut exact = BTreeSet::new();
        let mut patterns = BTreeSet::new();
        for (device, event_type) in
            devices.iter().flat_map(|device| types.iter().map(move |one| (device, one)))
        {
            if device.contains('*') || event_type.contains('*') {
                patterns.insert(format!("{}{}:{}", literal(stem), pattern(device), pattern(event_type)));
            } else {
                exact.insert(format!("{stem}{device}:{event_type}"));
            }
            if patterns.len() > PATTERNS_MAX || exact.len() > CHANNELS_MAX {
                self.patterns.insert(format!("{}*", literal(stem)));
                return;
            }
        }
        self.exact.extend(exact);
        self.patterns.extend(patterns);
    }

    /// Subscribes to what is wanted now, and then no longer to what was.
    async fn follow(
        &mut self,
        sink: &mut ::redis::aio::PubSubSink,
        wants: &Wants,
        keys: &Keys,
    ) -> ::redis::RedisResult<()> {
        let new = Self::of(wants, keys);
        let list = |wanted: &BTreeSet<String>, not: &BTreeSet<String>| -> Vec<String> {
            wanted.difference(not).cloned().collect()
        };
        let (come, go) = (list(&new.exact, &self.exact), list(&self.exact, &new.exact));
        let (patterns_come, patterns_go) =
            (list(&new.patterns, &self.patterns), list(&self.patterns, &new.patterns));
        if !come.is_empty() {
            sink.subscribe(come).await?;
        }
        if !patterns_come.is_empty() {
            sink.psubscribe(patterns_come).await?;
        }
        if !go.is_empty() {
            sink.unsubscribe(go).await?;
        }
        if !patterns_go.is_empty() {
            sink.punsubscribe(patterns_go).await?;
        }
        *self = new;
        Ok(())
    }
}

/// A text that a pattern of Redis takes for itself.
fn literal(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '\\') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

/// A pattern of ours, where only `*` has a meaning, as one of Redis's.
fn pattern(glob: &str) -> String {
    glob.split('*').map(literal).collect::<Vec<_>>().join("*")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn want(devices: &[&str], types: &[&str]) -> Want {
        let list =
            |list: &[&str]| (!list.is_empty()).then(|| list.iter().map(|&text| text.to_owned()).collect());
        Want { devices: list(devices), types: list(types), metrics: None }
    }

    fn channels(want: Want) -> (Vec<String>, Vec<String>) {
        let wants = Wants { readings: Some(want), events: None };
        let Channels { mut exact, patterns } = Channels::of(&wants, &Keys::new("c:"));
        assert!(exact.remove("c:lag:main"));
        (exact.into_iter().collect(), patterns.into_iter().collect())
    }

    #[test]
    fn only_what_is_wanted_is_subscribed_to() {
        assert_eq!(channels(want(&["a", "b"], &["x"])).0, ["c:live:main:a:x", "c:live:main:b:x"]);
        assert_eq!(channels(want(&["a[1]", "t*"], &[])).1, [r"c:live:main:a\[1\]:*", "c:live:main:t*:*"]);
        assert_eq!(channels(want(&[], &["x"])).1, ["c:live:main:*:x"]);
        assert_eq!(channels(Want::default()).1, ["c:live:main:*:*"]);
        let many: Vec<String> = (0..100).map(|at| format!("d{at}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(channels(want(&many, &["x"])).0.len(), 100);
        assert_eq!(channels(want(&many, &[])), (Vec::new(), vec!["c:live:main:*".to_owned()]));
    }
}
