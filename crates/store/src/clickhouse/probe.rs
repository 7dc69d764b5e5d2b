//! A look at a server, for `catchment check`: changes nothing.

use std::time::{Duration, Instant};

use catchment_types::Timestamp;

use super::client::Client;
use super::config::ClickHouseTarget;
use super::error::{ClickHouseError, Trouble};
use super::schema;

/// Requests of which the latency is the median.
const REQUESTS: usize = 5;

/// What a server told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClickHouseProbe {
    /// Its version.
    pub version: String,
    /// Time of a request.
    pub latency: Duration,
    /// How far its clock is from ours, whichever is ahead.
    pub clock_skew: Duration,
    /// The version of the tables; none when there are none yet.
    pub schema: Option<u32>,
    /// Where the tables' archive is, if they have one.
    pub archive: Option<String>,
    /// Whether there is the database.
    pub has_database: bool,
    /// Rights that the user has not got and that are needed.
    pub rights_missing: Vec<&'static str>,
}

/// Asks a server what is there. With an archive more rights are needed.
///
/// # Errors
/// It does not answer, does not let us in, or its tables are of a newer Catchment.
pub async fn probe(target: &ClickHouseTarget, has_archive: bool) -> Result<ClickHouseProbe, ClickHouseError> {
    let client = Client::new(target)?;
    let on_server = |sql: &'static str| {
        let client = client.clone();
        async move { client.text_on_server(sql).await }
    };
    let version = on_server("SELECT version()").await?.trim().to_owned();
    let mut times = Vec::new();
    for _ in 0..REQUESTS {
        let started = Instant::now();
        on_server("SELECT 1").await?;
        times.push(started.elapsed());
    }
    times.sort_unstable();
    let before = Timestamp::now();
    let theirs = on_server("SELECT toUnixTimestamp64Micro(now64(6))").await?;
    let after = Timestamp::now();
    let theirs: i64 =
        theirs.trim().parse().map_err(|_| client.error(Trouble::Answer(format!("the time {theirs:?}"))))?;
    let ours = before.as_micros().midpoint(after.as_micros());
    let (has_database, schema) = match schema::version(&client).await {
        Err(ClickHouseError { trouble: Trouble::NoDatabase(_), .. }) => (false, None),
        version => (true, version?),
    };
    schema::check(&client, schema.unwrap_or_default())?;
    Ok(ClickHouseProbe {
        version,
        latency: times[REQUESTS / 2],
        clock_skew: Duration::from_micros(theirs.abs_diff(ours)),
        schema,
        archive: if has_database { schema::archive_of(&client).await? } else { None },
        has_database,
        rights_missing: rights_missing(&client, has_database, schema, has_archive).await?,
    })
}

/// Asks for each right by itself. Versions before 24.10 have no such question: then nothing is told.
async fn rights_missing(
    client: &Client,
    has_database: bool,
    version: Option<u32>,
    has_archive: bool,
) -> Result<Vec<&'static str>, ClickHouseError> {
    let mut needed = vec!["SELECT", "INSERT", "ALTER MODIFY TTL"];
    if version != Some(schema::VERSION) {
        needed.extend(["CREATE TABLE", "CREATE VIEW"]);
    }
    if has_archive {
        needed.extend(["ALTER DELETE", "ALTER MODIFY COMMENT"]);
    }
    if !has_database {
        needed.push("CREATE DATABASE");
    }
    let mut missing = Vec::new();
    for right in needed {
        let question = format!("CHECK GRANT {right} ON {}.*", client.target().database);
        match client.text_on_server(&question).await {
            Ok(answer) if answer.trim() == "0" => missing.push(right),
            // SYNTAX_ERROR, UNKNOWN_TABLE of old versions.
            Ok(_) | Err(ClickHouseError { trouble: Trouble::Refused { .. }, .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(missing)
}
