//! What devices know over a restart: pages of it for the snapshot file, and the way back from that file and from the
//! tables' rows.

use std::sync::{Arc, LazyLock};

use arrow::array::builder::{Float64Builder, Int64Builder, StringViewBuilder, TimestampMicrosecondBuilder};
use arrow::array::cast::AsArray;
use arrow::array::types::{Float64Type, Int64Type, TimestampMicrosecondType};
use arrow::array::{Array, ArrayRef, Float64Array, Int64Array, StringViewArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use catchment_types::{Offset, Timestamp, Value};

use super::{Devices, Latest};
use crate::shard::ShardConfig;
use crate::shard::rows::batch;
use crate::tables::timestamp_type;

/// Columns of the snapshot file: one row a metric, those of a device one after the other; a device without metrics has one
/// row in which all from `metric_name` on is NULL.
pub(crate) fn saved_schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
        Arc::new(Schema::new(vec![
            Field::new("device_id", DataType::Utf8View, false),
            Field::new("first_seen", timestamp_type(), false),
            Field::new("last_seen", timestamp_type(), false),
            Field::new("events", DataType::Int64, false),
            // Events of the device below this offset are in `events`.
            Field::new("counted_to", DataType::Int64, false),
            Field::new("metric_name", DataType::Utf8View, true),
            Field::new("timestamp", timestamp_type(), true),
            Field::new("metric_value", DataType::Float64, true),
            Field::new("text_value", DataType::Utf8View, true),
            Field::new("received_at", timestamp_type(), true),
            Field::new("log_offset", DataType::Int64, true),
        ]))
    });
    Arc::clone(&SCHEMA)
}

impl Devices {
    /// Some devices with their latest values, by [`saved_schema`]; nothing when there are none. `next`: the offset after the
    /// last event that was taken.
    pub(in crate::shard) fn saved_rows(
        &self,
        from: usize,
        count: usize,
        next: Offset,
    ) -> Option<RecordBatch> {
        let devices = self.chunk(from, count)?;
        let mut ids = StringViewBuilder::new();
        let [mut first, mut last, mut times, mut received] =
            std::array::from_fn(|_| TimestampMicrosecondBuilder::new().with_timezone("UTC"));
        let [mut events, mut counted, mut offsets] = std::array::from_fn(|_| Int64Builder::new());
        let [mut names, mut texts] = std::array::from_fn(|_| StringViewBuilder::new());
        let mut numbers = Float64Builder::new();
        for device in devices {
            let slots = device.slots.iter().map(Some);
            for slot in slots.chain(device.slots.is_empty().then_some(None)) {
                ids.append_value(&device.id);
                first.append_value(device.first_seen.as_micros());
                last.append_value(device.last_seen.as_micros());
                events.append_value(device.events.cast_signed());
                counted.append_value(next.max(device.counted_to).cast_signed());
                names.append_option(slot.map(|slot| &*slot.name));
                times.append_option(slot.map(|slot| slot.timestamp.as_micros()));
                let value = slot.map(|slot| slot.value.as_value());
                numbers.append_option(value.as_ref().and_then(|value| value.number()));
                texts.append_option(value.as_ref().and_then(|value| value.text()));
                received.append_option(slot.map(|slot| slot.received_at.as_micros()));
                offsets.append_option(slot.map(|slot| slot.offset.cast_signed()));
            }
        }
        let columns: Vec<ArrayRef> = vec![
            Arc::new(ids.finish()),
            Arc::new(first.finish()),
            Arc::new(last.finish()),
            Arc::new(events.finish()),
            Arc::new(counted.finish()),
            Arc::new(names.finish()),
            Arc::new(times.finish()),
            Arc::new(numbers.finish()),
            Arc::new(texts.finish()),
            Arc::new(received.finish()),
            Arc::new(offsets.finish()),
        ];
        Some(batch(saved_schema(), columns))
    }

    /// Devices and latest values as [`Devices::saved_rows`] gave them, before anything else is known. What has no room is
    /// left out.
    pub(in crate::shard) fn restore_saved(&mut self, config: &ShardConfig, rows: &RecordBatch) {
        let columns = (|| {
            let times = |name| times(rows, name);
            Some((
                (strings(rows, "device_id")?, times("first_seen")?, times("last_seen")?),
                (integers(rows, "events")?, integers(rows, "counted_to")?),
                (times("received_at")?, Values::of(rows)?),
            ))
        })();
        let Some(((ids, first, last), (events, counted), (received, values))) = columns else {
            return lacks_columns("the snapshot file");
        };
        for row in 0..rows.num_rows() {
            let Ok(at) = self.find_or_add(config, ids.value(row), Timestamp(first.value(row))) else {
                continue;
            };
            let device = self.device_mut(at);
            device.see(Timestamp(last.value(row)));
            device.events = u64::try_from(events.value(row)).unwrap_or_default();
            device.counted_to = counted.value(row).cast_unsigned();
            if let Some((metric, latest)) = values.latest(row) {
                let latest = Latest { received_at: Timestamp(received.value(row)), ..latest };
                // There was room for it before; with less now, the rest goes without.
                let _ = self.restore_value(config, at, metric, latest);
            }
        }
    }

