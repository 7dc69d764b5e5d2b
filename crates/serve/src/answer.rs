//! Answers of queries as bytes: JSON, NDJSON, CSV, Arrow IPC stream.
//!
//! - Times are RFC 3339 in UTC in the text formats; one without a zone is taken as UTC, since every time here is.
//! - Binary columns in the text formats: the text itself where it is UTF-8, else `base64:` and the bytes in base64.
//! - `NaN` and infinities are `null` in JSON.
//! - Arrow streams have plain strings and binaries, not views, which older readers do not know.
//! - A column name that comes twice gets `_2`, `_3`, … in all formats.
//! - JSON is `{"columns":[{"name","type"}],"rows":[{…}],"row_count","elapsed_ms","truncated"}`; when the query fails on
//!   the way, `"error":{…}` stands in place of the last three. NDJSON then ends in a line `{"error":…}`, and the
//!   connection of NDJSON, CSV and Arrow is broken off, so that no client takes half an answer for a whole one.

use std::collections::HashSet;
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, ArrayRef, AsArray, StringBuilder};
use arrow::compute::cast;
use arrow::csv::WriterBuilder as CsvBuilder;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::writer::StreamWriter;
use arrow::json::LineDelimitedWriter;
use arrow::json::writer::{LineDelimited, WriterBuilder as JsonBuilder};
use arrow::record_batch::RecordBatch;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::problem::Problem;

/// Format of an answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One JSON document.
    #[default]
    Json,
    /// One JSON object a line.
    Ndjson,
    /// CSV with a header line.
    Csv,
    /// Arrow IPC stream.
    Arrow,
}

impl Format {
    /// What an `Accept` header asks for; the first known type counts.
    #[must_use]
    pub fn from_accept(accept: &str) -> Option<Self> {
        accept.split(',').find_map(|part| match part.split(';').next().unwrap_or_default().trim() {
            "application/json" | "*/*" => Some(Self::Json),
            "application/x-ndjson" | "application/ndjson" | "application/jsonl" => Some(Self::Ndjson),
            "text/csv" => Some(Self::Csv),
            "application/vnd.apache.arrow.stream" => Some(Self::Arrow),
            _ => None,
        })
    }

    /// Its MIME type.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Ndjson => "application/x-ndjson",
            Self::Csv => "text/csv; charset=utf-8",
            Self::Arrow => "application/vnd.apache.arrow.stream",
        }
    }
}

/// A column of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type in SQL: `text`, `double precision`, `timestamp with time zone`, …
    #[serde(rename = "type")]
    pub sql_type: String,
}

/// Writes one answer in one format.
pub struct Encoder {
    schema: SchemaRef,
    columns: Vec<Column>,
    rows: u64,
    kind: Kind,
}

enum Kind {
    Json,
    Ndjson,
    Csv { head: bool },
    Arrow(Box<StreamWriter<Vec<u8>>>),
}

impl Encoder {
    /// Starts an answer with these columns.
    ///
    /// # Errors
    /// The format cannot hold a column.
    pub fn new(format: Format, schema: &Schema) -> Result<Self, ArrowError> {
        let columns = names(schema).into_iter().zip(schema.fields());
        let columns =
            columns.map(|(name, field)| Column { name, sql_type: sql_type(field.data_type()) }).collect();
        let schema = plain_schema(schema, format != Format::Arrow);
        let kind = match format {
            Format::Json => Kind::Json,
            Format::Ndjson => Kind::Ndjson,
            Format::Csv => Kind::Csv { head: true },
            Format::Arrow => Kind::Arrow(Box::new(StreamWriter::try_new(Vec::new(), &schema)?)),
        };
        Ok(Self { schema, columns, rows: 0, kind })
    }

