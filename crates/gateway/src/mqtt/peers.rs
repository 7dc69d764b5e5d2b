//! Other gateways of the same platform: what their clients subscribe to, and which messages go to them.
//!
//! Another gateway is a subscriber like any other: a session in the tree of subscriptions with the filters of its clients, and a
//! member of the shared subscriptions that it has members of. What it is chosen for is not queued but leaves at once, by
//! whatever carries messages between gateways. It is told which shared subscriptions chose it; so each of them gets a message
//! once over all gateways. Retained messages go to all.
//!
//! Who carries them may lose them: they are in no journal on their way. Retained messages are also handed out to be kept where
//! gateways find them that come later, or have missed some. Sessions stay where they are, and bridges send what was published at
//! their own gateway.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use catchment_types::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::broker::Broker;
use super::codec::QoS;
use super::far::BRIDGE_SESSION;
use super::keep::{Put, Take};
use super::message::Message;
use super::retained::Change;
use super::session::Session;
use super::subscriptions::Wish;
use super::topics::is_reserved;
use crate::metrics::GatewayMetrics;

/// Ids of sessions from here on stand for other gateways.
const PEER_SESSIONS: u64 = 1 << 63;
/// Messages that wait to leave for other gateways; more are dropped and counted.
const WAITING_BYTES_MAX: usize = 16 << 20;
/// Messages that leave together.
const TAKEN_MAX: usize = 256;
/// Filters that others are told of; if there are more, they are told of the levels above them.
const FILTERS_MAX: usize = 1000;
/// How long it is told that a topic has no message any more: longer than any gateway is away that comes back with its data.
const TOLD_GONE: Duration = Duration::from_secs(30 * 86_400);
/// The first byte of what is sent.
const VERSION: u8 = 2;

/// Whether a session stands for another gateway.
pub(super) fn is_peer(session: &Session) -> bool {
    session.id() >= PEER_SESSIONS
}

/// Whether others are to know what a session subscribed to.
pub(super) fn is_client(session: &Session) -> bool {
    !is_peer(session) && !session.client_id().starts_with(BRIDGE_SESSION)
}

/// What the clients of one gateway subscribe to in one realm.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Interest {
    /// Filters, perhaps of more than was subscribed to.
    filters: BTreeSet<String>,
    /// Shared subscriptions, as their members write them.
    shared: BTreeSet<String>,
}

/// A message that is to be brought to another gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerMessage {
    /// The gateway's process, as it was named to [`crate::Gateway::set_peers`].
    pub to: Arc<str>,
    /// What that gateway's [`crate::Gateway::take_from_peer`] understands.
    pub bytes: Vec<u8>,
}

/// A retained message that gateways are to find which come later; without a payload: the topic has none any more.
#[derive(Debug, Clone)]
pub struct RetainedChange {
    /// Its realm.
    pub realm: Arc<str>,
    message: Arc<Message>,
}

impl RetainedChange {
    /// Its topic.
    #[must_use]
    pub fn topic(&self) -> &str {
        self.message.topic()
    }

    /// When it became its topic's, in microseconds since 1970 or a little later than the one before: the latest counts.
    #[must_use]
    pub fn stamp(&self) -> u64 {
        self.message.stamp()
    }

    /// What [`crate::Gateway::learn_retained`] of another gateway understands.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        self.message.encode(&mut bytes);
        bytes
    }
}

/// What becomes of a retained message that was kept for gateways that come later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Learned {
    /// It is known, and is to be kept on.
    Known,
    /// It has expired, or has long told all that its topic has no message: nobody needs it any more.
    Over,
    /// It is none, or of another version.
    Unknown,
}

/// What all realms of a gateway have together.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    waiting: Mutex<Waiting>,
    news: Notify,
    next_session: AtomicU64,
    shares_retained: AtomicBool,
}

#[derive(Debug, Default)]
struct Waiting {
    messages: VecDeque<PeerMessage>,
    bytes: usize,
}

impl Outbox {
    /// From now on, changes of retained messages are marked for gateways that come later.
    pub(crate) fn share_retained(&self) {
        self.shares_retained.store(true, Ordering::Relaxed);
    }

    fn put(&self, message: PeerMessage) -> bool {
        let waiting = &mut *self.waiting.lock();
        if waiting.bytes + message.bytes.len() > WAITING_BYTES_MAX {
            return false;
        }
        waiting.bytes += message.bytes.len();
        waiting.messages.push_back(message);
        self.news.notify_one();
        true
    }

