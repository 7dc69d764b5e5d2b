//! The archive: raw data that is past its hot days moves there, and stays queryable under the same table name.
//!
//! # Layout
//! As history's own: `{archive}/raw_events/…` and `{archive}/raw_metrics/…`, Delta tables of their own whose files are Snappy
//! Parquet by day. Their logs are the manifest: no query lists anything.
//!
//! # Exactly once
//! Some files of a day become one file of the archive:
//!
//! 1. its rows are written, in order, to the archive;
//! 2. it is committed there, with the paths of the files that it has the rows of (the tag [`ORIGIN`]);
//! 3. those are taken out of history's own log;
//! 4. queries see it instead of them, from one moment to the next.
//!
//! After a crash before 2 the archive's file is an orphan. After one between 2 and 3 both logs have the rows; so nothing is asked
//! of history before each origin that is still in its log is taken out (3). Within a process whose step 3 fails, queries go on
//! with history's files, and nothing merges them, until it succeeds.

use std::collections::HashSet;
use std::sync::Arc;

use catchment_threads::Urgency;
use catchment_types::Timestamp;

use super::data_file::DataFile;
use super::error::StoreError;
use super::merge::rewrite;
use super::retain::{delete_orphans, is_over};
use super::table::{Part, Replacement, Table, data_files};
use super::view::View;
use super::writer::delete_uncommitted;
use super::{DeltaHistory, blocking, owner};
use crate::delta::actions::Action;
use crate::storage::Storage;
use crate::tables::TableId;

/// Tag of a file in the archive's log: the files of history that it has the rows of, with commas between.
const ORIGIN: &str = "catchment.origin";
/// Files of history in one of the archive; each holds a row group in memory.
const FILES_MAX: usize = 16;

/// The tables that are archived.
pub(super) const TABLES: [TableId; 2] = [TableId::RawEvents, TableId::RawMetrics];

/// The archive's tables.
#[derive(Debug)]
pub(super) struct Archive {
    tables: [Arc<Table>; TABLES.len()],
}

impl Archive {
    /// Loads or makes the archive's tables, and takes out of history's what they have. Blocks.
    pub(super) fn open(
        storage: &Arc<dyn Storage>,
        log: &str,
        hot: &[Arc<Table>],
        view: &View,
    ) -> Result<Self, StoreError> {
        owner::belongs_to(&**storage, log)?;
        let mut tables = Vec::with_capacity(TABLES.len());
        for hot in TABLES.iter().filter_map(|id| hot.iter().find(|hot| hot.id == *id)) {
            let table = Table::open(storage, Part::Archived, hot.id, view.shards().len())?;
            delete_orphans(&table)?;
            finish_exports(hot, &table)?;
            view.replaced(Part::Archived, table.id, &[], data_files(table.id, &table.log.lock()));
            tables.push(Arc::new(table));
        }
        Ok(Self { tables: std::array::from_fn(|table| Arc::clone(&tables[table])) })
    }

    /// The archive's table of this name.
    pub(super) fn table(&self, id: TableId) -> Option<&Arc<Table>> {
        self.tables.iter().find(|table| table.id == id)
    }
}

/// Takes everything out of history that a commit of the archive has.
fn finish_exports(hot: &Table, archive: &Table) -> Result<(), StoreError> {
    let archived: HashSet<String> = {
        let log = archive.log.lock();
        let origins = log.files().filter_map(|add| add.tags.as_ref()?.get(ORIGIN)?.as_deref());
        origins.flat_map(|paths| paths.split(',')).map(str::to_owned).collect()
    };
    let mut left = data_files(hot.id, &hot.log.lock());
    left.retain(|file| archived.contains(&file.path));
    if !left.is_empty() {
        tracing::info!(table = hot.id.name(), files = left.len(), "files that are archived leave history");
    }
    hot.take_out("ARCHIVE", &left, Timestamp::now())
}

