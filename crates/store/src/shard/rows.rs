//! Rows of the tables that are not in files yet: columns under construction and sealed batches.

use std::sync::Arc;

use arrow::array::builder::{
    ArrayBuilder, Float64Builder, Int32Builder, Int64Builder, StringViewBuilder, TimestampMicrosecondBuilder,
};
use arrow::array::types::{BinaryViewType, StringViewType};
use arrow::record_batch::RecordBatch;
use catchment_types::{Event, Offset, PartitionId, Reading, RejectReason, Timestamp};

use super::block::{Block, INLINE_BYTES_MAX, ViewColumn};
use crate::tables::TableId;

/// Most rows of a batch. Small enough that a query's copy of the open one is cheap.
const ROWS_MAX: usize = 8192;

/// The rows of all tables.
pub(super) struct Rows {
    partition: i32,
    raw_events: Table<RawEvents>,
    raw_metrics: Table<RawMetrics>,
    rollups: Table<Rollups>,
    rejects: Table<Rejects>,
    /// Memory of each table's rows. A block of the log is counted with the events, whose payloads it has; what else refers to it
    /// holds it little longer.
    bytes: [usize; TableId::COUNT],
    /// Whether the current block's memory is in `bytes`.
    block_counted: bool,
}

/// One table: the batch under construction and those that are full.
struct Table<B> {
    open: Option<B>,
    /// Rows of the open batch.
    rows: usize,
    sealed: Vec<RecordBatch>,
}

/// Columns of one table under construction.
trait Batch: Sized {
    const TABLE: TableId;
    /// Memory of a row with all texts inline, in bytes.
    const ROW_BYTES: usize;
    fn with_capacity(rows: usize) -> Self;
    fn begin_block(&mut self);
    /// All columns, in the order of the schema.
    fn columns(&mut self) -> Vec<&mut dyn ArrayBuilder>;
}

impl<B: Batch> Table<B> {
    const NEW: Self = Self { open: None, rows: 0, sealed: Vec::new() };

    fn begin_block(&mut self) {
        if let Some(open) = &mut self.open {
            open.begin_block();
        }
    }

    /// The batch to append one row to.
    fn open(&mut self) -> &mut B {
        if self.rows >= ROWS_MAX {
            self.seal();
        }
        self.rows += 1;
        self.open.get_or_insert_with(|| B::with_capacity(ROWS_MAX))
    }

    fn seal(&mut self) {
        self.rows = 0;
        if let Some(mut open) = self.open.take() {
            let columns = open.columns().into_iter().map(|column| column.finish()).collect();
            self.sealed.push(
                RecordBatch::try_new(B::TABLE.schema(), columns)
                    .expect("the columns are those of the schema"),
            );
        }
    }

    fn take(&mut self) -> Vec<RecordBatch> {
        self.seal();
        std::mem::take(&mut self.sealed)
    }

    fn copy(&mut self) -> Vec<RecordBatch> {
        let mut batches = self.sealed.clone();
        if let Some(open) = &mut self.open {
            let columns = open.columns().into_iter().map(|column| column.finish_cloned()).collect();
            batches.push(
                RecordBatch::try_new(B::TABLE.schema(), columns)
                    .expect("the columns are those of the schema"),
            );
        }
        batches
    }
}

/// A partial aggregate of one minute of one metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rollup {
    pub(super) bucket: Timestamp,
    pub(super) sum: f64,
    pub(super) min: f64,
    pub(super) max: f64,
    pub(super) count: i64,
}

impl Rows {
    pub(super) fn new(partition: PartitionId) -> Self {
        Self {
            // More partitions than that do not exist.
            partition: i32::try_from(partition).unwrap_or(i32::MAX),
            raw_events: Table::NEW,
            raw_metrics: Table::NEW,
            rollups: Table::NEW,
            rejects: Table::NEW,
            bytes: [0; TableId::COUNT],
            block_counted: false,
        }
    }

