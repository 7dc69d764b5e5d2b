//! Packets that clients send.

use super::properties::{self, id};
use super::{Frame, ProtocolError, QoS, Reader, Reason, Version, text};

/// A packet after CONNECT.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Packet<'a> {
    Publish(Publish<'a>),
    PubAck(Ack),
    PubRec(Ack),
    PubRel(Ack),
    PubComp(Ack),
    Subscribe(Subscribe<'a>),
    Unsubscribe(Unsubscribe<'a>),
    PingReq,
    Disconnect(Disconnect),
}

/// PUBLISH. The topic is not checked yet: it is mostly the one of the packet before, byte for byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Publish<'a> {
    pub(crate) duplicate: bool,
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
    pub(crate) topic: &'a [u8],
    /// 0 with QoS 0.
    pub(crate) packet_id: u16,
    pub(crate) properties: PublishProperties<'a>,
    pub(crate) payload: &'a [u8],
}

/// The properties of a message that the broker itself reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct PublishProperties<'a> {
    pub(crate) topic_alias: Option<u16>,
    pub(crate) expiry_s: Option<u32>,
    pub(crate) content_type: &'a str,
    /// All of them as sent, with their length; empty when there are none.
    pub(crate) raw: &'a [u8],
}

impl<'a> PublishProperties<'a> {
    /// All of them as sent, without their length.
    pub(crate) fn listed(&self) -> &'a [u8] {
        let mut reader = Reader(self.raw);
        match reader.variable() {
            Ok(_length) => reader.rest(),
            Err(_) => &[],
        }
    }
}

impl PublishProperties<'_> {
    /// The properties, with their length, of a message of this content type, at most 255 bytes long; empty without one.
    pub(crate) fn encode_content_type(content_type: &str) -> Vec<u8> {
        let Ok(length) = u8::try_from(content_type.len()) else { return Vec::new() };
        if length == 0 {
            return Vec::new();
        }
        let size = 3 + usize::from(length);
        let mut raw = Vec::with_capacity(2 + size);
        if size > 0x7f {
            raw.extend_from_slice(&[(size & 0x7f) as u8 | 0x80, (size >> 7) as u8]);
        } else {
            raw.push(size as u8);
        }
        raw.extend_from_slice(&[id::CONTENT_TYPE, 0, length]);
        raw.extend_from_slice(content_type.as_bytes());
        raw
    }
}

/// PUBACK, PUBREC, PUBREL, PUBCOMP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ack {
    pub(crate) packet_id: u16,
    /// Reason code; 0x80 and above tell of a failure.
    pub(crate) code: u8,
}

/// SUBSCRIBE. Filters are not checked yet: a bad one is refused alone.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Subscribe<'a> {
    pub(crate) packet_id: u16,
    /// Subscription identifier; 0 when there is none.
    pub(crate) subscription_id: u32,
    pub(crate) filters: Vec<(&'a str, SubscribeOptions)>,
}

/// When retained messages are sent upon SUBSCRIBE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RetainHandling {
    Always,
    IfNew,
    Never,
}

/// How a subscription wants its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SubscribeOptions {
    pub(crate) qos: QoS,
    pub(crate) no_local: bool,
    pub(crate) retain_as_published: bool,
    pub(crate) retain_handling: RetainHandling,
}

/// UNSUBSCRIBE.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unsubscribe<'a> {
    pub(crate) packet_id: u16,
    pub(crate) filters: Vec<&'a str>,
}

/// DISCONNECT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Disconnect {
    pub(crate) code: u8,
    /// A new session expiry, in seconds.
    pub(crate) session_expiry_s: Option<u32>,
}

