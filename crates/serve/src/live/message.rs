//! The messages of a live connection, both ways.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use catchment_decode::Glob;
use catchment_store::live::{Follow, LiveEvent, LiveFilter, LiveMessage, LiveReading, LiveValue};
use catchment_store::shard::DeviceSnapshot;
use catchment_store::snapshot::{Snapshot, SnapshotError};
use serde::{Deserialize, Deserializer, Serialize};

use crate::problem::Problem;

/// Readings or events of one message at most; more are sent as several.
const ITEMS_MAX: usize = 1_000;
/// Patterns of one subscription.
const PATTERNS_MAX: usize = 1_000;
/// Longest pattern and id, in bytes.
const PATTERN_BYTES_MAX: usize = 512;
/// Devices looked at between two messages of a snapshot.
const SNAPSHOT_PAGE: usize = 256;

/// What a client asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Wanted {
    #[serde(deserialize_with = "patterns")]
    device: Vec<Glob>,
    #[serde(deserialize_with = "patterns")]
    metric: Vec<Glob>,
    #[serde(deserialize_with = "patterns")]
    r#type: Vec<Glob>,
    pub(super) snapshot: bool,
}

/// A message of a client.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub(super) enum Operation {
    Subscribe {
        #[serde(deserialize_with = "short")]
        id: String,
        #[serde(flatten)]
        wanted: Wanted,
    },
    Unsubscribe {
        id: String,
    },
}

fn check(pattern: &str) -> Result<Glob, String> {
    match pattern.len() {
        1..=PATTERN_BYTES_MAX => Ok(Glob::new(pattern)),
        bytes => Err(format!("a pattern has {bytes} bytes; 1 to {PATTERN_BYTES_MAX} are allowed")),
    }
}

fn short<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let id = String::deserialize(deserializer)?;
    match id.len() > PATTERN_BYTES_MAX {
        true => Err(serde::de::Error::custom(format!("an id has at most {PATTERN_BYTES_MAX} bytes"))),
        false => Ok(id),
    }
}

/// One pattern or a list of them.
fn patterns<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Glob>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    let list = match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(one) => vec![one],
        OneOrMany::Many(many) => many,
    };
    if list.len() > PATTERNS_MAX {
        return Err(serde::de::Error::custom(format!(
            "a subscription has at most {PATTERNS_MAX} patterns of a kind"
        )));
    }
    list.iter().map(|pattern| check(pattern).map_err(serde::de::Error::custom)).collect()
}

impl Wanted {
    /// Reads the query string; `token` is not ours to read.
    pub(super) fn from_query(query: &[(String, String)]) -> Result<Self, Problem> {
        let mut wanted = Self::default();
        for (name, value) in query {
            let list = match name.as_str() {
                "device" => &mut wanted.device,
                "metric" => &mut wanted.metric,
                "type" => &mut wanted.r#type,
                "snapshot" => {
                    wanted.snapshot = matches!(value.as_str(), "" | "true" | "1");
                    continue;
                }
                "token" => continue,
                other => {
                    return Err(Problem::bad_request(format!("there is no parameter {other}"))
                        .hint("use device, metric, type (each repeatable, with *), snapshot"));
                }
            };
            list.push(check(value).map_err(|message| Problem::bad_request(format!("{name}: {message}")))?);
        }
        Ok(wanted)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.device.is_empty() && self.metric.is_empty() && self.r#type.is_empty()
    }

    pub(super) fn filter(&self, follow: Follow) -> LiveFilter {
        LiveFilter {
            follow,
            devices: self.device.clone(),
            metrics: self.metric.clone(),
            types: self.r#type.clone(),
        }
    }
}

/// A message about the connection.
#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Control<'a> {
    Subscribed(&'a str),
    Unsubscribed(&'a str),
    #[serde(untagged)]
    Lagged {
        lagged: u64,
        id: &'a str,
    },
    #[serde(untagged)]
    Error {
        error: &'static str,
        message: &'a str,
        id: Option<&'a str>,
    },
}

#[derive(Serialize)]
struct ReadingItem<'a> {
    id: &'a str,
    device_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    r#type: Option<&'a str>,
    timestamp: String,
    received_at: String,
    metric: &'a str,
    value: &'a LiveValue,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    snapshot: bool,
}

#[derive(Serialize)]
struct EventItem<'a> {
    id: &'a str,
    device_id: &'a str,
    r#type: &'a str,
    topic: &'a str,
    received_at: String,
    payload: std::borrow::Cow<'a, str>,
    payload_encoding: &'static str,
}

/// JSON of our own messages, which always have one.
pub(super) fn text(message: &impl Serialize) -> String {
    serde_json::to_string(message).unwrap_or_default()
}

fn reading_item<'a>(id: &'a str, reading: &'a LiveReading) -> ReadingItem<'a> {
    ReadingItem {
        id,
        device_id: &reading.device_id,
        r#type: Some(&reading.event_type),
        timestamp: reading.timestamp.to_string(),
        received_at: reading.received_at.to_string(),
        metric: &reading.metric,
        value: &reading.value,
        snapshot: false,
    }
}

fn event_item<'a>(id: &'a str, event: &'a LiveEvent) -> EventItem<'a> {
    let (payload, payload_encoding) = match std::str::from_utf8(&event.payload) {
        Ok(text) => (text.into(), "text"),
        Err(_) => (STANDARD.encode(&event.payload).into(), "base64"),
    };
    EventItem {
        id,
        device_id: &event.device_id,
        r#type: &event.event_type,
        topic: &event.topic,
        received_at: event.received_at.to_string(),
        payload,
        payload_encoding,
    }
}

