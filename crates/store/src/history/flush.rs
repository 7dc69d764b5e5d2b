//! Flush: rows from the shards' memory into files, exactly once.
//!
//! A *round* takes the rows of all shards at one moment, with the offset each shard got to, and brings those of each table
//! into files: sort, write, sync, then one commit that has the files together with the offsets. A round that fails
//! keeps its rows and is gone on with by the next flush; tables that were done stay done. Whether a table is done is
//! asked of its log under the same lock as the commit, so that a commit whose answer was lost is not made twice.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use catchment_threads::Urgency;
use catchment_types::{Offset, Timestamp};
use futures::{StreamExt, stream};

use super::data_file::DataFile;
use super::error::StoreError;
use super::hook::{Hook, Step};
use super::table::{Table, committed, data_files, offset_action};
use super::writer::{FileWriter, delete_uncommitted, join, pick, shared};
use super::{DeltaHistory, HistoryHealth, sort};
use crate::delta::DeltaLog;
use crate::delta::actions::Action;
use crate::tables::TableId;

const BATCH_ROWS: usize = 8192;

/// What a flush did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FlushReport {
    /// Rows brought into files, all tables.
    pub rows: u64,
    /// Files written.
    pub files: usize,
    /// Their size, bytes.
    pub bytes: u64,
    /// Time taken.
    pub took: Duration,
}

/// How far flushes got.
pub(super) struct FlushState {
    /// For each table and partition, the offset after the last event whose rows are committed.
    committed: [Vec<Offset>; TableId::COUNT],
    /// A round that failed, to be gone on with.
    round: Option<Round>,
}

/// Rows on their way into files.
struct Round {
    /// For each partition, the offset after the last event whose rows are in this round or were in one before.
    next: Vec<Offset>,
    /// Tables whose rows are not in files yet.
    pending: [bool; TableId::COUNT],
}

impl FlushState {
    pub(super) fn new(committed: [Vec<Offset>; TableId::COUNT]) -> Self {
        Self { committed, round: None }
    }

    /// For each partition, the offset before which no table needs the log any more.
    pub(super) fn committed_by_all(&self) -> Vec<Offset> {
        let partitions = self.committed[0].len();
        let lowest = |partition| self.committed.iter().map(|offsets| offsets[partition]).min();
        (0..partitions).map(|partition| lowest(partition).unwrap_or_default()).collect()
    }
}

impl DeltaHistory {
    /// Brings every row that is in memory now into files, and tells who has subscribed to the offsets.
    ///
    /// # Errors
    /// When the disk refuses. Nothing is lost: the rows stay in memory and queries see them; the next flush goes on.
    pub(super) async fn flush_once(&self) -> Result<FlushReport, StoreError> {
        let started = Instant::now();
        let mut state = self.flush_state.lock().await;
        let mut report = FlushReport::default();
        let result = self.flush_locked(&mut state, &mut report).await;
        report.took = started.elapsed();
        self.tell_outcome(report.took, result.as_ref().err());
        result.map(|()| report)
    }

    async fn flush_locked(&self, state: &mut FlushState, report: &mut FlushReport) -> Result<(), StoreError> {
        self.finish_round(state, report).await?;
        state.round = Some(Round { next: self.view.rotate(), pending: [true; TableId::COUNT] });
        self.hook.at(Step::Rotated)?;
        self.finish_round(state, report).await
    }

    /// Brings the round's tables into files, side by side: one after the other, rows would wait for the sum of them.
    async fn finish_round(&self, state: &mut FlushState, report: &mut FlushReport) -> Result<(), StoreError> {
        let Some(round) = &mut state.round else { return Ok(()) };
        let urgency = self.urgency();
        let pending = self.tables.iter().filter(|table| round.pending[table.id.index()]);
        let jobs = pending.map(|table| {
            let committed = &state.committed[table.id.index()];
            // While the log is read again after a start, a round can end before what the table has already.
            let next: Vec<_> =
                round.next.iter().zip(committed).map(|(&next, &committed)| next.max(committed)).collect();
            let job = TableFlush {
                table: Arc::clone(table),
                rows: self.view.flushing(table.id),
                start: committed.clone(),
                next: next.clone(),
                hook: self.hook.clone(),
            };
            (table.id, next, job)
        });
        let jobs: Vec<_> = jobs.collect();
        let flushes = stream::iter(jobs).map(async |(table, next, job)| {
            let rows: u64 = job.rows.iter().map(|rows| rows.num_rows() as u64).sum();
            let files = super::blocking("flush", urgency, move || job.run()).await;
            (table, next, rows, files)
        });
        let mut flushes = pin!(flushes.buffered(self.hook.tables_at_once()));
        let mut failed = None;
        while let Some((table, next, rows, files)) = flushes.next().await {
            let files = match files {
                Ok(files) => files,
                Err(error) => {
                    // Others are done all the same; the first error is told.
                    failed.get_or_insert(error);
                    continue;
                }
            };
            self.hook.at(Step::Committed(table))?;
            let bytes = files.iter().map(|file| file.bytes).sum();
            report.rows += rows;
            report.files += files.len();
            report.bytes += bytes;
            self.metrics.flush.flushed(table, rows, bytes);
            let written = self.view.flushed(table, files);
            state.committed[table.index()] = next;
            round.pending[table.index()] = false;
            super::blocking("freeing of rows", Urgency::Soon, move || {
                drop(written);
                Ok(())
            })
            .await?;
            // Workers that wait for room go on, while other tables are still being written.
            self.view.freed(table);
            self.hook.at(Step::Swapped(table))?;
        }
        if let Some(error) = failed {
            return Err(error);
        }
        state.round = None;
        self.committed.send_replace(state.committed_by_all());
        Ok(())
    }

