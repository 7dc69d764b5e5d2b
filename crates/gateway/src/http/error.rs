//! How HTTP ingest says no.

use std::fmt::Display;
use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::events::{LineError, Report};

/// Seconds after which a client may try again.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

const PROBLEM: HeaderValue = HeaderValue::from_static("application/problem+json");

/// An error as a problem document (RFC 9457). `detail` is `message` under the standard's name.
#[derive(Serialize)]
struct Problem<'a> {
    title: &'static str,
    status: u16,
    detail: &'a str,
    #[serde(flatten)]
    body: &'a ErrorBody,
}

/// The body of an error.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ErrorBody {
    error: &'static str,
    message: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    hint: &'static str,
    /// Where in a text that was sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<Position>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<LineError>,
    /// Of a body that was taken in line by line: what became of it before.
    #[serde(flatten)]
    before: Option<Before>,
}

/// What became of a body before an error.
#[derive(Debug, Serialize, ToSchema)]
struct Before {
    /// Events that are durable all the same.
    accepted: u64,
    /// Lines that were refused.
    refused: u64,
    /// The last line that was looked at, from 1.
    line: usize,
}

/// A place in a text, from 1.
#[derive(Debug, Serialize, ToSchema)]
struct Position {
    line: usize,
    column: usize,
}

/// An error with its status.
#[derive(Debug)]
pub(crate) struct HttpError {
    status: StatusCode,
    body: Box<ErrorBody>,
    retry_after: Option<Duration>,
}

impl ErrorBody {
    /// `error` is for programs, `message` for people.
    pub(crate) fn new(error: &'static str, message: impl Display) -> Self {
        Self {
            error,
            message: message.to_string(),
            hint: "",
            position: None,
            errors: Vec::new(),
            before: None,
        }
    }

    /// What to do about it.
    pub(crate) fn hint(mut self, hint: &'static str) -> Self {
        self.hint = hint;
        self
    }

    /// Gives it a status.
    pub(crate) fn with(self, status: StatusCode) -> HttpError {
        HttpError { status, body: Box::new(self), retry_after: None }
    }
}

impl HttpError {
    pub(super) fn new(status: StatusCode, error: &'static str, message: impl Display) -> Self {
        ErrorBody::new(error, message).with(status)
    }

    pub(super) fn bad_request(error: &'static str, message: impl Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error, message)
    }

    pub(super) fn too_large(message: impl Display) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
    }

    pub(super) fn unavailable(error: &'static str, message: impl Display) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, error, message)
    }

    pub(super) fn too_many(message: impl Display, retry_after: Duration) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many", message)
            .hint("send again after the time in the header Retry-After")
            .retry_after(retry_after)
    }

    /// When another try is worth it.
    pub(super) fn retry_after(self, after: Duration) -> Self {
        Self { retry_after: Some(after), ..self }
    }

    pub(super) fn unauthorized(message: impl Display) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
            .hint("send the header Authorization: Bearer TOKEN")
    }

    pub(super) fn hint(mut self, hint: &'static str) -> Self {
        self.body.hint = hint;
        self
    }

    /// Where in a text of one line.
    pub(super) fn column(mut self, column: Option<usize>) -> Self {
        self.body.position = column.map(|column| Position { line: 1, column });
        self
    }

    /// The lines that are at fault.
    pub(super) fn lines(mut self, errors: Vec<LineError>) -> Self {
        self.body.errors = errors;
        self
    }

    /// What became of the body before: events that are durable, lines that were refused, the last that was looked at.
    pub(super) fn after(mut self, accepted: u64, report: Report, line: usize) -> Self {
        self.body.errors = report.errors;
        self.body.before = Some(Before { accepted, refused: report.refused, line });
        self
    }

    /// The error's name for programs.
    pub(super) fn code(&self) -> &'static str {
        self.body.error
    }
}

impl IntoResponse for HttpError {
    fn into_response(self) -> Response {
        let status = self.status;
        let problem = Problem {
            title: status.canonical_reason().unwrap_or_default(),
            status: status.as_u16(),
            detail: &self.body.message,
            body: &self.body,
        };
        let mut response = (status, Json(problem)).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, PROBLEM);
        if let Some(after) = self.retry_after {
            // Whole seconds, and never so early that it would be refused again.
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        } else if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
