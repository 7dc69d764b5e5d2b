//! Parameters of a Bind message as scalars: text and binary, typed by the client or by the query.

use arrow::datatypes::{DataType, IntervalMonthDayNano};
use bytes::{Buf, Bytes};
use datafusion::common::ScalarValue;
use pgwire::api::Type;

use super::encode::{EPOCH_2000_DAYS, EPOCH_2000_US, Format, array_element, canonical};
use super::error::{PgError, code};

/// Arrow's type for a parameter of a PostgreSQL type.
pub(super) fn arrow_type(ty: &Type) -> DataType {
    match *ty {
        Type::NUMERIC => DataType::Decimal128(38, 9),
        _ => canonical(ty, &DataType::Utf8).unwrap_or(DataType::Utf8View),
    }
}

/// Reads a parameter of PostgreSQL's type `ty`; `arrow` is what the query expects of it.
pub(super) fn decode(
    value: Option<&Bytes>,
    format: Format,
    ty: &Type,
    arrow: &DataType,
) -> Result<ScalarValue, PgError> {
    let Some(value) = value else {
        return ScalarValue::try_from(arrow).map_err(|error| PgError::new(code::INTERNAL, error.to_string()));
    };
    match format {
        Format::Text => {
            let text = std::str::from_utf8(value)
                .map_err(|_| PgError::new("22021", "invalid byte sequence for encoding \"UTF8\""))?;
            if text.contains('\0') {
                return Err(PgError::new("22021", "invalid byte sequence for encoding \"UTF8\": 0x00"));
            }
            from_text(text, ty, arrow)
        }
        Format::Binary => {
            let mut bytes = &value[..];
            let scalar = from_binary(&mut bytes, ty).ok_or_else(|| {
                PgError::new(
                    code::INVALID_BINARY,
                    format!("incorrect binary data format of a parameter of type {}", ty.name()),
                )
            })?;
            if bytes.is_empty() {
                Ok(scalar)
            } else {
                Err(PgError::new(
                    code::INVALID_BINARY,
                    format!("a parameter of type {} is too long", ty.name()),
                ))
            }
        }
    }
}

fn from_text(text: &str, ty: &Type, arrow: &DataType) -> Result<ScalarValue, PgError> {
    let invalid = || {
        PgError::new(code::INVALID_TEXT, format!("invalid input syntax for type {}: \"{text}\"", ty.name()))
    };
    if let Some(element) = array_element(ty) {
        let item = arrow_type(&element);
        let mut values = Vec::new();
        for part in array_parts(text).ok_or_else(invalid)? {
            values.push(match part {
                Some(part) => from_text(&part, &element, &item)?,
                None => ScalarValue::try_from(&item).map_err(|_| invalid())?,
            });
        }
        return Ok(list(&values, &item));
    }
    match *ty {
        Type::BYTEA => {
            let digits = text.strip_prefix("\\x").ok_or_else(invalid)?;
            let bytes = hex(digits).ok_or_else(invalid)?;
            Ok(ScalarValue::BinaryView(Some(bytes)))
        }
        Type::NUMERIC => numeric(text.trim()).ok_or_else(invalid),
        _ => match arrow {
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
                Ok(ScalarValue::Utf8View(Some(text.to_owned())))
            }
            other => ScalarValue::Utf8(Some(text.trim().to_owned())).cast_to(other).map_err(|_| invalid()),
        },
    }
}

/// The narrowest decimal with the text's own scale.
fn numeric(text: &str) -> Option<ScalarValue> {
    if text.eq_ignore_ascii_case("nan") {
        return Some(ScalarValue::Float64(Some(f64::NAN)));
    }
    if text.contains(['e', 'E']) {
        return text.parse().ok().map(|value| ScalarValue::Float64(Some(value)));
    }
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    if !part.bytes().all(|byte| byte.is_ascii_digit())
        || whole.trim_start_matches(['-', '+']).len() + part.len() > 38
    {
        return None;
    }
    let scale = i8::try_from(part.len()).ok()?;
    let value = format!("{whole}{part}").parse().ok()?;
    Some(ScalarValue::Decimal128(Some(value), 38, scale))
}

