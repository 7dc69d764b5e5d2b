//! The life of a connection: CONNECT, admission, a session, CONNACK; then [`Connection::drive`]; then an orderly end.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::aliases::Aliases;
use super::broker::{Attach, AttachError, Attached, Broker};
use super::codec::{self, ConnAck, Connect, Frame, Framed, Offer, Peer, ProtocolError, Reason, Version};
use super::connection::{Close, Connection, KeepAlive};
use super::far::parting_code;
use super::lazy::Lazy;
use super::output::Output;
use super::session::Session;
use super::signal::{SHUT_DOWN, Signal};
use super::standing::Standing;
use super::topics::is_reserved;
use super::turn::Turn;
use super::will::Will;
use crate::admission::{Credentials, Denied, Principal, Purpose, Role};
use crate::gateway::{Gateway, Registered};
use crate::metrics::GatewayMetrics;
use crate::transport::Remote;

/// How long a last word to a client may take.
const FAREWELL_MAX: Duration = Duration::from_secs(1);
/// How long a closing connection waits for the log to tell what became of its last events.
const SETTLE_MAX: Duration = Duration::from_secs(5);

/// Serves one connection from its first byte to its end.
///
/// What CONNECT needs is in a box of its own, that is gone once there is a session: a million idle connections are a million
/// of what is left.
pub(crate) fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    gateway: Arc<Gateway>,
    stream: S,
    remote: Remote,
    registered: Registered,
) -> impl Future<Output = ()> {
    let entering = Box::pin(enter(gateway, stream, remote, registered));
    async move {
        if let Some(mut connection) = entering.await {
            let close = connection.drive().await;
            Box::pin(connection.end(close)).await;
        }
    }
}

/// CONNECT and its answer; none: the client was not let in, or is gone.
async fn enter<S: AsyncRead + AsyncWrite + Unpin>(
    gateway: Arc<Gateway>,
    mut stream: S,
    mut remote: Remote,
    registered: Registered,
) -> Option<Box<Connection<S>>> {
    let signal = Arc::clone(&registered.signal);
    let limit = Duration::from_secs(gateway.config.mqtt.connect_s_max);
    let connect_bytes_max = gateway.config.mqtt.connect_bytes_max.min(gateway.config.mqtt.packet_bytes_max);
    let refused = |reason| GatewayMetrics::count(&gateway.metrics.connections_refused, reason);
    let read = tokio::select! {
        biased;
        () = until_shut_down(&signal) => return None,
        () = remote.ended() => {
            refused("evicted");
            return None;
        }
        read = tokio::time::timeout(limit, read_packet(&mut stream, connect_bytes_max)) => read,
    };
    let bytes = match read {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(_)) => {
            refused("no_connect");
            return None;
        }
        Err(_) => {
            refused("connect_timeout");
            return None;
        }
    };
    let Ok(Framed::Packet(frame)) = codec::frame(&bytes, connect_bytes_max) else { return None };
    match admit(&gateway, &frame, &remote, &signal).await {
        Ok(admitted) => {
            remote.opening = None;
            gateway.metrics.connections_total.inc();
            let (realm, will) = (Arc::clone(&admitted.principal.realm), admitted.will.clone());
            let rest = bytes[frame.length..].to_vec();
            let connection = admitted.connect(stream, remote.address, registered, rest);
            // Whatever happens from here on, the connection leaves its session.
            if let Some(will) = will {
                gateway.publish_will(&realm, &will).await;
            }
            Some(connection)
        }
        Err(refusal) => {
            refused(refusal.error.reason.name());
            tracing::debug!(remote = ?remote.address, reason = refusal.error.detail, "connection refused");
            let version = refusal.version?;
            let mut output = Vec::new();
            let answer = ConnAck {
                session_present: false,
                reason: refusal.error.reason,
                reason_string: refusal.error.detail,
                offer: None,
            };
            codec::connack(&mut output, version, &answer, refusal.packet_bytes_max);
            farewell(&mut stream, &output).await;
            None
        }
    }
}

/// Resolves when the server stops.
async fn until_shut_down(signal: &Signal) {
    std::future::poll_fn(|cx| match signal.take(cx) & SHUT_DOWN {
        0 => std::task::Poll::Pending,
        _ => std::task::Poll::Ready(()),
    })
    .await;
}

