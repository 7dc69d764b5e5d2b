//! Sessions, queues and retained messages over a crash: the gateway is opened again on what its folder held at some moment.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use catchment_eventlog::EventLog;
use catchment_eventlog::SyncPolicy;
use catchment_gateway::{AdmitAll, Gateway, GatewayConfig, GatewayMetrics, QoS, SessionStore};
use support::*;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const TOPIC: &str = "devices/d1/state";

/// A server over a folder, with a log that outlives it.
async fn open(log: &Arc<MemoryLog>, path: &Path, change: impl FnOnce(&mut GatewayConfig)) -> Server {
    let mut config = GatewayConfig::default();
    change(&mut config);
    let metrics = GatewayMetrics::default();
    let store = SessionStore { path: path.to_owned(), sync: SyncPolicy::Fsync };
    let dyn_log = Arc::clone(log) as Arc<dyn EventLog>;
    let gateway = Gateway::open(config, dyn_log, Arc::new(AdmitAll), metrics.clone(), store).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let task = tokio::spawn({
        let (gateway, shutdown) = (Arc::clone(&gateway), shutdown.clone());
        async move { gateway.serve_mqtt(listener, shutdown).await }
    });
    Server { gateway, log: Arc::clone(log), metrics, address, shutdown, task }
}

/// What the folder holds now, as a process that is killed at this moment leaves it.
fn crash(path: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}

/// Connects to a kept session; gives whether it was there.
async fn kept(server: &Server, v5: bool, client_id: &str) -> (Wire, bool) {
    let mut wire = server.raw().await;
    let expiry: &[u8] = if v5 { &[0x11, 0, 0, 0x0e, 0x10] } else { &[] };
    wire.send(&connect_with(v5, client_id, false, expiry)).await;
    let answer = wire.packet().await;
    assert_eq!((answer[0], answer[3]), (0x20, 0));
    (wire, answer[2] == 1)
}

async fn subscribed(client: &mut Wire, v5: bool, filter: &str, options: u8) {
    client.send(&subscribe(v5, 77, filter, options)).await;
    let ack = client.packet().await;
    assert_eq!((ack[0], ack.last().copied()), (0x90, Some(options & 3)));
}

/// Publishes at QoS 1 and waits for the PUBACK.
async fn published(client: &mut Wire, topic: &str, packet_id: u8, payload: &[u8]) {
    client.send(&publish(false, topic, 1, packet_id.into(), payload)).await;
    client.expect(&[0x40, 2, 0, packet_id]).await;
}

#[tokio::test]
async fn queues_subscriptions_and_retained_messages_are_there_again() {
    let (log, dir) = (MemoryLog::new(4), tempfile::tempdir().unwrap());
    let server = open(&log, dir.path(), |_| {}).await;
    let (mut away, present) = kept(&server, false, "away").await;
    assert!(!present);
    subscribed(&mut away, false, "devices/+/state", 1).await;
    subscribed(&mut away, false, "gone/#", 1).await;
    away.send(&packet(0xa2, &[&[0, 9][..], &text("gone/#")].concat())).await;
    away.expect(&[0xb0, 2, 0, 9]).await;
    drop(away);
    let mut publisher = server.client(false, "p").await;
    until("away", || server.metric("catchment_gateway_connections ") < 1.5).await;
    for number in 1..=5 {
        published(&mut publisher, TOPIC, number, &[number]).await;
    }
    publisher.send(&publish_with(0x33, None, "kept/topic", 9, b"retained")).await;
    publisher.expect(&[0x40, 2, 0, 9]).await;

    let copy = crash(dir.path());
    let server = open(&log, copy.path(), |_| {}).await;
    let (mut away, present) = kept(&server, false, "away").await;
    assert!(present);
    for number in 1..=5 {
        away.expect(&publish(false, TOPIC, 1, number.into(), &[number])).await;
    }
    for number in 1..=3 {
        away.send(&[0x40, 2, 0, number]).await;
    }
    let mut publisher = server.client(false, "p").await;
    published(&mut publisher, "gone/x", 1, b"nobody").await;
    published(&mut publisher, TOPIC, 2, b"live").await;
    away.expect(&publish(false, TOPIC, 1, 6, b"live")).await;
    subscribed(&mut publisher, false, "kept/#", 1).await;
    publisher.expect(&publish_with(0x33, None, "kept/topic", 1, b"retained")).await;
    server.gateway.close().await;

    // What was acknowledged is not sent again; the rest is, as a duplicate and under the same identifiers.
    let copy = crash(copy.path());
    let server = open(&log, copy.path(), |_| {}).await;
    let (mut away, _) = kept(&server, false, "away").await;
    for (number, payload) in [(4, &[4u8][..]), (5, &[5]), (6, b"live")] {
        away.expect(&publish_with(0x3a, None, TOPIC, number, payload)).await;
    }
    away.silent().await;
}

