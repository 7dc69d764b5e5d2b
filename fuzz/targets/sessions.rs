//! The life of sessions: up to four clients of three client ids, of both versions, that connect, subscribe, publish,
//! acknowledge, misbehave and vanish, in front of a log that keeps, holds or refuses. After every step: nothing panicked,
//! every packet was one that the server may send then, no event was acknowledged that is not durable, no message of QoS 2
//! became two events, and every queue is within its bounds.
//!
//! Connections are polled by hand, without sockets and threads, so that the same input always does the same.
#![no_main]

#[path = "sessions/client.rs"]
mod client;
#[path = "sessions/log.rs"]
mod log;

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Waker};

use arbitrary::Unstructured;
use catchment_gateway::transport::Remote;
use catchment_gateway::{AdmitAll, Gateway, GatewayConfig, GatewayMetrics, fuzzing};
use client::{Client, Filters, Stage};
use libfuzzer_sys::fuzz_target;
use log::{FakeLog, Mode};

const SLOTS: usize = 4;
const CLIENT_IDS: [&str; 3] = ["one", "two", ""];
/// Whether messages of these become events.
const TOPICS: [(&str, bool); 5] =
    [("devices/d/t", true), ("devices/e/t", true), ("a/b", false), ("$SYS/x", false), ("a", false)];
const FILTERS: [&str; 8] =
    ["#", "+/b", "a/#", "devices/+/t", "$share/g/a/#", "$share/g/devices/d/t", "$SYS/#", "a/#/b"];
/// Packet identifiers of a connection.
const IDS: u16 = 12;
/// Times that each connection is polled after a step; more than any of them needs to come to rest.
const ROUNDS: usize = 4;

type Connection = Pin<Box<dyn Future<Output = ()>>>;

struct World {
    gateway: Arc<Gateway>,
    log: Arc<FakeLog>,
    clients: [Option<Client>; SLOTS],
    reads: [bool; SLOTS],
    connections: Vec<Connection>,
    /// Filters of the session of each client id, as far as one may be there.
    filters: HashMap<usize, Filters>,
    next_number: u32,
    /// Identifiers of each connection's own: who goes on with a session and does not know what it sent must not reuse them.
    next_ids: u16,
    /// How many connections have sent each message of QoS 2.
    tries: HashMap<u32, u32>,
}

fn config() -> GatewayConfig {
    let mut config = GatewayConfig::default();
    let mqtt = &mut config.mqtt;
    mqtt.sys_interval_s = 0;
    mqtt.sessions_max = 3;
    mqtt.receive_maximum = 4;
    mqtt.outgoing_messages_max = 3;
    mqtt.session_queue_messages_max = 4;
    mqtt.session_queue_bytes_max = 100;
    mqtt.subscriptions_per_client_max = 4;
    mqtt.subscriptions_bytes_max = 6000;
    mqtt.retained_messages_max = 2;
    mqtt.inflight_events_max = 4;
    mqtt.topic_aliases_max = 2;
    config
}

fn text(into: &mut Vec<u8>, text: &str) {
    into.extend_from_slice(&(text.len() as u16).to_be_bytes());
    into.extend_from_slice(text.as_bytes());
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    assert!(body.len() < 128, "lengths of one byte are enough here");
    [&[first, body.len() as u8], body].concat()
}

impl World {
    fn new() -> Self {
        let log = Arc::new(FakeLog::default());
        let metrics = GatewayMetrics::default();
        let gateway = Gateway::new(config(), Arc::clone(&log) as _, Arc::new(AdmitAll), metrics);
        Self {
            gateway: gateway.expect("the configuration is sound"),
            log,
            clients: Default::default(),
            reads: [true; SLOTS],
            connections: Vec::new(),
            filters: HashMap::new(),
            next_number: 1,
            next_ids: 0,
            tries: HashMap::new(),
        }
    }

    /// Lets everybody do what they have to do, and checks.
    fn settle(&mut self) {
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..ROUNDS {
            self.connections.retain_mut(|connection| connection.as_mut().poll(&mut cx).is_pending());
            for (slot, reads) in self.clients.iter_mut().zip(self.reads) {
                if let Some(client) = slot
                    && reads
                {
                    client.read(&self.log);
                }
                slot.take_if(|client| client.is_over);
            }
        }
        fuzzing::check(&self.gateway);
        for (number, tries) in &self.tries {
            let taken = self.log.0.lock().taken.get(number).copied().unwrap_or(0);
            assert!(taken <= *tries, "message {number} of QoS 2 became {taken} events in {tries} tries");
        }
    }

