//! What a session tells the journal, when it is one that is kept. All of it under the session's lock, so that the journal
//! has the session's changes in their order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{Delivery, Outgoing, QueueLimits, Session, Stage, State, Times};
use crate::mqtt::codec::QoS;
use crate::mqtt::keep::{Image, Keeper, KeptSession, Link, Queued, Record, Waiting, now_ms};
use crate::mqtt::message::Message;
use crate::mqtt::will::Will;

/// Whether a session is kept, and by whom.
#[derive(Debug)]
pub(super) struct KeptFlag {
    keeper: Arc<Keeper>,
    kept: AtomicBool,
    /// Whether a connection serves the session. Not about keeping it: it stands where there is room.
    pub(super) connected: AtomicBool,
    next_seq: AtomicU64,
}

impl KeptFlag {
    pub(super) fn new(keeper: Arc<Keeper>) -> Self {
        Self {
            keeper,
            kept: AtomicBool::new(false),
            connected: AtomicBool::new(false),
            next_seq: AtomicU64::new(1),
        }
    }
}

/// A message's place in the queue of a kept session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// The session is not kept, or the message not of QoS 1 or 2.
    Volatile,
    /// Its number.
    Kept(u64),
    /// There is no room.
    Full,
}

/// The packet identifier of a kept message: the same after a restart.
pub(super) fn packet_id_of(seq: u64) -> u16 {
    // From 1 to 65,535; numbers begin with 1.
    (seq.wrapping_sub(1) % u64::from(u16::MAX)) as u16 + 1
}

impl Session {
    /// Whether the session survives a restart.
    pub(crate) fn is_kept(&self) -> bool {
        self.kept.kept.load(Ordering::Relaxed)
    }

    /// Keeps the session from now on; for a new one that outlives its connection.
    pub(crate) fn keep(&self, realm: &str) {
        if self.kept.keeper.is_durable() {
            let (session, client_id, owner) = (self.id, &*self.client_id, &*self.owner);
            self.kept.keeper.append(&Record::Opened { session, realm, client_id, owner, next_seq: 1 });
            self.kept.kept.store(true, Ordering::Relaxed);
        }
    }

    /// Records a change, if the session is kept.
    pub(crate) fn record(&self, record: &Record<'_>) {
        if self.is_kept() {
            self.kept.keeper.append(record);
        }
    }

    /// A place for a message that is to be delivered at `qos`.
    pub(crate) fn reserve(&self, message: &Message, qos: QoS) -> Place {
        if qos == QoS::AtMostOnce || !self.is_kept() {
            return Place::Volatile;
        }
        {
            let state = self.state.lock();
            if state.traffic.is_full(self.limits(&state)) {
                return Place::Full;
            }
        }
        if message.charge(&self.kept.keeper) {
            Place::Kept(self.kept.next_seq.fetch_add(1, Ordering::Relaxed))
        } else {
            Place::Full
        }
    }

    /// Records a message of this session alone. One for which there is no room goes without.
    pub(crate) fn keep_delivery(&self, realm: &str, mut delivery: Delivery) -> Delivery {
        if let Place::Kept(seq) = self.reserve(&delivery.message, delivery.qos) {
            let mut message = Vec::new();
            delivery.message.encode(&mut message);
            let queued = Queued {
                session: self.id,
                seq,
                qos: delivery.qos,
                retain: delivery.retain,
                subscription_ids: delivery.subscription_ids.clone(),
                shared: delivery.shared.clone(),
            };
            delivery.seq = seq;
            delivery.position = self.kept.keeper.append(&Record::Published {
                realm,
                retained: false,
                origin: None,
                message: &message,
                queued: vec![queued],
            });
        }
        delivery
    }

    /// The event of a QoS 2 message is in the log.
    pub(crate) fn proven(&self, packet_id: u16) {
        self.record(&Record::Proven { session: self.id, packet_id });
    }

    /// A message has left the queue without having been delivered, or was delivered.
    pub(crate) fn record_finished(&self, seq: u64) {
        if seq != 0 {
            self.record(&Record::Finished { session: self.id, seq });
        }
    }

    pub(super) fn record_released(&self, seq: u64) {
        if seq != 0 {
            self.record(&Record::Released { session: self.id, seq });
        }
    }

    pub(super) fn record_attached(&self, state: &mut State) {
        if !self.is_kept() {
            return;
        }
        if state.expiry_s == 0 {
            return self.record_end();
        }
        let mut encoded = Vec::new();
        if let Some(will) = &mut state.will {
            will.kept_by = self.id;
            will.encode(&mut encoded);
        }
        self.record(&Record::Attached {
            session: self.id,
            at_ms: now_ms(),
            expiry_s: state.expiry_s.into(),
            will: state.will.is_some().then_some(&encoded),
        });
    }

