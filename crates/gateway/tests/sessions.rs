//! Subscriptions, retained messages, wills, and sessions that outlive their connections.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use catchment_gateway::{Admission, Credentials, Denied, GatewayConfig, Principal, QoS, Role};
use support::*;

const TOPIC: &str = "devices/d1/state";

async fn subscribed(client: &mut Wire, v5: bool, filter: &str, options: u8) {
    client.send(&subscribe(v5, 77, filter, options)).await;
    let ack = client.packet().await;
    assert_eq!((ack[0], ack.last().copied()), (0x90, Some(options & 3)));
}

#[tokio::test]
async fn messages_reach_subscribers_at_the_lower_qos() {
    let server = Server::start().await;
    let mut subscriber = server.client(false, "s").await;
    subscribed(&mut subscriber, false, "devices/+/state", 1).await;
    let mut publisher = server.client(true, "p").await;
    publisher.send(&publish(true, TOPIC, 0, 0, b"zero")).await;
    publisher.send(&publish(true, TOPIC, 1, 1, b"one")).await;
    publisher.send(&publish(true, TOPIC, 2, 2, b"two")).await;
    subscriber.expect(&publish(false, TOPIC, 0, 0, b"zero")).await;
    subscriber.expect(&publish(false, TOPIC, 1, 1, b"one")).await;
    subscriber.expect(&publish(false, TOPIC, 1, 2, b"two")).await;
    subscriber.send(&packet(0xa2, &[&[0, 9][..], &text("devices/+/state")].concat())).await;
    subscriber.expect(&[0xb0, 2, 0, 9]).await;
    publisher.send(&publish(true, TOPIC, 0, 0, b"gone")).await;
    subscriber.silent().await;
}

#[tokio::test]
async fn qos2_goes_out_in_four_steps() {
    let server = Server::start().await;
    let mut subscriber = server.client(true, "s").await;
    subscribed(&mut subscriber, true, "#", 2).await;
    server.gateway.publish("main", "a", b"x", QoS::ExactlyOnce, false).await.unwrap();
    subscriber.expect(&publish(true, "a", 2, 1, b"x")).await;
    subscriber.send(&[0x50, 2, 0, 1]).await;
    subscriber.expect(&[0x62, 2, 0, 1]).await;
    subscriber.send(&[0x70, 2, 0, 1]).await;
    // An unknown one is answered as the standard says.
    subscriber.send(&[0x50, 2, 0, 9]).await;
    subscriber.refused(0x62, 9, 0x92).await;
    subscriber.send(&[0x62, 2, 0, 9]).await;
    subscriber.refused(0x70, 9, 0x92).await;
    assert!(server.log.kept().is_empty(), "the server's own messages are no events");
}

#[tokio::test]
async fn options_of_version_5() {
    let server = Server::start().await;
    let mut client = server.client(true, "c").await;
    // No local, and a subscription identifier of two bytes.
    let body = [&[0, 1, 3, 0x0b, 0x80, 0x01][..], &text("devices/#"), &[4]].concat();
    client.send(&packet(0x82, &body)).await;
    client.expect(&[0x90, 4, 0, 1, 0, 0]).await;
    client.send(&publish(true, TOPIC, 0, 0, b"own")).await;
    let mut other = server.client(true, "o").await;
    // Content type, user property, expiry and alias: the first two are handed on.
    let properties =
        [&[0x23, 0, 1, 3][..], &text("text/plain"), &[2, 0, 0, 0, 60, 0x26], &text("k"), &text("v")].concat();
    other.send(&publish_with(0x30, Some(&properties), TOPIC, 0, b"1")).await;
    other.send(&publish_with(0x30, Some(&[0x23, 0, 1]), "", 0, b"2")).await;
    let wanted =
        [&[2, 0, 0, 0, 60, 0x0b, 0x80, 0x01, 3][..], &text("text/plain"), &[0x26], &text("k"), &text("v")];
    client.expect(&publish_with(0x30, Some(&wanted.concat()), TOPIC, 0, b"1")).await;
    client.expect(&publish_with(0x30, Some(&[0x0b, 0x80, 0x01]), TOPIC, 0, b"2")).await;
    let kept = server.log.kept();
    assert_eq!(
        kept.iter().map(|kept| kept.content_type.as_str()).collect::<Vec<_>>(),
        ["", "text/plain", ""]
    );
}

