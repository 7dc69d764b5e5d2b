//! Which files can have rows that a filter wants: by the bounds of device and time, in memory.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, StringViewArray, TimestampMicrosecondArray, UInt64Array};
use datafusion::common::pruning::PruningStatistics;
use datafusion::common::{Column, ScalarValue};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_optimizer::pruning::PruningPredicateBuilder;

use super::data_file::{DataFile, FileStats};
use crate::tables::TableId;

/// The files that may have rows for which the predicate holds.
pub(super) fn prune(
    table: TableId,
    files: &[Arc<DataFile>],
    predicate: &Arc<dyn PhysicalExpr>,
) -> Vec<Arc<DataFile>> {
    // What cannot be used for pruning keeps all files.
    let keep = PruningPredicateBuilder::new()
        .with_file_schema(table.schema())
        .try_build(Arc::clone(predicate))
        .and_then(|predicate| predicate.prune(&Bounds { table, files }));
    match keep {
        Ok(keep) => {
            files.iter().zip(keep).filter(|(_, keep)| *keep).map(|(file, _)| Arc::clone(file)).collect()
        }
        Err(_) => files.to_vec(),
    }
}

struct Bounds<'a> {
    table: TableId,
    files: &'a [Arc<DataFile>],
}

impl Bounds<'_> {
    fn column(
        &self,
        column: &Column,
        device: impl Fn(&FileStats) -> &str,
        time: impl Fn(&FileStats) -> i64,
    ) -> Option<ArrayRef> {
        let stats = self.files.iter().map(|file| file.stats.as_ref());
        if column.name == "device_id" {
            Some(Arc::new(stats.map(|stats| stats.map(&device)).collect::<StringViewArray>()))
        } else if column.name == self.table.time_column() {
            let times = stats.map(|stats| stats.map(&time)).collect::<TimestampMicrosecondArray>();
            Some(Arc::new(times.with_timezone("UTC")))
        } else {
            None
        }
    }
}

impl PruningStatistics for Bounds<'_> {
    fn min_values(&self, column: &Column) -> Option<ArrayRef> {
        self.column(column, |stats| &stats.device_min, |stats| stats.time_min)
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        self.column(column, |stats| &stats.device_max, |stats| stats.time_max)
    }

    fn num_containers(&self) -> usize {
        self.files.len()
    }

    fn null_counts(&self, _column: &Column) -> Option<ArrayRef> {
        None
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        let rows = self.files.iter().map(|file| file.stats.as_ref().map(|stats| stats.rows));
        Some(Arc::new(rows.collect::<UInt64Array>()))
    }

    fn contained(&self, _column: &Column, _values: &HashSet<ScalarValue>) -> Option<BooleanArray> {
        None
    }
}
