//! Follows the files of certificates, keys, CAs and revocation lists: what has changed is in force for the next handshake.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::tls::Tls;

/// What tells that a file was replaced or written. Nothing: it is not there.
type Stamp = Option<(SystemTime, u64)>;

impl Tls {
    /// Reads the files anew when one of them has changed, and on SIGHUP, until `stop`. Files that do not go together, as
    /// between the writing of a certificate and of its key, leave everything as it was until they do.
    pub async fn follow(self: Arc<Self>, stop: CancellationToken) {
        let mut hangups = match signal(SignalKind::hangup()) {
            Ok(hangups) => hangups,
            Err(error) => {
                return tracing::error!(%error, "SIGHUP cannot be listened to; certificates stay as they are");
            }
        };
        let every = match self.config.reload_s {
            0 => Duration::MAX,
            seconds => Duration::from_secs(seconds),
        };
        let mut in_force = self.stamps().await;
        let mut failed = None;
        loop {
            let asked = tokio::select! {
                () = stop.cancelled() => return,
                _ = hangups.recv() => true,
                () = tokio::time::sleep(every) => false,
            };
            let stamps = self.stamps().await;
            if !asked && (stamps == in_force || failed.as_ref() == Some(&stamps)) {
                continue;
            }
            let tls = Arc::clone(&self);
            // Reads files, and verifies the certificate of every connection that has one.
            let reloaded = tokio::task::spawn_blocking(move || tls.reload()).await;
            match reloaded {
                Ok(Ok(())) => {
                    self.metrics.reload("ok");
                    tracing::info!("certificates, keys and revocation lists were read anew");
                    (in_force, failed) = (stamps, None);
                }
                Ok(Err(error)) => {
                    self.metrics.reload("failed");
                    tracing::error!(%error, "certificates were not read anew; those from before stay in force");
                    failed = Some(stamps);
                }
                // Only when the runtime ends.
                Err(_) => return,
            }
        }
    }

    async fn stamps(self: &Arc<Self>) -> Vec<Stamp> {
        let tls = Arc::clone(self);
        let stamps = tokio::task::spawn_blocking(move || tls.config.files().map(stamp).collect()).await;
        stamps.unwrap_or_default()
    }
}

fn stamp(path: &Path) -> Stamp {
    // Follows links, so that those of Kubernetes, which change only the link, are seen.
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}
