//! From Redis back into shards, when partitions are taken over.

use std::sync::Arc;

use catchment_types::{DEFAULT_REALM, partition_of};

use super::client::RedisFailure;
use super::read::{PAGE, RedisSnapshot};
use crate::shard::{DeviceState, Shard};

impl RedisSnapshot {
    /// Gives shards what Redis knows of their devices: values newer than those that history gave, and how many events there
    /// were. `partitions` is the number of all there are. To be called after history has filled the shards, and before
    /// their workers start; once for all partitions that come together, since all devices are gone through. Returns how many
    /// values were taken.
    ///
    /// What was written from another log keeps its values, but its offsets mean nothing here.
    ///
    /// # Errors
    /// Redis does not answer. What was given is right, but may not be all; the log and history have the rest.
    pub async fn restore(
        &self,
        partitions: u32,
        shards: &[Arc<Shard>],
        log: &str,
    ) -> Result<u64, RedisFailure> {
        let written_from: Option<String> =
            self.client.ask(::redis::cmd("GET").arg(self.client.keys.of("log"))).await?;
        let is_same_log = written_from.as_deref() == Some(log);
        let mut values = 0;
        let mut after: Option<Arc<str>> = None;
        loop {
            let page = self.ids(after.as_deref(), PAGE).await?;
            let is_last = page.len() < PAGE;
            after = page.last().map(Arc::clone);
            let partition = |id: &Arc<str>| partition_of(DEFAULT_REALM, id, partitions);
            for shard in shards {
                let ids: Vec<_> =
                    page.iter().filter(|id| partition(id) == shard.partition()).map(Arc::clone).collect();
                let mut states = self.states(&ids).await?;
                if !is_same_log {
                    states.iter_mut().for_each(forget_offsets);
                }
                values += shard.restore_states(&states);
            }
            if is_last {
                return Ok(values);
            }
        }
    }
}

fn forget_offsets(state: &mut DeviceState) {
    state.counted_to = 0;
    state.metrics.iter_mut().for_each(|metric| metric.offset = 0);
}
