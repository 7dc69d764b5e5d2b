//! What the records of a journal add up to: used to go on after a start, and to write a journal anew without what is over.
//!
//! Records that speak of what is not there are passed over: after damage, one that is missing must not cost the others.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::record::{Origin, Proof, Queued, Record};
use crate::mqtt::message::Message;
use crate::mqtt::subscriptions::Wish;

type Map<K, V> = HashMap<K, V, RandomState>;
type RealmTopic = (Box<str>, Box<str>);

/// Everything that is kept.
#[derive(Debug, Default)]
pub(crate) struct Image {
    pub(crate) sessions: Map<u64, KeptSession>,
    /// Encoded messages by realm and topic.
    pub(crate) retained: Map<RealmTopic, Arc<[u8]>>,
    /// When the server lived last, as far as is known.
    pub(crate) at_ms: i64,
    /// The highest identifier of a session so far.
    pub(crate) last_session: u64,
}

/// A session.
#[derive(Debug, Default)]
pub(crate) struct KeptSession {
    pub(crate) realm: Box<str>,
    pub(crate) client_id: Box<str>,
    pub(crate) owner: Box<str>,
    pub(crate) expiry_s: u64,
    pub(crate) will: Option<Box<[u8]>>,
    pub(crate) link: Link,
    pub(crate) filters: BTreeMap<Box<str>, Wish>,
    pub(crate) queue: BTreeMap<u64, Waiting>,
    pub(crate) received: BTreeMap<u16, Option<Unproven>>,
    pub(crate) next_seq: u64,
}

/// Whether a connection serves the session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Link {
    #[default]
    Online,
    Offline {
        at_ms: i64,
        will_due_ms: Option<i64>,
        sent: u64,
    },
}

/// A message of QoS 1 or 2 that a session's client has not finished with.
#[derive(Debug, Clone)]
pub(crate) enum Waiting {
    Message {
        message: Arc<[u8]>,
        queued: Queued,
    },
    /// The client has it and said so; its PUBCOMP is missing.
    Released,
}

/// A QoS 2 message that counts if its event is in the log, and what else it did.
#[derive(Debug)]
pub(crate) struct Unproven {
    pub(crate) proof: Proof,
    pub(crate) realm: Box<str>,
    /// None: it went to no queue.
    pub(crate) message: Option<Arc<[u8]>>,
    retained: bool,
    /// Session and number.
    queued: Vec<(u64, u64)>,
}

