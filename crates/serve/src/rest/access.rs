//! Who may do what, and who may not: realms with their limits, rules about topics, bans. In force as soon as it is answered.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use catchment_store::registry::{AclRecord, BanRecord, Banned, RealmRecord};
use catchment_types::{DEFAULT_REALM, RateLimits, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ServeState;
use crate::auth::Admin;
use crate::extract;
use crate::problem::Problem;

/// Where a realm may be left out, it is this.
pub(super) fn main_realm() -> String {
    DEFAULT_REALM.to_owned()
}

/// Rates; 0: without a limit.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Limits {
    messages_per_s: u32,
    /// Of payload.
    bytes_per_s: u64,
    connects_per_s: u32,
    /// How many seconds' worth may come at once; 0 is 1.
    burst_s: u32,
}

impl From<RateLimits> for Limits {
    fn from(limits: RateLimits) -> Self {
        let RateLimits { messages_per_s, bytes_per_s, connects_per_s, burst_s } = limits;
        Self { messages_per_s, bytes_per_s, connects_per_s, burst_s }
    }
}

impl From<Limits> for RateLimits {
    fn from(limits: Limits) -> Self {
        let Limits { messages_per_s, bytes_per_s, connects_per_s, burst_s } = limits;
        Self { messages_per_s, bytes_per_s, connects_per_s, burst_s }
    }
}

/// A space of topics and devices of its own.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Realm {
    name: String,
    /// Of all its devices together.
    limits: Limits,
    /// Of each of its devices.
    device_limits: Limits,
}

impl From<&RealmRecord> for Realm {
    fn from(record: &RealmRecord) -> Self {
        let (limits, device_limits) = (record.limits.into(), record.device_limits.into());
        Self { name: record.name.clone(), limits, device_limits }
    }
}

/// Limits of a realm; what is left out is not limited.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RealmUpdate {
    limits: Limits,
    device_limits: Limits,
}

/// All realms.
#[utoipa::path(get, path = "/api/v1/access/realms", tag = "access", responses((status = 200, body = Vec<Realm>)))]
pub(super) async fn list_realms(State(state): State<Arc<ServeState>>, _: Admin) -> Json<Vec<Realm>> {
    Json(state.registry.access().realms.values().map(Realm::from).collect())
}

/// Make a realm, or change the limits of one.
#[utoipa::path(put, path = "/api/v1/access/realms/{id}", tag = "access", params(("id" = String, Path, description = "The realm's name")),
    request_body = RealmUpdate, responses((status = 200), (status = 201), (status = 400, body = Problem)))]
pub(super) async fn put_realm(
    State(state): State<Arc<ServeState>>,
    _: Admin,
    extract::Path(name): extract::Path<String>,
    extract::Json(update): extract::Json<RealmUpdate>,
) -> Result<StatusCode, Problem> {
    let is_new = state.registry.put_realm(&name, update.limits.into(), update.device_limits.into()).await?;
    tracing::info!(realm = name, ?update, "a realm was set");
    Ok(if is_new { StatusCode::CREATED } else { StatusCode::OK })
}

/// A rule about topics. One that denies is stronger than any that allows; what no rule speaks of is decided by the role.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Rule {
    /// For removing it; made by the server.
    #[serde(default)]
    id: String,
    #[serde(default = "main_realm")]
    realm: String,
    /// `all`, `readers`, `devices` or `device:ID`. Administrators are bound by no rule.
    #[schema(example = "devices")]
    subject: String,
    /// `publish`, `subscribe` or `any`.
    #[schema(example = "subscribe")]
    action: String,
    /// `allow` or `deny`.
    #[schema(example = "allow")]
    effect: String,
    /// An MQTT filter; whole levels may be `{device_id}`, `{client_id}`, `{username}`, `{realm}`.
    #[schema(example = "site/{device_id}/#")]
    filter: String,
}

impl From<&AclRecord> for Rule {
    fn from(record: &AclRecord) -> Self {
        let AclRecord { id, realm, subject, action, effect, filter, .. } = record.clone();
        Self { id, realm, subject, action, effect, filter }
    }
}

/// All rules about topics.
#[utoipa::path(get, path = "/api/v1/access/acl", tag = "access", responses((status = 200, body = Vec<Rule>)))]
pub(super) async fn list_rules(State(state): State<Arc<ServeState>>, _: Admin) -> Json<Vec<Rule>> {
    Json(state.registry.access().acl.iter().map(Rule::from).collect())
}

/// Add a rule. Subscriptions that it no longer allows end at once.
#[utoipa::path(post, path = "/api/v1/access/acl", tag = "access", request_body = Rule,
    responses((status = 201, body = Rule), (status = 400, body = Problem), (status = 404, description = "No such realm", body = Problem)))]
