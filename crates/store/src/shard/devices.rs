//! Devices of a partition, the latest value and the open minute of each of their metrics.

mod restore;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Bound;
use std::sync::{Arc, LazyLock};

use arrow::array::ArrayRef;
use arrow::array::builder::{Float64Builder, Int64Builder, StringViewBuilder, TimestampMicrosecondBuilder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use catchment_types::{Offset, Timestamp, Value};
use foldhash::fast::RandomState;

use super::changes::{Changes, DeviceState, MetricState};
use super::rows::{Rollup, Rows, batch, rollup_batch};
use super::{DeviceSeen, DeviceSnapshot, MetricSnapshot, ShardConfig};
use crate::live::LiveValue;
use crate::tables::timestamp_type;

pub(crate) use self::restore::saved_schema;

/// Devices with more metrics than this find them by hash.
const SCANNED_METRICS_MAX: usize = 16;
/// Estimated memory of an entry of a map, in bytes.
const ENTRY_BYTES: usize = 32;

/// Columns of the table `snapshot`.
#[must_use]
pub fn snapshot_schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
        Arc::new(Schema::new(vec![
            Field::new("device_id", DataType::Utf8View, false),
            Field::new("metric_name", DataType::Utf8View, false),
            Field::new("timestamp", timestamp_type(), false),
            Field::new("metric_value", DataType::Float64, true),
            Field::new("text_value", DataType::Utf8View, true),
            Field::new("received_at", timestamp_type(), false),
        ]))
    });
    Arc::clone(&SCHEMA)
}

/// Columns of what shards know about devices: `device_id`, `first_seen`, `last_seen`, `events`, `metrics`.
#[must_use]
pub fn devices_schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
        Arc::new(Schema::new(vec![
            Field::new("device_id", DataType::Utf8View, false),
            Field::new("first_seen", timestamp_type(), false),
            Field::new("last_seen", timestamp_type(), false),
            Field::new("events", DataType::Int64, false),
            Field::new("metrics", DataType::Int64, false),
        ]))
    });
    Arc::clone(&SCHEMA)
}

/// The devices of a partition, in the order in which they were first seen.
#[derive(Debug, Default)]
pub(super) struct Devices {
    pub(super) list: Vec<Device>,
    by_id: HashMap<Arc<str>, u32, RandomState>,
    by_order: BTreeMap<Arc<str>, u32>,
    /// Metric names, once for all devices.
    names: HashSet<Arc<str>, RandomState>,
    /// Devices that have open rollup states.
    open: Vec<u32>,
    metrics: usize,
    bytes: usize,
    /// Marks of devices that changed, if anybody follows.
    pub(super) changes: Option<Changes>,
}

#[derive(Debug)]
pub(super) struct Device {
    pub(super) id: Arc<str>,
    pub(super) first_seen: Timestamp,
    pub(super) last_seen: Timestamp,
    pub(super) events: u64,
    /// Events below this offset are in `events` already; they may come again after a start.
    pub(super) counted_to: Offset,
    slots: Vec<Slot>,
    by_name: HashMap<Arc<str>, u32, RandomState>,
    /// Where the next reading's slot is if metrics come in the same order as in the last event.
    expected: usize,
    is_open: bool,
    /// Whether it is marked as changed.
    pub(super) is_marked: bool,
    /// Values of events below this offset were told to who follows changes.
    pub(super) told_to: Offset,
}

/// One metric of one device.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) name: Arc<str>,
    timestamp: Timestamp,
    offset: Offset,
    received_at: Timestamp,
    value: LiveValue,
    /// Nothing while `count` is 0.
    rollup: Rollup,
}

/// Which device, by its place in the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DeviceAt(u32);

impl DeviceAt {
    pub(super) fn new(index: usize) -> Option<Self> {
        u32::try_from(index).ok().map(Self)
    }

    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

/// Which slot of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SlotAt(usize);

/// There is no room for another device, metric or text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

impl Devices {
    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn metrics(&self) -> usize {
        self.metrics
    }

    /// Estimated memory, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn find(&self, device_id: &str) -> Option<DeviceAt> {
        self.by_id.get(device_id).copied().map(DeviceAt)
    }

