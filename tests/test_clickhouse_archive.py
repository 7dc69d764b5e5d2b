"""History on ClickHouse with an archive: rows that are past their hot days move to Delta tables, and every answer is whole all the
time."""

import os
import random
import time

import psycopg
import pytest
import requests
from test_clickhouse import ClickHouse, clickhouse, on_clickhouse  # noqa: F401

from harness import buckets, eventually, run
from harness.buckets import COLD, HOT, TODAY, archived, new_bucket
from harness.fault_proxy import FaultProxy

KILLS = int(os.environ.get("CATCHMENT_KILLS", "20")) // 4
BUSY = """
[log]
partitions = 3
[history]
maintenance_interval_ms = 1000
vacuum_grace_ms = 1000
compact_files_min = 3
"""
# Rows leave ClickHouse 15 s after the grace: then every process knows that they are in the archive.
LEFT_S = 60


@pytest.fixture
def bucket(service):
    """Address and name of a new bucket."""
    address = service("s3")
    return address, new_bucket(address)


def with_archive(new_server, clickhouse, place, tmp_path, address=None):  # noqa: F811
    """A server whose old rows move to (bucket, prefix)."""
    (endpoint, name), prefix = place
    config = BUSY + buckets.engine(address or endpoint, tmp_path / "s3.secret")
    server = on_clickhouse(new_server, clickhouse, config=config)
    server.flags += ["--archive", f"s3://{name}/{prefix}"]
    return server


def count(clickhouse, table="raw_metrics"):  # noqa: F811
    """What ClickHouse itself has of a table."""
    return int(clickhouse.query(f"SELECT count() FROM {table}")[0][0])


def test_old_rows_move(new_server, clickhouse, bucket, tmp_path):  # noqa: F811
    to = bucket, "cold"
    server = with_archive(new_server, clickhouse, to, tmp_path).start()
    days = [*COLD, HOT, str(TODAY)]
    for n in range(100):
        server.post_event(f"d{n % 3}", {"n": n, "ts": f"{days[n % 5]}T00:00:{n % 60:02}Z"})
    counts = [(f"{day}T00:00:00", 20) for day in sorted(days)]
    by_day = "SELECT CAST(date_trunc('day', timestamp) AS VARCHAR), count(*) FROM raw_metrics GROUP BY 1 ORDER BY 1"
    server.wait_rows("SELECT 1 FROM raw_metrics", 100)

    def whole():
        # Whatever moves meanwhile.
        rows = [(str(day).rstrip("Z"), number) for day, number in server.sql(by_day)]
        if rows != counts:
            raise RuntimeError(f"{rows}")

    def moved():
        whole()
        table = archived(to)
        return table is not None and table.count() == 60

    eventually(moved, 60, "cold days are in the archive")
    assert count(clickhouse) == 100, "no query is under way any more that does not know of it, before rows are deleted"

    def left():
        whole()
        return count(clickhouse) == 40

    eventually(left, LEFT_S, "cold days have left ClickHouse")
    assert count(clickhouse, "raw_events") == 100, "events go by their arrival, and came today"
    assert "catchment_history_archive_up 1" in server.get("/metrics").text
    assert 'catchment_history_archived_rows_total{table="raw_metrics"} 60' in server.get("/metrics").text

    cold = f"SELECT device_id, metric_value FROM raw_metrics WHERE timestamp < '{COLD[1]}' AND device_id = 'd1' ORDER BY 2"
    expected = [("d1", float(n)) for n in range(0, 100, 5) if n % 3 == 1]
    across = f"SELECT count(*) FROM raw_metrics WHERE timestamp BETWEEN '{COLD[2]}' AND '{HOT}T23:59:59Z'"
    newest = "SELECT metric_value FROM raw_metrics ORDER BY timestamp DESC, metric_value DESC LIMIT 3"
    oldest = "SELECT metric_value FROM raw_metrics ORDER BY timestamp, metric_value LIMIT 3"
    values = "SELECT sum(metric_value) FROM raw_metrics WHERE metric_value >= 50 AND metric_name = 'n'"

    def answers():
        assert server.sql(cold) == expected
        assert server.value(across) == 40
        plan = str(server.sql(f"EXPLAIN {across}"))
        assert "ClickHouseScan: SELECT toInt64(count())" in plan and "DataSourceExec" in plan, "each counts its own"
        assert [row[0] % 5 for row in server.sql(newest)] == [4, 4, 4]
        assert [row[0] % 5 for row in server.sql(oldest)] == [0, 0, 0]
        assert server.value(values) == sum(range(50, 100))
        assert len(server.sql("SELECT * FROM raw_metrics LIMIT 70")) == 70
        assert server.value("SELECT count(*) FROM aggregated_metrics") > 0
        whole()

    answers()
    on = {"host": "127.0.0.1", "port": server.pg_port, "user": "admin", "dbname": "main", "password": server.token}
    with psycopg.connect(**on, autocommit=True) as connection:
        assert connection.execute(across).fetchone() == (40,)
    page = f"/api/v1/devices/d1/history?metric=n&from={COLD[0]}T00:00:00Z&to={COLD[1]}T00:00:00Z&limit=100"
    rows = server.get(page, headers=server.admin).json()
    assert sorted(row["value"] for row in rows["readings"]) == [value for _, value in expected]

    # A row that comes late for a day that has left is seen at once, and follows.
    server.post_event("late", {"n": 1000, "ts": f"{COLD[1]}T23:59:59Z"})
    late = "SELECT metric_value FROM raw_metrics WHERE device_id = 'late'"
    assert server.wait_rows(late, 1) == [(1000.0,)]
    eventually(lambda: archived(to).count() == 61 and count(clickhouse) == 40, LEFT_S, "it has followed")
    assert server.sql(late) == [(1000.0,)]
    server.restart()
    assert server.sql(late) == [(1000.0,)]
    assert server.sql(cold) == expected
    assert buckets.SECRET not in server.log()


