//! A record of somebody else as an event.
//!
//! | of the event | where it comes from |
//! | --- | --- |
//! | device id | a JSON field, if one is named; else the header `iothub-connection-device-id`, the key, the topic's name |
//! | type | the source's |
//! | topic | Kafka's |
//! | received at | the header `iothub-enqueuedtime`, else the record's own time, but not in the future; else now |
//! | content type | the header `content_type`, `content-type` or `iothub-content-type` |
//! | payload | the value, as it is |
//!
//! Event Hubs write what came by AMQP into headers as AMQP encodes it: a byte that tells the type, perhaps a length, the value.

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};

use catchment_types::{DEFAULT_REALM, Event, Timestamp, check_device_id};
use rdkafka::Message;
use rdkafka::message::{BorrowedMessage, Headers};

use super::{DeviceFrom, SourceTarget};

const DEVICE_HEADER: &str = "iothub-connection-device-id";
const ENQUEUED_HEADER: &str = "iothub-enqueuedtime";
const CONTENT_TYPE_HEADERS: [&str; 3] = ["content_type", "content-type", "iothub-content-type"];

/// What headers tell.
#[derive(Debug, Default)]
struct Told {
    device_id: Option<String>,
    enqueued_at: Option<Timestamp>,
    content_type: Option<String>,
}

/// Makes the event of a record, without a mark, for `take`.
///
/// # Errors
/// Why it is none, or what `take` says.
pub(super) fn with_event(
    target: &SourceTarget,
    message: &BorrowedMessage<'_>,
    take: impl FnOnce(Event<'_>) -> Result<(), String>,
) -> Result<(), String> {
    // The library panics at a header whose name is not UTF-8, and anybody may write to a topic.
    let told = catch_unwind(AssertUnwindSafe(|| headers(message)))
        .map_err(|_| "the name of a header is not UTF-8".to_owned())?;
    let payload = message.payload().unwrap_or_default();
    let field = match &target.device {
        DeviceFrom::Field(path) => field(payload, path),
        DeviceFrom::Record => None,
    };
    let key = message.key().filter(|key| !key.is_empty()).map(std::str::from_utf8);
    let device_id: Cow<'_, str> = match (field, told.device_id, key) {
        (Some(field), _, _) => field.into(),
        (_, Some(device_id), _) => device_id.into(),
        (_, _, Some(Ok(key))) => key.into(),
        (_, _, Some(Err(_))) => return Err("its key is not UTF-8; name a field by device=".to_owned()),
        (_, _, None) => target.kafka.topic.as_str().into(),
    };
    check_device_id(&device_id).map_err(|error| format!("its device id cannot be one: {error}"))?;
    let now = Timestamp::now();
    let own_time = message.timestamp().to_millis().filter(|&millis| millis > 0);
    let own_time = own_time.map(|millis| Timestamp(millis.saturating_mul(1000)));
    take(Event {
        realm: DEFAULT_REALM,
        device_id: &device_id,
        event_type: &target.event_type,
        topic: message.topic(),
        received_at: told.enqueued_at.or(own_time).map_or(now, |time| time.min(now)),
        content_type: told.content_type.as_deref().unwrap_or_default(),
        tags: "",
        mark: 0,
        payload,
    })
}

fn headers(message: &BorrowedMessage<'_>) -> Told {
    let mut told = Told::default();
    for header in message.headers().into_iter().flat_map(|headers| headers.iter()) {
        let Some(value) = header.value else { continue };
        match header.key {
            DEVICE_HEADER => told.device_id = text(value).map(str::to_owned),
            ENQUEUED_HEADER => told.enqueued_at = time(value),
            name if CONTENT_TYPE_HEADERS.contains(&name) => {
                told.content_type = text(value).map(str::to_owned);
            }
            _ => {}
        }
    }
    told
}

/// The text of a header, plain or a string or symbol of AMQP.
fn text(value: &[u8]) -> Option<&str> {
    let text = match value {
        [0xA1 | 0xA3, length, text @ ..] if text.len() == usize::from(*length) => text,
        [0xB1 | 0xB3, a, b, c, d, text @ ..]
            if text.len() == u32::from_be_bytes([*a, *b, *c, *d]) as usize =>
        {
            text
        }
        plain => plain,
    };
    std::str::from_utf8(text).ok()
}

/// The time of a header: a timestamp of AMQP, or a text by RFC 3339.
fn time(value: &[u8]) -> Option<Timestamp> {
    if let [0x83, rest @ ..] = value
        && let Ok(millis) = <[u8; 8]>::try_from(rest)
    {
        return Some(Timestamp(i64::from_be_bytes(millis).saturating_mul(1000)));
    }
    let time: jiff::Timestamp = text(value)?.trim().parse().ok()?;
    Some(Timestamp(time.as_microsecond()))
}

/// A text or a number in a JSON object, by its path.
fn field(payload: &[u8], path: &str) -> Option<String> {
    let document: serde_json::Value = serde_json::from_slice(payload).ok()?;
    // A name with dots in it is a name first.
    let found =
        document.get(path).or_else(|| path.split('.').try_fold(&document, |value, name| value.get(name)))?;
    match found {
        serde_json::Value::String(text) => Some(text.clone()),
        serde_json::Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_texts_or_numbers() {
        let payload = br#"{"data_id":150,"name":"BTC","tags":{"desk":"x"},"a.b":"dotted","list":[1]}"#;
        assert_eq!(field(payload, "name").as_deref(), Some("BTC"));
        assert_eq!(field(payload, "data_id").as_deref(), Some("150"));
        assert_eq!(field(payload, "tags.desk").as_deref(), Some("x"));
        assert_eq!(field(payload, "a.b").as_deref(), Some("dotted"));
        assert_eq!((field(payload, "list"), field(payload, "none"), field(b"no", "x")), (None, None, None));
    }

    #[test]
    fn headers_are_plain_or_of_amqp() {
        assert_eq!(text(b"pump-1"), Some("pump-1"));
        assert_eq!(text(b"\xa1\x06pump-1"), Some("pump-1"));
        assert_eq!(text(b"\xb1\x00\x00\x00\x06pump-1"), Some("pump-1"));
        assert_eq!(text(b"\xa1\x07pump-1"), None);
        let expected = Some(Timestamp(1_645_270_401_250_000));
        assert_eq!(time(b"2022-02-19T11:33:21.2500000Z"), expected);
        assert_eq!(time(b"\xa1\x1c2022-02-19T11:33:21.2500000Z"), expected);
        assert_eq!(time(&[&[0x83], &1_645_270_401_250_i64.to_be_bytes()[..]].concat()), expected);
        assert_eq!(time(b"yesterday"), None);
    }
}
