//! Our tables in ClickHouse: how they are made, brought up to date, and how long they keep rows.
//!
//! `schema_migrations` has a row for each version that was made. A version is a list of statements that can be run again, so
//! that one that broke off, or several processes that start at once, do no harm. Tables of a later version are refused.
//!
//! Types and codecs are measured: docs/adr/0008-clickhouse.md. Every table knows the last inserts by their tokens; the target
//! of the materialized view, too, or what is repeated would count twice there.

use catchment_types::Timestamp;

use super::client::Client;
use super::error::{ClickHouseError, Trouble};
use super::filter::quoted;
use crate::history::HistoryConfig;
use crate::history::cold::COLD_TABLES;
use crate::tables::{Period, TableId};

/// The version that this build makes and knows.
pub(super) const VERSION: u32 = 1;

/// How many inserts a table knows again. A range can be repeated after hours, when a process was away; others went on.
const KNOWN_INSERTS: u32 = 100_000;

/// What is run to get from the version before to this; `{…}` are filled in.
const VERSION_1: [&str; 6] = [
    "CREATE TABLE IF NOT EXISTS raw_events (
        device_id String,
        received_at DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),
        event_time DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),
        type LowCardinality(String),
        topic String,
        content_type LowCardinality(String),
        payload String CODEC(ZSTD(1)),
        log_partition Int32,
        log_offset Int64 CODEC(Delta, ZSTD(1))
    ) ENGINE = MergeTree PARTITION BY toDate(received_at) ORDER BY (device_id, received_at) {settings}",
    "CREATE TABLE IF NOT EXISTS raw_metrics (
        device_id String,
        timestamp DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),
        metric_name LowCardinality(String),
        metric_value Nullable(Float64) CODEC(ZSTD(1)),
        text_value Nullable(String) CODEC(ZSTD(1)),
        metadata Nullable(String),
        log_partition Int32,
        log_offset Int64 CODEC(Delta, ZSTD(1))
    ) ENGINE = MergeTree PARTITION BY toDate(timestamp) ORDER BY (device_id, timestamp) {settings}",
    "CREATE TABLE IF NOT EXISTS rejects (
        device_id String,
        received_at DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),
        type LowCardinality(String),
        topic String,
        reason LowCardinality(String),
        detail String CODEC(ZSTD(1)),
        payload String CODEC(ZSTD(1)),
        log_partition Int32,
        log_offset Int64 CODEC(Delta, ZSTD(1))
    ) ENGINE = MergeTree PARTITION BY toDate(received_at) ORDER BY (device_id, received_at) {settings}",
    "CREATE TABLE IF NOT EXISTS metric_rollups (
        device_id String,
        time_bucket DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),
        metric_name LowCardinality(String),
        sum_value SimpleAggregateFunction(sum, Float64) CODEC(ZSTD(1)),
        min_value SimpleAggregateFunction(min, Float64) CODEC(ZSTD(1)),
        max_value SimpleAggregateFunction(max, Float64) CODEC(ZSTD(1)),
        count SimpleAggregateFunction(sum, Int64) CODEC(ZSTD(1))
    ) ENGINE = AggregatingMergeTree PARTITION BY toYYYYMM(time_bucket)
      ORDER BY (device_id, time_bucket, metric_name) {settings}",
    // Minutes begin where the shards' do: at multiples of 60 s since the epoch, before it, too.
    "CREATE MATERIALIZED VIEW IF NOT EXISTS metric_rollups_mv TO metric_rollups AS
     SELECT device_id,
        fromUnixTimestamp64Micro(toUnixTimestamp64Micro(timestamp)
            - positiveModulo(toUnixTimestamp64Micro(timestamp), {minute}), 'UTC') AS time_bucket,
        metric_name,
        sum(assumeNotNull(metric_value)) AS sum_value,
        min(assumeNotNull(metric_value)) AS min_value,
        max(assumeNotNull(metric_value)) AS max_value,
        toInt64(count()) AS count
     FROM raw_metrics WHERE isFinite(metric_value) GROUP BY device_id, time_bucket, metric_name",
    "CREATE VIEW IF NOT EXISTS aggregated_metrics AS
     SELECT device_id, time_bucket, metric_name,
        sum(r.sum_value) / sum(r.count) AS avg_value,
        min(r.min_value) AS min_value,
        max(r.max_value) AS max_value,
        sum(r.count) AS count
     FROM metric_rollups AS r GROUP BY device_id, time_bucket, metric_name",
];