#[tokio::test]
async fn overlapping_filters_give_one_message_with_all_identifiers_where_that_is_asked_for() {
    let server = Server::configured(|config| config.mqtt.overlapping_copies = false).await;
    let mut client = server.client(true, "c").await;
    for (id, filter, qos) in [(1u8, "a/#", 0), (2, "a/+", 1)] {
        let body = [&[0, id, 2, 0x0b, id][..], &text(filter), &[qos]].concat();
        client.send(&packet(0x82, &body)).await;
        client.packet().await;
    }
    server.gateway.publish("main", "a/b", b"x", QoS::AtLeastOnce, false).await.unwrap();
    let got = client.packet().await;
    assert_eq!(got[0], 0x32);
    let properties = &got[2 + 5 + 2..][..5];
    assert!(properties == [4, 0x0b, 1, 0x0b, 2] || properties == [4, 0x0b, 2, 0x0b, 1], "{got:02x?}");
    client.silent().await;
}

#[tokio::test]
async fn overlapping_filters_give_a_message_each() {
    let server = Server::start().await;
    let mut client = server.client(true, "c").await;
    for (id, filter) in [(1u8, "a/#"), (2, "a/+")] {
        client.send(&packet(0x82, &[&[0, id, 2, 0x0b, id][..], &text(filter), &[0]].concat())).await;
        client.packet().await;
    }
    server.gateway.publish("main", "a/b", b"x", QoS::AtMostOnce, false).await.unwrap();
    let mut ids = [client.packet().await[9], client.packet().await[9]];
    ids.sort_unstable();
    assert_eq!(ids, [1, 2]);
    client.silent().await;
}

#[tokio::test]
async fn retained_messages() {
    let server = Server::start().await;
    let mut publisher = server.client(true, "p").await;
    let mut early = server.client(true, "early").await;
    subscribed(&mut early, true, "devices/#", 8).await;
    publisher.send(&publish_with(0x33, Some(&[]), TOPIC, 1, b"kept")).await;
    publisher.expect(&[0x40, 2, 0, 1]).await;
    early.expect(&publish_with(0x31, Some(&[]), TOPIC, 0, b"kept")).await;
    let mut late = server.client(true, "late").await;
    subscribed(&mut late, true, "devices/+/state", 1).await;
    late.expect(&publish_with(0x33, Some(&[]), TOPIC, 1, b"kept")).await;
    // Retain handling: only if new; never.
    subscribed(&mut late, true, "devices/+/state", 0x11).await;
    subscribed(&mut late, true, "devices/d1/#", 0x21).await;
    late.silent().await;
    // Live messages without retain-as-published are not marked.
    let mut plain = server.client(false, "plain").await;
    subscribed(&mut plain, false, TOPIC, 0).await;
    plain.expect(&publish_with(0x31, None, TOPIC, 0, b"kept")).await;
    publisher.send(&publish_with(0x31, Some(&[]), TOPIC, 0, b"")).await;
    plain.expect(&publish_with(0x30, None, TOPIC, 0, b"")).await;
    let mut after = server.client(false, "after").await;
    subscribed(&mut after, false, "#", 0).await;
    after.silent().await;
    // Clearing is no event.
    assert_eq!(server.log.payloads(), ["kept"]);
}

#[tokio::test]
async fn shared_subscriptions_take_turns() {
    let server = Server::start().await;
    let mut members = Vec::new();
    for name in ["a", "b"] {
        let mut member = server.client(true, name).await;
        subscribed(&mut member, true, "$share/g/devices/#", 0).await;
        members.push(member);
    }
    let mut publisher = server.client(false, "p").await;
    for payload in ["1", "2", "3", "4"] {
        publisher.send(&publish(false, TOPIC, 0, 0, payload.as_bytes())).await;
    }
    for member in &mut members {
        member.packet().await;
        member.packet().await;
        member.silent().await;
    }
}

