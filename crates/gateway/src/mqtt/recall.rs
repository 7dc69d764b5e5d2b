//! Retained messages for a subscription: at once where there can be only one, else page by page, whenever the subscriber has
//! taken what was queued before. Neither a filter that matches everything nor a thousand of them hold anybody up, and no
//! message is dropped because a queue has no room for all at once.

use std::sync::Arc;

use super::broker::Broker;
use super::codec::{PublishProperties, QoS};
use super::delivery::Delivery;
use super::message::{Message, SERVER};
use super::retained::{Retained, RetainedLimits};
use super::session::{NothingWanted, Session};
use super::subscriptions::Wish;

/// Retained messages that are queued at once.
const PAGE_MESSAGES: usize = 256;
/// The first level of the server's own topics.
const SYS: &str = "$SYS";
/// There are a few figures, each of a few bytes.
pub(super) const SYS_LIMITS: RetainedLimits = RetainedLimits { messages_max: 1000, bytes_max: 1 << 20 };

impl Broker {
    /// Queues the retained messages that a new subscription wants, or notes that they are wanted.
    pub(super) fn recall(&self, session: &Session, filter: &str, wish: Wish) {
        if filter.contains(['+', '#']) {
            return session.want_retained(filter, wish);
        }
        let page = self.retained_by(filter).page(filter, None, 1);
        let deliveries = self.recalled(page.messages, wish, session);
        if session.enqueue_all(deliveries.into_iter()).is_err() {
            self.metrics.deliveries_dropped_full.inc();
        }
    }

    /// Queues the next page of the retained messages that a session's filters want, if nothing else waits for it and the
    /// journal, which a kept session's go into, has taken what came before. `Err` when no more are wanted, else whether there may be something to send.
    pub(crate) fn queue_retained(&self, session: &Session) -> Result<bool, NothingWanted> {
        let Some(wanted) = session.next_retained()? else { return Ok(false) };
        if session.is_kept() && self.keeper.is_crowded(session.link().as_ref()) {
            return Ok(false);
        }
        let retained = self.retained_by(&wanted.filter);
        let page = retained.page(&wanted.filter, wanted.after.as_deref(), PAGE_MESSAGES);
        let deliveries = self.recalled(page.messages, wanted.wish, session);
        session.enqueue_retained(wanted, deliveries, page.next);
        Ok(true)
    }

    fn retained_by(&self, filter: &str) -> &Retained {
        if filter.split('/').next() == Some(SYS) { &self.sys } else { &self.retained }
    }

    /// Publishes a figure of the server's, below `$SYS`, and keeps it as retained, when it is another than before.
    pub(crate) fn publish_sys(&self, topic: &str, value: &[u8]) {
        if self.sys.page(topic, None, 1).messages.first().is_some_and(|last| last.payload() == value) {
            return;
        }
        let properties = PublishProperties::default();
        let message = Arc::new(Message::new(topic, &properties, value, QoS::AtMostOnce, true, SERVER));
        // There are few of them, far below the limits.
        let _ = self.sys.set(topic, &message);
        self.show(&message);
    }

    /// Retained messages as a subscription wants them.
    fn recalled(&self, messages: Vec<Arc<Message>>, wish: Wish, session: &Session) -> Vec<Delivery> {
        let is_own = |message: &Arc<Message>| wish.no_local && message.publisher == session.id();
        let wanted = messages.into_iter().filter(|message| !is_own(message));
        let delivery = |message: Arc<Message>| {
            let qos = message.qos.min(wish.qos);
            let ids = Vec::from_iter(Some(wish.subscription_id).filter(|&id| id != 0));
            session.keep_delivery(self.realm(), Delivery::new(message, qos, true, ids))
        };
        wanted.map(delivery).collect()
    }
}
