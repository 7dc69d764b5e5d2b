//! The load: connections that publish at QoS 1 with a window of messages under way, as fast as acknowledgements come or
//! paced. When paced, a latency counts from when the message was due, so that a server that stalls cannot hide it.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use catchment_sim::load::{EVENT_TYPE, LoadDevice};
use catchment_types::Timestamp;
use hdrhistogram::Histogram;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::mqtt;

/// Messages written in one go.
const BURST_MAX: usize = 64;
const READ_BYTES: usize = 16 * 1024;
/// How long acknowledgements may stay out after the last message.
const DRAIN_MAX: Duration = Duration::from_secs(60);

/// The devices of each connection, kept from phase to phase so that their sequences go on.
pub(super) struct Fleet {
    target: SocketAddr,
    token: Option<String>,
    window: usize,
    connections: Vec<Vec<LoadDevice>>,
}

/// What a phase did.
pub(super) struct Sent {
    /// Messages with a PUBACK.
    pub(super) acknowledged: u64,
    /// From the first message to the last acknowledgement.
    pub(super) elapsed: Duration,
    /// Microseconds from publish to PUBACK.
    pub(super) latencies_us: Histogram<u64>,
}

impl Fleet {
    pub(super) fn new(
        target: SocketAddr,
        token: Option<String>,
        connections: u32,
        devices: u32,
        window: u16,
    ) -> Self {
        let connections = connections.min(devices);
        let spread =
            |connection| (connection..devices).step_by(connections as usize).map(LoadDevice::new).collect();
        Self {
            target,
            token,
            window: usize::from(window),
            connections: (0..connections).map(spread).collect(),
        }
    }

    /// Publishes for `duration`, `rate` messages a second over all connections or as fast as it goes, then waits for the
    /// last acknowledgement.
    pub(super) async fn publish(&mut self, duration: Duration, rate: Option<f64>) -> anyhow::Result<Sent> {
        let mut streams = Vec::new();
        for number in 0..self.connections.len() {
            let id = format!("bench-{}-{number}", std::process::id());
            streams.push(mqtt::connect(self.target, &id, self.token.as_deref()).await?);
        }
        let started = Instant::now();
        let mut tasks = JoinSet::new();
        let count = self.connections.len() as f64;
        for (number, (devices, stream)) in self.connections.drain(..).zip(streams).enumerate() {
            let pace = rate.map(|rate| Pace { per_second: rate / count, shift: number as f64 / count });
            let connection = Connection::new(stream, devices, self.window, number as u64)?;
            tasks.spawn(connection.run(started, duration, pace));
        }
        let mut sent = Sent { acknowledged: 0, elapsed: Duration::ZERO, latencies_us: new_histogram()? };
        while let Some(finished) = tasks.join_next().await {
            let connection = finished.context("a connection's task ended early")??;
            sent.acknowledged += connection.acknowledged;
            sent.latencies_us.add(&connection.latencies_us)?;
            self.connections.push(connection.devices);
        }
        sent.elapsed = started.elapsed();
        Ok(sent)
    }
}

/// Latencies from 1 µs to 10 minutes, three digits.
pub(super) fn new_histogram() -> anyhow::Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, 600_000_000, 3)?)
}

/// When messages are due.
#[derive(Clone, Copy)]
struct Pace {
    per_second: f64,
    /// Part of an interval by which this connection is later than the first, so that they do not beat together.
    shift: f64,
}

impl Pace {
    fn due(&self, message: u64) -> Duration {
        Duration::from_secs_f64((message as f64 + self.shift) / self.per_second)
    }
}

struct Connection {
    stream: TcpStream,
    devices: Vec<LoadDevice>,
    window: usize,
    source: StdRng,
    /// What waits for its acknowledgement, in order.
    under_way: VecDeque<(u16, Instant)>,
    sent: u64,
    acknowledged: u64,
    latencies_us: Histogram<u64>,
    output: Vec<u8>,
    input: Vec<u8>,
    payload: String,
    topic: String,
}