#[tokio::test]
async fn a_session_keeps_what_was_missed_and_sends_again_what_was_not_finished() {
    let server = Server::start().await;
    let connect = connect_with(true, "s", false, &[0x11, 0, 0, 0, 60]);
    let mut client = server.raw().await;
    client.send(&connect).await;
    client.packet().await;
    subscribed(&mut client, true, "a", 2).await;
    let send = async |payload: &[u8], qos| {
        server.gateway.publish("main", "a", payload, qos, false).await.unwrap();
    };
    send(b"1", QoS::AtLeastOnce).await;
    send(b"2", QoS::ExactlyOnce).await;
    client.expect(&publish(true, "a", 1, 1, b"1")).await;
    client.expect(&publish(true, "a", 2, 2, b"2")).await;
    client.send(&[0x50, 2, 0, 2]).await;
    client.expect(&[0x62, 2, 0, 2]).await;
    drop(client);
    until("disconnect", || server.metric("catchment_gateway_connections ") == 0.0).await;
    send(b"3", QoS::AtLeastOnce).await;
    send(b"zero", QoS::AtMostOnce).await;
    let mut client = server.raw().await;
    client.send(&connect).await;
    assert_eq!(client.packet().await[2], 1, "session present");
    client.expect(&[0x62, 2, 0, 2]).await;
    client.expect(&publish_with(0x3a, Some(&[]), "a", 1, b"1")).await;
    client.expect(&publish(true, "a", 1, 3, b"3")).await;
    client.silent().await;
    // A clean start forgets it all.
    client.send(&[0xe0, 0]).await;
    let mut client = server.client(true, "s").await;
    send(b"4", QoS::AtLeastOnce).await;
    client.silent().await;
}

#[tokio::test]
async fn sessions_end_in_time() {
    let server = Server::start().await;
    let mut client = server.raw().await;
    client.send(&connect_with(true, "s", false, &[0x11, 0, 0, 0, 1])).await;
    client.packet().await;
    subscribed(&mut client, true, "a", 1).await;
    drop(client);
    until("end", || server.metric("catchment_gateway_sessions ") == 0.0).await;
    assert_eq!(server.metric("catchment_gateway_subscriptions "), 0.0);
}

#[tokio::test]
async fn a_slow_client_has_a_bounded_queue_and_a_window() {
    let server = Server::configured(|config| config.mqtt.session_queue_messages_max = 10).await;
    let mut client = server.raw().await;
    // Receive maximum 2, maximum packet size 100.
    client.send(&connect_with(true, "s", true, &[0x21, 0, 2, 0x27, 0, 0, 0, 100])).await;
    client.packet().await;
    subscribed(&mut client, true, "a", 1).await;
    server.gateway.publish("main", "a", &[b'x'; 100], QoS::AtLeastOnce, false).await.unwrap();
    until("too large", || server.metric("catchment_gateway_dropped_too_large_total") == 1.0).await;
    for number in 0..2 {
        server.gateway.publish("main", "a", &[number], QoS::AtLeastOnce, false).await.unwrap();
    }
    let first = client.packet().await;
    client.packet().await;
    for number in 2..20 {
        server.gateway.publish("main", "a", &[number], QoS::AtLeastOnce, false).await.unwrap();
    }
    client.silent().await;
    assert_eq!(server.metric("catchment_gateway_dropped_full_total"), 8.0);
    let id = &first[first.len() - 4..][..2];
    client.send(&[0x40, 2, id[0], id[1]]).await;
    assert_eq!(client.packet().await.last(), Some(&2));
    client.silent().await;
}

