//! A connection that we opened, as a client of another broker: the same loop, session and acknowledgements as those of the
//! connections that come to us, seen from the other end. What the other broker publishes is taken in as what a client
//! publishes; what waits in the bridge's local session goes out as to a subscriber.

use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::time::Duration;

use catchment_types::Timestamp;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;

use super::acks::Owed;
use super::broker::{Attach, AttachError, Broker};
use super::codec::{
    self, AckKind, Answer, Frame, FromServer, Packet, Peer, ProtocolError, Publish, QoS, Reason, Version,
    Wanted,
};
use super::connection::{Close, Connection};
use super::lazy::Lazy;
use super::output::Output;
use super::session::{Filled, Session};
use super::signal::{SHUT_DOWN, Signal};
use super::standing::Standing;
use super::subscriptions::Wish;
use super::topics::is_reserved;
use super::turn::Turn;
use crate::admission::{Principal, Role};
use crate::bridge::{OneBridge, Outlet, Rules, Seen, Stamp, fingerprint};
use crate::gateway::{Gateway, Registered};
use crate::ingest::Batches;
use crate::marks::Mark;

/// Client ids of bridges' local sessions begin so. No client can send the first character.
pub(crate) const BRIDGE_SESSION: &str = "\0bridge/";
/// Whose these sessions are.
const OWNER: &str = "\0bridge";
/// The session is kept as long as the bridge is configured.
const EXPIRY: Duration = Duration::from_secs(u32::MAX as u64);
/// Identifier of the only SUBSCRIBE of a connection.
const SUBSCRIBE_ID: u16 = 1;
/// Reason codes from here on tell of failures.
const FAILURES: u8 = 0x80;

/// What a bridge's connections have in common.
#[derive(Debug)]
pub(crate) struct FarLink {
    pub(crate) name: Box<str>,
    pub(crate) realm: Arc<str>,
    pub(crate) version: Version,
    /// Filters there.
    pub(crate) wanted: Vec<(String, QoS, bool)>,
    /// Filters here.
    pub(crate) offered: Vec<(String, QoS)>,
    pub(crate) rules: Arc<Rules>,
    /// Whether a 3.1.1 broker leaves the retain flag as published.
    pub(crate) flags_live: bool,
    pub(crate) stamp: Stamp,
    pub(crate) outlet: Arc<Outlet>,
    pub(crate) metrics: Arc<OneBridge>,
    pub(crate) keep_alive_s: u16,
    pub(crate) grant_max: Duration,
    pub(crate) packet_bytes_max: usize,
    /// Of the session there, for marks.
    pub(crate) hash: u64,
    /// Messages that need not be taken again; none: whatever is sent again is taken again.
    pub(crate) seen: Option<Seen>,
    /// The session there has our filters, as this process has seen.
    pub(crate) subscribed: bool,
}

/// How a connection has ended.
#[derive(Debug)]
pub(crate) struct FarEnd {
    /// For metrics.
    pub(crate) reason: &'static str,
    /// For people.
    pub(crate) what: String,
}

/// What a connection that we opened has more than others.
#[derive(Debug)]
pub(crate) struct Far {
    pub(super) metrics: Arc<OneBridge>,
    pub(super) stamp: Stamp,
    /// Largest packet that is taken.
    pub(super) packet_bytes_max: usize,
    /// Of the message that is being taken in; see `marks`.
    pub(super) mark: u128,
    name: Box<str>,
    rules: Arc<Rules>,
    flags_live: bool,
    hash: u64,
    seen: Option<Seen>,
    /// The last topic there, what becomes of it here, and whether retained messages of it are wanted.
    last: String,
    local: String,
    passes: Option<bool>,
    /// Filters whose SUBACK has not come.
    granting: Option<Granting>,
    granted: bool,
    every: Duration,
    ping: Pin<Box<Sleep>>,
    unanswered: bool,
    /// Something may not have reached the log.
    pub(super) unsettled: bool,
    /// What the other broker said at the end.
    why: Option<FarEnd>,
}

#[derive(Debug)]
struct Granting {
    filters: Vec<(String, QoS)>,
    due: Pin<Box<Sleep>>,
}

