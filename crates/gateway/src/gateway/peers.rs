//! The gateway's side of what passes between gateways; see `mqtt/peers.rs`.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::Gateway;
use crate::mqtt::{self, FromPeer, Learned, PeerMessage, RetainedChange};

impl Gateway {
    /// What clients of this gateway subscribe to, as text for other gateways' [`Self::set_peers`].
    #[must_use]
    pub fn interest(&self) -> String {
        mqtt::say(&self.brokers())
    }

    /// Another number whenever [`Self::interest`] may say something else.
    #[must_use]
    pub fn interest_generation(&self) -> u64 {
        self.brokers().iter().fold(0, |sum, broker| sum.wrapping_add(broker.subscriptions.generation() + 1))
    }

    /// The other gateways of the platform, by the names of their processes, with what each said of itself: messages that their
    /// clients subscribe to are told by [`Self::take_for_peers`] from now on.
    pub fn set_peers(&self, said: &BTreeMap<Arc<str>, Arc<str>>) {
        let mut heard = BTreeMap::new();
        for (process, text) in said {
            match mqtt::hear(text) {
                Some(interest) => drop(heard.insert(Arc::clone(process), interest)),
                None => tracing::warn!(
                    process = &**process,
                    "another gateway says something that is not understood; is it of another version?"
                ),
            }
        }
        self.metrics.peers.set(i64::try_from(heard.len()).unwrap_or(i64::MAX));
        let realms: HashSet<String> = heard.values().flat_map(BTreeMap::keys).cloned().collect();
        *self.heard.lock() = heard;
        for realm in &realms {
            self.broker(realm);
        }
        let mut subscriptions = 0;
        for broker in self.brokers() {
            mqtt::set_peers(&broker, &self.heard.lock());
            subscriptions += broker.subscriptions.of_peers();
        }
        self.metrics.peer_subscriptions.set(i64::try_from(subscriptions).unwrap_or(i64::MAX));
    }

    /// Waits for messages to other gateways. What waits is bounded; what is over it is dropped and counted.
    pub async fn take_for_peers(&self) -> Vec<PeerMessage> {
        self.outbox.take().await
    }

    /// Counts messages that could not be brought to other gateways.
    pub fn lost_for_peers(&self, messages: usize) {
        self.metrics.peers_dropped.inc_by(messages as u64);
    }

    /// Delivers a message of another gateway to the clients of this one. `false`: it is none.
    pub fn take_from_peer(&self, bytes: &[u8]) -> bool {
        let Some(from) = FromPeer::decode(bytes) else { return false };
        mqtt::take_from_peer(&self.broker(from.realm), from, &self.metrics);
        true
    }

    /// From now on, changes of retained messages are handed out by [`Self::changed_retained`], to be kept where gateways find
    /// them that come later.
    pub fn share_retained(&self) {
        self.outbox.share_retained();
        self.brokers().iter().for_each(|broker| broker.follow_sharing());
    }

    /// Takes up to `max` changes of retained messages, each topic once, with what it has now.
    #[must_use]
    pub fn changed_retained(&self, max: usize) -> Vec<RetainedChange> {
        let mut changes = Vec::new();
        for broker in self.brokers() {
            changes.extend(broker.changed_retained(max - changes.len()));
        }
        changes
    }

    /// Gives changes back that were taken and could not be kept.
    pub fn mark_retained(&self, changes: &[RetainedChange]) {
        for broker in self.brokers() {
            broker.mark_again(changes.iter().filter(|change| change.realm == *broker.realm()));
        }
    }

    /// A page of all retained messages of a realm, and where to go on; none: that was all.
    #[must_use]
    pub fn all_retained(
        &self,
        realm: &str,
        after: Option<&str>,
        max: usize,
    ) -> (Vec<RetainedChange>, Option<String>) {
        self.broker(realm).all_retained(after, max)
    }

    /// Realms that have something here.
    #[must_use]
    pub fn realms(&self) -> Vec<Arc<str>> {
        self.brokers().iter().map(|broker| Arc::clone(broker.realm())).collect()
    }

    /// Brings a retained message into force that was kept for gateways that come later. Clients that subscribe to it get it
    /// if it is another than the one that was there.
    pub async fn learn_retained(&self, realm: &str, bytes: &[u8]) -> Learned {
        let broker = self.broker(realm);
        broker.room().await;
        broker.learn_retained(bytes)
    }
}
