//! The SQL engine: sessions over the tables, and queries with limits, a list and a way to cancel.
//!
//! - Read-only by three fences: an allow-list over the parsed statement ([`check_read_only`]); sessions without file
//!   formats, table factories and writable schemas; a check of the finished plan.
//! - Bounded: queries at once and in the queue, memory and spill space of all together, time, rows and bytes of one.
//! - Queries run on threads of their own, so that a heavy one never delays an acknowledgement to a device. The stream of
//!   an answer is a short channel: a slow reader holds the query back, a reader that goes away ends it.
//! - The dialect is PostgreSQL's on every way in, the catalog `catchment`, the schema the realm.

mod cacheable;
mod error;
mod metrics;
mod running;
mod statement;
mod stream;
mod tables;
mod yielding;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use catchment_store::history::{History, NativeQuery, OptimizerRule};
use catchment_types::DEFAULT_REALM;
use datafusion::catalog::{
    CatalogProvider, MemoryCatalogProvider, MemoryCatalogProviderList, SchemaProvider,
};
use datafusion::common::config::Dialect;
use datafusion::execution::context::SessionContext;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::session_state::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::SessionConfig;
use datafusion::sql::parser::Statement;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

pub use error::{Position, SqlError, SqlErrorKind};
pub use metrics::SqlMetrics;
pub use running::RunningQuery;
pub use statement::{check_read_only, parse};
pub use stream::QueryStream;
pub use tables::RealmTables;

use running::Running;
use stream::{Driver, Limits, Work};
use yielding::YieldInJoins;

/// Name of the catalog.
pub const CATALOG: &str = "catchment";
/// Stack of a query's thread, in bytes.
const STACK_BYTES: usize = 64 << 20;
/// Batches between a query and its reader.
const BATCHES_AHEAD: usize = 2;

/// Limits of SQL: section `[serve.sql]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SqlConfig {
    /// Memory of all running queries together, in bytes; beyond it they spill to disk or fail.
    pub memory_bytes: usize,
    /// Disk space for spilling of all running queries together, in bytes; 0 turns spilling off.
    pub spill_bytes: u64,
    /// Folder for spilling; without one, the system's temporary folder.
    pub spill_dir: Option<PathBuf>,
    /// Threads that queries run on; 0 = as many as there are cores.
    pub threads: usize,
    /// Queries that run at once.
    pub concurrent_max: usize,
    /// Queries that wait for a slot; more are refused.
    pub waiting_max: usize,
    /// Longest wait for a slot, in milliseconds.
    pub wait_ms_max: u64,
    /// Time limit of a query that does not name one, in milliseconds.
    pub timeout_ms: u64,
    /// The most that a query may name, in milliseconds.
    pub timeout_ms_max: u64,
    /// Most rows of an answer; larger ones fail.
    pub answer_rows_max: u64,
    /// Largest answer, in bytes as Arrow data; larger ones fail.
    pub answer_bytes_max: u64,
}

impl Default for SqlConfig {
    fn default() -> Self {
        Self {
            memory_bytes: 1 << 30,
            spill_bytes: 4 << 30,
            spill_dir: None,
            threads: 0,
            concurrent_max: 8,
            waiting_max: 64,
            wait_ms_max: 10_000,
            timeout_ms: 30_000,
            timeout_ms_max: 600_000,
            answer_rows_max: 10_000_000,
            answer_bytes_max: 2 << 30,
        }
    }
}

/// What one query asks for beside its text.
#[derive(Debug, Clone, Default)]
pub struct QueryOptions {
    /// Time limit; the configured one if nothing is given, at most the configured maximum.
    pub timeout: Option<Duration>,
    /// Cut the answer after so many rows; [`QueryStream::truncated`] tells.
    pub limit_rows: Option<u64>,
    /// By which way it came, for the list: `http`, `postgres`, `rest`.
    pub origin: &'static str,
    /// Who asks, for the list.
    pub user: String,
}

/// Runs SQL over the tables of one schema provider.
pub struct SqlEngine {
    template: SessionState,
    tables: Arc<dyn SchemaProvider>,
    running: Arc<Running>,
    runtime: QueryRuntime,
    config: SqlConfig,
    metrics: SqlMetrics,
}

impl std::fmt::Debug for SqlEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqlEngine").field("config", &self.config).finish_non_exhaustive()
    }
}

