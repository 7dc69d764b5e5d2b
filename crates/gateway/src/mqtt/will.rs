//! The message a client leaves for the case that it is lost.

use std::sync::Arc;
use std::time::Duration;

use super::codec::{ConnectWill, PublishProperties, QoS};
use super::keep::{Put, Take};
use super::message::Message;

/// A will, kept with its session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Will {
    pub(crate) topic: Box<str>,
    pub(crate) payload: Box<[u8]>,
    pub(crate) content_type: Box<str>,
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
    /// How long after the connection's end it is published, unless the client is back.
    pub(crate) delay: Duration,
    properties: Box<[u8]>,
    expiry_s: Option<u32>,
    /// The session whose record holds it; 0 when none does.
    pub(crate) kept_by: u64,
}

impl From<&ConnectWill<'_>> for Will {
    fn from(will: &ConnectWill<'_>) -> Self {
        Self {
            topic: will.topic.into(),
            payload: will.payload.into(),
            content_type: will.properties.content_type.into(),
            qos: will.qos,
            retain: will.retain,
            delay: Duration::from_secs(will.delay_s.into()),
            properties: will.properties.raw.into(),
            expiry_s: will.properties.expiry_s,
            kept_by: 0,
        }
    }
}

impl Will {
    /// The message to publish; its life starts now.
    pub(crate) fn message(&self, publisher: u64) -> Arc<Message> {
        let properties = PublishProperties {
            expiry_s: self.expiry_s,
            raw: &self.properties,
            ..PublishProperties::default()
        };
        Arc::new(Message::new(&self.topic, &properties, &self.payload, self.qos, self.retain, publisher))
    }

    /// Appends the will as the journal keeps it.
    pub(crate) fn encode(&self, into: &mut Vec<u8>) {
        let put = &mut Put(into);
        put.bytes(self.topic.as_bytes()).bytes(&self.payload).bytes(self.content_type.as_bytes());
        put.u8(self.qos as u8).u8(self.retain.into()).u64(self.delay.as_secs()).bytes(&self.properties);
        put.option(self.expiry_s, |put, seconds| {
            put.u32(seconds);
        });
    }

    /// A will that was encoded.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let take = &mut Take(bytes);
        Some(Self {
            topic: take.text()?.into(),
            payload: take.bytes()?.into(),
            content_type: take.text()?.into(),
            qos: QoS::from_bits(take.u8()?)?,
            retain: take.bool()?,
            delay: Duration::from_secs(take.u64()?),
            properties: take.bytes()?.into(),
            expiry_s: take.option(Take::u32)?,
            kept_by: 0,
        })
    }
}
