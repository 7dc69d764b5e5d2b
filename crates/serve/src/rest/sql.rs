//! `POST /api/v1/sql`, and the list of running queries.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use utoipa::ToSchema;

use super::answers::{CACHE_STATUS, Found, Keep};
use crate::ServeState;
use crate::access::{Refusal, must_go};
use crate::answer::{Column, Encoder, Format};
use crate::auth::{Admin, Reader};
use crate::extract;
use crate::problem::Problem;
use crate::sql::{QueryOptions, QueryStream, RunningQuery, SqlError, SqlErrorKind, parse};

/// Rows of a JSON answer that names no limit: it is for people and small programs; the other formats stream everything.
const JSON_ROWS_DEFAULT: u64 = 10_000;
/// Pieces of an answer between the query's threads and the connection.
const PIECES_AHEAD: usize = 2;

/// A query.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SqlRequest {
    /// One statement: SELECT, WITH, VALUES, EXPLAIN, SHOW or DESCRIBE.
    #[schema(
        example = "SELECT device_id, avg(metric_value) FROM raw_metrics WHERE timestamp > now() - interval '1 hour' GROUP BY 1"
    )]
    query: String,
    /// Format of the answer; the `Accept` header counts if this is not given.
    format: Option<Format>,
    /// Time limit in milliseconds.
    timeout_ms: Option<u64>,
    /// Whose SQL the statement is in: `postgresql`, which is the default, or `clickhouse` when history is on ClickHouse,
    /// which then answers by itself.
    dialect: Option<Dialect>,
    /// Cut the answer after so many rows; JSON says `truncated`. Without it, JSON is cut after 10,000 rows.
    limit_rows: Option<u64>,
}

/// Whose SQL.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Dialect {
    /// Catchment's own, over all tables.
    #[default]
    Postgresql,
    /// ClickHouse's, over the tables that are there.
    Clickhouse,
}

/// What can stand in the query string.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct SqlParams {
    /// As in the body, which is the stronger.
    dialect: Option<Dialect>,
}

/// An answer in JSON.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SqlAnswer {
    /// Columns in order.
    columns: Vec<Column>,
    /// Rows as objects by column name.
    rows: Vec<serde_json::Map<String, serde_json::Value>>,
    /// Number of rows.
    row_count: u64,
    /// Milliseconds from start to last row.
    elapsed_ms: u64,
    /// Whether there are more rows than the limit.
    truncated: bool,
}

/// Run one SQL statement.
///
/// The body is JSON, or the statement itself as text/plain. Times in text formats are RFC 3339; binary values are the text
/// itself where it is UTF-8, else `base64:…`. NDJSON, CSV and Arrow stream everything; if the query fails on the way, the
/// connection is broken off. Closing the connection cancels the query, and so does the end of the token.
#[utoipa::path(post, path = "/api/v1/sql", tag = "sql", params(SqlParams),
    request_body(content((SqlRequest = "application/json"), (String = "text/plain"))),
    responses(
        (status = 200, description = "The rows", content((SqlAnswer = "application/json"), (String = "application/x-ndjson"), (String = "text/csv"), (Vec<u8> = "application/vnd.apache.arrow.stream"))),
        (status = 400, description = "The query is wrong: where, and a hint", body = Problem),
        (status = 403, description = "The statement is not a question", body = Problem),
        (status = 408, description = "Over the time limit", body = Problem),
        (status = 429, description = "The queue of queries is full", body = Problem),
        (status = 503, description = "No slot became free in time", body = Problem)))]
