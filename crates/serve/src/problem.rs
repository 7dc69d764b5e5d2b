//! How REST says no: one JSON shape, `{error, message, position?, hint?}`, with the fitting status.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use catchment_store::registry::RegistryError;
use catchment_store::snapshot::SnapshotError;
use catchment_types::BadName;
use serde::Serialize;
use thiserror::Error;
use utoipa::ToSchema;

use crate::sql::{Position, SqlError, SqlErrorKind};

/// Seconds after which a refused query may be worth another try.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("1");

/// Why a request was not answered.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, ToSchema)]
#[error("{message}")]
pub struct Problem {
    #[serde(skip)]
    status: StatusCode,
    /// A word for programs: `not_found`, `unauthorized`, `unknown_column`, …
    pub error: &'static str,
    /// What is wrong, for people.
    pub message: String,
    /// Where in a query.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Problem {
    /// A problem without a hint.
    #[must_use]
    pub fn new(status: StatusCode, error: &'static str, message: impl Into<String>) -> Self {
        Self { status, error, message: message.into(), position: None, hint: None }
    }

    /// 400: the request makes no sense.
    #[must_use]
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    /// 404: there is no such thing.
    #[must_use]
    pub fn not_found(what: &str, id: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("there is no {what} {id}"))
    }

    /// Adds what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The status it is answered with.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.status;
        let mut response = (status, Json(self)).into_response();
        let headers = response.headers_mut();
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"catchment\""));
        } else if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            headers.insert(header::RETRY_AFTER, RETRY_AFTER_SECONDS);
        }
        response
    }
}

impl From<SqlError> for Problem {
    fn from(error: SqlError) -> Self {
        use SqlErrorKind as Kind;
        let status = match error.kind {
            Kind::Syntax
            | Kind::UnknownTable
            | Kind::UnknownColumn
            | Kind::UnknownFunction
            | Kind::Invalid
            | Kind::Unsupported
            | Kind::Execution => StatusCode::BAD_REQUEST,
            Kind::NotAllowed => StatusCode::FORBIDDEN,
            Kind::Timeout => StatusCode::REQUEST_TIMEOUT,
            // The client closed the request, or an operator did: nginx's 499 is no registered status.
            Kind::Cancelled => StatusCode::CONFLICT,
            Kind::Memory | Kind::TooLarge => StatusCode::UNPROCESSABLE_ENTITY,
            Kind::Busy | Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Kind::QueueFull => StatusCode::TOO_MANY_REQUESTS,
            Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self {
            status,
            error: error.kind.as_str(),
            message: error.message,
            position: error.position,
            hint: error.hint,
        }
    }
}

impl From<RegistryError> for Problem {
    fn from(error: RegistryError) -> Self {
        let (status, word) = match &error {
            RegistryError::Name(_) | RegistryError::Rule(_) | RegistryError::Invalid(_) => {
                (StatusCode::BAD_REQUEST, "bad_request")
            }
            RegistryError::Exists { .. } => (StatusCode::CONFLICT, "exists"),
            RegistryError::LastAdmin => (StatusCode::CONFLICT, "last_admin"),
            RegistryError::NotFound { .. } => (StatusCode::NOT_FOUND, "not_found"),
            error if error.is_unreachable() => {
                tracing::warn!(%error, "the registry cannot be reached");
                (StatusCode::SERVICE_UNAVAILABLE, "registry_unavailable")
            }
            RegistryError::Open { .. }
            | RegistryError::Migrate { .. }
            | RegistryError::Database(_)
            | RegistryError::Unreadable { .. } => {
                tracing::error!(%error, "the registry failed");
                (StatusCode::INTERNAL_SERVER_ERROR, "internal")
            }
        };
        Self::new(status, word, error.to_string())
    }
}

impl From<SnapshotError> for Problem {
    fn from(error: SnapshotError) -> Self {
        tracing::warn!(%error, "the snapshot cannot be reached");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "snapshot_unavailable", error.to_string())
    }
}

impl From<BadName> for Problem {
    fn from(error: BadName) -> Self {
        Self::bad_request(error.to_string())
    }
}
