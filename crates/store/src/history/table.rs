//! One Delta table of history: its folder and its log.

use std::path::{Path, PathBuf};

use catchment_types::{Offset, PartitionId};
use parking_lot::Mutex;

use super::data_file::DataFile;
use super::error::StoreError;
use super::writer::shared;
use crate::delta::actions::{Action, Transaction};
use crate::delta::{DeltaLog, TableDefinition};
use crate::tables::TableId;

const APP_ID_PREFIX: &str = "catchment/";

/// One Delta table. Its log is locked for the time of a commit; by flush and maintenance only.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) id: TableId,
    pub(super) folder: PathBuf,
    pub(super) log: Mutex<DeltaLog>,
}

impl Table {
    /// Loads or makes the table in its folder under `history`.
    pub(super) fn open(history: &Path, id: TableId, partitions: usize) -> Result<Self, StoreError> {
        let folder = history.join(id.name());
        std::fs::create_dir_all(&folder).map_err(|source| StoreError::Io {
            what: "create",
            path: folder.clone(),
            source,
        })?;
        let log = DeltaLog::open(
            &folder,
            &TableDefinition {
                name: id.name().to_owned(),
                columns: id.schema().as_ref().clone(),
                partition_column: (id.period().column().to_owned(), id.period().column_type()),
                // For other programs that look after the table: our own vacuum goes by the configuration.
                configuration: vec![
                    ("delta.checkpointInterval".to_owned(), "50".to_owned()),
                    ("delta.enableExpiredLogCleanup".to_owned(), "true".to_owned()),
                ],
            },
        )?;
        let known = log
            .transactions()
            .filter_map(|(app_id, _)| app_id.strip_prefix(APP_ID_PREFIX)?.parse::<PartitionId>().ok());
        if let Some(partition) = known.max().filter(|&partition| partition as usize >= partitions) {
            return Err(StoreError::Partitions { path: folder, partition, partitions });
        }
        Ok(Self { id, folder, log: Mutex::new(log) })
    }

    /// For each partition the offset after the last event whose rows are committed.
    pub(super) fn committed(&self, partitions: usize) -> Vec<Offset> {
        committed(&self.log.lock(), partitions)
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
pub(super) fn data_files(id: TableId, log: &DeltaLog) -> Vec<std::sync::Arc<DataFile>> {
    shared(log.files().map(|add| DataFile::from_add(id, add)).collect())
}
