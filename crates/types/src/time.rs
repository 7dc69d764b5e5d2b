//! One kind of time.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Microseconds since the Unix epoch, UTC. Displays as RFC 3339 with microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// One second, in the unit of a timestamp.
    pub const SECOND: i64 = 1_000_000;
    /// One minute, in the unit of a timestamp.
    pub const MINUTE: i64 = 60 * Self::SECOND;
    /// One day, in the unit of a timestamp.
    pub const DAY: i64 = 86_400 * Self::SECOND;

    /// The wall clock's time.
    #[must_use]
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }

    /// Microseconds since the Unix epoch.
    #[must_use]
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// The start of the bucket of `width` microseconds that this time falls in; buckets are aligned to the epoch.
    #[must_use]
    pub const fn floor(self, width: i64) -> Self {
        Self(self.0 - self.0.rem_euclid(width))
    }

    /// Days since the Unix epoch.
    #[must_use]
    pub const fn day(self) -> i64 {
        self.0.div_euclid(Self::DAY)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_microsecond(self.0) {
            Ok(time) => write!(f, "{time:.6}"),
            Err(_) => write!(f, "{} µs", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floor_and_display() {
        let time = Timestamp(1_645_270_401_250_000);
        assert_eq!(time.to_string(), "2022-02-19T11:33:21.250000Z");
        assert_eq!(time.floor(Timestamp::MINUTE).to_string(), "2022-02-19T11:33:00.000000Z");
        assert_eq!(Timestamp(-1).floor(Timestamp::MINUTE), Timestamp(-Timestamp::MINUTE));
        assert_eq!(Timestamp(-1).day(), -1);
    }
}
