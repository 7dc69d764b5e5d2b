//! The client's side of the wire format, for connections that we open ourselves: what a client sends before it publishes,
//! and what only servers send.

use super::decode::{self, Packet};
use super::encode::{push_text, push_variable};
use super::properties::{self, VIA, id};
use super::{Frame, ProtocolError, QoS, Reader, Version};

/// Marks a connection as that of a bridge in the protocol level of 3.1.1: mosquitto and others then send nothing back that
/// came by it, and leave the retain flag as published. Not part of the standard.
const BRIDGE_LEVEL: u8 = 0x80;

/// CONNECT.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConnectRequest<'a> {
    pub(crate) version: Version,
    /// For 3.1.1; see [`BRIDGE_LEVEL`].
    pub(crate) says_bridge: bool,
    pub(crate) client_id: &'a str,
    pub(crate) keep_alive_s: u16,
    pub(crate) username: Option<&'a str>,
    pub(crate) password: Option<&'a [u8]>,
    pub(crate) session_expiry_s: u32,
    pub(crate) receive_maximum: u16,
    pub(crate) packet_bytes_max: u32,
    /// Our name among instances of Catchment.
    pub(crate) instance: &'a str,
}

/// Writes CONNECT, for a session that goes on.
pub(crate) fn connect(output: &mut Vec<u8>, request: &ConnectRequest<'_>) {
    let mut body = Vec::new();
    push_text(&mut body, b"MQTT");
    let (level, properties) = match request.version {
        Version::V3 => (4 | if request.says_bridge { BRIDGE_LEVEL } else { 0 }, None),
        Version::V5 => {
            let mut properties = vec![id::SESSION_EXPIRY];
            properties.extend_from_slice(&request.session_expiry_s.to_be_bytes());
            properties.push(id::RECEIVE_MAXIMUM);
            properties.extend_from_slice(&request.receive_maximum.to_be_bytes());
            properties.push(id::MAXIMUM_PACKET_SIZE);
            properties.extend_from_slice(&request.packet_bytes_max.to_be_bytes());
            properties::user_property(&mut properties, VIA, request.instance);
            (5, Some(properties))
        }
    };
    let flags = u8::from(request.username.is_some()) << 7 | u8::from(request.password.is_some()) << 6;
    body.extend_from_slice(&[level, flags]);
    body.extend_from_slice(&request.keep_alive_s.to_be_bytes());
    if let Some(properties) = properties {
        push_variable(&mut body, properties.len());
        body.extend_from_slice(&properties);
    }
    push_text(&mut body, request.client_id.as_bytes());
    for field in [request.username.map(str::as_bytes), request.password].into_iter().flatten() {
        push_text(&mut body, field);
    }
    output.push(0x10);
    push_variable(output, body.len());
    output.extend_from_slice(&body);
}

/// A filter to subscribe to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) filter: &'a str,
    pub(crate) qos: QoS,
    /// 5.0: not what we ourselves have published.
    pub(crate) no_local: bool,
    /// 5.0: whether retained messages are wanted, those of a new subscription.
    pub(crate) retained: bool,
}

/// Writes SUBSCRIBE.
pub(crate) fn subscribe(output: &mut Vec<u8>, version: Version, packet_id: u16, wanted: &[Wanted<'_>]) {
    const RETAIN_AS_PUBLISHED: u8 = 8;
    let mut body = packet_id.to_be_bytes().to_vec();
    if version == Version::V5 {
        body.push(0);
    }
    for wanted in wanted {
        push_text(&mut body, wanted.filter.as_bytes());
        body.push(match version {
            Version::V3 => wanted.qos as u8,
            Version::V5 => {
                let handling = if wanted.retained { 1 } else { 2 };
                wanted.qos as u8 | u8::from(wanted.no_local) << 2 | RETAIN_AS_PUBLISHED | handling << 4
            }
        });
    }
    output.push(0x82);
    push_variable(output, body.len());
    output.extend_from_slice(&body);
}

/// Writes PINGREQ.
pub(crate) fn ping_request(output: &mut Vec<u8>) {
    output.extend_from_slice(&[0xc0, 0]);
}

/// Writes DISCONNECT; 3.1.1 has no reason codes.
pub(crate) fn part(output: &mut Vec<u8>, version: Version, code: u8) {
    match (version, code) {
        (Version::V3, _) | (_, 0) => output.extend_from_slice(&[0xe0, 0]),
        (Version::V5, code) => output.extend_from_slice(&[0xe0, 1, code]),
    }
}

/// What a server answers to CONNECT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) session_present: bool,
    /// 0: we are in.
    pub(crate) code: u8,
    /// In the server's words; may be empty.
    pub(crate) reason: String,
    pub(crate) receive_maximum: u16,
    pub(crate) packet_bytes_max: u32,
    pub(crate) qos_max: QoS,
    pub(crate) retains: bool,
    pub(crate) shares: bool,
    /// When the server wants another than was asked for.
    pub(crate) keep_alive_s: Option<u16>,
    /// When the server keeps the session for another time than was asked for.
    pub(crate) session_expiry_s: Option<u32>,
    /// The server's name, if it is an instance of Catchment.
    pub(crate) instance: Option<String>,
}

