//! How threads give way to one another when processors are short, and threads for work that blocks or computes for long.
//!
//! Whoever publishes or asks is waiting, and is served on threads that give way to nobody. What takes longer than they
//! should wait is done elsewhere, with less of a share the less anybody waits for it.

mod pool;

pub use pool::ThreadPool;

/// How much work steps back, when processors are short, before those whom somebody waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// Others wait for it, or soon will: not at all.
    Now,
    /// Others wait for it, and can: a third of the share of others.
    Soon,
    /// Somebody waits for it, of whom there may be thousands at once who are not even let in yet: a tenth of the share of others.
    Patient,
    /// Nobody waits for it: what others leave. Must not hold a lock that others want: it can be kept waiting for long.
    Later,
}

/// The kernel has no more than this.
#[cfg(target_os = "linux")]
const NICE_MAX: libc::c_int = 19;

/// Lowers the priority of this thread, for good: on Linux, niceness is a thread's. Elsewhere it would be the process's, and
/// all threads stay equal.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
pub fn step_back(urgency: Urgency) {
    // From where the process was put: it may run as nice as it can be already.
    // SAFETY: both take numbers and touch no memory of ours; 0 is the calling thread.
    let nice = |by: libc::c_int| unsafe {
        let now = libc::getpriority(libc::PRIO_PROCESS, 0);
        libc::setpriority(libc::PRIO_PROCESS, 0, (now + by).min(NICE_MAX))
    };
    let refused = match urgency {
        Urgency::Now => 0,
        Urgency::Soon => nice(5),
        Urgency::Patient => nice(10),
        // A processor that only does such work counts as idle when others look for one. Beside a thread of the highest
        // niceness they do not: it had a processor to itself for seconds, and all others crowded on the rest.
        // SAFETY: reads a number, and is about the calling thread alone.
        Urgency::Later => unsafe {
            libc::sched_setscheduler(0, libc::SCHED_IDLE, &libc::sched_param { sched_priority: 0 })
        },
    };
    if refused != 0 {
        // It does no harm: all are served, some later.
        tracing::debug!(?urgency, "a thread cannot give way to others");
    }
}

/// See the one for Linux.
#[cfg(not(target_os = "linux"))]
pub fn step_back(_urgency: Urgency) {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    #[allow(unsafe_code)]
    fn the_thread_gives_way_and_no_other() {
        // SAFETY: reads a number of the calling thread.
        let now = || unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
        let before = now();
        let there = std::thread::spawn(move || {
            step_back(Urgency::Patient);
            now()
        });
        assert_eq!(there.join().unwrap(), (before + 10).min(NICE_MAX));
        assert_eq!(now(), before);
    }
}
