//! Aggregation where the rows are: what is grouped over a table is summed up by ClickHouse, and only the groups come.
//!
//! DataFusion aggregates in two steps, states of parts of the rows, and what they are together. The first step over a scan of ours
//! becomes the scan's `GROUP BY`, which gives those states as columns; the second is still DataFusion's, which brings in what is
//! read from the archive, and makes the result's types. Only functions and keys are handed over that mean the same on both sides;
//! NaN, for instance, is the largest of all numbers for DataFusion, and none for ClickHouse.

use std::sync::Arc;

use arrow::datatypes::{DataType, Schema, TimeUnit};
use catchment_types::Timestamp;
use datafusion::common::ScalarValue;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::error::Result;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_expr::expressions::{CastExpr, Column, Literal};
use datafusion::physical_expr::{PhysicalExpr, ScalarFunctionExpr};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::union::UnionExec;
use datafusion::physical_plan::{
    ChildrenPropertiesMode, ExecutionPlan, InputOrderMode, Partitioning, ReplaceChildrenOptions,
};

use super::scan::ClickHouseScan;

/// Monday, 5 January 1970, in microseconds: weeks begin on Mondays.
const FIRST_MONDAY: i64 = 4 * Timestamp::DAY;

/// Hands the first step of aggregations to the engine that has the rows; a rule for DataFusion, after all of its own.
#[derive(Debug)]
pub(super) struct AggregateInEngine;

impl PhysicalOptimizerRule for AggregateInEngine {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        _config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let hand_over = |plan: Arc<dyn ExecutionPlan>| {
            let handed_over = match plan.downcast_ref::<AggregateExec>() {
                Some(aggregate) => in_engine(&plan, aggregate)?,
                None => None,
            };
            Ok(handed_over.map_or_else(|| Transformed::no(plan), Transformed::yes))
        };
        plan.transform_up(hand_over).data()
    }

    fn name(&self) -> &str {
        "aggregate_in_engine"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// What does the same as the aggregation, with its first step in ClickHouse; nothing when it cannot be there.
fn in_engine(
    plan: &Arc<dyn ExecutionPlan>,
    aggregate: &AggregateExec,
) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    match aggregate.mode() {
        AggregateMode::Partial => first_step(plan, aggregate),
        AggregateMode::Single => {
            let (aggregates, filters) = (aggregate.aggr_expr().to_vec(), aggregate.filter_expr().to_vec());
            let partial = Arc::new(AggregateExec::try_new(
                AggregateMode::Partial,
                aggregate.group_expr().clone(),
                aggregates.clone(),
                filters.clone(),
                Arc::clone(aggregate.input()),
                aggregate.input_schema(),
            )?);
            let plan = Arc::clone(&partial) as Arc<dyn ExecutionPlan>;
            let Some(states) = first_step(&plan, &partial)? else { return Ok(None) };
            if aggregate.limit_options().is_some() || states.properties().partitioning.partition_count() != 1
            {
                return Ok(None);
            }
            Ok(Some(Arc::new(AggregateExec::try_new(
                AggregateMode::Final,
                aggregate.group_expr().as_final(),
                aggregates,
                filters,
                states,
                aggregate.input_schema(),
            )?)))
        }
        _ => Ok(None),
    }
}

fn first_step(
    plan: &Arc<dyn ExecutionPlan>,
    partial: &AggregateExec,
) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    // Who counts on an order of the rows gets none from ClickHouse's groups.
    if partial.limit_options().is_some() || *partial.input_order_mode() != InputOrderMode::Linear {
        return Ok(None);
    }
    let input = without_wrapping(partial.input());
    if let Some(scan) = input.downcast_ref::<ClickHouseScan>() {
        return states(partial, scan);
    }
    let Some(union) = input.downcast_ref::<UnionExec>() else { return Ok(None) };
    let mut is_handed_over = false;
    let mut parts = Vec::new();
    for part in union.children() {
        let handed_over = match without_wrapping(part).downcast_ref::<ClickHouseScan>() {
            Some(scan) => states(partial, scan)?,
            None => None,
        };
        is_handed_over |= handed_over.is_some();
        parts.push(match handed_over {
            Some(states) => states,
            None => {
                let recompute = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
                Arc::clone(plan).replace_children(vec![Arc::clone(part)], recompute)?
            }
        });
    }
    if is_handed_over { Ok(Some(UnionExec::try_new(parts)?)) } else { Ok(None) }
}