/// What the comment of a table begins with that has an archive; the archive's place follows.
const ARCHIVE: &str = "archive: ";

/// All versions, the first first.
const MIGRATIONS: [&[&str]; VERSION as usize] = [&VERSION_1];

/// Makes the database and its tables, or brings them up to date, and sets how long rows are kept: those that are archived until
/// they are. The tables remember their archive: a process that does not name it would have them drop what is to go there,
/// and would not see what is there.
///
/// # Errors
/// The tables are of a later version, their archive is another, or the user may not do what is needed.
pub(super) async fn prepare(
    client: &Client,
    config: &HistoryConfig,
    archive: Option<&str>,
) -> Result<(), ClickHouseError> {
    let found = match version(client).await {
        Err(ClickHouseError { trouble: Trouble::NoDatabase(name), .. }) => {
            tracing::info!(database = name, "making the database in ClickHouse");
            client.text_on_server(&format!("CREATE DATABASE IF NOT EXISTS {name}")).await?;
            0
        }
        found => found?.unwrap_or_default(),
    };
    check(client, found)?;
    for (version, statements) in (1..).zip(MIGRATIONS).skip(found as usize) {
        migrate(client, version, statements).await?;
    }
    let known = archive_of(client).await?;
    if known.is_some() && known.as_deref() != archive {
        let (known, named) = (known.unwrap_or_default(), archive.map(str::to_owned));
        return Err(client.error(Trouble::OtherArchive { known, named }));
    }
    for table in TableId::ALL {
        let is_archived = archive.is_some() && COLD_TABLES.contains(&table);
        if let (None, true, Some(place)) = (&known, is_archived, archive) {
            let comment = quoted(&format!("{ARCHIVE}{place}"));
            client.execute(&format!("ALTER TABLE {} MODIFY COMMENT {comment}", table.name())).await?;
        }
        keep(client, table, config.retention_days(table).filter(|_| !is_archived)).await?;
    }
    Ok(())
}

/// Where the tables' archive is, as they remember it; nothing when they have none, or are not there yet.
///
/// # Errors
/// ClickHouse does not answer.
pub(super) async fn archive_of(client: &Client) -> Result<Option<String>, ClickHouseError> {
    let names = COLD_TABLES.map(|table| format!("'{}'", table.name())).join(", ");
    let query = format!(
        "SELECT max(comment) FROM system.tables WHERE database = currentDatabase() AND name IN ({names}) \
         AND startsWith(comment, '{ARCHIVE}') FORMAT TSVRaw"
    );
    let comment = client.text(&query).await?;
    Ok(comment.trim_end_matches('\n').strip_prefix(ARCHIVE).map(str::to_owned))
}

/// Refuses tables of a later version.
///
/// # Errors
/// They are.
pub(super) fn check(client: &Client, found: u32) -> Result<(), ClickHouseError> {
    if found > VERSION {
        return Err(client.error(Trouble::NewerSchema { found, known: VERSION }));
    }
    Ok(())
}

