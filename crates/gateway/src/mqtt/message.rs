//! A message on its way to subscribers: one shared allocation for topic, properties and payload.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::codec::{Publish, PublishProperties, QoS, content_type, forwardable};
use super::keep::{Charge, Keeper, Put, Take, now_ms};

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
    /// Of a retained message: when it became its topic's, in microseconds since 1970; see [`super::retained`]. 0: not yet.
    stamp: AtomicU64,
    /// While it waits for kept sessions.
    charge: OnceLock<Charge>,
}

impl Message {
    /// Copies a message out of a read buffer. `topic` is given since an alias may stand for it in the packet.
    pub(crate) fn from_publish(topic: &str, packet: &Publish<'_>, publisher: u64) -> Self {
        Self::new(topic, &packet.properties, packet.payload, packet.qos, packet.retain, publisher)
    }

    /// The same with a further property, encoded.
    pub(crate) fn stamped(topic: &str, packet: &Publish<'_>, publisher: u64, stamp: &[u8]) -> Self {
        let Publish { properties, payload, qos, retain, .. } = packet;
        Self::with(topic, properties, stamp, payload, *qos, *retain, publisher)
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
        Self::with(topic, properties, &[], payload, qos, retain, publisher)
    }

    fn with(
        topic: &str,
        properties: &PublishProperties<'_>,
        stamp: &[u8],
        payload: &[u8],
        qos: QoS,
        retain: bool,
        publisher: u64,
    ) -> Self {
        let size = topic.len() + properties.raw.len() + stamp.len() + payload.len();
        let mut bytes = Vec::with_capacity(size);
        bytes.extend_from_slice(topic.as_bytes());
        if !properties.raw.is_empty() {
            forwardable(properties.raw, &mut bytes);
        }
        bytes.extend_from_slice(stamp);
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
            stamp: AtomicU64::new(0),
            charge: OnceLock::new(),
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

    /// What the publisher said the payload is; may be empty.
    pub(crate) fn content_type(&self) -> &str {
        content_type(self.properties())
    }

    /// What the publisher sent.
    pub(crate) fn payload(&self) -> &[u8] {
        &self.bytes[self.topic_length + self.properties_length..]
    }

    /// Appends the message as the journal keeps it, with the time by the clock on the wall.
    pub(crate) fn encode(&self, into: &mut Vec<u8>) {
        let age_ms = i64::try_from(self.received.elapsed().as_millis()).unwrap_or(i64::MAX);
        let put = &mut Put(into);
        let stamp = Some(self.stamp()).filter(|&stamp| stamp != 0);
        put.u8(self.qos as u8 | u8::from(self.retain) << 2 | u8::from(stamp.is_some()) << 3)
            .u64(self.publisher);
        stamp.map(|stamp| put.u64(stamp));
        put.option(self.expiry, |put, expiry| {
            put.u64(expiry.as_secs()).i64(now_ms().saturating_sub(age_ms));
        });
        put.bytes(self.topic().as_bytes()).bytes(self.properties()).bytes(self.payload());
    }

    /// A message that was encoded; its life has gone on meanwhile.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let take = &mut Take(bytes);
        let (flags, publisher) = (take.u8()?, take.u64()?);
        let stamp = if flags & 8 != 0 { take.u64()? } else { 0 };
        let expiry = take.option(|take| {
            let (expiry, received_ms) = (Duration::from_secs(take.u64()?), take.i64()?);
            let age = Duration::from_millis(u64::try_from(now_ms().saturating_sub(received_ms)).unwrap_or(0));
            Some(expiry.saturating_sub(age))
        })?;
        let (topic, properties, payload) = (take.text()?, take.bytes()?, take.bytes()?);
        Some(Self {
            bytes: [topic.as_bytes(), properties, payload].concat().into_boxed_slice(),
            topic_length: topic.len(),
            properties_length: properties.len(),
            qos: QoS::from_bits(flags & 3)?,
            retain: flags & 4 != 0,
            publisher,
            received: Instant::now(),
            expiry,
            stamp: AtomicU64::new(stamp),
            charge: OnceLock::new(),
        })
    }

    /// The same as if the server itself had published it: ids of sessions are each gateway's own.
    pub(crate) fn of_the_server(self) -> Self {
        Self { publisher: SERVER, ..self }
    }

    /// Counts the message, once, among those that wait for kept sessions. `false`: too much waits.
    pub(crate) fn charge(&self, keeper: &Keeper) -> bool {
        if self.charge.get().is_some() {
            return true;
        }
        let Some(charge) = keeper.charge(self.size()) else { return false };
        // Another thread that was faster has counted it as well; ours is given back.
        let _ = self.charge.set(charge);
        true
    }

    /// When it became its topic's retained message.
    pub(crate) fn stamp(&self) -> u64 {
        self.stamp.load(Ordering::Relaxed)
    }

    /// Says when it became its topic's retained message; before anybody else can ask.
    pub(crate) fn set_stamp(&self, stamp: u64) {
        self.stamp.store(stamp, Ordering::Relaxed);
    }

    /// Whether a subscriber could not tell one from the other.
    pub(crate) fn says_the_same_as(&self, other: &Self) -> bool {
        let parts = |message: &Self| (message.topic_length, message.properties_length, message.qos);
        parts(self) == parts(other) && self.bytes == other.bytes
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
