//! Where tests can look at, or break, a flush: between any two of its steps. Nothing in a real build.

use super::error::StoreError;
use crate::tables::TableId;

/// A moment between two steps of a flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// The shards' rows were taken.
    Rotated,
    /// A table's files are durable, but no commit names them.
    Written(TableId),
    /// A table's commit is durable, but not yet seen by queries.
    Committed(TableId),
    /// Queries read a table's new files.
    Swapped(TableId),
}

/// What a test does at a step.
#[cfg(test)]
type Action = Box<dyn FnMut(Step) -> Result<(), StoreError> + Send>;

/// A test's handle; empty otherwise.
#[derive(Default, Clone)]
pub(super) struct Hook {
    #[cfg(test)]
    action: std::sync::Arc<parking_lot::Mutex<Option<Action>>>,
}

impl Hook {
    #[cfg(test)]
    pub(super) fn set(&self, action: impl FnMut(Step) -> Result<(), StoreError> + Send + 'static) {
        *self.action.lock() = Some(Box::new(action));
    }

    #[cfg(test)]
    pub(super) fn clear(&self) {
        *self.action.lock() = None;
    }

    /// How many tables are flushed side by side: a test that looks between steps looks at one table after the other.
    pub(super) fn tables_at_once(&self) -> usize {
        #[cfg(test)]
        if self.action.lock().is_some() {
            return 1;
        }
        TableId::COUNT
    }

    #[cfg(test)]
    pub(super) fn at(&self, step: Step) -> Result<(), StoreError> {
        self.action.lock().as_mut().map_or(Ok(()), |action| action(step))
    }

    #[cfg(not(test))]
    #[inline]
    #[allow(clippy::unused_self, clippy::unnecessary_wraps)]
    pub(super) fn at(&self, _step: Step) -> Result<(), StoreError> {
        Ok(())
    }
}
