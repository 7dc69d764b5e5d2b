//! What was sent: latest values, history, aggregates, events, rejects.
//!
//! Everything but the latest values is a query like any other, with its limits and its place in the list. Pages go by a
//! cursor that names the last row's time and how many rows of that time were given already, under a total order: rows of
//! other times that arrive in between shift nothing.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use catchment_store::live::LiveValue;
use catchment_store::tables::TableId;
use catchment_types::{Timestamp, check_device_id};
use datafusion::common::ScalarValue;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::answers;
use super::query::{Query, Row};
use crate::ServeState;
use crate::auth::Reader;
use crate::extract;
use crate::params::{bucket, decode_cursor, encode_cursor, page_size, time};
use crate::problem::Problem;

const PAGE_DEFAULT: u32 = 1_000;
const PAGE_MAX: u32 = 10_000;

/// Which way a page goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Order {
    /// Oldest first.
    Asc,
    /// Newest first.
    Desc,
}

impl Order {
    const fn sql(self) -> &'static str {
        match self {
            Self::Asc => "ASC",
            Self::Desc => "DESC",
        }
    }
}

/// A stretch of time and a page of it.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Range {
    /// From this time on: RFC 3339, epoch seconds or milliseconds, `now`, or before now like `-1h`.
    #[param(example = "-1h")]
    from: Option<String>,
    /// Up to and without this time.
    to: Option<String>,
    /// A metric's name; `*` in it stands for any run of characters.
    metric: Option<String>,
    /// Rows of a page: 1,000 if not given, at most 10,000.
    limit: Option<u32>,
    /// History, events and rejects come newest first if not given, aggregates oldest first.
    #[param(inline)]
    order: Option<Order>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// Width of the buckets of aggregates: whole minutes, such as `1m`, `15m`, `1h`, `1d`.
    bucket: Option<String>,
    /// Event type, for events and rejects.
    r#type: Option<String>,
    /// Device, for rejects.
    device: Option<String>,
}

impl Range {
    /// What an answer depends on, but for the data; nothing if it depends on the time of day, too.
    fn question(&self, what: &str, device_id: &str) -> Option<String> {
        let is_fixed = |time: &Option<String>| {
            time.as_ref().is_none_or(|text| text.trim() != "now" && !text.trim_start().starts_with('-'))
        };
        (is_fixed(&self.from) && is_fixed(&self.to)).then(|| format!("{what} {device_id:?} {self:?}"))
    }
}

/// The last row given: its time in microseconds, and how many rows of that time were given.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Place(i64, u64);

/// A request for a page, put together step by step into a query.
struct Page {
    query: Query,
    order: Order,
    limit: u32,
    place: Option<Place>,
}

impl Page {
    /// Starts `sql`, which ends in a WHERE clause.
    fn new(sql: String, range: &Range, order: Order) -> Result<Self, Problem> {
        Ok(Self {
            query: Query::new(sql),
            order: range.order.unwrap_or(order),
            limit: page_size(range.limit, PAGE_DEFAULT, PAGE_MAX),
            place: decode_cursor(range.cursor.as_deref())?,
        })
    }

    /// Keeps rows whose `column` lies in the range.
    fn between(&mut self, column: &str, range: &Range, floor: i64) -> Result<(), Problem> {
        let now = Timestamp::now();
        if let Some(from) = &range.from {
            self.query.and(&format!("{column} >= "), timestamp(time("from", from, now)?.floor(floor)));
        }
        if let Some(to) = &range.to {
            self.query.and(&format!("{column} < "), timestamp(time("to", to, now)?));
        }
        Ok(())
    }

    fn metric(&mut self, range: &Range) {
        match &range.metric {
            None => {}
            Some(metric) if metric.contains('*') => {
                let pattern =
                    metric.replace('\\', r"\\").replace('%', r"\%").replace('_', r"\_").replace('*', "%");
                self.query.and("metric_name LIKE ", text(&pattern));
            }
            Some(metric) => self.query.and("metric_name = ", text(metric)),
        }
    }

    fn equals(&mut self, column: &str, value: Option<&String>) {
        if let Some(value) = value {
            self.query.and(&format!("{column} = "), text(value));
        }
    }

    /// Goes on behind the page before, by `column`, in rows not yet grouped.
    fn after(&mut self, column: &str) {
        if let Some(Place(time, _)) = self.place {
            let comparison = if self.order == Order::Asc { ">=" } else { "<=" };
            self.query.and(&format!("{column} {comparison} "), timestamp(Timestamp(time)));
        }
    }

