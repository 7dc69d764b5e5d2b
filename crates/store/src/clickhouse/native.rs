//! ClickHouse's own SQL, passed through: read-only, limited, and only over the tables of our database.
//!
//! What a query reads is not guessed from its text: ClickHouse itself tells, by `EXPLAIN QUERY TREE`, before it runs. There a
//! table of another database, a table function that reaches outside, or a function that reads elsewhere is seen and refused.
//! Rights of the user in ClickHouse hold besides.

use arrow::record_batch::RecordBatch;
use datafusion::error::Result;
use datafusion::physical_plan::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::stream;

use super::client::{Client, Setting};
use super::error::{ClickHouseError, Trouble};
use super::scan::Running;
use crate::history::{NativeError, NativeQuery};

/// Table functions that make rows of nothing.
const TABLE_FUNCTIONS: [&str; 7] =
    ["generateSeries", "generate_series", "null", "numbers", "values", "zeros", "numbers_mt"];
/// Tables beside ours: rows of nothing.
const TABLES: [&str; 4] = ["system.numbers", "system.numbers_mt", "system.one", "system.zeros"];
/// Functions that read what is not in their arguments begin so.
const FUNCTIONS_REFUSED: [&str; 7] =
    ["dict", "joinGet", "file", "catboost", "getServerSetting", "getSetting", "showCertificate"];

/// Codes of planning whose messages quote the query alone. Planning computes what is constant, from tables not allowed, too,
/// and other messages may quote that.
const TELLS_NO_DATA: [i32; 9] = [16, 42, 43, 46, 47, 60, 62, 159, 164];

/// Starts a query; its rows come as a stream.
///
/// # Errors
/// It reads what it may not, or ClickHouse refuses it.
pub(super) async fn query(
    client: &Client,
    query: NativeQuery,
) -> Result<SendableRecordBatchStream, NativeError> {
    let settings = settings(&query);
    let text = query.text.trim().trim_end_matches(';');
    let explained = explain(client, text, &settings).await?;
    check(&explained, &client.target().database)?;
    let mut running = Running::start_foreign(client, text.to_owned(), &settings).await?;
    let first = running.next().await?;
    let schema = running.answer.schema();
    let schema = schema.ok_or_else(|| client.error(Trouble::Answer("it has no columns".to_owned())))?;
    let rows = stream::try_unfold((first, running), |(first, mut running)| async move {
        let rows: Option<RecordBatch> = match first {
            Some(rows) => Some(rows),
            None if running.answer.ended() => None,
            None => running.next().await?,
        };
        Ok(rows.map(|rows| (rows, (None, running))))
    });
    Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
}

fn settings(query: &NativeQuery) -> Vec<Setting> {
    vec![
        ("max_execution_time", query.timeout.as_secs_f64().to_string()),
        ("max_result_rows", query.rows_max.to_string()),
        ("max_result_bytes", query.bytes_max.to_string()),
        ("result_overflow_mode", "throw".to_owned()),
        ("max_memory_usage", query.memory_bytes_max.to_string()),
        // Not even its own settings can be changed by the query.
        ("readonly", "1".to_owned()),
    ]
}

/// What the query reads, as ClickHouse understands it.
async fn explain(client: &Client, text: &str, settings: &[Setting]) -> Result<String, NativeError> {
    let statement = format!("EXPLAIN QUERY TREE {text}");
    let mut running = match Running::start_foreign(client, statement, settings).await {
        Ok(running) => running,
        Err(ClickHouseError { trouble: Trouble::Refused { code, .. }, .. })
            if !TELLS_NO_DATA.contains(&code) =>
        {
            return Err(NativeError::NotAllowed(format!(
                "ClickHouse cannot plan this query (its code is {code})"
            )));
        }
        Err(error) => return Err(error.into()),
    };
    // A FORMAT of the query's own is the stronger.
    if let Some(other) = running.answer.format().filter(|format| *format != "ArrowStream") {
        let message = format!("leave FORMAT {other} away: the request says which format the answer has");
        return Err(NativeError::NotAllowed(message));
    }
    let mut lines = String::new();
    while let Some(rows) = running.next().await? {
        let shaped = arrow::compute::cast(rows.column(0), &arrow::datatypes::DataType::Utf8);
        let column = shaped.map_err(|error| client.error(Trouble::from(error)))?;
        for line in arrow::array::cast::AsArray::as_string::<i32>(&column).iter().flatten() {
            lines.push_str(line);
            lines.push('\n');
        }
    }
    Ok(lines)
}

/// Refuses what reads anything but our tables.
fn check(explained: &str, database: &str) -> Result<(), NativeError> {
    let refused = |what: String| Err(NativeError::NotAllowed(what));
    for line in explained.lines().map(str::trim_start) {
        // A node; other lines are heads of lists and columns' types.
        let Some((word, _)) = line.split_once(" id: ") else { continue };
        // The name comes last but for what a query says about it (FINAL, SAMPLE).
        let named = |mark: &str| {
            let rest = line.rfind(mark).map(|at| &line[at + mark.len()..])?;
            Some(rest.split(", ").next().unwrap_or_default())
        };
        match word {
            "TABLE" => {
                let name = named("table_name: ").unwrap_or_default();
                let is_ours = name.strip_prefix(database).is_some_and(|rest| rest.starts_with('.'));
                if !is_ours && !TABLES.contains(&name) {
                    return refused(format!("the table {name} is not of the database {database}"));
                }
            }
            "TABLE_FUNCTION" => {
                let name = named("table_function_name: ").unwrap_or_default();
                if !TABLE_FUNCTIONS.contains(&name) {
                    return refused(format!("the table function {name} is not allowed here"));
                }
            }
            "FUNCTION" => {
                let name = named("function_name: ").unwrap_or_default();
                if FUNCTIONS_REFUSED.iter().any(|refused| name.starts_with(refused)) {
                    return refused(format!("the function {name} is not allowed here"));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

impl From<ClickHouseError> for NativeError {
    fn from(error: ClickHouseError) -> Self {
        Self::Engine(error.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_tables_are_read() {
        let told =
            |line: &str| check(&format!("QUERY id: 0\n      {line}\n"), "city").err().map(|e| e.to_string());
        assert_eq!(told("TABLE id: 3, alias: __table1, table_name: city.raw_events, final: 1"), None);
        assert_eq!(told("TABLE id: 3, alias: __table1, table_name: system.one"), None);
        for line in [
            "TABLE id: 3, alias: __table1, table_name: system.users",
            "TABLE id: 3, alias: __table1, table_name: city2.raw_events",
            "TABLE id: 3, alias: city.a, table_name: other.x",
        ] {
            assert!(told(line).unwrap().contains("is not of the database city"), "{line}");
        }
        assert!(
            told("TABLE_FUNCTION id: 3, alias: __table1, table_function_name: url").unwrap().contains("url")
        );
        assert_eq!(told("TABLE_FUNCTION id: 3, alias: __table1, table_function_name: numbers"), None);
        assert!(
            told("FUNCTION id: 1, function_name: dictGet, function_type: ordinary, result_type: UInt8")
                .is_some()
        );
        assert_eq!(told("FUNCTION id: 1, function_name: count, function_type: aggregate"), None);
    }
}
