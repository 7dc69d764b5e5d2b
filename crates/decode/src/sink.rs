//! Where readings and rejects go.

use std::fmt::{self, Write as _};

use catchment_types::{Reading, RejectReason};

/// Takes what a decoder finds.
pub trait ReadingSink {
    /// Takes one reading.
    ///
    /// # Errors
    /// Why it cannot be kept: it is counted as a reject, and decoding goes on.
    fn reading(&mut self, reading: Reading<'_>) -> Result<(), RejectReason>;

    /// Takes what did not decode: at most one call for each reason and event, after all readings. `detail` says where
    /// the first was, and how many there were.
    fn reject(&mut self, reason: RejectReason, detail: fmt::Arguments<'_>);
}

const REASONS: [RejectReason; 8] = [
    RejectReason::Syntax,
    RejectReason::TooDeep,
    RejectReason::TooManyValues,
    RejectReason::MetricName,
    RejectReason::TooManyMetrics,
    RejectReason::Timestamp,
    RejectReason::Value,
    RejectReason::Empty,
];

/// The rejects of one event, gathered by reason: how many, and the first one's detail.
#[derive(Debug, Default)]
pub(crate) struct Rejects {
    by_reason: [(u32, String); REASONS.len()],
    total: u32,
}

impl Rejects {
    pub(crate) fn add(&mut self, reason: RejectReason, detail: fmt::Arguments<'_>) {
        let (count, first) = &mut self.by_reason[reason as usize];
        if *count == 0 {
            first.clear();
            // Writing to a String cannot fail.
            let _ = first.write_fmt(detail);
        }
        *count += 1;
        self.total += 1;
    }

    pub(crate) fn total(&self) -> u32 {
        self.total
    }

    /// Hands everything to the sink and starts anew.
    pub(crate) fn drain_into(&mut self, sink: &mut impl ReadingSink) -> u32 {
        let total = std::mem::take(&mut self.total);
        if total > 0 {
            for (reason, (count, first)) in REASONS.into_iter().zip(&mut self.by_reason) {
                match std::mem::take(count) {
                    0 => {}
                    1 => sink.reject(reason, format_args!("{first}")),
                    count => sink.reject(reason, format_args!("{first} (and {} more)", count - 1)),
                }
            }
        }
        total
    }
}

/// A text from outside as it stands in a detail: quoted, cut at 64 characters.
pub(crate) struct Excerpt<'a>(pub(crate) &'a str);

impl fmt::Display for Excerpt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.char_indices().nth(64) {
            Some((end, _)) => write!(f, "{:?}…", &self.0[..end]),
            None => write!(f, "{:?}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_stand_at_their_number() {
        for (at, reason) in REASONS.into_iter().enumerate() {
            assert_eq!(reason as usize, at);
        }
    }
}
