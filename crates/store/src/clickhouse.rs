//! History in ClickHouse: the same tables, written over HTTP and read by SQL that is pushed down.
//!
//! # Layout
//! One database has a realm's tables, which `schema` makes: `raw_events`, `raw_metrics`, `rejects`, `metric_rollups` (which
//! the materialized view `metric_rollups_mv` fills from `raw_metrics`), and the view `aggregated_metrics`.
//!
//! # Exactly once
//! ClickHouse cannot keep an offset of the log together with rows; it knows an insert again by its name. What makes one of
//! this is told in `flush`.
//!
//! # What queries see
//! Rows are seen when they are in ClickHouse, a second or so after they were acknowledged, by every process alike. Only
//! latest values are served from the shards.
//!
//! # Archive
//! Raw data that is past its hot days can move to Delta tables in S3 or a folder, `archive`; queries read both.
//!
//! # Constraints
//! One log a database: rows are told apart by partition and offset.

mod aggregate;
mod answer;
mod archive;
mod client;
mod config;
mod error;
mod filter;
mod flush;
mod import;
mod metrics;
mod native;
mod probe;
mod provider;
mod restore;
mod rows;
mod scan;
mod schema;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use catchment_types::{Offset, PartitionId};
use datafusion::catalog::TableProvider;
use datafusion::physical_plan::SendableRecordBatchStream;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use self::config::{BadClickHouseUrl, ClickHouseConfig, ClickHouseTarget, Password};
pub use self::error::{ClickHouseError, Trouble};
pub use self::import::ClickHouseImport;
pub use self::probe::{ClickHouseProbe, probe};

use self::aggregate::AggregateInEngine;
use self::archive::Archive;
use self::client::Client;
use self::flush::Partition;
use self::metrics::Metrics;
use self::provider::ClickHouseTable;
use crate::history::{
    AGGREGATED_METRICS, Claims, FlushReport, History, HistoryConfig, HistoryHealth, NativeError, NativeQuery,
    OptimizerRule, Start, StoreError, aggregated_metrics,
};
use crate::shard::Shard;
use crate::storage::Place;
use crate::tables::TableId;

/// The dialect that [`History::query_natively`] takes.
const DIALECT: &str = "clickhouse";

/// The tables of history, in ClickHouse.
pub struct ClickHouseHistory {
    config: HistoryConfig,
    /// Writes, and asks for what shards have to know.
    writer: Client,
    /// Asks for queries, over connections of its own: those live on the queries' threads, which may be busy.
    reader: Client,
    /// The log, as part of an insert's name.
    log_identity: Arc<str>,
    shards: Arc<[Arc<Shard>]>,
    claims: Arc<dyn Claims>,
    archive: Option<Archive>,
    partitions: Vec<tokio::sync::Mutex<Partition>>,
    /// Held by the one flush that is under way.
    flushing: tokio::sync::Mutex<()>,
    committed: watch::Sender<Vec<Offset>>,
    health: Mutex<HistoryHealth>,
    metrics: Metrics,
}

impl fmt::Debug for ClickHouseHistory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ClickHouseHistory").field(self.writer.target()).finish()
    }
}

impl ClickHouseHistory {
    /// Connects, and makes the database and its tables or brings them up to date. Shard `n` is partition `n`; nothing is
    /// taken over yet. `log` tells the log from all others; raw data moves to `archive` after its hot days, or goes if there is none.
    ///
    /// # Errors
    /// The server does not answer, does not let us in, or its tables are of a newer Catchment or have another archive; the archive
    /// does not answer, or is another log's.
    pub async fn open(
        target: &ClickHouseTarget,
        config: HistoryConfig,
        shards: Arc<[Arc<Shard>]>,
        log: &str,
        claims: Arc<dyn Claims>,
        archive: Option<&Place>,
    ) -> Result<Arc<Self>, StoreError> {
        let writer = Client::new(target)?;
        let reader = Client::new(target)?;
        let named = archive.map(Place::to_string);
        let archive = match archive {
            Some(place) => Some(Archive::open(place, log, config.retention_days(TableId::RawEvents)).await?),
            None => None,
        };
        // After that: with an archive that is refused, rows must not be kept for it.
        schema::prepare(&writer, &config, named.as_deref()).await?;
        let metrics = Metrics::default();
        metrics.up(true);
        Ok(Arc::new(Self {
            config,
            writer,
            reader,
            log_identity: flush::identity(log),
            partitions: flush::partitions(shards.len()),
            committed: watch::Sender::new(vec![0; shards.len()]),
            shards,
            claims,
            archive,
            flushing: tokio::sync::Mutex::default(),
            health: Mutex::new(HistoryHealth::Healthy),
            metrics,
        }))
    }
}

#[async_trait]
impl History for ClickHouseHistory {
    async fn take_over(&self, partition: PartitionId) -> Result<Start, StoreError> {
        let claimed = self.claims.claimed(partition).await?;
        let mut state = self.partitions[partition as usize].lock().await;
        let shard = &self.shards[partition as usize];
        shard.clear();
        self.restore(partition, &claimed).await?;
        shard.set_start_offsets([claimed.start; TableId::COUNT]);
        let start = Start { offset: claimed.start, repeat_to: claimed.end };
        self.committed.send_modify(|committed| committed[partition as usize] = claimed.start);
        *state = Partition::taken_over(claimed);
        Ok(start)
    }

    async fn release(&self, partition: PartitionId) {
        self.give_up(partition).await;
    }

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
        self.buffered()
    }

    fn health(&self) -> HistoryHealth {
        self.health.lock().clone()
    }

    fn table_provider(&self, table: TableId) -> Arc<dyn TableProvider> {
        let archive = self.archive.as_ref().and_then(|archive| archive.reader(table));
        Arc::new(ClickHouseTable {
            name: table.name(),
            schema: table.schema(),
            client: self.reader.clone(),
            archived: archive.map(|reader| (table, Arc::clone(reader))),
        })
    }

    fn aggregated_metrics(&self) -> datafusion::error::Result<Arc<dyn TableProvider>> {
        // ClickHouse merges and finishes the states; only the columns' types are those of the view.
        let view = aggregated_metrics(self.table_provider(TableId::MetricRollups))?;
        Ok(Arc::new(ClickHouseTable {
            name: AGGREGATED_METRICS,
            schema: view.schema(),
            client: self.reader.clone(),
            archived: None,
        }))
    }

    fn optimizer_rules(&self) -> Vec<OptimizerRule> {
        vec![Arc::new(AggregateInEngine)]
    }

    async fn query_natively(&self, query: NativeQuery) -> Result<SendableRecordBatchStream, NativeError> {
        match query.dialect.as_str() {
            DIALECT => native::query(&self.reader, query).await,
            _ => Err(NativeError::NoSuchDialect { dialect: query.dialect }),
        }
    }

    fn register_metrics(&self, registry: &mut Registry) {
        self.metrics.register(registry);
    }
}
