//! Passwords of devices: argon2id at rest, and a cache of those that were verified.
//!
//! A hash takes tens of milliseconds and megabytes on purpose. Hashing therefore has threads of its own, at most
//! `concurrent_max` at a time, and a bounded queue before them: a flood of logins is answered "busy", and takes neither the
//! machine nor its memory. Whoever was verified a moment ago is found in a cache instead, which makes reconnecting
//! cheap. The cache holds keyed SHA-256 of what was shown, under a key that dies with the process; it is bounded, forgets
//! after `cache_s`, and forgets a device at once when its password changes. Wrong passwords are remembered for a moment too,
//! so that a device that keeps trying one costs one hash.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use argon2::{Algorithm, Argon2, Block, Params, Version};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use catchment_threads::{ThreadPool, Urgency};
use catchment_types::Timestamp;
use foldhash::fast::RandomState;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;
use tokio::sync::Semaphore;

use super::tokens::random;
use super::{Registry, RegistryError};

const HASH_BYTES: usize = 32;
const SALT_BYTES: usize = 16;
/// Length of a password.
const PASSWORD_BYTES: std::ops::RangeInclusive<usize> = 8..=256;
/// How long a wrong password is known to be wrong.
const WRONG_KEPT: Duration = Duration::from_secs(10);

/// How passwords are hashed and remembered: section `[admission.passwords]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PasswordConfig {
    /// Memory of one hash, in KiB. What is stored keeps the parameters that it was made with.
    pub memory_kib: u32,
    /// Passes over that memory.
    pub passes: u32,
    /// Hashes at one time.
    pub concurrent_max: usize,
    /// Logins that may wait for one; others are told to come again.
    pub waiting_max: usize,
    /// Verified passwords that are remembered.
    pub cache_entries_max: usize,
    /// For how many seconds after their last use; 0: not at all.
    pub cache_s: u64,
}

impl Default for PasswordConfig {
    fn default() -> Self {
        Self {
            // The first choice of OWASP's password storage cheat sheet.
            memory_kib: Params::DEFAULT_M_COST,
            passes: Params::DEFAULT_T_COST,
            concurrent_max: 1,
            waiting_max: 256,
            cache_entries_max: 100_000,
            cache_s: 900,
        }
    }
}

/// Parameters that cannot work.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("admission.passwords.{field} is {value}; it must be from {min} to {max}")]
pub struct BadPasswordConfig {
    field: &'static str,
    value: u64,
    min: u64,
    max: u64,
}

impl PasswordConfig {
    /// Checks the limits.
    ///
    /// # Errors
    /// Names the field and what it may be.
    pub fn check(&self) -> Result<(), BadPasswordConfig> {
        let fields = [
            ("memory_kib", u64::from(self.memory_kib), 8, 4 << 20),
            ("passes", self.passes.into(), 1, 100),
            ("concurrent_max", self.concurrent_max as u64, 1, 1024),
            ("waiting_max", self.waiting_max as u64, 1, 1 << 20),
            ("cache_entries_max", self.cache_entries_max as u64, 1, 10_000_000),
            ("cache_s", self.cache_s, 0, 86_400),
        ];
        match fields.into_iter().find(|&(_, value, min, max)| !(min..=max).contains(&value)) {
            Some((field, value, min, max)) => Err(BadPasswordConfig { field, value, min, max }),
            None => Ok(()),
        }
    }
}

/// Why a password could not be verified.
#[derive(Debug, Error)]
pub enum PasswordError {
    /// As many logins wait as may.
    #[error("too many logins at once")]
    Busy,
    /// The registry failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

type Key = [u8; 32];

#[derive(Debug)]
struct Entry {
    device: Arc<str>,
    good: bool,
    until: Instant,
}

/// Two generations: when the young one is full it becomes the old one, and what is used moves back. So the oldest go
/// first, and nothing is ever sorted.
#[derive(Debug, Default)]
struct Cache {
    young: HashMap<Key, Entry, RandomState>,
    old: HashMap<Key, Entry, RandomState>,
    /// Changes with every change of a password.
    epoch: u64,
}

impl Cache {
    fn find(&mut self, key: &Key, now: Instant, kept: Duration, entries_max: usize) -> Option<bool> {
        if let Some(entry) = self.young.get_mut(key).filter(|entry| entry.until > now) {
            if entry.good {
                entry.until = now + kept;
            }
            return Some(entry.good);
        }
        let entry = self.old.remove(key).filter(|entry| entry.until > now)?;
        let good = entry.good;
        self.insert(*key, entry, entries_max);
        Some(good)
    }