impl SqlEngine {
    /// An engine over `tables`, which become the schema `main`.
    ///
    /// # Errors
    /// Threads or the spill folder cannot be had.
    pub fn new(tables: Arc<dyn SchemaProvider>, config: SqlConfig) -> Result<Self, SqlError> {
        let internal = |error: &dyn std::fmt::Display| {
            SqlError::new(SqlErrorKind::Internal, format!("SQL cannot start: {error}"))
        };
        let threads = match config.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("sql")
            // The planner recurses over texts as deep as the parser lets pass. Only what is used takes memory.
            .thread_stack_size(STACK_BYTES)
            .enable_all()
            .build()
            .map_err(|error| internal(&error))?;
        let env = runtime_env(&config).map_err(|error| internal(&error))?;
        Ok(Self {
            template: template(threads, env),
            tables,
            running: Running::new(&config),
            runtime: QueryRuntime(Some(runtime)),
            config,
            metrics: SqlMetrics::default(),
        })
    }

    /// With what the engine of the tables does itself of a plan.
    #[must_use]
    pub fn with_optimizer_rules(self, rules: Vec<OptimizerRule>) -> Self {
        let mut builder = SessionStateBuilder::new_from_existing(self.template.clone());
        for rule in rules {
            builder = builder.with_physical_optimizer_rule(rule);
        }
        Self { template: builder.build(), ..self }
    }

    /// A fresh session over the shared memory pool. What it sets or registers is its own.
    #[must_use]
    pub fn session(&self) -> SessionContext {
        let catalog = MemoryCatalogProvider::new();
        let catalogs = MemoryCatalogProviderList::new();
        // Both are new and empty: registering cannot fail or replace anything.
        let _ = catalog.register_schema(DEFAULT_REALM, Arc::clone(&self.tables));
        let _ = datafusion::catalog::CatalogProviderList::register_catalog(
            &catalogs,
            CATALOG.to_owned(),
            Arc::new(catalog),
        );
        let state = SessionStateBuilder::new_from_existing(self.template.clone())
            .with_catalog_list(Arc::new(catalogs))
            .build();
        SessionContext::new_with_state(state)
    }

    /// Parses, checks and starts a query in a session of its own. Resolves once the query is planned and running.
    ///
    /// # Errors
    /// Everything that is wrong before the first row; later errors come in the stream.
    pub async fn query(&self, sql: &str, options: QueryOptions) -> Result<QueryStream, SqlError> {
        let statement = parse(sql)?;
        self.query_statement(&self.session(), statement, sql, options).await
    }

    /// Whether the answer to a statement changes only when rows come.
    #[must_use]
    pub fn is_cacheable(&self, statement: &Statement) -> bool {
        cacheable::is_cacheable(statement, &self.template)
    }

    /// As [`Self::query`], with a parsed statement, in a session that the caller keeps. `text` is for the list.
    ///
    /// # Errors
    /// As [`Self::query`].
    pub async fn query_statement(
        &self,
        session: &SessionContext,
        statement: Statement,
        text: &str,
        options: QueryOptions,
    ) -> Result<QueryStream, SqlError> {
        check_read_only(&statement)?;
        self.start(session.clone(), Work::Statement(statement), text, options).await
    }

    /// As [`Self::query_statement`], with a plan, for instance one with parameters bound. The plan is checked too.
    ///
    /// # Errors
    /// As [`Self::query`].
    pub async fn query_plan(
        &self,
        session: &SessionContext,
        plan: LogicalPlan,
        text: &str,
        options: QueryOptions,
    ) -> Result<QueryStream, SqlError> {
        self.start(session.clone(), Work::Plan(Box::new(plan)), text, options).await
    }

    /// A query in SQL of history's own engine, with the same limits, and in the same list as others.
    ///
    /// # Errors
    /// History has no such dialect, or its engine refuses; as [`Self::query`] besides.
    pub async fn query_natively(
        &self,
        history: Arc<dyn History>,
        dialect: &str,
        sql: &str,
        options: QueryOptions,
    ) -> Result<QueryStream, SqlError> {
        let query = NativeQuery {
            dialect: dialect.to_owned(),
            text: sql.to_owned(),
            timeout: self.timeout(&options),
            rows_max: self.config.answer_rows_max,
            bytes_max: self.config.answer_bytes_max,
            memory_bytes_max: self.config.memory_bytes as u64,
        };
        let opening = Box::pin(async move { history.query_natively(query).await });
        self.start(self.session(), Work::Native(opening), sql, options).await
    }