    /// Waits until there are some.
    pub(crate) async fn take(&self) -> Vec<PeerMessage> {
        loop {
            let news = self.news.notified();
            {
                let waiting = &mut *self.waiting.lock();
                let count = waiting.messages.len().min(TAKEN_MAX);
                if count > 0 {
                    let taken: Vec<_> = waiting.messages.drain(..count).collect();
                    waiting.bytes -= taken.iter().map(|message| message.bytes.len()).sum::<usize>();
                    if !waiting.messages.is_empty() {
                        self.news.notify_one();
                    }
                    return taken;
                }
            }
            news.await;
        }
    }
}

/// The other gateways in a realm.
#[derive(Debug)]
pub(super) struct Peers {
    outbox: Arc<Outbox>,
    known: Mutex<HashMap<Arc<str>, Known>>,
}

#[derive(Debug)]
struct Known {
    session: Arc<Session>,
    interest: Interest,
}

impl Peers {
    pub(super) fn new(outbox: Arc<Outbox>) -> Self {
        Self { outbox, known: Mutex::default() }
    }

    fn sessions(&self) -> Vec<Arc<Session>> {
        self.known.lock().values().map(|known| Arc::clone(&known.session)).collect()
    }
}

/// Other gateways that get a message, with the shared subscriptions that chose them.
pub(super) type Chosen = Vec<(Arc<Session>, Vec<Arc<str>>)>;

/// Adds one that was chosen, by a filter or a shared subscription.
pub(super) fn add(chosen: &mut Chosen, session: Arc<Session>, shared: Option<Arc<str>>) {
    match chosen.iter_mut().find(|(other, _)| other.id() == session.id()) {
        Some((_, names)) => names.extend(shared),
        None => chosen.push((session, Vec::from_iter(shared))),
    }
}

impl Broker {
    /// Hands a message over that leaves for other gateways.
    pub(super) fn send_to_peers(&self, message: &Message, mut chosen: Chosen) {
        // The server's own figures are each gateway's.
        if is_reserved(message.topic()) {
            return;
        }
        if message.retain {
            for session in self.peers.sessions() {
                add(&mut chosen, session, None);
            }
        }
        for (session, shared) in chosen {
            let mut bytes = Vec::with_capacity(message.size() + 64);
            let put = &mut Put(&mut bytes);
            // A message has far fewer bytes than it would take for more of them.
            put.u8(VERSION).bytes(self.realm().as_bytes()).u32(shared.len() as u32);
            for name in &shared {
                put.bytes(name.as_bytes());
            }
            message.encode(&mut bytes);
            let to: Arc<str> = session.client_id().into();
            match self.peers.outbox.put(PeerMessage { to, bytes }) {
                true => self.metrics.peers_sent.inc(),
                false => self.metrics.peers_dropped.inc(),
            };
        }
    }

    /// Marks changes of retained messages, if that is asked for.
    pub(crate) fn follow_sharing(&self) {
        if self.peers.outbox.shares_retained.load(Ordering::Relaxed) {
            self.retained.mark_changes();
        }
    }

    /// Changes that have not been taken yet.
    pub(crate) fn changed_retained(&self, max: usize) -> Vec<RetainedChange> {
        self.retained.take_marked(max).into_iter().map(|message| self.change(message)).collect()
    }

    /// A page of all retained messages, and where to go on.
    pub(crate) fn all_retained(
        &self,
        after: Option<&str>,
        max: usize,
    ) -> (Vec<RetainedChange>, Option<String>) {
        let page = self.retained.page("#", after, max);
        (page.messages.into_iter().map(|message| self.change(message)).collect(), page.next)
    }

    fn change(&self, message: Arc<Message>) -> RetainedChange {
        RetainedChange { realm: Arc::clone(self.realm()), message }
    }

