//! What a client publishes: from the read buffer into the batches of the log. The hot path.

use std::sync::{Arc, LazyLock};

use catchment_types::{Event, PartitionId, Timestamp};

use super::acks::{Acks, Owed};
use super::codec::{ProtocolError, Publish, QoS, Reason, Version, text};
use super::connection::{Close, Connection, log_fault};
use super::fanout::Staged;
use super::keep::{Keeper, Origin, Proof, Record};
use super::lazy::Unused;
use super::message::Message;
use super::topics::is_reserved;
use crate::config::UnroutedAction;
use crate::ingest::Batches;
use crate::metrics::GatewayMetrics;

/// So many nodes of the tree of subscriptions are looked at to know whether a topic is wanted. If that is not enough, its first
/// message finds out, in turns.
const WANTED_NODES_MAX: usize = 512;

/// What to do with messages of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Events of a device.
    Event(PartitionId),
    /// No route, but to be kept all the same.
    Kept(PartitionId),
    /// No route: for subscribers only.
    Brokered,
    /// No route, and only routed topics are taken.
    Unroutable,
    /// Not to be taken.
    Refused(Reason),
}

/// The last topic of a connection and everything that was found out about it: mostly the next message has the same.
#[derive(Debug)]
pub(super) struct TopicCache {
    topic: String,
    device_id: String,
    event_type: String,
    tags: String,
    /// The routes by which this was found out.
    routes_generation: u64,
    verdict: Verdict,
    /// Whether anybody may have subscribed to it, and at which generation of the subscriptions that was so.
    wanted: bool,
    wanted_generation: u64,
    /// Topics that stand behind the client's aliases, from 1.
    aliases: Vec<Option<Box<str>>>,
}

/// What a connection holds once its client has published.
#[derive(Debug, Default)]
pub(super) struct Intake {
    pub(super) acks: Acks,
    pub(super) topics: TopicCache,
    pub(super) forwards: Vec<Forward>,
    pub(super) tally: Tally,
}

impl Unused for Intake {
    fn unused() -> &'static Self {
        static UNUSED: LazyLock<Intake> = LazyLock::new(Intake::default);
        &UNUSED
    }
}

/// A message that subscribers want, until the log has taken its batch.
#[derive(Debug)]
pub(super) struct Forward {
    message: Arc<Message>,
    append: Option<u16>,
    /// For a kept publisher's QoS 2.
    origin: Option<Origin>,
    /// What was recorded of it already.
    staged: Option<Staged>,
}

/// Counted per read, not per message.
#[derive(Debug, Default)]
pub(super) struct Tally {
    events: u64,
    event_bytes: u64,
    brokered: u64,
    kept: u64,
    /// All messages, kept or not, and their payload bytes: what limits are about.
    pub(super) messages: u64,
    pub(super) message_bytes: u64,
}

impl Tally {
    pub(super) fn report(&mut self, metrics: &GatewayMetrics) {
        let tally = std::mem::take(self);
        if tally.messages > 0 {
            metrics.received_messages.inc_by(tally.messages);
        }
        if tally.events > 0 {
            metrics.mqtt_events.inc_by(tally.events);
            metrics.mqtt_event_bytes.inc_by(tally.event_bytes);
        }
        if tally.brokered > 0 {
            metrics.count_unrouted("brokered", tally.brokered);
        }
        if tally.kept > 0 {
            metrics.count_unrouted("kept", tally.kept);
        }
    }
}

impl TopicCache {
    /// Whether the client has given no alias, which would have to be known for as long as it is connected.
    pub(super) fn is_without_aliases(&self) -> bool {
        self.aliases.is_empty()
    }

    /// Nobody wants messages of this topic, as the subscriptions were at this generation.
    fn note_unwanted(&mut self, topic: &str, generation: u64) {
        if self.topic == topic {
            (self.wanted, self.wanted_generation) = (false, generation);
        }
    }

    /// Forgets what was found out, so that it is found out anew.
    pub(super) fn forget(&mut self) {
        self.topic.clear();
    }
}

