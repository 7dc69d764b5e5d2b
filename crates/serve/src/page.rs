//! The status page at `/`, and the OpenAPI document: what a browser finds first. Both are open to everybody on the network
//! that HTTP listens on; neither holds data.

use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderName, header};
use axum::response::IntoResponse;
use axum::routing::get;

use crate::ServeState;

const PAGE: &str = include_str!("page/status.html");

/// The page loads nothing from elsewhere and cannot be framed.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
    img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(crate) fn router(openapi: String) -> Router<Arc<ServeState>> {
    let openapi: Arc<str> = openapi.into();
    Router::new().route("/", get(page)).route(
        "/api/v1/openapi.json",
        get(async move || ([(header::CONTENT_TYPE, "application/json")], openapi.to_string())),
    )
}

async fn page() -> impl IntoResponse {
    const HEADERS: [(HeaderName, &str); 4] = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (HEADERS, PAGE)
}
