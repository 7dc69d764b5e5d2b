//! Times as devices write them: numbers since the epoch in a unit told by their size, or RFC 3339.

use catchment_types::Timestamp;

/// 2000-01-01, in µs: nothing was measured by a device of this platform before.
pub(crate) const EARLIEST: Timestamp = Timestamp(946_684_800 * Timestamp::SECOND);

// Up to these sizes a number is seconds (year 5138), milliseconds (5138), microseconds (5138); above, nanoseconds.
const SECONDS_BELOW: u64 = 100_000_000_000;
const MILLIS_BELOW: u64 = SECONDS_BELOW * 1_000;
const MICROS_BELOW: u64 = MILLIS_BELOW * 1_000;

/// Seconds, milliseconds, microseconds or nanoseconds since the epoch, exactly.
pub(crate) fn from_integer(number: i64) -> Option<Timestamp> {
    let micros = match number.unsigned_abs() {
        size if size < SECONDS_BELOW => number.checked_mul(Timestamp::SECOND)?,
        size if size < MILLIS_BELOW => number.checked_mul(1_000)?,
        size if size < MICROS_BELOW => number,
        _ => number.div_euclid(1_000),
    };
    Some(Timestamp(micros))
}

/// As [`from_integer`], with a fraction.
pub(crate) fn from_float(number: f64) -> Option<Timestamp> {
    let size = number.abs();
    let micros = if size < SECONDS_BELOW as f64 {
        number * Timestamp::SECOND as f64
    } else if size < MILLIS_BELOW as f64 {
        number * 1e3
    } else if size < MICROS_BELOW as f64 {
        number
    } else {
        number / 1e3
    };
    // Beyond that a cast would saturate, and no such time is accepted anyway.
    (micros.abs() < 9e18).then(|| Timestamp(micros.round() as i64))
}

/// RFC 3339, also without an offset (UTC), with a space for the `T`, or as an interval `start/end` (its start counts);
/// or a number in digits.
pub(crate) fn from_text(text: &str) -> Option<Timestamp> {
    let text = text.split_once('/').map_or(text, |(start, _)| start).trim();
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return from_integer(text.parse().ok()?);
    }
    if text.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return from_float(text.parse().ok()?);
    }
    let with_offset = text.parse::<jiff::Timestamp>();
    let time = with_offset
        .or_else(|_| text.parse::<jiff::civil::DateTime>()?.to_zoned(jiff::tz::TimeZone::UTC).map(Into::into))
        .ok()?;
    Some(Timestamp(time.as_microsecond()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_by_size() {
        let time = Timestamp(1_645_270_401_000_000);
        for number in [1_645_270_401, 1_645_270_401_000, 1_645_270_401_000_000, 1_645_270_401_000_000_000] {
            assert_eq!(from_integer(number), Some(time));
            assert_eq!(from_float(number as f64), Some(time));
        }
        assert_eq!(from_float(1_645_270_401.25), Some(Timestamp(1_645_270_401_250_000)));
        assert_eq!(from_float(1e300), None);
        assert_eq!(from_integer(i64::MIN).map(|t| t < EARLIEST), Some(true));
    }

    #[test]
    fn texts() {
        let time = Some(Timestamp(1_645_270_401_250_000));
        for text in [
            "2022-02-19T11:33:21.25Z",
            "2022-02-19T12:33:21.25+01:00",
            "2022-02-19T11:33:21.25",
            "2022-02-19 11:33:21.25",
            " 2022-02-19t11:33:21.250000z ",
            "2022-02-19T11:33:21.25Z/2022-02-19T12:00:00Z",
            "1645270401.25",
            "1645270401250",
        ] {
            assert_eq!(from_text(text), time, "{text}");
        }
        for text in ["", "now", "2022-13-01T00:00:00Z", "1.2.3", "99999999999999999999999", "T", "/"] {
            assert_eq!(from_text(text), None, "{text}");
        }
    }
}
