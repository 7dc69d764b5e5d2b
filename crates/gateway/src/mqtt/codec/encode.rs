//! Packets that the broker sends, appended to an output buffer.

use super::properties::{VIA, id, user_property};
use super::{Peer, QoS, Reason, Version};

/// Which of the four acknowledgements: PUBACK, PUBREC, PUBREL, PUBCOMP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum AckKind {
    Ack = 0x40,
    Rec = 0x50,
    Rel = 0x62,
    Comp = 0x70,
}

/// What the broker answers to CONNECT.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConnAck<'a> {
    pub(crate) session_present: bool,
    pub(crate) reason: Reason,
    /// For people; sent to 5.0 clients when not empty.
    pub(crate) reason_string: &'a str,
    /// What the server offers; nothing with a refusal.
    pub(crate) offer: Option<Offer<'a>>,
}

/// The limits a connection is told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Offer<'a> {
    /// The client id when the server assigned it.
    pub(crate) assigned_client_id: Option<&'a str>,
    /// When it differs from what the client asked for.
    pub(crate) session_expiry_s: Option<u32>,
    /// When it differs from what the client asked for.
    pub(crate) keep_alive_s: Option<u16>,
    pub(crate) receive_maximum: u16,
    pub(crate) topic_alias_maximum: u16,
    pub(crate) packet_bytes_max: u32,
    /// Where the client may be answered at, if it asked.
    pub(crate) response_info: Option<&'a str>,
    /// Our name among instances of Catchment, for a bridge of another.
    pub(crate) instance: Option<&'a str>,
}

/// CONNACK. `false` and nothing written when it would be larger than `packet_bytes_max`; a reason string is left out before.
pub(crate) fn connack(
    output: &mut Vec<u8>,
    version: Version,
    connack: &ConnAck<'_>,
    packet_bytes_max: usize,
) -> bool {
    let present = u8::from(connack.session_present);
    if version == Version::V3 {
        output.extend_from_slice(&[0x20, 2, present, connack_code_v3(connack.reason)]);
        return true;
    }
    let mut properties = Vec::new();
    if let Some(offer) = &connack.offer {
        if let Some(seconds) = offer.session_expiry_s {
            properties.push(id::SESSION_EXPIRY);
            properties.extend_from_slice(&seconds.to_be_bytes());
        }
        properties.push(id::RECEIVE_MAXIMUM);
        properties.extend_from_slice(&offer.receive_maximum.to_be_bytes());
        properties.push(id::MAXIMUM_PACKET_SIZE);
        properties.extend_from_slice(&offer.packet_bytes_max.to_be_bytes());
        if let Some(client_id) = offer.assigned_client_id {
            properties.push(id::ASSIGNED_CLIENT_ID);
            push_text(&mut properties, client_id.as_bytes());
        }
        properties.push(id::TOPIC_ALIAS_MAXIMUM);
        properties.extend_from_slice(&offer.topic_alias_maximum.to_be_bytes());
        if let Some(seconds) = offer.keep_alive_s {
            properties.push(id::SERVER_KEEP_ALIVE);
            properties.extend_from_slice(&seconds.to_be_bytes());
        }
        if let Some(topic) = offer.response_info {
            properties.push(id::RESPONSE_INFO);
            push_text(&mut properties, topic.as_bytes());
        }
        if let Some(instance) = offer.instance {
            user_property(&mut properties, VIA, instance);
        }
    }
    let head = [present, connack.reason.code()];
    push_explained(output, 0x20, &head, &properties, connack.reason_string, &[], packet_bytes_max)
}

