//! From a message to everybody who subscribed to its topic, in two steps: what is to be kept is recorded first, then the
//! message is queued. In between its publisher may wait.

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use foldhash::fast::RandomState;

use super::broker::{Attach, AttachError, Attached, Broker, ByClientId};
use super::delivery::Delivery;
use super::keep::{Image, KeptSession, Origin, Queued, Record};
use super::message::Message;
use super::peers::{Chosen, add, is_peer};
use super::session::{Place, Session};
use super::subscriptions::{Matching, Target};
use super::topics::is_reserved;
use super::turn::Turn;

/// Everybody who gets a message, as subscriptions were at this generation.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) targets: Vec<Target>,
    pub(super) generation: u64,
}

/// Who gets a message, with what was recorded of it.
#[derive(Debug, Default)]
pub(super) struct Staged {
    /// With the message's number in a session that is kept.
    targets: std::vec::IntoIter<(Target, u64)>,
    /// Of those whom it was queued for already, other gateways.
    peers: Chosen,
    /// Where the record ends in the journal; 0 without one.
    pub(super) position: u64,
    /// Whether the message has its place among the retained ones already.
    is_retained: bool,
    /// Whether other gateways have it already.
    is_with_peers: bool,
    /// See [`Found`].
    generation: u64,
    /// Of a retained message: the sessions among them.
    reached: Vec<u64>,
}

impl Staged {
    fn is_over(&self) -> bool {
        self.targets.len() == 0
    }
}

impl Broker {
    /// Keeps a retained message, and queues the message for everybody who subscribed to its topic. Others have their turn in
    /// between: there may be many who did.
    pub(crate) async fn publish(&self, message: &Arc<Message>, turn: &mut Turn) {
        let found = self.find(message, turn).await;
        let staged = self.stage(message, None, false, found);
        self.deliver(message, staged, turn).await;
    }

    /// Finds everybody who gets a message.
    pub(super) async fn find(&self, message: &Message, turn: &mut Turn) -> Found {
        let (generation, mut matching) = (self.subscriptions.generation(), Matching::default());
        loop {
            let (topic, publisher) = (message.topic(), message.publisher);
            turn.add(self.subscriptions.search(&mut matching, topic, publisher, turn.left()));
            if matching.is_done {
                return Found { targets: matching.targets, generation };
            }
            turn.rest().await;
        }
    }

    /// Does with a message of another gateway what is done with one of here, for clients of this one. `shared` are the shared
    /// subscriptions that are this gateway's turn.
    pub(super) fn publish_from_peer(&self, message: &Arc<Message>, shared: &[&str]) {
        let find = || {
            let generation = self.subscriptions.generation();
            Found { targets: self.subscriptions.targets_from_peer(message.topic(), shared), generation }
        };
        let mut staged = self.stage(message, None, true, find());
        self.deliver_to(message, &mut staged, usize::MAX);
        if self.has_newcomers(message, &staged) {
            let mut late = self.stage_for_newcomers(message, &staged, find());
            self.deliver_to(message, &mut late, usize::MAX);
        }
    }

    /// Records what is to be kept of a message: the queues of kept sessions that it goes into, its retained place, and where
    /// it came from.
    pub(super) fn stage(
        &self,
        message: &Arc<Message>,
        origin: Option<Origin>,
        is_from_peer: bool,
        found: Found,
    ) -> Staged {
        let topic = message.topic();
        let Found { targets, generation } = found;
        let mut staged = Staged { is_with_peers: is_from_peer, generation, ..Staged::default() };
        if message.retain {
            staged.reached = targets.iter().map(|target| target.session.id()).collect();
        }
        let (reserved, mut queued) = self.reserve(message, targets);
        staged.targets = reserved.into_iter();
        // What counts only once the log has it is not shown to anybody before.
        let retains_now = message.retain && origin.is_none_or(|origin| origin.proof.is_none());
        let keeps_retained = message.retain && self.keeper.is_durable() && !is_reserved(topic);
        let is_needed = !queued.is_empty() || origin.is_some();
        let mut record = |retained: bool| {
            if retained || is_needed {
                staged.position =
                    self.record_published(message, retained, origin, std::mem::take(&mut queued));
            }
        };
        if retains_now {
            staged.is_retained = true;
            let kept = match is_from_peer {
                false => self.retained.set_and(topic, message, || record(keeps_retained)),
                true => {
                    self.retained.take_and(topic, message, |is_newest| record(keeps_retained && is_newest))
                }
            };
            if kept.is_err() {
                self.metrics.retained_refused.inc();
                tracing::debug!(topic, "no room for a further retained message; raise retained_messages_max");
                record(false);
            }
        } else {
            if message.retain {
                self.retained.stamp(message);
            }
            record(keeps_retained);
        }
        staged
    }

