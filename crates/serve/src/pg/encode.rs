//! Arrow columns as PostgreSQL values, text and binary.
//!
//! A column is first cast to the one Arrow type that stands for its PostgreSQL type ([`canonical`]), once a batch; then each
//! value is written straight into the output. What PostgreSQL has no type for (structs, maps, lists of lists) goes as text.

mod format;

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryViewArray, BooleanArray, Decimal128Array, Decimal256Array, Float32Array,
    Float64Array, Int16Array, Int32Array, Int64Array, ListArray, PrimitiveArray, StringViewArray,
};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Date32Type, Field, IntervalMonthDayNanoType, IntervalUnit, Schema,
    Time64MicrosecondType, TimeUnit, TimestampMicrosecondType,
};
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use bytes::{BufMut, BytesMut};
use pgwire::api::Type;
use pgwire::messages::data::{FieldDescription, RowDescription};

use super::error::{PgError, code};

pub(super) use format::{EPOCH_2000_DAYS, EPOCH_2000_US};

/// Name and type of a column, as clients are told.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) ty: Type,
}

/// Text or binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Text,
    Binary,
}

/// Formats of a row's columns, as a client asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Formats {
    All(Format),
    Each(Vec<Format>),
}

impl Formats {
    /// From the codes of a Bind message: none, one for all, or one for each.
    pub(super) fn from_codes(codes: &[i16]) -> Result<Self, PgError> {
        let format = |code: &i16| match code {
            0 => Ok(Format::Text),
            1 => Ok(Format::Binary),
            other => Err(PgError::new(code::PROTOCOL_VIOLATION, format!("invalid format code {other}"))),
        };
        match codes {
            [] => Ok(Self::All(Format::Text)),
            [all] => format(all).map(Self::All),
            each => each.iter().map(format).collect::<Result<_, _>>().map(Self::Each),
        }
    }

    pub(super) fn get(&self, index: usize) -> Format {
        match self {
            Self::All(format) => *format,
            Self::Each(formats) => formats.get(index).copied().unwrap_or(Format::Text),
        }
    }

    /// One for all, or as many as there are columns.
    pub(super) fn check(&self, columns: usize) -> Result<(), PgError> {
        match self {
            Self::Each(formats) if formats.len() != columns => Err(PgError::new(
                code::PROTOCOL_VIOLATION,
                format!("bind message has {} result formats but query has {columns} columns", formats.len()),
            )),
            _ => Ok(()),
        }
    }
}

/// The columns of an Arrow schema.
pub(super) fn columns(schema: &Schema) -> Vec<Column> {
    schema.fields().iter().map(|field| Column { name: field.name().clone(), ty: field_type(field) }).collect()
}

/// The PostgreSQL type that stands for an Arrow field.
pub(super) fn field_type(field: &Arc<Field>) -> Type {
    let plain = match field.data_type() {
        DataType::Dictionary(_, values) => &Arc::new(Field::new(field.name(), values.as_ref().clone(), true)),
        _ => field,
    };
    match plain.data_type() {
        DataType::Decimal32(..) | DataType::Decimal64(..) | DataType::Decimal256(..) => return Type::NUMERIC,
        DataType::Null | DataType::Struct(_) => return Type::TEXT,
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _)
            if matches!(item.data_type(), DataType::Struct(_)) =>
        {
            return Type::TEXT;
        }
        _ => {}
    }
    arrow_pg::datatypes::field_into_pg_type(plain).unwrap_or(Type::TEXT)
}

/// The RowDescription of columns.
pub(super) fn describe(columns: &[Column], formats: &Formats) -> RowDescription {
    let field = |(index, column): (usize, &Column)| {
        let format = i16::from(formats.get(index) == Format::Binary);
        FieldDescription::new(column.name.clone(), 0, 0, column.ty.oid(), type_size(&column.ty), -1, format)
    };
    RowDescription::new(columns.iter().enumerate().map(field).collect())
}

/// `pg_type.typlen`.
fn type_size(ty: &Type) -> i16 {
    match *ty {
        Type::BOOL | Type::CHAR => 1,
        Type::INT2 => 2,
        Type::INT4
        | Type::FLOAT4
        | Type::DATE
        | Type::OID
        | Type::REGCLASS
        | Type::REGTYPE
        | Type::REGPROC
        | Type::REGNAMESPACE => 4,
        Type::INT8 | Type::FLOAT8 | Type::TIMESTAMP | Type::TIMESTAMPTZ | Type::TIME => 8,
        Type::INTERVAL => 16,
        _ => -1,
    }
}