/// The plan below what only spreads its rows or lets others have a turn.
fn without_wrapping(plan: &Arc<dyn ExecutionPlan>) -> &Arc<dyn ExecutionPlan> {
    let spreads = plan
        .downcast_ref::<RepartitionExec>()
        .is_some_and(|plan| matches!(plan.partitioning(), Partitioning::RoundRobinBatch(_)));
    match plan.children().as_slice() {
        [child] if spreads || plan.downcast_ref::<CooperativeExec>().is_some() => without_wrapping(child),
        _ => plan,
    }
}

/// The scan that gives the states.
fn states(partial: &AggregateExec, scan: &ClickHouseScan) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let schema = scan.schema();
    let group = partial.group_expr();
    if group.has_grouping_set() || partial.filter_expr().iter().any(Option::is_some) {
        return Ok(None);
    }
    let keys = group.expr().iter().map(|(key, _)| self::key(key, &schema)).collect::<Option<Vec<_>>>();
    let Some(keys) = keys else { return Ok(None) };
    let mut columns = keys.clone();
    for function in partial.aggr_expr() {
        let Some(states) = states_of(function, &schema)? else { return Ok(None) };
        columns.extend(states);
    }
    // An answer needs a column.
    if columns.is_empty() {
        return Ok(None);
    }
    let grouped = scan.grouped(keys, columns, partial.schema());
    Ok(grouped.map(|scan| Arc::new(CooperativeExec::new(Arc::new(scan))) as Arc<dyn ExecutionPlan>))
}

/// An expression to group by, in ClickHouse's SQL.
fn key(expr: &Arc<dyn PhysicalExpr>, schema: &Schema) -> Option<String> {
    if let Some((name, data_type)) = column(expr, schema) {
        // Zeros of both signs are one number for ClickHouse, and two for DataFusion.
        return (*data_type != DataType::Float64).then_some(name);
    }
    let function = expr.downcast_ref::<ScalarFunctionExpr>()?;
    let (width, origin, of) = match (function.fun().name(), function.args()) {
        ("date_bin", [width, of]) => (micros(width)?, 0, of),
        ("date_bin", [width, of, origin]) => (micros(width)?, micros(origin)?, of),
        ("date_trunc", [to, of]) => {
            let (width, origin) = match literal(to)?.try_as_str()?? {
                "microsecond" | "microseconds" => (1, 0),
                "millisecond" | "milliseconds" => (1000, 0),
                "second" => (1_000_000, 0),
                "minute" => (Timestamp::MINUTE, 0),
                "hour" => (60 * Timestamp::MINUTE, 0),
                "day" => (Timestamp::DAY, 0),
                "week" => (7 * Timestamp::DAY, FIRST_MONDAY),
                // Of no one length.
                _ => return None,
            };
            (width, origin, of)
        }
        _ => return None,
    };
    // DataFusion bins nanoseconds; its times here are microseconds, made finer.
    let (of, data_type) = match of.downcast_ref::<CastExpr>() {
        Some(cast) => (cast.expr(), cast.cast_type()),
        None => (of, function.return_type()),
    };
    let (name, of_column) = column(of, schema)?;
    let is_time = is_utc(of_column, &[TimeUnit::Microsecond])
        && is_utc(data_type, &[TimeUnit::Microsecond, TimeUnit::Nanosecond]);
    if !is_time || function.return_type() != data_type || width <= 0 {
        return None;
    }
    let time = format!("toUnixTimestamp64Micro({name})");
    let since = if origin == 0 { time.clone() } else { format!("{time} - toInt64({origin})") };
    Some(format!("fromUnixTimestamp64Micro({time} - positiveModulo({since}, toInt64({width})), 'UTC')"))
}