    pub(super) fn record_detached(&self, state: &State, will_due: Option<Instant>, now: Instant) {
        if !self.is_kept() {
            return;
        }
        let at_ms = now_ms();
        let until_ms =
            |due: Instant| at_ms.saturating_add(i64::try_from((due - now).as_millis()).unwrap_or(i64::MAX));
        let queued = state
            .traffic
            .queue
            .iter()
            .filter(|delivery| delivery.packet_id != 0)
            .map(|delivery| delivery.seq);
        let sent = state.traffic.outgoing.iter().map(|outgoing| outgoing.seq).chain(queued).max();
        self.record(&Record::Detached {
            session: self.id,
            at_ms,
            expiry_s: state.expiry_s.into(),
            will_due_ms: will_due.map(until_ms),
            sent: sent.unwrap_or(0),
        });
    }

    pub(super) fn record_end(&self) {
        if self.kept.kept.swap(false, Ordering::Relaxed) {
            self.kept.keeper.append(&Record::Ended { session: self.id });
        }
    }

    /// Whether the next message of the queue may be sent: one of QoS 2 once its record is durable, and none under an
    /// identifier that is in use.
    pub(super) fn may_send(&self, next: &Delivery, state: &State) -> bool {
        let durable = next.qos != QoS::ExactlyOnce
            || self.kept.keeper.is_durable_to(next.position, state.link.as_ref());
        durable && state.position(packet_id_of(next.seq)).is_none()
    }

    /// A session as it was kept, and when it next has something to do. One that was connected counts as having lost its
    /// connection when the server last lived.
    pub(crate) fn restored(
        id: u64,
        kept: &KeptSession,
        image: &Image,
        messages: &mut impl FnMut(&Arc<[u8]>) -> Option<Arc<Message>>,
        limits: QueueLimits,
        keeper: &Arc<Keeper>,
    ) -> (Self, Instant) {
        let session = Self::new(id, &*kept.client_id, limits, Arc::clone(keeper)).owned_by(&kept.owner);
        session.kept.kept.store(true, Ordering::Relaxed);
        session.kept.next_seq.store(kept.next_seq.max(1), Ordering::Relaxed);
        let mut will = kept.will.as_deref().and_then(Will::decode);
        if let Some(will) = &mut will {
            will.kept_by = id;
        }
        let expiry_ms = i64::try_from(kept.expiry_s.saturating_mul(1000)).unwrap_or(i64::MAX);
        let (at_ms, will_due_ms, sent) = match kept.link {
            Link::Offline { at_ms, will_due_ms, sent } => (at_ms, will_due_ms, sent),
            Link::Online => {
                let delay_ms =
                    |will: &Will| i64::try_from(will.delay.as_millis()).unwrap_or(i64::MAX).min(expiry_ms);
                let due = will.as_ref().map(|will| image.at_ms.saturating_add(delay_ms(will)));
                keeper.append(&Record::Detached {
                    session: id,
                    at_ms: image.at_ms,
                    expiry_s: kept.expiry_s,
                    will_due_ms: due,
                    sent: u64::MAX,
                });
                (image.at_ms, due, u64::MAX)
            }
        };
        let (now, wall_ms) = (Instant::now(), now_ms());
        let at = |due_ms: i64| {
            let left = Duration::from_millis(u64::try_from(due_ms.saturating_sub(wall_ms)).unwrap_or(0));
            // Further away than the clock goes is as good as never.
            now.checked_add(left).unwrap_or(now + Duration::from_secs(u32::MAX.into()))
        };
        let expires_at = at(at_ms.saturating_add(expiry_ms));
        let will_due = will.as_ref().and(will_due_ms).map(at);
        let mut state = State {
            filters: kept.filters.keys().cloned().collect(),
            expiry_s: u32::try_from(kept.expiry_s).unwrap_or(u32::MAX),
            will: will.map(Box::new),
            ..State::default()
        };
        *state.times = Times { will_due, expires_at: Some(expires_at), timer: None };
        if !kept.received.is_empty() {
            state.traffic.received = kept.received.keys().copied().collect();
        }
        for (&seq, waiting) in &kept.queue {
            let packet_id = packet_id_of(seq);
            match waiting {
                // After damage, one that is over may be left.
                Waiting::Released if state.position(packet_id).is_some() => session.record_finished(seq),
                Waiting::Released => {
                    state.traffic.outgoing.push_back(Outgoing { packet_id, seq, stage: Stage::Released });
                }
                Waiting::Message { message, queued } => {
                    let Some(message) = messages(message) else { continue };
                    message.charge(keeper);
                    state.traffic.queue_bytes += message.size();
                    let ids = queued.subscription_ids.clone();
                    let delivery = Delivery::new(message, queued.qos, queued.retain, ids);
                    let mut delivery = delivery.by(queued.shared.clone());
                    delivery.seq = seq;
                    delivery.packet_id = if seq <= sent { packet_id } else { 0 };
                    state.traffic.queue.push_back(delivery);
                }
            }
        }
        let due = will_due.unwrap_or(expires_at).min(expires_at);
        *session.state.lock() = state;
        (session, due)
    }
}