impl Far {
    /// Asks from time to time whether the other side is there, and gives it up when it does not answer.
    pub(super) fn poll_timers(&mut self, cx: &mut Context<'_>, output: &mut Vec<u8>) -> Result<(), Close> {
        while self.ping.as_mut().poll(cx).is_ready() {
            if self.unanswered {
                return Err(Close::told(Reason::KeepAliveTimeout, "the broker does not answer"));
            }
            codec::ping_request(output);
            self.unanswered = true;
            self.ping.as_mut().reset(Instant::now() + self.every);
        }
        if let Some(granting) = &mut self.granting
            && granting.due.as_mut().poll(cx).is_ready()
        {
            return Err(Close::told(Reason::ImplementationSpecific, "the broker does not answer SUBSCRIBE"));
        }
        Ok(())
    }

    /// Something came, or nothing could since we do not read.
    pub(super) fn heard(&mut self) {
        self.unanswered = false;
    }

    pub(super) fn note_filled(&self, filled: &Filled) {
        self.metrics.published.inc_by(filled.sent_qos0);
        self.metrics.dropped("expired", filled.expired);
        self.metrics.dropped("too_large", filled.too_large);
    }

    /// The other broker has acknowledged a message.
    pub(super) fn note_finished(&self, code: u8) {
        if code < FAILURES {
            self.metrics.published.inc();
        } else {
            tracing::warn!(
                bridge = &*self.name,
                code = reason_name(code),
                "the broker did not take a message"
            );
            self.metrics.refused(reason_name(code));
        }
    }

    /// The answer to SUBSCRIBE.
    fn grant(&mut self, packet_id: u16, codes: &[u8]) -> Result<(), Close> {
        let Some(Granting { filters, .. }) = self.granting.take().filter(|_| packet_id == SUBSCRIBE_ID)
        else {
            return Ok(());
        };
        let mut refused = 0;
        for ((filter, qos), &code) in filters.iter().zip(codes) {
            if code >= FAILURES {
                refused += 1;
                tracing::warn!(
                    bridge = &*self.name,
                    filter,
                    code = reason_name(code),
                    "the broker refused a subscription"
                );
            } else if code < *qos as u8 {
                tracing::warn!(
                    bridge = &*self.name,
                    filter,
                    qos = code,
                    "the broker grants a lower quality of service"
                );
            }
        }
        if refused == filters.len() {
            let what = "the broker refused all subscriptions; may this user read these topics?".to_owned();
            self.why = Some(FarEnd { reason: "subscribe_refused", what });
            return Err(Close::Goodbye { with_will: false, session_expiry_s: None });
        }
        self.granted = true;
        self.metrics.connected.set(1);
        Ok(())
    }
}

impl<S> Connection<S> {
    /// Takes a packet of the other broker.
    pub(super) fn take_from_far(
        &mut self,
        frame: &Frame<'_>,
        received_at: Timestamp,
        batches: &mut Batches,
    ) -> Result<(), Close> {
        match codec::decode_from_server(frame, self.peer.version).map_err(Close::Fault)? {
            FromServer::Packet(Packet::Publish(publish)) => {
                self.take_far_publish(&publish, received_at, batches)
            }
            FromServer::Packet(packet) => self.take_control(packet),
            FromServer::SubAck { packet_id, codes } => match &mut self.far {
                Some(far) => far.grant(packet_id, codes),
                None => Ok(()),
            },
            FromServer::UnsubAck | FromServer::PingResp => Ok(()),
            FromServer::Disconnect { code, reason } => {
                let said = if reason.is_empty() { String::new() } else { format!(": {reason}") };
                let what = format!("the broker ended the connection ({}{said})", reason_name(code));
                if let Some(far) = &mut self.far {
                    far.why = Some(FarEnd { reason: reason_name(code), what });
                }
                Err(Close::Lost)
            }
        }
    }