    fn timeout(&self, options: &QueryOptions) -> Duration {
        let asked = options.timeout.unwrap_or(Duration::from_millis(self.config.timeout_ms));
        asked.min(Duration::from_millis(self.config.timeout_ms_max))
    }

    /// Translates an error of the engine, with hints from the tables here.
    #[must_use]
    pub fn error(&self, error: &datafusion::error::DataFusionError) -> SqlError {
        SqlError::from_engine(error, &self.tables.table_names())
    }

    /// The queries that run now, oldest first.
    #[must_use]
    pub fn running(&self) -> Vec<RunningQuery> {
        self.running.list()
    }

    /// How many queries wait for a slot.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.running.waiting()
    }

    /// Cancels a running query; whether there was one.
    pub fn cancel(&self, id: u64) -> bool {
        self.running.cancel(id)
    }

    /// The engine's figures, for registering.
    #[must_use]
    pub fn metrics(&self) -> &SqlMetrics {
        &self.metrics
    }

    /// Runs something that belongs to a query, such as writing its answer as text, on the queries' threads.
    pub fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(future);
    }

    /// The limits in force.
    #[must_use]
    pub fn config(&self) -> &SqlConfig {
        &self.config
    }

    async fn start(
        &self,
        session: SessionContext,
        work: Work,
        text: &str,
        options: QueryOptions,
    ) -> Result<QueryStream, SqlError> {
        let permit = self.running.admit().await.inspect_err(|error| self.metrics.refused(error))?;
        let guard = self.running.enter(text, options.origin, &options.user, permit);
        let (id, cancel) = (guard.id, guard.cancel.clone());
        let (sender, receiver) = mpsc::channel(BATCHES_AHEAD);
        let limits = Limits {
            timeout: self.timeout(&options),
            limit_rows: options.limit_rows,
            rows_max: self.config.answer_rows_max,
            bytes_max: self.config.answer_bytes_max,
        };
        // From here on, dropping this future or the stream cancels the query.
        let drop_guard = cancel.drop_guard();
        let driver = Arc::new(Driver {
            session,
            limits,
            sender,
            tables: self.tables.table_names(),
            metrics: self.metrics.clone(),
        });
        self.metrics.started();
        if let Some(threads) = self.runtime.handle() {
            tokio::spawn(driver.run(work, guard, threads));
        }
        QueryStream::open(id, receiver, drop_guard).await
    }
}

fn runtime_env(config: &SqlConfig) -> datafusion::error::Result<Arc<RuntimeEnv>> {
    let mode = match (&config.spill_dir, config.spill_bytes) {
        (_, 0) => DiskManagerMode::Disabled,
        (Some(dir), _) => DiskManagerMode::Directories(vec![dir.clone()]),
        (None, _) => DiskManagerMode::OsTmpDirectory,
    };
    let disk = DiskManagerBuilder::default().with_mode(mode).with_max_temp_directory_size(config.spill_bytes);
    RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(FairSpillPool::new(config.memory_bytes)))
        .with_disk_manager_builder(disk)
        .build_arc()
}

fn template(threads: usize, env: Arc<RuntimeEnv>) -> SessionState {
    let mut config = SessionConfig::new()
        .with_default_catalog_and_schema(CATALOG, DEFAULT_REALM)
        .with_create_default_catalog_and_schema(false)
        .with_information_schema(true)
        .with_target_partitions(threads);
    let options = config.options_mut();
    options.sql_parser.dialect = Dialect::PostgreSQL;
    options.sql_parser.collect_spans = true;
    options.execution.time_zone = Some("UTC".to_owned());
    let mut builder = SessionStateBuilder::new_with_default_features()
        .with_config(config)
        .with_runtime_env(env)
        .with_physical_optimizer_rule(Arc::new(YieldInJoins));
    // Nothing here reads or writes files by name.
    *builder.file_formats() = None;
    *builder.table_factories() = None;
    builder.build()
}

/// The queries' own threads; given up in the background, since an engine may be dropped inside another runtime.
struct QueryRuntime(Option<tokio::runtime::Runtime>);

impl QueryRuntime {
    /// Their runtime, while there is one.
    fn handle(&self) -> Option<tokio::runtime::Handle> {
        self.0.as_ref().map(|runtime| runtime.handle().clone())
    }

    fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        if let Some(runtime) = &self.0 {
            runtime.spawn(future);
        }
    }
}

impl Drop for QueryRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
