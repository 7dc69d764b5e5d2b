//! Devices: those that are registered, and those that sent something.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use catchment_store::registry::{DeviceRecord, Labels, NewToken, Role};
use catchment_store::shard::DeviceSeen;
use catchment_types::{DEFAULT_REALM, check_device_id};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::access::main_realm;
use super::client_settings::{ClientSettings, Secret};
use crate::ServeState;
use crate::auth::{Admin, Reader};
use crate::extract;
use crate::params::{decode_cursor, encode_cursor, page_size};
use crate::problem::Problem;

const PAGE_DEFAULT: u32 = 100;
const PAGE_MAX: u32 = 1_000;

/// A device.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct Device {
    device_id: String,
    /// Whether it is in the registry; a device may send without, as far as the gateway allows it.
    registered: bool,
    #[schema(value_type = Option<Object>)]
    labels: Option<Labels>,
    /// When it was registered, RFC 3339.
    created_at: Option<String>,
    /// When its first known event arrived, RFC 3339.
    first_seen: Option<String>,
    /// When its last event arrived, RFC 3339.
    last_seen: Option<String>,
    /// Known events.
    events: u64,
    /// Distinct metrics.
    metrics: u64,
}

impl Device {
    fn new(device_id: &str, record: Option<DeviceRecord>, seen: Option<DeviceSeen>) -> Self {
        let mut device = Self { device_id: device_id.to_owned(), ..Self::default() };
        if let Some(record) = record {
            device.registered = true;
            device.labels = record.labels;
            device.created_at = Some(record.created_at.to_string());
        }
        if let Some(seen) = seen {
            device.first_seen = Some(seen.first_seen.to_string());
            device.last_seen = Some(seen.last_seen.to_string());
            device.events = seen.events;
            device.metrics = seen.metrics;
        }
        device
    }
}

/// A page of devices.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DevicePage {
    /// By id.
    devices: Vec<Device>,
    /// For the next page; null on the last.
    next_cursor: Option<String>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct DeviceList {
    /// Devices of a page: 100 if not given, at most 1,000.
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// A device to register.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewDevice {
    /// 1 to 256 bytes, without `/`, `+`, `#` and control characters.
    #[schema(example = "truck-7")]
    device_id: String,
    #[schema(value_type = Option<Object>, example = json!({"site": "north"}))]
    labels: Option<Labels>,
    /// The realm that it belongs to: `main` if not given.
    #[serde(default = "main_realm")]
    realm: String,
    /// Whether to make a token for it, too: yes if not given, unless it gets a password.
    token: Option<bool>,
    /// Whether to make a password for it, too.
    #[serde(default)]
    password: bool,
}

/// Labels of a device.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DeviceUpdate {
    #[schema(value_type = Option<Object>)]
    labels: Option<Labels>,
}

/// A device that was registered.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct NewDeviceAnswer {
    device: Device,
    /// Its token, shown only here.
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    /// Its password, shown only here.
    #[serde(skip_serializing_if = "Option::is_none")]
    password: Option<String>,
    /// How it sends.
    client: ClientSettings,
}

/// Devices by id: registered ones, and those that sent something.
#[utoipa::path(get, path = "/api/v1/devices", tag = "devices", params(DeviceList), responses((status = 200, body = DevicePage)))]
pub(super) async fn list_devices(
    State(state): State<Arc<ServeState>>,
    _: Reader,
    extract::Query(list): extract::Query<DeviceList>,
) -> Result<Json<DevicePage>, Problem> {
    let limit = page_size(list.limit, PAGE_DEFAULT, PAGE_MAX);
    let after: Option<String> = decode_cursor(list.cursor.as_deref())?;
    // One more than asked from each source: the first `limit` of them all are then the page, and one more tells that
    // there is a next.
    let wanted = limit + 1;
    let mut found: BTreeMap<String, (Option<DeviceRecord>, Option<DeviceSeen>)> = BTreeMap::new();
    for record in state.registry.devices(after.as_deref(), wanted).await? {
        let entry = found.entry(record.device_id.clone()).or_default();
        entry.0 = Some(record);
    }
    for seen in state.snapshot.devices(after.as_deref(), wanted as usize).await? {
        let entry = found.entry(seen.device_id.to_string()).or_default();
        entry.1 = Some(seen);
    }
    let more = found.len() > limit as usize;
    let devices = found.into_iter().take(limit as usize);
    let devices: Vec<_> = devices.map(|(id, (record, seen))| Device::new(&id, record, seen)).collect();
    let next_cursor = devices.last().filter(|_| more).map(|last| encode_cursor(&last.device_id));
    Ok(Json(DevicePage { devices, next_cursor }))
}

/// Register a device, with a token of its own unless told otherwise.
#[utoipa::path(post, path = "/api/v1/devices", tag = "devices", request_body = NewDevice,
    responses((status = 201, body = NewDeviceAnswer), (status = 400, body = Problem), (status = 409, description = "It is registered already", body = Problem)))]
