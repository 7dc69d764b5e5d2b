//! The memory of one partition: latest values, open rollup states, and rows that are not in files yet.
//!
//! One worker writes, under one lock that it holds for at most `CHUNK_EVENTS_MAX` events at a time; queries take the
//! same lock for the time of a cheap copy.
//!
//! - *Slots*: each metric of a device has its newest value and the open state of one minute. A reading of another minute
//!   pushes the open state as a row of `metric_rollups` and starts anew, so late readings need no case of their own:
//!   several rows of a key merge by sum, min and max.
//! - *Rows*: columns under construction, sealed into a batch of at most `ROWS_MAX` rows. Texts and payloads are views
//!   into the log's blocks where these are large; a view keeps its whole block in memory, and is accounted for so.
//! - *Exactly once*: every table says from which offset on it still needs events ([`Shard::set_start_offsets`]), and takes
//!   no row of an earlier one.

mod block;
mod changes;
mod devices;
mod ingest;
mod rows;

use std::fmt;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use catchment_decode::WorkerDecoders;
use catchment_types::{EventBatch, Offset, PartitionId, Timestamp};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use crate::live::{LiveBatch, LiveValue};
use crate::tables::TableId;

use self::block::Block;
use self::devices::Devices;
use self::rows::Rows;

pub use self::changes::{DeviceState, MetricState};
pub(crate) use self::devices::saved_schema;
pub use self::devices::{devices_schema, snapshot_schema};

/// Most events for which the worker holds the lock at once; about a millisecond.
const CHUNK_EVENTS_MAX: usize = 256;
/// Most bytes of events for which the worker holds the lock at once.
const CHUNK_BYTES_MAX: usize = 512 * 1024;
/// Devices for which a reader of the whole snapshot holds the lock at once.
const CHUNK_DEVICES: usize = 1_000;

/// Bounds of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardConfig {
    /// Most distinct metrics of one device; the readings of further ones are rejects.
    pub metrics_per_device_max: usize,
    /// Most devices; the readings of further ones are rejects, their events are kept.
    pub devices_max: usize,
    /// Most memory for latest values and rollup states, in bytes; what does not fit is a reject.
    pub snapshot_bytes_max: usize,
}

impl Default for ShardConfig {
    fn default() -> Self {
        Self { metrics_per_device_max: 1_000, devices_max: 1_000_000, snapshot_bytes_max: 1024 * 1024 * 1024 }
    }
}

/// The memory of one partition.
pub struct Shard {
    partition: PartitionId,
    state: Mutex<State>,
    /// What the tables' buffers hold, published after each change so that no reader needs the lock.
    buffered_bytes: AtomicUsize,
    /// Memory of rows that were taken and are not in files yet, in bytes.
    taken_bytes: [AtomicUsize; TableId::COUNT],
    room: Notify,
}

struct State {
    config: ShardConfig,
    devices: Devices,
    rows: Rows,
    /// From which offset on each table needs events.
    start: [Offset; TableId::COUNT],
    next_offset: Offset,
}

/// Everything that a shard had in its buffers, for writing to files.
#[derive(Debug)]
pub struct TakenRows {
    /// Rows of each table, in the order of their events.
    pub tables: [Vec<RecordBatch>; TableId::COUNT],
    /// The offset after the last event of which these rows, or earlier ones, hold all there is. Less than a table's own
    /// start offset while the log is read again after a start; nothing was taken for such a table then.
    pub next_offset: Offset,
}

/// What came of a block of events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IngestReport {
    /// Events that were taken.
    pub events: u64,
    /// Readings in them.
    pub readings: u64,
    /// Values, times or documents that were rejected.
    pub rejects: u64,
    /// When the last of these events arrived.
    pub last_received_at: Option<Timestamp>,
}

/// The latest of one device.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceSnapshot {
    /// Which device.
    pub device_id: Arc<str>,
    /// When its last event arrived.
    pub last_seen: Timestamp,
    /// Its metrics, by name.
    pub metrics: Vec<MetricSnapshot>,
}

/// The latest of one metric.
#[derive(Debug, Clone, PartialEq)]
pub struct MetricSnapshot {
    /// Dotted name.
    pub metric: Arc<str>,
    /// When it was measured.
    pub timestamp: Timestamp,
    /// What was measured.
    pub value: LiveValue,
    /// When the gateway received it.
    pub received_at: Timestamp,
}

/// A device that sent something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceSeen {
    /// Which device.
    pub device_id: Arc<str>,
    /// When its first known event arrived.
    pub first_seen: Timestamp,
    /// When its last event arrived.
    pub last_seen: Timestamp,
    /// Known events.
    pub events: u64,
    /// Distinct metrics.
    pub metrics: u64,
}

/// Figures of a shard.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ShardStats {
    /// Devices known.
    pub devices: usize,
    /// Metrics of all devices.
    pub metrics: usize,
    /// Memory of latest values and rollup states, in bytes.
    pub snapshot_bytes: usize,
    /// Memory of rows that are not in files yet, in bytes.
    pub buffered_bytes: usize,
    /// The offset after the last event taken.
    pub next_offset: Offset,
}

