"""History in S3, and the archive, against a real S3 (moto): what is stored, what faults do, what other readers see."""

import io
import os
import random
import re
import secrets
import shutil
import threading
import time

import duckdb
import pyarrow.ipc
import pyarrow.parquet
import pytest
import requests

from harness import buckets, eventually, run
from harness.fault_proxy import FaultProxy
from harness.buckets import ANYBODY, COLD, HOT, SECRET, TODAY, archived, delta, new_bucket
from harness.load import check_all, publishers
from harness.services import S3

KILLS = int(os.environ.get("CATCHMENT_KILLS", "20")) // 4
FAULTS = int(os.environ.get("CATCHMENT_S3_FAULTS", "5"))
STOPPED_S = float(os.environ.get("CATCHMENT_STOPPED_S", "12"))
FLUSHES = "flush_interval_ms = 1000\nmaintenance_interval_ms = 1000\ncompact_files_min = 3\nvacuum_grace_ms = 5000\n"


@pytest.fixture
def bucket(service):
    """Address and name of a new bucket of the S3 that tests share."""
    address = service("s3")
    return address, new_bucket(address)


@pytest.fixture
def own_s3(service, tmp_path, request):
    """An S3 of the test's own."""
    service("s3")

    class OwnS3(S3):
        """Is stopped by the test."""

        def own_address(self):
            return None

    own = OwnS3(tmp_path / "s3")
    request.addfinalizer(own.kill)
    own.up()
    return own


def settings(address, secret_file, history=FLUSHES, more="request_s_max = 3\n"):
    """A configuration: where S3 is, and a busy history."""
    return f"{buckets.engine(address, secret_file, more)}[history]\n{history}"


def on_s3(new_server, tmp_path, bucket, name="own", **options):
    """A server whose history is in S3."""
    address, lake = bucket
    config = settings(address, tmp_path / "s3.secret")
    return new_server(name, config=config, flags=["--history", f"s3://{lake}/city"], **options)


def objects(bucket):
    """Names of all objects of a bucket."""
    address, name = bucket
    names, more = [], ""
    while True:
        answer = requests.get(f"{address}/{name}?list-type=2{more}", headers=ANYBODY, timeout=30)
        names += re.findall(r"<Key>([^<]*)</Key>", answer.text)
        token = re.search(r"<NextContinuationToken>([^<]*)<", answer.text)
        if not token:
            return names
        more = f"&continuation-token={requests.utils.quote(token[1], safe='')}"


def same_rows(server, table, columns, theirs):
    """Another reader's rows are those that SQL answers, in any order."""
    query = f"SELECT {columns} FROM {table}"
    answer = server.sql_answer(query, "application/vnd.apache.arrow.stream")
    assert answer.status_code == 200, answer.text
    ours = pyarrow.ipc.open_stream(answer.content).read_all()

    def plain(rows):
        return sorted(repr([str(value) for value in row.values()]) for row in rows.to_pylist())

    assert plain(ours) == plain(theirs.select(columns.split(", ")))


def flushed(server):
    """Whether nothing is left in memory."""
    partitions = server.get("/api/v1/status", headers=server.admin).json()["partitions"]
    return all(partition["committed_offset"] == partition["log_offset"] for partition in partitions)


