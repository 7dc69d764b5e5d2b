//! Who may come in, by MQTT, HTTP ingest, REST and the PostgreSQL protocol, and what they may do.
//!
//! | shown | by whom | is |
//! | --- | --- | --- |
//! | `ctm_…` as password or bearer token | any user name | a token of the registry |
//! | a JSON web token as password or bearer token | any user name | signed by somebody who is trusted, see `jwt.rs` |
//! | anything else as password | device id, or `REALM/DEVICE_ID` | the password of that device |
//! | a certificate and no password | | the device that it names (`certificate.rs`) |
//! | nothing | | let in only while every listener is on loopback |
//! | a password where there is none to compare it with | a device without one, in realm `main` | as with nothing |
//!
//! Realms, rules, bans and limits are compiled from the registry when they have changed; checks read memory only.

mod certificate;
mod config;
mod failures;
mod jwt;
mod reading;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use catchment_gateway::transport::CertificateIdentity;
use catchment_gateway::{
    Acl, AclRule, Admission, BadAclRule, ClientLimits, Credentials, Denied, Meter, Principal, Purpose,
    RateLimits, Role,
};
use catchment_store::registry::{
    Access, AclRecord, Banned, Identity, PasswordError, Registry, RegistryError, Role as TokenRole,
    TOKEN_PREFIX, device_name,
};
use catchment_types::{DEFAULT_REALM, Timestamp, check_device_id};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

pub(crate) use self::config::AdmissionConfig;
use self::failures::FailedLogins;
use self::jwt::{Claims, Jwt};
pub(crate) use self::reading::PgAdmission;

/// Shared by all connections that have no other name.
static ANONYMOUS: LazyLock<Arc<str>> = LazyLock::new(|| "anonymous".into());

/// Meters of devices; those that owe nothing are forgotten first.
const METERS_MAX: usize = 1_000_000;
/// How long a ban without an end is said to last.
const FOR_NOW: Duration = Duration::from_secs(3600);

/// Admission by the registry.
pub(crate) struct RegistryAdmission {
    registry: Arc<Registry>,
    anonymous: bool,
    identity: CertificateIdentity,
    jwt: Option<Arc<Jwt>>,
    failed: FailedLogins,
    compiled: RwLock<Arc<Compiled>>,
    meters: Mutex<Meters>,
    /// The newest change that all connected devices follow.
    followed: watch::Sender<u64>,
}

/// What [`Access`] says, in a form that is quick to ask.
#[derive(Default)]
struct Compiled {
    source: Arc<Access>,
    acl: HashMap<String, Acl>,
    /// By kind, realm and value, with the end.
    named_bans: HashMap<(&'static str, String, String), Option<Timestamp>>,
    networks: Vec<(Banned, Option<Timestamp>)>,
}

#[derive(Default)]
struct Meters {
    realms: HashMap<String, Arc<Meter>>,
    devices: HashMap<(String, String), Arc<Meter>>,
    /// Looked through when there are so many.
    sweep_at: usize,
}

impl Compiled {
    fn new(source: Arc<Access>) -> Self {
        let mut compiled = Self::default();
        let mut rules: HashMap<String, Vec<AclRule>> = HashMap::new();
        for record in &source.acl {
            match compile(record) {
                Ok(rule) => rules.entry(record.realm.clone()).or_default().push(rule),
                Err(error) => {
                    tracing::error!(id = record.id, %error, "a rule cannot be followed and is left out")
                }
            }
        }
        compiled.acl = rules.into_iter().map(|(realm, rules)| (realm, rules.into_iter().collect())).collect();
        for ban in &source.bans {
            match &ban.banned {
                Banned::Network(..) => compiled.networks.push((ban.banned.clone(), ban.until)),
                Banned::Device(value) | Banned::Client(value) => {
                    let key = (ban.banned.kind(), ban.realm.clone(), value.clone());
                    // Of several bans the one that lasts longest counts; none lasts for ever.
                    let last = compiled.named_bans.entry(key).or_insert(ban.until);
                    *last = last.zip(ban.until).map(|(a, b)| a.max(b));
                }
            }
        }
        compiled.source = source;
        compiled
    }

