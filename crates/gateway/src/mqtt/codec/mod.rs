//! The MQTT wire format, 3.1.1 and 5.0: framing, decoding of what clients send, encoding of what the broker sends; the
//! client's side, for bridges, is in `client`.
//!
//! Everything decoded is borrowed from the read buffer; nothing is allocated for a PUBLISH. Whatever the standards
//! forbid is refused here with the reason code that a 5.0 client is told, so that the rest of the broker only sees
//! well-formed packets. Topic names and filters have rules of their own, in `topics`.

mod client;
mod decode;
mod encode;
mod properties;
#[cfg(test)]
mod tests;

pub(crate) use client::{
    Answer, ConnectRequest, FromServer, Wanted, connect, decode_connack, decode_from_server, part,
    ping_request, subscribe,
};
pub(crate) use decode::{
    Ack, Connect, ConnectWill, Packet, Publish, PublishProperties, RetainHandling, Subscribe,
    SubscribeOptions, Unsubscribe, decode, decode_connect,
};
pub(crate) use encode::{
    AckKind, ConnAck, Offer, PublishHeader, connack, disconnect, ping_response, puback, publish, suback,
    unsuback,
};
pub(crate) use properties::{VIA, content_type, forwardable, user_properties, user_property};

/// The protocol version of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    /// 3.1.1
    V3,
    /// 5.0
    V5,
}

/// Quality of service of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum QoS {
    /// 0: sent once, not acknowledged.
    AtMostOnce = 0,
    /// 1: acknowledged; may arrive twice.
    AtLeastOnce = 1,
    /// 2: acknowledged in two steps; arrives once.
    ExactlyOnce = 2,
}

impl QoS {
    pub(crate) const fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0 => Some(Self::AtMostOnce),
            1 => Some(Self::AtLeastOnce),
            2 => Some(Self::ExactlyOnce),
            _ => None,
        }
    }
}

/// The reason codes that the broker sends. 3.1.1 has codes only in CONNACK and SUBACK; see `encode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(crate) enum Reason {
    Success = 0x00,
    NoSubscriptionExisted = 0x11,
    Unspecified = 0x80,
    Malformed = 0x81,
    ProtocolError = 0x82,
    ImplementationSpecific = 0x83,
    UnsupportedVersion = 0x84,
    ClientIdNotValid = 0x85,
    BadCredentials = 0x86,
    NotAuthorized = 0x87,
    ServerUnavailable = 0x88,
    ServerBusy = 0x89,
    Banned = 0x8A,
    ServerShuttingDown = 0x8B,
    BadAuthenticationMethod = 0x8C,
    KeepAliveTimeout = 0x8D,
    SessionTakenOver = 0x8E,
    TopicFilterInvalid = 0x8F,
    TopicNameInvalid = 0x90,
    PacketIdNotFound = 0x92,
    ReceiveMaximumExceeded = 0x93,
    TopicAliasInvalid = 0x94,
    PacketTooLarge = 0x95,
    QuotaExceeded = 0x97,
    AdministrativeAction = 0x98,
    SharedWithNoLocal = 0x9E,
    ConnectionRateExceeded = 0x9F,
}

impl Reason {
    /// The code on the wire.
    pub(crate) const fn code(self) -> u8 {
        self as u8
    }

    /// What an acknowledgement to a 5.0 client says in words, for people, where that is more than the code's own name.
    pub(crate) const fn explanation(self) -> &'static str {
        match self {
            Self::TopicNameInvalid => "the topic leads to no valid device id and type",
            Self::TopicFilterInvalid => "the filter is empty, malformed, too long or too deep",
            Self::QuotaExceeded => "a limit of the server is reached",
            Self::PacketIdNotFound => "no message with this packet identifier is on its way",
            Self::ImplementationSpecific => "the message cannot be kept as an event",
            _ => "",
        }
    }

    /// The name in metrics and logs.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::NoSubscriptionExisted => "no_subscription_existed",
            Self::Unspecified => "unspecified",
            Self::Malformed => "malformed_packet",
            Self::ProtocolError => "protocol_error",
            Self::ImplementationSpecific => "implementation_specific",
            Self::UnsupportedVersion => "unsupported_version",
            Self::ClientIdNotValid => "client_id_not_valid",
            Self::BadCredentials => "bad_credentials",
            Self::NotAuthorized => "not_authorized",
            Self::ServerUnavailable => "server_unavailable",
            Self::ServerBusy => "server_busy",
            Self::Banned => "banned",
            Self::ServerShuttingDown => "server_shutting_down",
            Self::BadAuthenticationMethod => "bad_authentication_method",
            Self::KeepAliveTimeout => "keep_alive_timeout",
            Self::SessionTakenOver => "session_taken_over",
            Self::TopicFilterInvalid => "topic_filter_invalid",
            Self::TopicNameInvalid => "topic_name_invalid",
            Self::PacketIdNotFound => "packet_id_not_found",
            Self::ReceiveMaximumExceeded => "receive_maximum_exceeded",
            Self::TopicAliasInvalid => "topic_alias_invalid",
            Self::PacketTooLarge => "packet_too_large",
            Self::QuotaExceeded => "quota_exceeded",
            Self::AdministrativeAction => "administrative_action",
            Self::ConnectionRateExceeded => "connection_rate_exceeded",
            Self::SharedWithNoLocal => "shared_with_no_local",
        }
    }
}

