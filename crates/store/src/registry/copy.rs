//! A registry's rows into another: from SQLite to PostgreSQL and back, as they are, hashes of tokens and passwords included.
//!
//! All of it is one transaction of the target, which is compared with the source before it is committed. So a copy is there
//! whole or not at all; one that was made before is found to be the same, and nothing is done.

use futures::TryStreamExt;
use sha2::{Digest, Sha256};
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, AssertSqlSafe, Connection, Row};
use thiserror::Error;

use super::{RegistryError, RegistryPlace};

/// Rows of one INSERT. Their values stay far below what either database takes as parameters.
const INSERT_ROWS: usize = 200;

/// What a column holds; NULL is possible in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Number,
}

use Kind::{Number, Text};

/// A table and its columns.
struct Table {
    name: &'static str,
    columns: &'static [(&'static str, Kind)],
}

/// All tables, those that others refer to first.
const TABLES: [Table; 8] = [
    Table {
        name: "realms",
        columns: &[("name", Text), ("limits", Text), ("device_limits", Text), ("created_at", Number)],
    },
    Table {
        name: "devices",
        columns: &[("realm", Text), ("device_id", Text), ("labels", Text), ("created_at", Number)],
    },
    Table {
        name: "decoders",
        columns: &[("realm", Text), ("event_type", Text), ("rule", Text), ("updated_at", Number)],
    },
    Table { name: "routes", columns: &[("topic", Text), ("rule", Text), ("created_at", Number)] },
    Table {
        name: "tokens",
        columns: &[
            ("id", Text),
            ("realm", Text),
            ("name", Text),
            ("role", Text),
            ("device_id", Text),
            ("sha256", Text),
            ("created_at", Number),
        ],
    },
    Table {
        name: "passwords",
        columns: &[("realm", Text), ("device_id", Text), ("argon2id", Text), ("updated_at", Number)],
    },
    Table {
        name: "acl",
        columns: &[
            ("id", Text),
            ("realm", Text),
            ("subject", Text),
            ("action", Text),
            ("effect", Text),
            ("filter", Text),
            ("created_at", Number),
        ],
    },
    Table {
        name: "bans",
        columns: &[
            ("id", Text),
            ("realm", Text),
            ("kind", Text),
            ("value", Text),
            ("reason", Text),
            ("until", Number),
            ("created_at", Number),
        ],
    },
];

/// What a new registry has: the realm `main`, without limits.
const NEW: &str =
    "SELECT count(*) FROM realms WHERE name = 'main' AND limits = '{}' AND device_limits = '{}'";

/// A table, and how many rows it has on both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopiedTable {
    /// Its name.
    pub table: &'static str,
    /// Rows there.
    pub source: u64,
    /// Rows here, which are the same.
    pub target: u64,
}

/// Why a registry was not copied. The target is as it was.
#[derive(Debug, Error)]
pub enum CopyError {
    /// One of the two.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The target is in use by others, or was.
    #[error(
        "the registry {place} has other rows than the source ({table}: {target} instead of {source_rows}); name one that is \
         new, or empty it"
    )]
    Occupied {
        /// The target.
        place: RegistryPlace,
        /// The first table that differs.
        table: &'static str,
        /// Its rows in the target.
        target: u64,
        /// Its rows in the source.
        source_rows: u64,
    },
    /// The rows that were written are not those that were read.
    #[error("the table {table} is not the same in {place} after it was written; nothing was kept")]
    Different {
        /// The target.
        place: RegistryPlace,
        /// The table.
        table: &'static str,
    },
}

impl From<sqlx::Error> for CopyError {
    fn from(error: sqlx::Error) -> Self {
        Self::Registry(error.into())
    }
}

