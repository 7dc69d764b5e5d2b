//! The registry: realms, devices, decoders, routes, tokens, passwords, rules about topics and bans, in SQLite.
//!
//! - One file, WAL, full synchronisation: a change that was answered survives a power cut. Schema changes are
//!   migrations, embedded in the binary and applied on opening.
//! - Of a token only its SHA-256 is stored. Tokens are cached in memory whole, so checking one touches no disk.
//! - Every change raises [`Registry::subscribe`]'s generation, after it is committed and visible.
//! - Devices, tokens, passwords, rules and bans belong to a realm; decoders are those of the realm `main`.
//!
//! The SQL is kept to what SQLite and PostgreSQL have in common.

mod access;
mod decoders;
mod devices;
mod passwords;
mod routes;
mod tokens;

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use catchment_decode::RuleError;
use catchment_types::BadName;
use parking_lot::{Mutex, RwLock};
use sqlx::SqlSafeStr;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use thiserror::Error;
use tokio::sync::watch;

pub use access::{Access, AclRecord, BanRecord, Banned, RealmRecord, device_name};
pub use decoders::{DEFAULT_DECODER, DecoderRecord};
pub use devices::{DeviceRecord, Labels};
pub use passwords::{BadPasswordConfig, PasswordConfig, PasswordError};
pub use tokens::{Identity, NewToken, Role, TOKEN_PREFIX, TokenRecord};

/// How long a writer waits for another before it gives up.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECTIONS_MAX: u32 = 4;

/// What went wrong in the registry.
#[derive(Debug, Error)]
pub enum RegistryError {
    /// The file cannot be opened or brought up to date.
    #[error("the registry {path} cannot be opened: {source}", path = path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: sqlx::Error,
    },
    /// The file was written by a newer version, or a migration failed.
    #[error("the registry {path} cannot be brought up to date: {source}; was it written by a newer version?", path = path.display())]
    Migrate {
        /// The file.
        path: PathBuf,
        /// Why.
        source: sqlx::migrate::MigrateError,
    },
    /// A statement failed: disk full, file locked by another process for too long.
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

/// Devices, decoders and tokens.
#[derive(Debug)]
pub struct Registry {
    pool: SqlitePool,
    tokens: RwLock<HashMap<[u8; 32], Arc<Identity>>>,
    generation: watch::Sender<u64>,
    applying: tokio::sync::Mutex<()>,
    access: RwLock<Arc<Access>>,
    access_changes: watch::Sender<u64>,
    loading_access: tokio::sync::Mutex<()>,
    withdrawn: Mutex<access::Withdrawn>,
    passwords: passwords::Passwords,
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
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT)
            .foreign_keys(true);
        let pool = SqlitePoolOptions::new()
            .max_connections(CONNECTIONS_MAX)
            .connect_with(options)
            .await
            .map_err(|source| RegistryError::Open { path: path.to_owned(), source })?;
        migrator()
            .run(&pool)
            .await
            .map_err(|source| RegistryError::Migrate { path: path.to_owned(), source })?;
        let registry = Self {
            pool,
            tokens: RwLock::default(),
            generation: watch::Sender::new(0),
            applying: tokio::sync::Mutex::default(),
            access: RwLock::default(),
            access_changes: watch::Sender::new(0),
            loading_access: tokio::sync::Mutex::default(),
            withdrawn: Mutex::default(),
            passwords: passwords::Passwords::new(passwords)?,
        };
        registry.load_access().await?;
        registry.load_tokens().await?;
        Ok(registry)
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

    fn changed(&self) {
        self.generation.send_modify(|generation| *generation += 1);
    }
}

fn migrator() -> Migrator {
    let migration = |version, description, sql: &'static str| {
        Migration::new(version, Cow::Borrowed(description), MigrationType::Simple, sql.into_sql_str(), false)
    };
    Migrator::with_migrations(vec![
        migration(1, "registry", include_str!("../migrations/0001_registry.sql")),
        migration(2, "admission", include_str!("../migrations/0002_admission.sql")),
        migration(3, "routes", include_str!("../migrations/0003_routes.sql")),
    ])
}
