//! The properties of 5.0 packets: which exist, of what type, in which packet, and how often.

use super::encode::push_text;
use super::{ProtocolError, Reader, Reason};

/// Longest properties of a packet, in bytes: four of its fields at their largest. The standard knows no limit, but a packet of
/// a million of them would hold others up.
const BYTES_MAX: usize = 256 << 10;

/// The properties that clients and this server send.
pub(super) mod id {
    pub(crate) const PAYLOAD_FORMAT: u8 = 0x01;
    pub(crate) const MESSAGE_EXPIRY: u8 = 0x02;
    pub(crate) const CONTENT_TYPE: u8 = 0x03;
    pub(crate) const RESPONSE_TOPIC: u8 = 0x08;
    pub(crate) const CORRELATION_DATA: u8 = 0x09;
    pub(crate) const SUBSCRIPTION_ID: u8 = 0x0B;
    pub(crate) const SESSION_EXPIRY: u8 = 0x11;
    pub(crate) const ASSIGNED_CLIENT_ID: u8 = 0x12;
    pub(crate) const SERVER_KEEP_ALIVE: u8 = 0x13;
    pub(crate) const AUTH_METHOD: u8 = 0x15;
    pub(crate) const AUTH_DATA: u8 = 0x16;
    pub(crate) const REQUEST_PROBLEM_INFO: u8 = 0x17;
    pub(crate) const WILL_DELAY: u8 = 0x18;
    pub(crate) const REQUEST_RESPONSE_INFO: u8 = 0x19;
    pub(crate) const RESPONSE_INFO: u8 = 0x1A;
    pub(crate) const REASON_STRING: u8 = 0x1F;
    pub(crate) const RECEIVE_MAXIMUM: u8 = 0x21;
    pub(crate) const TOPIC_ALIAS_MAXIMUM: u8 = 0x22;
    pub(crate) const TOPIC_ALIAS: u8 = 0x23;
    pub(crate) const USER_PROPERTY: u8 = 0x26;
    pub(crate) const MAXIMUM_PACKET_SIZE: u8 = 0x27;
    pub(crate) const SERVER_REFERENCE: u8 = 0x1C;
    pub(crate) const MAXIMUM_QOS: u8 = 0x24;
    pub(crate) const RETAIN_AVAILABLE: u8 = 0x25;
    pub(crate) const WILDCARD_AVAILABLE: u8 = 0x28;
    pub(crate) const SUBSCRIPTION_IDS_AVAILABLE: u8 = 0x29;
    pub(crate) const SHARED_AVAILABLE: u8 = 0x2A;
}

/// The user property by which instances of Catchment know where a message has been, and each other; see `bridge::stamp`.
pub(crate) const VIA: &str = "catchment-via";

/// A property's value, by its type on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Int(u32),
    Text(&'a str),
    Binary,
    Pair,
}

impl<'a> Value<'a> {
    pub(super) fn int(self) -> u32 {
        if let Self::Int(value) = self { value } else { 0 }
    }

    pub(super) fn text(self) -> &'a str {
        if let Self::Text(text) = self { text } else { "" }
    }
}

/// Reads the properties at the reader's front, each of which must be in `allowed` and, but for user properties, may
/// stand there once. `each` gets identifier, value and the property's own bytes.
pub(super) fn read<'a>(
    reader: &mut Reader<'a>,
    allowed: &[u8],
    mut each: impl FnMut(u8, Value<'a>, &'a [u8]) -> Result<(), ProtocolError>,
) -> Result<(), ProtocolError> {
    let length = reader.variable()? as usize;
    if length == 0 {
        return Ok(());
    }
    if length > BYTES_MAX {
        return Err(ProtocolError {
            reason: Reason::QuotaExceeded,
            detail: "the packet has more than 256 KiB of properties",
        });
    }
    let mut properties = Reader(reader.take(length)?);
    let mut seen = 0u64;
    while !properties.is_empty() {
        let start = properties.rest();
        let id = properties.u8()?;
        let value = value(&mut properties, id)?;
        if !allowed.contains(&id) {
            return Err(ProtocolError::protocol("the packet has a property that does not belong there"));
        }
        let bit = 1 << id;
        if id != id::USER_PROPERTY && seen & bit != 0 {
            return Err(ProtocolError::protocol("the packet has a property twice"));
        }
        seen |= bit;
        each(id, value, &start[..start.len() - properties.rest().len()])?;
    }
    Ok(())
}

