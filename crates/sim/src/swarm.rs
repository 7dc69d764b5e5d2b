//! A swarm: many MQTT clients on one thread, as cheap as can be beside the server that is measured.
//!
//! Packets are written and read by hand, over sockets that are only touched when they are ready. Payloads are drawn once and
//! copied. A swarm does one thing at a time (open, subscribe, publish, receive, storm), and each call gives what it did; two
//! things at once are two swarms on two threads.
//!
//! *Latencies.* As fast as it goes, a latency counts from when the message was encoded. Paced, messages fall due on ticks of
//! a millisecond; a latency counts from the moment the swarm looked at the tick, and from there on nothing that the server
//! does can hide: a message that has to wait for its connection keeps its time. How late the swarm itself was is told apart
//! ([`Published::late_us`]).

mod client;
mod wire;

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use catchment_types::Timestamp;
use hdrhistogram::Histogram;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use socket2::{Domain, Socket, Type};

use self::client::{Client, Heard, Stage};
use crate::load::{EVENT_TYPE, LoadDevice};
use crate::random::source;

const READ_BYTES: usize = 64 << 10;
/// Messages that one client writes at once before others have their turn, unless it is to write fewer.
pub const BURST: usize = 56;
/// Different payloads.
const PAYLOADS: u32 = 128;
const EVENTS_MAX: usize = 1024;
const TICK: Duration = Duration::from_millis(1);
/// How long answers may stay out after the last message, subscription or connection.
const DRAIN_MAX: Duration = Duration::from_secs(60);

/// Whom to reach, and as whom.
#[derive(Debug, Clone)]
pub struct SwarmTarget {
    /// The server.
    pub address: SocketAddr,
    /// TLS, and the name that the server's certificate is to have.
    pub tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    /// Local addresses to connect from, in turn: one has no more than about 28,000 ports. Empty: as the system likes.
    pub sources: Vec<IpAddr>,
    /// User names and passwords, in turn. Empty: none.
    pub logins: Vec<(String, String)>,
}

/// Which topic each client publishes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topics {
    /// `devices/load-NUMBER/telemetry`, which is an event.
    Events,
    /// `bench/NUMBER/telemetry`, which no default route takes: for subscribers only.
    Brokered,
}

/// Connections to be opened.
#[derive(Debug, Clone)]
pub struct OpenPlan {
    /// Client ids are this and a number.
    pub prefix: String,
    /// How many.
    pub count: u32,
    /// How many a second; none: as fast as they are let in.
    pub rate: Option<f64>,
    /// How many may be under way at once.
    pub opening_max: usize,
    /// Whether sessions end with their connections.
    pub clean: bool,
    /// Where they publish to.
    pub topics: Topics,
}

/// What opening did.
#[derive(Debug)]
pub struct Opened {
    /// Connections with a CONNACK that let them in.
    pub opened: u64,
    /// Those that were refused or broken.
    pub failed: u64,
    /// What the last of these was told.
    pub failure: Option<String>,
    /// From the first to the last.
    pub elapsed: Duration,
    /// Microseconds from when a connection was due to its CONNACK.
    pub latency_us: Histogram<u64>,
}

/// Messages to be published.
#[derive(Debug, Clone)]
pub struct PublishPlan {
    /// For how long.
    pub duration: Duration,
    /// 0 or 1.
    pub qos: u8,
    /// Messages that a client may have without PUBACK.
    pub window: usize,
    /// Messages that a client writes at once, at most.
    pub burst: usize,
    /// Messages a second of all clients together; none: as fast as it goes.
    pub rate: Option<f64>,
}

/// What publishing did.
#[derive(Debug)]
pub struct Published {
    /// Messages that were handed to the server. At QoS 0 it has read all of them: each client ends with a ping.
    pub published: u64,
    /// Messages with a PUBACK.
    pub acknowledged: u64,
    /// From the first message to the last answer.
    pub elapsed: Duration,
    /// Microseconds from publish to PUBACK.
    pub latency_us: Histogram<u64>,
    /// Microseconds by which the swarm itself looked too late at what was due.
    pub late_us: Histogram<u64>,
}

/// What a swarm of subscribers got.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Received {
    /// Messages.
    pub messages: u64,
    /// From the first to the last of them.
    pub elapsed: Duration,
}

/// Clients on one thread.
pub struct Swarm {
    target: SwarmTarget,
    poll: Poll,
    events: Events,
    clients: Vec<Option<Client>>,
    free: Vec<usize>,
    next_source: usize,
    buffer: Box<[u8]>,
    scratch: Vec<u8>,
    payloads: Arc<[String]>,
    next_payload: usize,
    runnable: VecDeque<usize>,
    counts: Counts,
}

