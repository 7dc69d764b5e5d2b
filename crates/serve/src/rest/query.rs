//! REST's own queries: text with parameters, rows by name.

use std::sync::Arc;

use arrow::array::{Array, ArrowPrimitiveType, AsArray, PrimitiveArray};
use arrow::datatypes::{
    Float64Type, Int32Type, Int64Type, TimestampMicrosecondType, TimestampNanosecondType,
};
use arrow::record_batch::RecordBatch;
use catchment_types::Timestamp;
use datafusion::common::{DataFusionError, ScalarValue};
use futures::TryStreamExt;

use crate::ServeState;
use crate::access::{Guest, must_go};
use crate::problem::Problem;
use crate::sql::QueryOptions;

/// A query under construction. Values from requests go in as parameters, never as text.
pub(super) struct Query {
    pub(super) sql: String,
    parameters: Vec<ScalarValue>,
}

impl Query {
    pub(super) fn new(sql: String) -> Self {
        Self { sql, parameters: Vec::new() }
    }

    /// Adds a condition: `comparison` and the value.
    pub(super) fn and(&mut self, comparison: &str, value: ScalarValue) {
        self.parameters.push(value);
        self.sql.push_str(&format!(" AND {comparison}${}", self.parameters.len()));
    }

    /// Runs it to the end, unless who asked has to go.
    pub(super) async fn run(self, state: &ServeState, guest: &Guest) -> Result<Vec<Row>, Problem> {
        tokio::select! {
            rows = self.run_for(state, guest.name()) => rows,
            refusal = must_go(Arc::clone(&state.access), guest.clone()) => Err(refusal.into()),
        }
    }

    async fn run_for(self, state: &ServeState, user: &str) -> Result<Vec<Row>, Problem> {
        let session = state.sql.session();
        let translate = |error: DataFusionError| Problem::from(state.sql.error(&error));
        let plan = session.state().create_logical_plan(&self.sql).await.map_err(translate)?;
        let plan = plan.with_param_values(self.parameters).map_err(translate)?;
        let options = QueryOptions { origin: "rest", user: user.to_owned(), ..QueryOptions::default() };
        let stream = state.sql.query_plan(&session, plan, &self.sql, options).await?;
        let batches: Vec<RecordBatch> = stream.try_collect().await?;
        let rows = batches
            .into_iter()
            .map(Arc::new)
            .flat_map(|batch| (0..batch.num_rows()).map(move |row| Row { batch: Arc::clone(&batch), row }));
        Ok(rows.collect())
    }
}

/// One row of an answer. A column that is missing, null or of another type gives nothing.
pub(super) struct Row {
    batch: Arc<RecordBatch>,
    row: usize,
}

impl Row {
    fn column(&self, name: &str) -> Option<&dyn Array> {
        self.batch.column_by_name(name).map(AsRef::as_ref).filter(|column| column.is_valid(self.row))
    }

    fn primitive<T: ArrowPrimitiveType>(&self, name: &str) -> Option<T::Native> {
        let column: &PrimitiveArray<T> = self.column(name)?.as_primitive_opt()?;
        Some(column.value(self.row))
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        Some(self.column(name)?.as_string_view_opt()?.value(self.row))
    }

    pub(super) fn bytes(&self, name: &str) -> Option<&[u8]> {
        Some(self.column(name)?.as_binary_view_opt()?.value(self.row))
    }

    pub(super) fn number(&self, name: &str) -> Option<f64> {
        self.primitive::<Float64Type>(name)
    }

    pub(super) fn integer(&self, name: &str) -> Option<i64> {
        self.primitive::<Int64Type>(name).or_else(|| self.primitive::<Int32Type>(name).map(i64::from))
    }

    pub(super) fn time(&self, name: &str) -> Option<Timestamp> {
        let micros = self.primitive::<TimestampMicrosecondType>(name);
        // `date_bin` answers in nanoseconds, whatever it is asked about.
        let from_nanos =
            || self.primitive::<TimestampNanosecondType>(name).map(|nanos| nanos.div_euclid(1_000));
        micros.or_else(from_nanos).map(Timestamp)
    }
}