#[tokio::test]
async fn qos2_out_goes_on_where_it_was() {
    let (log, dir) = (MemoryLog::new(4), tempfile::tempdir().unwrap());
    let server = open(&log, dir.path(), |_| {}).await;
    let (mut reader, _) = kept(&server, false, "r").await;
    subscribed(&mut reader, false, "#", 2).await;
    for payload in [b"a", b"b"] {
        server.gateway.publish("main", "x", payload, QoS::ExactlyOnce, false).await.unwrap();
    }
    reader.expect(&publish(false, "x", 2, 1, b"a")).await;
    reader.expect(&publish(false, "x", 2, 2, b"b")).await;
    reader.send(&[0x50, 2, 0, 1]).await;
    reader.expect(&[0x62, 2, 0, 1]).await;

    let copy = crash(dir.path());
    let server = open(&log, copy.path(), |_| {}).await;
    let (mut reader, present) = kept(&server, false, "r").await;
    assert!(present);
    reader.expect(&[0x62, 2, 0, 1]).await;
    reader.expect(&publish_with(0x3c, None, "x", 2, b"b")).await;
    reader.send(&[0x70, 2, 0, 1, 0x50, 2, 0, 2]).await;
    reader.expect(&[0x62, 2, 0, 2]).await;
    reader.send(&[0x70, 2, 0, 2]).await;
    server.gateway.publish("main", "x", b"c", QoS::ExactlyOnce, false).await.unwrap();
    reader.expect(&publish(false, "x", 2, 3, b"c")).await;
}

#[tokio::test]
async fn qos2_in_is_taken_once_wherever_the_crash_was() {
    // In the log or not yet, acknowledged or not: the event is there once after the client has sent again. One that was queued
    // for somebody may have been sent, so it is given to the log again.
    for (settles, reads, stays) in [(true, true, 1), (false, true, 1), (true, false, 1), (false, false, 0)] {
        let (log, dir) = (MemoryLog::new(4), tempfile::tempdir().unwrap());
        let server = open(&log, dir.path(), |_| {}).await;
        let (mut away, _) = kept(&server, true, "away").await;
        if reads {
            subscribed(&mut away, true, "devices/#", 2).await;
        }
        drop(away);
        log.set(Mode::Hold);
        let (mut publisher, _) = kept(&server, true, "p").await;
        publisher.send(&publish(true, TOPIC, 2, 7, b"once")).await;
        until("the log has it", || log.held() == 1).await;
        // The record is durable before the log is asked.
        let copy = crash(dir.path());
        if settles {
            log.settle(None);
            publisher.expect(&[0x50, 2, 0, 7]).await;
        } else {
            log.forget();
        }
        log.set(Mode::Keep);
        let server = open(&log, copy.path(), |_| {}).await;
        assert_eq!(log.payloads().len(), stays);
        let (mut publisher, present) = kept(&server, true, "p").await;
        assert!(present);
        publisher.send(&publish_with(0x3c, Some(&[]), TOPIC, 7, b"once")).await;
        publisher.expect(&[0x50, 2, 0, 7]).await;
        publisher.send(&[0x62, 2, 0, 7]).await;
        publisher.expect(&[0x70, 2, 0, 7]).await;
        assert_eq!(log.payloads(), ["once"]);
        let (mut away, _) = kept(&server, true, "away").await;
        if reads {
            assert!(away.packet().await.ends_with(b"once"));
        }
        away.silent().await;
        // The identifier is free: the next message under it is another one.
        let copy = crash(copy.path());
        let server = open(&log, copy.path(), |_| {}).await;
        let (mut publisher, _) = kept(&server, true, "p").await;
        publisher.send(&publish(true, TOPIC, 2, 7, b"twice")).await;
        publisher.expect(&[0x50, 2, 0, 7]).await;
        assert_eq!(log.payloads().len(), 2);
    }
}

