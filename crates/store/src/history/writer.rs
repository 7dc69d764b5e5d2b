//! Writing one Parquet file of a table.
//!
//! Encodings are chosen by column: dictionaries for what repeats, deltas for times and offsets, split bytes for floats,
//! everything compressed with zstd 1, and in the archive with Snappy, which every reader knows. The Arrow schema is left out of the file, so that every reader sees plain types.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{RecordBatch, UInt32Array};
use arrow::datatypes::DataType;
use catchment_types::Timestamp;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::metadata::SortingColumn;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use super::data_file::{DataFile, FileStats};
use super::error::StoreError;
use super::sort::{strings, times};
use super::table::{Part, Table};
use crate::storage::FileSink;
use crate::tables::TableId;

const ROW_GROUP_ROWS: usize = 128 << 10;
/// Pages are the least that is read: rows of a device are one after the other, and a query of one device reads few.
const PAGE_ROWS: usize = 4096;
/// Encoded. Also what a merge holds of each of its files.
const ROW_GROUP_BYTES: usize = 8 << 20;

/// A file while it is written; deleted again unless [`Self::finish`] succeeds.
pub(super) struct FileWriter {
    table: TableId,
    /// As people know it.
    shown: PathBuf,
    /// In the table.
    path: String,
    period: String,
    writer: ArrowWriter<Box<dyn FileSink>>,
    stats: Option<FileStats>,
}

impl FileWriter {
    /// Starts a file of the table.
    pub(super) fn create(table: &Table, period: &str) -> Result<Self, StoreError> {
        let name = format!("{}-{:08x}.parquet", Timestamp::now().as_micros(), rand::random::<u32>());
        let path = format!("{}={period}/{name}", table.id.period().column());
        let shown = table.storage.shown(&table.path(&path));
        let file = table.storage.write(&table.path(&path))?;
        let options = ArrowWriterOptions::new()
            .with_properties(properties(table.id, table.part))
            .with_skip_arrow_metadata(true);
        let writer = ArrowWriter::try_new_with_options(file, table.id.schema(), options)
            .map_err(|source| StoreError::Write { path: shown.clone(), source })?;
        Ok(Self { table: table.id, shown, path, period: period.to_owned(), writer, stats: None })
    }

    /// Appends rows, which follow those before in the table's order.
    pub(super) fn write(&mut self, rows: &RecordBatch) -> Result<(), StoreError> {
        let times = times(self.table, rows);
        let Some(&first) = times.first() else { return Ok(()) };
        let (min, max) =
            times.iter().fold((first, first), |(min, max), &time| (min.min(time), max.max(time)));
        let devices = strings(rows, "device_id");
        let device_max = devices.value(rows.num_rows() - 1).to_owned();
        match &mut self.stats {
            None => {
                self.stats = Some(FileStats {
                    rows: rows.num_rows() as u64,
                    time_min: min,
                    time_max: max,
                    device_min: devices.value(0).to_owned(),
                    device_max,
                });
            }
            Some(stats) => {
                stats.rows += rows.num_rows() as u64;
                stats.time_min = stats.time_min.min(min);
                stats.time_max = stats.time_max.max(max);
                stats.device_max = device_max;
            }
        }
        self.writer.write(rows).map_err(|source| StoreError::Write { path: self.shown.clone(), source })
    }

    /// What is written of it so far, bytes; little more than the finished file has.
    pub(super) fn bytes(&self) -> u64 {
        (self.writer.bytes_written() + self.writer.in_progress_size()) as u64
    }

    /// Completes the file and makes it durable. It does not count before a commit names it.
    pub(super) fn finish(self) -> Result<DataFile, StoreError> {
        let written = self.writer.into_inner();
        let file = written.map_err(|source| StoreError::Write { path: self.shown, source })?;
        let bytes = file.finish()?;
        Ok(DataFile {
            path: self.path,
            period: self.period,
            bytes,
            written_at: Timestamp::now(),
            stats: self.stats,
        })
    }
}

fn properties(table: TableId, part: Part) -> WriterProperties {
    let schema = table.schema();
    let position = |name: &str| schema.index_of(name).ok().and_then(|index| i32::try_from(index).ok());
    let sorting = ["device_id", table.time_column()]
        .into_iter()
        .filter_map(position)
        .map(|column_idx| SortingColumn { column_idx, descending: false, nulls_first: false })
        .collect();
    let compression = match part {
        Part::Hot => Compression::ZSTD(ZstdLevel::default()),
        Part::Archived => Compression::SNAPPY,
    };
    let mut builder = WriterProperties::builder()
        .set_compression(compression)
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_max_row_group_bytes(Some(ROW_GROUP_BYTES))
        .set_data_page_row_count_limit(PAGE_ROWS)
        .set_sorting_columns(Some(sorting))
        .set_created_by(concat!("catchment ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_dictionary_enabled(false);
    for field in schema.fields() {
        let column = || ColumnPath::from(field.name().as_str());
        builder = match field.data_type() {
            DataType::Timestamp(..) | DataType::Int32 | DataType::Int64 => {
                builder.set_column_encoding(column(), Encoding::DELTA_BINARY_PACKED)
            }
            DataType::Float64 => builder.set_column_encoding(column(), Encoding::BYTE_STREAM_SPLIT),
            // Bounds of payloads help nobody and are long.
            DataType::BinaryView => builder.set_column_statistics_enabled(column(), EnabledStatistics::None),
            _ => builder.set_column_dictionary_enabled(column(), true),
        };
    }
    builder.build()
}

/// The rows of these numbers, in this order.
pub(super) fn pick(table: TableId, rows: &RecordBatch, numbers: &[u32]) -> Result<RecordBatch, StoreError> {
    let numbers = UInt32Array::from(numbers.to_vec());
    arrow::compute::take_record_batch(rows, &numbers)
        .map_err(|source| StoreError::Rows { table: table.name(), source })
}

/// All rows in one batch; the bytes of texts and payloads are shared, not copied.
pub(super) fn join(table: TableId, rows: &[RecordBatch]) -> Result<RecordBatch, StoreError> {
    arrow::compute::concat_batches(&table.schema(), rows)
        .map_err(|source| StoreError::Rows { table: table.name(), source })
}

/// Files without their writer: they count from the next commit on.
pub(super) fn delete_uncommitted(table: &Table, files: &[DataFile]) {
    for file in files {
        if let Err(error) = table.storage.delete(&table.path(&file.path)) {
            tracing::warn!(%error, "a file that no commit names could not be deleted");
        }
    }
}

/// For readers of many files: shares what does not change.
pub(super) fn shared(files: Vec<DataFile>) -> Vec<Arc<DataFile>> {
    files.into_iter().map(Arc::new).collect()
}
