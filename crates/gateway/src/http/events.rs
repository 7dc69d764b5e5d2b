//! From a body to events.

use std::fmt;

use catchment_types::{Event, EventBatch, EventBatchBuilder, Timestamp};
use serde::Serialize;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::HttpError;

/// Refused lines that a response lists; the rest is only counted.
const ERRORS_MAX: usize = 100;
pub(super) const JSON: &str = "application/json";
/// What `curl -d` says when it is not told.
const FORM: &str = "application/x-www-form-urlencoded";

/// Where the events of a request go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target<'a> {
    pub(super) realm: &'a str,
    pub(super) device_id: &'a str,
    pub(super) event_type: &'a str,
    /// Topic or path.
    pub(super) path: &'a str,
    pub(super) tags: &'a str,
    pub(super) mark: u128,
    /// Events that the log has already, the first of the body.
    pub(super) skip: u64,
    pub(super) received_at: Timestamp,
    pub(super) event_bytes_max: usize,
    pub(super) events_max: usize,
}

/// A line or element that is not taken.
#[derive(Debug, Serialize, PartialEq, Eq, utoipa::ToSchema)]
pub(crate) struct LineError {
    /// The line, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    /// The element of an array, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    /// What is wrong with it.
    reason: String,
}

/// Where in a body.
#[derive(Debug, Clone, Copy)]
pub(super) enum At {
    Line(usize),
    Index(usize),
}

/// The events of a body.
#[derive(Debug, Default)]
pub(super) struct Events {
    pub(super) batch: EventBatchBuilder,
    pub(super) payload_bytes: u64,
    pub(super) report: Report,
}

/// What became of the lines or elements of a body.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// Events that were taken, or were there already.
    pub(super) seen: u64,
    /// Of these, those that were there already.
    pub(super) replayed: u64,
    /// Lines and elements that were not taken.
    pub(super) refused: u64,
    /// The first of them.
    pub(super) errors: Vec<LineError>,
}

/// Whether a body is one event a line.
pub(super) fn is_lines(content_type: &str) -> bool {
    ["application/x-ndjson", "application/ndjson", "application/jsonl", "application/json-lines"]
        .contains(&content_type)
}

/// Makes events of a body by its content type.
pub(super) fn split(target: &Target<'_>, content_type: &str, body: &[u8]) -> Result<Events, HttpError> {
    if body.trim_ascii().is_empty() {
        return Err(HttpError::bad_request("empty", "the body is empty").hint("send an event as the body"));
    }
    let mut events = Events { batch: EventBatch::builder(), ..Events::default() };
    match content_type {
        _ if is_lines(content_type) => lines(target, body, &mut events)?,
        _ if content_type == JSON || content_type.ends_with("+json") => {
            json(target, content_type, body, &mut events)?;
        }
        // Nobody said what it is: JSON if it is that.
        "" | FORM if serde_json::from_slice::<&RawValue>(body).is_ok() => {
            json(target, JSON, body, &mut events)?;
        }
        _ => events.push(target, content_type, body)?,
    }
    Ok(events)
}

impl Events {
    fn push(&mut self, target: &Target<'_>, content_type: &str, payload: &[u8]) -> Result<(), HttpError> {
        if payload.len() > target.event_bytes_max {
            let message = format_args!(
                "event {} has {} bytes, at most {} are allowed",
                self.report.seen + 1,
                payload.len(),
                target.event_bytes_max
            );
            return Err(HttpError::too_large(message));
        }
        if self.report.seen >= target.events_max as u64 {
            let message = format_args!("the body has more than {} events", target.events_max);
            return Err(HttpError::too_large(message).hint("send fewer events at a time"));
        }
        self.report.seen += 1;
        if self.report.seen <= target.skip {
            self.report.replayed += 1;
            return Ok(());
        }
        let event = Event {
            realm: target.realm,
            device_id: target.device_id,
            event_type: target.event_type,
            topic: target.path,
            received_at: target.received_at,
            content_type,
            tags: target.tags,
            mark: target.mark,
            payload,
        };
        self.batch.push(&event).map_err(HttpError::too_large)?;
        self.payload_bytes += payload.len() as u64;
        Ok(())
    }
}

impl Report {
    /// Notes a line or element that is not taken.
    pub(super) fn refuse(&mut self, at: At, reason: impl fmt::Display) {
        self.refused += 1;
        if self.errors.len() < ERRORS_MAX {
            let (line, index) = match at {
                At::Line(line) => (Some(line), None),
                At::Index(index) => (None, Some(index)),
            };
            self.errors.push(LineError { line, index, reason: reason.to_string() });
        }
    }
}

fn lines(target: &Target<'_>, body: &[u8], events: &mut Events) -> Result<(), HttpError> {
    for (index, line) in body.split(|&byte| byte == b'\n').enumerate() {
        let line_number = At::Line(index + 1);
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        if line.len() > target.event_bytes_max {
            let max = target.event_bytes_max;
            events
                .report
                .refuse(line_number, format_args!("{} bytes, at most {max} are allowed", line.len()));
            continue;
        }
        match serde_json::from_slice::<&RawValue>(line) {
            Ok(_) => events.push(target, JSON, line)?,
            Err(error) => events.report.refuse(line_number, describe(&error)),
        }
    }
    Ok(())
}

fn json(target: &Target<'_>, content_type: &str, body: &[u8], events: &mut Events) -> Result<(), HttpError> {
    let not_json = |error: serde_json::Error| {
        HttpError::bad_request("json", format_args!("the body is not JSON: {}", describe(&error)))
            .hint("send valid JSON, or say what it is in the header Content-Type")
    };
    if body.trim_ascii_start().first() != Some(&b'[') {
        serde_json::from_slice::<&RawValue>(body).map_err(not_json)?;
        return events.push(target, content_type, body.trim_ascii());
    }
    let mut outcome = Ok(());
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let mut index = 0;
    let elements = Elements(|element: &RawValue| {
        let (at, bytes, max) = (At::Index(index), element.get().len(), target.event_bytes_max);
        index += 1;
        if bytes > max {
            events.report.refuse(at, format_args!("{bytes} bytes, at most {max} are allowed"));
            return true;
        }
        outcome = events.push(target, content_type, element.get().as_bytes());
        outcome.is_ok()
    });
    let parsed = deserializer.deserialize_seq(elements).and_then(|()| deserializer.end());
    outcome?;
    parsed.map_err(not_json)
}

/// Hands the elements of an array on one by one, as long as they are wanted.
struct Elements<F>(F);

impl<'de, F: FnMut(&'de RawValue) -> bool> Visitor<'de> for Elements<F> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut elements: A) -> Result<(), A::Error> {
        while let Some(element) = elements.next_element()? {
            if !(self.0)(element) {
                return Err(serde::de::Error::custom("no further elements are wanted"));
            }
        }
        Ok(())
    }
}

/// serde_json's message; for a single line without the line number, which would always be 1.
pub(super) fn describe(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.replace(" at line 1 column ", " at column ")
}