    /// Memory of all rows, blocks of the log that they refer to included, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.iter().sum()
    }

    /// The same for each table.
    pub(super) fn bytes_of_tables(&self) -> [usize; TableId::COUNT] {
        self.bytes
    }

    /// Forgets the block of the log that rows were taken from.
    pub(super) fn begin_block(&mut self) {
        self.block_counted = false;
        self.raw_events.begin_block();
        self.raw_metrics.begin_block();
        self.rejects.begin_block();
    }

    pub(super) fn take(&mut self) -> [Vec<RecordBatch>; TableId::COUNT] {
        self.bytes = [0; TableId::COUNT];
        self.block_counted = false;
        TableId::ALL.map(|table| match table {
            TableId::RawEvents => self.raw_events.take(),
            TableId::RawMetrics => self.raw_metrics.take(),
            TableId::MetricRollups => self.rollups.take(),
            TableId::Rejects => self.rejects.take(),
        })
    }

    pub(super) fn copy(&mut self, table: TableId) -> Vec<RecordBatch> {
        match table {
            TableId::RawEvents => self.raw_events.copy(),
            TableId::RawMetrics => self.raw_metrics.copy(),
            TableId::MetricRollups => self.rollups.copy(),
            TableId::Rejects => self.rejects.copy(),
        }
    }

    /// Counts a row, and what its texts take up: with a shared block the whole block, once.
    fn count<B: Batch>(&mut self, block: &Block<'_>, from_block: usize, copied: usize) {
        self.bytes[B::TABLE.index()] += B::ROW_BYTES + copied;
        match block.shared_bytes() {
            None => self.bytes[B::TABLE.index()] += from_block,
            Some(bytes) if !self.block_counted => {
                self.bytes[TableId::RawEvents.index()] += bytes;
                self.block_counted = true;
            }
            Some(_) => {}
        }
    }

    pub(super) fn push_event(
        &mut self,
        block: &Block<'_>,
        offset: Offset,
        event: &Event<'_>,
        event_time: Timestamp,
    ) {
        let partition = self.partition;
        let row = self.raw_events.open();
        row.device_id.append_from(block, event.device_id);
        row.received_at.append_value(event.received_at.as_micros());
        row.event_time.append_value(event_time.as_micros());
        row.event_type.append_from(block, event.event_type);
        row.topic.append_from(block, event.topic);
        row.content_type.append_from(block, event.content_type);
        row.payload.append_from(block, event.payload);
        row.log_partition.append_value(partition);
        row.log_offset.append_value(offset.cast_signed());
        self.count::<RawEvents>(block, event_bytes(event), 0);
    }

    pub(super) fn push_reading(
        &mut self,
        block: &Block<'_>,
        offset: Offset,
        event: &Event<'_>,
        reading: &Reading<'_>,
    ) {
        let partition = self.partition;
        let row = self.raw_metrics.open();
        row.device_id.append_from(block, event.device_id);
        row.timestamp.append_value(reading.timestamp.as_micros());
        row.metric_name.append_value(reading.metric);
        row.metric_value.append_option(reading.value.number());
        let text = reading.value.text();
        row.text_value.append_option(text);
        match event.tags {
            "" => row.metadata.builder.append_null(),
            tags => row.metadata.append_from(block, tags),
        }
        row.log_partition.append_value(partition);
        row.log_offset.append_value(offset.cast_signed());
        let copied = long(reading.metric) + text.map_or(0, long);
        self.count::<RawMetrics>(block, long(event.device_id) + long(event.tags), copied);
    }

    pub(super) fn push_rollup(&mut self, device_id: &str, metric: &str, rollup: &Rollup) {
        self.bytes[Rollups::TABLE.index()] += Rollups::ROW_BYTES + long(device_id) + long(metric);
        self.rollups.open().push(device_id, metric, rollup);
    }

    pub(super) fn push_reject(
        &mut self,
        block: &Block<'_>,
        offset: Offset,
        event: &Event<'_>,
        reason: RejectReason,
        detail: &str,
    ) {
        let partition = self.partition;
        let row = self.rejects.open();
        row.device_id.append_from(block, event.device_id);
        row.received_at.append_value(event.received_at.as_micros());
        row.event_type.append_from(block, event.event_type);
        row.topic.append_from(block, event.topic);
        row.reason.append_value(reason.as_str());
        row.detail.append_value(detail);
        row.payload.append_from(block, event.payload);
        row.log_partition.append_value(partition);
        row.log_offset.append_value(offset.cast_signed());
        self.count::<Rejects>(block, event_bytes(event), long(detail) + long(reason.as_str()));
    }
}

