//! Filters against topics: the tree of subscriptions, and that of retained messages.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::config::MqttConfig;
use crate::mqtt::codec::{PublishProperties, QoS};
use crate::mqtt::{
    Filter, Keeper, Matching as Search, Message, Retained, RetainedLimits, Session, Subscriptions, Target,
    TopicLimits, Wish,
};

const LIMITS: RetainedLimits = RetainedLimits { messages_max: 1 << 20, bytes_max: 1 << 30 };
const TOPICS: TopicLimits = TopicLimits { bytes_max: 1024, levels_max: 32 };
const WISH: Wish =
    Wish { qos: QoS::AtMostOnce, no_local: false, retain_as_published: false, subscription_id: 0 };

/// Both trees, with sessions that are known by numbers.
#[derive(Debug)]
pub struct Matching {
    subscriptions: Subscriptions,
    retained: Retained,
    sessions: BTreeMap<u8, Arc<Session>>,
    config: MqttConfig,
}

impl Default for Matching {
    fn default() -> Self {
        Self {
            subscriptions: Subscriptions::new(false, usize::MAX),
            retained: Retained::new(LIMITS),
            sessions: BTreeMap::new(),
            config: MqttConfig::default(),
        }
    }
}

impl Matching {
    /// Whether a message may have this topic.
    #[must_use]
    pub fn is_topic(text: &str) -> bool {
        TOPICS.is_topic(text)
    }

    /// The group, if any, and the rest of a filter; none: it is not one.
    #[must_use]
    pub fn filter(text: &str) -> Option<(Option<&str>, &str)> {
        TOPICS.filter(text).map(|Filter { group, filter }| (group, filter))
    }

    /// Subscribes; whether that is new.
    pub fn subscribe(&mut self, session: u8, filter: &str) -> Option<bool> {
        let filter = TOPICS.filter(filter)?;
        let (config, id) = (&self.config, u64::from(session) + 1);
        let session = self.sessions.entry(session).or_insert_with(|| {
            let limits = crate::mqtt::QueueLimits { messages_max: 1, bytes_max: 1 };
            Arc::new(Session::new(id, "", limits, Arc::new(Keeper::volatile(config))))
        });
        self.subscriptions.insert(filter, session, WISH).ok()
    }

    /// Takes a subscription away; whether there was one.
    pub fn unsubscribe(&mut self, session: u8, filter: &str) -> Option<bool> {
        Some(self.subscriptions.remove(TOPICS.filter(filter)?, u64::from(session) + 1))
    }

    /// The sessions that get a message of this topic by filters of their own, and the names of the shared subscriptions that
    /// get it, in order.
    #[must_use]
    pub fn targets(&self, topic: &str) -> (Vec<u8>, Vec<String>) {
        let targets = self.subscriptions.targets(topic, 0);
        assert_eq!(self.subscriptions.is_wanted(topic, usize::MAX).0, !targets.is_empty());
        let mut pieces = Search::default();
        while !pieces.is_done {
            self.subscriptions.search(&mut pieces, topic, 0, 3);
        }
        let ids = |targets: &[Target]| targets.iter().map(|target| target.session.id()).collect::<Vec<_>>();
        // Of shared subscriptions it is another member's turn each time.
        assert_eq!(pieces.targets.len(), targets.len());
        pieces.targets.retain(|target| target.shared.is_none());
        let (shared, own): (Vec<_>, Vec<_>) = targets.into_iter().partition(|target| target.shared.is_some());
        assert_eq!(ids(&pieces.targets), ids(&own));
        let mut own: Vec<u8> = own.iter().map(|target| (target.session.id() - 1) as u8).collect();
        let mut shared: Vec<String> =
            shared.iter().filter_map(|target| target.shared.as_deref().map(str::to_owned)).collect();
        own.sort_unstable();
        shared.sort_unstable();
        (own, shared)
    }

    /// Number of subscriptions, and whether the tree holds nothing.
    #[must_use]
    pub fn subscriptions(&self) -> (usize, bool) {
        (self.subscriptions.len(), self.subscriptions.bytes() == 0)
    }

    /// Keeps or removes a retained message.
    pub fn retain(&mut self, topic: &str, is_there: bool) {
        let payload: &[u8] = if is_there { b"1" } else { b"" };
        let properties = PublishProperties::default();
        let message = Arc::new(Message::new(topic, &properties, payload, QoS::AtMostOnce, true, 1));
        assert_eq!(self.retained.set(topic, &message), Ok(()));
    }

    /// The topics of the retained messages that match, by pages of this size.
    #[must_use]
    pub fn retained(&self, filter: &str, page: usize) -> Vec<String> {
        let (mut found, mut after) = (Vec::new(), None::<String>);
        loop {
            let next = self.retained.page(filter, after.as_deref(), page.max(1));
            found.extend(next.messages.iter().map(|message| message.topic().to_owned()));
            match next.next {
                Some(next) => {
                    assert_ne!(Some(&next), after.as_ref(), "a page ends where it began");
                    after = Some(next);
                }
                None => return found,
            }
        }
    }

    /// Number of retained messages, and bytes that they take.
    #[must_use]
    pub fn retained_size(&self) -> (usize, usize) {
        self.retained.size()
    }
}
