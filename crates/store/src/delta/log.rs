//! The state of a table: loaded from checkpoint and commits, changed by commits.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use arrow::datatypes::{DataType, Schema, TimeUnit};
use catchment_types::Timestamp;
use serde_json::json;

use super::actions::{Action, Add, Format, Metadata, Protocol, Remove, Transaction};
use super::durable::{rename_no_replace, write_file};
use super::{DeltaError, checkpoint, sync_folder};

const LOG_FOLDER: &str = "_delta_log";

/// What a new table is made with, and an existing one is compared to.
#[derive(Debug, Clone)]
pub struct TableDefinition {
    /// Name for people.
    pub name: String,
    /// Columns in the files.
    pub columns: Schema,
    /// The column that is a folder.
    pub partition_column: (String, DataType),
    /// Table properties.
    pub configuration: Vec<(String, String)>,
}

/// A table's log. All methods block on the disk.
#[derive(Debug)]
pub struct DeltaLog {
    folder: PathBuf,
    log_folder: PathBuf,
    /// Of the last commit; none before the first.
    version: Option<u64>,
    /// Versions of the checkpoints there are, ascending.
    checkpoints: Vec<u64>,
    metadata: Option<Metadata>,
    files: HashMap<String, Add>,
    removed: HashMap<String, Remove>,
    transactions: HashMap<String, Transaction>,
    /// The last commit failed in a way that leaves open whether it counts; the disk tells.
    unsettled: bool,
}

impl DeltaLog {
    /// Loads the table in `folder`, or makes an empty one.
    ///
    /// # Errors
    /// When the disk refuses, the log is damaged, or the table is not of this definition.
    pub fn open(folder: &Path, definition: &TableDefinition) -> Result<Self, DeltaError> {
        let log_folder = folder.join(LOG_FOLDER);
        fs::create_dir_all(&log_folder).map_err(DeltaError::io("create", &log_folder))?;
        sync_folder(folder)?;
        let mut log = Self {
            folder: folder.to_path_buf(),
            log_folder,
            version: None,
            checkpoints: Vec::new(),
            metadata: None,
            files: HashMap::new(),
            removed: HashMap::new(),
            transactions: HashMap::new(),
            unsettled: false,
        };
        log.load()?;
        let schema_string = schema_string(definition);
        match &log.metadata {
            None => {
                log.commit(
                    "CREATE TABLE",
                    vec![
                        Action::Protocol(Protocol::OURS),
                        Action::MetaData(Metadata {
                            id: random_uuid(),
                            name: Some(definition.name.clone()),
                            format: Format::default(),
                            schema_string,
                            partition_columns: vec![definition.partition_column.0.clone()],
                            configuration: definition.configuration.iter().cloned().collect(),
                            created_time: Some(now_ms()),
                        }),
                    ],
                )?;
            }
            Some(metadata)
                if metadata.schema_string != schema_string
                    || metadata.partition_columns != [definition.partition_column.0.clone()] =>
            {
                return Err(DeltaError::Schema { path: log.folder });
            }
            Some(_) => {}
        }
        Ok(log)
    }

