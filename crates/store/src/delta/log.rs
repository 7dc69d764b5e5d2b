//! The state of a table: loaded from checkpoint and commits, changed by commits.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::datatypes::{DataType, Schema, TimeUnit};
use bytes::Bytes;
use catchment_types::Timestamp;
use serde_json::json;

use super::actions::{Action, Add, Format, Metadata, Protocol, Remove, Transaction};
use super::{DeltaError, checkpoint};
use crate::storage::{Creation, Storage};

const LOG_FOLDER: &str = "_delta_log";
/// Application of the `txn` action by which a process takes the table over; its version is a time.
const WRITER: &str = "catchment/writer";
/// A process that still commits while another takes over is met by chance, and not so often in a row.
const TAKE_OVERS_MAX: u32 = 20;

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

/// A table's log. All methods block until the storage has answered.
#[derive(Debug)]
pub struct DeltaLog {
    storage: Arc<dyn Storage>,
    /// In the storage.
    folder: String,
    log_folder: String,
    /// Of the last commit; none before the first.
    version: Option<u64>,
    /// Versions of the checkpoints there are, ascending.
    checkpoints: Vec<u64>,
    metadata: Option<Metadata>,
    files: HashMap<String, Add>,
    removed: HashMap<String, Remove>,
    transactions: HashMap<String, Transaction>,
    /// The next commit, when it was made in a way that leaves open whether it counts; to make it again tells.
    unsettled: Option<Bytes>,
    /// The version that another process has committed. It has the table now.
    lost_at: Option<u64>,
}

