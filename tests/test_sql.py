"""SQL over HTTP: formats, errors that help, and the fences around it."""

import csv
import http.client
import io
import json
import threading
import time

import pyarrow.ipc
import pytest
import requests

from harness import eventually

SLOW = "SELECT max(value % 7919) FROM generate_series(1, 1000000000000)"


@pytest.fixture(scope="module")
def data(server):
    """Three rows to ask for."""
    body = [{"n": 1.5, "ts": 1_790_000_000}, {"text": 'a "quoted", text\nin é', "ts": 1_790_000_000}, {"on": True}]
    now = time.time()
    for at, document in enumerate(body):
        document["ts"] = int(now) - 10 + at
    server.post_event("sql", body)
    server.wait_rows("SELECT 1 FROM raw_metrics WHERE device_id = 'sql'", 3)
    return "SELECT metric_name, metric_value, text_value FROM raw_metrics WHERE device_id = 'sql' ORDER BY log_offset"


EXPECTED = [("n", 1.5, None), ("text", None, 'a "quoted", text\nin é'), ("on", 1.0, "true")]


# Formats.


def test_json(server, data):
    answer = server.sql_answer(data)
    assert answer.headers["Content-Type"].startswith("application/json")
    document = answer.json()
    assert [column["name"] for column in document["columns"]] == ["metric_name", "metric_value", "text_value"]
    assert [tuple(row.values()) for row in document["rows"]] == EXPECTED
    assert document["row_count"] == 3 and document["truncated"] is False


def test_json_is_cut_at_a_limit(server):
    document = server.sql_answer("SELECT value FROM generate_series(1, 20000)", limit_rows=5).json()
    assert len(document["rows"]) == document["row_count"] == 5 and document["truncated"] is True
    assert len(server.sql_answer("SELECT value FROM generate_series(1, 20000)").json()["rows"]) == 10_000


def test_ndjson(server, data):
    answer = server.sql_answer(data, "application/x-ndjson")
    assert answer.headers["Content-Type"].startswith("application/x-ndjson")
    rows = [json.loads(line) for line in answer.text.splitlines()]
    names = ("metric_name", "metric_value", "text_value")
    assert [tuple(row.get(name) for name in names) for row in rows] == EXPECTED


def test_csv(server, data):
    answer = server.sql_answer(data, "text/csv")
    assert answer.headers["Content-Type"].startswith("text/csv")
    answer.encoding = "utf-8"
    rows = list(csv.reader(io.StringIO(answer.text, newline="")))
    assert rows[0] == ["metric_name", "metric_value", "text_value"]
    assert [row[0] for row in rows[1:]] == ["n", "text", "on"]
    assert float(rows[1][1]) == 1.5 and rows[2][1:] == ["", EXPECTED[1][2]]


def test_arrow(server, data):
    answer = server.sql_answer(data, "application/vnd.apache.arrow.stream")
    table = pyarrow.ipc.open_stream(answer.content).read_all()
    assert [tuple(row.values()) for row in table.to_pylist()] == EXPECTED


@pytest.mark.parametrize(
    "accept", ["application/json", "application/x-ndjson", "text/csv", "application/vnd.apache.arrow.stream"]
)
def test_no_rows_are_fine_in_every_format(server, accept):
    answer = server.sql_answer(
        "SELECT device_id, count(*) AS n FROM raw_events WHERE device_id = 'none' GROUP BY 1", accept
    )
    assert answer.status_code == 200
    if accept == "application/json":
        assert answer.json()["rows"] == []
    elif accept == "text/csv":
        assert answer.text.strip() == "device_id,n"
    elif accept.endswith("ndjson"):
        assert answer.text == ""
    else:
        assert pyarrow.ipc.open_stream(answer.content).read_all().num_rows == 0


@pytest.mark.parametrize("rows", [0, 1, 100_000])
def test_answers_are_compressed_where_that_is_understood(server, rows):
    query = f"SELECT value FROM generate_series(1, {rows})"
    body = {"query": query, "format": "csv"}
    answer = requests.post(server.url("/api/v1/sql"), json=body, headers={"Accept-Encoding": "gzip"}, timeout=30)
    assert answer.status_code == 200
    assert answer.text.split()[1:] == [str(n) for n in range(1, rows + 1)]


def test_types_survive_json(server):
    query = (
        "SELECT 9007199254740993::bigint, 0.1, 1.5e300, TIMESTAMP '2026-01-02T03:04:05.123456Z', true, NULL, 'a',"
        " 'NaN'::double, DATE '2026-01-02'"
    )
    (row,) = server.sql(query)
    assert row[0] in (9007199254740993, "9007199254740993")
    assert row[1:3] == (0.1, 1.5e300)
    assert row[3].startswith("2026-01-02T03:04:05.123456")
    assert row[4:7] == (True, None, "a")
    assert row[7] in (None, "NaN")
    assert row[8] == "2026-01-02"


