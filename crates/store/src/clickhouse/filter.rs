//! Filters of DataFusion as conditions of ClickHouse, where both mean the same.
//!
//! A condition is *exact* when it holds for the very same rows, NULL, empty text and Unicode included; else it holds for more
//! rows, and DataFusion filters again. What is not sure to be either is not translated.
//!
//! - Texts are compared by bytes on both sides. `LIKE` is only taken with `%` at the ends, as a prefix, suffix or part.
//! - DataFusion has a total order of floats (`-0.0 < 0.0`, NaN above all, equal to itself), ClickHouse has IEEE's: conditions on
//!   floats let zeros and NaN through.
//! - Times are whole microseconds; a literal in nanoseconds is rounded so that the comparison stays what it was.

use arrow::datatypes::{DataType, Schema, TimeUnit};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::expr::InList;
use datafusion::logical_expr::{Between, BinaryExpr, Cast, Expr, Like, Operator, TryCast};

/// From 1900 on: what is before or after these is no time that ClickHouse is sure of.
const MICROS_MIN: i64 = -2_208_988_800_000_000;
/// Up to the year 9999.
const MICROS_MAX: i64 = 253_402_300_799_999_999;

/// Longer lists are for DataFusion alone: ClickHouse limits the size of a statement's tree.
const IN_LIST_MAX: usize = 2_000;

/// A condition in ClickHouse's SQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Condition {
    /// In parentheses where it needs them.
    pub(super) sql: String,
    /// Whether it holds for no other rows.
    pub(super) is_exact: bool,
}

impl Condition {
    fn exact(sql: String) -> Self {
        Self { sql, is_exact: true }
    }
}

/// A filter as a condition; nothing when there is no sure one.
pub(super) fn condition(filter: &Expr, schema: &Schema) -> Option<Condition> {
    match filter {
        Expr::BinaryExpr(BinaryExpr { left, op: op @ (Operator::And | Operator::Or), right }) => {
            let (left, right) = (condition(left, schema)?, condition(right, schema)?);
            let word = if *op == Operator::And { "AND" } else { "OR" };
            Some(Condition {
                sql: format!("({} {word} {})", left.sql, right.sql),
                is_exact: left.is_exact && right.is_exact,
            })
        }
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
            let op = Comparison::of(*op)?;
            match (literal(left), literal(right)) {
                (None, Some(value)) => compare(left, op, value, schema),
                (Some(value), None) => compare(right, op.mirrored(), value, schema),
                (None, None) => compare_columns(left, op, right, schema),
                (Some(_), Some(_)) => None,
            }
        }
        Expr::Not(inner) => {
            // What holds for more rows fails for fewer.
            let inner = condition(inner, schema).filter(|inner| inner.is_exact)?;
            Some(Condition::exact(format!("(NOT {})", inner.sql)))
        }
        Expr::IsNull(inner) => Some(Condition::exact(format!("isNull({})", column(inner, schema)?.sql()))),
        Expr::IsNotNull(inner) => {
            Some(Condition::exact(format!("isNotNull({})", column(inner, schema)?.sql())))
        }
        Expr::Between(Between { expr, negated, low, high }) => {
            let (low, high) = (literal(low)?, literal(high)?);
            let (ops, word) = match negated {
                false => ([Comparison::GreaterOrEqual, Comparison::LessOrEqual], "AND"),
                true => ([Comparison::Less, Comparison::Greater], "OR"),
            };
            let low = compare(expr, ops[0], low, schema)?;
            let high = compare(expr, ops[1], high, schema)?;
            Some(Condition {
                sql: format!("({} {word} {})", low.sql, high.sql),
                is_exact: low.is_exact && high.is_exact,
            })
        }
        Expr::InList(InList { expr, list, negated }) => {
            let (op, word) = match negated {
                false => (Comparison::Equal, " OR "),
                true => (Comparison::NotEqual, " AND "),
            };
            if list.is_empty() || list.len() > IN_LIST_MAX {
                return None;
            }
            // Not as `IN`, which ClickHouse answers otherwise where the column is NULL.
            let one = |item: &Expr| compare(expr, op, literal(item)?, schema);
            let all = list.iter().map(one).collect::<Option<Vec<_>>>()?;
            let is_exact = all.iter().all(|one| one.is_exact);
            let sql = all.into_iter().map(|one| one.sql).collect::<Vec<_>>().join(word);
            Some(Condition { sql: format!("({sql})"), is_exact })
        }
        Expr::Like(like) => self::like(like, schema),
        _ => None,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Comparison {
    fn of(op: Operator) -> Option<Self> {
        Some(match op {
            Operator::Eq => Self::Equal,
            Operator::NotEq => Self::NotEqual,
            Operator::Lt => Self::Less,
            Operator::LtEq => Self::LessOrEqual,
            Operator::Gt => Self::Greater,
            Operator::GtEq => Self::GreaterOrEqual,
            _ => return None,
        })
    }

    /// With the two sides changed.
    fn mirrored(self) -> Self {
        match self {
            Self::Less => Self::Greater,
            Self::LessOrEqual => Self::GreaterOrEqual,
            Self::Greater => Self::Less,
            Self::GreaterOrEqual => Self::LessOrEqual,
            same => same,
        }
    }

    fn sql(self) -> &'static str {
        match self {
            Self::Equal => "=",
            Self::NotEqual => "<>",
            Self::Less => "<",
            Self::LessOrEqual => "<=",
            Self::Greater => ">",
            Self::GreaterOrEqual => ">=",
        }
    }
}

