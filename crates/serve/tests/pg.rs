//! The PostgreSQL protocol, driven by `psql`, by Python's drivers where `CATCHMENT_TEST_PYTHON` names a Python that has them, and by hand
//! where a client would not misbehave by itself.
//!
//! Without `psql` its tests fail: it is part of what is promised.

#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{Float64Array, Int64Array, StringViewArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use catchment_serve::access::Refusal;
use catchment_serve::pg::{PgAuth, PgConfig, PgMetrics, PgUser, Role, serve};
use catchment_serve::sql::{SqlConfig, SqlEngine};
use datafusion::catalog::{MemTable, MemorySchemaProvider, SchemaProvider};
use tokio::sync::oneshot;

const ROWS: i64 = 50_000;
/// 2026-01-01 in microseconds since 1970.
const START_US: i64 = 1_767_225_600_000_000;
/// A question that takes minutes.
const ENDLESS: &str =
    "select count(*) from raw_metrics a cross join raw_metrics b where a.log_offset * b.log_offset % 7 = 3";

fn user(role: Role) -> PgUser {
    PgUser { role, must_go: Box::pin(std::future::pending()) }
}

struct Token;

#[async_trait]
impl PgAuth for Token {
    async fn verify(&self, _: &str, password: &str, _: Option<IpAddr>) -> Result<PgUser, Refusal> {
        match password {
            "token" => Ok(user(Role::Admin)),
            _ => Err(Refusal::Invalid),
        }
    }

    fn anonymous(&self, _: Option<IpAddr>) -> Option<PgUser> {
        Some(user(Role::Reader))
    }
}

fn tables() -> Arc<dyn SchemaProvider> {
    let schema = Arc::new(Schema::new(vec![
        Field::new("device_id", DataType::Utf8View, false),
        Field::new("timestamp", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), false),
        Field::new("metric_name", DataType::Utf8View, false),
        Field::new("metric_value", DataType::Float64, true),
        Field::new("log_offset", DataType::Int64, false),
    ]));
    let batch = |from: i64| {
        let rows = from..from + 5_000;
        let columns: Vec<arrow::array::ArrayRef> = vec![
            Arc::new(
                rows.clone().map(|row| Some(format!("device-{}", row % 10))).collect::<StringViewArray>(),
            ),
            Arc::new(
                TimestampMicrosecondArray::from_iter_values(
                    rows.clone().map(|row| START_US + row * 1_000_000),
                )
                .with_timezone("UTC"),
            ),
            Arc::new(
                rows.clone()
                    .map(|row| Some(if row % 2 == 0 { "temperature" } else { "humidity" }))
                    .collect::<StringViewArray>(),
            ),
            Arc::new(
                rows.clone().map(|row| (row % 7 != 0).then_some(row as f64 / 10.0)).collect::<Float64Array>(),
            ),
            Arc::new(Int64Array::from_iter_values(rows)),
        ];
        RecordBatch::try_new(Arc::clone(&schema), columns).unwrap()
    };
    let batches = (0..ROWS).step_by(5_000).map(batch).collect();
    let tables = MemorySchemaProvider::new();
    let table = MemTable::try_new(Arc::clone(&schema), vec![batches]).unwrap();
    tables.register_table("raw_metrics".to_owned(), Arc::new(table)).unwrap();
    Arc::new(tables)
}

