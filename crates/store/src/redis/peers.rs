//! What gateways say to each other: a text of each on the roster `mqtt`, and messages on a channel of each process,
//! `mqtt:{process}`. Messages that nobody hears are lost; so a process is on the roster only while it hears.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::client::{RedisClient, RedisFailure};
use super::roster::Roster;

const RETRY: Duration = Duration::from_millis(250);
/// A connection whose other end vanished would be silent for ever.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// One process's place among the gateways.
#[derive(Debug)]
pub struct PeerChannel {
    client: RedisClient,
    roster: Arc<Roster>,
    own: Mutex<Own>,
    /// How often this process has begun to hear.
    heard: watch::Sender<u64>,
}

/// What this process says of itself.
#[derive(Debug, Default)]
struct Own {
    text: Option<Arc<str>>,
    hears: bool,
}

impl PeerChannel {
    /// The place of this process.
    #[must_use]
    pub fn new(client: RedisClient) -> Arc<Self> {
        let roster = Roster::new(client.clone(), "mqtt");
        Arc::new(Self { client, roster, own: Mutex::default(), heard: watch::Sender::default() })
    }

    /// What this process says of itself from now on, while it hears.
    pub fn say(&self, text: String) {
        self.change(|own| own.text = Some(text.into()));
    }

    fn change(&self, change: impl FnOnce(&mut Own)) {
        let mut own = self.own.lock();
        change(&mut own);
        self.roster.say(own.text.clone().filter(|_| own.hears));
    }

    /// What the others say, by process; what they said before counts as new.
    #[must_use]
    pub fn others(&self) -> watch::Receiver<Arc<BTreeMap<Arc<str>, Arc<str>>>> {
        self.roster.others()
    }

    /// Another number whenever this process has begun to hear: what was said before, it may have missed. If it hears
    /// already, that counts as new.
    #[must_use]
    pub fn heard(&self) -> watch::Receiver<u64> {
        let mut heard = self.heard.subscribe();
        if *heard.borrow() > 0 {
            heard.mark_changed();
        }
        heard
    }

    /// Sends messages to other processes, in order.
    ///
    /// # Errors
    /// Redis is away: none, or not all, have arrived.
    pub async fn send(&self, messages: impl Iterator<Item = (&str, &[u8])>) -> Result<(), RedisFailure> {
        let mut pipeline = ::redis::pipe();
        for (process, bytes) in messages {
            pipeline.cmd("PUBLISH").arg(self.channel(process)).arg(bytes).ignore();
        }
        self.client.ask_all(&pipeline).await
    }

    /// Hears until `stop`, then leaves the roster.
    pub async fn run(self: Arc<Self>, receive: impl Fn(&[u8]) + Send, stop: CancellationToken) {
        let hear = async {
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    heard = self.hear(&receive) => if let Err(error) = heard {
                        self.change(|own| own.hears = false);
                        tracing::debug!(%error, "messages of other gateways do not come");
                    }
                }
                tokio::time::sleep(RETRY).await;
            }
        };
        tokio::join!(Arc::clone(&self.roster).run(stop.clone()), hear);
    }

    async fn hear(&self, receive: &(impl Fn(&[u8]) + Send)) -> Result<(), RedisFailure> {
        let (mut sink, mut messages) = self.client.subscriber().await?.split();
        let channel = self.channel(&self.client.process);
        sink.subscribe(channel).await.map_err(|error| self.client.failure(&error))?;
        self.change(|own| own.hears = true);
        self.heard.send_modify(|times| *times += 1);
        let mut ping = tokio::time::interval(PING_INTERVAL);
        loop {
            tokio::select! {
                _ = ping.tick() => match tokio::time::timeout(PING_INTERVAL, sink.ping::<::redis::Value>()).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => return Err(self.client.failure(&error)),
                    Err(_) => return Err(self.client.failed("no answer to a ping".to_owned())),
                },
                message = messages.next() => match message {
                    Some(message) => receive(message.get_payload_bytes()),
                    None => return Err(self.client.failed("the connection ended".to_owned())),
                }
            }
        }
    }

    fn channel(&self, process: &str) -> String {
        self.client.keys.of(&format!("mqtt:{process}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::{RedisConfig, RedisTarget};

    #[tokio::test]
    async fn what_was_before_somebody_looked_counts_as_new() {
        let target = RedisTarget::parse("redis://127.0.0.1:1", &RedisConfig::default()).unwrap();
        let channel = PeerChannel::new(RedisClient::new(&target).unwrap());
        assert!(!channel.heard().has_changed().unwrap());
        channel.heard.send_modify(|times| *times += 1);
        assert!(channel.heard().has_changed().unwrap());
        assert!(channel.others().has_changed().unwrap());
    }
}
