//! HTTP ingest, and MQTT over WebSocket.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use catchment_gateway::{Admission, Credentials, Denied, GatewayConfig, Principal, Role};
use serde_json::{Value, json};
use support::*;
use tower::ServiceExt;

const PATH: &str = "/api/v1/devices/d1/events/state";

async fn post(
    server: &Server,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Body>,
) -> (StatusCode, Value) {
    let mut request = Request::post(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = server.gateway.router().oneshot(request.body(body.into()).unwrap()).await.unwrap();
    let status = response.status();
    assert_eq!(status == StatusCode::SERVICE_UNAVAILABLE, response.headers().contains_key("retry-after"));
    let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    if !status.is_success() {
        assert!(body["error"].is_string() && body["message"].is_string(), "{status}: {body}");
    }
    (status, body)
}

const JSON: &[(&str, &str)] = &[("content-type", "application/json; charset=utf-8")];
const NDJSON: &[(&str, &str)] = &[("content-type", "application/x-ndjson")];

#[tokio::test]
async fn one_many_and_lines() {
    let server = Server::start().await;
    let ok = |accepted: u64| (StatusCode::OK, json!({ "accepted": accepted }));
    assert_eq!(post(&server, PATH, JSON, r#" {"a":1} "#).await, ok(1));
    assert_eq!(post(&server, PATH, JSON, r#"[{"b":[1,2]}, 7, "x"]"#).await, ok(3));
    assert_eq!(post(&server, PATH, NDJSON, "{\"c\":1}\r\n\n{\"d\":2}").await, ok(2));
    assert_eq!(post(&server, PATH, &[("content-type", "text/csv")], "1,2").await, ok(1));
    // What curl -d sends.
    let form = [("content-type", "application/x-www-form-urlencoded")];
    assert_eq!(post(&server, PATH, &form, r#"{"e":1}"#).await, ok(1));
    assert_eq!(post(&server, PATH, &[], r#"{"f":1}"#).await, ok(1));
    let kept = server.log.kept();
    let wanted = [
        r#"{"a":1}"#,
        r#"{"b":[1,2]}"#,
        "7",
        "\"x\"",
        r#"{"c":1}"#,
        r#"{"d":2}"#,
        "1,2",
        r#"{"e":1}"#,
        r#"{"f":1}"#,
    ];
    assert_eq!(server.log.payloads(), wanted);
    assert!(
        kept.iter()
            .all(|event| event.device_id == "d1" && event.event_type == "state" && event.topic == PATH)
    );
    assert_eq!(kept.iter().filter(|event| event.content_type == "application/json").count(), 8);
    assert_eq!(post(&server, "/api/v1/devices/%C3%A9t%C3%A9/events/s", JSON, "1").await, ok(1));
    assert!(server.log.kept().iter().any(|event| event.device_id == "été"));
}

#[tokio::test]
async fn bad_lines_are_refused_alone_and_bad_json_as_a_whole() {
    let server = Server::start().await;
    let (status, body) = post(&server, PATH, NDJSON, "{\"a\":1}\nnot json\n{\"b\":NaN}\n{\"c\":3}\n").await;
    assert_eq!((status, &body["accepted"], &body["refused"]), (StatusCode::OK, &json!(2), &json!(2)));
    assert_eq!((&body["errors"][0]["line"], &body["errors"][1]["line"]), (&json!(2), &json!(3)));
    assert!(body["errors"][0]["reason"].as_str().unwrap().contains("column"), "{body}");
    for bad in ["[1, 2", "[1, 2] 3", "{\"a\":}", "{} {}", "\u{feff}{}", "[1,]"] {
        let (status, body) = post(&server, PATH, JSON, bad).await;
        assert_eq!((status, &body["error"]), (StatusCode::BAD_REQUEST, &json!("json")), "{bad}");
    }
    let (status, body) = post(&server, PATH, NDJSON, "x\ny\n").await;
    assert_eq!((status, body["errors"].as_array().unwrap().len()), (StatusCode::BAD_REQUEST, 2));
    assert_eq!(post(&server, PATH, JSON, " \n").await.0, StatusCode::BAD_REQUEST);
    assert_eq!(server.log.kept().len(), 2);
    // Depth does not matter here.
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(post(&server, PATH, JSON, deep).await.0, StatusCode::OK);
}

#[tokio::test]
async fn names_types_and_sizes() {
    let server = Server::configured(|config| {
        config.http.body_bytes_max = 1000;
        config.http.decompressed_bytes_max = 2000;
        config.http.event_bytes_max = 100;
        config.http.events_max = 5;
    })
    .await;
    for path in
        ["/api/v1/devices/a%2Fb/events/s", "/api/v1/devices/a/events/%00", "/api/v1/devices/a%FF/events/s"]
    {
        assert_eq!(post(&server, path, JSON, "1").await.0, StatusCode::BAD_REQUEST, "{path}");
    }
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let packed = [("content-type", "application/json"), ("content-encoding", "gzip")];
    assert_eq!(
        post(&server, PATH, &packed, gzip(b"[1,2,3]")).await,
        (StatusCode::OK, json!({"accepted": 3}))
    );
    let too_large = StatusCode::PAYLOAD_TOO_LARGE;
    assert_eq!(post(&server, PATH, &packed, gzip(&[b' '; 100_000])).await.0, too_large);
    assert_eq!(post(&server, PATH, JSON, vec![b' '; 1001]).await.0, too_large);
    let chunked =
        Body::from_stream(futures::stream::iter((0..20).map(|_| Ok::<_, std::io::Error>(vec![b'1'; 100]))));
    assert_eq!(post(&server, PATH, JSON, chunked).await.0, too_large);
    assert_eq!(post(&server, PATH, JSON, format!("\"{}\"", "x".repeat(100))).await.0, too_large);
    assert_eq!(post(&server, PATH, JSON, "[1,2,3,4,5,6]").await.0, too_large);
    assert_eq!(post(&server, PATH, &packed, "not gzip").await.0, StatusCode::BAD_REQUEST);
    assert_eq!(
        post(&server, PATH, &packed, gzip(b"[1,2,3]")[..15].to_vec()).await.0,
        StatusCode::BAD_REQUEST
    );
    let unsupported = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    assert_eq!(post(&server, PATH, &[("content-encoding", "br")], "x").await.0, unsupported);
    assert_eq!(
        post(&server, PATH, &[("content-type", "multipart/form-data; boundary=x")], "x").await.0,
        unsupported
    );
    assert_eq!(server.log.kept().len(), 3);
}

#[tokio::test]
async fn success_is_told_only_when_durable() {
    let server = Server::configured(|config| config.http.durable_s_max = 1).await;
    for (mode, error) in [
        (Mode::Full, "log_full"),
        (Mode::FullLater, "log_full"),
        (Mode::Failed, "log_failed"),
        (Mode::Hold, "log_slow"),
    ] {
        server.log.set(mode);
        let (status, body) = post(&server, PATH, JSON, "1").await;
        assert_eq!((status, &body["error"]), (StatusCode::SERVICE_UNAVAILABLE, &json!(error)));
    }
    let request = post(&server, PATH, JSON, "2");
    let settle = async {
        until("held", || server.log.held() == 2).await;
        server.log.settle(None);
    };
    let ((status, _), ()) = tokio::join!(request, settle);
    assert_eq!(status, StatusCode::OK);
}

struct OneToken;

#[async_trait]
impl Admission for OneToken {
    async fn authenticate(&self, credentials: Credentials<'_>) -> Result<Principal, Denied> {
        match (credentials.username, credentials.password) {
            (None | Some("d1"), Some(b"secret")) => {
                Ok(Principal::new("main", "d1", Role::Device("d1".into())))
            }
            (None, None) => Err(Denied::Unavailable("test".into())),
            _ => Err(Denied::BadCredentials),
        }
    }
}

#[tokio::test]
async fn credentials() {
    let server = Server::start_with(GatewayConfig::default(), Arc::new(OneToken), 2).await;
    let with = |value| [("authorization", value), ("content-type", "application/json")];
    assert_eq!(post(&server, PATH, &with("Bearer secret"), "1").await.0, StatusCode::OK);
    assert_eq!(post(&server, PATH, &with("Basic ZDE6c2VjcmV0"), "1").await.0, StatusCode::OK);
    for bad in ["Bearer wrong", "Basic !!", "Digest x", "Bearer"] {
        assert_eq!(post(&server, PATH, &with(bad), "1").await.0, StatusCode::UNAUTHORIZED, "{bad}");
    }
    let foreign = "/api/v1/devices/d2/events/state";
    assert_eq!(post(&server, foreign, &with("Bearer secret"), "1").await.0, StatusCode::FORBIDDEN);
    assert_eq!(post(&server, PATH, JSON, "1").await.0, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(server.log.kept().len(), 2);
}

#[tokio::test]
async fn mqtt_over_websocket() {
    use tungstenite::client::IntoClientRequest;
    let server = Server::start().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}/mqtt", listener.local_addr().unwrap());
    let router = server.gateway.router().into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, router).await });
    let client = move || {
        let stream = || {
            std::net::TcpStream::connect(url.strip_prefix("ws://").unwrap().trim_end_matches("/mqtt"))
                .unwrap()
        };
        let request = url.as_str().into_client_request().unwrap();
        let refused = tungstenite::client(request, stream()).unwrap_err().to_string();
        assert!(refused.contains("400"), "{refused}");
        let mut request = url.as_str().into_client_request().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", "mqtt".parse().unwrap());
        let (mut socket, response) = tungstenite::client(request, stream()).unwrap();
        assert_eq!(response.headers()["sec-websocket-protocol"], "mqtt");
        // Frames need not align with packets.
        let mut bytes = connect(true, "ws", true);
        bytes.extend(publish(true, "devices/d1/state", 1, 1, &[b'x'; 100_000]));
        bytes.extend(subscribe(true, 2, "#", 0));
        for frame in bytes.chunks(7001) {
            socket.send(tungstenite::Message::binary(frame.to_vec())).unwrap();
        }
        // CONNACK, then the acknowledgements in whatever order.
        let mut got = Vec::new();
        let answers: [&[u8]; 2] = [&[0x40, 2, 0, 1], &[0x90, 4, 0, 2, 0, 0]];
        while !answers.iter().all(|answer| got.windows(answer.len()).any(|bytes| bytes == *answer)) {
            got.extend_from_slice(&socket.read().unwrap().into_data());
        }
        assert_eq!(got[0], 0x20);
        socket.close(None).unwrap();
    };
    tokio::task::spawn_blocking(client).await.unwrap();
    assert_eq!(server.log.kept()[0].payload.len(), 100_000);
    until("disconnect", || server.metric("catchment_gateway_connections ") == 0.0).await;
}