def test_lake(new_server, tmp_path, bucket):
    server = on_s3(new_server, tmp_path, bucket).start()
    values = random.Random(1)
    for n in range(300):
        document = {"n": n, "v": values.gauss(0, 1e6), "text": f"é {n}"}
        if n % 10 == 0:
            document["ts"] = f"{HOT}T12:00:00.123456Z"
        server.post_event(f"d{n % 7}", document)
        if n % 100 == 99:
            server.post_event("broken", b"no json", headers={"Content-Type": "application/octet-stream"})
            eventually(lambda: flushed(server), 30, "rows are in S3")
    assert server.value("SELECT count(*) FROM raw_events") == 303
    aggregated = server.sql("SELECT * FROM aggregated_metrics ORDER BY 1, 2, 3")
    pruned = f"SELECT count(*) FROM raw_metrics WHERE device_id = 'd3' AND timestamp < '{TODAY}'"
    counts = server.value(pruned)
    assert counts > 0
    snapshot = server.snapshot("d3")
    urls = {e["part"]: e["url"] for e in server.get("/api/v1/status", headers=server.admin).json()["engines"]}
    assert urls["history"] == f"s3://{bucket[1]}/city"
    # Everything is there, and nothing here.
    assert not (server.data / "history").exists()
    names = objects(bucket)
    assert "city/raw_events/_delta_log/00000000000000000000.json" in names
    assert any(re.fullmatch(rf"city/raw_metrics/date={HOT}/\d+-[0-9a-f]+\.parquet", name) for name in names)
    server.stop()
    assert "city/snapshot.parquet" in objects(bucket)
    server.start()
    again = server.sql("SELECT * FROM aggregated_metrics ORDER BY 1, 2, 3")
    # The order in which states are merged is not always the same, and so the last digit of a sum is not.
    assert [row[:3] + row[4:] for row in again] == [row[:3] + row[4:] for row in aggregated]
    assert [row[3] for row in again] == pytest.approx([row[3] for row in aggregated], rel=1e-12)
    assert (server.value(pruned), server.snapshot("d3")) == (counts, snapshot)

    for table, columns in {
        "raw_events": "device_id, received_at, event_time, type, topic, payload, log_partition, log_offset",
        "raw_metrics": "device_id, timestamp, metric_name, metric_value, text_value, log_partition, log_offset",
        "rejects": "device_id, received_at, reason, payload, log_partition, log_offset",
    }.items():
        same_rows(server, table, columns, delta(bucket, f"city/{table}").to_pyarrow_table())
    with duckdb.connect() as database:
        database.register("files", delta(bucket, "city/metric_rollups").to_pyarrow_dataset())
        query = "SELECT sum(count)::BIGINT FROM files"
        assert database.execute(query).fetchone()[0] == server.value("SELECT sum(count) FROM aggregated_metrics")
    assert SECRET not in server.log()


def test_small_files_are_merged_and_dead_ones_go(new_server, tmp_path, bucket):
    server = on_s3(new_server, tmp_path, bucket).start()
    for n in range(6):
        server.post_event("d", {"n": n})
        eventually(lambda: flushed(server), 30, "rows are in S3")

    def tidy():
        files = [name for name in objects(bucket) if name.startswith("city/raw_events/date=")]
        return len(files) < 4

    eventually(tidy, 60, "merged files are deleted")
    assert [n for (n,) in server.sql("SELECT metric_value FROM raw_metrics ORDER BY 1")] == [0, 1, 2, 3, 4, 5]
    assert delta(bucket, "city/raw_events").to_pyarrow_table().num_rows == 6


def test_kill_under_load(new_server, tmp_path, bucket):
    server = on_s3(new_server, tmp_path, bucket).start()
    load = publishers(server, "s3-kill")
    for publisher in load:
        publisher.start()
    moments = random.Random()
    for _ in range(KILLS):
        time.sleep(moments.uniform(0.5, 2.5))
        server.kill()
        server.spawn()
        server.wait_ready()
    for publisher in load:
        publisher.finish()
    assert sum(len(publisher.acknowledged) for publisher in load) > 50 * KILLS, "the load was too light"
    check_all(server, load)
    server.restart()
    check_all(server, load)


def test_two_writers(new_server, tmp_path, bucket):
    first = on_s3(new_server, tmp_path, bucket, "first").start()
    first.post_event("a", {"x": 1})
    eventually(lambda: flushed(first), 30, "rows are in S3")

    # Another data folder has another log: it is refused, and the first does not notice.
    config = ["--config", tmp_path / "first" / "catchment.toml", "--history", f"s3://{bucket[1]}/city"]
    other = new_server("other")
    done = run("serve", "--data", other.data, *other.listeners(), *config)
    assert done.returncode != 0
    assert f"s3://{bucket[1]}/city/log.engine belongs to another event log" in done.stdout + done.stderr
    first.post_event("a", {"x": 2})
    eventually(lambda: flushed(first), 30, "the first goes on")

    # A copy of the data folder has the same log, and nobody's lock tells them apart: the later one has the tables.
    shutil.copytree(first.data, tmp_path / "second" / "data")
    second = on_s3(new_server, tmp_path, bucket, "second").start()
    first.post_event("a", {"x": 3})

    def told():
        answer = requests.get(first.url("/readyz"), timeout=5)
        text = f"another program committed version \\d+ to the table s3://{bucket[1]}/city/raw_events"
        return answer.status_code == 503 and re.search(text, answer.text)

    eventually(told, 30, "the first says that it writes no more")
    second.post_event("b", {"x": 4})
    eventually(lambda: flushed(second), 30, "the second writes")
    values = [x for (x,) in second.sql("SELECT metric_value FROM raw_metrics ORDER BY 1")]
    assert values == [1, 2, 4]
    assert delta(bucket, "city/raw_metrics").to_pyarrow_table().num_rows == 3
    # The event that the first took since then is in its own log, and with that it can be served elsewhere.
    assert first.value("SELECT count(*) FROM raw_metrics") == 3


