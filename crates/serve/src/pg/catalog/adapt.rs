//! Small differences between PostgreSQL's SQL and the engine's, evened out in the parsed text. The meaning stays.

use std::collections::HashSet;
use std::ops::ControlFlow;

use catchment_types::DEFAULT_REALM;
use datafusion::sql::sqlparser::ast::{
    Array, ArrayElemTypeDef, BinaryOperator, CastKind, DataType, Expr, FunctionArg, FunctionArgExpr,
    FunctionArgumentList, FunctionArguments, Ident, LimitClause, ObjectName, ObjectNamePart, Query,
    SelectItem, SetExpr, Statement, TableFactor, TimezoneInfo, Value, ValueWithSpan, Visit, VisitMut,
    Visitor, VisitorMut,
};
use datafusion_pg_catalog::sql::rules::SqlStatementRewriteRule;
use pgwire::api::Type;

use super::{PG_CATALOG, is_catalog_table, rewrite::names};
use crate::pg::params::array_parts;

/// For every question: parameters get the types that the engine does not find out, and columns of one name get different ones.
/// `types` are the numbers of the parameters' types, as far as the client gives them.
pub(super) fn adapt(statement: &mut Statement, types: &[u32]) {
    let _ = VisitMut::visit(statement, &mut Parameters { types });
    distinguish(statement);
}

struct Parameters<'a> {
    types: &'a [u32],
}

impl VisitorMut for Parameters<'_> {
    type Break = ();

    /// `LIMIT $1` is a number.
    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<()> {
        if let Some(LimitClause::LimitOffset { limit, offset, .. }) = &mut query.limit_clause {
            let numbers = limit.iter_mut().chain(offset.iter_mut().map(|offset| &mut offset.value));
            numbers
                .filter(|number| placeholder(number).is_some())
                .for_each(|number| cast(number, DataType::BigInt(None)));
        }
        ControlFlow::Continue(())
    }

    /// `= ANY($1)` is an array, of what the client says or of texts; `'{a,b}'::text[]` has two elements, not one.
    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if let Expr::Cast {
            expr: literal,
            data_type: DataType::Array(ArrayElemTypeDef::SquareBracket(item, _)),
            ..
        } = expr
            && let Expr::Value(ValueWithSpan { value: Value::SingleQuotedString(text), .. }) =
                literal.as_ref()
            && let Some(parts) = array_parts(text)
            && !parts.is_empty()
        {
            let element = |part: Option<String>| {
                let value = part.map_or(Value::Null, Value::SingleQuotedString);
                let mut element = Expr::Value(value.with_empty_span());
                cast(&mut element, item.as_ref().clone());
                element
            };
            let elem = parts.into_iter().map(element).collect();
            **literal = Expr::Array(Array { elem, named: true });
        }
        if let Expr::Like { pattern, escape_char, .. } | Expr::ILike { pattern, escape_char, .. } = expr {
            escape_with_backslash(pattern, escape_char);
        }
        if let Expr::AnyOp { right, .. } | Expr::AllOp { right, .. } = expr {
            let array = match right.as_mut() {
                Expr::Nested(inner) => inner.as_mut(),
                other => other,
            };
            if let Some(number) = placeholder(array) {
                let given = number
                    .checked_sub(1)
                    .and_then(|index| self.types.get(index))
                    .and_then(|oid| Type::from_oid(*oid));
                let item = given.as_ref().and_then(item_type).unwrap_or(DataType::Text);
                cast(array, DataType::Array(ArrayElemTypeDef::SquareBracket(Box::new(item), None)));
            }
        }
        ControlFlow::Continue(())
    }
}

/// The highest number of a parameter in what was asked; rules may drop some.
pub(super) fn parameter_count(statement: &Statement) -> usize {
    struct Highest(usize);
    impl Visitor for Highest {
        type Break = ();

        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
            self.0 = self.0.max(placeholder(expr).unwrap_or(0));
            ControlFlow::Continue(())
        }
    }
    let mut highest = Highest(0);
    let _ = Visit::visit(statement, &mut highest);
    highest.0
}

/// `LIKE 'a/_' ESCAPE '/'` → `LIKE 'a\_'`, for any pattern: the engine only knows the backslash.
fn escape_with_backslash(pattern: &mut Expr, escape: &mut Option<ValueWithSpan>) {
    let Some(ValueWithSpan { value: Value::SingleQuotedString(own), .. }) = escape else { return };
    if own.chars().count() != 1 || own == "\\" {
        return;
    }
    let text = |text: &str| Expr::Value(Value::SingleQuotedString(text.to_owned()).with_empty_span());
    let own = text(own);
    *escape = None;
    let asked = std::mem::replace(pattern, Expr::Value(Value::Null.with_empty_span()));
    let doubled = call("replace", vec![asked, text("\\"), text("\\\\")]);
    *pattern = call("replace", vec![doubled, own, text("\\")]);
}

/// The number of a parameter.
fn placeholder(expr: &Expr) -> Option<usize> {
    match expr {
        Expr::Value(ValueWithSpan { value: Value::Placeholder(name), .. }) => {
            name.strip_prefix('$')?.parse().ok()
        }
        _ => None,
    }
}

