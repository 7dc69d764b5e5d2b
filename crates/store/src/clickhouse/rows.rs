//! Rows of a shard on their way into ClickHouse: cut into ranges of events, and as one block a table.
//!
//! What is repeated after a crash must be the very same rows, so ranges are of whole events, and a row's `log_offset` says to
//! which it belongs.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::cast::AsArray;
use arrow::array::{ArrayRef, BinaryViewArray, RecordBatch};
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::writer::StreamWriter;
use bytes::Bytes;
use catchment_types::Offset;

use crate::shard::TakenRows;
use crate::tables::TableId;

/// The tables whose rows are sent; the rollups are made by ClickHouse. Events come last: whoever sees one sees what was
/// decoded of it.
pub(super) const SENT: [TableId; 3] = [TableId::RawMetrics, TableId::Rejects, TableId::RawEvents];

/// Bounds of one insert.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Rows of one table.
    pub(super) rows_max: usize,
    /// Payload of the events.
    pub(super) bytes_max: usize,
}

/// Rows that were taken out of a shard.
#[derive(Debug, Clone)]
pub(super) struct Taken {
    tables: Arc<[Vec<RecordBatch>; TableId::COUNT]>,
    /// The offset after the last event whose rows these are.
    pub(super) next: Offset,
}

/// One table's rows of a range, ready to go.
pub(super) struct Block {
    pub(super) rows: RecordBatch,
    pub(super) body: Bytes,
}

impl Taken {
    pub(super) fn new(rows: TakenRows) -> Self {
        Self { tables: Arc::new(rows.tables), next: rows.next_offset }
    }

    /// Where a range that begins at `start` has to end so that it is within the limits; at least one event is in it.
    pub(super) fn range_end(&self, start: Offset, limits: Limits) -> Offset {
        let mut end = self.next;
        for table in SENT {
            let mut room = limits.rows_max;
            for batch in &self.tables[table.index()] {
                let offsets = offsets(batch);
                let from = offsets.partition_point(|&offset| offset < start.cast_signed());
                match offsets.get(from + room) {
                    // The event that this row is of does not fit any more.
                    Some(offset) => {
                        end = end.min(offset.cast_unsigned());
                        break;
                    }
                    None => room -= offsets.len() - from,
                }
            }
        }
        let mut room = limits.bytes_max;
        for batch in &self.tables[TableId::RawEvents.index()] {
            let (offsets, payloads) = (offsets(batch), payloads(batch));
            let from = offsets.partition_point(|&offset| offset < start.cast_signed());
            for (row, offset) in offsets.iter().enumerate().skip(from) {
                let Some(left) = room.checked_sub(payloads.value(row).len()) else {
                    return end.min(offset.cast_unsigned()).max(start + 1);
                };
                room = left;
            }
        }
        end.max(start + 1)
    }

    /// A table's rows of the events of a range; nothing when there are none.
    pub(super) fn block(&self, table: TableId, range: &Range<Offset>) -> Result<Option<Block>, ArrowError> {
        let mut pieces = Vec::new();
        for batch in &self.tables[table.index()] {
            let offsets = offsets(batch);
            let from = offsets.partition_point(|&offset| offset < range.start.cast_signed());
            let to = offsets.partition_point(|&offset| offset < range.end.cast_signed());
            if to > from {
                pieces.push(plain(&batch.slice(from, to - from))?);
            }
        }
        Block::new(&pieces)
    }
}

impl Block {
    /// Of rows that are [`plain`]; nothing when there are none.
    pub(super) fn new(pieces: &[RecordBatch]) -> Result<Option<Self>, ArrowError> {
        let Some(first) = pieces.first() else { return Ok(None) };
        let rows = concat_batches(&first.schema(), pieces)?;
        let mut writer = StreamWriter::try_new(Vec::new(), &rows.schema())?;
        writer.write(&rows)?;
        writer.finish()?;
        Ok(Some(Self { body: writer.into_inner()?.into(), rows }))
    }
}

