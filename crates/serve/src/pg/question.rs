//! A question to the engine, planned: its parameters, its columns, and how it is started.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{Expr, Ident, SelectItem, SetExpr, Statement as Sql};
use pgwire::api::Type;

use super::Shared;
use super::catalog::{Planned, parameter_types};
use super::encode::{Column, columns, field_type};
use super::error::{PgError, code};
use super::params::arrow_type;
use super::rows::Rows;
use crate::sql::QueryOptions;

/// Most parameters of a question; the protocol counts them in 16 bits.
const PARAMETERS_MAX: usize = 65_535;

/// What a parameter is.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Parameter {
    /// As the client says, or as it is told.
    pub(super) ty: Type,
    /// What the plan gets.
    pub(super) arrow: DataType,
}

/// A planned question. The plan is not optimized, so that `now()` is when it is started.
pub(super) struct Question {
    text: Arc<str>,
    chars_before: usize,
    plan: LogicalPlan,
    pub(super) parameters: Vec<Parameter>,
    /// Names of columns that PostgreSQL names otherwise than the engine; all, or none.
    names: Vec<Option<String>>,
    about_catalog: bool,
    /// What the end of the rows is called.
    pub(super) tag: &'static str,
}

impl Question {
    /// Plans `text`, before which the client sent `chars_before` characters. `types` are the numbers of the parameters' types, as
    /// far as the client gives them.
    pub(super) async fn plan(
        shared: &Shared,
        context: &SessionContext,
        text: &str,
        chars_before: usize,
        types: &[u32],
    ) -> Result<Self, PgError> {
        let told = |error| PgError::from_sql(error, text, chars_before);
        let Planned { statement, plan, parameters: count, about_catalog } =
            Box::pin(shared.catalog.plan(&shared.engine, context, text, types)).await.map_err(told)?;
        let mut parameters =
            parameters(shared, &plan, count.max(types.len()), types).map_err(|error| match error {
                ParameterError::Ours(error) => error,
                ParameterError::Engine(error) => told(error),
            })?;
        if about_catalog {
            parameters.iter_mut().for_each(|parameter| oids(&mut parameter.ty));
        }
        let explains = matches!(plan, LogicalPlan::Explain(_) | LogicalPlan::Analyze(_));
        Ok(Self {
            text: text.into(),
            chars_before,
            plan,
            parameters,
            names: names(&statement),
            about_catalog,
            tag: if explains { "EXPLAIN" } else { "SELECT" },
        })
    }

    /// The columns of the answer.
    pub(super) fn columns(
        &self,
        shared: &Shared,
        context: &SessionContext,
    ) -> Result<Arc<[Column]>, PgError> {
        let described = if self.parameters.is_empty() {
            self.plan.clone()
        } else {
            let nulls = self
                .parameters
                .iter()
                .map(|parameter| ScalarValue::try_from(&parameter.arrow))
                .collect::<Result<Vec<_>, _>>();
            match nulls.and_then(|nulls| self.plan.clone().with_param_values(nulls)) {
                Ok(plan) => plan,
                // Types that have no NULL: the plan as it stands says enough.
                Err(_) => self.plan.clone(),
            }
        };
        let state = context.state();
        // Optimizing settles the types; where NULLs make no sense, the plan as it stands is the next best.
        let optimized = match state.optimize(&described) {
            Ok(optimized) => optimized,
            Err(_) if !self.parameters.is_empty() => described,
            Err(error) => {
                return Err(PgError::from_sql(shared.engine.error(&error), &self.text, self.chars_before));
            }
        };
        let mut columns = columns(optimized.schema().as_arrow());
        self.finish(&mut columns);
        Ok(columns.into())
    }

    /// Columns as PostgreSQL would describe them.
    fn finish(&self, columns: &mut [Column]) {
        if self.about_catalog {
            columns.iter_mut().for_each(|column| oids(&mut column.ty));
        }
        if self.names.len() == columns.len() {
            for (column, name) in columns.iter_mut().zip(&self.names) {
                if let Some(name) = name {
                    column.name.clone_from(name);
                }
            }
        }
    }

    /// The plan with its parameters' values.
    pub(super) fn bind(&self, shared: &Shared, values: Vec<ScalarValue>) -> Result<LogicalPlan, PgError> {
        if values.is_empty() {
            return Ok(self.plan.clone());
        }
        let bound = self.plan.clone().with_param_values(values);
        bound.map_err(|error| PgError::from_sql(shared.engine.error(&error), &self.text, self.chars_before))
    }

    /// Starts a bound plan; `described` are the columns that the client was told of, if it was.
    pub(super) async fn start(
        &self,
        shared: &Shared,
        context: &SessionContext,
        plan: LogicalPlan,
        described: Option<Arc<[Column]>>,
        options: QueryOptions,
    ) -> Result<Rows, PgError> {
        let stream = shared
            .engine
            .query_plan(context, plan, &self.text, options)
            .await
            .map_err(|error| PgError::from_sql(error, &self.text, self.chars_before))?;
        let columns = described.unwrap_or_else(|| {
            let mut columns = columns(stream.schema());
            self.finish(&mut columns);
            columns.into()
        });
        Ok(Rows::new(stream, columns, Arc::clone(&self.text), self.chars_before))
    }
}

/// Lists of numbers in the catalog are lists of oids; drivers that look types up need to be told, or look for ever.
fn oids(ty: &mut Type) {
    if *ty == Type::INT4_ARRAY {
        *ty = Type::OID_ARRAY;
    }
}

enum ParameterError {
    Ours(PgError),
    Engine(crate::sql::SqlError),
}

