//! Raw data that is past its hot days moves from ClickHouse to the archive, and stays queryable under the same table name.
//!
//! How each row is seen once while it moves is told in [`crate::history::cold`]. The process that works on the log's first partition
//! moves rows; all others only read. ClickHouse drops none of these tables' rows by itself then.

use std::ops::Range;
use std::sync::Arc;

use catchment_threads::Urgency;
use catchment_types::{Offset, PartitionId, Timestamp};
use datafusion::execution::context::SessionContext;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::ClickHouseHistory;
use super::answer::shaped;
use super::filter::time;
use super::scan::Running;
use crate::history::cold::{COLD_TABLES, ColdReader, ColdWriter, Leaving};
use crate::history::{StoreError, blocking, owner};
use crate::storage::{Place, Storage};
use crate::tables::TableId;

/// Of the queries that copy: small blocks, in the order of the table, for as long as a large day takes.
const SETTINGS: [(&str, &str); 5] = [
    ("readonly", "2"),
    ("max_execution_time", "0"),
    ("max_block_size", "8192"),
    ("optimize_read_in_order", "1"),
    ("max_bytes_before_external_sort", "1073741824"),
];
/// Batches between ClickHouse and the file.
const BATCHES_WAITING: usize = 2;

/// The archive, as this process knows it.
pub(super) struct Archive {
    storage: Arc<dyn Storage>,
    readers: [Arc<ColdReader>; COLD_TABLES.len()],
    /// While this process moves rows.
    writers: tokio::sync::Mutex<Option<Vec<ColdWriter>>>,
    /// Runs merges.
    context: SessionContext,
}

impl Archive {
    /// Opens it for reading. `log` tells the log from all others.
    ///
    /// # Errors
    /// The place does not answer, or is another log's.
    pub(super) async fn open(place: &Place, log: &str, days: Option<u32>) -> Result<Self, StoreError> {
        let (place, log) = (place.clone(), log.to_owned());
        blocking("opening of the archive", Urgency::Now, move || {
            let storage = place.open()?;
            owner::belongs_to(&*storage, &log)?;
            let mut readers = Vec::with_capacity(COLD_TABLES.len());
            for table in COLD_TABLES {
                readers.push(Arc::new(ColdReader::open(&storage, table, days)?));
            }
            Ok(Self {
                storage,
                readers: std::array::from_fn(|table| Arc::clone(&readers[table])),
                writers: tokio::sync::Mutex::default(),
                context: SessionContext::new(),
            })
        })
        .await
    }

    /// The archive's rows of a table.
    pub(super) fn reader(&self, table: TableId) -> Option<&Arc<ColdReader>> {
        COLD_TABLES.iter().zip(&self.readers).find(|(id, _)| **id == table).map(|(_, reader)| reader)
    }
}

