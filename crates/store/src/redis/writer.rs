//! Brings the latest values of this process's partitions to Redis.
//!
//! The truth is in the shards. A worker only leaves marks there; one task takes the marks together after a short wait,
//! writes the devices in pipelines, and marks again what did not go through. So workers never wait; whatever Redis misses while
//! it is away costs a mark a device; and what is written afterwards is the newest.
//!
//! *Two owners*: a partition that moves may for a moment have two. Each take-over has an epoch that is later than all before
//! ([`epoch.lua`](epoch.lua)); each device is written by a script ([`write.lua`](write.lua)) that refuses older epochs and keeps
//! newer values.
//!
//! *A restart or a wipe*: every second the server is asked for its run id, and for a key that this process left there. If the
//! one is new or the other is gone, all devices are marked.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ::redis::{Cmd, Script};
use catchment_types::{DEFAULT_REALM, PartitionId, Timestamp};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::client::{RedisClient, RedisFailure};
use super::layout::{field_of, text_of};
use super::metrics::RedisMetrics;
use super::probe::{info_value, run_id};
use crate::shard::{DeviceState, MetricState, Shard};

const WRITE_SCRIPT: &str = include_str!("write.lua");
const EPOCH_SCRIPT: &str = include_str!("epoch.lua");
/// Devices of one pipeline. With a round trip of a millisecond that is still more than Redis gets done.
const DEVICES_MAX: usize = 256;
/// Metrics of one call of the script: what Lua takes as arguments is bounded.
const METRICS_MAX: usize = 500;
/// Between two looks whether Redis is still what it was.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How long the mark of this process stays in Redis when the process is gone.
const MARK_S: u64 = 3_600;
/// Between two attempts while Redis fails.
const RETRY: Duration = Duration::from_millis(250);
/// How long a take-over waits for an epoch from Redis before the process's own clock has to do.
const EPOCH_MAX: Duration = Duration::from_secs(2);
/// How long a stop goes on writing what is marked.
const CLOSE_MAX: Duration = Duration::from_secs(2);

/// A partition that this process owns.
#[derive(Clone)]
struct Owned {
    partition: PartitionId,
    shard: Arc<Shard>,
    epoch: u64,
}

/// Since when writing fails, and why.
#[derive(Debug, Clone)]
struct Failing {
    since: Timestamp,
    message: String,
}

/// Writes the snapshot of this process's partitions.
pub struct SnapshotWriter {
    client: RedisClient,
    metrics: RedisMetrics,
    interval: Duration,
    script: Script,
    /// Which log offsets are of.
    log: String,
    owned: Mutex<Vec<Owned>>,
    /// The last epoch, for when Redis does not give one.
    epoch: AtomicU64,
    wake: Arc<Notify>,
    failing: Mutex<Option<Failing>>,
}

impl std::fmt::Debug for SnapshotWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotWriter").field("client", &self.client).finish_non_exhaustive()
    }
}

impl SnapshotWriter {
    /// A writer without partitions. `log` tells the log from all others: offsets of one mean nothing in another.
    #[must_use]
    pub fn new(client: RedisClient, metrics: RedisMetrics, log: &str) -> Arc<Self> {
        let interval = Duration::from_millis(client.target.config.write_interval_ms);
        Arc::new(Self {
            client,
            metrics,
            interval,
            script: Script::new(WRITE_SCRIPT),
            log: log.to_owned(),
            owned: Mutex::default(),
            epoch: AtomicU64::new(0),
            wake: Arc::default(),
            failing: Mutex::default(),
        })
    }

    /// Takes a partition over, whose shard knows what history, and Redis ([`RedisSnapshot::restore`](super::RedisSnapshot::restore)),
    /// know; before its worker starts. All its devices are written. Waits a bounded time for Redis.
    pub async fn take_over(&self, partition: PartitionId, shard: &Arc<Shard>) {
        let epoch = self.next_epoch().await;
        let owned = Owned { partition, shard: Arc::clone(shard), epoch };
        {
            let mut all = self.owned.lock();
            all.retain(|other| other.partition != partition);
            all.push(owned);
        }
        shard.follow_changes(Arc::clone(&self.wake));
    }

