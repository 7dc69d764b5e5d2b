//! Retention: whole days (rollups: months) that are over leave the table, and dead files leave the disk.

use std::sync::Arc;

use catchment_threads::Urgency;
use catchment_types::Timestamp;

use super::data_file::DataFile;
use super::error::StoreError;
use super::table::Table;
use super::{DeltaHistory, blocking};
use crate::delta::DeltaLog;
use crate::delta::actions::Action;

/// A checkpoint is written when there are this many commits since the one before.
const CHECKPOINT_COMMITS: u64 = 50;

impl DeltaHistory {
    /// Takes files out whose day or month ended `days` ago.
    pub(super) async fn expire(
        &self,
        table: &Arc<Table>,
        days: u32,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let files = self.view.files_in(table.part, table.id);
        let expired: Vec<_> = files.iter().filter(|file| is_over(table, file, days, now)).cloned().collect();
        if expired.is_empty() {
            return Ok(());
        }
        let job = (Arc::clone(table), expired.clone());
        blocking("retention", Urgency::Soon, move || job.0.take_out("DELETE", &job.1, now)).await?;
        self.metrics.expired(table.id, expired.len());
        tracing::info!(
            table = table.id.name(),
            part = table.part.name(),
            files = expired.len(),
            "retention took files out"
        );
        self.view.replaced(table.part, table.id, &expired, Vec::new());
        Ok(())
    }

    /// Writes a checkpoint when one is due, and deletes files that were taken out longer ago than the grace.
    pub(super) async fn tidy(&self, table: &Arc<Table>, now: Timestamp) -> Result<(), StoreError> {
        let table = Arc::clone(table);
        let before = self.config.vacuum_before(now);
        blocking("clean-up", Urgency::Soon, move || table.tidy(before)).await
    }
}

impl Table {
    /// Writes a checkpoint when one is due, and deletes files that were taken out before a time. Blocks.
    pub(super) fn tidy(&self, before: Timestamp) -> Result<(), StoreError> {
        let mut log = self.log.lock();
        // What another process has now is its to tidy.
        log.settle()?;
        delete_removed(self, &mut log, before);
        if log.commits_since_checkpoint() >= CHECKPOINT_COMMITS {
            log.checkpoint()?;
        }
        Ok(())
    }

    /// Commits that these files do not count any more. What is out already stays so. Blocks.
    pub(super) fn take_out(
        &self,
        operation: &str,
        files: &[Arc<DataFile>],
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut log = self.log.lock();
        log.settle()?;
        let adds = files.iter().filter_map(|file| log.file(&file.path));
        let removes: Vec<_> =
            adds.map(|add| Action::Remove(add.remove(now.as_micros() / 1000, true))).collect();
        if !removes.is_empty() {
            log.commit(operation, removes)?;
        }
        Ok(())
    }
}

/// Whether a file's day or month ended `days` ago.
pub(super) fn is_over(table: &Table, file: &DataFile, days: u32, now: Timestamp) -> bool {
    let before = now.as_micros().saturating_sub(i64::from(days) * Timestamp::DAY);
    table.id.period().end(&file.period).is_some_and(|end| end <= before)
}

/// Deletes files that were taken out before a time. What fails is tried again next time.
fn delete_removed(table: &Table, log: &mut DeltaLog, before: Timestamp) {
    let is_dead = |deleted_ms: Option<i64>| deleted_ms.unwrap_or_default() < before.as_micros() / 1000;
    let dead: Vec<_> = log
        .removed()
        .filter(|remove| is_dead(remove.deletion_timestamp))
        .map(|remove| remove.path.clone())
        .collect();
    for path in dead {
        match table.storage.delete(&table.path(&path)) {
            Ok(()) => log.forget_removed(&path),
            Err(error) => tracing::warn!(%error, "a dead file could not be deleted"),
        }
    }
}

/// Deletes Parquet files that no commit names: left by a flush or merge that did not come to its commit.
pub(super) fn delete_orphans(table: &Table) -> Result<(), StoreError> {
    let log = table.log.lock();
    let known: std::collections::HashSet<_> = log
        .files()
        .map(|add| add.path.as_str())
        .chain(log.removed().map(|remove| remove.path.as_str()))
        .collect();
    let prefix = format!("{}=", table.id.period().column());
    for file in table.storage.list(table.id.name())? {
        if file.starts_with(&prefix) && file.ends_with(".parquet") && !known.contains(file.as_str()) {
            let path = table.path(&file);
            tracing::info!(path = %table.storage.shown(&path).display(), "deleting a file that no commit names");
            table.storage.delete(&path)?;
        }
    }
    Ok(())
}
