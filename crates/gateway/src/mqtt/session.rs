//! What the broker keeps for a client id: its filters, what waits for it, and what is on its way in either direction.
//!
//! A session outlives its connections as long as its expiry says. While a connection serves it, the session holds that
//! connection's [`Signal`]. Everything in here is bounded: the queue by messages and bytes, what is on its way by the
//! client's receive maximum. A message that finds no room is dropped and counted, at any QoS: a subscriber that does not
//! read must not stop the publishers.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use parking_lot::Mutex;
use tokio::sync::Notify;

pub(crate) use self::kept::Place;
use self::kept::{KeptFlag, packet_id_of};
pub(crate) use self::wanted::{NothingWanted, RetainedWanted};
use super::aliases::Aliases;
use super::codec::{Peer, QoS};
use super::delivery::Delivery;
use super::keep::{Keeper, Record};
use super::lazy::{Lazy, Unused};
use super::signal::{DELIVER, Signal};
use super::will::Will;
use crate::bridge::{Outbound, Outlet};

/// Bounds of a session's queue. In 32 bits, since every session has them; what is set above is no limit in practice.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QueueLimits {
    pub(crate) messages_max: u32,
    pub(crate) bytes_max: u32,
}

impl QueueLimits {
    pub(crate) fn new(messages_max: usize, bytes_max: usize) -> Self {
        let bits = |limit| u32::try_from(limit).unwrap_or(u32::MAX);
        Self { messages_max: bits(messages_max), bytes_max: bits(bytes_max) }
    }
}

/// The session's queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct QueueFull;

/// A message of QoS 1 or 2 that the client has not finished with.
#[derive(Debug)]
struct Outgoing {
    packet_id: u16,
    seq: u64,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Sent; waits for PUBACK or PUBREC.
    Sent(Delivery),
    /// PUBREL sent; waits for PUBCOMP.
    Released,
}

/// What filling an output buffer did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Filled {
    pub(crate) sent: u64,
    pub(crate) expired: u64,
    pub(crate) too_large: u64,
    /// Of those sent, the ones that nobody acknowledges.
    pub(crate) sent_qos0: u64,
}

/// How a session goes on after its connection.
#[derive(Debug)]
pub(crate) struct Parting {
    /// The will that is to be published now.
    pub(crate) will: Option<Will>,
    /// When the session next has something to do; none: it ends now.
    pub(crate) due: Option<Instant>,
}

/// What a session has to do at a moment without a connection.
#[derive(Debug)]
pub(crate) struct Due {
    pub(crate) will: Option<Will>,
    pub(crate) is_over: bool,
    pub(crate) next: Option<Instant>,
}

/// What is left of a session that has ended.
#[derive(Debug, Default)]
pub(crate) struct Remains {
    /// To be taken out of the tree.
    pub(crate) filters: Filters,
    /// Not published yet.
    pub(crate) will: Option<Will>,
    /// Messages of shared subscriptions that others may get instead.
    pub(crate) shared: Vec<Delivery>,
}

/// A session's filters.
pub(crate) type Filters = HashSet<Box<str>, RandomState>;

#[derive(Debug, Default)]
struct State {
    link: Option<Arc<Signal>>,
    filters: Filters,
    traffic: Lazy<Traffic>,
    last_packet_id: u16,
    /// Seconds that it outlives its connection.
    expiry_s: u32,
    will: Option<Box<Will>>,
    times: Lazy<Times>,
    /// For the session of a bridge.
    outlet: Option<Arc<Outlet>>,
    ended: bool,
}

/// When a session without a connection has something to do.
#[derive(Debug, Default)]
struct Times {
    will_due: Option<Instant>,
    expires_at: Option<Instant>,
    /// The earliest timer that the broker keeps for this session; a connection that comes does not stop it.
    timer: Option<Instant>,
}

impl Unused for Times {
    fn unused() -> &'static Self {
        static UNUSED: Times = Times { will_due: None, expires_at: None, timer: None };
        &UNUSED
    }
}

