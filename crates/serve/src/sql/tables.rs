//! The tables of the realm: history's four, the view `aggregated_metrics`, and what the snapshot knows: `snapshot`, `devices`.
//!
//! Providers are made when a query names them, so each query sees the state of its own moment.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanBuilder, Int64Builder, StringViewBuilder, TimestampMicrosecondBuilder,
};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use catchment_store::history::{AGGREGATED_METRICS, History};
use catchment_store::registry::{DeviceRecord, Registry};
use catchment_store::shard::snapshot_schema;
use catchment_store::snapshot::{Snapshot, SnapshotError, latest_rows};
use catchment_store::tables::{TableId, timestamp_type};
use datafusion::catalog::{SchemaProvider, Session, TableProvider};
use datafusion::common::{DataFusionError, Result, ScalarValue};
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::logical_expr::{BinaryExpr, Expr, Operator, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;

/// Registered devices read from the registry at once.
const REGISTRY_PAGE: u32 = 10_000;
pub(super) const SNAPSHOT: &str = "snapshot";
pub(super) const DEVICES: &str = "devices";

/// The schema `main`. Read-only: nothing can be registered in it.
pub struct RealmTables {
    history: Arc<dyn History>,
    snapshot: Arc<dyn Snapshot>,
    registry: Arc<Registry>,
}

impl fmt::Debug for RealmTables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RealmTables").finish_non_exhaustive()
    }
}

impl RealmTables {
    /// The tables over these stores.
    #[must_use]
    pub fn new(history: Arc<dyn History>, snapshot: Arc<dyn Snapshot>, registry: Arc<Registry>) -> Self {
        Self { history, snapshot, registry }
    }
}

#[async_trait]
impl SchemaProvider for RealmTables {
    fn table_names(&self) -> Vec<String> {
        let memory = [AGGREGATED_METRICS, SNAPSHOT, DEVICES];
        let mut names: Vec<String> =
            TableId::ALL.iter().map(|table| table.name()).chain(memory).map(str::to_owned).collect();
        names.sort_unstable();
        names
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
        if let Some(table) = TableId::ALL.into_iter().find(|table| table.name() == name) {
            return Ok(Some(self.history.table_provider(table)));
        }
        let memory = |kind, schema| MemoryTable {
            kind,
            schema,
            snapshot: Arc::clone(&self.snapshot),
            registry: Arc::clone(&self.registry),
        };
        Ok(match name {
            AGGREGATED_METRICS => Some(self.history.aggregated_metrics()?),
            SNAPSHOT => Some(Arc::new(memory(Kind::Snapshot, snapshot_schema()))),
            DEVICES => Some(Arc::new(memory(Kind::Devices, devices_schema()))),
            _ => None,
        })
    }

    fn table_exist(&self, name: &str) -> bool {
        self.table_names().iter().any(|table| table == name)
    }
}

fn devices_schema() -> SchemaRef {
    let time = |name: &str| Field::new(name, timestamp_type(), true);
    Arc::new(Schema::new(vec![
        Field::new("device_id", DataType::Utf8View, false),
        Field::new("registered", DataType::Boolean, false),
        Field::new("labels", DataType::Utf8View, true),
        time("created_at"),
        time("first_seen"),
        time("last_seen"),
        Field::new("events", DataType::Int64, false),
    ]))
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Snapshot,
    Devices,
}

/// A table whose rows are gathered when it is scanned.
struct MemoryTable {
    kind: Kind,
    schema: SchemaRef,
    snapshot: Arc<dyn Snapshot>,
    registry: Arc<Registry>,
}

impl fmt::Debug for MemoryTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryTable").field("kind", &self.kind).finish_non_exhaustive()
    }
}

#[async_trait]
impl TableProvider for MemoryTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        // The filter is applied again above: this only spares gathering every device for a question about one.
        let support = |filter: &&Expr| match wanted_device(filter) {
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
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let device = filters.iter().find_map(wanted_device);
        let partitions = match (self.kind, device) {
            (Kind::Snapshot, Some(device)) => {
                let snapshot = self.snapshot.latest(device).await.map_err(unavailable)?;
                vec![vec![latest_rows(snapshot.as_slice())]]
            }
            (Kind::Snapshot, None) => {
                let mut partitions: Vec<_> = self
                    .snapshot
                    .latest_rows()
                    .await
                    .map_err(unavailable)?
                    .into_iter()
                    .map(|batch| vec![batch])
                    .collect();
                if partitions.is_empty() {
                    partitions.push(Vec::new());
                }
                partitions
            }
            (Kind::Devices, _) => vec![vec![self.devices().await?]],
        };
        Ok(MemorySourceConfig::try_new_exec(&partitions, self.schema(), projection.cloned())?)
    }
}

