use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

fn whole(bytes: &[u8]) -> Frame<'_> {
    match frame(bytes, 1 << 20).unwrap() {
        Framed::Packet(frame) => frame,
        Framed::Partial(_) => panic!("a partial packet: {bytes:02x?}"),
    }
}

fn header<'a>(qos: QoS, packet_id: u16) -> PublishHeader<'a> {
    PublishHeader {
        duplicate: qos != QoS::AtMostOnce,
        qos,
        retain: true,
        topic_alias: None,
        topic: "été/b".as_bytes(),
        packet_id,
        expiry_s: None,
        subscription_ids: &[],
        properties: &[],
    }
}

#[test]
fn what_is_encoded_is_decoded() {
    for version in [Version::V3, Version::V5] {
        for (qos, packet_id) in [(QoS::AtMostOnce, 0), (QoS::AtLeastOnce, 1), (QoS::ExactlyOnce, 65_535)] {
            for size in [0, 1, 100, 120, 130, 16_370, 16_390, 70_000] {
                let (mut bytes, payload) = (Vec::new(), vec![b'x'; size]);
                assert!(publish(&mut bytes, version, &header(qos, packet_id), &payload, usize::MAX));
                let frame = whole(&bytes);
                assert_eq!(frame.length, bytes.len());
                let Packet::Publish(found) = decode(&frame, version).unwrap() else { panic!("not PUBLISH") };
                assert_eq!((found.qos, found.packet_id, found.retain), (qos, packet_id, true));
                assert_eq!((found.topic_text().unwrap(), found.payload), ("été/b", &payload[..]));
                // The size limit counts every byte.
                let mut none = Vec::new();
                assert!(!publish(&mut none, version, &header(qos, packet_id), &payload, bytes.len() - 1));
                assert!(none.is_empty());
            }
        }
    }
}

#[test]
fn properties_are_read_and_handed_on() {
    let kept = [&[1, 1, 3, 0, 1, b't'][..], &[8, 0, 1, b'r', 9, 0, 1, 0xff, 0x26, 0, 1, b'k', 0, 0]].concat();
    let mut bytes = Vec::new();
    let header = PublishHeader { expiry_s: Some(7), properties: &kept, ..header(QoS::AtLeastOnce, 3) };
    assert!(publish(&mut bytes, Version::V5, &header, b"x", usize::MAX));
    let Packet::Publish(found) = decode(&whole(&bytes), Version::V5).unwrap() else { panic!("not PUBLISH") };
    assert_eq!((found.properties.expiry_s, found.properties.content_type), (Some(7), "t"));
    let mut handed_on = Vec::new();
    forwardable(found.properties.raw, &mut handed_on);
    assert_eq!(handed_on, kept);
    // The broker's own subscription identifiers are nothing for clients to send.
    let mut bytes = Vec::new();
    publish(&mut bytes, Version::V5, &PublishHeader { subscription_ids: &[1], ..header }, b"x", usize::MAX);
    assert_eq!(decode(&whole(&bytes), Version::V5).unwrap_err().reason, Reason::ProtocolError);
}

#[test]
fn framing_waits_for_what_is_missing() {
    assert_eq!(frame(&[], 10), Ok(Framed::Partial(None)));
    assert_eq!(frame(&[0x30], 10), Ok(Framed::Partial(None)));
    assert_eq!(frame(&[0x30, 0x80], 10), Ok(Framed::Partial(None)));
    assert_eq!(frame(&[0x30, 5, 0], 10), Ok(Framed::Partial(Some(7))));
    assert_eq!(frame(&[0x30, 9], 10).unwrap_err().reason, Reason::PacketTooLarge);
    assert_eq!(frame(&[0xc0, 0, 0xff], 10), Ok(Framed::Packet(Frame { first: 0xc0, body: &[], length: 2 })));
}

#[test]
fn connect_in_full() {
    let text = |text: &str| [&(text.len() as u16).to_be_bytes(), text.as_bytes()].concat();
    let body = [
        &text("MQTT")[..],
        &[5, 0b1111_0110, 0, 30],
        &[13, 0x11, 0, 0, 0, 9, 0x21, 0, 20, 0x27, 0, 0, 1, 0],
        &text("id"),
        &[5, 0x18, 0, 0, 0, 4],
        &text("w/t"),
        &text("bye"),
        &text("user"),
        &text("pass"),
    ]
    .concat();
    let frame = Frame { first: 0x10, body: &body, length: body.len() + 2 };
    let connect = decode_connect(&frame).unwrap();
    assert_eq!((connect.client_id, connect.keep_alive_s, connect.session_expiry_s), ("id", 30, 9));
    assert_eq!((connect.receive_maximum, connect.packet_bytes_max, connect.clean_start), (20, 256, true));
    assert_eq!((connect.username, connect.password), (Some("user"), Some(&b"pass"[..])));
    let will = connect.will.unwrap();
    assert_eq!(
        (will.topic, will.payload, will.qos, will.retain),
        ("w/t", &b"bye"[..], QoS::ExactlyOnce, true)
    );
    assert_eq!(will.delay_s, 4);
    // Cut anywhere, it is refused.
    for cut in 0..body.len() {
        assert!(
            decode_connect(&Frame { first: 0x10, body: &body[..cut], length: cut + 2 }).is_err(),
            "{cut}"
        );
    }
}

