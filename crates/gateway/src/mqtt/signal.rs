//! How the rest of the broker wakes a connection's task: a waker and a few flags, no queue and no lock.

use std::sync::atomic::{AtomicU8, Ordering};
use std::task::Context;

use futures::task::AtomicWaker;

/// The session has something to deliver.
pub(crate) const DELIVER: u8 = 1;
/// Another connection wants the session.
pub(crate) const TAKEN_OVER: u8 = 2;
/// The server stops.
pub(crate) const SHUT_DOWN: u8 = 4;

/// What was decided about the client may be decided otherwise now.
pub(crate) const RECHECK: u8 = 8;

/// One per connection.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    waker: AtomicWaker,
    flags: AtomicU8,
}

impl Signal {
    /// Sets a flag and wakes the connection, unless the flag was set already.
    pub(crate) fn raise(&self, flag: u8) {
        if self.flags.fetch_or(flag, Ordering::AcqRel) & flag == 0 {
            self.waker.wake();
        }
    }

    /// Takes all flags; the task of `context` is woken when another is raised.
    pub(crate) fn take(&self, context: &Context<'_>) -> u8 {
        self.waker.register(context.waker());
        if self.flags.load(Ordering::Acquire) == 0 { 0 } else { self.flags.swap(0, Ordering::AcqRel) }
    }
}