    pub(super) fn find_or_add(
        &mut self,
        config: &ShardConfig,
        device_id: &str,
        seen: Timestamp,
    ) -> Result<DeviceAt, Full> {
        if let Some(at) = self.find(device_id) {
            return Ok(at);
        }
        let bytes = size_of::<Device>() + 2 * ENTRY_BYTES + device_id.len();
        if self.list.len() >= config.devices_max || self.bytes + bytes > config.snapshot_bytes_max {
            return Err(Full);
        }
        let at = u32::try_from(self.list.len()).map_err(|_| Full)?;
        let id: Arc<str> = device_id.into();
        self.by_id.insert(Arc::clone(&id), at);
        self.by_order.insert(Arc::clone(&id), at);
        self.list.push(Device {
            id,
            first_seen: seen,
            last_seen: seen,
            events: 0,
            counted_to: 0,
            slots: Vec::new(),
            by_name: HashMap::default(),
            expected: 0,
            is_open: false,
            is_marked: false,
            told_to: 0,
        });
        self.bytes += bytes;
        Ok(DeviceAt(at))
    }

    pub(super) fn device(&self, DeviceAt(at): DeviceAt) -> &Device {
        &self.list[at as usize]
    }

    pub(super) fn device_mut(&mut self, DeviceAt(at): DeviceAt) -> &mut Device {
        &mut self.list[at as usize]
    }

    pub(super) fn slot(&self, device: DeviceAt, SlotAt(at): SlotAt) -> &Slot {
        &self.device(device).slots[at]
    }

    /// The slot of a metric, if there is one.
    pub(super) fn find_slot(&mut self, device: DeviceAt, metric: &str) -> Option<SlotAt> {
        let device = self.device_mut(device);
        let at = match device.slots.get(device.expected) {
            Some(slot) if *slot.name == *metric => device.expected,
            _ if device.slots.len() <= SCANNED_METRICS_MAX => {
                device.slots.iter().position(|slot| *slot.name == *metric)?
            }
            _ => *device.by_name.get(metric)? as usize,
        };
        device.expected = at + 1;
        Some(SlotAt(at))
    }

    /// A new slot with its first value.
    pub(super) fn add_slot(
        &mut self,
        config: &ShardConfig,
        device_at: DeviceAt,
        metric: &str,
        latest: Latest<'_>,
    ) -> Result<SlotAt, Full> {
        let bytes = size_of::<Slot>() + ENTRY_BYTES + latest.value.text().map_or(0, str::len);
        let name = self.names.get(metric).cloned();
        let name_bytes = if name.is_some() { 0 } else { metric.len() + ENTRY_BYTES };
        if self.device(device_at).slots.len() >= config.metrics_per_device_max
            || self.bytes + bytes + name_bytes > config.snapshot_bytes_max
        {
            return Err(Full);
        }
        let name = name.unwrap_or_else(|| {
            let name: Arc<str> = metric.into();
            self.names.insert(Arc::clone(&name));
            name
        });
        self.bytes += bytes + name_bytes;
        self.metrics += 1;
        let device = self.device_mut(device_at);
        let at = device.slots.len();
        device.slots.push(Slot {
            name,
            timestamp: latest.timestamp,
            offset: latest.offset,
            received_at: latest.received_at,
            value: latest.value.into(),
            rollup: Rollup { bucket: Timestamp(0), sum: 0.0, min: 0.0, max: 0.0, count: 0 },
        });
        if device.slots.len() > SCANNED_METRICS_MAX {
            // On crossing the bound, those before come in too.
            for (at, slot) in device.slots.iter().enumerate().skip(device.by_name.len()) {
                device.by_name.insert(Arc::clone(&slot.name), at as u32);
            }
        }
        device.expected = at + 1;
        Ok(SlotAt(at))
    }