impl Image {
    /// Takes a record in. `false`: it is not understood.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> bool {
        match Record::decode(bytes) {
            Some(record) => self.apply(record),
            None => return false,
        }
        true
    }

    fn apply(&mut self, record: Record<'_>) {
        match record {
            Record::Reset => {
                *self = Self { at_ms: self.at_ms, last_session: self.last_session, ..Self::default() };
            }
            Record::Clock { at_ms } => self.at_ms = self.at_ms.max(at_ms),
            Record::Opened { session, realm, client_id, owner, next_seq } => {
                self.last_session = self.last_session.max(session);
                let (realm, client_id, owner) = (realm.into(), client_id.into(), owner.into());
                let opened = KeptSession { realm, client_id, owner, next_seq, ..Default::default() };
                self.sessions.insert(session, opened);
            }
            Record::Attached { session, at_ms, expiry_s, will } => {
                self.at_ms = self.at_ms.max(at_ms);
                self.with(session, |kept| {
                    (kept.expiry_s, kept.will, kept.link) = (expiry_s, will.map(Into::into), Link::Online);
                });
            }
            Record::Detached { session, at_ms, expiry_s, will_due_ms, sent } => {
                self.at_ms = self.at_ms.max(at_ms);
                self.with(session, |kept| {
                    kept.expiry_s = expiry_s;
                    kept.will.take_if(|_| will_due_ms.is_none());
                    kept.link = Link::Offline { at_ms, will_due_ms, sent };
                });
            }
            Record::WillDone { session } => self.with(session, |kept| {
                kept.will = None;
                if let Link::Offline { will_due_ms, .. } = &mut kept.link {
                    *will_due_ms = None;
                }
            }),
            Record::Ended { session } => drop(self.sessions.remove(&session)),
            Record::Subscribed { session, filter, wish } => {
                self.with(session, |kept| {
                    kept.filters.insert(filter.into(), wish);
                });
            }
            Record::Unsubscribed { session, filter } => {
                self.with(session, |kept| {
                    kept.filters.remove(filter);
                });
            }
            Record::Published { realm, retained, origin, message, queued } => {
                self.publish(realm, retained, origin, message, queued);
            }
            Record::Received(origin) => self.receive(origin, "", None, false, Vec::new()),
            Record::Proven { session, packet_id } => self.prove(session, packet_id),
            Record::Forgotten { session, packet_id } => self.forget(session, packet_id),
            Record::Released { session, seq } => {
                self.with(session, |kept| {
                    kept.next_seq = kept.next_seq.max(seq.saturating_add(1));
                    kept.queue.insert(seq, Waiting::Released);
                });
            }
            Record::Finished { session, seq } => self.with(session, |kept| drop(kept.queue.remove(&seq))),
        }
    }

    fn with(&mut self, session: u64, change: impl FnOnce(&mut KeptSession)) {
        if let Some(kept) = self.sessions.get_mut(&session) {
            change(kept);
        }
    }

    fn publish(
        &mut self,
        realm: &str,
        retained: bool,
        origin: Option<Origin>,
        message: &[u8],
        queued: Vec<Queued>,
    ) {
        let message: Arc<[u8]> = message.into();
        let places = queued.iter().map(|queued| (queued.session, queued.seq)).collect();
        for queued in queued {
            if let Some(kept) = self.sessions.get_mut(&queued.session) {
                kept.next_seq = kept.next_seq.max(queued.seq.saturating_add(1));
                kept.queue.insert(queued.seq, Waiting::Message { message: Arc::clone(&message), queued });
            }
        }
        let proven = origin.is_none_or(|origin| origin.proof.is_none());
        if retained && proven {
            self.retain(realm, &message);
        }
        if let Some(origin) = origin {
            self.receive(origin, realm, Some(message), retained, places);
        }
    }

    fn receive(
        &mut self,
        origin: Origin,
        realm: &str,
        message: Option<Arc<[u8]>>,
        retained: bool,
        queued: Vec<(u64, u64)>,
    ) {
        let unproven =
            origin.proof.map(|proof| Unproven { proof, realm: realm.into(), message, retained, queued });
        self.with(origin.session, |kept| drop(kept.received.insert(origin.packet_id, unproven)));
    }

    fn retain(&mut self, realm: &str, encoded: &Arc<[u8]>) {
        let Some(message) = Message::decode(encoded) else { return };
        let key = (realm.into(), message.topic().into());
        if message.payload().is_empty() {
            self.retained.remove(&key);
        } else {
            self.retained.insert(key, Arc::clone(encoded));
        }
    }

    /// The event of a received message is in the log.
    pub(crate) fn prove(&mut self, session: u64, packet_id: u16) {
        let received = self.sessions.get_mut(&session).and_then(|kept| kept.received.get_mut(&packet_id));
        if let Some(unproven) = received.and_then(Option::take)
            && unproven.retained
            && let Some(message) = unproven.message
        {
            self.retain(&unproven.realm, &message);
        }
    }

    /// An identifier is free; what was not proven under it never was.
    pub(crate) fn forget(&mut self, session: u64, packet_id: u16) {
        let received = self.sessions.get_mut(&session).and_then(|kept| kept.received.remove(&packet_id));
        for (session, seq) in received.flatten().into_iter().flat_map(|unproven| unproven.queued) {
            self.with(session, |kept| {
                if matches!(kept.queue.get(&seq), Some(Waiting::Message { .. })) {
                    kept.queue.remove(&seq);
                }
            });
        }
    }

    /// The received messages of which the log must tell whether they count.
    pub(crate) fn unproven(&self) -> Vec<(u64, u16)> {
        let of = |(&session, kept): (&u64, &KeptSession)| {
            let unproven = kept.received.iter().filter(|(_, unproven)| unproven.is_some());
            unproven.map(|(&packet_id, _)| (session, packet_id)).collect::<Vec<_>>()
        };
        self.sessions.iter().flat_map(of).collect()
    }

    /// Gives the records that make this image out of nothing. Each is given once, without an order that matters beyond
    /// theirs.
    pub(crate) fn records(&self, mut each: impl FnMut(&Record<'_>)) {
        each(&Record::Reset);
        each(&Record::Clock { at_ms: self.at_ms });
        // Even when its session is gone, no identifier is given twice.
        let mut ids: Vec<u64> = self.sessions.keys().copied().collect();
        ids.sort_unstable();
        if ids.last() != Some(&self.last_session) {
            let session = self.last_session;
            each(&Record::Opened { session, realm: "", client_id: "", owner: "", next_seq: 1 });
            each(&Record::Ended { session });
        }
        for &session in &ids {
            self.sessions[&session].records(session, &mut each);
        }
        let mut told: HashSet<(u64, u64), RandomState> = HashSet::default();
        for &session in &ids {
            self.tell_received(session, &mut told, &mut each);
        }
        self.tell_queues(&ids, &told, &mut each);
        for ((realm, _), message) in &self.retained {
            each(&Record::Published { realm, retained: true, origin: None, message, queued: Vec::new() });
        }
    }

    fn tell_received(
        &self,
        session: u64,
        told: &mut HashSet<(u64, u64), RandomState>,
        each: &mut impl FnMut(&Record<'_>),
    ) {
        for (&packet_id, unproven) in &self.sessions[&session].received {
            let proof = unproven.as_ref().map(|unproven| unproven.proof);
            let origin = Origin { session, packet_id, proof };
            let Some((unproven, message)) =
                unproven.as_ref().and_then(|unproven| Some((unproven, unproven.message.as_deref()?)))
            else {
                each(&Record::Received(origin));
                continue;
            };
            let queued = unproven.queued.iter().filter_map(|&(session, seq)| {
                match self.sessions.get(&session)?.queue.get(&seq)? {
                    Waiting::Message { queued, .. } if told.insert((session, seq)) => Some(queued.clone()),
                    _ => None,
                }
            });
            let (realm, retained) = (&*unproven.realm, unproven.retained);
            let queued = queued.collect();
            each(&Record::Published { realm, retained, origin: Some(origin), message, queued });
        }
    }

    /// Each message once, with all the queues that it is in.
    fn tell_queues(
        &self,
        ids: &[u64],
        told: &HashSet<(u64, u64), RandomState>,
        each: &mut impl FnMut(&Record<'_>),
    ) {
        let mut shared: Map<*const u8, (&[u8], Vec<Queued>)> = Map::default();
        for &session in ids {
            for (&seq, waiting) in &self.sessions[&session].queue {
                match waiting {
                    Waiting::Released => each(&Record::Released { session, seq }),
                    Waiting::Message { .. } if told.contains(&(session, seq)) => {}
                    Waiting::Message { message, queued } => match shared.entry(message.as_ptr()) {
                        Entry::Occupied(mut entry) => entry.get_mut().1.push(queued.clone()),
                        Entry::Vacant(entry) => drop(entry.insert((message, vec![queued.clone()]))),
                    },
                }
            }
        }
        for (message, queued) in shared.into_values() {
            each(&Record::Published { realm: "", retained: false, origin: None, message, queued });
        }
    }
}

impl KeptSession {
    fn records(&self, session: u64, each: &mut impl FnMut(&Record<'_>)) {
        let (realm, client_id, owner) = (&*self.realm, &*self.client_id, &*self.owner);
        let (next_seq, expiry_s) = (self.next_seq, self.expiry_s);
        each(&Record::Opened { session, realm, client_id, owner, next_seq });
        let at_ms = match self.link {
            Link::Online => 0,
            Link::Offline { at_ms, .. } => at_ms,
        };
        each(&Record::Attached { session, at_ms, expiry_s, will: self.will.as_deref() });
        if let Link::Offline { at_ms, will_due_ms, sent } = self.link {
            each(&Record::Detached { session, at_ms, expiry_s, will_due_ms, sent });
        }
        for (filter, &wish) in &self.filters {
            each(&Record::Subscribed { session, filter, wish });
        }
    }
}
