//! Work that blocks or computes for long: flushes, merges, clean-up.
//!
//! It has threads of its own with less priority than those that serve devices and queries. Whoever publishes or asks is
//! waiting; history has the budget of rows as its slack, and once that is used up, workers wait and leave it the processor.

use std::thread;

use tokio::sync::oneshot;

use super::error::StoreError;

/// How much work steps back, when processors are short, before those whom somebody waits for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Urgency {
    /// Rows wait in memory for it: a third of the share of others.
    Soon,
    /// Nobody waits for it: as little as there is.
    Later,
}

impl Urgency {
    /// Added to the niceness of the thread; 0 is everybody else's.
    const fn niceness(self) -> libc::c_int {
        match self {
            Self::Soon => 5,
            Self::Later => 19,
        }
    }
}

/// Runs `work` on a thread of its own; gives its result. It goes on if the caller leaves.
pub(super) async fn blocking<T: Send + 'static>(
    what: &'static str,
    urgency: Urgency,
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let (done, result) = oneshot::channel();
    let run = move || {
        step_back(urgency);
        // Nobody waits for it any more if this fails.
        let _ = done.send(work());
    };
    let spawned = thread::Builder::new().name("history".to_owned()).spawn(run);
    if let Err(error) = spawned {
        return Err(StoreError::Interrupted { what, message: error.to_string() });
    }
    let panicked = |_| StoreError::Interrupted { what, message: "its thread panicked".to_owned() };
    result.await.unwrap_or_else(|error| Err(panicked(error)))
}

/// Lowers the priority of this thread: on Linux, niceness is a thread's. Elsewhere it would be the process's.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn step_back(urgency: Urgency) {
    // SAFETY: takes three numbers and touches no memory. That it may be refused does no harm.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, urgency.niceness()) };
}

#[cfg(not(target_os = "linux"))]
fn step_back(_urgency: Urgency) {}
