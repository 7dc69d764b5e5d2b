//! The composition root: the one place that names concrete engines and puts the parts together.
//!
//! ```text
//! start  lock the data folder → listeners → registry → log → history → snapshot → workers → gateway → HTTP, PostgreSQL
//! stop   no new connections → gateway settles what it took → log closes → workers read it to its end → last flush
//! ```
//!
//! A stop is bounded; whatever it does not get done is done again from the log at the next start.

pub(crate) mod history;
mod listeners;
pub(crate) mod log;
mod metrics;
mod peers;
mod places;
mod platform;
mod retained;
mod snapshot;
mod sources;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use catchment_decode::Decoders;
use catchment_distribute::{DistributeConfig, DistributeMetrics, Distributor, Parts};
use catchment_eventlog::{ConsumerGroup, EventLog};
use catchment_gateway::bridge::BridgeMetrics;
use catchment_gateway::transport::{Protocol, TransportMetrics};
use catchment_gateway::{Admission, Gateway, GatewayMetrics, SessionStore};
use catchment_serve::ServeState;
use catchment_serve::pg::{self, PgMetrics};
use catchment_serve::sql::{RealmTables, SqlConfig, SqlEngine};
use catchment_sim::MqttTarget;
use catchment_store::history::History;
use catchment_store::live::{LiveConfig, LiveHub};
use catchment_store::registry::{NewToken, Registry, RegistryPlace, Role};
use catchment_store::shard::{Shard, ShardConfig};
use catchment_types::DEFAULT_REALM;
use prometheus_client::registry::Registry as MetricsRegistry;
use tokio::runtime::{Handle, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::listeners::Listeners;
use self::platform::RunningPlatform;
use self::retained::Retained;
use self::snapshot::OpenSnapshot;
use crate::admission::{PgAdmission, RegistryAdmission};
use crate::cli::WorldArgs;
use crate::engines::{self, Engine, Seam};
use crate::folder::{self, DataFolder, read_admin_token};
use crate::routes::RegistryRoutes;
use crate::settings::{ProcessRole, Settings};
use crate::{logging, worlds};

/// The name of the token that the first start makes.
const ADMIN: &str = "admin";

/// Runs the platform until it is told to stop; with `demo`, the worlds as well.
///
/// # Errors
/// Something it needs cannot be had. Says what, and what to do.
pub(crate) fn run(settings: Settings, demo: Option<&WorldArgs>) -> anyhow::Result<()> {
    logging::install(settings.log_format, &settings.log_level)?;
    small_pages();
    let runtime = threads("gateway")?;
    let workers = threads("decode")?;
    let result = runtime.block_on(async {
        let mut signals = Signals::new()?;
        let stop_max = settings.stop_max();
        let app = App::start(settings, workers.handle()).await?;
        let worlds_stop = CancellationToken::new();
        let mut running_worlds = demo.map(|args| worlds::start(args, &app.own_mqtt(), &worlds_stop));
        app.announce();
        signals.wait().await;
        tracing::info!("stopping; a second signal stops at once");
        let stop = async {
            worlds_stop.cancel();
            if let Some(running) = &mut running_worlds {
                while running.join_next().await.is_some() {}
            }
            app.stop().await;
        };
        tokio::select! {
            stopped = tokio::time::timeout(stop_max, stop) => match stopped {
                Ok(()) => tracing::info!("stopped"),
                Err(_) => tracing::warn!("not everything was done within {stop_max:?}; the next start reads it from the log"),
            },
            () = signals.wait() => tracing::warn!("stopped at once; the next start reads the rest from the log"),
        }
        anyhow::Ok(())
    });
    // Threads that are still at work must not hold the process: what they do is in the log.
    workers.shutdown_background();
    runtime.shutdown_background();
    result
}

/// Threads for tasks, as many as there are processors, with a name that tells what they are busy with. A block takes milliseconds
/// to decode: what serves sockets does not wait behind that, but has its share of the processors beside it.
fn threads(name: &str) -> std::io::Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    // Tokio's workers first run what was woken last. What arrived first is to be handled first: who has subscribed gets what
    // another client publishes afterwards.
    #[cfg(tokio_unstable)]
    builder.disable_lifo_slot();
    builder.thread_name(name).enable_all().build()
}

/// Keeps the kernel from backing our memory with huge pages: buffers come and go on many threads, and a huge page stays
/// resident for the least of them. Measured at full load: 1.2 GiB resident instead of 3, and a tenth less CPU, which
/// went into clearing them.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn small_pages() {
    // SAFETY: takes five numbers and touches no memory of ours.
    let refused = unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) } != 0;
    if refused {
        tracing::debug!("huge pages cannot be turned off for this process; it may take more memory");
    }
}

