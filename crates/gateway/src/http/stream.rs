//! NDJSON, taken in line by line: what has come is appended while the rest is still on its way, so that a body of any size
//! needs little memory, and a slow log slows the client down.
//!
//! Every line stands for itself. When a body breaks off, stalls, or goes over a limit, the lines that came whole before are
//! kept, once, and are told of; a line without its end is not kept, since nobody knows whether it was cut. With an
//! `Idempotency-Key`, the same body sent again goes on behind them ([`idempotency`](super::idempotency)): for that the last
//! line taken is held back until it is known whether another follows.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::HeaderMap;
use catchment_eventlog::LogError;
use catchment_types::{Event, EventBatch, EventBatchBuilder, Timestamp};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::HttpError;
use super::body::{self, Share};
use super::coding::{Coding, coding};
use super::denied;
use super::events::{At, JSON, Report, describe};
use super::idempotency::Begin;
use super::ingest::{Accepted, Admitted, begun, broker, log_error, may_not_send, reused, too_slow};
use super::lines::{Line, Lines};
use super::pieces::Pieces;
use crate::gateway::Gateway;
use crate::marks::{Mark, Upto};
use crate::metrics::GatewayMetrics;

/// A batch is appended when it has so many bytes.
const BATCH_BYTES: usize = 256 << 10;
/// Memory of a request beside its longest line: the batch that grows, the one that is appended, and pieces of the body.
const STREAM_BYTES: usize = 3 * BATCH_BYTES;

/// Takes a body in line by line. Returns once its events are durable; [`Taken::Whole`] gives the request back.
pub(super) async fn take_lines(
    gateway: &Arc<Gateway>,
    admitted: Admitted,
    path: &str,
    headers: &HeaderMap,
    body: Body,
) -> Taken {
    let source = body.into_data_stream();
    let (stream, coding) = match Stream::begin(gateway, admitted, path, headers) {
        Ok(Begun::Lines(stream, coding)) => (*stream, coding),
        Ok(Begun::Whole(admitted)) => return Taken::Whole(admitted, Body::from_stream(source)),
        Err(error) => {
            body::discard(source).await;
            return Taken::Done(Err(error));
        }
    };
    let stall_max = Duration::from_secs(gateway.config.http.stall_s_max);
    let pieces = Pieces::new(source, coding, stall_max);
    let (answer, answered) = oneshot::channel();
    // A task of its own: what came is brought to its end, and the key with it, also if the client leaves.
    tokio::spawn(stream.run(pieces, answer));
    Taken::Done(answered.await.unwrap_or_else(|_| {
        Err(HttpError::unavailable("failed", "the request failed; some of its events may be kept"))
    }))
}

/// What became of a request.
pub(super) enum Taken {
    /// It was answered.
    Done(Result<Accepted, HttpError>),
    /// Its key was used for a body that was there as a whole: only as such can it be told whether it is the same.
    Whole(Box<Admitted>, Body),
}

/// How a request begins.
enum Begun {
    Lines(Box<Stream>, Option<Coding>),
    /// See [`Taken::Whole`].
    Whole(Box<Admitted>),
}

/// Why no further line is taken.
struct Stop {
    error: HttpError,
    /// Whether what came before is still appended.
    keeps: bool,
}

impl From<HttpError> for Stop {
    fn from(error: HttpError) -> Self {
        Self { error, keeps: true }
    }
}

impl Stop {
    /// Nothing more is appended.
    fn at_once(error: HttpError) -> Self {
        Self { error, keeps: false }
    }
}

/// A request under way.
struct Stream {
    gateway: Arc<Gateway>,
    admitted: Admitted,
    /// What events say that they came by.
    path: String,
    share: Share,
    /// Of that, for a long line.
    line_bytes: usize,
    body_bytes: u64,
    /// Lines that came.
    lines: usize,
    report: Report,
    received_at: Timestamp,
    batch: EventBatchBuilder,
    payload_bytes: u64,
    appending: Option<Appending>,
    /// Events that are durable now, those that were before too; with subscribers where they are not kept.
    done: u64,
    /// Refused lines that were counted against the limits.
    refused_charged: u64,
    key: Option<Key>,
}

/// A batch on its way to the log.
struct Appending {
    /// Shown to subscribers once it is durable. A task of its own, so that whoever waits for it may stop and wait again.
    pending: JoinHandle<Result<(), LogError>>,
    events: u64,
    payload_bytes: u64,
    /// Of a request with a key: up to where the log has it then.
    upto: Upto,
}