pub(super) async fn run_sql(
    State(state): State<Arc<ServeState>>,
    Reader(guest): Reader,
    extract::Query(params): extract::Query<SqlParams>,
    headers: HeaderMap,
    extract::Body(body): extract::Body,
) -> Result<Response, Problem> {
    let request = read_request(&headers, &body)?;
    let accepted =
        headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).and_then(Format::from_accept);
    let format = request.format.or(accepted).unwrap_or_default();
    let options = QueryOptions {
        timeout: request.timeout_ms.map(Duration::from_millis),
        limit_rows: request.limit_rows.or((format == Format::Json).then_some(JSON_ROWS_DEFAULT)),
        origin: "http",
        user: guest.name().to_owned(),
    };
    let started = Instant::now();
    let statement = match request.dialect.or(params.dialect).unwrap_or_default() {
        Dialect::Postgresql => Some(parse(&request.query)?),
        Dialect::Clickhouse => None,
    };
    let limit = options.limit_rows.map_or_else(String::new, |limit| limit.to_string());
    let question = [b"sql", request.query.as_bytes(), format.content_type().as_bytes(), limit.as_bytes()];
    let is_cacheable = state.answers.is_some()
        && statement.as_ref().is_some_and(|statement| state.sql.is_cacheable(statement));
    let found = Found::look_up(&state, is_cacheable.then_some(&question[..])).await;
    if let Found::Hit(answer) = &found {
        let mut response = Body::from(answer.clone()).into_response();
        let content_type = header::HeaderValue::from_static(format.content_type());
        response.headers_mut().insert(header::CONTENT_TYPE, content_type);
        response.headers_mut().extend(found.status().map(|status| (CACHE_STATUS, status)));
        return Ok(response);
    }
    let mut withdrawn: Withdrawn = Box::pin(must_go(Arc::clone(&state.access), guest));
    let open = async {
        let mut stream = match statement {
            Some(statement) => {
                let session = state.sql.session();
                state.sql.query_statement(&session, statement, &request.query, options).await?
            }
            None => {
                let history = Arc::clone(&state.history);
                state.sql.query_natively(history, "clickhouse", &request.query, options).await?
            }
        };
        // Most failures come before the first rows: those still get a status of their own.
        let first = stream.next().await.transpose()?;
        Ok::<_, Problem>((stream, first))
    };
    let (stream, first) = tokio::select! {
        opened = open => opened?,
        refusal = &mut withdrawn => return Err(refusal.into()),
    };
    let encoder = Encoder::new(format, stream.schema()).map_err(encoding)?;
    let id = stream.id();

    let (sender, mut receiver) = mpsc::channel(PIECES_AHEAD);
    let status = found.status();
    let keeping = match found {
        Found::Miss(keep) => Some(Keeping { keep, answer: Vec::new() }),
        Found::Off | Found::Bypass | Found::Hit(_) => None,
    };
    let writer = Writer { encoder, stream, sender, started, keeping };
    state.sql.spawn(writer.run(first, withdrawn));
    // May be polled after its end, as compression does.
    let body = Body::from_stream(futures::stream::poll_fn(move |cx| receiver.poll_recv(cx)));
    let mut response = body.into_response();
    let content_type = header::HeaderValue::from_static(format.content_type());
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response.headers_mut().insert("x-query-id", header::HeaderValue::from(id));
    response.headers_mut().extend(status.map(|status| (CACHE_STATUS, status)));
    Ok(response)
}

fn read_request(headers: &HeaderMap, body: &[u8]) -> Result<SqlRequest, Problem> {
    let content_type =
        headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mime = content_type.split(';').next().unwrap_or_default().trim();
    let text = std::str::from_utf8(body).map_err(|_| Problem::bad_request("the body is not UTF-8"))?;
    match mime {
        "application/json" => serde_json::from_str(text).map_err(|error| {
            Problem::bad_request(format!("the body is not a query: {error}"))
                .hint("send {\"query\": \"SELECT …\"}")
        }),
        "text/plain" | "application/sql" | "" => Ok(SqlRequest {
            query: text.to_owned(),
            format: None,
            timeout_ms: None,
            dialect: None,
            limit_rows: None,
        }),
        other => Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            format!("the body's type {other} is not known here"),
        )
        .hint("send application/json with {\"query\": …}, or the statement itself as text/plain")),
    }
}

