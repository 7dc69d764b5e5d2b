//! Admission of those who read: by REST, WebSocket and the PostgreSQL protocol. Only holders of tokens do.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use catchment_gateway::{Principal, Role};
use catchment_serve::access::{Access, Guest, Refusal, must_go};
use catchment_serve::pg::{PgAuth, PgUser, Role as PgRole};
use catchment_store::registry::{AclRecord, BanRecord, Identity, Role as TokenRole};
use catchment_types::DEFAULT_REALM;
use tokio::sync::watch;

use super::jwt::Jwt;
use super::{RegistryAdmission, compile, token_name};

/// How long an answer waits for connected devices to follow what it changed. A connection whose events the log has no
/// room for follows later.
const SETTLE_MAX: Duration = Duration::from_secs(5);

#[async_trait]
impl Access for RegistryAdmission {
    fn identify(&self, secret: &str, remote: Option<IpAddr>) -> Result<Guest, Refusal> {
        if let Some(left) = remote.and_then(|remote| self.address_ban(remote)) {
            return Err(Refusal::Banned(left));
        }
        let guest = Guest::anonymous(remote);
        let by_token = || Some((self.registry.verify(secret)?, None));
        let by_jwt = || {
            let claims = self.jwt.as_ref().filter(|_| Jwt::is_one(secret))?.verify(secret)?;
            let principal = self.by_claims(claims).ok()?;
            Some((identity(&principal), principal.expires_at))
        };
        let (identity, expires_at) = by_token().or_else(by_jwt).ok_or_else(|| {
            self.note_failure(remote);
            Refusal::Invalid
        })?;
        Ok(Guest { identity: Some(identity), expires_at, ..guest })
    }

    fn may_stay(&self, guest: &Guest) -> Result<(), Refusal> {
        if guest.expires_at.is_some_and(|at| at <= Instant::now()) {
            return Err(Refusal::Expired);
        }
        if let Some(identity) = &guest.identity {
            let device = identity.device_id.as_deref().map(|id| (identity.realm.as_str(), id));
            if self.is_withdrawn(Some(&token_name(identity)), device, guest.since) {
                return Err(Refusal::Invalid);
            }
        }
        match guest.remote.and_then(|remote| self.compiled().network_ban(remote)) {
            Some(left) => Err(Refusal::Banned(left)),
            None => Ok(()),
        }
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.registry.subscribe_access()
    }

    async fn settled(&self) {
        let change = *self.registry.subscribe_access().borrow();
        let mut followed = self.followed.subscribe();
        let follow = followed.wait_for(|followed| *followed >= change);
        if tokio::time::timeout(SETTLE_MAX, follow).await.is_err() {
            tracing::warn!("some connected devices do not follow a change of who may do what yet");
        }
    }

    fn check_rule(&self, rule: &AclRecord) -> Result<(), String> {
        compile(rule).map(drop).map_err(|error| error.to_string())
    }

    fn automatic_bans(&self) -> Vec<BanRecord> {
        self.failed.list()
    }

    fn lift_automatic(&self, id: &str) -> bool {
        self.failed.lift(id)
    }
}

/// A principal that came by a JSON web token, as REST knows holders of tokens.
fn identity(principal: &Principal) -> Arc<Identity> {
    let (role, device_id) = match &principal.role {
        Role::Admin => (TokenRole::Admin, None),
        Role::Reader => (TokenRole::Reader, None),
        Role::Device(id) => (TokenRole::Device, Some(id.to_string())),
    };
    Arc::new(Identity {
        token_id: principal.name.to_string(),
        realm: principal.realm.to_string(),
        name: principal.name.to_string(),
        role,
        device_id,
    })
}

/// Admission of PostgreSQL users.
pub(crate) struct PgAdmission(pub(crate) Arc<RegistryAdmission>);

impl PgAdmission {
    fn user(&self, role: PgRole, guest: Guest) -> PgUser {
        let access = Arc::clone(&self.0) as Arc<dyn Access>;
        PgUser { role, must_go: Box::pin(must_go(access, guest)) }
    }
}

#[async_trait]
impl PgAuth for PgAdmission {
    async fn verify(&self, _user: &str, password: &str, remote: Option<IpAddr>) -> Result<PgUser, Refusal> {
        let guest = self.0.identify(password, remote)?;
        let identity = guest.identity.as_ref().filter(|identity| identity.realm == DEFAULT_REALM);
        match identity.map(|identity| identity.role) {
            Some(TokenRole::Admin) => Ok(self.user(PgRole::Admin, guest)),
            Some(TokenRole::Reader) => Ok(self.user(PgRole::Reader, guest)),
            Some(TokenRole::Device) | None => Err(Refusal::Invalid),
        }
    }

    fn anonymous(&self, remote: Option<IpAddr>) -> Option<PgUser> {
        self.0.anonymous.then(|| self.user(PgRole::Reader, Guest::anonymous(remote)))
    }
}
