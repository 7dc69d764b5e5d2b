//! The message a client leaves for the case that it is lost.

use std::sync::Arc;
use std::time::Duration;

use super::codec::{ConnectWill, PublishProperties, QoS};
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
}
