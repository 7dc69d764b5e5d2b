//! Retained messages that a session's filters want and that are not queued yet.

use super::{Delivery, Session};
use crate::mqtt::subscriptions::Wish;

/// No retained messages are wanted any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NothingWanted;

/// Retained messages that are still to be queued for a subscription with wildcards.
#[derive(Debug, Clone)]
pub(crate) struct RetainedWanted {
    pub(crate) filter: Box<str>,
    pub(crate) wish: Wish,
    /// Where the last page ended.
    pub(crate) after: Option<String>,
}

impl Session {
    /// Has the retained messages of a filter queued, a page at a time; a scan of the same filter starts anew.
    pub(crate) fn want_retained(&self, filter: &str, wish: Wish) {
        let state = &mut *self.state.lock();
        state.traffic.retained_wanted.retain(|wanted| *wanted.filter != *filter);
        state.traffic.retained_wanted.push_back(RetainedWanted { filter: filter.into(), wish, after: None });
    }

    /// The next filter whose retained messages are wanted, once nothing else waits; `Err` when none is.
    pub(crate) fn next_retained(&self) -> Result<Option<RetainedWanted>, NothingWanted> {
        let state = &mut *self.state.lock();
        let wanted = state.traffic.retained_wanted.front().ok_or(NothingWanted)?;
        Ok(state.traffic.queue.is_empty().then(|| wanted.clone()))
    }

    /// Queues a page of retained messages for the filter that [`Session::next_retained`] gave; `next`: where to go on.
    pub(crate) fn enqueue_retained(&self, wanted: RetainedWanted, page: Vec<Delivery>, next: Option<String>) {
        let state = &mut *self.state.lock();
        // A SUBSCRIBE or UNSUBSCRIBE in between would have come from the same connection: there was none.
        state.traffic.retained_wanted.pop_front();
        if next.is_some() {
            state.traffic.retained_wanted.push_front(RetainedWanted { after: next, ..wanted });
        }
        for delivery in page {
            state.traffic.queue_bytes += delivery.message.size();
            state.traffic.queue.push_back(delivery);
        }
    }
}