fn encoding(error: arrow::error::ArrowError) -> Problem {
    SqlError::new(SqlErrorKind::Unsupported, format!("the answer cannot be written in this format: {error}"))
        .hint("cast the column to text, or ask for another format")
        .into()
}

/// Resolves when who asked has to go.
type Withdrawn = Pin<Box<dyn Future<Output = Refusal> + Send>>;

/// Writes an answer piece by piece, on the queries' threads.
struct Writer {
    encoder: Encoder,
    stream: QueryStream,
    sender: mpsc::Sender<Result<Bytes, Problem>>,
    started: Instant,
    keeping: Option<Keeping>,
}

/// An answer that is to be kept, as far as it is written.
struct Keeping {
    keep: Keep,
    answer: Vec<u8>,
}

impl Keeping {
    /// Takes a piece; nothing is left when it becomes too large.
    fn take(mut self, piece: &[u8]) -> Option<Self> {
        self.answer.extend_from_slice(piece);
        (self.answer.len() <= self.keep.bytes_max()).then_some(self)
    }
}

impl Writer {
    async fn run(mut self, first: Option<arrow::record_batch::RecordBatch>, withdrawn: Withdrawn) {
        let written = tokio::select! {
            written = self.write(first) => written,
            refusal = withdrawn => Err(refusal.into()),
        };
        let Err(problem) = written else {
            if let Some(Keeping { keep, answer }) = &self.keeping {
                keep.keep(answer).await;
            }
            return;
        };
        let last = self.encoder.failed(&problem);
        if let Some(last) = last {
            // Nobody may be there to read it.
            let _ = self.sender.send(Ok(last.into())).await;
        }
        if !self.encoder.tells_its_end() {
            let _ = self.sender.send(Err(problem)).await;
        }
    }

    async fn write(&mut self, first: Option<arrow::record_batch::RecordBatch>) -> Result<(), Problem> {
        let head = self.encoder.head().map_err(encoding)?;
        self.send(head).await?;
        if let Some(first) = first {
            let piece = self.encoder.batch(&first).map_err(encoding)?;
            self.send(piece).await?;
        }
        while let Some(batch) = self.stream.next().await.transpose()? {
            let piece = self.encoder.batch(&batch).map_err(encoding)?;
            self.send(piece).await?;
        }
        let tail = self.encoder.tail(self.started.elapsed(), self.stream.truncated()).map_err(encoding)?;
        self.send(tail).await
    }

    async fn send(&mut self, piece: Vec<u8>) -> Result<(), Problem> {
        if piece.is_empty() {
            return Ok(());
        }
        self.keeping = self.keeping.take().and_then(|keeping| keeping.take(&piece));
        let gone = |_| SqlError::new(SqlErrorKind::Cancelled, "the client went away").into();
        self.sender.send(Ok(piece.into())).await.map_err(gone)
    }
}

/// Queries that run now.
#[utoipa::path(get, path = "/api/v1/queries", tag = "sql", responses((status = 200, body = Vec<RunningQuery>)))]
pub(super) async fn list_queries(State(state): State<Arc<ServeState>>, _: Reader) -> Json<Vec<RunningQuery>> {
    Json(state.sql.running())
}

/// Cancel a running query.
#[utoipa::path(delete, path = "/api/v1/queries/{id}", tag = "sql", params(("id" = u64, Path, description = "Number in the list")),
    responses((status = 204, description = "It is being stopped"), (status = 404, body = Problem)))]
pub(super) async fn cancel_query(
    State(state): State<Arc<ServeState>>,
    _: Admin,
    extract::Path(id): extract::Path<u64>,
) -> Result<StatusCode, Problem> {
    match state.sql.cancel(id) {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(Problem::not_found("running query", &id.to_string())),
    }
}