    fn take_far_publish(
        &mut self,
        packet: &Publish<'_>,
        received_at: Timestamp,
        batches: &mut Batches,
    ) -> Result<(), Close> {
        let Some(far) = &mut self.far else { return Ok(()) };
        let topic = packet.topic_text().map_err(Close::Fault)?;
        if topic != far.last || topic.is_empty() {
            far.passes = far.rules.translate(topic, &mut far.local);
            far.last.clear();
            far.last.push_str(topic);
        }
        let is_old = packet.retain && self.peer.version == Version::V3 && !far.flags_live;
        let is_topic = self.registered.gateway.topic_limits.is_topic(&far.local) && !is_reserved(&far.local);
        let passed_over = match far.passes {
            None => Some("no_rule"),
            Some(false) if is_old => Some("retained"),
            Some(_) if !is_topic => Some(Reason::TopicNameInvalid.name()),
            Some(_) if far.stamp.is_on(packet.properties.listed()) => Some("loop"),
            Some(_) => None,
        };
        if let Some(reason) = passed_over {
            far.metrics.refused(reason);
            self.pass_over(packet);
            return Ok(());
        }
        if packet.qos == QoS::AtLeastOnce
            && let Some(seen) = &mut far.seen
        {
            let fingerprint = fingerprint(far.local.as_bytes(), packet.payload);
            if packet.duplicate && seen.has(packet.packet_id, fingerprint) {
                far.metrics.duplicates.inc();
                self.pass_over(packet);
                return Ok(());
            }
            seen.note(packet.packet_id, fingerprint);
            far.mark = Mark::Bridged { link: far.hash, packet_id: packet.packet_id, fingerprint }.encode();
        }
        let local = std::mem::take(&mut far.local);
        let taken = self.take_publish(&Publish { topic: local.as_bytes(), ..*packet }, received_at, batches);
        if let Some(far) = &mut self.far {
            far.mark = 0;
            far.local = local;
            // It comes again, and is to be taken then.
            if let (Err(_), QoS::AtLeastOnce, Some(seen)) = (&taken, packet.qos, &mut far.seen) {
                seen.unnote(packet.packet_id);
            }
        }
        taken
    }

    /// Acknowledges a message without taking it.
    fn pass_over(&mut self, packet: &Publish<'_>) {
        if packet.qos == QoS::ExactlyOnce {
            self.received_count += u32::from(self.session.receive(packet.packet_id));
            if self.intake.acks.owes_rec(packet.packet_id) {
                return;
            }
        }
        self.intake.acks.owe(Owed::to(packet.qos, packet.packet_id, Reason::Success, None));
    }

    /// Does not take a message. What can be taken at another time is not acknowledged: the connection ends, and the broker
    /// sends it again with the next. What never can is acknowledged and counted, or it would come for ever.
    pub(super) fn refuse_far(&mut self, packet: &Publish<'_>, reason: Reason) -> Result<(), Close> {
        let keeps_id = self.peer.version == Version::V3 && reason != Reason::QuotaExceeded;
        if packet.qos == QoS::ExactlyOnce && !keeps_id {
            self.received_count -= u32::from(self.session.forget_received(packet.packet_id));
        }
        if reason == Reason::QuotaExceeded {
            if let Some(far) = &mut self.far {
                let what = "there is no room to keep what was sent: the session journal is full or failed"
                    .to_owned();
                far.why = Some(FarEnd { reason: reason.name(), what });
            }
            return Err(Close::Goodbye { with_will: false, session_expiry_s: None });
        }
        if let Some(far) = &self.far {
            far.metrics.refused(reason.name());
        }
        let told = if self.peer.version == Version::V5 { reason } else { Reason::Success };
        self.intake.acks.owe(Owed::to(packet.qos, packet.packet_id, told, None));
        Ok(())
    }
}

/// Makes the bridge's local session, or finds it again, and gives it the filters of its rules.
pub(crate) async fn settle_session(gateway: &Gateway, link: &FarLink) -> Result<Arc<Session>, &'static str> {
    let broker = gateway.broker(&link.realm);
    let signal = Arc::new(Signal::default());
    let session = attach(&broker, link, &signal).await?.0;
    for text in session.filters() {
        let is_wanted = link.offered.iter().any(|(filter, _)| **filter == *text);
        if let Some(filter) = broker.topic_limits().filter(&text).filter(|_| !is_wanted) {
            broker.unsubscribe(&session, &text, filter);
        }
    }
    for (text, qos) in &link.offered {
        let wish = Wish { qos: *qos, no_local: true, retain_as_published: true, subscription_id: 0 };
        if let Some(filter) = broker.topic_limits().filter(text) {
            broker.subscribe(&session, text, filter, wish, usize::MAX, |is_new| is_new);
        }
    }
    if let Some(barrier) = broker.keeper.barrier() {
        barrier.await.map_err(|_| "its session cannot be kept")?;
    }
    broker.detach(&session, &signal, false, None, &[]);
    Ok(session)
}

