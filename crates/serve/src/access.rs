//! What REST needs of admission, which the composition root implements: who shows a secret, and the parts of access control
//! that are not in the registry.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use catchment_store::registry::{AclRecord, BanRecord, Identity};

/// Why a secret does not open the door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// It is not valid.
    Invalid,
    /// Its address or its owner is kept out for so long.
    Banned(Duration),
}

/// Admission as REST sees it.
pub trait Access: Send + Sync + 'static {
    /// Who shows this token, from where.
    ///
    /// # Errors
    /// It is not valid, or kept out.
    fn identify(&self, secret: &str, remote: Option<IpAddr>) -> Result<Arc<Identity>, Refusal>;

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
