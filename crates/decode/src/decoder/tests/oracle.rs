//! The same decoding, naively: a tree by serde_json, recursion, owned names.

use std::fmt;

use catchment_types::{Reading, Timestamp, Value};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use super::show;
use crate::time;

/// A tree that keeps duplicate keys and their order.
#[derive(Debug, Clone, PartialEq)]
enum Json {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Array(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tree;
        impl<'de> Visitor<'de> for Tree {
            type Value = Json;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }
            fn visit_unit<E>(self) -> Result<Json, E> {
                Ok(Json::Null)
            }
            fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
                Ok(Json::Bool(value))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
                Ok(Json::Int(value))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
                Ok(i64::try_from(value).map_or(Json::Float(value as f64), Json::Int))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
                Ok(Json::Float(value))
            }
            fn visit_str<E>(self, value: &str) -> Result<Json, E> {
                Ok(Json::Text(value.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
                let mut array = Vec::new();
                while let Some(item) = items.next_element()? {
                    array.push(item);
                }
                Ok(Json::Array(array))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Json, A::Error> {
                let mut object = Vec::new();
                while let Some(field) = fields.next_entry()? {
                    object.push(field);
                }
                Ok(Json::Object(object))
            }
        }
        deserializer.deserialize_any(Tree)
    }
}

impl Json {
    fn number(&self) -> Option<f64> {
        match self {
            Self::Int(number) => Some(*number as f64),
            Self::Float(number) => Some(*number),
            _ => None,
        }
    }

    fn time(&self) -> Option<Timestamp> {
        match self {
            Self::Int(number) => time::from_integer(*number),
            // A number beyond i64 is no time; others with a fraction are.
            Self::Float(number) => time::from_float(*number).filter(|_| *number < 9.2e18),
            Self::Text(text) => time::from_text(text),
            Self::Object(fields) => {
                fields.iter().find(|(key, _)| key == "value" || key == "@value")?.1.time()
            }
            _ => None,
        }
    }
}

/// The readings, shown; nothing if it is not JSON.
pub(super) fn decode(payload: &[u8], arrival: Timestamp) -> Option<Vec<String>> {
    let payload = payload.strip_prefix("\u{feff}".as_bytes()).unwrap_or(payload);
    let json: Json = serde_json::from_slice(payload).ok()?;
    let mut shown = Vec::new();
    match json {
        Json::Object(fields) => set(&fields, arrival, &mut shown),
        Json::Array(items) if matches!(items.first(), Some(Json::Object(_))) => {
            for item in &items {
                if let Json::Object(fields) = item {
                    set(fields, arrival, &mut shown);
                }
            }
        }
        other => value("value", &other, arrival, &mut shown),
    }
    Some(shown)
}

fn set(fields: &[(String, Json)], arrival: Timestamp, shown: &mut Vec<String>) {
    let time_at = ["timestamp", "ts", "dateObserved"]
        .iter()
        .find_map(|path| fields.iter().position(|(key, value)| key == path && *value != Json::Null));
    let latest = Timestamp(arrival.0 + Timestamp::DAY);
    let time = time_at
        .and_then(|at| fields[at].1.time())
        .filter(|time| (time::EARLIEST..=latest).contains(time))
        .unwrap_or(arrival);
    let has = |names: &[&str]| {
        fields.iter().any(|(key, value)| names.contains(&key.as_str()) && value.number().is_some())
    };
    let (latitudes, longitudes) = (["lat", "latitude"], ["lon", "lng", "long", "longitude"]);
    let position = has(&latitudes) && has(&longitudes);
    let mut rest = Vec::new();
    for (at, (key, value)) in fields.iter().enumerate() {
        let name = match key.as_str() {
            key if position && latitudes.contains(&key) => "latitude",
            key if position && longitudes.contains(&key) => "longitude",
            key => key,
        };
        if Some(at) != time_at {
            rest.push((name.to_owned(), value.clone()));
        }
    }
    object("", &rest, time, shown);
}

fn object(prefix: &str, fields: &[(String, Json)], time: Timestamp, shown: &mut Vec<String>) {
    let join = |key: &str| if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") };
    let is_point = fields.contains(&("type".to_owned(), Json::Text("Point".to_owned())));
    let coordinates = fields.iter().rev().find_map(|(key, value)| match value {
        Json::Array(items) if key == "coordinates" => {
            let flat = !items.iter().any(|item| matches!(item, Json::Array(_) | Json::Object(_)));
            (flat && (2..=3).contains(&items.len())).then_some(items)
        }
        _ => None,
    });
    let point = coordinates.filter(|items| is_point && items.iter().all(|item| item.number().is_some()));
    for (name, item) in ["longitude", "latitude", "altitude"].iter().zip(point.into_iter().flatten()) {
        value(&join(name), item, time, shown);
    }
    for (key, field) in fields {
        if point.is_none() || (key != "type" && key != "coordinates") {
            nested(&join(key), prefix.is_empty() && key.is_empty(), field, time, shown);
        }
    }
}

/// A field whose name may be empty: its own fields then begin with a dot.
fn nested(name: &str, is_empty: bool, field: &Json, time: Timestamp, shown: &mut Vec<String>) {
    if !is_empty {
        return value(name, field, time, shown);
    }
    // Under a stand-in that no document has, which is taken off again.
    let mut inner = Vec::new();
    value("\u{e000}", field, time, &mut inner);
    shown.extend(
        inner.iter().map(|reading| reading.replacen('\u{e000}', "", 1)).filter(|r| !r.starts_with('=')),
    );
}

fn value(name: &str, json: &Json, time: Timestamp, shown: &mut Vec<String>) {
    let value_of = match json {
        Json::Null => return,
        Json::Bool(bool) => Value::Bool(*bool),
        Json::Int(number) => Value::Number(*number as f64),
        Json::Float(number) => Value::Number(*number),
        Json::Text(text) => Value::Text(text),
        Json::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                value(&format!("{name}.{at}"), item, time, shown);
            }
            return;
        }
        Json::Object(fields) => return object(name, fields, time, shown),
    };
    if !name.chars().any(|c| c.is_ascii_control()) {
        shown.push(show(&Reading { timestamp: time, metric: name, value: value_of }));
    }
}