def test_large_answers_stream(server):
    answer = server.sql_answer("SELECT value FROM generate_series(1, 1000000)", "text/csv")
    assert answer.status_code == 200
    lines = answer.text.split()
    assert len(lines) == 1_000_001
    assert sum(map(int, lines[1:])) == 500_000_500_000


# What SQL can do.


def test_joins_windows_and_subqueries(server, data):
    rows = server.sql(
        "WITH last AS (SELECT device_id, metric_name, row_number() OVER (ORDER BY log_offset) AS place FROM raw_metrics"
        " WHERE device_id = 'sql') SELECT place, metric_name, (SELECT count(*) FROM last) FROM last ORDER BY place"
    )
    assert rows == [(1, "n", 3), (2, "text", 3), (3, "on", 3)]
    joined = server.value(
        "SELECT count(*) FROM raw_metrics m JOIN raw_events e ON e.log_partition = m.log_partition"
        " AND e.log_offset = m.log_offset WHERE m.device_id = 'sql'"
    )
    assert joined == 3


def test_qualified_names(server, data):
    names = ["raw_events", "main.raw_events", "catchment.main.raw_events"]
    assert [server.value(f"SELECT count(*) FROM {name} WHERE device_id = 'sql'") for name in names] == [3, 3, 3]


def test_the_tables_are_those_of_the_contract(server):
    rows = server.sql(
        "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'main' ORDER BY ordinal_position"
    )
    columns = {}
    for table, column in rows:
        columns.setdefault(table, []).append(column)
    place = ["log_partition", "log_offset"]
    expected = {
        "raw_events": ["device_id", "received_at", "event_time", "type", "topic", "content_type", "payload", *place],
        "raw_metrics": ["device_id", "timestamp", "metric_name", "metric_value", "text_value", "metadata", *place],
        "metric_rollups": ["device_id", "time_bucket", "metric_name", "sum_value", "min_value", "max_value", "count"],
        "aggregated_metrics": [
            "device_id",
            "time_bucket",
            "metric_name",
            "avg_value",
            "min_value",
            "max_value",
            "count",
        ],
        "rejects": ["device_id", "received_at", "type", "topic", "reason", "detail", "payload", *place],
        "snapshot": ["device_id", "metric_name", "timestamp", "metric_value", "text_value", "received_at"],
        "devices": ["device_id", "registered", "labels", "created_at", "first_seen", "last_seen", "events"],
    }
    assert {table: columns.get(table) for table in expected} == expected


def test_explain(server):
    assert server.sql("EXPLAIN SELECT * FROM raw_metrics WHERE device_id = 'a'")


# Errors.


def problem(server, query, status=400):
    answer = server.sql_answer(query)
    assert answer.status_code == status, f"{query}: {answer.status_code}: {answer.text}"
    return answer.json()


@pytest.mark.parametrize(
    ("query", "error", "position", "hint"),
    [
        ("SELECT 1,\n  FORM raw_events x y", "syntax", (2, None), None),
        ("SELEC 1", "syntax", (1, 1), None),
        ("SELECT * FROM raw_metric", "unknown_table", None, "raw_metrics"),
        ("SELECT devic_id FROM raw_events", "unknown_column", (1, 8), "device_id"),
        ("SELECT avgg(metric_value) FROM raw_metrics", "unknown_function", None, "avg"),
        ("SELECT device_id, count(*) FROM raw_events", "invalid", None, None),
        ("", "syntax", None, "SELECT"),
        ("SELECT 'abc", "syntax", (1, 8), None),
    ],
)
def test_errors_tell_where_and_what_to_do(server, query, error, position, hint):
    told = problem(server, query)
    assert told["error"] == error, told
    assert told["message"]
    if position:
        line, column = position
        assert told["position"]["line"] == line, told
        assert column in (None, told["position"]["column"]), told
    if hint:
        assert hint in told["hint"], told
    assert "DataFusion" not in told["message"] and "backtrace" not in told["message"]