#[tokio::test]
async fn expiry_and_wills_go_on_counting() {
    let (log, dir) = (MemoryLog::new(4), tempfile::tempdir().unwrap());
    let server = open(&log, dir.path(), |_| {}).await;
    // Session expiry 1 s; will with a delay of 1 s; message with an expiry of 1 s.
    let mut body = text("MQTT");
    body.extend([5, 0b0000_1100, 0, 60, 5, 0x11, 0, 0, 0, 100]);
    body.extend(text("dying"));
    body.extend([5, 0x18, 0, 0, 0, 1]);
    body.extend(text("will"));
    body.extend(text("died"));
    let mut dying = server.raw().await;
    dying.send(&packet(0x10, &body)).await;
    dying.packet().await;
    let mut short = server.raw().await;
    short.send(&connect_with(true, "short", false, &[0x11, 0, 0, 0, 1])).await;
    short.packet().await;
    let (mut reader, _) = kept(&server, true, "r").await;
    subscribed(&mut reader, true, "#", 1).await;
    drop((reader, short));
    until("left", || server.metric("catchment_gateway_connections ") < 1.5).await;
    let mut publisher = server.client(true, "p").await;
    publisher.send(&publish_with(0x32, Some(&[2, 0, 0, 0, 1]), "t", 1, b"soon gone")).await;
    publisher.send(&publish_with(0x32, Some(&[2, 0, 0, 0, 100]), "t", 2, b"stays")).await;
    publisher.expect(&[0x40, 2, 0, 1]).await;
    publisher.expect(&[0x40, 2, 0, 2]).await;
    let copy = crash(dir.path());
    tokio::time::sleep(Duration::from_millis(1300)).await;

    let server = open(&log, copy.path(), |_| {}).await;
    until("the session ends", || server.metric("catchment_gateway_sessions ") < 2.5).await;
    let (_, present) = kept(&server, true, "short").await;
    assert!(!present);
    let (mut reader, _) = kept(&server, true, "r").await;
    let first = reader.packet().await;
    assert!(first.ends_with(b"stays"), "{first:02x?}");
    let left = first[12];
    assert!((90..=99).contains(&left), "{left} s are left of 100");
    let will = reader.packet().await;
    assert!(will.ends_with(b"died"), "{will:02x?}");
    reader.silent().await;
}

#[tokio::test]
async fn what_was_given_up_stays_away() {
    let (log, dir) = (MemoryLog::new(4), tempfile::tempdir().unwrap());
    let server = open(&log, dir.path(), |_| {}).await;
    for client_id in ["fresh", "left"] {
        let (mut client, _) = kept(&server, true, client_id).await;
        subscribed(&mut client, true, "#", 1).await;
        drop(client);
    }
    let fresh = server.client(true, "fresh").await;
    let (mut left, present) = kept(&server, true, "left").await;
    assert!(present);
    left.send(&packet(0xe0, &[0, 5, 0x11, 0, 0, 0, 0])).await;
    left.closed().await;
    let mut publisher = server.client(false, "p").await;
    for payload in [&b"retained"[..], b""] {
        publisher.send(&publish_with(0x33, None, "topic", 9, payload)).await;
        publisher.expect(&[0x40, 2, 0, 9]).await;
    }
    server.gateway.close().await;
    let copy = crash(dir.path());
    drop(fresh);
    let server = open(&log, copy.path(), |_| {}).await;
    for client_id in ["fresh", "left"] {
        assert!(!kept(&server, true, client_id).await.1, "{client_id}");
    }
    assert!(server.metric("catchment_gateway_subscriptions ") < 0.5);
}

#[tokio::test]
async fn queues_are_bounded_one_by_one_and_together() {
    let (log, dir) = (MemoryLog::new(4), tempfile::tempdir().unwrap());
    let change = |config: &mut GatewayConfig| {
        config.mqtt.session_queue_messages_max = 3;
        config.mqtt.kept_bytes_max = 200;
    };
    let server = open(&log, dir.path(), change).await;
    let (mut one, _) = kept(&server, false, "one").await;
    subscribed(&mut one, false, "a", 1).await;
    subscribed(&mut one, false, "large", 1).await;
    drop(one);
    until("left", || server.metric("catchment_gateway_connections ") < 0.5).await;
    let mut publisher = server.client(false, "p").await;
    published(&mut publisher, "large", 1, &[b'x'; 500]).await;
    for number in 1..=5 {
        published(&mut publisher, "a", number, &[number]).await;
    }
    assert!((server.metric("catchment_gateway_dropped_full_total") - 3.0).abs() < 0.1);
    let copy = crash(dir.path());
    let server = open(&log, copy.path(), change).await;
    let (mut one, _) = kept(&server, false, "one").await;
    for number in 1..=3 {
        one.expect(&publish(false, "a", 1, number, &[number as u8])).await;
    }
    one.silent().await;
}

