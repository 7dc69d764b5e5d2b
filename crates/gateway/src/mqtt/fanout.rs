//! From a message to everybody who subscribed to its topic, in two steps: what is to be kept is recorded first, then the
//! message is queued. In between its publisher may wait.

use std::sync::Arc;
use std::time::Instant;

use super::broker::{Attach, AttachError, Attached, Broker, ByClientId};
use super::delivery::Delivery;
use super::keep::{Image, KeptSession, Origin, Queued, Record};
use super::message::Message;
use super::peers::{Chosen, add, is_peer};
use super::session::{Place, Session};
use super::subscriptions::{Matching, Target};
use super::topics::is_reserved;
use super::turn::Turn;

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
    /// Whether it came from another gateway, which has told all others.
    is_from_peer: bool,
}

impl Broker {
    /// Keeps a retained message, and queues the message for everybody who subscribed to its topic. Others have their turn in
    /// between: there may be many who did.
    pub(crate) async fn publish(&self, message: &Arc<Message>, turn: &mut Turn) {
        let targets = self.targets(message, turn).await;
        let staged = self.stage(message, None, false, targets);
        self.deliver(message, staged, turn).await;
    }

    /// Everybody who gets a message.
    pub(super) async fn targets(&self, message: &Message, turn: &mut Turn) -> Vec<Target> {
        let (generation, mut matching) = (self.subscriptions.generation(), Matching::default());
        loop {
            let (topic, publisher) = (message.topic(), message.publisher);
            turn.add(self.subscriptions.search(&mut matching, topic, publisher, turn.left()));
            if matching.is_done {
                return matching.targets;
            }
            turn.rest().await;
            // Who has subscribed meanwhile was perhaps passed over, and shown the retained message that this one replaces.
            if message.retain && self.subscriptions.generation() != generation {
                return self.subscriptions.targets(topic, publisher);
            }
        }
    }

    /// Does with a message of another gateway what is done with one of here, for clients of this one. `shared` are the shared
    /// subscriptions that are this gateway's turn.
    pub(super) fn publish_from_peer(&self, message: &Arc<Message>, shared: &[&str]) {
        let targets = self.subscriptions.targets_from_peer(message.topic(), shared);
        let mut staged = self.stage(message, None, true, targets);
        self.deliver_to(message, &mut staged, usize::MAX);
    }

    /// Records what is to be kept of a message: the queues of kept sessions that it goes into, its retained place, and where
    /// it came from.
    pub(super) fn stage(
        &self,
        message: &Arc<Message>,
        origin: Option<Origin>,
        is_from_peer: bool,
        targets: Vec<Target>,
    ) -> Staged {
        let topic = message.topic();
        let mut staged = Staged { is_from_peer, ..Staged::default() };
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
        staged.targets = reserved.into_iter();
        // What counts only once the log has it is not shown to anybody before.
        let retains_now = message.retain && origin.is_none_or(|origin| origin.proof.is_none());
        let keeps_retained = message.retain && self.keeper.is_durable() && !is_reserved(topic);
        let is_needed = !queued.is_empty() || origin.is_some();
        let mut record = |retained: bool| {
            if retained || is_needed {
                let mut encoded = Vec::new();
                message.encode(&mut encoded);
                let (realm, queued) = (self.realm(), std::mem::take(&mut queued));
                staged.position = self.keeper.append(&Record::Published {
                    realm,
                    retained,
                    origin,
                    message: &encoded,
                    queued,
                });
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

    /// Queues a message for everybody whom it was staged for.
    pub(super) async fn deliver(&self, message: &Arc<Message>, mut staged: Staged, turn: &mut Turn) {
        loop {
            let queued = self.deliver_to(message, &mut staged, turn.left());
            turn.add(queued);
            if staged.targets.len() == 0 {
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
        } else if !peers.is_empty() || message.retain && !staged.is_from_peer {
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
