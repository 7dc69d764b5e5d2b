//! What ingest does with a request: who may send it, where its events go, and how they come into the log once.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use catchment_eventlog::LogError;
use catchment_types::{EventBatch, Timestamp, check_device_id, check_event_type};
use serde::Serialize;
use utoipa::ToSchema;

use super::error::HttpError;
use super::events::{self, Events, LineError, Report, Target};
use super::idempotency::Begin;
use super::stream::{self, Taken};
use super::{authenticate, body, content_type};
use crate::admission::Principal;
use crate::config::UnroutedAction;
use crate::gateway::Gateway;
use crate::ingest::is_kept;
use crate::marks::{self, Mark};
use crate::metrics::GatewayMetrics;
use crate::mqtt::{Message, PublishProperties, QoS, SERVER, Turn};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Tells that events were there already.
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
const KEY_BYTES_MAX: usize = 255;
/// A body above this takes longer than other tasks should wait: it is taken apart on a thread of its own.
const ASIDE_BYTES: usize = 64 << 10;

/// What a request is told that was taken.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct Accepted {
    /// Events that are durable now.
    pub(super) accepted: u64,
    /// Messages that went to subscribers only, since no route keeps their topic.
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) brokered: u64,
    /// Lines or elements that were refused.
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) refused: u64,
    /// The first of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) errors: Vec<LineError>,
    /// Of the accepted, those that an earlier request with the same key had brought.
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) replayed: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl IntoResponse for Accepted {
    fn into_response(self) -> Response {
        let status = match &self {
            Self { refused: 1.., .. } => StatusCode::MULTI_STATUS,
            Self { accepted: 0, .. } => StatusCode::ACCEPTED,
            _ => StatusCode::OK,
        };
        let replayed = self.replayed > 0;
        let mut response = (status, Json(self)).into_response();
        if replayed {
            response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
        }
        response
    }
}

/// What the path says.
pub(super) enum Named {
    Device { device_id: String, event_type: String },
    Topic(String),
}

/// A request that may send what its body holds.
pub(super) struct Admitted {
    pub(super) principal: Principal,
    /// The change of what admission decides by as of which it may.
    pub(super) change: u64,
    pub(super) remote: Option<SocketAddr>,
    pub(super) content_type: String,
    /// Hash of who, where and which key, if the request has one.
    pub(super) key: Option<u64>,
    /// Nothing where the topic is only brokered.
    pub(super) names: Option<(String, String)>,
    /// The device that the client speaks as, if the topic names one.
    pub(super) speaker: Option<String>,
    pub(super) tags: String,
    /// What subscribers see.
    pub(super) topic: String,
}

/// Decides whether a request is let in, before its body is read.
pub(super) async fn admit(gateway: &Gateway, named: Named, parts: &Parts) -> Result<Admitted, HttpError> {
    if let Named::Device { device_id, event_type } = &named {
        let bad_name = |name: catchment_types::BadName| {
            HttpError::bad_request("name", name).hint("the path is /api/v1/devices/{device_id}/events/{type}")
        };
        check_device_id(device_id).map_err(bad_name)?;
        check_event_type(event_type).map_err(bad_name)?;
    }
    // Before it is asked: what is changed meanwhile is looked at later.
    let change = gateway.admission_change();
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
    let mut tags = String::new();
    // The device that the client speaks as: none where no route names one, even if the event is kept under some.
    let (topic, names, speaker) = match named {
        Named::Device { device_id, event_type } => {
            let topic = format!("devices/{device_id}/{event_type}");
            (topic, Some((device_id.clone(), event_type)), Some(device_id))
        }
        Named::Topic(topic) => {
            let (names, speaker) = route(gateway, &topic, &mut tags)?;
            (topic, names, speaker)
        }
    };
    if !gateway.admission.may_publish(&principal, &topic, speaker.as_deref()) {
        return Err(may_not_send(&principal, &topic));
    }
    let content_type = content_type(&parts.headers)?;
    let key = idempotency_key(&parts.headers)?.map(|key| {
        let hash =
            marks::hash(&[principal.realm.as_bytes(), principal.owner().as_bytes(), topic.as_bytes(), key]);
        Mark::key(hash >> 1)
    });
    let remote = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0);
    Ok(Admitted { principal, change, remote, content_type, key, names, speaker, tags, topic })
}

pub(super) fn may_not_send(principal: &Principal, topic: &str) -> HttpError {
    let message = format!("{} may not send events of {topic:?}", principal.name);
    HttpError::new(StatusCode::FORBIDDEN, "forbidden", message)
        .hint("use the device's own token, or an administrator's")
}

type Names = Option<(String, String)>;

