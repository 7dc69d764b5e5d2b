//! An acknowledgement comes after the event is durable, in order, and never for one that is not.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use support::*;

const TOPIC: &str = "devices/d1/state";

#[tokio::test]
async fn nothing_is_acknowledged_before_it_is_durable() {
    for v5 in [false, true] {
        let server = Server::start().await;
        server.log.set(Mode::Hold);
        let mut client = server.client(v5, "c").await;
        client.send(&publish(v5, TOPIC, 1, 7, b"a")).await;
        client.send(&publish(v5, TOPIC, 2, 8, b"b")).await;
        client.send(&publish(v5, TOPIC, 0, 0, b"c")).await;
        client.silent().await;
        assert!(server.log.payloads().is_empty());
        // Still alive meanwhile.
        client.send(&[0xc0, 0]).await;
        client.expect(&[0xd0, 0]).await;
        server.log.settle(None);
        client.expect(&[0x40, 2, 0, 7]).await;
        client.expect(&[0x50, 2, 0, 8]).await;
        client.send(&[0x62, 2, 0, 8]).await;
        client.expect(&[0x70, 2, 0, 8]).await;
        assert_eq!(server.log.payloads(), ["a", "b", "c"]);
        let kept = &server.log.kept()[0];
        assert_eq!(
            (kept.device_id.as_str(), kept.event_type.as_str(), kept.topic.as_str()),
            ("d1", "state", TOPIC)
        );
    }
}

#[tokio::test]
async fn order_holds_across_partitions() {
    let server = Server::start().await;
    server.log.set(Mode::Hold);
    let mut client = server.client(true, "c").await;
    // Devices of different partitions, all in one write.
    let mut bytes = Vec::new();
    for id in 1..=40 {
        bytes.extend(publish(true, &format!("devices/d{id}/state"), 1, id, b"x"));
    }
    client.send(&bytes).await;
    until("batches", || server.log.held() >= 4).await;
    let submits = server.log.submits();
    // The first event's partition last: nothing may go out before.
    let first = catchment_types::partition_of("main", "d1", 4);
    (0..4).filter(|&partition| partition != first).for_each(|partition| server.log.settle(Some(partition)));
    client.silent().await;
    server.log.settle(None);
    for id in 1..=40u16 {
        let [high, low] = id.to_be_bytes();
        client.expect(&[0x40, 2, high, low]).await;
    }
    assert!(submits <= 8, "{submits} submits for one or two reads of four partitions");
}

