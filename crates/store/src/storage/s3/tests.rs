use super::*;

/// A place of its own in the S3 that `CATCHMENT_TEST_S3` names, with its bucket made; none when it names none.
pub(crate) fn place(prefix: &str) -> Option<S3Place> {
    let endpoint = std::env::var("CATCHMENT_TEST_S3").ok().filter(|address| !address.is_empty())?;
    let config: S3Config = serde_json::from_value(serde_json::json!({
        "endpoint": endpoint,
        "region": "us-east-1",
        "access_key_id": "test",
        "secret_access_key": "test-secret",
        "allow_http": true,
        "request_s_max": 5,
    }))
    .unwrap();
    let bucket = std::env::var("CATCHMENT_TEST_S3_BUCKET").unwrap_or_else(|_| "catchment-unit".to_owned());
    let place = S3Place { bucket, prefix: format!("{prefix}-{:016x}", rand::random::<u64>()), config };
    make_bucket(&place);
    Some(place)
}

/// Asks for the bucket; that there is one already is no error.
fn make_bucket(place: &S3Place) {
    use std::io::{Read, Write};
    let endpoint = place.config.endpoint.clone().unwrap();
    let host = endpoint.trim_start_matches("http://").to_owned();
    let mut stream = std::net::TcpStream::connect(&host).unwrap();
    // What takes any credentials takes a request that only names some.
    let authorization = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0";
    write!(
        stream,
        "PUT /{} HTTP/1.1\r\nHost: {host}\r\nAuthorization: {authorization}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        place.bucket
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(" 200 ") || answer.contains(" 409 "), "{answer}");
}

#[test]
fn s3_conforms() {
    let Some(place) = place("conformance") else {
        println!("not run: CATCHMENT_TEST_S3 names no S3");
        return;
    };
    let storage: Arc<dyn Storage> = Arc::new(S3Store::open(&place).unwrap());
    crate::storage::conformance::all(&storage);
    let probe = probe(&place).unwrap();
    assert!(probe.is_conditional && probe.latency < Duration::from_secs(5), "{probe:?}");
    // Nothing of the probe is left.
    assert!(!storage.list("").unwrap().iter().any(|name| name.contains("check")));
}

#[test]
fn what_s3_says_is_told_in_words() {
    let answer = |status: &str, body: &str| Error::Generic {
        store: "S3",
        source: format!(
            "Error performing PUT http://h/b in 12ms - Server returned non-2xx status code: {status}: {body}"
        )
        .into(),
    };
    let said = explain(answer(
        "403 Forbidden",
        "<Error><Code>SignatureDoesNotMatch</Code><Message>It differs.</Message><X>long</X></Error>",
    ))
    .to_string();
    assert!(
        said.starts_with("S3 answers SignatureDoesNotMatch: It differs.; look at access_key_id"),
        "{said}"
    );
    assert!(!said.contains("long"), "{said}");
    assert_eq!(
        explain(answer("500 Internal Server Error", "")).to_string(),
        "S3 answers 500 Internal Server Error"
    );
    let said = explain(answer("403 Forbidden", "")).to_string();
    assert!(said.starts_with("S3 answers 403 Forbidden; look at access_key_id"), "{said}");
}

#[test]
fn settings_are_refused_in_words_and_secrets_not_shown() {
    let config: S3Config =
        serde_json::from_str(r#"{"endpoint":"http://h:1","secret_access_key":"hush"}"#).unwrap();
    let place = S3Place::parse("s3://lake/x/", &config).unwrap();
    assert_eq!(place.to_string(), "s3://lake/x");
    assert!(!format!("{place:?}").contains("hush"));
    assert!(!serde_json::to_string(&config).unwrap().contains("hush"));
    let error = S3Store::open(&place).unwrap_err().to_string();
    assert!(error.starts_with("cannot use s3://lake/x: its endpoint is http://"), "{error}");
    let config = S3Config { secret_access_key_file: Some("/nowhere/at/all".into()), ..S3Config::default() };
    let error = S3Store::open(&S3Place { config, ..place }).unwrap_err().to_string();
    assert!(error.contains("secret_access_key_file /nowhere/at/all"), "{error}");
}