/// The one Arrow type from which values of a PostgreSQL type are written; nothing where values are formatted as text.
pub(super) fn canonical(ty: &Type, from: &DataType) -> Option<DataType> {
    let element = |ty: &Type| {
        let from = match from {
            DataType::List(item)
            | DataType::LargeList(item)
            | DataType::FixedSizeList(item, _)
            | DataType::ListView(item)
            | DataType::LargeListView(item) => item.data_type(),
            other => other,
        };
        canonical(ty, from).map(|item| DataType::List(Arc::new(Field::new_list_field(item, true))))
    };
    Some(match *ty {
        Type::BOOL => DataType::Boolean,
        Type::INT2 => DataType::Int16,
        Type::INT4 | Type::OID | Type::REGCLASS | Type::REGTYPE | Type::REGPROC | Type::REGNAMESPACE => {
            DataType::Int32
        }
        Type::INT8 => DataType::Int64,
        Type::FLOAT4 => DataType::Float32,
        Type::FLOAT8 => DataType::Float64,
        Type::NUMERIC => match from {
            DataType::Decimal32(_, scale)
            | DataType::Decimal64(_, scale)
            | DataType::Decimal128(_, scale) => DataType::Decimal128(38, *scale),
            DataType::Decimal256(precision, scale) => DataType::Decimal256(*precision, *scale),
            DataType::Float32 | DataType::Float64 => DataType::Float64,
            _ => DataType::Decimal128(38, 0),
        },
        Type::TIMESTAMPTZ => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        Type::TIMESTAMP => DataType::Timestamp(TimeUnit::Microsecond, None),
        Type::DATE => DataType::Date32,
        Type::TIME => DataType::Time64(TimeUnit::Microsecond),
        Type::INTERVAL => DataType::Interval(IntervalUnit::MonthDayNano),
        Type::BYTEA => DataType::BinaryView,
        Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::NAME | Type::CHAR | Type::UNKNOWN => match from {
            DataType::Utf8
            | DataType::LargeUtf8
            | DataType::Utf8View
            | DataType::Null
            | DataType::Dictionary(..) => DataType::Utf8View,
            _ => return None,
        },
        _ => return array_element(ty).and_then(|item| element(&item)),
    })
}

/// The type of an array's elements.
pub(super) fn array_element(ty: &Type) -> Option<Type> {
    Some(match *ty {
        Type::BOOL_ARRAY => Type::BOOL,
        Type::INT2_ARRAY => Type::INT2,
        Type::INT4_ARRAY => Type::INT4,
        Type::OID_ARRAY => Type::OID,
        Type::INT8_ARRAY => Type::INT8,
        Type::FLOAT4_ARRAY => Type::FLOAT4,
        Type::FLOAT8_ARRAY => Type::FLOAT8,
        Type::NUMERIC_ARRAY => Type::NUMERIC,
        Type::TIMESTAMPTZ_ARRAY => Type::TIMESTAMPTZ,
        Type::TIMESTAMP_ARRAY => Type::TIMESTAMP,
        Type::DATE_ARRAY => Type::DATE,
        Type::TIME_ARRAY => Type::TIME,
        Type::INTERVAL_ARRAY => Type::INTERVAL,
        Type::BYTEA_ARRAY => Type::BYTEA,
        Type::TEXT_ARRAY | Type::VARCHAR_ARRAY => Type::TEXT,
        _ => return None,
    })
}

/// A column's values, ready to be written.
pub(super) enum Values {
    Bool(BooleanArray),
    Int2(Int16Array),
    Int4(Int32Array),
    Int8(Int64Array),
    Float4(Float32Array),
    Float8(Float64Array),
    Decimal(Decimal128Array),
    Decimal256(Decimal256Array),
    Text(StringViewArray),
    Bytes(BinaryViewArray),
    /// Microseconds since 1970, and whether they are an instant.
    Timestamp(PrimitiveArray<TimestampMicrosecondType>, bool),
    Date(PrimitiveArray<Date32Type>),
    Time(PrimitiveArray<Time64MicrosecondType>),
    Interval(PrimitiveArray<IntervalMonthDayNanoType>),
    /// Offsets and nulls of the lists, their elements, the elements' type number.
    List(ListArray, Box<Values>, u32),
    /// Without a type of PostgreSQL's.
    Formatted(ArrayRef),
}

