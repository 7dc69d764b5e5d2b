//! HTTP ingest: `POST /api/v1/devices/{device_id}/events/{type}`, the same as `/api/v1/ingest/{device_id}/{type}`, and
//! `POST /api/v1/topics/{topic}`, where a route says which device and type it is.
//!
//! | body | events |
//! | --- | --- |
//! | JSON (`application/json`, `…+json`) | one; an array: each element one; elements that are too large are refused alone |
//! | NDJSON (`application/x-ndjson`, `application/jsonl`) | each line one; lines that are not JSON are refused alone |
//! | anything else | one, as it is |
//!
//! NDJSON is taken in as it comes, in bodies of any size; the lines of a body that breaks off are kept ([`stream`]). Everything
//! else is taken as a whole or not at all. `Content-Encoding` may be gzip, zstd or deflate. 200 comes after the events are durable, and subscribers of the topic
//! see them then; 207 when some were refused, listed with their reasons. Not JSON at all is refused as a whole. With
//! `Idempotency-Key`, a request that is sent again counts once ([`idempotency`]). Errors are problem documents
//! (RFC 9457) with `{"error", "message", "hint"}` besides.

mod body;
mod coding;
mod error;
mod events;
mod idempotency;
mod ingest;
mod lines;
mod origin;
mod pieces;
mod routes;
mod stream;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{ConnectInfo, Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use base64::Engine;
use utoipa::OpenApi;

pub(crate) use body::BODY_PERMIT_BYTES;
pub(crate) use error::ErrorBody;
use error::HttpError;
pub(crate) use idempotency::Keys;
use ingest::{Accepted, Named, admit, take};
pub(crate) use origin::refuse_foreign_page;
use routes::{delete_route, list_routes, put_route, test_route};

use crate::admission::{Credentials, Denied, Principal, Purpose};
use crate::gateway::Gateway;
use crate::metrics::GatewayMetrics;
use crate::transport::PeerCertificate;
use crate::ws;

impl Gateway {
    /// The HTTP routes of the gateway: ingest, and MQTT over WebSocket at `/mqtt`. Serve them with connection information
    /// (`into_make_service_with_connect_info::<SocketAddr>`), which admission is told.
    pub fn router(self: &Arc<Self>) -> Router {
        Router::new()
            .route("/api/v1/devices/{device_id}/events/{type}", post(ingest))
            .route("/api/v1/ingest/{device_id}/{type}", post(ingest))
            .route("/api/v1/topics/{*topic}", post(ingest_topic))
            .route("/api/v1/routes", get(list_routes).put(put_route).delete(delete_route))
            .route("/api/v1/routes/test", get(test_route))
            .route("/mqtt", any(ws::upgrade))
            .with_state(Arc::clone(self))
    }

    /// What the OpenAPI document says of [`Self::router`].
    #[must_use]
    pub fn openapi() -> utoipa::openapi::OpenApi {
        #[derive(OpenApi)]
        #[openapi(paths(
            ingest,
            ingest_topic,
            routes::list_routes,
            routes::put_route,
            routes::delete_route,
            routes::test_route
        ))]
        struct Api;
        Api::openapi()
    }
}