/// CONNECT.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Connect<'a> {
    pub(crate) version: Version,
    pub(crate) clean_start: bool,
    /// 0: none.
    pub(crate) keep_alive_s: u16,
    /// Empty: the server assigns one.
    pub(crate) client_id: &'a str,
    pub(crate) username: Option<&'a str>,
    pub(crate) password: Option<&'a [u8]>,
    pub(crate) will: Option<ConnectWill<'a>>,
    /// For 3.1.1: 0 for a clean session, else the longest there is.
    pub(crate) session_expiry_s: u32,
    /// How many messages of QoS 1 and 2 may be on their way to the client.
    pub(crate) receive_maximum: u16,
    /// The largest packet that the client takes.
    pub(crate) packet_bytes_max: u32,
    /// Topic aliases that the server may use.
    pub(crate) topic_alias_maximum: u16,
    /// Acknowledgements may have reason strings.
    pub(crate) problem_info: bool,
    /// The client asks for a topic to be answered at.
    pub(crate) response_info: bool,
    /// Enhanced authentication is asked for.
    pub(crate) wants_authentication: bool,
    /// It is a bridge of an instance of Catchment, which likes to know who we are.
    pub(crate) is_bridge: bool,
}

/// What is published for a client that is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ConnectWill<'a> {
    pub(crate) topic: &'a str,
    pub(crate) payload: &'a [u8],
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
    pub(crate) delay_s: u32,
    pub(crate) properties: PublishProperties<'a>,
}

const BAD_FLAGS: ProtocolError =
    ProtocolError::malformed("the fixed header's flags are not those of its type");

/// Reason codes that a client may send with PUBACK and PUBREC.
const TAKEN_CODES: [u8; 9] = [0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99];
/// With PUBREL and PUBCOMP.
const RELEASED_CODES: [u8; 2] = [0x00, 0x92];
/// With DISCONNECT.
const DISCONNECT_CODES: [u8; 14] =
    [0x00, 0x04, 0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99];

/// Decodes a packet after CONNECT.
#[inline]
pub(crate) fn decode<'a>(frame: &Frame<'a>, version: Version) -> Result<Packet<'a>, ProtocolError> {
    let flags = frame.first & 0x0f;
    let reader = Reader(frame.body);
    let flagged = |wanted: u8| if flags == wanted { Ok(()) } else { Err(BAD_FLAGS) };
    match frame.first >> 4 {
        3 => publish(flags, reader, version).map(Packet::Publish),
        4 => flagged(0).and_then(|()| ack(reader, version, &TAKEN_CODES)).map(Packet::PubAck),
        5 => flagged(0).and_then(|()| ack(reader, version, &TAKEN_CODES)).map(Packet::PubRec),
        6 => flagged(2).and_then(|()| ack(reader, version, &RELEASED_CODES)).map(Packet::PubRel),
        7 => flagged(0).and_then(|()| ack(reader, version, &RELEASED_CODES)).map(Packet::PubComp),
        8 => flagged(2).and_then(|()| subscribe(reader, version)).map(Packet::Subscribe),
        10 => flagged(2).and_then(|()| unsubscribe(reader, version)).map(Packet::Unsubscribe),
        12 => flagged(0).and_then(|()| reader.end()).map(|()| Packet::PingReq),
        14 => flagged(0).and_then(|()| disconnect(reader, version)).map(Packet::Disconnect),
        1 => Err(ProtocolError::protocol("a second CONNECT")),
        15 if version == Version::V5 => {
            flagged(0)?;
            Err(ProtocolError::protocol("AUTH without an authentication method in CONNECT"))
        }
        0 | 15 => Err(ProtocolError::malformed("a packet type that does not exist")),
        _ => Err(ProtocolError::protocol("a packet that only servers send")),
    }
}

