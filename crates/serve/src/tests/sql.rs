use std::io::Cursor;
use std::time::Duration;

use arrow::ipc::reader::StreamReader;
use futures::StreamExt as _;
use serde_json::json;

use crate::sql::{QueryOptions, SqlErrorKind, check_read_only, parse};

use super::*;

async fn filled() -> Server {
    let server = Server::start().await;
    server.publish("truck-7", "state", TIME, br#"{"speed":80.5,"engine":{"on":true},"name":"x,\"y\""}"#);
    server.publish("truck-7", "state", TIME + 1_000_000, br#"{"speed":81.5}"#);
    server.publish("été", "blob", TIME, b"\xff\x00");
    server
}

#[tokio::test]
async fn only_questions_pass() {
    for sql in [
        "SELECT 1",
        "select 1;",
        "WITH a AS (SELECT 1 AS x) SELECT * FROM a",
        "VALUES (1), (2)",
        "EXPLAIN SELECT 1",
        "EXPLAIN ANALYZE SELECT 1",
        "SHOW TABLES",
        "SHOW ALL",
        "SHOW COLUMNS FROM snapshot",
        "DESCRIBE snapshot",
        "SET TIME ZONE 'UTC'",
        "SELECT 1 UNION ALL (SELECT 2)",
        "SELECT 'DROP TABLE x; DELETE FROM y' -- INSERT",
    ] {
        let statement = parse(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
        assert_eq!(check_read_only(&statement), Ok(()), "{sql}");
    }
    let server = filled().await;
    for sql in [
        "INSERT INTO snapshot VALUES (1)",
        "UPDATE snapshot SET device_id = 'x'",
        "DELETE FROM snapshot",
        "DROP TABLE snapshot",
        "DROP VIEW aggregated_metrics",
        "DROP SCHEMA main",
        "TRUNCATE snapshot",
        "ALTER TABLE snapshot ADD COLUMN x INT",
        "CREATE TABLE x (a INT)",
        "CREATE TABLE x AS SELECT 1",
        "CREATE VIEW x AS SELECT 1",
        "CREATE SCHEMA x",
        "CREATE DATABASE x",
        "CREATE FUNCTION f() RETURNS INT RETURN 1",
        "CREATE EXTERNAL TABLE x STORED AS CSV LOCATION '/etc/passwd'",
        "COPY snapshot TO '/tmp/x.csv'",
        "COPY (SELECT 1) TO '/tmp/x.parquet' STORED AS PARQUET",
        "COPY snapshot FROM '/etc/passwd'",
        "EXPLAIN DELETE FROM snapshot",
        "EXPLAIN ANALYZE INSERT INTO snapshot VALUES (1)",
        "EXPLAIN COPY snapshot TO '/tmp/x.csv'",
        "WITH a AS (INSERT INTO snapshot VALUES (1) RETURNING 1) SELECT * FROM a",
        "SELECT 1 INTO x",
        "SELECT * FROM (SELECT 1 INTO y) z",
        "SELECT * FROM snapshot FOR UPDATE",
        "SET datafusion.runtime.memory_limit = '100G'",
        "SET datafusion.execution.batch_size = 1",
        "RESET datafusion.runtime.memory_limit",
        "BEGIN",
        "COMMIT",
        "PREPARE p AS SELECT 1",
        "EXECUTE p",
        "DEALLOCATE p",
        "GRANT ALL ON snapshot TO x",
        "VACUUM",
        "CALL f()",
        "USE main",
        "KILL 1",
        "SELECT 1; SELECT 2",
        "SELECT 1; DROP TABLE snapshot",
    ] {
        let answer = server.sql(sql, "*/*").await;
        let refused = matches!(answer.json()["error"].as_str(), Some("not_allowed" | "syntax"));
        assert!(answer.status.is_client_error() && refused, "{sql}: {}", answer.text());
    }
    // What would be left if the first fence fell.
    let session = server.state.sql.session();
    for sql in [
        "CREATE EXTERNAL TABLE x STORED AS CSV LOCATION '/etc/passwd'",
        "COPY (SELECT 1) TO '/tmp/x.csv' STORED AS CSV",
    ] {
        assert!(session.sql(sql).await.is_err(), "{sql}");
    }
}

#[tokio::test]
async fn files_are_out_of_reach() {
    let server = filled().await;
    for sql in [
        "SELECT * FROM 'x.parquet'",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM \"/etc/passwd\"",
        "SELECT * FROM \"file:///etc/passwd\"",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_parquet('x.parquet')",
        "SELECT * FROM parquet_metadata('x.parquet')",
        "SELECT pg_read_file('/etc/passwd')",
        "SELECT * FROM other.main.snapshot",
    ] {
        let answer = server.sql(sql, "*/*").await;
        assert!(answer.status.is_client_error(), "{sql}: {} {}", answer.status, answer.text());
        assert!(!answer.text().contains("root:"));
    }
}

#[tokio::test]
async fn errors_say_where_and_what_to_do() {
    let server = filled().await;
    for (sql, status, error, position, hint) in [
        (
            "SELECT devic_id FROM snapshot",
            400,
            "unknown_column",
            json!({"line": 1, "column": 8}),
            "did you mean device_id?",
        ),
        (
            "SELECT s.devic_id\nFROM snapshot s",
            400,
            "unknown_column",
            json!({"line": 1, "column": 8}),
            "did you mean device_id?",
        ),
        (
            "SELECT *\nFROM snapshots",
            400,
            "unknown_table",
            json!({"line": 2, "column": 6}),
            "did you mean snapshot?",
        ),
        (
            "SELECT * FROM zzz",
            400,
            "unknown_table",
            json!({"line": 1, "column": 15}),
            "tables: aggregated_metrics",
        ),
        (
            "SELECT avgg(metric_value) FROM snapshot",
            400,
            "unknown_function",
            Value::Null,
            "did you mean 'avg'?",
        ),
        ("SELEC 1", 400, "syntax", json!({"line": 1, "column": 1}), ""),
        ("SELECT * FORM snapshot", 400, "syntax", json!({"line": 1, "column": 15}), ""),
        ("", 400, "syntax", Value::Null, "SELECT"),
        ("SELECT device_id, count(*) FROM snapshot", 400, "invalid", Value::Null, ""),
        ("SELECT 1/0", 400, "execution", Value::Null, ""),
        ("DROP TABLE snapshot", 403, "not_allowed", Value::Null, "only SELECT"),
    ] {
        let answer = server.sql(sql, "*/*").await;
        let problem = answer.json();
        assert_eq!(answer.status.as_u16(), status, "{sql}: {problem}");
        assert_eq!(problem["error"], error, "{sql}: {problem}");
        assert!(position.is_null() || problem["position"] == position, "{sql}: {problem}");
        assert!(problem["hint"].as_str().unwrap_or_default().contains(hint), "{sql}: {problem}");
        assert!(!problem["message"].as_str().unwrap().is_empty());
        assert!(!answer.text().contains(".rs"), "no source places for clients: {problem}");
    }
}

#[tokio::test]
async fn tables_join_memory_and_files() {
    let server = filled().await;
    let sum = "SELECT count(*) AS n, sum(metric_value) AS s FROM raw_metrics WHERE metric_name = 'speed'";
    assert_eq!(server.rows(sum).await, json!([{"n": 2, "s": 162.0}]));
    server.history.flush().await.unwrap();
    assert_eq!(server.rows(sum).await, json!([{"n": 2, "s": 162.0}]));
    server.publish("truck-7", "state", TIME + 2_000_000, br#"{"speed":1}"#);
    assert_eq!(server.rows(sum).await, json!([{"n": 3, "s": 163.0}]));
    let latest =
        "SELECT metric_name, metric_value, text_value FROM snapshot WHERE device_id = 'truck-7' ORDER BY 1";
    assert_eq!(
        server.rows(latest).await,
        json!([
            {"metric_name": "engine.on", "metric_value": 1.0, "text_value": "true"},
            {"metric_name": "name", "metric_value": null, "text_value": "x,\"y\""},
            {"metric_name": "speed", "metric_value": 1.0, "text_value": null},
        ])
    );
    let rollup = "SELECT time_bucket, avg_value, count FROM aggregated_metrics WHERE metric_name = 'speed'";
    assert_eq!(
        server.rows(rollup).await,
        json!([{"time_bucket": "2022-02-19T11:33:00Z", "avg_value": 163.0 / 3.0, "count": 3}])
    );
    server.state.registry.create_device("silent", None).await.unwrap();
    assert_eq!(
        server
            .rows("SELECT device_id, registered, events, last_seen IS NULL AS never FROM devices ORDER BY 1")
            .await,
        json!([
            {"device_id": "silent", "registered": true, "events": 0, "never": true},
            {"device_id": "truck-7", "registered": false, "events": 3, "never": false},
            {"device_id": "été", "registered": false, "events": 1, "never": false},
        ])
    );
    let names = server
        .rows("SELECT table_name FROM information_schema.tables WHERE table_schema = 'main' ORDER BY 1")
        .await;
    let names: Vec<_> =
        names.as_array().unwrap().iter().map(|row| row["table_name"].as_str().unwrap().to_owned()).collect();
    assert_eq!(
        names,
        [
            "aggregated_metrics",
            "devices",
            "metric_rollups",
            "raw_events",
            "raw_metrics",
            "rejects",
            "snapshot"
        ]
    );
}

#[tokio::test]
async fn json_ndjson_csv_and_arrow() {
    let server = filled().await;
    let sql =
        "SELECT device_id, received_at, payload FROM raw_events WHERE event_time < now() ORDER BY 1 DESC, 2";
    let json = server.sql(sql, "application/json").await;
    assert_eq!(json.headers[header::CONTENT_TYPE], "application/json");
    let json = json.json();
    assert_eq!(json["columns"][1], json!({"name": "received_at", "type": "timestamp with time zone"}));
    assert_eq!(
        json["rows"][0],
        json!({"device_id": "été", "received_at": "2022-02-19T11:33:21.250Z", "payload": "base64:/wA="})
    );
    assert_eq!((&json["row_count"], &json["truncated"]), (&json!(3), &json!(false)));
    assert_eq!(json["rows"].as_array().unwrap().len(), 3);

    let ndjson = server.sql(sql, "application/x-ndjson").await;
    let lines: Vec<Value> = ndjson.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(Value::from(lines), json["rows"]);

    let csv = server
        .sql(
            "SELECT device_id, text_value, metric_value FROM raw_metrics WHERE metric_name IN ('name')",
            "text/csv",
        )
        .await;
    assert_eq!(csv.text(), "device_id,text_value,metric_value\ntruck-7,\"x,\"\"y\"\"\",\n");
    let empty = server.sql("SELECT device_id AS \"a,b\", 1 AS c FROM snapshot WHERE false", "text/csv").await;
    assert_eq!(empty.text(), "\"a,b\",c\n");

    let arrow = server.sql(sql, "application/vnd.apache.arrow.stream").await;
    let batches: Vec<_> =
        StreamReader::try_new(Cursor::new(&arrow.body), None).unwrap().map(Result::unwrap).collect();
    assert_eq!(batches.iter().map(|batch| batch.num_rows()).sum::<usize>(), 3);
    let types: Vec<_> =
        batches[0].schema().fields().iter().map(|field| field.data_type().to_string()).collect();
    assert_eq!(types, ["Utf8", "Timestamp(µs, \"UTC\")", "Binary"]);

    let nothing = server.sql("SELECT device_id FROM snapshot WHERE false", "application/json").await.json();
    assert_eq!((&nothing["rows"], &nothing["row_count"]), (&json!([]), &json!(0)));
    let twice = server.rows("SELECT a.device_id, b.device_id FROM (SELECT 'x' AS device_id) a CROSS JOIN (SELECT 'y' AS device_id) b").await;
    assert_eq!(twice, json!([{"device_id": "x", "device_id_2": "y"}]));
}

#[tokio::test]
async fn requests_choose_format_limits_and_time() {
    let server = filled().await;
    let ask = async |body: Value| {
        let request = Request::post("/api/v1/sql")
            .header("host", "localhost")
            .header("content-type", "application/json");
        server.send(request.body(Body::from(body.to_string())).unwrap()).await
    };
    let cut = ask(json!({"query": "SELECT * FROM generate_series(1, 100)", "limit_rows": 7})).await.json();
    assert_eq!((&cut["row_count"], &cut["truncated"]), (&json!(7), &json!(true)));
    let exact = ask(json!({"query": "SELECT * FROM generate_series(1, 7)", "limit_rows": 7})).await.json();
    assert_eq!((&exact["row_count"], &exact["truncated"]), (&json!(7), &json!(false)));
    let csv = ask(json!({"query": "SELECT 1 AS a", "format": "csv"})).await;
    assert_eq!(csv.text(), "a\n1\n");
    let many = ask(json!({"query": "SELECT * FROM generate_series(1, 20000)"})).await.json();
    assert_eq!((&many["row_count"], &many["truncated"]), (&json!(10_000), &json!(true)));
    let all = ask(json!({"query": "SELECT * FROM generate_series(1, 20000)", "format": "ndjson"})).await;
    assert_eq!(all.text().lines().count(), 20_000);

    let slow = "SELECT count(*) FROM generate_series(1, 100000000000)";
    let late = ask(json!({"query": slow, "timeout_ms": 50})).await;
    assert_eq!((late.status, late.json()["error"].as_str()), (StatusCode::REQUEST_TIMEOUT, Some("timeout")));
    for bad in [
        json!({}),
        json!({"query": 1}),
        json!({"query": "SELECT 1", "formt": "csv"}),
        json!({"query": "SELECT 1", "format": "xml"}),
    ] {
        assert_eq!(ask(bad).await.status, StatusCode::BAD_REQUEST);
    }
    let request = Request::post("/api/v1/sql").header("host", "localhost").header("content-type", "text/xml");
    let answer = server.send(request.body(Body::from("SELECT 1")).unwrap()).await;
    assert_eq!(answer.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
}

const ENDLESS: &str = "SELECT count(*) FROM generate_series(1, 100000000000)";

async fn eventually(mut is_true: impl FnMut() -> bool) {
    for _ in 0..500 {
        if is_true() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within 5 seconds");
}

#[tokio::test]
async fn queries_are_listed_and_cancelled() {
    let server = Arc::new(Server::start().await);
    let asking = tokio::spawn({
        let server = Arc::clone(&server);
        async move { server.sql(ENDLESS, "*/*").await }
    });
    eventually(|| !server.state.sql.running().is_empty()).await;
    let listed = server.get("/api/v1/queries").await.json();
    assert_eq!(
        (&listed[0]["query"], &listed[0]["user"], &listed[0]["origin"]),
        (&json!(ENDLESS), &json!("anonymous"), &json!("http"))
    );
    let path = format!("/api/v1/queries/{}", listed[0]["id"]);
    assert_eq!(server.admin("DELETE", &path, Value::Null).await.status, StatusCode::NO_CONTENT);
    let answer = asking.await.unwrap();
    assert_eq!(answer.json()["error"], "cancelled");
    eventually(|| server.state.sql.running().is_empty()).await;
    assert_eq!(server.admin("DELETE", &path, Value::Null).await.status, StatusCode::NOT_FOUND);
    let bad = server.admin("DELETE", "/api/v1/queries/x", Value::Null).await;
    assert_eq!((bad.status, bad.json()["error"].as_str()), (StatusCode::BAD_REQUEST, Some("bad_request")));
}

#[tokio::test]
async fn a_client_that_goes_away_ends_its_query() {
    let server = Server::start().await;
    let engine = &server.state.sql;
    // Before the first row, and in the middle of the rows.
    let asking = engine.query(ENDLESS, QueryOptions::default());
    let mut stream = asking.await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(50), stream.next()).await.is_err());
    drop(stream);
    eventually(|| engine.running().is_empty()).await;
    let mut stream = engine
        .query("SELECT * FROM generate_series(1, 100000000000)", QueryOptions::default())
        .await
        .unwrap();
    stream.next().await.unwrap().unwrap();
    assert_eq!(engine.running().len(), 1);
    drop(stream);
    eventually(|| engine.running().is_empty()).await;
}

#[tokio::test]
async fn too_many_queries_wait_and_are_refused() {
    let config = SqlConfig { concurrent_max: 1, waiting_max: 1, wait_ms_max: 200, ..SqlConfig::default() };
    let server = Arc::new(Server::with(true, config).await);
    let engine = &server.state.sql;
    let running = engine.query(ENDLESS, QueryOptions::default()).await.unwrap();
    let waiting = tokio::spawn({
        let server = Arc::clone(&server);
        async move { server.sql("SELECT 1", "*/*").await }
    });
    eventually(|| engine.waiting() == 1).await;
    let full = server.sql("SELECT 1", "*/*").await;
    assert_eq!(
        (full.status, full.json()["error"].as_str()),
        (StatusCode::TOO_MANY_REQUESTS, Some("queue_full"))
    );
    assert!(full.headers.contains_key(header::RETRY_AFTER));
    let waited = waiting.await.unwrap();
    assert_eq!(
        (waited.status, waited.json()["error"].as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, Some("busy"))
    );
    drop(running);
    eventually(|| engine.running().is_empty()).await;
    assert_eq!(server.sql("SELECT 1", "*/*").await.status, StatusCode::OK);
}

#[tokio::test]
async fn memory_and_answers_are_bounded() {
    let config =
        SqlConfig { memory_bytes: 4 << 20, spill_bytes: 0, answer_rows_max: 1_000, ..SqlConfig::default() };
    let server = Server::with(true, config).await;
    let hungry = server
        .sql("SELECT count(*) FROM (SELECT DISTINCT value FROM generate_series(1, 5000000))", "*/*")
        .await;
    assert_eq!(
        (hungry.status, hungry.json()["error"].as_str()),
        (StatusCode::UNPROCESSABLE_ENTITY, Some("memory"))
    );
    assert!(hungry.json()["hint"].as_str().unwrap().contains("memory_bytes"));
    let options = || QueryOptions::default();
    let mut long = server.state.sql.query("SELECT * FROM generate_series(1, 5000)", options()).await.unwrap();
    let error = loop {
        match long.next().await.unwrap() {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind, SqlErrorKind::TooLarge);
    assert!(long.next().await.is_none());
    let set = server.state.sql.query("SET datafusion.runtime.memory_limit = '1G'", options()).await;
    assert_eq!(set.unwrap_err().kind, SqlErrorKind::NotAllowed);
}

#[tokio::test]
async fn deep_texts_are_refused_without_harm() {
    let server = Server::start().await;
    let chain = |part: &str, count: usize| format!("SELECT 1{}", part.repeat(count));
    for sql in [
        format!("SELECT {}1{}", "(".repeat(5_000), ")".repeat(5_000)),
        chain("+1", 100_000),
        chain(" OR true", 100_000),
        chain(" IS NULL", 100_000),
        chain("::int", 100_000),
        chain(" UNION ALL SELECT 1", 50_000),
        format!("SELECT {}true", "NOT ".repeat(100_000)),
        format!("SELECT {}1", "- ".repeat(100_000)),
        format!("SELECT a{}", "[1]".repeat(100_000)),
        format!("SELECT {}1{}", "abs(".repeat(5_000), ")".repeat(5_000)),
    ] {
        assert_eq!(server.sql(&sql, "*/*").await.json()["error"], "syntax", "{}", &sql[..40]);
    }
    let long = format!("SELECT {}", "x".repeat(1 << 20));
    assert_eq!(parse(&long).unwrap_err().kind, SqlErrorKind::Syntax);
    assert_eq!(server.sql(&long, "*/*").await.status, StatusCode::PAYLOAD_TOO_LARGE);
    // The deepest that pass are planned, run and dropped on the stacks that there are.
    for sql in
        [chain("+1", 990), chain(" UNION ALL SELECT 1", 300), format!("SELECT {}true", "NOT ".repeat(40))]
    {
        let answer = server.sql(&sql, "*/*").await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    }
    let list = format!(
        "SELECT 1 WHERE -5 IN ({})",
        (0..20_000).map(|n| format!("-{n}")).collect::<Vec<_>>().join(",")
    );
    assert_eq!(server.sql(&list, "*/*").await.status, StatusCode::OK);
}
