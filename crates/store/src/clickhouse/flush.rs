//! Flush: a partition's rows into ClickHouse, exactly once.
//!
//! ```text
//! take the shard's rows → for each range of events: claim it → insert each table's rows of it → the range is committed
//! ```
//!
//! A claim is durable before anything of its range is sent, and says that everything below is in. An insert is one block
//! with a name made of log, partition, range and table, and ClickHouse takes no block twice. So whoever does not know what
//! came of an insert makes it again with the same rows and name: the same process after a failure, or the next owner of the
//! partition, which reads the claimed range from the log again and brings in exactly that before anything else.
//!
//! Rows of a flush that fails stay in memory, and the next flush goes on where it stopped.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use catchment_types::{Offset, PartitionId, Timestamp};
use futures::StreamExt;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::ClickHouseHistory;
use super::error::Trouble;
use super::rows::{Limits, SENT, Taken};
use crate::history::{ClaimError, FlushReport, HistoryHealth, StoreError};

/// How often the amount of buffered rows is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// Wait after a first failed flush; doubled with each further one.
const RETRY_WAIT_MIN: Duration = Duration::from_millis(250);
const RETRY_WAIT_MAX: Duration = Duration::from_secs(5);
/// With many partitions, flushes are so far apart that a table gets no more than ten inserts a second.
const INTERVAL_A_PARTITION: Duration = Duration::from_millis(100);
/// Partitions that are flushed at once.
const FLUSHES_AT_ONCE: usize = 4;
/// How often it is asked whether ClickHouse is there while there is nothing to bring in.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// A partition that is quiet for so long is claimed up to where it is: a later start then has nothing to repeat.
const QUIET: Duration = Duration::from_secs(30);
/// How long giving up a partition waits for its last rows.
const RELEASE_MAX: Duration = Duration::from_secs(5);

/// One partition, while it is ours and while it is not.
#[derive(Debug, Default)]
pub(super) struct Partition {
    is_ours: bool,
    /// The last claim.
    claimed: Range<Offset>,
    /// Everything below is in ClickHouse.
    committed: Offset,
    /// Rows that were taken out of the shard and are not all in ClickHouse.
    taken: Option<Taken>,
    /// When the last range was committed.
    moved_at: Option<Instant>,
    /// Inserts that had no answer in time, since the last that had.
    silences: u32,
}

impl Partition {
    /// Of a partition that was just taken over, with its last claim.
    pub(super) fn taken_over(claimed: Range<Offset>) -> Self {
        Self { is_ours: true, committed: claimed.start, claimed, ..Self::default() }
    }

    /// Whether the last claim is not known to be in ClickHouse.
    fn has_open_claim(&self) -> bool {
        self.committed < self.claimed.end
    }
}