/// SQL's name for the elements of an array type.
fn item_type(array: &Type) -> Option<DataType> {
    Some(match *array {
        Type::BOOL_ARRAY => DataType::Boolean,
        Type::INT2_ARRAY => DataType::SmallInt(None),
        Type::INT4_ARRAY => DataType::Integer(None),
        Type::INT8_ARRAY => DataType::BigInt(None),
        Type::FLOAT4_ARRAY => DataType::Real,
        Type::FLOAT8_ARRAY => DataType::DoublePrecision,
        Type::DATE_ARRAY => DataType::Date,
        Type::TIMESTAMP_ARRAY => DataType::Timestamp(None, TimezoneInfo::None),
        Type::TIMESTAMPTZ_ARRAY => DataType::Timestamp(None, TimezoneInfo::WithTimeZone),
        _ => return None,
    })
}

fn cast(expr: &mut Expr, data_type: DataType) {
    let inner = std::mem::replace(expr, Expr::Value(Value::Null.with_empty_span()));
    *expr = Expr::Cast {
        kind: CastKind::DoubleColon,
        expr: Box::new(inner),
        data_type,
        array: false,
        format: None,
    };
}

/// `SELECT 1, 1` → `SELECT 1, 1 AS …`. The names that the client sees are given back at the end.
pub(super) fn distinguish(statement: &mut Statement) {
    let Statement::Query(query) = statement else { return };
    let SetExpr::Select(select) = query.body.as_mut() else { return };
    let mut seen = HashSet::new();
    for (index, item) in select.projection.iter_mut().enumerate() {
        let name = match item {
            SelectItem::UnnamedExpr(Expr::CompoundIdentifier(parts)) => {
                parts.last().map_or_else(String::new, |part| part.value.clone())
            }
            SelectItem::UnnamedExpr(expr) => expr.to_string(),
            SelectItem::ExprWithAlias { alias, .. } => alias.value.clone(),
            _ => continue,
        };
        if seen.insert(name) {
            continue;
        }
        let unique = Ident::with_quote('"', format!("?column {index}?"));
        match item {
            SelectItem::UnnamedExpr(expr) => {
                *item = SelectItem::ExprWithAlias { expr: expr.clone(), alias: unique }
            }
            SelectItem::ExprWithAlias { alias, .. } => *alias = unique,
            _ => {}
        }
    }
}

/// For questions about the catalog: `pg_class` → `pg_catalog.pg_class`, `current_schema` → `current_schema()`, and Grafana's way to
/// ask for the names in the search path → their list.
#[derive(Debug)]
pub(super) struct Qualify;

impl SqlStatementRewriteRule for Qualify {
    fn rewrite(&self, mut statement: Statement) -> Statement {
        let _ = VisitMut::visit(&mut statement, &mut QualifyVisitor);
        statement
    }
}

struct QualifyVisitor;

