//! Work that blocks or computes for long: flushes, merges, clean-up.
//!
//! It has threads of its own with less priority than those that serve devices and queries. Whoever publishes or asks is
//! waiting; history has the budget of rows as its slack, and once that is used up, workers wait and leave it the processor.

use std::thread;

use catchment_threads::{Urgency, step_back};
use tokio::sync::oneshot;

use super::error::StoreError;

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
