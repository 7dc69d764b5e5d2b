//! ClickHouse's tables for DataFusion.
//!
//! A scan is one `SELECT` of exactly the columns, with the filters that mean the same on both sides ([`super::filter`]), the
//! limit where nothing is filtered again after it, and the order where it is the same.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::error::Result;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;

use super::client::Client;
use super::filter::condition;
use super::scan::{ClickHouseScan, Select};

/// A table or view in ClickHouse.
pub(super) struct ClickHouseTable {
    pub(super) name: &'static str,
    pub(super) schema: SchemaRef,
    pub(super) client: Client,
}

impl fmt::Debug for ClickHouseTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ClickHouseTable").field(&self.name).finish()
    }
}

#[async_trait]
impl TableProvider for ClickHouseTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let support = |filter: &&Expr| match condition(filter, &self.schema) {
            Some(condition) if condition.is_exact => TableProviderFilterPushDown::Exact,
            Some(_) => TableProviderFilterPushDown::Inexact,
            None => TableProviderFilterPushDown::Unsupported,
        };
        Ok(filters.iter().map(support).collect())
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = match projection {
            Some(columns) => Arc::new(self.schema.project(columns)?),
            None => Arc::clone(&self.schema),
        };
        let translated: Vec<_> = filters.iter().map(|filter| condition(filter, &self.schema)).collect();
        // What is filtered again needs all rows.
        let is_exact = translated.iter().all(|condition| condition.as_ref().is_some_and(|c| c.is_exact));
        let select = Select {
            table: self.name,
            columns: names(&schema),
            conditions: translated.into_iter().flatten().map(|condition| condition.sql).collect(),
            order: Vec::new(),
            limit: limit.filter(|_| is_exact),
        };
        Ok(Arc::new(ClickHouseScan::new(self.client.clone(), select, schema)))
    }
}

fn names(schema: &Schema) -> Vec<String> {
    schema.fields().iter().map(|field| field.name().clone()).collect()
}