impl Default for TopicCache {
    fn default() -> Self {
        Self {
            topic: String::new(),
            device_id: String::new(),
            event_type: String::new(),
            tags: String::new(),
            routes_generation: 0,
            // The empty topic is none.
            verdict: Verdict::Refused(Reason::TopicNameInvalid),
            wanted: true,
            wanted_generation: u64::MAX,
            aliases: Vec::new(),
        }
    }
}

impl<S> Connection<S> {
    /// Takes a message in: into a batch, on the list of acknowledgements, and on that of messages to forward.
    #[inline]
    pub(super) fn take_publish(
        &mut self,
        packet: &Publish<'_>,
        received_at: Timestamp,
        batches: &mut Batches,
    ) -> Result<(), Close> {
        self.resolve_topic(packet)?;
        if packet.qos != QoS::AtMostOnce && !self.admit_unacknowledged(packet)? {
            return Ok(());
        }
        let unkept = self.broker.keeper.is_stuck() && self.needs_records(packet);
        if unkept || self.is_over_limit(packet.payload.len()) {
            return self.refuse(packet, Reason::QuotaExceeded);
        }
        let is_taken = !matches!(self.intake.topics.verdict, Verdict::Refused(_) | Verdict::Unroutable);
        if packet.retain && is_taken && self.has_no_place(packet) {
            self.registered.gateway.metrics.retained_refused.inc();
            return self.refuse(packet, Reason::QuotaExceeded);
        }
        let append = match self.intake.topics.verdict {
            Verdict::Refused(reason) => return self.refuse(packet, reason),
            Verdict::Unroutable => {
                self.registered.gateway.metrics.count_unrouted("refused", 1);
                return self.refuse(packet, Reason::TopicNameInvalid);
            }
            Verdict::Brokered => {
                self.intake.tally.brokered += 1;
                None
            }
            // Clearing a retained message tells nothing about the device.
            Verdict::Event(_) | Verdict::Kept(_) if packet.retain && packet.payload.is_empty() => None,
            verdict @ (Verdict::Event(partition) | Verdict::Kept(partition)) => {
                self.intake.tally.kept += u64::from(matches!(verdict, Verdict::Kept(_)));
                let event = Event {
                    realm: self.broker.realm(),
                    device_id: &self.intake.topics.device_id,
                    event_type: &self.intake.topics.event_type,
                    topic: &self.intake.topics.topic,
                    received_at,
                    content_type: packet.properties.content_type,
                    tags: &self.intake.topics.tags,
                    mark: self.far.as_ref().map_or(0, |far| far.mark),
                    payload: packet.payload,
                };
                let Ok(place) = batches.push(partition, &event) else {
                    return self.refuse(packet, Reason::ImplementationSpecific);
                };
                self.intake.tally.events += 1;
                self.intake.tally.event_bytes += packet.payload.len() as u64;
                self.intake.acks.count_event();
                Some(place)
            }
        };
        let owed = Owed::to(packet.qos, packet.packet_id, Reason::Success, append);
        self.intake.acks.owe(owed);
        let origin = self.origin(packet, append.is_some(), received_at);
        if packet.retain || self.is_wanted() {
            let (topic, publisher) = (&self.intake.topics.topic, self.session.id());
            let message = match &self.far {
                Some(far) => Message::stamped(topic, packet, publisher, far.stamp.encoded()),
                None => Message::from_publish(topic, packet, publisher),
            };
            let append = append.and_then(|place| u16::try_from(place).ok());
            self.intake.forwards.push(Forward { message: Arc::new(message), append, origin, staged: None });
        } else if let Some(origin) = origin {
            self.broker.keeper.append(&Record::Received(origin));
            self.recorded = true;
        }
        Ok(())
    }