#[inline]
fn publish(flags: u8, mut reader: Reader<'_>, version: Version) -> Result<Publish<'_>, ProtocolError> {
    let qos = QoS::from_bits(flags >> 1 & 3).ok_or(ProtocolError::malformed("PUBLISH with QoS 3"))?;
    let duplicate = flags & 8 != 0;
    if duplicate && qos == QoS::AtMostOnce {
        return Err(ProtocolError::malformed("PUBLISH of QoS 0 marked as a duplicate"));
    }
    let topic = reader.binary()?;
    let packet_id = if qos == QoS::AtMostOnce { 0 } else { reader.packet_id()? };
    let properties = match version {
        Version::V3 => PublishProperties::default(),
        Version::V5 if reader.0.first() == Some(&0) => {
            reader.u8()?;
            PublishProperties::default()
        }
        Version::V5 => publish_properties(&mut reader, false)?.0,
    };
    Ok(Publish {
        duplicate,
        qos,
        retain: flags & 1 != 0,
        topic,
        packet_id,
        properties,
        payload: reader.rest(),
    })
}

/// The properties of a message, and its delay when it is a will.
fn publish_properties<'a>(
    reader: &mut Reader<'a>,
    is_will: bool,
) -> Result<(PublishProperties<'a>, u32), ProtocolError> {
    const COMMON: [u8; 7] = [
        id::PAYLOAD_FORMAT,
        id::MESSAGE_EXPIRY,
        id::CONTENT_TYPE,
        id::RESPONSE_TOPIC,
        id::CORRELATION_DATA,
        id::USER_PROPERTY,
        id::TOPIC_ALIAS,
    ];
    const OF_WILL: [u8; 7] = [
        id::PAYLOAD_FORMAT,
        id::MESSAGE_EXPIRY,
        id::CONTENT_TYPE,
        id::RESPONSE_TOPIC,
        id::CORRELATION_DATA,
        id::USER_PROPERTY,
        id::WILL_DELAY,
    ];
    let start = reader.rest();
    let mut found = PublishProperties::default();
    let mut delay_s = 0;
    properties::read(reader, if is_will { &OF_WILL } else { &COMMON }, |id, value, _| {
        match id {
            id::TOPIC_ALIAS => found.topic_alias = u16::try_from(value.int()).ok(),
            id::MESSAGE_EXPIRY => found.expiry_s = Some(value.int()),
            id::CONTENT_TYPE => found.content_type = value.text(),
            id::WILL_DELAY => delay_s = value.int(),
            id::RESPONSE_TOPIC if value.text().contains(['+', '#']) => {
                return Err(ProtocolError::protocol("the response topic has a wildcard"));
            }
            _ => {}
        }
        Ok(())
    })?;
    let raw = &start[..start.len() - reader.rest().len()];
    if raw.len() > 1 {
        found.raw = raw;
    }
    Ok((found, delay_s))
}

/// A reason code, which must be one of its packet's.
fn reason_code(reader: &mut Reader<'_>, codes: &[u8]) -> Result<u8, ProtocolError> {
    let code = reader.u8()?;
    if codes.contains(&code) {
        return Ok(code);
    }
    Err(ProtocolError::protocol("the packet has a reason code that clients do not send with it"))
}

fn ack(mut reader: Reader<'_>, version: Version, codes: &[u8]) -> Result<Ack, ProtocolError> {
    let packet_id = reader.packet_id()?;
    let mut code = 0;
    if version == Version::V5 && !reader.is_empty() {
        code = reason_code(&mut reader, codes)?;
        if !reader.is_empty() {
            properties::read(&mut reader, &[id::REASON_STRING, id::USER_PROPERTY], |_, _, _| Ok(()))?;
        }
    }
    reader.end()?;
    Ok(Ack { packet_id, code })
}