fn is_utc(data_type: &DataType, units: &[TimeUnit]) -> bool {
    matches!(data_type, DataType::Timestamp(unit, Some(zone)) if units.contains(unit) && &**zone == "UTC")
}

/// The states of a function, in ClickHouse's SQL.
fn states_of(function: &AggregateFunctionExpr, schema: &Schema) -> Result<Option<Vec<String>>> {
    if function.is_distinct() || function.is_reversed() || !function.order_bys().is_empty() {
        return Ok(None);
    }
    let fields = function.state_fields()?;
    let types: Vec<_> = fields.iter().map(|field| field.data_type().clone()).collect();
    let arguments = function.expressions();
    let [argument] = arguments.as_slice() else { return Ok(None) };
    let states = match (function.fun().name(), column(argument, schema), types.as_slice()) {
        ("count", None, [DataType::Int64]) if literal(argument).is_some() => {
            vec!["toInt64(count())".to_owned()]
        }
        ("count", Some((name, _)), [DataType::Int64]) => vec![format!("toInt64(count({name}))")],
        ("sum", Some((name, of)), [state @ (DataType::Float64 | DataType::Int64)]) if of == state => {
            vec![format!("sumOrNull({name})")]
        }
        ("avg", Some((name, DataType::Float64)), [DataType::UInt64, DataType::Float64]) => {
            vec![format!("count({name})"), format!("sumOrNull({name})")]
        }
        ("max", Some((name, DataType::Float64)), [DataType::Float64]) => {
            vec![format!("if(countIf(isNaN({name})) > 0, toNullable(nan), maxOrNull({name}))")]
        }
        ("min", Some((name, DataType::Float64)), [DataType::Float64]) => {
            let of_numbers = format!("minOrNullIf({name}, NOT isNaN({name}))");
            vec![format!(
                "if(countIf(NOT isNaN({name})) = 0 AND count({name}) > 0, toNullable(nan), {of_numbers})"
            )]
        }
        (end @ ("min" | "max"), Some((name, of)), [state]) if of == state => {
            vec![format!("{end}OrNull({name})")]
        }
        _ => return Ok(None),
    };
    Ok(Some(states))
}

/// A column of the scan: its name in ClickHouse's SQL, and its type.
fn column<'a>(expr: &Arc<dyn PhysicalExpr>, schema: &'a Schema) -> Option<(String, &'a DataType)> {
    let column = expr.downcast_ref::<Column>()?;
    let field = schema.fields().get(column.index())?;
    Some((format!("`{}`", field.name()), field.data_type()))
}

/// The value of a literal that is not NULL.
fn literal(expr: &Arc<dyn PhysicalExpr>) -> Option<&ScalarValue> {
    expr.downcast_ref::<Literal>().map(Literal::value).filter(|value| !value.is_null())
}

/// A length of time, or a time, in whole microseconds.
fn micros(expr: &Arc<dyn PhysicalExpr>) -> Option<i64> {
    let nanos = match literal(expr)? {
        ScalarValue::IntervalMonthDayNano(Some(width)) if width.months == 0 => {
            i128::from(width.days) * i128::from(Timestamp::DAY) * 1000 + i128::from(width.nanoseconds)
        }
        ScalarValue::TimestampNanosecond(Some(nanos), _) => i128::from(*nanos),
        ScalarValue::TimestampMicrosecond(Some(micros), _) => i128::from(*micros) * 1000,
        _ => return None,
    };
    (nanos % 1000 == 0).then(|| i64::try_from(nanos / 1000).ok()).flatten()
}