    fn network_ban(&self, address: IpAddr) -> Option<Duration> {
        let mut bans = self.networks.iter().filter(|(network, _)| network.has_address(address));
        bans.find_map(|(_, until)| left(*until))
    }

    fn named_ban(&self, kind: &'static str, realm: &str, value: &str) -> Option<Duration> {
        if self.named_bans.is_empty() {
            return None;
        }
        left(*self.named_bans.get(&(kind, realm.to_owned(), value.to_owned()))?)
    }
}

/// What is left of a ban with this end.
fn left(until: Option<Timestamp>) -> Option<Duration> {
    let Some(until) = until else { return Some(FOR_NOW) };
    let micros = until.as_micros().saturating_sub(Timestamp::now().as_micros());
    u64::try_from(micros).ok().filter(|&micros| micros > 0).map(Duration::from_micros)
}

fn compile(record: &AclRecord) -> Result<AclRule, BadAclRule> {
    AclRule::new(record.subject.parse()?, record.action.parse()?, record.effect.parse()?, &record.filter)
}

impl Meters {
    /// The meter of these limits: the one that is there, unless the limits have changed.
    fn get<K: std::hash::Hash + Eq>(
        meters: &mut HashMap<K, Arc<Meter>>,
        key: K,
        limits: RateLimits,
    ) -> Arc<Meter> {
        let meter = meters.entry(key).or_insert_with(|| Arc::new(Meter::new(limits)));
        if meter.limits() != limits {
            *meter = Arc::new(Meter::new(limits));
        }
        Arc::clone(meter)
    }