    /// Reserves places in the queues of kept sessions. Gives those who get the message, and what is to be recorded of them.
    fn reserve(&self, message: &Arc<Message>, targets: Vec<Target>) -> (Vec<(Target, u64)>, Vec<Queued>) {
        let (mut reserved, mut queued) = (Vec::with_capacity(targets.len()), Vec::new());
        for target in targets {
            let qos = message.qos.min(target.qos);
            let seq = match target.session.reserve(message, qos) {
                Place::Volatile => 0,
                Place::Kept(seq) => seq,
                Place::Full => {
                    self.metrics.deliveries_dropped_full.inc();
                    target.session.count_dropped();
                    continue;
                }
            };
            if seq != 0 {
                queued.push(Queued {
                    session: target.session.id(),
                    seq,
                    qos,
                    retain: message.retain && target.retain_as_published,
                    subscription_ids: target.subscription_ids.clone(),
                    shared: target.shared.clone(),
                });
            }
            reserved.push((target, seq));
        }
        (reserved, queued)
    }

    /// Records a message, and gives where the record ends in the journal.
    fn record_published(
        &self,
        message: &Message,
        retained: bool,
        origin: Option<Origin>,
        queued: Vec<Queued>,
    ) -> u64 {
        let mut encoded = Vec::new();
        message.encode(&mut encoded);
        let realm = self.realm();
        self.keeper.append(&Record::Published { realm, retained, origin, message: &encoded, queued })
    }

    /// Whether somebody has subscribed since a retained message's subscribers were looked for: he was perhaps shown the one before
    /// it.
    fn has_newcomers(&self, message: &Message, staged: &Staged) -> bool {
        message.retain && self.subscriptions.generation() != staged.generation
    }

    /// The same for those who were not among those whom a message was staged for. Some have it by now, as retained.
    fn stage_for_newcomers(&self, message: &Arc<Message>, staged: &Staged, mut found: Found) -> Staged {
        let reached: HashSet<u64, RandomState> = staged.reached.iter().copied().collect();
        found.targets.retain(|target| {
            let is_own = target.shared.is_none() && !is_peer(&target.session);
            is_own && !reached.contains(&target.session.id())
        });
        let (reserved, queued) = self.reserve(message, found.targets);
        let position =
            if queued.is_empty() { 0 } else { self.record_published(message, false, None, queued) };
        let targets = reserved.into_iter();
        Staged { targets, position, is_retained: true, is_with_peers: true, ..Staged::default() }
    }

    /// Queues a message for everybody whom it was staged for. Gives where the last record of it ends in the journal.
    pub(super) async fn deliver(&self, message: &Arc<Message>, mut staged: Staged, turn: &mut Turn) -> u64 {
        let mut position = staged.position;
        self.deliver_in_turns(message, &mut staged, turn).await;
        if self.has_newcomers(message, &staged) {
            let found = self.find(message, turn).await;
            let mut late = self.stage_for_newcomers(message, &staged, found);
            position = position.max(late.position);
            self.deliver_in_turns(message, &mut late, turn).await;
        }
        position
    }

    async fn deliver_in_turns(&self, message: &Arc<Message>, staged: &mut Staged, turn: &mut Turn) {
        loop {
            turn.add(self.deliver_to(message, staged, turn.left()));
            if staged.is_over() {
                return;
            }
            turn.rest().await;
        }
    }

    /// Queues a message for the next `most` of those whom it was staged for; for how many it was.
    fn deliver_to(&self, message: &Arc<Message>, staged: &mut Staged, most: usize) -> usize {
        if message.retain
            && !std::mem::replace(&mut staged.is_retained, true)
            && self.retained.set(message.topic(), message).is_err()
        {
            self.metrics.retained_refused.inc();
        }
        let waiting = staged.targets.len();
        for (target, seq) in staged.targets.by_ref().take(most) {
            if is_peer(&target.session) {
                add(&mut staged.peers, target.session, target.shared);
                continue;
            }
            let retain = message.retain && target.retain_as_published;
            let qos = message.qos.min(target.qos);
            let mut delivery = Delivery::new(Arc::clone(message), qos, retain, target.subscription_ids);
            (delivery.seq, delivery.position, delivery.shared) = (seq, staged.position, target.shared);
            if target.session.enqueue(delivery).is_err() {
                self.metrics.deliveries_dropped_full.inc();
                target.session.count_dropped();
                target.session.record_finished(seq);
            }
        }
        let left = staged.targets.len();
        let peers = std::mem::take(&mut staged.peers);
        if left > 0 {
            staged.peers = peers;
        } else if !peers.is_empty() || message.retain && !staged.is_with_peers {
            self.send_to_peers(message, peers);
        }
        waiting - left
    }

