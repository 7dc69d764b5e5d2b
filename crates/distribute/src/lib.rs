//! Partition workers: read the log, decode, fan out.
//!
//! One task for each partition reads blocks from the log in order, hands them to the partition's [`Shard`] (latest
//! values, rollups, rows for history) and publishes what live subscribers want. It keeps no state of its own: after a
//! restart it begins where history's committed offsets say, and the shard's tables skip what they already have.
//!
//! *Back-pressure*: while the rows that history has not written yet are over the budget, workers wait; the log then grows
//! on disk, and nothing is lost. The budget has to be well above the size at which history flushes.

mod metrics;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use catchment_decode::Decoders;
use catchment_eventlog::EventLog;
use catchment_store::live::LiveHub;
use catchment_store::shard::Shard;
use catchment_types::{Offset, PartitionId};
use thiserror::Error;
use tokio::sync::watch;
use tokio::task::JoinSet;

use self::worker::{Shared, Worker};

pub use self::metrics::DistributeMetrics;

/// Bounds of the workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DistributeConfig {
    /// Most memory of rows that are not in files yet, over all partitions, in bytes; above it the workers wait.
    pub budget_bytes: usize,
    /// About how much is read from the log at once, in bytes.
    pub read_bytes_max: usize,
    /// How long a shutdown goes on reading what is in the log already. What is left then is read after the next start.
    pub drain_max: Duration,
}

impl Default for DistributeConfig {
    fn default() -> Self {
        Self {
            budget_bytes: 512 * 1024 * 1024,
            read_bytes_max: 1024 * 1024,
            drain_max: Duration::from_secs(10),
        }
    }
}

/// What the workers read from and write to.
pub struct Parts {
    /// Where events come from.
    pub log: Arc<dyn EventLog>,
    /// One for each partition of the log, in order.
    pub shards: Vec<Arc<Shard>>,
    /// From where each partition is read: the least offset that any of the shard's tables still needs.
    pub start_offsets: Vec<Offset>,
    /// The rules to decode by; changes are taken up between blocks.
    pub decoders: Arc<Decoders>,
    /// Who follows.
    pub live: Arc<LiveHub>,
    /// Where the workers count.
    pub metrics: DistributeMetrics,
}

/// Why the workers cannot start.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum StartError {
    /// Log and shards do not belong together.
    #[error(
        "the log has {partitions} partitions, but there are {shards} shards and {start_offsets} start offsets"
    )]
    Partitions {
        /// Of the log.
        partitions: u32,
        /// Of the store.
        shards: usize,
        /// Of history.
        start_offsets: usize,
    },
    /// History is ahead of the log: new events would get offsets that history takes for known, and be left out.
    #[error(
        "partition {partition} of the log ends at offset {end}, but history has committed everything below {start}: \
         the log was emptied or replaced; put the log's folder back, or move the history's folder away"
    )]
    LogBehind {
        /// Which partition.
        partition: PartitionId,
        /// Where history wants to go on.
        start: Offset,
        /// Where the log ends.
        end: Offset,
    },
}

/// The workers of all partitions.
#[derive(Debug)]
pub struct Distributor {
    workers: JoinSet<()>,
    stop: watch::Sender<bool>,
    processed: watch::Receiver<Vec<Offset>>,
    drain_max: Duration,
}

impl Distributor {
    /// Starts one task for each partition; to be called inside a Tokio runtime.
    ///
    /// # Errors
    /// When the parts do not belong together.
    pub fn start(parts: Parts, config: DistributeConfig) -> Result<Self, StartError> {
        let Parts { log, shards, start_offsets, decoders, live, metrics } = parts;
        let partitions = log.partitions();
        if shards.len() != partitions as usize || start_offsets.len() != shards.len() {
            let start_offsets = start_offsets.len();
            return Err(StartError::Partitions { partitions, shards: shards.len(), start_offsets });
        }
        for (partition, &start) in (0..).zip(&start_offsets) {
            let end = log.range(partition).end;
            if start > end {
                return Err(StartError::LogBehind { partition, start, end });
            }
        }
        let (processed_sender, processed) = watch::channel(start_offsets.clone());
        let (stop, stopped) = watch::channel(false);
        let shared =
            Arc::new(Shared { log, shards, decoders, live, metrics, config, processed: processed_sender });
        let mut workers = JoinSet::new();
        for (partition, start) in (0..).zip(start_offsets) {
            workers.spawn(Worker::new(Arc::clone(&shared), partition, start).run(stopped.clone()));
        }
        Ok(Self { workers, stop, processed, drain_max: config.drain_max })
    }

    /// The offset up to which each partition is in its shard: decoded, in the latest values, in the rows that queries see.
    #[must_use]
    pub fn processed(&self) -> watch::Receiver<Vec<Offset>> {
        self.processed.clone()
    }

    /// Reads what is in the log already, then stops; at most for [`DistributeConfig::drain_max`]. Returns where each
    /// partition stands.
    pub async fn shutdown(mut self) -> Vec<Offset> {
        self.stop.send_replace(true);
        let drained = tokio::time::timeout(self.drain_max, async {
            while let Some(ended) = self.workers.join_next().await {
                if let Err(error) = ended {
                    tracing::error!(%error, "a partition worker ended badly");
                }
            }
        });
        if drained.await.is_err() {
            tracing::warn!("the log was not read to its end in time; the rest is read after the next start");
            self.workers.shutdown().await;
        }
        self.processed.borrow().clone()
    }
}