impl VisitorMut for QualifyVisitor {
    type Break = ();

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<()> {
        if let TableFactor::Table { name, args: None, .. } = factor
            && let [table] = names(name).as_slice()
            && is_catalog_table(table)
        {
            name.0.insert(0, ObjectNamePart::Identifier(Ident::new(PG_CATALOG)));
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        match expr {
            Expr::Identifier(name)
                if name.quote_style.is_none() && name.value.eq_ignore_ascii_case("current_schema") =>
            {
                *expr = call("current_schema", Vec::new());
            }
            Expr::InSubquery { expr: name, subquery, negated }
                if subquery.to_string().contains("string_to_array(current_setting('search_path'), ',')") =>
            {
                let realm =
                    Expr::Value(Value::SingleQuotedString(DEFAULT_REALM.to_owned()).with_empty_span());
                *expr = Expr::InList { expr: name.clone(), list: vec![realm], negated: *negated };
            }
            Expr::Function(function) if function.args == FunctionArguments::None => {
                function.args = FunctionArguments::List(FunctionArgumentList {
                    duplicate_treatment: None,
                    args: Vec::new(),
                    clauses: Vec::new(),
                });
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

/// Columns that the library lacks or has as texts; all would be NULL.
const UNKNOWN_LISTS: &[&str] = &["attacl", "attoptions", "defaclacl", "nspacl", "relacl", "reloptions"];

/// For questions about the catalog that do not plan otherwise. `array(SELECT …)` and some columns are unknown here and would
/// be empty; a subquery that gives one value gives the same as its smallest, which the engine can correlate.
#[derive(Debug)]
pub(super) struct Simplify;

impl SqlStatementRewriteRule for Simplify {
    fn rewrite(&self, mut statement: Statement) -> Statement {
        let _ = VisitMut::visit(&mut statement, &mut SimplifyVisitor);
        statement
    }
}

struct SimplifyVisitor;

impl VisitorMut for SimplifyVisitor {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        match expr {
            Expr::Function(function) if matches!(function.args, FunctionArguments::Subquery(_)) => {
                *expr = no_texts()
            }
            // Columns of indexes and constraints, of which data has none.
            Expr::Function(function)
                if names(&function.name)
                    .last()
                    .is_some_and(|name| name == "unnest" || name == "generate_subscripts") =>
            {
                no_value(expr, DataType::Integer(None));
            }
            Expr::CompoundIdentifier(parts)
                if parts.last().is_some_and(|part| UNKNOWN_LISTS.contains(&part.value.as_str())) =>
            {
                *expr = no_texts()
            }
            // Texts and lists only join with their like.
            Expr::BinaryOp { left, op: BinaryOperator::StringConcat, right }
                if **left == no_texts() && **right == no_texts() =>
            {
                *expr = no_texts()
            }
            // Base types of domains, default values, sequences, collations: there are none.
            Expr::Subquery(query) if query.with.is_some() => no_value(expr, DataType::Integer(None)),
            Expr::Subquery(query) if is_about_nothing(query) => no_value(expr, DataType::Text),
            Expr::Subquery(query) => {
                if let SetExpr::Select(select) = query.body.as_mut()
                    && let [SelectItem::UnnamedExpr(value) | SelectItem::ExprWithAlias { expr: value, .. }] =
                        select.projection.as_mut_slice()
                    && !matches!(value, Expr::Function(function) if names(&function.name).last().is_some_and(|name| is_aggregate(name)))
                {
                    *value = call("min", vec![value.clone()]);
                    query.order_by = None;
                    query.limit_clause = None;
                }
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

/// Whether a subquery looks into tables that have nothing about tables of data: defaults, sequences, collations.
fn is_about_nothing(query: &Query) -> bool {
    let text = query.to_string();
    ["pg_attrdef", "pg_sequence", "pg_collation"].iter().any(|table| text.contains(table))
}

fn no_value(expr: &mut Expr, data_type: DataType) {
    *expr = Expr::Value(Value::Null.with_empty_span());
    cast(expr, data_type);
}

fn is_aggregate(name: &str) -> bool {
    matches!(
        name,
        "min" | "max" | "count" | "sum" | "avg" | "string_agg" | "array_agg" | "bool_and" | "bool_or"
    )
}

fn call(name: &str, args: Vec<Expr>) -> Expr {
    let args = args.into_iter().map(|arg| FunctionArg::Unnamed(FunctionArgExpr::Expr(arg))).collect();
    Expr::Function(datafusion::sql::sqlparser::ast::Function {
        name: ObjectName::from(vec![Ident::new(name)]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList {
            duplicate_treatment: None,
            args,
            clauses: Vec::new(),
        }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}

/// An array of texts that is NULL.
fn no_texts() -> Expr {
    let mut null = Expr::Value(Value::Null.with_empty_span());
    cast(&mut null, DataType::Array(ArrayElemTypeDef::SquareBracket(Box::new(DataType::Text), None)));
    null
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Statement {
        match crate::sql::parse(text).unwrap() {
            datafusion::sql::parser::Statement::Statement(statement) => *statement,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn parameters_get_types() {
        let mut statement = parsed("SELECT a FROM t WHERE a = ANY($1) AND b = ANY(($2)) LIMIT $3 OFFSET $4");
        adapt(&mut statement, &[Type::INT4_ARRAY.oid(), 0]);
        assert_eq!(
            statement.to_string(),
            "SELECT a FROM t WHERE a = ANY($1::INTEGER[]) AND b = ANY(($2::TEXT[])) LIMIT $3::BIGINT OFFSET $4::BIGINT"
        );
    }

    #[test]
    fn literals_of_arrays_have_elements() {
        let mut statement = parsed("SELECT '{a,\"b c\",NULL}'::text[]");
        adapt(&mut statement, &[]);
        assert_eq!(statement.to_string(), "SELECT ARRAY['a'::TEXT, 'b c'::TEXT, NULL::TEXT]::TEXT[]");
    }

    #[test]
    fn any_escape_is_the_backslash() {
        let mut statement = parsed(r"SELECT a LIKE $1 || '%' ESCAPE '/', a LIKE 'x' ESCAPE '\'");
        adapt(&mut statement, &[]);
        assert_eq!(
            statement.to_string(),
            r"SELECT a LIKE replace(replace($1 || '%', '\', '\\'), '/', '\'), a LIKE 'x' ESCAPE '\'"
        );
    }

    #[test]
    fn columns_of_one_name_are_told_apart() {
        let mut statement = parsed("SELECT 1, 1, a, t.a, 2 AS x, 3 AS x FROM t");
        adapt(&mut statement, &[]);
        assert_eq!(
            statement.to_string(),
            "SELECT 1, 1 AS \"?column 1?\", a, t.a AS \"?column 3?\", 2 AS x, 3 AS \"?column 5?\" FROM t"
        );
    }

    #[test]
    fn catalog_questions_are_simplified() {
        let text = "SELECT (SELECT c.relkind FROM pg_class c WHERE c.oid = t.x), array_to_string(c.reloptions || array(SELECT 1), ',') FROM t";
        assert_eq!(
            Simplify.rewrite(parsed(text)).to_string(),
            "SELECT (SELECT min(c.relkind) FROM pg_class c WHERE c.oid = t.x), array_to_string(NULL::TEXT[] || NULL::TEXT[], ',') FROM t"
        );
    }
}
