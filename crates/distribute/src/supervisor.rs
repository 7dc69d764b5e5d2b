//! Follows what the consumer group gives and takes: a worker for each partition that is ours.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use catchment_store::history::Start;
use catchment_types::{Offset, PartitionId};
use futures::FutureExt;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::worker::{RETRY_MAX, RETRY_MIN, Worker};
use crate::{DistributeConfig, Parts, Processed, StartError};

/// What all workers use.
pub(crate) struct Shared {
    pub(crate) parts: Parts,
    pub(crate) config: DistributeConfig,
    pub(crate) processed: watch::Sender<Processed>,
    /// What keeps a partition from being worked on.
    pub(crate) trouble: Arc<Mutex<BTreeMap<PartitionId, String>>>,
    /// Where the log of each partition ended when it was taken over: what was in it is to be answered from again.
    pub(crate) goals: Arc<Mutex<BTreeMap<PartitionId, Offset>>>,
    /// Whether to end once the log is read to its end.
    pub(crate) draining: watch::Receiver<bool>,
    /// Cancelled when all partitions are to be left to others.
    pub(crate) giving_up: CancellationToken,
}

impl Shared {
    pub(crate) fn over_budget(&self) -> bool {
        let held: usize = self.parts.shards.iter().map(|shard| shard.held_bytes()).sum();
        held > self.config.budget_bytes
    }

    /// Tells how far a partition is.
    pub(crate) fn show(&self, partition: PartitionId, next: Option<Offset>) {
        let at = partition as usize;
        self.processed.send_modify(|processed| {
            if let Some(shown) = processed.get_mut(at) {
                *shown = next;
            }
        });
    }
}

/// Works until it is dropped, drained, or has given everything up.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut assigned = shared.parts.group.assigned();
    let mut draining = shared.draining.clone();
    let mut workers = JoinSet::new();
    let mut ends: BTreeMap<PartitionId, CancellationToken> = BTreeMap::new();
    let mut follows = true;
    // What is in the log is read even when the end comes right after the start.
    let mut takes_over = true;
    loop {
        let wanted = Arc::clone(&assigned.borrow_and_update());
        let gives_up = shared.giving_up.is_cancelled();
        let drained = gives_up || *draining.borrow_and_update();
        ends.iter().filter(|(id, _)| gives_up || !wanted.contains(id)).for_each(|(_, end)| end.cancel());
        for &partition in wanted.iter().filter(|_| !gives_up && (takes_over || !drained)) {
            if ends.contains_key(&partition) {
                continue;
            }
            let end = CancellationToken::new();
            ends.insert(partition, end.clone());
            let tenure = tenure(Arc::clone(&shared), partition, end);
            workers.spawn(async move {
                tenure.await;
                partition
            });
        }
        takes_over = false;
        if drained && workers.is_empty() {
            return;
        }
        tokio::select! {
            changed = assigned.changed(), if follows => follows = changed.is_ok(),
            _ = draining.changed(), if !drained => {}
            () = shared.giving_up.cancelled(), if !gives_up => {}
            Some(ended) = workers.join_next() => {
                // A worker's panic is the tenure's to tell; there is none beside.
                let Ok(partition) = ended else { continue };
                let by_itself = ends.remove(&partition).is_some_and(|end| !end.is_cancelled());
                if by_itself && !drained {
                    // The log was closed: the others end as well.
                    follows = false;
                    draining = watch::channel(true).1;
                }
            }
        }
    }
}

/// A partition from when it is given to this process until it is taken away.
async fn tenure(shared: Arc<Shared>, partition: PartitionId, end: CancellationToken) {
    let work = async {
        if let Some(worker) = take_over(&shared, partition).await {
            worker.run(shared.draining.clone()).await;
        }
    };
    match end.run_until_cancelled(AssertUnwindSafe(work).catch_unwind()).await {
        // With the log closed, or read to its end, this process ends.
        Some(Ok(())) if !shared.config.leaves_to_others => return,
        Some(Ok(())) => {}
        Some(Err(_)) => {
            // What it was at is not known to be whole: it is not gone on with here, and is neither lost nor doubled.
            let trouble = format!(
                "the worker of partition {partition} has ended with a fault of the program; restart this process"
            );
            tracing::error!("{trouble}");
            shared.trouble.lock().insert(partition, trouble);
            let mut draining = shared.draining.clone();
            tokio::select! {
                () = end.cancelled() => {}
                _ = draining.wait_for(|draining| *draining) => return,
            }
        }
        None => {}
    }
    if let Some(follower) = &shared.parts.follower {
        follower.released(partition).await;
    }
    shared.parts.history.release(partition).await;
    shared.show(partition, None);
    shared.trouble.lock().remove(&partition);
    shared.parts.group.left(partition);
}

/// Takes a partition over, as soon as that is possible; nothing when that was not before the end.
async fn take_over(shared: &Arc<Shared>, partition: PartitionId) -> Option<Worker> {
    let mut retry = RETRY_MIN;
    let mut draining = shared.draining.clone();
    loop {
        let trouble = match shared.parts.history.take_over(partition).await {
            Ok(Start { offset, repeat_to })
                if offset.max(repeat_to) > shared.parts.log.range(partition).end =>
            {
                let (start, end) = (offset.max(repeat_to), shared.parts.log.range(partition).end);
                StartError::LogBehind { partition, start, end }.to_string()
            }
            Ok(start) => {
                if let Some(follower) = &shared.parts.follower {
                    follower.taken_over(partition).await;
                }
                shared.trouble.lock().remove(&partition);
                shared.goals.lock().insert(partition, shared.parts.log.range(partition).end);
                shared.show(partition, Some(start.offset));
                return Some(Worker::new(Arc::clone(shared), partition, start));
            }
            Err(error) => format!("partition {partition} cannot be taken over: {error}"),
        };
        tracing::error!(retry_in = ?retry, "{trouble}");
        shared.trouble.lock().insert(partition, trouble);
        tokio::select! {
            () = tokio::time::sleep(retry) => {}
            _ = draining.wait_for(|draining| *draining) => return None,
        }
        retry = (retry * 2).min(RETRY_MAX);
    }
}