/// What was heard since the current call began.
#[derive(Debug, Default)]
struct Counts {
    opened: u64,
    failed: u64,
    failure: Option<String>,
    published: u64,
    acknowledged: u64,
    subscribed: u64,
    pongs: u64,
    messages: u64,
    first_message: Option<Instant>,
    last_message: Option<Instant>,
    latency_us: Option<Histogram<u64>>,
}

/// Latencies from 1 µs to 10 minutes, three digits.
#[must_use]
pub fn new_histogram() -> Histogram<u64> {
    // The bounds are constants that work.
    Histogram::new_with_bounds(1, 600_000_000, 3).unwrap_or_else(|_| unreachable!())
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl Swarm {
    /// A swarm without clients.
    ///
    /// # Errors
    /// The system has no poll for it.
    pub fn new(target: SwarmTarget) -> io::Result<Self> {
        let mut random = source(7, 7);
        let payload = |number| {
            let mut text = String::new();
            LoadDevice::new(number).write_event(Timestamp::now(), &mut random, &mut text);
            text
        };
        Ok(Self {
            target,
            poll: Poll::new()?,
            events: Events::with_capacity(EVENTS_MAX),
            clients: Vec::new(),
            free: Vec::new(),
            next_source: 0,
            buffer: vec![0; READ_BYTES].into_boxed_slice(),
            scratch: Vec::new(),
            payloads: (0..PAYLOADS).map(payload).collect(),
            next_payload: 0,
            runnable: VecDeque::new(),
            counts: Counts::default(),
        })
    }

    /// How many clients are there.
    #[must_use]
    pub fn len(&self) -> usize {
        self.clients.len() - self.free.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Opens connections that stay.
    ///
    /// # Errors
    /// The system gives no more sockets; or none of the connections got an answer for a minute.
    pub fn open(&mut self, plan: &OpenPlan) -> io::Result<Opened> {
        self.connect_all(plan, |_| false)
    }

    /// Opens connections and says goodbye as soon as each is let in.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn storm(&mut self, plan: &OpenPlan) -> io::Result<Opened> {
        self.connect_all(plan, |client| {
            // A server that has gone already is counted by nobody.
            let _ = client.write(&wire::DISCONNECT);
            true
        })
    }

    /// Opens connections one after another, each with one subscription to its own topic, and leaves: what stays are sessions.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn leave_sessions(&mut self, plan: &OpenPlan, filter: impl Fn(u32) -> String) -> io::Result<Opened> {
        let mut total = Opened {
            opened: 0,
            failed: 0,
            failure: None,
            elapsed: Duration::ZERO,
            latency_us: new_histogram(),
        };
        let started = Instant::now();
        let part = u32::try_from(plan.opening_max.max(1)).unwrap_or(u32::MAX);
        for first in (0..plan.count).step_by(part as usize) {
            let count = part.min(plan.count - first);
            let opened =
                self.open(&OpenPlan { prefix: format!("{}{first}-", plan.prefix), count, ..plan.clone() })?;
            self.subscribe(1, |number| filter(first + number))?;
            self.leave()?;
            total.opened += opened.opened;
            total.failed += opened.failed;
            total.failure = opened.failure.or(total.failure);
            let _ = total.latency_us.add(&opened.latency_us);
        }
        total.elapsed = started.elapsed();
        Ok(total)
    }

    fn connect_all(
        &mut self,
        plan: &OpenPlan,
        mut leaves: impl FnMut(&mut Client) -> bool,
    ) -> io::Result<Opened> {
        self.counts = Counts { latency_us: Some(new_histogram()), ..Counts::default() };
        let started = Instant::now();
        let mut opened_ids: Vec<usize> = Vec::new();
        let (mut begun, mut heard) = (0u32, Instant::now());
        loop {
            let now = Instant::now();
            let answered = self.counts.opened + self.counts.failed;
            while begun < plan.count && u64::from(begun) - answered < plan.opening_max as u64 {
                let due = plan.rate.map(|rate| started + Duration::from_secs_f64(f64::from(begun) / rate));
                if due.is_some_and(|due| due > now) {
                    break;
                }
                self.connect(plan, begun, due.unwrap_or(now))?;
                begun += 1;
            }
            if answered == u64::from(plan.count) {
                break;
            }
            let before = self.counts.opened + self.counts.failed;
            self.turn(if begun < plan.count { TICK } else { TICK * 50 }, &mut |id, _| opened_ids.push(id))?;
            for id in opened_ids.drain(..) {
                if let Some(Some(client)) = self.clients.get_mut(id)
                    && leaves(client)
                {
                    self.remove(id);
                }
            }
            if self.counts.opened + self.counts.failed > before {
                heard = Instant::now();
            } else if heard.elapsed() > DRAIN_MAX {
                return Err(io::Error::other(format!("{before} of {begun} connections were answered")));
            }
        }
        let counts = std::mem::take(&mut self.counts);
        Ok(Opened {
            opened: counts.opened,
            failed: counts.failed,
            failure: counts.failure,
            elapsed: started.elapsed(),
            latency_us: counts.latency_us.unwrap_or_else(new_histogram),
        })
    }

    fn connect(&mut self, plan: &OpenPlan, number: u32, due: Instant) -> io::Result<()> {
        let socket = Socket::new(Domain::for_address(self.target.address), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        if !self.target.sources.is_empty() {
            let source = self.target.sources[self.next_source % self.target.sources.len()];
            self.next_source += 1;
            socket.bind(&SocketAddr::new(source, 0).into())?;
        }
        // A connection that is under way says so by an error.
        match socket.connect(&self.target.address.into()) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock && error.raw_os_error() != Some(115) => {
                self.counts.fail(error);
                return Ok(());
            }
            _ => {}
        }
        let mut socket = TcpStream::from_std(socket.into());
        let id = self.free.pop().unwrap_or_else(|| {
            self.clients.push(None);
            self.clients.len() - 1
        });
        self.poll.registry().register(&mut socket, Token(id), Interest::READABLE | Interest::WRITABLE)?;
        let topic = match plan.topics {
            Topics::Events => format!("devices/load-{number:06}/{EVENT_TYPE}"),
            Topics::Brokered => format!("bench/{number:06}/{EVENT_TYPE}"),
        };
        let mut client = Client::new(socket, self.target.tls.as_ref(), topic.into(), due)?;
        let logins = &self.target.logins;
        let login = (!logins.is_empty()).then(|| &logins[number as usize % logins.len()]);
        self.scratch.clear();
        let login = login.map(|(user, password)| (&**user, &**password));
        wire::put_connect(&mut self.scratch, &format!("{}{number}", plan.prefix), plan.clean, login);
        client.write(&self.scratch)?;
        self.clients[id] = Some(client);
        Ok(())
    }

    /// Has every client subscribe to a filter of its own, and waits for the answers.
    ///
    /// # Errors
    /// A subscription is refused, or a client lost.
    pub fn subscribe(&mut self, qos: u8, filter: impl Fn(u32) -> String) -> io::Result<()> {
        self.counts = Counts::default();
        let mut asked = 0;
        for (number, client) in (0u32..).zip(&mut self.clients) {
            let Some(client) = client else { continue };
            self.scratch.clear();
            let id = client.next_id();
            wire::put_subscribe(&mut self.scratch, id, &filter(number), qos);
            client.write(&self.scratch)?;
            asked += 1;
        }
        self.wait(|swarm| swarm.counts.subscribed == asked)
    }

    /// Has every client say goodbye.
    ///
    /// # Errors
    /// A client was lost before.
    pub fn leave(&mut self) -> io::Result<()> {
        for id in 0..self.clients.len() {
            if let Some(client) = &mut self.clients[id] {
                client.write(&wire::DISCONNECT)?;
                self.remove(id);
            }
        }
        Ok(())
    }

    /// Publishes, and waits for the last answer.
    ///
    /// # Errors
    /// A client is lost, an acknowledgement comes out of order, or none for a minute.
    pub fn publish(&mut self, plan: &PublishPlan) -> io::Result<Published> {
        let ids: Vec<usize> = (0..self.clients.len()).filter(|&id| self.clients[id].is_some()).collect();
        if ids.is_empty() {
            return Err(io::Error::other("there is no client to publish"));
        }
        self.counts = Counts { latency_us: Some(new_histogram()), ..Counts::default() };
        let mut late_us = new_histogram();
        let started = Instant::now();
        let end = started + plan.duration;
        let mut due = 0u64;
        if plan.rate.is_none() {
            ids.iter().for_each(|&id| self.queue(id));
        }
        loop {
            let now = Instant::now();
            if now >= end {
                break;
            }
            if let Some(rate) = plan.rate {
                // Everything of the ticks that have begun.
                let tick = (now - started).as_millis() as u64;
                let until = (tick as f64 / 1e3 * rate) as u64;
                if due < until {
                    let late = (now - started).saturating_sub(TICK * u32::try_from(tick).unwrap_or(u32::MAX));
                    let _ = late_us.record_n(micros(late), 1);
                }
                while due < until {
                    let id = ids[(due % ids.len() as u64) as usize];
                    if let Some(Some(client)) = self.clients.get_mut(id) {
                        client.due.push_back(now);
                    }
                    self.queue(id);
                    due += 1;
                }
            }
            for _ in 0..self.runnable.len().min(EVENTS_MAX) {
                let Some(id) = self.runnable.pop_front() else { break };
                self.fill(id, plan)?;
            }
            let wait = if self.runnable.is_empty() { TICK.min(end - now) } else { Duration::ZERO };
            self.turn(wait, &mut |_, _| {})?;
            self.check_all_there()?;
        }
        self.runnable.clear();
        for &id in &ids {
            if let Some(Some(client)) = self.clients.get_mut(id) {
                client.queued = false;
                client.due.clear();
                client.write(&wire::PING_REQUEST)?;
            }
        }
        let asked = ids.len() as u64;
        self.wait(|swarm| {
            let owed = if plan.qos > 0 { swarm.counts.published } else { 0 };
            swarm.counts.pongs >= asked && swarm.counts.acknowledged >= owed
        })?;
        let counts = std::mem::take(&mut self.counts);
        Ok(Published {
            published: counts.published,
            acknowledged: counts.acknowledged,
            elapsed: started.elapsed(),
            latency_us: counts.latency_us.unwrap_or_else(new_histogram),
            late_us,
        })
    }

    /// Takes what comes until `stop` says so and nothing came for a while after.
    ///
    /// # Errors
    /// A client is lost.
    pub fn receive(&mut self, stop: &AtomicBool) -> io::Result<Received> {
        const QUIET: Duration = Duration::from_millis(500);
        self.counts = Counts::default();
        loop {
            self.turn(TICK * 20, &mut |_, _| {})?;
            self.check_all_there()?;
            let last = self.counts.last_message;
            if stop.load(Ordering::Relaxed) && last.is_none_or(|last| last.elapsed() > QUIET) {
                break;
            }
        }
        let counts = std::mem::take(&mut self.counts);
        let elapsed = counts.first_message.zip(counts.last_message).map(|(first, last)| last - first);
        Ok(Received { messages: counts.messages, elapsed: elapsed.unwrap_or_default() })
    }

    /// Stays connected, and answers nobody, until `stop` says so.
    ///
    /// # Errors
    /// A client is lost.
    pub fn idle(&mut self, stop: &AtomicBool) -> io::Result<()> {
        self.counts = Counts::default();
        while !stop.load(Ordering::Relaxed) {
            self.turn(TICK * 100, &mut |_, _| {})?;
            self.check_all_there()?;
        }
        Ok(())
    }

    fn check_all_there(&mut self) -> io::Result<()> {
        match self.counts.failed {
            0 => Ok(()),
            failed => {
                let failure = self.counts.failure.take().unwrap_or_default();
                Err(io::Error::other(format!("{failed} clients were lost; the last: {failure}")))
            }
        }
    }

    fn wait(&mut self, done: impl Fn(&Self) -> bool) -> io::Result<()> {
        let started = Instant::now();
        while !done(self) {
            self.turn(TICK * 50, &mut |_, _| {})?;
            self.check_all_there()?;
            if started.elapsed() > DRAIN_MAX {
                return Err(io::Error::other(format!(
                    "answers are missing after {DRAIN_MAX:?}: {:?}",
                    self.counts
                )));
            }
        }
        Ok(())
    }

    fn queue(&mut self, id: usize) {
        if let Some(Some(client)) = self.clients.get_mut(id)
            && !client.queued
        {
            client.queued = true;
            self.runnable.push_back(id);
        }
    }

    /// Writes what a client may.
    fn fill(&mut self, id: usize, plan: &PublishPlan) -> io::Result<()> {
        let Some(Some(client)) = self.clients.get_mut(id) else { return Ok(()) };
        client.queued = false;
        if client.blocked || !client.is_written() {
            return Ok(());
        }
        let room =
            if plan.qos == 0 { plan.burst } else { plan.window.saturating_sub(client.under_way.len()) };
        let wanted = if plan.rate.is_some() { client.due.len() } else { plan.burst };
        let count = plan.burst.min(room).min(wanted);
        self.scratch.clear();
        let now = Instant::now();
        for _ in 0..count {
            let since = client.due.pop_front().unwrap_or(now);
            let packet_id = if plan.qos > 0 { client.next_id() } else { 0 };
            let payload = &self.payloads[self.next_payload % self.payloads.len()];
            self.next_payload = self.next_payload.wrapping_add(1);
            wire::put_publish(&mut self.scratch, plan.qos, &client.topic, packet_id, payload.as_bytes());
            if plan.qos > 0 {
                client.under_way.push_back((packet_id, since));
            }
        }
        self.counts.published += count as u64;
        client.write(&self.scratch)?;
        let more = plan.rate.is_none() || !client.due.is_empty();
        let may = plan.qos == 0 || client.under_way.len() < plan.window;
        if more && may && !client.blocked {
            self.queue(id);
        }
        Ok(())
    }

    /// Waits for what sockets have, and takes it. `opened` hears of each client that was let in.
    fn turn(&mut self, wait: Duration, opened: &mut dyn FnMut(usize, Instant)) -> io::Result<()> {
        match self.poll.poll(&mut self.events, Some(wait)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            other => other?,
        }
        let now = Instant::now();
        let ready: Vec<_> = self
            .events
            .iter()
            .map(|event| (event.token().0, event.is_readable(), event.is_writable(), event.is_read_closed()))
            .collect();
        for (id, readable, writable, closed) in ready {
            let Some(Some(client)) = self.clients.get_mut(id) else { continue };
            let counts = &mut self.counts;
            let served = serve(client, &mut self.buffer, counts, (readable, writable, closed), now);
            match served {
                Ok(Served { is_open, has_room }) => {
                    if is_open {
                        opened(id, now);
                    }
                    if has_room {
                        self.queue(id);
                    }
                }
                Err(error) => {
                    self.counts.fail(error);
                    self.remove(id);
                }
            }
        }
        Ok(())
    }

    fn remove(&mut self, id: usize) {
        if let Some(mut client) = self.clients.get_mut(id).and_then(Option::take) {
            // Closing takes it out of the poll as well.
            let _ = self.poll.registry().deregister(&mut client.socket);
            self.free.push(id);
        }
    }
}