/// `$1`, `$2`, …: what the client says they are, else what the plan expects, else text.
fn parameters(
    shared: &Shared,
    plan: &LogicalPlan,
    mut count: usize,
    types: &[u32],
) -> Result<Vec<Parameter>, ParameterError> {
    let inferred =
        parameter_types(plan).map_err(|error| ParameterError::Engine(shared.engine.error(&error)))?;
    for name in inferred.keys() {
        let number = name
            .strip_prefix('$')
            .and_then(|digits| digits.parse::<usize>().ok())
            .filter(|n| (1..=PARAMETERS_MAX).contains(n));
        let number = number.ok_or_else(|| {
            ParameterError::Ours(
                PgError::new("42P02", format!("there is no parameter {name}"))
                    .hint("parameters are $1, $2, …"),
            )
        })?;
        count = count.max(number);
    }
    let parameter = |index: usize| {
        let given = types.get(index).copied().filter(|oid| *oid != 0 && *oid != Type::UNKNOWN.oid());
        let expected = inferred.get(&format!("${}", index + 1)).and_then(Option::as_ref);
        // A text where an array is wanted is an array's text.
        let is_list = expected.is_some_and(|field| matches!(field.data_type(), DataType::List(_)));
        let given = given.filter(|oid| !is_list || ![Type::TEXT.oid(), Type::VARCHAR.oid()].contains(oid));
        match given {
            Some(oid) => {
                let ty = Type::from_oid(oid).ok_or_else(|| {
                    ParameterError::Ours(PgError::new(
                        code::INDETERMINATE_TYPE,
                        format!("parameter ${} has unknown type {oid}", index + 1),
                    ))
                })?;
                Ok(Parameter { arrow: arrow_type(&ty), ty })
            }
            None => Ok(match expected.filter(|field| *field.data_type() != DataType::Null) {
                Some(field) => Parameter { ty: field_type(field), arrow: field.data_type().clone() },
                None => Parameter { ty: Type::TEXT, arrow: DataType::Utf8View },
            }),
        }
    };
    (0..count).map(parameter).collect()
}

/// PostgreSQL's names for the columns that have none of their own; nothing where a `*` hides how many there are.
fn names(statement: &Statement) -> Vec<Option<String>> {
    let Statement::Statement(statement) = statement else { return Vec::new() };
    let Sql::Query(query) = statement.as_ref() else { return Vec::new() };
    let mut body = query.body.as_ref();
    loop {
        match body {
            SetExpr::Select(select) => {
                let name = |item: &SelectItem| match item {
                    SelectItem::UnnamedExpr(expr) => Some(name(expr)),
                    SelectItem::ExprWithAlias { alias, .. } => Some(Some(own_name(alias))),
                    _ => None,
                };
                return select.projection.iter().map(name).collect::<Option<_>>().unwrap_or_default();
            }
            SetExpr::SetOperation { left, .. } => body = left,
            SetExpr::Query(query) => body = &query.body,
            _ => return Vec::new(),
        }
    }
}

/// A name as it was written; without quotes in lower case.
fn own_name(ident: &Ident) -> String {
    if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() }
}

/// The name of an expression.
fn name(expr: &Expr) -> Option<String> {
    const NONE: &str = "?column?";
    let name = match expr {
        Expr::Identifier(name) => return Some(own_name(name)),
        Expr::CompoundIdentifier(parts) => return parts.last().map(own_name),
        Expr::CompoundFieldAccess { .. } => return None,
        Expr::Nested(inner) | Expr::Collate { expr: inner, .. } => return name(inner),
        Expr::Function(function) => {
            return function
                .name
                .0
                .last()
                .and_then(|part| part.as_ident())
                .map(|ident| ident.value.to_lowercase());
        }
        Expr::Cast { expr: inner, data_type, .. } => match name(inner) {
            Some(inner) if inner == NONE => {
                return Some(
                    data_type.to_string().to_lowercase().split(['(', ' ']).next().unwrap_or(NONE).to_owned(),
                );
            }
            other => return other,
        },
        Expr::Case { .. } => "case",
        Expr::Exists { .. } => "exists",
        Expr::Extract { .. } => "extract",
        Expr::Ceil { .. } => "ceil",
        Expr::Floor { .. } => "floor",
        Expr::Position { .. } => "position",
        Expr::Substring { .. } => "substring",
        Expr::Trim { .. } => "btrim",
        Expr::Array(_) => "array",
        Expr::AtTimeZone { .. } => "timezone",
        Expr::Subquery(query) => match query.body.as_ref() {
            SetExpr::Select(select) => match select.projection.first() {
                Some(SelectItem::UnnamedExpr(inner)) => return name(inner),
                Some(SelectItem::ExprWithAlias { alias, .. }) => return Some(own_name(alias)),
                _ => NONE,
            },
            _ => NONE,
        },
        _ => NONE,
    };
    Some(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_named_as_postgresql_does() {
        let named = |text: &str| names(&crate::sql::parse(text).unwrap());
        let some = |name: &str| Some(name.to_owned());
        assert_eq!(
            named(
                "SELECT count(*), 1, device_id, r.x, '1'::int, now() AT TIME ZONE 'UTC', a + b AS c, (SELECT max(x) FROM t) FROM r"
            ),
            [
                some("count"),
                some("?column?"),
                some("device_id"),
                some("x"),
                some("int"),
                some("timezone"),
                some("c"),
                some("max")
            ]
        );
        assert_eq!(named("SELECT *, 1 FROM t"), []);
        assert_eq!(named("SELECT version() UNION SELECT 'x'"), [some("version")]);
    }
}
