//! The event as received, and batches of events in their encoded form.
//!
//! # Encoding
//! A batch is one buffer that the gateway writes, the log keeps and the partition worker reads; nothing is copied or
//! allocated for a single event between socket and decoder. Each event is, little endian:
//!
//! | bytes | field |
//! | --- | --- |
//! | 4 | length of what follows |
//! | 8 | `received_at`, µs since the epoch |
//! | 1, 2, 1, 2, 1 | lengths of realm, device id, type, topic, content type |
//! | … | realm, device id, type, topic, content type: UTF-8 |
//! | 0 or 16 | mark, if bit 14 of the device id's length is set |
//! | 0 or 2 + … | length of the tags and the tags: UTF-8, if bit 15 of the device id's length is set |
//! | … | payload: the rest |
//!
//! Device ids are far shorter than 2¹⁴ bytes, so that an event with neither mark nor tags has no byte for them.

use bytes::{Bytes, BytesMut};
use thiserror::Error;

use crate::Timestamp;

const LENGTH_BYTES: usize = 4;
const HEADER_BYTES: usize = 8 + 1 + 2 + 1 + 2 + 1;
const MARK_BYTES: usize = 16;
const HAS_TAGS: u16 = 1 << 15;
const HAS_MARK: u16 = 1 << 14;

/// One message as received, borrowed from a batch or a socket's buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event<'a> {
    /// Tenant namespace, at most 255 bytes.
    pub realm: &'a str,
    /// What sent it.
    pub device_id: &'a str,
    /// Which kind of message; chooses the decoder.
    pub event_type: &'a str,
    /// Topic or path it came by.
    pub topic: &'a str,
    /// When the gateway received it.
    pub received_at: Timestamp,
    /// MIME type, or empty when the device did not say.
    pub content_type: &'a str,
    /// What its route took from the topic: a JSON object, or empty when there is nothing.
    pub tags: &'a str,
    /// Tells the event of a request that may be sent again from all others, so that it is kept once; 0: it has none.
    pub mark: u128,
    /// As the device sent it.
    pub payload: &'a [u8],
}

/// An event whose parts do not fit the encoding's length fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the event's {part} is too long to be stored")]
pub struct EventTooLarge {
    /// Which part.
    pub part: &'static str,
}

/// Encoded events, in order. Cheap to clone once frozen.
#[derive(Debug, Clone, Default)]
pub struct EventBatch {
    bytes: Bytes,
    count: u32,
}

impl EventBatch {
    /// Starts a batch that is written to.
    #[must_use]
    pub fn builder() -> EventBatchBuilder {
        EventBatchBuilder::default()
    }

    /// Takes encoded events back, as read from the log. `count` is what the log's block header says.
    #[must_use]
    pub fn from_encoded(bytes: Bytes, count: u32) -> Self {
        Self { bytes, count }
    }

    /// Number of events.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.count
    }

    /// Whether there are no events.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The encoded form.
    #[must_use]
    pub fn as_bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The events in order. Stops early at bytes that are not an event, which checksums make impossible in what the
    /// log serves.
    #[must_use]
    pub fn iter(&self) -> EventBatchIter<'_> {
        EventBatchIter { rest: &self.bytes }
    }
}

impl<'a> IntoIterator for &'a EventBatch {
    type Item = Event<'a>;
    type IntoIter = EventBatchIter<'a>;
    fn into_iter(self) -> EventBatchIter<'a> {
        self.iter()
    }
}

/// A batch while it is written.
#[derive(Debug, Default)]
pub struct EventBatchBuilder {
    bytes: BytesMut,
    count: u32,
    /// Size of the last batch.
    last_bytes: usize,
}

impl EventBatchBuilder {
    /// Appends one event.
    ///
    /// # Errors
    /// When a part does not fit its length field; the batch is unchanged then.
    pub fn push(&mut self, event: &Event<'_>) -> Result<(), EventTooLarge> {
        let short = |part, text: &str| u8::try_from(text.len()).map_err(|_| EventTooLarge { part });
        let long = |part, text: &str| u16::try_from(text.len()).map_err(|_| EventTooLarge { part });
        let realm = short("realm", event.realm)?;
        let mut device_id = long("device id", event.device_id)?;
        if device_id >= HAS_MARK {
            return Err(EventTooLarge { part: "device id" });
        }
        let event_type = short("type", event.event_type)?;
        let topic = long("topic", event.topic)?;
        let content_type = short("content type", event.content_type)?;
        let tags = long("tags", event.tags)?;
        let mut extra = 0;
        if event.mark != 0 {
            device_id |= HAS_MARK;
            extra += MARK_BYTES;
        }
        if tags > 0 {
            device_id |= HAS_TAGS;
            extra += 2 + event.tags.len();
        }
        let texts = [event.realm, event.device_id, event.event_type, event.topic, event.content_type];
        let length =
            HEADER_BYTES + texts.iter().map(|text| text.len()).sum::<usize>() + extra + event.payload.len();
        let length_field = u32::try_from(length).map_err(|_| EventTooLarge { part: "payload" })?;

        let mut header = [0; LENGTH_BYTES + HEADER_BYTES];
        header[0..4].copy_from_slice(&length_field.to_le_bytes());
        header[4..12].copy_from_slice(&event.received_at.as_micros().to_le_bytes());
        header[12] = realm;
        header[13..15].copy_from_slice(&device_id.to_le_bytes());
        header[15] = event_type;
        header[16..18].copy_from_slice(&topic.to_le_bytes());
        header[18] = content_type;
        self.bytes.reserve(LENGTH_BYTES + length);
        self.bytes.extend_from_slice(&header);
        for text in texts {
            self.bytes.extend_from_slice(text.as_bytes());
        }
        if event.mark != 0 {
            self.bytes.extend_from_slice(&event.mark.to_le_bytes());
        }
        if tags > 0 {
            self.bytes.extend_from_slice(&tags.to_le_bytes());
            self.bytes.extend_from_slice(event.tags.as_bytes());
        }
        self.bytes.extend_from_slice(event.payload);
        self.count += 1;
        Ok(())
    }

