//! What mqtt-proto says of a packet, for comparison. It was written by others from the same standards.

use catchment_gateway::fuzzing::{Connect, Packet, Publish, decode};
use mqtt_proto::{QosPid, v3, v5};

/// Why we refuse what mqtt-proto takes. All but the last two of these the standards forbid, and mqtt-proto does not look.
const STRICTER: &[&str] = &[
    "PUBLISH of QoS 0 marked as a duplicate",
    "a text has the character U+0000",
    "a length is not in its shortest form",
    "bytes follow the packet's end",
    "the packet ends within a field",
    "the packet has a property that does not belong there",
    "the packet has a reason code that clients do not send with it",
    "CONNECT's reserved flag is set",
    "CONNECT has flags of a will but no will",
    "CONNECT has a password but no user name",
    "the fixed header's flags are not those of its type",
    "the response topic has a wildcard",
    "authentication data without a method",
    "a property that must not be 0 is 0",
    "a packet that only servers send",
    "AUTH without an authentication method in CONNECT",
    "the packet is larger than the server takes",
    "the packet has more than 256 KiB of properties",
    "the server speaks MQTT 3.1.1 and 5.0 only",
];

fn is_connect(bytes: &[u8]) -> bool {
    bytes.first().is_some_and(|first| first >> 4 == 1)
}

/// The version that CONNECT names; that of the connection otherwise.
fn version(bytes: &[u8], is_v5: bool) -> bool {
    if !is_connect(bytes) {
        return is_v5;
    }
    // Fixed header, then the protocol's name.
    let body = bytes.iter().skip(1).position(|byte| byte & 0x80 == 0).map_or(0, |at| at + 2);
    bytes.get(body + 6) == Some(&5)
}

/// Asserts that what we refuse mqtt-proto refuses too, or that it is known not to look.
pub fn check_refusal(bytes: &[u8], is_v5: bool) {
    let Err((_, detail)) = decode(bytes, is_v5, usize::MAX) else { return };
    if STRICTER.contains(&detail) {
        return;
    }
    let taken = match version(bytes, is_v5) {
        true => v5::Packet::decode(bytes).ok().flatten().map(|packet| format!("{packet:?}")),
        false => v3::Packet::decode(bytes).ok().flatten().map(|packet| format!("{packet:?}")),
    };
    if let Some(packet) = taken {
        panic!("refused ({detail}), but mqtt-proto takes {packet}");
    }
}

/// Asserts that both understand the same, if mqtt-proto understands it at all: it refuses, for instance, filters that we refuse
/// one by one, later.
pub fn compare(packet: &Packet<'_>, bytes: &[u8], is_v5: bool) {
    if version(bytes, is_v5) {
        if let Ok(Some(other)) = v5::Packet::decode(bytes) {
            compare_v5(packet, &other);
        }
    } else if let Ok(Some(other)) = v3::Packet::decode(bytes) {
        compare_v3(packet, &other);
    }
}

fn qos_and_id(qos_pid: QosPid) -> (u8, u16) {
    match qos_pid {
        QosPid::Level0 => (0, 0),
        QosPid::Level1(pid) => (1, pid.value()),
        QosPid::Level2(pid) => (2, pid.value()),
    }
}

fn compare_v5(packet: &Packet<'_>, other: &v5::Packet) {
    match (packet, other) {
        (Packet::Connect(ours), v5::Packet::Connect(theirs)) => compare_connect_v5(ours, theirs),
        (Packet::Publish(ours), v5::Packet::Publish(theirs)) => {
            let properties = &theirs.properties;
            let (qos, packet_id) = qos_and_id(theirs.qos_pid);
            let theirs = Publish {
                duplicate: theirs.dup,
                qos,
                retain: theirs.retain,
                topic: theirs.topic_name.as_bytes(),
                packet_id,
                topic_alias: properties.topic_alias,
                expiry_s: properties.message_expiry_interval,
                content_type: properties.content_type.as_deref().unwrap_or(""),
                payload: &theirs.payload,
            };
            assert_eq!(*ours, theirs);
        }
        (Packet::Ack(4, id, code), v5::Packet::Puback(ack)) => {
            assert_eq!((*id, *code), (ack.pid.value(), ack.reason_code as u8));
        }
        (Packet::Ack(5, id, code), v5::Packet::Pubrec(ack)) => {
            assert_eq!((*id, *code), (ack.pid.value(), ack.reason_code as u8));
        }
        (Packet::Ack(6, id, code), v5::Packet::Pubrel(ack)) => {
            assert_eq!((*id, *code), (ack.pid.value(), ack.reason_code as u8));
        }
        (Packet::Ack(7, id, code), v5::Packet::Pubcomp(ack)) => {
            assert_eq!((*id, *code), (ack.pid.value(), ack.reason_code as u8));
        }
        (Packet::Subscribe(id, subscription_id, filters), v5::Packet::Subscribe(theirs)) => {
            let of = theirs.properties.subscription_id.map_or(0, |id| id.value());
            assert_eq!((*id, *subscription_id), (theirs.pid.value(), of));
            let theirs: Vec<(&str, u8)> =
                theirs.topics.iter().map(|(filter, options)| (&**filter, options.to_u8())).collect();
            assert_eq!(*filters, theirs);
        }
        (Packet::Unsubscribe(id, filters), v5::Packet::Unsubscribe(theirs)) => {
            assert_eq!(*id, theirs.pid.value());
            assert!(filters.iter().copied().eq(theirs.topics.iter().map(|filter| &**filter)));
        }
        (Packet::PingReq, v5::Packet::Pingreq) => {}
        (Packet::Disconnect(code, expiry), v5::Packet::Disconnect(theirs)) => {
            assert_eq!(*code, theirs.reason_code as u8);
            assert_eq!(*expiry, theirs.properties.session_expiry_interval);
        }
        _ => panic!("{packet:?} is to mqtt-proto {other:?}"),
    }
}

