//! The seam of what is read of devices: their latest values, when they were seen, and lists of them.
//!
//! [`ShardSnapshot`] reads the shards of this process: a lock and a copy. Another engine has what the workers of all
//! processes wrote to it. All of it is of the realm `main`, the only one whose values are kept.

use std::fmt;
use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::array::builder::{Float64Builder, Int64Builder, StringViewBuilder, TimestampMicrosecondBuilder};
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use catchment_types::{DEFAULT_REALM, partition_of};
use thiserror::Error;

use crate::shard::{DeviceSeen, DeviceSnapshot, Shard, devices_schema, snapshot_schema};

/// Where the latest values are read. All methods may be called from any thread.
#[async_trait]
pub trait Snapshot: Send + Sync + 'static {
    /// The latest values of one device, metrics by name; nothing if it never sent anything.
    ///
    /// # Errors
    /// The engine does not answer.
    async fn latest(&self, device_id: &str) -> Result<Option<DeviceSnapshot>, SnapshotError>;

    /// The latest values of those of these devices that sent something, in the same order.
    ///
    /// # Errors
    /// The engine does not answer.
    async fn latest_of(&self, device_ids: &[Arc<str>]) -> Result<Vec<DeviceSnapshot>, SnapshotError>;

    /// One device, if it sent something.
    ///
    /// # Errors
    /// The engine does not answer.
    async fn seen(&self, device_id: &str) -> Result<Option<DeviceSeen>, SnapshotError>;

    /// Devices in the order of their ids, from the first after `after` on, at most `limit`. Fewer than that: there are no
    /// more.
    ///
    /// # Errors
    /// The engine does not answer.
    async fn devices(&self, after: Option<&str>, limit: usize) -> Result<Vec<DeviceSeen>, SnapshotError>;

    /// The latest values of all devices, by [`snapshot_schema`], in any order. Each device is
    /// consistent in itself.
    ///
    /// # Errors
    /// The engine does not answer.
    async fn latest_rows(&self) -> Result<Vec<RecordBatch>, SnapshotError>;

    /// All devices, by [`devices_schema`], in any order.
    ///
    /// # Errors
    /// The engine does not answer.
    async fn device_rows(&self) -> Result<Vec<RecordBatch>, SnapshotError>;

    /// How much there is.
    ///
    /// # Errors
    /// The engine does not answer.
    async fn figures(&self) -> Result<SnapshotFigures, SnapshotError>;
}

/// How much a snapshot holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SnapshotFigures {
    /// Devices that sent something.
    pub devices: u64,
    /// Metrics of all of them.
    pub metrics: u64,
    /// Memory, in bytes: in this process that of latest values and open rollups; of another engine all that it uses.
    pub bytes: u64,
}

/// The engine that has the latest values does not answer. It can be tried again.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("latest values cannot be read: {0}")]
pub struct SnapshotError(pub String);

/// Reads the shards of this process, which are all there are.
#[derive(Clone)]
pub struct ShardSnapshot {
    shards: Arc<[Arc<Shard>]>,
}

impl ShardSnapshot {
    /// Over the shards in the order of their partitions.
    #[must_use]
    pub fn new(shards: Arc<[Arc<Shard>]>) -> Self {
        Self { shards }
    }

    /// The shard that a device is in.
    fn shard(&self, device_id: &str) -> Option<&Arc<Shard>> {
        let partitions = u32::try_from(self.shards.len()).unwrap_or(u32::MAX);
        self.shards.get(partition_of(DEFAULT_REALM, device_id, partitions) as usize)
    }
}

impl fmt::Debug for ShardSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShardSnapshot").field("shards", &self.shards.len()).finish()
    }
}

#[async_trait]
impl Snapshot for ShardSnapshot {
    async fn latest(&self, device_id: &str) -> Result<Option<DeviceSnapshot>, SnapshotError> {
        Ok(self.shard(device_id).and_then(|shard| shard.snapshot(device_id)))
    }

    async fn latest_of(&self, device_ids: &[Arc<str>]) -> Result<Vec<DeviceSnapshot>, SnapshotError> {
        let latest = |id: &Arc<str>| self.shard(id).and_then(|shard| shard.snapshot(id));
        Ok(device_ids.iter().filter_map(latest).collect())
    }

    async fn seen(&self, device_id: &str) -> Result<Option<DeviceSeen>, SnapshotError> {
        Ok(self.shard(device_id).and_then(|shard| shard.device(device_id)))
    }

    async fn devices(&self, after: Option<&str>, limit: usize) -> Result<Vec<DeviceSeen>, SnapshotError> {
        // The first `limit` of each: the first `limit` of all are among them.
        let mut found: Vec<_> = self.shards.iter().flat_map(|shard| shard.devices(after, limit)).collect();
        found.sort_unstable_by(|a, b| a.device_id.cmp(&b.device_id));
        found.truncate(limit);
        Ok(found)
    }

    async fn latest_rows(&self) -> Result<Vec<RecordBatch>, SnapshotError> {
        Ok(self.shards.iter().map(|shard| shard.snapshot_batch()).collect())
    }

    async fn device_rows(&self) -> Result<Vec<RecordBatch>, SnapshotError> {
        Ok(self.shards.iter().map(|shard| shard.devices_batch()).collect())
    }