/// The version of the tables; nothing when there are none yet.
///
/// # Errors
/// There is no database, or it does not answer.
pub(super) async fn version(client: &Client) -> Result<Option<u32>, ClickHouseError> {
    match client.text("SELECT max(version) FROM schema_migrations").await {
        Ok(text) => {
            let version = text.trim().parse();
            version
                .map(Some)
                .map_err(|_| client.error(Trouble::Answer(format!("a schema of version {text:?}"))))
        }
        // UNKNOWN_TABLE.
        Err(ClickHouseError { trouble: Trouble::Refused { code: 60, .. }, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn migrate(client: &Client, version: u32, statements: &[&str]) -> Result<(), ClickHouseError> {
    tracing::info!(database = %client.target(), version, "making tables in ClickHouse");
    let log = "CREATE TABLE IF NOT EXISTS schema_migrations (version UInt32, made_at DateTime64(6, 'UTC'), made_by String) \
               ENGINE = MergeTree ORDER BY version";
    client.execute(log).await?;
    for statement in statements {
        client.execute(&filled(statement)).await?;
    }
    // Last: until it is there, the statements are run again.
    let made_by = concat!("catchment ", env!("CARGO_PKG_VERSION"));
    let done = format!("INSERT INTO schema_migrations SELECT {version}, now64(6, 'UTC'), '{made_by}'");
    client.execute(&done).await
}

fn filled(statement: &str) -> String {
    // Replicated and cloud engines have names of their own for the window; any engine takes both.
    let settings = format!(
        "SETTINGS ttl_only_drop_parts = 1, non_replicated_deduplication_window = {KNOWN_INSERTS}, \
         replicated_deduplication_window = {KNOWN_INSERTS}, replicated_deduplication_window_seconds = 604800"
    );
    statement.replace("{settings}", &settings).replace("{minute}", &Timestamp::MINUTE.to_string())
}

/// Sets a table's retention, if it is another.
async fn keep(client: &Client, table: TableId, days: Option<u32>) -> Result<(), ClickHouseError> {
    let name = table.name();
    let query = format!(
        "SELECT engine_full FROM system.tables WHERE database = currentDatabase() AND name = '{name}'"
    );
    let engine = client.text(&query).await?;
    let statement = match days.map(|days| ttl(table, days)) {
        Some(ttl) if engine.contains(&format!("TTL {ttl} SETTINGS")) => return Ok(()),
        // Rows that are there already are dropped as their parts are merged, as is the case with those that come.
        Some(ttl) => format!("ALTER TABLE {name} MODIFY TTL {ttl} SETTINGS materialize_ttl_after_modify = 0"),
        None if !engine.contains(" TTL ") => return Ok(()),
        None => format!("ALTER TABLE {name} REMOVE TTL"),
    };
    tracing::info!(table = name, days, "setting the retention in ClickHouse");
    client.execute(&statement).await
}

/// When a row goes, as ClickHouse writes it: with the day or month that it is in, so that whole parts go.
fn ttl(table: TableId, days: u32) -> String {
    let time = table.time_column();
    match table.period() {
        Period::Day => format!("toDate({time}) + toIntervalDay({})", days.saturating_add(1)),
        Period::Month => format!("(toStartOfMonth({time}) + toIntervalMonth(1)) + toIntervalDay({days})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_name_every_column_of_a_table() {
        for table in TableId::ALL {
            let head = format!("CREATE TABLE IF NOT EXISTS {} (", table.name());
            let statement = VERSION_1.iter().find(|statement| statement.starts_with(&head)).unwrap();
            let columns = statement[head.len()..].lines().map(|line| line.trim().split(' ').next().unwrap());
            let columns: Vec<_> =
                columns.filter(|name| !name.is_empty()).take_while(|name| *name != ")").collect();
            let expected: Vec<_> = table.schema().fields().iter().map(|field| field.name().clone()).collect();
            assert_eq!(columns, expected);
            let filled = filled(statement);
            assert!(!filled.contains('{') && filled.contains("non_replicated_deduplication_window = 100000"));
            assert!(filled.contains(&format!("({})", table.time_column())));
        }
        assert!(filled(VERSION_1[4]).contains(", 60000000), 'UTC')"));
    }

    #[test]
    fn rows_go_with_their_day_or_month() {
        assert_eq!(ttl(TableId::RawMetrics, 7), "toDate(timestamp) + toIntervalDay(8)");
        let months = "(toStartOfMonth(time_bucket) + toIntervalMonth(1)) + toIntervalDay(365)";
        assert_eq!(ttl(TableId::MetricRollups, 365), months);
    }
}
