//! History: the seam, and its embedded engine: Delta tables in a folder or in S3, and queries that see memory and files as one
//! table.
//!
//! # Layout
//! `{folder}/{table}/_delta_log/` and `{folder}/{table}/date=2026-11-23/….parquet` (rollups: `month=2026-11`). The folder's
//! column is the table's partition column for Delta readers, and no column of our SQL tables. Rows in a file are in the
//! order of device, then time. `{folder}/snapshot.parquet` saves a start the reading of them. In S3 the prefix stands for the
//! folder, and `{prefix}/log.engine` says whose it is.
//!
//! # Exactly once
//! A commit that adds rows has, for each partition, the offset of the log after the last event in them (`txn` action,
//! application `catchment/{partition}`). At start the log is read again from the lowest of the tables' offsets, and each table
//! leaves out what is below its own. So a crash between any two steps neither loses a row nor doubles one.
//!
//! # Constraints
//! One process, one [`DeltaHistory`] a folder or prefix: in S3 whoever opens it takes it over, see [`crate::delta`]. Flush and maintenance each run once at a time; flush only adds files, maintenance only
//! works on files that were there when it looked.

mod archive;
mod background;
mod blocking;
pub(crate) mod cold;
mod config;
mod data_file;
mod engine;
mod error;
mod flush;
mod flush_metrics;
mod hook;
mod local_file;
mod merge;
mod metrics;
mod none;
pub(crate) mod owner;
mod period;
mod provider;
mod prune;
mod restore;
mod retain;
mod scan;
mod snapshot_file;
mod sort;
mod table;
mod view;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use catchment_threads::Urgency;
use catchment_types::{Offset, PartitionId, Timestamp};
use datafusion::catalog::TableProvider;
use datafusion::execution::context::SessionContext;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use config::HistoryConfig;
pub use engine::{
    ClaimError, Claims, EngineError, ErrorClass, History, NativeError, NativeQuery, OptimizerRule, Start,
};
pub use error::StoreError;
pub use flush::FlushReport;
use metrics::HistoryMetrics;
pub use none::NoHistory;
pub use provider::{AGGREGATED_METRICS, CATALOG, aggregated_metrics};

use crate::shard::Shard;
use crate::storage::Place;
use crate::tables::TableId;
use archive::Archive;
pub(crate) use blocking::blocking;
use flush::FlushState;
pub(crate) use flush_metrics::{FlushMetrics, TableLabel};
use hook::Hook;
use table::{Part, Table, data_files};
use view::View;

/// Whether rows come into files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HistoryHealth {
    /// The last flush succeeded, or none was needed yet.
    Healthy,
    /// Flushes fail. Nothing is lost while that lasts: rows stay in memory, and once that is full, events stay in the log.
    Failing {
        /// When the first of them failed.
        since: Timestamp,
        /// How many failed since then.
        attempts: u32,
        /// Why the last one did.
        message: String,
    },
}

/// Where the tables are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// Those of history.
    pub history: Place,
    /// Where raw data goes after its hot days; none: it is dropped.
    pub archive: Option<Place>,
    /// What tells the event log from all others: a place that others can name too is refused to another log.
    pub log: String,
}

impl Places {
    /// A local folder, and no archive.
    #[must_use]
    pub fn in_folder(folder: impl Into<PathBuf>) -> Self {
        Self { history: Place::Folder(folder.into()), archive: None, log: "embedded".to_owned() }
    }
}

/// The tables of history.
pub struct DeltaHistory {
    config: HistoryConfig,
    tables: [Arc<Table>; TableId::COUNT],
    archive: Option<Archive>,
    view: Arc<View>,
    /// Runs merges.
    maintenance: SessionContext,
    /// Held by the one flush that is under way.
    flush_state: tokio::sync::Mutex<FlushState>,
    committed: watch::Sender<Vec<Offset>>,
    health: Mutex<HistoryHealth>,
    /// How far the shards were when the snapshot was saved last.
    saved_at: Mutex<Vec<Offset>>,
    metrics: HistoryMetrics,
    hook: Hook,
}