#[test]
fn connack_tells_what_is_offered() {
    let offer = Offer {
        assigned_client_id: Some("a"),
        session_expiry_s: Some(1),
        keep_alive_s: Some(2),
        receive_maximum: 3,
        topic_alias_maximum: 4,
        packet_bytes_max: 5,
        response_info: Some("r"),
        instance: None,
    };
    let answer =
        ConnAck { session_present: true, reason: Reason::Success, reason_string: "", offer: Some(offer) };
    let mut bytes = Vec::new();
    assert!(connack(&mut bytes, Version::V5, &answer, 1000));
    let wanted = [
        &[0x20, 30, 1, 0, 27, 0x11, 0, 0, 0, 1, 0x21, 0, 3, 0x27, 0, 0, 0, 5, 0x12, 0, 1, b'a'][..],
        &[0x22, 0, 4, 0x13, 0, 2, 0x1a, 0, 1, b'r'],
    ];
    assert_eq!(bytes, wanted.concat());
    bytes.clear();
    assert!(!connack(&mut bytes, Version::V5, &answer, 31) && bytes.is_empty());
    assert!(connack(&mut bytes, Version::V3, &answer, 1000));
    assert_eq!(bytes, [0x20, 2, 1, 0]);
}

#[test]
fn reasons_are_told_in_words_where_there_is_room_and_a_wish() {
    let peer = Peer { version: Version::V5, packet_bytes_max: 1000, window: 1, problem_info: true };
    let told = |peer: &Peer| {
        let mut bytes = Vec::new();
        puback(&mut bytes, AckKind::Ack, peer, 7, Reason::QuotaExceeded);
        bytes
    };
    let text = Reason::QuotaExceeded.explanation();
    let length = text.len() as u8;
    let head = [0x40, 7 + length, 0, 7, 0x97, 3 + length, 0x1f, 0, length];
    assert_eq!(told(&peer), [&head[..], text.as_bytes()].concat());
    let size = told(&peer).len();
    assert_eq!(told(&Peer { packet_bytes_max: size, ..peer }).len(), size);
    assert_eq!(told(&Peer { packet_bytes_max: size - 1, ..peer }), [0x40, 4, 0, 7, 0x97, 0]);
    assert_eq!(told(&Peer { problem_info: false, ..peer }), [0x40, 3, 0, 7, 0x97]);
    assert_eq!(told(&Peer { version: Version::V3, ..peer }), [0x40, 2, 0, 7]);
    let mut bytes = Vec::new();
    assert!(!suback(&mut bytes, &Peer { packet_bytes_max: 9, ..peer }, 7, &[0; 5], Reason::Success));
    assert!(bytes.is_empty());
}

/// Whatever bytes come, decoding ends with a packet or an error, and a packet's parts lie within it.
#[test]
fn random_bytes_are_survived() {
    let mut random = StdRng::seed_from_u64(7);
    let mut whole = Vec::new();
    let kept = [3, 0, 1, b't', 0x26, 0, 1, b'k', 0, 0];
    let header = PublishHeader { expiry_s: Some(7), properties: &kept, ..header(QoS::AtLeastOnce, 3) };
    publish(&mut whole, Version::V5, &header, b"payload", usize::MAX);
    for _ in 0..200_000 {
        let mut bytes = whole.clone();
        for _ in 0..random.random_range(1..6) {
            let at = random.random_range(0..bytes.len());
            bytes[at] = random.random();
        }
        bytes.truncate(random.random_range(0..=bytes.len()));
        if let Ok(Framed::Packet(frame)) = frame(&bytes, 1 << 20) {
            assert!(frame.length <= bytes.len());
            for version in [Version::V3, Version::V5] {
                if let Ok(Packet::Publish(publish)) = decode(&frame, version) {
                    let _ = publish.topic_text();
                    forwardable(publish.properties.raw, &mut Vec::new());
                }
            }
            let _ = decode_connect(&Frame { first: 0x10, ..frame });
        }
    }
}
