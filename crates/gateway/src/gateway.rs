//! The gateway as the composition root sees it, and what all connections share.

mod peers;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::future::Future;
use std::hash::{Hash, Hasher};
use std::io;
use std::num::NonZero;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use catchment_eventlog::{EventLog, LogError};
use catchment_threads::{ThreadPool, Urgency};
use catchment_types::{Event, PartitionId, Timestamp, partition_of};
use futures::FutureExt;
use futures::future::OptionFuture;
use parking_lot::{Mutex, RwLock};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admission::{Admission, ClientLimits, Credentials, Denied, Meter, Principal, RateLimits};
use crate::bridge::{self, BridgeConfig, BridgeError, BridgeMetrics, Recalled};
use crate::config::{ConfigError, GatewayConfig, UnroutedAction};
use crate::http::{BODY_PERMIT_BYTES, Keys};
use crate::ingest::Batches;
use crate::marks::{self, Mark};
use crate::metrics::GatewayMetrics;
use crate::mqtt::{
    self, Broker, Interest, KeepError, Keeper, KeptRecord, Message, Outbox, Pool, PublishProperties, QoS,
    RECHECK, SERVER, SHUT_DOWN, SessionStore, Signal, TopicLimits, Turn, Will,
};
use crate::route::{RouteBook, RouteStore, RouteStoreError, Routes};
use crate::transport::{Listener, Remote};

/// Refusals that are told in the log.
const REFUSALS_LOGGED: RateLimits =
    RateLimits { messages_per_s: 20, bytes_per_s: 0, connects_per_s: 0, burst_s: 5 };
/// How often sessions and delayed wills are looked after.
const SWEEP_EVERY: Duration = Duration::from_millis(250);
/// How often expired retained messages are dropped, in sweeps.
const RETAINED_SWEEPS: u32 = 240;
/// Most time between two looks at whether all connections follow a change.
const FOLLOW_LOOK_MAX: Duration = Duration::from_millis(50);
/// How often the journal is told that the server lives, in sweeps.
const ALIVE_SWEEPS: u32 = 20;

/// MQTT broker and HTTP ingest in front of an event log.
pub struct Gateway {
    pub(crate) config: GatewayConfig,
    pub(crate) log: Arc<dyn EventLog>,
    pub(crate) admission: Arc<dyn Admission>,
    pub(crate) metrics: GatewayMetrics,
    pub(crate) routes: RouteBook,
    pub(crate) topic_limits: TopicLimits,
    pub(crate) pool: Pool,
    /// Memory for HTTP bodies, in permits of [`BODY_PERMIT_BYTES`].
    pub(crate) http_memory: Arc<Semaphore>,
    /// For bodies that are unpacked, or so large that others should not wait while they are taken apart.
    pub(crate) bodies: ThreadPool,
    refusals_logged: ClientLimits,
    /// Keys of requests that may be sent again.
    pub(crate) keys: Keys,
    /// The data folder's name, where there are bridges.
    pub(crate) instance: OnceLock<Box<str>>,
    /// What the log had of bridges at the start, until they take it.
    bridged: Mutex<HashMap<u64, Recalled>>,
    brokers: RwLock<HashMap<Arc<str>, Arc<Broker>>>,
    connections: Mutex<Connections>,
    /// The newest change of what admission decides by that connections were told of.
    admission_change: AtomicU64,
    keeper: Arc<Keeper>,
    /// For other gateways.
    outbox: Arc<Outbox>,
    /// What other gateways have said, for realms that come.
    heard: Mutex<BTreeMap<Arc<str>, BTreeMap<String, Interest>>>,
}

/// All connections, so that a stop reaches them.
#[derive(Debug, Default)]
struct Connections {
    signals: HashSet<BySelf>,
    shut_down: bool,
}

/// A signal that is found by being the same one.
#[derive(Debug)]
struct BySelf(Arc<Signal>);

impl Hash for BySelf {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}
impl PartialEq for BySelf {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}
impl Eq for BySelf {}

