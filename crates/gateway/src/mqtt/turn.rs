//! A connection is one task, and tasks share as many threads as there are processors. So what one does is counted, and after so
//! much of it others have their turn.

/// What a task may do in one turn, in small packets, nodes of trees and subscribers that are looked at, and messages that are
/// queued: ten to a hundred microseconds.
const WORK_MAX: usize = 512;

/// What was done in this turn.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    work: usize,
}

impl Turn {
    /// Counts what was done.
    pub(crate) fn add(&mut self, work: usize) {
        self.work += work;
    }

    /// What may still be done in this turn.
    pub(crate) fn left(&self) -> usize {
        WORK_MAX.saturating_sub(self.work)
    }

    /// Whether it is the turn of others.
    pub(crate) fn is_over(&self) -> bool {
        self.left() == 0
    }

    /// Lets others have their turn, if it is.
    pub(crate) async fn rest(&mut self) {
        if self.is_over() {
            self.work = 0;
            tokio::task::yield_now().await;
        }
    }
}
