//! One connection: a task that waits for input, durable events, deliveries, room to write, and time, all at once.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use catchment_eventlog::LogError;
use catchment_types::Timestamp;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::acks::{InflightLimits, Released};
use super::aliases::Aliases;
use super::broker::Broker;
use super::codec::{self, AckKind, Frame, Framed, Packet, Peer, ProtocolError, Reason, Version};
use super::far::Far;
use super::inbound::Intake;
use super::lazy::Lazy;
use super::output::Output;
use super::pool::{READ_BYTES, Workspace};
use super::session::{NothingWanted, Session};
use super::signal::{DELIVER, RECHECK, SHUT_DOWN, TAKEN_OVER};
use super::standing::Standing;
use super::turn::Turn;
use crate::admission::Principal;
use crate::gateway::Registered;
use crate::ingest::Batches;
use crate::metrics::GatewayMetrics;

/// Output that may wait for the client to read. Over it nothing is read from that client, nor delivered to it.
const OUTPUT_BYTES_MAX: usize = 64 << 10;
/// Buffers above this are given back when they are empty.
pub(super) const KEPT_BYTES_MAX: usize = 2 << 10;

/// A client that sends so few at once is mostly one that sends nothing for a while then.
const QUIET_MESSAGES_MAX: u64 = 2;

/// Why a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Close {
    /// The client said goodbye, and whether its will is to be published all the same.
    Goodbye { with_will: bool, session_expiry_s: Option<u32> },
    /// The network is gone.
    Lost,
    /// The client takes nothing of what it is sent.
    Stalled,
    /// The server ends it, and tells a 5.0 client why.
    Fault(ProtocolError),
}

impl Close {
    pub(super) const fn told(reason: Reason, detail: &'static str) -> Self {
        Self::Fault(ProtocolError { reason, detail })
    }
}

/// A connection that has a session. Dropped in any way, a panic included, it leaves the session as a client that was lost does.
///
/// Most connections are idle most of the time: what only busy ones need is [`Lazy`], boxed, or borrowed from the gateway's
/// pool; `mqtt/footprint.rs` watches over the size.
#[derive(Debug)]
pub(crate) struct Connection<S> {
    /// With the gateway, and what the rest of it wakes this connection by.
    pub(super) registered: Registered,
    pub(super) broker: Arc<Broker>,
    pub(super) stream: S,
    pub(super) session: Arc<Session>,
    pub(super) principal: Principal,
    pub(super) peer: Peer,
    /// The start of a packet whose rest has not come.
    pub(super) partial: Vec<u8>,
    /// Size of that packet when it is larger than a read, else 0.
    pub(super) large: u32,
    pub(super) output: Output,
    pub(super) intake: Lazy<Intake>,
    /// Many messages came with the last read: what publishing needs is needed again at once.
    pub(super) busy: bool,
    pub(super) turn: Turn,
    /// Something of the current read must be recorded before its events go to the log.
    pub(super) precommit: bool,
    /// Something of the current read went to the journal.
    pub(super) appended: bool,
    /// Acknowledgements of the current read wait for records.
    pub(super) recorded: bool,
    /// What is answered to the current read waits for records.
    pub(super) confirm: bool,
    /// For 5.0 clients that allow the server aliases.
    pub(super) aliases: Option<Box<Aliases>>,
    /// QoS 2 messages that the client has not released.
    pub(super) received_count: u32,
    /// Something may wait in the session's queue.
    pub(super) deliverable: bool,
    /// Retained messages may be wanted that are not queued yet.
    pub(super) retained_wanted: bool,
    pub(super) keep_alive: Option<Box<KeepAlive>>,
    pub(super) standing: Standing,
    /// For a connection that we opened, as a client of another broker.
    pub(super) far: Option<Box<Far>>,
}

/// Ends connections that are silent for one and a half times what they promised.
#[derive(Debug)]
pub(super) struct KeepAlive {
    silence_max: Duration,
    last_input: Instant,
    timer: Pin<Box<Sleep>>,
}