/// The bridge's local session, and identifiers for which PUBREL is to be sent again.
async fn attach(
    broker: &Arc<Broker>,
    link: &FarLink,
    signal: &Arc<Signal>,
) -> Result<(Arc<Session>, Vec<u16>), &'static str> {
    let client_id: Arc<str> = format!("{BRIDGE_SESSION}{}", link.name).into();
    let attached = broker.attach(Attach {
        client_id: &client_id,
        owner: OWNER,
        clean_start: false,
        expiry: EXPIRY,
        will: None,
        signal,
    });
    let attached = attached.await.map_err(|error| match error {
        AttachError::TooManySessions => {
            "there are as many sessions as there may be (gateway.mqtt.sessions_max)"
        }
        AttachError::NotKept => "its session cannot be kept: there is no room on disk, or it failed",
        AttachError::NotReleased | AttachError::Foreign => "its session is in use",
    })?;
    attached.session.serve_bridge(&link.outlet);
    Ok((attached.session, attached.released))
}

/// Serves a connection that the other broker has let in, until it ends. `rest`: what came behind its answer.
pub(crate) async fn serve_far<S: AsyncRead + AsyncWrite + Unpin>(
    gateway: &Arc<Gateway>,
    link: &mut FarLink,
    stream: S,
    answer: &Answer,
    rest: Vec<u8>,
    stop: &CancellationToken,
) -> FarEnd {
    let broker = gateway.broker(&link.realm);
    let signal = Arc::new(Signal::default());
    let (session, released) = match attach(&broker, link, &signal).await {
        Ok(attached) => attached,
        Err(what) => return FarEnd { reason: "session", what: what.to_owned() },
    };
    let config = &gateway.config.mqtt;
    let peer = Peer {
        version: link.version,
        packet_bytes_max: usize::try_from(answer.packet_bytes_max).unwrap_or(usize::MAX),
        window: usize::from(answer.receive_maximum.min(config.outgoing_messages_max)),
        problem_info: false,
    };
    let mut output = Vec::new();
    if answer.session_present {
        for packet_id in released {
            codec::puback(&mut output, AckKind::Rel, &peer, packet_id, Reason::Success);
        }
    } else {
        session.begin_anew();
        if let Some(seen) = &mut link.seen {
            seen.forget();
        }
        link.subscribed = false;
    }
    link.outlet.connected_to(answer);
    // A 3.1.1 broker sends all retained messages again with every SUBSCRIBE.
    let subscribes = !link.wanted.is_empty() && (link.version == Version::V5 || !link.subscribed);
    if subscribes {
        let wanted: Vec<_> = link.wanted.iter().map(|wanted| wanted_of(wanted)).collect();
        codec::subscribe(&mut output, link.version, SUBSCRIBE_ID, &wanted);
    }
    let granting = subscribes.then(|| Granting {
        filters: link.wanted.iter().map(|(filter, qos, _)| (filter.clone(), *qos)).collect(),
        due: Box::pin(tokio::time::sleep(link.grant_max)),
    });
    link.metrics.connects.inc();
    link.metrics.connected.set(i64::from(!subscribes));
    let keep_alive_s = answer.keep_alive_s.unwrap_or(link.keep_alive_s);
    // Without a keep-alive of the broker's we still want to know.
    let every = Duration::from_millis(u64::from(if keep_alive_s == 0 { 60 } else { keep_alive_s }) * 500);
    let far = Far {
        metrics: Arc::clone(&link.metrics),
        stamp: match &answer.instance {
            Some(other) => link.stamp.clone().from(other),
            None => link.stamp.clone(),
        },
        name: link.name.clone(),
        rules: Arc::clone(&link.rules),
        flags_live: link.flags_live,
        packet_bytes_max: link.packet_bytes_max,
        mark: 0,
        hash: link.hash,
        seen: link.seen.take(),
        last: String::new(),
        local: String::new(),
        passes: None,
        granting,
        granted: !subscribes,
        every,
        ping: Box::pin(tokio::time::sleep(every)),
        unanswered: false,
        unsettled: false,
        why: None,
    };
    let principal = Principal::new(Arc::clone(&link.realm), format!("bridge:{}", link.name), Role::Admin);
    let mut connection = Connection {
        registered: Registered::apart(gateway, &signal),
        broker: Arc::clone(&broker),
        stream,
        received_count: session.received_count(),
        session: Arc::clone(&session),
        standing: Standing::new(&principal, None),
        principal,
        peer,
        precommit: false,
        recorded: false,
        confirm: false,
        partial: rest,
        large: 0,
        output: Output::new(output),
        intake: Lazy::default(),
        busy: false,
        turn: Turn::default(),
        appended: false,
        aliases: None,
        deliverable: true,
        retained_wanted: true,
        keep_alive: None,
        far: Some(Box::new(far)),
    };
    let close = drive(&mut connection, &signal, stop).await;
    link.metrics.connected.set(0);
    let unproven = connection.settle(close).await;
    broker.detach(&session, &signal, false, None, &unproven);
    let mut why = None;
    if let Some(far) = connection.far.take() {
        link.subscribed |= far.granted && subscribes;
        link.seen = far.seen;
        // What was read may not have been given to the log when the log or the journal failed.
        let failed = matches!(close, Close::Fault(error)
            if matches!(error.reason, Reason::QuotaExceeded | Reason::Unspecified));
        if let Some(seen) = &mut link.seen {
            seen.end(!far.unsettled && !failed);
        }
        why = far.why;
    }
    why.unwrap_or_else(|| match close {
        Close::Goodbye { .. } => FarEnd { reason: "goodbye", what: "it was ended".to_owned() },
        Close::Lost => FarEnd { reason: "lost", what: "the connection was lost".to_owned() },
        Close::Stalled => {
            FarEnd { reason: "write_timeout", what: "the broker takes nothing of what it is sent".to_owned() }
        }
        Close::Fault(error) => FarEnd { reason: error.reason.name(), what: error.detail.to_owned() },
    })
}

