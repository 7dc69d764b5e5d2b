//! HTTP ingest: `POST /api/v1/devices/{device_id}/events/{type}`.
//!
//! | body | events |
//! | --- | --- |
//! | JSON (`application/json`, `…+json`) | one; an array: each element one |
//! | NDJSON (`application/x-ndjson`, `application/jsonl`) | each line one; lines that are not JSON are refused alone |
//! | anything else | one, as it is |
//!
//! `Content-Encoding: gzip` is understood. 200 comes after the events are durable. A JSON body is taken as a whole or not
//! at all. Errors are `{"error", "message", "hint"}`.

mod body;
mod error;
mod events;
mod origin;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{ConnectInfo, Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, post};
use axum::{Json, Router};
use base64::Engine;
use catchment_eventlog::LogError;
use catchment_types::{Timestamp, check_device_id, check_event_type};
use serde::Serialize;
use utoipa::{OpenApi, ToSchema};

pub(crate) use body::BODY_PERMIT_BYTES;
pub(crate) use error::ErrorBody;
use error::HttpError;
use events::{Events, LineError, Target};
pub(crate) use origin::refuse_foreign_page;

use crate::admission::{Credentials, Denied, Principal, Purpose};
use crate::gateway::Gateway;
use crate::ingest::is_kept;
use crate::metrics::GatewayMetrics;
use crate::transport::PeerCertificate;
use crate::ws;

impl Gateway {
    /// The HTTP routes of the gateway: ingest, and MQTT over WebSocket at `/mqtt`. Serve them with connection information
    /// (`into_make_service_with_connect_info::<SocketAddr>`), which admission is told.
    pub fn router(self: &Arc<Self>) -> Router {
        Router::new()
            .route("/api/v1/devices/{device_id}/events/{type}", post(ingest))
            .route("/mqtt", any(ws::upgrade))
            .with_state(Arc::clone(self))
    }

    /// What the OpenAPI document says of [`Self::router`].
    #[must_use]
    pub fn openapi() -> utoipa::openapi::OpenApi {
        #[derive(OpenApi)]
        #[openapi(paths(ingest))]
        struct Api;
        Api::openapi()
    }
}

/// What a request is told that was taken.
#[derive(Debug, Serialize, ToSchema)]
struct Accepted {
    /// Events that are durable now.
    accepted: u64,
    /// Lines that were refused.
    #[serde(skip_serializing_if = "is_zero")]
    refused: u64,
    /// The first of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<LineError>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Send events of a device. The answer comes after they are durable.
#[utoipa::path(
    post,
    path = "/api/v1/devices/{device_id}/events/{type}",
    tag = "devices",
    params(
        ("device_id" = String, Path, description = "What sends"),
        ("type" = String, Path, description = "Which kind of message; chooses the decoder"),
    ),
    request_body(
        description = "One JSON document, an array of them, NDJSON, or one event of any other type; gzip is understood",
        content((serde_json::Value = "application/json"), (String = "application/x-ndjson"), (Vec<u8> = "application/octet-stream"))
    ),
    responses(
        (status = 200, description = "The events are durable", body = Accepted),
        (status = 400, description = "Not the syntax of its content type, or a bad name; nothing was kept", body = ErrorBody),
        (status = 401, description = "The credentials are missing or wrong", body = ErrorBody),
        (status = 403, description = "Not this device's token", body = ErrorBody),
        (status = 413, description = "Too large; nothing was kept", body = ErrorBody),
        (status = 415, description = "An encoding or a type that is not taken", body = ErrorBody),
        (status = 429, description = "Over the limits of the device or its realm; see Retry-After", body = ErrorBody),
        (status = 503, description = "No room or too busy; see Retry-After", body = ErrorBody),
    )
)]
async fn ingest(
    State(gateway): State<Arc<Gateway>>,
    path: Result<Path<(String, String)>, PathRejection>,
    uri: Uri,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let admitted = match path {
        Ok(Path(names)) => admit(&gateway, names, &parts).await,
        Err(_) => Err(HttpError::bad_request("path", "the path is not UTF-8")
            .hint("percent-encode device id and type as UTF-8")),
    };
    let taken = match admitted {
        Ok(admitted) => take(&gateway, &admitted, uri.path(), &parts.headers, body).await,
        Err(error) => {
            // The client is still sending: it hears the answer only if it may finish, and the connection goes on.
            body::discard(body).await;
            Err(error)
        }
    };
    match taken {
        Ok(accepted) => {
            GatewayMetrics::count(&gateway.metrics.http_requests, "accepted");
            Json(accepted).into_response()
        }
        Err(error) => {
            GatewayMetrics::count(&gateway.metrics.http_requests, error.code());
            error.into_response()
        }
    }
}

