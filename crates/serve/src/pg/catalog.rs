//! `pg_catalog` and `information_schema`: the tables as PostgreSQL's tools look for them.
//!
//! The database is the realm, and so is the one schema with tables. The catalog tables are those of `datafusion-pg-catalog`, made
//! once and shared by all sessions, so that object numbers (oids) stay the same while the process lives.

mod adapt;
mod functions;
mod information_schema;
mod rewrite;

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use catchment_types::DEFAULT_REALM;
use datafusion::catalog::{MemTable, SchemaProvider, TableProvider};
use datafusion::datasource::{TableType, ViewTable, provider_as_source};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::session_state::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::{LogicalPlanBuilder, col, lit};
use datafusion::prelude::SessionContext;
use datafusion_pg_catalog::pg_catalog::catalog_info::CatalogInfo;
use datafusion_pg_catalog::pg_catalog::context::EmptyContextProvider;
use datafusion_pg_catalog::pg_catalog::{
    PG_CATALOG_TABLES, PgCatalogSchemaProvider, PgCatalogStaticTables, setup_pg_catalog,
};
use datafusion_pg_catalog::sql::PostgresCompatibilityParser;

pub(super) use functions::Identity;
use information_schema::InformationSchema;
pub(super) use rewrite::{Planned, parameter_types};

use crate::sql::{CATALOG, SqlEngine};

const PG_CATALOG: &str = "pg_catalog";
const INFORMATION_SCHEMA: &str = "information_schema";

/// What all sessions share.
pub(super) struct Catalog {
    template: SessionState,
    tables: Tables,
    compatibility: PostgresCompatibilityParser,
    rules: rewrite::Rules,
}

impl Catalog {
    pub(super) fn new(engine: &SqlEngine) -> Result<Self> {
        let context = engine.session();
        let missing =
            || DataFusionError::Configuration(format!("there is no schema {CATALOG}.{DEFAULT_REALM}"));
        let catalog = context.catalog(CATALOG).ok_or_else(missing)?;
        let tables = Tables(catalog.schema(DEFAULT_REALM).ok_or_else(missing)?);
        // Functions and types; its tables would show our catalog as the database, so they are made again.
        setup_pg_catalog(&context, CATALOG, EmptyContextProvider).map_err(|error| *error)?;
        let statics = Arc::new(PgCatalogStaticTables::try_new()?);
        let pg_catalog = PgCatalogSchemaProvider::try_new(tables.clone(), statics, EmptyContextProvider)?;
        catalog.register_schema(
            PG_CATALOG,
            Arc::new(PgCatalog { inner: Box::new(pg_catalog), tables: tables.clone() }),
        )?;
        catalog.register_schema(INFORMATION_SCHEMA, Arc::new(InformationSchema::new(tables.clone())))?;
        // So that names of three parts work with the database's name too.
        context.register_catalog(DEFAULT_REALM, catalog);
        functions::register_shared(&context);
        let mut template = SessionStateBuilder::new_from_existing(context.state()).build();
        // Ours takes its place.
        template.config_mut().options_mut().catalog.information_schema = false;
        Ok(Self {
            template,
            tables,
            compatibility: PostgresCompatibilityParser::new(),
            rules: rewrite::Rules::new(),
        })
    }

    /// A session's own context.
    pub(super) fn session(&self, identity: Identity) -> SessionContext {
        let context = SessionContext::new_with_state(
            SessionStateBuilder::new_from_existing(self.template.clone()).build(),
        );
        functions::register_own(&context, identity);
        context
    }
}

/// The tables of the realm.
#[derive(Debug, Clone)]
struct Tables(Arc<dyn SchemaProvider>);

/// What `pg_catalog`'s tables list: one database with three schemas.
#[async_trait]
impl CatalogInfo for Tables {
    async fn catalog_names(&self) -> Result<Vec<String>> {
        Ok(vec![DEFAULT_REALM.to_owned()])
    }

    async fn schema_names(&self, _catalog: &str) -> Result<Option<Vec<String>>> {
        Ok(Some([DEFAULT_REALM, PG_CATALOG, INFORMATION_SCHEMA].map(str::to_owned).to_vec()))
    }

    async fn table_names(&self, _catalog: &str, schema: &str) -> Result<Option<Vec<String>>> {
        Ok(match schema {
            DEFAULT_REALM => Some(self.0.table_names()),
            // Not listed: tools would take them for tables of data, which are all visible.
            PG_CATALOG | INFORMATION_SCHEMA => Some(Vec::new()),
            _ => None,
        })
    }

