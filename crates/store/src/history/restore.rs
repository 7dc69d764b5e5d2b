//! What the shards know at start: the newest value of each metric, from `raw_metrics`, and the devices, from `raw_events`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{RecordBatch, UInt32Array};
use arrow::datatypes::SchemaRef;
use catchment_types::{DEFAULT_REALM, Timestamp, partition_of};
use datafusion::execution::context::SessionContext;
use futures::TryStreamExt;

use super::History;
use super::error::StoreError;
use super::sort::strings;
use crate::shard::Shard;
use crate::tables::{TableId, timestamp_type};

impl History {
    /// Gives each shard the newest value of each metric of its devices, and the devices' times and numbers of events, from
    /// the files within retention. To be called once, after [`History::open`] and before the shards take in events.
    /// Returns how many values there are.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub async fn restore_snapshot(&self) -> Result<u64, StoreError> {
        let context = SessionContext::new_with_state(self.maintenance.state());
        for table in [TableId::RawEvents, TableId::RawMetrics] {
            context.register_table(table.name(), self.table_provider(table))?;
        }
        let devices = "SELECT device_id, min(received_at), max(received_at), count(*) FROM raw_events GROUP BY device_id";
        self.restore(&context, devices, &devices_columns(), Shard::restore_devices).await?;

        let mut values = 0;
        // Newest day last: what it has replaces what older days had.
        for day in self.days(TableId::RawMetrics) {
            values +=
                self.restore(&context, &newest_of(&day), &TableId::RawMetrics.schema(), Shard::restore_latest).await?;
        }
        Ok(values)
    }

    /// Runs a query whose first column is the device, and gives each shard the rows of its devices.
    async fn restore(
        &self,
        context: &SessionContext,
        query: &str,
        schema: &SchemaRef,
        give: impl Fn(&Shard, &RecordBatch),
    ) -> Result<u64, StoreError> {
        let error = |source| StoreError::Rows { table: "the snapshot", source };
        let shards = self.view.shards();
        let mut count = 0;
        let mut batches = context.sql(query).await?.execute_stream().await?;
        while let Some(batch) = batches.try_next().await? {
            count += batch.num_rows() as u64;
            // Names and nullability as the shards expect them.
            let rows = RecordBatch::try_new(Arc::clone(schema), batch.columns().to_vec()).map_err(error)?;
            let mut numbers = vec![Vec::new(); shards.len()];
            for (row, device) in (0_u32..).zip(strings(&rows, "device_id").iter()) {
                let partition =
                    partition_of(DEFAULT_REALM, device.unwrap_or_default(), shards.len() as u32);
                numbers[partition as usize].push(row);
            }
            for (shard, numbers) in shards.iter().zip(numbers) {
                if !numbers.is_empty() {
                    let rows = arrow::compute::take_record_batch(&rows, &UInt32Array::from(numbers));
                    give(shard, &rows.map_err(error)?);
                }
            }
        }
        Ok(count)
    }

    /// The days that the table has files of, oldest first.
    fn days(&self, table: TableId) -> Vec<Range<i64>> {
        let files = self.view.files(table);
        let ends = files.iter().filter_map(|file| Some((table.period().end(&file.period)?, ())));
        let ends: BTreeMap<i64, ()> = ends.collect();
        ends.into_keys().map(|end| end.saturating_sub(Timestamp::DAY)..end).collect()
    }
}

fn newest_of(day: &Range<i64>) -> String {
    let last = ["metric_value", "text_value", "metadata", "log_partition", "log_offset"]
        .map(|column| format!("last_value({column} ORDER BY timestamp, log_offset)"))
        .join(", ");
    format!(
        "SELECT device_id, max(timestamp), metric_name, {last} FROM raw_metrics \
         WHERE timestamp >= to_timestamp_micros({}) AND timestamp < to_timestamp_micros({}) \
         GROUP BY device_id, metric_name",
        day.start, day.end
    )
}

fn devices_columns() -> SchemaRef {
    use arrow::datatypes::{DataType, Field, Schema};
    Arc::new(Schema::new(vec![
        Field::new("device_id", DataType::Utf8View, false),
        Field::new("first_seen", timestamp_type(), false),
        Field::new("last_seen", timestamp_type(), false),
        Field::new("events", DataType::Int64, false),
    ]))
}