fn from_binary(bytes: &mut &[u8], ty: &Type) -> Option<ScalarValue> {
    if let Some(element) = array_element(ty) {
        return array_binary(bytes, &element);
    }
    Some(match *ty {
        Type::BOOL => ScalarValue::Boolean(Some(bytes.try_get_u8().ok()? != 0)),
        Type::INT2 => ScalarValue::Int16(Some(bytes.try_get_i16().ok()?)),
        Type::INT4 | Type::OID | Type::REGCLASS | Type::REGTYPE | Type::REGPROC | Type::REGNAMESPACE => {
            ScalarValue::Int32(Some(bytes.try_get_i32().ok()?))
        }
        Type::INT8 => ScalarValue::Int64(Some(bytes.try_get_i64().ok()?)),
        Type::FLOAT4 => ScalarValue::Float32(Some(bytes.try_get_f32().ok()?)),
        Type::FLOAT8 => ScalarValue::Float64(Some(bytes.try_get_f64().ok()?)),
        Type::NUMERIC => numeric_binary(bytes)?,
        Type::TIMESTAMPTZ => {
            let micros = bytes.try_get_i64().ok()?.saturating_add(EPOCH_2000_US);
            ScalarValue::TimestampMicrosecond(Some(micros), Some("UTC".into()))
        }
        Type::TIMESTAMP => ScalarValue::TimestampMicrosecond(
            Some(bytes.try_get_i64().ok()?.saturating_add(EPOCH_2000_US)),
            None,
        ),
        Type::DATE => ScalarValue::Date32(Some(bytes.try_get_i32().ok()?.saturating_add(EPOCH_2000_DAYS))),
        Type::TIME => ScalarValue::Time64Microsecond(Some(bytes.try_get_i64().ok()?)),
        Type::INTERVAL => {
            let micros = bytes.try_get_i64().ok()?;
            let (days, months) = (bytes.try_get_i32().ok()?, bytes.try_get_i32().ok()?);
            ScalarValue::IntervalMonthDayNano(Some(IntervalMonthDayNano::new(
                months,
                days,
                micros.checked_mul(1000)?,
            )))
        }
        Type::BYTEA => ScalarValue::BinaryView(Some(std::mem::take(bytes).to_vec())),
        Type::UUID => {
            let hex = std::mem::take(bytes);
            let hex: [u8; 16] = hex.try_into().ok()?;
            let hex: String = hex.iter().map(|byte| format!("{byte:02x}")).collect();
            let dashed =
                format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
            ScalarValue::Utf8View(Some(dashed))
        }
        Type::JSONB => {
            // One byte of version before the text.
            let version = bytes.try_get_u8().ok()?;
            (version == 1).then_some(())?;
            text(std::mem::take(bytes))?
        }
        Type::TEXT
        | Type::VARCHAR
        | Type::BPCHAR
        | Type::NAME
        | Type::CHAR
        | Type::UNKNOWN
        | Type::JSON
        | Type::XML => text(std::mem::take(bytes))?,
        _ => return None,
    })
}

fn text(bytes: &[u8]) -> Option<ScalarValue> {
    let text = std::str::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))?;
    Some(ScalarValue::Utf8View(Some(text.to_owned())))
}

fn list(values: &[ScalarValue], item: &DataType) -> ScalarValue {
    ScalarValue::List(ScalarValue::new_list_nullable(values, item))
}

/// One dimension; PostgreSQL's arrays of more have no use here.
fn array_binary(bytes: &mut &[u8], element: &Type) -> Option<ScalarValue> {
    let dimensions = bytes.try_get_i32().ok()?;
    let _has_null = bytes.try_get_i32().ok()?;
    let _element = bytes.try_get_u32().ok()?;
    let mut values = Vec::new();
    let item = arrow_type(element);
    match dimensions {
        0 => {}
        1 => {
            let count = bytes.try_get_i32().ok()?;
            let _lower_bound = bytes.try_get_i32().ok()?;
            for _ in 0..count {
                let Ok(length) = usize::try_from(bytes.try_get_i32().ok()?) else {
                    values.push(ScalarValue::try_from(&item).ok()?);
                    continue;
                };
                let (mut value, rest) = bytes.split_at_checked(length)?;
                *bytes = rest;
                // Decimals of one list need one scale.
                values.push(from_binary(&mut value, element)?.cast_to(&item).ok()?);
            }
        }
        _ => return None,
    }
    Some(list(&values, &item))
}

fn numeric_binary(bytes: &mut &[u8]) -> Option<ScalarValue> {
    let (count, weight) = (bytes.try_get_i16().ok()?, bytes.try_get_i16().ok()?);
    let (sign, scale) = (bytes.try_get_u16().ok()?, bytes.try_get_i16().ok()?);
    if sign == 0xc000 {
        return Some(ScalarValue::Float64(Some(f64::NAN)));
    }
    // Digits up to the scale: groups have four, and the last may have some beyond it.
    let mut value = 0_i128;
    let mut places = -4 * (i32::from(weight) + 1);
    for _ in 0..count {
        value = value.checked_mul(10_000)?.checked_add(i128::from(bytes.try_get_i16().ok()?))?;
        places += 4;
    }
    let scale = i32::from(scale);
    let shift = 10_i128.checked_pow(scale.abs_diff(places))?;
    value = if scale >= places { value.checked_mul(shift)? } else { value / shift };
    let value = if sign == 0x4000 { -value } else { value };
    Some(ScalarValue::Decimal128(
        Some(value),
        38,
        i8::try_from(scale).ok().filter(|scale| (0..=38).contains(scale))?,
    ))
}

