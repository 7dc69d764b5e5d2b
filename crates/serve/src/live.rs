//! Push over WebSocket: `/api/v1/live` (readings) and `/api/v1/tail` (events as received).
//!
//! # What the client says
//! In the query string, each repeatable, each a pattern where `*` stands for any run of characters: `device`, `metric`,
//! `type`; and `snapshot=true` for the latest values first. That is the subscription with the id `""`. Without any of the
//! three, `/api/v1/live` waits for messages, while `/api/v1/tail` follows everything. On `/api/v1/live`, at any time:
//!
//! ```json
//! {"op":"subscribe","id":"a","device":"truck-*","metric":["speed","engine.*"],"type":"state","snapshot":true}
//! {"op":"unsubscribe","id":"a"}
//! ```
//!
//! # What the server says
//! An array is data, an object is about the connection:
//!
//! ```json
//! [{"id":"a","device_id":"truck-7","type":"state","timestamp":"…","received_at":"…","metric":"speed","value":81.5}]
//! [{"id":"a","device_id":"truck-7","timestamp":"…","received_at":"…","metric":"speed","value":80,"snapshot":true}]
//! [{"id":"","device_id":"truck-7","type":"state","topic":"…","received_at":"…","payload":"…","payload_encoding":"text"}]
//! {"subscribed":"a"}   {"unsubscribed":"a"}   {"lagged":120,"id":"a"}   {"error":"bad_request","message":"…","id":"a"}
//! ```
//!
//! Live readings may repeat what the snapshot said. A client that is too slow misses the oldest readings and is told how
//! many (`lagged`); one that takes nothing at all, or answers no ping, is let go. Who may not stay any longer is told so by the
//! close code 1008.

mod message;
mod subscriptions;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::response::Response;
use axum::routing::get;
use catchment_store::live::Follow;
use tokio::time::{Instant, MissedTickBehavior};

use crate::ServeState;
use crate::access::{Guest, Refusal, must_go};
use crate::auth::Reader;
use crate::extract::Query;
use crate::problem::Problem;

use message::{Control, Operation, Wanted};
use subscriptions::Subscriptions;

/// Largest message of a client, in bytes.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// Buffers of a connection, in bytes: the library's own are 128 KiB each.
const BUFFER_BYTES: usize = 8 * 1024;
/// Most that is written ahead of the network, in bytes; must hold one message.
const WRITE_AHEAD_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Devices of a snapshot that are sent; a subscription with patterns may match a million.
const SNAPSHOT_DEVICES_MAX: usize = 10_000;

pub(crate) fn router() -> Router<Arc<ServeState>> {
    Router::new().route("/api/v1/live", get(live)).route("/api/v1/tail", get(tail))
}

/// Follow readings over a WebSocket.
#[utoipa::path(
    get,
    path = "/api/v1/live",
    tag = "readings",
    params(
        ("device" = Option<String>, Query, description = "Devices, `*` is any run of characters; may come several times"),
        ("metric" = Option<String>, Query, description = "Metrics, likewise"),
        ("type" = Option<String>, Query, description = "Types of events, likewise"),
        ("snapshot" = Option<bool>, Query, description = "Begin with the latest values"),
    ),
    responses((status = 101, description = "A WebSocket: an array is readings, an object is about the connection"))
)]
pub(crate) async fn live(
    State(state): State<Arc<ServeState>>,
    Reader(guest): Reader,
    Query(query): Query<Vec<(String, String)>>,
    upgrade: WebSocketUpgrade,
) -> Result<Response, Problem> {
    let wanted = Wanted::from_query(&query)?;
    let initial = (!wanted.is_empty()).then_some(wanted);
    Ok(accept(state, guest, upgrade, Follow::Readings, initial))
}

/// Follow events as received over a WebSocket.
#[utoipa::path(
    get,
    path = "/api/v1/tail",
    tag = "readings",
    params(
        ("device" = Option<String>, Query, description = "Devices, `*` is any run of characters; may come several times"),
        ("metric" = Option<String>, Query, description = "Metrics, likewise"),
        ("type" = Option<String>, Query, description = "Types of events, likewise"),
    ),
    responses((status = 101, description = "A WebSocket: an array is events, an object is about the connection"))
)]
pub(crate) async fn tail(
    State(state): State<Arc<ServeState>>,
    Reader(guest): Reader,
    Query(query): Query<Vec<(String, String)>>,
    upgrade: WebSocketUpgrade,
) -> Result<Response, Problem> {
    let wanted = Wanted::from_query(&query)?;
    Ok(accept(state, guest, upgrade, Follow::Events, Some(wanted)))
}

fn accept(
    state: Arc<ServeState>,
    guest: Guest,
    upgrade: WebSocketUpgrade,
    follow: Follow,
    initial: Option<Wanted>,
) -> Response {
    upgrade
        .max_message_size(MESSAGE_BYTES_MAX)
        .max_frame_size(MESSAGE_BYTES_MAX)
        .read_buffer_size(BUFFER_BYTES)
        .write_buffer_size(BUFFER_BYTES)
        .max_write_buffer_size(WRITE_AHEAD_BYTES_MAX)
        .on_upgrade(async move |socket| {
            let patience = Duration::from_millis(state.config.ping_interval_ms.max(1_000));
            let connection = Connection {
                subscriptions: Subscriptions::new(Arc::clone(&state), follow),
                socket,
                patience,
                state,
            };
            connection.run(initial, guest).await;
        })
}