/// A server of its own, stopped when dropped.
struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    fn start(config: PgConfig) -> Self {
        let (stop, stopped) = oneshot::channel();
        let (tell, told) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                tell.send(listener.local_addr().unwrap()).unwrap();
                let engine = Arc::new(
                    SqlEngine::new(tables(), SqlConfig { threads: 2, ..SqlConfig::default() }).unwrap(),
                );
                let stopped = async { drop(stopped.await) };
                serve(listener, engine, Arc::new(Token), config, PgMetrics::default(), None, stopped)
                    .await
                    .unwrap();
            });
        });
        Self { address: told.recv().unwrap(), stop: Some(stop), thread: Some(thread) }
    }

    fn psql(&self, arguments: &[&str]) -> Output {
        let port = self.address.port().to_string();
        Command::new("psql")
            .args(["-X", "-h", "127.0.0.1", "-p", &port, "-U", "admin", "-d", "main"])
            .args(arguments)
            .env("PGPASSWORD", "token")
            .env("LC_ALL", "C.UTF-8")
            .output()
            .expect("psql is needed: apt-get install postgresql-client")
    }

    /// What `psql` prints, unaligned.
    #[track_caller]
    fn asks(&self, text: &str) -> String {
        let output = self.psql(&["-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", text]);
        assert!(output.status.success(), "{text}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    /// What `psql` complains of, with the SQLSTATE.
    #[track_caller]
    fn fails(&self, text: &str) -> String {
        let output = self.psql(&["-A", "-t", "-v", "VERBOSITY=verbose", "-v", "ON_ERROR_STOP=1", "-c", text]);
        assert!(!output.status.success(), "{text} was accepted");
        String::from_utf8(output.stderr).unwrap()
    }

    /// A connection by hand, past the start-up packet.
    fn connect(&self) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let parameters = b"user\0anonymous\0database\0main\0\0";
        stream.write_all(&u32::try_from(parameters.len() + 8).unwrap().to_be_bytes()).unwrap();
        stream.write_all(&196_608_u32.to_be_bytes()).unwrap();
        stream.write_all(parameters).unwrap();
        assert!(read_until(&mut stream, b'Z').iter().any(|(kind, _)| *kind == b'K'));
        stream
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        let stopped = self.thread.take().map(std::thread::JoinHandle::join);
        assert!(std::thread::panicking() || matches!(stopped, Some(Ok(()))));
    }
}

/// Messages up to one of `kind`, or the end of the connection.
fn read_until(stream: &mut TcpStream, kind: u8) -> Vec<(u8, Vec<u8>)> {
    let mut messages = Vec::new();
    loop {
        let mut head = [0; 5];
        if stream.read_exact(&mut head).is_err() {
            return messages;
        }
        let length = u32::from_be_bytes(head[1..].try_into().unwrap()) as usize;
        let mut body = vec![0; length - 4];
        stream.read_exact(&mut body).unwrap();
        messages.push((head[0], body));
        if head[0] == kind {
            return messages;
        }
    }
}

fn send(stream: &mut TcpStream, kind: u8, body: &[u8]) {
    let mut message = vec![kind];
    message.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
    message.extend(body);
    stream.write_all(&message).unwrap();
}

fn kinds(messages: &[(u8, Vec<u8>)]) -> String {
    messages.iter().map(|(kind, _)| char::from(*kind)).collect()
}

#[test]
fn psql_asks_and_describes() {
    let server = Server::start(PgConfig::default());
    assert!(server.asks("select version()").starts_with("PostgreSQL 15."));
    assert_eq!(
        server.asks("select count(*), min(timestamp) from raw_metrics"),
        "50000|2026-01-01 00:00:00+00"
    );
    assert_eq!(server.asks("select count(*) from main.main.raw_metrics"), "50000");
    assert_eq!(server.asks("select current_database(), current_schema, current_user"), "main|main|admin");
    assert_eq!(server.asks("\\dt"), "main|raw_metrics|table|admin");
    let described = server.asks("\\d raw_metrics");
    for line in [
        "timestamp|timestamp with time zone||not null|",
        "metric_value|double precision|||",
        "log_offset|bigint||not null|",
    ] {
        assert!(described.contains(line), "{described}");
    }
    assert!(server.asks("\\l").starts_with("main|"));
    assert_eq!(server.asks("\\dn"), "main|admin");
    for command in
        ["\\d", "\\dv", "\\di", "\\df", "\\dT", "\\du", "\\d+ raw_metrics", "\\dp", "\\dx", "\\conninfo"]
    {
        server.asks(command);
    }
}

#[test]
fn scalar_subqueries_keep_their_values() {
    let server = Server::start(PgConfig::default());
    assert_eq!(server.asks("select (select count(*) from raw_metrics), current_database()"), "50000|main");
    assert_eq!(
        server.asks("select (select max(log_offset) from raw_metrics) + 1, pg_backend_pid() > 0"),
        "50000|t"
    );
    assert_eq!(server.asks("select '{a,b}'::text[], 1, 1"), "{a,b}|1|1");
}