impl ClickHouseHistory {
    /// Brings every row that is in memory now into ClickHouse, partition by partition.
    ///
    /// # Errors
    /// The first failure; other partitions were flushed all the same.
    pub(super) async fn flush_once(&self) -> Result<FlushReport, StoreError> {
        let started = Instant::now();
        let _one_at_a_time = self.flushing.lock().await;
        let partitions = 0..self.partitions.len();
        let results: Vec<_> = futures::stream::iter(partitions)
            .map(|partition| self.flush_partition(partition as PartitionId))
            .buffer_unordered(FLUSHES_AT_ONCE)
            .collect()
            .await;
        let mut report = FlushReport::default();
        let mut failure = None;
        for result in results {
            match result {
                Ok(of_partition) => {
                    report.rows += of_partition.rows;
                    report.bytes += of_partition.bytes;
                }
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        report.took = started.elapsed();
        match failure {
            None => {
                // Nothing was sent, so nothing is known.
                if report.rows > 0 {
                    self.metrics.flush.succeeded(report.took);
                    self.tell_outcome(None);
                }
                Ok(report)
            }
            Some(error) => {
                self.metrics.flush.failed();
                self.tell_outcome(Some(&error));
                Err(error)
            }
        }
    }

    async fn flush_partition(&self, number: PartitionId) -> Result<FlushReport, StoreError> {
        // One that is being taken over or given up takes its time; others do not wait for it.
        match self.partitions[number as usize].try_lock() {
            Ok(mut partition) => self.flush_ours(number, &mut partition).await,
            Err(_) => Ok(FlushReport::default()),
        }
    }

    async fn flush_ours(
        &self,
        number: PartitionId,
        partition: &mut Partition,
    ) -> Result<FlushReport, StoreError> {
        let result = self.flush_locked(number, partition).await;
        if let Err(StoreError::Claim(ClaimError::Lost(_))) = result {
            // Whoever has it now reads these rows from the log. We are told to give it up in a moment.
            tracing::warn!(
                partition = number,
                "the partition is another process's now; its rows are left to that"
            );
            self.forget(number, partition);
            return Ok(FlushReport::default());
        }
        result
    }

    async fn flush_locked(
        &self,
        number: PartitionId,
        partition: &mut Partition,
    ) -> Result<FlushReport, StoreError> {
        let mut report = FlushReport::default();
        if !partition.is_ours {
            return Ok(report);
        }
        let shard = &self.shards[number as usize];
        if partition.taken.is_none() {
            let next = shard.stats().next_offset;
            // Below the claim's end, the range that has to be repeated is still being read.
            if next <= partition.committed || next < partition.claimed.end {
                self.seal_if_quiet(number, partition).await?;
                return Ok(report);
            }
            partition.taken = Some(Taken::new(shard.take_rows()));
        }
        let Some(taken) = partition.taken.clone() else { return Ok(report) };
        while partition.committed < taken.next {
            let range = match partition.has_open_claim() {
                true => partition.claimed.clone(),
                false => partition.committed..taken.range_end(partition.committed, self.limits()),
            };
            if partition.claimed != range {
                self.claims.claim(number, range.clone()).await?;
                partition.claimed = range.clone();
            }
            let limit = self.writer.target().config.insert_limit(partition.silences);
            let brought = self.bring_in(number, &range, &taken, limit, &mut report).await;
            let is_silent = matches!(&brought, Err(StoreError::ClickHouse(error)) if error.is_silence());
            partition.silences = if is_silent { partition.silences.saturating_add(1) } else { 0 };
            brought?;
            self.commit(number, partition, range.end);
        }
        partition.taken = None;
        shard.all_rows_written();
        Ok(report)
    }

    /// Inserts the rows of a range, table by table.
    async fn bring_in(
        &self,
        number: PartitionId,
        range: &Range<Offset>,
        taken: &Taken,
        limit: Duration,
        report: &mut FlushReport,
    ) -> Result<(), StoreError> {
        for table in SENT {
            let (rows, of_range) = (taken.clone(), range.clone());
            let made = tokio::task::spawn_blocking(move || rows.block(table, &of_range)).await;
            let made =
                made.map_err(|error| StoreError::Interrupted { what: "flush", message: error.to_string() })?;
            let block = made.map_err(|source| StoreError::Rows { table: table.name(), source })?;
            let Some(block) = block else { continue };
            let token =
                format!("{}/{number}/{}-{}/{}", self.log_identity, range.start, range.end, table.name());
            let (rows, bytes) = (block.rows.num_rows() as u64, block.body.len() as u64);
            self.writer.insert(table.name(), &token, &block.rows, block.body, limit).await?;
            self.metrics.flush.flushed(table, rows, bytes);
            report.rows += rows;
            report.bytes += bytes;
        }
        Ok(())
    }

    fn commit(&self, number: PartitionId, partition: &mut Partition, offset: Offset) {
        partition.committed = offset;
        partition.moved_at = Some(Instant::now());
        self.committed.send_modify(|committed| committed[number as usize] = offset);
    }

    async fn seal_if_quiet(&self, number: PartitionId, partition: &mut Partition) -> Result<(), StoreError> {
        let is_quiet = partition.moved_at.is_some_and(|moved_at| moved_at.elapsed() >= QUIET);
        if is_quiet { self.seal(number, partition).await } else { Ok(()) }
    }

    /// Claims nothing, from where history is: what was claimed before is in.
    async fn seal(&self, number: PartitionId, partition: &mut Partition) -> Result<(), StoreError> {
        if partition.has_open_claim() || partition.claimed.is_empty() {
            return Ok(());
        }
        let nothing = partition.committed..partition.committed;
        self.claims.claim(number, nothing.clone()).await?;
        partition.claimed = nothing;
        Ok(())
    }

    /// Gives a partition up: flushed if ClickHouse answers soon, and then forgotten.
    pub(super) async fn give_up(&self, number: PartitionId) {
        let last = async {
            let mut partition = self.partitions[number as usize].lock().await;
            self.flush_ours(number, &mut partition).await?;
            if partition.is_ours { self.seal(number, &mut partition).await } else { Ok(()) }
        };
        match tokio::time::timeout(RELEASE_MAX, last).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(partition = number, %error, "its last rows are left to the partition's next owner");
            }
            Err(_) => tracing::warn!(
                partition = number,
                "ClickHouse takes too long; the last rows are left to the partition's next owner"
            ),
        }
        let mut partition = self.partitions[number as usize].lock().await;
        self.forget(number, &mut partition);
    }

    fn forget(&self, number: PartitionId, partition: &mut Partition) {
        *partition = Partition::default();
        let shard = &self.shards[number as usize];
        shard.clear();
        shard.all_rows_written();
    }

    /// Whether this process works on the log's first partition: what one process is to do, that one does.
    pub(super) async fn has_first_partition(&self) -> bool {
        match self.partitions.first() {
            Some(partition) => partition.lock().await.is_ours,
            None => false,
        }
    }

    /// The offset of a partition below which everything is in ClickHouse, whoever works on it.
    pub(super) async fn surely_in(&self, number: PartitionId) -> Result<Offset, StoreError> {
        let partition = self.partitions[number as usize].lock().await;
        match partition.is_ours {
            true => Ok(partition.committed),
            // Below the last claim nothing is on its way any more.
            false => Ok(self.claims.claimed(number).await?.start),
        }
    }

