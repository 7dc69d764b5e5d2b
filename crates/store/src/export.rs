//! History's rows by day and month, to be brought elsewhere: what periods there are, and the rows of one as a stream.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::cast::AsArray;
use arrow::datatypes::TimestampMicrosecondType;
use catchment_types::Timestamp;
use datafusion::catalog::TableProvider;
use datafusion::dataframe::DataFrame;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::physical_plan::SendableRecordBatchStream;
use datafusion::prelude::{SessionConfig, SessionContext, col, lit};
use datafusion::scalar::ScalarValue;
use futures::TryStreamExt;

use crate::history::{History, StoreError};
use crate::tables::TableId;

/// What merging rollups may take; over it, it goes on on disk.
const MEMORY_BYTES_MAX: usize = 1 << 30;

/// Reads a history that nobody writes to meanwhile.
pub struct Export<H: ?Sized> {
    history: Arc<H>,
    context: SessionContext,
}

impl<H: ?Sized> fmt::Debug for Export<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Export")
    }
}

impl<H: History + ?Sized> Export<H> {
    /// Of this history.
    ///
    /// # Errors
    /// There is no folder for what does not fit into memory.
    pub fn new(history: Arc<H>) -> Result<Self, StoreError> {
        let runtime = RuntimeEnvBuilder::new().with_memory_limit(MEMORY_BYTES_MAX, 1.0).build_arc()?;
        let config = SessionConfig::new().with_target_partitions(1);
        Ok(Self { history, context: SessionContext::new_with_config_rt(config, runtime) })
    }

    /// How many rows a table has of each day or month; of rollups, how many minutes of metrics.
    ///
    /// # Errors
    /// The rows cannot be read.
    pub async fn periods(&self, table: TableId) -> Result<BTreeMap<String, u64>, StoreError> {
        let mut days: BTreeMap<i64, u64> = BTreeMap::new();
        let times = self.context.read_table(self.history.table_provider(table))?;
        let mut times = times.select(vec![col(table.time_column())])?.execute_stream().await?;
        while let Some(batch) = times.try_next().await? {
            let times = batch.column(0).as_primitive::<TimestampMicrosecondType>();
            // Rows are sorted by device: neighbours are of one day, mostly.
            let mut last = (i64::MIN, 0);
            for &time in times.values() {
                let day = Timestamp(time).day();
                if day != last.0 {
                    *days.entry(last.0).or_default() += last.1;
                    last = (day, 0);
                }
                last.1 += 1;
            }
            *days.entry(last.0).or_default() += last.1;
        }
        let mut periods: BTreeMap<String, u64> = BTreeMap::new();
        for (day, rows) in days.into_iter().filter(|(_, rows)| *rows > 0) {
            let (name, _) = table.period().of(day.saturating_mul(Timestamp::DAY));
            *periods.entry(name).or_default() += rows;
        }
        if table == TableId::MetricRollups {
            for (period, rows) in &mut periods {
                let merged = self.of_period(table, self.history.aggregated_metrics()?, period)?;
                *rows = merged.count().await? as u64;
            }
        }
        Ok(periods)
    }

    /// All rows of a table of a period, in no order.
    ///
    /// # Errors
    /// The rows cannot be read.
    pub async fn rows(&self, table: TableId, period: &str) -> Result<SendableRecordBatchStream, StoreError> {
        let rows = self.of_period(table, self.history.table_provider(table), period)?;
        Ok(rows.execute_stream().await?)
    }

    fn of_period(
        &self,
        table: TableId,
        provider: Arc<dyn TableProvider>,
        period: &str,
    ) -> Result<DataFrame, StoreError> {
        let Range { start, end } = times(table, period);
        let at = |time| lit(ScalarValue::TimestampMicrosecond(Some(time), Some("UTC".into())));
        let time = || col(table.time_column());
        let rows = self.context.read_table(provider)?;
        Ok(rows.filter(time().gt_eq(at(start)).and(time().lt(at(end))))?)
    }
}

/// From when to when a period of a table is, in microseconds.
fn times(table: TableId, period: &str) -> Range<i64> {
    let end = table.period().end(period).unwrap_or(i64::MAX);
    table.period().of(end.saturating_sub(1)).1
}

/// Whether rows of a period would be expired at `now` by a retention of so many days.
#[must_use]
pub fn is_expired(table: TableId, period: &str, days: Option<u32>, now: Timestamp) -> bool {
    let kept = i64::from(days.unwrap_or(0)).saturating_mul(Timestamp::DAY);
    days.is_some() && times(table, period).end.saturating_add(kept) <= now.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_period_is_kept_to_its_end() {
        let at = |text: &str| Timestamp(text.parse::<jiff::Timestamp>().unwrap().as_microsecond());
        let is_expired = |now| is_expired(TableId::RawEvents, "2026-11-20", Some(3), at(now));
        assert!(!is_expired("2026-11-23T23:59:59Z"));
        assert!(is_expired("2026-11-24T00:00:00Z"));
        assert!(!super::is_expired(TableId::RawEvents, "1980-01-01", None, at("2026-11-24T00:00:00Z")));
        let month = |now| super::is_expired(TableId::MetricRollups, "2026-01", Some(30), at(now));
        assert!(!month("2026-03-02T23:00:00Z") && month("2026-03-03T00:00:00Z"));
    }

    #[test]
    fn periods_are_read_back_from_their_names() {
        let day = times(TableId::RawMetrics, "2026-11-20");
        assert_eq!(day.end - day.start, Timestamp::DAY);
        assert_eq!(TableId::RawMetrics.period().of(day.start).0, "2026-11-20");
        let month = times(TableId::MetricRollups, "2024-02");
        assert_eq!(month.end - month.start, 29 * Timestamp::DAY);
    }
}