/// A topic that messages cannot be published to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the topic is empty, has a wildcard, or has too many bytes or levels")]
pub struct NotATopic;

/// Why a gateway does not open.
#[derive(Debug, Error)]
pub enum OpenError {
    /// A setting that cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// What was kept cannot be had.
    #[error(transparent)]
    Sessions(#[from] KeepError),
    /// A fault of the program, logged where it happened.
    #[error("the sessions that were kept could not be read: a thread panicked")]
    Panicked,
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Gateway {
    /// A gateway in front of `log` that goes on with the sessions and retained messages in `store`. Reads them all.
    ///
    /// # Errors
    /// When the configuration cannot work, or what was kept cannot be read or written. Damaged records are no error: they
    /// are left out, counted and logged.
    pub async fn open(
        config: GatewayConfig,
        log: Arc<dyn EventLog>,
        admission: Arc<dyn Admission>,
        metrics: GatewayMetrics,
        store: SessionStore,
    ) -> Result<Arc<Self>, OpenError> {
        let (mqtt, kept) = (config.mqtt.clone(), metrics.kept.clone());
        let opened = tokio::task::spawn_blocking(move || Keeper::open(&store, &mqtt, kept)).await;
        let (keeper, mut image) = opened.map_err(|_| OpenError::Panicked)??;
        let gateway = Self::with_keeper(config, log, admission, metrics, Arc::new(keeper))?;
        let redo = |realm: Box<str>, message: Message, received_at| {
            let gateway = Arc::clone(&gateway);
            async move { gateway.keep_again(&realm, &message, received_at).await }
        };
        mqtt::settle(&mut image, &*gateway.log, &gateway.keeper, redo).await;
        mqtt::restore(&image, &gateway.keeper, |realm| gateway.broker(realm));
        gateway.start_tasks();
        Ok(gateway)
    }

    /// A gateway in front of `log` that forgets its sessions when it ends. Must be called within a Tokio runtime: a task
    /// looks after sessions until the gateway is dropped.
    ///
    /// # Errors
    /// When the configuration cannot work; see [`GatewayConfig::check`].
    pub fn new(
        config: GatewayConfig,
        log: Arc<dyn EventLog>,
        admission: Arc<dyn Admission>,
        metrics: GatewayMetrics,
    ) -> Result<Arc<Self>, ConfigError> {
        let keeper = Arc::new(Keeper::volatile(&config.mqtt));
        let gateway = Self::with_keeper(config, log, admission, metrics, keeper)?;
        gateway.start_tasks();
        Ok(gateway)
    }

    fn start_tasks(self: &Arc<Self>) {
        tokio::spawn(sweep(Arc::downgrade(self)));
        if let Some(changes) = self.admission.changes() {
            tokio::spawn(recheck(Arc::downgrade(self), changes));
        }
    }

    fn with_keeper(
        config: GatewayConfig,
        log: Arc<dyn EventLog>,
        admission: Arc<dyn Admission>,
        metrics: GatewayMetrics,
        keeper: Arc<Keeper>,
    ) -> Result<Arc<Self>, ConfigError> {
        let routes = config.routes()?;
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        let http_permits = config.http.buffered_bytes_max / BODY_PERMIT_BYTES;
        Ok(Arc::new(Self {
            keeper,
            topic_limits: config.mqtt.topic_limits(),
            pool: Pool::new(log.partitions()),
            keys: Keys::new(
                Duration::from_secs(config.http.idempotency_s_max),
                config.http.idempotency_keys_max,
            ),
            bodies: ThreadPool::new("body", Urgency::Patient, processors),
            http_memory: Arc::new(Semaphore::new(http_permits.clamp(1, Semaphore::MAX_PERMITS))),
            config,
            log,
            admission,
            metrics,
            routes,
            refusals_logged: ClientLimits {
                device: Some(Arc::new(Meter::new(REFUSALS_LOGGED))),
                realm: None,
            },
            instance: OnceLock::new(),
            bridged: Mutex::default(),
            brokers: RwLock::default(),
            connections: Mutex::default(),
            admission_change: AtomicU64::new(0),
            outbox: Arc::default(),
            heard: Mutex::default(),
        }))
    }

    /// Serves MQTT on a listener without TLS; see [`Self::serve`].
    ///
    /// # Errors
    /// None after the listener is bound; accept errors are logged and retried.
    pub async fn serve_mqtt(
        self: &Arc<Self>,
        listener: TcpListener,
        shutdown: CancellationToken,
    ) -> io::Result<()> {
        self.serve(Listener::plain(listener), shutdown).await;
        Ok(())
    }

    /// Accepts MQTT connections until `shutdown`; then ends all of the gateway's connections, waits for what they have on
    /// its way to the log, and acknowledges it. Bounded by the configuration's `drain_s_max`. Stop the gateway before
    /// the log.
    pub async fn serve(self: &Arc<Self>, listener: Listener, shutdown: CancellationToken) {
        let gateway = Arc::clone(self);
        let serve = move |stream, remote| {
            // Not an async block, which would keep a place for stream and remote as long as the connection lives.
            OptionFuture::from(gateway.serving(stream, remote)).map(drop)
        };
        let mut tasks = listener.run(shutdown, serve).await;
        self.disconnect_all();
        let drained = async { while tasks.join_next().await.is_some() {} };
        let limit = Duration::from_secs(self.config.drain_s_max);
        if tokio::time::timeout(limit, drained).await.is_err() {
            tracing::warn!(connections = tasks.len(), "connections did not end in time and are cut");
            tasks.shutdown().await;
        }
    }

    /// Serves MQTT on one connection, of whatever transport, until it ends.
    pub async fn serve_stream<S>(self: &Arc<Self>, stream: S, remote: Remote)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        if let Some(serving) = self.serving(stream, remote) {
            serving.await;
        }
    }

    /// What serves one connection until it ends; none: it is not let in.
    fn serving<S>(self: &Arc<Self>, stream: S, remote: Remote) -> Option<impl Future<Output = ()> + use<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let refused = |reason| GatewayMetrics::count(&self.metrics.connections_refused, reason);
        if remote.address.is_some_and(|address| !self.admission.admits_address(address.ip())) {
            refused("address");
            return None;
        }
        let Some(registered) = self.register() else {
            refused("connections_max");
            return None;
        };
        Some(mqtt::serve(Arc::clone(self), stream, remote, registered))
    }