    /// Marks changes again that were taken.
    pub(crate) fn mark_again<'a>(&self, changes: impl Iterator<Item = &'a RetainedChange>) {
        self.retained.mark_again(changes.map(|change| &*change.message));
    }

    /// Brings a retained message into force that was kept for gateways that come later, or missed it.
    pub(crate) fn learn_retained(&self, bytes: &[u8]) -> Learned {
        let Some((&VERSION, bytes)) = bytes.split_first() else { return Learned::Unknown };
        let Some(message) = Message::decode(bytes).map(Message::of_the_server) else {
            return Learned::Unknown;
        };
        let topic = message.topic();
        if !self.topic_limits.is_topic(topic) || is_reserved(topic) || !message.retain {
            return Learned::Unknown;
        }
        if message.expiry_left_s().is_err() {
            return Learned::Over;
        }
        let is_gone = message.payload().is_empty();
        let age = Timestamp::now().as_micros().saturating_sub_unsigned(message.stamp());
        let message = Arc::new(message);
        match self.retained.compare(&message) {
            Change::Nothing => {}
            // Nobody else is to see it. If there is no room, it stays as it was.
            Change::Stamp => drop(self.retained.take_and(message.topic(), &message, |_| {})),
            // It would be the same each time that it is read.
            Change::Message if !is_gone && !self.retained.has_room(message.topic(), message.size()) => {
                self.metrics.retained_refused.inc();
            }
            Change::Message => self.publish_from_peer(&message, &[]),
        }
        if is_gone && age > i64::try_from(TOLD_GONE.as_micros()).unwrap_or(i64::MAX) {
            return Learned::Over;
        }
        Learned::Known
    }

    /// What the clients of this gateway subscribe to.
    pub(super) fn interest(&self) -> Interest {
        let (filters, shared) = self.subscriptions.interest(FILTERS_MAX);
        Interest { filters, shared }
    }

    /// Puts what other gateways want in place of what they wanted before.
    pub(super) fn set_peers(&self, mut wanted: BTreeMap<&Arc<str>, Interest>) {
        let mut known = self.peers.known.lock();
        known.retain(|process, Known { session, interest }| {
            let stays = wanted.contains_key(process);
            if !stays {
                self.unsubscribe_peer(session, interest, &Interest::default());
            }
            stays
        });
        for (process, new) in std::mem::take(&mut wanted) {
            let Known { session, interest } = known.entry(Arc::clone(process)).or_insert_with(|| {
                let id = PEER_SESSIONS + self.peers.outbox.next_session.fetch_add(1, Ordering::Relaxed);
                let keeper = Arc::clone(&self.keeper);
                let session = Session::new(id, Arc::clone(process), self.queue_limits, keeper);
                Known { session: Arc::new(session), interest: Interest::default() }
            });
            if *interest == new {
                continue;
            }
            self.unsubscribe_peer(session, interest, &new);
            for text in new.all().filter(|text| !interest.has(text)) {
                let wish = Wish {
                    qos: QoS::ExactlyOnce,
                    no_local: false,
                    retain_as_published: true,
                    subscription_id: 0,
                };
                let filter = self.topic_limits.filter(text);
                if filter.is_none_or(|filter| self.subscriptions.insert(filter, session, wish).is_err()) {
                    tracing::warn!(
                        process = &**process,
                        filter = text,
                        "what another gateway subscribes to has no room here; it gets no such messages from here"
                    );
                }
            }
            *interest = new;
        }
    }

    fn unsubscribe_peer(&self, session: &Session, old: &Interest, new: &Interest) {
        for text in old.all().filter(|text| !new.has(text)) {
            if let Some(filter) = self.topic_limits.filter(text) {
                self.subscriptions.remove(filter, session.id());
            }
        }
    }
}

impl Interest {
    fn all(&self) -> impl Iterator<Item = &String> {
        self.filters.iter().chain(&self.shared)
    }

    fn has(&self, text: &String) -> bool {
        self.filters.contains(text) || self.shared.contains(text)
    }
}

/// A message that another gateway has sent.
pub(crate) struct FromPeer<'a> {
    pub(crate) realm: &'a str,
    /// Shared subscriptions that chose this gateway.
    pub(crate) shared: Vec<&'a str>,
    pub(crate) message: Message,
}

impl<'a> FromPeer<'a> {
    /// Understands what [`PeerMessage::bytes`] has.
    pub(crate) fn decode(bytes: &'a [u8]) -> Option<Self> {
        let take = &mut Take(bytes);
        if take.u8()? != VERSION {
            return None;
        }
        let (realm, count) = (take.text()?, take.u32()?);
        let shared = (0..count).map(|_| take.text()).collect::<Option<_>>()?;
        Some(Self { realm, shared, message: Message::decode(take.0)?.of_the_server() })
    }
}

/// What is said to other gateways, by realm.
pub(crate) fn say(brokers: &[Arc<Broker>]) -> String {
    let by_realm: BTreeMap<&str, Interest> =
        brokers.iter().map(|broker| (&**broker.realm(), broker.interest())).collect();
    // Texts by texts: there is JSON for it.
    serde_json::to_string(&by_realm).unwrap_or_default()
}

/// What another gateway has said. Of a later version that says it otherwise, nothing is understood.
pub(crate) fn hear(text: &str) -> Option<BTreeMap<String, Interest>> {
    serde_json::from_str(text).ok()
}

/// Brings what was heard into force in one realm.
pub(crate) fn set(broker: &Broker, heard: &BTreeMap<Arc<str>, BTreeMap<String, Interest>>) {
    let of_realm = heard
        .iter()
        .map(|(process, by_realm)| (process, by_realm.get(&**broker.realm()).cloned().unwrap_or_default()));
    broker.set_peers(of_realm.collect());
}

/// Counts what came from another gateway and delivers it.
pub(crate) fn take(broker: &Broker, from: FromPeer<'_>, metrics: &GatewayMetrics) {
    metrics.peers_received.inc();
    broker.publish_from_peer(&Arc::new(from.message), &from.shared);
}