impl Connection {
    fn new(stream: TcpStream, devices: Vec<LoadDevice>, window: usize, number: u64) -> anyhow::Result<Self> {
        Ok(Self {
            stream,
            devices,
            window,
            source: StdRng::seed_from_u64(number),
            under_way: VecDeque::with_capacity(window),
            sent: 0,
            acknowledged: 0,
            latencies_us: new_histogram()?,
            output: Vec::new(),
            input: Vec::new(),
            payload: String::new(),
            topic: String::new(),
        })
    }

    async fn run(mut self, started: Instant, duration: Duration, pace: Option<Pace>) -> anyhow::Result<Self> {
        let end = started + duration;
        loop {
            let now = Instant::now();
            if now < end && self.output.is_empty() {
                self.fill(started, now, pace)?;
            }
            if now >= end && self.output.is_empty() && self.under_way.is_empty() {
                return Ok(self);
            }
            if now >= end + DRAIN_MAX {
                bail!("{} messages were not acknowledged within {DRAIN_MAX:?}", self.under_way.len());
            }
            let wake = match pace {
                Some(pace) if now < end => {
                    (started + pace.due(self.sent)).max(now + Duration::from_micros(500))
                }
                _ => now + Duration::from_millis(100),
            };
            let interest = if self.output.is_empty() {
                Interest::READABLE
            } else {
                Interest::READABLE | Interest::WRITABLE
            };
            tokio::select! {
                ready = self.stream.ready(interest) => {
                    let ready = ready?;
                    if ready.is_readable() {
                        self.read()?;
                    }
                    if ready.is_writable() && !self.output.is_empty() {
                        self.write()?;
                    }
                }
                () = tokio::time::sleep_until(wake.into()) => {}
            }
        }
    }

    /// Encodes what is due and fits in the window.
    fn fill(&mut self, started: Instant, now: Instant, pace: Option<Pace>) -> io::Result<()> {
        let wall = Timestamp::now();
        for _ in 0..BURST_MAX.min(self.window - self.under_way.len()) {
            let since = match pace.map(|pace| started + pace.due(self.sent)) {
                Some(due) if due > now => break,
                Some(due) => due,
                None => now,
            };
            let count = self.devices.len() as u64;
            let device = &mut self.devices[(self.sent % count) as usize];
            // 0 is not a packet id.
            let packet_id = (self.sent % 65_535) as u16 + 1;
            self.payload.clear();
            device.write_event(wall, &mut self.source, &mut self.payload);
            self.topic.clear();
            self.topic.extend(["devices/", device.id(), "/", EVENT_TYPE]);
            mqtt::put_publish(&mut self.output, &self.topic, packet_id, self.payload.as_bytes())?;
            self.under_way.push_back((packet_id, since));
            self.sent += 1;
        }
        Ok(())
    }

    fn write(&mut self) -> io::Result<()> {
        match self.stream.try_write(&self.output) {
            Ok(count) => {
                self.output.drain(..count);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn read(&mut self) -> io::Result<()> {
        let before = self.input.len();
        self.input.resize(before + READ_BYTES, 0);
        let count = match self.stream.try_read(&mut self.input[before..]) {
            Ok(0) => return Err(io::Error::other("the server closed the connection")),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        };
        self.input.truncate(before + count);
        let now = Instant::now();
        let (under_way, latencies, acknowledged) =
            (&mut self.under_way, &mut self.latencies_us, &mut self.acknowledged);
        mqtt::take_pubacks(&mut self.input, |id| match under_way.pop_front() {
            Some((expected, since)) if expected == id => {
                *acknowledged += 1;
                latencies.saturating_record(now.duration_since(since).as_micros() as u64);
                Ok(())
            }
            expected => Err(io::Error::other(format!("PUBACK {id} out of order, {expected:?} was next"))),
        })
    }
}
