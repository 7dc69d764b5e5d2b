//! What breaks the rules ends its own connection, with the right reason, and harms nobody else.

#![allow(clippy::unwrap_used)]

mod support;

use support::*;

const TOPIC: &str = "devices/d1/state";

/// A name, what a connected 5.0 client sends, and the reason code it is told.
fn broken_v5() -> Vec<(&'static str, Vec<u8>, u8)> {
    let properties = |first, bytes: &[u8]| publish_with(first, Some(bytes), TOPIC, 1, b"x");
    vec![
        ("type 0", vec![0x00, 0], 0x81),
        ("server's packet", vec![0x20, 2, 0, 0], 0x82),
        ("second CONNECT", connect(true, "c", true), 0x82),
        ("AUTH", vec![0xf0, 0], 0x82),
        ("QoS 3", publish_with(0x36, Some(&[]), TOPIC, 1, b""), 0x81),
        ("DUP with QoS 0", publish_with(0x38, Some(&[]), TOPIC, 1, b""), 0x81),
        ("packet id 0", publish(true, TOPIC, 1, 0, b""), 0x82),
        ("no topic", publish(true, "", 0, 0, b""), 0x82),
        ("wildcard topic +", publish(true, "devices/+/x", 0, 0, b""), 0x90),
        ("wildcard topic #", publish(true, "devices/#", 1, 1, b""), 0x90),
        ("NUL in topic", publish(true, "a\0b", 0, 0, b""), 0x81),
        ("topic not UTF-8", packet(0x30, &[0, 2, 0xc3, 0x28, 0]), 0x81),
        ("surrogate in topic", packet(0x30, &[0, 3, 0xed, 0xa0, 0x80, 0]), 0x81),
        ("topic cut", packet(0x30, &[0, 9, b'a']), 0x81),
        ("too many levels", publish(true, &"a/".repeat(100), 0, 0, b""), 0x90),
        ("alias 0", properties(0x30, &[0x23, 0, 0]), 0x94),
        ("alias over maximum", properties(0x30, &[0x23, 0xff, 0]), 0x94),
        ("alias never given", publish_with(0x30, Some(&[0x23, 0, 1]), "", 0, b""), 0x82),
        ("property twice", properties(0x30, &[1, 1, 1, 1]), 0x82),
        ("property of another packet", properties(0x30, &[0x11, 0, 0, 0, 1]), 0x82),
        ("unknown property", properties(0x30, &[0x7f, 0]), 0x81),
        ("payload format 2", properties(0x30, &[1, 2]), 0x82),
        ("subscription id from a client", properties(0x30, &[0x0b, 1]), 0x82),
        ("response topic with wildcard", properties(0x30, &[8, 0, 1, b'#']), 0x82),
        ("property cut", properties(0x30, &[2, 0, 0]), 0x81),
        ("properties longer than packet", packet(0x30, &[0, 1, b'a', 9]), 0x81),
        ("length not shortest", vec![0xc0, 0x80, 0x00], 0x81),
        ("length of five bytes", vec![0x30, 0xff, 0xff, 0xff, 0xff, 0x01], 0x81),
        ("larger than the server takes", vec![0x30, 0xff, 0xff, 0xff, 0x7f], 0x95),
        ("PINGREQ with a body", vec![0xc0, 1, 0], 0x81),
        ("PINGREQ with flags", vec![0xc1, 0], 0x81),
        ("PUBREL without its flag", vec![0x60, 2, 0, 1], 0x81),
        ("PUBACK with trailing bytes", vec![0x40, 5, 0, 1, 0, 0, 9], 0x81),
        ("SUBSCRIBE without its flag", vec![0x80, 5, 0, 1, 0, 0, 0], 0x81),
        ("SUBSCRIBE without a filter", packet(0x82, &[0, 1, 0]), 0x82),
        ("SUBSCRIBE with reserved bits", subscribe(true, 1, "a", 0xc0), 0x81),
        ("SUBSCRIBE with QoS 3", subscribe(true, 1, "a", 3), 0x81),
        ("SUBSCRIBE with retain handling 3", subscribe(true, 1, "a", 0x30), 0x82),
        ("SUBSCRIBE with id 0", subscribe(true, 0, "a", 0), 0x82),
        ("shared with no-local", subscribe(true, 1, "$share/g/a", 4), 0x82),
        ("UNSUBSCRIBE without a filter", packet(0xa2, &[0, 1, 0]), 0x82),
        ("DISCONNECT with flags", vec![0xe1, 0], 0x81),
    ]
}

