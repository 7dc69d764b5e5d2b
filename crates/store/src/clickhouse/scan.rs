//! A `SELECT` that runs in ClickHouse, as a plan of DataFusion.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use arrow::array::cast::AsArray;
use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::{DataType, SchemaRef, UInt64Type};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{EquivalenceProperties, LexOrdering, PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::sort_pushdown::SortOrderPushdownResult;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties, SendableRecordBatchStream,
};
use futures::stream;

use super::answer::{Answer, shaped};
use super::client::{Client, Setting};
use super::error::{ClickHouseError, Trouble};

/// Rows without columns that are given at once: they are only counted.
const COUNTED_ROWS: u64 = 1 << 16;
/// Memory of a query's groups in ClickHouse, bytes.
const GROUP_BYTES_MAX: u64 = 1 << 30;
/// A query that nobody has ended is ended by ClickHouse, seconds. Ours have limits of their own, which are shorter.
const EXECUTION_S_MAX: u32 = 3600;

/// What is asked for.
#[derive(Debug, Clone)]
pub(super) struct Select {
    pub(super) table: &'static str,
    /// Expressions; none: the rows are only counted.
    pub(super) columns: Vec<String>,
    pub(super) conditions: Vec<String>,
    /// Expressions of `GROUP BY`; none where rows are asked for, or all are one group.
    pub(super) group: Vec<String>,
    /// Expressions of `ORDER BY`.
    pub(super) order: Vec<String>,
    pub(super) limit: Option<usize>,
}

impl Select {
    fn counts(&self) -> bool {
        self.columns.is_empty()
    }

    /// The statement.
    pub(super) fn sql(&self) -> String {
        let columns = match (self.counts(), self.limit) {
            (true, None) => "count()".to_owned(),
            (true, Some(_)) => "1".to_owned(),
            (false, _) => self.columns.join(", "),
        };
        let mut sql = format!("SELECT {columns} FROM {}", self.table);
        // Writing to a String cannot fail.
        if !self.conditions.is_empty() {
            let _ = write!(sql, " WHERE {}", self.conditions.join(" AND "));
        }
        if !self.group.is_empty() {
            let _ = write!(sql, " GROUP BY {}", self.group.join(", "));
        }
        if !self.order.is_empty() {
            let _ = write!(sql, " ORDER BY {}", self.order.join(", "));
        }
        if let Some(limit) = self.limit {
            let _ = write!(sql, " LIMIT {limit}");
        }
        match self.counts() && self.limit.is_some() {
            true => format!("SELECT count() FROM ({sql})"),
            false => sql,
        }
    }
}

/// The plan.
#[derive(Clone)]
pub(super) struct ClickHouseScan {
    client: Client,
    select: Select,
    schema: SchemaRef,
    /// Groups come, not rows.
    is_grouped: bool,
    properties: Arc<PlanProperties>,
}

impl ClickHouseScan {
    pub(super) fn new(client: Client, select: Select, schema: SchemaRef) -> Self {
        let properties = properties(EquivalenceProperties::new(Arc::clone(&schema)));
        Self { client, select, schema, is_grouped: false, properties }
    }

    /// What gives these columns of each group of the rows, of that schema; nothing when rows would be left out or are in order.
    pub(super) fn grouped(
        &self,
        group: Vec<String>,
        columns: Vec<String>,
        schema: SchemaRef,
    ) -> Option<Self> {
        if self.is_grouped || self.select.limit.is_some() || !self.select.order.is_empty() {
            return None;
        }
        let select = Select { columns, group, ..self.select.clone() };
        Some(Self { is_grouped: true, ..Self::new(self.client.clone(), select, schema) })
    }
}

fn properties(equivalences: EquivalenceProperties) -> Arc<PlanProperties> {
    Arc::new(PlanProperties::new(
        equivalences,
        Partitioning::UnknownPartitioning(1),
        EmissionType::Incremental,
        Boundedness::Bounded,
    ))
}

/// An item of `ORDER BY`, if both sides order the column alike.
fn order_item(item: &PhysicalSortExpr, schema: &SchemaRef) -> Option<String> {
    let column = item.expr.downcast_ref::<Column>()?;
    let field = schema.fields().get(column.index())?;
    let is_alike = matches!(
        field.data_type(),
        DataType::Utf8View | DataType::Timestamp(..) | DataType::Int32 | DataType::Int64
    );
    let direction = if item.options.descending { "DESC" } else { "ASC" };
    let nulls = if item.options.nulls_first { "FIRST" } else { "LAST" };
    is_alike.then(|| format!("`{}` {direction} NULLS {nulls}", field.name()))
}

