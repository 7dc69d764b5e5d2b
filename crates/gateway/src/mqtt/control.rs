//! Everything a client sends but CONNECT and PUBLISH.

use super::codec::{
    self, Ack, AckKind, Packet, ProtocolError, Reason, RetainHandling, Subscribe, SubscribeOptions,
    Unsubscribe, Version,
};
use super::connection::{Close, Connection};
use super::subscriptions::Wish;
use crate::metrics::GatewayMetrics;

/// DISCONNECT's reason code that takes the will back; with any other it is published (5.0, 3.14.4).
const NORMAL_DISCONNECTION: u8 = 0x00;
/// Reason codes from here on tell of failures.
const FAILURES: u8 = 0x80;

/// What a subscription costs in the measure of a [`super::turn::Turn`].
const SUBSCRIBE_WORK: usize = 8;

impl<S> Connection<S> {
    /// Takes a packet that is not a publish.
    pub(super) fn take_control(&mut self, packet: Packet<'_>) -> Result<(), Close> {
        match packet {
            // `take_packet` does not hand these here.
            Packet::Publish(_) | Packet::Subscribe(_) | Packet::Unsubscribe(_) => {}
            Packet::PubAck(ack) => self.finish(ack),
            Packet::PubComp(ack) => self.finish(ack),
            Packet::PubRec(ack) => self.release(ack),
            Packet::PubRel(ack) => {
                let known = self.session.forget_received(ack.packet_id);
                self.received_count -= u32::from(known);
                let reason = if known { Reason::Success } else { Reason::PacketIdNotFound };
                self.confirm = true;
                self.send_ack(AckKind::Comp, ack.packet_id, reason);
            }
            Packet::PingReq => codec::ping_response(&mut self.output.bytes),
            Packet::Disconnect(disconnect) => {
                if disconnect.session_expiry_s.is_some_and(|seconds| seconds > 0)
                    && self.session.is_transient()
                {
                    return Err(Close::Fault(ProtocolError::protocol(
                        "DISCONNECT keeps a session that was to end with its connection",
                    )));
                }
                return Err(Close::Goodbye {
                    with_will: disconnect.code != NORMAL_DISCONNECTION,
                    session_expiry_s: disconnect.session_expiry_s,
                });
            }
        }
        Ok(())
    }

    /// Takes SUBSCRIBE or UNSUBSCRIBE, and lets others have their turn in between.
    pub(super) async fn take_filters(&mut self, packet: Packet<'_>) -> Result<(), Close> {
        match packet {
            Packet::Subscribe(subscribe) => self.subscribe(&subscribe).await?,
            Packet::Unsubscribe(unsubscribe) => self.unsubscribe(&unsubscribe).await?,
            _ => {}
        }
        Ok(())
    }

    fn finish(&mut self, ack: Ack) {
        let known = self.session.finish(ack.packet_id);
        self.deliverable |= known;
        if known && let Some(far) = &self.far {
            far.note_finished(ack.code);
        }
    }

    fn release(&mut self, ack: Ack) {
        if ack.code >= FAILURES {
            return self.finish(ack);
        }
        let known = self.session.release(ack.packet_id);
        let reason = if known { Reason::Success } else { Reason::PacketIdNotFound };
        self.confirm = true;
        self.send_ack(AckKind::Rel, ack.packet_id, reason);
    }

    fn send_ack(&mut self, kind: AckKind, packet_id: u16, reason: Reason) {
        codec::puback(&mut self.output.bytes, kind, &self.peer, packet_id, reason);
    }

    async fn subscribe(&mut self, subscribe: &Subscribe<'_>) -> Result<(), Close> {
        let mut codes = Vec::with_capacity(subscribe.filters.len());
        let mut refusal = Reason::Success;
        let filters_max = self.registered.gateway.config.mqtt.subscriptions_per_client_max;
        for (at, &(filter, options)) in subscribe.filters.iter().enumerate() {
            self.turn.rest().await;
            // More than a client may have are not even looked at: one packet has room for a quarter of a million.
            let subscribed = match at < filters_max {
                true => self.subscribe_to(filter, options, subscribe.subscription_id),
                false => Err(Reason::QuotaExceeded),
            };
            codes.push(match subscribed {
                Ok(()) => options.qos as u8,
                Err(Reason::SharedWithNoLocal) => {
                    return Err(Close::Fault(ProtocolError::protocol("a shared subscription with no-local")));
                }
                Err(_) if self.peer.version == Version::V3 => FAILURES,
                Err(reason) => {
                    refusal = if refusal == Reason::Success { reason } else { refusal };
                    reason.code()
                }
            });
        }
        self.confirm = true;
        self.retained_wanted = true;
        let packet_id = subscribe.packet_id;
        answered(codec::suback(&mut self.output.bytes, &self.peer, packet_id, &codes, refusal))
    }

    fn subscribe_to(&mut self, text: &str, options: SubscribeOptions, id: u32) -> Result<(), Reason> {
        let filter = self.registered.gateway.topic_limits.filter(text).ok_or(Reason::TopicFilterInvalid)?;
        if filter.group.is_some() && options.no_local {
            return Err(Reason::SharedWithNoLocal);
        }
        if !self.registered.gateway.admission.may_subscribe(&self.principal, filter.filter) {
            GatewayMetrics::count(&self.registered.gateway.metrics.refused, "subscribe_not_authorized");
            tracing::debug!(
                client_id = self.session.client_id(),
                filter = text,
                "a subscription was refused"
            );
            return Err(Reason::NotAuthorized);
        }
        let wish = Wish {
            qos: options.qos,
            no_local: options.no_local,
            retain_as_published: options.retain_as_published,
            subscription_id: id,
        };
        let wants_retained = |is_new| match options.retain_handling {
            RetainHandling::Always => true,
            RetainHandling::IfNew => is_new,
            RetainHandling::Never => false,
        };
        self.turn.add(SUBSCRIBE_WORK);
        let filters_max = self.registered.gateway.config.mqtt.subscriptions_per_client_max;
        let added = self.broker.subscribe(&self.session, text, filter, wish, filters_max, wants_retained);
        if added { Ok(()) } else { Err(Reason::QuotaExceeded) }
    }

    async fn unsubscribe(&mut self, unsubscribe: &Unsubscribe<'_>) -> Result<(), Close> {
        let mut codes = Vec::with_capacity(unsubscribe.filters.len());
        let mut refusal = Reason::Success;
        for &text in &unsubscribe.filters {
            self.turn.add(1);
            self.turn.rest().await;
            let reason = match self.registered.gateway.topic_limits.filter(text) {
                None => {
                    refusal = Reason::TopicFilterInvalid;
                    refusal
                }
                Some(filter) if self.broker.unsubscribe(&self.session, text, filter) => Reason::Success,
                Some(_) => Reason::NoSubscriptionExisted,
            };
            codes.push(reason.code());
        }
        self.confirm = true;
        let packet_id = unsubscribe.packet_id;
        answered(codec::unsuback(&mut self.output.bytes, &self.peer, packet_id, &codes, refusal))
    }
}

/// A client that asks for more at once than it takes an answer to cannot be answered.
fn answered(fits: bool) -> Result<(), Close> {
    let error = ProtocolError {
        reason: Reason::PacketTooLarge,
        detail: "the answer would be larger than the client's maximum packet size",
    };
    if fits { Ok(()) } else { Err(Close::Fault(error)) }
}