#[cfg(not(target_os = "linux"))]
fn small_pages() {}

/// The running platform.
struct App {
    settings: Settings,
    folder: DataFolder,
    engines: Vec<(Seam, Engine)>,
    addresses: Addresses,
    log: Arc<dyn EventLog>,
    gateway: Arc<Gateway>,
    retained: Option<Arc<Retained>>,
    live: Arc<LiveHub>,
    registry: Arc<Registry>,
    group: Arc<dyn ConsumerGroup>,
    snapshot: OpenSnapshot,
    distributor: Option<Distributor>,
    /// Stops accepting.
    closing: CancellationToken,
    /// Stops the background work of history.
    history_stop: CancellationToken,
    servers: JoinSet<()>,
    background: JoinSet<()>,
    history: tokio::task::JoinHandle<()>,
}

/// Where it listens; the ports are real ones even where 0 was asked for.
#[derive(Debug, Clone)]
struct Addresses(Vec<(Protocol, SocketAddr)>);

impl Addresses {
    /// The first listener of a protocol.
    fn find(&self, protocol: Protocol) -> Option<SocketAddr> {
        self.0.iter().find(|(other, _)| *other == protocol).map(|(_, address)| *address)
    }
}

impl App {
    /// The partition workers run on `workers`, everything else on the threads of the caller.
    async fn start(settings: Settings, workers: &Handle) -> anyhow::Result<Self> {
        let started = Instant::now();
        settings.check()?;
        let engines = resolve(&settings)?;
        let folder = DataFolder::open(&settings.data)?;
        let transport_metrics = TransportMetrics::default();
        let listeners = Listeners::bind(&settings, &transport_metrics)?;
        let addresses = Addresses(listeners.addresses().into());
        let anonymous = settings.loopback_only();

        let registry = open_registry(&engines, &settings).await?;
        make_administrator(&registry, &folder).await?;
        let decoders = Arc::new(Decoders::new(registry.rule_set().await?));
        let engine = engine_of(&engines, Seam::Log)?;
        // Whoever keeps offsets with its rows has nobody to share the work with.
        let is_shared = matches!(engine_of(&engines, Seam::History)?, Engine::ClickHouse(_));
        let (log, log_identity, group) = log::open(engine, &settings, is_shared).await?;
        let shards = shards(&settings, log.partitions());
        let of_log = history::Log { identity: &log_identity, group: &group };
        let history = history::open(&engines, &settings, &folder, of_log, &shards).await?;
        let live = LiveHub::new(LiveConfig::default());
        let mut snapshot =
            OpenSnapshot::open(engine_of(&engines, Seam::Snapshot)?, &shards, &log_identity, &live).await?;

        let distribute_metrics = DistributeMetrics::default();
        let parts = Parts {
            log: Arc::clone(&log),
            group: Arc::clone(&group),
            history: Arc::clone(&history),
            follower: snapshot.follower(),
            publish: log::publisher(engine, &settings, log.partitions()).await?,
            shards: shards.to_vec(),
            decoders: Arc::clone(&decoders),
            live: Arc::clone(&live),
            metrics: distribute_metrics.clone(),
        };
        let config = DistributeConfig {
            budget_bytes: settings.row_bytes_max(),
            // Members of a group: gateways of other processes go on writing, and other members take over.
            leaves_to_others: is_shared && matches!(engine, Engine::Kafka(_)),
            ..DistributeConfig::default()
        };
        let distributor = match settings.has_role(ProcessRole::Distributor) {
            true => {
                let _on = workers.enter();
                Some(Distributor::start(parts, config)?)
            }
            false => None,
        };
        match (is_shared, &distributor) {
            // Rows are seen once they are in the engine.
            (true, Some(_)) => snapshot.start(Some(history.subscribe_committed())),
            (false, Some(distributor)) => snapshot.start(Some(distributor.processed())),
            (_, None) => snapshot.start(None::<watch::Receiver<()>>),
        }

        let admission = Arc::new(RegistryAdmission::new(
            Arc::clone(&registry),
            anonymous,
            settings.tls.identity,
            &settings.admission,
        )?);
        let gateway_metrics = GatewayMetrics::default();
        let gateway = Gateway::open(
            settings.gateway.clone(),
            Arc::clone(&log),
            Arc::clone(&admission) as Arc<dyn Admission>,
            gateway_metrics.clone(),
            SessionStore { path: folder.path().join("gateway"), sync: settings.log.sync },
        )
        .await?;
        gateway.recall().await?;
        gateway.keep_routes_in(Arc::new(RegistryRoutes(Arc::clone(&registry)))).await?;
        let tables = RealmTables::new(Arc::clone(&history), snapshot.reader(), Arc::clone(&registry));
        let sql = SqlEngine::new(Arc::new(tables), sql_config(&settings, &folder)?)?
            .with_optimizer_rules(history.optimizer_rules());
        let sql = Arc::new(sql);

        let mut metrics = MetricsRegistry::default();
        gateway_metrics.register(&mut metrics);
        let bridge_metrics = BridgeMetrics::default();
        bridge_metrics.register(&mut metrics);
        transport_metrics.register(&mut metrics);
        distribute_metrics.register(&mut metrics);
        history.register_metrics(&mut metrics);
        snapshot.register_metrics(&mut metrics);
        sql.metrics().register(&mut metrics);
        let pg_metrics = PgMetrics::default();
        pg_metrics.register(&mut metrics);
        metrics.register_collector(Box::new(metrics::RegistryFigures {
            registry: Arc::clone(&registry),
            engine: engine_of(&engines, Seam::Registry)?.name(),
        }));
        metrics.register_collector(Box::new(metrics::LogFigures {
            log: Arc::clone(&log),
            engine: engine.name(),
        }));
        let closing = CancellationToken::new();
        let mut servers = JoinSet::new();
        if settings.has_role(ProcessRole::Gateway) {
            sources::start(&settings, &log, &mut metrics, &closing, &mut servers)?;
        }

        let platform = RunningPlatform::new(
            &engines,
            &addresses,
            &log,
            &history,
            &registry,
            distributor.as_ref(),
            &gateway_metrics,
        )
        .with_snapshot(snapshot.trouble());
        let state = Arc::new(ServeState {
            config: settings.serve.clone(),
            snapshot: snapshot.reader(),
            answers: snapshot.answers(),
            live: Arc::clone(&live),
            registry: Arc::clone(&registry),
            access: Arc::clone(&admission) as Arc<dyn catchment_serve::access::Access>,
            decoders: Arc::clone(&decoders),
            sql: Arc::clone(&sql),
            history: Arc::clone(&history),
            platform: Arc::new(platform),
            metrics: Arc::new(metrics),
            anonymous,
            started,
        });
        let mut router = match settings.has_role(ProcessRole::Api) {
            true => catchment_serve::router(state, Gateway::openapi()),
            false => catchment_serve::operations(state),
        };
        if settings.has_role(ProcessRole::Gateway) {
            router = router.merge(gateway.router());
        }

        let bridges = settings.all_bridges();
        let has_bridges = !bridges.is_empty() || folder::read_instance(folder.path())?.is_some();
        if has_bridges && settings.has_role(ProcessRole::Gateway) {
            let instance = folder.instance()?;
            gateway.start_bridges(&bridges, &instance, &bridge_metrics, &closing, &mut servers).await?;
        }
        // A gateway alone opens no snapshot, but has others beside it.
        let mut retained = None;
        if settings.has_role(ProcessRole::Gateway)
            && let Engine::Redis(target) =
                engines::resolve(Seam::Snapshot, &settings.engines, &settings.data)?
        {
            retained = Some(peers::start(&gateway, &target, &closing, &mut servers).await?);
        }
        let history_stop = CancellationToken::new();
        let mut background = JoinSet::new();
        background.spawn(release(Arc::clone(&log), Arc::clone(&history)));
        background.spawn(Arc::clone(&registry).follow());
        background.spawn(apply_rules(Arc::clone(&registry), Arc::clone(&decoders), Arc::clone(&gateway)));
        let history_task = tokio::spawn(history.run(history_stop.clone()));
        let pg_tls = listeners.pg_tls();
        let pg_listener = listeners.serve(&mut servers, &gateway, &router, &closing);
        if let Some(listener) = pg_listener {
            let (config, stop) = (settings.postgres.clone(), closing.clone());
            let access = Arc::new(PgAdmission(admission));
            servers.spawn(async move {
                let stopped = stop.cancelled_owned();
                ended(
                    "PostgreSQL",
                    pg::serve(listener, sql, access, config, pg_metrics, pg_tls, stopped).await,
                );
            });
        }
        Ok(Self {
            settings,
            folder,
            engines,
            addresses,
            log,
            gateway,
            retained,
            live,
            registry,
            group,
            snapshot,
            distributor,
            closing,
            history_stop,
            servers,
            background,
            history: history_task,
        })
    }