    /// Sorts by `column` and what makes the order total, and runs; gives the rows of the page and the next cursor.
    async fn run(
        mut self,
        state: &ServeState,
        reader: &Reader,
        column: &str,
        ties: &str,
    ) -> Result<(Vec<Row>, Option<String>), Problem> {
        let (order, skip) = (self.order.sql(), self.place.map_or(0, |Place(_, given)| given));
        let ties: Vec<_> = ties.split(", ").map(|tie| format!("{tie} {order}")).collect();
        // Writing to a String cannot fail.
        let _ = write!(
            self.query.sql,
            " ORDER BY {column} {order}, {} LIMIT {} OFFSET {skip}",
            ties.join(", "),
            u64::from(self.limit) + 1
        );
        let mut rows = self.query.run(state, &reader.0).await?;
        let more = rows.len() > self.limit as usize;
        rows.truncate(self.limit as usize);
        let next = rows.last().filter(|_| more).and_then(|last| {
            let time = last.time(column)?.as_micros();
            let of_that_time = |row: &&Row| row.time(column).is_some_and(|other| other.as_micros() == time);
            let given = rows.iter().rev().take_while(of_that_time).count() as u64;
            // A page that is one moment goes on counting where the one before it stopped.
            let before =
                self.place.filter(|&Place(earlier, _)| earlier == time && given == rows.len() as u64);
            Some(encode_cursor(&Place(time, given + before.map_or(0, |Place(_, before)| before))))
        });
        Ok((rows, next))
    }
}

fn timestamp(time: Timestamp) -> ScalarValue {
    ScalarValue::TimestampMicrosecond(Some(time.as_micros()), Some("UTC".into()))
}

fn text(text: &str) -> ScalarValue {
    ScalarValue::Utf8View(Some(text.to_owned()))
}

fn rfc3339(time: Option<Timestamp>) -> String {
    time.unwrap_or_default().to_string()
}

/// The latest of a device.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Snapshot {
    device_id: String,
    /// When its last event arrived, RFC 3339.
    last_seen: Option<String>,
    /// By metric.
    #[schema(value_type = std::collections::HashMap<String, Latest>)]
    metrics: Metrics,
}

/// Metrics in the order of their names; serialises as an object.
#[derive(Debug)]
struct Metrics(Vec<(Arc<str>, Latest)>);

impl Serialize for Metrics {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, latest)| (name, latest)))
    }
}

/// The latest of a metric.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Latest {
    /// A number, text or boolean.
    #[schema(value_type = Value)]
    value: LiveValue,
    /// When it was measured, RFC 3339.
    timestamp: String,
    /// When it arrived, RFC 3339.
    received_at: String,
}

/// The latest value of each metric of a device.
#[utoipa::path(get, path = "/api/v1/devices/{device_id}/snapshot", tag = "readings", params(("device_id" = String, Path)),
    responses((status = 200, body = Snapshot), (status = 404, description = "Neither registered nor seen", body = Problem)))]
pub(super) async fn snapshot(
    State(state): State<Arc<ServeState>>,
    _: Reader,
    extract::Path(device_id): extract::Path<String>,
) -> Result<Json<Snapshot>, Problem> {
    check_device_id(&device_id)?;
    let Some(found) = state.snapshot.latest(&device_id).await? else {
        if state.registry.device(&device_id).await?.is_none() {
            return Err(Problem::not_found("device", &device_id));
        }
        return Ok(Json(Snapshot { device_id, last_seen: None, metrics: Metrics(Vec::new()) }));
    };
    let mut metrics: Vec<_> = found
        .metrics
        .into_iter()
        .map(|metric| {
            let latest = Latest {
                value: metric.value,
                timestamp: metric.timestamp.to_string(),
                received_at: metric.received_at.to_string(),
            };
            (metric.metric, latest)
        })
        .collect();
    metrics.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    Ok(Json(Snapshot { device_id, last_seen: Some(found.last_seen.to_string()), metrics: Metrics(metrics) }))
}

/// A reading.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Reading {
    /// When it was measured, RFC 3339.
    timestamp: String,
    metric: String,
    /// The number; 1 or 0 for a boolean, null for a text.
    value: Option<f64>,
    /// The text; `true` or `false` for a boolean, null for a number.
    text: Option<String>,
}

/// A page of readings.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Readings {
    device_id: String,
    readings: Vec<Reading>,
    /// For the next page; null on the last.
    next_cursor: Option<String>,
}

/// Readings of a device.
#[utoipa::path(get, path = "/api/v1/devices/{device_id}/history", tag = "readings", params(("device_id" = String, Path), Range),
    responses((status = 200, body = Readings), (status = 400, body = Problem)))]
