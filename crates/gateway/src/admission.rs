//! Who may come in, and what they may do: decided by [`Admission`], which the composition root implements.

mod acl;
mod limits;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use thiserror::Error;
use tokio::sync::watch;

pub use acl::{Acl, AclRule, Action, BadAclRule, Effect, Subject};
pub use catchment_types::RateLimits;
pub use limits::{ClientLimits, Meter};

use crate::transport::PeerCertificate;

/// What a client shows of itself.
#[derive(Debug, Clone, Copy)]
pub struct Credentials<'a> {
    /// MQTT client id; empty for HTTP, and where the server assigns one.
    pub client_id: &'a str,
    /// MQTT user name, or that of HTTP Basic.
    pub username: Option<&'a str>,
    /// MQTT password, or that of HTTP Basic, or an HTTP bearer token.
    pub password: Option<&'a [u8]>,
    /// Where the client connects from, when that is known.
    pub remote: Option<SocketAddr>,
    /// The certificate of a client that showed one in a TLS handshake; verified.
    pub certificate: Option<&'a PeerCertificate>,
    /// What it comes for.
    pub purpose: Purpose,
}

/// What credentials are shown for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A connection that stays: it counts against the limit of connections a second.
    Connection,
    /// One request.
    Request,
}

/// What a client is allowed to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// Anything, as any device.
    Admin,
    /// Reads everything, publishes nothing.
    Reader,
    /// Publishes and reads as this one device.
    Device(Arc<str>),
}

/// A client that was let in.
#[derive(Debug, Clone)]
pub struct Principal {
    /// The realm that its topics and events belong to.
    pub realm: Arc<str>,
    /// For logs: a token's name, a user, `anonymous`.
    pub name: Arc<str>,
    /// What it may do.
    pub role: Role,
    /// Its MQTT client id, the assigned one too; none for HTTP.
    pub client_id: Option<Arc<str>>,
    /// The user name it gave.
    pub username: Option<Arc<str>>,
    /// What let it in, in the words of the [`Admission`] that did: by this it is found again when that is withdrawn.
    pub credential: Option<Arc<str>>,
    /// When it was let in.
    pub since: Instant,
    /// When its admission ends by itself.
    pub expires_at: Option<Instant>,
    /// How much it may send.
    pub limits: Option<Arc<ClientLimits>>,
}

impl Principal {
    /// A principal without limits whose admission does not end.
    #[must_use]
    pub fn new(realm: impl Into<Arc<str>>, name: impl Into<Arc<str>>, role: Role) -> Self {
        Self {
            realm: realm.into(),
            name: name.into(),
            role,
            client_id: None,
            username: None,
            credential: None,
            since: Instant::now(),
            expires_at: None,
            limits: None,
        }
    }

    /// Whose MQTT sessions are this client's: a device's own, else those of its name.
    pub(crate) fn owner(&self) -> String {
        match &self.role {
            Role::Device(device_id) => format!("device:{device_id}"),
            Role::Admin | Role::Reader => format!("name:{}", self.name),
        }
    }
}

/// Why a client was not let in.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Denied {
    /// Credentials are missing or wrong.
    #[error("the credentials are missing or wrong")]
    BadCredentials,
    /// The credentials are good but not for this.
    #[error("not allowed: {0}")]
    NotAllowed(String),
    /// It cannot be decided now.
    #[error("admission cannot be decided now: {0}")]
    Unavailable(String),
    /// Too often; worth another try after this time.
    #[error("too many attempts; try again in {} s", .retry_after.as_secs().max(1))]
    TooMany {
        /// How long to wait.
        retry_after: Duration,
    },
    /// Kept out for now, whatever it shows.
    #[error("banned for another {} s", .left.as_secs().max(1))]
    Banned {
        /// How long the ban lasts.
        left: Duration,
    },
}

impl Denied {
    /// The name in metrics and logs.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::BadCredentials => "bad_credentials",
            Self::NotAllowed(_) => "not_allowed",
            Self::Unavailable(_) => "unavailable",
            Self::TooMany { .. } => "too_many",
            Self::Banned { .. } => "banned",
        }
    }
}