/// Why a connection ends.
enum End {
    /// The other side is gone, or does not react.
    Gone,
    /// The server stops.
    Stopping,
    /// The client may not stay.
    Refused(Refusal),
}

struct Connection {
    state: Arc<ServeState>,
    socket: WebSocket,
    subscriptions: Subscriptions,
    /// Time between pings; twice that without a sign of life ends the connection.
    patience: Duration,
}

impl Connection {
    async fn run(mut self, initial: Option<Wanted>, guest: Guest) {
        let name = guest.name().to_owned();
        let withdrawn = must_go(Arc::clone(&self.state.access), guest);
        let end = tokio::select! {
            end = self.serve(initial) => end,
            refusal = withdrawn => End::Refused(refusal),
        };
        let (code, reason) = match end {
            End::Gone => return,
            End::Stopping => (close_code::AWAY, "the server is stopping".to_owned()),
            End::Refused(refusal) => {
                tracing::info!(name, %refusal, "a live connection was ended");
                (close_code::POLICY, refusal.to_string())
            }
        };
        let frame = CloseFrame { code, reason: reason.into() };
        // It may be gone already.
        let _ = tokio::time::timeout(self.patience, self.socket.send(Message::Close(Some(frame)))).await;
    }

    async fn serve(&mut self, initial: Option<Wanted>) -> End {
        if let Some(wanted) = initial
            && let Err(end) = self.subscribe(String::new(), wanted).await
        {
            return end;
        }
        let mut ping = tokio::time::interval_at(Instant::now() + self.patience, self.patience);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        loop {
            let step = tokio::select! {
                received = self.socket.recv() => match received {
                    Some(Ok(message)) => {
                        heard = Instant::now();
                        self.take(message).await
                    }
                    Some(Err(_)) | None => Err(End::Gone),
                },
                pushed = self.subscriptions.next(), if !self.subscriptions.is_empty() => match pushed {
                    Some((id, message)) => self.push(&id, &message).await,
                    None => Err(End::Stopping),
                },
                _ = ping.tick() => match heard.elapsed() > self.patience * 2 {
                    true => Err(End::Gone),
                    false => self.send(Message::Ping(Default::default())).await,
                },
            };
            if let Err(end) = step {
                return end;
            }
        }
    }

    async fn take(&mut self, message: Message) -> Result<(), End> {
        let text = match message {
            Message::Text(text) => text,
            Message::Ping(_) | Message::Pong(_) => return Ok(()),
            Message::Close(_) => return Err(End::Gone),
            Message::Binary(_) => return self.refuse(None, "messages are JSON in text frames").await,
        };
        if self.subscriptions.follows_events() {
            return self.refuse(None, "the tail is chosen by the query string; it takes no messages").await;
        }
        match serde_json::from_str::<Operation>(&text) {
            Ok(Operation::Subscribe { id, wanted }) => self.subscribe(id, wanted).await,
            Ok(Operation::Unsubscribe { id }) => match self.subscriptions.remove(&id) {
                true => self.control(&Control::Unsubscribed(&id)).await,
                false => self.refuse(Some(&id), "there is no subscription of that id").await,
            },
            Err(error) => self.refuse(None, &format!("not a message: {error}")).await,
        }
    }

    async fn subscribe(&mut self, id: String, wanted: Wanted) -> Result<(), End> {
        if let Err(problem) = self.subscriptions.add(&id, &wanted) {
            return self.refuse(Some(&id), &problem).await;
        }
        self.control(&Control::Subscribed(&id)).await?;
        if !wanted.snapshot || self.subscriptions.follows_events() {
            return Ok(());
        }
        let filter = wanted.filter(Follow::Readings);
        let state = Arc::clone(&self.state);
        let mut devices_left = SNAPSHOT_DEVICES_MAX;
        let mut after: Option<Arc<str>> = None;
        while devices_left > 0 {
            let page = message::snapshots(&*state.snapshot, &filter, &mut after, &mut devices_left).await;
            let page = match page {
                Ok(page) => page,
                Err(error) => return self.refuse(Some(&id), &error.to_string()).await,
            };
            for snapshot in &page.snapshots {
                if let Some(text) = message::snapshot_text(&id, snapshot, &filter) {
                    self.send(Message::Text(text.into())).await?;
                }
            }
            if page.is_last {
                break;
            }
        }
        Ok(())
    }

    async fn push(&mut self, id: &str, pushed: &catchment_store::live::LiveMessage) -> Result<(), End> {
        for text in message::push_texts(id, pushed) {
            self.send(Message::Text(text.into())).await?;
        }
        Ok(())
    }

    async fn refuse(&mut self, id: Option<&str>, message: &str) -> Result<(), End> {
        self.control(&Control::Error { error: "bad_request", message, id }).await
    }

    async fn control(&mut self, control: &Control<'_>) -> Result<(), End> {
        self.send(Message::Text(message::text(control).into())).await
    }

    async fn send(&mut self, message: Message) -> Result<(), End> {
        match tokio::time::timeout(self.patience * 2, self.socket.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(End::Gone),
        }
    }
}