/// A column of the table.
struct Column<'a> {
    name: &'a str,
    data_type: &'a DataType,
}

impl Column<'_> {
    fn sql(&self) -> String {
        format!("`{}`", self.name)
    }
}

fn column<'a>(expr: &Expr, schema: &'a Schema) -> Option<Column<'a>> {
    let Expr::Column(column) = expr else { return None };
    let field = schema.field_with_name(&column.name).ok()?;
    Some(Column { name: field.name(), data_type: field.data_type() })
}

/// The value of a literal that is not NULL.
fn literal(expr: &Expr) -> Option<&ScalarValue> {
    match expr {
        Expr::Literal(value, _) if !value.is_null() => Some(value),
        _ => None,
    }
}

fn compare(expr: &Expr, op: Comparison, value: &ScalarValue, schema: &Schema) -> Option<Condition> {
    if let Some(column) = column(expr, schema) {
        return compare_column(&column, op, value);
    }
    // DataFusion brings times to the finer unit of the two.
    let (Expr::Cast(Cast { expr, .. }) | Expr::TryCast(TryCast { expr, .. })) = expr else { return None };
    let column = column(expr, schema).filter(|column| is_time(column.data_type))?;
    let ScalarValue::TimestampNanosecond(Some(nanos), _) = value else { return None };
    let (down, is_whole) = (nanos.div_euclid(1000), nanos.rem_euclid(1000) == 0);
    let up = if is_whole { down } else { down + 1 };
    let micros = match op {
        Comparison::Greater | Comparison::LessOrEqual => down,
        Comparison::GreaterOrEqual | Comparison::Less => up,
        Comparison::Equal | Comparison::NotEqual if is_whole => down,
        Comparison::Equal | Comparison::NotEqual => return None,
    };
    Some(Condition::exact(format!("{} {} {}", column.sql(), op.sql(), time(micros)?)))
}