/// Bytes of a text beyond what its view holds.
fn long(text: &str) -> usize {
    if text.len() > INLINE_BYTES_MAX { text.len() } else { 0 }
}

fn event_bytes(event: &Event<'_>) -> usize {
    event.payload.len()
        + long(event.device_id)
        + long(event.topic)
        + long(event.event_type)
        + long(event.content_type)
}

/// Rows of rollups as one batch, for a query.
pub(super) fn rollup_batch<'a>(
    rows: impl Iterator<Item = (&'a str, &'a str, &'a Rollup)>,
) -> Option<RecordBatch> {
    let mut table = Table::<Rollups> { open: Some(Rollups::with_capacity(rows.size_hint().0)), ..Table::NEW };
    if let Some(batch) = &mut table.open {
        rows.for_each(|(device_id, metric, rollup)| batch.push(device_id, metric, rollup));
    }
    table.take().pop().filter(|batch| batch.num_rows() > 0)
}

fn times(rows: usize) -> TimestampMicrosecondBuilder {
    TimestampMicrosecondBuilder::with_capacity(rows).with_timezone("UTC")
}

struct RawEvents {
    device_id: ViewColumn<StringViewType>,
    received_at: TimestampMicrosecondBuilder,
    event_time: TimestampMicrosecondBuilder,
    event_type: ViewColumn<StringViewType>,
    topic: ViewColumn<StringViewType>,
    content_type: ViewColumn<StringViewType>,
    payload: ViewColumn<BinaryViewType>,
    log_partition: Int32Builder,
    log_offset: Int64Builder,
}

impl Batch for RawEvents {
    const TABLE: TableId = TableId::RawEvents;
    const ROW_BYTES: usize = 5 * 16 + 2 * 8 + 4 + 8;

    fn with_capacity(rows: usize) -> Self {
        Self {
            device_id: ViewColumn::with_capacity(rows),
            received_at: times(rows),
            event_time: times(rows),
            event_type: ViewColumn::with_capacity(rows),
            topic: ViewColumn::with_capacity(rows),
            content_type: ViewColumn::with_capacity(rows),
            payload: ViewColumn::with_capacity(rows),
            log_partition: Int32Builder::with_capacity(rows),
            log_offset: Int64Builder::with_capacity(rows),
        }
    }

    fn begin_block(&mut self) {
        for column in [&mut self.device_id, &mut self.event_type, &mut self.topic, &mut self.content_type] {
            column.begin_block();
        }
        self.payload.begin_block();
    }

    fn columns(&mut self) -> Vec<&mut dyn ArrayBuilder> {
        vec![
            &mut self.device_id.builder,
            &mut self.received_at,
            &mut self.event_time,
            &mut self.event_type.builder,
            &mut self.topic.builder,
            &mut self.content_type.builder,
            &mut self.payload.builder,
            &mut self.log_partition,
            &mut self.log_offset,
        ]
    }
}

struct RawMetrics {
    device_id: ViewColumn<StringViewType>,
    timestamp: TimestampMicrosecondBuilder,
    metric_name: StringViewBuilder,
    metric_value: Float64Builder,
    text_value: StringViewBuilder,
    metadata: ViewColumn<StringViewType>,
    log_partition: Int32Builder,
    log_offset: Int64Builder,
}

impl Batch for RawMetrics {
    const TABLE: TableId = TableId::RawMetrics;
    const ROW_BYTES: usize = 4 * 16 + 3 * 8 + 4 + 1;

    fn with_capacity(rows: usize) -> Self {
        Self {
            device_id: ViewColumn::with_capacity(rows),
            timestamp: times(rows),
            metric_name: StringViewBuilder::with_capacity(rows),
            metric_value: Float64Builder::with_capacity(rows),
            text_value: StringViewBuilder::with_capacity(rows),
            metadata: ViewColumn::with_capacity(rows),
            log_partition: Int32Builder::with_capacity(rows),
            log_offset: Int64Builder::with_capacity(rows),
        }
    }

    fn begin_block(&mut self) {
        self.device_id.begin_block();
        self.metadata.begin_block();
    }

