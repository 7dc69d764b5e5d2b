//! Threads for TLS handshakes, which give way to all others: a handshake computes for a quarter of a millisecond, and thousands
//! of clients that come at once would have those wait that are there already.

use std::future::Future;
use std::io;

use catchment_threads::{Urgency, step_back};
use tokio::runtime::{Builder, Runtime};
use tokio_util::task::AbortOnDropHandle;

/// As many as there are processors.
#[derive(Debug)]
pub(super) struct HandshakeThreads(Option<Runtime>);

impl HandshakeThreads {
    /// Starts them.
    ///
    /// # Errors
    /// The system has no room for them.
    pub(super) fn start() -> io::Result<Self> {
        let mut builder = Builder::new_multi_thread();
        builder.thread_name("handshake").on_thread_start(|| step_back(Urgency::Patient)).enable_all();
        Ok(Self(Some(builder.build()?)))
    }

    /// Runs one there. It ends when nobody waits for it any more.
    ///
    /// # Errors
    /// It has panicked, or the process ends.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        handshake: impl Future<Output = T> + Send + 'static,
    ) -> io::Result<T> {
        let ended = || io::Error::other("the process ends");
        let runtime = self.0.as_ref().ok_or_else(ended)?;
        AbortOnDropHandle::new(runtime.spawn(handshake)).await.map_err(io::Error::other)
    }
}

impl Drop for HandshakeThreads {
    fn drop(&mut self) {
        // Not waited for: we may be on a thread that must not wait.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