fn subscribe(mut reader: Reader<'_>, version: Version) -> Result<Subscribe<'_>, ProtocolError> {
    let packet_id = reader.packet_id()?;
    let mut subscription_id = 0;
    if version == Version::V5 {
        properties::read(&mut reader, &[id::SUBSCRIPTION_ID, id::USER_PROPERTY], |id, value, _| {
            if id == id::SUBSCRIPTION_ID {
                subscription_id = value.int();
            }
            Ok(())
        })?;
    }
    if reader.is_empty() {
        return Err(ProtocolError::protocol("SUBSCRIBE without a filter"));
    }
    let mut filters = Vec::new();
    while !reader.is_empty() {
        filters.push((reader.text()?, subscribe_options(reader.u8()?, version)?));
    }
    Ok(Subscribe { packet_id, subscription_id, filters })
}

fn subscribe_options(bits: u8, version: Version) -> Result<SubscribeOptions, ProtocolError> {
    let reserved = if version == Version::V5 { 0xc0 } else { 0xfc };
    if bits & reserved != 0 {
        return Err(ProtocolError::malformed("reserved bits of the subscription options are set"));
    }
    Ok(SubscribeOptions {
        qos: QoS::from_bits(bits & 3).ok_or(ProtocolError::malformed("SUBSCRIBE with QoS 3"))?,
        no_local: bits & 4 != 0,
        retain_as_published: bits & 8 != 0,
        retain_handling: match bits >> 4 & 3 {
            0 => RetainHandling::Always,
            1 => RetainHandling::IfNew,
            2 => RetainHandling::Never,
            _ => return Err(ProtocolError::protocol("SUBSCRIBE with retain handling 3")),
        },
    })
}

fn unsubscribe(mut reader: Reader<'_>, version: Version) -> Result<Unsubscribe<'_>, ProtocolError> {
    let packet_id = reader.packet_id()?;
    if version == Version::V5 {
        properties::read(&mut reader, &[id::USER_PROPERTY], |_, _, _| Ok(()))?;
    }
    if reader.is_empty() {
        return Err(ProtocolError::protocol("UNSUBSCRIBE without a filter"));
    }
    let mut filters = Vec::new();
    while !reader.is_empty() {
        filters.push(reader.text()?);
    }
    Ok(Unsubscribe { packet_id, filters })
}

fn disconnect(mut reader: Reader<'_>, version: Version) -> Result<Disconnect, ProtocolError> {
    const ALLOWED: [u8; 3] = [id::SESSION_EXPIRY, id::REASON_STRING, id::USER_PROPERTY];
    let mut found = Disconnect { code: 0, session_expiry_s: None };
    if version == Version::V5 && !reader.is_empty() {
        found.code = reason_code(&mut reader, &DISCONNECT_CODES)?;
        if !reader.is_empty() {
            properties::read(&mut reader, &ALLOWED, |id, value, _| {
                if id == id::SESSION_EXPIRY {
                    found.session_expiry_s = Some(value.int());
                }
                Ok(())
            })?;
        }
    }
    reader.end()?;
    Ok(found)
}

/// Decodes CONNECT, which must be the first packet. With the error goes the version that the client speaks, as far as
/// it said so, since the answer depends on it.
pub(crate) fn decode_connect<'a>(frame: &Frame<'a>) -> Result<Connect<'a>, (ProtocolError, Option<Version>)> {
    if frame.first != 0x10 {
        return Err((ProtocolError::protocol("the first packet is not CONNECT"), None));
    }
    let mut reader = Reader(frame.body);
    let version = protocol_version(&mut reader)?;
    connect(reader, version).map_err(|error| (error, Some(version)))
}

/// A level that is not spoken is refused in the form of the nearest one that is: both standards have a code for it.
fn protocol_version(reader: &mut Reader<'_>) -> Result<Version, (ProtocolError, Option<Version>)> {
    const UNSUPPORTED: ProtocolError = ProtocolError {
        reason: Reason::UnsupportedVersion,
        detail: "the server speaks MQTT 3.1.1 and 5.0 only",
    };
    let untold = |error| (error, None);
    match (reader.binary().map_err(untold)?, reader.u8().map_err(untold)?) {
        (b"MQTT", 4) => Ok(Version::V3),
        (b"MQTT", 5) => Ok(Version::V5),
        (b"MQTT", level) if level > 5 => Err((UNSUPPORTED, Some(Version::V5))),
        (b"MQTT" | b"MQIsdp", _) => Err((UNSUPPORTED, Some(Version::V3))),
        _ => Err(untold(ProtocolError::protocol("CONNECT does not name the protocol MQTT"))),
    }
}