impl Values {
    /// Prepares a column for writing as `ty`.
    pub(super) fn new(array: &ArrayRef, ty: &Type) -> Result<Self, PgError> {
        let Some(target) = canonical(ty, array.data_type()) else {
            return Ok(Self::Formatted(Arc::clone(array)));
        };
        // A value that does not fit is an error, not a NULL.
        let options = CastOptions { safe: false, ..CastOptions::default() };
        let array = if *array.data_type() == target {
            Arc::clone(array)
        } else {
            cast_with_options(array, &target, &options).map_err(failed)?
        };
        Ok(match &target {
            DataType::Boolean => Self::Bool(array.as_boolean().clone()),
            DataType::Int16 => Self::Int2(primitive(&array)),
            DataType::Int32 => Self::Int4(primitive(&array)),
            DataType::Int64 => Self::Int8(primitive(&array)),
            DataType::Float32 => Self::Float4(primitive(&array)),
            DataType::Float64 => Self::Float8(primitive(&array)),
            DataType::Decimal128(..) => Self::Decimal(primitive(&array)),
            DataType::Decimal256(..) => Self::Decimal256(primitive(&array)),
            DataType::Utf8View => Self::Text(array.as_string_view().clone()),
            DataType::BinaryView => Self::Bytes(array.as_binary_view().clone()),
            DataType::Timestamp(_, zone) => Self::Timestamp(primitive(&array), zone.is_some()),
            DataType::Date32 => Self::Date(primitive(&array)),
            DataType::Time64(_) => Self::Time(primitive(&array)),
            DataType::Interval(_) => Self::Interval(primitive(&array)),
            DataType::List(_) => {
                let list = array.as_list::<i32>().clone();
                let element = array_element(ty).unwrap_or(Type::TEXT);
                let values = Self::new(list.values(), &element)?;
                Self::List(list, Box::new(values), element.oid())
            }
            _ => Self::Formatted(array),
        })
    }

    pub(super) fn is_null(&self, row: usize) -> bool {
        match self {
            Self::Bool(array) => array.is_null(row),
            Self::Int2(array) => array.is_null(row),
            Self::Int4(array) => array.is_null(row),
            Self::Int8(array) => array.is_null(row),
            Self::Float4(array) => array.is_null(row),
            Self::Float8(array) => array.is_null(row),
            Self::Decimal(array) => array.is_null(row),
            Self::Decimal256(array) => array.is_null(row),
            Self::Text(array) => array.is_null(row),
            Self::Bytes(array) => array.is_null(row),
            Self::Timestamp(array, _) => array.is_null(row),
            Self::Date(array) => array.is_null(row),
            Self::Time(array) => array.is_null(row),
            Self::Interval(array) => array.is_null(row),
            Self::List(array, ..) => array.is_null(row),
            Self::Formatted(array) => array.is_null(row),
        }
    }

    /// Appends length and value, or the mark of a NULL.
    pub(super) fn write(&self, row: usize, format: Format, out: &mut BytesMut) -> Result<(), PgError> {
        if self.is_null(row) {
            out.put_i32(-1);
            return Ok(());
        }
        let start = out.len();
        out.put_i32(0);
        match format {
            Format::Text => self.write_text(row, out)?,
            Format::Binary => self.write_binary(row, out)?,
        }
        let length = i32::try_from(out.len() - start - 4)
            .map_err(|_| PgError::new("54000", "a value is larger than 2 GiB"))?;
        out[start..start + 4].copy_from_slice(&length.to_be_bytes());
        Ok(())
    }

