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
use super::subscriptions::Target;
use super::topics::is_reserved;

/// Who gets a message, with what was recorded of it.
#[derive(Debug, Default)]
pub(super) struct Staged {
    /// With the message's number in a session that is kept.
    targets: Vec<(Target, u64)>,
    /// Where the record ends in the journal; 0 without one.
    pub(super) position: u64,
    /// Whether the message has its place among the retained ones already.
    is_retained: bool,
    /// Whether it came from another gateway, which has told all others.
    is_from_peer: bool,
    /// Nodes and subscribers that were looked at.
    pub(super) work: usize,
}

impl Broker {
    /// Keeps a retained message, and queues the message for everybody who subscribed to its topic. Gives the number of nodes
    /// and subscribers that were looked at.
    pub(crate) fn publish(&self, message: &Arc<Message>) -> usize {
        let staged = self.stage(message, None);
        let work = staged.work;
        self.deliver(message, staged);
        work
    }

    /// Records what is to be kept of a message: the queues of kept sessions that it goes into, its retained place, and where
    /// it came from.
    pub(super) fn stage(&self, message: &Arc<Message>, origin: Option<Origin>) -> Staged {
        let found = self.subscriptions.targets(message.topic(), message.publisher);
        self.stage_for(message, origin, false, found)
    }

    /// Does with a message of another gateway what is done with one of here, for clients of this one. `shared` are the shared
    /// subscriptions that are this gateway's turn.
    pub(super) fn publish_from_peer(&self, message: &Arc<Message>, shared: &[&str]) {
        let found = self.subscriptions.targets_from_peer(message.topic(), shared);
        let staged = self.stage_for(message, None, true, found);
        self.deliver(message, staged);
    }

    fn stage_for(
        &self,
        message: &Arc<Message>,
        origin: Option<Origin>,
        is_from_peer: bool,
        (targets, work): (Vec<Target>, usize),
    ) -> Staged {
        let topic = message.topic();
        let mut staged = Staged { work, is_from_peer, ..Staged::default() };
        let mut queued = Vec::new();
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
            staged.targets.push((target, seq));
        }
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
    pub(super) fn deliver(&self, message: &Arc<Message>, staged: Staged) {
        if message.retain && !staged.is_retained && self.retained.set(message.topic(), message).is_err() {
            self.metrics.retained_refused.inc();
        }
        let mut peers = Chosen::new();
        for (target, seq) in staged.targets {
            if is_peer(&target.session) {
                add(&mut peers, target.session, target.shared);
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
        if !peers.is_empty() || message.retain && !staged.is_from_peer {
            self.send_to_peers(message, peers);
        }
    }

    /// Queues a message that is neither kept nor retained with the others.
    pub(super) fn show(&self, message: &Arc<Message>) {
        let (targets, work) = self.subscriptions.targets(message.topic(), message.publisher);
        let targets = targets.into_iter().map(|target| (target, 0)).collect();
        self.deliver(message, Staged { targets, position: 0, is_retained: true, is_from_peer: false, work });
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