    /// The MQTT listener as worlds of this process reach it.
    fn own_mqtt(&self) -> MqttTarget {
        let mut address = self.addresses.find(Protocol::Mqtt).unwrap_or(self.settings.mqtt);
        if address.ip().is_unspecified() {
            address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
        }
        let token = (!self.settings.loopback_only()).then(|| read_admin_token(self.folder.path()).ok());
        let credentials = token.flatten().map(|token| (ADMIN.to_owned(), token));
        MqttTarget { credentials, ..MqttTarget::new(address.ip().to_string(), address.port()) }
    }

    /// Tells where everything is, and that it is ready.
    fn announce(&self) {
        println!("catchment {}", env!("CARGO_PKG_VERSION"));
        let mut lines = Vec::new();
        for (protocol, address) in &self.addresses.0 {
            match protocol {
                Protocol::Http | Protocol::Https => {
                    let (http, ws) = if protocol.is_tls() { ("https", "wss") } else { ("http", "ws") };
                    let base = format!("{http}://{address}");
                    if self.settings.has_role(ProcessRole::Api) {
                        lines.extend([
                            ("status page", format!("{base}/")),
                            ("REST", format!("{base}/api/v1/  (OpenAPI: {base}/api/v1/openapi.json)")),
                            ("live", format!("{ws}://{address}/api/v1/live")),
                        ]);
                    }
                    lines.push(("metrics", format!("{base}/metrics")));
                    if self.settings.has_role(ProcessRole::Gateway) {
                        lines.push(("MQTT", format!("{ws}://{address}/mqtt")));
                    }
                }
                Protocol::Mqtt | Protocol::Mqtts => {
                    lines.push(("MQTT", format!("{}://{address}", protocol.name())))
                }
                Protocol::Pg => lines.push(("PostgreSQL", format!("postgresql://admin@{address}/main"))),
            }
        }
        if self.settings.has_role(ProcessRole::Gateway) {
            let bridges = self.settings.all_bridges();
            lines
                .extend(bridges.iter().map(|bridge| ("bridge", format!("{} ({})", bridge.url, bridge.name))));
            lines.extend(self.settings.kafka_sources().map(|source| ("source", source.to_string())));
        }
        if self.settings.is_split() {
            let roles = self.settings.roles.iter().map(|role| role.name()).collect::<Vec<_>>().join(", ");
            lines.insert(0, ("roles", roles));
        }
        lines.push(("data", self.folder.path().display().to_string()));
        let seams = self.engines.iter().filter(|(_, engine)| *engine != Engine::Off);
        lines.extend(seams.map(|(seam, engine)| (seam.name(), engine.to_string())));
        let access = match self.settings.loopback_only() {
            true => "from this machine, without a token too",
            false => {
                "only with a token or a client certificate: not every listener is on loopback, so anonymous access is off"
            }
        };
        lines.push(("access", access.to_owned()));
        for (name, value) in lines {
            println!("  {name:<12} {value}");
        }
        println!("ready");
    }

