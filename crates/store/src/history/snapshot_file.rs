//! The latest values and the devices in one file, so that a start need not read all of `raw_metrics` and `raw_events`.
//!
//! `{folder}/snapshot.parquet`: rows of [`saved_schema`], and in its metadata the data files of both tables that were there
//! *before* the shards were looked at. What is in those, the rows know; a start reads only the others, and then the log.
//! Rows of others that are known all the same (merged files have some) change nothing: a latest value is not older than
//! itself, and each device tells up to which offset its events are counted.
//!
//! It is written anew now and then and takes the place of the one before. It can be deleted: a start then reads it all.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use serde::{Deserialize, Serialize};

use super::error::StoreError;
use crate::shard::{Shard, saved_schema};
use crate::storage::{FileSink, Storage, Wanted};

/// Beside the tables of history.
const NAME: &str = "snapshot.parquet";
const COVERED: &str = "catchment.covered";
/// Another one is not read.
const FORMAT: u32 = 1;
const ROW_GROUP_ROWS: usize = 128 << 10;
const BATCH_ROWS: usize = 16 << 10;

/// Data files whose rows a snapshot file knows, by their paths in their table's folder.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Covered {
    format: u32,
    pub(super) raw_events: HashSet<String>,
    pub(super) raw_metrics: HashSet<String>,
}

impl Covered {
    pub(super) fn new(raw_events: HashSet<String>, raw_metrics: HashSet<String>) -> Self {
        Self { format: FORMAT, raw_events, raw_metrics }
    }
}

/// Writes the file; the one before stays until this one is durable. Gives the number of rows.
pub(super) fn write(
    storage: &dyn Storage,
    shards: &[Arc<Shard>],
    covered: &Covered,
) -> Result<u64, StoreError> {
    let file = storage.rewrite(NAME)?;
    let (file, rows) = write_rows(file, shards, covered)
        .map_err(|source| StoreError::Write { path: storage.shown(NAME), source })?;
    file.finish()?;
    Ok(rows)
}

fn write_rows(
    file: Box<dyn FileSink>,
    shards: &[Arc<Shard>],
    covered: &Covered,
) -> Result<(Box<dyn FileSink>, u64), ParquetError> {
    let covered = serde_json::to_string(covered).map_err(|error| ParquetError::External(Box::new(error)))?;
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_key_value_metadata(Some(vec![KeyValue::new(COVERED.to_owned(), covered)]))
        .build();
    let options = ArrowWriterOptions::new().with_properties(properties).with_skip_arrow_metadata(true);
    let mut writer = ArrowWriter::try_new_with_options(file, saved_schema(), options)?;
    let mut written = 0;
    for rows in shards.iter().flat_map(|shard| shard.saved_rows()) {
        writer.write(&rows)?;
        written += rows.num_rows() as u64;
    }
    Ok((writer.into_inner()?, written))
}

/// Gives the file's rows to `each`. None: there is no file, or one that cannot be used, and what was given of it is right but
/// may not be all.
pub(super) fn read(
    storage: &dyn Storage,
    mut each: impl FnMut(&RecordBatch) -> Result<(), StoreError>,
) -> Result<Option<Covered>, StoreError> {
    let unusable = |why: &dyn std::fmt::Display| {
        let path = storage.shown(NAME);
        tracing::warn!(path = %path.display(), %why, "the snapshot is restored from the tables: its file cannot be used");
    };
    let wanted = Wanted { schema: saved_schema(), columns: &[], batch_rows: BATCH_ROWS };
    let file = match storage.read_rows(NAME, wanted) {
        Ok(Some(file)) => file,
        Ok(None) => return Ok(None),
        Err(error) => {
            unusable(&error);
            return Ok(None);
        }
    };
    let metadata = file.metadata.file_metadata().key_value_metadata();
    let covered =
        metadata.and_then(|entries| entries.iter().find(|entry| entry.key == COVERED)?.value.as_deref());
    let covered = covered.and_then(|text| serde_json::from_str::<Covered>(text).ok());
    let Some(covered) = covered.filter(|covered| covered.format == FORMAT) else {
        unusable(&"another version wrote it");
        return Ok(None);
    };
    for rows in file.rows {
        match rows {
            Ok(rows) => each(&rows)?,
            Err(error) => {
                unusable(&error);
                return Ok(None);
            }
        }
    }
    Ok(Some(covered))
}
