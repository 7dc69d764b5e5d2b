//! Decoders: which rule turns a type's payloads into readings. Changes take effect without a restart.

use std::fmt;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use catchment_decode::{Decoder, DecoderRule, ReadingSink, RuleError};
use catchment_store::live::LiveValue;
use catchment_store::registry::DecoderRecord;
use catchment_types::{DEFAULT_REALM, Event, Reading, RejectReason, Timestamp, check_event_type};
use serde::Serialize;
use utoipa::ToSchema;

use crate::ServeState;
use crate::auth::{Admin, Reader};
use crate::extract;
use crate::problem::Problem;

/// A decoder.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DecoderAnswer {
    /// The type whose payloads it decodes; `*` stands for all types without one of their own.
    #[serde(rename = "type")]
    event_type: String,
    /// The rule, every field with its value.
    #[schema(value_type = Object)]
    rule: DecoderRule,
    /// RFC 3339.
    updated_at: String,
}

impl From<DecoderRecord> for DecoderAnswer {
    fn from(record: DecoderRecord) -> Self {
        Self { event_type: record.event_type, rule: record.rule, updated_at: record.updated_at.to_string() }
    }
}

/// What a decoder makes of a payload.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Decoded {
    /// The time of the event, RFC 3339.
    event_time: String,
    /// The rule that was used.
    #[schema(value_type = Object)]
    rule: DecoderRule,
    /// What decodes.
    readings: Vec<DecodedReading>,
    /// What does not.
    rejects: Vec<DecodedReject>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DecodedReading {
    /// RFC 3339.
    timestamp: String,
    metric: String,
    /// A number, text or boolean.
    #[schema(value_type = Value)]
    value: LiveValue,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DecodedReject {
    #[schema(value_type = String)]
    reason: RejectReason,
    detail: String,
}

#[derive(Default)]
struct Collect {
    readings: Vec<DecodedReading>,
    rejects: Vec<DecodedReject>,
}

impl ReadingSink for Collect {
    fn reading(&mut self, reading: Reading<'_>) -> Result<(), RejectReason> {
        self.readings.push(DecodedReading {
            timestamp: reading.timestamp.to_string(),
            metric: reading.metric.to_owned(),
            value: reading.value.into(),
        });
        Ok(())
    }

    fn reject(&mut self, reason: RejectReason, detail: fmt::Arguments<'_>) {
        self.rejects.push(DecodedReject { reason, detail: detail.to_string() });
    }
}

fn bad_rule(error: &RuleError) -> Problem {
    Problem::bad_request(format!("the rule cannot work: {error}"))
}

fn read_rule(json: &[u8]) -> Result<DecoderRule, Problem> {
    let rule: DecoderRule = serde_json::from_slice(json).map_err(|error| {
        Problem::bad_request(format!("the body is not a rule: {error}"))
            .hint("GET /api/v1/decoders/* shows every field with its default")
    })?;
    rule.check().map_err(|error| bad_rule(&error))?;
    Ok(rule)
}

/// All decoders that were set; types without one use that of `*`, or the defaults.
#[utoipa::path(get, path = "/api/v1/decoders", tag = "decoders", responses((status = 200, body = Vec<DecoderAnswer>)))]
pub(super) async fn list_decoders(
    State(state): State<Arc<ServeState>>,
    _: Reader,
) -> Result<Json<Vec<DecoderAnswer>>, Problem> {
    Ok(Json(state.registry.decoders().await?.into_iter().map(DecoderAnswer::from).collect()))
}

/// The rule in force for a type, whether it is the type's own or the default.
#[utoipa::path(get, path = "/api/v1/decoders/{type}", tag = "decoders", params(("type" = String, Path, description = "Event type, or *")),
    responses((status = 200, body = DecoderAnswer)))]
pub(super) async fn get_decoder(
    State(state): State<Arc<ServeState>>,
    _: Reader,
    extract::Path(event_type): extract::Path<String>,
) -> Result<Json<DecoderAnswer>, Problem> {
    check_event_type(&event_type)?;
    let own = state.registry.decoder(&event_type).await?;
    Ok(Json(own.map_or_else(
        || DecoderAnswer {
            rule: state.decoders.rules().rule(&event_type).clone(),
            event_type: event_type.clone(),
            updated_at: Timestamp(0).to_string(),
        },
        DecoderAnswer::from,
    )))
}

/// Set the rule of a type. Workers take it up before their next block of events.
#[utoipa::path(put, path = "/api/v1/decoders/{type}", tag = "decoders", params(("type" = String, Path, description = "Event type, or * for all without one")),
    request_body(content = Object, description = "The rule: fields that are not given have their defaults"),
    responses((status = 200, body = DecoderAnswer), (status = 201, body = DecoderAnswer), (status = 400, body = Problem)))]
pub(super) async fn put_decoder(
    State(state): State<Arc<ServeState>>,
    _: Admin,
    extract::Path(event_type): extract::Path<String>,
    extract::Body(body): extract::Body,
) -> Result<(StatusCode, Json<DecoderAnswer>), Problem> {
    let rule = read_rule(&body)?;
    let is_new = state.registry.put_decoder(&event_type, &rule).await?;
    state.registry.apply_decoders(&state.decoders).await?;
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(DecoderAnswer { event_type, rule, updated_at: Timestamp::now().to_string() })))
}

/// Remove the rule of a type, which then uses that of `*`, or the defaults.
#[utoipa::path(delete, path = "/api/v1/decoders/{type}", tag = "decoders", params(("type" = String, Path)),
    responses((status = 204), (status = 404, body = Problem)))]
pub(super) async fn delete_decoder(
    State(state): State<Arc<ServeState>>,
    _: Admin,
    extract::Path(event_type): extract::Path<String>,
) -> Result<StatusCode, Problem> {
    if !state.registry.delete_decoder(&event_type).await? {
        return Err(Problem::not_found("decoder of type", &event_type));
    }
    state.registry.apply_decoders(&state.decoders).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Show what the rule in force makes of a payload, without keeping anything.
///
/// The body is the payload as a device would send it. To try another rule, pass it as JSON in the header
/// `x-decoder-rule`.
#[utoipa::path(post, path = "/api/v1/decoders/{type}/test", tag = "decoders",
    params(("type" = String, Path), ("x-decoder-rule" = Option<String>, Header, description = "A rule to try, as JSON")),
    request_body(content = String, content_type = "application/octet-stream", description = "The payload"),
    responses((status = 200, body = Decoded), (status = 400, body = Problem)))]
pub(super) async fn test_decoder(
    State(state): State<Arc<ServeState>>,
    _: Reader,
    extract::Path(event_type): extract::Path<String>,
    headers: HeaderMap,
    extract::Body(body): extract::Body,
) -> Result<Json<Decoded>, Problem> {
    check_event_type(&event_type)?;
    let rule = match headers.get("x-decoder-rule") {
        Some(rule) => read_rule(rule.as_bytes())?,
        None => state.decoders.rules().rule(&event_type).clone(),
    };
    let mut decoder = Decoder::new(rule.clone()).map_err(|error| bad_rule(&error))?;
    let content_type =
        headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let event = Event {
        realm: DEFAULT_REALM,
        device_id: "test",
        event_type: &event_type,
        topic: "",
        received_at: Timestamp::now(),
        content_type,
        tags: "",
        mark: 0,
        payload: &body,
    };
    let mut sink = Collect::default();
    let decoded = decoder.decode(&event, &mut sink);
    let Collect { readings, rejects } = sink;
    Ok(Json(Decoded { event_time: decoded.event_time.to_string(), rule, readings, rejects }))
}