    /// The table's folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The last commit.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version.unwrap_or_default()
    }

    /// Commits since the last checkpoint, or since the beginning.
    #[must_use]
    pub fn commits_since_checkpoint(&self) -> u64 {
        let next = self.version.map_or(0, |version| version + 1);
        next - self.checkpoints.last().map_or(0, |version| version + 1)
    }

    /// The files that count, in no order.
    pub fn files(&self) -> impl Iterator<Item = &Add> {
        self.files.values()
    }

    /// The file of this path, if it counts.
    #[must_use]
    pub fn file(&self, path: &str) -> Option<&Add> {
        self.files.get(path)
    }

    /// Files that were taken out and may still be in use by readers, in no order.
    pub fn removed(&self) -> impl Iterator<Item = &Remove> {
        self.removed.values()
    }

    /// How far an application got.
    #[must_use]
    pub fn transaction(&self, app_id: &str) -> Option<i64> {
        self.transactions.get(app_id).map(|transaction| transaction.version)
    }

    /// All applications with how far they got, in no order.
    pub fn transactions(&self) -> impl Iterator<Item = (&str, i64)> {
        self.transactions.values().map(|transaction| (transaction.app_id.as_str(), transaction.version))
    }

    /// Whether the outcome of the last commit is unknown: files it names must not be deleted before [`Self::settle`].
    #[must_use]
    pub fn is_unsettled(&self) -> bool {
        self.unsettled
    }

    /// Finds out whether a commit whose outcome was left open by an error counts, and takes it in if so.
    ///
    /// # Errors
    /// When the disk refuses; the outcome stays open then.
    pub fn settle(&mut self) -> Result<(), DeltaError> {
        if self.unsettled {
            sync_folder(&self.log_folder)?;
            let next = self.version.map_or(0, |version| version + 1);
            let path = self.commit_path(next);
            if path.try_exists().map_err(DeltaError::io("look for", &path))? {
                self.apply_commit(next)?;
            }
            self.unsettled = false;
        }
        Ok(())
    }

    /// Commits actions as the next version: durable and visible to every reader when this returns.
    ///
    /// # Errors
    /// [`DeltaError::Conflict`] when that version exists already; when the disk refuses, see [`Self::is_unsettled`].
    pub fn commit(&mut self, operation: &str, actions: Vec<Action>) -> Result<u64, DeltaError> {
        self.settle()?;
        let version = self.version.map_or(0, |version| version + 1);
        let info = json!({
            "timestamp": now_ms(),
            "operation": operation,
            "operationParameters": {},
            "isBlindAppend": !actions.iter().any(|action| matches!(action, Action::Remove(_))),
            "engineInfo": concat!("catchment/", env!("CARGO_PKG_VERSION")),
        });
        let path = self.commit_path(version);
        let mut bytes = json!({ "commitInfo": info }).to_string().into_bytes();
        for action in &actions {
            bytes.push(b'\n');
            serde_json::to_writer(&mut bytes, action).map_err(|error| DeltaError::damaged(&path, error))?;
        }
        bytes.push(b'\n');

        let temporary = self.log_folder.join(format!(".{version:020}.json.tmp"));
        write_file(&temporary, &bytes)?;
        if !rename_no_replace(&temporary, &path)? {
            return Err(DeltaError::Conflict { path: self.folder.clone(), version });
        }
        // From here on it counts for whoever looks, but may be gone after a power cut.
        self.unsettled = true;
        sync_folder(&self.log_folder)?;
        self.unsettled = false;
        self.version = Some(version);
        for action in actions {
            self.apply(action)?;
        }
        Ok(version)
    }

    /// Forgets a removed file that is no longer on disk, so that checkpoints need not name it.
    pub fn forget_removed(&mut self, path: &str) {
        self.removed.remove(path);
    }

    /// Writes a checkpoint of the last commit and deletes the commits and checkpoints that the checkpoint *before*
    /// replaces (a reader may be in the middle of that one).
    ///
    /// # Errors
    /// When the disk refuses. The table is as good as before then.
    pub fn checkpoint(&mut self) -> Result<(), DeltaError> {
        self.settle()?;
        let (Some(version), Some(metadata)) = (self.version, &self.metadata) else { return Ok(()) };
        let mut actions = vec![Action::Protocol(Protocol::OURS), Action::MetaData(metadata.clone())];
        actions.extend(self.transactions.values().cloned().map(Action::Txn));
        actions.extend(self.files.values().map(|add| Action::Add(Add { data_change: false, ..add.clone() })));
        actions.extend(
            self.removed
                .values()
                .map(|remove| Action::Remove(Remove { data_change: false, ..remove.clone() })),
        );
        checkpoint::write(&self.log_folder, version, &actions)?;
        if self.checkpoints.last() != Some(&version) {
            self.checkpoints.push(version);
        }
        self.delete_replaced()
    }

    fn delete_replaced(&mut self) -> Result<(), DeltaError> {
        let Some(&keep_from) = self.checkpoints.iter().rev().nth(1) else { return Ok(()) };
        for (version, path) in list(&self.log_folder)?.into_iter().filter_map(|file| match file {
            LogFile::Commit(version, path) => Some((version, path)),
            LogFile::Checkpoint(version, path) => Some((version, path)),
            LogFile::Temporary(_) => None,
        }) {
            if version < keep_from {
                fs::remove_file(&path).map_err(DeltaError::io("delete", &path))?;
            }
        }
        self.checkpoints.retain(|&version| version >= keep_from);
        Ok(())
    }

    fn load(&mut self) -> Result<(), DeltaError> {
        let mut commits = Vec::new();
        for file in list(&self.log_folder)? {
            match file {
                LogFile::Commit(version, _) => commits.push(version),
                LogFile::Checkpoint(version, _) => self.checkpoints.push(version),
                // Left by a crash; never counted.
                LogFile::Temporary(path) => {
                    fs::remove_file(&path).map_err(DeltaError::io("delete", &path))?
                }
            }
        }
        commits.sort_unstable();
        self.checkpoints.sort_unstable();
        if let Some(&version) = self.checkpoints.last() {
            for action in checkpoint::read(&self.log_folder, version)? {
                self.apply(action)?;
            }
            self.version = Some(version);
        }
        for version in commits {
            let next = self.version.map_or(0, |version| version + 1);
            if version > next {
                return Err(DeltaError::damaged(&self.commit_path(next), "the commit is missing"));
            }
            if version == next {
                self.apply_commit(version)?;
            }
        }
        if self.version.is_some() && self.metadata.is_none() {
            return Err(DeltaError::damaged(&self.log_folder, "no commit says what the table's schema is"));
        }
        Ok(())
    }

    fn apply_commit(&mut self, version: u64) -> Result<(), DeltaError> {
        let path = self.commit_path(version);
        let text = fs::read_to_string(&path).map_err(DeltaError::io("read", &path))?;
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let action = serde_json::from_str(line)
                .map_err(|error| DeltaError::damaged(&path, format!("line {}: {error}", number + 1)))?;
            self.apply(action)?;
        }
        self.version = Some(version);
        Ok(())
    }

    fn apply(&mut self, action: Action) -> Result<(), DeltaError> {
        match action {
            Action::Protocol(Protocol { min_reader_version: reader, min_writer_version: writer }) => {
                if reader > Protocol::OURS.min_reader_version || writer > Protocol::OURS.min_writer_version {
                    return Err(DeltaError::Protocol { path: self.folder.clone(), reader, writer });
                }
            }
            Action::MetaData(metadata) => self.metadata = Some(metadata),
            Action::Add(add) => {
                self.removed.remove(&add.path);
                self.files.insert(add.path.clone(), add);
            }
            Action::Remove(remove) => {
                self.files.remove(&remove.path);
                self.removed.insert(remove.path.clone(), remove);
            }
            Action::Txn(transaction) => {
                self.transactions.insert(transaction.app_id.clone(), transaction);
            }
            Action::CommitInfo(_) => {}
        }
        Ok(())
    }

    fn commit_path(&self, version: u64) -> PathBuf {
        self.log_folder.join(format!("{version:020}.json"))
    }
}