def test_s3_stopped_under_load(new_server, tmp_path, own_s3):
    address = own_s3.running()
    server = on_s3(new_server, tmp_path, (address, new_bucket(address))).start()
    load = publishers(server, "s3-stop", http=1)
    for publisher in load:
        publisher.start()
    eventually(lambda: sum(len(publisher.acknowledged) for publisher in load) > 200, 30, "events flow")
    own_s3.pause()
    stopped = time.monotonic()
    try:

        def told():
            answer = requests.get(server.url("/readyz"), timeout=5)
            return answer.status_code == 503 and "s3://" in answer.text and "rows cannot be brought" in answer.text

        eventually(told, 30, "readyz names the engine")
        acknowledged = sum(len(publisher.acknowledged) for publisher in load)
        time.sleep(max(0.5, STOPPED_S - (time.monotonic() - stopped)))
        assert sum(len(publisher.acknowledged) for publisher in load) > acknowledged, "events are taken meanwhile"
        # What is in memory is answered.
        recent = "SELECT count(*) FROM raw_events WHERE device_id = 'nobody'"
        assert server.value(recent) == 0
    finally:
        own_s3.resume()
    server.wait_ready()
    for publisher in load:
        publisher.finish()
    check_all(server, load)
    eventually(lambda: flushed(server), 60, "all is in S3")
    server.restart()
    check_all(server, load)


def test_faults_under_load(new_server, tmp_path, bucket, capsys):
    """Errors, slowness and answers that get lost, of which some had an effect."""
    seed = int(os.environ.get("CATCHMENT_SEED", secrets.randbits(32)))
    with capsys.disabled():
        print(f"\nS3 fault test: CATCHMENT_SEED={seed}", flush=True)
    proxy = FaultProxy(bucket[0])
    try:
        server = on_s3(new_server, tmp_path, (proxy.address, bucket[1])).start()
        load = publishers(server, "s3-faults", http=1)
        for publisher in load:
            publisher.start()
        moments = random.Random(seed)
        for mode in moments.sample(["500", "503", "lost", "error_after", "slow", "lost", "error_after"], FAULTS):
            time.sleep(moments.uniform(0.2, 1.5))
            harmed = proxy.harmed
            proxy.mode = mode
            eventually(lambda harmed=harmed: proxy.harmed > harmed + 3, 30, f"requests meet {proxy.mode}")
            time.sleep(moments.uniform(0.0, 2.0))
            proxy.mode = "pass"
        for publisher in load:
            publisher.finish()
        server.wait_ready()
        check_all(server, load)
        server.restart()
        check_all(server, load)
        assert proxy.harmed > 20
        assert "another program committed" not in server.log(), "a commit of its own is known as such"
        events = delta(bucket, "city/raw_events").to_pyarrow_table()
        places = set(zip(events["log_partition"].to_pylist(), events["log_offset"].to_pylist(), strict=True))
        assert len(places) == events.num_rows
    finally:
        proxy.close()


def test_check(tmp_path, bucket):
    address, lake = bucket
    config = tmp_path / "catchment.toml"

    def check(url, at=address):
        config.write_text(settings(at, tmp_path / "s3.secret"))
        done = run("check", "--config", config, "--data", tmp_path / "data", "--history", url)
        assert SECRET not in done.stdout + done.stderr
        return done

    good = check(f"s3://{lake}/city")
    found = rf"engine history +s3://{lake}/city → S3 that takes objects, answers in [\d.]+ ms +ok"
    assert re.search(found, good.stdout), good.stdout
    assert objects(bucket) == []
    missing = check("s3://no-such-bucket-here/city")
    assert missing.returncode == 1 and "S3 answers NoSuchBucket" in missing.stdout, missing.stdout
    assert "make the bucket" in missing.stdout
    proxy = FaultProxy(address)
    proxy.mode = "unconditional"
    careless = check(f"s3://{lake}/city", proxy.address)
    assert careless.returncode == 1 and "use a store that knows conditional puts" in careless.stdout
    proxy.mode = "503"
    busy = check(f"s3://{lake}/city", proxy.address)
    proxy.close()
    assert busy.returncode == 1 and "S3 answers SlowDown" in busy.stdout, busy.stdout
    away = check(f"s3://{lake}/city", proxy.address)
    assert away.returncode == 1 and "Connection refused" in away.stdout, away.stdout
    bad = run("check", "--history", "s3://key:hush@lake")
    assert bad.returncode == 1 and "hush" not in bad.stdout and "s3://BUCKET" in bad.stdout