    fn columns(&mut self) -> Vec<&mut dyn ArrayBuilder> {
        vec![
            &mut self.device_id.builder,
            &mut self.timestamp,
            &mut self.metric_name,
            &mut self.metric_value,
            &mut self.text_value,
            &mut self.metadata.builder,
            &mut self.log_partition,
            &mut self.log_offset,
        ]
    }
}

struct Rollups {
    device_id: StringViewBuilder,
    time_bucket: TimestampMicrosecondBuilder,
    metric_name: StringViewBuilder,
    sum_value: Float64Builder,
    min_value: Float64Builder,
    max_value: Float64Builder,
    count: Int64Builder,
}

impl Rollups {
    fn push(&mut self, device_id: &str, metric: &str, rollup: &Rollup) {
        self.device_id.append_value(device_id);
        self.time_bucket.append_value(rollup.bucket.as_micros());
        self.metric_name.append_value(metric);
        self.sum_value.append_value(rollup.sum);
        self.min_value.append_value(rollup.min);
        self.max_value.append_value(rollup.max);
        self.count.append_value(rollup.count);
    }
}

impl Batch for Rollups {
    const TABLE: TableId = TableId::MetricRollups;
    const ROW_BYTES: usize = 2 * 16 + 5 * 8;

    fn with_capacity(rows: usize) -> Self {
        Self {
            device_id: StringViewBuilder::with_capacity(rows),
            time_bucket: times(rows),
            metric_name: StringViewBuilder::with_capacity(rows),
            sum_value: Float64Builder::with_capacity(rows),
            min_value: Float64Builder::with_capacity(rows),
            max_value: Float64Builder::with_capacity(rows),
            count: Int64Builder::with_capacity(rows),
        }
    }

    fn begin_block(&mut self) {}

    fn columns(&mut self) -> Vec<&mut dyn ArrayBuilder> {
        vec![
            &mut self.device_id,
            &mut self.time_bucket,
            &mut self.metric_name,
            &mut self.sum_value,
            &mut self.min_value,
            &mut self.max_value,
            &mut self.count,
        ]
    }
}

struct Rejects {
    device_id: ViewColumn<StringViewType>,
    received_at: TimestampMicrosecondBuilder,
    event_type: ViewColumn<StringViewType>,
    topic: ViewColumn<StringViewType>,
    reason: StringViewBuilder,
    detail: StringViewBuilder,
    payload: ViewColumn<BinaryViewType>,
    log_partition: Int32Builder,
    log_offset: Int64Builder,
}

impl Batch for Rejects {
    const TABLE: TableId = TableId::Rejects;
    const ROW_BYTES: usize = 6 * 16 + 8 + 4 + 8;

    fn with_capacity(rows: usize) -> Self {
        Self {
            device_id: ViewColumn::with_capacity(rows),
            received_at: times(rows),
            event_type: ViewColumn::with_capacity(rows),
            topic: ViewColumn::with_capacity(rows),
            reason: StringViewBuilder::with_capacity(rows),
            detail: StringViewBuilder::with_capacity(rows),
            payload: ViewColumn::with_capacity(rows),
            log_partition: Int32Builder::with_capacity(rows),
            log_offset: Int64Builder::with_capacity(rows),
        }
    }

    fn begin_block(&mut self) {
        for column in [&mut self.device_id, &mut self.event_type, &mut self.topic] {
            column.begin_block();
        }
        self.payload.begin_block();
    }

    fn columns(&mut self) -> Vec<&mut dyn ArrayBuilder> {
        vec![
            &mut self.device_id.builder,
            &mut self.received_at,
            &mut self.event_type.builder,
            &mut self.topic.builder,
            &mut self.reason,
            &mut self.detail,
            &mut self.payload.builder,
            &mut self.log_partition,
            &mut self.log_offset,
        ]
    }
}

/// Columns of a batch that is made at once, by a schema of its own.
pub(super) fn batch(
    schema: arrow::datatypes::SchemaRef,
    columns: Vec<Arc<dyn arrow::array::Array>>,
) -> RecordBatch {
    RecordBatch::try_new(schema, columns).expect("the columns are those of the schema")
}
