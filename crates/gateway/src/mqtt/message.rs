//! A message on its way to subscribers: one shared allocation for topic, properties and payload.

use std::time::{Duration, Instant};

use super::codec::{Publish, PublishProperties, QoS, forwardable};

/// Publisher id of messages that the server itself publishes.
pub(crate) const SERVER: u64 = 0;

/// A published message, shared by all who get it.
#[derive(Debug)]
pub(crate) struct Message {
    /// Topic, properties (encoded, those that are handed on), payload.
    bytes: Box<[u8]>,
    topic_length: usize,
    properties_length: usize,
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
    /// Id of the session it came from, or [`SERVER`].
    pub(crate) publisher: u64,
    received: Instant,
    expiry: Option<Duration>,
}

impl Message {
    /// Copies a message out of a read buffer. `topic` is given since an alias may stand for it in the packet.
    pub(crate) fn from_publish(topic: &str, packet: &Publish<'_>, publisher: u64) -> Self {
        Self::new(topic, &packet.properties, packet.payload, packet.qos, packet.retain, publisher)
    }

    /// A message of these parts.
    pub(crate) fn new(
        topic: &str,
        properties: &PublishProperties<'_>,
        payload: &[u8],
        qos: QoS,
        retain: bool,
        publisher: u64,
    ) -> Self {
        let mut bytes = Vec::with_capacity(topic.len() + properties.raw.len() + payload.len());
        bytes.extend_from_slice(topic.as_bytes());
        if !properties.raw.is_empty() {
            forwardable(properties.raw, &mut bytes);
        }
        let properties_length = bytes.len() - topic.len();
        bytes.extend_from_slice(payload);
        Self {
            bytes: bytes.into_boxed_slice(),
            topic_length: topic.len(),
            properties_length,
            qos,
            retain,
            publisher,
            received: Instant::now(),
            expiry: properties.expiry_s.map(|seconds| Duration::from_secs(seconds.into())),
        }
    }

    /// The topic.
    pub(crate) fn topic(&self) -> &str {
        // It was text when it was copied in.
        std::str::from_utf8(&self.bytes[..self.topic_length]).unwrap_or_default()
    }

    /// Encoded properties to hand on.
    pub(crate) fn properties(&self) -> &[u8] {
        &self.bytes[self.topic_length..self.topic_length + self.properties_length]
    }

    /// What the publisher sent.
    pub(crate) fn payload(&self) -> &[u8] {
        &self.bytes[self.topic_length + self.properties_length..]
    }

    /// Bytes held by the message.
    pub(crate) fn size(&self) -> usize {
        self.bytes.len()
    }

    /// The life left, in seconds: `Ok(None)` without an expiry, `Err` when it is over.
    pub(crate) fn expiry_left_s(&self) -> Result<Option<u32>, Expired> {
        let Some(expiry) = self.expiry else { return Ok(None) };
        let left =
            expiry.checked_sub(self.received.elapsed()).filter(|left| !left.is_zero()).ok_or(Expired)?;
        // Rounded up: a message that still lives is not sent with 0.
        Ok(Some(u32::try_from(left.as_secs() + u64::from(left.subsec_nanos() > 0)).unwrap_or(u32::MAX)))
    }
}

/// The message's time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Expired;