def test_a_start_waits_for_s3(new_server, tmp_path, own_s3):
    address = own_s3.running()
    server = on_s3(new_server, tmp_path, (address, new_bucket(address)))
    own_s3.pause()
    awake = threading.Timer(8, own_s3.resume)
    awake.start()
    server.start()
    assert not awake.is_alive(), "it was ready only when S3 was"
    assert "where history is does not answer; waiting for it" in server.log()
    server.post_event("a", {"v": 1})
    assert server.wait_rows("SELECT metric_value FROM raw_metrics", 1) == [(1.0,)]


def test_a_careless_store_is_refused(new_server, tmp_path, bucket):
    proxy = FaultProxy(bucket[0])
    proxy.mode = "unconditional"
    server = on_s3(new_server, tmp_path, (proxy.address, bucket[1]))
    done = run("serve", "--data", server.data, *server.listeners(), *server.flags)
    proxy.close()
    assert done.returncode != 0 and "ignores `If-None-Match`" in done.stdout + done.stderr


def test_wrong_credentials(service, new_server, tmp_path, request):
    service("s3")

    class ClosedS3(S3):
        """Takes nobody's word."""

        def own_address(self):
            return None

        def environment(self):
            return {"INITIAL_NO_AUTH_ACTION_COUNT": "0"}

        def probe(self, address):
            if requests.get(f"{address}/moto-api/", timeout=5).status_code != 200:
                raise OSError("not yet")
            return "S3"

    closed = ClosedS3(tmp_path / "s3")
    request.addfinalizer(closed.kill)
    address = closed.up()
    server = on_s3(new_server, tmp_path, (address, "lake"))
    done = run("serve", "--data", server.data, *server.listeners(), *server.flags)
    said = done.stdout + done.stderr
    assert done.returncode != 0 and SECRET not in said
    assert re.search(r"S3 answers (InvalidAccessKeyId|403).*; look at access_key_id and secret_access_key_file", said), said
    checked = run("check", *server.flags)
    assert "look at access_key_id" in checked.stdout and SECRET not in checked.stdout


def with_archive(new_server, tmp_path, bucket, place):
    """A server that archives what is older than seven days: beside its history in S3, or in a folder beside a local one."""
    config = settings(bucket[0], tmp_path / "s3.secret")
    flags = {
        "s3": ["--history", f"s3://{bucket[1]}/city", "--archive", f"s3://{bucket[1]}/cold"],
        "mixed": ["--archive", f"s3://{bucket[1]}/cold"],
        "file": ["--archive", f"file:{tmp_path / 'cold'}"],
    }[place]
    return new_server(config=config, flags=flags)


