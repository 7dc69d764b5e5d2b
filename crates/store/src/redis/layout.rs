//! Names of keys and fields, and what stands in them. The head of the folder's module tells the layout.

use std::sync::Arc;

use catchment_types::Timestamp;

use crate::live::LiveValue;
use crate::shard::{DeviceSeen, DeviceSnapshot, DeviceState, MetricSnapshot, MetricState};

const FIRST_SEEN: &str = "@first_seen";
const LAST_SEEN: &str = "@last_seen";
const EVENTS: &str = "@events";
const OFFSET: &str = "@offset";
/// Fields of a hash that are no metrics: these, and `@epoch`.
const OWN_FIELDS: u64 = 5;

/// Names of keys and channels.
#[derive(Debug)]
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// The prefix and a name.
    pub(super) fn of(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    pub(super) fn snapshot(&self, realm: &str, device_id: &str) -> String {
        format!("{}snapshot:{realm}:{device_id}", self.prefix)
    }

    pub(super) fn devices(&self, realm: &str) -> String {
        format!("{}devices:{realm}", self.prefix)
    }

    pub(super) fn metrics(&self, realm: &str) -> String {
        format!("{}metrics:{realm}", self.prefix)
    }
}

/// The field of a metric.
pub(super) fn field_of(metric: &str) -> String {
    if metric.starts_with('@') { format!("@{metric}") } else { metric.to_owned() }
}

/// The metric of a field, if it is one's.
fn metric_of(field: &str) -> Option<&str> {
    match field.strip_prefix('@') {
        None => Some(field),
        Some(rest) => rest.starts_with('@').then_some(rest),
    }
}

/// What stands in the field of a metric.
pub(super) fn text_of(metric: &MetricState) -> String {
    // A number is finite, a text is a text: both have JSON.
    let value = serde_json::to_string(&metric.value).unwrap_or_default();
    format!(
        r#"{{"timestamp":{},"received_at":{},"offset":{},"value":{value}}}"#,
        metric.timestamp.as_micros(),
        metric.received_at.as_micros(),
        metric.offset
    )
}

