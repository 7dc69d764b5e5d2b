//! What queries see of the archive.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use catchment_threads::Urgency;
use catchment_types::Timestamp;
use datafusion::catalog::Session;
use datafusion::error::Result;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::utils::{collect_columns, reassign_expr_columns};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::expressions::Column;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::projection::ProjectionExec;
use parking_lot::{Mutex, RwLock};

use super::{Leaving, leaving};
use crate::delta::DeltaLog;
use crate::history::blocking;
use crate::history::data_file::{DataFile, FileList, FileStats};
use crate::history::error::StoreError;
use crate::history::prune::prune;
use crate::history::scan::FileReader;
use crate::history::table::{Part, data_files};
use crate::storage::Storage;
use crate::tables::TableId;

/// For so long a look at the archive's log is good enough.
const FRESH: Duration = Duration::from_secs(2);
/// For so long it must do when the archive does not answer. Rows leave the engine later than that.
pub(super) const KNOWN_MAX: Duration = Duration::from_secs(10);

/// A table of the archive, for queries. Any number of processes have one.
pub(crate) struct ColdReader {
    id: TableId,
    files: FileReader,
    /// Hot days; none: nothing more is archived.
    days: Option<u32>,
    log: Arc<Mutex<DeltaLog>>,
    known: RwLock<Arc<Cold>>,
    /// Held by the one who looks at the log.
    looking: tokio::sync::Mutex<()>,
}

/// A table of the archive at one moment.
pub(crate) struct Cold {
    files: FileList,
    leaving: Vec<Leaving>,
    looked_at: Instant,
}

impl Cold {
    fn of(id: TableId, log: &DeltaLog, looked_at: Instant) -> Arc<Self> {
        let mut files = data_files(id, log);
        files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        Arc::new(Self { files: Arc::new(files), leaving: leaving(id, log), looked_at })
    }

    /// What the engine is not to give, because it is read here.
    pub(crate) fn leaving(&self) -> &[Leaving] {
        &self.leaving
    }
}

impl fmt::Debug for ColdReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ColdReader").field(&self.id.name()).finish()
    }
}

impl ColdReader {
    /// Loads what is there. Blocks.
    ///
    /// # Errors
    /// The place refuses, or the table's log is damaged.
    pub(crate) fn open(
        storage: &Arc<dyn Storage>,
        id: TableId,
        days: Option<u32>,
    ) -> Result<Self, StoreError> {
        let looked_at = Instant::now();
        let log = DeltaLog::follow(storage, id.name())?;
        Ok(Self {
            id,
            files: FileReader::new(storage, Part::Archived)?,
            days,
            known: RwLock::new(Cold::of(id, &log, looked_at)),
            log: Arc::new(Mutex::new(log)),
            looking: tokio::sync::Mutex::default(),
        })
    }

    /// Whether rows for which the predicate holds can be in the archive: those of hot days are not, and need no look at it.
    pub(crate) fn may_have(&self, predicate: Option<&Arc<dyn PhysicalExpr>>) -> bool {
        let now = Timestamp::now().as_micros();
        let due = self.days.map(|days| now.saturating_sub(i64::from(days) * Timestamp::DAY));
        // What is there from days when it was archived sooner.
        let known = Arc::clone(&self.known.read());
        let newest =
            known.files.iter().map(|file| file.stats.as_ref().map_or(i64::MAX, |stats| stats.time_max));
        let Some(time_max) = newest.chain(due).max() else { return false };
        let Some(predicate) = predicate else { return true };
        let all = DataFile {
            path: String::new(),
            period: String::new(),
            bytes: 0,
            written_at: Timestamp::now(),
            stats: Some(FileStats {
                rows: u64::MAX,
                time_min: i64::MIN,
                time_max,
                device_min: String::new(),
                // Above every text.
                device_max: "\u{10ffff}".repeat(8),
            }),
        };
        !prune(self.id, &[Arc::new(all)], predicate).is_empty()
    }

    /// The table as it is now, or was a few seconds ago.
    ///
    /// # Errors
    /// The archive does not answer, and it is so long since it did that rows may have moved there unseen.
    pub(crate) async fn look(&self) -> Result<Arc<Cold>, StoreError> {
        let is_fresh = |known: &Cold| known.looked_at.elapsed() < FRESH;
        let known = || Arc::clone(&self.known.read());
        if is_fresh(&known()) {
            return Ok(known());
        }
        let _one_at_a_time = self.looking.lock().await;
        if is_fresh(&known()) {
            return Ok(known());
        }
        let (id, log) = (self.id, Arc::clone(&self.log));
        let looked = blocking("look at the archive", Urgency::Now, move || {
            let looked_at = Instant::now();
            let mut log = log.lock();
            log.refresh()?;
            Ok(Cold::of(id, &log, looked_at))
        });
        match looked.await {
            Ok(cold) => *self.known.write() = cold,
            Err(error) if known().looked_at.elapsed() >= KNOWN_MAX => return Err(error),
            Err(error) => {
                tracing::debug!(%error, "the archive does not answer; what was known is good enough")
            }
        }
        Ok(known())
    }

    #[cfg(test)]
    pub(super) fn known_files(&self) -> usize {
        self.known.read().files.len()
    }

    /// A plan that gives the rows of the archive for which the predicate holds; none when it has none.
    ///
    /// # Errors
    /// None is expected: the columns are those of the table.
    pub(crate) fn scan(
        &self,
        state: &dyn Session,
        cold: &Cold,
        predicate: Option<&Arc<dyn PhysicalExpr>>,
        projection: Option<&Vec<usize>>,
        limit: Option<usize>,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let files = match predicate {
            Some(predicate) => prune(self.id, &cold.files, predicate),
            None => cold.files.to_vec(),
        };
        if files.is_empty() {
            return Ok(None);
        }
        let partitions = state.config().target_partitions().max(1);
        let Some(predicate) = predicate else {
            return self.files.scan(state, self.id, &files, partitions, projection, limit).map(Some);
        };
        // Filtered here, so that whoever asked can rely on it as on the engine.
        let schema = self.id.schema();
        let wanted: Vec<usize> = projection.cloned().unwrap_or_else(|| (0..schema.fields().len()).collect());
        let mut read: BTreeSet<usize> = wanted.iter().copied().collect();
        read.extend(collect_columns(predicate).iter().map(Column::index));
        let read: Vec<usize> = read.into_iter().collect();
        let rows = self.files.scan(state, self.id, &files, partitions, Some(&read), None)?;
        let predicate = reassign_expr_columns(Arc::clone(predicate), &rows.schema())?;
        let filtered: Arc<dyn ExecutionPlan> = Arc::new(FilterExec::try_new(predicate, rows)?);
        if read == wanted {
            return Ok(Some(filtered));
        }
        let column = |&index: &usize| {
            let name = schema.field(index).name();
            let at = filtered.schema().index_of(name)?;
            Ok((Arc::new(Column::new(name, at)) as Arc<dyn PhysicalExpr>, name.clone()))
        };
        let columns = wanted.iter().map(column).collect::<Result<Vec<_>>>()?;
        Ok(Some(Arc::new(ProjectionExec::try_new(columns, filtered)?)))
    }
}