/// What waits for the client and what is on its way, in either direction.
#[derive(Debug, Default)]
struct Traffic {
    queue: VecDeque<Delivery>,
    queue_bytes: usize,
    /// One an entry of the filters at most.
    retained_wanted: VecDeque<RetainedWanted>,
    outgoing: VecDeque<Outgoing>,
    /// Identifiers of QoS 2 messages that the client has sent and not released.
    received: BTreeSet<u16>,
}

impl Unused for Traffic {
    fn unused() -> &'static Self {
        static UNUSED: Traffic = Traffic {
            queue: VecDeque::new(),
            queue_bytes: 0,
            retained_wanted: VecDeque::new(),
            outgoing: VecDeque::new(),
            received: BTreeSet::new(),
        };
        &UNUSED
    }
}

/// More than 136 years is for ever.
fn seconds(expiry: Duration) -> u32 {
    u32::try_from(expiry.as_secs()).unwrap_or(u32::MAX)
}

impl Traffic {
    fn is_full(&self, limits: QueueLimits) -> bool {
        self.queue.len() >= limits.messages_max as usize || self.queue_bytes >= limits.bytes_max as usize
    }

    fn is_empty(&self) -> bool {
        self.queue.is_empty()
            && self.retained_wanted.is_empty()
            && self.outgoing.is_empty()
            && self.received.is_empty()
    }
}

/// A client's session.
#[derive(Debug)]
pub(crate) struct Session {
    id: u64,
    client_id: Arc<str>,
    owner: Box<str>,
    limits: QueueLimits,
    kept: KeptFlag,
    state: Mutex<State>,
    detached: Notify,
}

impl Session {
    pub(crate) fn new(
        id: u64,
        client_id: impl Into<Arc<str>>,
        limits: QueueLimits,
        keeper: Arc<Keeper>,
    ) -> Self {
        Self {
            id,
            client_id: client_id.into(),
            owner: Box::default(),
            limits,
            kept: KeptFlag::new(keeper),
            state: Mutex::default(),
            detached: Notify::new(),
        }
    }

    /// Says whose the session is.
    pub(crate) fn owned_by(mut self, owner: &str) -> Self {
        self.owner = owner.into();
        self
    }

    /// Whose it is: a client id alone opens nobody's session, or a device could read what waits for another.
    pub(crate) fn owner(&self) -> &str {
        &self.owner
    }

    /// Its filters.
    pub(crate) fn filters(&self) -> Vec<Box<str>> {
        self.state.lock().filters.iter().cloned().collect()
    }