    /// Whether a message that is to be retained cannot be, and its publisher can be told so and be understood: then nothing of
    /// it is taken. Otherwise it goes to the log and to subscribers like any other; that it is not retained is counted.
    fn has_no_place(&self, packet: &Publish<'_>) -> bool {
        let told = self.peer.version == Version::V5 && packet.qos != QoS::AtMostOnce;
        let size = || self.intake.topics.topic.len() + packet.properties.raw.len() + packet.payload.len();
        told && !packet.payload.is_empty()
            && !self.broker.retained.has_room(&self.intake.topics.topic, size())
    }

    /// Checks the receive maximum, and whether a QoS 2 message came before. `false`: it is not to be taken again.
    fn admit_unacknowledged(&mut self, packet: &Publish<'_>) -> Result<bool, Close> {
        if packet.qos == QoS::ExactlyOnce && !self.session.receive(packet.packet_id) {
            if !self.intake.acks.owes_rec(packet.packet_id) {
                self.intake.acks.owe(Owed::to(packet.qos, packet.packet_id, Reason::Success, None));
            }
            return Ok(false);
        }
        let unacknowledged = self.intake.acks.publishes_qos1() + self.received_count as usize;
        // A broker that is a little over it at a reconnect must not be sent away for ever; what is on its way is bounded anyhow.
        if self.peer.version == Version::V5
            && self.far.is_none()
            && unacknowledged >= usize::from(self.registered.gateway.config.mqtt.receive_maximum)
        {
            return Err(Close::Fault(ProtocolError {
                reason: Reason::ReceiveMaximumExceeded,
                detail: "more unacknowledged messages than the receive maximum",
            }));
        }
        self.received_count += u32::from(packet.qos == QoS::ExactlyOnce);
        Ok(true)
    }

    /// Makes the packet's topic that of the cache.
    #[inline]
    fn resolve_topic(&mut self, packet: &Publish<'_>) -> Result<(), Close> {
        if let Some(alias) = packet.properties.topic_alias {
            return self.resolve_alias(alias, packet);
        }
        if packet.topic == self.intake.topics.topic.as_bytes()
            && !packet.topic.is_empty()
            && self.knows_routes()
        {
            return Ok(());
        }
        if packet.topic.is_empty() {
            return Err(Close::Fault(ProtocolError::protocol(
                "PUBLISH without a topic and without an alias",
            )));
        }
        let topic = packet.topic_text().map_err(Close::Fault)?;
        self.look_up(topic)
    }

    /// Whether the cache was filled by the routes in force.
    #[inline]
    fn knows_routes(&self) -> bool {
        self.intake.topics.routes_generation == self.registered.gateway.routes.generation()
    }

    fn resolve_alias(&mut self, alias: u16, packet: &Publish<'_>) -> Result<(), Close> {
        if alias == 0 || alias > self.registered.gateway.config.mqtt.topic_aliases_max {
            return Err(Close::Fault(ProtocolError {
                reason: Reason::TopicAliasInvalid,
                detail: "the topic alias is 0 or above the server's maximum",
            }));
        }
        let at = usize::from(alias - 1);
        if packet.topic.is_empty() {
            let topic = self.intake.topics.aliases.get_mut(at).and_then(Option::take);
            let topic =
                topic.ok_or(Close::Fault(ProtocolError::protocol("a topic alias that was never given")))?;
            let found = if *topic == *self.intake.topics.topic && self.knows_routes() {
                Ok(())
            } else {
                self.look_up(&topic)
            };
            self.intake.topics.aliases[at] = Some(topic);
            return found;
        }
        let topic = text(packet.topic).map_err(Close::Fault)?;
        self.look_up(topic)?;
        if self.intake.topics.aliases.len() <= at {
            self.intake.topics.aliases.resize(at + 1, None);
        }
        self.intake.topics.aliases[at] = Some(topic.into());
        Ok(())
    }

