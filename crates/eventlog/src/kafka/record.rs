//! An event as a record of Kafka, so that others read it as it is.
//!
//! | part of the record | what |
//! | --- | --- |
//! | key | device id |
//! | value | payload, as the device sent it |
//! | timestamp | when it was received, in ms |
//! | header `received_at` | the same in µs since the epoch, as decimal digits |
//! | headers `realm`, `type`, `topic` | as they are |
//! | header `content_type` | if the device said one |
//! | header `tags` | JSON object, if the route has tags |
//! | header `mark` | 32 hexadecimal digits, if the event has one |
//!
//! A record of somebody else that lacks headers is an event of realm `main` and type `unknown` whose topic is Kafka's.

use catchment_types::{DEFAULT_REALM, Event, Timestamp};
use rdkafka::Message;
use rdkafka::message::{BorrowedMessage, Header, Headers, OwnedHeaders};
use rdkafka::producer::BaseRecord;
use rdkafka::util::IntoOpaque;

const TYPE_UNKNOWN: &str = "unknown";

/// Bytes that a record takes besides its texts and payload, generously: headers' names, lengths, the bookkeeping of
/// librdkafka.
pub(super) const OVERHEAD_BYTES: usize = 512;

/// The record of an event. `topic` and `partition` are where it goes.
pub(super) fn from_event<'a, D: IntoOpaque>(
    event: &Event<'a>,
    topic: &'a str,
    partition: i32,
    opaque: D,
) -> BaseRecord<'a, [u8], [u8], D> {
    let received_at = event.received_at.as_micros();
    let mut headers = OwnedHeaders::new_with_capacity(7)
        .insert(text("received_at", &received_at.to_string()))
        .insert(text("realm", event.realm))
        .insert(text("type", event.event_type))
        .insert(text("topic", event.topic));
    if !event.content_type.is_empty() {
        headers = headers.insert(text("content_type", event.content_type));
    }
    if !event.tags.is_empty() {
        headers = headers.insert(text("tags", event.tags));
    }
    if event.mark != 0 {
        headers = headers.insert(text("mark", &format!("{:032x}", event.mark)));
    }
    BaseRecord::with_opaque_to(topic, opaque)
        .partition(partition)
        .key(event.device_id.as_bytes())
        .payload(event.payload)
        // 0 would be "now" to librdkafka, and nothing is older than the epoch to Kafka.
        .timestamp((received_at / 1000).max(1))
        .headers(headers)
}

fn text<'a>(key: &'a str, value: &'a str) -> Header<'a, &'a str> {
    Header { key, value: Some(value) }
}

/// The event of a record. Nothing where its texts are not UTF-8.
pub(super) fn to_event<'a>(message: &'a BorrowedMessage<'_>) -> Option<Event<'a>> {
    let milliseconds = message.timestamp().to_millis().unwrap_or_default();
    let mut event = Event {
        realm: DEFAULT_REALM,
        device_id: std::str::from_utf8(message.key().unwrap_or_default()).ok()?,
        event_type: TYPE_UNKNOWN,
        topic: message.topic(),
        received_at: Timestamp(milliseconds.saturating_mul(1000)),
        content_type: "",
        tags: "",
        mark: 0,
        payload: message.payload().unwrap_or_default(),
    };
    for header in message.headers().into_iter().flat_map(|headers| headers.iter()) {
        let Some(value) = header.value else { continue };
        let value = match std::str::from_utf8(value) {
            Ok(value) => value,
            // A header of somebody else may be anything.
            Err(_) if !is_ours(header.key) => continue,
            Err(_) => return None,
        };
        match header.key {
            "realm" => event.realm = value,
            "type" => event.event_type = value,
            "topic" => event.topic = value,
            "content_type" => event.content_type = value,
            "tags" => event.tags = value,
            "mark" => event.mark = u128::from_str_radix(value, 16).ok()?,
            "received_at" => event.received_at = Timestamp(value.parse().ok()?),
            _ => {}
        }
    }
    Some(event)
}

fn is_ours(key: &str) -> bool {
    ["realm", "type", "topic", "content_type", "tags", "mark", "received_at"].contains(&key)
}
