//! Files as an execution plan.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::catalog::Session;
use datafusion::common::stats::Precision;
use datafusion::common::{ColumnStatistics, ScalarValue, Statistics};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::{
    CachedParquetFileReaderFactory, ParquetFileReaderFactory,
};
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::error::Result;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::physical_expr::{LexOrdering, PhysicalSortExpr};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::expressions::col;

use super::data_file::{DataFile, FileStats};
use super::local_file::LocalFiles;
use super::table::Part;
use crate::storage::Storage;
use crate::tables::TableId;

/// What is read from the end of a file that is not local, in the hope that its whole footer is in it.
const FOOTER_BYTES: usize = 64 << 10;

/// Reads the files of a storage, and nothing outside of it: queries need no access to the file system at large.
#[derive(Clone)]
pub(super) struct FileReader {
    url: ObjectStoreUrl,
    storage: Arc<dyn Storage>,
}

impl FileReader {
    pub(super) fn new(storage: &Arc<dyn Storage>, part: Part) -> Result<Self> {
        let url = ObjectStoreUrl::parse(format!("catchment://{}", part.name()))?;
        Ok(Self { url, storage: Arc::clone(storage) })
    }

    /// A plan that reads files in `groups` side by side, for queries. Filters come in by the optimizer.
    pub(super) fn scan(
        &self,
        state: &dyn Session,
        table: TableId,
        files: &[Arc<DataFile>],
        groups: usize,
        projection: Option<&Vec<usize>>,
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = table.schema();
        let partitioned = files.iter().map(|file| partitioned_file(table, &schema, file)).collect();
        let groups = FileGroup::new(partitioned).split_files(groups);
        let source = self.source(state.runtime_env(), &schema);
        let config = FileScanConfigBuilder::new(self.url.clone(), Arc::new(source))
            .with_file_groups(groups)
            .with_statistics(total(&schema, files))
            .with_limit(limit)
            .with_projection_indices(projection.cloned())?
            .build();
        Ok(DataSourceExec::from_data_source(config))
    }

    /// A plan with one partition a file, each in the table's order, for merges; and that order.
    pub(super) fn scan_in_order(
        &self,
        runtime: &Arc<RuntimeEnv>,
        table: TableId,
        files: &[Arc<DataFile>],
        batch_rows: usize,
    ) -> Result<(Arc<dyn ExecutionPlan>, LexOrdering)> {
        let schema = table.schema();
        let ascending = |name: &str| col(name, &schema).map(PhysicalSortExpr::new_default);
        let mut order = vec![ascending("device_id")?, ascending(table.time_column())?];
        if table == TableId::MetricRollups {
            order.push(ascending("metric_name")?);
        }
        let order = LexOrdering::new(order)
            .ok_or_else(|| datafusion::common::internal_datafusion_err!("an order of no columns"))?;
        let groups = files.iter().map(|file| FileGroup::new(vec![partitioned_file(table, &schema, file)]));
        let config = FileScanConfigBuilder::new(self.url.clone(), Arc::new(self.source(runtime, &schema)))
            .with_file_groups(groups.collect())
            .with_output_ordering(vec![order.clone()])
            .with_batch_size(Some(batch_rows))
            .build();
        Ok((DataSourceExec::from_data_source(config), order))
    }

    fn source(&self, runtime: &Arc<RuntimeEnv>, schema: &SchemaRef) -> ParquetSource {
        let store = self.storage.object_store();
        runtime.register_object_store(self.url.as_ref(), Arc::clone(&store));
        let metadata = runtime.cache_manager.get_file_metadata_cache();
        let files: Arc<dyn ParquetFileReaderFactory> = match self.storage.local_folder() {
            Some(folder) => Arc::new(LocalFiles { folder: Arc::clone(folder), store, metadata }),
            // Ranges that are near each other are one request.
            None => Arc::new(CachedParquetFileReaderFactory::new(store, metadata)),
        };
        let source = ParquetSource::new(Arc::clone(schema))
            .with_pushdown_filters(true)
            .with_reorder_filters(true)
            .with_enable_page_index(true)
            .with_parquet_file_reader_factory(files);
        match self.storage.local_folder() {
            Some(_) => source,
            None => source.with_metadata_size_hint(FOOTER_BYTES),
        }
    }
}

impl fmt::Debug for FileReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FileReader").field(&self.url).finish()
    }
}

fn partitioned_file(table: TableId, schema: &SchemaRef, file: &DataFile) -> PartitionedFile {
    let partitioned = PartitionedFile::new(format!("{}/{}", table.name(), file.path), file.bytes);
    match &file.stats {
        Some(stats) => partitioned.with_statistics(Arc::new(statistics(table, schema, file, stats))),
        None => partitioned,
    }
}

/// With them a query that wants the newest rows only opens the files that can have them.
fn statistics(table: TableId, schema: &SchemaRef, file: &DataFile, stats: &FileStats) -> Statistics {
    let bounds = |min: ScalarValue, max: ScalarValue| {
        ColumnStatistics::new_unknown()
            .with_null_count(Precision::Exact(0))
            // Bounds, not values that occur: times are rounded outwards.
            .with_min_value(Precision::Inexact(min))
            .with_max_value(Precision::Inexact(max))
    };
    let time = |micros| ScalarValue::TimestampMicrosecond(Some(micros), Some("UTC".into()));
    let text = |text: &str| ScalarValue::Utf8View(Some(text.to_owned()));
    let columns = schema.fields().iter().map(|field| match field.name().as_str() {
        "device_id" => bounds(text(&stats.device_min), text(&stats.device_max)),
        name if name == table.time_column() => bounds(time(stats.time_min), time(stats.time_max)),
        _ => ColumnStatistics::new_unknown(),
    });
    Statistics {
        num_rows: rows_precision(Some(stats)),
        total_byte_size: Precision::Inexact(usize::try_from(file.bytes).unwrap_or(usize::MAX)),
        column_statistics: columns.collect(),
    }
}

fn total(schema: &SchemaRef, files: &[Arc<DataFile>]) -> Statistics {
    let mut total = Statistics::new_unknown(schema);
    total.num_rows = files
        .iter()
        .map(|file| rows_precision(file.stats.as_ref()))
        .fold(Precision::Exact(0), |sum, rows| sum.add(&rows));
    let bytes: u64 = files.iter().map(|file| file.bytes).sum();
    total.total_byte_size = Precision::Inexact(usize::try_from(bytes).unwrap_or(usize::MAX));
    total
}

fn rows_precision(stats: Option<&FileStats>) -> Precision<usize> {
    stats.and_then(|stats| usize::try_from(stats.rows).ok()).map_or(Precision::Absent, Precision::Exact)
}
