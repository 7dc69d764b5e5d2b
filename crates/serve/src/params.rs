//! What requests say in their query strings: times, widths of buckets, cursors, patterns.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use catchment_types::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::problem::Problem;

/// From this number on, an epoch time is in milliseconds: as seconds it would be the year 5138.
const EPOCH_MS_FROM: i64 = 100_000_000_000;

/// Reads a time: RFC 3339, seconds or milliseconds since the epoch, `now`, or before now like `-1h`, `-90s`, `-7d`.
///
/// # Errors
/// Names the parameter and what it takes.
pub(crate) fn time(name: &str, text: &str, now: Timestamp) -> Result<Timestamp, Problem> {
    let bad = || {
        Problem::bad_request(format!("{name}={text} is not a time"))
            .hint("use RFC 3339 (2026-01-31T12:00:00Z), epoch seconds or milliseconds, now, or before now: -15m, -1h, -7d")
    };
    let text = text.trim();
    if text == "now" {
        return Ok(now);
    }
    if let Ok(number) = text.parse::<i64>() {
        let unit =
            if number.unsigned_abs() >= EPOCH_MS_FROM.unsigned_abs() { 1_000 } else { Timestamp::SECOND };
        return number.checked_mul(unit).map(Timestamp).ok_or_else(bad);
    }
    if let Some(back) = text.strip_prefix('-').and_then(parse_duration) {
        let back = i64::try_from(back.as_micros()).map_err(|_| bad())?;
        return now.as_micros().checked_sub(back).map(Timestamp).ok_or_else(bad);
    }
    // '+' in a query string is a blank: 2026-01-31T12:00:00+01:00 arrives with one.
    let text = text.replace(' ', "+");
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return Ok(Timestamp(time.as_microsecond()));
    }
    let date = text.parse::<jiff::civil::Date>().map_err(|_| bad())?;
    let start = date.to_zoned(jiff::tz::TimeZone::UTC).map_err(|_| bad())?;
    Ok(Timestamp(start.timestamp().as_microsecond()))
}

/// Reads `90s`, `15m`, `1h`, `7d`, `250ms`.
#[must_use]
pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..digits].parse().ok()?;
    let unit_ms = match &text[digits..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "w" => 604_800_000,
        _ => return None,
    };
    number.checked_mul(unit_ms).map(Duration::from_millis)
}

/// Reads the width of buckets: whole minutes, from one minute to a year.
///
/// # Errors
/// Names what it takes.
pub(crate) fn bucket(text: &str) -> Result<Duration, Problem> {
    let width = parse_duration(text).filter(|width| {
        (60..=366 * 86_400).contains(&width.as_secs())
            && width.as_secs() % 60 == 0
            && width.subsec_millis() == 0
    });
    width.ok_or_else(|| {
        Problem::bad_request(format!("bucket={text} is not a width"))
            .hint("use whole minutes: 1m, 5m, 1h, 1d, up to 366d")
    })
}

/// A page's size: `default` if nothing is asked, at least 1, at most `max`.
#[must_use]
pub(crate) fn page_size(limit: Option<u32>, default: u32, max: u32) -> u32 {
    limit.unwrap_or(default).clamp(1, max)
}

/// Packs where the next page starts. Its content is not part of the interface.
#[must_use]
pub(crate) fn encode_cursor(place: &impl Serialize) -> String {
    // Plain data made by this crate: it always serializes.
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(place).unwrap_or_default())
}

/// Unpacks a cursor.
///
/// # Errors
/// It was not made by [`encode_cursor`].
pub(crate) fn decode_cursor<T: DeserializeOwned>(cursor: Option<&str>) -> Result<Option<T>, Problem> {
    let bad = || {
        Problem::bad_request("the cursor is not one of ours")
            .hint("pass next_cursor of the page before, unchanged")
    };
    cursor
        .map(|cursor| {
            let bytes = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| bad())?;
            serde_json::from_slice(&bytes).map_err(|_| bad())
        })
        .transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_in_every_form() {
        let now = Timestamp(1_700_000_000_000_000);
        for (text, micros) in [
            ("now", now.0),
            ("-1h", now.0 - 3_600_000_000),
            ("-90s", now.0 - 90_000_000),
            ("-250ms", now.0 - 250_000),
            ("1645270401", 1_645_270_401_000_000),
            ("1645270401250", 1_645_270_401_250_000),
            ("2022-02-19T11:33:21.25Z", 1_645_270_401_250_000),
            ("2022-02-19T12:33:21.25+01:00", 1_645_270_401_250_000),
            ("2022-02-19T12:33:21.25 01:00", 1_645_270_401_250_000),
            ("2022-02-19", 1_645_228_800_000_000),
        ] {
            assert_eq!(time("from", text, now), Ok(Timestamp(micros)), "{text}");
        }
        for bad in ["", "yesterday", "-1x", "-h", "9999999999999999999", "2022-13-01", "-99999999999999999d"]
        {
            let problem = time("from", bad, now).unwrap_err();
            assert!(problem.hint.is_some() && problem.message.contains("from="), "{bad}");
        }
    }

    #[test]
    fn buckets() {
        assert_eq!(bucket("5m").unwrap().as_secs(), 300);
        assert_eq!(bucket("1d").unwrap().as_secs(), 86_400);
        for bad in ["", "30s", "90s", "1", "0m", "400d", "-1m", "é"] {
            assert!(bucket(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn cursors_round_trip_and_foreign_ones_are_refused() {
        let cursor = encode_cursor(&("a", 1));
        assert_eq!(decode_cursor::<(String, i64)>(Some(&cursor)).unwrap(), Some(("a".to_owned(), 1)));
        assert_eq!(decode_cursor::<(String, i64)>(None).unwrap(), None);
        assert!(decode_cursor::<(String, i64)>(Some("e30")).is_err());
        assert!(decode_cursor::<(String, i64)>(Some("%%")).is_err());
    }
}
