//! Realms, rules about topics, and bans: all of them in memory as one [`Access`], so that admission reads no disk; and what
//! was withdrawn a moment ago, so that whoever came in by it is sent away at once.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use catchment_types::{RateLimits, Timestamp, check_realm};
use tokio::sync::watch;

use super::share::Change;
use super::tokens::random;
use super::{Registry, RegistryError};

/// Most rules and bans.
const ROWS_MAX: usize = 10_000;
/// Most realms.
const REALMS_MAX: usize = 1_000;
/// After this time nobody is left who came in by something that was withdrawn.
const WITHDRAWN_KEPT: Duration = Duration::from_secs(300);
const TEXT_BYTES_MAX: usize = 1024;

/// A space of topics and devices of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RealmRecord {
    /// Its name.
    pub name: String,
    /// Of all its devices together.
    pub limits: RateLimits,
    /// Of each of its devices.
    pub device_limits: RateLimits,
    /// When it was made; the epoch for `main`.
    pub created_at: Timestamp,
}

/// A rule about topics, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AclRecord {
    /// For removing it.
    pub id: String,
    /// Of which realm.
    pub realm: String,
    /// `all`, `readers`, `devices` or `device:ID`.
    pub subject: String,
    /// `publish`, `subscribe` or `any`.
    pub action: String,
    /// `allow` or `deny`.
    pub effect: String,
    /// An MQTT filter with placeholders.
    pub filter: String,
    /// When it was made.
    pub created_at: Timestamp,
}

/// Who is kept out.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Banned {
    /// A device of the ban's realm.
    Device(String),
    /// An MQTT client id of the ban's realm.
    Client(String),
    /// All addresses that begin with these bits, whatever the realm.
    Network(IpAddr, u8),
}

/// Somebody who is kept out, and until when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BanRecord {
    /// For lifting it.
    pub id: String,
    /// Of which realm; of no meaning for addresses.
    pub realm: String,
    /// Who.
    pub banned: Banned,
    /// Why, for people.
    pub reason: String,
    /// When it ends by itself.
    pub until: Option<Timestamp>,
    /// When it began.
    pub created_at: Timestamp,
}

/// Everything that admission asks, as it was after some change.
#[derive(Debug, Default)]
pub struct Access {
    /// Realms by name.
    pub realms: BTreeMap<String, RealmRecord>,
    /// Rules, oldest first.
    pub acl: Vec<AclRecord>,
    /// Bans, oldest first; those that are over may still be there.
    pub bans: Vec<BanRecord>,
}

impl Banned {
    /// Reads `kind` (`device`, `client`, `address`) and value.
    ///
    /// # Errors
    /// There is no such kind, or the value is not one of it.
    pub fn parse(kind: &str, value: &str) -> Result<Self, RegistryError> {
        if value.is_empty() || value.len() > TEXT_BYTES_MAX {
            let message = format!("what is banned has 1 to {TEXT_BYTES_MAX} bytes");
            return Err(RegistryError::Invalid(message));
        }
        match kind {
            "device" => Ok(Self::Device(value.to_owned())),
            "client" => Ok(Self::Client(value.to_owned())),
            "address" => network(value).ok_or_else(|| {
                RegistryError::Invalid(format!(
                    "{value:?} is neither an address nor a network such as 10.0.0.0/8 or 2001:db8::/32"
                ))
            }),
            _ => Err(RegistryError::Invalid(format!(
                "{kind:?} cannot be banned; device, client and address can"
            ))),
        }
    }

    /// Which kind.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Device(_) => "device",
            Self::Client(_) => "client",
            Self::Network(..) => "address",
        }
    }

    /// Who, as [`Self::parse`] reads it.
    #[must_use]
    pub fn value(&self) -> String {
        match self {
            Self::Device(value) | Self::Client(value) => value.clone(),
            Self::Network(address, bits) if *bits == bits_of(*address) => address.to_string(),
            Self::Network(address, bits) => format!("{address}/{bits}"),
        }
    }

    /// Whether an address is in the network.
    #[must_use]
    pub fn has_address(&self, address: IpAddr) -> bool {
        let Self::Network(network, bits) = self else { return false };
        let shared = match (network, address.to_canonical()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
            (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
            _ => return false,
        };
        shared >= u32::from(*bits)
    }
}

fn network(text: &str) -> Option<Banned> {
    let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
    let address = address.parse::<IpAddr>().ok()?.to_canonical();
    let bits = bits.map_or(Ok(bits_of(address)), str::parse).ok()?;
    (bits <= bits_of(address)).then_some(Banned::Network(address, bits))
}

