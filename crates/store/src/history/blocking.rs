//! Work that blocks or computes for long: flushes, merges, clean-up.
//!
//! It has threads of its own with less priority than those that serve devices and queries. Whoever publishes or asks is
//! waiting; history has the budget of rows as its slack, and once that is used up, workers wait and leave it the processor.

use std::thread;

use tokio::sync::oneshot;

use super::error::StoreError;

/// How much work steps back, when processors are short, before those whom somebody waits for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Urgency {
    /// Workers wait for it, or soon will: not at all.
    Now,
    /// Rows, or others of history, wait for it: a third of the share of others.
    Soon,
    /// Nobody waits for it: what others leave. Must not hold a lock that others want: it can be kept waiting for long.
    Later,
}

/// Runs `work` on a thread of its own; gives its result. It goes on if the caller leaves.
pub(crate) async fn blocking<T: Send + 'static>(
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
    const NICENESS: libc::c_int = 5;
    // SAFETY: both calls only read numbers. That they may be refused does no harm.
    unsafe {
        match urgency {
            Urgency::Now => {}
            Urgency::Soon => {
                libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS);
            }
            // A processor that only does such work counts as idle when others look for one. Beside a thread of the highest
            // niceness they do not: it had a processor to itself for seconds, and all others crowded on the rest.
            Urgency::Later => {
                libc::sched_setscheduler(0, libc::SCHED_IDLE, &libc::sched_param { sched_priority: 0 });
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn step_back(_urgency: Urgency) {}