    /// Unique in this process; not reused when a client id starts anew.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn client_id(&self) -> &str {
        &self.client_id
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.kept.connected.load(Ordering::Relaxed)
    }

    /// Whether it was asked for without an expiry: it ends with its connection, and DISCONNECT may not change that
    /// (5.0, 3.14.2.2.2).
    pub(crate) fn is_transient(&self) -> bool {
        self.state.lock().expiry_s == 0
    }

    /// The connection that serves the session.
    pub(crate) fn link(&self) -> Option<Arc<Signal>> {
        self.state.lock().link.clone()
    }

    /// Resolves when no connection serves the session, at once when none does.
    pub(crate) async fn wait_detached(&self) {
        let detached = self.detached.notified();
        if self.state.lock().link.is_some() {
            detached.await;
        }
    }

    /// A connection takes the session up. Gives the identifiers for which PUBREL is to be sent again; messages that
    /// were on their way go back to the front of the queue.
    pub(crate) fn attach(&self, link: Arc<Signal>, expiry: Duration, will: Option<Will>) -> Vec<u16> {
        let state = &mut *self.state.lock();
        state.link = Some(link);
        state.expiry_s = seconds(expiry);
        state.will = will.map(Box::new);
        if let Some(times) = state.times.made() {
            (times.will_due, times.expires_at) = (None, None);
        }
        self.kept.connected.store(true, Ordering::Relaxed);
        let mut released = Vec::new();
        if let Some(traffic) = state.traffic.made() {
            let mut unfinished = Vec::new();
            for outgoing in std::mem::take(&mut traffic.outgoing) {
                match outgoing.stage {
                    Stage::Sent(delivery) => {
                        unfinished.push(Delivery { packet_id: outgoing.packet_id, ..delivery })
                    }
                    Stage::Released => {
                        released.push(outgoing.packet_id);
                        traffic.outgoing.push_back(outgoing);
                    }
                }
            }
            for delivery in unfinished.into_iter().rev() {
                traffic.queue_bytes += delivery.message.size();
                traffic.queue.push_front(delivery);
            }
        }
        self.record_attached(state);
        released
    }

    /// A connection leaves the session, if it is still the one that serves it. `with_will`: the client did not say
    /// goodbye. `unproven`: QoS 2 identifiers whose messages may not have reached the log; they count as never sent.
    pub(crate) fn detach(
        &self,
        link: &Arc<Signal>,
        with_will: bool,
        expiry: Option<Duration>,
        unproven: &[u16],
        now: Instant,
    ) -> Option<Parting> {
        let state = &mut *self.state.lock();
        state.link.take_if(|current| Arc::ptr_eq(current, link))?;
        self.kept.connected.store(false, Ordering::Relaxed);
        self.detached.notify_waiters();
        for &packet_id in unproven {
            state.traffic.received.remove(&packet_id);
            self.record(&Record::Forgotten { session: self.id, packet_id });
        }
        // A session that was to end with its connection is not kept after all: the standard forbids to ask for that.
        if state.expiry_s > 0 {
            state.expiry_s = expiry.map_or(state.expiry_s, seconds);
        }
        state.will.take_if(|_| !with_will);
        if let Some(traffic) = state.traffic.made() {
            traffic.queue.retain(|delivery| delivery.qos != QoS::AtMostOnce);
            traffic.queue_bytes = traffic.queue.iter().map(|delivery| delivery.message.size()).sum();
            if traffic.is_empty() {
                state.traffic.give_back();
            }
        }
        if state.expiry_s == 0 {
            return Some(Parting { will: state.will.take().map(|will| *will), due: None });
        }
        let expires_at = now + Duration::from_secs(state.expiry_s.into());
        state.times.expires_at = Some(expires_at);
        let will = state.will.take_if(|will| will.delay.is_zero());
        let will_due = state.will.as_ref().map(|will| expires_at.min(now + will.delay));
        state.times.will_due = will_due;
        self.record_detached(state, will.is_some().then_some(now).or(will_due), now);
        Some(Parting { will: will.map(|will| *will), due: Some(will_due.unwrap_or(expires_at)) })
    }

    /// What is to be done at `now`.
    pub(crate) fn due(&self, now: Instant) -> Due {
        let state = &mut *self.state.lock();
        if state.link.is_some() || state.ended {
            state.times.give_back();
            return Due { will: None, is_over: false, next: None };
        }
        let times = &mut *state.times;
        times.timer = None;
        let will_is_due = times.will_due.take_if(|due| *due <= now).is_some();
        let is_over = times.expires_at.is_some_and(|at| at <= now);
        let will = if will_is_due { state.will.take() } else { None };
        Due {
            will: will.map(|will| *will),
            is_over,
            next: times.will_due.or(times.expires_at).filter(|_| !is_over),
        }
    }

    /// Whether a timer at `due` is needed: not when an earlier one will ask for what is due then.
    pub(crate) fn needs_timer(&self, due: Instant) -> bool {
        let state = &mut *self.state.lock();
        let needed = state.times.timer.is_none_or(|at| due < at);
        if needed {
            state.times.timer = Some(due);
        }
        needed
    }

    /// Ends the session for good: nothing is queued any more.
    pub(crate) fn end(&self) -> Remains {
        let state = &mut *self.state.lock();
        let ended = std::mem::replace(state, State { ended: true, ..State::default() });
        self.record_end();
        let traffic = ended.traffic.into_inner();
        let sent = traffic.outgoing.into_iter().filter_map(|outgoing| match outgoing.stage {
            Stage::Sent(delivery) => Some(delivery).filter(|delivery| delivery.may_pass_on(true)),
            Stage::Released => None,
        });
        let waiting =
            traffic.queue.into_iter().filter(|delivery| delivery.may_pass_on(delivery.packet_id != 0));
        let will = ended.will.map(|will| *will);
        Remains { filters: ended.filters, will, shared: sent.chain(waiting).collect() }
    }

    /// Remembers a filter. `false` when that would be more than `filters_max`.
    pub(crate) fn add_filter(&self, filter: &str, filters_max: usize) -> bool {
        let state = &mut *self.state.lock();
        let fits = state.filters.len() < filters_max || state.filters.contains(filter);
        if fits && !state.filters.contains(filter) {
            state.filters.insert(filter.into());
        }
        fits
    }

    /// Forgets a filter. `false` when it was not there.
    pub(crate) fn remove_filter(&self, filter: &str) -> bool {
        let state = &mut *self.state.lock();
        let known = state.filters.remove(filter);
        if known && let Some(traffic) = state.traffic.made() {
            traffic.retained_wanted.retain(|wanted| *wanted.filter != *filter);
        }
        known
    }

    /// Queues a message. QoS 0 waits for nobody who is away.
    pub(crate) fn enqueue(&self, delivery: Delivery) -> Result<(), QueueFull> {
        self.enqueue_all(std::iter::once(delivery))
    }

    /// Queues messages that belong together, if the queue has room for the first.
    pub(crate) fn enqueue_all(&self, deliveries: impl Iterator<Item = Delivery>) -> Result<(), QueueFull> {
        let state = &mut *self.state.lock();
        if state.traffic.is_full(self.limits(state)) {
            return Err(QueueFull);
        }
        for delivery in deliveries {
            if !state.ended && (state.link.is_some() || delivery.qos != QoS::AtMostOnce) {
                state.traffic.queue_bytes += delivery.message.size();
                state.traffic.queue.push_back(delivery);
            }
        }
        if let Some(link) = &state.link {
            link.raise(DELIVER);
        }
        Ok(())
    }

    /// Encodes waiting messages until `output` has `output_max` bytes, the client's window is full, or nothing waits.
    pub(crate) fn fill(
        &self,
        output: &mut Vec<u8>,
        output_max: usize,
        peer: &Peer,
        mut aliases: Option<&mut Aliases>,
    ) -> Filled {
        let state = &mut *self.state.lock();
        let mut filled = Filled::default();
        let mut outbound = Outbound::default();
        while output.len() < output_max {
            let Some(next) = state.traffic.queue.front() else { break };
            if next.qos != QoS::AtMostOnce && state.traffic.outgoing.len() >= peer.window {
                break;
            }
            if next.seq != 0 && !self.may_send(next, state) {
                break;
            }
            let Some(delivery) = state.traffic.queue.pop_front() else { break };
            state.traffic.queue_bytes -= delivery.message.size();
            if let Some(outlet) = &state.outlet
                && !outlet.admit(&delivery.message, delivery.retain, &mut outbound)
            {
                self.record_finished(delivery.seq);
                continue;
            }
            let outbound = state.outlet.as_ref().map(|_| &outbound);
            let expiry_s = match delivery.message.expiry_left_s() {
                Ok(left) => left,
                // Expiry stops a message that was sent before no more (5.0, 4.3.3).
                Err(_) if delivery.packet_id != 0 => Some(0),
                Err(_) => {
                    filled.expired += 1;
                    self.record_finished(delivery.seq);
                    continue;
                }
            };
            let packet_id = match (delivery.qos, delivery.packet_id) {
                (QoS::AtMostOnce, _) => 0,
                _ if delivery.seq != 0 => packet_id_of(delivery.seq),
                (_, 0) => state.free_packet_id(),
                (_, sent_before) => sent_before,
            };
            if !delivery.encode(output, packet_id, expiry_s, peer, aliases.as_deref_mut(), outbound) {
                filled.too_large += 1;
                self.record_finished(delivery.seq);
                continue;
            }
            filled.sent += 1;
            if delivery.qos == QoS::AtMostOnce {
                filled.sent_qos0 += 1;
            } else {
                let seq = delivery.seq;
                let sent = Outgoing { packet_id, seq, stage: Stage::Sent(delivery) };
                state.traffic.outgoing.push_back(sent);
            }
        }
        filled
    }

    /// PUBACK, PUBCOMP, or a PUBREC that refuses: the message is done with. `false` when it is not known.
    pub(crate) fn finish(&self, packet_id: u16) -> bool {
        let state = &mut *self.state.lock();
        let at = state.position(packet_id);
        let Some(finished) = at.and_then(|at| state.traffic.outgoing.remove(at)) else { return false };
        self.record_finished(finished.seq);
        true
    }

    /// PUBREC: the client has the message. `false` when it is not known.
    pub(crate) fn release(&self, packet_id: u16) -> bool {
        let state = &mut *self.state.lock();
        let Some(at) = state.position(packet_id) else { return false };
        let outgoing = &mut state.traffic.outgoing[at];
        outgoing.stage = Stage::Released;
        self.record_released(outgoing.seq);
        true
    }

    /// A QoS 2 message comes in. `false` when it came before: it must not be taken again.
    pub(crate) fn receive(&self, packet_id: u16) -> bool {
        self.state.lock().traffic.received.insert(packet_id)
    }

    /// PUBREL, or a message that was refused: the identifier is free again. `false` when it was not in use.
    pub(crate) fn forget_received(&self, packet_id: u16) -> bool {
        let state = &mut *self.state.lock();
        let known = state.traffic.made().is_some_and(|traffic| traffic.received.remove(&packet_id));
        if known {
            self.record(&Record::Forgotten { session: self.id, packet_id });
        }
        known
    }

    /// QoS 2 messages that the client has not released.
    pub(crate) fn received_count(&self) -> u32 {
        // Identifiers have 16 bits.
        self.state.lock().traffic.received.len() as u32
    }
}