    async fn stop(mut self) {
        self.closing.cancel();
        // Subscribers' connections would otherwise stay open until their readers leave.
        self.live.close();
        while self.servers.join_next().await.is_some() {}
        self.gateway.close().await;
        if let Some(retained) = self.retained {
            retained.close().await;
        }
        self.log.close().await;
        if let Some(distributor) = self.distributor {
            distributor.shutdown().await;
        }
        self.snapshot.close().await;
        self.history_stop.cancel();
        if let Err(error) = self.history.await {
            tracing::error!(%error, "history ended badly; its rows are in the log");
        }
        // Only now: others begin where we have left off.
        self.group.close().await;
        self.background.shutdown().await;
        self.registry.close().await;
    }
}

/// The engines of this process: a gateway that does nothing else works while those behind the log are away.
fn resolve(settings: &Settings) -> anyhow::Result<Vec<(Seam, Engine)>> {
    let only_takes_in = !settings.has_role(ProcessRole::Distributor) && !settings.has_role(ProcessRole::Api);
    let is_behind = |seam| matches!(seam, Seam::History | Seam::Snapshot | Seam::Archive);
    let resolve = |seam| match only_takes_in && is_behind(seam) {
        true => Ok((seam, Engine::Off)),
        false => Ok((seam, engines::resolve(seam, &settings.engines, &settings.data)?)),
    };
    Seam::ALL.into_iter().map(resolve).collect()
}

fn engine_of(engines: &[(Seam, Engine)], seam: Seam) -> anyhow::Result<&Engine> {
    let found = engines.iter().find(|(other, _)| *other == seam).map(|(_, engine)| engine);
    found.with_context(|| format!("no engine was chosen for {}", seam.name()))
}

