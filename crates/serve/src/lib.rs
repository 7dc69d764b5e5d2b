//! How Catchment is read: REST, WebSocket, SQL over HTTP, the PostgreSQL protocol, metrics, the status page.
//!
//! [`router`] makes everything that HTTP serves, from a [`ServeState`] that the composition root fills. Handlers say by an
//! extractor who may call them ([`auth`]); every refusal has the shape of [`problem::Problem`].

pub mod access;
pub mod answer;
pub mod auth;
mod extract;
mod live;
mod page;
mod params;
pub mod pg;
pub mod problem;
mod rest;
pub mod sql;
pub mod status;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use catchment_decode::Decoders;
use catchment_store::answers::Answers;
use catchment_store::history::History;
use catchment_store::live::LiveHub;
use catchment_store::registry::Registry;
use catchment_store::snapshot::Snapshot;
use serde::{Deserialize, Serialize};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::CompressionLayer;

use problem::Problem;
use sql::{SqlConfig, SqlEngine};
use status::Platform;

/// Settings of everything that is served: section `[serve]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServeConfig {
    /// Largest body of a request, in bytes (ingest has its own limit).
    pub body_bytes_max: usize,
    /// Subscriptions of one WebSocket.
    pub subscriptions_max: usize,
    /// Time between pings on a quiet WebSocket, in milliseconds; a client that does not answer two is let go.
    pub ping_interval_ms: u64,
    /// Limits of SQL.
    pub sql: SqlConfig,
}

impl Default for ServeConfig {
    fn default() -> Self {
        Self {
            body_bytes_max: 1 << 20,
            subscriptions_max: 64,
            ping_interval_ms: 20_000,
            sql: SqlConfig::default(),
        }
    }
}

/// What handlers work with.
pub struct ServeState {
    /// Settings.
    pub config: ServeConfig,
    /// Latest values.
    pub snapshot: Arc<dyn Snapshot>,
    /// Answers that are kept, if any are.
    pub answers: Option<Arc<dyn Answers>>,
    /// Push.
    pub live: Arc<LiveHub>,
    /// Devices, decoders, tokens.
    pub registry: Arc<Registry>,
    /// Admission.
    pub access: Arc<dyn access::Access>,
    /// The rules in force.
    pub decoders: Arc<Decoders>,
    /// Queries.
    pub sql: Arc<SqlEngine>,
    /// Tables, for queries in SQL of their engine's own.
    pub history: Arc<dyn History>,
    /// The rest of the process.
    pub platform: Arc<dyn Platform>,
    /// What `/metrics` shows.
    pub metrics: Arc<prometheus_client::registry::Registry>,
    /// Whether requests without a token may read: only while every listener is on loopback.
    pub anonymous: bool,
    /// When the process started.
    pub started: Instant,
}

/// Everything that HTTP serves, but for ingest, which is the gateway's and is merged with this; `others` describes it.
pub fn router(state: Arc<ServeState>, others: utoipa::openapi::OpenApi) -> Router {
    let (rest, openapi) = rest::router(others);
    let body_bytes_max = state.config.body_bytes_max;
    rest.layer(from_fn_with_state(Arc::clone(&state), settle))
        .merge(live::router())
        .merge(page::router(openapi))
        .layer(CompressionLayer::new())
        .layer(DefaultBodyLimit::max(body_bytes_max))
        .layer(CatchPanicLayer::custom(panicked))
        .fallback(not_found)
        .with_state(state)
}

/// What a process that does not answer questions serves: how it is.
pub fn operations(state: Arc<ServeState>) -> Router {
    rest::operations().layer(CatchPanicLayer::custom(panicked)).fallback(no_api).with_state(state)
}

async fn no_api(uri: axum::http::Uri) -> Problem {
    Problem::not_found("page", uri.path())
        .hint("this process has no role api: it has /healthz, /readyz, /metrics and /api/v1/status alone")
}

/// What a request has changed for devices holds for those that are connected, too, when it is answered.
async fn settle(State(state): State<Arc<ServeState>>, request: Request, next: Next) -> Response {
    let changes_something = !request.method().is_safe();
    let response = next.run(request).await;
    if changes_something {
        state.access.settled().await;
    }
    response
}

async fn not_found(uri: axum::http::Uri) -> Problem {
    Problem::not_found("page", uri.path()).hint("GET /api/v1/openapi.json lists what there is")
}

fn panicked(panic: Box<dyn std::any::Any + Send>) -> Response {
    let message = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let message = message.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
    tracing::error!(message, "a request's handler panicked");
    Problem::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "internal",
        "the server failed on this request; its log says more",
    )
    .into_response()
}
