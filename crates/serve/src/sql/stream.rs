//! One query: the task that runs it, and the stream that its reader holds.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use catchment_store::history::NativeError;
use datafusion::execution::context::{SQLOptions, SessionContext};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::{SendableRecordBatchStream, execute_stream};
use datafusion::sql::parser::Statement;
use futures::future::BoxFuture;
use futures::{Stream, StreamExt};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_util::sync::DropGuard;

use super::error::{SqlError, SqlErrorKind};
use super::metrics::SqlMetrics;
use super::running::RunningGuard;

/// How often a stopped query is asked whether it has really stopped.
const STOP_POLL: Duration = Duration::from_millis(5);

/// What to run: text that was parsed and checked, or a plan.
pub(super) enum Work {
    Statement(Statement),
    Plan(Box<LogicalPlan>),
    /// Rows that come from elsewhere, once this is awaited.
    Native(BoxFuture<'static, Result<SendableRecordBatchStream, NativeError>>),
}

pub(super) struct Limits {
    pub(super) timeout: Duration,
    pub(super) limit_rows: Option<u64>,
    pub(super) rows_max: u64,
    pub(super) bytes_max: u64,
}

impl Limits {
    fn check(&self, rows: u64, bytes: u64) -> Result<(), SqlError> {
        if rows <= self.rows_max && bytes <= self.bytes_max {
            return Ok(());
        }
        let message = format!("the answer has more than {} rows or {} bytes", self.rows_max, self.bytes_max);
        Err(SqlError::new(SqlErrorKind::TooLarge, message)
            .hint("aggregate, or fetch it in parts with WHERE on time and LIMIT"))
    }
}

#[derive(Debug)]
pub(super) enum Message {
    Started(SchemaRef),
    Batch(RecordBatch),
    Failed(SqlError),
    Done { truncated: bool },
}

/// What runs one query.
pub(super) struct Driver {
    pub(super) session: SessionContext,
    pub(super) limits: Limits,
    pub(super) sender: mpsc::Sender<Message>,
    pub(super) tables: Vec<String>,
    pub(super) metrics: SqlMetrics,
}

impl Driver {
    /// Runs the query on the queries' threads to its end, limit or cancellation. This itself has to run elsewhere: an operator
    /// that works long without a pause would hold up a clock on its own thread.
    pub(super) async fn run(self: Arc<Self>, work: Work, guard: RunningGuard, threads: Handle) {
        let started = Instant::now();
        let timeout = self.limits.timeout;
        let driver = Arc::clone(&self);
        let mut worker = threads.spawn(async move { Box::pin(driver.execute(work)).await });
        let outcome = tokio::select! {
            biased;
            () = guard.cancel.cancelled() => Err(SqlError::new(SqlErrorKind::Cancelled, "the query was cancelled")),
            () = tokio::time::sleep(timeout) => Err(SqlError::new(
                SqlErrorKind::Timeout,
                format!("the query ran longer than {} ms", timeout.as_millis()),
            )
            .hint("narrow the time range, or allow it more time: timeout_ms")),
            joined = &mut worker => joined.unwrap_or_else(|_| Err(died())),
        };
        self.metrics.ended(outcome.as_ref().map(|_| ()).map_err(|error| error.kind), started.elapsed());
        worker.abort();
        // The slot is free once its thread is, before a slow reader has taken the last message.
        let release = async {
            while !worker.is_finished() {
                tokio::time::sleep(STOP_POLL).await;
            }
            drop(guard);
        };
        let last = match outcome {
            Ok(truncated) => Message::Done { truncated },
            Err(error) => Message::Failed(error),
        };
        // A reader that is gone needs no last message.
        let _ = tokio::join!(release, self.sender.send(last));
    }