impl DeltaHistory {
    /// Loads the tables, or makes them; deletes files that no commit names; tells each shard from which offset on each table
    /// needs rows. Shard `n` is partition `n`.
    ///
    /// # Errors
    /// When a place refuses or is another log's, a table's log is damaged, or it was written with more partitions.
    pub async fn open(
        places: &Places,
        config: HistoryConfig,
        shards: Vec<Arc<Shard>>,
    ) -> Result<Arc<Self>, StoreError> {
        let places = places.clone();
        blocking("opening", Urgency::Soon, move || Self::open_blocking(&places, config, shards)).await
    }

    fn open_blocking(
        places: &Places,
        config: HistoryConfig,
        shards: Vec<Arc<Shard>>,
    ) -> Result<Arc<Self>, StoreError> {
        let partitions = shards.len();
        let storage = places.history.open()?;
        if storage.is_shared() {
            owner::belongs_to(&*storage, &places.log)?;
        }
        let mut tables = Vec::with_capacity(TableId::COUNT);
        for id in TableId::ALL {
            let table = Table::open(&storage, Part::Hot, id, partitions)?;
            retain::delete_orphans(&table)?;
            tables.push(Arc::new(table));
        }
        let view = View::new(shards);
        let archive = match &places.archive {
            Some(archive) => Some(Archive::open(&archive.open()?, &places.log, &tables, &view)?),
            None => None,
        };
        for table in &tables {
            view.replaced(Part::Hot, table.id, &[], data_files(table.id, &table.log.lock()));
        }
        let offsets: [Vec<Offset>; TableId::COUNT] =
            std::array::from_fn(|table| tables[table].committed(partitions));
        for (partition, shard) in view.shards().iter().enumerate() {
            shard.set_start_offsets(std::array::from_fn(|table| offsets[table][partition]));
        }
        let flush_state = FlushState::new(offsets);
        let metrics = HistoryMetrics::default();
        for table in &tables {
            metrics.files(table.id, &view.files(table.id));
        }
        Ok(Arc::new(Self {
            config,
            archive,
            tables: std::array::from_fn(|table| Arc::clone(&tables[table])),
            view: Arc::new(view),
            maintenance: SessionContext::new(),
            committed: watch::Sender::new(flush_state.committed_by_all()),
            flush_state: tokio::sync::Mutex::new(flush_state),
            health: Mutex::new(HistoryHealth::Healthy),
            saved_at: Mutex::default(),
            metrics,
            hook: Hook::default(),
        }))
    }

    /// Where the log is to be read from: the lowest offset that some table still needs.
    #[must_use]
    pub fn start_offset(&self, partition: PartitionId) -> Offset {
        self.committed.borrow().get(partition as usize).copied().unwrap_or_default()
    }
}

#[async_trait]
impl History for DeltaHistory {
    async fn take_over(&self, partition: PartitionId) -> Result<Start, StoreError> {
        // Its shards are filled when it is opened: there is nobody to take partitions from.
        Ok(Start { offset: self.start_offset(partition), repeat_to: 0 })
    }

    async fn release(&self, _: PartitionId) {}

    fn subscribe_committed(&self) -> watch::Receiver<Vec<Offset>> {
        self.committed.subscribe()
    }

    async fn flush(&self) -> Result<FlushReport, StoreError> {
        self.flush_once().await
    }

    async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        self.work(shutdown).await;
    }

    fn buffered_bytes(&self) -> usize {
        self.view.buffered_bytes()
    }

    fn health(&self) -> HistoryHealth {
        self.health.lock().clone()
    }

    fn table_provider(&self, table: TableId) -> Arc<dyn TableProvider> {
        self.table(table)
    }

    fn aggregated_metrics(&self) -> datafusion::error::Result<Arc<dyn TableProvider>> {
        provider::aggregated_metrics(self.table(TableId::MetricRollups))
    }

    fn register_metrics(&self, registry: &mut Registry) {
        self.metrics.register(registry);
    }
}

#[cfg(test)]
mod tests;