/// Copies a registry into one that is new, while nobody uses either. Gives the tables, with their rows.
///
/// # Errors
/// One of them cannot be opened or fails, or the target has other rows already.
pub async fn copy(from: &RegistryPlace, to: &RegistryPlace) -> Result<Vec<CopiedTable>, CopyError> {
    let (source_pool, target_pool) = (from.open().await?, to.open().await?);
    let mut source = source_pool.acquire().await?;
    let mut connection = target_pool.acquire().await?;
    let mut target = connection.begin().await?;
    let wanted = contents(&mut source).await?;
    let found = contents(&mut target).await?;
    if wanted != found {
        refuse_unless_new(&mut target, to, &wanted, &found).await?;
        // Made by the migrations; the source's own takes its place.
        sqlx::query("DELETE FROM realms").execute(&mut *target).await?;
        for table in &TABLES {
            copy_table(table, &mut source, &mut target).await?;
        }
        let written = contents(&mut target).await?;
        for ((table, wanted), written) in TABLES.iter().zip(&wanted).zip(&written) {
            if wanted != written {
                return Err(CopyError::Different { place: to.clone(), table: table.name });
            }
        }
        target.commit().await?;
    } else {
        target.rollback().await?;
    }
    let copied = TABLES.iter().zip(&wanted);
    let copied = copied.map(|(table, content)| CopiedTable {
        table: table.name,
        source: content.rows,
        target: content.rows,
    });
    let copied = copied.collect();
    drop((source, connection));
    source_pool.close().await;
    target_pool.close().await;
    Ok(copied)
}

/// What a table holds, whatever the order of its rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Content {
    rows: u64,
    /// Sum of the rows' hashes.
    sum: u128,
}

async fn contents(connection: &mut AnyConnection) -> Result<Vec<Content>, CopyError> {
    let mut contents = Vec::with_capacity(TABLES.len());
    for table in &TABLES {
        let query = table.select();
        let mut rows = sqlx::query(AssertSqlSafe(query)).fetch(&mut *connection);
        let mut content = Content::default();
        while let Some(row) = rows.try_next().await? {
            content.rows += 1;
            content.sum = content.sum.wrapping_add(table.hash(&row)?);
        }
        contents.push(content);
    }
    Ok(contents)
}

async fn refuse_unless_new(
    target: &mut AnyConnection,
    place: &RegistryPlace,
    wanted: &[Content],
    found: &[Content],
) -> Result<(), CopyError> {
    let (new_realms,): (i64,) = sqlx::query_as(NEW).fetch_one(&mut *target).await?;
    let tables = TABLES.iter().zip(wanted).zip(found);
    let mut occupied = tables.filter(|((table, _), found)| match table.name {
        "realms" => found.rows > 1 || new_realms != 1,
        _ => found.rows > 0,
    });
    match occupied.next() {
        None => Ok(()),
        Some(((table, wanted), found)) => Err(CopyError::Occupied {
            place: place.clone(),
            table: table.name,
            target: found.rows,
            source_rows: wanted.rows,
        }),
    }
}

async fn copy_table(
    table: &Table,
    source: &mut AnyConnection,
    target: &mut AnyConnection,
) -> Result<(), CopyError> {
    let query = table.select();
    let mut rows = sqlx::query(AssertSqlSafe(query)).fetch(source);
    let mut waiting = Vec::with_capacity(INSERT_ROWS);
    loop {
        let next = rows.try_next().await?;
        let is_last = next.is_none();
        waiting.extend(next);
        if waiting.len() == INSERT_ROWS || is_last {
            insert(table, &waiting, target).await?;
            waiting.clear();
        }
        if is_last {
            return Ok(());
        }
    }
}

async fn insert(table: &Table, rows: &[AnyRow], target: &mut AnyConnection) -> Result<(), CopyError> {
    if rows.is_empty() {
        return Ok(());
    }
    let width = table.columns.len();
    let values = (0..rows.len()).map(|row| {
        let places: Vec<_> = (1..=width).map(|column| format!("${}", row * width + column)).collect();
        format!("({})", places.join(", "))
    });
    let values: Vec<_> = values.collect();
    let statement = format!("INSERT INTO {} ({}) VALUES {}", table.name, table.names(), values.join(", "));
    let mut query = sqlx::query(AssertSqlSafe(statement));
    for row in rows {
        for (place, (_, kind)) in table.columns.iter().enumerate() {
            query = match kind {
                Text => query.bind(row.try_get::<Option<String>, _>(place)?),
                Number => query.bind(row.try_get::<Option<i64>, _>(place)?),
            };
        }
    }
    query.execute(target).await?;
    Ok(())
}