/// Decides who comes in. Called once per MQTT connection and once per HTTP request; the decisions on topics are called on
/// the hot path and must neither wait nor do I/O.
#[async_trait]
pub trait Admission: Send + Sync + 'static {
    /// Lets a client in.
    ///
    /// # Errors
    /// Says why not.
    async fn authenticate(&self, credentials: Credentials<'_>) -> Result<Principal, Denied>;

    /// Whether clients without credentials are let in. Web pages of other sites are kept out then.
    fn admits_anonymous(&self) -> bool {
        false
    }

    /// Whether connections from this address are accepted at all.
    fn admits_address(&self, _address: IpAddr) -> bool {
        true
    }

    /// Wakes when what was decided may be decided otherwise now.
    fn changes(&self) -> Option<watch::Receiver<u64>> {
        None
    }

    /// All connections follow what was decided as of this change, by the number that [`Self::changes`] gave.
    fn followed(&self, _change: u64) {}

    /// Whether a connected client may stay; brings its limits up to date.
    ///
    /// # Errors
    /// Says why not.
    fn recheck(&self, _principal: &mut Principal, _remote: Option<SocketAddr>) -> Result<(), Denied> {
        Ok(())
    }

    /// Whether `principal` may publish to `topic`. `device_id` is the device that the topic leads to, if it leads to one.
    fn may_publish(&self, principal: &Principal, topic: &str, device_id: Option<&str>) -> bool {
        principal.may_publish_by_role(topic, device_id)
    }

    /// Whether `principal` may subscribe to `filter` (without the part that shares it).
    fn may_subscribe(&self, principal: &Principal, filter: &str) -> bool {
        principal.may_subscribe_by_role(filter)
    }
}

impl Principal {
    /// What a role may publish where no rule says otherwise.
    #[must_use]
    pub fn may_publish_by_role(&self, topic: &str, device_id: Option<&str>) -> bool {
        match (&self.role, device_id) {
            (Role::Admin, _) => true,
            (Role::Reader, _) => false,
            (Role::Device(own), Some(device_id)) => **own == *device_id,
            // Its own corner of the topics, for instance the results of commands.
            (Role::Device(own), None) => is_below_device(topic, own),
        }
    }

    /// What a role may subscribe to where no rule says otherwise.
    #[must_use]
    pub fn may_subscribe_by_role(&self, filter: &str) -> bool {
        match &self.role {
            Role::Admin | Role::Reader => true,
            Role::Device(own) => is_below_device(filter, own),
        }
    }
}

/// Whether a topic or filter is `devices/{device_id}/…` with this device id spelled out.
fn is_below_device(topic: &str, device_id: &str) -> bool {
    let below = topic.strip_prefix("devices/").and_then(|rest| rest.strip_prefix(device_id));
    below.is_some_and(|below| below.starts_with('/'))
}

/// Lets everybody do everything, in realm `main`. For listeners on loopback only, and for tests.
#[derive(Debug, Clone, Copy, Default)]
pub struct AdmitAll;

#[async_trait]
impl Admission for AdmitAll {
    async fn authenticate(&self, _credentials: Credentials<'_>) -> Result<Principal, Denied> {
        Ok(Principal::new(catchment_types::DEFAULT_REALM, "anonymous", Role::Admin))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn principal(role: Role) -> Principal {
        Principal::new("main", "n", role)
    }

    #[test]
    fn a_device_stays_in_its_corner() {
        let device = principal(Role::Device("d1".into()));
        assert!(AdmitAll.may_publish(&device, "devices/d1/state", Some("d1")));
        assert!(!AdmitAll.may_publish(&device, "devices/d2/state", Some("d2")));
        assert!(!AdmitAll.may_publish(&device, "plant/d1", None));
        assert!(AdmitAll.may_publish(&device, "devices/d1/commands/7/result", None));
        assert!(!AdmitAll.may_publish(&device, "devices/d10/commands/7/result", None));
        assert!(AdmitAll.may_subscribe(&device, "devices/d1/#"));
        for foreign in ["#", "devices/+/state", "devices/d1", "devices/d1#", "devices/d10/#"] {
            assert!(!AdmitAll.may_subscribe(&device, foreign), "{foreign}");
        }
    }

    #[test]
    fn a_reader_does_not_publish() {
        let reader = principal(Role::Reader);
        assert!(AdmitAll.may_subscribe(&reader, "#") && !AdmitAll.may_publish(&reader, "a", None));
    }
}
