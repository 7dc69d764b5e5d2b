//! Compaction: many small files of a day become one, in order.
//!
//! Files of about one size are merged, so that a row is rewritten only a few times on its way into a large file. The
//! merge streams: it holds a few thousand rows of each file. Rollups of equal keys become one row.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use catchment_types::Timestamp;
use datafusion::execution::context::SessionContext;
use datafusion::functions_aggregate::{min_max, sum};
use datafusion::logical_expr::AggregateUDF;
use datafusion::physical_expr::aggregate::AggregateExprBuilder;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode, PhysicalGroupBy};
use datafusion::physical_plan::expressions::col;
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use futures::StreamExt;

use super::data_file::DataFile;
use super::error::StoreError;
use super::table::{Replacement, Table};
use super::writer::{FileWriter, delete_uncommitted};
use super::{DeltaHistory, Urgency, blocking};
use crate::delta::actions::Action;
use crate::tables::TableId;

/// Rows of each file in memory at a time.
const BATCH_ROWS: usize = 1024;
/// Files in one merge; each holds a row group in memory.
const FILES_MAX: usize = 16;
/// Files up to this size are of the lowest tier; each tier is four times the one before.
const TIER_BYTES: u64 = 256 << 10;

impl DeltaHistory {
    /// Merges files of the table until no day or month has too many small ones. Those that `may_merge` denies stay as they are.
    pub(super) async fn compact(
        &self,
        table: &Arc<Table>,
        may_merge: impl Fn(&DataFile) -> bool,
    ) -> Result<(), StoreError> {
        self.settle_merge(table).await?;
        loop {
            let mut files = self.view.files_in(table.part, table.id).to_vec();
            files.retain(|file| may_merge(file));
            let Some(files) = due(&files, self.config.compact_files_min, self.config.compact_bytes_max)
            else {
                return Ok(());
            };
            let merged = merge(&self.maintenance, table, &files).await?;
            self.merged(table, Replacement { old: files, new: merged });
        }
    }

    /// Takes a merge in whose outcome was left open.
    async fn settle_merge(&self, table: &Arc<Table>) -> Result<(), StoreError> {
        let settling = Arc::clone(table);
        if let Some(replaced) =
            blocking("settling of a merge", Urgency::Soon, move || settling.settle()).await?
        {
            self.merged(table, replaced);
        }
        Ok(())
    }

    fn merged(&self, table: &Table, replaced: Replacement) {
        let Replacement { old, new } = replaced;
        self.metrics.compacted(table.id, old.len());
        tracing::debug!(
            table = table.id.name(),
            part = table.part.name(),
            period = new.period,
            files = old.len(),
            bytes = new.bytes,
            "merged files"
        );
        self.view.replaced(table.part, table.id, &old, vec![new]);
    }
}

/// Writes and commits one file in place of `files`, which are of one period.
pub(super) async fn merge(
    context: &SessionContext,
    table: &Arc<Table>,
    files: &[Arc<DataFile>],
) -> Result<Arc<DataFile>, StoreError> {
    let old = files.to_vec();
    rewrite(context, table, table, files, move |table, merged| commit(table, old, merged)).await
}

/// Writes the rows of files of `from`, which are of one period, in order into one file of `to`, and has it committed.
pub(super) async fn rewrite(
    context: &SessionContext,
    from: &Table,
    to: &Arc<Table>,
    files: &[Arc<DataFile>],
    commit: impl FnOnce(&Table, DataFile) -> Result<Arc<DataFile>, StoreError> + Send + 'static,
) -> Result<Arc<DataFile>, StoreError> {
    let context = context.task_ctx();
    let (scan, order) = from.reader.scan_in_order(&context.runtime_env(), from.id, files, BATCH_ROWS)?;
    let mut plan: Arc<dyn ExecutionPlan> = Arc::new(SortPreservingMergeExec::new(order, scan));
    if from.id == TableId::MetricRollups {
        plan = merge_states(plan)?;
    }
    let (writing, committing) = (Arc::clone(to), Arc::clone(to));
    let period = files.first().map_or_else(String::new, |file| file.period.clone());
    let write = move || {
        // One of this thread alone: on the caller's, decoding would compete with those who wait for an answer.
        let runtime = tokio::runtime::Builder::new_current_thread()
            // Requests to S3 that are to be tried again wait in here.
            .enable_time()
            .build()
            .map_err(|error| StoreError::Interrupted { what: "merge", message: error.to_string() })?;
        let _entered = runtime.enter();
        let mut rows = plan.execute(0, context)?;
        let mut writer = FileWriter::create(&writing, &period)?;
        while let Some(batch) = runtime.block_on(rows.next()) {
            writer.write(&with_schema(writing.id, &batch?)?)?;
        }
        writer.finish()
    };
    let written = blocking("merge", Urgency::Later, write).await?;
    // Flushes want the same lock.
    blocking("commit of a merge", Urgency::Soon, move || commit(&committing, written)).await
}