/// Of each row; in the order of the log, as the shard took the events.
fn offsets(batch: &RecordBatch) -> &[i64] {
    let column = batch.column_by_name("log_offset").and_then(|column| column.as_primitive_opt::<Int64Type>());
    column.map_or(&[], |column| column.values())
}

fn payloads(batch: &RecordBatch) -> &BinaryViewArray {
    batch.column_by_name("payload").expect("raw_events has the column payload").as_binary_view()
}

/// The rows without views, which not every version of ClickHouse reads, and without what they do not use of a block.
pub(super) fn plain(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let schema = plain_schema(&batch.schema());
    let column = |(column, field): (&ArrayRef, &Arc<Field>)| cast(column, field.data_type());
    let columns = batch.columns().iter().zip(schema.fields()).map(column).collect::<Result<_, _>>()?;
    RecordBatch::try_new(schema, columns)
}

fn plain_schema(schema: &Schema) -> SchemaRef {
    let field = |field: &Arc<Field>| {
        let data_type = match field.data_type() {
            DataType::Utf8View => DataType::Utf8,
            DataType::BinaryView => DataType::Binary,
            other => other.clone(),
        };
        Field::new(field.name(), data_type, field.is_nullable())
    };
    Arc::new(Schema::new(schema.fields().iter().map(field).collect::<Vec<_>>()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::ipc::reader::StreamReader;
    use catchment_decode::{Decoders, WorkerDecoders};
    use catchment_types::{Event, EventBatch, Timestamp};

    use super::*;
    use crate::shard::Shard;

    /// Events with these payloads, from offset 10 on.
    fn taken(payloads: &[&str]) -> Taken {
        let mut events = EventBatch::builder();
        for payload in payloads {
            let event = Event {
                realm: "main",
                device_id: "d",
                event_type: "t",
                topic: "devices/d/t",
                content_type: "application/json",
                received_at: Timestamp::now(),
                tags: "",
                mark: 0,
                payload: payload.as_bytes(),
            };
            events.push(&event).unwrap();
        }
        let shard = Shard::new(0);
        shard.set_start_offsets([10; TableId::COUNT]);
        let mut decoders = WorkerDecoders::new(Arc::new(Decoders::default()));
        shard.ingest(10, &events.take(), .., &mut decoders, None);
        Taken::new(shard.take_rows())
    }

    #[test]
    fn ranges_are_of_whole_events_and_bounded() {
        let three = taken(&[r#"{"a":1,"b":2}"#, r#"{"a":1,"b":2}"#, r#"{"a":1,"b":2,"c":3}"#]);
        let limits = |rows_max, bytes_max| Limits { rows_max, bytes_max };
        assert_eq!(three.range_end(10, limits(100, 1000)), 13);
        assert_eq!(three.range_end(10, limits(5, 1000)), 12, "the third's metrics are too many");
        assert_eq!(three.range_end(12, limits(2, 1000)), 13, "one event always");
        assert_eq!(three.range_end(10, limits(100, 30)), 12);
        assert_eq!(three.range_end(10, limits(100, 1)), 11);
    }

    #[test]
    fn a_block_has_the_rows_of_its_range() {
        let three = taken(&[r#"{"a":1,"b":2}"#, "no JSON", r#"{"a":7}"#]);
        let block = three.block(TableId::RawMetrics, &(10..12)).unwrap().unwrap();
        assert_eq!(block.rows.num_rows(), 2);
        let read =
            StreamReader::try_new(block.body.as_ref(), None).unwrap().collect::<Result<Vec<_>, _>>().unwrap();
        assert_eq!(read, [block.rows]);
        assert_eq!(read[0].schema().field(0).data_type(), &DataType::Utf8);
        assert_eq!(three.block(TableId::Rejects, &(11..13)).unwrap().unwrap().rows.num_rows(), 1);
        assert!(three.block(TableId::Rejects, &(12..13)).unwrap().is_none());
    }
}