/// The value of a property, which also tells whether it exists at all. Identifiers are below 64.
fn value<'a>(reader: &mut Reader<'a>, id: u8) -> Result<Value<'a>, ProtocolError> {
    Ok(match id {
        id::PAYLOAD_FORMAT | id::REQUEST_PROBLEM_INFO | id::REQUEST_RESPONSE_INFO => match reader.u8()? {
            value @ (0 | 1) => Value::Int(value.into()),
            _ => return Err(ProtocolError::protocol("a property that must be 0 or 1 is neither")),
        },
        id::MAXIMUM_QOS
        | id::RETAIN_AVAILABLE
        | id::WILDCARD_AVAILABLE
        | id::SUBSCRIPTION_IDS_AVAILABLE
        | id::SHARED_AVAILABLE => Value::Int(reader.u8()?.into()),
        id::RECEIVE_MAXIMUM => non_zero(reader.u16()?.into())?,
        id::SERVER_KEEP_ALIVE | id::TOPIC_ALIAS_MAXIMUM | id::TOPIC_ALIAS => Value::Int(reader.u16()?.into()),
        id::MESSAGE_EXPIRY | id::SESSION_EXPIRY | id::WILL_DELAY => Value::Int(reader.u32()?),
        id::MAXIMUM_PACKET_SIZE => non_zero(reader.u32()?)?,
        id::SUBSCRIPTION_ID => non_zero(reader.variable()?)?,
        id::CONTENT_TYPE
        | id::RESPONSE_TOPIC
        | id::ASSIGNED_CLIENT_ID
        | id::AUTH_METHOD
        | id::REASON_STRING
        | id::RESPONSE_INFO
        | id::SERVER_REFERENCE => Value::Text(reader.text()?),
        id::CORRELATION_DATA | id::AUTH_DATA => {
            reader.binary()?;
            Value::Binary
        }
        id::USER_PROPERTY => {
            reader.text()?;
            reader.text()?;
            Value::Pair
        }
        _ => return Err(ProtocolError::malformed("the packet has an unknown property")),
    })
}

fn non_zero(value: u32) -> Result<Value<'static>, ProtocolError> {
    if value == 0 {
        return Err(ProtocolError::protocol("a property that must not be 0 is 0"));
    }
    Ok(Value::Int(value))
}

/// The properties of a message that the broker hands on unchanged, in order: payload format, content type, response
/// topic, correlation data and user properties. `properties` was read before, with its length in front.
pub(crate) fn forwardable(properties: &[u8], into: &mut Vec<u8>) {
    const KEPT: [u8; 5] =
        [id::PAYLOAD_FORMAT, id::CONTENT_TYPE, id::RESPONSE_TOPIC, id::CORRELATION_DATA, id::USER_PROPERTY];
    let mut reader = Reader(properties);
    let Ok(_length) = reader.variable() else { return };
    while !reader.is_empty() {
        let start = reader.rest();
        let Ok(id) = reader.u8() else { return };
        if value(&mut reader, id).is_err() {
            return;
        }
        if KEPT.contains(&id) {
            into.extend_from_slice(&start[..start.len() - reader.rest().len()]);
        }
    }
}

/// The content type among properties that [`forwardable`] has written; empty when there is none.
pub(crate) fn content_type(forwardable: &[u8]) -> &str {
    let mut reader = Reader(forwardable);
    while !reader.is_empty() {
        match reader.u8().map(|id| (id, value(&mut reader, id))) {
            Ok((id::CONTENT_TYPE, Ok(found))) => return found.text(),
            Ok((_, Ok(_))) => {}
            _ => break,
        }
    }
    ""
}

/// The user properties among properties that [`forwardable`] has written: name and value of each.
pub(crate) fn user_properties<'a>(forwardable: &'a [u8], mut each: impl FnMut(&'a str, &'a str)) {
    let mut reader = Reader(forwardable);
    while !reader.is_empty() {
        let Ok(id) = reader.u8() else { return };
        if id == id::USER_PROPERTY {
            match (reader.text(), reader.text()) {
                (Ok(name), Ok(value)) => each(name, value),
                _ => return,
            }
        } else if value(&mut reader, id).is_err() {
            return;
        }
    }
}

/// Appends a user property.
pub(crate) fn user_property(into: &mut Vec<u8>, name: &str, value: &str) {
    into.push(id::USER_PROPERTY);
    push_text(into, name.as_bytes());
    push_text(into, value.as_bytes());
}