    /// Tells every connection that the server stops; new ones are not let in any more. [`Gateway::serve`] does this.
    pub fn disconnect_all(&self) {
        let mut connections = self.connections.lock();
        connections.shut_down = true;
        connections.signals.iter().for_each(|BySelf(signal)| signal.raise(SHUT_DOWN));
    }

    /// Reads from the log what an earlier process had taken in of requests and by bridges that may be sent again. Call it before anything
    /// is served.
    ///
    /// # Errors
    /// The log cannot be read.
    pub async fn recall(&self) -> Result<(), LogError> {
        let mut bridged = HashMap::<u64, Recalled>::new();
        marks::recall(&*self.log, self.keys.window(), |mark, at| match mark {
            Mark::Bridged { link, packet_id, fingerprint } => {
                bridged.entry(link).or_default().note(packet_id, fingerprint, at);
            }
            mark => self.keys.recall(mark),
        })
        .await?;
        *self.bridged.lock() = bridged;
        Ok(())
    }

    /// Starts bridges to other brokers, in `tasks`, until `stop`. `instance` is of the data folder, made once: client ids are
    /// made of it. Call it once, after [`Gateway::recall`] and before anything is served: what is published from then on
    /// is queued for the brokers.
    ///
    /// # Errors
    /// A bridge's session cannot be kept.
    pub async fn start_bridges(
        self: &Arc<Self>,
        configs: &[BridgeConfig],
        instance: &str,
        metrics: &BridgeMetrics,
        stop: &CancellationToken,
        tasks: &mut JoinSet<()>,
    ) -> Result<(), BridgeError> {
        let recalled = std::mem::take(&mut *self.bridged.lock());
        // Bridges are started once.
        let _ = self.instance.set(instance.into());
        bridge::start(self, configs, instance, metrics, recalled, stop, tasks).await
    }