const fn bits_of(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

impl BanRecord {
    /// Whether it still holds.
    #[must_use]
    pub fn holds(&self, now: Timestamp) -> bool {
        self.until.is_none_or(|until| until > now)
    }
}

type RealmRow = (String, String, String, i64);
type AclRow = (String, String, String, String, String, String, i64);
type BanRow = (String, String, String, String, String, Option<i64>, i64);

impl Registry {
    /// What admission decides by.
    #[must_use]
    pub fn access(&self) -> Arc<Access> {
        Arc::clone(&self.access.read())
    }

    /// Wakes when something was withdrawn, or what admission decides by has changed; its value counts these changes.
    #[must_use]
    pub fn subscribe_access(&self) -> watch::Receiver<u64> {
        self.access_changes.subscribe()
    }

    /// Whether what is known by this name was withdrawn after `since`: `token:ID`, `device:REALM/ID`, `password:REALM/ID`.
    #[must_use]
    pub fn was_withdrawn(&self, name: &str, since: Instant) -> bool {
        self.withdrawn.lock().get(name).is_some_and(|at| *at >= since)
    }

    /// Withdraws here, and has others do so.
    pub(super) async fn withdraw(&self, name: String) {
        self.withdraw_here(name.clone());
        self.tell(Change::Withdrawn(name)).await;
    }

    pub(super) fn withdraw_here(&self, name: String) {
        let now = Instant::now();
        {
            let mut withdrawn = self.withdrawn.lock();
            withdrawn.retain(|_, at| now.duration_since(*at) < WITHDRAWN_KEPT);
            withdrawn.insert(name, now);
        }
        self.access_changes.send_modify(|changes| *changes += 1);
    }

    /// After a change of what admission decides by.
    async fn access_changed(&self) -> Result<(), RegistryError> {
        self.load_access().await?;
        self.tell(Change::Access).await;
        Ok(())
    }

    pub(super) async fn load_access(&self) -> Result<(), RegistryError> {
        // One at a time, or an older reading could replace a newer one.
        let _loading = self.loading_access.lock().await;
        let realms: Vec<RealmRow> =
            sqlx::query_as("SELECT name, limits, device_limits, created_at FROM realms")
                .fetch_all(&self.pool)
                .await?;
        let acl: Vec<AclRow> = sqlx::query_as(
            "SELECT id, realm, subject, action, effect, filter, created_at FROM acl ORDER BY created_at, id",
        )
        .fetch_all(&self.pool)
        .await?;
        let bans: Vec<BanRow> = sqlx::query_as(
            "SELECT id, realm, kind, value, reason, until, created_at FROM bans ORDER BY created_at, id",
        )
        .fetch_all(&self.pool)
        .await?;
        let realms = realms.into_iter().map(|row| realm(row).map(|record| (record.name.clone(), record)));
        let loaded = Access {
            realms: realms.collect::<Result<_, _>>()?,
            acl: acl.into_iter().map(rule).collect(),
            bans: bans.into_iter().map(ban).collect::<Result<_, _>>()?,
        };
        *self.access.write() = Arc::new(loaded);
        self.access_changes.send_modify(|changes| *changes += 1);
        Ok(())
    }

    /// Makes a realm, or changes the limits of one; whether it is new.
    ///
    /// # Errors
    /// The name cannot be used, or there are too many realms.
    pub async fn put_realm(
        &self,
        name: &str,
        limits: RateLimits,
        device_limits: RateLimits,
    ) -> Result<bool, RegistryError> {
        check_realm(name)?;
        let is_new = !self.access().realms.contains_key(name);
        if is_new && self.access().realms.len() >= REALMS_MAX {
            return Err(RegistryError::Invalid(format!("there are {REALMS_MAX} realms, which is the most")));
        }
        let json = |limits: RateLimits| {
            serde_json::to_string(&limits).map_err(|error| RegistryError::Invalid(error.to_string()))
        };
        sqlx::query(
            "INSERT INTO realms (name, limits, device_limits, created_at) VALUES ($1, $2, $3, $4)
             ON CONFLICT (name) DO UPDATE SET limits = $2, device_limits = $3",
        )
        .bind(name)
        .bind(json(limits)?)
        .bind(json(device_limits)?)
        .bind(Timestamp::now().as_micros())
        .execute(&self.pool)
        .await?;
        self.access_changed().await?;
        Ok(is_new)
    }

    /// Whether there is a realm of this name.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn check_known_realm(&self, name: &str) -> Result<(), RegistryError> {
        match self.access().realms.contains_key(name) {
            true => Ok(()),
            false => Err(RegistryError::NotFound { what: "realm", id: name.to_owned() }),
        }
    }

    /// Adds a rule; `id` and `created_at` are made here. Whether the words make sense is for the caller to check.
    ///
    /// # Errors
    /// There is no such realm, or there are too many rules.
    pub async fn create_acl(&self, mut record: AclRecord) -> Result<AclRecord, RegistryError> {
        self.check_known_realm(&record.realm)?;
        if self.access().acl.len() >= ROWS_MAX {
            return Err(RegistryError::Invalid(format!("there are {ROWS_MAX} rules, which is the most")));
        }
        record.id = hex::encode(random::<8>()?);
        record.created_at = Timestamp::now();
        sqlx::query(
            "INSERT INTO acl (id, realm, subject, action, effect, filter, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(&record.id)
        .bind(&record.realm)
        .bind(&record.subject)
        .bind(&record.action)
        .bind(&record.effect)
        .bind(&record.filter)
        .bind(record.created_at.as_micros())
        .execute(&self.pool)
        .await?;
        self.access_changed().await?;
        Ok(record)
    }

    /// Removes a rule; whether there was one.
    ///
    /// # Errors
    /// The registry failed.
    pub async fn delete_acl(&self, id: &str) -> Result<bool, RegistryError> {
        let deleted = sqlx::query("DELETE FROM acl WHERE id = $1").bind(id).execute(&self.pool).await?;
        self.access_changed().await?;
        Ok(deleted.rows_affected() > 0)
    }

    /// Keeps somebody out; `id` and `created_at` are made here. Bans that are over are forgotten on the way.
    ///
    /// # Errors
    /// There is no such realm, or there are too many bans.
    pub async fn create_ban(&self, mut record: BanRecord) -> Result<BanRecord, RegistryError> {
        self.check_known_realm(&record.realm)?;
        if record.reason.len() > TEXT_BYTES_MAX {
            return Err(RegistryError::Invalid(format!("a reason has at most {TEXT_BYTES_MAX} bytes")));
        }
        let now = Timestamp::now();
        sqlx::query("DELETE FROM bans WHERE until <= $1").bind(now.as_micros()).execute(&self.pool).await?;
        if self.access().bans.iter().filter(|ban| ban.holds(now)).count() >= ROWS_MAX {
            return Err(RegistryError::Invalid(format!("there are {ROWS_MAX} bans, which is the most")));
        }
        record.id = hex::encode(random::<8>()?);
        record.created_at = now;
        sqlx::query(
            "INSERT INTO bans (id, realm, kind, value, reason, until, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(&record.id)
        .bind(&record.realm)
        .bind(record.banned.kind())
        .bind(record.banned.value())
        .bind(&record.reason)
        .bind(record.until.map(Timestamp::as_micros))
        .bind(now.as_micros())
        .execute(&self.pool)
        .await?;
        self.access_changed().await?;
        Ok(record)
    }

    /// Lifts a ban; whether there was one.
    ///
    /// # Errors
    /// The registry failed.
    pub async fn delete_ban(&self, id: &str) -> Result<bool, RegistryError> {
        let deleted = sqlx::query("DELETE FROM bans WHERE id = $1").bind(id).execute(&self.pool).await?;
        self.access_changed().await?;
        Ok(deleted.rows_affected() > 0)
    }
}

fn realm((name, limits, device_limits, created_at): RealmRow) -> Result<RealmRecord, RegistryError> {
    let read = |json: &str| {
        serde_json::from_str(json).map_err(|error| RegistryError::Unreadable {
            what: "realm",
            id: name.clone(),
            reason: error.to_string(),
        })
    };
    let (limits, device_limits) = (read(&limits)?, read(&device_limits)?);
    Ok(RealmRecord { name, limits, device_limits, created_at: Timestamp(created_at) })
}

fn rule((id, realm, subject, action, effect, filter, created_at): AclRow) -> AclRecord {
    AclRecord { id, realm, subject, action, effect, filter, created_at: Timestamp(created_at) }
}

fn ban((id, realm, kind, value, reason, until, created_at): BanRow) -> Result<BanRecord, RegistryError> {
    let banned = Banned::parse(&kind, &value).map_err(|error| RegistryError::Unreadable {
        what: "ban",
        id: id.clone(),
        reason: error.to_string(),
    })?;
    let until = until.map(Timestamp);
    Ok(BanRecord { id, realm, banned, reason, until, created_at: Timestamp(created_at) })
}

/// The name under which a device is withdrawn.
#[must_use]
pub fn device_name(realm: &str, device_id: &str) -> String {
    format!("device:{realm}/{device_id}")
}

/// The parts of the registry's state that live in memory for admission.
pub(super) type Withdrawn = HashMap<String, Instant>;
