//! Packets as the decoder understands them, in a form that another decoder's answer can be compared with.

use crate::mqtt::codec::{
    self, Framed, PublishHeader, QoS, RetainHandling, SubscribeOptions, Version, decode as decode_packet,
    decode_connect,
};

/// A packet of a client.
#[derive(Debug, PartialEq, Eq)]
pub enum Packet<'a> {
    /// CONNECT.
    Connect(Connect<'a>),
    /// PUBLISH.
    Publish(Publish<'a>),
    /// PUBACK, PUBREC, PUBREL, PUBCOMP: type, packet identifier, reason code.
    Ack(u8, u16, u8),
    /// Packet identifier, subscription identifier or 0, filters with their options as on the wire.
    Subscribe(u16, u32, Vec<(&'a str, u8)>),
    /// Packet identifier and filters.
    Unsubscribe(u16, Vec<&'a str>),
    /// PINGREQ.
    PingReq,
    /// Reason code, and a new session expiry in seconds.
    Disconnect(u8, Option<u32>),
}

/// CONNECT.
#[derive(Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of the standard")]
pub struct Connect<'a> {
    pub clean_start: bool,
    pub keep_alive_s: u16,
    pub client_id: &'a str,
    pub username: Option<&'a str>,
    pub password: Option<&'a [u8]>,
    /// Topic, payload, QoS, retain, delay in seconds.
    pub will: Option<(&'a str, &'a [u8], u8, bool, u32)>,
    pub session_expiry_s: u32,
    pub receive_maximum: u16,
    pub packet_bytes_max: u32,
    pub topic_alias_maximum: u16,
    pub wants_authentication: bool,
}

/// PUBLISH.
#[derive(Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of the standard")]
pub struct Publish<'a> {
    pub duplicate: bool,
    pub qos: u8,
    pub retain: bool,
    pub topic: &'a [u8],
    pub packet_id: u16,
    pub topic_alias: Option<u16>,
    pub expiry_s: Option<u32>,
    pub content_type: &'a str,
    pub payload: &'a [u8],
}

/// Reason code, and what is wrong.
pub type Fault = (u8, &'static str);

fn version(is_v5: bool) -> Version {
    if is_v5 { Version::V5 } else { Version::V3 }
}

/// Decodes the packet at the start of `bytes`; CONNECT tells its version itself. Gives the packet and its size, or nothing
/// while bytes are missing.
///
/// # Errors
/// What a client would be told.
pub fn decode(
    bytes: &[u8],
    is_v5: bool,
    packet_bytes_max: usize,
) -> Result<Option<(Packet<'_>, usize)>, Fault> {
    let fault = |error: codec::ProtocolError| (error.reason.code(), error.detail);
    let Framed::Packet(frame) = codec::frame(bytes, packet_bytes_max).map_err(fault)? else {
        return Ok(None);
    };
    let packet = if frame.first >> 4 == 1 {
        Packet::Connect(connect(decode_connect(&frame).map_err(|(error, _)| fault(error))?))
    } else {
        plain(decode_packet(&frame, version(is_v5)).map_err(fault)?)
    };
    Ok(Some((packet, frame.length)))
}

fn plain(packet: codec::Packet<'_>) -> Packet<'_> {
    match packet {
        codec::Packet::Publish(publish) => Packet::Publish(Publish {
            duplicate: publish.duplicate,
            qos: publish.qos as u8,
            retain: publish.retain,
            topic: publish.topic,
            packet_id: publish.packet_id,
            topic_alias: publish.properties.topic_alias,
            expiry_s: publish.properties.expiry_s,
            content_type: publish.properties.content_type,
            payload: publish.payload,
        }),
        codec::Packet::PubAck(ack) => Packet::Ack(4, ack.packet_id, ack.code),
        codec::Packet::PubRec(ack) => Packet::Ack(5, ack.packet_id, ack.code),
        codec::Packet::PubRel(ack) => Packet::Ack(6, ack.packet_id, ack.code),
        codec::Packet::PubComp(ack) => Packet::Ack(7, ack.packet_id, ack.code),
        codec::Packet::Subscribe(subscribe) => {
            let filters = subscribe.filters.iter().map(|&(filter, options)| (filter, bits(options)));
            Packet::Subscribe(subscribe.packet_id, subscribe.subscription_id, filters.collect())
        }
        codec::Packet::Unsubscribe(unsubscribe) => {
            Packet::Unsubscribe(unsubscribe.packet_id, unsubscribe.filters)
        }
        codec::Packet::PingReq => Packet::PingReq,
        codec::Packet::Disconnect(disconnect) => {
            Packet::Disconnect(disconnect.code, disconnect.session_expiry_s)
        }
    }
}

fn bits(options: SubscribeOptions) -> u8 {
    let handling = match options.retain_handling {
        RetainHandling::Always => 0,
        RetainHandling::IfNew => 1,
        RetainHandling::Never => 2,
    };
    options.qos as u8
        | u8::from(options.no_local) << 2
        | u8::from(options.retain_as_published) << 3
        | handling << 4
}

fn connect(connect: codec::Connect<'_>) -> Connect<'_> {
    Connect {
        clean_start: connect.clean_start,
        keep_alive_s: connect.keep_alive_s,
        client_id: connect.client_id,
        username: connect.username,
        password: connect.password,
        will: connect.will.map(|will| (will.topic, will.payload, will.qos as u8, will.retain, will.delay_s)),
        session_expiry_s: connect.session_expiry_s,
        receive_maximum: connect.receive_maximum,
        packet_bytes_max: connect.packet_bytes_max,
        topic_alias_maximum: connect.topic_alias_maximum,
        wants_authentication: connect.wants_authentication,
    }
}

/// A PUBLISH as the broker hands it on to a subscriber of a version, when `bytes` begin with one.
#[must_use]
pub fn encode_again(bytes: &[u8], is_v5: bool, to_v5: bool) -> Option<Vec<u8>> {
    let Ok(Framed::Packet(frame)) = codec::frame(bytes, usize::MAX) else { return None };
    let Ok(codec::Packet::Publish(publish)) = decode_packet(&frame, version(is_v5)) else { return None };
    let mut properties = Vec::new();
    codec::forwardable(publish.properties.raw, &mut properties);
    assert!(properties.len() <= publish.properties.raw.len());
    assert_eq!(codec::content_type(&properties), publish.properties.content_type);
    let header = PublishHeader {
        duplicate: publish.duplicate,
        qos: QoS::from_bits(publish.qos as u8)?,
        retain: publish.retain,
        topic: publish.topic,
        topic_alias: publish.properties.topic_alias,
        packet_id: publish.packet_id,
        expiry_s: publish.properties.expiry_s,
        subscription_ids: &[],
        properties: &properties,
    };
    let mut output = Vec::new();
    codec::publish(&mut output, version(to_v5), &header, publish.payload, usize::MAX).then_some(output)
}
