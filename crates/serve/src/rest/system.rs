//! How the platform is: status, figures, health.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use catchment_types::Timestamp;
use prometheus_client::encoding::text::encode;
use serde::Serialize;
use utoipa::ToSchema;

use crate::ServeState;
use crate::auth::Reader;
use crate::problem::Problem;
use crate::status::PlatformStatus;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// How the platform is.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Status {
    version: &'static str,
    /// The time of this answer, RFC 3339.
    now: String,
    uptime_seconds: u64,
    /// Whether it is ready for traffic, and if not, why.
    ready: bool,
    not_ready: Vec<String>,
    /// Whether requests without a token may read.
    anonymous: bool,
    /// Devices that sent something.
    devices: u64,
    /// Metrics of all of them.
    metrics: u64,
    /// Memory of latest values and open rollups, in bytes; of another engine, all that it uses.
    snapshot_bytes: u64,
    live: LiveStatus,
    sql: SqlStatus,
    #[serde(flatten)]
    platform: PlatformStatus,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LiveStatus {
    subscribers: usize,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SqlStatus {
    running: usize,
    waiting: usize,
}

/// How the platform is.
#[utoipa::path(get, path = "/api/v1/status", tag = "system", responses((status = 200, body = Status)))]
pub(super) async fn status(State(state): State<Arc<ServeState>>, _: Reader) -> Json<Status> {
    // What does not answer shows among the reasons for not being ready; the rest of the status matters then most.
    let figures = state.snapshot.figures().await.unwrap_or_default();
    let not_ready = state.platform.not_ready();
    Json(Status {
        version: env!("CARGO_PKG_VERSION"),
        now: Timestamp::now().to_string(),
        uptime_seconds: state.started.elapsed().as_secs(),
        ready: not_ready.is_empty(),
        not_ready,
        anonymous: state.anonymous,
        devices: figures.devices,
        metrics: figures.metrics,
        snapshot_bytes: figures.bytes,
        live: LiveStatus { subscribers: state.live.subscribers() },
        sql: SqlStatus { running: state.sql.running().len(), waiting: state.sql.waiting() },
        platform: state.platform.status(),
    })
}

/// Figures for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "system", responses((status = 200, body = String, content_type = "application/openmetrics-text")))]
pub(super) async fn metrics(State(state): State<Arc<ServeState>>, _: Reader) -> Result<Response, Problem> {
    let mut text = String::new();
    encode(&mut text, &state.metrics)
        .map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response())
}

/// Whether the process lives.
#[utoipa::path(get, path = "/healthz", tag = "system", security(()), responses((status = 200, body = String)))]
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// Whether the platform is ready for traffic, and if not, why. After a start it is once answers have all that the log had.
#[utoipa::path(get, path = "/readyz", tag = "system", security(()),
    responses((status = 200, body = String), (status = 503, description = "One reason a line", body = String)))]
pub(super) async fn readyz(State(state): State<Arc<ServeState>>) -> Response {
    match state.platform.not_ready() {
        reasons if reasons.is_empty() => "ready\n".into_response(),
        reasons => (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", reasons.join("\n"))).into_response(),
    }
}