    fn connect(&mut self, slot: usize, input: &mut Unstructured<'_>) -> arbitrary::Result<()> {
        let (is_v5, clean, name) =
            (input.arbitrary::<bool>()?, input.arbitrary::<bool>()?, input.int_in_range(0..=2)?);
        let (window, expires, will) =
            (input.int_in_range(1..=4u8)?, input.arbitrary::<bool>()?, input.int_in_range(0..=3u8)?);
        let aliases: bool = input.arbitrary()?;
        let (ours, theirs) = tokio::io::duplex(1 << 14);
        let gateway = Arc::clone(&self.gateway);
        self.connections.push(Box::pin(async move { gateway.serve_stream(theirs, Remote::default()).await }));
        let mut client = Client::new(ours, is_v5, if is_v5 { usize::from(window.min(3)) } else { 3 });
        client.ids = self.next_ids;
        self.next_ids += IDS;
        let flags = u8::from(clean) << 1 | if will > 0 { 0x04 | (will - 1) << 3 } else { 0 };
        let mut body = Vec::new();
        text(&mut body, "MQTT");
        body.extend_from_slice(&[if is_v5 { 5 } else { 4 }, flags, 0, 0]);
        if is_v5 {
            let expiry = if expires { 100 } else { 0 };
            body.extend_from_slice(&[11, 0x11, 0, 0, 0, expiry, 0x21, 0, window, 0x22, 0, u8::from(aliases)]);
        }
        text(&mut body, CLIENT_IDS[name]);
        if will > 0 {
            if is_v5 {
                body.push(0);
            }
            text(&mut body, "a/b");
            text(&mut body, "will");
        }
        client.send(&packet(0x10, &body));
        // A session that was there may still have them; an assigned client id is new each time.
        // Connections that wait for one another share them: the earlier may subscribe while the later waits.
        client.filters = match name {
            2 => Filters::default(),
            name => Filters::clone(self.filters.entry(name).or_default()),
        };
        self.reads[slot] = true;
        self.clients[slot] = Some(client);
        Ok(())
    }

    fn publish(&mut self, slot: usize, input: &mut Unstructured<'_>) -> arbitrary::Result<()> {
        let (qos, retain, mut packet_id) =
            (input.int_in_range(0..=2u8)?, input.arbitrary::<bool>()?, input.int_in_range(1..=6u16)?);
        let (topic, is_event) = *input.choose(&TOPICS)?;
        let Some(client) = &mut self.clients[slot] else { return Ok(()) };
        if !client.connected {
            return Ok(());
        }
        let number = self.next_number;
        self.next_number += 1;
        packet_id += client.ids;
        if !client.may_publish(packet_id, number, qos, is_event) {
            packet_id += IDS / 2;
            if !client.may_publish(packet_id, number, qos, is_event) {
                return Ok(());
            }
        }
        if qos == 2 {
            self.tries.insert(number, 1);
        }
        let bytes = publish_packet(client.is_v5, topic, packet_id, number, qos << 1 | u8::from(retain));
        client.send(&bytes);
        Ok(())
    }

    /// Sends a QoS 2 message again on the same connection, which a client that lost patience does.
    fn publish_again(&mut self, slot: usize, packet_id: u16) {
        let Some(client) = &mut self.clients[slot] else { return };
        let packet_id = packet_id + client.ids;
        if let Some((number, is_event)) = client.send_again(packet_id) {
            let topic = if is_event { "devices/d/t" } else { "a/b" };
            let bytes = publish_packet(client.is_v5, topic, packet_id, number, 0x08 | 2 << 1);
            client.send(&bytes);
        }
    }

