//! ClickHouse's tables for DataFusion.
//!
//! A scan is one `SELECT` of exactly the columns, with the filters that mean the same on both sides ([`super::filter`]), the
//! limit where nothing is filtered again after it, and the order where it is the same; or of groups of rows
//! ([`super::aggregate`]). Rows that have moved to the archive are read
//! from there, by a query that can want such old ones.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::DFSchema;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::union::UnionExec;

use super::archive::not_copied;
use super::client::Client;
use super::filter::condition;
use super::scan::{ClickHouseScan, Select};
use crate::history::cold::ColdReader;
use crate::tables::TableId;

/// A table or view in ClickHouse.
pub(super) struct ClickHouseTable {
    pub(super) name: &'static str,
    pub(super) schema: SchemaRef,
    pub(super) client: Client,
    /// Its rows that have moved to the archive.
    pub(super) archived: Option<(TableId, Arc<ColdReader>)>,
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
        state: &dyn Session,
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
        let mut conditions: Vec<_> =
            translated.into_iter().flatten().map(|condition| condition.sql).collect();
        let archived = self.archived(state, projection, filters, limit).await?;
        if let Some(archived) = &archived {
            conditions.extend_from_slice(&archived.not_in_clickhouse);
        }
        let select = Select {
            table: self.name,
            columns: names(&schema),
            conditions,
            group: Vec::new(),
            order: Vec::new(),
            limit: limit.filter(|_| is_exact),
        };
        let scan = Arc::new(ClickHouseScan::new(self.client.clone(), select, schema));
        match archived.and_then(|archived| archived.plan) {
            Some(archived) => UnionExec::try_new(vec![scan, archived]),
            None => Ok(scan),
        }
    }
}

/// What a query has from the archive.
struct Archived {
    /// Conditions for ClickHouse, which has rows, too, that are read from the archive.
    not_in_clickhouse: Vec<String>,
    plan: Option<Arc<dyn ExecutionPlan>>,
}

impl ClickHouseTable {
    /// What of the archive the query wants, if it can want any of it.
    async fn archived(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Option<Archived>> {
        let Some((id, archive)) = &self.archived else { return Ok(None) };
        let predicate = match conjunction(filters.iter().cloned()) {
            Some(filter) => {
                let columns = DFSchema::try_from(Arc::clone(&self.schema))?;
                Some(state.create_physical_expr(filter, &columns)?)
            }
            None => None,
        };
        if !archive.may_have(predicate.as_ref()) {
            return Ok(None);
        }
        let cold = archive.look().await.map_err(|error| DataFusionError::External(Box::new(error)))?;
        Ok(Some(Archived {
            not_in_clickhouse: cold.leaving().iter().map(|leaving| not_copied(*id, leaving)).collect(),
            plan: archive.scan(state, &cold, predicate.as_ref(), projection, limit)?,
        }))
    }
}

fn names(schema: &Schema) -> Vec<String> {
    schema.fields().iter().map(|field| format!("`{}`", field.name())).collect()
}