/// For fuzzing.
impl Session {
    /// Asserts that queue and window add up. Gives the number of filters.
    pub(crate) fn check(&self) -> usize {
        let state = self.state.lock();
        let bytes: usize = state.traffic.queue.iter().map(|delivery| delivery.message.size()).sum();
        assert_eq!(state.traffic.queue_bytes, bytes, "bytes of the queue");
        assert!(state.traffic.retained_wanted.len() <= state.filters.len());
        let mut ids: Vec<u16> = state.traffic.outgoing.iter().map(|outgoing| outgoing.packet_id).collect();
        ids.sort_unstable();
        assert!(ids.windows(2).all(|pair| pair[0] != pair[1]), "identifiers twice in {ids:?}");
        assert!(!state.ended || state.filters.is_empty());
        state.filters.len()
    }
}

impl State {
    /// Clients acknowledge in order, so that this mostly ends at the first.
    fn position(&self, packet_id: u16) -> Option<usize> {
        self.traffic.outgoing.iter().position(|outgoing| outgoing.packet_id == packet_id)
    }

    /// The window is far below 65,535, so that there always is a free identifier.
    fn free_packet_id(&mut self) -> u16 {
        loop {
            self.last_packet_id = self.last_packet_id.checked_add(1).unwrap_or(1);
            let id = self.last_packet_id;
            if self.position(id).is_none()
                && !self.traffic.queue.iter().take_while(|d| d.packet_id != 0).any(|d| d.packet_id == id)
            {
                return id;
            }
        }
    }
}

mod bridged;
mod kept;
#[cfg(test)]
mod tests;
mod wanted;