#[tokio::test]
async fn nothing_is_recorded_where_nothing_is_kept() {
    let (log, dir) = (MemoryLog::new(4), tempfile::tempdir().unwrap());
    let server = open(&log, dir.path(), |_| {}).await;
    let mut reader = server.client(false, "r").await;
    subscribed(&mut reader, false, "#", 1).await;
    let (mut publisher, _) = kept(&server, false, "p").await;
    let before = server.metric("catchment_gateway_journal_bytes_total");
    for number in 1..=50 {
        published(&mut publisher, TOPIC, number, b"x").await;
    }
    let written = server.metric("catchment_gateway_journal_bytes_total") - before;
    assert!(written < 0.5, "{written} bytes were written for messages that nobody keeps");
}

/// A small file system, mounted until dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = std::process::Command::new("mount");
        let mounted = mount.args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(dir.path()).output();
        mounted.is_ok_and(|output| output.status.success()).then_some(Self(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        std::process::Command::new("umount").arg("-l").arg(self.0.path()).status().ok();
    }
}

#[tokio::test]
async fn a_full_disk_confirms_nothing_and_loses_nothing() {
    let Some(disk) = SmallDisk::mount() else {
        eprintln!("skipped: a tmpfs cannot be mounted here");
        return;
    };
    let (path, others) = (disk.0.path().join("sessions"), disk.0.path().join("others"));
    std::fs::write(&others, vec![1; 500 << 10]).unwrap();
    let log = MemoryLog::new(4);
    let change = |config: &mut GatewayConfig| config.mqtt.session_queue_messages_max = 10_000;
    let server = open(&log, &path, change).await;
    let (mut away, _) = kept(&server, true, "away").await;
    subscribed(&mut away, true, "t", 1).await;
    drop(away);
    let mut publisher = server.client(true, "p").await;
    let mut acknowledged = 0u16;
    loop {
        publisher.send(&publish(true, "t", 1, acknowledged + 1, &[b'x'; 1000])).await;
        let answer = tokio::time::timeout(Duration::from_millis(500), publisher.packet()).await;
        match answer {
            Ok(answer) if answer.len() == 4 => acknowledged += 1,
            // Too late to be taken, or taken and not confirmed.
            _ => break,
        }
    }
    assert!((100..600).contains(&acknowledged), "{acknowledged}");
    let copy = crash(&path);
    // What would have to be kept is refused, and nothing else.
    let mut other = server.client(true, "other").await;
    other.send(&publish(true, "t", 1, 1, b"x")).await;
    let answer = other.packet().await;
    assert_eq!((answer[0], &answer[2..5]), (0x40, &[0, 1, 0x97][..]));
    other.send(&publish_with(0x33, Some(&[]), "kept", 2, b"retained")).await;
    let answer = other.packet().await;
    assert_eq!((answer[0], &answer[2..5]), (0x40, &[0, 2, 0x97][..]));
    other.send(&publish(true, TOPIC, 1, 3, b"an event")).await;
    assert_eq!(other.packet().await[..4], [0x40, 2, 0, 3][..]);
    let mut refused = server.raw().await;
    refused.send(&connect_with(true, "new", false, &[0x11, 0, 0, 0, 9])).await;
    assert_eq!(refused.packet().await[3], 0x97);

    std::fs::remove_file(&others).unwrap();
    let answer = publisher.packet().await;
    assert_eq!(
        (answer[0], answer.len()),
        (0x40, 4),
        "it was taken before the disk was full, and is confirmed now"
    );
    other.send(&publish(true, "t", 1, 4, b"goes on")).await;
    other.expect(&[0x40, 2, 0, 4]).await;
    for (path, wanted) in [(copy.path(), acknowledged), (&*path, acknowledged + 2)] {
        let again = crash(path);
        let server = open(&log, again.path(), change).await;
        let (mut away, present) = kept(&server, true, "away").await;
        assert!(present);
        for number in 1..=wanted {
            let message = away.packet().await;
            assert_eq!(message[0] & 0xf0, 0x30);
            away.send(&[[0x40, 2].as_slice(), &number.to_be_bytes()].concat()).await;
        }
        away.silent().await;
    }
}