    async fn figures(&self) -> Result<SnapshotFigures, SnapshotError> {
        let stats = self.shards.iter().map(|shard| shard.stats());
        Ok(stats.fold(SnapshotFigures::default(), |all, shard| SnapshotFigures {
            devices: all.devices + shard.devices as u64,
            metrics: all.metrics + shard.metrics as u64,
            bytes: all.bytes + shard.snapshot_bytes as u64,
        }))
    }
}

/// Latest values as rows, by [`snapshot_schema`].
#[must_use]
pub fn latest_rows(snapshots: &[DeviceSnapshot]) -> RecordBatch {
    let [mut ids, mut names, mut texts] = std::array::from_fn(|_| StringViewBuilder::new());
    let [mut times, mut received] = std::array::from_fn(|_| time_builder());
    let mut values = Float64Builder::new();
    for snapshot in snapshots {
        for metric in &snapshot.metrics {
            ids.append_value(&snapshot.device_id);
            names.append_value(&metric.metric);
            times.append_value(metric.timestamp.as_micros());
            values.append_option(metric.value.as_value().number());
            texts.append_option(metric.value.as_value().text());
            received.append_value(metric.received_at.as_micros());
        }
    }
    let columns: Vec<ArrayRef> = vec![
        Arc::new(ids.finish()),
        Arc::new(names.finish()),
        Arc::new(times.finish()),
        Arc::new(values.finish()),
        Arc::new(texts.finish()),
        Arc::new(received.finish()),
    ];
    batch(snapshot_schema(), columns)
}

/// Devices as rows, by [`devices_schema`].
#[must_use]
pub fn device_rows(devices: &[DeviceSeen]) -> RecordBatch {
    let mut ids = StringViewBuilder::new();
    let [mut first, mut last] = std::array::from_fn(|_| time_builder());
    let [mut events, mut metrics] = std::array::from_fn(|_| Int64Builder::new());
    for device in devices {
        ids.append_value(&device.device_id);
        first.append_value(device.first_seen.as_micros());
        last.append_value(device.last_seen.as_micros());
        events.append_value(device.events.cast_signed());
        metrics.append_value(device.metrics.cast_signed());
    }
    let columns: Vec<ArrayRef> = vec![
        Arc::new(ids.finish()),
        Arc::new(first.finish()),
        Arc::new(last.finish()),
        Arc::new(events.finish()),
        Arc::new(metrics.finish()),
    ];
    batch(devices_schema(), columns)
}

fn time_builder() -> TimestampMicrosecondBuilder {
    TimestampMicrosecondBuilder::new().with_timezone("UTC")
}

fn batch(schema: SchemaRef, columns: Vec<ArrayRef>) -> RecordBatch {
    RecordBatch::try_new(schema, columns).expect("the columns are those of the schema")
}

#[cfg(test)]
mod tests {
    use catchment_decode::{Decoders, WorkerDecoders};
    use catchment_types::{Event, EventBatch, Timestamp};

    use super::*;

    fn events(device_id: &str) -> EventBatch {
        let mut builder = EventBatch::builder();
        let event = Event {
            realm: DEFAULT_REALM,
            device_id,
            event_type: "state",
            topic: "devices/d/state",
            received_at: Timestamp(5),
            content_type: "",
            tags: "",
            mark: 0,
            payload: br#"{"v":1}"#,
        };
        builder.push(&event).unwrap();
        builder.take()
    }

    #[tokio::test]
    async fn devices_of_all_shards_come_in_one_order() {
        let shards: Arc<[Arc<Shard>]> = (0..3).map(Shard::new).collect();
        let mut decoders = WorkerDecoders::new(Arc::new(Decoders::default()));
        for id in ["e", "a", "d", "b", "c", "f"] {
            let shard = &shards[partition_of(DEFAULT_REALM, id, 3) as usize];
            let next = shard.stats().next_offset;
            shard.ingest(next, &events(id), next.., &mut decoders, None);
        }
        let snapshot = ShardSnapshot::new(shards);
        let page =
            |found: Vec<DeviceSeen>| found.iter().map(|seen| seen.device_id.to_string()).collect::<Vec<_>>();
        assert_eq!(page(snapshot.devices(None, 4).await.unwrap()), ["a", "b", "c", "d"]);
        assert_eq!(page(snapshot.devices(Some("d"), 4).await.unwrap()), ["e", "f"]);
        let of = snapshot.latest_of(&["f".into(), "x".into(), "a".into()]).await.unwrap();
        assert_eq!(of.iter().map(|device| &*device.device_id).collect::<Vec<_>>(), ["f", "a"]);
        assert_eq!(snapshot.latest("a").await.unwrap().as_ref(), of.last());
        assert_eq!(snapshot.latest("x").await.unwrap(), None);
        assert_eq!(snapshot.seen("b").await.unwrap().unwrap().events, 1);
        let rows = |batches: Vec<RecordBatch>| batches.iter().map(RecordBatch::num_rows).sum::<usize>();
        assert_eq!(rows(snapshot.latest_rows().await.unwrap()), 6);
        assert_eq!(rows(snapshot.device_rows().await.unwrap()), 6);
        let figures = snapshot.figures().await.unwrap();
        assert_eq!((figures.devices, figures.metrics), (6, 6));
    }
}
