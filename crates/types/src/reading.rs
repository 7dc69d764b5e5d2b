//! What decoding yields.

use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// One decoded value, borrowed from the event it came from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    /// A finite number.
    Number(f64),
    /// A boolean; stored as the number 1 or 0.
    Bool(bool),
    /// A text.
    Text(&'a str),
}

impl Value<'_> {
    /// The column `metric_value`: numbers as they are, booleans as 1 or 0, nothing for texts.
    #[must_use]
    pub fn number(&self) -> Option<f64> {
        match *self {
            Self::Number(number) => Some(number),
            Self::Bool(bool) => Some(f64::from(u8::from(bool))),
            Self::Text(_) => None,
        }
    }

    /// The column `text_value`: texts as they are, booleans as `true` or `false`, nothing for numbers.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        match *self {
            Self::Number(_) => None,
            Self::Bool(bool) => Some(if bool { "true" } else { "false" }),
            Self::Text(text) => Some(text),
        }
    }
}

/// One decoded value of one metric. The device is that of the event.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading<'a> {
    /// When it was measured.
    pub timestamp: Timestamp,
    /// Dotted name, for instance `engine.rpm`.
    pub metric: &'a str,
    /// What was measured.
    pub value: Value<'a>,
}

/// Why an event, or a part of it, did not decode. The names are what SQL and REST show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RejectReason {
    /// Not the syntax of its content type.
    Syntax,
    /// Nested deeper than the decoder allows.
    TooDeep,
    /// More values in one event than the decoder allows.
    TooManyValues,
    /// A metric name over its length limit.
    MetricName,
    /// The device has more distinct metrics than allowed.
    TooManyMetrics,
    /// A time that is not one, or is absurdly far from now.
    Timestamp,
    /// A value that cannot be kept: not finite, or a text over its length limit.
    Value,
    /// The payload has none of the values that the rule asks for.
    Empty,
}

impl RejectReason {
    /// The name shown in SQL and REST.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Syntax => "syntax",
            Self::TooDeep => "too_deep",
            Self::TooManyValues => "too_many_values",
            Self::MetricName => "metric_name",
            Self::TooManyMetrics => "too_many_metrics",
            Self::Timestamp => "timestamp",
            Self::Value => "value",
            Self::Empty => "empty",
        }
    }
}
