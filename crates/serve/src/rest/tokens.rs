//! Tokens: made, listed without their secrets, removed.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use catchment_store::registry::{NewToken, Role, TokenRecord};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::access::main_realm;
use crate::ServeState;
use crate::auth::Admin;
use crate::extract;
use crate::problem::Problem;

/// What a token allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum TokenRole {
    /// Everything.
    Admin,
    /// Reading and SQL.
    Reader,
    /// Sending as one device.
    Device,
}

impl From<TokenRole> for Role {
    fn from(role: TokenRole) -> Self {
        match role {
            TokenRole::Admin => Self::Admin,
            TokenRole::Reader => Self::Reader,
            TokenRole::Device => Self::Device,
        }
    }
}

impl From<Role> for TokenRole {
    fn from(role: Role) -> Self {
        match role {
            Role::Admin => Self::Admin,
            Role::Reader => Self::Reader,
            Role::Device => Self::Device,
        }
    }
}

/// A token, without its secret.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Token {
    /// For removing it.
    id: String,
    realm: String,
    /// What it is for.
    name: String,
    role: TokenRole,
    /// The device it may send as.
    #[serde(skip_serializing_if = "Option::is_none")]
    device_id: Option<String>,
    /// RFC 3339.
    created_at: String,
}

impl From<TokenRecord> for Token {
    fn from(record: TokenRecord) -> Self {
        Self {
            id: record.id,
            realm: record.realm,
            name: record.name,
            role: record.role.into(),
            device_id: record.device_id,
            created_at: record.created_at.to_string(),
        }
    }
}

/// A token to make.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TokenRequest {
    /// The realm that it is for: `main` if not given.
    #[serde(default = "main_realm")]
    realm: String,
    /// What it is for.
    #[schema(example = "grafana")]
    name: String,
    role: TokenRole,
    /// With role device: which registered device.
    device_id: Option<String>,
}

/// A new token with its secret, which is shown only here.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct NewTokenAnswer {
    #[serde(flatten)]
    record: Token,
    /// The secret: pass it as `Authorization: Bearer …`.
    token: String,
}

/// All tokens, without their secrets.
#[utoipa::path(get, path = "/api/v1/tokens", tag = "tokens", responses((status = 200, body = Vec<Token>)))]
pub(super) async fn list_tokens(
    State(state): State<Arc<ServeState>>,
    _: Admin,
) -> Result<Json<Vec<Token>>, Problem> {
    Ok(Json(state.registry.tokens().await?.into_iter().map(Token::from).collect()))
}

/// Make a token. The secret is in this answer only.
#[utoipa::path(post, path = "/api/v1/tokens", tag = "tokens", request_body = TokenRequest,
    responses((status = 201, body = NewTokenAnswer), (status = 400, body = Problem)))]
pub(super) async fn create_token(
    State(state): State<Arc<ServeState>>,
    _: Admin,
    extract::Json(request): extract::Json<TokenRequest>,
) -> Result<(StatusCode, Json<NewTokenAnswer>), Problem> {
    let new = NewToken {
        realm: &request.realm,
        name: &request.name,
        role: request.role.into(),
        device_id: request.device_id.as_deref(),
    };
    let (record, token) = state.registry.create_token(new).await?;
    Ok((StatusCode::CREATED, Json(NewTokenAnswer { record: record.into(), token })))
}

/// Remove a token; it stops working at once.
#[utoipa::path(delete, path = "/api/v1/tokens/{id}", tag = "tokens", params(("id" = String, Path, description = "The token's id, not its secret")),
    responses((status = 204), (status = 404, body = Problem), (status = 409, description = "It is the last administrator's", body = Problem)))]
pub(super) async fn delete_token(
    State(state): State<Arc<ServeState>>,
    _: Admin,
    extract::Path(id): extract::Path<String>,
) -> Result<StatusCode, Problem> {
    match state.registry.delete_token(&id).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(Problem::not_found("token", &id)),
    }
}
