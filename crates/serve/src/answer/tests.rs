use arrow::array::{BinaryArray, Float64Array, StringArray, TimestampMicrosecondArray};

use super::*;

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true)))
        .unwrap()
}

fn encode(format: Format, batches: &[RecordBatch]) -> String {
    let mut encoder = Encoder::new(format, &batches[0].schema()).unwrap();
    let mut bytes = encoder.head().unwrap();
    for batch in batches {
        bytes.extend(encoder.batch(batch).unwrap());
    }
    bytes.extend(encoder.tail(Duration::from_millis(3), false).unwrap());
    String::from_utf8(bytes).unwrap()
}

#[test]
fn json_in_several_pieces_is_one_document() {
    let piece = |text: &str| batch(vec![("a", Arc::new(StringArray::from(vec![text, "line\nbreak"])))]);
    let json: serde_json::Value =
        serde_json::from_str(&encode(Format::Json, &[piece("x"), piece("y")])).unwrap();
    assert_eq!(json["rows"].as_array().unwrap().len(), 4);
    assert_eq!((&json["rows"][1]["a"], &json["rows"][2]["a"]), (&"line\nbreak".into(), &"y".into()));
    assert_eq!((&json["row_count"], &json["elapsed_ms"]), (&4.into(), &3.into()));
}

#[test]
fn numbers_that_json_lacks_are_null() {
    let numbers = batch(vec![("n", Arc::new(Float64Array::from(vec![f64::NAN, f64::INFINITY, 0.1])))]);
    assert_eq!(encode(Format::Ndjson, &[numbers]), "{\"n\":null}\n{\"n\":null}\n{\"n\":0.1}\n");
}

#[test]
fn times_without_zone_are_utc_and_bytes_are_text_where_they_can() {
    let rows = batch(vec![
        ("t", Arc::new(TimestampMicrosecondArray::from(vec![Some(1_645_270_401_250_000), None]))),
        ("b", Arc::new(BinaryArray::from(vec![Some("é".as_bytes()), Some(b"\xff")]))),
    ]);
    assert_eq!(encode(Format::Csv, &[rows]), "t,b\n2022-02-19T11:33:21.250Z,é\n,base64:/w==\n");
}

#[test]
fn a_failure_on_the_way_is_told() {
    let rows = batch(vec![("a", Arc::new(Float64Array::from(vec![1.0])))]);
    let mut encoder = Encoder::new(Format::Json, &rows.schema()).unwrap();
    let mut bytes = encoder.head().unwrap();
    bytes.extend(encoder.batch(&rows).unwrap());
    bytes.extend(encoder.failed(&Problem::bad_request("too late")).unwrap());
    let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!((&json["rows"][0]["a"], &json["error"]["message"]), (&1.0.into(), &"too late".into()));
    assert!(json.get("row_count").is_none() && encoder.tells_its_end());
    let csv = Encoder::new(Format::Csv, &rows.schema()).unwrap();
    assert!(csv.failed(&Problem::bad_request("x")).is_none() && !csv.tells_its_end());
}

#[test]
fn accept_headers() {
    for (accept, format) in [
        ("*/*", Some(Format::Json)),
        ("text/html, application/json;q=0.9", Some(Format::Json)),
        ("text/csv", Some(Format::Csv)),
        ("application/x-ndjson; charset=utf-8", Some(Format::Ndjson)),
        ("application/vnd.apache.arrow.stream", Some(Format::Arrow)),
        ("text/html", None),
    ] {
        assert_eq!(Format::from_accept(accept), format, "{accept}");
    }
}
