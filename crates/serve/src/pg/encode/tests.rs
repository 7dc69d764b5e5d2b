//! Values of every type, as text and as binary.

use arrow::array::{
    BinaryArray, DictionaryArray, DurationSecondArray, FixedSizeBinaryArray, Int8Array,
    IntervalYearMonthArray, NullArray, StringArray, StructArray, TimestampNanosecondArray, UInt32Array,
    UInt64Array,
};
use arrow::datatypes::{Int8Type, IntervalMonthDayNano};

use super::*;

/// Type's name, text of every row, binary of every row; `None` for NULL.
type Written = (String, Vec<Option<String>>, Vec<Option<Vec<u8>>>);

fn written(array: ArrayRef) -> Written {
    let ty = field_type(&Arc::new(Field::new("c", array.data_type().clone(), true)));
    let values = Values::new(&array, &ty).unwrap();
    let row = |row, format| {
        let mut out = BytesMut::new();
        values.write(row, format, &mut out).unwrap();
        let length = i32::from_be_bytes(out[..4].try_into().unwrap());
        assert!(length == -1 && out.len() == 4 || usize::try_from(length).unwrap() == out.len() - 4);
        (length >= 0).then(|| out[4..].to_vec())
    };
    let text = |index| row(index, Format::Text).map(|bytes| String::from_utf8(bytes).unwrap());
    (
        ty.name().to_owned(),
        (0..array.len()).map(text).collect(),
        (0..array.len()).map(|index| row(index, Format::Binary)).collect(),
    )
}

#[track_caller]
fn check(array: impl Array + 'static, ty: &str, text: &[Option<&str>], first_binary: &[u8]) {
    let (name, texts, binaries) = written(Arc::new(array));
    assert_eq!(name, ty);
    assert_eq!(texts.iter().map(Option::as_deref).collect::<Vec<_>>(), text);
    assert_eq!(binaries[0].as_deref(), Some(first_binary));
    assert_eq!(
        binaries.iter().map(Option::is_some).collect::<Vec<_>>(),
        text.iter().map(Option::is_some).collect::<Vec<_>>()
    );
}