/// The path of an engine that has one.
fn path_of(engines: &[(Seam, Engine)], seam: Seam) -> anyhow::Result<PathBuf> {
    match engine_of(engines, seam)? {
        Engine::Embedded(path) => Ok(path.clone()),
        _ => bail!("the engine {} has no folder", seam.name()),
    }
}

async fn open_registry(engines: &[(Seam, Engine)], settings: &Settings) -> anyhow::Result<Arc<Registry>> {
    let place = match engines.iter().find(|(seam, _)| *seam == Seam::Registry) {
        Some((_, Engine::Postgres(url))) => RegistryPlace::Postgres(url.clone()),
        _ => RegistryPlace::File(path_of(engines, Seam::Registry)?),
    };
    Ok(Arc::new(Registry::open_at(place, settings.admission.passwords.clone()).await?))
}

/// Brings decoders and routes into force that other processes have changed.
async fn apply_rules(registry: Arc<Registry>, decoders: Arc<Decoders>, gateway: Arc<Gateway>) {
    if !registry.is_shared() {
        return;
    }
    let mut changes = registry.subscribe();
    // Something may have changed since they were read for the start.
    changes.mark_changed();
    while changes.changed().await.is_ok() {
        if let Err(error) = registry.apply_decoders(&decoders).await {
            tracing::error!(%error, "changed decoders are not in force; those before stay");
        }
        if let Err(error) = gateway.reread_routes().await {
            tracing::error!(%error, "changed routes are not in force; those before stay");
        }
    }
}

/// Makes the administrator's token at the first start, and puts it back into its file if that has gone.
async fn make_administrator(registry: &Registry, folder: &DataFolder) -> anyhow::Result<()> {
    let tokens = registry.tokens().await?;
    if read_admin_token(folder.path()).is_ok()
        && tokens.iter().any(|token| token.role == Role::Admin && token.realm == DEFAULT_REALM)
    {
        return Ok(());
    }
    if registry.is_shared()
        && tokens.iter().any(|token| token.role == Role::Admin && token.realm == DEFAULT_REALM)
    {
        tracing::info!(
            "the registry has an administrator's token already; the process that made it has it in its data folder"
        );
        return Ok(());
    }
    let new = NewToken { realm: DEFAULT_REALM, name: ADMIN, role: Role::Admin, device_id: None };
    let (_, token) = registry.create_token(new).await?;
    let path = folder.write_admin_token(&token)?;
    // The secret of a token cannot be told again: who lost the file has a new one now, and the old one ends.
    for lost in tokens
        .iter()
        .filter(|token| token.role == Role::Admin && token.name == ADMIN && token.realm == DEFAULT_REALM)
    {
        registry.delete_token(&lost.id).await?;
    }
    println!("the administrator's token, shown this once and kept in {}:\n  {token}\n", path.display());
    Ok(())
}

fn shards(settings: &Settings, partitions: u32) -> Arc<[Arc<Shard>]> {
    let config =
        ShardConfig { snapshot_bytes_max: settings.snapshot_bytes_max(partitions), ..ShardConfig::default() };
    (0..partitions).map(|partition| Shard::with_config(partition, config)).collect()
}

/// Queries spill into the data folder unless told otherwise: the temporary folder is often memory.
fn sql_config(settings: &Settings, folder: &DataFolder) -> anyhow::Result<SqlConfig> {
    let mut config = settings.serve.sql.clone();
    if config.spill_dir.is_none() {
        let spill = folder.path().join("spill");
        // What a process that was killed has left is of no use to anybody.
        let _ = std::fs::remove_dir_all(&spill);
        std::fs::create_dir_all(&spill).with_context(|| format!("{} cannot be made", spill.display()))?;
        config.spill_dir = Some(spill);
    }
    Ok(config)
}

/// Lets the log drop what history has committed, whenever it has.
async fn release(log: Arc<dyn EventLog>, history: Arc<dyn History>) {
    let mut committed = history.subscribe_committed();
    drop(history);
    loop {
        let offsets = committed.borrow_and_update().clone();
        for (partition, offset) in (0..).zip(offsets) {
            log.release(partition, offset);
        }
        if committed.changed().await.is_err() {
            return;
        }
    }
}

fn ended<E: std::fmt::Display>(name: &str, result: Result<(), E>) {
    if let Err(error) = result {
        tracing::error!(%error, "the {name} listener has ended");
    }
}

/// Ctrl-C and SIGTERM.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