pub(super) async fn create_device(
    State(state): State<Arc<ServeState>>,
    _: Admin,
    extract::Json(new): extract::Json<NewDevice>,
) -> Result<(StatusCode, Json<NewDeviceAnswer>), Problem> {
    let NewDevice { device_id, labels, realm, token, password } = new;
    let record = state.registry.create_device_in(&realm, &device_id, labels.as_ref()).await?;
    let token = match token.unwrap_or(!password) {
        false => None,
        true => {
            // A token's name is shorter than a device id may be.
            let name: String = device_id.chars().take(32).collect();
            let new =
                NewToken { realm: &realm, name: &name, role: Role::Device, device_id: Some(&device_id) };
            Some(state.registry.create_token(new).await?.1)
        }
    };
    let password = match password {
        true => Some(state.registry.set_password(&realm, &device_id, None).await?),
        false => None,
    };
    let secret = token.as_deref().map(Secret::Token).or(password.as_deref().map(Secret::Password));
    let client = ClientSettings::new(&realm, &device_id, secret, &state.platform.status().listeners);
    // It is made: that its events cannot be asked for now changes nothing about it.
    let seen = match realm == DEFAULT_REALM {
        true => state.snapshot.seen(&device_id).await.unwrap_or_default(),
        false => None,
    };
    let device = Device::new(&device_id, Some(record), seen);
    Ok((StatusCode::CREATED, Json(NewDeviceAnswer { device, token, password, client })))
}

/// A password to set.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PasswordRequest {
    /// 8 to 256 bytes; one is made if it is not given.
    password: Option<String>,
}

/// The password that holds now, which is shown only here.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PasswordAnswer {
    password: String,
    /// How the device sends.
    client: ClientSettings,
}

/// Which realm a device is of.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct InRealm {
    /// `main` if not given.
    #[serde(default = "main_realm")]
    realm: String,
}

/// Set a device's password. Whoever is connected by the old one is sent away.
#[utoipa::path(put, path = "/api/v1/devices/{device_id}/password", tag = "devices", params(("device_id" = String, Path), InRealm),
    request_body = PasswordRequest,
    responses((status = 200, body = PasswordAnswer), (status = 400, body = Problem), (status = 404, description = "It is not registered", body = Problem)))]
pub(super) async fn put_password(
    State(state): State<Arc<ServeState>>,
    _: Admin,
    extract::Path(device_id): extract::Path<String>,
    extract::Query(InRealm { realm }): extract::Query<InRealm>,
    extract::Json(request): extract::Json<PasswordRequest>,
) -> Result<Json<PasswordAnswer>, Problem> {
    let password = state.registry.set_password(&realm, &device_id, request.password.as_deref()).await?;
    tracing::info!(realm, device_id, "a password was set");
    let secret = Some(Secret::Password(&password));
    let client = ClientSettings::new(&realm, &device_id, secret, &state.platform.status().listeners);
    Ok(Json(PasswordAnswer { password, client }))
}

/// Take a device's password away. Whoever is connected by it is sent away.
#[utoipa::path(delete, path = "/api/v1/devices/{device_id}/password", tag = "devices", params(("device_id" = String, Path), InRealm),
    responses((status = 204), (status = 404, description = "It has none", body = Problem)))]
pub(super) async fn delete_password(
    State(state): State<Arc<ServeState>>,
    _: Admin,
    extract::Path(device_id): extract::Path<String>,
    extract::Query(InRealm { realm }): extract::Query<InRealm>,
) -> Result<StatusCode, Problem> {
    match state.registry.delete_password(&realm, &device_id).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(Problem::not_found("password of the device", &device_id)),
    }
}

/// One device.
#[utoipa::path(get, path = "/api/v1/devices/{device_id}", tag = "devices", params(("device_id" = String, Path)),
    responses((status = 200, body = Device), (status = 404, description = "Neither registered nor seen", body = Problem)))]
pub(super) async fn get_device(
    State(state): State<Arc<ServeState>>,
    _: Reader,
    extract::Path(device_id): extract::Path<String>,
) -> Result<Json<Device>, Problem> {
    check_device_id(&device_id)?;
    let record = state.registry.device(&device_id).await?;
    let seen = state.snapshot.seen(&device_id).await?;
    if record.is_none() && seen.is_none() {
        return Err(Problem::not_found("device", &device_id));
    }
    Ok(Json(Device::new(&device_id, record, seen)))
}

/// Register a device, or replace its labels.
#[utoipa::path(put, path = "/api/v1/devices/{device_id}", tag = "devices", params(("device_id" = String, Path)), request_body = DeviceUpdate,
    responses((status = 200, body = Device), (status = 201, body = Device), (status = 400, body = Problem)))]
pub(super) async fn put_device(
    State(state): State<Arc<ServeState>>,
    _: Admin,
    extract::Path(device_id): extract::Path<String>,
    extract::Json(update): extract::Json<DeviceUpdate>,
) -> Result<(StatusCode, Json<Device>), Problem> {
    let (record, is_new) = state.registry.put_device(&device_id, update.labels.as_ref()).await?;
    let seen = state.snapshot.seen(&device_id).await.unwrap_or_default();
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(Device::new(&device_id, Some(record), seen))))
}

/// Remove a device's registration, its tokens and its password. What it sent stays.
#[utoipa::path(delete, path = "/api/v1/devices/{device_id}", tag = "devices", params(("device_id" = String, Path), InRealm),
    responses((status = 204), (status = 404, description = "It is not registered", body = Problem)))]
pub(super) async fn delete_device(
    State(state): State<Arc<ServeState>>,
    _: Admin,
    extract::Path(device_id): extract::Path<String>,
    extract::Query(InRealm { realm }): extract::Query<InRealm>,
) -> Result<StatusCode, Problem> {
    match state.registry.delete_device_in(&realm, &device_id).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(Problem::not_found("registered device", &device_id)),
    }
}