/// Reads until there is one whole packet, and perhaps more.
async fn read_packet(stream: &mut (impl AsyncRead + Unpin), packet_bytes_max: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 1024];
    loop {
        let read = stream.read(&mut chunk).await?;
        bytes.extend_from_slice(&chunk[..read]);
        match codec::frame(&bytes, packet_bytes_max) {
            Ok(Framed::Packet(_)) => return Ok(bytes),
            // What does not even begin as CONNECT is not waited for.
            Ok(Framed::Partial(_)) if read > 0 && bytes[0] == 0x10 => {}
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// Why a connection is not let in, and in which version to say so; none: the answer is to close.
struct Refusal {
    error: ProtocolError,
    version: Option<Version>,
    packet_bytes_max: usize,
}

/// A connection that was let in.
struct Admitted {
    broker: Arc<Broker>,
    principal: Principal,
    session: Arc<Session>,
    /// The will of the session that ended for this one.
    will: Option<Will>,
    peer: Peer,
    keep_alive_s: u16,
    topic_alias_maximum: u16,
    /// CONNACK, and PUBRELs to repeat.
    output: Vec<u8>,
}

async fn admit(
    gateway: &Arc<Gateway>,
    frame: &Frame<'_>,
    remote: &Remote,
    signal: &Arc<Signal>,
) -> Result<Admitted, Refusal> {
    let connect = codec::decode_connect(frame).map_err(|(error, version)| {
        // 3.1.1 has no code for a malformed CONNECT, only for a version that is not spoken.
        let told = error.reason == Reason::UnsupportedVersion;
        let version = version.filter(|&version| told || version == Version::V5);
        Refusal { error, version, packet_bytes_max: usize::MAX }
    })?;
    let version = connect.version;
    let packet_bytes_max = usize::try_from(connect.packet_bytes_max).unwrap_or(usize::MAX);
    let refuse = |reason, detail| Refusal {
        error: ProtocolError { reason, detail },
        version: Some(version),
        packet_bytes_max,
    };
    check(gateway, &connect).map_err(|error| refuse(error.reason, error.detail))?;
    let credentials = Credentials {
        client_id: connect.client_id,
        username: connect.username,
        password: connect.password,
        remote: remote.address,
        certificate: remote.certificate.as_deref(),
        purpose: Purpose::Connection,
    };
    let mut principal = gateway.authenticate(credentials).await.map_err(|denied| match denied {
        Denied::BadCredentials => refuse(Reason::BadCredentials, "the credentials are missing or wrong"),
        Denied::NotAllowed(_) => {
            refuse(Reason::NotAuthorized, "the credentials do not allow this connection")
        }
        Denied::Unavailable(_) => refuse(Reason::ServerUnavailable, "admission cannot be decided now"),
        Denied::TooMany { .. } => {
            refuse(Reason::ConnectionRateExceeded, "too many connections in a short time")
        }
        Denied::Banned { .. } => refuse(Reason::Banned, "kept out for now"),
    })?;
    let assigned = connect.client_id.is_empty().then(assign_client_id);
    let client_id: Arc<str> = assigned.as_deref().unwrap_or(connect.client_id).into();
    principal.client_id = Some(Arc::clone(&client_id));
    if let Some(will) = &connect.will
        && !gateway.may_publish(&principal, will.topic)
    {
        return Err(refuse(Reason::NotAuthorized, "the will's topic may not be published to"));
    }
    let config = &gateway.config.mqtt;
    let session_expiry_s = connect.session_expiry_s.min(config.session_expiry_s_max);
    let keep_alive_s = match (connect.keep_alive_s, config.keep_alive_s_max) {
        (asked, 0) => asked,
        (0, max) => max,
        (asked, max) => asked.min(max),
    };
    let response_info = connect.response_info.then(|| response_topic(&principal, &client_id)).flatten();
    let answer = |session_present| ConnAck {
        session_present,
        reason: Reason::Success,
        reason_string: "",
        offer: Some(Offer {
            assigned_client_id: assigned.as_deref(),
            session_expiry_s: Some(session_expiry_s).filter(|&given| given != connect.session_expiry_s),
            keep_alive_s: Some(keep_alive_s).filter(|&given| given != connect.keep_alive_s),
            receive_maximum: config.receive_maximum,
            topic_alias_maximum: config.topic_aliases_max,
            packet_bytes_max: u32::try_from(config.packet_bytes_max).unwrap_or(u32::MAX),
            response_info: response_info.as_deref(),
            instance: gateway.instance.get().map(|instance| &**instance).filter(|_| connect.is_bridge),
        }),
    };
    let mut output = Vec::new();
    // Before anything happens: a client that cannot take the answer cannot be let in.
    if !codec::connack(&mut output, version, &answer(false), packet_bytes_max) {
        return Err(refuse(Reason::PacketTooLarge, "CONNACK would be larger than the client takes"));
    }
    let broker = gateway.broker(&principal.realm);
    // The same text for all of a realm: its principals share it.
    principal.realm = Arc::clone(broker.realm());
    let owner = principal.owner();
    let attached = broker.attach(Attach {
        client_id: &client_id,
        owner: &owner,
        clean_start: connect.clean_start,
        expiry: Duration::from_secs(session_expiry_s.into()),
        will: connect.will.as_ref().map(Will::from),
        signal,
    });
    let attached = attached.await.map_err(|error| match error {
        AttachError::TooManySessions => {
            refuse(Reason::QuotaExceeded, "the server has as many sessions as it may")
        }
        AttachError::Foreign => {
            refuse(Reason::NotAuthorized, "the client id's session belongs to another client")
        }
        AttachError::NotReleased => {
            refuse(Reason::ServerBusy, "the client id's other connection does not end")
        }
        AttachError::NotKept => refuse(
            Reason::QuotaExceeded,
            "the session cannot be kept: there is no room on disk, or it failed",
        ),
    })?;
    // Its filters may be from when more was allowed.
    if attached.present {
        broker.enforce(&attached.session, |filter| gateway.admission.may_subscribe(&principal, filter));
    }
    let peer = Peer {
        version,
        packet_bytes_max,
        window: usize::from(connect.receive_maximum.min(config.outgoing_messages_max)),
        problem_info: connect.problem_info,
    };
    output.clear();
    codec::connack(&mut output, version, &answer(attached.present), packet_bytes_max);
    for &packet_id in &attached.released {
        codec::puback(&mut output, codec::AckKind::Rel, &peer, packet_id, Reason::Success);
    }
    let topic_alias_maximum = connect.topic_alias_maximum.min(config.outgoing_topic_aliases_max);
    let Attached { session, will, .. } = attached;
    Ok(Admitted { broker, principal, session, will, peer, keep_alive_s, topic_alias_maximum, output })
}

/// Where a client may have itself answered: a topic of its own, that it may subscribe to and that leads to no event.
/// None for a client id that cannot be a level of a topic.
fn response_topic(principal: &Principal, client_id: &str) -> Option<String> {
    if client_id.contains(['/', '+', '#']) {
        return None;
    }
    Some(match &principal.role {
        Role::Device(device_id) => format!("devices/{device_id}/responses/{client_id}"),
        Role::Admin | Role::Reader => format!("responses/{client_id}"),
    })
}

/// What can be said about CONNECT without knowing who it is.
fn check(gateway: &Gateway, connect: &Connect<'_>) -> Result<(), ProtocolError> {
    let error = |reason, detail| Err(ProtocolError { reason, detail });
    if connect.wants_authentication {
        return error(Reason::BadAuthenticationMethod, "the server has no authentication methods");
    }
    if connect.client_id.len() > gateway.config.mqtt.client_id_bytes_max {
        return error(Reason::ClientIdNotValid, "the client id is too long");
    }
    if connect.client_id.is_empty() && connect.version == Version::V3 && !connect.clean_start {
        return error(Reason::ClientIdNotValid, "a session that is kept needs a client id");
    }
    match &connect.will {
        Some(will) if !gateway.topic_limits.is_topic(will.topic) || is_reserved(will.topic) => {
            error(Reason::TopicNameInvalid, "the will's topic is not one to publish to")
        }
        _ => Ok(()),
    }
}

fn assign_client_id() -> String {
    format!("auto-{:032x}", rand::random::<u128>())
}

impl Admitted {
    fn connect<S>(
        self,
        stream: S,
        remote: Option<SocketAddr>,
        registered: Registered,
        rest: Vec<u8>,
    ) -> Box<Connection<S>> {
        let Self { broker, principal, session, peer, keep_alive_s, topic_alias_maximum, mut output, .. } =
            self;
        output.shrink_to_fit();
        tracing::debug!(client_id = session.client_id(), principal = &*principal.name, "connected");
        Box::new(Connection {
            broker,
            stream,
            received_count: session.received_count(),
            session,
            standing: Standing::new(&principal, remote),
            principal,
            peer,
            precommit: false,
            recorded: false,
            appended: false,
            confirm: false,
            partial: rest,
            large: 0,
            output: Output::new(output),
            intake: Lazy::default(),
            busy: false,
            turn: Turn::default(),
            aliases: Aliases::new(topic_alias_maximum),
            deliverable: true,
            retained_wanted: true,
            keep_alive: KeepAlive::new(keep_alive_s),
            far: None,
            registered,
        })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// Says a last word, settles what is owed, and leaves the session in order.
    async fn end(mut self: Box<Self>, close: Close) {
        let (reason, with_will, expiry_s) = match close {
            Close::Goodbye { with_will, session_expiry_s } => ("goodbye", with_will, session_expiry_s),
            Close::Lost => ("lost", true, None),
            Close::Stalled => ("write_timeout", true, None),
            // A stop of the server tells nothing about the device.
            Close::Fault(error) => (error.reason.name(), error.reason != Reason::ServerShuttingDown, None),
        };
        // It takes nothing more and is told nothing more.
        self.registered.signal.leave();
        GatewayMetrics::count(&self.registered.gateway.metrics.disconnects, reason);
        tracing::debug!(client_id = self.session.client_id(), reason, ?close, "disconnected");
        let unproven = self.settle(close).await;
        let expiry_max = Duration::from_secs(self.registered.gateway.config.mqtt.session_expiry_s_max.into());
        let expiry = expiry_s.map(|seconds| Duration::from_secs(seconds.into()).min(expiry_max));
        if let Some(will) =
            self.broker.detach(&self.session, &self.registered.signal, with_will, expiry, &unproven)
        {
            self.registered.gateway.publish_will(&self.principal.realm, &will).await;
        }
        if matches!(close, Close::Fault(_)) {
            linger(&mut self.stream).await;
        }
    }

    /// Says a last word, and waits until the log has told what became of the last events. When the server stops, they
    /// are still acknowledged. Gives the QoS 2 messages of which it did not tell.
    pub(super) async fn settle(&mut self, close: Close) -> Vec<u16> {
        let stops = matches!(close, Close::Fault(error) if error.reason == Reason::ServerShuttingDown);
        if !stops {
            self.say_goodbye(close).await;
        }
        // An error ends the waiting for the group it is in; the next is waited for all the same.
        let settle = async { while std::future::poll_fn(|cx| self.poll_acks(cx)).await.is_err() {} };
        // On a timeout, what is not known stays unproven.
        let settled = tokio::time::timeout(SETTLE_MAX, settle).await;
        if let (Err(_), Some(far)) = (settled, &mut self.far) {
            far.unsettled = true;
        }
        let unproven = self.intake.acks.unproven().collect();
        if stops {
            self.say_goodbye(close).await;
        }
        unproven
    }

    /// Writes what waits, and DISCONNECT when the server ends a 5.0 connection; then closes our half.
    async fn say_goodbye(&mut self, close: Close) {
        if self.far.is_some() {
            codec::part(&mut self.output.bytes, self.peer.version, parting_code(close));
        } else if let (Close::Fault(error), Version::V5) = (close, self.peer.version) {
            let max = self.peer.packet_bytes_max;
            codec::disconnect(&mut self.output.bytes, error.reason, error.detail, max);
        }
        if !matches!(close, Close::Lost | Close::Stalled) {
            let Self { output, stream, .. } = self;
            let send = async {
                std::future::poll_fn(|cx| output.poll_send(stream, FAREWELL_MAX, cx)).await?;
                stream.shutdown().await
            };
            // The client may be gone; there is nobody to tell then.
            let _ = tokio::time::timeout(FAREWELL_MAX, send).await;
        }
    }
}

/// Writes a last packet and closes.
async fn farewell(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), output: &[u8]) {
    let write = async {
        stream.write_all(output).await?;
        stream.flush().await
    };
    if let Ok(Ok(())) = tokio::time::timeout(FAREWELL_MAX, write).await {
        linger(stream).await;
    }
}

/// Closes our half and reads on for a moment: closing with unread input would reset the connection, and the client would
/// never see our last packet.
async fn linger(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    let drain = async {
        stream.shutdown().await?;
        let mut sink = [0; 1024];
        while stream.read(&mut sink).await? > 0 {}
        io::Result::Ok(())
    };
    // Whatever comes of it, the connection is over.
    let _ = tokio::time::timeout(FAREWELL_MAX, drain).await;
}
