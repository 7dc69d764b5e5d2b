//! The first exchange of a connection: encryption refused where `encryption` has not begun it, a user admitted, a session announced; or a request to cancel.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;

use bytes::Buf;
use catchment_types::DEFAULT_REALM;
use pgwire::messages::response::{GssEncResponse, ReadyForQuery, SslResponse, TransactionStatus};
use pgwire::messages::startup::{
    Authentication, BackendKeyData, NegotiateProtocolVersion, ParameterStatus, SecretKey, Startup,
};
use pgwire::messages::{
    DecodeContext, Message, PgWireBackendMessage, PgWireFrontendMessage, ProtocolVersion,
};
use tokio::sync::OwnedSemaphorePermit;

use super::cancel::Ticket;
use super::error::{Fault, PgError, code};
use super::settings::{REPORTED, Settings};
use super::wire::{Reader, Writer};
use super::{ANONYMOUS, PgUser, Shared};
use crate::access::Refusal;

const CANCEL: i32 = 80_877_102;
const SSL: i32 = 80_877_103;
const GSS: i32 = 80_877_104;
/// Requests for encryption before the start-up packet.
const NEGOTIATIONS_MAX: usize = 4;

/// A session that may begin.
pub(super) struct Started {
    pub(super) user: String,
    /// Resolves when the user has to go.
    pub(super) must_go: Pin<Box<dyn Future<Output = Refusal> + Send>>,
    pub(super) settings: Settings,
    pub(super) ticket: Ticket,
    /// Its place among the sessions.
    pub(super) permit: OwnedSemaphorePermit,
}

/// Up to AuthenticationOk and ReadyForQuery; nothing if there is no session to come of it.
pub(super) async fn handshake(
    reader: &mut Reader,
    writer: &mut Writer,
    shared: &Shared,
    secured: bool,
    remote: Option<IpAddr>,
) -> Result<Option<Started>, Fault> {
    let Some(parameters) = start_up(reader, writer, shared).await? else { return Ok(None) };
    if shared.config.tls_required && !secured {
        shared.metrics.refused("no_tls");
        return Err(PgError::fatal(code::INVALID_AUTHORIZATION, "connections without TLS are not let in")
            .hint("connect with sslmode=require or better")
            .into());
    }
    let parameter = |name: &str| parameters.get(name).map(String::as_str).filter(|value| !value.is_empty());
    let user = parameter("user")
        .ok_or_else(|| PgError::fatal(code::INVALID_AUTHORIZATION, "no user name in the start-up packet"))?
        .to_owned();
    let permit = shared.slots.clone().try_acquire_owned().map_err(|_| {
        shared.metrics.refused("too_many");
        PgError::fatal(
            code::TOO_MANY_CONNECTIONS,
            format!("sorry, there are {} sessions already", shared.config.sessions_max),
        )
    })?;
    let PgUser { role, must_go } = authenticate(reader, writer, shared, &user, remote).await?;
    let database = parameter("database").unwrap_or(&user);
    if database != DEFAULT_REALM {
        return Err(PgError::fatal(
            code::INVALID_CATALOG_NAME,
            format!("database \"{database}\" does not exist"),
        )
        .hint(format!("the database is \"{DEFAULT_REALM}\""))
        .into());
    }
    if parameter("replication").is_some_and(|value| !matches!(value, "false" | "off" | "no" | "0")) {
        return Err(PgError::fatal(code::FEATURE_NOT_SUPPORTED, "replication is not supported").into());
    }

    let timeout = std::time::Duration::from_millis(shared.engine.config().timeout_ms);
    let mut settings = Settings::new(&user, timeout);
    for (name, value) in &parameters {
        match name.as_str() {
            "user" | "database" | "replication" => {}
            "options" => settings.start_with_options(value),
            _ => settings.start_with(name, value),
        }
    }
    let ticket = shared.sessions.enter();
    tracing::debug!(user, ?role, number = ticket.number, "session begins");
    writer.put(PgWireBackendMessage::Authentication(Authentication::Ok));
    for name in REPORTED {
        let value = settings.get(name).unwrap_or_default().to_owned();
        writer.put(PgWireBackendMessage::ParameterStatus(ParameterStatus::new((*name).to_owned(), value)));
    }
    writer.put(PgWireBackendMessage::BackendKeyData(BackendKeyData::new(
        ticket.number,
        SecretKey::I32(ticket.secret),
    )));
    writer.put(PgWireBackendMessage::ReadyForQuery(ReadyForQuery::new(TransactionStatus::Idle)));
    writer.flush().await?;
    Ok(Some(Started { user, must_go, settings, ticket, permit }))
}

