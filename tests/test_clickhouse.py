"""History on ClickHouse: the answers of the embedded history, and every acknowledged event once, whatever is killed."""

import json
import os
import re
import signal
import subprocess
import threading
import time
import uuid

import pytest
import requests

from harness import eventually, free_ports, run
from harness.certificates import Authority
from harness.load import check_all, publishers
from harness.services import KINDS
from harness.tls_proxy import TlsProxy

KILLS = 6
STOPPED_S = 15
HANGS_S = 8
PARTITIONS = "[log]\npartitions = 3\n"


class ClickHouse:
    """Requests of a client that is not ours."""

    def __init__(self, address, password=None):
        self.address, self.password = address, password
        self.database = f"e2e_{uuid.uuid4().hex}"

    def url(self, user="", **asked):
        """Of our database, as Catchment takes it."""
        query = "&".join(f"{name}={value}" for name, value in asked.items())
        host = self.address.split("://")[1]
        return f"clickhouse://{user}{host}/{self.database}{'?' if query else ''}{query}"

    def query(self, query, database=None):
        """The rows of an answer, as texts."""
        headers = {"X-ClickHouse-Key": self.password} if self.password else {}
        asked = {"database": database or self.database}
        answer = requests.post(self.address, params=asked, data=query.encode(), headers=headers, timeout=60)
        assert answer.status_code == 200, answer.text
        return [tuple(line.split("\t")) for line in answer.text.splitlines()]

    def drop(self):
        """Takes the database away."""
        self.query(f"DROP DATABASE IF EXISTS {self.database}", "default")


@pytest.fixture
def clickhouse(service):
    made = ClickHouse(service("clickhouse"))
    yield made
    made.drop()


class OwnClickHouse(KINDS["clickhouse"]):
    """A test's own to stop, with a password."""

    password = "correct-horse"

    def environment(self):
        return {"CLICKHOUSE_PASSWORD": self.password}

    def probe(self, address):
        # Only whether it is there: what it is asked, it answers with the password alone.
        requests.get(f"{address}/ping", timeout=5).raise_for_status()
        return "ClickHouse"

    def signal(self, number):
        """Stops or continues the process."""
        os.kill(json.loads((self.folder / "state.json").read_text())["pid"], number)


@pytest.fixture
def own_clickhouse(service, tmp_path):
    service("clickhouse")
    own = OwnClickHouse(tmp_path / "clickhouse")
    made = ClickHouse(own.up(), own.password)
    made.service = own
    yield made
    own.down()


def on_clickhouse(new_server, clickhouse, name="platform", config=PARTITIONS, user="", **options):
    """A server whose history is there."""
    flags = ["--history", clickhouse.url(user, flush_interval_ms=200)]
    return new_server(name, flags=flags, config=config, **options)


# The same answers.

MINUTE = 60_000
TEXTS = ["", "a", "it's", 'quo"te', "back\\slash", "%", "_", "50%_\\", "é", "日本", "🚀 go"]
TEXTS += ["tab\there", "line\nbreak", "Z", "z", "a\u0000b"]
NUMBERS = [0, -0.0, 1, -1, 1.5, -2.25, 1e300, -1e300, 5e-324, 2**53, 0.1, 123456789]


def documents():
    """Events of some devices: (device, type, document). Times are within the last two days, some late."""
    now = int(time.time() * 1000) // MINUTE * MINUTE
    for number, text in enumerate(TEXTS):
        at = now - (number % 5) * 13 * MINUTE
        yield f"t-{number % 4}", "state", {"text": text, "flag": number % 2 == 0, "timestamp": at + number * 137}
    for number, value in enumerate(NUMBERS * 2):
        at = now - (number % 7) * 11 * MINUTE
        yield f"n-{number % 3}", "measure", {"value": value, "more": {"deep": number}, "timestamp": at + number * 1009}
    for number in range(200):
        at = now - 3_600_000 * (number % 40) - number
        yield f"bus-{number % 5}", "ride", {"speed": (number * 7 % 50) / 4, "line": number % 3, "timestamp": at}
    yield "Ünï", "state", {"größe": 1.25, "timestamp": now - 5}
    yield "n-0", "measure", {"value": 7.5, "timestamp": now - 40 * 3_600_000}


def broken():
    """What does not decode, or not whole."""
    yield "b-0", "state", b"{not json"
    yield "b-0", "state", b"\xff\xfe"
    partly = {"value": [1, {"x": None}], "timestamp": int(time.time()) - 86_400}
    yield "b-1", "measure", json.dumps(partly).encode()


