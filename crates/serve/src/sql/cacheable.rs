//! Whether the answer to a statement changes only when rows come.
//!
//! An allow-list: tables of history, and functions that the engine calls immutable. So neither `now()` nor `random()` passes, nor
//! `snapshot` and `devices`, which change without a commit, nor anything that is not known here.

use std::collections::HashSet;
use std::ops::ControlFlow;

use catchment_store::history::AGGREGATED_METRICS;
use catchment_store::tables::TableId;
use catchment_types::DEFAULT_REALM;
use datafusion::execution::FunctionRegistry;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::Volatility;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{self, Expr, ObjectName, visit_expressions, visit_relations};

use super::CATALOG;
use super::tables::{DEVICES, SNAPSHOT};

/// Whether the answer may be kept until the next commit.
pub(super) fn is_cacheable(statement: &Statement, state: &SessionState) -> bool {
    let Statement::Statement(statement) = statement else { return false };
    let ast::Statement::Query(query) = statement.as_ref() else { return false };
    // Names of nested WITH clauses are unknown tables here, and their answers not kept: rare, and right.
    let clauses = query.with.iter().flat_map(|with| &with.cte_tables);
    // A clause may be named like a table, and one before it mean the table.
    let own_names: HashSet<&str> = clauses
        .map(|cte| cte.alias.name.value.as_str())
        .filter(|name| ![SNAPSHOT, DEVICES].contains(name))
        .collect();
    let tables = visit_relations(query, |name| keep_going(is_history(name, &own_names)));
    let functions = visit_expressions(query, |expr| {
        keep_going(match expr {
            Expr::Function(function) => is_immutable(&function.name, state),
            _ => true,
        })
    });
    tables.is_continue() && functions.is_continue()
}

fn keep_going(is_fine: bool) -> ControlFlow<()> {
    if is_fine { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
}

fn is_history(name: &ObjectName, own_names: &HashSet<&str>) -> bool {
    let parts: Option<Vec<&str>> =
        name.0.iter().map(|part| part.as_ident().map(|ident| ident.value.as_str())).collect();
    let table = match parts.as_deref() {
        Some([table]) if own_names.contains(*table) => return true,
        Some([table] | [DEFAULT_REALM, table] | [CATALOG, DEFAULT_REALM, table]) => *table,
        _ => return false,
    };
    table == AGGREGATED_METRICS || TableId::ALL.iter().any(|known| known.name() == table)
}

fn is_immutable(name: &ObjectName, state: &SessionState) -> bool {
    let [part] = name.0.as_slice() else { return false };
    let Some(name) = part.as_ident().map(|ident| ident.value.to_lowercase()) else { return false };
    let volatility = state
        .udf(&name)
        .map(|function| function.signature().volatility)
        .or_else(|_| state.udaf(&name).map(|function| function.signature().volatility))
        .or_else(|_| state.udwf(&name).map(|function| function.signature().volatility));
    volatility.is_ok_and(|volatility| volatility == Volatility::Immutable)
}

#[cfg(test)]
mod tests {
    use datafusion::prelude::SessionContext;

    use super::*;
    use crate::sql::parse;

    #[test]
    fn only_what_rows_alone_decide_is_kept() {
        let state = SessionContext::new().state();
        let kept = |sql: &str| is_cacheable(&parse(sql).unwrap(), &state);
        for sql in [
            "SELECT count(*), avg(metric_value) FROM raw_metrics WHERE device_id = 'a' GROUP BY date_trunc('hour', timestamp)",
            "SELECT * FROM main.aggregated_metrics a JOIN catchment.main.raw_events e ON a.device_id = e.device_id",
            "WITH latest AS (SELECT max(timestamp) AS at FROM raw_metrics) SELECT * FROM latest",
            "SELECT row_number() OVER (ORDER BY timestamp), upper(device_id) FROM raw_metrics",
            "SELECT 1",
        ] {
            assert!(kept(sql), "{sql}");
        }
        for sql in [
            "SELECT * FROM snapshot",
            "SELECT * FROM main.devices",
            "SELECT count(*) FROM raw_metrics WHERE timestamp > now() - interval '1 hour'",
            "SELECT current_timestamp",
            "SELECT current_date",
            "SELECT random() FROM raw_metrics",
            "SELECT uuid()",
            "SELECT * FROM raw_metrics WHERE device_id IN (SELECT device_id FROM snapshot)",
            "SELECT * FROM (SELECT now() AS at) x",
            "SELECT no_such_function(1)",
            "SELECT * FROM information_schema.tables",
            "SELECT * FROM generate_series(1, 3)",
            "SELECT count(*) FILTER (WHERE timestamp > now()) FROM raw_metrics",
            "SELECT sum(metric_value) OVER (ORDER BY random()) FROM raw_metrics",
            "WITH a AS (SELECT * FROM snapshot), snapshot AS (SELECT 1) SELECT * FROM a",
            "SHOW TABLES",
            "EXPLAIN SELECT 1",
        ] {
            assert!(!kept(sql), "{sql}");
        }
    }
}
