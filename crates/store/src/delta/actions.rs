//! The actions of the Delta protocol that we read and write. Fields we do not know are skipped when reading.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One line of a commit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// Which readers and writers understand the table.
    Protocol(Protocol),
    /// The table's schema and settings.
    MetaData(Metadata),
    /// A data file that counts from now on.
    Add(Add),
    /// A data file that does not count any more.
    Remove(Remove),
    /// How far an application got; committed together with its data.
    Txn(Transaction),
    /// Who did what, for people.
    CommitInfo(serde_json::Map<String, serde_json::Value>),
}

/// Lowest versions of the protocol that can read and write the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Protocol {
    /// For reading.
    pub min_reader_version: i32,
    /// For writing.
    pub min_writer_version: i32,
}

impl Protocol {
    /// What we write: 1 and 2.
    pub const OURS: Self = Self { min_reader_version: 1, min_writer_version: 2 };
}

/// The table's schema and settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// A UUID.
    pub id: String,
    /// Name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Encoding of the data files.
    pub format: Format,
    /// The schema in Delta's JSON form.
    pub schema_string: String,
    /// Columns that are folders, not in the files.
    pub partition_columns: Vec<String>,
    /// Table properties.
    #[serde(default)]
    pub configuration: BTreeMap<String, String>,
    /// Milliseconds since the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_time: Option<i64>,
}

/// Encoding of the data files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Format {
    /// Always `parquet`.
    pub provider: String,
    /// Nothing.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
}

impl Default for Format {
    fn default() -> Self {
        Self { provider: "parquet".to_owned(), options: BTreeMap::new() }
    }
}

/// A data file that counts from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Add {
    /// Relative to the table's folder. URL-encoded by the protocol; our names have nothing to encode.
    pub path: String,
    /// The partition columns' values, as texts.
    pub partition_values: BTreeMap<String, Option<String>>,
    /// Bytes.
    pub size: i64,
    /// Milliseconds since the epoch.
    pub modification_time: i64,
    /// Whether rows are new, and not only moved from other files.
    pub data_change: bool,
    /// Row count and bounds of columns, JSON in a text: see the protocol's *per-file statistics*.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stats: Option<String>,
    /// What applications have to say about the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<BTreeMap<String, Option<String>>>,
}

/// A data file that does not count any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Remove {
    /// As in its [`Add`].
    pub path: String,
    /// Milliseconds since the epoch.
    #[serde(default)]
    pub deletion_timestamp: Option<i64>,
    /// Whether rows are gone, and not only moved to other files.
    pub data_change: bool,
    /// Whether the next two fields are there.
    #[serde(default)]
    pub extended_file_metadata: Option<bool>,
    /// As in its [`Add`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition_values: Option<BTreeMap<String, Option<String>>>,
    /// As in its [`Add`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<i64>,
}

impl Add {
    /// The action that takes this file out again.
    #[must_use]
    pub fn remove(&self, now_ms: i64, data_change: bool) -> Remove {
        Remove {
            path: self.path.clone(),
            deletion_timestamp: Some(now_ms),
            data_change,
            extended_file_metadata: Some(true),
            partition_values: Some(self.partition_values.clone()),
            size: Some(self.size),
        }
    }
}

/// How far an application got.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Transaction {
    /// The application.
    pub app_id: String,
    /// Its progress.
    pub version: i64,
    /// Milliseconds since the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_updated: Option<i64>,
}