    /// Gives a partition up, whose worker has stopped. What is marked there is left to the next owner, who has it from the log.
    pub fn release(&self, partition: PartitionId) {
        let mut all = self.owned.lock();
        all.retain(|owned| {
            if owned.partition == partition {
                owned.shard.unfollow_changes();
            }
            owned.partition != partition
        });
    }

    /// Why latest values are not written, if they are not.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        let failing = self.failing.lock().clone();
        failing.map(|Failing { since, message }| {
            format!("latest values are not written to Redis since {since}: {message}")
        })
    }

    /// Works until `stop`, then writes what is marked, for a bounded time.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut look = tokio::time::interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut server = Server::default();
        let mut behind_since = None;
        loop {
            let looked = tokio::select! {
                () = stop.cancelled() => break,
                _ = look.tick() => self.look(&mut server).await,
                () = self.wake.notified() => {
                    behind_since.get_or_insert_with(Instant::now);
                    tokio::time::sleep(self.interval).await;
                    Ok(())
                }
            };
            let written = match looked {
                Ok(()) => self.write_marked().await,
                Err(error) => Err(error),
            };
            let pending = self.pending();
            if pending == 0 {
                behind_since = None;
            } else {
                behind_since.get_or_insert_with(Instant::now);
            }
            self.show(pending, behind_since);
            let failed = written.is_err();
            self.tell(written);
            if failed {
                // Marks stay; the next look or block goes on.
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = tokio::time::sleep(RETRY) => {}
                }
            }
        }
        if tokio::time::timeout(CLOSE_MAX, self.write_marked()).await.is_err() {
            tracing::warn!("not all latest values were written to Redis in time; the next start writes them");
        }
        // Not to be mistaken for a wipe by anybody; if Redis is away, it expires.
        let _ =
            tokio::time::timeout(RETRY, self.client.ask::<()>(::redis::cmd("DEL").arg(self.mark()))).await;
    }

    fn pending(&self) -> usize {
        self.owned().iter().map(|owned| owned.shard.changed_devices()).sum()
    }

    fn owned(&self) -> Vec<Owned> {
        self.owned.lock().clone()
    }

    fn show(&self, pending: usize, behind_since: Option<Instant>) {
        self.metrics.pending_devices.set(i64::try_from(pending).unwrap_or(i64::MAX));
        self.metrics.lag_seconds.set(behind_since.map_or(0.0, |since| since.elapsed().as_secs_f64()));
    }

    /// Notes whether Redis does what it should.
    fn tell(&self, result: Result<(), RedisFailure>) {
        let mut failing = self.failing.lock();
        match result {
            Ok(()) => {
                if let Some(before) = failing.take() {
                    tracing::info!(redis = self.client.place(), since = %before.since, "Redis takes latest values again");
                }
                self.metrics.up.set(1);
            }
            Err(error) => {
                self.metrics.failures.inc();
                self.metrics.up.set(0);
                let message = error.to_string();
                match &mut *failing {
                    Some(failing) => failing.message = message,
                    None => {
                        tracing::warn!(%error, "latest values are not written to Redis; they are kept here until it takes them");
                        *failing = Some(Failing { since: Timestamp::now(), message });
                    }
                }
            }
        }
    }

    /// The epoch of a take-over.
    async fn next_epoch(&self) -> u64 {
        let mut ask = ::redis::cmd("EVAL");
        ask.arg(EPOCH_SCRIPT).arg(1).arg(self.client.keys.of("epoch"));
        let asked = tokio::time::timeout(EPOCH_MAX, self.client.ask::<String>(&ask)).await;
        let given = match asked {
            Ok(Ok(text)) => text.parse().ok(),
            Ok(Err(error)) => {
                tracing::warn!(%error, "Redis gives no epoch; this process's clock has to do");
                None
            }
            Err(_) => None,
        };
        let own = u64::try_from(Timestamp::now().as_micros()).unwrap_or_default();
        let epoch = given.unwrap_or_else(|| own.max(self.epoch.load(Ordering::Relaxed) + 1));
        self.epoch.fetch_max(epoch, Ordering::Relaxed);
        epoch
    }

    fn mark(&self) -> String {
        self.client.keys.of(&format!("writer:{}", self.client.process))
    }

    /// Looks whether Redis has what was written; marks everything if not.
    async fn look(&self, server: &mut Server) -> Result<(), RedisFailure> {
        let mark = self.mark();
        let mut ask = ::redis::pipe();
        ask.cmd("INFO").arg("server");
        ask.cmd("EXPIRE").arg(&mark).arg(MARK_S);
        let (info, is_marked): (String, bool) = self.client.ask_all(&ask).await?;
        let run_id = run_id(&info);
        let is_new = server.run_id.replace(run_id.to_owned()).is_some_and(|before| before != run_id);
        if is_marked && !is_new {
            return Ok(());
        }
        let mut say = ::redis::pipe();
        say.cmd("SET").arg(&mark).arg(Timestamp::now().to_string()).arg("EX").arg(MARK_S).ignore();
        say.cmd("SET").arg(self.client.keys.of("log")).arg(&self.log).ignore();
        self.client.ask_all::<()>(&say).await?;
        if std::mem::replace(&mut server.was_marked, true) {
            let version = info_value(&info, "redis_version").unwrap_or("of an unknown version");
            tracing::warn!(
                redis = self.client.place(),
                version,
                "Redis was restarted or emptied; all latest values are written anew"
            );
            self.metrics.rebuilds.inc();
            self.owned().iter().for_each(|owned| owned.shard.all_changed());
        }
        Ok(())
    }

    /// Writes what is marked, a pipeline of each partition in turn, until nothing is.
    async fn write_marked(&self) -> Result<(), RedisFailure> {
        loop {
            let mut wrote = false;
            for owned in self.owned() {
                let changes = owned.shard.take_changes(DEVICES_MAX);
                if changes.is_empty() {
                    continue;
                }
                wrote = true;
                match self.write(owned.epoch, &changes).await {
                    Ok(refused) => {
                        self.metrics.written_devices.inc_by((changes.len() - refused) as u64);
                        if refused > 0 {
                            self.metrics.refused_devices.inc_by(refused as u64);
                            tracing::info!(
                                partition = owned.partition,
                                devices = refused,
                                "latest values are another process's to write now"
                            );
                        }
                    }
                    Err(error) => {
                        owned.shard.changed_again(&changes);
                        return Err(error);
                    }
                }
            }
            if !wrote {
                return Ok(());
            }
        }
    }

    /// Writes devices; returns how many were refused.
    async fn write(&self, epoch: u64, changes: &[DeviceState]) -> Result<usize, RedisFailure> {
        let mut pipeline = ::redis::pipe();
        // The first call brings the script along: whether the server knows it, or forgot it, does not matter.
        let mut is_first = true;
        for device in changes {
            let key = self.client.keys.snapshot(DEFAULT_REALM, &device.device_id);
            let mut chunks = device.metrics.chunks(METRICS_MAX);
            let mut next = chunks.next().or(Some(&[]));
            while let Some(metrics) = next {
                let mut call = match std::mem::take(&mut is_first) {
                    true => ::redis::cmd("EVAL").arg(WRITE_SCRIPT).take(),
                    false => ::redis::cmd("EVALSHA").arg(self.script.get_hash()).take(),
                };
                self.arguments(&mut call, epoch, &key, device, metrics);
                pipeline.add_command(call);
                next = chunks.next();
            }
        }
        let written: Vec<i64> = self.client.ask_all(&pipeline).await?;
        Ok(written.iter().filter(|&&written| written == 0).count().min(changes.len()))
    }

    fn arguments(
        &self,
        call: &mut Cmd,
        epoch: u64,
        key: &str,
        device: &DeviceState,
        metrics: &[MetricState],
    ) {
        let keys = &self.client.keys;
        call.arg(3).arg(key).arg(keys.devices(DEFAULT_REALM)).arg(keys.metrics(DEFAULT_REALM));
        call.arg(epoch).arg(&*device.device_id);
        call.arg(device.first_seen.as_micros()).arg(device.last_seen.as_micros());
        call.arg(device.events).arg(device.counted_to);
        for metric in metrics {
            call.arg(field_of(&metric.metric)).arg(metric.timestamp.as_micros());
            call.arg(metric.offset).arg(text_of(metric));
        }
    }
}

/// What is known of the server.
#[derive(Default)]
struct Server {
    run_id: Option<String>,
    /// Whether this process left its mark there once.
    was_marked: bool,
}