    /// Takes a value as the latest if it is: the newest timestamp wins, of equal ones the later offset.
    pub(super) fn update(
        &mut self,
        config: &ShardConfig,
        device: DeviceAt,
        SlotAt(at): SlotAt,
        latest: Latest<'_>,
    ) -> Result<(), Full> {
        let bytes_free = config.snapshot_bytes_max.saturating_sub(self.bytes);
        let slot = &mut self.list[device.0 as usize].slots[at];
        if (latest.timestamp, latest.offset) < (slot.timestamp, slot.offset) {
            return Ok(());
        }
        if !slot.value.is(latest.value) {
            let text_bytes = |value: Value<'_>| match value {
                Value::Text(text) => text.len(),
                _ => 0,
            };
            let (old, new) = (text_bytes(slot.value.as_value()), text_bytes(latest.value));
            if new.saturating_sub(old) > bytes_free {
                return Err(Full);
            }
            self.bytes = self.bytes - old + new;
            slot.value = latest.value.into();
        }
        slot.timestamp = latest.timestamp;
        slot.offset = latest.offset;
        slot.received_at = latest.received_at;
        Ok(())
    }

    /// Merges a number into the open state of its minute; the state of another minute becomes a row.
    pub(super) fn roll_up(
        &mut self,
        rows: &mut Rows,
        device_at: DeviceAt,
        SlotAt(at): SlotAt,
        timestamp: Timestamp,
        number: f64,
    ) {
        let device = &mut self.list[device_at.0 as usize];
        if !device.is_open {
            device.is_open = true;
            self.open.push(device_at.0);
        }
        let slot = &mut device.slots[at];
        let bucket = timestamp.floor(Timestamp::MINUTE);
        let rollup = &mut slot.rollup;
        if rollup.count > 0 && rollup.bucket == bucket {
            rollup.sum += number;
            rollup.min = rollup.min.min(number);
            rollup.max = rollup.max.max(number);
            rollup.count += 1;
        } else {
            if rollup.count > 0 {
                rows.push_rollup(&device.id, &slot.name, rollup);
            }
            *rollup = Rollup { bucket, sum: number, min: number, max: number, count: 1 };
        }
    }

    /// Makes rows of all open states.
    pub(super) fn drain_rollups(&mut self, rows: &mut Rows) {
        for at in self.open.drain(..) {
            let device = &mut self.list[at as usize];
            device.is_open = false;
            for slot in device.slots.iter_mut().filter(|slot| slot.rollup.count > 0) {
                rows.push_rollup(&device.id, &slot.name, &slot.rollup);
                slot.rollup.count = 0;
            }
        }
    }

    /// Rows of all open states, which stay open.
    pub(super) fn open_rollups(&self) -> Option<RecordBatch> {
        rollup_batch(self.open.iter().flat_map(|&at| self.list[at as usize].open_rollups()))
    }

    /// The same of one device.
    pub(super) fn open_rollups_of(&self, device_id: &str) -> Option<RecordBatch> {
        rollup_batch(self.device(self.find(device_id)?).open_rollups())
    }

    pub(super) fn snapshot(&self, device_id: &str) -> Option<DeviceSnapshot> {
        let device = self.device(self.find(device_id)?);
        let mut metrics: Vec<_> = device
            .slots
            .iter()
            .map(|slot| MetricSnapshot {
                metric: Arc::clone(&slot.name),
                timestamp: slot.timestamp,
                value: slot.value.clone(),
                received_at: slot.received_at,
            })
            .collect();
        metrics.sort_unstable_by(|a, b| a.metric.cmp(&b.metric));
        Some(DeviceSnapshot { device_id: Arc::clone(&device.id), last_seen: device.last_seen, metrics })
    }

    pub(super) fn seen(&self, device_id: &str) -> Option<DeviceSeen> {
        self.find(device_id).map(|at| self.device(at).seen())
    }

    pub(super) fn list(&self, after: Option<&str>, limit: usize) -> Vec<DeviceSeen> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let devices = self.by_order.range::<str, _>((start, Bound::Unbounded));
        devices.take(limit).map(|(_, &at)| self.list[at as usize].seen()).collect()
    }

    /// Latest values of some devices; nothing when there are none.
    pub(super) fn snapshot_rows(&self, from: usize, count: usize) -> Option<RecordBatch> {
        let devices = self.chunk(from, count)?;
        let mut device_ids = StringViewBuilder::new();
        let mut names = StringViewBuilder::new();
        let mut timestamps = TimestampMicrosecondBuilder::new().with_timezone("UTC");
        let mut values = Float64Builder::new();
        let mut texts = StringViewBuilder::new();
        let mut received = TimestampMicrosecondBuilder::new().with_timezone("UTC");
        for (device, slot) in devices.iter().flat_map(|d| d.slots.iter().map(move |slot| (d, slot))) {
            device_ids.append_value(&device.id);
            names.append_value(&slot.name);
            timestamps.append_value(slot.timestamp.as_micros());
            values.append_option(slot.value.as_value().number());
            texts.append_option(slot.value.as_value().text());
            received.append_value(slot.received_at.as_micros());
        }
        let columns: Vec<ArrayRef> = vec![
            Arc::new(device_ids.finish()),
            Arc::new(names.finish()),
            Arc::new(timestamps.finish()),
            Arc::new(values.finish()),
            Arc::new(texts.finish()),
            Arc::new(received.finish()),
        ];
        Some(batch(snapshot_schema(), columns))
    }

    /// Some devices; nothing when there are none.
    pub(super) fn seen_rows(&self, from: usize, count: usize) -> Option<RecordBatch> {
        let devices = self.chunk(from, count)?;
        let mut ids = StringViewBuilder::new();
        let mut first = TimestampMicrosecondBuilder::new().with_timezone("UTC");
        let mut last = TimestampMicrosecondBuilder::new().with_timezone("UTC");
        let mut events = Int64Builder::new();
        let mut metrics = Int64Builder::new();
        for device in devices {
            ids.append_value(&device.id);
            first.append_value(device.first_seen.as_micros());
            last.append_value(device.last_seen.as_micros());
            events.append_value(device.events.cast_signed());
            metrics.append_value(device.slots.len() as i64);
        }
        let columns: Vec<ArrayRef> = vec![
            Arc::new(ids.finish()),
            Arc::new(first.finish()),
            Arc::new(last.finish()),
            Arc::new(events.finish()),
            Arc::new(metrics.finish()),
        ];
        Some(batch(devices_schema(), columns))
    }

    fn chunk(&self, from: usize, count: usize) -> Option<&[Device]> {
        self.list.get(from..).map(|rest| &rest[..rest.len().min(count)]).filter(|chunk| !chunk.is_empty())
    }
}