# Floats are whole quarters where they are summed, so that the order of a sum does not matter.
QUERIES = [
    "SELECT count(*) FROM raw_events",
    "SELECT count(*) FROM raw_metrics",
    "SELECT count(*) FROM rejects",
    "SELECT count(*) FROM raw_metrics WHERE metric_value > 1",
    "SELECT count(*) FROM (SELECT 1 FROM raw_metrics LIMIT 17)",
    "SELECT device_id, event_time, type, topic, content_type, payload, log_partition, log_offset FROM raw_events"
    " WHERE device_id NOT LIKE 'b-%' ORDER BY log_partition, log_offset",
    "SELECT * FROM raw_metrics ORDER BY log_partition, log_offset, metric_name",
    "SELECT device_id, type, topic, reason, detail, payload, log_partition, log_offset FROM rejects"
    " ORDER BY log_partition, log_offset, detail",
    "SELECT device_id, time_bucket, metric_name, sum(sum_value), min(min_value), max(max_value), sum(count) FROM metric_rollups"
    " WHERE metric_name IN ('speed', 'line', 'deep') GROUP BY 1, 2, 3 ORDER BY 1, 2, 3",
    "SELECT * FROM aggregated_metrics WHERE metric_name <> 'value' ORDER BY device_id, time_bucket, metric_name",
    "SELECT device_id, time_bucket, count FROM aggregated_metrics WHERE metric_name = 'value' ORDER BY 1, 2",
    "SELECT * FROM aggregated_metrics WHERE device_id = 'bus-1' AND avg_value >= 3.5 ORDER BY time_bucket, metric_name",
    "SELECT device_id, sum(count), max(max_value) FROM aggregated_metrics WHERE metric_name = 'speed' GROUP BY 1 ORDER BY 1",
    "SELECT metric_name, count(*), min(timestamp), max(timestamp) FROM raw_metrics GROUP BY 1 ORDER BY 1",
    "SELECT count(metric_value), count(text_value), count(*), count(DISTINCT device_id) FROM raw_metrics",
    "SELECT DISTINCT text_value FROM raw_metrics ORDER BY 1",
    "SELECT DISTINCT metric_value FROM raw_metrics ORDER BY 1 NULLS FIRST",
    "SELECT min(text_value), max(text_value) FROM raw_metrics",
    "SELECT log_offset FROM raw_metrics WHERE text_value IS NULL ORDER BY log_partition, log_offset, metric_name LIMIT 5",
    "SELECT text_value, log_offset FROM raw_metrics WHERE text_value IS NOT NULL AND NOT (text_value = 'a')"
    " ORDER BY 1, log_partition, 2",
    "SELECT text_value FROM raw_metrics WHERE text_value NOT IN ('a', 'b', '') ORDER BY 1",
    "SELECT text_value FROM raw_metrics WHERE text_value < 'b' OR text_value >= 'é' ORDER BY 1",
    "SELECT text_value FROM raw_metrics WHERE text_value BETWEEN 'Z' AND 'z' ORDER BY 1",
    "SELECT text_value FROM raw_metrics WHERE text_value NOT BETWEEN 'Z' AND 'z' ORDER BY 1",
    "SELECT text_value FROM raw_metrics WHERE device_id LIKE 't-%' AND text_value LIKE '%a%' ORDER BY 1",
    "SELECT text_value FROM raw_metrics WHERE text_value LIKE '_' ORDER BY 1",
    "SELECT text_value FROM raw_metrics WHERE text_value LIKE '%\\%%' ORDER BY 1",
    "SELECT text_value FROM raw_metrics WHERE text_value LIKE '%break' ORDER BY 1",
    "SELECT text_value FROM raw_metrics WHERE text_value NOT LIKE 'b%' ORDER BY 1",
    "SELECT text_value FROM raw_metrics WHERE text_value ILIKE 'Z' ORDER BY 1",
    "SELECT text_value FROM raw_metrics WHERE upper(text_value) = 'É' ORDER BY 1",
    "SELECT text_value FROM raw_metrics WHERE text_value LIKE '%日%' ORDER BY 1",
    "SELECT log_offset FROM raw_metrics WHERE metric_value = 0.0 ORDER BY 1, metric_name",
    "SELECT log_offset FROM raw_metrics WHERE metric_value = -0.0 ORDER BY 1, metric_name",
    "SELECT log_offset FROM raw_metrics WHERE metric_value <> 0 ORDER BY 1, metric_name",
    "SELECT log_offset FROM raw_metrics WHERE metric_value >= 0 AND metric_value < 1.5 ORDER BY 1, metric_name",
    "SELECT metric_value FROM raw_metrics WHERE metric_value NOT BETWEEN -1 AND 1 ORDER BY 1",
    "SELECT metric_value FROM raw_metrics WHERE metric_name = 'value' ORDER BY metric_value DESC, log_offset LIMIT 4",
    "SELECT 1 FROM raw_metrics WHERE metric_value > 'NaN'::double",
    "SELECT device_id, timestamp FROM raw_metrics WHERE device_id = 'Ünï'",
    "SELECT device_id, timestamp, metric_name FROM raw_metrics ORDER BY timestamp DESC, device_id, metric_name LIMIT 9",
    "SELECT device_id, timestamp FROM raw_metrics WHERE metric_name = 'speed' ORDER BY device_id DESC, timestamp LIMIT 3 OFFSET 4",
    "SELECT count(*) FROM raw_metrics WHERE timestamp > now() - interval '2 hours'",
    "SELECT count(*) FROM raw_metrics WHERE timestamp <= now() AND timestamp >= now() - interval '1 day'",
    "SELECT count(*) FROM raw_metrics WHERE timestamp > '2001-01-01' AND timestamp < '2200-01-01T00:00:00.123456Z'",
    "SELECT date_trunc('day', timestamp) AS day, count(*) FROM raw_metrics GROUP BY 1 ORDER BY 1",
    "SELECT date_bin(interval '1 hour', timestamp) AS h, device_id, avg(metric_value) FROM raw_metrics"
    " WHERE metric_name = 'speed' GROUP BY 1, 2 ORDER BY 1, 2",
    "SELECT date_bin(interval '7 minutes', timestamp, timestamp '2020-02-02 00:00:03') AS b, count(*), min(log_offset),"
    " max(metric_name), sum(log_partition) FROM raw_metrics GROUP BY 1 ORDER BY 1",
    "SELECT date_trunc('week', timestamp) AS week, min(timestamp), count(metric_value) FROM raw_metrics GROUP BY 1 ORDER BY 1",
    "SELECT date_trunc('month', timestamp) AS month, count(*) FROM raw_metrics GROUP BY 1 ORDER BY 1",
    "SELECT metric_name, min(metric_value), max(metric_value), avg(metric_value), sum(metric_value) FROM raw_metrics"
    " WHERE metric_name IN ('speed', 'nothing') GROUP BY 1",
    "SELECT min(metric_value), max(metric_value), count(metric_value) FROM raw_metrics",
    "SELECT sum(metric_value), avg(metric_value), min(text_value), max(log_offset), count(*) FROM raw_metrics"
    " WHERE device_id = 'nobody'",
    "SELECT device_id, sum(metric_value), min(metric_value), avg(metric_value) FROM raw_metrics"
    " WHERE metric_value IS NULL GROUP BY 1 ORDER BY 1",
    "SELECT text_value, count(*) FROM raw_metrics GROUP BY 1 ORDER BY 1 NULLS FIRST",
    "SELECT type, count(*) FILTER (WHERE device_id LIKE 'b%'), count(*) FROM raw_events GROUP BY 1 ORDER BY 1",
    "SELECT device_id, count(*) AS n FROM raw_events GROUP BY 1 HAVING count(*) > 3 ORDER BY 2 DESC, 1 LIMIT 4",
    "SELECT device_id, count(DISTINCT metric_name) FROM raw_metrics GROUP BY 1 ORDER BY 1",
    "SELECT metric_value, count(*) FROM raw_metrics GROUP BY 1 ORDER BY 1, 2",
    "SELECT GROUPING(device_id), device_id, count(*) FROM raw_events GROUP BY ROLLUP (device_id) ORDER BY 1, 2",
    "SELECT a.device_id, a.n + b.n FROM (SELECT device_id, count(*) AS n FROM raw_events GROUP BY 1) a JOIN"
    " (SELECT device_id, max(log_offset) AS n FROM raw_metrics GROUP BY 1) b USING (device_id) ORDER BY 1",
    "SELECT max(n) FROM (SELECT device_id, count(*) AS n FROM raw_metrics WHERE metric_value > 1 GROUP BY 1)",
    "SELECT a.device_id, b.metric_name FROM raw_events a"
    " JOIN raw_metrics b ON a.log_partition = b.log_partition AND a.log_offset = b.log_offset"
    " WHERE a.type = 'measure' ORDER BY 1, 2, a.log_offset LIMIT 30",
    "SELECT device_id FROM raw_events WHERE device_id IN (SELECT device_id FROM rejects) ORDER BY 1, log_offset",
    "SELECT 1 FROM raw_events WHERE topic = device_id",
    "SELECT device_id, row_number() OVER (PARTITION BY device_id ORDER BY log_offset) FROM raw_events"
    " WHERE type = 'ride' ORDER BY 1, 2 LIMIT 12",
    "SELECT * FROM raw_metrics WHERE false",
    "SELECT count(*) FROM raw_metrics WHERE log_offset >= 9223372036854775807 OR log_offset < -9223372036854775807",
    "SELECT device_id, events FROM devices ORDER BY 1",
    "SELECT device_id, metric_name, timestamp, metric_value, text_value FROM snapshot ORDER BY 1, 2",
    "SELECT column_name, data_type FROM information_schema.columns WHERE table_name = 'aggregated_metrics'"
    " ORDER BY ordinal_position",
]

