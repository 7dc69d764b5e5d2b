//! What was decoded from events, on its way to others who want it as it comes: stream processors, other databases.
//!
//! A row is a JSON object with the columns that `raw_metrics` or `rejects` has in SQL. Times stand as
//! `2022-02-19 11:33:21.250000`, in UTC, which Flink, ClickHouse and Druid take for times without being told. A payload
//! stands as itself where it is UTF-8, else as `base64:…`, and not at all where it is long: then `raw_events` has it, at
//! `log_partition` and `log_offset`.
//!
//! The partition's worker decodes a block into a [`ReadingsBatch`], and publishes that before it hands the block to the
//! store. So a row that is in history was published, and what was published before a crash is published again after it.

use async_trait::async_trait;
use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD;
use catchment_types::{Event, Offset, PartitionId, Reading, RejectReason, Timestamp};
use serde::{Serialize, Serializer};

use crate::LogError;

/// Longer payloads of rejects are left out, in bytes.
const PAYLOAD_BYTES_MAX: usize = 64 << 10;

/// Takes decoded rows to others.
#[async_trait]
pub trait PublishReadings: Send + Sync + 'static {
    /// Publishes rows of one partition, in order, and waits until they are durable, or for room if there is none.
    ///
    /// # Errors
    /// Whether any of them are published is unknown; the same batch can be published again.
    async fn publish(&self, partition: PartitionId, batch: &ReadingsBatch) -> Result<(), LogError>;
}

/// What kind of row it is, and so where it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowKind {
    /// A row of `raw_metrics`.
    Reading,
    /// A row of `rejects`.
    Reject,
}

/// A row, borrowed from its batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row<'a> {
    /// Where it goes.
    pub kind: RowKind,
    /// Whose it is.
    pub device_id: &'a str,
    /// Type of the event.
    pub event_type: &'a str,
    /// When the event was received.
    pub received_at: Timestamp,
    /// When the value was measured; of a reject, when its event was received.
    pub timestamp: Timestamp,
    /// JSON object of the columns.
    pub json: &'a [u8],
}

/// Rows of one partition, in order, in one buffer that is used again.
#[derive(Debug, Default)]
pub struct ReadingsBatch {
    bytes: Vec<u8>,
    rows: Vec<RowAt>,
}

/// A row: its device id, its type and its JSON follow one another in the buffer.
#[derive(Debug)]
struct RowAt {
    kind: RowKind,
    device_id_len: usize,
    type_len: usize,
    received_at: Timestamp,
    timestamp: Timestamp,
    end: usize,
}

#[derive(Serialize)]
struct ReadingRow<'a> {
    device_id: &'a str,
    #[serde(serialize_with = "plain_time")]
    timestamp: Timestamp,
    metric_name: &'a str,
    metric_value: Option<f64>,
    text_value: Option<&'a str>,
    metadata: Option<&'a str>,
    log_partition: PartitionId,
    log_offset: Offset,
}

#[derive(Serialize)]
struct RejectRow<'a> {
    device_id: &'a str,
    #[serde(serialize_with = "plain_time")]
    received_at: Timestamp,
    r#type: &'a str,
    topic: &'a str,
    reason: &'static str,
    detail: &'a str,
    #[serde(serialize_with = "payload")]
    payload: &'a [u8],
    log_partition: PartitionId,
    log_offset: Offset,
}

impl ReadingsBatch {
    /// Adds a reading of an event.
    pub fn reading(
        &mut self,
        partition: PartitionId,
        offset: Offset,
        event: &Event<'_>,
        reading: &Reading<'_>,
    ) {
        let row = ReadingRow {
            device_id: event.device_id,
            timestamp: reading.timestamp,
            metric_name: reading.metric,
            metric_value: reading.value.number(),
            text_value: reading.value.text(),
            metadata: Some(event.tags).filter(|tags| !tags.is_empty()),
            log_partition: partition,
            log_offset: offset,
        };
        self.push(RowKind::Reading, event, reading.timestamp, &row);
    }

    /// Adds what of an event did not decode.
    pub fn reject(
        &mut self,
        partition: PartitionId,
        offset: Offset,
        event: &Event<'_>,
        reason: RejectReason,
        detail: &str,
    ) {
        let row = RejectRow {
            device_id: event.device_id,
            received_at: event.received_at,
            r#type: event.event_type,
            topic: event.topic,
            reason: reason.as_str(),
            detail,
            payload: event.payload,
            log_partition: partition,
            log_offset: offset,
        };
        self.push(RowKind::Reject, event, event.received_at, &row);
    }

