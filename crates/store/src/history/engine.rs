//! The seam: what every engine of history does.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use catchment_types::{Offset, PartitionId};
use datafusion::catalog::TableProvider;
use datafusion::error::Result;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::SendableRecordBatchStream;
use prometheus_client::registry::Registry;
use thiserror::Error;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{FlushReport, HistoryHealth, StoreError};
use crate::tables::TableId;

/// Where the shards' rows go for good, and from where SQL reads them. All methods may be called from any thread.
#[async_trait]
pub trait History: Send + Sync + 'static {
    /// Takes a partition over: gives its shard what is known of its devices, tells it which offsets each table needs, and
    /// returns from where the log is to be read. To be called before the shard takes anything in; again after
    /// [`History::release`].
    ///
    /// # Errors
    /// When the engine does not answer, or what it has is damaged.
    async fn take_over(&self, partition: PartitionId) -> Result<Start, StoreError>;

    /// Gives a partition up, whose worker has stopped: its rows are brought in if that is possible now, and the shard is
    /// emptied. What could not be brought in is read from the log again by who takes the partition over.
    async fn release(&self, partition: PartitionId);

    /// For each partition the offset before which no table needs the log any more; changes with each flush.
    fn subscribe_committed(&self) -> watch::Receiver<Vec<Offset>>;

    /// Brings every row that is in memory now to where it is kept.
    ///
    /// # Errors
    /// When the engine refuses. Nothing is lost: rows stay in memory; the next flush goes on.
    async fn flush(&self) -> Result<FlushReport, StoreError>;

    /// Works until `shutdown`: flushes when it is due, maintains; then flushes a last time.
    async fn run(self: Arc<Self>, shutdown: CancellationToken);

    /// Memory of rows that no flush has taken yet, bytes.
    fn buffered_bytes(&self) -> usize;

    /// Whether rows are brought in.
    fn health(&self) -> HistoryHealth;

    /// A table for SQL.
    fn table_provider(&self, table: TableId) -> Arc<dyn TableProvider>;

    /// The view `aggregated_metrics`, which finishes the rollups' partial states.
    ///
    /// # Errors
    /// None is expected: the plan is fixed.
    fn aggregated_metrics(&self) -> Result<Arc<dyn TableProvider>>;

    /// What hands parts of a plan over its tables to the engine.
    fn optimizer_rules(&self) -> Vec<OptimizerRule> {
        Vec::new()
    }

    /// A query in SQL of the engine's own, which it answers by itself. Only the tables of this history can be read.
    ///
    /// # Errors
    /// The engine has no SQL of its own, does not allow the query, or refuses it.
    async fn query_natively(&self, query: NativeQuery) -> Result<SendableRecordBatchStream, NativeError> {
        Err(NativeError::NoSuchDialect { dialect: query.dialect })
    }

    /// Names the engine's figures `catchment_history_…`.
    fn register_metrics(&self, registry: &mut Registry);
}

/// Changes plans for the better; run after DataFusion's own rules.
pub type OptimizerRule = Arc<dyn PhysicalOptimizerRule + Send + Sync>;

/// A query in SQL of an engine's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NativeQuery {
    /// Whose SQL: `clickhouse`.
    pub dialect: String,
    /// One statement.
    pub text: String,
    /// How long it may run.
    pub timeout: Duration,
    /// Most rows of the answer.
    pub rows_max: u64,
    /// Largest answer, bytes.
    pub bytes_max: u64,
    /// Memory that the engine may use for it, bytes.
    pub memory_bytes_max: u64,
}

/// Why a query in an engine's own SQL is not answered.
#[derive(Debug, Error)]
pub enum NativeError {
    /// The history is of another engine.
    #[error("history is not on {dialect}, so there is no SQL of {dialect} here; leave the dialect away")]
    NoSuchDialect {
        /// What was asked for.
        dialect: String,
    },
    /// It reaches outside, or writes.
    #[error("{0}")]
    NotAllowed(String),
    /// The engine's own reason.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Why an engine that is a server of its own does not answer a query, as SQL's own failures are told apart. In plans it is a
/// `DataFusionError::External`.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct EngineError {
    /// What kind of failure.
    pub class: ErrorClass,
    /// Server and reason.
    pub message: String,
}

/// Kinds of failure of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorClass {
    /// The text is not its SQL.
    Syntax,
    /// A table that it has not.
    UnknownTable,
    /// A column that it has not.
    UnknownColumn,
    /// A function that it has not.
    UnknownFunction,
    /// Not read-only, or without the right.
    NotAllowed,
    /// Took longer than allowed.
    Timeout,
    /// Was ended.
    Cancelled,
    /// Needs more memory or disk than there is.
    Memory,
    /// The answer is larger than allowed.
    TooLarge,
    /// Failed on the data.
    Execution,
    /// It is away, does not let us in, or has not our tables.
    Unavailable,
    /// It answers what is not understood.
    Internal,
}

/// From where a partition is to be read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Start {
    /// The lowest offset that some table still needs.
    pub offset: Offset,
    /// The events below this are to be brought in by themselves, before any other: a flush of exactly these was under
    /// way when it was broken off, and only the same flush again is known by the engine as the same. Not above `offset`
    /// when there was none.
    pub repeat_to: Offset,
}

/// What was said of a partition before its rows went out to an engine that cannot commit offsets together with rows.
///
/// Such an engine knows a repeated insert by its name, and the name is the range of offsets; so a range has to be known
/// before anything of it can be in the engine. Whoever takes the partition over repeats the last claim and goes on from there.
#[async_trait]
pub trait Claims: Send + Sync + fmt::Debug + 'static {
    /// The last claim; empty (`0..0`) when there was none. What is below its start is in history.
    ///
    /// # Errors
    /// A text for the operator: where claims are kept does not answer.
    async fn claimed(&self, partition: PartitionId) -> Result<Range<Offset>, ClaimError>;

    /// Says, durably, that the rows of these events are about to be brought in, and everything below is.
    ///
    /// # Errors
    /// [`ClaimError::Lost`] when the partition is another's now; nothing of the range may be brought in then.
    async fn claim(&self, partition: PartitionId, range: Range<Offset>) -> Result<(), ClaimError>;
}

/// Why a claim was not made.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ClaimError {
    /// Another process works on the partition.
    #[error("partition {0} is worked on by another process now")]
    Lost(PartitionId),
    /// It can be tried again.
    #[error("how far history is cannot be told to the log: {0}")]
    Failed(String),
}