#[tokio::test]
async fn wills() {
    let server = Server::start().await;
    let mut watcher = server.client(true, "w").await;
    subscribed(&mut watcher, true, "#", 0).await;
    let connect = |id: &str, delay: u8, expiry: u8| {
        let properties = [0x11, 0, 0, 0, expiry];
        let will = [0x18, 0, 0, 0, delay];
        let head = [&text("MQTT")[..], &[5, 0x04, 0, 60, 5], &properties, &text(id), &[5], &will];
        packet(0x10, &[&head.concat()[..], &text(TOPIC), &text(id)].concat())
    };
    let gone = |id: &str| publish(true, TOPIC, 0, 0, id.as_bytes());
    let open = async |bytes: &[u8]| {
        let mut client = server.raw().await;
        client.send(bytes).await;
        client.packet().await;
        client
    };
    drop(open(&connect("lost", 0, 0)).await);
    watcher.expect(&gone("lost")).await;
    assert_eq!(server.log.payloads(), ["lost"], "a will is an event");
    // A goodbye takes it back, unless it asks for the will.
    open(&connect("polite", 0, 0)).await.send(&[0xe0, 0]).await;
    watcher.silent().await;
    open(&connect("odd", 0, 0)).await.send(&[0xe0, 1, 4]).await;
    watcher.expect(&gone("odd")).await;
    // Delayed: not when the client is back in time.
    drop(open(&connect("late", 1, 60)).await);
    let back = open(&connect("late", 1, 60)).await;
    tokio::time::sleep(Duration::from_millis(1300)).await;
    watcher.silent().await;
    drop(back);
    watcher.silent().await;
    watcher.expect(&gone("late")).await;
}

/// Knows a device `d1`, a reader, and nobody else.
struct Tokens;

#[async_trait]
impl Admission for Tokens {
    async fn authenticate(&self, credentials: Credentials<'_>) -> Result<Principal, Denied> {
        let role = match credentials.password {
            Some(b"device") => Role::Device("d1".into()),
            Some(b"reader") => Role::Reader,
            _ => return Err(Denied::BadCredentials),
        };
        Ok(Principal::new("main", "test", role))
    }
}

#[tokio::test]
async fn roles_are_kept_to() {
    let server = Server::start_with(GatewayConfig::default(), Arc::new(Tokens), 2).await;
    let connect = |v5: bool, password: &str| {
        let mut body = [&text("MQTT")[..], &[if v5 { 5 } else { 4 }, 0xc2, 0, 60]].concat();
        body.extend(v5.then_some(0));
        packet(0x10, &[&body[..], &text(""), &text("u"), &text(password)].concat())
    };
    let mut denied = server.raw().await;
    denied.send(&connect(false, "wrong")).await;
    denied.expect(&[0x20, 2, 0, 4]).await;
    denied.closed().await;
    let mut device = server.raw().await;
    device.send(&connect(true, "device")).await;
    let welcome = device.packet().await;
    assert_eq!(welcome[3], 0);
    assert!(welcome.windows(5).any(|bytes| bytes == b"auto-"), "an assigned client id");
    device.send(&publish(true, TOPIC, 1, 1, b"own")).await;
    device.expect(&[0x40, 2, 0, 1]).await;
    device.send(&publish(true, "devices/d2/state", 1, 2, b"foreign")).await;
    device.expect(&[0x40, 3, 0, 2, 0x87]).await;
    device.send(&publish(true, "devices/d2/state", 2, 3, b"foreign")).await;
    device.expect(&[0x50, 3, 0, 3, 0x87]).await;
    device.send(&subscribe(true, 4, "#", 0)).await;
    device.expect(&[0x90, 4, 0, 4, 0, 0x87]).await;
    device.send(&subscribe(true, 5, "devices/d1/commands/#", 0)).await;
    device.expect(&[0x90, 4, 0, 5, 0, 0]).await;
    let mut reader = server.raw().await;
    reader.send(&connect(false, "reader")).await;
    reader.expect(&[0x20, 2, 0, 0]).await;
    reader.send(&subscribe(false, 1, "#", 0)).await;
    reader.expect(&[0x90, 3, 0, 1, 0]).await;
    reader.send(&publish(false, TOPIC, 1, 1, b"x")).await;
    reader.closed().await;
    assert_eq!(server.log.payloads(), ["own"]);
}