impl fmt::Debug for ClickHouseScan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ClickHouseScan").field(&self.select.sql()).finish()
    }
}

impl DisplayAs for ClickHouseScan {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClickHouseScan: {}", self.select.sql())
    }
}

impl ExecutionPlan for ClickHouseScan {
    fn name(&self) -> &'static str {
        "ClickHouseScan"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn supports_limit_pushdown(&self) -> bool {
        false
    }

    fn fetch(&self) -> Option<usize> {
        self.select.limit
    }

    fn with_fetch(&self, limit: Option<usize>) -> Option<Arc<dyn ExecutionPlan>> {
        if self.is_grouped {
            return None;
        }
        let limit = match (self.select.limit, limit) {
            (Some(ours), Some(limit)) => Some(ours.min(limit)),
            (ours, limit) => ours.or(limit),
        };
        let select = Select { limit, ..self.select.clone() };
        Some(Arc::new(Self { select, ..self.clone() }))
    }

    fn try_pushdown_sort(
        &self,
        order: &[PhysicalSortExpr],
    ) -> Result<SortOrderPushdownResult<Arc<dyn ExecutionPlan>>> {
        let items = order.iter().map(|item| order_item(item, &self.schema)).collect::<Option<Vec<_>>>();
        // After a limit it would choose other rows.
        let (Some(items), None, false) = (items, self.select.limit, self.is_grouped) else {
            return Ok(SortOrderPushdownResult::Unsupported);
        };
        let Some(ordering) = LexOrdering::new(order.to_vec()) else {
            return Ok(SortOrderPushdownResult::Unsupported);
        };
        let mut equivalences = EquivalenceProperties::new(Arc::clone(&self.schema));
        equivalences.add_ordering(ordering);
        let select = Select { order: items, ..self.select.clone() };
        let scan = Self { select, properties: properties(equivalences), ..self.clone() };
        Ok(SortOrderPushdownResult::Exact { inner: Arc::new(scan) })
    }

    fn execute(&self, partition: usize, _: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        if partition != 0 {
            return Err(DataFusionError::Internal(format!("ClickHouseScan has no partition {partition}")));
        }
        let (client, select, schema) = (self.client.clone(), self.select.clone(), Arc::clone(&self.schema));
        let rows = stream::try_unfold(State::Asked(Box::new((client, select))), move |state| {
            let schema = Arc::clone(&schema);
            async move { Ok(state.next(&schema).await?) }
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), rows)))
    }
}

/// How far the answer is.
enum State {
    /// Nothing was sent yet.
    Asked(Box<(Client, Select)>),
    /// Rows come.
    Rows(Box<Running>),
    /// So many rows are still to be given that have no columns.
    Counted(u64),
}

impl State {
    async fn next(self, schema: &SchemaRef) -> Result<Option<(RecordBatch, Self)>, ClickHouseError> {
        let state = match self {
            Self::Asked(asked) => {
                let (client, select) = *asked;
                let counts = select.counts();
                let mut running = Running::start(&client, select.sql(), &settings()).await?;
                match counts {
                    true => Self::Counted(running.number().await?),
                    false => Self::Rows(Box::new(running)),
                }
            }
            other => other,
        };
        match state {
            Self::Rows(mut running) => {
                let Some(rows) = running.next().await? else { return Ok(None) };
                let rows = shaped(&rows, schema).map_err(|trouble| running.answer.client().error(trouble))?;
                Ok(Some((rows, Self::Rows(running))))
            }
            Self::Counted(0) | Self::Asked(_) => Ok(None),
            Self::Counted(left) => {
                let now = left.min(COUNTED_ROWS);
                let options = RecordBatchOptions::new().with_row_count(Some(now as usize));
                let rows = RecordBatch::try_new_with_options(Arc::clone(schema), Vec::new(), &options);
                let rows = rows.unwrap_or_else(|_| RecordBatch::new_empty(Arc::clone(schema)));
                Ok(Some((rows, Self::Counted(left - now))))
            }
        }
    }
}

/// Of our queries. Groups that are too many for memory go to disk.
fn settings() -> [Setting; 2] {
    [("readonly", "2".to_owned()), ("max_bytes_before_external_group_by", GROUP_BYTES_MAX.to_string())]
}