pub(super) async fn history(
    State(state): State<Arc<ServeState>>,
    reader: Reader,
    extract::Path(device_id): extract::Path<String>,
    extract::Query(range): extract::Query<Range>,
) -> Result<Response, Problem> {
    check_device_id(&device_id)?;
    let question = range.question("history", &device_id);
    let question = question.as_ref().map(|question| [question.as_bytes()]);
    let make = history_of(&state, &reader, device_id, &range);
    answers::answer(&state, question.as_ref().map(|parts| &parts[..]), make).await
}

async fn history_of(
    state: &ServeState,
    reader: &Reader,
    device_id: String,
    range: &Range,
) -> Result<Readings, Problem> {
    let select =
        "SELECT timestamp, metric_name, metric_value, text_value FROM raw_metrics WHERE true".to_owned();
    let mut page = Page::new(select, range, Order::Desc)?;
    page.equals("device_id", Some(&device_id));
    page.metric(range);
    page.between("timestamp", range, 1)?;
    page.after("timestamp");
    let (rows, next_cursor) =
        page.run(state, reader, "timestamp", "metric_name, log_offset, metric_value, text_value").await?;
    let readings = rows.iter().map(|row| Reading {
        timestamp: rfc3339(row.time("timestamp")),
        metric: row.text("metric_name").unwrap_or_default().to_owned(),
        value: row.number("metric_value"),
        text: row.text("text_value").map(str::to_owned),
    });
    Ok(Readings { device_id, readings: readings.collect(), next_cursor })
}

/// What a metric was in one bucket of time.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Aggregate {
    /// Start of the bucket, RFC 3339.
    timestamp: String,
    metric: String,
    avg: Option<f64>,
    min: Option<f64>,
    max: Option<f64>,
    count: i64,
}

/// A page of aggregates.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Aggregates {
    device_id: String,
    /// Width of the buckets, in seconds.
    bucket_seconds: u64,
    aggregates: Vec<Aggregate>,
    /// For the next page; null on the last.
    next_cursor: Option<String>,
}

/// Average, minimum, maximum and count of a device's numbers in buckets of time, late readings included. `from` is taken
/// down to the start of its bucket.
#[utoipa::path(get, path = "/api/v1/devices/{device_id}/aggregates", tag = "readings", params(("device_id" = String, Path), Range),
    responses((status = 200, body = Aggregates), (status = 400, body = Problem)))]
pub(super) async fn aggregates(
    State(state): State<Arc<ServeState>>,
    reader: Reader,
    extract::Path(device_id): extract::Path<String>,
    extract::Query(range): extract::Query<Range>,
) -> Result<Response, Problem> {
    check_device_id(&device_id)?;
    let question = range.question("aggregates", &device_id);
    let question = question.as_ref().map(|question| [question.as_bytes()]);
    let make = aggregates_of(&state, &reader, device_id, &range);
    answers::answer(&state, question.as_ref().map(|parts| &parts[..]), make).await
}

async fn aggregates_of(
    state: &ServeState,
    reader: &Reader,
    device_id: String,
    range: &Range,
) -> Result<Aggregates, Problem> {
    let seconds = bucket(range.bucket.as_deref().unwrap_or("1m"))?.as_secs();
    let binned = format!("date_bin(INTERVAL '{seconds} seconds', time_bucket)");
    let select = format!(
        "SELECT {binned} AS bucket, metric_name, sum(sum_value) / sum(count) AS avg_value, min(min_value) AS min_value, \
         max(max_value) AS max_value, sum(count) AS count FROM {} WHERE true",
        TableId::MetricRollups.name()
    );
    let mut page = Page::new(select, range, Order::Asc)?;
    page.equals("device_id", Some(&device_id));
    page.metric(range);
    let micros = i64::try_from(seconds).unwrap_or(i64::MAX / Timestamp::SECOND) * Timestamp::SECOND;
    page.between("time_bucket", range, micros)?;
    page.after(&binned);
    // Writing to a String cannot fail.
    let _ = write!(page.query.sql, " GROUP BY {binned}, metric_name");
    let (rows, next_cursor) = page.run(state, reader, "bucket", "metric_name").await?;
    let aggregates = rows.iter().map(|row| Aggregate {
        timestamp: rfc3339(row.time("bucket")),
        metric: row.text("metric_name").unwrap_or_default().to_owned(),
        avg: row.number("avg_value"),
        min: row.number("min_value"),
        max: row.number("max_value"),
        count: row.integer("count").unwrap_or_default(),
    });
    Ok(Aggregates { device_id, bucket_seconds: seconds, aggregates: aggregates.collect(), next_cursor })
}

/// Whether a payload stands as it is or in base64.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum PayloadEncoding {
    /// It is UTF-8.
    Text,
    /// It is not.
    Base64,
}

