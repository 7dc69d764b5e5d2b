//! Single values as PostgreSQL writes them: ISO dates, `hex` bytes, shortest floats, base-10,000 numerics.

use std::fmt::{self, Write};

use bytes::{BufMut, BytesMut};

use crate::pg::error::{PgError, code};

/// 2000-01-01 in microseconds since 1970.
pub(in crate::pg) const EPOCH_2000_US: i64 = 946_684_800_000_000;
/// 2000-01-01 in days since 1970.
pub(in crate::pg) const EPOCH_2000_DAYS: i32 = 10_957;
const DAY_US: i64 = 86_400_000_000;

/// Appends what `Display` says.
pub(super) fn display(out: &mut BytesMut, value: impl fmt::Display) {
    // Writing into memory does not fail; a `Display` that does has said what it could.
    let _ = write!(out, "{value}");
}

/// Shortest text that reads back as the same value.
pub(super) fn float8(out: &mut BytesMut, value: f64) {
    float(out, value, 15, || value.to_string(), || format!("{value:e}"));
}

/// As [`float8`], for single precision.
pub(super) fn float4(out: &mut BytesMut, value: f32) {
    float(out, f64::from(value), 6, || value.to_string(), || format!("{value:e}"));
}

fn float(
    out: &mut BytesMut,
    value: f64,
    digits: i32,
    plain: impl Fn() -> String,
    exponential: impl Fn() -> String,
) {
    if value.is_nan() {
        return out.put_slice(b"NaN");
    }
    if value.is_infinite() {
        return out.put_slice(if value > 0.0 { b"Infinity".as_slice() } else { b"-Infinity" });
    }
    if value == 0.0 {
        return out.put_slice(plain().as_bytes());
    }
    let text = exponential();
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..digits).contains(&exponent) {
        out.put_slice(plain().as_bytes());
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        display(out, format_args!("{mantissa}e{sign}{:02}", exponent.abs()));
    }
}

/// `\x` and two hexadecimal digits a byte.
pub(super) fn bytea(out: &mut BytesMut, value: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.reserve(2 + 2 * value.len());
    out.put_slice(b"\\x");
    for byte in value {
        out.put_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
}

/// `2026-11-23 15:04:05.123456`, for an instant with `+00`; ` BC` for years before 1.
pub(super) fn timestamp(out: &mut BytesMut, micros: i64, instant: bool) {
    let before_christ = civil(out, micros.div_euclid(DAY_US));
    out.put_u8(b' ');
    time(out, micros.rem_euclid(DAY_US));
    if instant {
        out.put_slice(b"+00");
    }
    if before_christ {
        out.put_slice(b" BC");
    }
}

/// `2026-11-23` of days since 1970.
pub(super) fn date(out: &mut BytesMut, days: i64) {
    if civil(out, days) {
        out.put_slice(b" BC");
    }
}

/// The date without its era; whether it is before year 1. After Howard Hinnant's `civil_from_days`.
fn civil(out: &mut BytesMut, days: i64) -> bool {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let shown = if year > 0 { year } else { 1 - year };
    display(out, format_args!("{shown:04}-{month:02}-{day:02}"));
    year <= 0
}

/// `15:04:05.123456` of microseconds since midnight, without trailing zeros.
pub(super) fn time(out: &mut BytesMut, micros: i64) {
    let (seconds, micros) = (micros / 1_000_000, micros % 1_000_000);
    display(out, format_args!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60));
    fraction(out, micros);
}

fn fraction(out: &mut BytesMut, micros: i64) {
    if micros != 0 {
        let digits = format!("{micros:06}");
        out.put_u8(b'.');
        out.put_slice(digits.trim_end_matches('0').as_bytes());
    }
}

/// `1 year 2 mons 3 days 04:05:06.5`, in the style `postgres`.
pub(super) fn interval(out: &mut BytesMut, months: i32, days: i32, micros: i64) {
    let start = out.len();
    let mut part = |number: i32, unit: &str| {
        if number != 0 {
            let space = if out.len() > start { " " } else { "" };
            let plural = if number == 1 { "" } else { "s" };
            display(out, format_args!("{space}{number} {unit}{plural}"));
        }
    };
    part(months / 12, "year");
    part(months % 12, "mon");
    part(days, "day");
    if micros != 0 || out.len() == start {
        if out.len() > start {
            out.put_u8(b' ');
        }
        if micros < 0 {
            out.put_u8(b'-');
        }
        let micros = micros.unsigned_abs();
        let seconds = micros / 1_000_000;
        display(out, format_args!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60));
        fraction(out, i64::try_from(micros % 1_000_000).unwrap_or(0));
    }
}

/// An array's element, quoted where it must be.
pub(super) fn array_element(out: &mut BytesMut, text: &[u8]) {
    let special = |byte: &u8| matches!(byte, b'{' | b'}' | b',' | b'"' | b'\\') || byte.is_ascii_whitespace();
    if !text.is_empty() && !text.iter().any(special) && !text.eq_ignore_ascii_case(b"null") {
        return out.put_slice(text);
    }
    out.put_u8(b'"');
    for byte in text {
        if matches!(byte, b'"' | b'\\') {
            out.put_u8(b'\\');
        }
        out.put_u8(*byte);
    }
    out.put_u8(b'"');
}

/// A decimal number as PostgreSQL's groups of four digits.
pub(super) fn numeric_binary(out: &mut BytesMut, text: &str) -> Result<(), PgError> {
    let out_of_range = || PgError::new(code::NUMERIC_OUT_OF_RANGE, format!("number out of range: {text}"));
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |digits| (true, digits));
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    // Groups are aligned at the point: zeros before the whole part, zeros after the rest.
    let mut aligned = "0".repeat((4 - whole.len() % 4) % 4);
    aligned.push_str(whole);
    let groups_whole = aligned.len() / 4;
    aligned.push_str(part);
    aligned.push_str(&"0".repeat((4 - part.len() % 4) % 4));
    let mut groups = Vec::with_capacity(aligned.len() / 4);
    for group in aligned.as_bytes().chunks(4) {
        let group = std::str::from_utf8(group).ok().and_then(|group| group.parse::<i16>().ok());
        groups.push(group.ok_or_else(out_of_range)?);
    }
    let leading = groups.iter().take_while(|group| **group == 0).count();
    let weight = i16::try_from(groups_whole).map_err(|_| out_of_range())?
        - 1
        - i16::try_from(leading).map_err(|_| out_of_range())?;
    let trailing = groups[leading..].iter().rev().take_while(|group| **group == 0).count();
    let significant = &groups[leading..groups.len() - trailing];
    out.put_i16(i16::try_from(significant.len()).map_err(|_| out_of_range())?);
    out.put_i16(if significant.is_empty() { 0 } else { weight });
    out.put_u16(if negative && !significant.is_empty() { 0x4000 } else { 0 });
    out.put_i16(i16::try_from(part.len()).map_err(|_| out_of_range())?);
    for group in significant {
        out.put_i16(*group);
    }
    Ok(())
}
