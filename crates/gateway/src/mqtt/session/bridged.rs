//! The session of a bridge: kept like any other, with limits of its own, and served by a connection that we open.

use std::sync::Arc;

use super::{QueueLimits, Session, Stage, State};
use crate::bridge::Outlet;

impl Session {
    /// Makes it the session of a bridge.
    pub(crate) fn serve_bridge(&self, outlet: &Arc<Outlet>) {
        self.state.lock().outlet = Some(Arc::clone(outlet));
    }

    pub(super) fn limits(&self, state: &State) -> QueueLimits {
        state.outlet.as_ref().map_or(self.limits, |outlet| outlet.limits)
    }

    /// Counts a message for which there was no room.
    pub(crate) fn count_dropped(&self) {
        if let Some(outlet) = &self.state.lock().outlet {
            outlet.metrics.dropped("queue_full", 1);
        }
    }

    /// Messages that wait or are on their way.
    pub(crate) fn waiting(&self) -> usize {
        let state = self.state.lock();
        state.traffic.queue.len() + state.traffic.outgoing.len()
    }

    /// The other broker knows nothing of the session: what was on its way in either direction begins anew, but for messages of
    /// QoS 2 that it has said it has. Call it before anything is sent.
    pub(crate) fn begin_anew(&self) {
        let received: Vec<u16> = {
            let state = &mut *self.state.lock();
            state.traffic.queue.iter_mut().for_each(|delivery| delivery.packet_id = 0);
            for outgoing in std::mem::take(&mut state.traffic.outgoing) {
                match outgoing.stage {
                    Stage::Released => self.record_finished(outgoing.seq),
                    Stage::Sent(_) => state.traffic.outgoing.push_back(outgoing),
                }
            }
            state.traffic.received.iter().copied().collect()
        };
        for packet_id in received {
            self.forget_received(packet_id);
        }
    }
}