/// 3.1.1 knows five refusals.
fn connack_code_v3(reason: Reason) -> u8 {
    match reason {
        Reason::Success => 0,
        Reason::UnsupportedVersion => 1,
        Reason::ClientIdNotValid => 2,
        Reason::BadCredentials => 4,
        Reason::NotAuthorized | Reason::Banned => 5,
        _ => 3,
    }
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP. The reason goes to 5.0 clients only, and is left out when it is success.
#[inline]
pub(crate) fn puback(output: &mut Vec<u8>, kind: AckKind, peer: &Peer, packet_id: u16, reason: Reason) {
    let [high, low] = packet_id.to_be_bytes();
    if peer.version == Version::V3 || reason == Reason::Success {
        return output.extend_from_slice(&[kind as u8, 2, high, low]);
    }
    let (head, text) = ([high, low, reason.code()], reason.explanation());
    let explained = peer.problem_info
        && !text.is_empty()
        && push_explained(output, kind as u8, &head, &[], text, &[], peer.packet_bytes_max);
    if !explained {
        output.extend_from_slice(&[kind as u8, 3, high, low, reason.code()]);
    }
}

/// SUBACK; `codes` are granted QoS or reason codes, `refusal` the first of the latter. `false` and nothing written when it
/// would be larger than the client takes.
#[must_use]
pub(crate) fn suback(
    output: &mut Vec<u8>,
    peer: &Peer,
    packet_id: u16,
    codes: &[u8],
    refusal: Reason,
) -> bool {
    acknowledge_each(output, 0x90, peer, packet_id, codes, refusal)
}

/// UNSUBACK, as [`suback`]; 3.1.1 has no codes in it.
#[must_use]
pub(crate) fn unsuback(
    output: &mut Vec<u8>,
    peer: &Peer,
    packet_id: u16,
    codes: &[u8],
    refusal: Reason,
) -> bool {
    let codes = if peer.version == Version::V5 { codes } else { &[] };
    acknowledge_each(output, 0xb0, peer, packet_id, codes, refusal)
}

fn acknowledge_each(
    output: &mut Vec<u8>,
    first: u8,
    peer: &Peer,
    packet_id: u16,
    codes: &[u8],
    refusal: Reason,
) -> bool {
    let packet_id = packet_id.to_be_bytes();
    if peer.version == Version::V5 {
        let text = if peer.problem_info { refusal.explanation() } else { "" };
        return push_explained(output, first, &packet_id, &[], text, codes, peer.packet_bytes_max);
    }
    output.push(first);
    push_variable(output, packet_id.len() + codes.len());
    output.extend_from_slice(&packet_id);
    output.extend_from_slice(codes);
    true
}

/// PINGRESP.
pub(crate) fn ping_response(output: &mut Vec<u8>) {
    output.extend_from_slice(&[0xd0, 0]);
}

/// DISCONNECT, which only 5.0 servers send. Nothing is written when even that is larger than the client takes.
pub(crate) fn disconnect(output: &mut Vec<u8>, reason: Reason, reason_string: &str, packet_bytes_max: usize) {
    push_explained(output, 0xe0, &[reason.code()], &[], reason_string, &[], packet_bytes_max);
}

/// A 5.0 packet of a head, properties, a reason string among them, and a tail. The reason string is left out when it is
/// empty or would make the packet larger than `packet_bytes_max`. `false` and nothing written when the packet is too large
/// all the same.
fn push_explained(
    output: &mut Vec<u8>,
    first: u8,
    head: &[u8],
    properties: &[u8],
    reason_string: &str,
    tail: &[u8],
    packet_bytes_max: usize,
) -> bool {
    let string_field = if reason_string.is_empty() { 0 } else { 3 + reason_string.len() };
    for string_field in [string_field, 0] {
        let properties_length = properties.len() + string_field;
        let length = head.len() + variable_width(properties_length) + properties_length + tail.len();
        if 1 + variable_width(length) + length > packet_bytes_max {
            continue;
        }
        output.push(first);
        push_variable(output, length);
        output.extend_from_slice(head);
        push_variable(output, properties_length);
        output.extend_from_slice(properties);
        if string_field > 0 {
            output.push(id::REASON_STRING);
            push_text(output, reason_string.as_bytes());
        }
        output.extend_from_slice(tail);
        return true;
    }
    false
}

/// What stands before the payload of a message on its way to a subscriber.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PublishHeader<'a> {
    pub(crate) duplicate: bool,
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
    /// Empty: the alias stands for it.
    pub(crate) topic: &'a [u8],
    /// For 5.0 clients that allow aliases.
    pub(crate) topic_alias: Option<u16>,
    /// Left out with QoS 0.
    pub(crate) packet_id: u16,
    /// Seconds that the message still lives.
    pub(crate) expiry_s: Option<u32>,
    pub(crate) subscription_ids: &'a [u32],
    /// Encoded properties to hand on unchanged.
    pub(crate) properties: &'a [u8],
}

/// PUBLISH. `false` and nothing written when it would be larger than `packet_bytes_max`.
pub(crate) fn publish(
    output: &mut Vec<u8>,
    version: Version,
    header: &PublishHeader<'_>,
    payload: &[u8],
    packet_bytes_max: usize,
) -> bool {
    let properties_length = header.properties.len()
        + header.topic_alias.map_or(0, |_| 3)
        + header.expiry_s.map_or(0, |_| 5)
        + header.subscription_ids.iter().map(|&id| 1 + variable_width(id as usize)).sum::<usize>();
    let properties_field = match version {
        Version::V3 => 0,
        Version::V5 => variable_width(properties_length) + properties_length,
    };
    let packet_id_field = if header.qos == QoS::AtMostOnce { 0 } else { 2 };
    let length = 2 + header.topic.len() + packet_id_field + properties_field + payload.len();
    if 1 + variable_width(length) + length > packet_bytes_max {
        return false;
    }
    output.reserve(5 + length);
    let flags = u8::from(header.duplicate) << 3 | (header.qos as u8) << 1 | u8::from(header.retain);
    output.push(0x30 | flags);
    push_variable(output, length);
    push_text(output, header.topic);
    if header.qos != QoS::AtMostOnce {
        output.extend_from_slice(&header.packet_id.to_be_bytes());
    }
    if version == Version::V5 {
        push_variable(output, properties_length);
        if let Some(seconds) = header.expiry_s {
            output.push(id::MESSAGE_EXPIRY);
            output.extend_from_slice(&seconds.to_be_bytes());
        }
        if let Some(alias) = header.topic_alias {
            output.push(id::TOPIC_ALIAS);
            output.extend_from_slice(&alias.to_be_bytes());
        }
        for &subscription_id in header.subscription_ids {
            output.push(id::SUBSCRIPTION_ID);
            push_variable(output, subscription_id as usize);
        }
        output.extend_from_slice(header.properties);
    }
    output.extend_from_slice(payload);
    true
}

/// Text with its length. All texts come from packets or from this program and are below 64 KiB.
pub(super) fn push_text(output: &mut Vec<u8>, text: &[u8]) {
    let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
    output.extend_from_slice(&length.to_be_bytes());
    output.extend_from_slice(&text[..usize::from(length)]);
}

const fn variable_width(value: usize) -> usize {
    match value {
        0..=0x7f => 1,
        0x80..=0x3fff => 2,
        0x4000..=0x1f_ffff => 3,
        _ => 4,
    }
}

pub(super) fn push_variable(output: &mut Vec<u8>, mut value: usize) {
    while value > 0x7f {
        output.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    output.push(value as u8);
}