impl ClickHouseHistory {
    /// Moves what is due, until `shutdown`.
    pub(super) async fn archive_when_due(&self, shutdown: &CancellationToken) {
        let Some(archive) = &self.archive else { return };
        while shutdown.run_until_cancelled(sleep(self.config.maintenance_interval())).await.is_some() {
            // What is under way is given up at shutdown: files that no commit names are deleted by who goes on.
            match shutdown.run_until_cancelled(self.archive_once(archive, Timestamp::now())).await {
                None => return,
                Some(Ok(is_writer)) if is_writer => self.metrics.archive_is_up(true),
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    self.metrics.archive_is_up(false);
                    tracing::error!(%error, "rows could not be moved to the archive; they stay in ClickHouse, and it is tried again");
                }
            }
        }
    }

    /// Says whether this process is the one that moves rows.
    async fn archive_once(&self, archive: &Archive, now: Timestamp) -> Result<bool, StoreError> {
        let mut writers = archive.writers.lock().await;
        if !self.has_first_partition().await {
            *writers = None;
            return Ok(false);
        }
        let tables = match writers.take() {
            Some(tables) if !tables.iter().any(ColdWriter::is_lost) => tables,
            _ => {
                let mut tables = Vec::with_capacity(COLD_TABLES.len());
                for table in COLD_TABLES {
                    tables.push(ColdWriter::take_over(&archive.storage, table, self.shards.len()).await?);
                }
                tables
            }
        };
        let tables = writers.insert(tables);
        for table in tables {
            self.archive_table(archive, table, now).await?;
        }
        Ok(true)
    }

    async fn archive_table(
        &self,
        archive: &Archive,
        to: &ColdWriter,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let leaving = to.leaving().await?;
        for rows in leaving.iter().filter(|rows| to.is_known(rows, &self.config, now)) {
            self.delete_archived(to, rows).await?;
        }
        if let Some(days) = self.config.retention_days(to.id()) {
            for day in self.days_due(to.id(), days, now).await? {
                // One that is just leaving goes on with what came late once it has left.
                if leaving.iter().all(|leaving| leaving.day != day) {
                    self.archive_day(to, &day).await?;
                }
            }
        }
        to.maintain(&archive.context, &self.config, now).await
    }

    /// Days of which ClickHouse has rows and that ended so many days ago, the first first.
    async fn days_due(&self, table: TableId, days: u32, now: Timestamp) -> Result<Vec<String>, StoreError> {
        let hot = now.as_micros().saturating_sub(i64::from(days) * Timestamp::DAY);
        let hot = hot - hot.rem_euclid(Timestamp::DAY);
        let Some(hot) = time(hot) else { return Ok(Vec::new()) };
        let (name, column) = (table.name(), table.time_column());
        let query = format!(
            "SELECT DISTINCT toString(toDate32({column})) AS day FROM {name} WHERE {column} < {hot} ORDER BY day"
        );
        let text = self.writer.text(&query).await?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Copies the rows of a day that are surely all in ClickHouse.
    async fn archive_day(&self, to: &ColdWriter, day: &str) -> Result<(), StoreError> {
        let Some(times) = to.id().period().times(day) else { return Ok(()) };
        let mut before = Vec::with_capacity(self.shards.len());
        for (partition, _) in (0..).zip(self.shards.iter()) {
            before.push((partition, self.surely_in(partition).await?));
        }
        let (table, schema) = (to.id(), to.id().schema());
        let columns: Vec<_> = schema.fields().iter().map(|field| format!("`{}`", field.name())).collect();
        let query = format!(
            "SELECT {} FROM {} WHERE {} ORDER BY device_id, {}",
            columns.join(", "),
            table.name(),
            copied(table, &times, &before),
            table.time_column()
        );
        let (send, receive) = mpsc::channel(BATCHES_WAITING);
        let client = self.writer.clone();
        let asked = async move {
            let rows = async {
                let settings: Vec<_> =
                    SETTINGS.iter().map(|&(name, value)| (name, value.to_owned())).collect();
                let mut running = Running::start_foreign(&client, query, &settings).await?;
                while let Some(rows) = running.next().await? {
                    let rows = shaped(&rows, &schema).map_err(|trouble| client.error(trouble))?;
                    if send.send(Ok(Some(rows))).await.is_err() {
                        return Ok(());
                    }
                }
                // Gone when writing has failed, which the other side tells.
                let _ = send.send(Ok(None)).await;
                Ok(())
            };
            if let Err(error) = rows.await {
                let _ = send.send(Err(error)).await;
            }
        };
        let (rows, ()) = tokio::join!(to.put(day, &before, self.config.compact_bytes_max, receive), asked);
        let rows = rows?;
        if rows > 0 {
            self.metrics.archived(table, rows);
            tracing::info!(table = table.name(), day, rows, "archived rows");
        }
        Ok(())
    }

    /// Has ClickHouse delete rows that are in the archive, or sees that it has done so.
    async fn delete_archived(&self, to: &ColdWriter, rows: &Leaving) -> Result<(), StoreError> {
        let name = to.id().name();
        let copied = copied(to.id(), &rows.times, &rows.before);
        let left = self.number(&format!("SELECT count() FROM {name} WHERE {copied}")).await?;
        if left == 0 {
            tracing::info!(table = name, day = rows.day, "archived rows have left ClickHouse");
            return to.left(&rows.day).await;
        }
        if left > rows.rows {
            // A replica that lagged behind was asked.
            tracing::warn!(
                table = name,
                day = rows.day,
                left,
                copied = rows.rows,
                "ClickHouse has more rows than were archived of them; they are archived anew"
            );
            return to.take_back(&rows.day).await;
        }
        let under_way = format!(
            "SELECT latest_fail_reason FROM system.mutations \
             WHERE database = currentDatabase() AND table = '{name}' AND NOT is_done LIMIT 1"
        );
        match self.writer.text(&under_way).await?.lines().next() {
            None => self.writer.execute(&format!("ALTER TABLE {name} DELETE WHERE {copied}")).await?,
            Some("") => {}
            Some(reason) => {
                tracing::warn!(
                    table = name,
                    reason,
                    "ClickHouse does not get on with deleting what is archived"
                );
            }
        }
        Ok(())
    }

    async fn number(&self, query: &str) -> Result<u64, StoreError> {
        let settings = [("readonly", "2".to_owned())];
        Ok(Running::start(&self.writer, query.to_owned(), &settings).await?.number().await?)
    }
}

/// The condition for rows that were copied: those of these times, below the offset of their partition.
fn copied(table: TableId, times: &Range<i64>, before: &[(PartitionId, Offset)]) -> String {
    let column = table.time_column();
    // A day at either end of time has no bound there.
    let from = time(times.start).map(|from| format!("{column} >= {from}"));
    let to = time(times.end).map(|to| format!("{column} < {to}"));
    let offsets: Vec<_> = before
        .iter()
        .map(|(partition, offset)| format!("(log_partition = {partition} AND log_offset < {offset})"))
        .collect();
    let offsets = format!("({})", if offsets.is_empty() { "0".to_owned() } else { offsets.join(" OR ") });
    from.into_iter().chain(to).chain([offsets]).collect::<Vec<_>>().join(" AND ")
}

/// The condition for rows that are not read from the archive instead.
pub(super) fn not_copied(table: TableId, leaving: &Leaving) -> String {
    format!("NOT ({})", copied(table, &leaving.times, &leaving.before))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_name_a_day_and_offsets() {
        let day = TableId::RawMetrics.period().times("1970-01-02").unwrap();
        assert_eq!(
            copied(TableId::RawMetrics, &day, &[(0, 7), (1, 9)]),
            "timestamp >= fromUnixTimestamp64Micro(toInt64(86400000000), 'UTC') \
             AND timestamp < fromUnixTimestamp64Micro(toInt64(172800000000), 'UTC') \
             AND ((log_partition = 0 AND log_offset < 7) OR (log_partition = 1 AND log_offset < 9))"
        );
        // Nothing is copied of a log without partitions.
        assert!(copied(TableId::RawEvents, &(i64::MIN..i64::MAX), &[]).ends_with("(0)"));
    }
}