    /// Keeps routes that are added while running in `store`, and takes those that are there into force.
    ///
    /// # Errors
    /// The store failed; the routes of the configuration are in force then.
    pub async fn keep_routes_in(&self, store: Arc<dyn RouteStore>) -> Result<(), RouteStoreError> {
        self.routes.keep_in(store).await
    }

    /// Brings routes into force that another process has added or removed.
    ///
    /// # Errors
    /// The store failed; what was in force stays so.
    pub async fn reread_routes(&self) -> Result<(), RouteStoreError> {
        self.routes.reread().await
    }

    /// Publishes a message of the server's own to the subscribers of a realm. It does not become an event.
    ///
    /// # Errors
    /// When `topic` is not one.
    pub async fn publish(
        &self,
        realm: &str,
        topic: &str,
        payload: &[u8],
        qos: QoS,
        retain: bool,
    ) -> Result<(), NotATopic> {
        if !self.topic_limits.is_topic(topic) || topic.contains('\0') {
            return Err(NotATopic);
        }
        let properties = PublishProperties::default();
        let message = Arc::new(Message::new(topic, &properties, payload, qos, retain, SERVER));
        self.broker(realm).publish(&message, &mut Turn::default()).await;
        Ok(())
    }

    /// The broker of a realm, made when it is first needed. Realms come from admission, not from clients.
    pub(crate) fn broker(&self, realm: &str) -> Arc<Broker> {
        if let Some(broker) = self.brokers.read().get(realm) {
            return Arc::clone(broker);
        }
        let mut brokers = self.brokers.write();
        let broker = brokers.entry(realm.into()).or_insert_with(|| {
            let keeper = Arc::clone(&self.keeper);
            let outbox = Arc::clone(&self.outbox);
            let broker = Broker::new(realm, &self.config.mqtt, self.metrics.clone(), keeper, outbox);
            mqtt::set_peers(&broker, &self.heard.lock());
            broker.follow_sharing();
            Arc::new(broker)
        });
        Arc::clone(broker)
    }

    /// The brokers of all realms that there are.
    pub(crate) fn brokers(&self) -> Vec<Arc<Broker>> {
        self.brokers.read().values().cloned().collect()
    }

    /// For each realm that somebody has been in.
    pub(crate) fn each_broker(&self, mut each: impl FnMut(&Broker)) {
        self.brokers.read().values().for_each(|broker| each(broker));
    }

    pub(crate) fn partition(&self, realm: &str, device_id: &str) -> PartitionId {
        partition_of(realm, device_id, self.log.partitions())
    }

    /// Asks admission, and counts and logs what it says.
    pub(crate) async fn authenticate(&self, credentials: Credentials<'_>) -> Result<Principal, Denied> {
        let decided = self.admission.authenticate(credentials).await;
        let reason = decided.as_ref().map_or_else(Denied::reason, |_| "admitted");
        GatewayMetrics::count(&self.metrics.admission, reason);
        // The counter tells of every refusal; a log line for each would be one more thing to flood.
        if let Err(denied) = &decided
            && self.refusals_logged.take(1).is_zero()
        {
            let Credentials { client_id, username, remote, .. } = credentials;
            tracing::info!(?remote, client_id, username, %denied, "not let in");
        }
        decided
    }

    /// Whether a message of this topic would be taken from `principal`.
    pub(crate) fn may_publish(&self, principal: &Principal, topic: &str) -> bool {
        match self.routes.current().find(topic) {
            Ok(None) if self.config.unrouted.action == UnroutedAction::Refuse => false,
            Ok(routed) => self.admission.may_publish(principal, topic, routed.map(|routed| routed.device_id)),
            Err(_) => false,
        }
    }