/// Where a topic leads: the names of its event, if it becomes one, and the device that must be speaking.
fn route(gateway: &Gateway, topic: &str, tags: &mut String) -> Result<(Names, Option<String>), HttpError> {
    let bad = |reason: &dyn std::fmt::Display| {
        HttpError::bad_request("topic", format_args!("{topic:?} cannot be published to: {reason}"))
            .hint("`catchment route test TOPIC` says where a topic leads")
    };
    if !gateway.topic_limits.is_topic(topic) || topic.contains('\0') || topic.starts_with('$') {
        return Err(bad(&"it is empty, too long or too deep, has a wildcard, or begins with $"));
    }
    let unrouted = &gateway.config.unrouted;
    match gateway.routes.current().find(topic).map_err(|error| bad(&error))? {
        Some(routed) => {
            routed.write_tags(tags).map_err(|error| bad(&error))?;
            let names = (routed.device_id.to_owned(), routed.event_type.to_owned());
            Ok((Some(names), Some(routed.device_id.to_owned())))
        }
        None => match unrouted.action {
            UnroutedAction::Broker => Ok((None, None)),
            UnroutedAction::Keep => {
                Ok((Some((unrouted.device_id.clone(), unrouted.event_type.clone())), None))
            }
            UnroutedAction::Refuse => {
                gateway.metrics.count_unrouted("refused", 1);
                let message = format!("no route takes the topic {topic:?}");
                Err(HttpError::new(StatusCode::NOT_FOUND, "no_route", message)
                    .hint("`catchment route add` makes one"))
            }
        },
    }
}

/// The header `Idempotency-Key`, with or without the quotes that a structured field has.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<&[u8]>, HttpError> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    let key = value.as_bytes().trim_ascii();
    let key = key.strip_prefix(b"\"").and_then(|key| key.strip_suffix(b"\"")).unwrap_or(key);
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        let message =
            format!("the header Idempotency-Key has {} bytes; 1 to {KEY_BYTES_MAX} are allowed", key.len());
        return Err(HttpError::bad_request("idempotency_key", message).hint("use for instance a UUID"));
    }
    Ok(Some(key))
}

/// Takes a request's events in. Returns once they are durable.
pub(super) async fn take(
    gateway: &Arc<Gateway>,
    admitted: Admitted,
    path: &str,
    headers: &HeaderMap,
    body: Body,
) -> Result<Accepted, HttpError> {
    if !events::is_lines(&admitted.content_type) {
        return take_whole(gateway, admitted, path, headers, body).await;
    }
    match stream::take_lines(gateway, admitted, path, headers, body).await {
        Taken::Done(answer) => answer,
        Taken::Whole(admitted, body) => take_whole(gateway, *admitted, path, headers, body).await,
    }
}

/// Takes all events of a body in, or none.
async fn take_whole(
    gateway: &Arc<Gateway>,
    admitted: Admitted,
    path: &str,
    headers: &HeaderMap,
    body: Body,
) -> Result<Accepted, HttpError> {
    let body = body::read(gateway, headers, body).await?;
    let body_bytes = body.bytes().len();
    let key = admitted.key;
    let (mut mark, mut skip, mut under_way) = (0, 0, None);
    if let Some(key) = key {
        let body = marks::hash(&[admitted.content_type.as_bytes(), body.bytes()]);
        mark = Mark::Whole { key, body }.encode();
        skip = begun(gateway.keys.begin(key, body))?;
        under_way = Some(UnderWay { gateway: Arc::clone(gateway), key, added: 0 });
    }
    let path = if path.starts_with("/api/v1/topics/") { admitted.topic.clone() } else { path.to_owned() };
    let (event_bytes_max, events_max) = (gateway.config.http.event_bytes_max, gateway.config.http.events_max);
    let split = move || {
        let Admitted { principal, content_type, names, tags, .. } = &admitted;
        let (device_id, event_type) = names.as_ref().map_or(("", ""), |(device, kind)| (device, kind));
        let target = Target {
            realm: &principal.realm,
            device_id,
            event_type,
            path: &path,
            tags,
            mark,
            skip,
            received_at: Timestamp::now(),
            event_bytes_max,
            events_max,
        };
        let events = events::split(&target, content_type, body.bytes());
        (events, admitted, body)
    };
    let (events, admitted, body) = match body_bytes > ASIDE_BYTES {
        true => gateway.bodies.run(split).await.map_err(|error| {
            tracing::error!(%error, "a body was not taken apart");
            HttpError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the body could not be taken apart")
        })?,
        false => split(),
    };
    let Admitted { principal, content_type, names, topic, .. } = &admitted;
    let device_id = names.as_ref().map_or("", |(device_id, _)| device_id);
    let Events { mut batch, payload_bytes, report } = events?;
    let Report { seen, replayed, refused, errors } = report;
    if let Some(limits) = &principal.limits {
        limits.charge(u64::from(batch.len()) + refused, payload_bytes);
    }
    if seen == 0 && refused > 0 {
        return Err(
            HttpError::bad_request("nothing_taken", "no line and no element can be taken").lines(errors)
        );
    }
    let added = u64::from(batch.len());
    let accepted = Accepted { accepted: seen, refused, errors, replayed, brokered: 0 };
    if names.is_none() {
        gateway.metrics.count_unrouted("brokered", added);
        broker(gateway, &principal.realm, topic, content_type, &batch.take()).await;
        return Ok(Accepted { accepted: 0, brokered: added, ..accepted });
    }
    if added > 0 {
        let batch = batch.take();
        let partition = gateway.partition(&principal.realm, device_id);
        let (realm, topic) = (Arc::clone(&principal.realm), topic.clone());
        let (content_type, owner) = (content_type.clone(), Arc::clone(gateway));
        // A task of its own: what is on its way to the log comes to its end, and the key with it, also if the client leaves.
        let append = tokio::spawn(async move {
            // Its memory is counted as long as the events wait.
            let _body = body;
            owner.log.submit(partition, batch.clone()).await?.await?;
            if let Some(under_way) = &mut under_way {
                under_way.added = added;
            }
            broker(&owner, &realm, &topic, &content_type, &batch).await;
            Ok(())
        });
        let limit = Duration::from_secs(gateway.config.http.durable_s_max);
        let ended = tokio::time::timeout(limit, append).await.map_err(|_| too_slow(key.is_some()))?;
        ended.unwrap_or(Err(LogError::Closed)).map_err(|error| log_error(&error))?;
        gateway.metrics.http_events.inc_by(added);
        gateway.metrics.http_event_bytes.inc_by(payload_bytes);
    }
    Ok(accepted)
}