fn compare_column(column: &Column<'_>, op: Comparison, value: &ScalarValue) -> Option<Condition> {
    let exact = |literal: String| Some(Condition::exact(format!("{} {} {literal}", column.sql(), op.sql())));
    match (column.data_type, value) {
        (DataType::Utf8View, _) => exact(quoted(value.try_as_str()??)),
        (DataType::Timestamp(..), ScalarValue::TimestampMicrosecond(Some(micros), _)) => {
            exact(time(*micros)?)
        }
        (DataType::Int64, ScalarValue::Int64(Some(number))) => exact(format!("toInt64({number})")),
        (DataType::Int32, ScalarValue::Int32(Some(number))) => exact(format!("toInt32({number})")),
        (DataType::Float64, ScalarValue::Float64(Some(number))) => compare_float(column, op, *number),
        _ => None,
    }
}

/// Lets more through than it has to: NaN always, zeros of both signs alike.
fn compare_float(column: &Column<'_>, op: Comparison, number: f64) -> Option<Condition> {
    if !number.is_finite() {
        return None;
    }
    let op = match op {
        Comparison::Less => Comparison::LessOrEqual,
        Comparison::Greater => Comparison::GreaterOrEqual,
        Comparison::NotEqual => return None,
        other => other,
    };
    let name = column.sql();
    // Rust writes what reads back as the same number, with `e` or without.
    let sql = format!("({name} {} toFloat64({number:?}) OR isNaN({name}))", op.sql());
    Some(Condition { sql, is_exact: false })
}

fn compare_columns(left: &Expr, op: Comparison, right: &Expr, schema: &Schema) -> Option<Condition> {
    let (left, right) = (column(left, schema)?, column(right, schema)?);
    let is_sure = left.data_type == right.data_type
        && matches!(left.data_type, DataType::Utf8View | DataType::Timestamp(..));
    is_sure.then(|| Condition::exact(format!("{} {} {}", left.sql(), op.sql(), right.sql())))
}

fn like(like: &Like, schema: &Schema) -> Option<Condition> {
    let Like { negated, expr, pattern, escape_char, case_insensitive } = like;
    let column = column(expr, schema).filter(|column| *column.data_type == DataType::Utf8View)?;
    let pattern = literal(pattern)?.try_as_str()??;
    let (from_start, to_end) = (!pattern.starts_with('%'), !pattern.ends_with('%'));
    let text = pattern.trim_matches('%');
    if *case_insensitive || escape_char.is_some() || text.contains(['%', '_', '\\']) {
        return None;
    }
    let (name, text) = (column.sql(), quoted(text));
    let sql = match (from_start, to_end) {
        (true, true) => format!("{name} = {text}"),
        (true, false) => format!("startsWith({name}, {text})"),
        (false, true) => format!("endsWith({name}, {text})"),
        (false, false) => format!("position({name}, {text}) > 0"),
    };
    Some(Condition::exact(if *negated { format!("(NOT ({sql}))") } else { format!("({sql})") }))
}

fn is_time(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Timestamp(TimeUnit::Microsecond, _))
}

/// A time as a literal, if the engine knows it.
pub(super) fn time(micros: i64) -> Option<String> {
    (MICROS_MIN..=MICROS_MAX)
        .contains(&micros)
        .then(|| format!("fromUnixTimestamp64Micro(toInt64({micros}), 'UTC')"))
}

/// A text as a literal. Everything else stands for itself.
pub(super) fn quoted(text: &str) -> String {
    let mut literal = String::with_capacity(text.len() + 2);
    literal.push('\'');
    for c in text.chars() {
        match c {
            '\\' | '\'' => literal.extend(['\\', c]),
            '\0' => literal.push_str("\\x00"),
            c => literal.push(c),
        }
    }
    literal.push('\'');
    literal
}

#[cfg(test)]
mod tests {
    use datafusion::logical_expr::{cast, col, lit, not};

    use super::*;
    use crate::tables::TableId;

    fn translated(filter: &Expr) -> Option<(String, bool)> {
        let condition = condition(filter, &TableId::RawMetrics.schema())?;
        Some((condition.sql, condition.is_exact))
    }

    fn exact(filter: &Expr) -> String {
        let (sql, is_exact) = translated(filter).unwrap();
        assert!(is_exact, "{sql}");
        sql
    }