/// Reads CONNACK.
pub(crate) fn decode_connack(frame: &Frame<'_>, version: Version) -> Result<Answer, ProtocolError> {
    const ALLOWED: [u8; 17] = [
        id::SESSION_EXPIRY,
        id::ASSIGNED_CLIENT_ID,
        id::SERVER_KEEP_ALIVE,
        id::AUTH_METHOD,
        id::AUTH_DATA,
        id::RESPONSE_INFO,
        id::SERVER_REFERENCE,
        id::REASON_STRING,
        id::RECEIVE_MAXIMUM,
        id::TOPIC_ALIAS_MAXIMUM,
        id::MAXIMUM_QOS,
        id::RETAIN_AVAILABLE,
        id::USER_PROPERTY,
        id::MAXIMUM_PACKET_SIZE,
        id::WILDCARD_AVAILABLE,
        id::SUBSCRIPTION_IDS_AVAILABLE,
        id::SHARED_AVAILABLE,
    ];
    if frame.first != 0x20 {
        return Err(ProtocolError::protocol("the first packet of the server is not CONNACK"));
    }
    let mut reader = Reader(frame.body);
    let session_present = reader.u8()? & 1 != 0;
    let mut answer = Answer {
        session_present,
        code: reader.u8()?,
        reason: String::new(),
        receive_maximum: u16::MAX,
        packet_bytes_max: u32::MAX,
        qos_max: QoS::ExactlyOnce,
        retains: true,
        shares: true,
        keep_alive_s: None,
        session_expiry_s: None,
        instance: None,
    };
    // A server that knows 3.1.1 only refuses 5.0 in its own form, without properties.
    if version == Version::V5 && !reader.is_empty() {
        properties::read(&mut reader, &ALLOWED, |id, value, bytes| {
            let number = value.int();
            match id {
                id::SESSION_EXPIRY => answer.session_expiry_s = Some(number),
                id::SERVER_KEEP_ALIVE => answer.keep_alive_s = u16::try_from(number).ok(),
                id::REASON_STRING => answer.reason = value.text().to_owned(),
                id::RECEIVE_MAXIMUM => answer.receive_maximum = u16::try_from(number).unwrap_or(u16::MAX),
                id::MAXIMUM_QOS => {
                    answer.qos_max = if number == 0 { QoS::AtMostOnce } else { QoS::AtLeastOnce };
                }
                id::RETAIN_AVAILABLE => answer.retains = number != 0,
                id::SHARED_AVAILABLE => answer.shares = number != 0,
                id::MAXIMUM_PACKET_SIZE => answer.packet_bytes_max = number,
                id::USER_PROPERTY => properties::user_properties(bytes, |name, value| {
                    if name == VIA {
                        answer.instance = Some(value.to_owned());
                    }
                }),
                _ => {}
            }
            Ok(())
        })?;
    }
    reader.end()?;
    Ok(answer)
}

/// A packet that a server sends after CONNACK.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum FromServer<'a> {
    /// One that both sides send.
    Packet(Packet<'a>),
    /// A code for each filter.
    SubAck {
        packet_id: u16,
        codes: &'a [u8],
    },
    /// Nobody asked for it, and it does no harm.
    UnsubAck,
    PingResp,
    Disconnect {
        code: u8,
        reason: &'a str,
    },
}

