//! Questions about the catalog, made plannable.
//!
//! PostgreSQL's tools ask in a dialect that DataFusion does not plan as it stands. Rules that keep the meaning are applied to
//! what touches the catalog, and only that. Where this is not enough, and no table of data is involved, the library's whole set is
//! tried: it also drops correlated subqueries, which must never happen to a question about data.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::ScalarValue;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::expr::Placeholder;
use datafusion::logical_expr::{Cast, Expr as LogicalExpr, LogicalPlan, TryCast};
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{
    self, Expr, ObjectName, ObjectNamePart, Statement as Sql, Visit, Visitor,
};
use datafusion_pg_catalog::sql::rules::{
    AliasDuplicatedProjectionRewrite, FixArrayLiteral, ResolveUnqualifiedIdentifier,
    RewriteArrayAnyAllOperation, RewritePgCatalogOperator, RewriteRegCastToSubquery, SqlStatementRewriteRule,
    StripCallableQualifier, StripCollate,
};

use super::adapt::{Qualify, Simplify, adapt, distinguish, parameter_count};
use super::{Catalog, INFORMATION_SCHEMA, PG_CATALOG, is_catalog_table};
use crate::sql::{SqlEngine, SqlError, check_read_only, parse};

/// Rules that keep a question's meaning.
pub(super) struct Rules(Vec<Box<dyn SqlStatementRewriteRule>>);

impl Rules {
    pub(super) fn new() -> Self {
        Self(vec![
            Box::new(AliasDuplicatedProjectionRewrite),
            Box::new(ResolveUnqualifiedIdentifier),
            Box::new(RewriteArrayAnyAllOperation),
            Box::new(Qualify),
            Box::new(StripCallableQualifier),
            Box::new(FixArrayLiteral),
            Box::new(StripCollate),
            Box::new(RewritePgCatalogOperator),
            Box::new(RewriteRegCastToSubquery::new()),
        ])
    }

    fn apply(&self, statement: Sql) -> Sql {
        self.0.iter().fold(statement, |statement, rule| rule.rewrite(statement))
    }
}

/// A question that may run.
pub(in crate::pg) struct Planned {
    /// As it was asked.
    pub(in crate::pg) statement: Statement,
    pub(in crate::pg) plan: LogicalPlan,
    /// How many parameters it was asked with; the plan may need fewer.
    pub(in crate::pg) parameters: usize,
    /// Whether it touches the catalog.
    pub(in crate::pg) about_catalog: bool,
}

impl Planned {
    fn new(statement: Statement, plan: LogicalPlan, about_catalog: bool) -> Self {
        let parameters = match &statement {
            Statement::Statement(statement) => parameter_count(statement),
            _ => 0,
        };
        Self { statement, plan, parameters, about_catalog }
    }
}

impl Catalog {
    /// Parses, checks and plans a question. `types` are the numbers of the parameters'
    /// types, as far as the client gives them.
    pub(in crate::pg) async fn plan(
        &self,
        engine: &SqlEngine,
        context: &SessionContext,
        text: &str,
        types: &[u32],
    ) -> Result<Planned, SqlError> {
        let statement = match parse(text) {
            Ok(statement) => statement,
            // Syntax of the catalog's own: the library knows replacements for some texts.
            Err(error) if text.contains(PG_CATALOG) => {
                let (statement, plan) = self.replaced(context, text).await.ok_or(error)?;
                return Ok(Planned::new(statement, plan, true));
            }
            Err(error) => return Err(error),
        };
        check_read_only(&statement)?;
        let touched = match &statement {
            Statement::Statement(statement) => self.touched(statement),
            _ => Touched::default(),
        };
        let mut adapted = match &statement {
            Statement::Statement(statement) => statement.as_ref().clone(),
            _ => {
                let plan = context
                    .state()
                    .statement_to_plan(statement.clone())
                    .await
                    .map_err(|error| engine.error(&error))?;
                return Ok(Planned::new(statement, plan, false));
            }
        };
        adapt(&mut adapted, types);
        if !touched.catalog {
            let wrapped = Statement::Statement(Box::new(adapted));
            let plan =
                context.state().statement_to_plan(wrapped).await.map_err(|error| engine.error(&error))?;
            return Ok(Planned::new(statement, plan, false));
        }
        let mut rewritten = self.rules.apply(adapted);
        // What was written in two ways may now be the same.
        distinguish(&mut rewritten);
        let error = match plan_wholly(context, rewritten.clone()).await {
            Ok(plan) => return Ok(Planned::new(statement, plan, true)),
            Err(error) => error,
        };
        tracing::debug!(%error, text, "a catalog query does not plan as it stands");
        if touched.data {
            return Err(engine.error(&error));
        }
        match plan_wholly(context, Simplify.rewrite(rewritten)).await {
            Ok(plan) => return Ok(Planned::new(statement, plan, true)),
            Err(error) => tracing::debug!(%error, "nor when simplified"),
        }
        match self.replaced(context, text).await {
            Some((_, plan)) => Ok(Planned::new(statement, plan, true)),
            None => Err(engine.error(&error)),
        }
    }

