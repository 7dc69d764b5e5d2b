//! What the shards know at start: the newest value of each metric, and the devices with the number of their events.
//!
//! First what the snapshot file tells, then the rows of the data files that came after it, or of all when there is none.
//! Values are read straight from the files: as rows are in the order of device and time, each batch is cut down to the last
//! row of each metric of a device before a shard looks at it, and the newest files come first.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{RecordBatch, UInt32Array};
use catchment_threads::Urgency;
use catchment_types::{DEFAULT_REALM, Offset, partition_of};
use datafusion::error::DataFusionError;
use foldhash::{HashMap, HashMapExt};
use parquet::errors::ParquetError;

use super::data_file::FileList;
use super::error::StoreError;
use super::snapshot_file::{self, Covered};
use super::sort::strings;
use super::table::Table;
use super::{DeltaHistory, blocking};
use crate::shard::Shard;
use crate::storage::Wanted;
use crate::tables::TableId;

const BATCH_ROWS: usize = 16 << 10;

impl DeltaHistory {
    /// Gives each shard the newest value of each metric of its devices, and the devices' times and numbers of events. To be
    /// called once, after [`DeltaHistory::open`] and before the shards take in events. Returns how many values there are.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub async fn restore_snapshot(&self) -> Result<u64, StoreError> {
        let [events, metrics] = [TableId::RawEvents, TableId::RawMetrics].map(|table| self.view.files(table));
        let [events_table, metrics_table] =
            [TableId::RawEvents, TableId::RawMetrics].map(|table| Arc::clone(&self.tables[table.index()]));
        let view = Arc::clone(&self.view);
        blocking("restoring of the snapshot", Urgency::Soon, move || {
            let shards = view.shards();
            let covered = snapshot_file::read(&*events_table.storage, |rows| {
                give_all(shards, rows, Shard::restore_saved)
            })?;
            let covered = covered.unwrap_or_default();
            for file in left(&events, &covered.raw_events) {
                restore_events(&events_table, file, shards)?;
            }
            for file in left(&metrics, &covered.raw_metrics) {
                restore_values(&metrics_table, file, shards)?;
            }
            Ok(shards.iter().map(|shard| shard.stats().metrics as u64).sum())
        })
        .await
    }

    /// Saves devices and latest values for the next start, unless nothing came since the last time.
    /// Must not run twice at a time: [`DeltaHistory::work`] is the only caller besides tests.
    pub(super) async fn save_snapshot(&self) -> Result<(), StoreError> {
        let next = self.next_offsets();
        if *self.saved_at.lock() == next {
            return Ok(());
        }
        // Before the shards are looked at: they know what is in these.
        let paths = |table| self.view.files(table).iter().map(|file| file.path.clone()).collect();
        let covered = Covered::new(paths(TableId::RawEvents), paths(TableId::RawMetrics));
        let table = Arc::clone(&self.tables[TableId::RawEvents.index()]);
        let view = Arc::clone(&self.view);
        let saved = blocking("saving of the snapshot", Urgency::Soon, move || {
            // It is another process's to save, then.
            table.log.lock().settle()?;
            snapshot_file::write(&*table.storage, view.shards(), &covered)
        });
        let rows = saved.await?;
        tracing::debug!(rows, "saved the snapshot");
        *self.saved_at.lock() = next;
        Ok(())
    }

    fn next_offsets(&self) -> Vec<Offset> {
        self.view.shards().iter().map(|shard| shard.stats().next_offset).collect()
    }
}

/// The paths of files that are not covered, the newest first.
fn left<'a>(files: &'a FileList, covered: &HashSet<String>) -> impl Iterator<Item = &'a str> {
    files.iter().rev().map(|file| file.path.as_str()).filter(|path| !covered.contains(*path))
}

fn restore_values(table: &Table, file: &str, shards: &[Arc<Shard>]) -> Result<(), StoreError> {
    let columns = ["device_id", "timestamp", "metric_name", "metric_value", "text_value", "log_offset"];
    read(table, file, &columns, |rows| give(shards, rows, &newest_of_each(rows), Shard::restore_latest))
}

fn restore_events(table: &Table, file: &str, shards: &[Arc<Shard>]) -> Result<(), StoreError> {
    let columns = ["device_id", "received_at", "log_offset"];
    read(table, file, &columns, |rows| give_all(shards, rows, Shard::restore_events))
}

/// Reads some columns of a data file.
fn read(
    table: &Table,
    file: &str,
    columns: &[&str],
    mut each: impl FnMut(&RecordBatch) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let path = table.path(file);
    let error = |error: ParquetError| {
        let path = table.storage.shown(&path).display().to_string();
        StoreError::Read(DataFusionError::from(error).context(path))
    };
    let wanted = Wanted { schema: table.id.schema(), columns, batch_rows: BATCH_ROWS };
    let file = table.storage.read_rows(&path, wanted).map_err(error)?;
    let file = file.ok_or_else(|| error(ParquetError::General("the file is gone".to_owned())))?;
    for rows in file.rows {
        each(&rows.map_err(error)?)?;
    }
    Ok(())
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

/// Gives each shard the rows of its devices.
fn give_all(
    shards: &[Arc<Shard>],
    rows: &RecordBatch,
    take: impl Fn(&Shard, &RecordBatch),
) -> Result<(), StoreError> {
    let all: Vec<_> = (0..).take(rows.num_rows()).collect();
    give(shards, rows, &all, take)
}

/// Gives each shard those of the numbered rows that are of its devices.
fn give(
    shards: &[Arc<Shard>],
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
        take(shard, &rows.map_err(|source| StoreError::Rows { table: "the snapshot", source })?);
    }
    Ok(())
}
