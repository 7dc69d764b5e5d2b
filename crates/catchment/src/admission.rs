//! Who may come in, by MQTT, HTTP ingest and the PostgreSQL protocol: decided by the registry's tokens.
//!
//! A token is the password, whatever the user name, or the bearer token of an HTTP request. Without one, a client is let in
//! by its certificate as the device that this names (`certificate`), or while every listener is on loopback.

mod certificate;

use std::sync::Arc;

use async_trait::async_trait;
use catchment_gateway::transport::CertificateIdentity;
use catchment_gateway::{Admission, Credentials, Denied, Principal, Role};
use catchment_serve::pg::{PgAuth, Role as PgRole};
use catchment_store::registry::{Identity, Registry, Role as TokenRole};
use catchment_types::DEFAULT_REALM;

/// Admission by the registry.
pub(crate) struct RegistryAdmission {
    registry: Arc<Registry>,
    anonymous: Option<Principal>,
    identity: CertificateIdentity,
}

impl RegistryAdmission {
    /// `anonymous`: whether clients without credentials are let in; `identity`: what of a certificate names its device.
    pub(crate) fn new(registry: Arc<Registry>, anonymous: bool, identity: CertificateIdentity) -> Self {
        let anonymous = anonymous.then(|| Principal::new(DEFAULT_REALM, "anonymous", Role::Admin));
        Self { registry, anonymous, identity }
    }
}

#[async_trait]
impl Admission for RegistryAdmission {
    async fn authenticate(&self, credentials: Credentials<'_>) -> Result<Principal, Denied> {
        if let (None, Some(shown)) = (credentials.password, credentials.certificate)
            && let Some(device_id) = shown.device_id(self.identity)
        {
            return certificate::principal(shown, device_id);
        }
        match (credentials.password, &self.anonymous) {
            // Whoever shows a token means it: a wrong one is refused on loopback too.
            (Some(password), _) => {
                let secret = std::str::from_utf8(password).map_err(|_| Denied::BadCredentials)?;
                let identity = self.registry.verify(secret).ok_or(Denied::BadCredentials)?;
                principal(&identity)
            }
            (None, Some(anonymous)) => Ok(anonymous.clone()),
            (None, None) => Err(Denied::BadCredentials),
        }
    }

    fn admits_anonymous(&self) -> bool {
        self.anonymous.is_some()
    }
}

#[async_trait]
impl PgAuth for RegistryAdmission {
    async fn verify(&self, _user: &str, password: &str) -> Option<PgRole> {
        match self.registry.verify(password)?.role {
            TokenRole::Admin => Some(PgRole::Admin),
            TokenRole::Reader => Some(PgRole::Reader),
            TokenRole::Device => None,
        }
    }

    fn anonymous_allowed(&self) -> bool {
        self.anonymous.is_some()
    }
}

fn principal(identity: &Identity) -> Result<Principal, Denied> {
    let role = match (identity.role, &identity.device_id) {
        (TokenRole::Admin, _) => Role::Admin,
        (TokenRole::Reader, _) => Role::Reader,
        (TokenRole::Device, Some(device_id)) => Role::Device(device_id.as_str().into()),
        (TokenRole::Device, None) => {
            return Err(Denied::NotAllowed(format!("the token {:?} names no device", identity.name)));
        }
    };
    Ok(Principal::new(DEFAULT_REALM, identity.name.as_str(), role))
}

#[cfg(test)]
mod tests {
    use catchment_gateway::Purpose;
    use catchment_store::registry::NewToken;

    use super::*;

    fn password(password: Option<&str>) -> Credentials<'_> {
        Credentials {
            client_id: "c",
            username: Some("u"),
            password: password.map(str::as_bytes),
            remote: None,
            certificate: None,
            purpose: Purpose::Connection,
        }
    }

    #[tokio::test]
    async fn tokens_open_the_door() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Arc::new(Registry::open(&dir.path().join("r.sqlite")).await.unwrap());
        let token = NewToken { name: "boss", role: TokenRole::Admin, device_id: None };
        let (_, secret) = registry.create_token(token).await.unwrap();
        let private = RegistryAdmission::new(Arc::clone(&registry), true, CertificateIdentity::Cn);
        let open = RegistryAdmission::new(registry, false, CertificateIdentity::Cn);
        for admission in [&private, &open] {
            let boss = admission.authenticate(password(Some(&secret))).await.unwrap();
            assert_eq!((&*boss.name, boss.role), ("boss", Role::Admin));
            assert_eq!(
                admission.authenticate(password(Some("wrong"))).await.unwrap_err(),
                Denied::BadCredentials
            );
        }
        assert_eq!(&*private.authenticate(password(None)).await.unwrap().name, "anonymous");
        assert_eq!(open.authenticate(password(None)).await.unwrap_err(), Denied::BadCredentials);
    }
}