enum LogFile {
    Commit(u64, PathBuf),
    Checkpoint(u64, PathBuf),
    Temporary(PathBuf),
}

fn list(log_folder: &Path) -> Result<Vec<LogFile>, DeltaError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(log_folder).map_err(DeltaError::io("list", log_folder))? {
        let entry = entry.map_err(DeltaError::io("list", log_folder))?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if name.starts_with('.') && name.ends_with(".tmp") {
            files.push(LogFile::Temporary(entry.path()));
        } else if let Some(version) = name.strip_suffix(".checkpoint.parquet").and_then(parse_version) {
            files.push(LogFile::Checkpoint(version, entry.path()));
        } else if let Some(version) = name.strip_suffix(".json").and_then(parse_version) {
            files.push(LogFile::Commit(version, entry.path()));
        }
    }
    Ok(files)
}

fn parse_version(text: &str) -> Option<u64> {
    if text.len() == 20 { text.parse().ok() } else { None }
}

fn now_ms() -> i64 {
    Timestamp::now().as_micros() / 1000
}

fn random_uuid() -> String {
    // Version 4, variant 1 of RFC 9562.
    let bits = rand::random::<u128>() & !(0xf << 76 | 0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let hex = format!("{bits:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

fn schema_string(definition: &TableDefinition) -> String {
    let field = |name: &str, data_type: &DataType, nullable: bool| json!({ "name": name, "type": type_name(data_type), "nullable": nullable, "metadata": {} });
    let columns = definition
        .columns
        .fields()
        .iter()
        .map(|column| field(column.name(), column.data_type(), column.is_nullable()));
    let (name, data_type) = &definition.partition_column;
    let fields: Vec<_> = columns.chain([field(name, data_type, true)]).collect();
    json!({ "type": "struct", "fields": fields }).to_string()
}

/// Delta's name of a column type that our tables use.
fn type_name(data_type: &DataType) -> &'static str {
    match data_type {
        DataType::Boolean => "boolean",
        DataType::Int32 => "integer",
        DataType::Int64 => "long",
        DataType::Float64 => "double",
        DataType::Date32 => "date",
        DataType::Timestamp(TimeUnit::Microsecond, Some(_)) => "timestamp",
        DataType::Binary | DataType::BinaryView => "binary",
        DataType::Utf8 | DataType::Utf8View => "string",
        // The tables are fixed, and a test makes each of them.
        other => unreachable!("no table has a column of type {other}"),
    }
}

#[cfg(test)]
mod tests;