/// A value that may be the latest of its metric.
#[derive(Debug, Clone, Copy)]
pub(super) struct Latest<'a> {
    pub(super) timestamp: Timestamp,
    pub(super) offset: Offset,
    pub(super) received_at: Timestamp,
    pub(super) value: Value<'a>,
}

impl Device {
    /// Notes that it sent something then.
    pub(super) fn see(&mut self, at: Timestamp) {
        self.first_seen = self.first_seen.min(at);
        self.last_seen = self.last_seen.max(at);
    }

    /// Notes that an event begins: its first metric is expected to be the first.
    pub(super) fn begin_event(&mut self) {
        self.expected = 0;
    }

    /// What is known of it, with those metrics whose value came with an event from `from` on. `next`: the offset after the last
    /// event that was taken.
    pub(super) fn state(&self, from: Offset, next: Offset) -> DeviceState {
        let changed = self.slots.iter().filter(|slot| slot.offset >= from);
        let metric = |slot: &Slot| MetricState {
            metric: Arc::clone(&slot.name),
            timestamp: slot.timestamp,
            received_at: slot.received_at,
            offset: slot.offset,
            value: slot.value.clone(),
        };
        DeviceState {
            device_id: Arc::clone(&self.id),
            first_seen: self.first_seen,
            last_seen: self.last_seen,
            events: self.events,
            counted_to: next.max(self.counted_to),
            metrics: changed.map(metric).collect(),
        }
    }

    fn open_rollups(&self) -> impl Iterator<Item = (&str, &str, &Rollup)> {
        let open = self.slots.iter().filter(|slot| slot.rollup.count > 0);
        open.map(|slot| (&*self.id, &*slot.name, &slot.rollup))
    }

    fn seen(&self) -> DeviceSeen {
        DeviceSeen {
            device_id: Arc::clone(&self.id),
            first_seen: self.first_seen,
            last_seen: self.last_seen,
            events: self.events,
            metrics: self.slots.len() as u64,
        }
    }
}
