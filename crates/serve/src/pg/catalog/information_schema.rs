//! `information_schema`, with PostgreSQL's names of types, made anew for every query: the tables are few.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Builder, StringBuilder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use catchment_types::DEFAULT_REALM;
use datafusion::catalog::{MemTable, SchemaProvider, TableProvider};
use datafusion::datasource::TableType;
use datafusion::error::Result;
use pgwire::api::Type;

use super::{INFORMATION_SCHEMA, PG_CATALOG, Tables};
use crate::pg::encode::field_type;

/// Tables and their columns; a column ending in `#` is a number.
const TABLES: &[(&str, &[&str])] = &[
    (
        "schemata",
        &[
            "catalog_name",
            "schema_name",
            "schema_owner",
            "default_character_set_catalog",
            "default_character_set_schema",
            "default_character_set_name",
            "sql_path",
        ],
    ),
    (
        "tables",
        &[
            "table_catalog",
            "table_schema",
            "table_name",
            "table_type",
            "self_referencing_column_name",
            "reference_generation",
            "user_defined_type_catalog",
            "user_defined_type_schema",
            "user_defined_type_name",
            "is_insertable_into",
            "is_typed",
            "commit_action",
        ],
    ),
    (
        "views",
        &[
            "table_catalog",
            "table_schema",
            "table_name",
            "view_definition",
            "check_option",
            "is_updatable",
            "is_insertable_into",
        ],
    ),
    (
        "columns",
        &[
            "table_catalog",
            "table_schema",
            "table_name",
            "column_name",
            "ordinal_position#",
            "column_default",
            "is_nullable",
            "data_type",
            "character_maximum_length#",
            "character_octet_length#",
            "numeric_precision#",
            "numeric_precision_radix#",
            "numeric_scale#",
            "datetime_precision#",
            "interval_type",
            "character_set_name",
            "collation_name",
            "domain_name",
            "udt_catalog",
            "udt_schema",
            "udt_name",
            "is_identity",
            "is_generated",
            "generation_expression",
            "is_updatable",
        ],
    ),
    (
        "table_constraints",
        &[
            "constraint_catalog",
            "constraint_schema",
            "constraint_name",
            "table_catalog",
            "table_schema",
            "table_name",
            "constraint_type",
            "is_deferrable",
            "initially_deferred",
            "enforced",
        ],
    ),
    (
        "key_column_usage",
        &[
            "constraint_catalog",
            "constraint_schema",
            "constraint_name",
            "table_catalog",
            "table_schema",
            "table_name",
            "column_name",
            "ordinal_position#",
            "position_in_unique_constraint#",
        ],
    ),
    (
        "referential_constraints",
        &[
            "constraint_catalog",
            "constraint_schema",
            "constraint_name",
            "unique_constraint_catalog",
            "unique_constraint_schema",
            "unique_constraint_name",
            "match_option",
            "update_rule",
            "delete_rule",
        ],
    ),
    (
        "constraint_column_usage",
        &[
            "table_catalog",
            "table_schema",
            "table_name",
            "column_name",
            "constraint_catalog",
            "constraint_schema",
            "constraint_name",
        ],
    ),
    (
        "routines",
        &[
            "specific_catalog",
            "specific_schema",
            "specific_name",
            "routine_catalog",
            "routine_schema",
            "routine_name",
            "routine_type",
            "data_type",
            "routine_definition",
        ],
    ),
    (
        "parameters",
        &[
            "specific_catalog",
            "specific_schema",
            "specific_name",
            "ordinal_position#",
            "parameter_mode",
            "parameter_name",
            "data_type",
        ],
    ),
    ("sequences", &["sequence_catalog", "sequence_schema", "sequence_name", "data_type"]),
    (
        "triggers",
        &["trigger_catalog", "trigger_schema", "trigger_name", "event_object_schema", "event_object_table"],
    ),
];

/// The schema `information_schema`.
#[derive(Debug)]
pub(super) struct InformationSchema {
    tables: Tables,
}

impl InformationSchema {
    pub(super) fn new(tables: Tables) -> Self {
        Self { tables }
    }

