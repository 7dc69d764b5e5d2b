//! Routes, read and changed while running: `/api/v1/routes`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::authenticate;
use super::error::{ErrorBody, HttpError};
use crate::admission::Role;
use crate::config::UnroutedAction;
use crate::gateway::Gateway;
use crate::route::{BadRoute, ListedRoute, RouteChangeError, RouteRule, RouteStoreError};

/// A topic in the query.
#[derive(Debug, Deserialize)]
pub(super) struct OfTopic {
    topic: String,
}

/// Where a topic leads.
#[derive(Debug, Default, Serialize, ToSchema)]
#[serde(default)]
pub(super) struct Tested {
    /// `event`, `kept`, `brokered` or `refused`.
    outcome: &'static str,
    /// The route that takes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device_id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    event_type: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    tags: BTreeMap<String, String>,
    /// Why it is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// Lets administrators through, and readers where nothing is changed.
pub(super) async fn admit(gateway: &Gateway, parts: &Parts, changes: bool) -> Result<(), HttpError> {
    let principal = authenticate(gateway, parts).await?;
    match principal.role {
        Role::Admin => Ok(()),
        Role::Reader if !changes => Ok(()),
        _ => Err(HttpError::new(
            StatusCode::FORBIDDEN,
            "forbidden",
            format_args!("{} may not do this", principal.name),
        )
        .hint("use an administrator's token")),
    }
}

fn topic(query: Result<Query<OfTopic>, QueryRejection>) -> Result<String, HttpError> {
    let missing =
        |_| HttpError::bad_request("topic", "the query has no topic").hint("add ?topic=…, percent-encoded");
    Ok(query.map_err(missing)?.0.topic)
}

/// All routes.
#[utoipa::path(get, path = "/api/v1/routes", tag = "routes", responses((status = 200, body = Vec<ListedRoute>)))]
pub(super) async fn list_routes(
    State(gateway): State<Arc<Gateway>>,
    parts: Parts,
) -> Result<Json<Vec<ListedRoute>>, HttpError> {
    admit(&gateway, &parts, false).await?;
    Ok(Json(gateway.routes.list().await?))
}

/// Add a route, or replace the one with the same topic. It is in force with the answer.
#[utoipa::path(put, path = "/api/v1/routes", tag = "routes", request_body = RouteRule,
    responses((status = 200, body = RouteRule), (status = 400, description = "Not a route; says where and what to write", body = ErrorBody),
        (status = 409, description = "Another route takes the same topics", body = ErrorBody)))]
pub(super) async fn put_route(
    State(gateway): State<Arc<Gateway>>,
    parts: Parts,
    body: Bytes,
) -> Result<Json<RouteRule>, HttpError> {
    admit(&gateway, &parts, true).await?;
    let rule: RouteRule = serde_json::from_slice(&body).map_err(|error| {
        HttpError::bad_request("route", format_args!("the body is not a route: {error}"))
            .hint("send for instance {\"topic\": \"city/{area}/traffic/{device_id}\", \"type\": \"traffic\"}")
    })?;
    rule.check()?;
    gateway.routes.put(rule.clone()).await?;
    Ok(Json(rule))
}

/// Remove a route that was added.
#[utoipa::path(delete, path = "/api/v1/routes", tag = "routes", params(("topic" = String, Query, description = "The route's topic")),
    responses((status = 204), (status = 404, body = ErrorBody), (status = 409, description = "It is of the configuration file", body = ErrorBody)))]
pub(super) async fn delete_route(
    State(gateway): State<Arc<Gateway>>,
    query: Result<Query<OfTopic>, QueryRejection>,
    parts: Parts,
) -> Result<StatusCode, HttpError> {
    admit(&gateway, &parts, true).await?;
    gateway.routes.delete(&topic(query)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Where a topic would lead.
#[utoipa::path(get, path = "/api/v1/routes/test", tag = "routes", params(("topic" = String, Query, description = "A topic")),
    responses((status = 200, body = Tested)))]
pub(super) async fn test_route(
    State(gateway): State<Arc<Gateway>>,
    query: Result<Query<OfTopic>, QueryRejection>,
    parts: Parts,
) -> Result<Json<Tested>, HttpError> {
    admit(&gateway, &parts, false).await?;
    Ok(Json(test(&gateway, &topic(query)?)))
}

fn test(gateway: &Gateway, topic: &str) -> Tested {
    let refused = |route: Option<&str>, reason: &dyn ToString| Tested {
        outcome: "refused",
        route: route.map(str::to_owned),
        reason: Some(reason.to_string()),
        ..Tested::default()
    };
    if !gateway.topic_limits.is_topic(topic) || topic.contains('\0') || topic.starts_with('$') {
        return refused(None, &"it is empty, too long or too deep, has a wildcard, or begins with $");
    }
    let routes = gateway.routes.current();
    let mut tags = String::new();
    match routes.find(topic) {
        Err(error) => refused(None, &error),
        Ok(Some(routed)) => match routed.write_tags(&mut tags) {
            Err(error) => refused(Some(routed.template()), &error),
            Ok(()) => Tested {
                outcome: "event",
                route: Some(routed.template().to_owned()),
                device_id: Some(routed.device_id.to_owned()),
                event_type: Some(routed.event_type.to_owned()),
                tags: serde_json::from_str(&tags).unwrap_or_default(),
                reason: None,
            },
        },
        Ok(None) => {
            let unrouted = &gateway.config.unrouted;
            match unrouted.action {
                UnroutedAction::Refuse => refused(None, &"no route takes it"),
                UnroutedAction::Broker => Tested { outcome: "brokered", ..Tested::default() },
                UnroutedAction::Keep => Tested {
                    outcome: "kept",
                    device_id: Some(unrouted.device_id.clone()),
                    event_type: Some(unrouted.event_type.clone()),
                    ..Tested::default()
                },
            }
        }
    }
}

impl From<BadRoute> for HttpError {
    fn from(bad: BadRoute) -> Self {
        let column = bad.at.map(|at| bad.topic.get(..at).map_or(at, |before| before.chars().count()) + 1);
        HttpError::bad_request("route", &bad).hint(bad.hint).column(column)
    }
}

impl From<RouteStoreError> for HttpError {
    fn from(error: RouteStoreError) -> Self {
        tracing::error!(%error, "the routes could not be read or changed");
        HttpError::unavailable("routes", error)
    }
}

impl From<RouteChangeError> for HttpError {
    fn from(error: RouteChangeError) -> Self {
        let conflict =
            |error: &dyn ToString| HttpError::new(StatusCode::CONFLICT, "conflict", error.to_string());
        match error {
            // By itself it was found good before.
            RouteChangeError::Bad(bad) => conflict(&bad).hint(bad.hint),
            RouteChangeError::Store(error) => error.into(),
            RouteChangeError::NotFound => HttpError::new(StatusCode::NOT_FOUND, "not_found", error)
                .hint("GET /api/v1/routes lists them"),
            RouteChangeError::Configured(_) => conflict(&error).hint("take it out of the configuration file"),
        }
    }
}