    fn of_device(&mut self, realm: &str, device_id: &str, limits: RateLimits) -> Arc<Meter> {
        if self.devices.len() >= self.sweep_at.max(1024) {
            self.devices.retain(|_, meter| !meter.is_idle());
            if self.devices.len() >= METERS_MAX {
                self.devices.clear();
            }
            self.sweep_at = self.devices.len() * 2;
        }
        Self::get(&mut self.devices, (realm.to_owned(), device_id.to_owned()), limits)
    }
}

impl RegistryAdmission {
    /// `anonymous`: whether clients without credentials are let in; `identity`: what of a certificate names its device.
    /// Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// The key of JSON web tokens cannot be used.
    pub(crate) fn new(
        registry: Arc<Registry>,
        anonymous: bool,
        identity: CertificateIdentity,
        config: &AdmissionConfig,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            registry,
            anonymous,
            identity,
            jwt: Jwt::new(config.jwt.clone())?,
            failed: FailedLogins::new(config.bans.clone())?,
            compiled: RwLock::default(),
            meters: Mutex::default(),
            followed: watch::Sender::new(0),
        })
    }

    /// What the registry says now.
    fn compiled(&self) -> Arc<Compiled> {
        let source = self.registry.access();
        {
            let compiled = self.compiled.read();
            if Arc::ptr_eq(&compiled.source, &source) {
                return Arc::clone(&compiled);
            }
        }
        let compiled = Arc::new(Compiled::new(source));
        *self.compiled.write() = Arc::clone(&compiled);
        compiled
    }

    fn address_ban(&self, address: IpAddr) -> Option<Duration> {
        self.failed.left(address).or_else(|| self.compiled().network_ban(address))
    }

    /// Whether a client is kept out, by its address or its names.
    fn check_bans(
        &self,
        principal: &Principal,
        client_id: &str,
        remote: Option<SocketAddr>,
    ) -> Result<(), Denied> {
        let compiled = self.compiled();
        let of_device = match &principal.role {
            Role::Device(id) => compiled.named_ban("device", &principal.realm, id),
            Role::Admin | Role::Reader => None,
        };
        let left = of_device
            .or_else(|| compiled.named_ban("client", &principal.realm, client_id))
            .or_else(|| remote.and_then(|remote| compiled.network_ban(remote.ip())));
        left.map_or(Ok(()), |left| Err(Denied::Banned { left }))
    }

    /// The meters of a client; none when nothing is limited.
    fn limits(&self, principal: &Principal) -> Option<Arc<ClientLimits>> {
        let access = self.registry.access();
        let realm = access.realms.get(&*principal.realm)?;
        if realm.limits.is_unlimited() && realm.device_limits.is_unlimited() {
            return None;
        }
        let meters = &mut *self.meters.lock();
        let of_realm = (!realm.limits.is_unlimited())
            .then(|| Meters::get(&mut meters.realms, realm.name.clone(), realm.limits));
        let of_device = match &principal.role {
            Role::Device(id) if !realm.device_limits.is_unlimited() => {
                Some(meters.of_device(&realm.name, id, realm.device_limits))
            }
            _ => None,
        };
        (of_realm.is_some() || of_device.is_some())
            .then(|| Arc::new(ClientLimits { device: of_device, realm: of_realm }))
    }

    /// Who shows these credentials, whatever else is to be said of him.
    async fn identify_client(&self, credentials: Credentials<'_>) -> Result<Principal, Denied> {
        if let (None, Some(shown)) = (credentials.password, credentials.certificate)
            && let Some(device_id) = shown.device_id(self.identity)
        {
            return certificate::principal(shown, device_id);
        }
        let anonymous = || Principal::new(DEFAULT_REALM, Arc::clone(&ANONYMOUS), Role::Admin);
        let Some(password) = credentials.password else {
            return self.anonymous.then(anonymous).ok_or(Denied::BadCredentials);
        };
        // Whoever shows a token means it: a wrong one is refused on loopback too.
        let text = std::str::from_utf8(password).unwrap_or_default();
        if text.starts_with(TOKEN_PREFIX) {
            let identity = self.registry.verify(text).ok_or(Denied::BadCredentials)?;
            return by_token(&identity);
        }
        if let Some(jwt) = self.jwt.as_ref().filter(|_| Jwt::is_one(text)) {
            let claims = jwt.verify(text).ok_or(Denied::BadCredentials)?;
            return self.by_claims(claims);
        }
        let username = credentials.username.ok_or(Denied::BadCredentials)?;
        let (realm, device_id) = username.split_once('/').unwrap_or((DEFAULT_REALM, username));
        // Many clients always send a user name and a password. Who needs neither is not turned away for them; but a password
        // that is set has to be right.
        if self.anonymous
            && realm == DEFAULT_REALM
            && !self.registry.has_password(realm, device_id).await.map_err(|error| undecided(&error))?
        {
            return Ok(anonymous());
        }
        let good = self.registry.verify_password(realm, device_id, password).await;
        match good {
            Ok(true) => {}
            Ok(false) => return Err(Denied::BadCredentials),
            Err(PasswordError::Busy) => {
                return Err(Denied::Unavailable("too many logins at once".to_owned()));
            }
            Err(PasswordError::Registry(error)) => return Err(undecided(&error)),
        }
        let mut principal = Principal::new(realm, device_id, Role::Device(device_id.into()));
        principal.credential = Some(format!("password:{realm}/{device_id}").into());
        Ok(principal)
    }

    fn by_claims(&self, claims: Claims) -> Result<Principal, Denied> {
        let realm = claims.realm.unwrap_or_else(|| DEFAULT_REALM.to_owned());
        if !self.registry.access().realms.contains_key(&realm) {
            return Err(Denied::NotAllowed(format!("there is no realm {realm:?}")));
        }
        let role = match claims.role.as_deref().unwrap_or("device") {
            "admin" => Role::Admin,
            "reader" => Role::Reader,
            "device" => {
                let device_id = claims.device_id.unwrap_or_default();
                check_device_id(&device_id).map_err(|error| Denied::NotAllowed(error.to_string()))?;
                Role::Device(device_id.into())
            }
            role => return Err(Denied::NotAllowed(format!("there is no role {role:?}"))),
        };
        let mut principal = Principal::new(realm, format!("jwt:{}", claims.subject), role);
        principal.expires_at = Some(claims.expires_at);
        Ok(principal)
    }

    /// Whether what somebody came in by has been withdrawn since.
    fn is_withdrawn(&self, credential: Option<&str>, device: Option<(&str, &str)>, since: Instant) -> bool {
        let withdrawn = |name: &str| self.registry.was_withdrawn(name, since);
        credential.is_some_and(withdrawn)
            || device.is_some_and(|(realm, device_id)| withdrawn(&device_name(realm, device_id)))
    }

    fn note_failure(&self, remote: Option<IpAddr>) {
        if let Some(remote) = remote {
            self.failed.note(remote);
        }
    }
}