/// The parameters of the start-up packet.
async fn start_up(
    reader: &mut Reader,
    writer: &mut Writer,
    shared: &Shared,
) -> Result<Option<BTreeMap<String, String>>, Fault> {
    for _ in 0..NEGOTIATIONS_MAX {
        let Some(mut frame) = reader.startup_frame().await? else { return Ok(None) };
        match (&frame[4..8]).get_i32() {
            SSL => writer.put(PgWireBackendMessage::SslResponse(SslResponse::Refuse)),
            GSS => writer.put(PgWireBackendMessage::GssEncResponse(GssEncResponse::Refuse)),
            CANCEL => {
                if let Some(mut request) = frame.get(8..16) {
                    shared.sessions.cancel(request.get_i32(), request.get_i32());
                }
                return Ok(None);
            }
            version if version >> 16 == 3 => {
                let context = DecodeContext::new(ProtocolVersion::PROTOCOL3_0);
                let invalid = || PgError::fatal(code::PROTOCOL_VIOLATION, "invalid start-up packet");
                let packet =
                    Startup::decode(&mut frame, &context).map_err(|_| invalid())?.ok_or_else(invalid)?;
                negotiate(writer, &packet);
                return Ok(Some(packet.parameters));
            }
            version => {
                let message = format!(
                    "unsupported frontend protocol {}.{}: server supports 3.0",
                    version >> 16,
                    version & 0xffff
                );
                return Err(PgError::fatal(code::FEATURE_NOT_SUPPORTED, message).into());
            }
        }
        writer.flush().await?;
    }
    Err(PgError::fatal(code::PROTOCOL_VIOLATION, "too many requests for encryption").into())
}

/// Tells a client that asks for more than 3.0 what it gets.
fn negotiate(writer: &mut Writer, packet: &Startup) {
    let unknown: Vec<_> =
        packet.parameters.keys().filter(|name| name.starts_with("_pq_.")).cloned().collect();
    if packet.protocol_number_minor > 0 || !unknown.is_empty() {
        let newest = i32::from(ProtocolVersion::PROTOCOL3_0);
        writer.put(PgWireBackendMessage::NegotiateProtocolVersion(NegotiateProtocolVersion::new(
            newest, unknown,
        )));
    }
}

async fn authenticate(
    reader: &mut Reader,
    writer: &mut Writer,
    shared: &Shared,
    user: &str,
    remote: Option<IpAddr>,
) -> Result<PgUser, Fault> {
    if user == ANONYMOUS
        && let Some(anonymous) = shared.auth.anonymous(remote)
    {
        return Ok(anonymous);
    }
    writer.put(PgWireBackendMessage::Authentication(Authentication::CleartextPassword));
    writer.flush().await?;
    let password = match reader.message().await? {
        Some(PgWireFrontendMessage::PasswordMessageFamily(message)) => {
            message.into_password().ok().map(|message| message.password)
        }
        // psql leaves here to ask for the password, and comes again.
        Some(PgWireFrontendMessage::Terminate(_)) | None => {
            return Err(Fault::Gone(io::ErrorKind::UnexpectedEof.into()));
        }
        Some(_) => None,
    };
    let password =
        password.ok_or_else(|| PgError::fatal(code::PROTOCOL_VIOLATION, "expected a password message"))?;
    match shared.auth.verify(user, &password, remote).await {
        Ok(admitted) => Ok(admitted),
        Err(banned @ Refusal::Banned(_)) => {
            shared.metrics.refused("banned");
            Err(PgError::fatal(code::INVALID_AUTHORIZATION, banned.to_string()).into())
        }
        Err(Refusal::Invalid | Refusal::Expired) => {
            shared.metrics.refused("password");
            tracing::info!(user, "password refused");
            Err(PgError::fatal(
                code::INVALID_PASSWORD,
                format!("password authentication failed for user \"{user}\""),
            )
            .hint("the password is a token of an administrator or reader")
            .into())
        }
    }
}