def test_errors_in_the_middle_of_the_data(server):
    told = problem(server, "SELECT 1 / (value - 5) FROM generate_series(1, 10)")
    assert told["error"] == "execution", told


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO raw_events SELECT * FROM raw_events",
        "UPDATE raw_metrics SET metric_value = 0",
        "DELETE FROM raw_metrics",
        "DROP TABLE raw_events",
        "CREATE TABLE t AS SELECT 1",
        "CREATE VIEW v AS SELECT 1",
        "CREATE EXTERNAL TABLE t STORED AS PARQUET LOCATION '/tmp/x'",
        "COPY raw_events TO '/tmp/catchment-copy.parquet'",
        "COPY (SELECT 1) TO '/tmp/catchment-copy.csv'",
        "TRUNCATE raw_events",
        "ALTER TABLE raw_events ADD COLUMN x INT",
        "EXPLAIN ANALYZE INSERT INTO raw_events SELECT * FROM raw_events",
        "SET datafusion.execution.batch_size = 1",
        "CREATE FUNCTION f() RETURNS INT RETURN 1",
        "SELECT 1; DROP TABLE raw_events",
        "PREPARE p AS DELETE FROM raw_events",
    ],
)
def test_only_questions_are_allowed(server, data, statement):
    before = server.sql(data)
    answer = server.sql_answer(statement)
    assert answer.status_code in (400, 403), f"{answer.status_code}: {answer.text}"
    if not statement.startswith(("ALTER", "CREATE FUNCTION")):
        assert answer.json()["error"] == "not_allowed", answer.json()
    assert server.sql(data) == before


def test_files_cannot_be_read(server):
    for source in ("'/etc/passwd'", "'/etc/hostname.csv'", "read_csv('/etc/passwd')", '"/etc/passwd"'):
        answer = server.sql_answer(f"SELECT * FROM {source}")
        assert answer.status_code in (400, 403), answer.text
        assert "root:" not in answer.text


def test_a_deeply_nested_query_is_refused(server):
    answer = server.sql_answer("SELECT " + "(" * 5000 + "1" + ")" * 5000)
    assert answer.status_code == 400
    assert server.value("SELECT 1") == 1


def test_a_broken_request_is_refused(server):
    for body in (b"", b"{", b'{"query": 1}', b'{"sql": "SELECT 1"}', b'{"query": "SELECT 1", "unknown": 1}'):
        answer = server.post("/api/v1/sql", data=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in (400, 422), f"{body}: {answer.status_code}"
        assert answer.json()["message"]


# Limits.


def test_a_query_has_a_time_limit(server):
    began = time.monotonic()
    answer = server.sql_answer(SLOW, timeout_ms=500)
    assert answer.status_code == 408, answer.text
    assert answer.json()["error"] == "timeout"
    assert time.monotonic() - began < 5


def test_a_query_has_a_memory_limit(new_server):
    server = new_server(config="[serve.sql]\nmemory_bytes = 20000000\nspill_bytes = 0\n").start()
    query = "SELECT value % 5000000, sum(value) FROM generate_series(1, 20000000) GROUP BY 1 ORDER BY 2 LIMIT 5"
    answer = server.sql_answer(query)
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"] == "memory"
    assert server.value("SELECT 1") == 1


def running(server):
    answer = server.get("/api/v1/queries", headers=server.admin)
    assert answer.status_code == 200, answer.text
    return [query for query in answer.json() if SLOW in query["query"]]


def test_a_client_that_goes_ends_its_query(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=10)
    body = json.dumps({"query": SLOW, "timeout_ms": 60_000})
    connection.request("POST", "/api/v1/sql", body, {"Content-Type": "application/json"})
    eventually(lambda: running(server))
    connection.close()
    eventually(lambda: not running(server))


@pytest.mark.parametrize(
    "query",
    [
        SLOW,
        "SELECT value FROM generate_series(1, 1000000000000) ORDER BY value % 7919, value LIMIT 5",
        "SELECT value % 1000, count(*) FROM generate_series(1, 1000000000000) GROUP BY 1",
        "SELECT count(*) FROM generate_series(1, 1000000) a, generate_series(1, 1000000) b WHERE a.value * b.value = 3",
    ],
    ids=["aggregate", "sort", "group", "join"],
)
def test_a_stopped_query_stops_working(new_server, query):
    """Not only for its client: it must not go on using the processor that others need."""
    server = new_server().start()
    assert server.sql_answer(query, timeout_ms=300).status_code == 408

    def idle():
        before, began = server.processor_seconds(), time.monotonic()
        time.sleep(0.5)
        return (server.processor_seconds() - before) / (time.monotonic() - began) < 0.2

    eventually(idle, 10, "the query has stopped")


def test_a_running_query_can_be_cancelled(server):
    answers = []
    asker = threading.Thread(target=lambda: answers.append(server.sql_answer(SLOW, timeout_ms=60_000)))
    asker.start()
    (query,) = eventually(lambda: running(server))
    answer = server.session.delete(server.url(f"/api/v1/queries/{query['id']}"), headers=server.admin)
    assert answer.status_code in (200, 204), answer.text
    asker.join(timeout=10)
    assert answers[0].status_code == 409 and answers[0].json()["error"] == "cancelled", answers[0].text
    eventually(lambda: not running(server))