impl KeepAlive {
    pub(super) fn new(keep_alive_s: u16) -> Option<Box<Self>> {
        let silence_max = Duration::from_millis(u64::from(keep_alive_s) * 1500);
        let timer = || Box::pin(tokio::time::sleep(silence_max));
        let new = || Self { silence_max, last_input: Instant::now(), timer: timer() };
        (keep_alive_s > 0).then(|| Box::new(new()))
    }

    /// Ready when the client has been silent for too long.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.timer.as_mut().poll(cx).is_ready() {
            let due = self.last_input + self.silence_max;
            if due <= Instant::now() {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(due);
        }
        Poll::Pending
    }
}

/// What a connection has to do that it cannot do while polling.
enum Step {
    Input(Box<Workspace>, Input),
    Close(Close),
}

/// How far a connection came with its input.
enum Progress<'a> {
    /// To the end of what is whole.
    Done,
    /// To SUBSCRIBE or UNSUBSCRIBE, which comes after what is before it.
    Filters(Packet<'a>),
    /// To the end of its turn: there may be more.
    TurnOver,
}

/// Where input lies.
enum Input {
    /// At the start of the workspace's buffer.
    Buffer(usize),
    /// In [`Connection::partial`].
    Partial,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// Serves the connection until it ends, and tells why it did. The client's acknowledgements are not settled yet.
    pub(super) async fn drive(&mut self) -> Close {
        // From here on there is somebody who could be told to go; what was changed since he was let in is known by the flag.
        self.registered.signal.follow(0);
        if self.registered.signal.is_raised(RECHECK)
            && let Err(close) = self.recheck()
        {
            return close;
        }
        if !self.partial.is_empty() {
            let workspace = self.registered.gateway.pool.take();
            if let Err(close) = Box::pin(self.take_in(workspace, Input::Partial)).await {
                return close;
            }
        }
        loop {
            // Boxed, so that the task of a connection that waits has no room for one that works.
            let taking = match std::future::poll_fn(|cx| self.poll_step(cx)).await {
                Step::Close(close) => return close,
                Step::Input(workspace, input) => Box::pin(self.take_in(workspace, input)),
            };
            if let Err(close) = taking.await {
                return close;
            }
        }
    }

    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        match self.poll_work(cx) {
            Ok(poll) => poll,
            Err(close) => Poll::Ready(Step::Close(close)),
        }
    }

    fn poll_work(&mut self, cx: &mut Context<'_>) -> Result<Poll<Step>, Close> {
        let flags = self.registered.signal.take(cx);
        if flags & SHUT_DOWN != 0 {
            return Err(Close::told(Reason::ServerShuttingDown, "the server shuts down"));
        }
        if flags & TAKEN_OVER != 0 {
            return Err(Close::told(Reason::SessionTakenOver, "another connection uses the same client id"));
        }
        self.poll_standing(flags, cx)?;
        self.deliverable |= flags & DELIVER != 0;
        if let Poll::Ready(settled) = self.poll_acks(cx) {
            settled?;
            self.rest();
        }
        if let Some(far) = &mut self.far {
            far.poll_timers(cx, &mut self.output.bytes)?;
        }
        let stall_max = Duration::from_secs(self.registered.gateway.config.mqtt.write_s_max);
        loop {
            self.deliver();
            match self.output.poll_send(&mut self.stream, stall_max, cx) {
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::TimedOut => {
                    return Err(Close::Stalled);
                }
                Poll::Ready(Err(_)) => return Err(Close::Lost),
                Poll::Ready(Ok(())) if self.deliverable => {}
                _ => break,
            }
        }
        self.output.report(&self.registered.gateway.metrics);
        // One page a turn: others have theirs in between.
        if self.retained_wanted && !self.deliverable {
            match self.broker.queue_retained(&self.session) {
                Ok(false) => {}
                Ok(true) => {
                    self.deliverable = true;
                    cx.waker().wake_by_ref();
                }
                Err(NothingWanted) => self.retained_wanted = false,
            }
        }
        // A client that is not read now cannot be blamed for silence.
        let mqtt = &self.registered.gateway.config.mqtt;
        let inflight =
            InflightLimits { events_max: mqtt.inflight_events_max, bytes_max: mqtt.inflight_bytes_max };
        let reads = self.intake.acks.has_room(inflight)
            && self.output.len() < OUTPUT_BYTES_MAX
            && !self.is_paused(cx);
        if reads && let Poll::Ready(step) = self.poll_input(cx) {
            return Ok(Poll::Ready(step.unwrap_or(Step::Close(Close::Lost))));
        }
        if !reads && let Some(far) = &mut self.far {
            far.heard();
        }
        if let Some(keep_alive) = &mut self.keep_alive {
            if !reads {
                keep_alive.last_input = Instant::now();
            }
            if keep_alive.poll(cx).is_ready() {
                return Err(Close::told(
                    Reason::KeepAliveTimeout,
                    "nothing came for 1.5 times the keep-alive",
                ));
            }
        }
        Ok(Poll::Pending)
    }

    /// Reads what there is. `Err` when the stream has ended or failed.
    fn poll_input(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Step>> {
        let ended = || io::Error::from(io::ErrorKind::UnexpectedEof);
        if self.large > 0 {
            let length = self.large as usize;
            // Grows as the packet arrives: its announced size alone reserves nothing.
            let missing = length - self.partial.len();
            self.partial.reserve(missing.min(self.partial.len().max(READ_BYTES)));
            let mut limited = bytes::BufMut::limit(&mut self.partial, missing);
            let read = ready!(tokio_util::io::poll_read_buf(Pin::new(&mut self.stream), cx, &mut limited))?;
            self.note_input(read);
            return Poll::Ready(if read == 0 {
                Err(ended())
            } else {
                Ok(Step::Input(self.registered.gateway.pool.take(), Input::Partial))
            });
        }
        let mut workspace = self.registered.gateway.pool.take();
        let held = self.partial.len();
        let mut buffer = ReadBuf::new(&mut workspace.buffer[held..]);
        match Pin::new(&mut self.stream).poll_read(cx, &mut buffer) {
            Poll::Pending => {
                self.registered.gateway.pool.give(workspace);
                Poll::Pending
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) if buffer.filled().is_empty() => Poll::Ready(Err(ended())),
            Poll::Ready(Ok(())) => {
                let read = buffer.filled().len();
                let length = held + read;
                workspace.buffer[..held].copy_from_slice(&self.partial);
                self.partial.clear();
                self.note_input(read);
                Poll::Ready(Ok(Step::Input(workspace, Input::Buffer(length))))
            }
        }
    }

    fn note_input(&mut self, bytes: usize) {
        self.registered.gateway.metrics.received_bytes.inc_by(bytes as u64);
        if let Some(keep_alive) = &mut self.keep_alive {
            keep_alive.last_input = Instant::now();
        }
        if let Some(far) = &mut self.far {
            far.heard();
        }
    }

    /// Takes all whole packets of the input in, hands what was published to the log, and keeps the rest.
    async fn take_in(&mut self, mut workspace: Box<Workspace>, input: Input) -> Result<(), Close> {
        let partial = std::mem::take(&mut self.partial);
        let bytes = match input {
            Input::Buffer(length) => &workspace.buffer[..length],
            Input::Partial => &partial[..],
        };
        workspace.batches.expect(bytes.len());
        let mut taken = 0;
        self.busy = false;
        let parsed = loop {
            let parsed = self.take_packets(bytes, &mut taken, &mut workspace.batches);
            // What came before a fault is kept all the same.
            let submitted_bytes = workspace.batches.bytes();
            self.record_first().await?;
            let log = &*self.registered.gateway.log;
            let submitted = (submitted_bytes > 0).then(Instant::now);
            workspace.batches.submit(log, |submitted| self.intake.acks.append(submitted)).await;
            self.forward().await;
            self.charge();
            self.confirm_recorded().await?;
            if let Some(intake) = self.intake.made() {
                intake.acks.close_group(submitted_bytes, submitted);
                if let Some(far) = &self.far {
                    far.metrics.received.inc_by(intake.tally.messages);
                }
                self.busy |= intake.tally.messages > QUIET_MESSAGES_MAX;
                intake.tally.report(&self.registered.gateway.metrics);
            }
            match parsed {
                Ok(Progress::TurnOver) => self.turn.rest().await,
                Ok(Progress::Filters(packet)) => {
                    if let Err(close) = self.take_filters(packet).await {
                        break Err(close);
                    }
                }
                Ok(Progress::Done) => break Ok(()),
                Err(close) => break Err(close),
            }
        };
        match input {
            Input::Partial if taken == 0 => self.partial = partial,
            Input::Partial => self.partial = partial[taken..].to_vec(),
            Input::Buffer(length) => {
                let rest = &workspace.buffer[taken..length];
                if !rest.is_empty() || partial.capacity() <= KEPT_BYTES_MAX {
                    self.partial = partial;
                    self.partial.extend_from_slice(rest);
                }
            }
        }
        self.registered.gateway.pool.give(workspace);
        parsed
    }

    fn take_packets<'a>(
        &mut self,
        bytes: &'a [u8],
        taken: &mut usize,
        batches: &mut Batches,
    ) -> Result<Progress<'a>, Close> {
        let received_at = Timestamp::now();
        let configured = self.registered.gateway.config.mqtt.packet_bytes_max;
        let packet_bytes_max = self.far.as_ref().map_or(configured, |far| far.packet_bytes_max);
        loop {
            if self.turn.is_over() {
                return Ok(Progress::TurnOver);
            }
            match codec::frame(&bytes[*taken..], packet_bytes_max).map_err(Close::Fault)? {
                Framed::Packet(frame) => {
                    let filters = self.take_packet(&frame, received_at, batches)?;
                    *taken += frame.length;
                    self.turn.add(1);
                    if let Some(packet) = filters {
                        return Ok(Progress::Filters(packet));
                    }
                }
                Framed::Partial(length) => {
                    // A packet has less than 256 MiB (3.1.1 and 5.0, 2.2.3).
                    let large = length.filter(|&length| length > READ_BYTES);
                    self.large = large.and_then(|length| u32::try_from(length).ok()).unwrap_or(0);
                    return Ok(Progress::Done);
                }
            }
        }
    }

    /// Gives back a packet of filters: each may take as long as many others.
    #[inline]
    fn take_packet<'a>(
        &mut self,
        frame: &Frame<'a>,
        received_at: Timestamp,
        batches: &mut Batches,
    ) -> Result<Option<Packet<'a>>, Close> {
        if self.far.is_some() {
            return self.take_from_far(frame, received_at, batches).map(|()| None);
        }
        match codec::decode(frame, self.peer.version).map_err(Close::Fault)? {
            Packet::Publish(publish) => self.take_publish(&publish, received_at, batches)?,
            packet @ (Packet::Subscribe(_) | Packet::Unsubscribe(_)) => return Ok(Some(packet)),
            packet => self.take_control(packet)?,
        }
        Ok(None)
    }

    /// Encodes what waits for the client, as far as there is room.
    fn deliver(&mut self) {
        if self.deliverable && self.output.len() < OUTPUT_BYTES_MAX {
            let aliases = self.aliases.as_deref_mut();
            let filled = self.session.fill(&mut self.output.bytes, OUTPUT_BYTES_MAX, &self.peer, aliases);
            // Full: there may be more. Otherwise the queue is empty or the client's window full, and somebody will tell.
            self.deliverable = self.output.bytes.len() >= OUTPUT_BYTES_MAX;
            let metrics = &self.registered.gateway.metrics;
            metrics.delivered.inc_by(filled.sent);
            if let Some(far) = &self.far {
                far.note_filled(&filled);
            }
            if filled.expired + filled.too_large > 0 {
                metrics.deliveries_dropped_expired.inc_by(filled.expired);
                metrics.deliveries_dropped_too_large.inc_by(filled.too_large);
            }
        }
    }
}