/// A key whose request has not ended; tells how it did when it is dropped.
struct UnderWay {
    gateway: Arc<Gateway>,
    key: u64,
    added: u64,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.gateway.keys.end(self.key, self.added);
    }
}

pub(super) fn reused() -> HttpError {
    HttpError::new(
        StatusCode::UNPROCESSABLE_ENTITY,
        "idempotency_key_reused",
        "this Idempotency-Key was used with another body",
    )
    .hint("use a new key for a new request, and the same body when sending one again")
}

/// What the log has already of a request that may begin.
pub(super) fn begun<T>(begin: Begin<T>) -> Result<T, HttpError> {
    match begin {
        Begin::Append(known) => Ok(known),
        Begin::Reused => Err(reused()),
        Begin::UnderWay => Err(HttpError::new(
            StatusCode::CONFLICT,
            "idempotency_key_in_use",
            "a request with this Idempotency-Key is under way",
        )
        .hint("send again in a moment")
        .retry_after(Duration::from_secs(1))),
        Begin::Full => {
            Err(HttpError::unavailable("busy", "too many requests with an Idempotency-Key are under way"))
        }
    }
}

/// Shows events to those who subscribed to their topic. Others have their turn in between: there may be many of both.
pub(super) async fn broker(
    gateway: &Gateway,
    realm: &str,
    topic: &str,
    content_type: &str,
    batch: &EventBatch,
) {
    let broker = gateway.broker(realm);
    let mut turn = Turn::default();
    if !broker.subscriptions.is_wanted(topic, turn.left()).0 {
        return;
    }
    let raw = PublishProperties::encode_content_type(content_type);
    let properties = PublishProperties { raw: &raw, ..PublishProperties::default() };
    for event in batch {
        let message = Message::new(topic, &properties, event.payload, QoS::AtLeastOnce, false, SERVER);
        broker.publish(&Arc::new(message), &mut turn).await;
        if turn.is_over() {
            turn.rest().await;
            broker.room().await;
        }
    }
    broker.room().await;
}

pub(super) fn too_slow(has_key: bool) -> HttpError {
    let error = HttpError::unavailable(
        "log_slow",
        "the event log did not confirm the events in time; they may be kept all the same",
    );
    match has_key {
        true => error.hint("send again later with the same Idempotency-Key"),
        false => {
            error.hint("send again later; events then may be there twice. An Idempotency-Key avoids that")
        }
    }
}

pub(super) fn log_error(error: &LogError) -> HttpError {
    match error {
        LogError::Full { .. } => HttpError::unavailable("log_full", "the event log has no room left")
            .hint("send again once the operator has made room"),
        LogError::Closed => HttpError::unavailable("shutting_down", "the server is shutting down")
            .hint("send again when it is back"),
        LogError::Failed { .. } | LogError::Refused { .. } | LogError::NoSuchPartition { .. } => {
            tracing::error!(%error, "the event log failed");
            HttpError::unavailable(
                "log_failed",
                "the event log failed; whether the events are kept is unknown",
            )
            .hint("send again later; the server's log tells more")
        }
    }
}