    /// A flush in good time steps back. One that began late, or in which much has come meanwhile, must not fall behind: workers
    /// wait when there is no room left.
    fn urgency(&self) -> Urgency {
        let is_late = self.view.held_bytes() >= self.config.flush_bytes.saturating_mul(5) / 4;
        if is_late { Urgency::Now } else { Urgency::Soon }
    }

    fn tell_outcome(&self, took: Duration, error: Option<&StoreError>) {
        let mut health = self.health.lock();
        match error {
            None => {
                self.metrics.flush.succeeded(took);
                *health = HistoryHealth::Healthy;
            }
            Some(error) => {
                self.metrics.flush.failed();
                let message = error.to_string();
                *health = match &*health {
                    HistoryHealth::Healthy => {
                        HistoryHealth::Failing { since: Timestamp::now(), attempts: 1, message }
                    }
                    HistoryHealth::Failing { since, attempts, .. } => HistoryHealth::Failing {
                        since: *since,
                        attempts: attempts.saturating_add(1),
                        message,
                    },
                };
            }
        }
    }
}

/// The part of a round that one table has, off the runtime's threads.
struct TableFlush {
    table: Arc<Table>,
    rows: Vec<RecordBatch>,
    start: Vec<Offset>,
    next: Vec<Offset>,
    hook: Hook,
}

impl TableFlush {
    /// Returns the files that have the rows; all of the table's when an earlier attempt had committed them.
    fn run(self) -> Result<Vec<Arc<DataFile>>, StoreError> {
        if let Some(files) = self.already_done()? {
            return Ok(files);
        }
        if self.rows.is_empty() && self.next == self.start {
            return Ok(Vec::new());
        }
        let files = self.write_files()?;
        // A test's failure here must leave the files as a crash would.
        self.hook.at(Step::Written(self.table.id))?;

        let now_ms = Timestamp::now().as_micros() / 1000;
        let moved = (0..).zip(&self.next).zip(&self.start).filter(|((_, next), start)| next != start);
        let mut actions: Vec<_> =
            moved.map(|((partition, &next), _)| offset_action(partition, next, now_ms)).collect();
        actions.extend(files.iter().map(|file| Action::Add(file.to_add(self.table.id, true))));

        let mut log = self.table.log.lock();
        if committed(&log, self.start.len()) != self.start {
            // A flush that was given up by its caller went on, and was first.
            delete_uncommitted(&self.table, &files);
            return Ok(self.files(&log));
        }
        match log.commit("WRITE", actions) {
            Ok(_) => Ok(shared(files)),
            Err(error) => {
                if !log.is_unsettled() {
                    delete_uncommitted(&self.table, &files);
                }
                Err(error.into())
            }
        }
    }

    /// The table's files, when an attempt before this one committed and its answer was lost.
    fn already_done(&self) -> Result<Option<Vec<Arc<DataFile>>>, StoreError> {
        let mut log = self.table.log.lock();
        log.settle()?;
        let done = committed(&log, self.start.len()) != self.start;
        Ok(done.then(|| self.files(&log)))
    }

    /// All of the table's, but for a merged one that queries are not to see before those go that it has the rows of.
    fn files(&self, log: &DeltaLog) -> Vec<Arc<DataFile>> {
        let merged = self.table.unsettled.lock().as_ref().map(|replaced| replaced.new.path.clone());
        let mut files = data_files(self.table.id, log);
        files.retain(|file| merged.as_ref() != Some(&file.path));
        files
    }

    fn write_files(&self) -> Result<Vec<DataFile>, StoreError> {
        let mut files = Vec::new();
        let result = self.write_files_into(&mut files);
        if result.is_err() {
            delete_uncommitted(&self.table, &files);
        }
        result.map(|()| files)
    }

    fn write_files_into(&self, files: &mut Vec<DataFile>) -> Result<(), StoreError> {
        let id = self.table.id;
        let rows = join(id, &self.rows)?;
        for (period, numbers) in sort::by_period(id, &rows) {
            let mut writer = FileWriter::create(&self.table, &period)?;
            for numbers in numbers.chunks(BATCH_ROWS) {
                writer.write(&pick(id, &rows, numbers)?)?;
            }
            files.push(writer.finish()?);
        }
        Ok(())
    }
}