    fn subscribe(&mut self, slot: usize, input: &mut Unstructured<'_>) -> arbitrary::Result<()> {
        let (adds, options) = (input.arbitrary::<bool>()?, input.int_in_range(0..=2u8)?);
        let more = input.int_in_range(0..=11u8)? << 2;
        let filter = *input.choose(&FILTERS)?;
        let Some(client) = &mut self.clients[slot] else { return Ok(()) };
        let mut body = vec![0, 77];
        if client.is_v5 {
            body.push(0);
        }
        text(&mut body, filter);
        if adds {
            body.push(options | if client.is_v5 { more & 0x2c } else { 0 });
            client.filters.borrow_mut().insert(filter.to_owned());
        }
        client.send(&packet(if adds { 0x82 } else { 0xa2 }, &body));
        Ok(())
    }

    /// Acknowledges the oldest message, in whichever step it is.
    fn acknowledge(&mut self, slot: usize) {
        let Some(client) = &mut self.clients[slot] else { return };
        let Some((packet_id, qos, stage)) = client.incoming.pop_front() else { return };
        let [high, low] = packet_id.to_be_bytes();
        let first = match (qos, stage) {
            (1, _) => 0x40,
            (_, Stage::New) => 0x50,
            (_, Stage::Released) => 0x70,
            // PUBREL is awaited.
            (_, Stage::Received) => return client.incoming.push_back((packet_id, qos, stage)),
        };
        if first == 0x50 {
            // The identifier stays in use, and counts for the window.
            client.incoming.push_back((packet_id, qos, Stage::Received));
        }
        client.send(&[first, 2, high, low]);
    }

    fn step(&mut self, input: &mut Unstructured<'_>) -> arbitrary::Result<()> {
        let (what, slot) = (input.int_in_range(0..=15u8)?, input.int_in_range(0..=SLOTS - 1)?);
        match what {
            0 if self.clients[slot].is_none() => self.connect(slot, input)?,
            1..=3 => self.publish(slot, input)?,
            4 => self.publish_again(slot, input.int_in_range(1..=6)?),
            5 | 6 => self.subscribe(slot, input)?,
            7 | 8 => self.acknowledge(slot),
            9 => {
                let packet_id = input.int_in_range(1..=6u16)?;
                if let Some(client) = &mut self.clients[slot]
                    && client.is_received(packet_id + client.ids)
                {
                    let [high, low] = (packet_id + client.ids).to_be_bytes();
                    client.send(&[0x62, 2, high, low]);
                }
            }
            10 => {
                if let Some(client) = &mut self.clients[slot] {
                    client.send(&[0xe0, 0]);
                }
            }
            11 => self.clients[slot] = None,
            12 => {
                self.log.0.lock().mode = *input.choose(&[Mode::Keep, Mode::Hold, Mode::Hold, Mode::Full])?
            }
            13 => self.log.settle(input.ratio(3u8, 4u8)?),
            14 => self.reads[slot] = input.arbitrary()?,
            // Anything at all. What the server makes of it is not followed, only that it does no harm.
            15 => {
                let length = input.int_in_range(1..=40)?;
                let bytes = input.bytes(length)?;
                let (ours, theirs) = tokio::io::duplex(1 << 12);
                let gateway = Arc::clone(&self.gateway);
                let serve = async move { gateway.serve_stream(theirs, Remote::default()).await };
                self.connections.push(Box::pin(serve));
                let mut stranger = Client::new(ours, true, 0);
                stranger.send(&[&packet(0x10, b"\0\x04MQTT\x05\x02\0\0\0\0\x01z"), bytes].concat());
                self.settle();
            }
            _ => {}
        }
        Ok(())
    }
}

fn publish_packet(is_v5: bool, topic: &str, packet_id: u16, number: u32, flags: u8) -> Vec<u8> {
    let mut body = Vec::new();
    text(&mut body, topic);
    if flags & 6 != 0 {
        body.extend_from_slice(&packet_id.to_be_bytes());
    }
    if is_v5 {
        body.push(0);
    }
    body.extend_from_slice(&number.to_be_bytes());
    packet(0x30 | flags, &body)
}

fuzz_target!(|bytes: &[u8]| {
    // Timers need a clock; none of them is ever waited for.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let _entered = runtime.enter();
    let mut world = World::new();
    let mut input = Unstructured::new(bytes);
    while !input.is_empty() {
        // An input that ends early has done what it says.
        if world.step(&mut input).is_err() {
            break;
        }
        world.settle();
    }
    world.clients = Default::default();
    world.log.settle(true);
    world.settle();
});