    fn push(&mut self, kind: RowKind, event: &Event<'_>, timestamp: Timestamp, row: &impl Serialize) {
        let begin = self.bytes.len();
        self.bytes.extend_from_slice(event.device_id.as_bytes());
        self.bytes.extend_from_slice(event.event_type.as_bytes());
        // Numbers are finite and keys are texts: there is nothing that JSON has not.
        if serde_json::to_writer(&mut self.bytes, row).is_err() {
            self.bytes.truncate(begin);
            return;
        }
        self.rows.push(RowAt {
            kind,
            device_id_len: event.device_id.len(),
            type_len: event.event_type.len(),
            received_at: event.received_at,
            timestamp,
            end: self.bytes.len(),
        });
    }

    /// The rows, in order.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = Row<'_>> {
        let mut begin = 0;
        self.rows.iter().map(move |row| {
            let bytes = &self.bytes[begin..row.end];
            begin = row.end;
            let (device_id, rest) = bytes.split_at(row.device_id_len);
            let (event_type, json) = rest.split_at(row.type_len);
            Row {
                kind: row.kind,
                device_id: std::str::from_utf8(device_id).unwrap_or_default(),
                event_type: std::str::from_utf8(event_type).unwrap_or_default(),
                received_at: row.received_at,
                timestamp: row.timestamp,
                json,
            }
        })
    }

    /// Whether there is nothing to publish.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Bytes of all rows.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Begins anew.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.rows.clear();
    }
}

fn plain_time<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    let text = time.to_string();
    serializer.serialize_str(&text.trim_end_matches('Z').replacen('T', " ", 1))
}

fn payload<S: Serializer>(payload: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    if payload.len() > PAYLOAD_BYTES_MAX {
        return serializer.serialize_none();
    }
    match std::str::from_utf8(payload) {
        Ok(text) => serializer.serialize_str(text),
        Err(_) => serializer.collect_str(&format_args!("base64:{}", Base64Display::new(payload, &STANDARD))),
    }
}

#[cfg(test)]
mod tests {
    use catchment_types::Value;

    use super::*;

    fn event(payload: &[u8]) -> Event<'_> {
        Event {
            realm: "main",
            device_id: "été",
            event_type: "state",
            topic: "devices/été/state",
            received_at: Timestamp(1_645_270_401_250_000),
            content_type: "",
            tags: r#"{"area":"north"}"#,
            mark: 0,
            payload,
        }
    }

    #[test]
    fn rows_have_the_columns_of_the_tables() {
        let mut batch = ReadingsBatch::default();
        let reading = |value| Reading { timestamp: Timestamp(1_645_270_401_000_001), metric: "rpm", value };
        batch.reading(3, 7, &event(b""), &reading(Value::Number(900.5)));
        batch.reading(3, 8, &event(b""), &reading(Value::Bool(true)));
        batch.reject(3, 9, &event(b"\xff\x00"), RejectReason::Syntax, "no \"JSON\"");
        batch.reject(3, 10, &event(&[b'x'; PAYLOAD_BYTES_MAX + 1]), RejectReason::Empty, "");
        let rows: Vec<_> =
            batch.rows().map(|row| (row.kind, String::from_utf8(row.json.to_vec()).unwrap())).collect();
        let reading = |text: &str| (RowKind::Reading, text.to_owned());
        let reject = |text: &str| (RowKind::Reject, text.to_owned());
        assert_eq!(
            rows,
            [
                reading(
                    r#"{"device_id":"été","timestamp":"2022-02-19 11:33:21.000001","metric_name":"rpm","metric_value":900.5,"text_value":null,"metadata":"{\"area\":\"north\"}","log_partition":3,"log_offset":7}"#
                ),
                reading(
                    r#"{"device_id":"été","timestamp":"2022-02-19 11:33:21.000001","metric_name":"rpm","metric_value":1.0,"text_value":"true","metadata":"{\"area\":\"north\"}","log_partition":3,"log_offset":8}"#
                ),
                reject(
                    r#"{"device_id":"été","received_at":"2022-02-19 11:33:21.250000","type":"state","topic":"devices/été/state","reason":"syntax","detail":"no \"JSON\"","payload":"base64:/wA=","log_partition":3,"log_offset":9}"#
                ),
                reject(
                    r#"{"device_id":"été","received_at":"2022-02-19 11:33:21.250000","type":"state","topic":"devices/été/state","reason":"empty","detail":"","payload":null,"log_partition":3,"log_offset":10}"#
                ),
            ]
        );
        let first = batch.rows().next().unwrap();
        assert_eq!(
            (first.device_id, first.event_type, first.timestamp.0),
            ("été", "state", 1_645_270_401_000_001)
        );
        batch.clear();
        assert!(batch.is_empty() && batch.bytes() == 0);
    }
}