    /// Number of events so far.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.count
    }

    /// Whether nothing was written yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Encoded size so far, in bytes.
    #[must_use]
    pub fn bytes_len(&self) -> usize {
        self.bytes.len()
    }

    /// Makes room for a batch of at most `bytes_max`, if the last one was as large; to be called before the first event. Growing
    /// step by step would copy every batch once more.
    pub fn expect(&mut self, bytes_max: usize) {
        self.bytes.reserve(self.last_bytes.min(bytes_max));
    }

    /// Takes what was written as a batch; the builder goes on empty. The batch has its memory for itself.
    pub fn take(&mut self) -> EventBatch {
        self.last_bytes = self.bytes.len();
        EventBatch { bytes: std::mem::take(&mut self.bytes).freeze(), count: std::mem::take(&mut self.count) }
    }
}

/// Iterator over the events of a batch.
#[derive(Debug, Clone)]
pub struct EventBatchIter<'a> {
    rest: &'a [u8],
}

impl<'a> EventBatchIter<'a> {
    fn decode(&mut self) -> Option<Event<'a>> {
        let (length, rest) = self.rest.split_first_chunk::<LENGTH_BYTES>()?;
        let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        let (body, rest) = rest.split_at_checked(length)?;
        let (header, mut body) = body.split_first_chunk::<HEADER_BYTES>()?;
        let mut text = |length: usize| {
            let (text, after) = body.split_at_checked(length)?;
            body = after;
            std::str::from_utf8(text).ok()
        };
        let device_id = u16::from_le_bytes([header[9], header[10]]);
        let mut event = Event {
            received_at: Timestamp(i64::from_le_bytes(*header.first_chunk()?)),
            realm: text(usize::from(header[8]))?,
            device_id: text(usize::from(device_id & !(HAS_TAGS | HAS_MARK)))?,
            event_type: text(usize::from(header[11]))?,
            topic: text(usize::from(u16::from_le_bytes([header[12], header[13]])))?,
            content_type: text(usize::from(header[14]))?,
            tags: "",
            mark: 0,
            payload: &[],
        };
        if device_id & HAS_MARK != 0 {
            let (mark, after) = body.split_first_chunk::<MARK_BYTES>()?;
            (event.mark, body) = (u128::from_le_bytes(*mark), after);
        }
        if device_id & HAS_TAGS != 0 {
            let (length, after) = body.split_first_chunk()?;
            let (tags, after) = after.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
            (event.tags, body) = (std::str::from_utf8(tags).ok()?, after);
        }
        event.payload = body;
        self.rest = rest;
        Some(event)
    }
}

impl<'a> Iterator for EventBatchIter<'a> {
    type Item = Event<'a>;
    fn next(&mut self) -> Option<Event<'a>> {
        let event = self.decode();
        if event.is_none() {
            self.rest = &[];
        }
        event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event<'a>(device_id: &'a str, payload: &'a [u8]) -> Event<'a> {
        Event {
            realm: "main",
            device_id,
            event_type: "state",
            topic: "devices/x/state",
            received_at: Timestamp(1_700_000_000_000_001),
            content_type: "application/json",
            tags: "",
            mark: 0,
            payload,
        }
    }

    #[test]
    fn round_trip_and_reuse() {
        let mut builder = EventBatch::builder();
        builder.push(&event("a", b"{}")).unwrap();
        builder.push(&event("b", b"")).unwrap();
        let batch = builder.take();
        assert_eq!(batch.iter().collect::<Vec<_>>(), [event("a", b"{}"), event("b", b"")]);
        assert!(builder.is_empty());
        builder.push(&event("c", b"1")).unwrap();
        assert_eq!(builder.take().iter().collect::<Vec<_>>(), [event("c", b"1")]);
    }

    #[test]
    fn tags_and_marks_take_room_only_where_they_are() {
        let mut builder = EventBatch::builder();
        let mut size = |event: &Event<'_>| {
            builder.push(event).unwrap();
            let batch = builder.take();
            assert_eq!(batch.iter().collect::<Vec<_>>(), [*event]);
            batch.as_bytes().len()
        };
        let plain = event("a", b"{}");
        let tags = r#"{"area":"nord"}"#;
        let bare = size(&plain);
        assert_eq!(size(&Event { tags, ..plain }), bare + 2 + tags.len());
        assert_eq!(size(&Event { mark: u128::MAX, ..plain }), bare + 16);
        assert_eq!(size(&Event { mark: 1, tags, ..plain }), bare + 18 + tags.len());
    }

    #[test]
    fn oversized_parts_are_refused_and_leave_the_batch() {
        let mut builder = EventBatch::builder();
        let long = "t".repeat(70_000);
        assert_eq!(
            builder.push(&Event { topic: &long, ..event("a", b"") }),
            Err(EventTooLarge { part: "topic" })
        );
        assert!(builder.is_empty() && builder.bytes_len() == 0);
    }

    #[test]
    fn every_cut_is_survived() {
        let mut builder = EventBatch::builder();
        builder.push(&Event { mark: 7, tags: "{}", ..event("a", b"payload") }).unwrap();
        let whole = builder.take();
        for cut in 0..whole.as_bytes().len() {
            assert_eq!(EventBatch::from_encoded(whole.as_bytes().slice(..cut), 1).iter().count(), 0);
        }
    }
}