impl<S> Connection<S> {
    /// Gives back what publishing needed, once nothing is owed to a client that is not busy. To find out about its topic anew
    /// costs it less with the next message than being woken for that does.
    fn rest(&mut self) {
        let is_idle = |intake: &Intake| intake.acks.is_empty() && intake.topics.is_without_aliases();
        if !self.busy && self.intake.made().is_some_and(|intake| is_idle(intake)) {
            self.intake.give_back();
        }
    }

    /// Encodes the acknowledgements that are due. Ready once none is owed.
    pub(super) fn poll_acks(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Close>> {
        let Self { intake, output, peer, session, registered, received_count, far, .. } = self;
        let gateway = &registered.gateway;
        let refuses = peer.version == Version::V5 && far.is_none();
        let Some(intake) = intake.made() else { return Poll::Ready(Ok(())) };
        let mut acknowledged = 0;
        // After one that ends the connection without an answer, none that came later is answered: order holds.
        let mut broken = false;
        let polled = intake.acks.poll(cx, |released| match released {
            Released::Ack(owed, None) => {
                acknowledged += u64::from(owed.append.is_some() && !broken);
                // The identifier of one that was refused has been free since, and may be another's already.
                if owed.kind == AckKind::Rec && owed.append.is_some() {
                    session.proven(owed.packet_id);
                }
                if !broken {
                    codec::puback(&mut output.bytes, owed.kind, peer, owed.packet_id, owed.reason);
                }
                Ok(())
            }
            Released::Ack(owed, Some(error)) => {
                if owed.kind == AckKind::Rec && session.forget_received(owed.packet_id) {
                    *received_count -= 1;
                }
                if refuses && matches!(error, LogError::Full { .. }) {
                    let full = Reason::QuotaExceeded;
                    codec::puback(&mut output.bytes, owed.kind, peer, owed.packet_id, full);
                    return Ok(());
                }
                broken = true;
                Err(log_fault(error))
            }
            Released::Settled(took) => {
                gateway.metrics.acknowledge_seconds.observe(took.as_secs_f64());
                Ok(())
            }
            Released::Failed(error) => {
                GatewayMetrics::count(&gateway.metrics.refused, log_fault_name(error));
                match error {
                    // Told to each client; a log line for each would be a flood.
                    LogError::Full { .. } => Ok(()),
                    error => {
                        tracing::error!(%error, client_id = session.client_id(), "events were not acknowledged");
                        Err(log_fault(error))
                    }
                }
            }
        });
        if acknowledged > 0 {
            gateway.metrics.acknowledged.inc_by(acknowledged);
        }
        if let (Poll::Ready(Err(_)), Some(far)) = (&polled, far) {
            far.unsettled = true;
        }
        polled
    }
}

impl<S> Drop for Connection<S> {
    fn drop(&mut self) {
        self.broker.detach(&self.session, &self.registered.signal, false, None, &[]);
    }
}

/// How a connection ends when the log does not take its events.
pub(super) fn log_fault(error: &LogError) -> Close {
    match error {
        LogError::Full { .. } => Close::told(Reason::QuotaExceeded, "the event log is full"),
        LogError::Closed => Close::told(Reason::ServerShuttingDown, "the server shuts down"),
        _ => Close::told(Reason::Unspecified, "the event log failed"),
    }
}

fn log_fault_name(error: &LogError) -> &'static str {
    match error {
        LogError::Full { .. } => "log_full",
        LogError::Closed => "log_closed",
        _ => "log_failed",
    }
}