/// What a message of the hub is on the wire.
pub(super) fn push_texts(id: &str, message: &LiveMessage) -> Vec<String> {
    match message {
        LiveMessage::Readings(readings) => readings
            .chunks(ITEMS_MAX)
            .map(|chunk| text(&chunk.iter().map(|reading| reading_item(id, reading)).collect::<Vec<_>>()))
            .collect(),
        LiveMessage::Events(events) => events
            .chunks(ITEMS_MAX)
            .map(|chunk| text(&chunk.iter().map(|event| event_item(id, event)).collect::<Vec<_>>()))
            .collect(),
        LiveMessage::Lagged(lagged) => vec![text(&Control::Lagged { lagged: *lagged, id })],
    }
}

/// Some devices that a filter wants.
pub(super) struct SnapshotPage {
    pub(super) snapshots: Vec<DeviceSnapshot>,
    pub(super) is_last: bool,
}

/// The next devices, from behind `after` on, at most `left`.
pub(super) async fn snapshots(
    snapshot: &dyn Snapshot,
    filter: &LiveFilter,
    after: &mut Option<Arc<str>>,
    left: &mut usize,
) -> Result<SnapshotPage, SnapshotError> {
    let exact: Option<Vec<Arc<str>>> =
        filter.devices.iter().map(|glob| glob.as_exact().map(Arc::from)).collect();
    if let Some(devices) = exact.filter(|devices| !devices.is_empty()) {
        let mut snapshots = snapshot.latest_of(&devices).await?;
        snapshots.truncate(*left);
        *left -= snapshots.len();
        return Ok(SnapshotPage { snapshots, is_last: true });
    }
    let page = snapshot.devices(after.as_deref(), SNAPSHOT_PAGE).await?;
    let is_last = page.len() < SNAPSHOT_PAGE;
    let wanted =
        |device: &str| filter.devices.is_empty() || filter.devices.iter().any(|glob| glob.matches(device));
    *after = page.last().map(|seen| Arc::clone(&seen.device_id));
    let ids: Vec<_> =
        page.into_iter().map(|seen| seen.device_id).filter(|id| wanted(id)).take(*left).collect();
    let snapshots = snapshot.latest_of(&ids).await?;
    *left -= snapshots.len();
    Ok(SnapshotPage { snapshots, is_last })
}

/// A device's latest values on the wire, if there are any that the filter wants.
pub(super) fn snapshot_text(id: &str, snapshot: &DeviceSnapshot, filter: &LiveFilter) -> Option<String> {
    let wanted =
        |metric: &str| filter.metrics.is_empty() || filter.metrics.iter().any(|glob| glob.matches(metric));
    let items: Vec<_> = snapshot
        .metrics
        .iter()
        .filter(|metric| wanted(&metric.metric))
        .map(|metric| ReadingItem {
            id,
            device_id: &snapshot.device_id,
            r#type: None,
            timestamp: metric.timestamp.to_string(),
            received_at: metric.received_at.to_string(),
            metric: &metric.metric,
            value: &metric.value,
            snapshot: true,
        })
        .collect();
    (!items.is_empty()).then(|| text(&items))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_clients() {
        let operation: Operation = serde_json::from_str(
            r#"{"op":"subscribe","id":"a","device":"t*","metric":["x","y"],"snapshot":true}"#,
        )
        .unwrap();
        let Operation::Subscribe { id, wanted } = operation else { panic!() };
        assert_eq!((id.as_str(), wanted.snapshot), ("a", true));
        let filter = wanted.filter(Follow::Readings);
        assert_eq!((filter.devices.len(), filter.metrics.len(), filter.types.len()), (1, 2, 0));
        let unsubscribe: Operation = serde_json::from_str(r#"{"op":"unsubscribe","id":"a"}"#).unwrap();
        assert_eq!(unsubscribe, Operation::Unsubscribe { id: "a".to_owned() });
        for bad in [
            "",
            "[]",
            r#"{"op":"drop","id":"a"}"#,
            r#"{"op":"subscribe"}"#,
            r#"{"op":"subscribe","id":"a","device":7}"#,
            r#"{"op":"subscribe","id":"a","device":""}"#,
            &format!(r#"{{"op":"subscribe","id":"a","device":"{}"}}"#, "x".repeat(600)),
            &format!(r#"{{"op":"subscribe","id":"{}"}}"#, "x".repeat(600)),
        ] {
            assert!(serde_json::from_str::<Operation>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn query_strings() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let wanted = Wanted::from_query(&[
            pair("device", "a"),
            pair("device", "b*"),
            pair("snapshot", "true"),
            pair("token", "x"),
        ]);
        let wanted = wanted.unwrap();
        assert!(wanted.snapshot && wanted.device.len() == 2 && !wanted.is_empty());
        assert!(Wanted::from_query(&[]).unwrap().is_empty());
        assert!(Wanted::from_query(&[pair("devices", "a")]).is_err());
        assert!(Wanted::from_query(&[pair("metric", "")]).is_err());
    }

    #[test]
    fn messages_about_the_connection() {
        assert_eq!(text(&Control::Subscribed("a")), r#"{"subscribed":"a"}"#);
        assert_eq!(text(&Control::Lagged { lagged: 3, id: "a" }), r#"{"lagged":3,"id":"a"}"#);
        let error = Control::Error { error: "bad_request", message: "no", id: None };
        assert_eq!(text(&error), r#"{"error":"bad_request","message":"no","id":null}"#);
    }
}