#[tokio::test]
async fn broken_packets_end_their_connection_only() {
    let server = Server::start().await;
    let mut bystander = server.client(true, "bystander").await;
    let all = broken_v5();
    for (at, (name, bytes, reason)) in all.iter().enumerate() {
        let mut client = server.client(true, &format!("c{at}")).await;
        // What comes before in the same write is kept.
        let good = publish(true, TOPIC, 0, 0, name.as_bytes());
        client.send(&[&good[..], &bytes[..]].concat()).await;
        let told = client.packet_or_end().await.unwrap_or_else(|| panic!("{name}: closed without a word"));
        assert_eq!((told[0], told[2]), (0xe0, *reason), "{name}: {told:02x?}");
        client.closed().await;
    }
    bystander.send(&publish(true, TOPIC, 1, 1, b"well")).await;
    bystander.expect(&[0x40, 2, 0, 1]).await;
    let kept = server.log.payloads();
    assert!(all.iter().all(|(name, _, _)| kept.iter().any(|payload| payload == name)));
    assert_eq!(kept.len(), all.len() + 1);
}

#[tokio::test]
async fn version_3_is_closed_without_a_word() {
    let server = Server::start().await;
    for bytes in [
        publish(false, "a/#", 0, 0, b""),
        publish(false, "", 0, 0, b""),
        publish_with(0x36, None, TOPIC, 1, b""),
        packet(0x82, &[0, 1]),
        subscribe(false, 1, "a", 4),
        vec![0xf0, 0],
        vec![0xe0, 1, 0],
        vec![0x40, 3, 0, 1, 0],
        publish(false, "devices/bad\u{7}id/state", 1, 1, b"x"),
    ] {
        let mut client = server.client(false, "c").await;
        client.send(&bytes).await;
        client.closed().await;
    }
    assert!(server.log.kept().is_empty());
}