fn compare_connect_v5(ours: &Connect<'_>, theirs: &v5::Connect) {
    let properties = &theirs.properties;
    let will = theirs.last_will.as_ref().map(|will| {
        let delay_s = will.properties.delay_interval.unwrap_or(0);
        (&*will.topic_name, &*will.payload, will.qos as u8, will.retain, delay_s)
    });
    let theirs = Connect {
        clean_start: theirs.clean_start,
        keep_alive_s: theirs.keep_alive,
        client_id: &theirs.client_id,
        username: theirs.username.as_deref(),
        password: theirs.password.as_deref(),
        will,
        session_expiry_s: properties.session_expiry_interval.unwrap_or(0),
        receive_maximum: properties.receive_max.unwrap_or(u16::MAX),
        packet_bytes_max: properties.max_packet_size.unwrap_or(u32::MAX),
        topic_alias_maximum: properties.topic_alias_max.unwrap_or(0),
        wants_authentication: properties.auth_method.is_some(),
    };
    assert_eq!(*ours, theirs);
}

fn compare_v3(packet: &Packet<'_>, other: &v3::Packet) {
    match (packet, other) {
        (Packet::Connect(ours), v3::Packet::Connect(theirs)) => {
            let will = theirs
                .last_will
                .as_ref()
                .map(|will| (&*will.topic_name, &*will.message, will.qos as u8, will.retain, 0));
            assert_eq!((ours.clean_start, ours.keep_alive_s), (theirs.clean_session, theirs.keep_alive));
            assert_eq!((ours.client_id, ours.will), (&*theirs.client_id, will));
            assert_eq!(ours.username, theirs.username.as_deref());
            assert_eq!(ours.password, theirs.password.as_deref());
        }
        (Packet::Publish(ours), v3::Packet::Publish(theirs)) => {
            let (qos, packet_id) = qos_and_id(theirs.qos_pid);
            assert_eq!((ours.duplicate, ours.qos, ours.retain), (theirs.dup, qos, theirs.retain));
            assert_eq!((ours.topic, ours.packet_id), (theirs.topic_name.as_bytes(), packet_id));
            assert_eq!(ours.payload, &*theirs.payload);
        }
        (Packet::Ack(4, id, 0), v3::Packet::Puback(pid))
        | (Packet::Ack(5, id, 0), v3::Packet::Pubrec(pid))
        | (Packet::Ack(6, id, 0), v3::Packet::Pubrel(pid))
        | (Packet::Ack(7, id, 0), v3::Packet::Pubcomp(pid)) => assert_eq!(*id, pid.value()),
        (Packet::Subscribe(id, 0, filters), v3::Packet::Subscribe(theirs)) => {
            assert_eq!(*id, theirs.pid.value());
            let theirs = theirs.topics.iter().map(|(filter, qos)| (&**filter, *qos as u8));
            assert!(filters.iter().copied().eq(theirs));
        }
        (Packet::Unsubscribe(id, filters), v3::Packet::Unsubscribe(theirs)) => {
            assert_eq!(*id, theirs.pid.value());
            assert!(filters.iter().copied().eq(theirs.topics.iter().map(|filter| &**filter)));
        }
        (Packet::PingReq, v3::Packet::Pingreq) | (Packet::Disconnect(0, None), v3::Packet::Disconnect) => {}
        _ => panic!("{packet:?} is to mqtt-proto {other:?}"),
    }
}