#[test]
fn several_statements_transactions_and_variables() {
    let server = Server::start(PgConfig::default());
    assert_eq!(
        server.asks("begin; select 1; savepoint s; rollback to s; commit"),
        "BEGIN\n1\nSAVEPOINT\nROLLBACK\nCOMMIT"
    );
    assert_eq!(server.asks("set statement_timeout = '5s'; show statement_timeout"), "SET\n5s");
    assert_eq!(
        server.asks("begin; set local statement_timeout = 1000; commit; show statement_timeout"),
        "BEGIN\nSET\nCOMMIT\n30s"
    );
    assert_eq!(
        server.asks("begin; declare c cursor for select log_offset from raw_metrics order by 1; move 5 from c; fetch 2 from c; close c; end"),
        "BEGIN\nDECLARE CURSOR\nMOVE 5\n5\n6\nCLOSE CURSOR\nCOMMIT"
    );
    assert_eq!(server.asks(""), "");
    assert!(server.fails("begin; select nope from raw_metrics; select 1").contains("42703"));
}

#[test]
fn copies_go_out_and_never_in() {
    let server = Server::start(PgConfig::default());
    let question = "copy (select device_id, metric_value from raw_metrics order by log_offset limit 2) to stdout with (format csv, header)";
    assert_eq!(server.asks(question), "device_id,metric_value\ndevice-0,\ndevice-1,0.1");
    assert_eq!(server.asks("copy raw_metrics to stdout").lines().count(), 50_000);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out");
    for text in [
        format!("copy raw_metrics to '{}'", path.display()),
        "copy raw_metrics from '/etc/passwd'".to_owned(),
        format!("create external table t stored as csv location '{}'", path.display()),
        "insert into raw_metrics select * from raw_metrics".to_owned(),
        "drop table raw_metrics".to_owned(),
        "create view v as select 1".to_owned(),
        "explain analyze insert into raw_metrics select * from raw_metrics".to_owned(),
        "select * into t from raw_metrics".to_owned(),
    ] {
        assert!(server.fails(&text).contains("25006"), "{text}");
    }
    assert!(!path.exists());
    assert_eq!(server.asks("select count(*) from raw_metrics"), "50000");
}

#[test]
fn errors_have_code_place_and_hint() {
    let server = Server::start(PgConfig::default());
    let error = server.fails("select metric_valu from raw_metrics");
    assert!(
        error.contains("42703")
            && error.contains("LINE 1:")
            && error.contains("HINT:  did you mean metric_value?"),
        "{error}"
    );
    assert!(server.fails("selec 1").contains("42601"));
    assert!(server.fails("select * from raw_metric").contains("42P01"));
    assert!(server.fails("select 1/0").contains("22012"));
    assert!(server.fails("set no_such_thing = 1").contains("42704"));
}