    /// Plans and streams; `true` if the answer was cut at the asked number of rows.
    async fn execute(&self, work: Work) -> Result<bool, SqlError> {
        let translate = |error| SqlError::from_engine(&error, &self.tables);
        let mut stream = match work {
            Work::Native(opening) => opening.await.map_err(|error| SqlError::from(&error))?,
            Work::Statement(statement) => {
                // SET of the time zone passes the allow-list; it touches its own session only.
                let plan = self.session.state().statement_to_plan(statement).await.map_err(translate)?;
                self.open(plan, true).await.map_err(translate)?
            }
            Work::Plan(plan) => self.open(*plan, false).await.map_err(translate)?,
        };
        self.send(Message::Started(stream.schema())).await?;

        let (mut rows, mut bytes) = (0_u64, 0_u64);
        while let Some(batch) = stream.next().await {
            let mut batch = batch.map_err(translate)?;
            let mut truncated = false;
            if let Some(limit) = self.limits.limit_rows
                && rows + batch.num_rows() as u64 > limit
            {
                batch = batch.slice(0, usize::try_from(limit - rows).unwrap_or(usize::MAX));
                truncated = true;
            }
            rows += batch.num_rows() as u64;
            bytes += batch_bytes(&batch);
            self.limits.check(rows, bytes)?;
            self.metrics.rows(batch.num_rows());
            if batch.num_rows() > 0 {
                self.send(Message::Batch(batch)).await?;
            }
            if truncated {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Plans, and starts the plan if it only reads.
    async fn open(
        &self,
        plan: LogicalPlan,
        may_set: bool,
    ) -> datafusion::error::Result<SendableRecordBatchStream> {
        let allowed =
            SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(may_set);
        allowed.verify_plan(&plan)?;
        let frame = self.session.execute_logical_plan(plan).await?;
        let task = Arc::new(frame.task_ctx());
        execute_stream(frame.create_physical_plan().await?, task)
    }

    async fn send(&self, message: Message) -> Result<(), SqlError> {
        let gone = |_| SqlError::new(SqlErrorKind::Cancelled, "the reader went away");
        self.sender.send(message).await.map_err(gone)
    }
}

/// Size of what a batch shows, not of the buffers that it shares with others.
fn batch_bytes(batch: &RecordBatch) -> u64 {
    let size = |column: &arrow::array::ArrayRef| match column.to_data().get_slice_memory_size() {
        Ok(bytes) => bytes,
        Err(_) => column.get_array_memory_size(),
    };
    batch.columns().iter().map(|column| size(column) as u64).sum()
}

/// A running query's answer. Dropping it cancels the query.
#[derive(Debug)]
pub struct QueryStream {
    id: u64,
    schema: SchemaRef,
    receiver: mpsc::Receiver<Message>,
    ended: bool,
    truncated: bool,
    _cancel: DropGuard,
}

impl QueryStream {
    /// Waits until the query is planned and runs. Dropping this future cancels it.
    pub(super) async fn open(
        id: u64,
        mut receiver: mpsc::Receiver<Message>,
        cancel: DropGuard,
    ) -> Result<Self, SqlError> {
        match receiver.recv().await {
            Some(Message::Started(schema)) => {
                Ok(Self { id, schema, receiver, ended: false, truncated: false, _cancel: cancel })
            }
            Some(Message::Failed(error)) => Err(error),
            Some(Message::Batch(_) | Message::Done { .. }) | None => Err(died()),
        }
    }

    /// The query's number in the list.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Columns of the answer.
    #[must_use]
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Whether the answer was cut at [`QueryOptions::limit_rows`](super::QueryOptions::limit_rows); known when the stream has ended.
    #[must_use]
    pub fn truncated(&self) -> bool {
        self.truncated
    }
}

impl Stream for QueryStream {
    type Item = Result<RecordBatch, SqlError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let item = match std::task::ready!(self.receiver.poll_recv(context)) {
            Some(Message::Batch(batch)) => return Poll::Ready(Some(Ok(batch))),
            Some(Message::Done { truncated }) => {
                self.truncated = truncated;
                None
            }
            Some(Message::Failed(error)) => Some(Err(error)),
            Some(Message::Started(_)) | None => Some(Err(died())),
        };
        self.ended = true;
        Poll::Ready(item)
    }
}

fn died() -> SqlError {
    SqlError::new(SqlErrorKind::Internal, "the query ended unexpectedly; the server's log says more")
}
