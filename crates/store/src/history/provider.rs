//! DeltaHistory's tables for DataFusion: memory and files as one.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{
    CatalogProvider, MemoryCatalogProvider, MemorySchemaProvider, SchemaProvider, Session, TableProvider,
};
use datafusion::common::DFSchema;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::datasource::{ViewTable, provider_as_source};
use datafusion::error::Result;
use datafusion::execution::context::SessionContext;
use datafusion::functions_aggregate::expr_fn::{max, min, sum};
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{
    BinaryExpr, Expr, LogicalPlanBuilder, Operator, TableProviderFilterPushDown, TableType, cast, col,
};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::union::UnionExec;

use super::DeltaHistory;
use super::data_file::FileList;
use super::prune::prune;
use super::scan::FileReader;
use super::view::View;
use crate::tables::TableId;

/// SQL name of the view over the rollups.
pub const AGGREGATED_METRICS: &str = "aggregated_metrics";
/// SQL catalog of history's tables.
pub const CATALOG: &str = "catchment";

const AGGREGATED_METRICS_SQL: &str = "SELECT device_id, time_bucket, metric_name, \
    sum(sum_value) / sum(count) AS avg_value, min(min_value) AS min_value, max(max_value) AS max_value, \
    sum(count) AS count FROM metric_rollups GROUP BY device_id, time_bucket, metric_name";

impl DeltaHistory {
    /// A table for SQL. Each scan sees every row exactly once, wherever it is at that moment.
    pub(super) fn table(&self, table: TableId) -> Arc<dyn TableProvider> {
        let archive = self.archive.as_ref().and_then(|archive| archive.table(table));
        Arc::new(HistoryTable {
            table,
            view: Arc::clone(&self.view),
            files: self.tables[table.index()].reader.clone(),
            archived: archive.map(|archive| archive.reader.clone()),
        })
    }

    /// Registers the tables and the view `aggregated_metrics` in the schema `catchment.main`, both of which are made
    /// where they are missing.
    ///
    /// # Errors
    /// When the catalog refuses, for instance because a table of the name is there already.
    pub fn register_tables(&self, context: &SessionContext) -> Result<()> {
        let catalog = match context.catalog(CATALOG) {
            Some(catalog) => catalog,
            None => {
                let catalog: Arc<dyn CatalogProvider> = Arc::new(MemoryCatalogProvider::new());
                context.register_catalog(CATALOG, Arc::clone(&catalog));
                catalog
            }
        };
        let realm = catchment_types::DEFAULT_REALM;
        let schema = match catalog.schema(realm) {
            Some(schema) => schema,
            None => {
                let schema: Arc<dyn SchemaProvider> = Arc::new(MemorySchemaProvider::new());
                catalog.register_schema(realm, Arc::clone(&schema))?;
                schema
            }
        };
        for table in TableId::ALL {
            schema.register_table(table.name().to_owned(), self.table(table))?;
        }
        schema.register_table(
            AGGREGATED_METRICS.to_owned(),
            aggregated_metrics(self.table(TableId::MetricRollups))?,
        )?;
        Ok(())
    }
}

/// The view that finishes the partial states of the table `metric_rollups`. Filters on device, metric and time reach it.
///
/// # Errors
/// None is expected: the plan is fixed.
pub fn aggregated_metrics(rollups: Arc<dyn TableProvider>) -> Result<Arc<dyn TableProvider>> {
    let keys = || ["device_id", "time_bucket", "metric_name"].map(col);
    let plan = LogicalPlanBuilder::scan(TableId::MetricRollups.name(), provider_as_source(rollups), None)?
        .aggregate(
            keys(),
            [
                sum(col("sum_value")).alias("sum_value"),
                min(col("min_value")).alias("min_value"),
                max(col("max_value")).alias("max_value"),
                sum(col("count")).alias("count"),
            ],
        )?
        .project(keys().into_iter().chain([
            (col("sum_value") / cast(col("count"), arrow::datatypes::DataType::Float64)).alias("avg_value"),
            col("min_value"),
            col("max_value"),
            col("count"),
        ]))?
        .build()?;
    Ok(Arc::new(ViewTable::new(plan, Some(AGGREGATED_METRICS_SQL.to_owned()))))
}

/// How many files a thread reads if only rows of one device are wanted.
const FILES_OF_DEVICE: usize = 16;

/// The device that a filter wants rows of, if it wants only one's.
fn wanted_device(filter: &Expr) -> Option<&str> {
    let Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) = filter else { return None };
    match (&**left, &**right) {
        (Expr::Column(column), Expr::Literal(value, _)) | (Expr::Literal(value, _), Expr::Column(column))
            if column.name == "device_id" =>
        {
            value.try_as_str().flatten()
        }
        _ => None,
    }
}

struct HistoryTable {
    table: TableId,
    view: Arc<View>,
    files: FileReader,
    archived: Option<FileReader>,
}

impl fmt::Debug for HistoryTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HistoryTable").field(&self.table.name()).finish()
    }
}

#[async_trait]
impl TableProvider for HistoryTable {
    fn schema(&self) -> SchemaRef {
        self.table.schema()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = self.table.schema();
        let predicate = match conjunction(filters.iter().cloned()) {
            Some(filter) => {
                let columns = DFSchema::try_from(Arc::clone(&schema))?;
                Some(state.create_physical_expr(filter, &columns)?)
            }
            None => None,
        };
        let device = filters.iter().find_map(wanted_device);
        let snapshot = self.view.snapshot(self.table, device);
        let pruned = |files: &FileList| match &predicate {
            Some(predicate) => prune(self.table, files, predicate),
            None => files.to_vec(),
        };
        let (files, archived) = (pruned(&snapshot.files), pruned(&snapshot.archived));
        let partitions = state.config().target_partitions().max(1);
        let mut inputs: Vec<Arc<dyn ExecutionPlan>> = Vec::with_capacity(3);
        if !snapshot.memory.is_empty() || files.is_empty() && archived.is_empty() {
            inputs.push(MemorySourceConfig::try_new_exec(
                &[snapshot.memory],
                Arc::clone(&schema),
                projection.cloned(),
            )?);
        }
        // A limit counts rows after the filters, which the optimizer only hands to the files later.
        let limit = limit.filter(|_| predicate.is_none());
        if !files.is_empty() {
            // Of each file a device has a few pages: to hand few files to several threads takes longer than to read them.
            let groups = match device {
                Some(_) => (files.len() / FILES_OF_DEVICE).max(1).min(partitions),
                None => partitions,
            };
            inputs.push(self.files.scan(state, self.table, &files, groups, projection, limit)?);
        }
        if let Some(reader) = self.archived.as_ref().filter(|_| !archived.is_empty()) {
            inputs.push(reader.scan(state, self.table, &archived, partitions, projection, limit)?);
        }
        match inputs.len() {
            1 => Ok(inputs.remove(0)),
            _ => UnionExec::try_new(inputs),
        }
    }
}
