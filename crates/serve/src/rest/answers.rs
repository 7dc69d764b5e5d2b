//! Answers that are kept: the look-up before a query, and the header that tells what came of it.
//!
//! Whoever may read sees all of the realm, so that rights are no part of a question. `Cache-Status` (RFC 9211) says `hit`,
//! `fwd=miss` when the query was run, or `fwd=bypass` when its answer is not one to keep.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use catchment_store::answers::{Answers, Lookup};
use serde::Serialize;

use crate::ServeState;
use crate::problem::Problem;

pub(super) const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const JSON: &str = "application/json";

/// What was found before a query ran.
pub(super) enum Found {
    /// There is no cache.
    Off,
    /// The answer is not one to keep, or nothing can be looked up now.
    Bypass,
    /// The answer.
    Hit(Bytes),
    /// It may be kept so.
    Miss(Keep),
}

/// A place for an answer.
pub(super) struct Keep {
    answers: Arc<dyn Answers>,
    name: String,
}

impl Keep {
    pub(super) async fn keep(&self, answer: &[u8]) {
        self.answers.keep(&self.name, answer).await;
    }

    pub(super) fn bytes_max(&self) -> usize {
        self.answers.answer_bytes_max()
    }
}

impl Found {
    /// Looks for the answer to a question; without one, it is not to be kept.
    pub(super) async fn look_up(state: &ServeState, question: Option<&[&[u8]]>) -> Self {
        let Some(answers) = &state.answers else { return Self::Off };
        let Some(question) = question else { return Self::Bypass };
        match answers.look_up(question).await {
            Lookup::Hit(answer) => Self::Hit(answer),
            Lookup::Miss(name) => Self::Miss(Keep { answers: Arc::clone(answers), name }),
            Lookup::Unavailable => Self::Bypass,
        }
    }

    /// What the answer's head says of it.
    pub(super) fn status(&self) -> Option<HeaderValue> {
        let status = match self {
            Self::Off => return None,
            Self::Bypass => "catchment; fwd=bypass",
            Self::Hit(_) => "catchment; hit",
            Self::Miss(_) => "catchment; fwd=miss",
        };
        Some(HeaderValue::from_static(status))
    }
}

/// Answers a question in JSON, from the cache or by `make`.
pub(super) async fn answer<T: Serialize>(
    state: &ServeState,
    question: Option<&[&[u8]]>,
    make: impl Future<Output = Result<T, Problem>>,
) -> Result<Response, Problem> {
    let found = Found::look_up(state, question).await;
    let body = match &found {
        Found::Hit(answer) => answer.clone(),
        Found::Off | Found::Bypass | Found::Miss(_) => {
            let made = make.await?;
            let body: Bytes = serde_json::to_vec(&made)
                .map_err(|error| {
                    let status = axum::http::StatusCode::INTERNAL_SERVER_ERROR;
                    Problem::new(status, "internal", error.to_string())
                })?
                .into();
            if let Found::Miss(keep) = &found {
                keep.keep(&body).await;
            }
            body
        }
    };
    let mut response = Body::from(body).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(JSON));
    response.headers_mut().extend(found.status().map(|status| (CACHE_STATUS, status)));
    Ok(response)
}
