//! A client that keeps to the standard and holds the server to it: whatever comes must be a packet that a server may send now.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use mqtt_proto::{v3, v5};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

use crate::log::{FakeLog, number};

/// A message that the client has sent and that is not finished with.
#[derive(Debug, Clone)]
struct Sent {
    packet_id: u16,
    number: u32,
    qos: u8,
    /// It becomes an event, so that its acknowledgement means that it is in the log.
    is_event: bool,
    received: bool,
}

/// How far a client is with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It has it.
    New,
    /// It has sent PUBREC.
    Received,
    /// It has got PUBREL.
    Released,
}

/// Filters that a session ever had: of all its connections.
pub type Filters = Rc<RefCell<BTreeSet<String>>>;

/// What the standard allows of the server, by what this client has said.
pub struct Client {
    stream: DuplexStream,
    pub is_v5: bool,
    /// Its packet identifiers are above.
    pub ids: u16,
    /// Messages of QoS 1 and 2 that may be on their way to it.
    window: usize,
    buffer: Vec<u8>,
    pub connected: bool,
    pub is_over: bool,
    sent: VecDeque<Sent>,
    /// Identifiers of the server's messages with their QoS, and how far the client is with them.
    pub incoming: VecDeque<(u16, u8, Stage)>,
    aliases: HashMap<u16, String>,
    /// Identifiers of messages that were sent more than once, so that more than one PUBREC may come.
    resent: HashSet<u16>,
    /// Filters that it, or the session that it goes on with, ever had.
    pub filters: Filters,
}

fn variable(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut value = 0;
    for (at, &byte) in bytes.iter().take(4).enumerate() {
        value |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some((value, at + 1));
        }
    }
    None
}

impl Client {
    pub fn new(stream: DuplexStream, is_v5: bool, window: usize) -> Self {
        Self {
            stream,
            is_v5,
            ids: 0,
            window,
            buffer: Vec::new(),
            connected: false,
            is_over: false,
            sent: VecDeque::new(),
            incoming: VecDeque::new(),
            aliases: HashMap::new(),
            resent: HashSet::new(),
            filters: Filters::default(),
        }
    }

    /// Sends, as far as the server's buffers take it; a packet that is cut ends the connection.
    pub fn send(&mut self, bytes: &[u8]) {
        let mut cx = Context::from_waker(Waker::noop());
        match Pin::new(&mut self.stream).poll_write(&mut cx, bytes) {
            Poll::Ready(Ok(written)) if written == bytes.len() => {}
            _ => self.is_over = true,
        }
    }

    /// Takes note of a publish that is about to be sent. `false`: the standard does not allow it now.
    pub fn may_publish(&mut self, packet_id: u16, number: u32, qos: u8, is_event: bool) -> bool {
        if qos == 0 {
            return true;
        }
        // One that was sent again may be answered once more, which would be taken for the answer to this.
        let is_in_use =
            self.sent.iter().any(|sent| sent.packet_id == packet_id) || self.resent.contains(&packet_id);
        if self.sent.len() >= 4 || is_in_use {
            return false;
        }
        self.sent.push_back(Sent { packet_id, number, qos, is_event, received: false });
        true
    }

    /// The number of the QoS 2 message that is to be sent again under an identifier.
    pub fn send_again(&mut self, packet_id: u16) -> Option<(u32, bool)> {
        let sent = self.sent.iter().find(|sent| sent.packet_id == packet_id)?;
        let again = (sent.qos == 2 && !sent.received).then_some((sent.number, sent.is_event))?;
        self.resent.insert(packet_id);
        Some(again)
    }

    /// Whether PUBREL may be sent for an identifier.
    pub fn is_received(&self, packet_id: u16) -> bool {
        self.sent.iter().any(|sent| sent.packet_id == packet_id && sent.received)
    }