pub(super) async fn create_rule(
    State(state): State<Arc<ServeState>>,
    _: Admin,
    extract::Json(rule): extract::Json<Rule>,
) -> Result<(StatusCode, Json<Rule>), Problem> {
    let Rule { id, realm, subject, action, effect, filter } = rule;
    let record = AclRecord { id, realm, subject, action, effect, filter, created_at: Timestamp(0) };
    state.access.check_rule(&record).map_err(Problem::bad_request)?;
    let record = state.registry.create_acl(record).await?;
    tracing::info!(?record, "a rule was added");
    Ok((StatusCode::CREATED, Json(Rule::from(&record))))
}

/// Remove a rule.
#[utoipa::path(delete, path = "/api/v1/access/acl/{id}", tag = "access", params(("id" = String, Path)),
    responses((status = 204), (status = 404, body = Problem)))]
pub(super) async fn delete_rule(
    State(state): State<Arc<ServeState>>,
    _: Admin,
    extract::Path(id): extract::Path<String>,
) -> Result<StatusCode, Problem> {
    match state.registry.delete_acl(&id).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(Problem::not_found("rule", &id)),
    }
}

/// Somebody who is kept out.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Ban {
    id: String,
    realm: String,
    /// `device`, `client` or `address`.
    kind: &'static str,
    value: String,
    reason: String,
    /// RFC 3339; null: until it is lifted.
    until: Option<String>,
    /// Whether it came of failed logins.
    automatic: bool,
}

impl Ban {
    fn new(record: &BanRecord, automatic: bool) -> Self {
        Self {
            id: record.id.clone(),
            realm: record.realm.clone(),
            kind: record.banned.kind(),
            value: record.banned.value(),
            reason: record.reason.clone(),
            until: record.until.map(|until| until.to_string()),
            automatic,
        }
    }
}

/// Whom to keep out.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewBan {
    /// `device`, `client` (an MQTT client id) or `address` (one, or a network as ADDRESS/BITS).
    #[schema(example = "address")]
    kind: String,
    #[schema(example = "203.0.113.0/24")]
    value: String,
    #[serde(default = "main_realm")]
    realm: String,
    #[serde(default)]
    reason: String,
    /// For how long; without it, until it is lifted.
    seconds: Option<u32>,
}

/// Who is kept out now.
#[utoipa::path(get, path = "/api/v1/access/bans", tag = "access", responses((status = 200, body = Vec<Ban>)))]
pub(super) async fn list_bans(State(state): State<Arc<ServeState>>, _: Admin) -> Json<Vec<Ban>> {
    let (now, access) = (Timestamp::now(), state.registry.access());
    let by_hand = access.bans.iter().filter(|ban| ban.holds(now)).map(|ban| Ban::new(ban, false));
    let automatic = state.access.automatic_bans();
    Json(by_hand.chain(automatic.iter().map(|ban| Ban::new(ban, true))).collect())
}

/// Keep somebody out. Who is connected is sent away at once.
#[utoipa::path(post, path = "/api/v1/access/bans", tag = "access", request_body = NewBan,
    responses((status = 201, body = Ban), (status = 400, body = Problem)))]
pub(super) async fn create_ban(
    State(state): State<Arc<ServeState>>,
    _: Admin,
    extract::Json(new): extract::Json<NewBan>,
) -> Result<(StatusCode, Json<Ban>), Problem> {
    let now = Timestamp::now();
    let lasts = |seconds: u32| Duration::from_secs(seconds.into()).as_micros();
    let end = |seconds| now.as_micros().saturating_add(i64::try_from(lasts(seconds)).unwrap_or(i64::MAX));
    let record = BanRecord {
        id: String::new(),
        realm: new.realm,
        banned: Banned::parse(&new.kind, &new.value)?,
        reason: new.reason,
        until: new.seconds.map(|seconds| Timestamp(end(seconds))),
        created_at: now,
    };
    let record = state.registry.create_ban(record).await?;
    tracing::info!(?record, "a ban was set");
    Ok((StatusCode::CREATED, Json(Ban::new(&record, false))))
}

/// Lift a ban.
#[utoipa::path(delete, path = "/api/v1/access/bans/{id}", tag = "access", params(("id" = String, Path)),
    responses((status = 204), (status = 404, body = Problem)))]
pub(super) async fn delete_ban(
    State(state): State<Arc<ServeState>>,
    _: Admin,
    extract::Path(id): extract::Path<String>,
) -> Result<StatusCode, Problem> {
    if state.access.lift_automatic(&id) || state.registry.delete_ban(&id).await? {
        tracing::info!(id, "a ban was lifted");
        return Ok(StatusCode::NO_CONTENT);
    }
    Err(Problem::not_found("ban", &id))
}