/// A request that may send what its body holds.
struct Admitted {
    device_id: String,
    event_type: String,
    principal: Principal,
    content_type: String,
}

async fn admit(
    gateway: &Gateway,
    (device_id, event_type): (String, String),
    parts: &Parts,
) -> Result<Admitted, HttpError> {
    const NAME_HINT: &str = "the path is /api/v1/devices/{device_id}/events/{type}";
    let bad_name = |name: catchment_types::BadName| HttpError::bad_request("name", name).hint(NAME_HINT);
    check_device_id(&device_id).map_err(bad_name)?;
    check_event_type(&event_type).map_err(bad_name)?;
    let principal = authenticate(gateway, parts).await?;
    if !is_kept(&principal.realm) {
        let message = format!("events of the realm {:?} are not kept yet, only brokered", principal.realm);
        return Err(HttpError::new(StatusCode::FORBIDDEN, "realm", message)
            .hint("publish by MQTT, or register the device in the realm main"));
    }
    if let Some(wait) = principal.limits.as_ref().map(|limits| limits.wait()).filter(|wait| !wait.is_zero()) {
        GatewayMetrics::count(&gateway.metrics.limited, "http");
        return Err(HttpError::too_many("the device or its realm sends more than it may", wait));
    }
    let topic = format!("devices/{device_id}/{event_type}");
    if !gateway.admission.may_publish(&principal, &topic, Some(&device_id)) {
        let message = format!("{} may not send events of device {device_id:?}", principal.name);
        return Err(HttpError::new(StatusCode::FORBIDDEN, "forbidden", message)
            .hint("use the device's own token, or an administrator's"));
    }
    let content_type = content_type(&parts.headers)?;
    Ok(Admitted { device_id, event_type, principal, content_type })
}

async fn take(
    gateway: &Gateway,
    admitted: &Admitted,
    path: &str,
    headers: &HeaderMap,
    body: Body,
) -> Result<Accepted, HttpError> {
    let Admitted { device_id, event_type, principal, content_type } = admitted;
    let body = body::read(gateway, headers, body).await?;
    let target = Target {
        realm: &principal.realm,
        device_id,
        event_type,
        path,
        received_at: Timestamp::now(),
        event_bytes_max: gateway.config.http.event_bytes_max,
        events_max: gateway.config.http.events_max,
    };
    let Events { mut batch, payload_bytes, refused, errors } =
        events::split(&target, content_type, body.bytes())?;
    if let Some(limits) = &principal.limits {
        limits.charge(u64::from(batch.len()) + refused, payload_bytes);
    }
    let accepted = u64::from(batch.len());
    if accepted == 0 && refused > 0 {
        return Err(HttpError::bad_request("ndjson", "no line is JSON").lines(errors));
    }
    if accepted > 0 {
        let partition = gateway.partition(&principal.realm, device_id);
        let append = async { gateway.log.submit(partition, batch.take()).await?.await };
        let limit = Duration::from_secs(gateway.config.http.durable_s_max);
        tokio::time::timeout(limit, append)
            .await
            .map_err(|_| too_slow())?
            .map_err(|error| log_error(&error))?;
        gateway.metrics.http_events.inc_by(accepted);
        gateway.metrics.http_event_bytes.inc_by(payload_bytes);
    }
    Ok(Accepted { accepted, refused, errors })
}