    /// Latest values from rows with the columns of `raw_metrics`. What has no room is left out.
    pub(in crate::shard) fn restore_latest(&mut self, config: &ShardConfig, rows: &RecordBatch) {
        let Some((ids, values)) = strings(rows, "device_id").zip(Values::of(rows)) else {
            return lacks_columns("raw_metrics");
        };
        for row in 0..rows.num_rows() {
            let Some((metric, latest)) = values.latest(row) else { continue };
            let Ok(at) = self.find_or_add(config, ids.value(row), latest.timestamp) else { continue };
            if self.restore_value(config, at, metric, latest).is_ok() {
                self.device_mut(at).see(latest.timestamp);
            }
        }
    }

    /// Counts events from rows with the columns `device_id`, `received_at` and `log_offset` of `raw_events`, but for those
    /// that are counted already.
    pub(in crate::shard) fn restore_events(&mut self, config: &ShardConfig, rows: &RecordBatch) {
        let columns = (|| {
            Some((strings(rows, "device_id")?, times(rows, "received_at")?, integers(rows, "log_offset")?))
        })();
        let Some((ids, received, offsets)) = columns else { return lacks_columns("raw_events") };
        for row in 0..rows.num_rows() {
            let seen = Timestamp(received.value(row));
            let Ok(at) = self.find_or_add(config, ids.value(row), seen) else { continue };
            let device = self.device_mut(at);
            device.see(seen);
            device.events += u64::from(offsets.value(row).cast_unsigned() >= device.counted_to);
        }
    }

    pub(in crate::shard) fn restore_value(
        &mut self,
        config: &ShardConfig,
        device: super::DeviceAt,
        metric: &str,
        latest: Latest<'_>,
    ) -> Result<(), super::Full> {
        match self.find_slot(device, metric) {
            Some(slot) => self.update(config, device, slot, latest),
            None => self.add_slot(config, device, metric, latest).map(|_| ()),
        }
    }
}

/// Columns that make a latest value.
struct Values<'a> {
    timestamps: &'a TimestampMicrosecondArray,
    names: &'a StringViewArray,
    numbers: &'a Float64Array,
    texts: &'a StringViewArray,
    offsets: &'a Int64Array,
}

impl<'a> Values<'a> {
    fn of(rows: &'a RecordBatch) -> Option<Self> {
        Some(Self {
            timestamps: times(rows, "timestamp")?,
            names: strings(rows, "metric_name")?,
            numbers: rows.column_by_name("metric_value")?.as_primitive_opt::<Float64Type>()?,
            texts: strings(rows, "text_value")?,
            offsets: integers(rows, "log_offset")?,
        })
    }

    /// Metric and value of a row, if it has one. When it arrived is not in every table; the time of measurement comes
    /// closest.
    fn latest(&self, row: usize) -> Option<(&'a str, Latest<'a>)> {
        let value = match (self.numbers.is_valid(row), self.texts.is_valid(row)) {
            (true, true) => Value::Bool(self.numbers.value(row) != 0.0),
            (true, false) => Value::Number(self.numbers.value(row)),
            (false, true) => Value::Text(self.texts.value(row)),
            (false, false) => return None,
        };
        let timestamp = Timestamp(self.timestamps.value(row));
        let offset = self.offsets.value(row).cast_unsigned();
        Some((self.names.value(row), Latest { timestamp, offset, received_at: timestamp, value }))
    }
}

fn strings<'a>(rows: &'a RecordBatch, name: &str) -> Option<&'a StringViewArray> {
    rows.column_by_name(name)?.as_string_view_opt()
}

fn times<'a>(rows: &'a RecordBatch, name: &str) -> Option<&'a TimestampMicrosecondArray> {
    rows.column_by_name(name)?.as_primitive_opt::<TimestampMicrosecondType>()
}

fn integers<'a>(rows: &'a RecordBatch, name: &str) -> Option<&'a Int64Array> {
    rows.column_by_name(name)?.as_primitive_opt::<Int64Type>()
}

fn lacks_columns(of: &str) {
    tracing::error!("not everything is restored: a batch lacks a column of {of}");
}