    fn insert(&mut self, key: Key, entry: Entry, entries_max: usize) {
        if self.young.len() >= entries_max.div_ceil(2) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, entry);
    }

    fn forget_all(&mut self) {
        *self = Self { epoch: self.epoch + 1, ..Self::default() };
    }

    fn forget(&mut self, device: &str) {
        self.epoch += 1;
        self.young.retain(|_, entry| *entry.device != *device);
        self.old.retain(|_, entry| *entry.device != *device);
    }
}

/// What verifies passwords.
#[derive(Debug)]
pub(super) struct Passwords {
    config: PasswordConfig,
    key: Key,
    cache: Mutex<Cache>,
    hashing: Arc<Semaphore>,
    threads: ThreadPool,
    waiting: AtomicUsize,
}

impl Passwords {
    pub(super) fn new(config: PasswordConfig) -> Result<Self, RegistryError> {
        Ok(Self {
            key: random()?,
            cache: Mutex::default(),
            hashing: Arc::new(Semaphore::new(config.concurrent_max.max(1))),
            threads: ThreadPool::new("password", Urgency::Soon, config.concurrent_max),
            waiting: AtomicUsize::new(0),
            config,
        })
    }

    fn key(&self, device: &str, password: &[u8]) -> Key {
        let mut hasher = Sha256::new_with_prefix(self.key);
        hasher.update((device.len() as u64).to_le_bytes());
        hasher.update(device);
        hasher.update(password);
        hasher.finalize().into()
    }

    fn remembered(&self, key: &Key) -> Option<bool> {
        let kept = Duration::from_secs(self.config.cache_s);
        self.cache.lock().find(key, Instant::now(), kept, self.config.cache_entries_max)
    }

    /// Forgets everything about a device.
    pub(super) fn forget(&self, realm: &str, device_id: &str) {
        self.cache.lock().forget(&format!("{realm}/{device_id}"));
    }

    /// Forgets everything.
    pub(super) fn forget_all(&self) {
        self.cache.lock().forget_all();
    }

    /// Runs a hash when it is its turn.
    async fn hash<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
        is_needed: impl FnOnce() -> Option<T>,
    ) -> Result<T, PasswordError> {
        let waiting = Waiting::enter(&self.waiting, self.config.waiting_max).ok_or(PasswordError::Busy)?;
        // The semaphore is never closed.
        let permit = Arc::clone(&self.hashing).acquire_owned().await.map_err(|_| PasswordError::Busy)?;
        drop(waiting);
        // Another login with the same password may have been verified meanwhile.
        if let Some(known) = is_needed() {
            return Ok(known);
        }
        let hashing = self.threads.run(move || {
            // Held until the work is done: who hangs up does not make room for one more.
            let _permit = permit;
            work()
        });
        hashing.await.map_err(|_| PasswordError::Busy)
    }
}

struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn enter(count: &'a AtomicUsize, max: usize) -> Option<Self> {
        let entered = Self(count);
        (count.fetch_add(1, Ordering::Relaxed) < max).then_some(entered)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Registry {
    /// Sets the password of a registered device; without one given, makes one. Gives it, to be shown this once. Whoever is
    /// connected by the old one is sent away.
    ///
    /// # Errors
    /// The password is too short or too long, or the device is not registered.
    pub async fn set_password(
        &self,
        realm: &str,
        device_id: &str,
        password: Option<&str>,
    ) -> Result<String, RegistryError> {
        let password = match password {
            Some(password) => password.to_owned(),
            None => URL_SAFE_NO_PAD.encode(random::<18>()?),
        };
        if !PASSWORD_BYTES.contains(&password.len()) {
            let (min, max) = (PASSWORD_BYTES.start(), PASSWORD_BYTES.end());
            return Err(RegistryError::Invalid(format!("a password has {min} to {max} bytes")));
        }
        if self.device_in(realm, device_id).await?.is_none() {
            return Err(RegistryError::NotFound { what: "device", id: device_id.to_owned() });
        }
        let (config, salt, secret) =
            (self.passwords.config.clone(), random::<SALT_BYTES>()?, password.clone());
        let hashing = self.passwords.hash(move || make(&config, &salt, secret.as_bytes()), || None);
        let stored = hashing.await.map_err(|error| RegistryError::Invalid(error.to_string()))??;
        sqlx::query(
            "INSERT INTO passwords (realm, device_id, argon2id, updated_at) VALUES ($1, $2, $3, $4)
             ON CONFLICT (realm, device_id) DO UPDATE SET argon2id = $3, updated_at = $4",
        )
        .bind(realm)
        .bind(device_id)
        .bind(stored)
        .bind(Timestamp::now().as_micros())
        .execute(&self.pool)
        .await?;
        self.passwords.forget(realm, device_id);
        self.withdraw(format!("password:{realm}/{device_id}")).await;
        self.changed_here();
        Ok(password)
    }

    /// Takes a device's password away; whether it had one.
    ///
    /// # Errors
    /// The registry failed.
    pub async fn delete_password(&self, realm: &str, device_id: &str) -> Result<bool, RegistryError> {
        let deleted = sqlx::query("DELETE FROM passwords WHERE realm = $1 AND device_id = $2")
            .bind(realm)
            .bind(device_id)
            .execute(&self.pool)
            .await?;
        self.passwords.forget(realm, device_id);
        self.withdraw(format!("password:{realm}/{device_id}")).await;
        Ok(deleted.rows_affected() > 0)
    }

    /// Whether a device has a password at all.
    ///
    /// # Errors
    /// The registry failed.
    pub async fn has_password(&self, realm: &str, device_id: &str) -> Result<bool, RegistryError> {
        let query = "SELECT device_id FROM passwords WHERE realm = $1 AND device_id = $2";
        let row: Option<(String,)> =
            sqlx::query_as(query).bind(realm).bind(device_id).fetch_optional(&self.pool).await?;
        Ok(row.is_some())
    }

    /// Whether this is the device's password.
    ///
    /// # Errors
    /// Too many logins at once, or the registry failed.
    pub async fn verify_password(
        &self,
        realm: &str,
        device_id: &str,
        password: &[u8],
    ) -> Result<bool, PasswordError> {
        if !PASSWORD_BYTES.contains(&password.len()) {
            return Ok(false);
        }
        let passwords = &self.passwords;
        let device = format!("{realm}/{device_id}");
        let key = passwords.key(&device, password);
        if let Some(good) = passwords.remembered(&key) {
            return Ok(good);
        }
        let epoch = passwords.cache.lock().epoch;
        let row: Option<(String,)> =
            sqlx::query_as("SELECT argon2id FROM passwords WHERE realm = $1 AND device_id = $2")
                .bind(realm)
                .bind(device_id)
                .fetch_optional(&self.pool)
                .await
                .map_err(RegistryError::from)?;
        let (config, secret) = (passwords.config.clone(), password.to_vec());
        let work = move || match row {
            Some((stored,)) => fits(&stored, &secret),
            // As long as with a device that there is, so that the time does not tell which there are.
            None => derive(config.memory_kib, config.passes, &[0; SALT_BYTES], &secret).is_err(),
        };
        let good = passwords.hash(work, || passwords.remembered(&key)).await?;
        let kept = if good { Duration::from_secs(passwords.config.cache_s) } else { WRONG_KEPT };
        let entry = Entry { device: device.into(), good, until: Instant::now() + kept };
        let mut cache = passwords.cache.lock();
        // A password that was changed meanwhile must not come into the cache as it was.
        if cache.epoch == epoch {
            cache.insert(key, entry, passwords.config.cache_entries_max);
        }
        Ok(good)
    }
}

thread_local! {
    /// Kept from one hash to the next, until the thread ends: to have megabytes from the system each time takes a good part of
    /// the time of a hash, and holds up all others who have memory from it.
    static MEMORY: RefCell<Vec<Block>> = const { RefCell::new(Vec::new()) };
}

fn derive(
    memory_kib: u32,
    passes: u32,
    salt: &[u8],
    password: &[u8],
) -> Result<[u8; HASH_BYTES], argon2::Error> {
    let params = Params::new(memory_kib, passes, 1, Some(HASH_BYTES))?;
    let mut hash = [0; HASH_BYTES];
    MEMORY.with_borrow_mut(|memory| {
        if let Some(more) = params.block_count().checked_sub(memory.len()) {
            memory.try_reserve_exact(more).map_err(|_| argon2::Error::OutOfMemory)?;
            memory.resize(params.block_count(), Block::default());
        }
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into_with_memory(password, salt, &mut hash, memory)
    })?;
    Ok(hash)
}

/// A hash in the PHC string format.
fn make(config: &PasswordConfig, salt: &[u8], password: &[u8]) -> Result<String, RegistryError> {
    let PasswordConfig { memory_kib, passes, .. } = config;
    let hash = derive(*memory_kib, *passes, salt, password)
        .map_err(|error| RegistryError::Invalid(format!("the password cannot be hashed: {error}")))?;
    let (salt, hash) = (STANDARD_NO_PAD.encode(salt), STANDARD_NO_PAD.encode(hash));
    Ok(format!("$argon2id$v=19$m={memory_kib},t={passes},p=1${salt}${hash}"))
}

/// Whether a password is that of a stored hash, whatever its parameters were.
fn fits(stored: &str, password: &[u8]) -> bool {
    let read = || {
        let rest = stored.strip_prefix("$argon2id$v=19$m=")?;
        let (memory_kib, rest) = rest.split_once(",t=")?;
        let (passes, rest) = rest.split_once(",p=1$")?;
        let (salt, hash) = rest.split_once('$')?;
        let (salt, hash) = (STANDARD_NO_PAD.decode(salt).ok()?, STANDARD_NO_PAD.decode(hash).ok()?);
        let derived = derive(memory_kib.parse().ok()?, passes.parse().ok()?, &salt, password).ok()?;
        // Every byte is looked at, so that the time does not tell how many fit.
        let differences = derived.iter().zip(&hash).fold(0, |all, (a, b)| all | (a ^ b));
        Some(hash.len() == HASH_BYTES && differences == 0)
    };
    read().unwrap_or_else(|| {
        tracing::error!("the registry holds a password hash that cannot be read");
        false
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_read_back_with_the_parameters_they_were_made_with() {
        let config = PasswordConfig { memory_kib: 64, passes: 1, ..PasswordConfig::default() };
        let stored = make(&config, &[7; SALT_BYTES], b"correct horse").unwrap();
        assert!(stored.starts_with("$argon2id$v=19$m=64,t=1,p=1$"), "{stored}");
        assert!(fits(&stored, b"correct horse") && !fits(&stored, b"correct hors"));
        assert!(!fits("$argon2id$nonsense", b"correct horse"));
    }

    #[test]
    fn memory_that_another_hash_has_used_changes_nothing() {
        let hash = |memory_kib| derive(memory_kib, 2, &[7; SALT_BYTES], b"a password").unwrap();
        let on_its_own = |memory_kib| std::thread::spawn(move || hash(memory_kib)).join().unwrap();
        let sizes = [64, 1024, 8, 256];
        assert_eq!(sizes.map(hash), sizes.map(on_its_own));
    }

    #[test]
    fn the_cache_is_bounded_and_forgets() {
        let mut cache = Cache::default();
        let (now, kept) = (Instant::now(), Duration::from_secs(10));
        let entry = |device: &str, good| Entry { device: device.into(), good, until: now + kept };
        for n in 0..100u8 {
            cache.insert([n; 32], entry("main/a", true), 10);
            assert!(cache.young.len() + cache.old.len() <= 10);
        }
        assert_eq!(cache.find(&[99; 32], now, kept, 10), Some(true));
        assert_eq!(cache.find(&[0; 32], now, kept, 10), None);
        assert_eq!(cache.find(&[99; 32], now + 2 * kept, kept, 10), None, "its time is over");
        cache.insert([200; 32], entry("main/b", false), 10);
        cache.forget("main/a");
        assert_eq!(cache.find(&[98; 32], now, kept, 10), None);
        assert_eq!(cache.find(&[200; 32], now, kept, 10), Some(false));
    }

    #[test]
    fn limits_are_checked() {
        assert_eq!(PasswordConfig::default().check(), Ok(()));
        let bad = PasswordConfig { memory_kib: 1, ..PasswordConfig::default() };
        assert!(bad.check().unwrap_err().to_string().contains("memory_kib is 1"));
    }
}
