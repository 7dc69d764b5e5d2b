//! Devices: those that are registered, and those that sent something.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use catchment_store::registry::{DeviceRecord, Labels, NewToken, Role};
use catchment_store::shard::DeviceSeen;
use catchment_types::check_device_id;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::ServeState;
use crate::auth::{Admin, Reader};
use crate::extract;
use crate::params::{decode_cursor, encode_cursor, page_size};
use crate::problem::Problem;
use crate::status::Listener;

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
    /// Whether to make a token for it, too.
    #[serde(default = "yes")]
    token: bool,
}

fn yes() -> bool {
    true
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
    /// How it sends.
    client: ClientSettings,
}

/// Ready to paste into a client.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ClientSettings {
    mqtt: Option<MqttSettings>,
    http: Option<HttpSettings>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct MqttSettings {
    url: String,
    client_id: String,
    username: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    password: Option<String>,
    topic: String,
    /// To try it from a shell.
    command: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct HttpSettings {
    url: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    authorization: Option<String>,
    /// To try it from a shell.
    command: String,
}

const SAMPLE: &str = r#"'{"temperature":21.5}'"#;

impl ClientSettings {
    fn new(device_id: &str, token: Option<&str>, listeners: &[Listener]) -> Self {
        let url = |name: &str| {
            let listener = listeners.iter().find(|listener| listener.name == name);
            listener.map(|listener| listener.url.trim_end_matches('/').to_owned())
        };
        let mqtt = url("mqtt").map(|url| {
            let topic = format!("devices/{device_id}/state");
            let authority = url.rsplit("://").next().unwrap_or_default();
            let (host, port) = authority.rsplit_once(':').unwrap_or((authority, "1883"));
            let password =
                token.map(|token| format!(" -u {} -P {token}", quote(device_id))).unwrap_or_default();
            let host = host.trim_matches(['[', ']']);
            MqttSettings {
                command: format!(
                    "mosquitto_pub -h {host} -p {port}{password} -q 1 -t {} -m {SAMPLE}",
                    quote(&topic)
                ),
                url,
                client_id: device_id.to_owned(),
                username: device_id.to_owned(),
                password: token.map(str::to_owned),
                topic,
            }
        });
        let http = url("http").map(|url| {
            let url = format!("{url}/api/v1/devices/{}/events/state", percent_encode(device_id));
            let header =
                token.map(|token| format!(" -H 'Authorization: Bearer {token}'")).unwrap_or_default();
            HttpSettings {
                command: format!(
                    "curl -X POST{header} -H 'Content-Type: application/json' -d {SAMPLE} {}",
                    quote(&url)
                ),
                url,
                authorization: token.map(|token| format!("Bearer {token}")),
            }
        });
        Self { mqtt, http }
    }
}

/// A word for a POSIX shell.
fn quote(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:%".contains(c);
    match word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

fn percent_encode(segment: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    segment.bytes().map(encode).collect()
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
    for shard in state.shards.iter() {
        for seen in shard.devices(after.as_deref(), wanted as usize) {
            let entry = found.entry(seen.device_id.to_string()).or_default();
            entry.1 = Some(seen);
        }
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
    let record = state.registry.create_device(&new.device_id, new.labels.as_ref()).await?;
    let token = match new.token {
        false => None,
        true => {
            // A token's name is shorter than a device id may be.
            let name: String = new.device_id.chars().take(32).collect();
            let token = NewToken { name: &name, role: Role::Device, device_id: Some(&new.device_id) };
            Some(state.registry.create_token(token).await?.1)
        }
    };
    let client = ClientSettings::new(&new.device_id, token.as_deref(), &state.platform.status().listeners);
    let seen = state.shard(&new.device_id).and_then(|shard| shard.device(&new.device_id));
    let device = Device::new(&new.device_id, Some(record), seen);
    Ok((StatusCode::CREATED, Json(NewDeviceAnswer { device, token, client })))
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
    let seen = state.shard(&device_id).and_then(|shard| shard.device(&device_id));
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
    let seen = state.shard(&device_id).and_then(|shard| shard.device(&device_id));
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(Device::new(&device_id, Some(record), seen))))
}

/// Remove a device's registration and its tokens. What it sent stays.
#[utoipa::path(delete, path = "/api/v1/devices/{device_id}", tag = "devices", params(("device_id" = String, Path)),
    responses((status = 204), (status = 404, description = "It is not registered", body = Problem)))]
pub(super) async fn delete_device(
    State(state): State<Arc<ServeState>>,
    _: Admin,
    extract::Path(device_id): extract::Path<String>,
) -> Result<StatusCode, Problem> {
    match state.registry.delete_device(&device_id).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(Problem::not_found("registered device", &device_id)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_survive_a_shell() {
        let listeners = [("mqtt", "mqtt://[::1]:1884"), ("http", "http://127.0.0.1:8080/")]
            .map(|(name, url)| Listener { name: name.to_owned(), url: url.to_owned() });
        let settings = ClientSettings::new("it's 1", Some("ctm_x"), &listeners);
        assert_eq!(
            settings.mqtt.unwrap().command,
            r#"mosquitto_pub -h ::1 -p 1884 -u 'it'\''s 1' -P ctm_x -q 1 -t 'devices/it'\''s 1/state' -m '{"temperature":21.5}'"#
        );
        let http = settings.http.unwrap();
        assert_eq!(http.url, "http://127.0.0.1:8080/api/v1/devices/it%27s%201/events/state");
        assert!(http.command.contains("-H 'Authorization: Bearer ctm_x'"));
        assert!(ClientSettings::new("x", None, &[]).mqtt.is_none());
    }
}
