//! Compaction: many small files of a day become one, in order.
//!
//! Files of about one size are merged, so that a row is rewritten only a few times on its way into a large file. The
//! merge streams: it holds a few thousand rows of each file. Rollups of equal keys become one row.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use catchment_threads::Urgency;
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

use super::config::HistoryConfig;
use super::data_file::DataFile;
use super::error::StoreError;
use super::table::{Replacement, Table};
use super::writer::{FileWriter, delete_uncommitted};
use super::{DeltaHistory, blocking};
use crate::delta::actions::Action;
use crate::tables::TableId;

/// Rows of each file in memory at a time.
const BATCH_ROWS: usize = 1024;
/// Files in one merge; each holds a row group in memory.
const FILES_MAX: usize = 32;
/// How long files wait for others, in microseconds, when they have this many bytes together.
const WAIT_US: i64 = 60_000_000;
const WORTH_BYTES: u64 = 8 << 20;
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
            let Some(files) = due(&files, &self.config, Timestamp::now()) else { return Ok(()) };
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
pub(super) fn due(
    files: &[Arc<DataFile>],
    config: &HistoryConfig,
    now: Timestamp,
) -> Option<Vec<Arc<DataFile>>> {
    let mut periods = BTreeMap::<&str, Vec<&Arc<DataFile>>>::new();
    for file in files.iter().filter(|file| file.bytes < config.compact_bytes_max) {
        periods.entry(&file.period).or_default().push(file);
    }
    periods.into_values().find_map(|files| {
        let mut tiers = BTreeMap::<u32, usize>::new();
        for file in &files {
            *tiers.entry(tier(file.bytes)).or_default() += 1;
        }
        let full = tiers.into_iter().filter(|&(_, count)| count >= config.compact_files_min.max(2));
        full.map(|(tier, _)| up_to(tier, &files, config.compact_bytes_max))
            .find(|files| files.len() > 1 && !gains_by_waiting(files, config.compact_bytes_max, now))
    })
}

/// The oldest files of a tier and of those below it, as many as one merge takes.
fn up_to(full: u32, files: &[&Arc<DataFile>], bytes_max: u64) -> Vec<Arc<DataFile>> {
    let mut bytes = 0;
    files
        .iter()
        .filter(|file| tier(file.bytes) <= full)
        .take(FILES_MAX)
        .take_while(|file| {
            bytes += file.bytes;
            bytes - file.bytes < bytes_max
        })
        .map(|file| Arc::clone(file))
        .collect()
}

/// Whether others may come soon that could be merged along: what comes fast is rewritten once then, into a large file,
/// instead of twice or three times. Small files are read often and cost little to merge: they do not wait.
fn gains_by_waiting(files: &[Arc<DataFile>], bytes_max: u64, now: Timestamp) -> bool {
    let bytes: u64 = files.iter().map(|file| file.bytes).sum();
    let since = files.iter().map(|file| file.written_at).min().unwrap_or(now);
    files.len() < FILES_MAX
        && bytes < bytes_max
        && bytes >= WORTH_BYTES
        && now.as_micros().saturating_sub(since.as_micros()) < WAIT_US
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

    /// What is due long after all were written.
    fn due(files: &[Arc<DataFile>], files_min: usize, bytes_max: u64) -> Option<Vec<Arc<DataFile>>> {
        due_at(files, files_min, bytes_max, WAIT_US)
    }

    fn due_at(
        files: &[Arc<DataFile>],
        compact_files_min: usize,
        compact_bytes_max: u64,
        now_us: i64,
    ) -> Option<Vec<Arc<DataFile>>> {
        let config = HistoryConfig { compact_files_min, compact_bytes_max, ..HistoryConfig::default() };
        super::due(files, &config, Timestamp(now_us))
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

    #[test]
    fn what_comes_fast_is_merged_once_into_a_large_file() {
        let files = |count| (0..count).map(|name| file(name, "a", 4 << 20)).collect::<Vec<_>>();
        let due_soon = |files: &[Arc<DataFile>]| due_at(files, 8, 64 << 20, WAIT_US - 1).map(|due| due.len());
        assert_eq!((due_soon(&files(8)), due_soon(&files(15)), due_soon(&files(16))), (None, None, Some(16)));
        assert_eq!(due(&files(8), 8, 64 << 20).unwrap().len(), 8, "one does not wait for ever");
        // What is small does not wait, and does not wait for what is large.
        let small = (0..8).map(|name| file(name, "a", 100 << 10)).collect::<Vec<_>>();
        assert_eq!(due_soon(&small), Some(8));
        let both = [files(8), small].concat();
        assert_eq!(due_at(&both, 8, 64 << 20, 0).unwrap(), both[8..]);
        // Many at once are as good as large ones.
        let many = (0..FILES_MAX as u32).map(|name| file(name, "a", 1 << 20)).collect::<Vec<_>>();
        assert_eq!((due_soon(&many), due_soon(&many[1..])), (Some(FILES_MAX), None));
    }
}