/// Decodes a packet of a server after CONNACK.
#[inline]
pub(crate) fn decode_from_server<'a>(
    frame: &Frame<'a>,
    version: Version,
) -> Result<FromServer<'a>, ProtocolError> {
    const EXPLAINED: [u8; 2] = [id::REASON_STRING, id::USER_PROPERTY];
    let mut reader = Reader(frame.body);
    match frame.first {
        0x90 => {
            let packet_id = reader.packet_id()?;
            if version == Version::V5 {
                properties::read(&mut reader, &EXPLAINED, |_, _, _| Ok(()))?;
            }
            Ok(FromServer::SubAck { packet_id, codes: reader.rest() })
        }
        0xb0 => Ok(FromServer::UnsubAck),
        0xd0 => reader.end().map(|()| FromServer::PingResp),
        0xe0 if version == Version::V5 => {
            let (mut code, mut reason) = (0, "");
            if !reader.is_empty() {
                code = reader.u8()?;
            }
            if !reader.is_empty() {
                const ALLOWED: [u8; 4] =
                    [id::SESSION_EXPIRY, id::REASON_STRING, id::USER_PROPERTY, id::SERVER_REFERENCE];
                properties::read(&mut reader, &ALLOWED, |id, value, _| {
                    if id == id::REASON_STRING {
                        reason = value.text();
                    }
                    Ok(())
                })?;
            }
            Ok(FromServer::Disconnect { code, reason })
        }
        // PUBLISH and its acknowledgements.
        first if (3..=7).contains(&(first >> 4)) => decode::decode(frame, version).map(FromServer::Packet),
        _ => Err(ProtocolError::protocol("a packet that only clients send")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Framed, decode_connect, frame};
    use super::*;

    fn framed(bytes: &[u8]) -> Frame<'_> {
        match frame(bytes, 1 << 20) {
            Ok(Framed::Packet(frame)) if frame.length == bytes.len() => frame,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_a_client_sends_is_what_a_server_reads() {
        for version in [Version::V3, Version::V5] {
            let request = ConnectRequest {
                version,
                says_bridge: false,
                client_id: "c1",
                keep_alive_s: 30,
                username: Some("u"),
                password: Some(b"p"),
                session_expiry_s: 77,
                receive_maximum: 9,
                packet_bytes_max: 4096,
                instance: "i1",
            };
            let mut bytes = Vec::new();
            connect(&mut bytes, &request);
            let read = decode_connect(&framed(&bytes)).unwrap();
            assert!(!read.clean_start && read.version == version);
            assert_eq!((read.client_id, read.username, read.password), ("c1", Some("u"), Some(&b"p"[..])));
            if version == Version::V5 {
                assert_eq!((read.session_expiry_s, read.receive_maximum), (77, 9));
                assert!(read.is_bridge);
            }
            let mut bytes = Vec::new();
            let wanted = Wanted { filter: "a/#", qos: QoS::AtLeastOnce, no_local: true, retained: false };
            subscribe(&mut bytes, version, 5, &[wanted]);
            let Ok(Packet::Subscribe(read)) = decode::decode(&framed(&bytes), version) else { panic!() };
            assert_eq!((read.packet_id, read.filters[0].0), (5, "a/#"));
            assert_eq!(read.filters[0].1.no_local, version == Version::V5);
            for code in [0, 0x81] {
                let mut bytes = Vec::new();
                part(&mut bytes, version, code);
                assert!(matches!(decode::decode(&framed(&bytes), version), Ok(Packet::Disconnect(_))));
            }
        }
    }

    #[test]
    fn answers_are_read() {
        let v3 = decode_connack(&framed(&[0x20, 2, 1, 0]), Version::V3).unwrap();
        assert!(v3.session_present && v3.code == 0);
        let v5 = [0x20, 10, 0, 0x86, 7, 0x1f, 0, 2, b'n', b'o', 0x24, 1];
        let v5 = decode_connack(&framed(&v5), Version::V5).unwrap();
        assert_eq!((v5.code, v5.reason.as_str(), v5.qos_max), (0x86, "no", QoS::AtLeastOnce));
        assert_eq!(decode_connack(&framed(&[0x20, 2, 0, 1]), Version::V5).unwrap().code, 1);
        assert!(decode_connack(&framed(&[0x30, 2, 0, 1]), Version::V5).is_err());
    }

    #[test]
    fn what_servers_send_is_read_and_what_clients_send_is_not() {
        let read = |bytes: &'static [u8], version| decode_from_server(&framed(bytes), version);
        assert_eq!(
            read(&[0x90, 4, 0, 1, 1, 0x80], Version::V3),
            Ok(FromServer::SubAck { packet_id: 1, codes: &[1, 0x80] })
        );
        assert_eq!(
            read(&[0x90, 4, 0, 1, 0, 2], Version::V5),
            Ok(FromServer::SubAck { packet_id: 1, codes: &[2] })
        );
        assert_eq!(read(&[0xd0, 0], Version::V3), Ok(FromServer::PingResp));
        assert_eq!(
            read(&[0xe0, 1, 0x8e], Version::V5),
            Ok(FromServer::Disconnect { code: 0x8e, reason: "" })
        );
        assert!(matches!(read(&[0x40, 2, 0, 1], Version::V3), Ok(FromServer::Packet(Packet::PubAck(_)))));
        for bad in [&[0xe0u8, 0][..], &[0xc0, 0], &[0x10, 0], &[0xf0, 0]] {
            assert!(decode_from_server(&framed(bad), Version::V3).is_err());
        }
    }
}