#[test]
fn only_tokens_and_the_realm_get_in() {
    let server = Server::start(PgConfig::default());
    let port = server.address.port().to_string();
    let connect = |user: &str, database: &str, password: &str| {
        let output = Command::new("psql")
            .args(["-X", "-w", "-h", "127.0.0.1", "-p", &port, "-U", user, "-d", database, "-c", "select 1"])
            .env("PGPASSWORD", password)
            .output()
            .unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    assert!(connect("anonymous", "main", "").0);
    let (_, error) = connect("admin", "main", "wrong");
    assert!(error.contains("password authentication failed"), "{error}");
    let (_, error) = connect("admin", "postgres", "token");
    assert!(
        error.contains("database \"postgres\" does not exist") && error.contains("the database is \"main\""),
        "{error}"
    );
}

#[test]
fn statements_end_at_their_limit_and_stop_for_good() {
    let server = Server::start(PgConfig::default());
    for _ in 0..3 {
        let started = Instant::now();
        let error = server.fails(&format!("set statement_timeout = 300; {ENDLESS}"));
        assert!(error.contains("57014") && started.elapsed() < Duration::from_secs(10), "{error}");
    }
    // A client that leaves, in the middle of a question.
    for _ in 0..3 {
        let mut stream = server.connect();
        send(&mut stream, b'Q', format!("{ENDLESS}\0").as_bytes());
        std::thread::sleep(Duration::from_millis(100));
    }
    // The engine has few threads and slots: were any of these still running, this would wait for them.
    let started = Instant::now();
    assert_eq!(server.asks("select count(*) from raw_metrics"), "50000");
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_slow_reader_is_held_back_not_buffered() {
    let server = Server::start(PgConfig::default());
    let mut stream = server.connect();
    send(&mut stream, b'Q', b"set statement_timeout = 1000\0");
    read_until(&mut stream, b'Z');
    // Gigabytes, if anybody took them.
    send(&mut stream, b'Q', b"select a.* from raw_metrics a cross join raw_metrics b\0");
    std::thread::sleep(Duration::from_secs(2));
    let messages = read_until(&mut stream, b'E');
    let rows = messages.iter().filter(|(kind, _)| *kind == b'D').count();
    assert!(rows > 0 && rows < 1_000_000, "{rows} rows were on their way");
    let error = String::from_utf8_lossy(&messages.last().unwrap().1).into_owned();
    assert!(error.contains("57014"), "{error}");
}

#[test]
fn portals_give_rows_in_parts() {
    let server = Server::start(PgConfig::default());
    let mut stream = server.connect();
    let execute = |rows: u32| [b"\0".as_slice(), &rows.to_be_bytes()].concat();
    send(&mut stream, b'P', b"\0select log_offset from raw_metrics where log_offset < $1 order by 1\0\0\0");
    send(&mut stream, b'B', b"\0\0\0\0\0\x01\0\0\0\x015\0\0");
    send(&mut stream, b'E', &execute(2));
    send(&mut stream, b'E', &execute(2));
    send(&mut stream, b'E', &execute(0));
    send(&mut stream, b'S', b"");
    assert_eq!(kinds(&read_until(&mut stream, b'Z')), "12DDsDDsDCZ");
    // A portal is gone with its request, and its error is passed over until Sync.
    send(&mut stream, b'E', &execute(0));
    send(&mut stream, b'E', &execute(0));
    send(&mut stream, b'S', b"");
    assert_eq!(kinds(&read_until(&mut stream, b'Z')), "EZ");
}

#[test]
fn nonsense_ends_its_own_connection_only() {
    let server = Server::start(PgConfig { message_bytes_max: 1 << 16, ..PgConfig::default() });
    for (kind, body) in
        [(b'?', &b""[..]), (b'B', b"\0\0\xff\xff"), (b'P', b"no end"), (b'Q', &[b'x'; 1 << 17])]
    {
        let mut stream = server.connect();
        // A server that refuses early may close before all of it is written.
        let mut message = vec![kind];
        message.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
        message.extend(body);
        let _ = stream.write_all(&message);
        let messages = read_until(&mut stream, b'Z');
        assert!(messages.iter().all(|(kind, _)| *kind == b'E'), "{kind}: {}", kinds(&messages));
    }
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert!(kinds(&read_until(&mut stream, b'Z')).chars().all(|kind| kind == 'E'));
    assert_eq!(server.asks("select 1"), "1");
}

#[test]
fn sessions_are_limited_and_told_of_the_end() {
    let server = Server::start(PgConfig { sessions_max: 1, ..PgConfig::default() });
    let mut first = server.connect();
    let output = server.psql(&["-c", "select 1"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("sessions already"));
    drop(server);
    let messages = read_until(&mut first, b'E');
    assert!(String::from_utf8_lossy(&messages.last().unwrap().1).contains("57P01"));
}

#[test]
fn python_drivers_agree() {
    let Ok(python) = std::env::var("CATCHMENT_TEST_PYTHON") else {
        eprintln!("CATCHMENT_TEST_PYTHON is not set: Python's drivers were not tried");
        return;
    };
    let server = Server::start(PgConfig::default());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/pg/drivers.py");
    let output = Command::new(python).args([script, &server.address.port().to_string()]).output().unwrap();
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
