//! A message on its way to one session: how this session gets it, and its PUBLISH.

use std::sync::Arc;

use super::aliases::{Alias, Aliases};
use super::codec::{self, Peer, PublishHeader, QoS};
use super::message::Message;
use crate::bridge::Outbound;

/// A message for one session.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) message: Arc<Message>,
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
    pub(crate) subscription_ids: Vec<u32>,
    /// The shared subscription that it came by.
    pub(crate) shared: Option<Arc<str>>,
    /// Not 0: it was sent before, under this identifier.
    pub(super) packet_id: u16,
    /// Its number among the messages of a kept session; 0: it is not kept.
    pub(crate) seq: u64,
    /// Where its record ends in the journal.
    pub(crate) position: u64,
}

impl Delivery {
    pub(crate) fn new(message: Arc<Message>, qos: QoS, retain: bool, subscription_ids: Vec<u32>) -> Self {
        Self { message, qos, retain, subscription_ids, shared: None, packet_id: 0, seq: 0, position: 0 }
    }

    /// The same by a shared subscription.
    pub(crate) fn by(self, shared: Option<Arc<str>>) -> Self {
        Self { shared, ..self }
    }

    /// Writes the PUBLISH, by a bridge as `outbound` says. `false` when it is larger than the client takes.
    pub(super) fn encode(
        &self,
        output: &mut Vec<u8>,
        packet_id: u16,
        expiry_s: Option<u32>,
        peer: &Peer,
        aliases: Option<&mut Aliases>,
        outbound: Option<&Outbound>,
    ) -> bool {
        let payload = self.message.payload();
        let (topic, retain, properties) = match outbound {
            Some(outbound) => (&*outbound.topic, outbound.retain, &*outbound.properties),
            None => (self.message.topic(), self.retain, self.message.properties()),
        };
        let header = PublishHeader {
            duplicate: self.packet_id != 0,
            qos: self.qos,
            retain,
            topic: topic.as_bytes(),
            topic_alias: None,
            packet_id,
            expiry_s,
            subscription_ids: &self.subscription_ids,
            properties,
        };
        let mut write = |header: &PublishHeader<'_>| {
            codec::publish(output, peer.version, header, payload, peer.packet_bytes_max)
        };
        if let Some(aliases) = aliases {
            match aliases.find(topic) {
                Alias::Known(alias) => {
                    return write(&PublishHeader { topic: b"", topic_alias: Some(alias), ..header });
                }
                Alias::New(alias) if write(&PublishHeader { topic_alias: Some(alias), ..header }) => {
                    aliases.keep(topic, alias);
                    return true;
                }
                // What is too large with a new alias may fit without.
                Alias::New(_) | Alias::None => {}
            }
        }
        write(&header)
    }

    /// Whether another member of its group may get it after this one's session has ended: not when it was sent at QoS 2,
    /// since the member may have it (5.0, 4.8.2).
    pub(super) fn may_pass_on(&self, was_sent: bool) -> bool {
        self.shared.is_some() && self.qos != QoS::AtMostOnce && !(was_sent && self.qos == QoS::ExactlyOnce)
    }
}
