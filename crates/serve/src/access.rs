//! What reading needs of admission, which the composition root implements: who shows a secret, whether who came in may
//! stay, and the parts of access control that are not in the registry.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use catchment_store::registry::{AclRecord, BanRecord, Identity};
use thiserror::Error;
use tokio::sync::watch;

/// Why the door does not open, or why somebody has to go.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The secret is not valid, or no longer.
    #[error("the token is not valid")]
    Invalid,
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// Its address or its owner is kept out for so long.
    #[error("kept out for another {} s", .0.as_secs().max(1))]
    Banned(Duration),
}

/// Somebody who was let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// The holder of a token; nobody in particular where no token is needed.
    pub identity: Option<Arc<Identity>>,
    /// From where.
    pub remote: Option<IpAddr>,
    /// When. From a moment before the token was looked at, so that nothing is withdrawn unseen in between.
    pub since: Instant,
    /// When the token ends by itself.
    pub expires_at: Option<Instant>,
}

impl Guest {
    /// Nobody in particular.
    #[must_use]
    pub fn anonymous(remote: Option<IpAddr>) -> Self {
        Self { identity: None, remote, since: Instant::now(), expires_at: None }
    }

    /// A name for lists and logs.
    #[must_use]
    pub fn name(&self) -> &str {
        self.identity.as_ref().map_or("anonymous", |identity| &identity.name)
    }
}

/// Admission as REST, WebSockets and the PostgreSQL protocol see it.
#[async_trait]
pub trait Access: Send + Sync + 'static {
    /// Who shows this token, from where.
    ///
    /// # Errors
    /// It is not valid, or kept out.
    fn identify(&self, secret: &str, remote: Option<IpAddr>) -> Result<Guest, Refusal>;

    /// Whether somebody who came in may stay.
    ///
    /// # Errors
    /// Says why not.
    fn may_stay(&self, guest: &Guest) -> Result<(), Refusal>;

    /// Wakes when somebody who came in may have to go.
    fn changes(&self) -> watch::Receiver<u64>;

    /// Waits until connected devices follow what has been changed, for a bounded time.
    async fn settled(&self);

    /// Whether a rule about topics can be followed.
    ///
    /// # Errors
    /// Says what is wrong with it.
    fn check_rule(&self, rule: &AclRecord) -> Result<(), String>;

    /// Bans that came of failed logins.
    fn automatic_bans(&self) -> Vec<BanRecord>;

    /// Lifts such a ban; whether there was one.
    fn lift_automatic(&self, id: &str) -> bool;
}

/// Resolves when a guest has to go, and says why.
pub async fn must_go(access: Arc<dyn Access>, guest: Guest) -> Refusal {
    let mut changes = access.changes();
    let expiry = async {
        match guest.expires_at {
            Some(at) => tokio::time::sleep_until(at.into()).await,
            None => std::future::pending().await,
        }
    };
    let withdrawn = async {
        loop {
            if let Err(refusal) = access.may_stay(&guest) {
                return refusal;
            }
            // When nobody is left to change anything, the server is going down, which is told by other ways.
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        refusal = withdrawn => refusal,
        () = expiry => Refusal::Expired,
    }
}
