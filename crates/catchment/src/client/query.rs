//! `catchment query`: a statement in, rows out.

use std::io::{IsTerminal, Read};
use std::sync::Arc;

use anyhow::{Context, bail};
use arrow::array::{AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema};
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use arrow::util::pretty::pretty_format_batches;
use serde_json::json;

use super::{Client, Position, Problem, print, refusal};
use crate::cli::{QueryArgs, QueryDialect, QueryFormat};

const PATH: &str = "/api/v1/sql";

/// Runs the statement and prints its rows.
///
/// # Errors
/// No statement, no connection, or the platform's refusal with the place marked.
pub(crate) fn query(args: &QueryArgs) -> anyhow::Result<()> {
    let sql = statement(args.sql.as_deref())?;
    let client = Client::new(&args.client)?;
    let accept = match args.format {
        QueryFormat::Table => "application/vnd.apache.arrow.stream",
        QueryFormat::Json => "application/json",
        QueryFormat::Ndjson => "application/x-ndjson",
        QueryFormat::Csv => "text/csv",
    };
    let body = match args.dialect {
        // As servers understand it that know no dialects.
        QueryDialect::Postgresql => json!({ "query": sql }),
        QueryDialect::Clickhouse => json!({ "query": sql, "dialect": "clickhouse" }),
    };
    let mut response = match client.exchange("POST", PATH, accept, Some(&body))? {
        Ok(response) => response,
        Err((_, Problem { message, position: Some(position), hint })) => {
            let hint = hint.map(|hint| format!("\n  hint: {hint}")).unwrap_or_default();
            bail!("{message}\n{}{hint}", mark(&sql, position));
        }
        Err((status, problem)) => return Err(refusal(status, &problem)),
    };
    let body = response.body_mut().with_config().limit(u64::MAX).reader();
    if args.format == QueryFormat::Table {
        return print_table(body);
    }
    let mut output = std::io::stdout().lock();
    match std::io::copy(&mut { body }, &mut output) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map(drop).context("the answer was cut off"),
    }
}

fn statement(argument: Option<&str>) -> anyhow::Result<String> {
    let sql = match argument {
        Some(sql) if sql != "-" => sql.to_owned(),
        _ => {
            let mut input = std::io::stdin();
            if argument.is_none() && input.is_terminal() {
                bail!("which statement? write: catchment query \"SELECT * FROM devices\"");
            }
            let mut sql = String::new();
            input.read_to_string(&mut sql).context("standard input cannot be read")?;
            sql
        }
    };
    if sql.trim().is_empty() {
        bail!("the statement is empty");
    }
    Ok(sql)
}

fn print_table(body: impl Read) -> anyhow::Result<()> {
    let reader = StreamReader::try_new(body, None).context("the answer is not an Arrow stream")?;
    let empty = RecordBatch::new_empty(reader.schema());
    let mut batches = reader.collect::<Result<Vec<_>, _>>().context("the answer was cut off")?;
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    if batches.is_empty() {
        // The head is shown even where there are no rows.
        batches.push(empty);
    }
    let readable = batches.iter().map(readable).collect::<Result<Vec<_>, _>>()?;
    print(&format!("{}\n", pretty_format_batches(&readable)?))?;
    print(&format!("{rows} row{}\n", if rows == 1 { "" } else { "s" }))
}

/// The batch with bytes that are text as text: payloads mostly are. Others are shown in hexadecimal digits.
fn readable(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let mut fields = Vec::new();
    let mut columns = Vec::new();
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        let is_text = match field.data_type() {
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView => {
                let bytes = cast(column, &DataType::LargeBinary)?;
                bytes.as_binary::<i64>().iter().flatten().all(|bytes| std::str::from_utf8(bytes).is_ok())
            }
            _ => false,
        };
        match is_text {
            true => {
                columns.push(cast(&cast(column, &DataType::LargeBinary)?, &DataType::LargeUtf8)?);
                fields.push(Arc::new(Field::new(field.name(), DataType::LargeUtf8, true)));
            }
            false => {
                columns.push(Arc::clone(column));
                fields.push(Arc::clone(field));
            }
        }
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}

/// The line of the statement that the position is in, with a caret under the place.
fn mark(sql: &str, position: Position) -> String {
    let line = sql.lines().nth(position.line.saturating_sub(1) as usize).unwrap_or_default();
    let before = line.chars().take(position.column.saturating_sub(1) as usize);
    // Tabs stay tabs, so that the caret stands where the terminal shows the place.
    let indent: String = before.map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
    format!("  {line}\n  {indent}^ line {}, column {}", position.line, position.column)
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, BinaryViewArray};

    use super::*;

    #[test]
    fn payloads_are_shown_as_text() {
        let shown = |payloads: [&[u8]; 2]| {
            let column: ArrayRef = Arc::new(BinaryViewArray::from_iter_values(payloads));
            let batch = RecordBatch::try_from_iter([("payload", column)]).unwrap();
            pretty_format_batches(&[readable(&batch).unwrap()]).unwrap().to_string()
        };
        assert!(shown([b"{\"a\":1}", b"x"]).contains("| {\"a\":1} |"));
        assert!(shown([b"x", &[0xff]]).contains("| ff "));
    }

    #[test]
    fn the_place_is_marked() {
        let marked = mark("SELECT 1,\n\tx FORM y", Position { line: 2, column: 4 });
        assert_eq!(marked, "  \tx FORM y\n  \t  ^ line 2, column 4");
        assert_eq!(mark("", Position { line: 9, column: 1 }), "  \n  ^ line 9, column 1");
    }
}