#[test]
fn numbers() {
    check(
        BooleanArray::from(vec![Some(true), Some(false), None]),
        "bool",
        &[Some("t"), Some("f"), None],
        &[1],
    );
    check(Int8Array::from(vec![Some(-1), None]), "int2", &[Some("-1"), None], &[0xff, 0xff]);
    check(
        UInt32Array::from(vec![u32::MAX]),
        "int8",
        &[Some("4294967295")],
        &[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
    );
    check(
        UInt64Array::from(vec![Some(u64::MAX), None]),
        "numeric",
        &[Some("18446744073709551615"), None],
        // Five groups: 1844 6744 0737 0955 1615.
        &[0, 5, 0, 4, 0, 0, 0, 0, 0x07, 0x34, 0x1a, 0x58, 0x02, 0xe1, 0x03, 0xbb, 0x06, 0x4f],
    );
    check(
        Float64Array::from(vec![
            Some(1.5),
            Some(1e300),
            Some(-1e-7),
            Some(f64::NAN),
            Some(f64::NEG_INFINITY),
            Some(0.1),
            Some(1e14),
            None,
        ]),
        "float8",
        &[
            Some("1.5"),
            Some("1e+300"),
            Some("-1e-07"),
            Some("NaN"),
            Some("-Infinity"),
            Some("0.1"),
            Some("100000000000000"),
            None,
        ],
        &1.5_f64.to_be_bytes(),
    );
    check(
        Float32Array::from(vec![0.1, 1e10]),
        "float4",
        &[Some("0.1"), Some("1e+10")],
        &0.1_f32.to_be_bytes(),
    );
}

#[test]
fn decimals() {
    let decimals =
        |values: Vec<i128>, scale| Decimal128Array::from(values).with_precision_and_scale(38, scale).unwrap();
    check(
        decimals(vec![-1_234_567, 0, 5], 4),
        "numeric",
        &[Some("-123.4567"), Some("0.0000"), Some("0.0005")],
        &[0, 2, 0, 0, 0x40, 0, 0, 4, 0, 123, 0x11, 0xd7],
    );
    check(decimals(vec![10_000], 0), "numeric", &[Some("10000")], &[0, 1, 0, 1, 0, 0, 0, 0, 0, 1]);
    check(decimals(vec![0], 2), "numeric", &[Some("0.00")], &[0, 0, 0, 0, 0, 0, 0, 2]);
    // 0.00001: one group, two places after the point.
    check(decimals(vec![1], 5), "numeric", &[Some("0.00001")], &[0, 1, 0xff, 0xfe, 0, 0, 0, 5, 0x03, 0xe8]);
}

#[test]
fn texts_and_bytes() {
    check(
        StringViewArray::from(vec![Some("é"), Some(""), None]),
        "text",
        &[Some("é"), Some(""), None],
        "é".as_bytes(),
    );
    let dictionary: DictionaryArray<Int8Type> = vec![Some("a"), None, Some("a")].into_iter().collect();
    check(dictionary, "text", &[Some("a"), None, Some("a")], b"a");
    check(
        BinaryArray::from(vec![Some(&b"\x00\xff"[..]), None]),
        "bytea",
        &[Some("\\x00ff"), None],
        &[0, 0xff],
    );
    check(
        FixedSizeBinaryArray::try_from_iter([[1_u8, 2]].into_iter()).unwrap(),
        "bytea",
        &[Some("\\x0102")],
        &[1, 2],
    );
    let (name, texts, _) = written(Arc::new(NullArray::new(1)));
    assert_eq!((name.as_str(), texts), ("text", vec![None]));
}

#[test]
fn times() {
    let instants = PrimitiveArray::<TimestampMicrosecondType>::from(vec![
        Some(1_763_910_245_123_400),
        Some(-1),
        Some(-62_135_596_800_000_001),
        None,
    ])
    .with_timezone("UTC");
    check(
        instants,
        "timestamptz",
        &[
            Some("2025-11-23 15:04:05.1234+00"),
            Some("1969-12-31 23:59:59.999999+00"),
            Some("0001-12-31 23:59:59.999999+00 BC"),
            None,
        ],
        &(1_763_910_245_123_400_i64 - EPOCH_2000_US_TEST).to_be_bytes(),
    );
    check(
        TimestampNanosecondArray::from(vec![1_000]),
        "timestamp",
        &[Some("1970-01-01 00:00:00.000001")],
        &(1 - EPOCH_2000_US_TEST).to_be_bytes(),
    );
    check(
        PrimitiveArray::<Date32Type>::from(vec![Some(10_957), Some(59), None]),
        "date",
        &[Some("2000-01-01"), Some("1970-03-01"), None],
        &[0, 0, 0, 0],
    );
    check(
        PrimitiveArray::<Time64MicrosecondType>::from(vec![45_296_000_001]),
        "time",
        &[Some("12:34:56.000001")],
        &45_296_000_001_i64.to_be_bytes(),
    );
}

const EPOCH_2000_US_TEST: i64 = 946_684_800_000_000;

#[test]
fn intervals() {
    let intervals = PrimitiveArray::<IntervalMonthDayNanoType>::from(vec![
        Some(IntervalMonthDayNano::new(14, 3, 3_600_500_000_000)),
        Some(IntervalMonthDayNano::new(0, 0, 0)),
        Some(IntervalMonthDayNano::new(-1, 1, -90_000_000_000)),
        None,
    ]);
    let mut binary = 3_600_500_000_i64.to_be_bytes().to_vec();
    binary.extend([0, 0, 0, 3, 0, 0, 0, 14]);
    check(
        intervals,
        "interval",
        &[Some("1 year 2 mons 3 days 01:00:00.5"), Some("00:00:00"), Some("-1 mons 1 day -00:01:30"), None],
        &binary,
    );
    check(
        IntervalYearMonthArray::from(vec![Some(12), None]),
        "interval",
        &[Some("1 year"), None],
        &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12],
    );
    let (name, texts, _) = written(Arc::new(DurationSecondArray::from(vec![Some(61), None])));
    assert_eq!((name.as_str(), texts), ("interval", vec![Some("00:01:01".to_owned()), None]));
}

#[test]
fn lists() {
    let list = ListArray::from_iter_primitive::<arrow::datatypes::Int32Type, _, _>(vec![
        Some(vec![Some(1), None]),
        Some(vec![]),
        None,
    ]);
    check(
        list,
        "_int4",
        &[Some("{1,NULL}"), Some("{}"), None],
        &[
            0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 23, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0, 1, 0xff, 0xff,
            0xff, 0xff,
        ],
    );
    let mut builder = arrow::array::ListBuilder::new(arrow::array::StringBuilder::new());
    builder.append_value([Some("a b"), Some(""), Some("q\"\\"), Some("null"), Some("x")]);
    let (name, texts, _) = written(Arc::new(builder.finish()));
    assert_eq!((name.as_str(), texts), ("_text", vec![Some(r#"{"a b","","q\"\\","null",x}"#.to_owned())]));
}

#[test]
fn what_has_no_type_is_text() {
    let field = Arc::new(Field::new("a", DataType::Utf8, true));
    let array = StructArray::from(vec![(field, Arc::new(StringArray::from(vec!["x"])) as ArrayRef)]);
    let (name, texts, _) = written(Arc::new(array));
    assert_eq!((name.as_str(), texts), ("text", vec![Some("{a: x}".to_owned())]));
}

#[test]
fn values_that_do_not_fit_are_errors() {
    let array: ArrayRef = Arc::new(Int64Array::from(vec![1 << 40]));
    assert!(Values::new(&array, &Type::INT4).is_err());
}