/// A query that runs in ClickHouse; ended there when it is dropped before its end.
pub(super) struct Running {
    pub(super) answer: Answer,
    end: EndQuery,
}

impl Running {
    /// Starts a query of ours.
    pub(super) async fn start(
        client: &Client,
        query: String,
        settings: &[Setting],
    ) -> Result<Self, ClickHouseError> {
        let mut all = vec![("max_execution_time", EXECUTION_S_MAX.to_string())];
        all.extend_from_slice(settings);
        let started = Self::start_foreign(client, query, &all).await;
        started.map_err(|error| client.error(error.trouble.about_our_tables()))
    }

    /// Starts a query with these settings alone: one that somebody else has written, or that may take long.
    pub(super) async fn start_foreign(
        client: &Client,
        query: String,
        settings: &[Setting],
    ) -> Result<Self, ClickHouseError> {
        // Before there is an answer, which only begins with the first rows.
        let mut end = EndQuery { client: client.clone(), query_id: query_id(), is_needed: true };
        let answer = client.select(query, &end.query_id, settings).await;
        end.is_needed = answer.is_ok();
        Ok(Self { answer: answer?, end })
    }

    /// The next rows; nothing at the end.
    pub(super) async fn next(&mut self) -> Result<Option<RecordBatch>, ClickHouseError> {
        let next = self.answer.next().await;
        self.end.is_needed = matches!(next, Ok(Some(_)));
        next
    }

    /// The one number that the answer is.
    pub(super) async fn number(&mut self) -> Result<u64, ClickHouseError> {
        let mut number = None;
        while let Some(rows) = self.next().await? {
            let column = rows.columns().first().and_then(|column| column.as_primitive_opt::<UInt64Type>());
            number = number.or(column.and_then(|column| column.values().first().copied()));
        }
        number.ok_or_else(|| self.answer.client().error(Trouble::Answer("it gave no number".to_owned())))
    }
}

/// Ends a query when it is dropped.
struct EndQuery {
    client: Client,
    query_id: String,
    is_needed: bool,
}

impl Drop for EndQuery {
    fn drop(&mut self) {
        // A closed connection ends the query, too, but only once the server notices.
        if let (true, Ok(runtime)) = (self.is_needed, tokio::runtime::Handle::try_current()) {
            let client = self.client.clone();
            let statement = format!("KILL QUERY WHERE query_id = '{}' ASYNC", self.query_id);
            runtime.spawn(async move {
                if let Err(error) = client.text_on_server(&statement).await {
                    tracing::debug!(%error, "a query was left to end by itself");
                }
            });
        }
    }
}

/// A name for a query that no other has.
pub(super) fn query_id() -> String {
    format!("catchment-{:032x}", rand::random::<u128>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_ask_for_what_is_needed() {
        let mut select = Select {
            table: "raw_metrics",
            columns: vec!["`device_id`".to_owned(), "`timestamp`".to_owned()],
            conditions: vec!["`device_id` = 'a'".to_owned(), "(x OR y)".to_owned()],
            group: Vec::new(),
            order: vec!["`timestamp` DESC NULLS FIRST".to_owned()],
            limit: Some(3),
        };
        assert_eq!(
            select.sql(),
            "SELECT `device_id`, `timestamp` FROM raw_metrics WHERE `device_id` = 'a' AND (x OR y) \
             ORDER BY `timestamp` DESC NULLS FIRST LIMIT 3"
        );
        let grouped = Select {
            columns: vec!["`device_id`".to_owned(), "toInt64(count())".to_owned()],
            group: vec!["`device_id`".to_owned()],
            order: Vec::new(),
            limit: None,
            ..select.clone()
        };
        assert_eq!(
            grouped.sql(),
            "SELECT `device_id`, toInt64(count()) FROM raw_metrics WHERE `device_id` = 'a' AND (x OR y) GROUP BY `device_id`"
        );
        select = Select { columns: Vec::new(), order: Vec::new(), limit: None, ..select };
        assert_eq!(select.sql(), "SELECT count() FROM raw_metrics WHERE `device_id` = 'a' AND (x OR y)");
        select = Select { conditions: Vec::new(), limit: Some(5), ..select };
        assert_eq!(select.sql(), "SELECT count() FROM (SELECT 1 FROM raw_metrics LIMIT 5)");
    }
}