    /// Device and type of the event that a message of this topic becomes, if it becomes one.
    fn event_names<'a>(
        &'a self,
        routes: &'a Routes,
        topic: &'a str,
        tags: &mut String,
    ) -> Option<(&'a str, &'a str)> {
        let unrouted = &self.config.unrouted;
        match routes.find(topic).ok()? {
            Some(routed) => routed.write_tags(tags).ok().map(|()| (routed.device_id, routed.event_type)),
            None if unrouted.action == UnroutedAction::Keep => {
                Some((&unrouted.device_id, &unrouted.event_type))
            }
            None => None,
        }
    }

    /// Publishes a will like any message of the client: into the log, if its topic leads there, and to subscribers.
    pub(crate) async fn publish_will(&self, realm: &str, will: &Will) {
        let broker = self.broker(realm);
        let routes = self.routes.current();
        let mut tags = String::new();
        let names = self.event_names(&routes, &will.topic, &mut tags).filter(|_| broker.keeps_events());
        if let Some((device_id, event_type)) = names {
            let event = Event {
                realm,
                device_id,
                event_type,
                topic: &will.topic,
                received_at: Timestamp::now(),
                content_type: &will.content_type,
                tags: &tags,
                mark: 0,
                payload: &will.payload,
            };
            let mut batches = Batches::new(self.log.partitions());
            if batches.push(self.partition(realm, device_id), &event).is_ok() {
                let refused = |error| tracing::warn!(%error, topic = &*will.topic, "a will was not kept");
                batches.submit(&*self.log, |submitted| submitted.map(drop).unwrap_or_else(refused)).await;
            }
        }
        broker.publish(&will.message(SERVER), &mut Turn::default()).await;
        if will.kept_by != 0 {
            self.keeper.append(&KeptRecord::WillDone { session: will.kept_by });
        }
    }

    /// Gives a message to the log that did not come there before a crash. Whether it is in now.
    async fn keep_again(&self, realm: &str, message: &Message, received_at: Timestamp) -> bool {
        // With another configuration it may be no event any more.
        let (routes, mut tags) = (self.routes.current(), String::new());
        let Some((device_id, event_type)) = self.event_names(&routes, message.topic(), &mut tags) else {
            return true;
        };
        let event = Event {
            realm,
            device_id,
            event_type,
            topic: message.topic(),
            received_at,
            content_type: message.content_type(),
            tags: &tags,
            mark: 0,
            payload: message.payload(),
        };
        let mut batches = Batches::new(self.log.partitions());
        let mut pending = None;
        if batches.push(self.partition(realm, device_id), &event).is_ok() {
            batches.submit(&*self.log, |submitted| pending = submitted.ok()).await;
        }
        match pending {
            Some(pending) => pending.await.is_ok(),
            None => false,
        }
    }

    /// Makes everything durable that sessions have recorded. For the end, after [`Gateway::serve_mqtt`].
    pub async fn close(&self) {
        if let Some(barrier) = self.keeper.barrier() {
            // An error was logged where it happened.
            let _ = tokio::time::timeout(Duration::from_secs(self.config.drain_s_max), barrier).await;
        }
    }

    /// Tells the journal that the server lives, so that after a crash it is known since when connections are gone.
    fn record_alive(&self) {
        let sessions = self.metrics.sessions.get();
        if sessions > 0 && self.keeper.is_durable() {
            self.keeper.append(&KeptRecord::Clock { at_ms: Timestamp::now().as_micros() / 1000 });
        }
        let waiting = self.keeper.waiting_bytes();
        self.metrics.kept_waiting_bytes.set(i64::try_from(waiting).unwrap_or(i64::MAX));
        self.metrics.kept_stuck.set(i64::from(self.keeper.is_stuck()));
    }

    /// The change that a connection follows which checks its client from now on.
    pub(crate) fn admission_change(&self) -> u64 {
        self.admission_change.load(Ordering::Acquire)
    }

    /// Has every connection find out whether its client may stay. Gives those that are there.
    fn tell_of_change(&self, change: u64) -> Vec<Arc<Signal>> {
        self.admission_change.store(change, Ordering::Release);
        let signals: Vec<_> =
            self.connections.lock().signals.iter().map(|BySelf(signal)| Arc::clone(signal)).collect();
        signals.iter().for_each(|signal| signal.raise(RECHECK));
        signals
    }

    fn register(self: &Arc<Self>) -> Option<Registered> {
        let connections = &mut *self.connections.lock();
        if connections.shut_down || connections.signals.len() >= self.config.mqtt.connections_max {
            return None;
        }
        let signal = Arc::new(Signal::default());
        connections.signals.insert(BySelf(Arc::clone(&signal)));
        self.metrics.connections.inc();
        Some(Registered { gateway: Arc::clone(self), signal })
    }

    fn sweep_retained(&self) {
        let (mut messages, mut bytes) = (0, 0);
        for broker in self.brokers.read().values() {
            broker.retained.sweep();
            let size = broker.retained.size();
            (messages, bytes) = (messages + size.0, bytes + size.1);
        }
        self.metrics.retained_messages.set(i64::try_from(messages).unwrap_or(i64::MAX));
        self.metrics.retained_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }
}

