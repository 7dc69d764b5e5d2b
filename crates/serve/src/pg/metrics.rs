//! What is counted about the PostgreSQL protocol.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Label of a refused connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

/// Label of a statement.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// Counters of the PostgreSQL protocol. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct PgMetrics {
    pub(super) sessions: Gauge,
    refused: Family<Reason, Counter>,
    statements: Family<Outcome, Counter>,
}

impl PgMetrics {
    /// Shows the counters under `catchment_sql_postgres_…`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("catchment_sql_postgres");
        registry.register("sessions", "Sessions of the PostgreSQL protocol", self.sessions.clone());
        registry.register(
            "connections_refused",
            "Connections that did not become sessions",
            self.refused.clone(),
        );
        registry.register(
            "statements",
            "Statements by outcome: ok, error, cancelled",
            self.statements.clone(),
        );
    }

    pub(super) fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&Reason { reason }).inc();
    }

    pub(super) fn statement(&self, outcome: &'static str) {
        self.statements.get_or_create(&Outcome { outcome }).inc();
    }
}
