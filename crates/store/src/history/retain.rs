//! Retention: whole days (rollups: months) that are over leave the table, and dead files leave the disk.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use catchment_types::Timestamp;

use super::data_file::DataFile;
use super::error::StoreError;
use super::table::Table;
use super::{DeltaHistory, Urgency, blocking};
use crate::delta::DeltaLog;
use crate::delta::actions::Action;

/// A checkpoint is written when there are this many commits since the one before.
const CHECKPOINT_COMMITS: u64 = 50;

impl DeltaHistory {
    /// Takes files out whose day or month ended before the table's retention.
    pub(super) async fn expire(&self, table: &Arc<Table>, now: Timestamp) -> Result<(), StoreError> {
        let Some(days) = self.config.retention_days(table.id) else { return Ok(()) };
        let before = now.as_micros().saturating_sub(i64::from(days) * Timestamp::DAY);
        let is_over = |file: &DataFile| table.id.period().end(&file.period).is_some_and(|end| end <= before);
        let expired: Vec<_> =
            self.view.files(table.id).iter().filter(|file| is_over(file)).cloned().collect();
        if expired.is_empty() {
            return Ok(());
        }
        let job = (Arc::clone(table), expired.clone());
        blocking("retention", Urgency::Later, move || {
            let (table, expired) = job;
            let mut log = table.log.lock();
            let adds = expired.iter().filter_map(|file| log.file(&file.path));
            let removes = adds.map(|add| Action::Remove(add.remove(now.as_micros() / 1000, true))).collect();
            Ok(log.commit("DELETE", removes)?)
        })
        .await?;
        self.metrics.expired(table.id, expired.len());
        tracing::info!(table = table.id.name(), files = expired.len(), "retention took files out");
        self.view.replaced(table.id, &expired, Vec::new());
        Ok(())
    }

    /// Writes a checkpoint when one is due, and deletes files that were taken out longer ago than the grace.
    pub(super) async fn tidy(&self, table: &Arc<Table>, now: Timestamp) -> Result<(), StoreError> {
        let table = Arc::clone(table);
        let before = self.config.vacuum_before(now);
        blocking("clean-up", Urgency::Later, move || {
            let mut log = table.log.lock();
            delete_removed(&table.folder, &mut log, before);
            if log.commits_since_checkpoint() >= CHECKPOINT_COMMITS {
                log.checkpoint()?;
            }
            Ok(())
        })
        .await
    }
}

/// Deletes files that were taken out before a time. What fails is tried again next time.
fn delete_removed(folder: &Path, log: &mut DeltaLog, before: Timestamp) {
    let is_dead = |deleted_ms: Option<i64>| deleted_ms.unwrap_or_default() < before.as_micros() / 1000;
    let dead: Vec<_> = log
        .removed()
        .filter(|remove| is_dead(remove.deletion_timestamp))
        .map(|remove| remove.path.clone())
        .collect();
    for path in dead {
        let file = folder.join(&path);
        match fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %file.display(), %error, "a dead file could not be deleted");
            }
            _ => {
                log.forget_removed(&path);
                // Only when it is empty now.
                if let Some(parent) = file.parent() {
                    let _ = fs::remove_dir(parent);
                }
            }
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
    for period in list(&table.folder)? {
        if !period.starts_with(&prefix) {
            continue;
        }
        let folder = table.folder.join(&period);
        for name in list(&folder)? {
            if name.ends_with(".parquet") && !known.contains(format!("{period}/{name}").as_str()) {
                let path = folder.join(name);
                tracing::info!(path = %path.display(), "deleting a file that no commit names");
                fs::remove_file(&path).map_err(|source| StoreError::Io { what: "delete", path, source })?;
            }
        }
        let _ = fs::remove_dir(&folder);
    }
    Ok(())
}

fn list(folder: &Path) -> Result<Vec<String>, StoreError> {
    let io = |source| StoreError::Io { what: "list", path: folder.to_path_buf(), source };
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(io)? {
        names.extend(entry.map_err(io)?.file_name().into_string());
    }
    Ok(names)
}