impl DeltaLog {
    /// Loads the table in `folder`, or makes an empty one.
    ///
    /// # Errors
    /// When the storage refuses, the log is damaged, or the table is not of this definition.
    pub fn open(
        storage: &Arc<dyn Storage>,
        folder: &str,
        definition: &TableDefinition,
    ) -> Result<Self, DeltaError> {
        let mut log = Self::new(storage, folder);
        storage.make_folder(&log.log_folder)?;
        let found = log.list()?;
        for path in &found.temporary {
            // Left by a crash; never counted.
            storage.delete(path)?;
        }
        log.load(&found)?;
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
                return Err(DeltaError::Schema { path: log.shown() });
            }
            Some(_) => {}
        }
        Ok(log)
    }

    /// As [`Self::open`], for a table that other processes can get at: from now on it is ours, and whoever had it before cannot
    /// commit any more. What that process was about to commit never counts, so its files can be deleted.
    ///
    /// # Errors
    /// As for [`Self::open`].
    pub fn take_over(
        storage: &Arc<dyn Storage>,
        folder: &str,
        definition: &TableDefinition,
    ) -> Result<Self, DeltaError> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            let taken = Self::open(storage, folder, definition).and_then(|mut log| {
                let transaction = Transaction {
                    app_id: WRITER.to_owned(),
                    version: now_ms(),
                    last_updated: Some(now_ms()),
                };
                log.commit("TAKE OVER", vec![Action::Txn(transaction)])?;
                Ok(log)
            });
            match taken {
                Err(DeltaError::Conflict { .. }) if attempts < TAKE_OVERS_MAX => {}
                other => return other,
            }
        }
    }

    /// For one who only reads a table that another process writes, and which need not be there yet.
    ///
    /// # Errors
    /// When the storage refuses, or the log is damaged.
    pub fn follow(storage: &Arc<dyn Storage>, folder: &str) -> Result<Self, DeltaError> {
        let mut log = Self::new(storage, folder);
        storage.make_folder(&log.log_folder)?;
        log.refresh()?;
        Ok(log)
    }

    /// Takes in what others have committed since. For one who only reads.
    ///
    /// # Errors
    /// As for [`Self::follow`]. What was known stays.
    pub fn refresh(&mut self) -> Result<(), DeltaError> {
        let found = self.list()?;
        let next = self.version.map_or(0, |version| version + 1);
        // Commits that a checkpoint replaces go.
        if found.checkpoints.last().is_some_and(|&checkpoint| checkpoint >= next)
            && !found.commits.contains(&next)
        {
            let mut anew = Self::new(&self.storage, &self.folder);
            anew.load(&found)?;
            *self = anew;
            return Ok(());
        }
        self.take_in(&found.commits)
    }

    fn new(storage: &Arc<dyn Storage>, folder: &str) -> Self {
        Self {
            storage: Arc::clone(storage),
            folder: folder.to_owned(),
            log_folder: format!("{folder}/{LOG_FOLDER}"),
            version: None,
            checkpoints: Vec::new(),
            metadata: None,
            files: HashMap::new(),
            removed: HashMap::new(),
            transactions: HashMap::new(),
            unsettled: None,
            lost_at: None,
        }
    }

    /// The table, as people know it.
    #[must_use]
    pub fn shown(&self) -> PathBuf {
        self.storage.shown(&self.folder)
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
        self.unsettled.is_some()
    }

    /// Whether another process has the table.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.lost_at.is_some()
    }

    /// Makes a commit whose outcome was left open by an error again, so that it counts from now on, and takes it in.
    ///
    /// It is not given up instead: a request that is still on its way could make it count at any later time.
    ///
    /// # Errors
    /// When the storage refuses: the outcome stays open then. [`DeltaError::Conflict`] when another process has the table.
    pub fn settle(&mut self) -> Result<(), DeltaError> {
        if let Some(version) = self.lost_at {
            return Err(DeltaError::Conflict { path: self.shown(), version });
        }
        let Some(bytes) = self.unsettled.take() else { return Ok(()) };
        let settled = self.put(bytes.clone());
        if settled.is_err() && !self.is_lost() {
            self.unsettled = Some(bytes);
        }
        settled.map(|_| ())
    }

    /// Commits actions as the next version: durable and visible to every reader when this returns.
    ///
    /// # Errors
    /// [`DeltaError::Conflict`] when another process has committed that version; when the storage refuses, see
    /// [`Self::is_unsettled`].
    pub fn commit(&mut self, operation: &str, actions: Vec<Action>) -> Result<u64, DeltaError> {
        self.settle()?;
        let info = json!({
            "timestamp": now_ms(),
            "operation": operation,
            "operationParameters": {},
            "isBlindAppend": !actions.iter().any(|action| matches!(action, Action::Remove(_))),
            "engineInfo": concat!("catchment/", env!("CARGO_PKG_VERSION")),
            // No two commits are alike: what is there tells whose it is.
            "txnId": random_uuid(),
        });
        let mut bytes = json!({ "commitInfo": info }).to_string().into_bytes();
        for action in &actions {
            bytes.push(b'\n');
            serde_json::to_writer(&mut bytes, action)
                .map_err(|error| DeltaError::damaged(self.shown(), error))?;
        }
        bytes.push(b'\n');
        self.put(bytes.into())
    }

    /// Makes the next commit, unless another process has made one, and takes it in.
    fn put(&mut self, bytes: Bytes) -> Result<u64, DeltaError> {
        let version = self.version.map_or(0, |version| version + 1);
        let path = self.commit_path(version);
        let created = match self.storage.create(&path, bytes.clone())? {
            Creation::Exists => match self.storage.read(&path) {
                Ok(Some(found)) if found == bytes => Ok(()),
                Ok(Some(_)) => {
                    self.lost_at = Some(version);
                    return Err(DeltaError::Conflict { path: self.shown(), version });
                }
                Ok(None) => Err(DeltaError::damaged(self.storage.shown(&path), "it comes and goes")),
                Err(error) => Err(error.into()),
            },
            Creation::Done => Ok(()),
            Creation::Unknown(error) => Err(error.into()),
        };
        if let Err(error) = created {
            self.unsettled = Some(bytes);
            return Err(error);
        }
        self.apply_commit(version, &bytes)?;
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
        checkpoint::write(&*self.storage, &self.log_folder, version, &actions)?;
        if self.checkpoints.last() != Some(&version) {
            self.checkpoints.push(version);
        }
        self.delete_replaced()
    }

    fn delete_replaced(&mut self) -> Result<(), DeltaError> {
        let Some(&keep_from) = self.checkpoints.iter().rev().nth(1) else { return Ok(()) };
        let found = self.list()?;
        for &version in found.commits.iter().filter(|&&version| version < keep_from) {
            self.storage.delete(&self.commit_path(version))?;
        }
        for &version in found.checkpoints.iter().filter(|&&version| version < keep_from) {
            self.storage.delete(&format!("{}/{}", self.log_folder, checkpoint::file_name(version)))?;
        }
        self.checkpoints.retain(|&version| version >= keep_from);
        Ok(())
    }

    /// Loads a log that nothing is known of yet.
    fn load(&mut self, found: &LogFiles) -> Result<(), DeltaError> {
        self.checkpoints.clone_from(&found.checkpoints);
        if let Some(&version) = self.checkpoints.last() {
            for action in checkpoint::read(&*self.storage, &self.log_folder, version)? {
                self.apply(action)?;
            }
            self.version = Some(version);
        }
        self.take_in(&found.commits)
    }

    /// Takes in those of these commits that come after what is known.
    fn take_in(&mut self, commits: &[u64]) -> Result<(), DeltaError> {
        let first = self.version.map_or(0, |version| version + 1);
        let commits: Vec<_> = commits.iter().copied().filter(|&version| version >= first).collect();
        let paths: Vec<_> = commits.iter().map(|&version| self.commit_path(version)).collect();
        let texts = self.storage.read_all(&paths)?;
        for ((next, version), bytes) in (first..).zip(commits).zip(texts) {
            let path = self.storage.shown(&self.commit_path(next));
            let bytes = bytes.filter(|_| version == next);
            let bytes = bytes.ok_or_else(|| DeltaError::damaged(path, "the commit is missing"))?;
            self.apply_commit(version, &bytes)?;
        }
        if self.version.is_some() && self.metadata.is_none() {
            let path = self.storage.shown(&self.log_folder);
            return Err(DeltaError::damaged(path, "no commit says what the table's schema is"));
        }
        Ok(())
    }

    fn apply_commit(&mut self, version: u64, bytes: &[u8]) -> Result<(), DeltaError> {
        for (number, line) in (1..).zip(bytes.split(|&byte| byte == b'\n')) {
            if line.trim_ascii().is_empty() {
                continue;
            }
            let action = serde_json::from_slice(line).map_err(|error| {
                let path = self.storage.shown(&self.commit_path(version));
                DeltaError::damaged(path, format!("line {number}: {error}"))
            })?;
            self.apply(action)?;
        }
        self.version = Some(version);
        Ok(())
    }

    fn apply(&mut self, action: Action) -> Result<(), DeltaError> {
        match action {
            Action::Protocol(Protocol { min_reader_version: reader, min_writer_version: writer }) => {
                if reader > Protocol::OURS.min_reader_version || writer > Protocol::OURS.min_writer_version {
                    return Err(DeltaError::Protocol { path: self.shown(), reader, writer });
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

    fn commit_path(&self, version: u64) -> String {
        format!("{}/{version:020}.json", self.log_folder)
    }

    fn list(&self) -> Result<LogFiles, DeltaError> {
        let mut found = LogFiles::default();
        for name in self.storage.list(&self.log_folder)? {
            if name.starts_with('.') && name.ends_with(".tmp") {
                found.temporary.push(format!("{}/{name}", self.log_folder));
            } else if let Some(version) = name.strip_suffix(".checkpoint.parquet").and_then(parse_version) {
                found.checkpoints.push(version);
            } else if let Some(version) = name.strip_suffix(".json").and_then(parse_version) {
                found.commits.push(version);
            }
        }
        found.commits.sort_unstable();
        found.checkpoints.sort_unstable();
        Ok(found)
    }
}

/// The files of a log: versions ascending, and paths in the storage.
#[derive(Debug, Default)]
struct LogFiles {
    commits: Vec<u64>,
    checkpoints: Vec<u64>,
    temporary: Vec<String>,
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