#[tokio::test]
async fn reading_goes_on_while_the_log_works_and_stops_at_the_limit() {
    let server = Server::configured(|config| config.mqtt.inflight_events_max = 100).await;
    server.log.set(Mode::Hold);
    let mut client = server.client(false, "c").await;
    for id in 1..=50u16 {
        client.send(&publish(false, TOPIC, 1, id, b"x")).await;
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
    until("pipelining", || server.log.submits() > 5).await;
    // Far more than fits: the rest stays in the socket.
    let big = vec![b'x'; 10_000];
    let (mut reader, mut writer) = client.0.into_split();
    let writing = tokio::spawn(async move {
        for id in 51..=5000u16 {
            tokio::io::AsyncWriteExt::write_all(&mut writer, &publish(false, TOPIC, 1, id, &big))
                .await
                .unwrap();
        }
        writer
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let submits = server.log.submits();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(server.log.submits(), submits, "it reads on over the limit");
    assert!(!writing.is_finished(), "the socket takes everything");
    server.log.set(Mode::Keep);
    server.log.settle(None);
    let mut acks = vec![0; 4 * 5000];
    let read = tokio::io::AsyncReadExt::read_exact(&mut reader, &mut acks);
    tokio::time::timeout(Duration::from_secs(20), read).await.expect("all acknowledged").unwrap();
    let ids: Vec<u16> = acks.chunks(4).map(|ack| u16::from_be_bytes([ack[2], ack[3]])).collect();
    assert!(ids.iter().copied().eq(1..=5000));
}

#[tokio::test]
async fn a_full_log_is_told_and_never_acknowledged() {
    for mode in [Mode::Full, Mode::FullLater] {
        let server = Server::start().await;
        let mut v5 = server.client(true, "v5").await;
        let mut v3 = server.client(false, "v3").await;
        server.log.set(mode);
        v5.send(&publish(true, TOPIC, 0, 0, b"x")).await;
        v5.send(&publish(true, TOPIC, 1, 1, b"x")).await;
        v5.refused(0x40, 1, 0x97).await;
        v5.send(&publish(true, TOPIC, 2, 2, b"x")).await;
        v5.refused(0x50, 2, 0x97).await;
        // What came in the same read is not acknowledged before what cannot be: order would be lost.
        let (kept, brokered) = (publish(false, TOPIC, 1, 1, b"x"), publish(false, "brokered", 1, 2, b"x"));
        v3.send(&[kept, brokered].concat()).await;
        v3.closed().await;
        server.log.set(Mode::Keep);
        // The refused identifier is free again: the message is new.
        v5.send(&publish(true, TOPIC, 2, 2, b"y")).await;
        v5.expect(&[0x50, 2, 0, 2]).await;
        assert_eq!(server.log.payloads(), ["y"]);
    }
}

#[tokio::test]
async fn a_failed_log_ends_the_connection_without_acknowledgement() {
    let server = Server::start().await;
    let mut v5 = server.client(true, "v5").await;
    server.log.set(Mode::Failed);
    v5.send(&publish(true, TOPIC, 1, 1, b"x")).await;
    let packet = v5.packet().await;
    assert_eq!((packet[0], packet[2]), (0xe0, 0x80));
    v5.closed().await;
}

#[tokio::test]
async fn qos2_is_taken_once() {
    for v5 in [false, true] {
        let server = Server::start().await;
        let mut client = server.raw().await;
        let properties = [0x11, 0, 0, 0, 60];
        let connect = connect_with(v5, "c", false, &properties);
        client.send(&connect).await;
        client.packet().await;
        client.send(&publish(v5, TOPIC, 2, 5, b"x")).await;
        client.expect(&[0x50, 2, 0, 5]).await;
        // The PUBREC is lost and the connection with it; the client sends again.
        drop(client);
        let mut client = server.raw().await;
        client.send(&connect).await;
        assert_eq!(client.packet().await[2], 1, "session present");
        let again = publish_with(0x3c, v5.then_some(&[]), TOPIC, 5, b"x");
        client.send(&again).await;
        client.expect(&[0x50, 2, 0, 5]).await;
        client.send(&[0x62, 2, 0, 5]).await;
        client.expect(&[0x70, 2, 0, 5]).await;
        assert_eq!(server.log.payloads(), ["x"]);
        // Released: the identifier is a new message.
        client.send(&publish(v5, TOPIC, 2, 5, b"y")).await;
        client.expect(&[0x50, 2, 0, 5]).await;
        assert_eq!(server.log.payloads(), ["x", "y"]);
    }
}

#[tokio::test]
async fn an_identifier_that_was_refused_is_anothers_before_the_refusal_is_told() {
    let server = Server::start().await;
    server.log.set(Mode::Hold);
    let mut client = server.client(true, "c").await;
    // Holds up the answers that come after it.
    client.send(&publish(true, TOPIC, 1, 1, b"first")).await;
    client.send(&publish(true, "$SYS/x", 2, 5, b"refused")).await;
    client.send(&publish(true, TOPIC, 2, 5, b"taken")).await;
    until("both", || server.log.held() >= 2).await;
    server.log.settle(None);
    client.expect(&[0x40, 2, 0, 1]).await;
    client.expect(&[0x50, 3, 0, 5, 0x87]).await;
    client.expect(&[0x50, 2, 0, 5]).await;
    // The refusal is of the first, so the second is known still.
    client.send(&publish(true, TOPIC, 2, 5, b"taken")).await;
    client.expect(&[0x50, 2, 0, 5]).await;
    client.send(&[0x62, 2, 0, 5]).await;
    client.expect(&[0x70, 2, 0, 5]).await;
    assert_eq!(server.log.payloads(), ["first", "taken"]);
}

#[tokio::test]
async fn a_take_over_waits_for_what_is_on_its_way() {
    let server = Server::start().await;
    let connect = connect(false, "c", false);
    let mut first = server.raw().await;
    first.send(&connect).await;
    first.packet().await;
    server.log.set(Mode::Hold);
    first.send(&publish(false, TOPIC, 2, 9, b"x")).await;
    until("submit", || server.log.held() == 1).await;
    let mut second = server.raw().await;
    second.send(&connect).await;
    first.closed().await;
    second.silent().await;
    server.log.settle(None);
    second.expect(&[0x20, 2, 1, 0]).await;
    server.log.set(Mode::Keep);
    second.send(&publish_with(0x3c, None, TOPIC, 9, b"x")).await;
    second.expect(&[0x50, 2, 0, 9]).await;
    assert_eq!(server.log.payloads(), ["x"]);
}

#[tokio::test]
async fn a_stop_acknowledges_what_is_on_its_way() {
    let server = Server::start().await;
    server.log.set(Mode::Hold);
    let mut v5 = server.client(true, "v5").await;
    v5.send(&publish(true, TOPIC, 1, 1, b"x")).await;
    until("submit", || server.log.held() == 1).await;
    server.shutdown.cancel();
    v5.silent().await;
    server.log.settle(None);
    v5.expect(&[0x40, 2, 0, 1]).await;
    let packet = v5.packet().await;
    assert_eq!((packet[0], packet[2]), (0xe0, 0x8b));
    v5.closed().await;
    tokio::time::timeout(PATIENCE, server.task).await.expect("serve_mqtt ends").unwrap().unwrap();
}

#[tokio::test]
async fn a_stop_is_bounded() {
    let server = Server::configured(|config| config.drain_s_max = 1).await;
    server.log.set(Mode::Hold);
    let mut client = server.client(false, "c").await;
    client.send(&publish(false, TOPIC, 1, 1, b"x")).await;
    until("submit", || server.log.held() == 1).await;
    server.shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(3), server.task).await.expect("bounded").unwrap().unwrap();
    client.closed().await;
}

#[tokio::test]
async fn other_topics_are_brokered_and_not_kept() {
    let server = Server::start().await;
    let mut client = server.client(true, "c").await;
    client.send(&publish(true, "plant/1/state", 1, 1, b"x")).await;
    client.expect(&[0x40, 2, 0, 1]).await;
    assert!(server.log.kept().is_empty());
    assert_eq!(server.metric("catchment_gateway_unrouted_messages_total{outcome=\"brokered\"}"), 1.0);
}

#[tokio::test]
async fn packets_of_every_size_and_cut_arrive_whole() {
    let server = Server::start().await;
    let mut client = server.client(true, "c").await;
    let sizes = [0usize, 1, 100, 127, 128, 16_383, 16_384, 65_500, 65_536, 70_000, 200_000, 1_000_000];
    let mut bytes = Vec::new();
    for (at, &size) in sizes.iter().enumerate() {
        bytes.extend(publish(true, TOPIC, 1, at as u16 + 1, &vec![b'a' + at as u8; size]));
    }
    for piece in bytes.chunks(33_333) {
        client.send(piece).await;
    }
    for at in 0..sizes.len() as u8 {
        client.expect(&[0x40, 2, 0, at + 1]).await;
    }
    // Byte by byte.
    for byte in publish(true, TOPIC, 1, 99, b"slow") {
        client.send(&[byte]).await;
        tokio::task::yield_now().await;
    }
    client.expect(&[0x40, 2, 0, 99]).await;
    let kept = server.log.kept();
    assert_eq!(kept.iter().map(|kept| kept.payload.len()).take(sizes.len()).collect::<Vec<_>>(), sizes);
    assert_eq!(kept.last().unwrap().payload, b"slow");
}
