//! The engine that runs in one data folder.
//!
//! ```text
//! log.toml                                     format and number of partitions; locked while open
//! p0000/00000000000000000000-5f3a09c1.log      segment: blocks of events from offset 0 on   (see `format`)
//! p0000/00000000000000184320-c07d1e22.log      the last one is written to
//! p0000/….spare                                a dropped segment, to be written anew
//! ```
//!
//! Each partition has one thread that owns its files. Submitters append to a queue; the thread takes all that waits,
//! compresses, writes with one call, syncs once, then completes the submissions and wakes the readers. Readers near
//! the end are served from memory, others from disk.
//!
//! What holds:
//! - A submission is completed after its block is durable, as the [`SyncPolicy`](crate::SyncPolicy) says; readers see it from then on.
//! - A block is served only if its checksums match. What does not match is skipped, counted, and logged once.
//! - An error leaves nothing half done: either the whole group is completed, or nothing of it is found again
//!   ([`LogError::Full`]), or the partition stops ([`LogError::Failed`]) because nobody knows.
//! - Offsets are not given twice to what a sink has seen: they go on at what was released, should the log have lost
//!   its end.

mod config;
mod device;
mod error;
mod folder;
mod format;
mod meta;
mod partition;
mod queue;
mod recovery;
mod retention;
mod scan;
mod segment;
mod tail;
#[cfg(test)]
mod tests;
mod writer;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use async_trait::async_trait;
use catchment_types::{EventBatch, Offset, PartitionId};
pub use config::{Compression, LogConfig};
use device::{Device, System};
pub use error::OpenError;
use error::While;
use partition::Partition;
use queue::Queue;
use writer::{Writer, block_bytes_max};

use crate::{EventLog, LogError, LogStats, Pending, ReadBatch};

/// Largest batch that can be stored, in encoded bytes.
pub const BATCH_BYTES_MAX: usize = 1 << 30;

/// The event log in a data folder. Dropping it closes it, waiting for the disk.
#[derive(Debug)]
pub struct EmbeddedLog {
    partitions: Vec<Arc<Partition>>,
    writers: Vec<JoinHandle<()>>,
    _lock: meta::FolderLock,
}

impl EmbeddedLog {
    /// Opens the log in `dir`, creates it if there is none. Reads the last segment of each partition: blocks the
    /// thread for that long.
    ///
    /// # Errors
    /// A setting is out of its limits, the folder has another log, is in use, or cannot be read and written.
    pub fn open(dir: &Path, config: LogConfig) -> Result<Arc<Self>, OpenError> {
        Self::open_on(dir, config, Arc::new(System))
    }

    fn open_on(dir: &Path, config: LogConfig, device: Arc<dyn Device>) -> Result<Arc<Self>, OpenError> {
        config.check()?;
        let (lock, partitions) = meta::claim(dir, &config)?;
        // Bytes of all partitions are shared by as many as there are.
        let config = LogConfig { partitions, ..config };
        let mut log = Self { partitions: Vec::new(), writers: Vec::new(), _lock: lock };
        for id in 0..partitions {
            let path = dir.join(format!("p{id:04}"));
            let recovered = recovery::recover(path.clone(), config.segment_bytes, &*device)?;
            let partition = Arc::new(Partition::new(
                path.clone(),
                recovered.segments.clone(),
                recovered.next_offset,
                Queue::new(config.queue_bytes_max, block_bytes_max(&config)),
                config.cache_bytes_max,
                config.backlog_bytes_max / u64::from(partitions),
            ));
            partition.counters.damage.store(recovered.damage, Ordering::Relaxed);
            log.partitions.push(partition.clone());
            let writer = Writer::new(partition, recovered, config.clone(), device.clone());
            let thread = std::thread::Builder::new().name(format!("log-p{id:04}"));
            log.writers.push(thread.spawn(move || writer.run()).while_trying("start the writer of", &path)?);
        }
        Ok(Arc::new(log))
    }

    fn partition(&self, id: PartitionId) -> Result<&Partition, LogError> {
        let partition = usize::try_from(id).ok().and_then(|id| self.partitions.get(id));
        let unknown = LogError::NoSuchPartition { partition: id, partitions: self.partitions() };
        partition.map(|partition| &**partition).ok_or(unknown)
    }
}

#[async_trait]
impl EventLog for EmbeddedLog {
    fn partitions(&self) -> u32 {
        self.partitions.len() as u32
    }

    async fn submit(&self, partition: PartitionId, batch: EventBatch) -> Result<Pending, LogError> {
        self.partition(partition)?.submit(batch).await
    }

    async fn read(
        &self,
        partition: PartitionId,
        from: Offset,
        bytes_max: usize,
    ) -> Result<ReadBatch, LogError> {
        self.partition(partition)?.read(from, bytes_max).await
    }

    fn range(&self, partition: PartitionId) -> Range<Offset> {
        self.partition(partition).map_or(0..0, Partition::range)
    }

    fn release(&self, partition: PartitionId, before: Offset) {
        if let Ok(partition) = self.partition(partition) {
            partition.release(before);
        }
    }

    fn stats(&self) -> LogStats {
        let mut stats = LogStats::default();
        self.partitions.iter().for_each(|partition| partition.add_stats(&mut stats));
        stats
    }

    async fn close(&self) {
        self.partitions.iter().for_each(|partition| partition.queue.close());
        for partition in &self.partitions {
            partition.closed().await;
        }
    }
}

impl Drop for EmbeddedLog {
    fn drop(&mut self) {
        self.partitions.iter().for_each(|partition| partition.queue.close());
        for writer in self.writers.drain(..) {
            // A writer that panicked has said so already.
            let _ = writer.join();
        }
    }
}