    /// What comes before the first row.
    ///
    /// # Errors
    /// As [`Self::batch`].
    pub fn head(&mut self) -> Result<Vec<u8>, ArrowError> {
        match &mut self.kind {
            Kind::Json => {
                let columns = serde_json::to_string(&self.columns)
                    .map_err(|error| ArrowError::ExternalError(Box::new(error)))?;
                Ok(format!("{{\"columns\":{columns},\"rows\":[").into_bytes())
            }
            Kind::Ndjson => Ok(Vec::new()),
            Kind::Csv { head } => {
                *head = false;
                write_csv(&RecordBatch::new_empty(Arc::clone(&self.schema)), true)
            }
            Kind::Arrow(writer) => Ok(std::mem::take(writer.get_mut())),
        }
    }

    /// Some rows.
    ///
    /// # Errors
    /// The format cannot hold a value.
    pub fn batch(&mut self, batch: &RecordBatch) -> Result<Vec<u8>, ArrowError> {
        let batch = plain(batch, &self.schema)?;
        let first = self.rows == 0;
        self.rows += batch.num_rows() as u64;
        match &mut self.kind {
            Kind::Json => {
                let mut bytes = if first { Vec::new() } else { vec![b','] };
                let lines = write_lines(&batch)?;
                // A line break inside a value is escaped, so each that is left ends a row.
                bytes.extend(
                    lines.trim_ascii_end().iter().map(|&byte| if byte == b'\n' { b',' } else { byte }),
                );
                Ok(bytes)
            }
            Kind::Ndjson => write_lines(&batch),
            Kind::Csv { head } => write_csv(&batch, std::mem::take(head)),
            Kind::Arrow(writer) => {
                writer.write(&batch)?;
                Ok(std::mem::take(writer.get_mut()))
            }
        }
    }

    /// What comes after the last row.
    ///
    /// # Errors
    /// As [`Self::batch`].
    pub fn tail(&mut self, elapsed: Duration, truncated: bool) -> Result<Vec<u8>, ArrowError> {
        match &mut self.kind {
            Kind::Json => {
                let (rows, elapsed_ms) = (self.rows, elapsed.as_millis());
                Ok(format!(
                    "],\"row_count\":{rows},\"elapsed_ms\":{elapsed_ms},\"truncated\":{truncated}}}\n"
                )
                .into_bytes())
            }
            Kind::Ndjson | Kind::Csv { .. } => Ok(Vec::new()),
            Kind::Arrow(writer) => {
                writer.finish()?;
                Ok(std::mem::take(writer.get_mut()))
            }
        }
    }

    /// What comes after the last row when the query failed on the way; [`None`] if the format has no word for it.
    #[must_use]
    pub fn failed(&self, problem: &Problem) -> Option<Vec<u8>> {
        let problem = serde_json::to_string(problem).ok()?;
        match self.kind {
            Kind::Json => Some(format!("],\"error\":{problem}}}\n").into_bytes()),
            Kind::Ndjson => Some(format!("{{\"error\":{problem}}}\n").into_bytes()),
            Kind::Csv { .. } | Kind::Arrow(_) => None,
        }
    }

    /// Whether the answer is whole without an unbroken end of the connection: only JSON says itself where it ends.
    #[must_use]
    pub fn tells_its_end(&self) -> bool {
        matches!(self.kind, Kind::Json)
    }
}

fn write_lines(batch: &RecordBatch) -> Result<Vec<u8>, ArrowError> {
    let mut bytes = Vec::with_capacity(batch.num_rows() * 64);
    let mut writer: LineDelimitedWriter<_> =
        JsonBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(&mut bytes);
    writer.write(batch)?;
    writer.finish()?;
    Ok(bytes)
}

fn write_csv(batch: &RecordBatch, head: bool) -> Result<Vec<u8>, ArrowError> {
    let mut bytes = Vec::new();
    if head && batch.num_rows() == 0 {
        // The writer puts the header before the first batch, and takes one without rows for none.
        let names: Vec<_> = batch.schema().fields().iter().map(|field| csv_text(field.name())).collect();
        writeln!(bytes, "{}", names.join(","))?;
        return Ok(bytes);
    }
    CsvBuilder::new().with_header(head).build(&mut bytes).write(batch)?;
    Ok(bytes)
}

