//! The PostgreSQL protocol, version 3.0, over the SQL engine: for `psql`, drivers, Grafana and other tools.
//!
//! - Read-only. The database is the realm `main`; users give a token as password, in clear text: who comes over a network
//!   that is not trusted should ask for TLS, which is there once the server has a certificate.
//! - Messages, types and the tables of `pg_catalog` come from `pgwire`, `arrow-pg` and `datafusion-pg-catalog`; the exchange is ours:
//!   rows are sent as they come, with bounded memory; a statement stops at its time limit, when it is cancelled, when its client
//!   leaves, when its client's token is withdrawn or expires (which ends the session), and when the server stops.
//! - Every session has its own engine context, prepared statements, cursors and settings, all bounded.
//!
//! The flow: [`serve`] accepts → `connection` (one task each) → `encryption` (TLS) → `startup` (who) → `session` (what each message does) →
//! `command` (commands of the session) or `question` (planned through `catalog`, run by the engine) → `rows` and `encode` → `wire`.

mod cancel;
mod catalog;
mod command;
mod connection;
mod encode;
mod encryption;
mod error;
mod metrics;
mod params;
mod question;
mod rows;
mod session;
mod settings;
mod startup;
mod wire;

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::access::Refusal;
use crate::sql::{SqlEngine, SqlError};
use cancel::Sessions;
use catalog::Catalog;
pub use encryption::{PgStream, PgTls};
pub use metrics::PgMetrics;

/// The user that needs no password where anonymous access is allowed.
pub const ANONYMOUS: &str = "anonymous";
/// Connections that may be in their first exchange at once.
const PENDING_MAX: usize = 64;

/// Limits of the PostgreSQL protocol: section `[postgres]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PgConfig {
    /// Whether clients must ask for TLS.
    pub tls_required: bool,
    /// Sessions at once; more are refused.
    pub sessions_max: usize,
    /// Longest first exchange, in seconds.
    pub startup_timeout_s: u64,
    /// A session without a statement for so long is closed, in seconds.
    pub idle_timeout_s: u64,
    /// Largest message of a client, in bytes.
    pub message_bytes_max: usize,
    /// When the server stops, sessions have so long to hear of it, in milliseconds.
    pub drain_ms: u64,
}

impl Default for PgConfig {
    fn default() -> Self {
        Self {
            tls_required: false,
            sessions_max: 100,
            startup_timeout_s: 60,
            idle_timeout_s: 3600,
            message_bytes_max: 16 << 20,
            drain_ms: 2000,
        }
    }
}

/// What a user may do. Everybody only reads here; the role is for the log and for what is to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Administrator.
    Admin,
    /// Reads.
    Reader,
}

/// A user who was let in.
pub struct PgUser {
    /// What he may do.
    pub role: Role,
    /// Resolves when he has to go, and says why.
    pub must_go: Pin<Box<dyn Future<Output = Refusal> + Send>>,
}

/// Who may connect.
#[async_trait]
pub trait PgAuth: Send + Sync {
    /// Lets the user in, if the password, a token, is right.
    ///
    /// # Errors
    /// It is not, or the address is kept out.
    async fn verify(&self, user: &str, password: &str, remote: Option<IpAddr>) -> Result<PgUser, Refusal>;

    /// Lets [`ANONYMOUS`] in without a password, where that is allowed.
    fn anonymous(&self, _remote: Option<IpAddr>) -> Option<PgUser> {
        None
    }
}

/// What all connections share.
struct Shared {
    engine: Arc<SqlEngine>,
    catalog: Catalog,
    auth: Arc<dyn PgAuth>,
    config: PgConfig,
    sessions: Arc<Sessions>,
    slots: Arc<Semaphore>,
    metrics: PgMetrics,
    tls: Option<Arc<dyn PgTls>>,
}

/// Serves connections until `shutdown` resolves; then tells every session and returns within a bounded time.
///
/// # Errors
/// The catalog tables cannot be set up over the engine's tables.
pub async fn serve(
    listener: TcpListener,
    engine: Arc<SqlEngine>,
    auth: Arc<dyn PgAuth>,
    config: PgConfig,
    metrics: PgMetrics,
    tls: Option<Arc<dyn PgTls>>,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), SqlError> {
    let catalog = Catalog::new(&engine).map_err(|error| engine.error(&error))?;
    let shared = Arc::new(Shared {
        catalog,
        auth,
        sessions: Arc::default(),
        slots: Arc::new(Semaphore::new(config.sessions_max)),
        metrics,
        tls,
        config,
        engine,
    });
    let pending = Arc::new(Semaphore::new(PENDING_MAX));
    let (stop, stopping) = watch::channel(false);
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a PostgreSQL session failed");
                }
                continue;
            }
            accepted = accept(&listener, &pending) => accepted,
        };
        match accepted {
            Ok((stream, place)) => {
                connections.spawn(connection::serve(stream, Arc::clone(&shared), stopping.clone(), place));
            }
            Err(error) => {
                // Out of file descriptors, most likely: give others time to close theirs.
                tracing::warn!(%error, "cannot accept a PostgreSQL connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    // Nobody listens when there is no connection.
    let _ = stop.send(true);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(Duration::from_millis(shared.config.drain_ms), drained).await.is_err() {
        connections.shutdown().await;
    }
    Ok(())
}

async fn accept(
    listener: &TcpListener,
    pending: &Arc<Semaphore>,
) -> std::io::Result<(tokio::net::TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = Arc::clone(pending).acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, place))
}