PAGES = [
    "/api/v1/devices/bus-1/history?metric=speed&order=asc",
    "/api/v1/devices/bus-1/history?limit=7",
    "/api/v1/devices/t-0/history?from=-1h",
    "/api/v1/devices/bus-2/aggregates?metric=speed&bucket=1h&from=-3d",
    "/api/v1/devices/bus-2/aggregates?bucket=15m&from=-3d",
    "/api/v1/devices/bus-2/snapshot",
]


@pytest.fixture(scope="module")
def pair(service, tmp_path_factory):
    """(embedded, on ClickHouse): two servers that have got the same events."""
    from harness import Server

    clickhouse = ClickHouse(service("clickhouse"))
    folder = tmp_path_factory.mktemp("pair")
    embedded = Server(folder / "embedded", config=PARTITIONS)
    other = on_clickhouse(lambda name, **options: Server(folder / name, **options), clickhouse)
    other.clickhouse = clickhouse
    both = [embedded, other]
    try:
        for server in both:
            server.start()
        for device, kind, document in documents():
            for server in both:
                server.post_event(device, json.dumps(document), kind)
        for device, kind, payload in broken():
            for server in both:
                server.post(f"/api/v1/devices/{device}/events/{kind}", data=payload)
        expected = embedded.value("SELECT count(*) FROM raw_events")
        for server in both:
            eventually(lambda server=server: server.value("SELECT count(*) FROM raw_events") == expected, 20, "all are in")
            eventually(lambda server=server: server.value("SELECT count(*) FROM rejects") > 0, 20, "rejects are in")
        time.sleep(1)
        yield both
    finally:
        for server in both:
            server.close()
        clickhouse.drop()


