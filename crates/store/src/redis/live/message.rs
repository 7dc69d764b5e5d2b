//! What goes over the channels.

use std::borrow::Cow;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use catchment_types::{DEFAULT_REALM, Event, Reading, Timestamp, Value};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::live::{Follow, LiveBatch, LiveEvent, LiveReading, LiveValue};

/// A message as it is written.
#[derive(Debug, Serialize)]
pub(super) struct Outgoing<'a> {
    pub(super) from: &'a str,
    pub(super) number: u64,
    #[serde(flatten)]
    pub(super) body: OutgoingBody<'a>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum OutgoingBody<'a> {
    Readings { device_id: &'a str, r#type: &'a str, readings: Vec<OutgoingReading<'a>> },
    Events { device_id: &'a str, r#type: &'a str, events: Vec<OutgoingEvent<'a>> },
    Lagged { follow: &'static str, lagged: u64 },
}

#[derive(Debug, Serialize)]
pub(super) struct OutgoingReading<'a> {
    timestamp: Timestamp,
    received_at: Timestamp,
    metric: &'a str,
    value: &'a LiveValue,
}

impl<'a> From<&'a LiveReading> for OutgoingReading<'a> {
    fn from(reading: &'a LiveReading) -> Self {
        let LiveReading { timestamp, received_at, metric, value, .. } = reading;
        Self { timestamp: *timestamp, received_at: *received_at, metric, value }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct OutgoingEvent<'a> {
    topic: &'a str,
    received_at: Timestamp,
    payload: Cow<'a, str>,
    payload_encoding: Encoding,
}

impl<'a> From<&'a LiveEvent> for OutgoingEvent<'a> {
    fn from(event: &'a LiveEvent) -> Self {
        let (payload, payload_encoding) = match std::str::from_utf8(&event.payload) {
            Ok(text) => (text.into(), Encoding::Text),
            Err(_) => (STANDARD.encode(&event.payload).into(), Encoding::Base64),
        };
        Self { topic: &event.topic, received_at: event.received_at, payload, payload_encoding }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Encoding {
    Text,
    Base64,
}

/// A message as it is read.
#[derive(Debug, Deserialize)]
pub(super) struct Incoming<'a> {
    pub(super) from: String,
    pub(super) number: u64,
    #[serde(default)]
    device_id: String,
    #[serde(default)]
    r#type: String,
    #[serde(borrow, default)]
    readings: Vec<IncomingReading<'a>>,
    #[serde(default)]
    events: Vec<IncomingEvent>,
    #[serde(default)]
    follow: String,
    #[serde(default)]
    lagged: u64,
}

#[derive(Debug, Deserialize)]
struct IncomingReading<'a> {
    timestamp: Timestamp,
    received_at: Timestamp,
    metric: String,
    /// Not read as JSON: numbers must come to the last bit.
    #[serde(borrow)]
    value: &'a RawValue,
}

#[derive(Debug, Deserialize)]
struct IncomingEvent {
    topic: String,
    received_at: Timestamp,
    payload: String,
    payload_encoding: Encoding,
}

impl Incoming<'_> {
    /// What could not be published, and how much.
    pub(super) fn lag(&self) -> Option<(Follow, u64)> {
        let follow =
            if self.follow == follow_name(Follow::Events) { Follow::Events } else { Follow::Readings };
        (self.lagged > 0).then_some((follow, self.lagged))
    }

    /// Gives it to those who want it.
    pub(super) fn give(&self, batch: &mut LiveBatch) {
        let event = Event {
            realm: DEFAULT_REALM,
            device_id: &self.device_id,
            event_type: &self.r#type,
            topic: "",
            received_at: Timestamp(0),
            content_type: "",
            tags: "",
            mark: 0,
            payload: b"",
        };
        if !self.readings.is_empty() && batch.begin_for(&event, &[Follow::Readings]) {
            let device_id: Arc<str> = self.device_id.as_str().into();
            for reading in &self.readings {
                let Some(value) = value(reading.value.get()) else { continue };
                let event = Event { received_at: reading.received_at, ..event };
                let metric: Arc<str> = reading.metric.as_str().into();
                let read = Reading {
                    timestamp: reading.timestamp,
                    metric: &reading.metric,
                    value: value.as_value(),
                };
                batch.reading(&device_id, &metric, &event, &read);
            }
        }
        for received in &self.events {
            let payload = match received.payload_encoding {
                Encoding::Text => Bytes::copy_from_slice(received.payload.as_bytes()),
                Encoding::Base64 => STANDARD.decode(&received.payload).unwrap_or_default().into(),
            };
            let (topic, received_at) = (received.topic.as_str(), received.received_at);
            let event = Event { topic, received_at, payload: &payload, ..event };
            batch.begin_for(&event, &[Follow::Events]);
        }
    }
}

