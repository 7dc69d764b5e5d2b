//! One connection from accept to close: the loop over its messages, and everything that may interrupt a statement.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pgwire::messages::PgWireFrontendMessage as Message;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::Shared;
use super::catalog::Identity;
use super::encryption::{self, Halves};
use super::error::{Fault, PgError, code};
use super::session::Session;
use super::startup::{Started, handshake};
use super::wire::{Reader, Writer};
use crate::access::Refusal;

/// How long a client may take to read the last words, or an error.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves a connection to its end. `pending` is its place among those that have not started yet.
pub(super) async fn serve(
    stream: TcpStream,
    shared: Arc<Shared>,
    mut stopping: watch::Receiver<bool>,
    pending: OwnedSemaphorePermit,
) {
    // Answers are small and waited for.
    let _ = stream.set_nodelay(true);
    let remote = stream.peer_addr().ok().map(|address| address.ip());
    let limit = tokio::time::Instant::now() + Duration::from_secs(shared.config.startup_timeout_s);
    let begun = tokio::select! {
        begun = tokio::time::timeout_at(limit, encryption::begin(stream, shared.tls.as_deref())) => begun,
        () = stopped(&mut stopping) => return,
    };
    // Nobody is left to be told, or can be without TLS.
    let Ok(Ok(Halves { read, write, ahead, secured })) = begun else { return };
    let mut reader = Reader::new(read, ahead, shared.config.message_bytes_max);
    let mut writer = Writer::new(write);
    let started = tokio::select! {
        started = tokio::time::timeout_at(limit, handshake(&mut reader, &mut writer, &shared, secured, remote)) => started,
        () = stopped(&mut stopping) => return,
    };
    let started = match started {
        Ok(Ok(Some(started))) => started,
        Ok(Ok(None) | Err(Fault::Gone(_))) => return,
        Ok(Err(Fault::Reply(error))) => return last_words(error, &mut writer).await,
        Err(_) => {
            return last_words(PgError::fatal("08006", "no start-up within the time limit"), &mut writer)
                .await;
        }
    };
    drop(pending);
    shared.metrics.sessions.inc();
    match run(started, reader, &mut writer, &shared, stopping).await {
        Ok(()) => {}
        Err(Fault::Reply(error)) => last_words(error, &mut writer).await,
        Err(Fault::Gone(error)) => tracing::debug!(%error, "client has gone"),
    }
    shared.metrics.sessions.dec();
}

async fn last_words(error: PgError, writer: &mut Writer) {
    writer.put(error.into_message());
    // A client that has gone does not hear them.
    let _ = tokio::time::timeout(WRITE_TIMEOUT, writer.flush()).await;
}

/// Resolves when the server stops.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // A dropped sender means that the server has gone altogether.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

fn withdrawn(refusal: &Refusal) -> PgError {
    PgError::fatal(code::SHUTDOWN, format!("terminating connection: {refusal}"))
}

fn shutting_down() -> PgError {
    PgError::fatal(code::SHUTDOWN, "terminating connection due to administrator command")
}

/// The loop over messages. `Ok` when the client has said good-bye.
async fn run(
    started: Started,
    mut reader: Reader,
    writer: &mut Writer,
    shared: &Arc<Shared>,
    mut stopping: watch::Receiver<bool>,
) -> Result<(), Fault> {
    let Started { user, mut must_go, settings, ticket, permit: _permit } = started;
    let settings = Arc::new(Mutex::new(settings));
    let identity = Identity { user: user.clone(), number: ticket.number, settings: Arc::clone(&settings) };
    let context = shared.catalog.session(identity);
    let mut session = Session::new(Arc::clone(shared), context, settings, user);
    let idle = Duration::from_secs(shared.config.idle_timeout_s);
    // After an error in the extended protocol everything is passed over until Sync.
    let mut until_sync = false;
    loop {
        let message = tokio::select! {
            message = tokio::time::timeout(idle, reader.message()) => message,
            refusal = &mut must_go => return Err(withdrawn(&refusal).into()),
            () = stopped(&mut stopping) => return Err(shutting_down().into()),
        };
        let message = match message {
            Ok(message) => message?,
            Err(_) => {
                return Err(PgError::fatal(
                    code::IDLE_TIMEOUT,
                    "terminating connection due to idle-session timeout",
                )
                .into());
            }
        };
        let Some(message) = message.filter(|message| !matches!(message, Message::Terminate(_))) else {
            return Ok(());
        };
        if until_sync && !matches!(message, Message::Sync(_)) {
            continue;
        }
        until_sync = false;
        let is_query = matches!(message, Message::Query(_));
        let mut cancelled = ticket.begin();
        let outcome = tokio::select! {
            biased;
            Ok(()) = &mut cancelled => Err(PgError::new(code::CANCELED, "canceling statement due to user request").into()),
            () = tokio::time::sleep(session.time_limit()) => {
                Err(PgError::new(code::CANCELED, "canceling statement due to statement timeout")
                    .hint("narrow the time range, or raise the limit with SET statement_timeout").into())
            }
            gone = reader.gone() => Err(Fault::Gone(gone)),
            refusal = &mut must_go => Err(withdrawn(&refusal).into()),
            () = stopped(&mut stopping) => Err(shutting_down().into()),
            outcome = Box::pin(handle(&mut session, message, writer)) => outcome,
        };
        ticket.end();
        match outcome {
            Ok(()) => {}
            Err(Fault::Reply(error)) if !error.is_fatal() => {
                shared.metrics.statement(if error.code() == code::CANCELED { "cancelled" } else { "error" });
                session.failed();
                writer.put(error.into_message());
                if is_query {
                    session.put_ready(writer);
                } else {
                    until_sync = true;
                }
                tokio::time::timeout(WRITE_TIMEOUT, writer.flush())
                    .await
                    .map_err(|_| Fault::Gone(std::io::ErrorKind::TimedOut.into()))??;
            }
            Err(fault) => return Err(fault),
        }
    }
}

async fn handle(session: &mut Session, message: Message, writer: &mut Writer) -> Result<(), Fault> {
    match message {
        Message::Query(query) => session.simple_query(&query.query, writer).await,
        Message::Parse(parse) => session.parse(parse, writer).await,
        Message::Bind(bind) => session.bind(bind, writer),
        Message::Describe(describe) => session.describe(&describe, writer),
        Message::Execute(execute) => session.execute(execute, writer).await,
        Message::Close(close) => {
            session.close(&close, writer);
            Ok(())
        }
        Message::Flush(_) => Ok(writer.flush().await?),
        Message::Sync(_) => session.sync(writer).await,
        // What is left of a COPY that was refused.
        Message::CopyData(_) | Message::CopyDone(_) | Message::CopyFail(_) => Ok(()),
        _ => Err(PgError::fatal(code::PROTOCOL_VIOLATION, "unexpected message").into()),
    }
}
