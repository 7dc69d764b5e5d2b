//! No history, for a process that neither brings rows in nor answers.

use std::sync::Arc;

use async_trait::async_trait;
use catchment_types::{Offset, PartitionId};
use datafusion::catalog::TableProvider;
use datafusion::datasource::empty::EmptyTable;
use datafusion::error::Result;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{FlushReport, History, HistoryHealth, Start, StoreError, aggregated_metrics};
use crate::tables::TableId;

/// Has nothing and takes nothing; its tables are empty.
#[derive(Debug)]
pub struct NoHistory {
    committed: watch::Sender<Vec<Offset>>,
}

impl NoHistory {
    /// Of a log with this many partitions, none of which is worked on here.
    #[must_use]
    pub fn new(partitions: usize) -> Arc<Self> {
        Arc::new(Self { committed: watch::Sender::new(vec![0; partitions]) })
    }
}

#[async_trait]
impl History for NoHistory {
    async fn take_over(&self, _: PartitionId) -> std::result::Result<Start, StoreError> {
        let message = "this process has no history to bring it into".to_owned();
        Err(StoreError::Interrupted { what: "taking over of a partition", message })
    }

    async fn release(&self, _: PartitionId) {}

    fn subscribe_committed(&self) -> watch::Receiver<Vec<Offset>> {
        self.committed.subscribe()
    }

    async fn flush(&self) -> std::result::Result<FlushReport, StoreError> {
        Ok(FlushReport::default())
    }

    async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        shutdown.cancelled().await;
    }

    fn buffered_bytes(&self) -> usize {
        0
    }

    fn health(&self) -> HistoryHealth {
        HistoryHealth::Healthy
    }

    fn table_provider(&self, table: TableId) -> Arc<dyn TableProvider> {
        Arc::new(EmptyTable::new(table.schema()))
    }

    fn aggregated_metrics(&self) -> Result<Arc<dyn TableProvider>> {
        aggregated_metrics(self.table_provider(TableId::MetricRollups))
    }

    fn register_metrics(&self, _: &mut Registry) {}
}
