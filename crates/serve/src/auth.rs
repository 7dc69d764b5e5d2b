//! Who may do what.
//!
//! | role | may |
//! | --- | --- |
//! | admin | everything |
//! | reader | read, and ask in SQL |
//! | device | send, which is the gateway's business; nothing here |
//!
//! The token comes as `Authorization: Bearer …`; a WebSocket, whose browser API has no headers, may say `?token=…`.
//! While every listener is on loopback, requests without a token may read. Pages of foreign sites in the user's browser
//! reach loopback too, so such requests must name a loopback host (against DNS rebinding) and must not carry a foreign
//! `Origin` (against cross-site WebSockets).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use catchment_store::registry::{Identity, Role};
use catchment_types::{DEFAULT_REALM, is_loopback_host, is_loopback_origin};

use crate::ServeState;
use crate::access::{Guest, Refusal};
use crate::problem::Problem;

/// Extractor of handlers that read: admin, reader, or anonymous where that is allowed.
#[derive(Debug, Clone)]
pub struct Reader(pub Guest);

/// Extractor of handlers that change something: admin.
#[derive(Debug, Clone)]
pub struct Admin(pub Guest);

impl FromRequestParts<Arc<ServeState>> for Reader {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &Arc<ServeState>) -> Result<Self, Problem> {
        let guest = identify(parts, state)?;
        match &guest.identity {
            Some(identity) if identity.role == Role::Device => Err(forbidden(identity, "reader or admin")),
            Some(_) | None => Ok(Self(guest)),
        }
    }
}

impl FromRequestParts<Arc<ServeState>> for Admin {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &Arc<ServeState>) -> Result<Self, Problem> {
        let guest = identify(parts, state)?;
        match &guest.identity {
            Some(identity) if identity.role == Role::Admin => Ok(Self(guest)),
            Some(identity) => Err(forbidden(identity, "admin")),
            None => Err(unauthorized("this needs the administrator's token")),
        }
    }
}

fn identify(parts: &Parts, state: &ServeState) -> Result<Guest, Problem> {
    let remote: Option<IpAddr> = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip());
    if let Some(token) = token(parts)? {
        let guest = state.access.identify(&token, remote)?;
        return match &guest.identity {
            Some(identity) if identity.realm != DEFAULT_REALM => Err(other_realm(identity)),
            Some(_) | None => Ok(guest),
        };
    }
    if !state.anonymous {
        return Err(unauthorized("this needs a token"));
    }
    if !host(&parts.headers, &parts.uri).is_some_and(is_loopback_host) {
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            "forbidden",
            "without a token, only requests to a loopback name (localhost, 127.0.0.1, [::1]) are answered",
        )
        .hint(TOKEN_HINT));
    }
    let is_own = |origin: &HeaderValue| origin.to_str().is_ok_and(is_loopback_origin);
    if !parts.headers.get(header::ORIGIN).is_none_or(is_own) {
        let message = "without a token, pages of other sites are not answered";
        return Err(Problem::new(StatusCode::FORBIDDEN, "forbidden", message).hint(TOKEN_HINT));
    }
    Ok(Guest::anonymous(remote))
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Invalid | Refusal::Expired => unauthorized(&refusal.to_string()),
            Refusal::Banned(_) => Self::new(StatusCode::FORBIDDEN, "banned", refusal.to_string()),
        }
    }
}

const TOKEN_HINT: &str =
    "pass Authorization: Bearer …; print the administrator's with `catchment token show`";

/// Tables, latest values and push are not apart by realm yet, so that a token of another realm would see too much.
fn other_realm(identity: &Identity) -> Problem {
    let message = format!(
        "the token {:?} is of the realm {:?}, of which nothing can be asked here yet; its topics are there by MQTT",
        identity.name, identity.realm
    );
    Problem::new(StatusCode::FORBIDDEN, "realm", message)
}

fn unauthorized(message: &str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", message).hint(TOKEN_HINT)
}

fn forbidden(identity: &Identity, wanted: &str) -> Problem {
    let message =
        format!("the token {:?} has the role {}; this needs {wanted}", identity.name, identity.role);
    Problem::new(StatusCode::FORBIDDEN, "forbidden", message).hint(TOKEN_HINT)
}

fn token(parts: &Parts) -> Result<Option<String>, Problem> {
    if let Some(value) = parts.headers.get(header::AUTHORIZATION) {
        let bearer = value.to_str().ok().and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned())
        });
        return match bearer {
            Some(token) => Ok(Some(token)),
            None => Err(unauthorized("the Authorization header is not `Bearer …`")),
        };
    }
    let is_websocket = parts
        .headers
        .get(header::UPGRADE)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
    if !is_websocket {
        return Ok(None);
    }
    // A token has no characters that need percent-encoding.
    let query = parts.uri.query().unwrap_or_default();
    Ok(query.split('&').find_map(|pair| pair.strip_prefix("token=")).map(str::to_owned))
}

fn host<'a>(headers: &'a HeaderMap, uri: &'a Uri) -> Option<&'a str> {
    // HTTP/2 has the authority in the URI.
    uri.authority().map(|authority| authority.as_str()).or_else(|| headers.get(header::HOST)?.to_str().ok())
}
