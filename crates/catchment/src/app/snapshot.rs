//! Opens the engine of the snapshot, and runs what belongs to it: with Redis the writer of latest values, the relay of live
//! readings between processes, and the cache of answers.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use catchment_store::answers::Answers;
use catchment_store::live::LiveHub;
use catchment_store::redis::{
    LiveRelay, RedisClient, RedisMetrics, RedisSnapshot, RedisTarget, ResultCache, SnapshotWriter,
};
use catchment_store::shard::Shard;
use catchment_store::snapshot::{ShardSnapshot, Snapshot};
use catchment_types::{Offset, PartitionId};
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
    /// Opens the engine over this process's shards, in the order of their partitions. To be called before [`Self::take_over`].
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
            Engine::Memory => None,
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

    /// Takes partitions over whose shards history has filled, before their workers start.
    pub(super) async fn take_over(&self, partitions: &[PartitionId]) {
        let Some(redis) = &self.redis else { return };
        let shards: Vec<_> =
            partitions.iter().filter_map(|&at| self.shards.get(at as usize)).map(Arc::clone).collect();
        match redis.snapshot.restore(self.shards.len() as u32, &shards, &self.log).await {
            Ok(values) => tracing::info!(values, "latest values were read from Redis"),
            Err(error) => {
                tracing::warn!(%error, "latest values are not read from Redis; history and log have them");
            }
        }
        for shard in &shards {
            redis.writer.take_over(shard.partition(), shard).await;
        }
    }

    /// Begins to work: writes, relays, and forgets answers whenever `visible` changes, that is when queries see new rows.
    pub(super) fn start(&mut self, visible: watch::Receiver<Vec<Offset>>) {
        let Some(redis) = &self.redis else { return };
        self.tasks.spawn(Arc::clone(&redis.writer).run(self.stop.clone()));
        self.tasks.spawn(Arc::clone(&redis.relay).run(self.stop.clone()));
        if let Some(cache) = redis.cache.clone() {
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
async fn forget_answers(cache: ResultCache, mut visible: watch::Receiver<Vec<Offset>>) {
    while visible.changed().await.is_ok() {
        while let Err(error) = cache.committed().await {
            tracing::debug!(%error, "the cache of answers was not told of new rows; trying again");
            tokio::time::sleep(RETRY).await;
        }
    }
}
