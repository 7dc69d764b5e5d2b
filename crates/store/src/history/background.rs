//! What history does on its own: flush by age and size, compaction, retention, checkpoints, the saved snapshot.

use std::sync::Arc;
use std::time::Duration;

use catchment_types::Timestamp;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::DeltaHistory;
use super::data_file::DataFile;
use super::error::StoreError;
use super::retain::is_over;
use super::table::Table;
use crate::tables::TableId;

/// How often the amount of buffered rows is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Wait after a first failed flush; doubled with each further one.
const RETRY_WAIT_MIN: Duration = Duration::from_millis(500);
const RETRY_WAIT_MAX: Duration = Duration::from_secs(30);

impl DeltaHistory {
    /// Works until `shutdown`, then flushes and saves the snapshot a last time.
    pub(super) async fn work(&self, shutdown: CancellationToken) {
        let flushed = Notify::new();
        tokio::join!(
            self.flush_when_due(&shutdown, &flushed),
            self.maintain_when_due(&shutdown, &flushed),
            self.save_when_due(&shutdown)
        );
        if let Err(error) = self.flush_once().await {
            tracing::error!(%error, "the last flush failed; the rows are in the log and come back at the next start");
        }
        self.save().await;
    }

    async fn save_when_due(&self, shutdown: &CancellationToken) {
        while shutdown.run_until_cancelled(sleep(self.config.snapshot_interval())).await.is_some() {
            // Not given up at shutdown: the last one writes the same file.
            self.save().await;
        }
    }

    async fn save(&self) {
        if let Err(error) = self.save_snapshot().await {
            self.metrics.maintenance_failed();
            tracing::error!(%error, "the snapshot could not be saved; the next start reads more of the tables");
        }
    }

    async fn flush_when_due(&self, shutdown: &CancellationToken, flushed: &Notify) {
        let mut flushed_at = Instant::now();
        let mut retry_wait: Option<Duration> = None;
        while shutdown.run_until_cancelled(sleep(retry_wait.unwrap_or(LOOK_INTERVAL))).await.is_some() {
            let buffered = self.view.buffered_bytes();
            self.metrics.flush.buffered(buffered);
            let is_due = buffered >= self.config.flush_bytes.max(1)
                || buffered > 0 && flushed_at.elapsed() >= self.config.flush_interval();
            if !is_due && retry_wait.is_none() {
                continue;
            }
            match self.flush_once().await {
                Ok(report) => {
                    tracing::debug!(?report, "flushed");
                    flushed_at = Instant::now();
                    retry_wait = None;
                    flushed.notify_one();
                }
                Err(error) => {
                    let wait = retry_wait.map_or(RETRY_WAIT_MIN, |wait| (wait * 2).min(RETRY_WAIT_MAX));
                    tracing::error!(%error, retry_in = ?wait, "rows could not be brought into files; they stay in memory and in the log");
                    retry_wait = Some(wait);
                }
            }
        }
    }

    async fn maintain_when_due(&self, shutdown: &CancellationToken, flushed: &Notify) {
        let mut due = Instant::now() + self.config.maintenance_interval();
        loop {
            let work = async {
                tokio::select! {
                    () = sleep_until(due) => {
                        let outcome = self.maintain(Timestamp::now()).await;
                        due = Instant::now() + self.config.maintenance_interval();
                        outcome
                    }
                    () = flushed.notified() => self.compact_all(Timestamp::now()).await,
                }
            };
            // A merge that is under way is given up at shutdown: its file is an orphan, deleted at the next start.
            match shutdown.run_until_cancelled(work).await {
                None => return,
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    self.metrics.maintenance_failed();
                    tracing::error!(%error, "maintenance of history failed; it is tried again");
                }
            }
        }
    }

    /// Merges files as soon as it is due: queries open every file of their time, of which many come in one interval under
    /// load. Readings first: they are asked for most, and events cost the most to merge.
    async fn compact_all(&self, now: Timestamp) -> Result<(), StoreError> {
        for id in [TableId::RawMetrics, TableId::MetricRollups, TableId::RawEvents, TableId::Rejects] {
            self.compact_hot(&self.tables[id.index()], now).await?;
        }
        Ok(())
    }

    /// Merges what is due in a table, but not what leaves for the archive.
    async fn compact_hot(&self, table: &Arc<Table>, now: Timestamp) -> Result<(), StoreError> {
        let has_archive = self.archive.as_ref().is_some_and(|archive| archive.table(table.id).is_some());
        let days = self.config.retention_days(table.id);
        let is_leaving = |file: &DataFile| {
            has_archive
                && (days.is_some_and(|days| is_over(table, file, days, now)) || table.is_exporting(file))
        };
        self.compact(table, |file| !is_leaving(file)).await
    }

    /// Expires, merges and tidies every table once. Must not run twice at a time: [`DeltaHistory::work`] is the only caller
    /// besides tests.
    pub(super) async fn maintain(&self, now: Timestamp) -> Result<(), StoreError> {
        let mut failed = None;
        for table in &self.tables {
            let archive = self.archive.as_ref().and_then(|archive| archive.table(table.id));
            let days = self.config.retention_days(table.id);
            match (days, archive) {
                (Some(days), None) => self.expire(table, days, now).await?,
                // The archive may be away for long; history is looked after all the same.
                (days, Some(archive)) => {
                    let maintained = self.maintain_archive(table, archive, days, now).await;
                    self.metrics.archive_is_up(table.id, maintained.is_ok());
                    failed = failed.or(maintained.err());
                }
                (None, None) => {}
            }
            self.compact_hot(table, now).await?;
            self.tidy(table, now).await?;
            self.metrics.files(table.id, &self.view.files(table.id));
        }
        failed.map_or(Ok(()), Err)
    }

    /// Moves to the archive what is due, and looks after what is there.
    async fn maintain_archive(
        &self,
        hot: &Arc<Table>,
        archive: &Arc<Table>,
        days: Option<u32>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        if let Some(days) = days {
            self.export(hot, archive, days, now).await?;
        }
        if self.config.archive_retention_days > 0 {
            self.expire(archive, self.config.archive_retention_days, now).await?;
        }
        self.compact(archive, |_| true).await?;
        self.tidy(archive, now).await
    }
}