    async fn table_schema(&self, _catalog: &str, schema: &str, table: &str) -> Result<Option<SchemaRef>> {
        match schema {
            DEFAULT_REALM => Ok(self.0.table(table).await?.map(|table| table.schema())),
            _ => Ok(None),
        }
    }

    async fn table_type(&self, _catalog: &str, schema: &str, table: &str) -> Result<Option<TableType>> {
        match schema {
            DEFAULT_REALM => Ok(self.0.table(table).await?.map(|table| table.table_type())),
            _ => Ok(None),
        }
    }
}

/// Tables that tools ask for and that are always empty here: name, columns (all text).
const EMPTY: &[(&str, &[&str])] = &[
    ("pg_available_extensions", &["name", "default_version", "installed_version", "comment"]),
    ("pg_cursors", &["name", "statement", "is_holdable", "is_binary", "is_scrollable", "creation_time"]),
    ("pg_group", &["groname", "grosysid", "grolist"]),
    ("pg_indexes", &["schemaname", "tablename", "indexname", "tablespace", "indexdef"]),
    ("pg_locks", &["locktype", "database", "relation", "pid", "mode", "granted"]),
    (
        "pg_policies",
        &["schemaname", "tablename", "policyname", "permissive", "roles", "cmd", "qual", "with_check"],
    ),
    ("pg_prepared_statements", &["name", "statement", "prepare_time", "parameter_types", "from_sql"]),
    ("pg_rules", &["schemaname", "tablename", "rulename", "definition"]),
    ("pg_sequences", &["schemaname", "sequencename", "sequenceowner", "data_type", "last_value"]),
    ("pg_shadow", &["usename", "usesysid", "usecreatedb", "usesuper", "passwd"]),
    ("pg_stat_activity", &["datid", "datname", "pid", "usename", "application_name", "state", "query"]),
    ("pg_stats", &["schemaname", "tablename", "attname", "null_frac", "n_distinct"]),
    ("pg_transform", &["oid", "trftype", "trflang", "trffromsql", "trftosql"]),
    ("pg_user", &["usename", "usesysid", "usecreatedb", "usesuper", "passwd"]),
];

/// `pg_catalog` with what the library leaves out.
#[derive(Debug)]
struct PgCatalog {
    inner: Box<dyn SchemaProvider>,
    tables: Tables,
}

#[async_trait]
impl SchemaProvider for PgCatalog {
    fn table_names(&self) -> Vec<String> {
        let mut names = self.inner.table_names();
        names.extend(EMPTY.iter().map(|(name, _)| (*name).to_owned()));
        names
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        match name {
            "pg_views" => return self.views().await.map(Some),
            "pg_database" => return self.databases().await.map(Some),
            _ => {}
        }
        match EMPTY.iter().find(|(known, _)| *known == name) {
            Some((_, columns)) => {
                let schema = text_schema(columns);
                Ok(Some(Arc::new(MemTable::try_new(schema, vec![vec![]])?)))
            }
            None => self.inner.table(name).await,
        }
    }

    fn table_exist(&self, name: &str) -> bool {
        is_catalog_table(name)
    }
}

impl PgCatalog {
    /// The library adds a database `postgres`, in which nobody can be here.
    async fn databases(&self) -> Result<Arc<dyn TableProvider>> {
        let all = self
            .inner
            .table("pg_database")
            .await?
            .ok_or_else(|| DataFusionError::Internal("no pg_database".to_owned()))?;
        let plan = LogicalPlanBuilder::scan("pg_database", provider_as_source(all), None)?
            .filter(col("datname").eq(lit(DEFAULT_REALM)))?
            .build()?;
        Ok(Arc::new(ViewTable::new(plan, None)))
    }

    async fn views(&self) -> Result<Arc<dyn TableProvider>> {
        let mut rows = information_schema::TextRows::new(4);
        for name in self.tables.0.table_names() {
            let Some(table) = self.tables.0.table(&name).await? else { continue };
            if table.table_type() == TableType::View {
                rows.push(&[Some(DEFAULT_REALM), Some(&name), Some("admin"), table.get_table_definition()]);
            }
        }
        rows.into_table(text_schema(&["schemaname", "viewname", "viewowner", "definition"]))
    }
}

fn text_schema(columns: &[&str]) -> SchemaRef {
    Arc::new(Schema::new(
        columns.iter().map(|name| Field::new(*name, DataType::Utf8, true)).collect::<Vec<_>>(),
    ))
}

/// Whether `pg_catalog` has a table.
fn is_catalog_table(name: &str) -> bool {
    PG_CATALOG_TABLES.contains(&name) || EMPTY.iter().any(|(known, _)| *known == name)
}
