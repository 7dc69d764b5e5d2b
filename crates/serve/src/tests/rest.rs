use serde_json::json;

use super::*;

async fn filled() -> Server {
    let server = Server::start().await;
    for minute in 0..3 {
        for second in 0..4 {
            let time = TIME + (minute * 60 + second) * Timestamp::SECOND;
            let payload =
                json!({"timestamp": time / 1_000, "speed": minute * 10 + second, "on": true, "name": "x"});
            server.publish("truck-7", "state", time, payload.to_string().as_bytes());
        }
    }
    server
}

#[tokio::test]
async fn the_snapshot_is_at_once_there() {
    let server = filled().await;
    let snapshot = server.get("/api/v1/devices/truck-7/snapshot").await.json();
    assert_eq!(snapshot["device_id"], "truck-7");
    assert_eq!(
        snapshot["metrics"]["speed"],
        json!({"value": 23.0, "timestamp": "2022-02-19T11:35:24.250000Z", "received_at": "2022-02-19T11:35:24.250000Z"})
    );
    assert_eq!(
        (&snapshot["metrics"]["on"]["value"], &snapshot["metrics"]["name"]["value"]),
        (&json!(true), &json!("x"))
    );
    let none = server.get("/api/v1/devices/nobody/snapshot").await;
    assert_eq!((none.status, none.json()["error"].as_str()), (StatusCode::NOT_FOUND, Some("not_found")));
}