impl Shard {
    /// An empty shard with default bounds.
    #[must_use]
    pub fn new(partition: PartitionId) -> Arc<Self> {
        Self::with_config(partition, ShardConfig::default())
    }

    /// An empty shard.
    #[must_use]
    pub fn with_config(partition: PartitionId, config: ShardConfig) -> Arc<Self> {
        let state = State {
            config,
            devices: Devices::default(),
            rows: Rows::new(partition),
            start: [0; TableId::COUNT],
            next_offset: 0,
        };
        Arc::new(Self {
            partition,
            state: Mutex::new(state),
            buffered_bytes: AtomicUsize::new(0),
            taken_bytes: Default::default(),
            room: Notify::new(),
        })
    }

    /// Which partition.
    #[must_use]
    pub fn partition(&self) -> PartitionId {
        self.partition
    }

    /// Tells from which offset on each table needs events; before anything is ingested. The worker is to read from the
    /// least of them.
    pub fn set_start_offsets(&self, start: [Offset; TableId::COUNT]) {
        let mut state = self.state.lock();
        state.next_offset = start.into_iter().min().unwrap_or_default();
        state.start = start;
    }

    /// Takes those events of a block whose offsets are `wanted`; those that were taken before are skipped.
    pub fn ingest(
        &self,
        first_offset: Offset,
        events: &EventBatch,
        wanted: impl RangeBounds<Offset>,
        decoders: &mut WorkerDecoders,
        mut live: Option<&mut LiveBatch>,
    ) -> IngestReport {
        let mut report = IngestReport::default();
        let block = Block::new(events.as_bytes());
        let mut state = self.state.lock();
        let next = state.next_offset;
        state.rows.begin_block();
        let (mut chunk_events, mut chunk_bytes) = (0, 0);
        let end = match wanted.end_bound() {
            Bound::Included(&last) => last.saturating_add(1),
            Bound::Excluded(&end) => end,
            Bound::Unbounded => Offset::MAX,
        };
        let end = end.min(first_offset + Offset::from(events.len()));
        let events = (first_offset..end).zip(events);
        for (offset, event) in events.skip_while(|(offset, _)| *offset < next || !wanted.contains(offset)) {
            if chunk_events >= CHUNK_EVENTS_MAX || chunk_bytes >= CHUNK_BYTES_MAX {
                (chunk_events, chunk_bytes) = (0, 0);
                state.next_offset = offset;
                self.publish_bytes(&state);
                // Lets a waiting reader in. It may have taken the rows, and with them the place of the block.
                MutexGuard::bump(&mut state);
            }
            chunk_events += 1;
            chunk_bytes += event.payload.len();
            let decoder = decoders.get(event.event_type);
            let decoded = state.ingest(&block, offset, &event, decoder, live.as_deref_mut());
            report.events += 1;
            report.readings += u64::from(decoded.readings);
            report.rejects += u64::from(decoded.rejects);
            report.last_received_at = Some(event.received_at);
        }
        state.next_offset = state.next_offset.max(end);
        state.devices.tell_changes();
        self.publish_bytes(&state);
        report
    }

    /// Tells that there is nothing below `offset` that was not ingested, because the log has lost it.
    pub fn skip_to(&self, offset: Offset) {
        let mut state = self.state.lock();
        state.next_offset = state.next_offset.max(offset);
    }

    fn publish_bytes(&self, state: &State) {
        self.buffered_bytes.store(state.rows.bytes(), Ordering::Relaxed);
    }

    /// Takes all rows out, open rollup states included. Their memory stays in [`Shard::held_bytes`] until
    /// [`Shard::rows_written`].
    #[must_use]
    pub fn take_rows(&self) -> TakenRows {
        let mut state = self.state.lock();
        let State { devices, rows, .. } = &mut *state;
        devices.drain_rollups(rows);
        for (taken, bytes) in self.taken_bytes.iter().zip(rows.bytes_of_tables()) {
            taken.fetch_add(bytes, Ordering::Relaxed);
        }
        let taken = TakenRows { tables: rows.take(), next_offset: state.next_offset };
        self.publish_bytes(&state);
        taken
    }

    /// Forgets everything, as before the first event: the partition is another process's to work on.
    pub fn clear(&self) {
        let mut state = self.state.lock();
        *state = State {
            config: state.config,
            devices: Devices::default(),
            rows: Rows::new(self.partition),
            start: [0; TableId::COUNT],
            next_offset: 0,
        };
        self.publish_bytes(&state);
    }

    /// Tells that the rows of a table that were taken are where they are kept, and their memory is free.
    pub fn rows_written(&self, table: TableId) {
        self.taken_bytes[table.index()].store(0, Ordering::Relaxed);
        self.room.notify_waiters();
    }

    /// The same for all tables.
    pub fn all_rows_written(&self) {
        TableId::ALL.into_iter().for_each(|table| self.rows_written(table));
    }

