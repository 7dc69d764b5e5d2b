use std::pin::pin;
use std::task::{Context, Waker};
use std::time::Duration;

use super::*;
use crate::config::MqttConfig;
use crate::metrics::GatewayMetrics;
use crate::mqtt::codec::{Peer, PublishProperties, QoS, Version};
use crate::mqtt::keep::Keeper;
use crate::mqtt::message::SERVER;
use crate::mqtt::signal::Signal;
use crate::mqtt::subscriptions::Wish;

const TOPIC: &str = "a/a/a/a/a/a/a/a/a/a";
const WISH: Wish =
    Wish { qos: QoS::AtMostOnce, no_local: false, retain_as_published: false, subscription_id: 0 };

fn broker() -> Broker {
    let config = MqttConfig::default();
    let keeper = Arc::new(Keeper::volatile(&config));
    Broker::new("main", &config, GatewayMetrics::default(), keeper, Arc::default())
}

async fn session(broker: &Broker, client_id: &str) -> Arc<Session> {
    let request = Attach {
        client_id: &client_id.into(),
        owner: "",
        clean_start: true,
        expiry: Duration::ZERO,
        will: None,
        signal: &Arc::new(Signal::default()),
    };
    broker.attach(request).await.unwrap().session
}

fn subscribe(broker: &Broker, session: &Arc<Session>, text: &str) {
    let filter = broker.topic_limits().filter(text).unwrap();
    assert!(broker.subscribe(session, text, filter, WISH, 2000, |_| true));
}

fn message(payload: &[u8], retain: bool) -> Arc<Message> {
    let properties = PublishProperties::default();
    Arc::new(Message::new(TOPIC, &properties, payload, QoS::AtMostOnce, retain, SERVER))
}

/// The payloads that wait for a session, of one byte each.
fn payloads(session: &Session) -> Vec<u8> {
    let peer = Peer { version: Version::V3, packet_bytes_max: 1000, window: 10, problem_info: false };
    let mut output = Vec::new();
    session.fill(&mut output, 1 << 20, &peer, None);
    output.chunks(2 + 2 + TOPIC.len() + 1).filter_map(|packet| packet.last().copied()).collect()
}

/// A broker where the search for those who get a message of the topic takes several turns.
async fn crowded() -> (Broker, Arc<Session>) {
    let broker = broker();
    let greedy = session(&broker, "greedy").await;
    for bits in 0..1 << 10 {
        let levels = (0..10).map(|at| if bits >> at & 1 == 1 { "+" } else { "a" });
        subscribe(&broker, &greedy, &Vec::from_iter(levels).join("/"));
    }
    (broker, greedy)
}

#[tokio::test]
async fn who_subscribes_while_a_retained_message_finds_its_way_has_it_in_the_end() {
    let (broker, _greedy) = crowded().await;
    broker.publish(&message(b"1", true), &mut Turn::default()).await;
    let (newcomer, early) = (session(&broker, "newcomer").await, session(&broker, "early").await);
    subscribe(&broker, &early, "a/#");
    let (new, mut turn) = (message(b"2", true), Turn::default());
    let mut publishing = pin!(broker.publish(&new, &mut turn));
    assert!(publishing.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    // The search has passed this filter already, and the message is not retained yet.
    subscribe(&broker, &newcomer, TOPIC);
    assert_eq!(payloads(&newcomer), b"1");
    publishing.await;
    assert_eq!(payloads(&newcomer), b"2");
    assert_eq!(payloads(&early), b"2", "once: there was somebody new, and it was not this one");
}

#[tokio::test]
async fn many_get_a_message_in_turns_and_each_once() {
    let broker = broker();
    let mut sessions = Vec::new();
    for number in 0..1500 {
        sessions.push(session(&broker, &number.to_string()).await);
        subscribe(&broker, &sessions[number], "a/#");
    }
    let (one, mut turn) = (message(b"1", false), Turn::default());
    let mut publishing = pin!(broker.publish(&one, &mut turn));
    let mut reached = Vec::new();
    loop {
        let is_done = publishing.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
        reached.push(sessions.iter().filter(|session| payloads(session) == b"1").count());
        if is_done {
            break;
        }
    }
    assert_eq!(reached.iter().sum::<usize>(), 1500, "each once");
    assert!(reached.iter().all(|&at_once| at_once <= 512), "{reached:?}");
    broker.publish(&message(b"2", false), &mut Turn::default()).await;
    assert!(sessions.iter().all(|session| payloads(session) == b"2"));
}