/// A name, what is sent, and the answer: CONNACK, or a 5.0 CONNACK's reason code alone.
type Case = (&'static str, Vec<u8>, Option<Vec<u8>>);

#[tokio::test]
async fn bad_connects() {
    let server = Server::start().await;
    let with = |level: u8, flags: u8, rest: &[u8]| {
        packet(0x10, &[&text("MQTT")[..], &[level, flags, 0, 60], rest].concat())
    };
    let will = |topic: &str| [&[0, 0, 1, b'c', 0][..], &text(topic), &text("x")].concat();
    let cases: Vec<Case> = vec![
        ("no CONNECT", publish(true, TOPIC, 0, 0, b""), None),
        ("not MQTT", packet(0x10, &[&text("HTTP")[..], &[4, 2, 0, 0], &text("c")].concat()), None),
        ("GET", b"GET / HTTP/1.1\r\n\r\n".to_vec(), None),
        (
            "version 3",
            packet(0x10, &[&text("MQIsdp")[..], &[3, 2, 0, 0], &text("c")].concat()),
            Some(vec![0x20, 2, 0, 1]),
        ),
        ("version 2", with(2, 2, &text("c")), Some(vec![0x20, 2, 0, 1])),
        ("version 6", with(6, 2, &text("c")), Some(vec![0x84])),
        ("3.1.1 reserved flag", with(4, 3, &text("c")), None),
        ("3.1.1 empty id, kept session", with(4, 0, &text("")), Some(vec![0x20, 2, 0, 2])),
        ("3.1.1 password alone", with(4, 0x42, &[&text("c")[..], &text("p")].concat()), None),
        ("3.1.1 trailing bytes", with(4, 2, &[&text("c")[..], &[0]].concat()), None),
        ("5.0 reserved flag", with(5, 3, &[&[0][..], &text("c")].concat()), Some(vec![0x81])),
        ("5.0 will flags without a will", with(5, 0x22, &[&[0][..], &text("c")].concat()), Some(vec![0x81])),
        ("5.0 NUL in client id", with(5, 2, &[&[0][..], &text("a\0")].concat()), Some(vec![0x81])),
        ("5.0 long client id", with(5, 2, &[&[0][..], &text(&"x".repeat(300))].concat()), Some(vec![0x85])),
        ("5.0 receive maximum 0", with(5, 2, &[&[3, 0x21, 0, 0][..], &text("c")].concat()), Some(vec![0x82])),
        (
            "5.0 authentication method",
            with(5, 2, &[&[4, 0x15, 0, 1, b'x'][..], &text("c")].concat()),
            Some(vec![0x8c]),
        ),
        ("5.0 will with wildcard", with(5, 6, &will("a/#")), Some(vec![0x90])),
        ("5.0 will for the server's topics", with(5, 6, &will("$SYS/x")), Some(vec![0x90])),
        ("5.0 will with QoS 3", with(5, 0x1e, &will("a")), Some(vec![0x81])),
    ];
    for (name, bytes, answer) in cases {
        let mut client = server.raw().await;
        client.send(&bytes).await;
        match answer {
            // 5.0: the reason code of CONNACK.
            Some(code) if code.len() == 1 => {
                let told = client.packet_or_end().await.unwrap_or_else(|| panic!("{name}: no CONNACK"));
                assert_eq!((told[0], told[2], told[3]), (0x20, 0, code[0]), "{name}: {told:02x?}");
            }
            Some(answer) => assert_eq!(client.packet_or_end().await, Some(answer), "{name}"),
            None => {}
        }
        assert_eq!(client.packet_or_end().await, None, "{name}");
    }
}

#[tokio::test]
async fn silence_is_not_waited_for() {
    let server = Server::configured(|config| config.mqtt.connect_s_max = 1).await;
    let mut mute = server.raw().await;
    mute.closed().await;
    // Keep-alive 1: closed after 1.5 s.
    let mut client = server.raw().await;
    let mut connect = connect(true, "c", true);
    connect[11] = 1;
    client.send(&connect).await;
    client.packet().await;
    let start = std::time::Instant::now();
    let told = client.packet().await;
    assert_eq!((told[0], told[2]), (0xe0, 0x8d));
    assert!((1.4..2.5).contains(&start.elapsed().as_secs_f64()), "{:?}", start.elapsed());
}

#[tokio::test]
async fn bad_filters_and_names_are_refused_alone() {
    let server = Server::start().await;
    let mut client = server.client(true, "c").await;
    for filter in ["a#", "", "$share//a", "a/#/b", "$share/g", "+a"] {
        client.send(&subscribe(true, 1, filter, 0)).await;
        client.refused(0x90, 1, 0x8f).await;
    }
    client.send(&publish(true, "devices/bad\u{7}id/state", 1, 2, b"x")).await;
    client.refused(0x40, 2, 0x90).await;
    client.send(&publish(true, "$SYS/x", 1, 3, b"x")).await;
    client.expect(&[0x40, 3, 0, 3, 0x87]).await;
    let mut v3 = server.client(false, "v3").await;
    v3.send(&subscribe(false, 1, "a#", 0)).await;
    v3.expect(&[0x90, 3, 0, 1, 0x80]).await;
}

#[tokio::test]
async fn limits_hold() {
    let server = Server::configured(|config| {
        config.mqtt.connections_max = 2;
        config.mqtt.receive_maximum = 2;
        config.mqtt.subscriptions_per_client_max = 1;
    })
    .await;
    let mut client = server.client(true, "c").await;
    client.send(&subscribe(true, 1, "a", 0)).await;
    client.expect(&[0x90, 4, 0, 1, 0, 0]).await;
    client.send(&subscribe(true, 2, "b", 0)).await;
    client.refused(0x90, 2, 0x97).await;
    let _second = server.client(true, "second").await;
    let mut third = server.raw().await;
    third.closed().await;
    server.log.set(Mode::Hold);
    for id in 1..=3 {
        client.send(&publish(true, TOPIC, 1, id, b"x")).await;
    }
    let told = client.packet().await;
    assert_eq!((told[0], told[2]), (0xe0, 0x93));
}