@pytest.mark.parametrize("place", ["s3", "mixed", "file"])
def test_archive(new_server, tmp_path, bucket, place):
    server = with_archive(new_server, tmp_path, bucket, place).start()
    days = [*COLD, HOT, str(TODAY)]
    for n in range(100):
        server.post_event(f"d{n % 3}", {"n": n, "ts": f"{days[n % 5]}T00:00:{n % 60:02}Z"})
    counts = [(f"{day}T00:00:00", 20) for day in sorted(days)]
    query = "SELECT CAST(date_trunc('day', timestamp) AS VARCHAR), count(*) FROM raw_metrics GROUP BY 1 ORDER BY 1"

    def exported():
        # Whatever moves meanwhile, the answer is always whole.
        rows = [(str(day).rstrip("Z"), count) for day, count in server.sql(query)]
        if sum(count for _, count in rows) != 100:
            raise RuntimeError(f"{rows}")
        table = archived(tmp_path / "cold" if place == "file" else (bucket, "cold"))
        return table is not None and table.count() == 60 and rows == counts

    server.wait_rows("SELECT 1 FROM raw_metrics", 100)
    eventually(exported, 60, "cold days are in the archive")
    assert 'catchment_history_archive_up{table="raw_metrics"} 1' in server.get("/metrics").text
    one = f"SELECT device_id, metric_value FROM raw_metrics WHERE timestamp < '{COLD[1]}' AND device_id = 'd1' ORDER BY 2"
    expected = [("d1", float(n)) for n in range(0, 100, 5) if n % 3 == 1]
    assert server.sql(one) == expected
    across = f"SELECT count(*) FROM raw_metrics WHERE timestamp BETWEEN '{COLD[2]}' AND '{HOT}T23:59:59Z'"
    assert server.value(across) == 40
    server.restart()
    assert server.sql(one) == expected and server.value(across) == 40
    assert server.value("SELECT count(*) FROM raw_metrics") == 100

    # An ordinary Delta table of Snappy Parquet by day, in order.
    table = archived(tmp_path / "cold" if place == "file" else (bucket, "cold"))
    assert sorted(str(next(iter(part.values()))) for part in table.partitions()) == sorted(COLD)
    with duckdb.connect() as database:
        database.register("files", table.to_pyarrow_dataset())
        theirs = database.sql("SELECT device_id, metric_value FROM files WHERE device_id = 'd1' ORDER BY 2").fetchall()
    cold = f"SELECT device_id, metric_value FROM raw_metrics WHERE device_id = 'd1' AND timestamp < '{HOT}' ORDER BY 2"
    assert theirs == server.sql(cold)
    for uri in table.file_uris():
        day = re.search(r"raw_metrics/date=(\d{4}-\d\d-\d\d)/[^/]+\.parquet$", uri)[1]
        assert day in COLD
        if place == "file":
            data = (tmp_path / "cold" / uri.split("/cold/")[1]).read_bytes()
        else:
            path = uri.removeprefix("s3://")
            data = requests.get(f"{bucket[0]}/{path}", headers=ANYBODY, timeout=20).content
        file = pyarrow.parquet.ParquetFile(io.BytesIO(data))
        group = file.metadata.row_group(0)
        assert {group.column(n).compression for n in range(group.num_columns)} == {"SNAPPY"}
        keys = [(row["device_id"], row["timestamp"]) for row in file.read(["device_id", "timestamp"]).to_pylist()]
        assert keys == sorted(keys)
    assert SECRET not in server.log()


def check_archived(server, bucket, sent):
    """Every value is there once, all the time, and in the archive in the end."""

    def all_there():
        counted = server.sql("SELECT count(*), count(DISTINCT metric_value) FROM raw_metrics")[0]
        if counted[0] > counted[1]:
            raise RuntimeError(f"rows are doubled: {counted}")
        return counted == (sent, sent)

    eventually(all_there, 30, "every event is there once")

    def moved():
        assert all_there()
        table = archived((bucket, "cold"))
        return table is not None and table.count() == sent

    eventually(moved, 60, "all is in the archive")
    assert delta(bucket, "city/raw_metrics").to_pyarrow_table().num_rows == 0


def post_cold(server, number):
    """An event of a day that is over for long."""
    server.post_event(f"d{number % 3}", {"n": number, "ts": f"{COLD[number % 3]}T12:00:00Z"})


def test_kill_while_archiving(new_server, tmp_path, bucket):
    server = with_archive(new_server, tmp_path, bucket, "s3").start()
    moments = random.Random()
    sent = 0
    for _ in range(max(KILLS, 3)):
        ends = time.monotonic() + moments.uniform(1.0, 3.0)
        while time.monotonic() < ends:
            post_cold(server, sent)
            sent += 1
            time.sleep(0.01)
        server.kill()
        server.spawn()
        server.wait_ready()
    check_archived(server, bucket, sent)


def test_faults_while_archiving(new_server, tmp_path, bucket):
    proxy = FaultProxy(bucket[0])
    try:
        server = with_archive(new_server, tmp_path, (proxy.address, bucket[1]), "s3").start()
        sent = 0
        for mode in ("lost", "error_after", "503"):
            for harm in ("pass", mode):
                proxy.mode = harm
                ends = time.monotonic() + 2.5
                while time.monotonic() < ends:
                    post_cold(server, sent)
                    sent += 1
                    time.sleep(0.02)
        proxy.mode = "pass"
        server.wait_ready()
        check_archived(server, bucket, sent)
        assert proxy.harmed > 10
        assert "another program committed" not in server.log(), "a commit of its own is known as such"
        server.restart()
        assert server.value("SELECT count(*) FROM raw_metrics") == sent
    finally:
        proxy.close()