#[tokio::test]
async fn history_pages_without_gap_or_repetition() {
    let server = filled().await;
    for order in ["asc", "desc"] {
        let mut seen = Vec::new();
        let mut cursor = String::new();
        for _ in 0..100 {
            let path = format!("/api/v1/devices/truck-7/history?limit=5&order={order}{cursor}");
            let page = server.get(&path).await.json();
            seen.extend(page["readings"].as_array().unwrap().clone());
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        assert_eq!(seen.len(), 36, "{order}");
        let times: Vec<_> = seen.iter().map(|reading| reading["timestamp"].as_str().unwrap()).collect();
        assert!(if order == "asc" { times.is_sorted() } else { times.iter().rev().is_sorted() });
        let mut distinct: Vec<_> = seen.iter().map(Value::to_string).collect();
        distinct.sort();
        distinct.dedup();
        assert_eq!(distinct.len(), 36);
    }
}

#[tokio::test]
async fn many_readings_of_one_moment_page_too() {
    let server = Server::start().await;
    let metrics: serde_json::Map<String, Value> = (0..25).map(|n| (format!("m{n:02}"), json!(n))).collect();
    server.publish("d", "state", TIME, Value::Object(metrics).to_string().as_bytes());
    let (mut seen, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let page = server.get(&format!("/api/v1/devices/d/history?limit=10&order=asc{cursor}")).await.json();
        seen.extend(
            page["readings"]
                .as_array()
                .unwrap()
                .iter()
                .map(|reading| reading["metric"].as_str().unwrap().to_owned()),
        );
        pages += 1;
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!((pages, seen.len()), (3, 25));
    assert!(seen.is_sorted());
}

#[tokio::test]
async fn history_filters_by_metric_and_time() {
    let server = filled().await;
    let count = async |query: &str| {
        let answer = server.get(&format!("/api/v1/devices/truck-7/history?{query}")).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        answer.json()["readings"].as_array().unwrap().len()
    };
    assert_eq!(count("metric=speed").await, 12);
    assert_eq!(count("metric=s*d").await, 12);
    assert_eq!(count("metric=s_eed").await, 0);
    assert_eq!(count("metric=*&from=2022-02-19T11:35:00Z").await, 12);
    assert_eq!(count("metric=speed&to=2022-02-19T11:34:00Z").await, 4);
    assert_eq!(count("metric=speed&from=-1h").await, 0);
    assert_eq!(count("metric=speed&from=1645270401250&to=1645270402250").await, 1);
    assert_eq!(count("metric=x'%20OR%20'1'='1").await, 0);
    for bad in ["from=yesterday", "order=up", "limit=x", "cursor=x", "metrics=speed"] {
        let answer = server.get(&format!("/api/v1/devices/truck-7/history?{bad}")).await;
        assert_eq!(
            (answer.status, answer.json()["error"].as_str()),
            (StatusCode::BAD_REQUEST, Some("bad_request")),
            "{bad}"
        );
    }
    let text = server.get("/api/v1/devices/truck-7/history?metric=name&limit=1").await.json();
    assert_eq!(
        text["readings"][0],
        json!({"timestamp": "2022-02-19T11:35:24.250000Z", "metric": "name", "value": null, "text": "x"})
    );
}

#[tokio::test]
async fn aggregates_by_bucket() {
    let server = filled().await;
    let minutes = server.get("/api/v1/devices/truck-7/aggregates?metric=speed").await.json();
    assert_eq!(minutes["bucket_seconds"], 60);
    assert_eq!(
        minutes["aggregates"][1],
        json!({"timestamp": "2022-02-19T11:34:00.000000Z", "metric": "speed", "avg": 11.5, "min": 10.0, "max": 13.0, "count": 4})
    );
    let hours = "/api/v1/devices/truck-7/aggregates?metric=speed&bucket=1h&from=2022-02-19T11:59:00Z";
    let hours = server.get(hours).await.json();
    assert_eq!(
        hours["aggregates"],
        json!([{"timestamp": "2022-02-19T11:00:00.000000Z", "metric": "speed", "avg": 11.5, "min": 0.0, "max": 23.0, "count": 12}])
    );
    let page = server.get("/api/v1/devices/truck-7/aggregates?metric=speed&limit=2").await.json();
    let next = format!(
        "/api/v1/devices/truck-7/aggregates?metric=speed&limit=2&cursor={}",
        page["next_cursor"].as_str().unwrap()
    );
    let next = server.get(&next).await.json();
    assert_eq!(next["aggregates"][0]["timestamp"], "2022-02-19T11:35:00.000000Z");
    assert_eq!((next["aggregates"].as_array().unwrap().len(), &next["next_cursor"]), (1, &Value::Null));
    assert_eq!(
        server.get("/api/v1/devices/truck-7/aggregates?bucket=7s").await.status,
        StatusCode::BAD_REQUEST
    );
}

#[tokio::test]
async fn events_and_rejects() {
    let server = filled().await;
    server.publish("truck-7", "state", TIME + 600 * Timestamp::SECOND, b"{not json");
    server.publish("b", "state", TIME, b"\xff");
    let events = server.get("/api/v1/devices/truck-7/events?limit=1").await.json();
    assert_eq!(events["events"][0]["payload"], "{not json");
    assert_eq!(events["events"][0]["topic"], "devices/truck-7/state");
    assert!(events["next_cursor"].is_string());
    let rejects = server.get("/api/v1/rejects?device=truck-7").await.json();
    assert_eq!(rejects["rejects"][0]["reason"], "syntax");
    assert_eq!(rejects["rejects"].as_array().unwrap().len(), 1);
    let binary = server.get("/api/v1/rejects?device=b").await.json();
    assert_eq!(
        (&binary["rejects"][0]["payload"], &binary["rejects"][0]["payload_encoding"]),
        (&json!("/w=="), &json!("base64"))
    );
}

#[tokio::test]
async fn devices_are_those_registered_and_those_seen() {
    let server = filled().await;
    let made =
        server.admin("POST", "/api/v1/devices", json!({"device_id": "a", "labels": {"site": "north"}})).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text());
    let made = made.json();
    let token = made["token"].as_str().unwrap();
    assert_eq!(server.state.registry.verify(token).unwrap().device_id.as_deref(), Some("a"));
    assert_eq!(
        (&made["client"]["mqtt"]["username"], &made["client"]["mqtt"]["password"]),
        (&json!("a"), &json!(token))
    );
    assert!(made["client"]["http"]["command"].as_str().unwrap().starts_with("curl -X POST"));
    let again = server.admin("POST", "/api/v1/devices", json!({"device_id": "a"})).await;
    assert_eq!((again.status, again.json()["error"].as_str()), (StatusCode::CONFLICT, Some("exists")));

    let updated = server.admin("PUT", "/api/v1/devices/truck-7", json!({"labels": {"x": 1}})).await;
    assert_eq!(updated.status, StatusCode::CREATED);
    let updated = server.admin("PUT", "/api/v1/devices/truck-7", json!({"labels": null})).await;
    assert_eq!((updated.status, &updated.json()["labels"]), (StatusCode::OK, &Value::Null));
    server.publish("b", "state", TIME, b"{}");

    let first = server.get("/api/v1/devices?limit=2").await.json();
    let ids = |page: &Value| -> Vec<String> {
        page["devices"]
            .as_array()
            .unwrap()
            .iter()
            .map(|device| device["device_id"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(ids(&first), ["a", "b"]);
    let next = format!("/api/v1/devices?limit=2&cursor={}", first["next_cursor"].as_str().unwrap());
    let next = server.get(&next).await.json();
    assert_eq!((ids(&next), &next["next_cursor"]), (vec!["truck-7".to_owned()], &Value::Null));
    assert_eq!(
        (&next["devices"][0]["registered"], &next["devices"][0]["events"]),
        (&json!(true), &json!(12))
    );

    assert_eq!(server.admin("DELETE", "/api/v1/devices/a", Value::Null).await.status, StatusCode::NO_CONTENT);
    assert_eq!(server.get("/api/v1/devices/a").await.status, StatusCode::NOT_FOUND);
    assert!(server.state.registry.verify(token).is_none());
    assert_eq!(
        server.admin("POST", "/api/v1/devices", json!({"device_id": "a+b"})).await.status,
        StatusCode::BAD_REQUEST
    );
    assert_eq!(
        server.get("/api/v1/devices/truck-7").await.json()["last_seen"],
        "2022-02-19T11:35:24.250000Z"
    );
}

#[tokio::test]
async fn decoders_change_without_restart() {
    let server = Server::start().await;
    let path = "/api/v1/decoders/state";
    let test = async |rule: Option<&str>| {
        let mut request = Request::post(format!("{path}/test")).header("host", "localhost");
        if let Some(rule) = rule {
            request = request.header("x-decoder-rule", rule);
        }
        server.send(request.body(Body::from(r#"{"a":[1,2],"b":"x","ts":1645270401}"#)).unwrap()).await
    };
    let decoded = test(None).await.json();
    assert_eq!(decoded["event_time"], "2022-02-19T11:33:21.000000Z");
    assert_eq!(
        decoded["readings"][0],
        json!({"timestamp": "2022-02-19T11:33:21.000000Z", "metric": "a.0", "value": 1.0})
    );
    assert_eq!(decoded["readings"].as_array().unwrap().len(), 3);
    let tried = test(Some(r#"{"arrays":"length"}"#)).await.json();
    assert_eq!(tried["readings"][0]["metric"], "a.length");
    assert_eq!(test(Some(r#"{"arays":1}"#)).await.status, StatusCode::BAD_REQUEST);

    assert_eq!(server.admin("PUT", path, json!({"arrays": "ignore"})).await.status, StatusCode::CREATED);
    server.publish("d", "state", TIME, br#"{"a":[1,2],"b":"x"}"#);
    assert_eq!(server.rows("SELECT metric_name FROM snapshot").await, json!([{"metric_name": "b"}]));
    assert_eq!(server.get(path).await.json()["rule"]["arrays"], "ignore");
    assert_eq!(server.get("/api/v1/decoders").await.json().as_array().unwrap().len(), 1);
    let bad = server.admin("PUT", path, json!({"depth_max": 100_000})).await;
    assert_eq!(bad.status, StatusCode::BAD_REQUEST);
    assert!(bad.json()["message"].as_str().unwrap().contains("depth_max"));
    assert_eq!(server.admin("DELETE", path, Value::Null).await.status, StatusCode::NO_CONTENT);
    assert_eq!(server.admin("DELETE", path, Value::Null).await.status, StatusCode::NOT_FOUND);
    assert_eq!(server.get(path).await.json()["rule"]["arrays"], "index");
}

#[tokio::test]
async fn the_rest_of_the_pages() {
    let server = filled().await;
    let status = server.get("/api/v1/status").await.json();
    assert_eq!(
        (&status["devices"], &status["metrics"], &status["ready"]),
        (&json!(1), &json!(3), &json!(true))
    );
    assert_eq!(status["listeners"][0]["name"], "http");
    assert_eq!(server.get("/healthz").await.text(), "ok\n");
    assert_eq!(server.get("/readyz").await.text(), "ready\n");
    assert!(server.get("/metrics").await.text().ends_with("# EOF\n"));
    let page = server.get("/").await;
    assert!(page.headers[header::CONTENT_TYPE].to_str().unwrap().starts_with("text/html"));
    for foreign in ["http://", "https://", "//cdn"] {
        let text = page.text().replace("http://www.w3.org/2000/svg", "");
        assert!(!text.contains(foreign), "the page is self-contained");
    }
    let missing = server.get("/api/v1/nothing").await;
    assert_eq!(
        (missing.status, missing.json()["error"].as_str()),
        (StatusCode::NOT_FOUND, Some("not_found"))
    );
    let openapi = server.get("/api/v1/openapi.json").await.json();
    assert_eq!(openapi["openapi"], "3.1.0");
    for schema in ["Problem", "SqlAnswer", "Snapshot", "Device"] {
        assert!(openapi["components"]["schemas"][schema].is_object(), "{schema}");
    }
    let large = Request::post("/api/v1/sql")
        .header("host", "localhost")
        .body(Body::from(vec![b' '; 2 << 20]))
        .unwrap();
    let large = server.send(large).await;
    assert_eq!(
        (large.status, &large.json()["error"]),
        (StatusCode::PAYLOAD_TOO_LARGE, &json!("bad_request"))
    );
}
