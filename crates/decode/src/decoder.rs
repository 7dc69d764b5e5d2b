//! One rule at work.

use std::fmt;

use catchment_types::{Event, RejectReason, Timestamp};
use simd_json::ErrorType;

use crate::parse::Parser;
use crate::sink::{Excerpt, Rejects};
use crate::walk::Walk;
use crate::{DecoderRule, Format, ReadingSink, RuleError};

const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// Turns payloads into readings by one rule. Holds memory that is used again for each event, so each worker has its own.
pub struct Decoder {
    rule: DecoderRule,
    parser: Parser,
    /// The metric name while walking.
    name: String,
    rejects: Rejects,
}

/// What came of one event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodedEvent {
    /// The event's own time where it has one that can be used (the first, if it has several), else its arrival.
    pub event_time: Timestamp,
    /// Readings that the sink took.
    pub readings: u32,
    /// Values, times or whole documents that were rejected.
    pub rejects: u32,
}

impl Decoder {
    /// Makes a decoder.
    ///
    /// # Errors
    /// When the rule cannot work.
    pub fn new(rule: DecoderRule) -> Result<Self, RuleError> {
        rule.check()?;
        Ok(Self::from_checked(&rule))
    }

    pub(crate) fn from_checked(rule: &DecoderRule) -> Self {
        Self {
            parser: Parser::new(rule.depth_max),
            rule: rule.clone(),
            name: String::new(),
            rejects: Rejects::default(),
        }
    }

    /// The rule it works by.
    #[must_use]
    pub fn rule(&self) -> &DecoderRule {
        &self.rule
    }

    /// Decodes one event into the sink.
    pub fn decode(&mut self, event: &Event<'_>, sink: &mut impl ReadingSink) -> DecodedEvent {
        let mut decoded = DecodedEvent { event_time: event.received_at, readings: 0, rejects: 0 };
        if self.rule.format == Format::None {
            return decoded;
        }
        let json = event.payload.strip_prefix(BYTE_ORDER_MARK).unwrap_or(event.payload);
        if json.iter().all(u8::is_ascii_whitespace) {
            self.rejects.add(RejectReason::Empty, format_args!("the payload is empty"));
        } else {
            let Self { rule, parser, name, rejects } = self;
            let result = parser.with_tape(json, |tape, infinite| {
                for range in infinite {
                    let number = String::from_utf8_lossy(&json[range.clone()]);
                    rejects.add(
                        RejectReason::Value,
                        format_args!("the number {} is too large", Excerpt(&number)),
                    );
                }
                let mut walk = Walk::new(rule, event.received_at, name, rejects, sink);
                walk.document(&tape.0);
                (walk.event_time(), walk.readings())
            });
            match result {
                Ok((event_time, readings)) => {
                    decoded.event_time = event_time.unwrap_or(event.received_at);
                    decoded.readings = readings;
                    if readings == 0 && self.rejects.total() == 0 {
                        let detail = format_args!("the document has no value that the rule asks for");
                        self.rejects.add(RejectReason::Empty, detail);
                    }
                }
                Err(error) => self.reject_document(&error, event.payload.len() - json.len()),
            }
        }
        decoded.rejects = self.rejects.drain_into(sink);
        decoded
    }

    #[cold]
    fn reject_document(&mut self, error: &simd_json::Error, skipped: usize) {
        match error.error() {
            ErrorType::DepthLimitExceeded => self.rejects.add(
                RejectReason::TooDeep,
                format_args!("the document is nested deeper than {} levels", self.rule.depth_max),
            ),
            // Found before anything has a position.
            ErrorType::InvalidUtf8 => {
                self.rejects.add(RejectReason::Syntax, format_args!("the payload is not UTF-8"));
            }
            kind => self.rejects.add(
                RejectReason::Syntax,
                format_args!("the payload is not JSON: {kind:?} at byte {}", error.index() + skipped),
            ),
        }
    }
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder").field("rule", &self.rule).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