@pytest.mark.parametrize("query", QUERIES)
def test_same_answers(pair, query):
    answers = []
    for server in pair:
        answer = server.sql_answer(query, limit_rows=100_000)
        document = answer.json()
        answers.append((answer.status_code, document.get("columns"), document.get("rows"), document.get("error")))
    assert answers[0] == answers[1]
    assert answers[0][0] == 200


@pytest.mark.parametrize("page", PAGES)
def test_same_pages(pair, page):
    embedded, other = (server.get(page).json() for server in pair)
    assert without_arrival(embedded) == without_arrival(other) and embedded != {}


def without_arrival(document):
    """Each server has received it at a time of its own."""
    if isinstance(document, dict):
        return {key: without_arrival(value) for key, value in document.items() if key not in ("received_at", "last_seen")}
    return [without_arrival(item) for item in document] if isinstance(document, list) else document


def test_same_in_psql(pair):
    def printed(server, query):
        command = ["psql", "-X", "-A", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", str(server.pg_port)]
        environment = {**os.environ, "PGPASSWORD": server.token, "PAGER": ""}
        return subprocess.run(
            [*command, "-U", "admin", "main", "-c", query], env=environment, capture_output=True, timeout=60, check=False
        ).stdout

    for query in QUERIES[3::4]:
        assert printed(pair[0], query) == printed(pair[1], query), query


def test_same_after_a_restart(pair):
    """Latest values, devices and their numbers of events come back from ClickHouse."""
    queries = [query for query in QUERIES if " snapshot " in query or " devices " in query] + QUERIES[:3]
    before = [pair[0].sql(query) for query in queries]
    for end in (pair[1].stop, pair[1].kill):
        end()
        pair[1].start()
        eventually(lambda: [pair[1].sql(query) for query in queries] == before, 20, "all is as before")


def test_pushdown(pair):
    """What ClickHouse is asked is what is needed."""

    def asked(query):
        plan = "\n".join(str(row) for row in pair[1].sql(f"EXPLAIN {query}"))
        return re.search(r"ClickHouseScan: (.*?)(?:\\n|\n|$)", plan)[1]

    counted = asked("SELECT count(*) FROM raw_events WHERE device_id = 'a'")
    assert counted.startswith("SELECT toInt64(count()) FROM raw_events WHERE `device_id` = "), counted
    grouped = asked(
        "SELECT date_bin(interval '5 minutes', timestamp), device_id, avg(metric_value), max(metric_value), count(*)"
        " FROM raw_metrics WHERE metric_name = 'speed' GROUP BY 1, 2"
    )
    assert " GROUP BY fromUnixTimestamp64Micro(" in grouped and "sumOrNull(`metric_value`)" in grouped, grouped
    assert "toInt64(300000000)" in grouped and " FROM raw_metrics WHERE `metric_name` = " in grouped, grouped
    # What is filtered again here is not summed up there.
    assert " GROUP BY " not in asked("SELECT device_id, count(*) FROM raw_metrics WHERE metric_value > 3 GROUP BY 1")
    newest = asked("SELECT device_id, timestamp FROM raw_metrics ORDER BY timestamp DESC LIMIT 10")
    assert "ORDER BY `timestamp` DESC NULLS FIRST LIMIT 10" in newest, newest
    recent = asked("SELECT metric_value FROM raw_metrics WHERE timestamp > now() - interval '1 hour'")
    assert "WHERE `timestamp` > fromUnixTimestamp64Micro(" in recent, recent


def test_own_sql(pair):
    embedded, other = pair
    query = "SELECT device_id, count() AS n FROM raw_events GROUP BY device_id ORDER BY device_id"
    ask = {"query": query, "dialect": "clickhouse"}
    answer = other.post("/api/v1/sql", json=ask)
    assert answer.status_code == 200, answer.text
    expected = other.sql("SELECT device_id, count(*) FROM raw_events GROUP BY 1 ORDER BY 1")
    assert [tuple(row.values()) for row in answer.json()["rows"]] == expected
    query, plain = "SELECT quantile(0.5)(metric_value) FROM raw_metrics", {"Content-Type": "text/plain"}
    by_text = other.post("/api/v1/sql?dialect=clickhouse", data=query, headers=plain)
    assert by_text.status_code == 200, by_text.text
    refused = embedded.post("/api/v1/sql", json=ask)
    assert refused.status_code == 400 and "history is not on clickhouse" in refused.json()["message"]
    where = {"CATCHMENT_URL": other.url(""), "CATCHMENT_TOKEN": other.token}
    printed = run("query", "--dialect", "clickhouse", "SELECT max(log_offset) AS top FROM raw_events", **where)
    assert "top" in printed.stdout, printed.stderr


@pytest.mark.parametrize(
    ("query", "status", "word"),
    [
        ("SELECT * FROM system.tables", 403, "system.tables"),
        ("SELECT (SELECT count() FROM system.tables)", 403, "system.tables"),
        ("SELECT 1 WHERE 'a' IN (SELECT name FROM system.users)", 403, "system.users"),
        ("SELECT * FROM url('http://127.0.0.1/', 'CSV', 'a String')", 403, ""),
        ("SELECT * FROM file('/etc/passwd', 'LineAsString')", 403, ""),
        ("SELECT file('/etc/passwd')", 403, "file"),
        ("WITH x AS (SELECT * FROM system.one, system.tables) SELECT * FROM x", 403, "system.tables"),
        ("INSERT INTO raw_events (device_id) VALUES ('x')", 400, ""),
        ("DROP TABLE raw_events", 400, ""),
        ("SELECT 1 SETTINGS max_execution_time = 1000", 403, ""),
        ("SELECT 1 FORMAT CSV", 403, "FORMAT"),
        ("SELEC 1", 400, ""),
        ("SELECT nothing FROM raw_events", 400, "nothing"),
        ("SELECT number FROM numbers(100000000)", 422, ""),
        ("SELECT count() FROM numbers(1000000000000) WHERE number % 7 = 3", 408, ""),
    ],
)
def test_own_sql_is_fenced(pair, query, status, word):
    ask = {"query": query, "dialect": "clickhouse", "timeout_ms": 3000, "format": "json", "limit_rows": 100_000_000}
    answer = pair[1].post("/api/v1/sql", json=ask)
    assert answer.status_code == status and word in answer.text, (answer.status_code, answer.text[:500])


# Exactly once.


def test_kill_under_load(new_server, clickhouse):
    server = on_clickhouse(new_server, clickhouse).start()
    load = publishers(server, "ch-kill")
    for publisher in load:
        publisher.start()
    for round_ in range(KILLS):
        time.sleep(1 + round_ * 0.37)
        server.kill()
        server.spawn()
        server.wait_ready()
    for publisher in load:
        publisher.finish()
    assert sum(len(publisher.acknowledged) for publisher in load) > 50 * KILLS, "the load was too light"
    check_all(server, load)
    server.restart()
    check_all(server, load)
    # A client that is not ours sees the same.
    ((events, doubled),) = clickhouse.query(
        "SELECT count(), count() - uniqExact(log_partition, log_offset) FROM raw_events"
    )
    assert (int(events), int(doubled)) == (server.value("SELECT count(*) FROM raw_events"), 0)


def test_clickhouse_stopped_under_load(new_server, own_clickhouse):
    service = own_clickhouse.service
    server = on_clickhouse(new_server, own_clickhouse, user=f"someone:{service.password}@").start()
    load = publishers(server, "ch-stop", http=1)
    for publisher in load:
        publisher.start()
    eventually(lambda: server.value("SELECT count(*) FROM raw_events") > 200, 30, "events flow")
    for stop in (service.down, service.kill):
        stop()
        stopped = time.monotonic()

        def told():
            answer = requests.get(server.url("/readyz"), timeout=5)
            return answer.status_code == 503 and f"ClickHouse at clickhouse://{own_clickhouse.address[7:]}" in answer.text

        eventually(told, 20, "readyz names the engine")
        assert "catchment_history_up 0" in server.get("/metrics").text
        refused = server.sql_answer("SELECT count(*) FROM raw_events")
        assert refused.status_code == 503 and "does not answer" in refused.json()["message"], refused.text
        time.sleep(max(0.0, STOPPED_S - (time.monotonic() - stopped)))
        acknowledged = sum(len(publisher.acknowledged) for publisher in load)
        service.up()
        eventually(lambda: sum(len(publisher.acknowledged) for publisher in load) > acknowledged + 100, 60, "it goes on")
        server.wait_ready()
    for publisher in load:
        publisher.finish()
    check_all(server, load)
    assert "catchment_history_up 1" in server.get("/metrics").text
    server.stop()
    assert service.password not in server.log()


def test_clickhouse_hangs_under_load(new_server, own_clickhouse):
    """It takes requests and answers none for a while; inserts that were given up are made again, and count once."""
    service = own_clickhouse.service
    config = f"{PARTITIONS}[engines.clickhouse]\ninsert_ms_max = 1000\n"
    server = on_clickhouse(new_server, own_clickhouse, config=config, user=f"someone:{service.password}@").start()
    load = publishers(server, "ch-hang", http=1)
    for publisher in load:
        publisher.start()
    for _ in range(3):
        eventually(lambda: server.value("SELECT count(*) FROM raw_events") > 100, 30, "events flow")
        service.signal(signal.SIGSTOP)
        try:
            time.sleep(HANGS_S)
            assert "gave no answer within" in requests.get(server.url("/readyz"), timeout=5).text
        finally:
            service.signal(signal.SIGCONT)
        # What has gathered meanwhile is brought in first, and on a busy machine that takes its time.
        ready = server.url("/readyz")
        eventually(lambda: requests.get(ready, timeout=5).status_code == 200, 120, "the server is ready again")
    for publisher in load:
        publisher.finish()
    check_all(server, load)


def test_a_large_backlog_goes_in_parts(new_server, own_clickhouse):
    service = own_clickhouse.service
    config = f"{PARTITIONS}[engines.clickhouse]\ninsert_rows_max = 1000\ninsert_bytes_max = 100000\n"
    server = on_clickhouse(new_server, own_clickhouse, config=config, user=f"someone:{service.password}@").start()
    service.down()
    body = "\n".join(json.dumps({"n": number}) for number in range(20_000))
    headers = {"Content-Type": "application/x-ndjson"}
    assert server.post("/api/v1/devices/a/events/x", data=body, headers=headers).status_code == 200
    service.up()
    eventually(lambda: server.value("SELECT count(*) FROM raw_events") == 20_000, 60, "all of it is in")
    server.kill()
    server.start()
    assert server.sql("SELECT count(*), sum(metric_value) FROM raw_metrics") == [(20_000, 199_990_000.0)]
    assert server.value("SELECT sum(count) FROM aggregated_metrics") == 20_000
    ((largest,),) = own_clickhouse.query("SELECT max(rows) FROM system.parts WHERE table = 'raw_events' AND level = 0")
    assert int(largest) <= 1000


def test_a_quiet_stop_leaves_nothing_to_repeat(new_server, clickhouse):
    server = on_clickhouse(new_server, clickhouse).start()
    server.post_event("a", [{"x": number} for number in range(50)])
    server.wait_rows("SELECT 1 FROM raw_events", 50)
    server.stop()
    claims = sorted((server.data / "claims").glob("p*"))
    assert all(len(set(claim.read_text().split())) == 1 for claim in claims), [claim.read_text() for claim in claims]
    server.start()
    assert server.value("SELECT count(*) FROM raw_events") == 50
    assert server.value("SELECT events FROM devices WHERE device_id = 'a'") == 50


def test_over_tls(new_server, clickhouse, tmp_path):
    authority = Authority(tmp_path)
    proxy = TlsProxy(clickhouse.address.split("://")[1], *authority.issue("clickhouse"))
    try:
        secured = f"clickhouses://localhost:{proxy.port}/{clickhouse.database}"
        trusted = f"{secured}?ca_file={authority.pem}&flush_interval_ms=200"
        server = new_server("platform", flags=["--history", trusted], config=PARTITIONS).start()
        server.post_event("a", [{"x": number} for number in range(50)])
        server.wait_rows("SELECT metric_value FROM raw_metrics", 50)
        # Each table has its own insert: one may have its rows a moment before the other.
        events = lambda: clickhouse.query("SELECT count() FROM raw_events")  # noqa: E731
        eventually(lambda: proxy.taken > 0 and events() == [("50",)], what="the events are there")
        assert "→ ClickHouse " in run("check", "--history", trusted).stdout
        refused = {
            secured: "ertificate",
            f"{secured}?ca_file={Authority(tmp_path, 'other').pem}": "ertificate",
            # TLS wants to be spoken there.
            secured.replace("clickhouses", "clickhouse"): "NOT OK",
            f"clickhouses://{clickhouse.address.split('://')[1]}/x": "NOT OK",
        }
        for url, said in refused.items():
            checked = run("check", "--history", url)
            assert checked.returncode == 1 and said in checked.stdout, f"{url}: {checked.stdout}"
    finally:
        proxy.close()


# What an operator is told.


def test_start_makes_what_is_missing_and_check_tells(new_server, clickhouse):
    checked = run("check", "--history", clickhouse.url())
    found = rf"engine history +{clickhouse.url()} → ClickHouse [\d.]+, no tables yet, answers in [\d.]+ ms"
    assert re.search(found, checked.stdout), checked.stdout
    assert f"the database {clickhouse.database} will be made" in checked.stdout
    server = on_clickhouse(new_server, clickhouse, config=f"{PARTITIONS}[history]\nraw_retention_days = 3\n").start()
    tables = [name for (name,) in clickhouse.query("SHOW TABLES")]
    views = ["aggregated_metrics", "metric_rollups_mv"]
    assert tables == sorted([*views, "metric_rollups", "raw_events", "raw_metrics", "rejects", "schema_migrations"])
    checked = run("check", "--history", clickhouse.url())
    assert "tables of version 1" in checked.stdout and "NOT OK: " not in checked.stdout.split("engine history")[1].splitlines()[0]
    server.stop()
    engine = "SELECT engine_full FROM system.tables WHERE database = currentDatabase() AND name = 'raw_metrics'"
    assert "toIntervalDay(4)" in clickhouse.query(engine)[0][0]
    config = server.folder / "catchment.toml"
    config.write_text(config.read_text().replace("raw_retention_days = 3", "raw_retention_days = 9"))
    server.start()
    assert "toIntervalDay(10)" in clickhouse.query(engine)[0][0]
    server.stop()
    config.write_text(config.read_text().replace("raw_retention_days = 9", "raw_retention_days = 0"))
    server.start()
    assert " TTL " not in clickhouse.query(engine)[0][0]
    assert server.log().count("setting the retention in ClickHouse") == 3 + 1 + 2 + 2, server.log()


def test_a_newer_schema_is_refused(new_server, clickhouse):
    server = on_clickhouse(new_server, clickhouse).start()
    server.stop()
    clickhouse.query("INSERT INTO schema_migrations SELECT 7, now64(6), 'catchment 9.9'")
    done = run("serve", "--data", server.data, *server.listeners(), *server.flags)
    told = done.stdout + done.stderr
    assert done.returncode != 0 and "version 7, made by a newer Catchment; this one knows versions up to 1" in told, told
    checked = run("check", "--history", clickhouse.url())
    assert checked.returncode == 1 and "made by a newer Catchment" in checked.stdout


def test_a_database_that_goes_away_is_told_and_made_again(new_server, clickhouse):
    server = on_clickhouse(new_server, clickhouse).start()
    server.post_event("a", {"x": 1})
    server.wait_rows("SELECT 1 FROM raw_events", 1)
    clickhouse.drop()

    def told():
        answer = requests.get(server.url("/readyz"), timeout=5)
        return answer.status_code == 503 and f"there is no database {clickhouse.database}: create it" in answer.text

    eventually(told, 20, "readyz tells what is missing")
    server.restart()
    server.post_event("a", {"x": 2})
    eventually(lambda: server.sql("SELECT 1 FROM raw_metrics WHERE metric_value = 2"), 20, "it goes on")


def test_password(new_server, own_clickhouse, tmp_path):
    password = own_clickhouse.service.password
    url = own_clickhouse.url("someone@")
    shown = own_clickhouse.url()
    good = run("check", "--history", url, CATCHMENT_ENGINES__CLICKHOUSE__PASSWORD=password)
    assert f"{shown} → ClickHouse" in good.stdout, good.stdout
    file = tmp_path / "password"
    file.write_text(f"{password}\n")
    good = run("check", "--history", f"{url}?password_file={file}")
    assert f"{shown} → ClickHouse" in good.stdout, good.stdout
    bad = run("check", "--history", own_clickhouse.url("someone:battery-staple@"))
    assert bad.returncode == 1 and "it does not let the user \"someone\" in: wrong name or password" in bad.stdout, bad.stdout
    assert "battery-staple" not in bad.stdout + bad.stderr
    server = on_clickhouse(new_server, own_clickhouse, user="someone:battery-staple@")
    done = run("serve", "--data", server.data, *server.listeners(), *server.flags)
    assert done.returncode != 0 and "does not let the user" in done.stdout + done.stderr
    assert "battery-staple" not in done.stdout + done.stderr
    (port,) = free_ports(1)
    gone = run("check", "--history", f"clickhouse://u:secret@127.0.0.1:{port}/d")
    assert "NOT OK: ClickHouse at clickhouse://127.0.0.1" in gone.stdout and "it does not answer" in gone.stdout
    assert "secret" not in gone.stdout + gone.stderr


def test_metrics_and_status(pair):
    pair[1].post_event("later", {"x": 1})
    eventually(lambda: pair[1].sql("SELECT 1 FROM raw_metrics WHERE device_id = 'later'"), 20, "it is in")

    def counted():
        # Rows are seen a moment before the insert that brought them is answered and counted.
        text = pair[1].get("/metrics").text
        names = ("up 1", "flushes_total ", "flush_seconds_count ", 'rows_total{table="raw_metrics"} ', "buffered_bytes ")
        missing = [name for name in names if f"\ncatchment_history_{name}" not in text]
        assert missing == []
        return True

    eventually(counted, 20, "the figures are there")
    status = pair[1].get("/api/v1/status", headers=pair[1].admin).json()
    urls = {engine["part"]: engine["url"] for engine in status["engines"]}
    assert urls["history"] == pair[1].clickhouse.url()


def test_a_query_that_is_given_up_ends_in_clickhouse(pair):
    """ClickHouse does not go on for nobody."""
    server, clickhouse = pair[1], pair[1].clickhouse
    slow = "SELECT count() FROM numbers(100000000000) WHERE sipHash64(number) = 3"
    ask = {"query": slow, "dialect": "clickhouse", "timeout_ms": 60_000}
    threading.Thread(target=lambda: server.post("/api/v1/sql", json=ask), daemon=True).start()

    def running():
        begin = "SELECT count() FROM numbers(1000%"
        return clickhouse.query(f"SELECT query_id FROM system.processes WHERE query LIKE '{begin}'")

    eventually(running, 20, "it runs")
    queries = server.get("/api/v1/queries").json()
    for query in queries:
        url = server.url(f"/api/v1/queries/{query['id']}")
        assert requests.delete(url, headers=server.admin, timeout=5).status_code == 204
    eventually(lambda: not running(), 90, "it has ended")