fn csv_text(text: &str) -> String {
    match text.contains(['"', ',', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}

/// Column names, each once.
fn names(schema: &Schema) -> Vec<String> {
    let mut taken = HashSet::new();
    let unique = |field: &Arc<Field>| {
        let candidates = (2..).map(|number| format!("{}_{number}", field.name()));
        let mut candidates = std::iter::once(field.name().clone()).chain(candidates);
        // The candidates never end, so one of them is free.
        candidates.find(|name| taken.insert(name.clone())).unwrap_or_default()
    };
    schema.fields().iter().map(unique).collect()
}

fn plain_schema(schema: &Schema, as_text: bool) -> SchemaRef {
    let fields = names(schema).into_iter().zip(schema.fields());
    let fields = fields.map(|(name, field)| Field::new(name, plain_type(field.data_type(), as_text), true));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

fn plain_type(data_type: &DataType, as_text: bool) -> DataType {
    match data_type {
        DataType::Utf8View => DataType::Utf8,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView if as_text => DataType::Utf8,
        DataType::BinaryView => DataType::Binary,
        DataType::Timestamp(unit, None) if as_text => DataType::Timestamp(*unit, Some("UTC".into())),
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::ListView(item)
        | DataType::LargeListView(item) => {
            let item = Field::new(item.name(), plain_type(item.data_type(), as_text), true);
            DataType::List(Arc::new(item))
        }
        DataType::Dictionary(_, values) => plain_type(values, as_text),
        other => other.clone(),
    }
}

fn plain(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let columns = batch.columns().iter().zip(schema.fields());
    let columns = columns.map(|(column, field)| match (column.data_type(), field.data_type()) {
        (from, to) if from == to => Ok(Arc::clone(column)),
        (DataType::Binary | DataType::LargeBinary | DataType::BinaryView, DataType::Utf8) => {
            binary_text(column)
        }
        (_, to) => cast(column, to),
    });
    RecordBatch::try_new(Arc::clone(schema), columns.collect::<Result<_, _>>()?)
}

fn binary_text(column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    let column = cast(column, &DataType::BinaryView)?;
    let column = column.as_binary_view();
    let mut texts = StringBuilder::new();
    for value in column {
        match value.map(std::str::from_utf8) {
            None => texts.append_null(),
            Some(Ok(text)) => texts.append_value(text),
            Some(Err(_)) => {
                texts.append_value(format!("base64:{}", STANDARD.encode(value.unwrap_or_default())));
            }
        }
    }
    Ok(Arc::new(texts.finish()))
}

/// A type's name in PostgreSQL, where it has one.
fn sql_type(data_type: &DataType) -> String {
    let name = match data_type {
        DataType::Boolean => "boolean",
        DataType::Int8 | DataType::Int16 | DataType::UInt8 => "smallint",
        DataType::Int32 | DataType::UInt16 => "integer",
        DataType::Int64 | DataType::UInt32 => "bigint",
        DataType::UInt64 => "numeric",
        DataType::Float16 | DataType::Float32 => "real",
        DataType::Float64 => "double precision",
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "text",
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            "bytea"
        }
        DataType::Timestamp(_, Some(_)) => "timestamp with time zone",
        DataType::Timestamp(_, None) => "timestamp",
        DataType::Date32 | DataType::Date64 => "date",
        DataType::Time32(_) | DataType::Time64(_) => "time",
        DataType::Interval(_) | DataType::Duration(_) => "interval",
        DataType::Decimal32(..)
        | DataType::Decimal64(..)
        | DataType::Decimal128(..)
        | DataType::Decimal256(..) => "numeric",
        DataType::Dictionary(_, values) => return sql_type(values),
        DataType::List(item) | DataType::LargeList(item) | DataType::ListView(item) => {
            return format!("{}[]", sql_type(item.data_type()));
        }
        other => return other.to_string(),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests;
