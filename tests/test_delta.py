"""History is plain Delta tables: other readers see what SQL answers."""

import datetime
import random

import duckdb
import pyarrow.ipc
import pytest
from deltalake import DeltaTable

from harness import Server, eventually

FLUSHES = "[history]\nflush_interval_ms = 1000\nmaintenance_interval_ms = 1000\ncompact_files_min = 3\n"
TABLES = {
    "raw_events": "device_id, received_at, event_time, type, topic, content_type, payload, log_partition, log_offset",
    "raw_metrics": "device_id, timestamp, metric_name, metric_value, text_value, log_partition, log_offset",
    "metric_rollups": "device_id, time_bucket, metric_name, sum_value, min_value, max_value, count",
    "rejects": "device_id, received_at, type, topic, reason, detail, payload, log_partition, log_offset",
}
ARROW = "application/vnd.apache.arrow.stream"
DEVICES = 7
EVENTS = 700
# The days of history; retention keeps seven.
TODAY = datetime.datetime.now(datetime.UTC).date()
DAYS = [str(TODAY - datetime.timedelta(days=back)) for back in range(1, 5)]


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A server whose rows came in over some flushes and a kill, and are all in files."""
    server = Server(tmp_path_factory.mktemp("delta"), config=FLUSHES).start()
    values = random.Random(1)
    for first in range(0, EVENTS, 100):
        for n in range(first, first + 100):
            document = {"n": n, "v": values.gauss(0, 1e6), "on": n % 2 == 0, "text": f"é {n}"}
            if n % 10 == 0:
                document["ts"] = f"{DAYS[n // 10 % len(DAYS)]}T12:00:00.123456Z"
            server.post_event(f"d{n % DEVICES}", document)
        server.post_event("broken", b"no json", headers={"Content-Type": "application/octet-stream"})
        if first == 300:
            server.restart()
        files = first // 100 + 1
        eventually(lambda files=files: DeltaTable(server.data / "history/raw_events").count() >= files * 101, 30)
    for table, count in {"raw_events": EVENTS + 7, "raw_metrics": EVENTS * 4, "rejects": 7}.items():
        eventually(lambda table=table, count=count: DeltaTable(server.data / "history" / table).count() == count, 30)
    yield server
    server.close()


def path(server, table):
    return str(server.data / "history" / table)


def rows_of_sql(server, table):
    """All rows as Arrow, from the server."""
    query = f"SELECT {TABLES[table]} FROM {table}"
    answer = server.sql_answer(query, ARROW)
    assert answer.status_code == 200, answer.text
    return pyarrow.ipc.open_stream(answer.content).read_all()


def as_set(table):
    """Rows of an Arrow table in a form that compares: in any order, times as text in UTC."""
    rows = [
        tuple(str(value) if hasattr(value, "isoformat") else value for value in row.values())
        for row in table.to_pylist()
    ]
    return sorted(rows, key=repr)


def same_rows(ours, theirs):
    ours, theirs = as_set(ours), as_set(theirs)
    assert len(ours) == len(theirs)
    assert ours == theirs


@pytest.mark.parametrize("table", TABLES)
def test_deltalake_reads_the_same(filled, table):
    if table == "metric_rollups":
        # Open buckets reach the files with the next flush only: compare what does not move any more.
        eventually(
            lambda: DeltaTable(path(filled, table)).to_pyarrow_table()["count"].to_pandas().sum() == EVENTS * 3, 30
        )
    theirs = DeltaTable(path(filled, table)).to_pyarrow_table().select(TABLES[table].split(", "))
    if table == "metric_rollups":
        assert theirs["count"].to_pandas().sum() == filled.value("SELECT sum(count) FROM aggregated_metrics")
    else:
        same_rows(rows_of_sql(filled, table), theirs)


@pytest.mark.parametrize("table", ["raw_events", "raw_metrics", "rejects"])
def test_duckdb_reads_the_same(filled, table):
    with duckdb.connect() as database:
        database.execute("SET TimeZone = 'UTC'")
        database.register("files", DeltaTable(path(filled, table)).to_pyarrow_dataset())
        theirs = database.sql(f"SELECT {TABLES[table]} FROM files").to_arrow_table()
    same_rows(rows_of_sql(filled, table), theirs)


def test_duckdb_reads_the_parquet_files(filled):
    """Without anything of Delta: the files of the table, as Parquet."""
    files = DeltaTable(path(filled, "raw_metrics")).file_uris()
    with duckdb.connect() as database:
        query = "SELECT metric_name, count(*), sum(metric_value), count(text_value) FROM read_parquet(?) GROUP BY 1 ORDER BY 1"
        theirs = database.execute(query, [files]).fetchall()
    ours = filled.sql(
        "SELECT metric_name, count(*), sum(metric_value), count(text_value) FROM raw_metrics GROUP BY 1 ORDER BY 1"
    )
    assert [(row[0], row[1], row[3]) for row in theirs] == [(row[0], row[1], row[3]) for row in ours]
    for (name, _, their_sum, _), (_, _, our_sum, _) in zip(theirs, ours, strict=True):
        assert their_sum == (our_sum if our_sum is None else pytest.approx(our_sum)), name


def test_aggregated_metrics_can_be_computed_from_the_files(filled):
    with duckdb.connect() as database:
        database.execute("SET TimeZone = 'UTC'")
        table = DeltaTable(path(filled, "metric_rollups"))
        eventually(
            lambda: (
                DeltaTable(path(filled, "metric_rollups")).to_pyarrow_table()["count"].to_pandas().sum() == EVENTS * 3
            ),
            30,
        )
        table.update_incremental()
        database.register("files", table.to_pyarrow_dataset())
        query = "SELECT device_id, metric_name, epoch(time_bucket), min(min_value), max(max_value), sum(count)::BIGINT"
        theirs = database.execute(f"{query} FROM files GROUP BY ALL ORDER BY ALL").fetchall()
    ours = filled.sql(
        "SELECT device_id, metric_name, date_part('epoch', time_bucket), min_value, max_value, count"
        " FROM aggregated_metrics ORDER BY 1, 2, 3"
    )
    assert theirs == ours


def test_every_offset_is_there_once(filled):
    table = DeltaTable(path(filled, "raw_events")).to_pyarrow_table()
    places = set(zip(table["log_partition"].to_pylist(), table["log_offset"].to_pylist(), strict=True))
    assert len(places) == table.num_rows == EVENTS + 7


def test_the_table_is_partitioned_by_day(filled):
    days = {str(next(iter(partition.values()))) for partition in DeltaTable(path(filled, "raw_metrics")).partitions()}
    assert set(DAYS) <= days


def test_commits_carry_the_offset(filled):
    """What makes it exactly-once: each partition's next offset stands in the table's own log."""
    table = DeltaTable(path(filled, "raw_events"))
    ranges = filled.sql("SELECT log_partition, max(log_offset) FROM raw_events GROUP BY 1")
    for partition, last in ranges:
        assert table.transaction_version(f"catchment/{partition}") == last + 1


def test_small_files_are_merged(filled):
    """Seven flushes of the same days do not stay many files."""

    def merged():
        return len(DeltaTable(path(filled, "raw_events")).file_uris()) < EVENTS // 100 * 2

    eventually(merged, 30)
    assert filled.value("SELECT count(*) FROM raw_events") == EVENTS + 7
