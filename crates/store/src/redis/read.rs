//! The snapshot as it is in Redis.

use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use catchment_types::DEFAULT_REALM;

use super::client::{RedisClient, RedisFailure};
use super::layout::{Seen, device_seen, device_snapshot, device_state, seen_fields};
use super::probe::info_value;
use crate::shard::{DeviceSeen, DeviceSnapshot, DeviceState};
use crate::snapshot::{Snapshot, SnapshotError, SnapshotFigures, device_rows, latest_rows};

/// Devices asked for at once.
pub(super) const PAGE: usize = 500;

/// Fields of a hash, with their texts.
type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// Reads what the writers of all processes wrote.
#[derive(Debug, Clone)]
pub struct RedisSnapshot {
    pub(super) client: RedisClient,
}

impl RedisSnapshot {
    /// Over a server.
    #[must_use]
    pub fn new(client: RedisClient) -> Self {
        Self { client }
    }

    /// Ids in order, from the first after `after` on.
    pub(super) async fn ids(&self, after: Option<&str>, limit: usize) -> Result<Vec<Arc<str>>, RedisFailure> {
        let mut ask = ::redis::cmd("ZRANGEBYLEX");
        ask.arg(self.client.keys.devices(DEFAULT_REALM));
        match after {
            None => ask.arg("-"),
            Some(after) => ask.arg(format!("({after}")),
        };
        ask.arg("+").arg("LIMIT").arg(0).arg(limit);
        let ids: Vec<String> = self.client.ask(&ask).await?;
        Ok(ids.into_iter().map(Arc::from).collect())
    }

    /// What is known of devices; those that are not known are left out.
    pub(super) async fn states(&self, ids: &[Arc<str>]) -> Result<Vec<DeviceState>, RedisFailure> {
        let mut states = Vec::with_capacity(ids.len());
        for ids in ids.chunks(PAGE) {
            let mut ask = ::redis::pipe();
            for id in ids {
                ask.cmd("HGETALL").arg(self.client.keys.snapshot(DEFAULT_REALM, id));
            }
            let hashes: Vec<Fields> = self.client.ask_all(&ask).await?;
            states.extend(ids.iter().zip(hashes).filter_map(|(id, fields)| device_state(id, fields)));
        }
        Ok(states)
    }

    async fn seen_of(&self, ids: &[Arc<str>]) -> Result<Vec<DeviceSeen>, RedisFailure> {
        let mut ask = ::redis::pipe();
        for id in ids {
            let key = self.client.keys.snapshot(DEFAULT_REALM, id);
            ask.cmd("HMGET").arg(&key).arg(&seen_fields());
            ask.cmd("HLEN").arg(&key);
        }
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let answers: Vec<::redis::Value> = self.client.ask_all(&ask).await?;
        let bad = |error: &dyn std::fmt::Display| self.client.failed(format!("a hash is not ours: {error}"));
        let mut seen = Vec::with_capacity(ids.len());
        for (id, answers) in ids.iter().zip(answers.chunks_exact(2)) {
            let fields: Seen = ::redis::from_redis_value(answers[0].clone()).map_err(|error| bad(&error))?;
            let count: u64 = ::redis::from_redis_value(answers[1].clone()).map_err(|error| bad(&error))?;
            seen.extend(device_seen(Arc::clone(id), fields, count));
        }
        Ok(seen)
    }
}

fn error(failure: RedisFailure) -> SnapshotError {
    SnapshotError(failure.to_string())
}

#[async_trait]
impl Snapshot for RedisSnapshot {
    async fn latest(&self, device_id: &str) -> Result<Option<DeviceSnapshot>, SnapshotError> {
        let key = self.client.keys.snapshot(DEFAULT_REALM, device_id);
        let fields: Fields = self.client.ask(::redis::cmd("HGETALL").arg(key)).await.map_err(error)?;
        Ok(device_state(device_id, fields).map(device_snapshot))
    }

    async fn latest_of(&self, device_ids: &[Arc<str>]) -> Result<Vec<DeviceSnapshot>, SnapshotError> {
        let states = self.states(device_ids).await.map_err(error)?;
        Ok(states.into_iter().map(device_snapshot).collect())
    }

    async fn seen(&self, device_id: &str) -> Result<Option<DeviceSeen>, SnapshotError> {
        let mut seen = self.seen_of(&[device_id.into()]).await.map_err(error)?;
        Ok(seen.pop())
    }

    async fn devices(&self, after: Option<&str>, limit: usize) -> Result<Vec<DeviceSeen>, SnapshotError> {
        let mut found = Vec::new();
        let mut after: Option<Arc<str>> = after.map(Arc::from);
        // A device without a hash was deleted by hand: the page goes on behind it.
        while found.len() < limit {
            let wanted = (limit - found.len()).min(PAGE);
            let ids = self.ids(after.as_deref(), wanted).await.map_err(error)?;
            found.extend(self.seen_of(&ids).await.map_err(error)?);
            if ids.len() < wanted {
                break;
            }
            after = ids.into_iter().next_back();
        }
        Ok(found)
    }

    async fn latest_rows(&self) -> Result<Vec<RecordBatch>, SnapshotError> {
        let mut batches = Vec::new();
        let mut after: Option<Arc<str>> = None;
        loop {
            let ids = self.ids(after.as_deref(), PAGE).await.map_err(error)?;
            let snapshots = self.latest_of(&ids).await?;
            batches.push(latest_rows(&snapshots));
            if ids.len() < PAGE {
                return Ok(batches);
            }
            after = ids.into_iter().next_back();
        }
    }

    async fn device_rows(&self) -> Result<Vec<RecordBatch>, SnapshotError> {
        let mut batches = Vec::new();
        let mut after: Option<Arc<str>> = None;
        loop {
            let page = self.devices(after.as_deref(), PAGE).await?;
            batches.push(device_rows(&page));
            if page.len() < PAGE {
                return Ok(batches);
            }
            after = page.into_iter().next_back().map(|seen| seen.device_id);
        }
    }

    async fn figures(&self) -> Result<SnapshotFigures, SnapshotError> {
        let mut ask = ::redis::pipe();
        ask.cmd("ZCARD").arg(self.client.keys.devices(DEFAULT_REALM));
        ask.cmd("GET").arg(self.client.keys.metrics(DEFAULT_REALM));
        ask.cmd("INFO").arg("memory");
        let (devices, metrics, info): (u64, Option<u64>, String) =
            self.client.ask_all(&ask).await.map_err(error)?;
        let bytes = info_value(&info, "used_memory").and_then(|bytes| bytes.parse().ok());
        Ok(SnapshotFigures {
            devices,
            metrics: metrics.unwrap_or_default(),
            bytes: bytes.unwrap_or_default(),
        })
    }
}
