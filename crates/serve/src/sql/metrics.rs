//! Figures of SQL, named `catchment_sql_…`.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::{SqlError, SqlErrorKind};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// Counters of the engine; clones share them.
#[derive(Debug, Clone)]
pub struct SqlMetrics {
    queries: Family<Outcome, Counter>,
    seconds: Histogram,
    rows: Counter,
    running: Gauge,
}

impl Default for SqlMetrics {
    fn default() -> Self {
        Self {
            queries: Family::default(),
            // 1 ms to 32 s.
            seconds: Histogram::new(exponential_buckets(0.001, 2.0, 16)),
            rows: Counter::default(),
            running: Gauge::default(),
        }
    }
}

impl SqlMetrics {
    /// Makes the figures part of `/metrics`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("catchment_sql_queries", "Queries by how they ended", self.queries.clone());
        registry.register("catchment_sql_query_seconds", "Time from start to last row", self.seconds.clone());
        registry.register("catchment_sql_rows", "Rows answered", self.rows.clone());
        registry.register("catchment_sql_running", "Queries that run now", self.running.clone());
    }

    pub(super) fn started(&self) {
        self.running.inc();
    }

    pub(super) fn ended(&self, outcome: Result<(), SqlErrorKind>, elapsed: Duration) {
        self.running.dec();
        let outcome = outcome.map_or_else(SqlErrorKind::as_str, |()| "ok");
        self.queries.get_or_create(&Outcome { outcome }).inc();
        self.seconds.observe(elapsed.as_secs_f64());
    }

    pub(super) fn refused(&self, error: &SqlError) {
        self.queries.get_or_create(&Outcome { outcome: error.kind.as_str() }).inc();
    }

    pub(super) fn rows(&self, rows: usize) {
        self.rows.inc_by(rows as u64);
    }
}
