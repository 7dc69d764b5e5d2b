//! How the rest of the broker wakes a connection's task: a waker and a few flags, no queue and no lock.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
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

/// While a connection has nobody who could be checked.
const NOBODY: u64 = u64::MAX;

/// One per connection.
#[derive(Debug)]
pub(crate) struct Signal {
    waker: AtomicWaker,
    flags: AtomicU8,
    /// The change of what admission decides by that the connection follows.
    follows: AtomicU64,
}

impl Default for Signal {
    fn default() -> Self {
        Self { waker: AtomicWaker::new(), flags: AtomicU8::new(0), follows: AtomicU64::new(NOBODY) }
    }
}

impl Signal {
    /// Sets a flag and wakes the connection, unless the flag was set already.
    pub(crate) fn raise(&self, flag: u8) {
        if self.flags.fetch_or(flag, Ordering::AcqRel) & flag == 0 {
            self.waker.wake();
        }
    }

    /// Whether a flag is raised; it stays so.
    pub(crate) fn is_raised(&self, flag: u8) -> bool {
        self.flags.load(Ordering::Acquire) & flag != 0
    }

    /// The connection has done what follows from this change.
    pub(crate) fn follow(&self, change: u64) {
        self.follows.store(change, Ordering::Release);
    }

    /// The connection has ended.
    pub(crate) fn leave(&self) {
        self.follow(NOBODY);
    }

    /// Whether what follows from this change is done.
    pub(crate) fn follows(&self, change: u64) -> bool {
        self.follows.load(Ordering::Acquire) >= change
    }

    /// Takes all flags; the task of `context` is woken when another is raised.
    pub(crate) fn take(&self, context: &Context<'_>) -> u8 {
        self.waker.register(context.waker());
        if self.flags.load(Ordering::Acquire) == 0 { 0 } else { self.flags.swap(0, Ordering::AcqRel) }
    }
}