/// What came of one client's readiness.
struct Served {
    /// It was let in just now.
    is_open: bool,
    /// It may write again.
    has_room: bool,
}

fn serve(
    client: &mut Client,
    buffer: &mut [u8],
    counts: &mut Counts,
    (readable, writable, closed): (bool, bool, bool),
    now: Instant,
) -> io::Result<Served> {
    let was_blocked = client.blocked;
    if writable {
        if client.stage == Stage::Opening
            && let Some(error) = client.socket.take_error()?
        {
            return Err(error);
        }
        client.writable()?;
    }
    let (stage, acknowledged) = (client.stage, counts.acknowledged);
    let mut answers = Vec::new();
    if (readable || closed)
        && !client.read(buffer, closed, |client, heard| counts.hear(client, heard, now, &mut answers))?
    {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection"));
    }
    if !answers.is_empty() {
        client.write(&answers)?;
    }
    Ok(Served {
        is_open: stage == Stage::Opening && client.stage == Stage::Open,
        has_room: client.stage == Stage::Open
            && (was_blocked && !client.blocked && stage == Stage::Open || counts.acknowledged > acknowledged),
    })
}

impl Counts {
    fn fail(&mut self, error: io::Error) {
        self.failed += 1;
        self.failure = Some(error.to_string());
    }