    /// The library's replacement for a text, if it plans and only reads the catalog.
    async fn replaced(&self, context: &SessionContext, text: &str) -> Option<(Statement, LogicalPlan)> {
        let mut statements = self.compatibility.parse(text).ok()?;
        let mut sql = statements.pop().filter(|_| statements.is_empty())?;
        if self.touched(&sql).data {
            return None;
        }
        sql = Qualify.rewrite(sql);
        let statement = Statement::Statement(Box::new(sql.clone()));
        check_read_only(&statement).ok()?;
        let plan = plan_wholly(context, sql).await;
        plan.inspect_err(|error| tracing::debug!(%error, text, "nor as replaced"))
            .ok()
            .map(|plan| (statement, plan))
    }

    fn touched(&self, statement: &Sql) -> Touched {
        let mut found = Touched::default();
        let mut look = Look { catalog: self, found: &mut found };
        let _ = statement.visit(&mut look);
        found
    }
}

/// Plans to the end, so that what fails late fails here, where there is another way.
async fn plan_wholly(context: &SessionContext, statement: Sql) -> Result<LogicalPlan, DataFusionError> {
    let state = context.state();
    let plan = state.statement_to_plan(Statement::Statement(Box::new(statement))).await?;
    // Some values stand for the parameters, so that nothing is left out.
    let types = parameter_types(&plan)?;
    let values = types.into_iter().map(|(name, field)| {
        let ty = field.map_or(DataType::Utf8, |field| field.data_type().clone());
        Ok((name.trim_start_matches('$').to_owned(), ScalarValue::new_default(&ty)?))
    });
    let values = values.collect::<Result<Vec<_>, DataFusionError>>()?;
    let bound = if values.is_empty() { plan.clone() } else { plan.clone().with_param_values(values)? };
    let optimized = state.optimize(&bound)?;
    state.query_planner().create_physical_plan(&optimized, &state).await?;
    Ok(plan)
}

/// The parameters of a plan, with what is expected of them. `$1::bigint` says what the parameter is; the engine leaves that open.
pub(in crate::pg) fn parameter_types(
    plan: &LogicalPlan,
) -> Result<HashMap<String, Option<FieldRef>>, DataFusionError> {
    let mut types = plan.get_parameter_fields()?;
    plan.apply_with_subqueries(|plan| {
        plan.apply_expressions(|expr| {
            expr.apply(|expr| {
                if let LogicalExpr::Cast(Cast { expr, field }) | LogicalExpr::TryCast(TryCast { expr, field }) = expr
                    && let LogicalExpr::Placeholder(Placeholder { id, .. }) = expr.as_ref()
                    && let Some(open @ None) = types.get_mut(id)
                {
                    *open = Some(Arc::clone(field));
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    Ok(types)
}

/// What a statement reads.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Touched {
    /// Tables, functions or types of the catalog.
    catalog: bool,
    /// Tables of data.
    data: bool,
}

struct Look<'a> {
    catalog: &'a Catalog,
    found: &'a mut Touched,
}

impl Visitor for Look<'_> {
    type Break = ();

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<()> {
        let names = names(relation);
        match names.as_slice() {
            [.., schema, _] if schema == PG_CATALOG || schema == INFORMATION_SCHEMA => {
                self.found.catalog = true
            }
            [name] if is_catalog_table(name) => self.found.catalog = true,
            [.., name] if self.catalog.tables.0.table_exist(name) => self.found.data = true,
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        self.found.catalog |= match expr {
            Expr::Function(function) => {
                let names = names(&function.name);
                names.len() > 1
                    || names
                        .first()
                        .is_some_and(|name| name.starts_with("pg_") || name.starts_with("current_"))
            }
            Expr::Identifier(name) => {
                name.quote_style.is_none() && name.value.eq_ignore_ascii_case("current_schema")
            }
            Expr::Cast { data_type, .. } => is_catalog_type(data_type),
            Expr::Collate { .. } => true,
            _ => false,
        };
        ControlFlow::Continue(())
    }
}

/// `regclass` and its kin, `oid`, and what is qualified with `pg_catalog`.
fn is_catalog_type(ty: &ast::DataType) -> bool {
    let name = ty.to_string().to_ascii_lowercase();
    name.starts_with("reg") || name == "oid" || name == "name" || name.starts_with("pg_catalog.")
}

/// The parts of a name, those without quotes in lower case.
pub(super) fn names(name: &ObjectName) -> Vec<String> {
    let part = |part: &ObjectNamePart| {
        part.as_ident().map_or_else(String::new, |ident| {
            if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_ascii_lowercase() }
        })
    };
    name.0.iter().map(part).collect()
}