impl DeltaHistory {
    /// Moves files to the archive whose day ended `days` ago.
    pub(super) async fn export(
        &self,
        hot: &Arc<Table>,
        archive: &Arc<Table>,
        days: u32,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.settle_export(hot, archive, now).await?;
        loop {
            let files = self.view.files(hot.id);
            let Some(files) =
                due(&files, |file| is_over(hot, file, days, now), self.config.compact_bytes_max)
            else {
                return Ok(());
            };
            let (from, old) = (Arc::clone(hot), files.clone());
            let commit = move |archive: &Table, file| commit(&from, archive, old, file);
            let new = rewrite(&self.maintenance, hot, archive, &files, commit).await?;
            self.finish_export(hot, Replacement { old: files, new }, now).await?;
        }
    }

    /// Goes on with an export whose outcome was left open, or that history's log does not know of.
    async fn settle_export(
        &self,
        hot: &Arc<Table>,
        archive: &Arc<Table>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let (settling, hot_table) = (Arc::clone(archive), Arc::clone(hot));
        let committed = blocking("settling of an export", Urgency::Soon, move || {
            let mut exporting = hot_table.exporting.lock();
            settling.log.lock().settle()?;
            let is_there = |export: &Replacement| settling.log.lock().file(&export.new.path).is_some();
            if exporting.as_ref().is_some_and(|export| !is_there(export)) {
                *exporting = None;
            }
            Ok(exporting.clone())
        })
        .await?;
        match committed {
            Some(export) => self.finish_export(hot, export, now).await,
            None => Ok(()),
        }
    }

    /// Takes the files out of history that the archive has committed, and lets queries see the archive's.
    async fn finish_export(
        &self,
        hot: &Arc<Table>,
        export: Replacement,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let (table, files) = (Arc::clone(hot), export.old.clone());
        blocking("export", Urgency::Soon, move || table.take_out("ARCHIVE", &files, now)).await?;
        self.view.archived(hot.id, &export.old, Arc::clone(&export.new));
        *hot.exporting.lock() = None;
        self.metrics.archived(hot.id, export.old.len());
        tracing::info!(
            table = hot.id.name(),
            day = export.new.period,
            files = export.old.len(),
            bytes = export.new.bytes,
            "archived files"
        );
        Ok(())
    }
}

/// Commits a file to the archive, with where its rows are from.
fn commit(
    hot: &Table,
    archive: &Table,
    old: Vec<Arc<DataFile>>,
    file: DataFile,
) -> Result<Arc<DataFile>, StoreError> {
    let origin: Vec<_> = old.iter().map(|file| file.path.as_str()).collect();
    let mut add = file.to_add(archive.id, true);
    add.tags = Some([(ORIGIN.to_owned(), Some(origin.join(",")))].into());
    let new = Arc::new(file);
    let mut log = archive.log.lock();
    *hot.exporting.lock() = Some(Replacement { old, new: Arc::clone(&new) });
    match log.commit("WRITE", vec![Action::Add(add)]) {
        Ok(_) => Ok(new),
        Err(error) => {
            if !log.is_unsettled() {
                *hot.exporting.lock() = None;
                delete_uncommitted(archive, std::slice::from_ref(&*new));
            }
            Err(error.into())
        }
    }
}

/// Files of one day that are to be archived now, the oldest day first.
fn due(
    files: &[Arc<DataFile>],
    is_over: impl Fn(&DataFile) -> bool,
    bytes_max: u64,
) -> Option<Vec<Arc<DataFile>>> {
    let day = files.iter().filter(|file| is_over(file)).map(|file| &file.period).min()?;
    let mut bytes = 0;
    let of_day = files.iter().filter(|file| file.period == *day).take(FILES_MAX);
    let some = of_day.take_while(|file| {
        bytes += file.bytes;
        bytes - file.bytes < bytes_max
    });
    Some(some.cloned().collect())
}