    /// Finds out everything about a topic. One that cannot be a topic ends the connection.
    fn look_up(&mut self, topic: &str) -> Result<(), Close> {
        if !self.registered.gateway.topic_limits.is_topic(topic) {
            return Err(Close::Fault(ProtocolError {
                reason: Reason::TopicNameInvalid,
                detail: "the topic has a wildcard, too many levels or too many bytes",
            }));
        }
        let cache = &mut self.intake.topics;
        cache.topic.clear();
        cache.topic.push_str(topic);
        cache.wanted_generation = u64::MAX;
        // Before the routes themselves: a change in between is seen with the next message.
        cache.routes_generation = self.registered.gateway.routes.generation();
        let routes = self.registered.gateway.routes.current();
        let unrouted = &self.registered.gateway.config.unrouted;
        cache.tags.clear();
        let may =
            |device_id| self.registered.gateway.admission.may_publish(&self.principal, topic, device_id);
        let mut named = |device_id: &str, event_type: &str| {
            cache.device_id.clear();
            cache.device_id.push_str(device_id);
            cache.event_type.clear();
            cache.event_type.push_str(event_type);
            self.registered.gateway.partition(self.broker.realm(), device_id)
        };
        cache.verdict = match routes.find(topic) {
            _ if is_reserved(topic) => Verdict::Refused(Reason::NotAuthorized),
            Err(_) => Verdict::Refused(Reason::TopicNameInvalid),
            Ok(None) if may(None) => match unrouted.action {
                UnroutedAction::Broker => Verdict::Brokered,
                UnroutedAction::Keep if !self.broker.keeps_events() => Verdict::Brokered,
                UnroutedAction::Keep => Verdict::Kept(named(&unrouted.device_id, &unrouted.event_type)),
                UnroutedAction::Refuse => Verdict::Unroutable,
            },
            Ok(Some(routed)) if may(Some(routed.device_id)) && !self.broker.keeps_events() => {
                Verdict::Brokered
            }
            Ok(Some(routed)) if may(Some(routed.device_id)) => match routed.write_tags(&mut cache.tags) {
                Ok(()) => Verdict::Event(named(routed.device_id, routed.event_type)),
                Err(_) => Verdict::Refused(Reason::TopicNameInvalid),
            },
            Ok(_) => Verdict::Refused(Reason::NotAuthorized),
        };
        Ok(())
    }

    /// Whether anybody may have subscribed to the topic of the cache.
    #[inline]
    fn is_wanted(&mut self) -> bool {
        let subscriptions = &self.broker.subscriptions;
        let generation = subscriptions.generation();
        if self.intake.topics.wanted_generation != generation {
            let nodes;
            (self.intake.topics.wanted, nodes) =
                subscriptions.is_wanted(&self.intake.topics.topic, WANTED_NODES_MAX);
            self.turn.add(nodes);
            self.intake.topics.wanted_generation = generation;
        }
        self.intake.topics.wanted
    }

    /// Does not take a message. 5.0 has a word for it; 3.1.1 can only acknowledge or close, and what was not taken is not
    /// acknowledged. QoS 0 is dropped and counted in both.
    pub(super) fn refuse(&mut self, packet: &Publish<'_>, reason: Reason) -> Result<(), Close> {
        GatewayMetrics::count(&self.registered.gateway.metrics.refused, reason.name());
        if self.far.is_some() {
            return self.refuse_far(packet, reason);
        }
        if packet.qos == QoS::ExactlyOnce {
            self.session.forget_received(packet.packet_id);
            self.received_count -= 1;
        }
        match (packet.qos, self.peer.version) {
            (QoS::AtMostOnce, _) => Ok(()),
            // Nobody can expect anything of a topic that is the server's: its message is taken and dropped (3.1.1, 3.3.5),
            // rather than to have a client that knows another broker connect in vain again and again.
            (_, Version::V3) if is_reserved(&self.intake.topics.topic) => {
                self.intake.acks.owe(Owed::to(packet.qos, packet.packet_id, Reason::Success, None));
                Ok(())
            }
            (_, Version::V3) => Err(Close::Fault(ProtocolError {
                reason,
                detail: "a publish was refused, which MQTT 3.1.1 has no answer for",
            })),
            (_, Version::V5) => {
                self.intake.acks.owe(Owed::to(packet.qos, packet.packet_id, reason, None));
                Ok(())
            }
        }
    }