    fn hear(
        &mut self,
        client: &mut Client,
        heard: Heard,
        now: Instant,
        answers: &mut Vec<u8>,
    ) -> io::Result<()> {
        match heard {
            Heard::Connected(0) => {
                client.stage = Stage::Open;
                self.opened += 1;
                self.record(now.saturating_duration_since(client.since));
            }
            Heard::Connected(code) => {
                return Err(io::Error::other(format!("the server refused the connection with code {code}")));
            }
            Heard::Acknowledged(id) => match client.under_way.pop_front() {
                Some((expected, since)) if expected == id => {
                    self.acknowledged += 1;
                    self.record(now.saturating_duration_since(since));
                }
                expected => {
                    return Err(io::Error::other(format!("PUBACK {id} came when {expected:?} was next")));
                }
            },
            Heard::Message(id) => {
                self.messages += 1;
                self.first_message.get_or_insert(now);
                self.last_message = Some(now);
                if let Some(id) = id {
                    wire::put_puback(answers, id);
                }
            }
            Heard::Subscribed(true) => self.subscribed += 1,
            Heard::Subscribed(false) => return Err(io::Error::other("the server refused a subscription")),
            Heard::Pong => self.pongs += 1,
        }
        Ok(())
    }

    fn record(&mut self, latency: Duration) {
        if let Some(latencies) = &mut self.latency_us {
            latencies.saturating_record(micros(latency));
        }
    }
}

#[cfg(test)]
mod tests;
