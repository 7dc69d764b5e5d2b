//! The registry: realms, devices, decoders, routes, tokens, passwords, rules about topics and bans, in SQLite or PostgreSQL.
//!
//! - SQLite: one file, WAL, full synchronisation: a change that was answered survives a power cut. PostgreSQL: a database
//!   that processes share; they tell each other of changes (`share`). Schema changes are migrations, the same for both,
//!   embedded in the binary and applied on opening.
//! - Of a token only its SHA-256 is stored. Tokens are cached in memory whole, so checking one touches no disk.
//! - Every change raises [`Registry::subscribe`]'s generation, after it is committed and visible.
//! - Devices, tokens, passwords, rules and bans belong to a realm; decoders are those of the realm `main`.
//!
//! The SQL is kept to what SQLite and PostgreSQL have in common, and to texts and 64-bit integers.

mod access;
mod copy;
mod decoders;
mod devices;
mod passwords;
mod place;
mod routes;
mod share;
mod tokens;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use catchment_decode::RuleError;
use catchment_types::BadName;
use parking_lot::{Mutex, RwLock};
use sqlx::AnyPool;
use thiserror::Error;
use tokio::sync::watch;

pub use access::{Access, AclRecord, BanRecord, Banned, RealmRecord, device_name};
pub use copy::{CopiedTable, CopyError, copy};
pub use decoders::{DEFAULT_DECODER, DecoderRecord};
pub use devices::{DeviceRecord, Labels};
pub use passwords::{BadPasswordConfig, PasswordConfig, PasswordError};
pub use place::RegistryPlace;
use share::Change;
pub use tokens::{Identity, NewToken, Role, TOKEN_PREFIX, TokenRecord};

/// What went wrong in the registry.
#[derive(Debug, Error)]
pub enum RegistryError {
    /// The file cannot be opened, or the database cannot be reached.
    #[error("the registry {place} cannot be opened: {source}")]
    Open {
        /// Where it is.
        place: RegistryPlace,
        /// Why.
        source: sqlx::Error,
    },
    /// It was written by a newer version, or a migration failed.
    #[error(
        "the registry {place} cannot be brought up to date: {source}; was it written by a newer version?"
    )]
    Migrate {
        /// Where it is.
        place: RegistryPlace,
        /// Why.
        source: sqlx::migrate::MigrateError,
    },
    /// A statement failed: disk full, file locked by another process for too long, database out of reach.
    #[error("the registry failed: {0}")]
    Database(#[from] sqlx::Error),
    /// A row holds something that this version cannot read.
    #[error("the registry holds a {what} for {id} that cannot be read: {reason}")]
    Unreadable {
        /// What kind of row.
        what: &'static str,
        /// Which one.
        id: String,
        /// Why.
        reason: String,
    },
    /// A name that cannot be used.
    #[error(transparent)]
    Name(#[from] BadName),
    /// A decoder's rule that cannot work.
    #[error("the decoder's rule cannot work: {0}")]
    Rule(#[from] RuleError),
    /// Labels, a token's name or role that cannot be kept.
    #[error("{0}")]
    Invalid(String),
    /// It exists already.
    #[error("the {what} {id} exists already")]
    Exists {
        /// What.
        what: &'static str,
        /// Which one.
        id: String,
    },
    /// It does not exist.
    #[error("there is no {what} {id}")]
    NotFound {
        /// What.
        what: &'static str,
        /// Which one.
        id: String,
    },
    /// Without an administrator's token nobody could make another.
    #[error("this is the last administrator token; make another one first")]
    LastAdmin,
}

impl RegistryError {
    /// Whether the database is out of reach: the same call may succeed once it is there again.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        use sqlx::Error as Sqlx;
        matches!(self, Self::Database(Sqlx::Io(_) | Sqlx::Tls(_) | Sqlx::PoolTimedOut | Sqlx::WorkerCrashed))
    }
}

/// Devices, decoders and tokens.
#[derive(Debug)]
pub struct Registry {
    place: RegistryPlace,
    /// Tells this process's changes from others'.
    node: String,
    pool: AnyPool,
    tokens: RwLock<HashMap<[u8; 32], Arc<Identity>>>,
    generation: watch::Sender<u64>,
    applying: tokio::sync::Mutex<()>,
    access: RwLock<Arc<Access>>,
    access_changes: watch::Sender<u64>,
    loading_access: tokio::sync::Mutex<()>,
    withdrawn: Mutex<access::Withdrawn>,
    passwords: passwords::Passwords,
    /// Why other processes' changes are not heard.
    trouble: Mutex<Option<String>>,
}

impl Registry {
    /// Opens or creates the registry in a file.
    ///
    /// # Errors
    /// The file cannot be used, was written by a newer version, or holds what cannot be read.
    pub async fn open(path: &Path) -> Result<Self, RegistryError> {
        Self::open_with(path, PasswordConfig::default()).await
    }

    /// [`Self::open`], with other settings for passwords than the defaults.
    ///
    /// # Errors
    /// As there.
    pub async fn open_with(path: &Path, passwords: PasswordConfig) -> Result<Self, RegistryError> {
        Self::open_at(RegistryPlace::File(path.to_owned()), passwords).await
    }

    /// Opens or creates the registry. One in PostgreSQL is to be followed: [`Self::follow`].
    ///
    /// # Errors
    /// It cannot be reached or used, was written by a newer version, or holds what cannot be read.
    pub async fn open_at(place: RegistryPlace, passwords: PasswordConfig) -> Result<Self, RegistryError> {
        let pool = place.open().await?;
        let registry = Self {
            place,
            node: hex::encode(tokens::random::<8>()?),
            pool,
            tokens: RwLock::default(),
            generation: watch::Sender::new(0),
            applying: tokio::sync::Mutex::default(),
            access: RwLock::default(),
            access_changes: watch::Sender::new(0),
            loading_access: tokio::sync::Mutex::default(),
            withdrawn: Mutex::default(),
            passwords: passwords::Passwords::new(passwords)?,
            trouble: Mutex::default(),
        };
        registry.load_access().await?;
        registry.load_tokens().await?;
        Ok(registry)
    }

    /// Whether other processes may change it.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        matches!(self.place, RegistryPlace::Postgres(_))
    }

    /// The number of changes so far; wakes on each.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// Closes the file; later calls fail. What was answered is on disk without it.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// A change of decoders, routes, devices or tokens that others are to know of.
    async fn changed(&self, change: Change) {
        self.changed_here();
        self.tell(change).await;
    }

    fn changed_here(&self) {
        self.generation.send_modify(|generation| *generation += 1);
    }
}