    /// Queues a message that is neither kept nor retained with the others.
    pub(super) fn show(&self, message: &Arc<Message>) {
        let targets = self.subscriptions.targets(message.topic(), message.publisher);
        let targets = Vec::from_iter(targets.into_iter().map(|target| (target, 0))).into_iter();
        let mut staged = Staged { targets, is_retained: true, ..Staged::default() };
        self.deliver_to(message, &mut staged, usize::MAX);
    }

    /// Gives a message that a member of a shared subscription left behind to another member.
    pub(super) fn pass_on(&self, delivery: Delivery) {
        let filter = delivery.shared.as_deref().and_then(|name| self.topic_limits.filter(name));
        if let Some(target) = filter.and_then(|filter| self.subscriptions.choose(filter)) {
            let Delivery { message, .. } = delivery;
            if is_peer(&target.session) {
                return self.send_to_peers(&message, vec![(target.session, Vec::from_iter(target.shared))]);
            }
            let (retain, qos) = (message.retain && target.retain_as_published, message.qos.min(target.qos));
            let passed = Delivery::new(message, qos, retain, target.subscription_ids).by(target.shared);
            let passed = target.session.keep_delivery(self.realm(), passed);
            let seq = passed.seq;
            if target.session.enqueue(passed).is_err() {
                self.metrics.deliveries_dropped_full.inc();
                target.session.record_finished(seq);
            }
        }
    }

    /// Waits while more is on its way to the journal than may be.
    pub(crate) async fn room(&self) {
        self.keeper.room().await;
    }

    /// A new session, kept if it is to outlive its connection.
    pub(super) fn new_session(&self, request: &Attach<'_>) -> Arc<Session> {
        let keeper = Arc::clone(&self.keeper);
        let id = keeper.next_session();
        let session = Session::new(id, Arc::clone(request.client_id), self.queue_limits, keeper)
            .owned_by(request.owner);
        if !request.expiry.is_zero() {
            session.keep(self.realm());
        }
        Arc::new(session)
    }

    /// Waits until what a connection found or made is durable: it is told so.
    pub(super) async fn attached(&self, attached: Attached) -> Result<Attached, AttachError> {
        match self.keeper.barrier() {
            Some(barrier) if attached.session.is_kept() || attached.replaced => {
                barrier.await.map_err(|_| AttachError::NotKept)?;
            }
            _ => {}
        }
        Ok(attached)
    }

    /// Puts a kept session back.
    pub(super) fn restore(
        &self,
        id: u64,
        kept: &KeptSession,
        image: &Image,
        messages: &mut impl FnMut(&Arc<[u8]>) -> Option<Arc<Message>>,
    ) {
        let (session, due) = Session::restored(id, kept, image, messages, self.queue_limits, &self.keeper);
        let session = Arc::new(session);
        for (text, &wish) in &kept.filters {
            // With another configuration it may be none any more.
            let filter = self.topic_limits.filter(text);
            if filter.is_none_or(|filter| self.subscriptions.insert(filter, &session, wish).is_err()) {
                session.remove_filter(text);
                tracing::warn!(
                    client_id = session.client_id(),
                    filter = &**text,
                    "a subscription that was kept has no room, or too many bytes or levels now, and is gone"
                );
            }
        }
        let older = self.sessions.lock().replace(ByClientId(Arc::clone(&session)));
        if let Some(ByClientId(older)) = older {
            // The record of its end is damaged.
            self.end(&older);
        }
        self.schedule(&session, due.max(Instant::now()));
        let sessions = self.sessions.lock().len();
        self.metrics.sessions.set(i64::try_from(sessions).unwrap_or(i64::MAX));
        self.metrics.subscriptions.set(i64::try_from(self.subscriptions.of_clients()).unwrap_or(i64::MAX));
    }
}