/// Checks the settings, and the files that they name.
///
/// # Errors
/// Names the setting, and what is wrong with it.
pub(crate) fn check(config: &AdmissionConfig) -> anyhow::Result<()> {
    config.check()?;
    Jwt::check(&config.jwt)
}

/// The registry is needed for an answer and gives none.
fn undecided(error: &RegistryError) -> Denied {
    tracing::error!(%error, "a password could not be verified");
    Denied::Unavailable("the registry failed".to_owned())
}

fn by_token(identity: &Identity) -> Result<Principal, Denied> {
    let role = match (identity.role, &identity.device_id) {
        (TokenRole::Admin, _) => Role::Admin,
        (TokenRole::Reader, _) => Role::Reader,
        (TokenRole::Device, Some(device_id)) => Role::Device(device_id.as_str().into()),
        (TokenRole::Device, None) => {
            return Err(Denied::NotAllowed(format!("the token {:?} names no device", identity.name)));
        }
    };
    let mut principal = Principal::new(identity.realm.as_str(), identity.name.as_str(), role);
    principal.credential = Some(token_name(identity).into());
    Ok(principal)
}

/// The name under which a token is withdrawn.
fn token_name(identity: &Identity) -> String {
    format!("token:{}", identity.token_id)
}

#[async_trait]
impl Admission for RegistryAdmission {
    async fn authenticate(&self, credentials: Credentials<'_>) -> Result<Principal, Denied> {
        let Credentials { client_id, username, remote, purpose, .. } = credentials;
        // Before anything is looked at: what is withdrawn meanwhile counts.
        let since = Instant::now();
        if let Some(left) = remote.and_then(|remote| self.address_ban(remote.ip())) {
            return Err(Denied::Banned { left });
        }
        let identified = self.identify_client(credentials).await;
        if matches!(identified, Err(Denied::BadCredentials)) && credentials.password.is_some() {
            self.note_failure(remote.map(|remote| remote.ip()));
        }
        let mut principal = identified?;
        principal.since = since;
        principal.username = username.map(Into::into);
        self.check_bans(&principal, client_id, remote)?;
        principal.limits = self.limits(&principal);
        if let (Purpose::Connection, Some(limits)) = (purpose, &principal.limits) {
            limits.connect().map_err(|retry_after| Denied::TooMany { retry_after })?;
        }
        Ok(principal)
    }

    fn admits_anonymous(&self) -> bool {
        self.anonymous
    }

    fn admits_address(&self, address: IpAddr) -> bool {
        self.address_ban(address).is_none()
    }

    fn changes(&self) -> Option<watch::Receiver<u64>> {
        Some(self.registry.subscribe_access())
    }

    fn followed(&self, change: u64) {
        self.followed.send_replace(change);
    }

    fn recheck(&self, principal: &mut Principal, remote: Option<SocketAddr>) -> Result<(), Denied> {
        let device = match &principal.role {
            Role::Device(id) => Some((&*principal.realm, &**id)),
            Role::Admin | Role::Reader => None,
        };
        if self.is_withdrawn(principal.credential.as_deref(), device, principal.since) {
            return Err(Denied::BadCredentials);
        }
        let client_id = principal.client_id.clone().unwrap_or_default();
        self.check_bans(principal, &client_id, remote)?;
        principal.limits = self.limits(principal);
        Ok(())
    }

    fn may_publish(&self, principal: &Principal, topic: &str, device_id: Option<&str>) -> bool {
        match self.compiled().acl.get(&*principal.realm) {
            Some(acl) => acl.may_publish(principal, topic, device_id),
            None => principal.may_publish_by_role(topic, device_id),
        }
    }

    fn may_subscribe(&self, principal: &Principal, filter: &str) -> bool {
        match self.compiled().acl.get(&*principal.realm) {
            Some(acl) => acl.may_subscribe(principal, filter),
            None => principal.may_subscribe_by_role(filter),
        }
    }
}

#[cfg(test)]
mod tests;
