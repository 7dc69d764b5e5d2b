//! Who may come in, and what they may do: decided by [`Admission`], which the composition root implements.

use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use thiserror::Error;

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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The realm that its topics and events belong to.
    pub realm: Arc<str>,
    /// For logs: a token's name, a user, `anonymous`.
    pub name: Arc<str>,
    /// What it may do.
    pub role: Role,
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

    /// Whether `principal` may publish to `topic`. `device_id` is the device that the topic leads to, if it leads to one.
    fn may_publish(&self, principal: &Principal, topic: &str, device_id: Option<&str>) -> bool {
        match (&principal.role, device_id) {
            (Role::Admin, _) => true,
            (Role::Reader, _) => false,
            (Role::Device(own), Some(device_id)) => **own == *device_id,
            // Its own corner of the topics, for instance the results of commands.
            (Role::Device(own), None) => is_below_device(topic, own),
        }
    }

    /// Whether `principal` may subscribe to `filter` (without the part that shares it).
    fn may_subscribe(&self, principal: &Principal, filter: &str) -> bool {
        match &principal.role {
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
        Ok(Principal {
            realm: catchment_types::DEFAULT_REALM.into(),
            name: "anonymous".into(),
            role: Role::Admin,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn principal(role: Role) -> Principal {
        Principal { realm: "main".into(), name: "n".into(), role }
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