async fn drive<S: AsyncRead + AsyncWrite + Unpin>(
    connection: &mut Connection<S>,
    signal: &Signal,
    stop: &CancellationToken,
) -> Close {
    let mut driven = std::pin::pin!(connection.drive());
    tokio::select! {
        close = &mut driven => close,
        () = stop.cancelled() => {
            signal.raise(SHUT_DOWN);
            driven.await
        }
    }
}

fn wanted_of((filter, qos, retained): &(String, QoS, bool)) -> Wanted<'_> {
    // The standard forbids no-local for shared subscriptions (5.0, 3.8.3.1).
    Wanted { filter, qos: *qos, no_local: !filter.starts_with("$share/"), retained: *retained }
}

/// The code that a client ends a 5.0 connection with.
pub(super) fn parting_code(close: Close) -> u8 {
    let Close::Fault(ProtocolError { reason, .. }) = close else { return 0 };
    match reason {
        Reason::ServerShuttingDown => 0,
        Reason::Malformed
        | Reason::ProtocolError
        | Reason::ReceiveMaximumExceeded
        | Reason::TopicAliasInvalid
        | Reason::PacketTooLarge
        | Reason::QuotaExceeded => reason.code(),
        _ => Reason::Unspecified.code(),
    }
}

/// The name of a reason code as servers send them; see 2.4 of the standard.
pub(crate) fn reason_name(code: u8) -> &'static str {
    match code {
        0x00 => "normal_disconnection",
        0x81 => "malformed_packet",
        0x82 => "protocol_error",
        0x83 => "implementation_specific",
        0x84 => "unsupported_version",
        0x85 => "client_id_not_valid",
        0x86 => "bad_credentials",
        0x87 => "not_authorized",
        0x88 => "server_unavailable",
        0x89 => "server_busy",
        0x8A => "banned",
        0x8B => "server_shutting_down",
        0x8C => "bad_authentication_method",
        0x8D => "keep_alive_timeout",
        0x8E => "session_taken_over",
        0x8F => "topic_filter_invalid",
        0x90 => "topic_name_invalid",
        0x93 => "receive_maximum_exceeded",
        0x94 => "topic_alias_invalid",
        0x95 => "packet_too_large",
        0x96 => "message_rate_too_high",
        0x97 => "quota_exceeded",
        0x98 => "administrative_action",
        0x99 => "payload_format_invalid",
        0x9A => "retain_not_supported",
        0x9B => "qos_not_supported",
        0x9C => "use_another_server",
        0x9D => "server_moved",
        0x9E => "shared_not_supported",
        0x9F => "connection_rate_exceeded",
        0xA1 => "subscription_ids_not_supported",
        0xA2 => "wildcards_not_supported",
        _ => "unspecified",
    }
}