/// Send events of a device. The answer comes after they are durable.
#[utoipa::path(
    post,
    path = "/api/v1/devices/{device_id}/events/{type}",
    tag = "devices",
    params(
        ("device_id" = String, Path, description = "What sends"),
        ("type" = String, Path, description = "Which kind of message; chooses the decoder"),
        ("Idempotency-Key" = Option<String>, Header, description = "A request that is sent again with it counts once"),
    ),
    request_body(
        description = "One JSON document, an array of them, NDJSON, or one event of any other type; gzip, zstd and deflate are understood",
        content((serde_json::Value = "application/json"), (String = "application/x-ndjson"), (Vec<u8> = "application/octet-stream"))
    ),
    responses(
        (status = 200, description = "The events are durable", body = Accepted),
        (status = 207, description = "Some lines or elements were refused, the others are durable", body = Accepted),
        (status = 409, description = "A request with this Idempotency-Key is under way", body = ErrorBody),
        (status = 422, description = "The Idempotency-Key was used with another body", body = ErrorBody),
        (status = 400, description = "Not the syntax of its content type, or a bad name; nothing was kept", body = ErrorBody),
        (status = 401, description = "The credentials are missing or wrong", body = ErrorBody),
        (status = 403, description = "Not this device's token", body = ErrorBody),
        (status = 408, description = "Nothing came for too long; `accepted` lines of NDJSON are kept", body = ErrorBody),
        (status = 413, description = "Too large; nothing was kept, but of NDJSON `accepted` lines", body = ErrorBody),
        (status = 415, description = "An encoding or a type that is not taken", body = ErrorBody),
        (status = 429, description = "Over the limits of the device or its realm; see Retry-After", body = ErrorBody),
        (status = 503, description = "No room or too busy; see Retry-After", body = ErrorBody),
    )
)]
async fn ingest(
    State(gateway): State<Arc<Gateway>>,
    path: Result<Path<(String, String)>, PathRejection>,
    request: Request,
) -> Response {
    let named = path.map(|Path((device_id, event_type))| Named::Device { device_id, event_type });
    answer(&gateway, named, request).await
}

/// Send messages of a topic, as by MQTT: a route says which device and type they are of.
#[utoipa::path(
    post,
    path = "/api/v1/topics/{topic}",
    tag = "devices",
    params(
        ("topic" = String, Path, description = "The topic, with its slashes"),
        ("Idempotency-Key" = Option<String>, Header, description = "A request that is sent again with it counts once"),
    ),
    request_body(
        description = "As for the events of a device",
        content((serde_json::Value = "application/json"), (String = "application/x-ndjson"), (Vec<u8> = "application/octet-stream"))
    ),
    responses(
        (status = 200, description = "The events are durable", body = Accepted),
        (status = 202, description = "No route keeps the topic; subscribers have it", body = Accepted),
        (status = 207, description = "Some lines or elements were refused, the others are durable", body = Accepted),
        (status = 404, description = "No route takes the topic, and such are refused", body = ErrorBody),
    )
)]
async fn ingest_topic(
    State(gateway): State<Arc<Gateway>>,
    path: Result<Path<String>, PathRejection>,
    request: Request,
) -> Response {
    answer(&gateway, path.map(|Path(topic)| Named::Topic(topic)), request).await
}

async fn answer(gateway: &Arc<Gateway>, named: Result<Named, PathRejection>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let admitted = match named {
        Ok(named) => admit(gateway, named, &parts).await,
        Err(_) => Err(HttpError::bad_request("path", "the path is not UTF-8")
            .hint("percent-encode device id, type and topic as UTF-8")),
    };
    let taken = match admitted {
        Ok(admitted) => take(gateway, admitted, parts.uri.path(), &parts.headers, body).await,
        Err(error) => {
            // The client is still sending: it hears the answer only if it may finish, and the connection goes on.
            body::discard(body.into_data_stream()).await;
            Err(error)
        }
    };
    match taken {
        Ok(accepted) => {
            GatewayMetrics::count(&gateway.metrics.http_requests, "accepted");
            accepted.into_response()
        }
        Err(error) => {
            GatewayMetrics::count(&gateway.metrics.http_requests, error.code());
            error.into_response()
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
    gateway.authenticate(credentials).await.map_err(denied)
}

/// Why somebody may not send, or no longer.
fn denied(denied: Denied) -> HttpError {
    match denied {
        Denied::BadCredentials => HttpError::unauthorized("the credentials are missing or wrong"),
        Denied::NotAllowed(message) => HttpError::new(StatusCode::FORBIDDEN, "forbidden", message),
        Denied::Unavailable(message) => HttpError::unavailable("admission", message),
        Denied::TooMany { retry_after } => {
            HttpError::too_many("too many attempts in a short time", retry_after)
        }
        Denied::Banned { left } => {
            HttpError::new(StatusCode::FORBIDDEN, "banned", "kept out for now").retry_after(left)
        }
    }
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