    /// Appends the text of a value that is not NULL.
    pub(super) fn write_text(&self, row: usize, out: &mut BytesMut) -> Result<(), PgError> {
        match self {
            Self::Bool(array) => out.put_u8(if array.value(row) { b't' } else { b'f' }),
            Self::Int2(array) => format::display(out, array.value(row)),
            Self::Int4(array) => format::display(out, array.value(row)),
            Self::Int8(array) => format::display(out, array.value(row)),
            Self::Float4(array) => format::float4(out, array.value(row)),
            Self::Float8(array) => format::float8(out, array.value(row)),
            Self::Decimal(array) => format::display(out, array.value_as_string(row)),
            Self::Decimal256(array) => format::display(out, array.value_as_string(row)),
            Self::Text(array) => out.put_slice(array.value(row).as_bytes()),
            Self::Bytes(array) => format::bytea(out, array.value(row)),
            Self::Timestamp(array, instant) => format::timestamp(out, array.value(row), *instant),
            Self::Date(array) => format::date(out, i64::from(array.value(row))),
            Self::Time(array) => format::time(out, array.value(row)),
            Self::Interval(array) => {
                let value = array.value(row);
                format::interval(out, value.months, value.days, value.nanoseconds / 1000);
            }
            Self::List(array, values, _) => list_text(array, values, row, out)?,
            Self::Formatted(array) => {
                let formatter =
                    ArrayFormatter::try_new(array.as_ref(), &FormatOptions::default()).map_err(failed)?;
                format::display(out, formatter.value(row));
            }
        }
        Ok(())
    }

    fn write_binary(&self, row: usize, out: &mut BytesMut) -> Result<(), PgError> {
        match self {
            Self::Bool(array) => out.put_u8(u8::from(array.value(row))),
            Self::Int2(array) => out.put_i16(array.value(row)),
            Self::Int4(array) => out.put_i32(array.value(row)),
            Self::Int8(array) => out.put_i64(array.value(row)),
            Self::Float4(array) => out.put_f32(array.value(row)),
            Self::Float8(array) => out.put_f64(array.value(row)),
            Self::Decimal(array) => format::numeric_binary(out, &array.value_as_string(row))?,
            Self::Decimal256(array) => format::numeric_binary(out, &array.value_as_string(row))?,
            Self::Bytes(array) => out.put_slice(array.value(row)),
            Self::Timestamp(array, _) => out.put_i64(array.value(row).saturating_sub(format::EPOCH_2000_US)),
            Self::Date(array) => out.put_i32(array.value(row).saturating_sub(format::EPOCH_2000_DAYS)),
            Self::Time(array) => out.put_i64(array.value(row)),
            Self::Interval(array) => {
                let value = array.value(row);
                out.put_i64(value.nanoseconds / 1000);
                out.put_i32(value.days);
                out.put_i32(value.months);
            }
            Self::List(array, values, element) => list_binary(array, values, *element, row, out)?,
            // Text is its own binary form.
            Self::Text(_) | Self::Formatted(_) => self.write_text(row, out)?,
        }
        Ok(())
    }
}

fn primitive<T: ArrowPrimitiveType>(array: &ArrayRef) -> PrimitiveArray<T> {
    array.as_primitive::<T>().clone()
}

fn failed(error: ArrowError) -> PgError {
    match error {
        ArrowError::CastError(message) => PgError::new(code::NUMERIC_OUT_OF_RANGE, message),
        other => PgError::new(code::INTERNAL, format!("a value cannot be sent: {other}")),
    }
}

fn list_range(array: &ListArray, row: usize) -> std::ops::Range<usize> {
    let offsets = array.value_offsets();
    let at = |index: usize| usize::try_from(offsets[index]).unwrap_or(0);
    at(row)..at(row + 1)
}

fn list_text(array: &ListArray, values: &Values, row: usize, out: &mut BytesMut) -> Result<(), PgError> {
    let mut element = BytesMut::new();
    out.put_u8(b'{');
    for (index, at) in list_range(array, row).enumerate() {
        if index > 0 {
            out.put_u8(b',');
        }
        if values.is_null(at) {
            out.put_slice(b"NULL");
            continue;
        }
        element.clear();
        values.write_text(at, &mut element)?;
        format::array_element(out, &element);
    }
    out.put_u8(b'}');
    Ok(())
}

fn list_binary(
    array: &ListArray,
    values: &Values,
    element: u32,
    row: usize,
    out: &mut BytesMut,
) -> Result<(), PgError> {
    let range = list_range(array, row);
    let has_null = range.clone().any(|at| values.is_null(at));
    out.put_i32(i32::from(!range.is_empty()));
    out.put_i32(i32::from(has_null));
    out.put_u32(element);
    if !range.is_empty() {
        out.put_i32(
            i32::try_from(range.len()).map_err(|_| PgError::new("54000", "a list has too many elements"))?,
        );
        out.put_i32(1);
    }
    for at in range {
        values.write(at, Format::Binary, out)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
