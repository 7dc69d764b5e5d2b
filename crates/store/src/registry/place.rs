//! Where the registry is: a SQLite file of this process, or a PostgreSQL database that several share.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sqlx::any::{AnyPoolOptions, install_default_drivers};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{AnyConnection, AnyPool, Connection, SqlSafeStr};

use super::RegistryError;

/// How long a writer waits for another before it gives up.
const BUSY_MS: u32 = 10_000;
const FILE_CONNECTIONS_MAX: u32 = 4;
const DATABASE_CONNECTIONS_MAX: u32 = 8;
/// How long a call waits for the database before it fails.
const ACQUIRE_MAX: Duration = Duration::from_secs(5);
/// Of migrations that only PostgreSQL needs: behind all that both have.
const POSTGRES_ONLY: i64 = 1_000_000;

/// Where a registry is kept.
#[derive(Clone, PartialEq, Eq)]
pub enum RegistryPlace {
    /// A SQLite file, made if there is none.
    File(PathBuf),
    /// A PostgreSQL database, as `postgres://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=…`.
    Postgres(String),
}

impl fmt::Display for RegistryPlace {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Postgres(url) => {
                let (scheme, rest) = url.split_once("://").unwrap_or(("postgres", ""));
                let address = rest.rsplit_once('@').map_or(rest, |(_, address)| address);
                // Options may hold paths of keys, and even a password.
                write!(f, "{scheme}://{}", address.split('?').next().unwrap_or_default())
            }
        }
    }
}

impl fmt::Debug for RegistryPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl RegistryPlace {
    /// Connects, and brings the tables up to date.
    pub(super) async fn open(&self) -> Result<AnyPool, RegistryError> {
        install_default_drivers();
        let failed = |source| RegistryError::Open { place: self.clone(), source };
        let pool = match self {
            Self::File(path) => file_pool(path).await.map_err(failed)?,
            Self::Postgres(url) => database_pool(url, DATABASE_CONNECTIONS_MAX).await.map_err(failed)?,
        };
        let migrated = self.migrator().run(&pool).await;
        migrated.map_err(|source| RegistryError::Migrate { place: self.clone(), source })?;
        Ok(pool)
    }

    /// What answers there, how long a question takes, and how its tables stand, for people. Changes nothing.
    ///
    /// # Errors
    /// It cannot be reached, or a newer version has written it.
    pub async fn probe(&self) -> Result<String, RegistryError> {
        let Self::Postgres(url) = self else { return Ok("SQLite".to_owned()) };
        install_default_drivers();
        let failed = |source| RegistryError::Open { place: self.clone(), source };
        let pool = database_pool(url, 1).await.map_err(failed)?;
        let (server,): (String,) =
            sqlx::query_as("SELECT current_setting('server_version')").fetch_one(&pool).await?;
        let asked = Instant::now();
        sqlx::query("SELECT 1").execute(&pool).await?;
        let took_ms = asked.elapsed().as_secs_f64() * 1e3;
        let (tables,): (i64,) = sqlx::query_as(
            "SELECT count(*) FROM information_schema.tables WHERE table_name = '_sqlx_migrations' AND table_schema = current_schema()",
        )
        .fetch_one(&pool)
        .await?;
        let applied: Vec<(i64,)> = match tables {
            0 => Vec::new(),
            _ => sqlx::query_as("SELECT version FROM _sqlx_migrations").fetch_all(&pool).await?,
        };
        pool.close().await;
        let known: Vec<i64> = self.migrator().iter().map(|migration| migration.version).collect();
        if let Some(&(version,)) = applied.iter().find(|(version,)| !known.contains(version)) {
            let source = sqlx::migrate::MigrateError::VersionMissing(version);
            return Err(RegistryError::Migrate { place: self.clone(), source });
        }
        let state = match known.len() - applied.len() {
            0 => "its tables are up to date",
            _ if applied.is_empty() => "it has no tables yet, a start makes them",
            _ => "its tables are older, a start brings them up to date",
        };
        let server = server.split(' ').next().unwrap_or_default();
        Ok(format!("PostgreSQL {server}, answers in {took_ms:.1} ms, {state}"))
    }

    fn migrator(&self) -> Migrator {
        let migration = |version, description, sql: &'static str| {
            let description = Cow::Borrowed(description);
            Migration::new(version, description, MigrationType::Simple, sql.into_sql_str(), false)
        };
        let mut migrations = vec![
            migration(1, "registry", include_str!("../../migrations/0001_registry.sql")),
            migration(2, "admission", include_str!("../../migrations/0002_admission.sql")),
            migration(3, "routes", include_str!("../../migrations/0003_routes.sql")),
        ];
        if let Self::Postgres(_) = self {
            let sql = include_str!("../../migrations/postgres_collation.sql");
            migrations.push(migration(POSTGRES_ONLY, "collation", sql));
        }
        Migrator::with_migrations(migrations)
    }
}

async fn database_pool(url: &str, connections_max: u32) -> Result<AnyPool, sqlx::Error> {
    // A pool tries again and again, and in the end tells of a timeout; one connection tells what is wrong.
    AnyConnection::connect(url).await?.close().await?;
    AnyPoolOptions::new().max_connections(connections_max).acquire_timeout(ACQUIRE_MAX).connect(url).await
}

async fn file_pool(path: &Path) -> Result<AnyPool, sqlx::Error> {
    let Some(name) = path.to_str() else {
        return Err(sqlx::Error::Configuration("the path of the registry is not UTF-8".into()));
    };
    // These three end a URL's path, or are its escape.
    let name = name.replace('%', "%25").replace('?', "%3F").replace('#', "%23");
    let options =
        AnyPoolOptions::new().max_connections(FILE_CONNECTIONS_MAX).after_connect(|connection, _| {
            Box::pin(async move {
                for pragma in [
                    format!("PRAGMA busy_timeout = {BUSY_MS}"),
                    "PRAGMA journal_mode = WAL".to_owned(),
                    "PRAGMA synchronous = FULL".to_owned(),
                    "PRAGMA foreign_keys = ON".to_owned(),
                ] {
                    sqlx::query(sqlx::AssertSqlSafe(pragma)).execute(&mut *connection).await?;
                }
                Ok(())
            })
        });
    options.connect(&format!("sqlite://{name}?mode=rwc")).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_has_no_secret() {
        let place = RegistryPlace::Postgres("postgres://u:p@ss@db:5432/catchment?password=x".to_owned());
        assert_eq!(place.to_string(), "postgres://db:5432/catchment");
        assert_eq!(format!("{place:?}"), "postgres://db:5432/catchment");
    }

    #[tokio::test]
    async fn any_path_will_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("50% of? #1 é.sqlite");
        RegistryPlace::File(path.clone()).open().await.unwrap().close().await;
        assert!(path.is_file());
    }
}