fn value(text: &str) -> Option<LiveValue> {
    match text {
        "true" => Some(LiveValue::Bool(true)),
        "false" => Some(LiveValue::Bool(false)),
        text if text.starts_with('"') => {
            serde_json::from_str::<String>(text).ok().map(|text| LiveValue::from(Value::Text(&text)))
        }
        number => number.parse().ok().filter(|number: &f64| number.is_finite()).map(LiveValue::Number),
    }
}

/// How the two kinds are called.
pub(super) const fn follow_name(follow: Follow) -> &'static str {
    match follow {
        Follow::Readings => "readings",
        Follow::Events => "events",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::{LiveConfig, LiveFilter, LiveHub, LiveMessage};

    fn text(body: OutgoingBody<'_>) -> String {
        serde_json::to_string(&Outgoing { from: "p", number: 7, body }).unwrap()
    }

    #[tokio::test]
    async fn what_is_sent_comes_out_the_same() {
        let hub = LiveHub::new(LiveConfig::default());
        let mut readings = hub.subscribe(LiveFilter::default()).unwrap();
        let events = LiveFilter { follow: Follow::Events, ..LiveFilter::default() };
        let mut forwarder = hub.forward(LiveFilter::default()).unwrap();
        let mut tail = hub.subscribe(events).unwrap();
        let reading = LiveReading {
            device_id: "d".into(),
            event_type: "state".into(),
            timestamp: Timestamp(1),
            received_at: Timestamp(2),
            metric: "m".into(),
            value: LiveValue::Number(0.1 + 0.2),
        };
        let event = LiveEvent {
            device_id: "d".into(),
            event_type: "state".into(),
            topic: "devices/d/state".into(),
            received_at: Timestamp(3),
            payload: Bytes::from_static(b"\xff\x00"),
        };
        let texts = [
            text(OutgoingBody::Readings {
                device_id: "d",
                r#type: "state",
                readings: vec![(&reading).into()],
            }),
            text(OutgoingBody::Events { device_id: "d", r#type: "state", events: vec![(&event).into()] }),
        ];
        let mut batch = hub.batch_from_elsewhere().unwrap();
        for text in &texts {
            let incoming: Incoming<'_> = serde_json::from_str(text).unwrap();
            assert_eq!((incoming.from.as_str(), incoming.number, incoming.lag()), ("p", 7, None));
            incoming.give(&mut batch);
        }
        hub.publish(batch);
        assert_eq!(readings.recv().await, Some(LiveMessage::Readings([reading].into())));
        assert_eq!(tail.recv().await, Some(LiveMessage::Events([event].into())));
        // It is not sent on.
        assert!(futures::FutureExt::now_or_never(forwarder.recv()).is_none());
        let lagged = text(OutgoingBody::Lagged { follow: follow_name(Follow::Events), lagged: 4 });
        assert_eq!(serde_json::from_str::<Incoming<'_>>(&lagged).unwrap().lag(), Some((Follow::Events, 4)));
    }
}