/// The elements of `{a,"b c",NULL}`.
pub(super) fn array_parts(text: &str) -> Option<Vec<Option<String>>> {
    let inner = text.trim().strip_prefix('{')?.strip_suffix('}')?;
    let mut parts = Vec::new();
    if inner.trim().is_empty() {
        return Some(parts);
    }
    let mut chars = inner.chars().peekable();
    loop {
        let (mut part, mut quoted) = (String::new(), false);
        while let Some(c) = chars.next_if(|c| *c != ',') {
            match c {
                '"' => {
                    quoted = true;
                    loop {
                        match chars.next()? {
                            '"' => break,
                            '\\' => part.push(chars.next()?),
                            other => part.push(other),
                        }
                    }
                }
                '\\' => part.push(chars.next()?),
                '{' | '}' => return None,
                // Space around an element is not part of it.
                space if space.is_whitespace() && (quoted || part.is_empty()) => {}
                other => part.push(other),
            }
        }
        let bare = part.trim();
        parts.push(match (quoted, bare) {
            (false, "") => return None,
            (false, bare) if bare.eq_ignore_ascii_case("null") => None,
            (false, bare) => Some(bare.to_owned()),
            (true, _) => Some(part),
        });
        if chars.next().is_none() {
            return Some(parts);
        }
    }
}

fn hex(digits: &str) -> Option<Vec<u8>> {
    if !digits.len().is_multiple_of(2) || !digits.is_ascii() {
        return None;
    }
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: &str, ty: &Type) -> Result<ScalarValue, PgError> {
        decode(Some(&Bytes::copy_from_slice(value.as_bytes())), Format::Text, ty, &arrow_type(ty))
    }

    fn binary(value: &[u8], ty: &Type) -> Result<ScalarValue, PgError> {
        decode(Some(&Bytes::copy_from_slice(value)), Format::Binary, ty, &arrow_type(ty))
    }

    #[test]
    fn texts() {
        assert_eq!(text("42", &Type::INT2).unwrap(), ScalarValue::Int16(Some(42)));
        assert_eq!(text("-1.50", &Type::NUMERIC).unwrap(), ScalarValue::Decimal128(Some(-150), 38, 2));
        assert_eq!(text("\\x00Ff", &Type::BYTEA).unwrap(), ScalarValue::BinaryView(Some(vec![0, 255])));
        assert_eq!(text("t", &Type::BOOL).unwrap(), ScalarValue::Boolean(Some(true)));
        for value in [
            "2000-01-01 01:00:00+01:00",
            "2000-01-01T00:00:00Z",
            "2000-01-01 00:00:00+00",
            "2000-01-01 00:00:00",
        ] {
            let expected = ScalarValue::TimestampMicrosecond(Some(EPOCH_2000_US), Some("UTC".into()));
            assert_eq!(text(value, &Type::TIMESTAMPTZ).unwrap(), expected, "{value}");
        }
        assert_eq!(text("abc", &Type::INT4).unwrap_err().code(), "22P02");
        assert_eq!(text("a\0b", &Type::TEXT).unwrap_err().code(), "22021");
        let null = decode(None, Format::Text, &Type::INT4, &DataType::Int32).unwrap();
        assert_eq!(null, ScalarValue::Int32(None));
    }

    #[test]
    fn binaries() {
        assert_eq!(binary(&[0, 0, 0, 7], &Type::INT4).unwrap(), ScalarValue::Int32(Some(7)));
        assert_eq!(
            binary(&1_i64.to_be_bytes(), &Type::TIMESTAMPTZ).unwrap(),
            ScalarValue::TimestampMicrosecond(Some(EPOCH_2000_US + 1), Some("UTC".into()))
        );
        // -123.4567 and 0.5, as PostgreSQL writes them.
        assert_eq!(
            binary(&[0, 2, 0, 0, 0x40, 0, 0, 4, 0, 123, 0x11, 0xd7], &Type::NUMERIC).unwrap(),
            ScalarValue::Decimal128(Some(-1_234_567), 38, 4)
        );
        assert_eq!(
            binary(&[0, 1, 0xff, 0xff, 0, 0, 0, 1, 0x13, 0x88], &Type::NUMERIC).unwrap(),
            ScalarValue::Decimal128(Some(5), 38, 1)
        );
        assert_eq!(binary(&[0, 0, 0], &Type::INT4).unwrap_err().code(), "22P03");
        assert_eq!(binary(&[0, 0, 0, 0, 0], &Type::INT4).unwrap_err().code(), "22P03");
        assert!(
            binary(&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 23, 0x7f, 0xff, 0xff, 0xff], &Type::INT4_ARRAY)
                .is_err()
        );
    }

    #[test]
    fn arrays() {
        let expected = list(
            &[
                ScalarValue::Utf8View(Some("a b".into())),
                ScalarValue::Utf8View(None),
                ScalarValue::Utf8View(Some("null".into())),
            ],
            &DataType::Utf8View,
        );
        assert_eq!(text(r#"{"a b", NULL, "null"}"#, &Type::TEXT_ARRAY).unwrap(), expected);
        let numbers = [
            0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 23, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0, 1, 0xff, 0xff,
            0xff, 0xff,
        ];
        let expected = list(&[ScalarValue::Int32(Some(1)), ScalarValue::Int32(None)], &DataType::Int32);
        assert_eq!(binary(&numbers, &Type::INT4_ARRAY).unwrap(), expected);
        for bad in ["{a", "{,}", "{a,}", "{{1}}", "x"] {
            assert!(text(bad, &Type::TEXT_ARRAY).is_err(), "{bad}");
        }
    }
}