    fn micros(micros: i64) -> Expr {
        Expr::Literal(ScalarValue::TimestampMicrosecond(Some(micros), Some("UTC".into())), None)
    }

    #[test]
    fn texts_are_quoted() {
        assert_eq!(exact(&col("device_id").eq(lit("it's \\ 'é\0"))), "`device_id` = 'it\\'s \\\\ \\'é\\x00'");
        assert_eq!(exact(&lit("b").gt(col("device_id"))), "`device_id` < 'b'");
        let in_list = col("text_value").in_list(vec![lit("a"), lit("")], true);
        assert_eq!(exact(&in_list), "(`text_value` <> 'a' AND `text_value` <> '')");
        assert_eq!(
            translated(&col("text_value").in_list(vec![lit("a"), lit(ScalarValue::Utf8(None))], true)),
            None
        );
    }

    #[test]
    fn combinations_are_as_exact_as_their_parts() {
        let text = || col("device_id").eq(lit("a"));
        let float = || col("metric_value").gt(lit(1.5));
        assert_eq!(
            exact(&not(text().or(col("text_value").is_null()))),
            "(NOT (`device_id` = 'a' OR isNull(`text_value`)))"
        );
        let (sql, is_exact) = translated(&text().and(float())).unwrap();
        assert_eq!(
            sql,
            "(`device_id` = 'a' AND (`metric_value` >= toFloat64(1.5) OR isNaN(`metric_value`)))"
        );
        assert!(!is_exact);
        assert_eq!(translated(&not(float())), None);
        assert_eq!(translated(&text().or(col("device_id").eq(col("log_offset")))), None);
        assert_eq!(translated(&col("metric_value").not_eq(lit(0.0))), None);
        assert_eq!(translated(&col("metric_value").lt(lit(f64::NAN))), None);
    }

    #[test]
    fn times_keep_their_meaning() {
        assert_eq!(
            exact(&col("timestamp").gt_eq(micros(5))),
            "`timestamp` >= fromUnixTimestamp64Micro(toInt64(5), 'UTC')"
        );
        assert_eq!(translated(&col("timestamp").gt_eq(micros(i64::MAX))), None);
        let nanos =
            |nanos| Expr::Literal(ScalarValue::TimestampNanosecond(Some(nanos), Some("UTC".into())), None);
        let fine = || cast(col("timestamp"), DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into())));
        let number = |filter: &Expr| exact(filter).split(['(', ')']).nth(2).unwrap().parse::<i64>().unwrap();
        assert_eq!((number(&fine().gt(nanos(1500))), number(&fine().gt_eq(nanos(1500)))), (1, 2));
        assert_eq!((number(&fine().lt(nanos(1500))), number(&fine().lt_eq(nanos(1500)))), (2, 1));
        assert_eq!((number(&fine().eq(nanos(-2000))), translated(&fine().eq(nanos(1500)))), (-2, None));
    }

    #[test]
    fn only_plain_patterns_are_taken() {
        let like = |pattern: &str| translated(&col("device_id").like(lit(pattern))).map(|(sql, _)| sql);
        assert_eq!(like("bus-%").unwrap(), "(startsWith(`device_id`, 'bus-'))");
        assert_eq!(like("%7").unwrap(), "(endsWith(`device_id`, '7'))");
        assert_eq!(like("%us%").unwrap(), "(position(`device_id`, 'us') > 0)");
        assert_eq!(like("bus").unwrap(), "(`device_id` = 'bus')");
        for pattern in ["b_s", "a%b", "a\\%"] {
            assert_eq!(like(pattern), None);
        }
        assert_eq!(translated(&col("device_id").ilike(lit("a%"))), None);
        assert_eq!(exact(&col("device_id").not_like(lit("a%"))), "(NOT (startsWith(`device_id`, 'a')))");
    }
}