impl Table {
    fn names(&self) -> String {
        self.columns.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    }

    fn select(&self) -> String {
        format!("SELECT {} FROM {}", self.names(), self.name)
    }

    /// Of all values of a row, told apart from each other.
    fn hash(&self, row: &AnyRow) -> Result<u128, sqlx::Error> {
        let mut hasher = Sha256::new();
        for (place, (_, kind)) in self.columns.iter().enumerate() {
            let value = match kind {
                Text => row.try_get::<Option<String>, _>(place)?,
                Number => row.try_get::<Option<i64>, _>(place)?.map(|number| number.to_string()),
            };
            match value {
                None => hasher.update([0]),
                Some(text) => {
                    hasher.update([1]);
                    hasher.update((text.len() as u64).to_le_bytes());
                    hasher.update(text);
                }
            }
        }
        let digest = hasher.finalize();
        let mut first = [0; 16];
        first.copy_from_slice(&digest[..16]);
        Ok(u128::from_le_bytes(first))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;
    use crate::registry::{NewToken, Registry, Role};

    fn place(dir: &Path, name: &str) -> RegistryPlace {
        RegistryPlace::File(dir.join(name))
    }

    async fn filled(place: &RegistryPlace) -> String {
        let RegistryPlace::File(path) = place else { unreachable!("a file") };
        let registry = Registry::open(path).await.unwrap();
        for number in 0..INSERT_ROWS + 3 {
            registry.create_device(&format!("d{number}"), None).await.unwrap();
        }
        let new = NewToken { realm: "main", name: "t", role: Role::Device, device_id: Some("d1") };
        let (_, token) = registry.create_token(new).await.unwrap();
        registry.close().await;
        token
    }

    #[tokio::test]
    async fn every_table_and_column_is_copied() {
        let dir = tempfile::tempdir().unwrap();
        let pool = place(dir.path(), "a").open().await.unwrap();
        let tables = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE '\\_%' ESCAPE '\\' AND name NOT LIKE 'sqlite%'";
        let tables: Vec<(String,)> = sqlx::query_as(tables).fetch_all(&pool).await.unwrap();
        let mut found = BTreeMap::new();
        for (table,) in tables {
            let query = format!("SELECT name, type FROM pragma_table_info('{table}')");
            let columns: Vec<(String, String)> =
                sqlx::query_as(AssertSqlSafe(query)).fetch_all(&pool).await.unwrap();
            found.insert(table, columns);
        }
        let known: BTreeMap<_, _> = TABLES
            .iter()
            .map(|table| {
                let sql = |kind: &Kind| if *kind == Text { "TEXT" } else { "BIGINT" };
                let columns =
                    table.columns.iter().map(|(name, kind)| ((*name).to_owned(), sql(kind).to_owned()));
                (table.name.to_owned(), columns.collect::<Vec<_>>())
            })
            .collect();
        assert_eq!(found, known);
    }

    #[tokio::test]
    async fn a_copy_is_the_same_and_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (place(dir.path(), "from"), place(dir.path(), "to"));
        let token = filled(&from).await;
        let copied = copy(&from, &to).await.unwrap();
        assert!(copied.contains(&CopiedTable { table: "devices", source: 203, target: 203 }), "{copied:?}");
        assert_eq!(copy(&from, &to).await.unwrap(), copied, "again: nothing is to be done");
        let registry = Registry::open(&dir.path().join("to")).await.unwrap();
        let identity = registry.verify(&token).unwrap();
        assert_eq!(identity.device_id.as_deref(), Some("d1"), "the token is good there, too");
    }

    #[tokio::test]
    async fn what_others_have_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (place(dir.path(), "from"), place(dir.path(), "to"));
        filled(&from).await;
        let registry = Registry::open(&dir.path().join("to")).await.unwrap();
        registry.create_device("other", None).await.unwrap();
        registry.close().await;
        let error = copy(&from, &to).await.unwrap_err().to_string();
        assert!(error.contains("has other rows than the source (devices: 1 instead of 203)"), "{error}");
    }
}
