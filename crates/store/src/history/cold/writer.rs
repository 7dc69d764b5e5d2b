//! The one process that moves rows to the archive, and looks after its files.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use catchment_threads::Urgency;
use catchment_types::{Offset, PartitionId, Timestamp};
use datafusion::execution::context::SessionContext;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::reader::KNOWN_MAX;
use super::{BEFORE, Leaving, before, leaving, tag};
use crate::delta::actions::{Action, Add};
use crate::history::HistoryConfig;
use crate::history::blocking;
use crate::history::data_file::DataFile;
use crate::history::error::StoreError;
use crate::history::merge::{due, merge};
use crate::history::retain::{delete_orphans, is_over};
use crate::history::table::{Part, Table};
use crate::history::writer::{FileWriter, delete_uncommitted};
use crate::storage::Storage;
use crate::tables::TableId;

/// Between a query's look at the archive and its question to the engine.
const SLACK: Duration = Duration::from_secs(5);

/// A table of the archive that this process writes.
#[derive(Debug)]
pub(crate) struct ColdWriter {
    table: Arc<Table>,
    /// Before, a commit may have begun to count that was made earlier: one of the process that had the table, or one whose outcome
    /// was open.
    counts_since: Mutex<Timestamp>,
}

/// Rows on their way to the archive; `None` when those were all.
type Rows = mpsc::Receiver<Result<Option<RecordBatch>, StoreError>>;

impl ColdWriter {
    /// Takes the table over from whoever wrote it before, or makes it.
    ///
    /// # Errors
    /// The place refuses, or the table's log is damaged.
    pub(crate) async fn take_over(
        storage: &Arc<dyn Storage>,
        id: TableId,
        partitions: usize,
    ) -> Result<Self, StoreError> {
        let storage = Arc::clone(storage);
        blocking("taking over of the archive", Urgency::Soon, move || {
            let table = Table::open(&storage, Part::Archived, id, partitions)?;
            delete_orphans(&table)?;
            Ok(Self { table: Arc::new(table), counts_since: Mutex::new(Timestamp::now()) })
        })
        .await
    }

    /// The table.
    pub(crate) fn id(&self) -> TableId {
        self.table.id
    }

    /// Whether another process has taken it over.
    pub(crate) fn is_lost(&self) -> bool {
        self.table.log.lock().is_lost()
    }

    /// Rows that are in the archive, and may still be in the engine. What a commit left open is found out first.
    ///
    /// # Errors
    /// The place refuses, or another process has the table.
    pub(crate) async fn leaving(&self) -> Result<Vec<Leaving>, StoreError> {
        let table = Arc::clone(&self.table);
        let was_open = table.log.lock().is_unsettled();
        let found = blocking("settling of the archive", Urgency::Soon, move || {
            table.settle()?;
            Ok(leaving(table.id, &table.log.lock()))
        });
        let found = found.await?;
        if was_open {
            *self.counts_since.lock() = Timestamp::now();
        }
        Ok(found)
    }

    /// Whether every query that is under way, in any process, knows that these rows are in the archive.
    pub(crate) fn is_known(&self, leaving: &Leaving, config: &HistoryConfig, now: Timestamp) -> bool {
        let wait = Duration::from_millis(config.vacuum_grace_ms) + KNOWN_MAX + SLACK;
        let wait_us = i64::try_from(wait.as_micros()).unwrap_or(i64::MAX);
        let since = leaving.since.max(*self.counts_since.lock());
        now.as_micros() >= since.as_micros().saturating_add(wait_us)
    }

    /// Copies rows of a day, which come in the table's order, and commits them as leaving. Gives how many there were; with none
    /// there is no commit.
    ///
    /// # Errors
    /// What the rows' side says, or the place refuses: nothing is copied then, or [`Self::leaving`] finds it out.
    pub(crate) async fn put(
        &self,
        day: &str,
        before: &[(PartitionId, Offset)],
        file_bytes_max: u64,
        mut rows: Rows,
    ) -> Result<u64, StoreError> {
        let (table, day, tag) = (Arc::clone(&self.table), day.to_owned(), tag(before));
        blocking("archiving", Urgency::Soon, move || {
            let mut files = Vec::new();
            let written = write(&table, &day, file_bytes_max, &mut rows, &mut files);
            if written.is_err() || files.is_empty() {
                delete_uncommitted(&table, &files);
                return written;
            }
            let tagged = |file: &DataFile| {
                let add = file.to_add(table.id, true);
                Action::Add(Add { tags: Some([(BEFORE.to_owned(), Some(tag.clone()))].into()), ..add })
            };
            let actions = files.iter().map(tagged).collect();
            let mut log = table.log.lock();
            if let Err(error) = log.commit("WRITE", actions) {
                if !log.is_unsettled() {
                    delete_uncommitted(&table, &files);
                }
                return Err(error.into());
            }
            written
        })
        .await
    }