fn connect(mut reader: Reader<'_>, version: Version) -> Result<Connect<'_>, ProtocolError> {
    let flags = reader.u8()?;
    let clean_start = flags & 2 != 0;
    let (has_will, has_password, has_username) = (flags & 4 != 0, flags & 0x40 != 0, flags & 0x80 != 0);
    if flags & 1 != 0 {
        return Err(ProtocolError::malformed("CONNECT's reserved flag is set"));
    }
    if !has_will && flags & 0x38 != 0 {
        return Err(ProtocolError::malformed("CONNECT has flags of a will but no will"));
    }
    if version == Version::V3 && has_password && !has_username {
        return Err(ProtocolError::malformed("CONNECT has a password but no user name"));
    }
    let mut found = Connect {
        version,
        clean_start,
        keep_alive_s: reader.u16()?,
        client_id: "",
        username: None,
        password: None,
        will: None,
        session_expiry_s: if version == Version::V3 && !clean_start { u32::MAX } else { 0 },
        receive_maximum: u16::MAX,
        packet_bytes_max: u32::MAX,
        topic_alias_maximum: 0,
        problem_info: true,
        response_info: false,
        wants_authentication: false,
        is_bridge: false,
    };
    if version == Version::V5 {
        connect_properties(&mut reader, &mut found)?;
    }
    found.client_id = reader.text()?;
    if has_will {
        let qos = QoS::from_bits(flags >> 3 & 3).ok_or(ProtocolError::malformed("a will with QoS 3"))?;
        let (properties, delay_s) =
            if version == Version::V5 { publish_properties(&mut reader, true)? } else { Default::default() };
        let (topic, payload) = (reader.text()?, reader.binary()?);
        found.will =
            Some(ConnectWill { topic, payload, qos, retain: flags & 0x20 != 0, delay_s, properties });
    }
    if has_username {
        found.username = Some(reader.text()?);
    }
    if has_password {
        found.password = Some(reader.binary()?);
    }
    reader.end()?;
    Ok(found)
}

fn connect_properties<'a>(reader: &mut Reader<'a>, found: &mut Connect<'a>) -> Result<(), ProtocolError> {
    const ALLOWED: [u8; 9] = [
        id::SESSION_EXPIRY,
        id::RECEIVE_MAXIMUM,
        id::MAXIMUM_PACKET_SIZE,
        id::TOPIC_ALIAS_MAXIMUM,
        id::REQUEST_RESPONSE_INFO,
        id::REQUEST_PROBLEM_INFO,
        id::USER_PROPERTY,
        id::AUTH_METHOD,
        id::AUTH_DATA,
    ];
    let mut has_data = false;
    properties::read(reader, &ALLOWED, |id, value, bytes| {
        match id {
            id::USER_PROPERTY => {
                properties::user_properties(bytes, |name, _| found.is_bridge |= name == properties::VIA);
            }
            id::SESSION_EXPIRY => found.session_expiry_s = value.int(),
            id::RECEIVE_MAXIMUM => found.receive_maximum = u16::try_from(value.int()).unwrap_or(u16::MAX),
            id::MAXIMUM_PACKET_SIZE => found.packet_bytes_max = value.int(),
            id::TOPIC_ALIAS_MAXIMUM => {
                found.topic_alias_maximum = u16::try_from(value.int()).unwrap_or(u16::MAX);
            }
            id::REQUEST_PROBLEM_INFO => found.problem_info = value.int() != 0,
            id::REQUEST_RESPONSE_INFO => found.response_info = value.int() != 0,
            id::AUTH_METHOD => found.wants_authentication = true,
            id::AUTH_DATA => has_data = true,
            _ => {}
        }
        Ok(())
    })?;
    if has_data && !found.wants_authentication {
        return Err(ProtocolError::protocol("authentication data without a method"));
    }
    Ok(())
}

impl<'a> Publish<'a> {
    /// The topic as text. Whether it may be published to is for `topics` to say.
    pub(crate) fn topic_text(&self) -> Result<&'a str, ProtocolError> {
        text(self.topic)
    }
}
