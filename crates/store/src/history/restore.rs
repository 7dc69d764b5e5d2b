//! What the shards know at start: the newest value of each metric, from `raw_metrics`, and the devices, from `raw_events`.
//!
//! Values are read straight from the files: as rows are in the order of device and time, each batch is cut down to the last
//! row of each metric of a device before a shard looks at it, and the newest files come first.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{RecordBatch, UInt32Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use catchment_types::{DEFAULT_REALM, partition_of};
use datafusion::error::DataFusionError;
use datafusion::execution::context::SessionContext;
use foldhash::{HashMap, HashMapExt};
use futures::TryStreamExt;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use parquet::errors::ParquetError;

use super::error::StoreError;
use super::sort::strings;
use super::{History, Urgency, blocking};
use crate::shard::Shard;
use crate::tables::{TableId, timestamp_type};

const BATCH_ROWS: usize = 16 << 10;

impl History {
    /// Gives each shard the newest value of each metric of its devices, and the devices' times and numbers of events, from
    /// the files within retention. To be called once, after [`History::open`] and before the shards take in events.
    /// Returns how many values there are.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub async fn restore_snapshot(&self) -> Result<u64, StoreError> {
        self.restore_devices().await?;
        let files = self.view.files(TableId::RawMetrics);
        let folder = self.tables[TableId::RawMetrics.index()].folder.clone();
        let view = Arc::clone(&self.view);
        blocking("restoring of the snapshot", Urgency::Soon, move || {
            for file in files.iter().rev() {
                restore_values(&folder.join(&file.path), view.shards())?;
            }
            Ok(view.shards().iter().map(|shard| shard.stats().metrics as u64).sum())
        })
        .await
    }

    async fn restore_devices(&self) -> Result<(), StoreError> {
        let context = SessionContext::new_with_state(self.maintenance.state());
        let table = TableId::RawEvents;
        context.register_table(table.name(), self.table_provider(table))?;
        let query = "SELECT device_id, min(received_at), max(received_at), count(*) FROM raw_events GROUP BY device_id";
        let mut batches = context.sql(query).await?.execute_stream().await?;
        while let Some(batch) = batches.try_next().await? {
            // Names and nullability as the shards expect them.
            let rows = RecordBatch::try_new(devices_columns(), batch.columns().to_vec())
                .map_err(|source| StoreError::Rows { table: table.name(), source })?;
            let all: Vec<_> = (0..).take(rows.num_rows()).collect();
            give(self.view.shards(), table, &rows, &all, Shard::restore_devices)?;
        }
        Ok(())
    }
}

fn restore_values(path: &Path, shards: &[Arc<Shard>]) -> Result<(), StoreError> {
    let table = TableId::RawMetrics;
    let error = |error: DataFusionError| StoreError::Read(error.context(path.display().to_string()));
    let file = File::open(path).map_err(|source| error(source.into()))?;
    for rows in value_reader(file).map_err(|source| error(source.into()))? {
        let rows = rows.map_err(|source| error(source.into()))?;
        give(shards, table, &rows, &newest_of_each(&rows), Shard::restore_latest)?;
    }
    Ok(())
}

fn value_reader(file: File) -> Result<ParquetRecordBatchReader, ParquetError> {
    let options = ArrowReaderOptions::new().with_schema(TableId::RawMetrics.schema());
    let builder = ParquetRecordBatchReaderBuilder::try_new_with_options(file, options)?;
    let wanted = ["device_id", "timestamp", "metric_name", "metric_value", "text_value", "log_offset"];
    let mask = ProjectionMask::columns(builder.parquet_schema(), wanted);
    builder.with_projection(mask).with_batch_size(BATCH_ROWS).build()
}

/// Row numbers of the last row of each metric in each run of one device.
fn newest_of_each(rows: &RecordBatch) -> Vec<u32> {
    let (devices, metrics) = (strings(rows, "device_id"), strings(rows, "metric_name"));
    let mut newest = Vec::new();
    let mut last = HashMap::<&str, u32>::new();
    let mut device = None;
    for (row, (row_device, metric)) in (0_u32..).zip(devices.iter().zip(metrics)) {
        if row_device != device {
            newest.extend(last.drain().map(|(_, row)| row));
            device = row_device;
        }
        last.insert(metric.unwrap_or_default(), row);
    }
    newest.extend(last.into_values());
    newest
}

/// Gives each shard those of the numbered rows that are of its devices.
fn give(
    shards: &[Arc<Shard>],
    table: TableId,
    rows: &RecordBatch,
    numbers: &[u32],
    take: impl Fn(&Shard, &RecordBatch),
) -> Result<(), StoreError> {
    let devices = strings(rows, "device_id");
    let mut of_shard = vec![Vec::new(); shards.len()];
    for &row in numbers {
        let partition = partition_of(DEFAULT_REALM, devices.value(row as usize), shards.len() as u32);
        of_shard[partition as usize].push(row);
    }
    for (shard, numbers) in shards.iter().zip(of_shard).filter(|(_, numbers)| !numbers.is_empty()) {
        let rows = arrow::compute::take_record_batch(rows, &UInt32Array::from(numbers));
        take(shard, &rows.map_err(|source| StoreError::Rows { table: table.name(), source })?);
    }
    Ok(())
}

fn devices_columns() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("device_id", DataType::Utf8View, false),
        Field::new("first_seen", timestamp_type(), false),
        Field::new("last_seen", timestamp_type(), false),
        Field::new("events", DataType::Int64, false),
    ]))
}