/// The way back. Not by a JSON reader: numbers must come back to the last bit.
fn metric_state(metric: &str, text: &str) -> Option<MetricState> {
    let (timestamp, rest) = text.strip_prefix(r#"{"timestamp":"#)?.split_once(r#","received_at":"#)?;
    let (received_at, rest) = rest.split_once(r#","offset":"#)?;
    let (offset, rest) = rest.split_once(r#","value":"#)?;
    let value = match rest.strip_suffix('}')? {
        "true" => LiveValue::Bool(true),
        "false" => LiveValue::Bool(false),
        text if text.starts_with('"') => LiveValue::Text(serde_json::from_str::<String>(text).ok()?.into()),
        number => LiveValue::Number(number.parse().ok().filter(|number: &f64| number.is_finite())?),
    };
    Some(MetricState {
        metric: metric.into(),
        timestamp: Timestamp(timestamp.parse().ok()?),
        received_at: Timestamp(received_at.parse().ok()?),
        offset: offset.parse().ok()?,
        value,
    })
}

/// A device from its hash; nothing if there is none. Fields that nobody of ours wrote are left out.
pub(super) fn device_state(device_id: &str, fields: Vec<(Vec<u8>, Vec<u8>)>) -> Option<DeviceState> {
    if fields.is_empty() {
        return None;
    }
    let mut state = DeviceState {
        device_id: device_id.into(),
        first_seen: Timestamp(0),
        last_seen: Timestamp(0),
        events: 0,
        counted_to: 0,
        metrics: Vec::with_capacity(fields.len()),
    };
    for (field, text) in &fields {
        let (Ok(field), Ok(text)) = (std::str::from_utf8(field), std::str::from_utf8(text)) else { continue };
        match field {
            FIRST_SEEN => state.first_seen = Timestamp(text.parse().unwrap_or_default()),
            LAST_SEEN => state.last_seen = Timestamp(text.parse().unwrap_or_default()),
            EVENTS => state.events = text.parse().unwrap_or_default(),
            OFFSET => state.counted_to = text.parse().unwrap_or_default(),
            field => state.metrics.extend(metric_of(field).and_then(|metric| metric_state(metric, text))),
        }
    }
    Some(state)
}

/// A device's latest values, metrics by name.
pub(super) fn device_snapshot(state: DeviceState) -> DeviceSnapshot {
    let metric = |metric: MetricState| MetricSnapshot {
        metric: metric.metric,
        timestamp: metric.timestamp,
        value: metric.value,
        received_at: metric.received_at,
    };
    let mut metrics: Vec<_> = state.metrics.into_iter().map(metric).collect();
    metrics.sort_unstable_by(|a, b| a.metric.cmp(&b.metric));
    DeviceSnapshot { device_id: state.device_id, last_seen: state.last_seen, metrics }
}

/// What [`seen_fields`] names, and the number of fields of the hash.
pub(super) type Seen = (Option<i64>, Option<i64>, Option<u64>);

/// Fields that tell when a device was seen.
pub(super) const fn seen_fields() -> [&'static str; 3] {
    [FIRST_SEEN, LAST_SEEN, EVENTS]
}

/// A device from these; nothing if it has no hash.
pub(super) fn device_seen(device_id: Arc<str>, seen: Seen, fields: u64) -> Option<DeviceSeen> {
    let (first_seen, last_seen, events) = seen;
    Some(DeviceSeen {
        device_id,
        first_seen: Timestamp(first_seen?),
        last_seen: Timestamp(last_seen?),
        events: events?,
        metrics: fields.saturating_sub(OWN_FIELDS),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metric(value: LiveValue) -> MetricState {
        MetricState {
            metric: "m".into(),
            timestamp: Timestamp(-5),
            received_at: Timestamp(1_700_000_000_000_123),
            offset: 17,
            value,
        }
    }

    #[test]
    fn what_is_written_comes_back_to_the_last_bit() {
        let texts =
            ["", "plain", "a\"b\\c\n", r#","value":1}"#, "été"].map(|text| LiveValue::Text(text.into()));
        let numbers =
            [0.1 + 0.2, -0.0, 5e-324, 1.797_693_134_862_315_7e308, 81.5, 1e21].map(LiveValue::Number);
        let values = texts.into_iter().chain(numbers).chain([true, false].map(LiveValue::Bool));
        for metric in values.map(metric) {
            assert_eq!(metric_state("m", &text_of(&metric)), Some(metric));
        }
        assert_eq!(
            text_of(&metric(LiveValue::Number(81.5))),
            r#"{"timestamp":-5,"received_at":1700000000000123,"offset":17,"value":81.5}"#
        );
    }

    #[test]
    fn what_others_wrote_is_left_out() {
        for text in ["", "{}", "81.5", r#"{"timestamp":1,"received_at":2,"offset":3,"value":NaN}"#] {
            assert_eq!(metric_state("m", text), None, "{text}");
        }
    }

    #[test]
    fn metrics_of_any_name_have_a_field() {
        for name in ["speed", "@events", "@", "@@x", ""] {
            assert_eq!(metric_of(&field_of(name)), Some(name));
        }
        assert_eq!(metric_of(EVENTS), None);
        let pair = |name: &str, text: &str| (name.as_bytes().to_vec(), text.as_bytes().to_vec());
        let fields = vec![
            pair(FIRST_SEEN, "1"),
            pair(LAST_SEEN, "2"),
            pair(EVENTS, "3"),
            pair(OFFSET, "4"),
            pair("@epoch", "5"),
            pair("@@events", &text_of(&metric(LiveValue::Bool(true)))),
        ];
        let state = device_state("d", fields).unwrap();
        assert_eq!((state.first_seen, state.last_seen), (Timestamp(1), Timestamp(2)));
        assert_eq!((state.events, state.counted_to, &*state.metrics[0].metric), (3, 4, "@events"));
        assert_eq!(device_state("d", Vec::new()), None);
    }
}