fn too_slow() -> HttpError {
    HttpError::unavailable(
        "log_slow",
        "the event log did not confirm the events in time; they may be kept all the same",
    )
    .hint("send again later; events then may be there twice")
}

fn log_error(error: &LogError) -> HttpError {
    match error {
        LogError::Full { .. } => {
            HttpError::unavailable("log_full", "the event log has no room left; nothing was kept")
                .hint("send again once the operator has made room")
        }
        LogError::Closed => {
            HttpError::unavailable("shutting_down", "the server is shutting down; nothing was kept")
                .hint("send again when it is back")
        }
        LogError::Failed { .. } | LogError::NoSuchPartition { .. } => {
            tracing::error!(%error, "the event log failed");
            HttpError::unavailable(
                "log_failed",
                "the event log failed; whether the events are kept is unknown",
            )
            .hint("send again later; the server's log tells more")
        }
    }
}

async fn authenticate(gateway: &Gateway, parts: &Parts) -> Result<Principal, HttpError> {
    let authorization = Authorization::read(&parts.headers)?;
    if matches!(authorization, Authorization::None) {
        refuse_foreign_page(gateway, &parts.headers, &parts.uri)?;
    }
    let (username, password) = match &authorization {
        Authorization::None => (None, None),
        Authorization::Bearer(token) => (None, Some(token.as_bytes())),
        Authorization::Basic(username, password) => (Some(username.as_str()), Some(password.as_bytes())),
    };
    let credentials = Credentials {
        client_id: "",
        username,
        password,
        remote: parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0),
        certificate: parts.extensions.get::<Arc<PeerCertificate>>().map(|certificate| &**certificate),
        purpose: Purpose::Request,
    };
    gateway.authenticate(credentials).await.map_err(|denied| match denied {
        Denied::BadCredentials => HttpError::unauthorized("the credentials are missing or wrong"),
        Denied::NotAllowed(message) => HttpError::new(StatusCode::FORBIDDEN, "forbidden", message),
        Denied::Unavailable(message) => HttpError::unavailable("admission", message),
        Denied::TooMany { retry_after } => {
            HttpError::too_many("too many attempts in a short time", retry_after)
        }
        Denied::Banned { left } => {
            HttpError::new(StatusCode::FORBIDDEN, "banned", "kept out for now").retry_after(left)
        }
    })
}

/// The header `Authorization`.
enum Authorization {
    None,
    Bearer(String),
    Basic(String, String),
}

impl Authorization {
    fn read(headers: &HeaderMap) -> Result<Self, HttpError> {
        let Some(value) = headers.get(header::AUTHORIZATION) else { return Ok(Self::None) };
        let bad = || HttpError::unauthorized("the header Authorization is neither Bearer nor Basic");
        let (scheme, rest) = value.to_str().ok().and_then(|value| value.split_once(' ')).ok_or_else(bad)?;
        if scheme.eq_ignore_ascii_case("bearer") {
            return Ok(Self::Bearer(rest.trim().to_owned()));
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return Err(bad());
        }
        let decoded = base64::engine::general_purpose::STANDARD.decode(rest.trim()).ok();
        let text = decoded.and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(bad)?;
        let (username, password) = text.split_once(':').ok_or_else(bad)?;
        Ok(Self::Basic(username.to_owned(), password.to_owned()))
    }
}

/// The media type without its parameters, in lower case; empty when there is none.
fn content_type(headers: &HeaderMap) -> Result<String, HttpError> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(String::new()) };
    let unsupported =
        |message| HttpError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message);
    let value = value.to_str().map_err(|_| unsupported("the header Content-Type is not ASCII"))?;
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if essence.len() > usize::from(u8::MAX) {
        return Err(unsupported("the header Content-Type is too long"));
    }
    if essence.starts_with("multipart/") {
        let hint = "send the event itself as the body: JSON, NDJSON, or bytes of any other type";
        return Err(unsupported("multipart bodies are not taken").hint(hint));
    }
    Ok(essence)
}