    /// Reads what there is, and checks it.
    pub fn read(&mut self, log: &FakeLog) {
        let mut cx = Context::from_waker(Waker::noop());
        let mut chunk = [0; 4096];
        loop {
            let mut buffer = ReadBuf::new(&mut chunk);
            match Pin::new(&mut self.stream).poll_read(&mut cx, &mut buffer) {
                Poll::Pending => break,
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    self.buffer.extend_from_slice(buffer.filled());
                }
                _ => {
                    self.is_over = true;
                    break;
                }
            }
        }
        while let Some((body, width)) = self.buffer.get(1..).and_then(variable) {
            let length = 1 + width + body;
            if self.buffer.len() < length {
                break;
            }
            let packet: Vec<u8> = self.buffer.drain(..length).collect();
            self.take(&packet, &packet[1 + width..], log);
        }
    }

    fn take(&mut self, packet: &[u8], body: &[u8], log: &FakeLog) {
        // Whoever wrote mqtt-proto agrees that this is a packet.
        let well_formed = match self.is_v5 {
            true => {
                v5::Packet::decode(packet).map(|found| found.is_some()).map_err(|error| error.to_string())
            }
            false => {
                v3::Packet::decode(packet).map(|found| found.is_some()).map_err(|error| error.to_string())
            }
        };
        assert_eq!(well_formed, Ok(true), "{packet:x?}");
        let kind = packet[0] >> 4;
        let packet_id = body.first_chunk().map_or(0, |bytes| u16::from_be_bytes(*bytes));
        let code = body.get(2).copied().unwrap_or(0);
        if kind == 2 {
            assert!(!self.connected, "a second CONNACK");
            self.connected = body[1] == 0;
            return;
        }
        assert!(self.connected, "before CONNACK: {packet:x?}");
        match kind {
            3 => self.take_publish(packet[0], body),
            4 | 5 => self.take_acknowledgement(kind, packet_id, code, log),
            6 => {
                // PUBREL: also for what an earlier connection of this session has had.
                if let Some(message) = self.incoming.iter_mut().find(|message| message.0 == packet_id) {
                    message.2 = Stage::Released;
                } else {
                    self.incoming.push_back((packet_id, 2, Stage::Released));
                }
            }
            7 => self.sent.retain(|sent| sent.packet_id != packet_id),
            9 | 11 | 13 => {}
            14 => assert!(self.is_v5, "DISCONNECT to a 3.1.1 client"),
            _ => panic!("a packet that only clients send: {packet:x?}"),
        }
    }

    fn take_acknowledgement(&mut self, kind: u8, packet_id: u16, code: u8, log: &FakeLog) {
        let qos = kind - 3;
        let at = self.sent.iter().position(|sent| sent.packet_id == packet_id && sent.qos == qos);
        if kind == 5 && at.is_none() && self.resent.contains(&packet_id) {
            return;
        }
        let at = at.unwrap_or_else(|| panic!("an acknowledgement for {packet_id}, which is not on its way"));
        let earlier = |sent: &Sent| sent.qos == qos && !sent.received;
        assert!(!self.sent.iter().take(at).any(earlier), "acknowledged before one that was sent earlier");
        let sent = &mut self.sent[at];
        if code < 0x80 && sent.is_event {
            let is_durable = log.0.lock().durable.contains(&sent.number);
            assert!(is_durable, "message {} is acknowledged and not durable", sent.number);
        }
        if qos == 2 && code < 0x80 {
            sent.received = true;
        } else {
            self.sent.remove(at);
        }
    }

    fn take_publish(&mut self, first: u8, body: &[u8]) {
        let (qos, duplicate) = (first >> 1 & 3, first & 8 != 0);
        let topic_length = usize::from(u16::from_be_bytes([body[0], body[1]]));
        let (topic, mut rest) = body[2..].split_at(topic_length);
        let mut topic = String::from_utf8(topic.to_vec()).expect("a topic is text");
        let packet_id = if qos > 0 {
            let (id, after) = rest.split_first_chunk::<2>().expect("an identifier");
            rest = after;
            u16::from_be_bytes(*id)
        } else {
            0
        };
        if self.is_v5 {
            let (length, width) = variable(rest).expect("a length");
            let properties = &rest[width..width + length];
            // The server puts the alias first, or right behind the expiry (five bytes).
            let alias = match properties {
                [0x23, high, low, ..] | [2, _, _, _, _, 0x23, high, low, ..] => {
                    Some(u16::from_be_bytes([*high, *low]))
                }
                _ => None,
            };
            match alias {
                Some(alias) if topic.is_empty() => {
                    topic = self.aliases.get(&alias).expect("an alias that was given").clone();
                }
                Some(alias) => drop(self.aliases.insert(alias, topic.clone())),
                None => {}
            }
            rest = &rest[width + length..];
        }
        let _ = number(rest);
        assert!(!topic.is_empty());
        let filters = self.filters.borrow();
        assert!(
            filters.iter().any(|filter| matches(filter, &topic)),
            "{topic} was not subscribed to: {filters:?}",
        );
        if qos > 0 {
            assert!(packet_id > 0);
            let known = self.incoming.iter().any(|message| message.0 == packet_id);
            assert!(!known, "identifier {packet_id} is in use, duplicate: {duplicate}");
            self.incoming.push_back((packet_id, qos, Stage::New));
            let unfinished = self.incoming.iter().filter(|message| message.2 != Stage::Released).count();
            assert!(unfinished <= self.window, "{unfinished} unacknowledged, {} may be", self.window);
        }
    }
}

/// The rules of the standard (4.7).
fn matches(filter: &str, topic: &str) -> bool {
    let filter = match filter.strip_prefix("$share/") {
        Some(shared) => shared.split_once('/').map_or("", |(_, filter)| filter),
        None => filter,
    };
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let (mut filter, mut topic) = (filter.split('/'), topic.split('/'));
    loop {
        match (filter.next(), topic.next()) {
            (Some("#"), _) => return true,
            (Some("+"), Some(_)) => {}
            (Some(wanted), Some(level)) if wanted == level => {}
            (None, None) => return true,
            _ => return false,
        }
    }
}
