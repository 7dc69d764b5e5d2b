//! What the gateway's tests share: an event log in memory whose durability the test decides, a server, a raw client.

#![allow(dead_code, missing_docs, unreachable_pub)] // Each test binary uses its own part.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use catchment_eventlog::{EventBlock, EventLog, LogError, LogStats, Pending, ReadBatch};
use catchment_gateway::{Admission, AdmitAll, Gateway, GatewayConfig, GatewayMetrics};
use catchment_types::{EventBatch, Offset, PartitionId};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub const PATIENCE: Duration = Duration::from_secs(5);

/// What becomes of a batch that is submitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Durable at once.
    #[default]
    Keep,
    /// Kept, but durable only once the test calls [`MemoryLog::settle`].
    Hold,
    /// Refused at once.
    Full,
    /// Accepted, then found that there is no room.
    FullLater,
    /// The device failed.
    Failed,
}

/// One event, owned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    pub device_id: String,
    pub event_type: String,
    pub topic: String,
    pub content_type: String,
    pub tags: String,
    pub payload: Vec<u8>,
}

type Waiting = (PartitionId, EventBatch, oneshot::Sender<Result<Offset, LogError>>);

#[derive(Default)]
struct State {
    mode: Mode,
    partitions: Vec<Vec<EventBlock>>,
    held: Vec<Waiting>,
    submits: usize,
    closed: bool,
}

/// An event log in memory.
pub struct MemoryLog {
    state: Mutex<State>,
    changed: Notify,
}

impl MemoryLog {
    pub fn new(partitions: usize) -> Arc<Self> {
        let state = State { partitions: vec![Vec::new(); partitions], ..State::default() };
        Arc::new(Self { state: Mutex::new(state), changed: Notify::new() })
    }

    pub fn set(&self, mode: Mode) {
        self.state.lock().mode = mode;
    }

    /// Loses what is held.
    pub fn forget(&self) {
        self.state.lock().held.clear();
    }

    /// Makes everything durable that is held, of one partition or of all.
    pub fn settle(&self, only: Option<PartitionId>) {
        let state = &mut *self.state.lock();
        for (partition, batch, sender) in std::mem::take(&mut state.held) {
            if only.is_some_and(|only| only != partition) {
                state.held.push((partition, batch, sender));
            } else {
                let offset = state.keep(partition, batch);
                let _ = sender.send(Ok(offset));
            }
        }
        self.changed.notify_waiters();
    }

    /// Batches that are held.
    pub fn held(&self) -> usize {
        self.state.lock().held.len()
    }

    /// Calls of `submit`.
    pub fn submits(&self) -> usize {
        self.state.lock().submits
    }

    /// Everything durable, by partition and offset.
    pub fn kept(&self) -> Vec<Kept> {
        let state = self.state.lock();
        let blocks = state.partitions.iter().flatten();
        let events = blocks.flat_map(|block| {
            block.events.iter().map(|event| Kept {
                device_id: event.device_id.to_owned(),
                event_type: event.event_type.to_owned(),
                topic: event.topic.to_owned(),
                content_type: event.content_type.to_owned(),
                tags: event.tags.to_owned(),
                payload: event.payload.to_vec(),
            })
        });
        events.collect()
    }

    pub fn payloads(&self) -> Vec<String> {
        self.kept().into_iter().map(|kept| String::from_utf8_lossy(&kept.payload).into_owned()).collect()
    }
}

impl State {
    fn keep(&mut self, partition: PartitionId, events: EventBatch) -> Offset {
        let blocks = &mut self.partitions[partition as usize];
        let first_offset = blocks.last().map_or(0, EventBlock::end_offset);
        blocks.push(EventBlock { first_offset, events });
        first_offset
    }
}

#[async_trait]
impl EventLog for MemoryLog {
    fn partitions(&self) -> u32 {
        self.state.lock().partitions.len() as u32
    }