    fn names() -> impl Iterator<Item = &'static str> {
        TABLES.iter().map(|(name, _)| *name)
    }

    /// Columns of one of the tables.
    fn schema(name: &str) -> Option<SchemaRef> {
        let (_, columns) = TABLES.iter().find(|(known, _)| *known == name)?;
        let field = |column: &&str| match column.strip_suffix('#') {
            Some(number) => Field::new(number, DataType::Int32, true),
            None => Field::new(*column, DataType::Utf8, true),
        };
        Some(Arc::new(Schema::new(columns.iter().map(field).collect::<Vec<_>>())))
    }

    async fn rows(&self, name: &str, rows: &mut TextRows) -> Result<()> {
        const DATABASE: Option<&str> = Some(DEFAULT_REALM);
        match name {
            "schemata" => {
                for schema in [DEFAULT_REALM, INFORMATION_SCHEMA, PG_CATALOG] {
                    rows.push(&[DATABASE, Some(schema), Some("admin")]);
                }
            }
            "tables" | "views" | "columns" => {
                let mut names = self.tables.0.table_names();
                names.sort_unstable();
                for table_name in &names {
                    let Some(table) = self.tables.0.table(table_name).await? else { continue };
                    let is_view = table.table_type() == TableType::View;
                    let prefix = [DATABASE, Some(DEFAULT_REALM), Some(table_name)];
                    match name {
                        "tables" => {
                            let kind = Some(if is_view { "VIEW" } else { "BASE TABLE" });
                            rows.push(
                                &[&prefix[..], &[kind, None, None, None, None, None, Some("NO"), Some("NO")]]
                                    .concat(),
                            );
                        }
                        "views" if is_view => {
                            let definition = table.get_table_definition();
                            rows.push(
                                &[&prefix[..], &[definition, Some("NONE"), Some("NO"), Some("NO")]].concat(),
                            );
                        }
                        "columns" => {
                            for (index, field) in table.schema().fields().iter().enumerate() {
                                push_column(rows, &prefix, index + 1, field);
                            }
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}

fn push_column(rows: &mut TextRows, prefix: &[Option<&str>; 3], position: usize, field: &Arc<Field>) {
    let ty = field_type(field);
    let position = position.to_string();
    // Precision in bits, its radix, scale; precision of times.
    let (precision, radix, scale, time) = match ty {
        Type::INT2 => (Some("16"), Some("2"), Some("0"), None),
        Type::INT4 => (Some("32"), Some("2"), Some("0"), None),
        Type::INT8 => (Some("64"), Some("2"), Some("0"), None),
        Type::FLOAT4 => (Some("24"), Some("2"), None, None),
        Type::FLOAT8 => (Some("53"), Some("2"), None, None),
        Type::NUMERIC => (None, Some("10"), None, None),
        Type::TIMESTAMP | Type::TIMESTAMPTZ | Type::TIME | Type::INTERVAL => (None, None, None, Some("6")),
        Type::DATE => (None, None, None, Some("0")),
        _ => (None, None, None, None),
    };
    let nullable = if field.is_nullable() { "YES" } else { "NO" };
    let rest = [
        Some(field.name().as_str()),
        Some(&position),
        None,
        Some(nullable),
        Some(type_name(&ty)),
        None,
        None,
        precision,
        radix,
        scale,
        time,
        None,
        None,
        None,
        None,
        Some(DEFAULT_REALM),
        Some(PG_CATALOG),
        Some(ty.name()),
        Some("NO"),
        Some("NEVER"),
        None,
        Some("NO"),
    ];
    rows.push(&[&prefix[..], &rest].concat());
}

/// The standard's name of a type.
fn type_name(ty: &Type) -> &'static str {
    match *ty {
        Type::BOOL => "boolean",
        Type::INT2 => "smallint",
        Type::INT4 => "integer",
        Type::INT8 => "bigint",
        Type::FLOAT4 => "real",
        Type::FLOAT8 => "double precision",
        Type::NUMERIC => "numeric",
        Type::BYTEA => "bytea",
        Type::DATE => "date",
        Type::TIME => "time without time zone",
        Type::TIMESTAMP => "timestamp without time zone",
        Type::TIMESTAMPTZ => "timestamp with time zone",
        Type::INTERVAL => "interval",
        Type::TEXT => "text",
        _ => "ARRAY",
    }
}

#[async_trait]
impl SchemaProvider for InformationSchema {
    fn table_names(&self) -> Vec<String> {
        Self::names().map(str::to_owned).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let Some(schema) = Self::schema(name) else { return Ok(None) };
        let mut rows = TextRows::new(schema.fields().len());
        self.rows(name, &mut rows).await?;
        rows.into_table(schema).map(Some)
    }

    fn table_exist(&self, name: &str) -> bool {
        Self::names().any(|known| known == name)
    }
}

/// Rows of texts and numbers, given as texts.
pub(super) struct TextRows {
    columns: Vec<Vec<Option<String>>>,
}

impl TextRows {
    pub(super) fn new(columns: usize) -> Self {
        Self { columns: vec![Vec::new(); columns] }
    }

    /// Adds a row; what it leaves out at the end is NULL.
    pub(super) fn push(&mut self, row: &[Option<&str>]) {
        for (index, column) in self.columns.iter_mut().enumerate() {
            column.push(row.get(index).copied().flatten().map(str::to_owned));
        }
    }

    pub(super) fn into_table(self, schema: SchemaRef) -> Result<Arc<dyn TableProvider>> {
        let column = |(field, values): (&Arc<Field>, Vec<Option<String>>)| -> ArrayRef {
            if *field.data_type() == DataType::Int32 {
                let mut numbers = Int32Builder::with_capacity(values.len());
                numbers.extend(
                    values.into_iter().map(|value| value.and_then(|value| value.parse::<i32>().ok())),
                );
                Arc::new(numbers.finish())
            } else {
                let mut texts = StringBuilder::new();
                texts.extend(values);
                Arc::new(texts.finish())
            }
        };
        let arrays = schema.fields().iter().zip(self.columns).map(column).collect();
        let batch = RecordBatch::try_new(Arc::clone(&schema), arrays)?;
        Ok(Arc::new(MemTable::try_new(schema, vec![vec![batch]])?))
    }
}
