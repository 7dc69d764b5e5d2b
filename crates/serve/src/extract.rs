//! axum's extractors, with refusals in the one shape of [`Problem`].

use std::sync::Arc;

use axum::extract::rejection::{BytesRejection, JsonRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use bytes::Bytes;
use serde::de::DeserializeOwned;

use crate::ServeState;
use crate::problem::Problem;

/// A JSON body.
#[derive(Debug)]
pub(crate) struct Json<T>(pub(crate) T);

/// A body of any kind.
#[derive(Debug)]
pub(crate) struct Body(pub(crate) Bytes);

/// Parts of the path.
#[derive(Debug)]
pub(crate) struct Path<T>(pub(crate) T);

/// The query string.
#[derive(Debug)]
pub(crate) struct Query<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<Arc<ServeState>> for Json<T> {
    type Rejection = Problem;
    async fn from_request(request: Request, state: &Arc<ServeState>) -> Result<Self, Problem> {
        let refuse =
            |rejection: JsonRejection| Problem::new(rejection.status(), "bad_request", rejection.body_text());
        axum::Json::from_request(request, state).await.map(|axum::Json(body)| Self(body)).map_err(refuse)
    }
}

impl FromRequest<Arc<ServeState>> for Body {
    type Rejection = Problem;
    async fn from_request(request: Request, state: &Arc<ServeState>) -> Result<Self, Problem> {
        let refuse = |rejection: BytesRejection| {
            Problem::new(rejection.status(), "bad_request", rejection.body_text())
        };
        Bytes::from_request(request, state).await.map(Self).map_err(refuse)
    }
}

impl<T: DeserializeOwned + Send> FromRequestParts<Arc<ServeState>> for Path<T> {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &Arc<ServeState>) -> Result<Self, Problem> {
        let refuse =
            |rejection: PathRejection| Problem::new(rejection.status(), "bad_request", rejection.body_text());
        let path = axum::extract::Path::from_request_parts(parts, state).await;
        path.map(|axum::extract::Path(path)| Self(path)).map_err(refuse)
    }
}

impl<T: DeserializeOwned> FromRequestParts<Arc<ServeState>> for Query<T> {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &Arc<ServeState>) -> Result<Self, Problem> {
        let refuse = |rejection: QueryRejection| {
            Problem::new(rejection.status(), "bad_request", rejection.body_text())
        };
        let query = axum::extract::Query::from_request_parts(parts, state).await;
        query.map(|axum::extract::Query(query)| Self(query)).map_err(refuse)
    }
}
