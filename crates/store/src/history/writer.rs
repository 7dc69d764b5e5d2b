//! Writing one Parquet file of a table.
//!
//! Encodings are chosen by column: dictionaries for what repeats, deltas for times and offsets, split bytes for floats,
//! everything compressed with zstd 1. The Arrow schema is left out of the file, so that every reader sees plain types.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
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
use crate::delta::sync_folder;
use crate::tables::TableId;

const ROW_GROUP_ROWS: usize = 128 << 10;
/// Pages are the least that is read: rows of a device are one after the other, and a query of one device reads few.
const PAGE_ROWS: usize = 4096;
/// Encoded. Also what a merge holds of each of its files.
const ROW_GROUP_BYTES: usize = 8 << 20;

/// A file while it is written; deleted again unless [`Self::finish`] succeeds.
pub(super) struct FileWriter {
    table: TableId,
    folder: PathBuf,
    /// Relative to `folder`.
    path: String,
    period: String,
    /// None once closed.
    writer: Option<ArrowWriter<File>>,
    stats: Option<FileStats>,
    keep: bool,
}

impl FileWriter {
    /// Starts a file in the table's folder.
    pub(super) fn create(table: TableId, folder: &Path, period: &str) -> Result<Self, StoreError> {
        let period_folder = format!("{}={period}", table.period().column());
        let parent = folder.join(&period_folder);
        match fs::create_dir(&parent) {
            Ok(()) => sync_folder(folder)?,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(StoreError::Io { what: "create", path: parent, source }),
        }
        let name = format!("{}-{:08x}.parquet", Timestamp::now().as_micros(), rand::random::<u32>());
        let path = parent.join(&name);
        let file = File::create_new(&path).map_err(|source| StoreError::Io {
            what: "create",
            path: path.clone(),
            source,
        })?;
        let options =
            ArrowWriterOptions::new().with_properties(properties(table)).with_skip_arrow_metadata(true);
        let writer = ArrowWriter::try_new_with_options(file, table.schema(), options)
            .map_err(|source| StoreError::Write { path, source })?;
        Ok(Self {
            table,
            folder: folder.to_path_buf(),
            path: format!("{period_folder}/{name}"),
            period: period.to_owned(),
            writer: Some(writer),
            stats: None,
            keep: false,
        })
    }

    /// Appends rows, which follow those before in the table's order.
    pub(super) fn write(&mut self, rows: &RecordBatch) -> Result<(), StoreError> {
        let times = times(self.table, rows);
        let (Some(&first), Some(writer)) = (times.first(), &mut self.writer) else { return Ok(()) };
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
        writer.write(rows).map_err(|source| StoreError::Write { path: self.folder.join(&self.path), source })
    }

    /// Completes the file and makes it durable. It does not count before a commit names it.
    pub(super) fn finish(mut self) -> Result<DataFile, StoreError> {
        let path = self.folder.join(&self.path);
        let io = |what| {
            let path = path.clone();
            move |source| StoreError::Io { what, path, source }
        };
        if let Some(writer) = self.writer.take() {
            let file =
                writer.into_inner().map_err(|source| StoreError::Write { path: path.clone(), source })?;
            file.sync_all().map_err(io("sync"))?;
        }
        if let Some(parent) = path.parent() {
            sync_folder(parent)?;
        }
        let bytes = fs::metadata(&path).map_err(io("measure"))?.len();
        self.keep = true;
        Ok(DataFile {
            path: std::mem::take(&mut self.path),
            period: std::mem::take(&mut self.period),
            bytes,
            written_at: Timestamp::now(),
            stats: self.stats.take(),
        })
    }
}

impl Drop for FileWriter {
    fn drop(&mut self) {
        if !self.keep {
            // Best effort: a file that no commit names is deleted at the next start at the latest.
            let _ = fs::remove_file(self.folder.join(&self.path));
        }
    }
}

fn properties(table: TableId) -> WriterProperties {
    let schema = table.schema();
    let position = |name: &str| schema.index_of(name).ok().and_then(|index| i32::try_from(index).ok());
    let sorting = ["device_id", table.time_column()]
        .into_iter()
        .filter_map(position)
        .map(|column_idx| SortingColumn { column_idx, descending: false, nulls_first: false })
        .collect();
    let mut builder = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
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
pub(super) fn delete_uncommitted(folder: &Path, files: &[DataFile]) {
    for file in files {
        let path = folder.join(&file.path);
        if let Err(error) = fs::remove_file(&path) {
            tracing::warn!(path = %path.display(), %error, "a file that no commit names could not be deleted");
        }
    }
}

/// For readers of many files: shares what does not change.
pub(super) fn shared(files: Vec<DataFile>) -> Vec<Arc<DataFile>> {
    files.into_iter().map(Arc::new).collect()
}