    /// The engine has none of these rows any more.
    ///
    /// # Errors
    /// The place refuses; it can be said again.
    pub(crate) async fn left(&self, day: &str) -> Result<(), StoreError> {
        self.change_leaving("ARCHIVE", day, |add, _| {
            Action::Add(Add { tags: None, data_change: false, ..add.clone() })
        })
        .await
    }

    /// Forgets what was copied of a day: the engine has more rows than were copied.
    ///
    /// # Errors
    /// The place refuses; it can be said again.
    pub(crate) async fn take_back(&self, day: &str) -> Result<(), StoreError> {
        self.change_leaving("DELETE", day, |add, now| {
            Action::Remove(add.remove(now.as_micros() / 1000, true))
        })
        .await
    }

    async fn change_leaving(
        &self,
        operation: &'static str,
        day: &str,
        change: impl Fn(&Add, Timestamp) -> Action + Send + 'static,
    ) -> Result<(), StoreError> {
        let (table, day) = (Arc::clone(&self.table), day.to_owned());
        blocking("archiving", Urgency::Soon, move || {
            let mut log = table.log.lock();
            log.settle()?;
            let of_day = log
                .files()
                .filter(|add| before(add).is_some() && DataFile::from_add(table.id, add).period == day);
            let actions: Vec<_> = of_day.map(|add| change(add, Timestamp::now())).collect();
            if !actions.is_empty() {
                log.commit(operation, actions)?;
            }
            Ok(())
        })
        .await
    }

    /// Expires, merges and tidies once.
    ///
    /// # Errors
    /// The place refuses.
    pub(crate) async fn maintain(
        &self,
        context: &SessionContext,
        config: &HistoryConfig,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let days = config.archive_retention_days;
        if days > 0 {
            let mut over = self.settled_files();
            over.retain(|file| is_over(&self.table, file, days, now));
            let table = Arc::clone(&self.table);
            blocking("retention", Urgency::Soon, move || table.take_out("DELETE", &over, now)).await?;
        }
        while let Some(files) = due(&self.settled_files(), config, now) {
            merge(context, &self.table, &files).await?;
        }
        let (table, before) = (Arc::clone(&self.table), config.vacuum_before(now));
        blocking("clean-up", Urgency::Soon, move || table.tidy(before)).await
    }

    /// Files whose rows are nowhere else, in the order of their paths.
    fn settled_files(&self) -> Vec<Arc<DataFile>> {
        let log = self.table.log.lock();
        let settled = log.files().filter(|add| before(add).is_none());
        let mut files: Vec<_> = settled.map(|add| Arc::new(DataFile::from_add(self.table.id, add))).collect();
        files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        files
    }
}

/// Writes what comes into files of about this size.
fn write(
    table: &Table,
    day: &str,
    file_bytes_max: u64,
    rows: &mut Rows,
    files: &mut Vec<DataFile>,
) -> Result<u64, StoreError> {
    let mut count = 0;
    let mut open: Option<FileWriter> = None;
    loop {
        // Whoever sends may be ended at any time: what came before is not all then.
        let ended = || StoreError::Interrupted { what: "archiving", message: "no more rows come".to_owned() };
        let Some(batch) = rows.blocking_recv().ok_or_else(ended)?? else { break };
        count += batch.num_rows() as u64;
        let mut writer = match open.take() {
            Some(writer) => writer,
            None => FileWriter::create(table, day)?,
        };
        writer.write(&batch)?;
        match writer.bytes() >= file_bytes_max {
            true => files.push(writer.finish()?),
            false => open = Some(writer),
        }
    }
    if let Some(writer) = open {
        files.push(writer.finish()?);
    }
    Ok(count)
}