fn unavailable(error: SnapshotError) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

/// The device of a filter `device_id = '…'`.
fn wanted_device(filter: &Expr) -> Option<&str> {
    let Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) = filter else { return None };
    let (Expr::Column(column), Expr::Literal(value, _)) = (left.as_ref(), right.as_ref()) else {
        return None;
    };
    match value {
        ScalarValue::Utf8View(Some(text)) | ScalarValue::Utf8(Some(text)) if column.name == "device_id" => {
            Some(text)
        }
        _ => None,
    }
}

fn time_builder() -> TimestampMicrosecondBuilder {
    TimestampMicrosecondBuilder::new().with_data_type(timestamp_type())
}

impl MemoryTable {
    /// Registered devices and those that sent something, each once.
    async fn devices(&self) -> Result<RecordBatch> {
        let mut registered = HashMap::new();
        let mut after: Option<String> = None;
        loop {
            let page = self
                .registry
                .devices(after.as_deref(), REGISTRY_PAGE)
                .await
                .map_err(|error| DataFusionError::External(Box::new(error)))?;
            let Some(last) = page.last() else { break };
            after = Some(last.device_id.clone());
            registered.extend(page.into_iter().map(|device| (device.device_id.clone(), device)));
        }
        let mut rows = DeviceRows::default();
        for batch in self.snapshot.device_rows().await.map_err(unavailable)? {
            let ids = column(&batch, "device_id")?.as_string_view();
            let first_seen = column(&batch, "first_seen")?.as_primitive::<TimestampMicrosecondType>();
            let last_seen = column(&batch, "last_seen")?.as_primitive::<TimestampMicrosecondType>();
            let events = column(&batch, "events")?.as_primitive::<Int64Type>();
            for row in 0..batch.num_rows() {
                let record = registered.remove(ids.value(row));
                rows.push(
                    ids.value(row),
                    record.as_ref(),
                    Some((first_seen.value(row), last_seen.value(row))),
                    events.value(row),
                );
            }
        }
        for (id, record) in &registered {
            rows.push(id, Some(record), None, 0);
        }
        rows.finish()
    }
}

fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a dyn Array> {
    let column = batch.column_by_name(name);
    column
        .map(AsRef::as_ref)
        .ok_or_else(|| DataFusionError::Internal(format!("the devices have no column {name}")))
}

struct DeviceRows {
    device_id: StringViewBuilder,
    registered: BooleanBuilder,
    labels: StringViewBuilder,
    created_at: TimestampMicrosecondBuilder,
    first_seen: TimestampMicrosecondBuilder,
    last_seen: TimestampMicrosecondBuilder,
    events: Int64Builder,
}

impl Default for DeviceRows {
    fn default() -> Self {
        Self {
            device_id: StringViewBuilder::new(),
            registered: BooleanBuilder::new(),
            labels: StringViewBuilder::new(),
            created_at: time_builder(),
            first_seen: time_builder(),
            last_seen: time_builder(),
            events: Int64Builder::new(),
        }
    }
}

impl DeviceRows {
    fn push(&mut self, id: &str, record: Option<&DeviceRecord>, seen: Option<(i64, i64)>, events: i64) {
        self.device_id.append_value(id);
        self.registered.append_value(record.is_some());
        let labels = record.and_then(|record| record.labels.clone());
        self.labels.append_option(labels.map(|labels| serde_json::Value::Object(labels).to_string()));
        self.created_at.append_option(record.map(|record| record.created_at.as_micros()));
        self.first_seen.append_option(seen.map(|(first, _)| first));
        self.last_seen.append_option(seen.map(|(_, last)| last));
        self.events.append_value(events);
    }

    fn finish(mut self) -> Result<RecordBatch> {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.device_id.finish()),
            Arc::new(self.registered.finish()),
            Arc::new(self.labels.finish()),
            Arc::new(self.created_at.finish()),
            Arc::new(self.first_seen.finish()),
            Arc::new(self.last_seen.finish()),
            Arc::new(self.events.finish()),
        ];
        Ok(RecordBatch::try_new(devices_schema(), columns)?)
    }
}