def post_cold(server, number):
    """An event of a day that is over for long."""
    server.post_event(f"d{number % 3}", {"n": number, "ts": f"{COLD[number % 3]}T12:00:00Z"})


def check_moved(server, clickhouse, to, sent):  # noqa: F811
    """Every value is there once, all the time, and in the end in the archive alone."""

    def all_there():
        counted = server.sql("SELECT count(*), count(DISTINCT metric_value) FROM raw_metrics")[0]
        if counted[0] > counted[1]:
            raise RuntimeError(f"rows are doubled: {counted}")
        return counted == (sent, sent)

    eventually(all_there, 60, "every event is there once")

    def moved():
        assert all_there()
        table = archived(to)
        return table is not None and table.count() == sent and count(clickhouse) == 0

    eventually(moved, 3 * LEFT_S, "all is in the archive")


def test_kill_while_archiving(new_server, clickhouse, bucket, tmp_path):  # noqa: F811
    to = bucket, "cold"
    server = with_archive(new_server, clickhouse, to, tmp_path).start()
    moments = random.Random()
    sent = 0
    for _ in range(max(KILLS, 3)):
        ends = time.monotonic() + moments.uniform(1.0, 6.0)
        while time.monotonic() < ends:
            post_cold(server, sent)
            sent += 1
            time.sleep(0.02)
        server.kill()
        server.spawn()
        server.wait_ready()
    check_moved(server, clickhouse, to, sent)


def test_faults_while_archiving(new_server, clickhouse, bucket, tmp_path):  # noqa: F811
    """Answers that are lost, errors after the deed, and an archive that is away: nothing is lost or doubled, and hot rows are there."""
    proxy = FaultProxy(bucket[0])
    to = bucket, "cold"
    try:
        server = with_archive(new_server, clickhouse, to, tmp_path, proxy.address).start()
        sent = 0
        for mode in ("lost", "error_after", "503"):
            for harm in ("pass", mode):
                proxy.mode = harm
                ends = time.monotonic() + 4
                while time.monotonic() < ends:
                    post_cold(server, sent)
                    sent += 1
                    time.sleep(0.03)
        proxy.mode = "503"
        time.sleep(12)
        hot = f"SELECT count(*) FROM raw_metrics WHERE timestamp > '{HOT}'"
        assert server.value(hot) == 0, "hot rows need no archive"
        refused = server.sql_answer("SELECT count(*) FROM raw_metrics", "application/json")
        assert refused.status_code >= 500 and "s3://" in refused.text, refused.text
        proxy.mode = "pass"
        check_moved(server, clickhouse, to, sent)
        assert proxy.harmed > 10
    finally:
        proxy.close()


def test_what_is_not_due_stays(new_server, clickhouse, tmp_path):  # noqa: F811
    """Without an archive rows go by ClickHouse's own TTL; with one they stay until they have moved."""
    engine = f"SELECT engine_full FROM system.tables WHERE database = '{clickhouse.database}' AND name = 'raw_metrics'"
    server = on_clickhouse(new_server, clickhouse, config=BUSY).start()
    assert " TTL " in clickhouse.query(engine)[0][0]
    server.stop()
    server.flags += ["--archive", f"file:{tmp_path / 'cold'}"]
    server.start()
    assert " TTL " not in clickhouse.query(engine)[0][0]
    checked = run("check", *server.flags)
    assert "engine archive" in checked.stdout, checked.stdout
    # The tables remember it: without it they would drop what is to go there, and answers would not be whole.
    server.stop()
    without = server.flags[:-2]
    for flags, said in ((without, "and none was named"), ([*without, "--archive", f"file:{tmp_path / 'else'}"], "and not in")):
        done = run("serve", "--data", server.data, *server.listeners(), *flags)
        said = f"is in the archive {tmp_path / 'cold'}, {said}"
        assert done.returncode != 0 and said in done.stdout + done.stderr, done.stderr
        assert f"its archive is {tmp_path / 'cold'}: name that as --archive" in run("check", *flags).stdout
    assert " TTL " not in clickhouse.query(engine)[0][0]
    server.start()
    # Another log's archive is refused.
    other = on_clickhouse(new_server, ClickHouse(clickhouse.address), "other", config=BUSY)
    other.flags += ["--archive", f"file:{tmp_path / 'cold'}"]
    done = run("serve", "--data", other.data, *other.listeners(), *other.flags)
    assert done.returncode != 0 and "belongs to another event log" in done.stdout + done.stderr
    assert requests.get(server.url("/readyz"), timeout=5).ok
