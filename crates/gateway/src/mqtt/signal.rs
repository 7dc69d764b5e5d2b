//! How the rest of the broker wakes a connection's task: a waker and a few flags, no queue and no lock.

use std::sync::atomic::{AtomicU64, Ordering};
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
const NOBODY: u64 = u64::MAX >> FLAG_BITS;
const FLAG_BITS: u32 = 8;

/// One per connection.
#[derive(Debug)]
pub(crate) struct Signal {
    waker: AtomicWaker,
    /// In the lowest bits the flags; above them the change of what admission decides by that the connection follows. In one word
    /// since there are very many.
    state: AtomicU64,
}

impl Default for Signal {
    fn default() -> Self {
        Self { waker: AtomicWaker::new(), state: AtomicU64::new(NOBODY << FLAG_BITS) }
    }
}

fn flags(state: u64) -> u8 {
    state.to_le_bytes()[0]
}

impl Signal {
    /// Sets a flag and wakes the connection, unless the flag was set already.
    pub(crate) fn raise(&self, flag: u8) {
        if flags(self.state.fetch_or(flag.into(), Ordering::AcqRel)) & flag == 0 {
            self.waker.wake();
        }
    }

    /// Whether a flag is raised; it stays so.
    pub(crate) fn is_raised(&self, flag: u8) -> bool {
        flags(self.state.load(Ordering::Acquire)) & flag != 0
    }

    /// The connection has done what follows from this change.
    pub(crate) fn follow(&self, change: u64) {
        let with = |state| Some(u64::from(flags(state)) | change << FLAG_BITS);
        // It always has something to say.
        let _ = self.state.fetch_update(Ordering::AcqRel, Ordering::Relaxed, with);
    }

    /// The connection has ended.
    pub(crate) fn leave(&self) {
        self.follow(NOBODY);
    }

    /// Whether what follows from this change is done.
    pub(crate) fn follows(&self, change: u64) -> bool {
        self.state.load(Ordering::Acquire) >> FLAG_BITS >= change
    }

    /// Takes all flags; the task of `context` is woken when another is raised.
    pub(crate) fn take(&self, context: &Context<'_>) -> u8 {
        const FLAGS: u64 = (1 << FLAG_BITS) - 1;
        self.waker.register(context.waker());
        if flags(self.state.load(Ordering::Acquire)) == 0 {
            return 0;
        }
        flags(self.state.fetch_and(!FLAGS, Ordering::AcqRel))
    }
}
