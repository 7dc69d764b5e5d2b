//! Partition workers: read the log, decode, fan out.
//!
//! For each partition that the consumer group gives to this process, one task takes it over from history, reads its blocks in
//! order, hands them to the partition's [`Shard`] (latest values, rollups, rows for history) and publishes what live
//! subscribers want. It keeps no state of its own: it begins where history says, and the shard's tables skip
//! what they already have. When the group takes the partition away, the task stops, lets history bring in what it has, and
//! says so to the group.
//!
//! *Back-pressure*: while the rows that history has not written yet are over the budget, workers wait; the log then grows
//! on disk, and nothing is lost. The budget has to be well above the size at which history flushes.

mod metrics;
mod publish;
mod supervisor;
mod worker;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use catchment_decode::Decoders;
use catchment_eventlog::readings::PublishReadings;
use catchment_eventlog::{ConsumerGroup, EventLog};
use catchment_store::history::History;
use catchment_store::live::LiveHub;
use catchment_store::shard::Shard;
use catchment_types::{Offset, PartitionId};
use parking_lot::Mutex;
use thiserror::Error;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::supervisor::Shared;

pub use self::metrics::DistributeMetrics;

/// Bounds of the workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DistributeConfig {
    /// Most memory of rows that are not in files yet, over all partitions, in bytes; above it the workers wait.
    pub budget_bytes: usize,
    /// About how much is read from the log at once, in bytes.
    pub read_bytes_max: usize,
    /// How long a shutdown may take.
    pub stop_max: Duration,
    /// Whether other processes go on with the log: a shutdown leaves all partitions to them, instead of reading the log to
    /// its end. What is left otherwise is read after the next start.
    pub leaves_to_others: bool,
}

impl Default for DistributeConfig {
    fn default() -> Self {
        Self {
            budget_bytes: 512 * 1024 * 1024,
            read_bytes_max: 1024 * 1024,
            stop_max: Duration::from_secs(10),
            leaves_to_others: false,
        }
    }
}

/// Who keeps something of each partition beside history.
#[async_trait]
pub trait Follower: Send + Sync + 'static {
    /// The partition is ours, and history has filled its shard; its worker waits for this.
    async fn taken_over(&self, partition: PartitionId);

    /// The partition is no longer ours: its worker has stopped.
    async fn released(&self, partition: PartitionId);
}

/// What the workers read from and write to.
pub struct Parts {
    /// Where events come from.
    pub log: Arc<dyn EventLog>,
    /// Tells which partitions are to be worked on here.
    pub group: Arc<dyn ConsumerGroup>,
    /// One for each partition of the log, in order.
    pub shards: Vec<Arc<Shard>>,
    /// Tells from where a partition is read, and takes the shards' rows.
    pub history: Arc<dyn History>,
    /// Who else is told which partitions are ours.
    pub follower: Option<Arc<dyn Follower>>,
    /// Who is to have decoded rows besides, before the store.
    pub publish: Option<Arc<dyn PublishReadings>>,
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
    #[error("the log has {partitions} partitions, but there are {shards} shards")]
    Partitions {
        /// Of the log.
        partitions: u32,
        /// Of the store.
        shards: usize,
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

/// For each partition the offset up to which it is in its shard; none when it is not worked on here.
pub type Processed = Vec<Option<Offset>>;

/// The workers of all partitions that are this process's.
#[derive(Debug)]
pub struct Distributor {
    supervisor: JoinHandle<()>,
    drain: watch::Sender<bool>,
    give_up: CancellationToken,
    processed: watch::Receiver<Processed>,
    trouble: Arc<Mutex<BTreeMap<PartitionId, String>>>,
    goals: Arc<Mutex<BTreeMap<PartitionId, Offset>>>,
    group: Arc<dyn ConsumerGroup>,
    config: DistributeConfig,
}

impl Distributor {
    /// Starts to work on what the group gives; to be called inside a Tokio runtime.
    ///
    /// # Errors
    /// When the parts do not belong together.
    pub fn start(parts: Parts, config: DistributeConfig) -> Result<Self, StartError> {
        let partitions = parts.log.partitions();
        if parts.shards.len() != partitions as usize {
            return Err(StartError::Partitions { partitions, shards: parts.shards.len() });
        }
        for (partition, &start) in (0..partitions).zip(parts.history.subscribe_committed().borrow().iter()) {
            let end = parts.log.range(partition).end;
            if start > end {
                return Err(StartError::LogBehind { partition, start, end });
            }
        }
        let (processed_sender, processed) = watch::channel(vec![None; partitions as usize]);
        let (drain, draining) = watch::channel(false);
        let (trouble, goals, give_up) = (Arc::default(), Arc::default(), CancellationToken::new());
        let group = Arc::clone(&parts.group);
        let shared = Shared {
            parts,
            config,
            processed: processed_sender,
            trouble: Arc::clone(&trouble),
            goals: Arc::clone(&goals),
            draining,
            giving_up: give_up.clone(),
        };
        let supervisor = tokio::spawn(supervisor::run(Arc::new(shared)));
        Ok(Self { supervisor, drain, give_up, processed, trouble, goals, group, config })
    }

    /// How far each partition is in its shard: decoded, in the latest values, in the rows that queries see.
    #[must_use]
    pub fn processed(&self) -> watch::Receiver<Processed> {
        self.processed.clone()
    }

    /// What keeps partitions from being worked on now, for those who operate this.
    #[must_use]
    pub fn trouble(&self) -> Arc<dyn Fn() -> Vec<String> + Send + Sync> {
        let trouble = Arc::clone(&self.trouble);
        Arc::new(move || trouble.lock().values().cloned().collect())
    }

    /// What this process is to work on and its shards do not have yet: partitions that are being taken over, and events
    /// that were in their log by then.
    #[must_use]
    pub fn awaited(&self) -> Arc<dyn Fn() -> Vec<String> + Send + Sync> {
        let (group, processed) = (Arc::clone(&self.group), self.processed.clone());
        let (goals, trouble) = (Arc::clone(&self.goals), Arc::clone(&self.trouble));
        Arc::new(move || {
            if !group.has_joined() {
                return vec![
                    "the consumer group has not told which partitions are this process's".to_owned(),
                ];
            }
            let assigned = Arc::clone(&group.assigned().borrow());
            let processed = processed.borrow().clone();
            let (goals, trouble) = (goals.lock(), trouble.lock());
            let tell = |id: &PartitionId| match processed.get(*id as usize)? {
                None if trouble.contains_key(id) => None,
                None => Some(format!("partition {id} is being taken over")),
                Some(next) => {
                    let left = goals.get(id)?.saturating_sub(*next);
                    (left > 0)
                        .then(|| format!("partition {id}: {left} events of the log are to be read again"))
                }
            };
            assigned.iter().filter_map(tell).collect()
        })
    }

    /// Stops: reads what is in the log already, or leaves all partitions to others; at most for
    /// [`DistributeConfig::stop_max`]. Returns where each partition stands.
    pub async fn shutdown(mut self) -> Processed {
        if self.config.leaves_to_others {
            self.give_up.cancel();
        } else {
            self.drain.send_replace(true);
        }
        match tokio::time::timeout(self.config.stop_max, &mut self.supervisor).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the partition workers ended badly"),
            Err(_) => {
                tracing::warn!(
                    "not all of the log was brought in in time; the rest is read after the next start"
                );
                self.supervisor.abort();
            }
        }
        self.processed.borrow().clone()
    }
}

impl Drop for Distributor {
    fn drop(&mut self) {
        self.supervisor.abort();
    }
}