/// A connection's place among those that exist.
#[derive(Debug)]
pub(crate) struct Registered {
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) signal: Arc<Signal>,
}

impl Registered {
    /// For a connection that we opened: it counts for no limit, and who opened it ends it.
    pub(crate) fn apart(gateway: &Arc<Gateway>, signal: &Arc<Signal>) -> Self {
        Self { gateway: Arc::clone(gateway), signal: Arc::clone(signal) }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.signal.leave();
        // One that is apart is not among them.
        if self.gateway.connections.lock().signals.remove(&BySelf(Arc::clone(&self.signal))) {
            self.gateway.metrics.connections.dec();
        }
    }
}

/// Lets every connection find out whether it may stay, whenever something was changed, and tells admission when all have.
/// Changes that come while one is followed are looked at once.
async fn recheck(gateway: Weak<Gateway>, mut changes: watch::Receiver<u64>) {
    // What was changed before there were connections needs no following; what came since is told at once.
    changes.mark_changed();
    while changes.changed().await.is_ok() {
        let change = *changes.borrow_and_update();
        let Some(mut behind) = gateway.upgrade().map(|gateway| gateway.tell_of_change(change)) else {
            return;
        };
        let mut pause = Duration::from_millis(1);
        loop {
            behind.retain(|signal| !signal.follows(change));
            if behind.is_empty() {
                let Some(gateway) = gateway.upgrade() else { return };
                gateway.admission.followed(change);
                break;
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(FOLLOW_LOOK_MAX),
                // A connection may be held up; the next change is told to the others meanwhile.
                changed = changes.changed() => match changed {
                    Ok(()) => {
                        changes.mark_changed();
                        break;
                    }
                    Err(_) => return,
                },
            }
        }
    }
}

/// Ends sessions and publishes wills when their time has come.
async fn sweep(gateway: Weak<Gateway>) {
    let mut ticks = tokio::time::interval(SWEEP_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let started = Instant::now();
    let mut figures_due = started;
    for round in 0u32.. {
        ticks.tick().await;
        let Some(gateway) = gateway.upgrade() else { return };
        for broker in gateway.brokers() {
            for will in broker.sweep(Instant::now()) {
                gateway.publish_will(broker.realm(), &will).await;
            }
        }
        if round % ALIVE_SWEEPS == 0 {
            gateway.record_alive();
        }
        if round % RETAINED_SWEEPS == 0 {
            gateway.sweep_retained();
        }
        let interval = Duration::from_secs(gateway.config.mqtt.sys_interval_s);
        if !interval.is_zero() && figures_due <= Instant::now() {
            figures_due = Instant::now() + interval;
            for broker in gateway.brokers.read().values() {
                mqtt::publish_figures(broker, &gateway.metrics, started.elapsed());
            }
        }
    }
}
