//! HTTP ingest, and MQTT over WebSocket.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use catchment_gateway::{
    Admission, AdmitAll, Credentials, Denied, GatewayConfig, Principal, Role, RouteRule, UnroutedAction,
};
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
    let waits = [StatusCode::SERVICE_UNAVAILABLE, StatusCode::CONFLICT].contains(&status);
    assert_eq!(waits, response.headers().contains_key("retry-after"));
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
    assert_eq!(
        (status, &body["accepted"], &body["refused"]),
        (StatusCode::MULTI_STATUS, &json!(2), &json!(2))
    );
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
async fn large_elements_are_refused_alone() {
    let server = Server::configured(|config| config.http.event_bytes_max = 10).await;
    let (status, body) = post(&server, PATH, JSON, r#"[1, "0123456789", 3]"#).await;
    assert_eq!((status, &body["accepted"]), (StatusCode::MULTI_STATUS, &json!(2)), "{body}");
    assert_eq!(body["errors"][0]["index"], 1);
    assert_eq!(server.log.payloads(), ["1", "3"]);
    let (status, body) = post(&server, PATH, JSON, r#"["0123456789"]"#).await;
    assert_eq!((status, &body["error"]), (StatusCode::BAD_REQUEST, &json!("nothing_taken")));
}

#[tokio::test]
async fn zstd_and_deflate() {
    let server = Server::start().await;
    let with = |coding| [("content-type", "application/json"), ("content-encoding", coding)];
    let zstd = zstd::encode_all(&b"[1,2]"[..], 3).unwrap();
    assert_eq!(post(&server, PATH, &with("zstd"), zstd).await.1["accepted"], 2);
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    zlib.write_all(b"[3]").unwrap();
    assert_eq!(post(&server, PATH, &with("deflate"), zlib.finish().unwrap()).await.1["accepted"], 1);
    let mut bare = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
    bare.write_all(b"[4]").unwrap();
    assert_eq!(post(&server, PATH, &with("Deflate"), bare.finish().unwrap()).await.1["accepted"], 1);
    assert_eq!(server.log.payloads(), ["1", "2", "3", "4"]);
    for coding in ["zstd", "deflate", "gzip"] {
        let (status, body) = post(&server, PATH, &with(coding), "{}").await;
        assert_eq!(
            (status, &body["error"]),
            (StatusCode::BAD_REQUEST, &json!("content_encoding")),
            "{coding}"
        );
    }
    let (status, _) = post(&server, PATH, &with("br"), "{}").await;
    assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
}

#[tokio::test]
async fn a_request_with_a_key_counts_once() {
    let server = Server::start().await;
    let with = |key| [("content-type", "application/json"), ("idempotency-key", key)];
    let first = post(&server, PATH, &with("k1"), "[1,2,3]").await;
    assert_eq!(first, (StatusCode::OK, json!({ "accepted": 3 })));
    let again = post(&server, PATH, &with("\"k1\""), "[1,2,3]").await;
    assert_eq!(again, (StatusCode::OK, json!({ "accepted": 3, "replayed": 3 })));
    let (status, body) = post(&server, PATH, &with("k1"), "[1,2]").await;
    assert_eq!(
        (status, &body["error"]),
        (StatusCode::UNPROCESSABLE_ENTITY, &json!("idempotency_key_reused"))
    );
    // Elsewhere the key is another one.
    let elsewhere = "/api/v1/ingest/d1/other";
    assert_eq!(post(&server, elsewhere, &with("k1"), "[9]").await.1, json!({ "accepted": 1 }));
    assert_eq!(server.log.payloads().len(), 4);
    assert_eq!(post(&server, PATH, &with(""), "1").await.0, StatusCode::BAD_REQUEST);

    // What was not kept is free for another try.
    server.log.set(Mode::Full);
    assert_eq!(post(&server, PATH, &with("k2"), "[4]").await.0, StatusCode::SERVICE_UNAVAILABLE);
    server.log.set(Mode::Hold);
    let k2 = with("k2");
    let (held, (conflict, _)) = tokio::join!(post(&server, PATH, &k2, "[5]"), async {
        until("held", || server.log.held() == 1).await;
        let conflict = post(&server, PATH, &k2, "[5]").await;
        server.log.settle(None);
        conflict
    });
    assert_eq!((held.0, conflict), (StatusCode::OK, StatusCode::CONFLICT));

    // A new process knows from the log what there is, and adds what a crash left out.
    server.log.set(Mode::Keep);
    let reopened = Server::over(GatewayConfig::default(), Arc::new(AdmitAll), Arc::clone(&server.log)).await;
    reopened.gateway.recall().await.unwrap();
    assert_eq!(post(&reopened, PATH, &with("k1"), "[1,2,3]").await.1["replayed"], 3);
    assert_eq!(post(&reopened, PATH, &with("k2"), "[5]").await.1["replayed"], 1);
    assert_eq!(server.log.payloads().len(), 5);
}

#[tokio::test]
async fn topics_follow_routes_and_subscribers_see_them() {
    let city =
        RouteRule { event_type: Some("traffic".into()), ..RouteRule::of("city/{area}/traffic/{device_id}") };
    let start = |action| {
        let city = city.clone();
        Server::configured(move |config| {
            config.routes.push(city);
            config.unrouted.action = action;
        })
    };
    let server = start(UnroutedAction::Broker).await;
    let mut subscriber = server.client(false, "s").await;
    subscriber.send(&subscribe(false, 1, "#", 0)).await;
    subscriber.expect(&[0x90, 3, 0, 1, 0]).await;
    let topic = "/api/v1/topics/city/nord/traffic/t1";
    assert_eq!(post(&server, topic, JSON, r#"{"n":7}"#).await.0, StatusCode::OK);
    let kept = server.log.kept();
    assert_eq!((&*kept[0].device_id, &*kept[0].event_type), ("t1", "traffic"));
    assert_eq!((&*kept[0].topic, &*kept[0].tags), ("city/nord/traffic/t1", r#"{"area":"nord"}"#));
    subscriber.expect(&publish(false, "city/nord/traffic/t1", 0, 0, br#"{"n":7}"#)).await;
    assert_eq!(post(&server, "/api/v1/devices/d1/events/state", JSON, "8").await.0, StatusCode::OK);
    subscriber.expect(&publish(false, "devices/d1/state", 0, 0, b"8")).await;
    let brokered = post(&server, "/api/v1/topics/else/where", JSON, "9").await;
    assert_eq!(brokered, (StatusCode::ACCEPTED, json!({ "accepted": 0, "brokered": 1 })));
    subscriber.expect(&publish(false, "else/where", 0, 0, b"9")).await;
    assert_eq!(post(&server, "/api/v1/topics/a/%23", JSON, "9").await.0, StatusCode::BAD_REQUEST);

    let refusing = start(UnroutedAction::Refuse).await;
    let (status, body) = post(&refusing, "/api/v1/topics/else/where", JSON, "9").await;
    assert_eq!((status, &body["error"]), (StatusCode::NOT_FOUND, &json!("no_route")));
    let keeping = start(UnroutedAction::Keep).await;
    assert_eq!(post(&keeping, "/api/v1/topics/else/where", JSON, "9").await.0, StatusCode::OK);
    let kept = keeping.log.kept();
    assert_eq!((&*kept[0].device_id, &*kept[0].topic), ("unrouted", "else/where"));
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
