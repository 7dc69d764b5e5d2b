//! Another history's rows into ClickHouse, a day or month at a time.
//!
//! The rows of a period go into a table beside the real one, `migrate_raw_metrics` for instance, and then take the place of what
//! that has of the period, in one step (`REPLACE PARTITION`). So a period is there whole or not at all, and to do it again
//! changes nothing. The materialized view does not see rows that come this way: rollups are brought in as they were, those of
//! readings that have expired, too.

use std::collections::BTreeMap;

use arrow::record_batch::RecordBatch;
use datafusion::physical_plan::SendableRecordBatchStream;
use futures::TryStreamExt;

use super::client::Client;
use super::config::ClickHouseTarget;
use super::error::Trouble;
use super::rows::{Block, plain};
use super::schema;
use crate::history::{AGGREGATED_METRICS, HistoryConfig, StoreError};
use crate::tables::{Period, TableId};

/// Bounds of one insert; a batch more may be in it.
const INSERT_ROWS: usize = 100_000;
const INSERT_BYTES: usize = 32 << 20;

/// A database that rows are brought into while nobody else writes to it.
#[derive(Clone)]
pub struct ClickHouseImport {
    client: Client,
}

impl std::fmt::Debug for ClickHouseImport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ClickHouseImport").field(self.client.target()).finish()
    }
}

impl ClickHouseImport {
    /// Connects, and makes the database and its tables or brings them up to date.
    ///
    /// # Errors
    /// The server does not answer, does not let us in, or its tables are of a newer Catchment or have an archive.
    pub async fn open(target: &ClickHouseTarget, config: &HistoryConfig) -> Result<Self, StoreError> {
        let client = Client::new(target)?;
        schema::prepare(&client, config, None).await?;
        Ok(Self { client })
    }

    /// How many rows a table has of each day or month; of rollups, how many minutes of metrics, which it may merge at any time.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn periods(&self, table: TableId) -> Result<BTreeMap<String, u64>, StoreError> {
        let query = match table {
            TableId::MetricRollups => format!(
                "SELECT formatDateTime(time_bucket, '%Y-%m') AS period, count() FROM {AGGREGATED_METRICS} GROUP BY period"
            ),
            _ => format!(
                "SELECT partition, sum(rows) FROM system.parts \
                 WHERE database = currentDatabase() AND table = '{}' AND active GROUP BY partition",
                table.name()
            ),
        };
        let text = self.client.text(&query).await?;
        let line = |line: &str| {
            let (period, rows) = line.split_once('\t')?;
            Some((period.to_owned(), rows.parse().ok()?))
        };
        let periods = text.lines().map(|text| line(text).ok_or(text)).collect::<Result<_, _>>();
        Ok(periods.map_err(|line| self.client.error(Trouble::Answer(format!("a count {line:?}"))))?)
    }

    /// Has a table have exactly these rows of a period. `sent` hears how many are on the server so far.
    ///
    /// # Errors
    /// The server refuses or goes away, or the rows cannot be read; then the table has what it had of the period.
    pub async fn replace(
        &self,
        table: TableId,
        period: &str,
        mut rows: SendableRecordBatchStream,
        mut sent: impl FnMut(u64) + Send,
    ) -> Result<(), StoreError> {
        let name = table.name();
        let beside = self.make_beside(table).await?;
        let (mut waiting, mut waiting_rows, mut waiting_bytes) = (Vec::new(), 0, 0);
        let (mut inserts, mut total) = (0, 0);
        // Nobody waits, so it gets more time at once than a flush.
        let limit = self.client.target().config.insert_limit(3);
        loop {
            let next: Option<RecordBatch> = rows.try_next().await?;
            if let Some(batch) = &next {
                let batch = plain(batch).map_err(|source| StoreError::Rows { table: name, source })?;
                waiting_rows += batch.num_rows();
                waiting_bytes += batch.get_array_memory_size();
                waiting.push(batch);
            }
            if next.is_some() && waiting_rows < INSERT_ROWS && waiting_bytes < INSERT_BYTES {
                continue;
            }
            let block = Block::new(&waiting).map_err(|source| StoreError::Rows { table: name, source })?;
            if let Some(block) = block.filter(|block| block.rows.num_rows() > 0) {
                let token = format!("migrate/{name}/{period}/{inserts}");
                self.client.insert(&beside, &token, &block.rows, block.body, limit).await?;
                inserts += 1;
                total += block.rows.num_rows() as u64;
                sent(total);
            }
            if next.is_none() {
                break;
            }
            waiting.clear();
            (waiting_rows, waiting_bytes) = (0, 0);
        }
        let partition = match table.period() {
            Period::Day => format!("'{period}'"),
            Period::Month => period.replace('-', ""),
        };
        self.client
            .execute(&format!("ALTER TABLE {name} REPLACE PARTITION {partition} FROM {beside}"))
            .await?;
        self.drop_beside(table).await
    }

    /// An empty table beside. One that was left behind knows its inserts by their names, and would not take them again.
    async fn make_beside(&self, table: TableId) -> Result<String, StoreError> {
        self.drop_beside(table).await?;
        let (name, beside) = (table.name(), beside(table));
        self.client.execute(&format!("CREATE TABLE {beside} AS {name}")).await?;
        Ok(beside)
    }

    async fn drop_beside(&self, table: TableId) -> Result<(), StoreError> {
        Ok(self.client.execute(&format!("DROP TABLE IF EXISTS {} SYNC", beside(table))).await?)
    }
}

fn beside(table: TableId) -> String {
    format!("migrate_{}", table.name())
}