    async fn submit(&self, partition: PartitionId, batch: EventBatch) -> Result<Pending, LogError> {
        let (sender, pending) = Pending::new();
        let state = &mut *self.state.lock();
        if state.closed {
            return Err(LogError::Closed);
        }
        state.submits += 1;
        match state.mode {
            Mode::Keep => {
                let offset = state.keep(partition, batch);
                let _ = sender.send(Ok(offset));
                self.changed.notify_waiters();
            }
            Mode::Hold => state.held.push((partition, batch, sender)),
            Mode::Full => return Err(LogError::Full { path: "memory".into() }),
            Mode::FullLater => drop(sender.send(Err(LogError::Full { path: "memory".into() }))),
            Mode::Failed => {
                drop(sender.send(Err(LogError::Failed { path: "memory".into(), message: "broken".into() })));
            }
        }
        Ok(pending)
    }

    async fn read(
        &self,
        partition: PartitionId,
        from: Offset,
        _bytes_max: usize,
    ) -> Result<ReadBatch, LogError> {
        loop {
            let changed = self.changed.notified();
            {
                let state = self.state.lock();
                let blocks = &state.partitions[partition as usize];
                let blocks: Vec<_> =
                    blocks.iter().filter(|block| block.end_offset() > from).cloned().collect();
                if let Some(next) = blocks.last().map(EventBlock::end_offset) {
                    return Ok(ReadBatch { blocks, next, skipped: Vec::new() });
                }
                if state.closed {
                    return Err(LogError::Closed);
                }
            }
            changed.await;
        }
    }

    fn range(&self, partition: PartitionId) -> Range<Offset> {
        0..self.state.lock().partitions[partition as usize].last().map_or(0, EventBlock::end_offset)
    }

    fn release(&self, _partition: PartitionId, _before: Offset) {}

    fn stats(&self) -> LogStats {
        LogStats::default()
    }

    async fn close(&self) {
        self.settle(None);
        self.state.lock().closed = true;
        self.changed.notify_waiters();
    }
}

/// A gateway that listens on a free port.
pub struct Server {
    pub gateway: Arc<Gateway>,
    pub log: Arc<MemoryLog>,
    pub metrics: GatewayMetrics,
    pub address: SocketAddr,
    pub shutdown: CancellationToken,
    pub task: JoinHandle<std::io::Result<()>>,
}

impl Server {
    pub async fn start() -> Self {
        Self::start_with(GatewayConfig::default(), Arc::new(AdmitAll), 4).await
    }

    pub async fn configured(change: impl FnOnce(&mut GatewayConfig)) -> Self {
        let mut config = GatewayConfig::default();
        change(&mut config);
        Self::start_with(config, Arc::new(AdmitAll), 4).await
    }

    pub async fn start_with(config: GatewayConfig, admission: Arc<dyn Admission>, partitions: usize) -> Self {
        Self::over(config, admission, MemoryLog::new(partitions)).await
    }

    /// A server over a log that may hold something.
    pub async fn over(config: GatewayConfig, admission: Arc<dyn Admission>, log: Arc<MemoryLog>) -> Self {
        let metrics = GatewayMetrics::default();
        let gateway =
            Gateway::new(config, Arc::clone(&log) as Arc<dyn EventLog>, admission, metrics.clone()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn({
            let (gateway, shutdown) = (Arc::clone(&gateway), shutdown.clone());
            async move { gateway.serve_mqtt(listener, shutdown).await }
        });
        Self { gateway, log, metrics, address, shutdown, task }
    }

    /// A metric's value as `/metrics` would show it; 0 when it is not there.
    pub fn metric(&self, line_start: &str) -> f64 {
        let mut registry = prometheus_client::registry::Registry::default();
        self.metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let line = text.lines().find(|line| line.starts_with(line_start));
        line.and_then(|line| line.rsplit(' ').next()).map_or(0.0, |value| value.parse().unwrap())
    }

    /// A raw connection.
    pub async fn raw(&self) -> Wire {
        Wire(TcpStream::connect(self.address).await.unwrap())
    }

    /// A raw connection that has said CONNECT and heard that it is welcome.
    pub async fn client(&self, v5: bool, client_id: &str) -> Wire {
        let mut wire = self.raw().await;
        wire.send(&connect(v5, client_id, true)).await;
        assert_eq!(wire.packet().await[0], 0x20);
        wire
    }
}

/// Waits until something holds.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A connection of bytes.
pub struct Wire(pub TcpStream);

impl Wire {
    pub async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    /// The next packet.
    pub async fn packet(&mut self) -> Vec<u8> {
        tokio::time::timeout(PATIENCE, self.read_packet()).await.expect("no packet came").expect("closed")
    }

