//! CancelRequest: a second connection that names the first by number and secret, and stops the statement that runs there.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// The statement that runs in one session, if any.
#[derive(Debug, Default)]
struct Slot {
    stop: Mutex<Option<oneshot::Sender<()>>>,
}

/// All sessions that can be asked to stop.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    last_number: AtomicI32,
    slots: Mutex<HashMap<i32, (i32, Arc<Slot>)>>,
}

impl Sessions {
    /// Enters a session; it leaves when the ticket is dropped.
    pub(super) fn enter(self: &Arc<Self>) -> Ticket {
        let slot = Arc::new(Slot::default());
        let secret = rand::random();
        let mut slots = self.slots.lock();
        let number = loop {
            let number = self.last_number.fetch_add(1, Ordering::Relaxed).wrapping_add(1) & i32::MAX;
            if number != 0 && !slots.contains_key(&number) {
                break number;
            }
        };
        slots.insert(number, (secret, Arc::clone(&slot)));
        Ticket { sessions: Arc::clone(self), slot, number, secret }
    }

    /// Stops what runs in the session, if the secret is right. The asker is never told.
    pub(super) fn cancel(&self, number: i32, secret: i32) {
        let slot = self
            .slots
            .lock()
            .get(&number)
            .filter(|(known, _)| *known == secret)
            .map(|(_, slot)| Arc::clone(slot));
        if let Some(stop) = slot.and_then(|slot| slot.stop.lock().take()) {
            // The statement may have ended just now.
            let _ = stop.send(());
        }
    }
}

/// A session's entry.
#[derive(Debug)]
pub(super) struct Ticket {
    sessions: Arc<Sessions>,
    slot: Arc<Slot>,
    /// What clients call the process number.
    pub(super) number: i32,
    pub(super) secret: i32,
}

impl Ticket {
    /// A statement begins: resolves when it should stop. Requests that came before do not count.
    pub(super) fn begin(&self) -> oneshot::Receiver<()> {
        let (stop, stopped) = oneshot::channel();
        *self.slot.stop.lock() = Some(stop);
        stopped
    }

    /// The statement has ended.
    pub(super) fn end(&self) {
        *self.slot.stop.lock() = None;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.sessions.slots.lock().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_secret_stops_only_what_runs() {
        let sessions = Arc::new(Sessions::default());
        let ticket = sessions.enter();
        sessions.cancel(ticket.number, ticket.secret);
        let mut stopped = ticket.begin();
        assert!(stopped.try_recv().is_err(), "a request from before does not count");
        sessions.cancel(ticket.number, ticket.secret.wrapping_add(1));
        assert!(stopped.try_recv().is_err());
        sessions.cancel(ticket.number, ticket.secret);
        assert!(stopped.try_recv().is_ok());
        let number = ticket.number;
        drop(ticket);
        sessions.cancel(number, 0);
        assert!(sessions.slots.lock().is_empty());
    }
}
