//! Checkpoints: the sum of all commits in one Parquet file.
//!
//! The columns are the actions as structs; a row has exactly one of them. Arrow's own JSON reader and writer carry them
//! from and to the same serde structs as a commit's lines.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::json::{LineDelimitedWriter, ReaderBuilder};
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;

use super::DeltaError;
use super::actions::Action;
use crate::storage::Storage;

const LAST_CHECKPOINT: &str = "_last_checkpoint";

/// Name of the checkpoint of `version`.
pub(super) fn file_name(version: u64) -> String {
    format!("{version:020}.checkpoint.parquet")
}

/// Writes the checkpoint of `version` into `log_folder`, durable and visible at once.
pub(super) fn write(
    storage: &dyn Storage,
    log_folder: &str,
    version: u64,
    actions: &[Action],
) -> Result<(), DeltaError> {
    let path = format!("{log_folder}/{}", file_name(version));
    let bytes = encode(actions).map_err(|message| DeltaError::damaged(storage.shown(&path), message))?;
    storage.replace(&path, bytes.into())?;
    // Only a hint for readers, who list the folder without it; hence after the checkpoint is in place.
    let hint = serde_json::json!({ "version": version, "size": actions.len() }).to_string();
    Ok(storage.replace(&format!("{log_folder}/{LAST_CHECKPOINT}"), hint.into())?)
}

/// Reads the checkpoint of `version`.
pub(super) fn read(storage: &dyn Storage, log_folder: &str, version: u64) -> Result<Vec<Action>, DeltaError> {
    let path = format!("{log_folder}/{}", file_name(version));
    let damaged = |message: &str| DeltaError::damaged(storage.shown(&path), message);
    let bytes = storage.read(&path)?.ok_or_else(|| damaged("it is gone"))?;
    decode(bytes).map_err(|message| damaged(&message))
}

/// Errors are only for display: none is expected, and all mean the same to the caller.
fn encode(actions: &[Action]) -> Result<Vec<u8>, String> {
    let schema = schema();
    let mut decoder =
        ReaderBuilder::new(Arc::clone(&schema)).build_decoder().map_err(|error| error.to_string())?;
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let options = ArrowWriterOptions::new().with_properties(properties).with_skip_arrow_metadata(true);
    let mut writer =
        ArrowWriter::try_new_with_options(Vec::new(), schema, options).map_err(|error| error.to_string())?;
    for chunk in actions.chunks(4096) {
        decoder.serialize(chunk).map_err(|error| error.to_string())?;
        if let Some(batch) = decoder.flush().map_err(|error| error.to_string())? {
            writer.write(&batch).map_err(|error| error.to_string())?;
        }
    }
    writer.into_inner().map_err(|error| error.to_string())
}

fn decode(file: Bytes) -> Result<Vec<Action>, String> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(file)
        .and_then(|builder| builder.build())
        .map_err(|error| error.to_string())?;
    let mut actions = Vec::new();
    for batch in reader {
        let batch = batch.map_err(|error| error.to_string())?;
        for line in to_json_lines(&batch)?.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            actions.push(serde_json::from_slice(line).map_err(|error| error.to_string())?);
        }
    }
    Ok(actions)
}

fn to_json_lines(batch: &RecordBatch) -> Result<Vec<u8>, String> {
    let mut lines = LineDelimitedWriter::new(Vec::new());
    lines.write(batch).and_then(|()| lines.finish()).map_err(|error| error.to_string())?;
    Ok(lines.into_inner())
}

fn schema() -> SchemaRef {
    let text = |name: &str| Field::new(name, DataType::Utf8, true);
    let long = |name: &str| Field::new(name, DataType::Int64, true);
    let int = |name: &str| Field::new(name, DataType::Int32, true);
    let bool = |name: &str| Field::new(name, DataType::Boolean, true);
    let map = |name: &str| {
        let entry = DataType::Struct(
            vec![Field::new("key", DataType::Utf8, false), Field::new("value", DataType::Utf8, true)].into(),
        );
        Field::new(name, DataType::Map(Arc::new(Field::new("key_value", entry, false)), false), true)
    };
    let structure = |name: &str, fields: Vec<Field>| Field::new(name, DataType::Struct(fields.into()), true);
    Arc::new(Schema::new(vec![
        structure("protocol", vec![int("minReaderVersion"), int("minWriterVersion")]),
        structure(
            "metaData",
            vec![
                text("id"),
                text("name"),
                text("description"),
                structure("format", vec![text("provider"), map("options")]),
                text("schemaString"),
                Field::new(
                    "partitionColumns",
                    DataType::List(Arc::new(Field::new("element", DataType::Utf8, true))),
                    true,
                ),
                map("configuration"),
                long("createdTime"),
            ],
        ),
        structure("txn", vec![text("appId"), long("version"), long("lastUpdated")]),
        structure(
            "add",
            vec![
                text("path"),
                map("partitionValues"),
                long("size"),
                long("modificationTime"),
                bool("dataChange"),
                text("stats"),
                map("tags"),
            ],
        ),
        structure(
            "remove",
            vec![
                text("path"),
                long("deletionTimestamp"),
                bool("dataChange"),
                bool("extendedFileMetadata"),
                map("partitionValues"),
                long("size"),
            ],
        ),
    ]))
}