    /// The next packet, or nothing when the connection is closed.
    pub async fn packet_or_end(&mut self) -> Option<Vec<u8>> {
        tokio::time::timeout(PATIENCE, self.read_packet()).await.expect("neither packet nor end")
    }

    pub async fn expect(&mut self, wanted: &[u8]) {
        let got = self.packet().await;
        assert_eq!(got, wanted, "got {got:02x?}, wanted {wanted:02x?}");
    }

    /// An acknowledgement to a 5.0 client that refuses, in words too.
    pub async fn refused(&mut self, kind: u8, packet_id: u16, reason: u8) {
        let got = self.packet().await;
        let code = if kind == 0x90 { got.last() } else { got.get(4) };
        assert_eq!(
            (got[0], &got[2..4], code),
            (kind, &packet_id.to_be_bytes()[..], Some(&reason)),
            "{got:02x?}"
        );
        assert!(got.contains(&0x1f), "no reason string: {got:02x?}");
    }

    /// Nothing comes for a moment.
    pub async fn silent(&mut self) {
        let read = tokio::time::timeout(Duration::from_millis(100), self.read_packet()).await;
        assert!(read.is_err(), "unexpected: {read:02x?}");
    }

    /// The connection is closed, without a further packet.
    pub async fn closed(&mut self) {
        assert_eq!(self.packet_or_end().await, None);
    }

    async fn read_packet(&mut self) -> Option<Vec<u8>> {
        let mut packet = vec![self.0.read_u8().await.ok()?];
        let mut length = 0;
        for shift in [0, 7, 14, 21] {
            let byte = self.0.read_u8().await.ok()?;
            packet.push(byte);
            length |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let start = packet.len();
        packet.resize(start + length, 0);
        self.0.read_exact(&mut packet[start..]).await.ok()?;
        Some(packet)
    }
}

/// A packet of this first byte and body.
pub fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![first];
    let mut length = body.len();
    while length > 0x7f {
        packet.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    packet.push(length as u8);
    packet.extend_from_slice(body);
    packet
}

pub fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u16).to_be_bytes(), text.as_bytes()].concat()
}

pub fn connect(v5: bool, client_id: &str, clean: bool) -> Vec<u8> {
    connect_with(v5, client_id, clean, &[])
}

/// CONNECT with encoded 5.0 properties.
pub fn connect_with(v5: bool, client_id: &str, clean: bool, properties: &[u8]) -> Vec<u8> {
    let mut body = text("MQTT");
    body.extend([if v5 { 5 } else { 4 }, if clean { 2 } else { 0 }, 0, 60]);
    if v5 {
        body.push(properties.len() as u8);
        body.extend_from_slice(properties);
    }
    body.extend(text(client_id));
    packet(0x10, &body)
}

/// PUBLISH; `packet_id` is used with QoS 1 and 2. For 5.0 without properties.
pub fn publish(v5: bool, topic: &str, qos: u8, packet_id: u16, payload: &[u8]) -> Vec<u8> {
    publish_with(0x30 | qos << 1, v5.then_some(&[]), topic, packet_id, payload)
}

pub fn publish_with(
    first: u8,
    properties: Option<&[u8]>,
    topic: &str,
    packet_id: u16,
    payload: &[u8],
) -> Vec<u8> {
    let mut body = text(topic);
    if first & 6 != 0 {
        body.extend(packet_id.to_be_bytes());
    }
    if let Some(properties) = properties {
        body.push(properties.len() as u8);
        body.extend_from_slice(properties);
    }
    body.extend_from_slice(payload);
    packet(first, &body)
}

/// SUBSCRIBE to one filter.
pub fn subscribe(v5: bool, packet_id: u16, filter: &str, options: u8) -> Vec<u8> {
    let mut body = packet_id.to_be_bytes().to_vec();
    if v5 {
        body.push(0);
    }
    body.extend(text(filter));
    body.push(options);
    packet(0x82, &body)
}