    /// Works until `shutdown`, then flushes a last time.
    pub(super) async fn work(&self, shutdown: CancellationToken) {
        tokio::join!(self.flush_when_due(&shutdown), self.archive_when_due(&shutdown));
        if let Err(error) = self.flush_once().await {
            tracing::error!(%error, "the last flush failed; the rows are in the log and come back at the next start");
        }
        for (number, partition) in (0..).zip(&self.partitions) {
            let mut partition = partition.lock().await;
            if partition.is_ours
                && let Err(error) = self.seal(number, &mut partition).await
            {
                tracing::warn!(partition = number, %error, "the next start repeats the last flush");
            }
        }
    }

    async fn flush_when_due(&self, shutdown: &CancellationToken) {
        let mut flushed_at = Instant::now();
        let mut retry_wait: Option<Duration> = None;
        while shutdown.run_until_cancelled(sleep(retry_wait.unwrap_or(LOOK_INTERVAL))).await.is_some() {
            let buffered = self.buffered();
            self.metrics.flush.buffered(buffered);
            let is_due = buffered >= self.config.flush_bytes.max(1)
                || buffered > 0 && flushed_at.elapsed() >= self.flush_interval();
            if !is_due && retry_wait.is_none() && flushed_at.elapsed() < PING_INTERVAL {
                continue;
            }
            // Given up at shutdown, an insert is made again by the last flush.
            let outcome = match is_due || retry_wait.is_some() {
                true => shutdown.run_until_cancelled(self.flush_and_look()).await,
                false => shutdown.run_until_cancelled(self.look()).await,
            };
            match outcome {
                None => return,
                Some(Ok(())) => {
                    flushed_at = Instant::now();
                    retry_wait = None;
                }
                Some(Err(error)) => {
                    let wait = retry_wait.map_or(RETRY_WAIT_MIN, |wait| (wait * 2).min(RETRY_WAIT_MAX));
                    tracing::error!(%error, retry_in = ?wait, "rows could not be brought into ClickHouse; they stay in memory and in the log");
                    retry_wait = Some(wait);
                }
            }
        }
    }

    async fn flush_and_look(&self) -> Result<(), StoreError> {
        let report = self.flush_once().await?;
        if report.rows == 0 {
            return self.look().await;
        }
        tracing::debug!(?report, "flushed");
        Ok(())
    }

    /// Asks whether ClickHouse is there, with our tables in it; and seals quiet partitions.
    async fn look(&self) -> Result<(), StoreError> {
        let looked = async {
            let version = super::schema::version(&self.writer).await?;
            let missing = || self.writer.error(Trouble::Schema("schema_migrations is missing".to_owned()));
            super::schema::check(&self.writer, version.ok_or_else(missing)?)
        };
        let result = looked.await.map_err(StoreError::from);
        self.tell_outcome(result.as_ref().err());
        result?;
        for (number, partition) in (0..).zip(&self.partitions) {
            let Ok(mut partition) = partition.try_lock() else { continue };
            if partition.is_ours && partition.taken.is_none() {
                self.seal_if_quiet(number, &mut partition).await?;
            }
        }
        Ok(())
    }

    fn limits(&self) -> Limits {
        let config = &self.writer.target().config;
        Limits { rows_max: config.insert_rows_max.max(1), bytes_max: config.insert_bytes_max }
    }

    fn flush_interval(&self) -> Duration {
        let ours =
            self.partitions.iter().filter(|partition| partition.try_lock().is_ok_and(|p| p.is_ours)).count();
        let spread = INTERVAL_A_PARTITION * u32::try_from(ours).unwrap_or(u32::MAX);
        self.writer.target().config.flush_interval().max(spread)
    }

    pub(super) fn buffered(&self) -> usize {
        self.shards.iter().map(|shard| shard.buffered_bytes()).sum()
    }

    fn tell_outcome(&self, error: Option<&StoreError>) {
        self.metrics.up(error.is_none());
        let mut health = self.health.lock();
        let Some(error) = error else {
            *health = HistoryHealth::Healthy;
            return;
        };
        let message = error.to_string();
        *health = match &*health {
            HistoryHealth::Healthy => {
                HistoryHealth::Failing { since: Timestamp::now(), attempts: 1, message }
            }
            HistoryHealth::Failing { since, attempts, .. } => {
                HistoryHealth::Failing { since: *since, attempts: attempts.saturating_add(1), message }
            }
        };
    }
}

/// So that a partition's state is one file's business.
pub(super) fn partitions(number: usize) -> Vec<tokio::sync::Mutex<Partition>> {
    (0..number).map(|_| tokio::sync::Mutex::default()).collect()
}

/// The log's name as part of a token.
pub(super) fn identity(log: &str) -> Arc<str> {
    log.replace(|c: char| c.is_whitespace() || c == '/', "_").into()
}