fn commit(table: &Table, old: Vec<Arc<DataFile>>, merged: DataFile) -> Result<Arc<DataFile>, StoreError> {
    let now_ms = Timestamp::now().as_micros() / 1000;
    let mut log = table.log.lock();
    let removes: Vec<_> = old.iter().filter_map(|file| log.file(&file.path)).collect();
    let mut actions: Vec<_> = removes.iter().map(|add| Action::Remove(add.remove(now_ms, false))).collect();
    actions.push(Action::Add(merged.to_add(table.id, false)));
    match log.commit("OPTIMIZE", actions) {
        Ok(_) => Ok(Arc::new(merged)),
        Err(error) if log.is_unsettled() => {
            *table.unsettled.lock() = Some(Replacement { old, new: Arc::new(merged) });
            Err(error.into())
        }
        Err(error) => {
            delete_uncommitted(table, std::slice::from_ref(&merged));
            Err(error.into())
        }
    }
}

/// Files of one period that are to be merged now, oldest first.
pub(super) fn due(files: &[Arc<DataFile>], files_min: usize, bytes_max: u64) -> Option<Vec<Arc<DataFile>>> {
    let mut periods = BTreeMap::<&str, Vec<&Arc<DataFile>>>::new();
    for file in files.iter().filter(|file| file.bytes < bytes_max) {
        periods.entry(&file.period).or_default().push(file);
    }
    periods.into_values().find_map(|files| {
        let mut tiers = BTreeMap::<u32, usize>::new();
        for file in &files {
            *tiers.entry(tier(file.bytes)).or_default() += 1;
        }
        let (&full, _) = tiers.iter().find(|&(_, &count)| count >= files_min.max(2))?;
        let mut bytes = 0;
        let merge: Vec<_> = files
            .into_iter()
            .filter(|file| tier(file.bytes) <= full)
            .take(FILES_MAX)
            .take_while(|file| {
                bytes += file.bytes;
                bytes - file.bytes < bytes_max
            })
            .cloned()
            .collect();
        (merge.len() > 1).then_some(merge)
    })
}

fn tier(bytes: u64) -> u32 {
    (bytes / TIER_BYTES).checked_ilog(4).map_or(0, |tier| tier + 1)
}

/// Sum of sums and counts, lowest of the lowest, highest of the highest, for each key; streaming, as the input is in the
/// order of the keys.
fn merge_states(input: Arc<dyn ExecutionPlan>) -> datafusion::error::Result<Arc<dyn ExecutionPlan>> {
    let schema = input.schema();
    let key = |name: &str| Ok((col(name, &schema)?, name.to_owned()));
    let keys = ["device_id", "time_bucket", "metric_name"]
        .into_iter()
        .map(key)
        .collect::<datafusion::error::Result<_>>()?;
    let state = |function: Arc<AggregateUDF>, name: &str| {
        AggregateExprBuilder::new(function, vec![col(name, &schema)?])
            .schema(Arc::clone(&schema))
            .alias(name)
            .build()
            .map(Arc::new)
    };
    let states = vec![
        state(sum::sum_udaf(), "sum_value")?,
        state(min_max::min_udaf(), "min_value")?,
        state(min_max::max_udaf(), "max_value")?,
        state(sum::sum_udaf(), "count")?,
    ];
    let no_filters = vec![None; states.len()];
    let group_by = PhysicalGroupBy::new_single(keys);
    Ok(Arc::new(AggregateExec::try_new(AggregateMode::Single, group_by, states, no_filters, input, schema)?))
}

/// Aggregates are nullable by type; none is null here.
fn with_schema(table: TableId, rows: &RecordBatch) -> Result<RecordBatch, StoreError> {
    RecordBatch::try_new(table.schema(), rows.columns().to_vec())
        .map_err(|source| StoreError::Rows { table: table.name(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: u32, period: &str, bytes: u64) -> Arc<DataFile> {
        Arc::new(DataFile {
            path: format!("{period}/{name}"),
            period: period.to_owned(),
            bytes,
            written_at: Timestamp(0),
            stats: None,
        })
    }

    #[test]
    fn only_files_of_one_period_and_about_one_size_are_merged() {
        let mut files: Vec<_> = (0..3).map(|name| file(name, "a", 1000)).collect();
        files.extend((3..6).map(|name| file(name, "b", 1000)));
        assert_eq!(due(&files, 4, 1 << 30), None);
        assert_eq!(due(&files, 3, 1 << 30).unwrap(), files[..3]);
        // A large one stays out, a small one goes in with the larger.
        let mut files: Vec<_> = (0..3).map(|name| file(name, "a", 1 << 20)).collect();
        files.extend([file(3, "a", 1 << 26), file(4, "a", 10)]);
        let merged = due(&files, 3, 1 << 30).unwrap();
        assert_eq!(merged, [0, 1, 2, 4].map(|index: usize| Arc::clone(&files[index])));
    }

    #[test]
    fn a_merge_is_bounded() {
        let files: Vec<_> = (0..100).map(|name| file(name, "a", 10)).collect();
        assert_eq!(due(&files, 2, 1 << 30).unwrap().len(), FILES_MAX);
        let files: Vec<_> = (0..10).map(|name| file(name, "a", 60)).collect();
        assert_eq!(due(&files, 2, 100).unwrap().len(), 2);
        assert_eq!(due(&files, 2, 60), None);
    }
}
