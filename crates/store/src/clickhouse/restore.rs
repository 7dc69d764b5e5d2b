//! What a shard knows when its partition is taken over: the newest value of each metric, and the devices with the number of
//! their events.
//!
//! ClickHouse aggregates in the order of the tables, device by device, so that neither side holds more than a part of it.
//! Rows are found by the partition that they came from; if the log has got more partitions since, devices that have moved
//! come back with their next event.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::cast::AsArray;
use arrow::array::{Array, RecordBatch, UInt32Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use catchment_types::{DEFAULT_REALM, Offset, PartitionId, partition_of};

use super::ClickHouseHistory;
use super::answer::shaped;
use super::error::ClickHouseError;
use crate::shard::{Shard, saved_schema};
use crate::tables::{TableId, timestamp_type};

/// Blocks are kept small, and grouping that does not fit into memory goes to ClickHouse's disk.
const SETTINGS: [(&str, &str); 4] = [
    ("optimize_aggregation_in_order", "1"),
    ("max_block_size", "16384"),
    ("max_bytes_before_external_group_by", "1073741824"),
    ("readonly", "2"),
];

impl ClickHouseHistory {
    /// Fills the shard of a partition. `claimed` is what will be read from the log again.
    pub(super) async fn restore(
        &self,
        partition: PartitionId,
        claimed: &Range<Offset>,
    ) -> Result<(), ClickHouseError> {
        let shard = &self.shards[partition as usize];
        // ClickHouse takes a name for the answer's column before it takes it for the table's: so those have others.
        let seen = format!(
            "SELECT device_id, min(at) AS first_seen, max(at) AS last_seen, \
             toInt64(countIf(NOT (offset_ >= {start} AND offset_ < {end}))) AS events, toInt64({start}) AS counted_to, \
             NULL::Nullable(String) AS metric_name, NULL::Nullable(DateTime64(6, 'UTC')) AS timestamp, \
             NULL::Nullable(Float64) AS metric_value, NULL::Nullable(String) AS text_value, \
             NULL::Nullable(DateTime64(6, 'UTC')) AS received_at, NULL::Nullable(Int64) AS log_offset \
             FROM (SELECT device_id, received_at AS at, log_offset AS offset_ FROM {table} WHERE log_partition = {partition}) \
             GROUP BY device_id",
            start = claimed.start,
            end = claimed.end,
            table = TableId::RawEvents.name(),
        );
        self.give(seen, &saved_schema(), shard, Shard::restore_saved).await?;
        // A tuple, since argMax passes over NULLs.
        let latest = format!(
            "SELECT device_id, latest.1 AS timestamp, metric_name, latest.3 AS metric_value, latest.4 AS text_value, \
             latest.2 AS log_offset FROM (SELECT device_id, metric_name, \
             argMax((timestamp, log_offset, metric_value, text_value), (timestamp, log_offset)) AS latest \
             FROM {table} WHERE log_partition = {partition} GROUP BY device_id, metric_name)",
            table = TableId::RawMetrics.name(),
        );
        self.give(latest, &latest_schema(), shard, Shard::restore_latest).await
    }

    async fn give(
        &self,
        query: String,
        schema: &SchemaRef,
        shard: &Arc<Shard>,
        take: fn(&Shard, &RecordBatch),
    ) -> Result<(), ClickHouseError> {
        let settings = SETTINGS.map(|(name, value)| (name, value.to_owned()));
        let mut answer = self.writer.select(query, &super::scan::query_id(), &settings).await?;
        while let Some(rows) = answer.next().await? {
            let rows = shaped(&rows, schema).map_err(|trouble| self.writer.error(trouble))?;
            let rows = self.of_partition(&rows, shard.partition());
            take(shard, &rows.map_err(|error| self.writer.error(error.into()))?);
        }
        Ok(())
    }

    /// The rows of devices whose partition it is now.
    fn of_partition(
        &self,
        rows: &RecordBatch,
        partition: PartitionId,
    ) -> Result<RecordBatch, arrow::error::ArrowError> {
        let partitions = u32::try_from(self.shards.len()).unwrap_or(u32::MAX);
        let devices = rows.column(0).as_string_view();
        let is_ours = |row: &usize| partition_of(DEFAULT_REALM, devices.value(*row), partitions) == partition;
        let ours: UInt32Array =
            (0..devices.len()).filter(is_ours).map(|row| row as u32).collect::<Vec<_>>().into();
        match ours.len() == devices.len() {
            true => Ok(rows.clone()),
            false => arrow::compute::take_record_batch(rows, &ours),
        }
    }
}

/// The columns of `raw_metrics` that [`Shard::restore_latest`] looks at.
fn latest_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("device_id", DataType::Utf8View, false),
        Field::new("timestamp", timestamp_type(), false),
        Field::new("metric_name", DataType::Utf8View, false),
        Field::new("metric_value", DataType::Float64, true),
        Field::new("text_value", DataType::Utf8View, true),
        Field::new("log_offset", DataType::Int64, false),
    ]))
}