/// The key of a request, until it is dropped.
struct Key {
    gateway: Arc<Gateway>,
    key: u64,
    /// What the log had before.
    known: Upto,
    /// What the log has.
    durable: Upto,
    /// What is in the batch that grows.
    batched: Upto,
    hasher: Sha256,
    /// The last line taken, and the request up to it.
    held: Option<(Vec<u8>, Upto)>,
}

impl Drop for Key {
    fn drop(&mut self) {
        self.gateway.keys.end_lines(self.key, self.durable);
    }
}

impl Stream {
    fn begin(
        gateway: &Arc<Gateway>,
        admitted: Admitted,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<Begun, HttpError> {
        let coding = coding(headers)?;
        let mut share = Share::new(gateway);
        share.grow(STREAM_BYTES + coding.map_or(0, Coding::window_bytes))?;
        let key = match admitted.key.map(|key| (key, gateway.keys.begin_lines(key))) {
            None => None,
            Some((_, Begin::Reused)) => return Ok(Begun::Whole(Box::new(admitted))),
            Some((key, begin)) => {
                let known = begun(begin)?;
                let mut hasher = Sha256::new();
                hasher.update(&admitted.content_type);
                hasher.update(b"\n");
                let gateway = Arc::clone(gateway);
                Some(Key { gateway, key, known, durable: known, batched: known, hasher, held: None })
            }
        };
        let path = if path.starts_with("/api/v1/topics/") { &admitted.topic } else { path }.to_owned();
        let stream = Self {
            gateway: Arc::clone(gateway),
            path,
            share,
            line_bytes: 0,
            body_bytes: 0,
            lines: 0,
            report: Report::default(),
            received_at: Timestamp::now(),
            batch: EventBatch::builder(),
            payload_bytes: 0,
            appending: None,
            done: 0,
            refused_charged: 0,
            key,
            admitted,
        };
        Ok(Begun::Lines(Box::new(stream), coding))
    }

    async fn run(mut self, mut pieces: Pieces, answer: oneshot::Sender<Result<Accepted, HttpError>>) {
        let answered = match self.take_all(&mut pieces).await {
            Ok(()) => self.accepted(),
            Err(error) => {
                // The client is still sending: it hears the answer only if it may finish, and the connection goes on.
                body::discard(pieces.into_rest()).await;
                Err(error.after(self.done, std::mem::take(&mut self.report), self.lines))
            }
        };
        let late = self.appending.take();
        if late.is_none() {
            // A request that is sent again at once finds it free.
            self.key = None;
        }
        // The client may have left.
        let _ = answer.send(answered);
        if let Some(Appending { pending, upto, .. }) = late
            && matches!(pending.await, Ok(Ok(())))
            && let Some(key) = &mut self.key
        {
            key.durable = upto;
        }
    }

    fn accepted(&mut self) -> Result<Accepted, HttpError> {
        let Report { seen, replayed, refused, errors } = std::mem::take(&mut self.report);
        match (seen, refused) {
            (0, 0) => {
                let empty = HttpError::bad_request("empty", "the body is empty");
                Err(empty.hint("send an event as the body"))
            }
            (0, _) => Err(HttpError::bad_request("nothing_taken", "no line can be taken").lines(errors)),
            _ if self.admitted.names.is_none() => {
                Ok(Accepted { accepted: 0, brokered: seen, refused, errors, replayed })
            }
            _ => Ok(Accepted { accepted: seen, brokered: 0, refused, errors, replayed }),
        }
    }

    async fn take_all(&mut self, pieces: &mut Pieces) -> Result<(), HttpError> {
        match self.take_pieces(pieces).await {
            Ok(()) => self.append_rest().await.map_err(|stop| stop.error),
            Err(Stop { error, keeps: false }) => Err(error),
            Err(Stop { error, keeps: true }) => {
                let kept = async {
                    self.release_held(false)?;
                    self.append_rest().await
                };
                kept.await.map_err(|stop| stop.error)?;
                Err(error)
            }
        }
    }

    async fn take_pieces(&mut self, pieces: &mut Pieces) -> Result<(), Stop> {
        let mut lines = Lines::new(self.gateway.config.http.event_bytes_max);
        loop {
            let piece = tokio::select! {
                biased;
                piece = pieces.next() => piece?,
                // Nothing comes at the moment: what has come is appended, one batch after the other.
                settled = settle(&self.gateway, &self.admitted, &mut self.appending), if self.appending.is_some() => {
                    self.note_durable(settled?);
                    continue;
                }
                () = std::future::ready(()), if self.appending.is_none() && !self.batch.is_empty() => {
                    let wait = self.append().await?;
                    tokio::time::sleep(wait).await;
                    continue;
                }
            };
            let Some(piece) = piece else { break };
            self.take_piece(&piece, &mut lines)?;
            if self.batch.bytes_len() >= BATCH_BYTES {
                let wait = self.append().await?;
                tokio::time::sleep(wait).await;
            }
        }
        lines.end(|line| self.take_line(line))?;
        self.reach_end()
    }

    fn take_piece(&mut self, piece: &[u8], lines: &mut Lines) -> Result<(), Stop> {
        let bytes_max = self.gateway.config.http.lines_bytes_max;
        self.body_bytes += piece.len() as u64;
        if self.body_bytes > bytes_max {
            let message = format_args!("the body is larger than {bytes_max} bytes");
            let error = HttpError::too_large(message);
            return Err(error.hint("send what follows the lines that are kept as a further request").into());
        }
        self.received_at = Timestamp::now();
        lines.take(piece, |line| self.take_line(line))?;
        if let Some(more) = lines.kept_bytes().checked_sub(self.line_bytes) {
            self.share.grow(more)?;
            self.line_bytes += more;
        }
        Ok(())
    }

    fn take_line(&mut self, line: Line<'_>) -> Result<(), Stop> {
        self.lines += 1;
        if let Some(key) = &mut self.key {
            match line {
                Line::Whole(bytes) => key.hasher.update(bytes),
                Line::TooLong(length) => key.hasher.update(length.to_le_bytes()),
            }
            key.hasher.update(b"\n");
        }
        let (at, bytes_max) = (At::Line(self.lines), self.gateway.config.http.event_bytes_max);
        let (length, bytes) = match line {
            Line::Whole(bytes) => (bytes.trim_ascii().len(), bytes.trim_ascii()),
            Line::TooLong(length) => (length, &[][..]),
        };
        if length == 0 {
            return Ok(());
        }
        if length > bytes_max {
            self.report.refuse(at, format_args!("{length} bytes, at most {bytes_max} are allowed"));
            return Ok(());
        }
        if let Err(error) = serde_json::from_slice::<&RawValue>(bytes) {
            self.report.refuse(at, describe(&error));
            return Ok(());
        }
        self.report.seen += 1;
        let Some(key) = &mut self.key else { return self.push(bytes, 0) };
        let Ok(events) = u32::try_from(self.report.seen) else {
            return Err(HttpError::too_large("the body has more lines than a request with a key may").into());
        };
        let digest = key.hasher.clone().finalize();
        let prefix = digest.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        let Key { known, .. } = *key;
        if events <= known.events {
            self.report.replayed += 1;
            self.done += 1;
            return match events == known.events && prefix != known.prefix {
                true => Err(Stop::at_once(reused())),
                false => Ok(()),
            };
        }
        if known.is_last {
            return Err(Stop::at_once(reused()));
        }
        self.release_held(false)?;
        if let Some(key) = &mut self.key {
            key.held = Some((bytes.to_vec(), Upto { events, prefix, is_last: false }));
        }
        Ok(())
    }

    /// The body has come to its end.
    fn reach_end(&mut self) -> Result<(), Stop> {
        let seen = self.report.seen;
        if let Some(key) = &mut self.key {
            if seen < u64::from(key.known.events) {
                return Err(Stop::at_once(reused()));
            }
            if seen == u64::from(key.durable.events) {
                key.durable.is_last = true;
            }
        }
        self.release_held(true)
    }

    /// Puts the line that was held back into the batch.
    fn release_held(&mut self, is_last: bool) -> Result<(), Stop> {
        let Some(key) = &mut self.key else { return Ok(()) };
        let Some((line, upto)) = key.held.take() else { return Ok(()) };
        key.batched = Upto { is_last, ..upto };
        let mark = Mark::Line { key: key.key, upto: key.batched };
        self.push(&line, mark.encode())
    }

    fn push(&mut self, payload: &[u8], mark: u128) -> Result<(), Stop> {
        let Admitted { principal, names, tags, .. } = &self.admitted;
        let (device_id, event_type) = names.as_ref().map_or(("", ""), |(device, kind)| (device, kind));
        let event = Event {
            realm: &principal.realm,
            device_id,
            event_type,
            topic: &self.path,
            received_at: self.received_at,
            content_type: JSON,
            tags,
            mark,
            payload,
        };
        self.batch.push(&event).map_err(HttpError::too_large)?;
        self.payload_bytes += payload.len() as u64;
        Ok(())
    }

    /// Hands the batch on, once the one before is durable. Gives how long the client is over its limits.
    async fn append(&mut self) -> Result<Duration, Stop> {
        self.check_admission().map_err(Stop::at_once)?;
        if self.appending.is_some() {
            let settled = settle(&self.gateway, &self.admitted, &mut self.appending).await?;
            self.note_durable(settled);
        }
        let (batch, payload_bytes) = (self.batch.take(), std::mem::take(&mut self.payload_bytes));
        let wait = self.charge(u64::from(batch.len()), payload_bytes);
        let Admitted { principal, names, content_type, topic, .. } = &self.admitted;
        let Some((device_id, _)) = names else {
            self.gateway.metrics.count_unrouted("brokered", u64::from(batch.len()));
            broker(&self.gateway, &principal.realm, topic, content_type, &batch).await;
            self.done += u64::from(batch.len());
            return Ok(wait);
        };
        let partition = self.gateway.partition(&principal.realm, device_id);
        let limit = Duration::from_secs(self.gateway.config.http.durable_s_max);
        let submitted = tokio::time::timeout(limit, self.gateway.log.submit(partition, batch.clone())).await;
        let pending = submitted
            .map_err(|_| Stop::at_once(too_slow(self.key.is_some())))?
            .map_err(|error| Stop::at_once(log_error(&error)))?;
        let upto = self.key.as_ref().map_or_else(Upto::default, |key| key.batched);
        let events = u64::from(batch.len());
        let (gateway, realm) = (Arc::clone(&self.gateway), Arc::clone(&principal.realm));
        let (topic, content_type) = (topic.clone(), content_type.clone());
        let pending = tokio::spawn(async move {
            pending.await?;
            broker(&gateway, &realm, &topic, &content_type, &batch).await;
            Ok(())
        });
        self.appending = Some(Appending { pending, events, payload_bytes, upto });
        Ok(wait)
    }

    /// Appends what is left and waits until all is durable.
    async fn append_rest(&mut self) -> Result<(), Stop> {
        if !self.batch.is_empty() {
            self.append().await?;
        }
        if self.appending.is_some() {
            let settled = settle(&self.gateway, &self.admitted, &mut self.appending).await?;
            self.note_durable(settled);
        }
        Ok(())
    }

    fn note_durable(&mut self, (events, upto): (u64, Upto)) {
        self.done += events;
        if let Some(key) = &mut self.key {
            key.durable = upto;
        }
    }

    /// Counts against the limits of the client; gives how long it is over them.
    fn charge(&mut self, events: u64, payload_bytes: u64) -> Duration {
        let refused = self.report.refused - self.refused_charged;
        self.refused_charged = self.report.refused;
        let Some(limits) = &self.admitted.principal.limits else { return Duration::ZERO };
        let wait = limits.charge(events + refused, payload_bytes);
        if !wait.is_zero() {
            GatewayMetrics::count(&self.gateway.metrics.limited, "http");
        }
        wait
    }

    /// Whether the client may still send what it may at the start.
    fn check_admission(&mut self) -> Result<(), HttpError> {
        let Admitted { principal, change, remote, speaker, topic, .. } = &mut self.admitted;
        if principal.expires_at.is_some_and(|at| at <= std::time::Instant::now()) {
            return Err(HttpError::unauthorized("the credential has expired"));
        }
        let now = self.gateway.admission_change();
        if *change == now {
            return Ok(());
        }
        *change = now;
        self.gateway.admission.recheck(principal, *remote).map_err(denied)?;
        match self.gateway.admission.may_publish(principal, topic, speaker.as_deref()) {
            true => Ok(()),
            false => Err(may_not_send(principal, topic)),
        }
    }
}

/// Waits until the batch under way is durable, and shows it to subscribers. Gives its events, and up to where the log has
/// the request then. One that takes too long stays under way. May be given up and called again.
async fn settle(
    gateway: &Arc<Gateway>,
    admitted: &Admitted,
    appending: &mut Option<Appending>,
) -> Result<(u64, Upto), Stop> {
    let Some(Appending { pending, .. }) = appending else { return Ok((0, Upto::default())) };
    let limit = Duration::from_secs(gateway.config.http.durable_s_max);
    let settled = tokio::time::timeout(limit, pending).await;
    let settled = settled.map_err(|_| Stop::at_once(too_slow(admitted.key.is_some())))?;
    let Some(Appending { events, payload_bytes, upto, .. }) = appending.take() else {
        return Ok((0, Upto::default()));
    };
    // The runtime goes down with its tasks.
    let settled = settled.unwrap_or(Err(LogError::Closed));
    settled.map_err(|error| Stop::at_once(log_error(&error)))?;
    gateway.metrics.http_events.inc_by(events);
    gateway.metrics.http_event_bytes.inc_by(payload_bytes);
    Ok((events, upto))
}
