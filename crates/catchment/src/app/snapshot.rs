//! Opens the engine of the snapshot, and runs what belongs to it: with Redis the writer of latest values, the relay of live
//! readings between processes, and the cache of answers.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use async_trait::async_trait;
use catchment_distribute::Follower;
use catchment_store::answers::Answers;
use catchment_store::live::LiveHub;
use catchment_store::redis::{
    LiveRelay, RedisClient, RedisMetrics, RedisSnapshot, RedisTarget, ResultCache, SnapshotWriter,
};
use catchment_store::shard::Shard;
use catchment_store::snapshot::{ShardSnapshot, Snapshot};
use catchment_types::PartitionId;
use prometheus_client::registry::Registry as MetricsRegistry;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::engines::Engine;

/// Between two attempts to tell of a commit.
const RETRY: Duration = Duration::from_millis(100);

/// The snapshot of this process.
pub(super) struct OpenSnapshot {
    shards: Arc<[Arc<Shard>]>,
    /// Which log the shards' offsets are of.
    log: String,
    reader: Arc<dyn Snapshot>,
    redis: Option<Redis>,
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

/// What there is with Redis.
struct Redis {
    metrics: RedisMetrics,
    snapshot: RedisSnapshot,
    writer: Arc<SnapshotWriter>,
    relay: Arc<LiveRelay>,
    cache: Option<ResultCache>,
}

impl OpenSnapshot {
    /// Opens the engine over this process's shards, in the order of their partitions.
    ///
    /// # Errors
    /// Redis does not let us in. One that does not answer now is waited for, while the rest works.
    pub(super) async fn open(
        engine: &Engine,
        shards: &Arc<[Arc<Shard>]>,
        log: &str,
        live: &Arc<LiveHub>,
    ) -> anyhow::Result<Self> {
        let redis = match engine {
            Engine::Memory | Engine::Off => None,
            Engine::Redis(target) => Some(Redis::open(target, log, live).await?),
            other => bail!("{other} is no engine of the snapshot"),
        };
        let reader: Arc<dyn Snapshot> = match &redis {
            Some(redis) => Arc::new(redis.snapshot.clone()),
            None => Arc::new(ShardSnapshot::new(Arc::clone(shards))),
        };
        Ok(Self {
            shards: Arc::clone(shards),
            log: log.to_owned(),
            reader,
            redis,
            tasks: JoinSet::new(),
            stop: CancellationToken::new(),
        })
    }

    /// Where latest values are read.
    pub(super) fn reader(&self) -> Arc<dyn Snapshot> {
        Arc::clone(&self.reader)
    }

    /// Answers that are kept.
    pub(super) fn answers(&self) -> Option<Arc<dyn Answers>> {
        let cache = self.redis.as_ref()?.cache.clone()?;
        Some(Arc::new(cache))
    }

    /// Who is to be told which partitions are ours.
    pub(super) fn follower(&self) -> Option<Arc<dyn Follower>> {
        let redis = self.redis.as_ref()?;
        Some(Arc::new(Owner {
            shards: Arc::clone(&self.shards),
            log: self.log.clone(),
            snapshot: redis.snapshot.clone(),
            writer: Arc::clone(&redis.writer),
        }))
    }

    /// Begins to work: writes, relays, and forgets answers whenever `visible` changes, that is when queries see new rows.
    pub(super) fn start<T: Send + Sync + 'static>(&mut self, visible: Option<watch::Receiver<T>>) {
        let Some(redis) = &self.redis else { return };
        self.tasks.spawn(Arc::clone(&redis.writer).run(self.stop.clone()));
        self.tasks.spawn(Arc::clone(&redis.relay).run(self.stop.clone()));
        if let (Some(cache), Some(visible)) = (redis.cache.clone(), visible) {
            let stop = self.stop.clone();
            self.tasks.spawn(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = forget_answers(cache, visible) => {}
                }
            });
        }
    }

    /// Gives the figures names.
    pub(super) fn register_metrics(&self, registry: &mut MetricsRegistry) {
        if let Some(redis) = &self.redis {
            redis.metrics.register(registry);
        }
    }

    /// What keeps the engine from its work, if anything does.
    pub(super) fn trouble(&self) -> Trouble {
        Trouble(self.redis.as_ref().map(|redis| Arc::clone(&redis.writer)))
    }

    /// Writes what is left, for a bounded time, and ends; when the workers have.
    pub(super) async fn close(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a part of the snapshot ended badly");
            }
        }
    }
}

/// Keeps Redis up to date with the shards of the partitions that are ours.
struct Owner {
    shards: Arc<[Arc<Shard>]>,
    log: String,
    snapshot: RedisSnapshot,
    writer: Arc<SnapshotWriter>,
}

#[async_trait]
impl Follower for Owner {
    async fn taken_over(&self, partition: PartitionId) {
        let Some(shard) = self.shards.get(partition as usize) else { return };
        // What history had not been given yet, another process may have written there.
        match self.snapshot.restore(self.shards.len() as u32, std::slice::from_ref(shard), &self.log).await {
            Ok(values) => tracing::info!(partition, values, "latest values were read from Redis"),
            Err(error) => {
                tracing::warn!(partition, %error, "latest values are not read from Redis; history and log have them");
            }
        }
        self.writer.take_over(partition, shard).await;
    }

    async fn released(&self, partition: PartitionId) {
        self.writer.release(partition);
    }
}

/// Tells what keeps the engine from its work.
pub(super) struct Trouble(Option<Arc<SnapshotWriter>>);

impl Trouble {
    pub(super) fn tell(&self) -> Option<String> {
        self.0.as_ref()?.trouble()
    }
}

impl Redis {
    async fn open(target: &RedisTarget, log: &str, live: &Arc<LiveHub>) -> anyhow::Result<Self> {
        let client = RedisClient::new(target)?;
        match client.ping().await {
            Ok(()) => {}
            Err(error) if error.is_refusal() => {
                return Err(error).context("--snapshot: Redis does not let us in");
            }
            Err(error) => {
                tracing::warn!(%error, "Redis does not answer; latest values cannot be read until it does");
            }
        }
        let metrics = RedisMetrics::default();
        Ok(Self {
            snapshot: RedisSnapshot::new(client.clone()),
            writer: SnapshotWriter::new(client.clone(), metrics.clone(), log),
            relay: LiveRelay::new(client.clone(), Arc::clone(live), metrics.clone()),
            cache: ResultCache::new(client, metrics.clone()),
            metrics,
        })
    }
}

/// Tells the cache whenever queries see new rows; one that cannot be told is told again.
async fn forget_answers<T>(cache: ResultCache, mut visible: watch::Receiver<T>) {
    while visible.changed().await.is_ok() {
        while let Err(error) = cache.committed().await {
            tracing::debug!(%error, "the cache of answers was not told of new rows; trying again");
            tokio::time::sleep(RETRY).await;
        }
    }
}
