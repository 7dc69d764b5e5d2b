//! `catchment device …`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Client, print, print_table, segment};
use crate::cli::DeviceCommand;

const PATH: &str = "/api/v1/devices";

#[derive(Debug, Deserialize)]
struct Page {
    devices: Vec<Device>,
    next_cursor: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Device {
    device_id: String,
    registered: bool,
    labels: Option<Map<String, Value>>,
    created_at: Option<String>,
    first_seen: Option<String>,
    last_seen: Option<String>,
    events: u64,
    metrics: u64,
}

#[derive(Debug, Deserialize)]
struct Added {
    token: Option<String>,
    password: Option<String>,
    client: Value,
}

#[derive(Debug, Deserialize)]
struct PasswordSet {
    password: String,
    client: Value,
}

#[derive(Debug, Deserialize)]
struct Snapshot {
    metrics: BTreeMap<String, Latest>,
}

#[derive(Debug, Deserialize)]
struct Latest {
    value: Value,
    timestamp: String,
}

/// Runs a command about devices.
///
/// # Errors
/// The platform cannot be reached or refuses.
pub(crate) fn device(command: DeviceCommand) -> anyhow::Result<()> {
    match command {
        DeviceCommand::Add { id, labels, password, no_token, realm, client } => {
            let labels: Map<String, Value> =
                labels.into_iter().map(|(key, value)| (key, value.into())).collect();
            let labels = if labels.is_empty() { Value::Null } else { Value::Object(labels) };
            let body = json!({
                "device_id": id, "labels": labels, "realm": realm, "token": !no_token && !password, "password": password,
            });
            let added: Added = Client::new(&client)?.call("POST", PATH, Some(&body))?;
            print(&format!("registered {id}\n"))?;
            print_settings(&added.client)?;
            match (added.token, added.password) {
                (Some(token), _) => print(&format!("its token, shown this once:\n{token}\n")),
                (None, Some(password)) => print(&format!("its password, shown this once:\n{password}\n")),
                (None, None) => Ok(()),
            }
        }
        DeviceCommand::Password { id, remove: true, realm, client, .. } => {
            let path = format!("{PATH}/{}/password?realm={}", segment(&id), segment(&realm));
            Client::new(&client)?.call::<Value>("DELETE", &path, None)?;
            print(&format!("{id} has no password any more\n"))
        }
        DeviceCommand::Password { id, stdin, realm, client, .. } => {
            let given = stdin.then(|| std::io::stdin().lines().next().transpose()).transpose()?.flatten();
            let path = format!("{PATH}/{}/password?realm={}", segment(&id), segment(&realm));
            let body = json!({ "password": given });
            let set: PasswordSet = Client::new(&client)?.call("PUT", &path, Some(&body))?;
            print(&format!("{id} has a new password\n"))?;
            print_settings(&set.client)?;
            match given {
                Some(_) => Ok(()),
                None => print(&format!("shown this once:\n{}\n", set.password)),
            }
        }
        DeviceCommand::List { client } => list(&Client::new(&client)?),
        DeviceCommand::Show { id, client } => show(&Client::new(&client)?, &id),
        DeviceCommand::Remove { id, realm, client } => {
            let path = format!("{PATH}/{}?realm={}", segment(&id), segment(&realm));
            Client::new(&client)?.call::<Value>("DELETE", &path, None)?;
            print(&format!("removed {id}; what it sent stays\n"))
        }
    }
}

/// How a device sends, ready to paste.
fn print_settings(settings: &Value) -> anyhow::Result<()> {
    let text = |path: &str| settings.pointer(path).and_then(Value::as_str);
    if let (Some(host), Some(username)) = (text("/mqtt/host"), text("/mqtt/username")) {
        let port = settings.pointer("/mqtt/port").and_then(Value::as_u64).unwrap_or(1883);
        print(&format!(
            "  host {host}  port {port}  user {username}  topic {}\n",
            text("/mqtt/topic").unwrap_or_default()
        ))?;
    }
    for path in ["/mqtt/command", "/mqtt/python", "/http/command"] {
        for line in text(path).into_iter().flat_map(str::lines) {
            print(&format!("  {line}\n"))?;
        }
    }
    Ok(())
}

fn list(client: &Client) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    let mut cursor = None;
    loop {
        let after = cursor.map(|cursor: String| format!("&cursor={}", segment(&cursor))).unwrap_or_default();
        let page: Page = client.get(&format!("{PATH}?limit=1000{after}"))?;
        rows.extend(page.devices.iter().map(|device| {
            let registered = if device.registered { "yes" } else { "no" };
            let seen = device.last_seen.clone().unwrap_or_default();
            let (events, metrics) = (device.events.to_string(), device.metrics.to_string());
            vec![device.device_id.clone(), registered.to_owned(), seen, events, metrics, labels(device)]
        }));
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    print_table(&["device", "registered", "last seen", "events", "metrics", "labels"], &rows)
}

fn show(client: &Client, id: &str) -> anyhow::Result<()> {
    let path = format!("{PATH}/{}", segment(id));
    let device: Device = client.get(&path)?;
    let registered = match &device.created_at {
        Some(created_at) => format!("since {created_at}"),
        None => "no".to_owned(),
    };
    let rows = [
        ("device", device.device_id.clone()),
        ("registered", registered),
        ("labels", labels(&device)),
        ("first seen", device.first_seen.clone().unwrap_or_default()),
        ("last seen", device.last_seen.clone().unwrap_or_default()),
        ("events", device.events.to_string()),
    ];
    for (name, value) in rows {
        print(&format!("{name:<11} {value}\n"))?;
    }
    if device.metrics == 0 {
        return Ok(());
    }
    let snapshot: Snapshot = client.get(&format!("{path}/snapshot"))?;
    print("\n")?;
    print_table(&["metric", "value", "timestamp"], &metrics(&snapshot.metrics))
}

fn metrics(metrics: &BTreeMap<String, Latest>) -> Vec<Vec<String>> {
    let value = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    metrics
        .iter()
        .map(|(name, latest)| vec![name.clone(), value(&latest.value), latest.timestamp.clone()])
        .collect()
}

fn labels(device: &Device) -> String {
    let labels = device.labels.iter().flatten();
    let pair = |(key, value): (&String, &Value)| match value.as_str() {
        Some(text) => format!("{key}={text}"),
        None => format!("{key}={value}"),
    };
    labels.map(pair).collect::<Vec<_>>().join(" ")
}
