//! Keeps pages of other sites out while clients need no credentials.

use axum::http::{HeaderMap, StatusCode, Uri, header};
use catchment_types::{is_loopback_host, is_loopback_origin};

use super::HttpError;
use crate::gateway::Gateway;

/// Refuses what a browser sends for a page that is not of this machine; to be asked before a client without credentials is
/// let in.
pub(crate) fn refuse_foreign_page(
    gateway: &Gateway,
    headers: &HeaderMap,
    uri: &Uri,
) -> Result<(), HttpError> {
    if !gateway.admission.admits_anonymous() {
        return Ok(());
    }
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    // HTTP/2 has the authority in the URI. A client without either is no browser.
    let host = uri.authority().map(|authority| authority.as_str()).or_else(|| text(header::HOST));
    if host.is_none_or(is_loopback_host) && text(header::ORIGIN).is_none_or(is_loopback_origin) {
        return Ok(());
    }
    let message = "without a token, only clients and pages of this machine are let in";
    Err(HttpError::new(StatusCode::FORBIDDEN, "forbidden", message)
        .hint("pass Authorization: Bearer …, or use a loopback name (localhost, 127.0.0.1, [::1])"))
}