/// What the client at the other end takes, as it said in CONNECT.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer {
    pub(crate) version: Version,
    /// Its largest packet; nothing above is sent.
    pub(crate) packet_bytes_max: usize,
    /// Messages of QoS 1 and 2 that may be on their way.
    pub(crate) window: usize,
    /// Whether acknowledgements may say in words what went wrong (5.0, 3.1.2.11.7).
    pub(crate) problem_info: bool,
}

/// What a client did against the standard: ends its connection, and only that one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProtocolError {
    /// What a 5.0 client is told.
    pub(crate) reason: Reason,
    /// What exactly, for people.
    pub(crate) detail: &'static str,
}

impl ProtocolError {
    pub(crate) const fn malformed(detail: &'static str) -> Self {
        Self { reason: Reason::Malformed, detail }
    }

    pub(crate) const fn protocol(detail: &'static str) -> Self {
        Self { reason: Reason::ProtocolError, detail }
    }
}

/// One packet as framed by its fixed header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    /// Type and flags.
    pub(crate) first: u8,
    /// What follows the fixed header.
    pub(crate) body: &'a [u8],
    /// Size of the whole packet.
    pub(crate) length: usize,
}

/// What the start of a read buffer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framed<'a> {
    /// A whole packet.
    Packet(Frame<'a>),
    /// Only a part of one. Its whole size, once the fixed header tells it.
    Partial(Option<usize>),
}

/// Reads a fixed header. A packet over `packet_bytes_max` is refused before its body has arrived.
#[inline]
pub(crate) fn frame(bytes: &[u8], packet_bytes_max: usize) -> Result<Framed<'_>, ProtocolError> {
    let Some((&first, rest)) = bytes.split_first() else { return Ok(Framed::Partial(None)) };
    let Some((body_length, width)) = variable_int(rest)? else { return Ok(Framed::Partial(None)) };
    let length = 1 + width + body_length as usize;
    if length > packet_bytes_max {
        return Err(ProtocolError {
            reason: Reason::PacketTooLarge,
            detail: "the packet is larger than the server takes",
        });
    }
    match bytes.get(1 + width..length) {
        Some(body) => Ok(Framed::Packet(Frame { first, body, length })),
        None => Ok(Framed::Partial(Some(length))),
    }
}

/// A variable byte integer and its width; nothing while bytes are missing. The shortest encoding is required.
#[inline]
fn variable_int(bytes: &[u8]) -> Result<Option<(u32, usize)>, ProtocolError> {
    let mut value = 0u32;
    for width in 1..=4 {
        let Some(&byte) = bytes.get(width - 1) else { return Ok(None) };
        value |= u32::from(byte & 0x7f) << (7 * (width - 1));
        if byte & 0x80 == 0 {
            if byte == 0 && width > 1 {
                return Err(ProtocolError::malformed("a length is not in its shortest form"));
            }
            return Ok(Some((value, width)));
        }
    }
    Err(ProtocolError::malformed("a length has more than four bytes"))
}

/// Takes fields off the front of a packet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a>(&'a [u8]);

const CUT: ProtocolError = ProtocolError::malformed("the packet ends within a field");

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], ProtocolError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(CUT)?;
        self.0 = rest;
        Ok(taken)
    }

    fn u8(&mut self) -> Result<u8, ProtocolError> {
        let (&byte, rest) = self.0.split_first().ok_or(CUT)?;
        self.0 = rest;
        Ok(byte)
    }

    fn u16(&mut self) -> Result<u16, ProtocolError> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(CUT)?;
        self.0 = rest;
        Ok(u16::from_be_bytes(*bytes))
    }

    fn u32(&mut self) -> Result<u32, ProtocolError> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(CUT)?;
        self.0 = rest;
        Ok(u32::from_be_bytes(*bytes))
    }

    fn variable(&mut self) -> Result<u32, ProtocolError> {
        let (value, width) = variable_int(self.0)?.ok_or(CUT)?;
        self.0 = &self.0[width..];
        Ok(value)
    }

    fn binary(&mut self) -> Result<&'a [u8], ProtocolError> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }

    fn text(&mut self) -> Result<&'a str, ProtocolError> {
        text(self.binary()?)
    }

    fn packet_id(&mut self) -> Result<u16, ProtocolError> {
        match self.u16()? {
            0 => Err(ProtocolError::protocol("the packet identifier is 0")),
            id => Ok(id),
        }
    }

    fn rest(self) -> &'a [u8] {
        self.0
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn end(self) -> Result<(), ProtocolError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(ProtocolError::malformed("bytes follow the packet's end"))
        }
    }
}

/// An MQTT string: UTF-8 without U+0000.
pub(crate) fn text(bytes: &[u8]) -> Result<&str, ProtocolError> {
    match std::str::from_utf8(bytes) {
        Ok(text) if !bytes.contains(&0) => Ok(text),
        Ok(_) => Err(ProtocolError::malformed("a text has the character U+0000")),
        Err(_) => Err(ProtocolError::malformed("a text is not UTF-8")),
    }
}