fn payload(row: &Row) -> (String, PayloadEncoding) {
    let bytes = row.bytes("payload").unwrap_or_default();
    match std::str::from_utf8(bytes) {
        Ok(text) => (text.to_owned(), PayloadEncoding::Text),
        Err(_) => (STANDARD.encode(bytes), PayloadEncoding::Base64),
    }
}

/// An event as received.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ReceivedEvent {
    /// RFC 3339.
    received_at: String,
    /// Its own time where it has one, RFC 3339.
    event_time: String,
    r#type: String,
    topic: String,
    content_type: String,
    payload: String,
    payload_encoding: PayloadEncoding,
    log_partition: i64,
    log_offset: i64,
}

/// A page of events.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Events {
    device_id: String,
    events: Vec<ReceivedEvent>,
    /// For the next page; null on the last.
    next_cursor: Option<String>,
}

/// Events of a device as received.
#[utoipa::path(get, path = "/api/v1/devices/{device_id}/events", tag = "readings", params(("device_id" = String, Path), Range),
    responses((status = 200, body = Events), (status = 400, body = Problem)))]
pub(super) async fn events(
    State(state): State<Arc<ServeState>>,
    reader: Reader,
    extract::Path(device_id): extract::Path<String>,
    extract::Query(range): extract::Query<Range>,
) -> Result<Json<Events>, Problem> {
    check_device_id(&device_id)?;
    let mut page = Page::new("SELECT * FROM raw_events WHERE true".to_owned(), &range, Order::Desc)?;
    page.equals("device_id", Some(&device_id));
    page.equals("type", range.r#type.as_ref());
    page.between("received_at", &range, 1)?;
    page.after("received_at");
    let (rows, next_cursor) = page.run(&state, &reader, "received_at", "log_offset").await?;
    let events = rows.iter().map(|row| {
        let (payload, payload_encoding) = payload(row);
        ReceivedEvent {
            received_at: rfc3339(row.time("received_at")),
            event_time: rfc3339(row.time("event_time")),
            r#type: row.text("type").unwrap_or_default().to_owned(),
            topic: row.text("topic").unwrap_or_default().to_owned(),
            content_type: row.text("content_type").unwrap_or_default().to_owned(),
            payload,
            payload_encoding,
            log_partition: row.integer("log_partition").unwrap_or_default(),
            log_offset: row.integer("log_offset").unwrap_or_default(),
        }
    });
    Ok(Json(Events { device_id, events: events.collect(), next_cursor }))
}

/// What did not decode.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Reject {
    device_id: String,
    /// RFC 3339.
    received_at: String,
    r#type: String,
    topic: String,
    /// A word: `syntax`, `too_deep`, `timestamp`, …
    reason: String,
    detail: String,
    payload: String,
    payload_encoding: PayloadEncoding,
    log_partition: i64,
    log_offset: i64,
}

/// A page of rejects.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Rejects {
    rejects: Vec<Reject>,
    /// For the next page; null on the last.
    next_cursor: Option<String>,
}

/// Events, and parts of them, that did not decode, with the reason.
#[utoipa::path(get, path = "/api/v1/rejects", tag = "readings", params(Range),
    responses((status = 200, body = Rejects), (status = 400, body = Problem)))]
pub(super) async fn rejects(
    State(state): State<Arc<ServeState>>,
    reader: Reader,
    extract::Query(range): extract::Query<Range>,
) -> Result<Json<Rejects>, Problem> {
    let mut page = Page::new("SELECT * FROM rejects WHERE true".to_owned(), &range, Order::Desc)?;
    page.equals("device_id", range.device.as_ref());
    page.equals("type", range.r#type.as_ref());
    page.between("received_at", &range, 1)?;
    page.after("received_at");
    let (rows, next_cursor) =
        page.run(&state, &reader, "received_at", "log_partition, log_offset, reason, detail").await?;
    let rejects = rows.iter().map(|row| {
        let (payload, payload_encoding) = payload(row);
        Reject {
            device_id: row.text("device_id").unwrap_or_default().to_owned(),
            received_at: rfc3339(row.time("received_at")),
            r#type: row.text("type").unwrap_or_default().to_owned(),
            topic: row.text("topic").unwrap_or_default().to_owned(),
            reason: row.text("reason").unwrap_or_default().to_owned(),
            detail: row.text("detail").unwrap_or_default().to_owned(),
            payload,
            payload_encoding,
            log_partition: row.integer("log_partition").unwrap_or_default(),
            log_offset: row.integer("log_offset").unwrap_or_default(),
        }
    });
    Ok(Json(Rejects { rejects: rejects.collect(), next_cursor }))
}
