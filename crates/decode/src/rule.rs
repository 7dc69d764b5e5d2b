//! The rule that says how a type's payloads become readings, as the registry keeps it and people write it (JSON).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::Glob;

/// How payloads are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// One JSON document.
    #[default]
    Json,
    /// Not decoded: the event is kept as it is, without readings.
    None,
}

/// What becomes of arrays inside a document.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArrayRule {
    /// Each item is a metric: `a.0`, `a.1`, …
    #[default]
    Index,
    /// Left out.
    Ignore,
    /// The number of items is a metric: `a.length`.
    Length,
}

/// How a type's payloads become readings. Every field has a default, unknown fields are refused.
///
/// Nested objects flatten to dotted names (`engine.rpm`). A GeoJSON point under `K` becomes `K.longitude`, `K.latitude`
/// and, where given, `K.altitude`; a pair like `lat` and `lon` at the top becomes `latitude` and `longitude`. `null` is no
/// reading. A document that is one bare value is the metric `value`; one that is an array of objects is several sets of
/// readings, each with its own time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DecoderRule {
    /// How payloads are written.
    pub format: Format,
    /// Fields (dotted paths) that hold the time of measurement; the first that is there and not null counts.
    pub timestamp: Vec<String>,
    /// How far a time may lie ahead of the arrival, in seconds; beyond it, the time is a reject.
    pub timestamp_ahead_seconds_max: u32,
    /// What becomes of arrays.
    pub arrays: ArrayRule,
    /// Items kept of one array with [`ArrayRule::Index`]; the others are a reject.
    pub array_items_max: u32,
    /// If not empty, only metrics that match one of these patterns (`*` is any run of characters).
    pub include: Vec<Glob>,
    /// No metrics that match one of these patterns.
    pub exclude: Vec<Glob>,
    /// New names of metrics, by the name they decode to. Patterns see the old name.
    pub rename: BTreeMap<String, String>,
    /// Deepest nesting of objects and arrays; a deeper document is a reject.
    pub depth_max: u32,
    /// Most values of one event; the others are a reject.
    pub values_max: u32,
    /// Longest text value, in bytes.
    pub text_bytes_max: u32,
    /// Longest metric name, in bytes.
    pub metric_bytes_max: u32,
}

impl Default for DecoderRule {
    fn default() -> Self {
        Self {
            format: Format::Json,
            timestamp: ["timestamp", "ts", "dateObserved"].map(String::from).to_vec(),
            timestamp_ahead_seconds_max: 86_400,
            arrays: ArrayRule::Index,
            array_items_max: 64,
            include: Vec::new(),
            exclude: Vec::new(),
            rename: BTreeMap::new(),
            depth_max: 32,
            values_max: 10_000,
            text_bytes_max: 64 * 1024,
            metric_bytes_max: 256,
        }
    }
}

/// A rule that cannot work.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RuleError {
    /// A limit outside its bounds.
    #[error("{field} is {value}; it must be between {min} and {max}")]
    Limit {
        /// Which limit.
        field: &'static str,
        /// What was given.
        value: u32,
        /// The least allowed.
        min: u32,
        /// The most allowed.
        max: u32,
    },
    /// A path or name that is empty, too long or has control characters.
    #[error("{field} has the entry {entry:?}; an entry has 1 to {bytes_max} bytes and no control characters")]
    Entry {
        /// Which list.
        field: &'static str,
        /// The offender.
        entry: String,
        /// Longest entry, in bytes.
        bytes_max: u32,
    },
    /// A list that is too long.
    #[error("{field} has {entries} entries, at most {entries_max} are allowed")]
    TooMany {
        /// Which list.
        field: &'static str,
        /// How many were given.
        entries: usize,
        /// The most allowed.
        entries_max: usize,
    },
}

/// Most entries of each list of a rule.
const ENTRIES_MAX: usize = 1_000;
/// Deepest nesting that a rule may allow: the walk over a document recurses.
const DEPTH_LIMIT: u32 = 128;
/// Longest metric name that a rule may allow, in bytes.
const METRIC_BYTES_LIMIT: u32 = 4096;

impl DecoderRule {
    /// Checks limits and entries.
    ///
    /// # Errors
    /// The first thing that cannot work.
    pub fn check(&self) -> Result<(), RuleError> {
        let limit = |field, value, min, max| match (min..=max).contains(&value) {
            true => Ok(()),
            false => Err(RuleError::Limit { field, value, min, max }),
        };
        limit("timestamp_ahead_seconds_max", self.timestamp_ahead_seconds_max, 0, 10 * 365 * 86_400)?;
        limit("array_items_max", self.array_items_max, 0, 100_000)?;
        limit("depth_max", self.depth_max, 1, DEPTH_LIMIT)?;
        limit("values_max", self.values_max, 1, 1_000_000)?;
        limit("text_bytes_max", self.text_bytes_max, 0, 16 * 1024 * 1024)?;
        limit("metric_bytes_max", self.metric_bytes_max, 1, METRIC_BYTES_LIMIT)?;
        let globs = |list: &[Glob]| list.iter().map(|glob| glob.as_str().to_owned()).collect::<Vec<_>>();
        for (field, entries) in [
            ("timestamp", self.timestamp.clone()),
            ("include", globs(&self.include)),
            ("exclude", globs(&self.exclude)),
            ("rename", self.rename.iter().flat_map(|(from, to)| [from.clone(), to.clone()]).collect()),
        ] {
            if entries.len() > ENTRIES_MAX {
                return Err(RuleError::TooMany { field, entries: entries.len(), entries_max: ENTRIES_MAX });
            }
            let bytes_max = self.metric_bytes_max;
            let bad = |entry: &String| {
                entry.is_empty() || entry.len() > bytes_max as usize || entry.chars().any(char::is_control)
            };
            if let Some(entry) = entries.into_iter().find(bad) {
                return Err(RuleError::Entry { field, entry, bytes_max });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_and_unknown_fields() {
        let rule: DecoderRule = serde_json::from_str(r#"{"arrays":"length","include":["a.*"]}"#).unwrap();
        assert_eq!(
            rule,
            DecoderRule {
                arrays: ArrayRule::Length,
                include: vec![Glob::new("a.*")],
                ..DecoderRule::default()
            }
        );
        assert_eq!(rule.check(), Ok(()));
        let round: DecoderRule = serde_json::from_str(&serde_json::to_string(&rule).unwrap()).unwrap();
        assert_eq!(round, rule);
        let unknown = serde_json::from_str::<DecoderRule>(r#"{"array":"length"}"#).unwrap_err().to_string();
        assert!(unknown.contains("unknown field `array`"), "{unknown}");
    }

    #[test]
    fn limits_are_checked() {
        let rule = DecoderRule { depth_max: 1_000, ..DecoderRule::default() };
        assert_eq!(rule.check().unwrap_err().to_string(), "depth_max is 1000; it must be between 1 and 128");
        let rule = DecoderRule { timestamp: vec![String::new()], ..DecoderRule::default() };
        assert!(matches!(rule.check(), Err(RuleError::Entry { field: "timestamp", .. })));
        let rule = DecoderRule { include: vec![Glob::new("a"); 1_001], ..DecoderRule::default() };
        assert!(matches!(rule.check(), Err(RuleError::TooMany { entries: 1_001, .. })));
    }
}