    /// Hands the messages of the current read to their subscribers, but for those that the log refused.
    pub(super) async fn forward(&mut self) {
        if self.intake.forwards.is_empty() {
            return;
        }
        let mut forwards = std::mem::take(&mut self.intake.forwards);
        for forward in forwards.drain(..) {
            if !self.intake.acks.was_refused(forward.append) {
                let Forward { message, origin, staged, .. } = forward;
                let staged = match staged {
                    Some(staged) => staged,
                    None => self.stage(&message, origin).await,
                };
                let position = self.broker.deliver(&message, staged, &mut self.turn).await;
                self.recorded |= position != 0 && message.qos != QoS::AtMostOnce;
                self.appended |= position != 0;
                self.turn.rest().await;
            }
        }
        self.intake.forwards = forwards;
    }

    /// Finds those who get a message, and records what is to be kept of it.
    async fn stage(&mut self, message: &Arc<Message>, origin: Option<Origin>) -> Staged {
        let found = self.broker.find(message, &mut self.turn).await;
        if found.targets.is_empty() {
            self.intake.topics.note_unwanted(message.topic(), found.generation);
        }
        self.broker.stage(message, origin, false, found)
    }

    /// How a kept session's QoS 2 message is known to its publisher, and how it is found in the log if it goes there.
    fn origin(&mut self, packet: &Publish<'_>, is_event: bool, received_at: Timestamp) -> Option<Origin> {
        if packet.qos != QoS::ExactlyOnce || !self.session.is_kept() {
            return None;
        }
        let proof = match self.intake.topics.verdict {
            Verdict::Event(partition) if is_event => Some(Proof {
                partition,
                from: self.registered.gateway.log.range(partition).end,
                received_at: received_at.as_micros(),
                checksum: Proof::checksum(&self.intake.topics.topic, packet.payload),
            }),
            _ => None,
        };
        self.precommit |= proof.is_some();
        Some(Origin { session: self.session.id(), packet_id: packet.packet_id, proof })
    }

    /// Records the QoS 2 messages of a kept session before their events go to the log: a restart must find both or neither.
    pub(super) async fn record_first(&mut self) -> Result<(), Close> {
        if !std::mem::take(&mut self.precommit) {
            return Ok(());
        }
        let mut forwards = std::mem::take(&mut self.intake.forwards);
        for forward in &mut forwards {
            if forward.origin.is_some_and(|origin| origin.proof.is_some()) {
                forward.staged = Some(self.stage(&forward.message, forward.origin).await);
            }
        }
        self.intake.forwards = forwards;
        all_recorded(&self.broker.keeper).await
    }

    /// Has the acknowledgements of the current read wait for what was recorded, and waits itself if answers are out already.
    pub(super) async fn confirm_recorded(&mut self) -> Result<(), Close> {
        if std::mem::take(&mut self.recorded) {
            if let Some(barrier) = self.broker.keeper.barrier() {
                self.intake.acks.append_for_all(barrier);
            }
            self.appended = true;
        }
        // Retained messages of QoS 0 are recorded too, and nothing else holds them up.
        if std::mem::take(&mut self.appended) {
            self.broker.keeper.room().await;
        }
        if std::mem::take(&mut self.confirm) && self.session.is_kept() {
            all_recorded(&self.broker.keeper).await?;
        }
        Ok(())
    }

    /// Whether a message may leave a trace in the journal.
    fn needs_records(&mut self, packet: &Publish<'_>) -> bool {
        packet.retain
            || packet.qos != QoS::AtMostOnce && self.is_wanted()
            || packet.qos == QoS::ExactlyOnce && self.session.is_kept()
    }
}

/// Waits until everything that was recorded is durable.
async fn all_recorded(keeper: &Keeper) -> Result<(), Close> {
    match keeper.barrier() {
        Some(barrier) => barrier.await.map(drop).map_err(|error| log_fault(&error)),
        None => Ok(()),
    }
}
