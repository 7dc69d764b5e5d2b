//! One Delta table of history: where it is, and its log.

use std::sync::Arc;

use catchment_types::{Offset, PartitionId};
use parking_lot::Mutex;

use super::data_file::DataFile;
use super::error::StoreError;
use super::scan::FileReader;
use super::writer::shared;
use crate::delta::actions::{Action, Transaction};
use crate::delta::{DeltaLog, TableDefinition};
use crate::storage::Storage;
use crate::tables::TableId;

const APP_ID_PREFIX: &str = "catchment/";

/// Where the files of a table are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// In history, where flushes bring them.
    Hot,
    /// In the archive, where those of raw data go after their hot days.
    Archived,
}

impl Part {
    /// How many parts there are.
    pub(super) const COUNT: usize = 2;

    /// Position in arrays indexed by part.
    pub(super) const fn index(self) -> usize {
        self as usize
    }

    /// Name in URLs of plans.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Hot => "history",
            Self::Archived => "archive",
        }
    }
}

/// One Delta table. Its log is locked for the time of a commit; by flush and maintenance only.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) id: TableId,
    pub(super) part: Part,
    pub(super) storage: Arc<dyn Storage>,
    pub(super) reader: FileReader,
    pub(super) log: Mutex<DeltaLog>,
    /// A file that was to take the place of others, when it is open whether its commit counts.
    pub(super) unsettled: Mutex<Option<Replacement>>,
    /// A file of the archive that has rows of files which are still here.
    pub(super) exporting: Mutex<Option<Replacement>>,
}

/// A file that has the rows of others.
#[derive(Debug, Clone)]
pub(super) struct Replacement {
    pub(super) old: Vec<Arc<DataFile>>,
    pub(super) new: Arc<DataFile>,
}

impl Table {
    /// Loads or makes the table.
    pub(super) fn open(
        storage: &Arc<dyn Storage>,
        part: Part,
        id: TableId,
        partitions: usize,
    ) -> Result<Self, StoreError> {
        let definition = TableDefinition {
            name: id.name().to_owned(),
            columns: id.schema().as_ref().clone(),
            partition_column: (id.period().column().to_owned(), id.period().column_type()),
            // For other programs that look after the table: our own vacuum goes by the configuration.
            configuration: vec![
                ("delta.checkpointInterval".to_owned(), "50".to_owned()),
                ("delta.enableExpiredLogCleanup".to_owned(), "true".to_owned()),
            ],
        };
        let log = match storage.is_shared() || part == Part::Archived {
            true => DeltaLog::take_over(storage, id.name(), &definition)?,
            false => DeltaLog::open(storage, id.name(), &definition)?,
        };
        let known = log
            .transactions()
            .filter_map(|(app_id, _)| app_id.strip_prefix(APP_ID_PREFIX)?.parse::<PartitionId>().ok());
        if let Some(partition) = known.max().filter(|&partition| partition as usize >= partitions) {
            return Err(StoreError::Partitions { path: log.shown(), partition, partitions });
        }
        Ok(Self {
            id,
            part,
            storage: Arc::clone(storage),
            reader: FileReader::new(storage, part)?,
            log: Mutex::new(log),
            unsettled: Mutex::default(),
            exporting: Mutex::default(),
        })
    }

    /// A file of the table, in its storage.
    pub(super) fn path(&self, file: &str) -> String {
        format!("{}/{file}", self.id.name())
    }

    /// Whether rows of the file are in a file of the archive that may count.
    pub(super) fn is_exporting(&self, file: &DataFile) -> bool {
        let exporting = self.exporting.lock();
        exporting.iter().flat_map(|export| &export.old).any(|old| old.path == file.path)
    }

    /// For each partition the offset after the last event whose rows are committed.
    pub(super) fn committed(&self, partitions: usize) -> Vec<Offset> {
        committed(&self.log.lock(), partitions)
    }

    /// Finds out whether the file counts that was to take the place of others; it does then. Blocks.
    ///
    /// # Errors
    /// When the storage refuses: it stays open then.
    pub(super) fn settle(&self) -> Result<Option<Replacement>, StoreError> {
        let mut log = self.log.lock();
        log.settle()?;
        let replaced = self.unsettled.lock().take();
        Ok(replaced.filter(|replaced| log.file(&replaced.new.path).is_some()))
    }
}

/// For each partition the offset after the last event whose rows are committed.
pub(super) fn committed(log: &DeltaLog, partitions: usize) -> Vec<Offset> {
    let offset = |partition| {
        let version = log.transaction(&format!("{APP_ID_PREFIX}{partition}")).unwrap_or_default();
        Offset::try_from(version).unwrap_or_default()
    };
    (0..partitions).map(offset).collect()
}

/// The action that moves a partition's offset.
pub(super) fn offset_action(partition: usize, next: Offset, now_ms: i64) -> Action {
    Action::Txn(Transaction {
        app_id: format!("{APP_ID_PREFIX}{partition}"),
        version: i64::try_from(next).unwrap_or(i64::MAX),
        last_updated: Some(now_ms),
    })
}

/// The files that count.
pub(super) fn data_files(id: TableId, log: &DeltaLog) -> Vec<Arc<DataFile>> {
    shared(log.files().map(|add| DataFile::from_add(id, add)).collect())
}