    /// A copy of a table's rows for a query, open rollup states included.
    #[must_use]
    pub fn rows(&self, table: TableId) -> Vec<RecordBatch> {
        self.rows_for(table, None)
    }

    /// The same for a query that wants one device: of the open rollup states, which are copied under the lock, only its own.
    #[must_use]
    pub fn rows_for(&self, table: TableId, device_id: Option<&str>) -> Vec<RecordBatch> {
        let mut state = self.state.lock();
        let mut batches = state.rows.copy(table);
        if table == TableId::MetricRollups {
            batches.extend(match device_id {
                Some(device_id) => state.devices.open_rollups_of(device_id),
                None => state.devices.open_rollups(),
            });
        }
        batches
    }

    /// Memory of rows that [`Shard::take_rows`] would free, in bytes.
    #[must_use]
    pub fn buffered_bytes(&self) -> usize {
        self.buffered_bytes.load(Ordering::Relaxed)
    }

    /// Memory of all rows that are not in files yet, taken or not, in bytes.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        let taken: usize = self.taken_bytes.iter().map(|bytes| bytes.load(Ordering::Relaxed)).sum();
        self.buffered_bytes() + taken
    }

    /// Notified (all who wait) whenever [`Shard::rows_written`] has freed memory.
    #[must_use]
    pub fn room_notify(&self) -> &Notify {
        &self.room
    }

    /// Fills the latest values on start from rows of `raw_metrics` (its columns, any order). Older values than those
    /// known are ignored.
    pub fn restore_latest(&self, batch: &RecordBatch) {
        let mut state = self.state.lock();
        let State { config, devices, .. } = &mut *state;
        devices.restore_latest(config, batch);
    }

    /// Counts the events of devices on start, from rows of `raw_events` (its columns `device_id`, `received_at` and
    /// `log_offset`, any order): those below the start offset of that table, which are not counted when they are read again.
    pub fn restore_events(&self, batch: &RecordBatch) {
        let mut state = self.state.lock();
        let State { config, devices, .. } = &mut *state;
        devices.restore_events(config, batch);
    }

    /// Fills devices and latest values on start with what [`Shard::saved_rows`] gave, before anything else.
    pub(crate) fn restore_saved(&self, batch: &RecordBatch) {
        let mut state = self.state.lock();
        let State { config, devices, .. } = &mut *state;
        devices.restore_saved(config, batch);
    }

    /// All devices and latest values, some devices a batch, by [`saved_schema`]. Each device is consistent in itself.
    pub(crate) fn saved_rows(&self) -> impl Iterator<Item = RecordBatch> + '_ {
        (0..).step_by(CHUNK_DEVICES).map_while(|from| {
            let state = self.state.lock();
            state.devices.saved_rows(from, CHUNK_DEVICES, state.next_offset)
        })
    }

    /// The latest values of one device.
    #[must_use]
    pub fn snapshot(&self, device_id: &str) -> Option<DeviceSnapshot> {
        self.state.lock().devices.snapshot(device_id)
    }

    /// One device, if it sent something.
    #[must_use]
    pub fn device(&self, device_id: &str) -> Option<DeviceSeen> {
        self.state.lock().devices.seen(device_id)
    }

    /// Devices in the order of their ids, from the first after `after` on.
    #[must_use]
    pub fn devices(&self, after: Option<&str>, limit: usize) -> Vec<DeviceSeen> {
        self.state.lock().devices.list(after, limit)
    }

    /// The latest values of all devices, by [`snapshot_schema`]. Each device is consistent in itself.
    #[must_use]
    pub fn snapshot_batch(&self) -> RecordBatch {
        self.in_chunks(snapshot_schema(), |state, from| state.devices.snapshot_rows(from, CHUNK_DEVICES))
    }

    /// All devices, by [`devices_schema`].
    #[must_use]
    pub fn devices_batch(&self) -> RecordBatch {
        self.in_chunks(devices_schema(), |state, from| state.devices.seen_rows(from, CHUNK_DEVICES))
    }

    /// Figures of the shard.
    #[must_use]
    pub fn stats(&self) -> ShardStats {
        let state = self.state.lock();
        ShardStats {
            devices: state.devices.len(),
            metrics: state.devices.metrics(),
            snapshot_bytes: state.devices.bytes(),
            buffered_bytes: state.rows.bytes(),
            next_offset: state.next_offset,
        }
    }

    /// Copies all devices with the lock released in between; devices are only ever added at the end.
    fn in_chunks(
        &self,
        schema: SchemaRef,
        rows: impl Fn(&State, usize) -> Option<RecordBatch>,
    ) -> RecordBatch {
        let mut batches = Vec::new();
        for from in (0..).step_by(CHUNK_DEVICES) {
            let Some(batch) = rows(&self.state.lock(), from) else { break };
            batches.push(batch);
        }
        arrow::compute::concat_batches(&schema, &batches).unwrap_or_else(|_| RecordBatch::new_empty(schema))
    }
}

impl fmt::Debug for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shard").field("partition", &self.partition).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
