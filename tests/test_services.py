"""The real services start, answer to clients that we did not write, and stop."""

import gzip
import io
import os
import subprocess
import time
import uuid

import psycopg
import pyarrow as pa
import pyarrow.parquet
import pytest
import requests
from kafka import KafkaAdminClient
from kafka.admin import NewTopic

from harness.services import KINDS, Redis


def output_of(*command, stdin=None):
    """What a command prints."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def host_and_port(address):
    """Of an address with or without a scheme."""
    host, port = address.rsplit("://")[-1].rsplit("@")[-1].split("/")[0].rsplit(":", 1)
    return host, port


def test_life(tmp_path, request):
    redis = Redis(tmp_path)
    request.addfinalizer(redis.down)
    assert redis.own_address() is None and redis.running() is None and not redis.down()
    address = redis.up()
    assert redis.up() == address, "a service that runs is left as it is"
    assert redis.probe(address).startswith("Redis ")
    assert Redis(tmp_path).running() == address, "it is found again by others"
    assert redis.kill() and redis.running() is None
    assert redis.up() == address, "it comes back where it was"
    assert redis.down() and not redis.down()
    with pytest.raises(OSError):
        redis.probe(address)


def test_what_fails_says_why(tmp_path, monkeypatch):
    class Broken(Redis):
        """Ends at once."""

        def command(self, ports):
            return ["sh", "-c", "echo the reason >&2; exit 3"]

    with pytest.raises(Exception, match="redis ended with 3 as it started:\n.*\nthe reason"):
        Broken(tmp_path).up()

    class Absent(Redis):
        """Of a package that is nowhere."""

        packages = (("no-such-command", "no-such-package"),)

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Exception, match="redis needs no-such-package: install it, for instance with `sudo apt-get"):
        Absent(tmp_path / "absent").up()


def test_an_operators_own_is_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("CATCHMENT_TEST_REDIS", "redis://elsewhere:1")
    assert Redis().up() == "redis://elsewhere:1"
    assert Redis(tmp_path).own_address() is None, "a test's own is the test's, whatever an operator names"
    assert all(kind().variable == f"CATCHMENT_TEST_{name.upper()}" for name, kind in KINDS.items())


def test_kafka(service):
    address = service("kafka")
    topic = f"services-{uuid.uuid4()}"
    admin = KafkaAdminClient(bootstrap_servers=address)
    admin.create_topics([NewTopic(topic, num_partitions=2, replication_factor=1)])
    try:
        kcat = ("kcat", "-b", address, "-t", topic, "-p", "1")
        output_of(*kcat, "-P", "-K", "=", "-H", "type=state", "-X", "acks=all", stdin='device-1={"a":1}\n')
        assert output_of(*kcat, "-C", "-e", "-q", "-f", "%p %o %k %h %s\n") == '1 0 device-1 type=state {"a":1}\n'
    finally:
        admin.delete_topics([topic])
        admin.close()


def test_postgres(service):
    address = service("postgres")
    name = f"services_{uuid.uuid4().hex}"
    with psycopg.connect(address, autocommit=True) as client:
        client.execute(f"CREATE DATABASE {name}")
        try:
            host, port = host_and_port(address)
            psql = ("psql", "-At", "-h", host, "-p", port, "-U", "postgres", name, "-c")
            output_of(*psql, "CREATE TABLE t (a int PRIMARY KEY); INSERT INTO t VALUES (1), (2)")
            assert output_of(*psql, "SELECT sum(a) FROM t") == "3\n"
        finally:
            client.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_redis(service):
    host, port = host_and_port(service("redis"))
    key = f"services-{uuid.uuid4()}"
    redis = ("redis-cli", "-h", host, "-p", port)
    assert output_of(*redis, "HSET", key, "speed", "12.5") == "1\n"
    assert output_of(*redis, "HGET", key, "speed") == "12.5\n"
    assert output_of(*redis, "DEL", key) == "1\n"


def test_s3(service):
    bucket = f"{service('s3')}/services-{uuid.uuid4()}"
    curl = ("curl", "-sS", "--aws-sigv4", "aws:amz:us-east-1:s3", "--user", "key:secret")
    state_of = (*curl, "-o", os.devnull, "-w", "%{http_code}", "-X", "PUT")
    assert output_of(*state_of, bucket) == "200"
    put = (*state_of, f"{bucket}/log/0", "-H", "If-None-Match: *", "-H", "Content-Type: text/plain", "--data")
    assert [output_of(*put, text) for text in ("first", "second")] == ["200", "412"]
    assert output_of(*curl, f"{bucket}/log/0") == "first"
    assert "<Key>log/0</Key>" in output_of(*curl, f"{bucket}?list-type=2&prefix=log%2F")


def test_mosquitto(service):
    host, port = host_and_port(service("mosquitto"))
    topic = f"services/{uuid.uuid4()}"
    to = ("-h", host, "-p", port, "-t", topic, "-q", "1")
    listener = subprocess.Popen(("mosquitto_sub", *to, "-C", "1", "-W", "20"), stdout=subprocess.PIPE, text=True)
    while listener.poll() is None:
        output_of("mosquitto_pub", *to, "-m", "hello")
        time.sleep(0.05)
    assert listener.communicate()[0] == "hello\n" and listener.returncode == 0


class ClickHouse:
    """Requests to its HTTP interface, in a database of their own."""

    def __init__(self, address):
        self.address = address
        self.database = f"services_{uuid.uuid4().hex}"
        self.query(f"CREATE DATABASE {self.database}", database="default")

    def post(self, query, body=b"", headers=None, **parameters):
        """The raw answer."""
        asked = {"query": query, "database": self.database, **parameters}
        return requests.post(self.address, params=asked, data=body, headers=headers, timeout=30)

    def query(self, query, body=b"", headers=None, **parameters):
        """What it answers, which must be good."""
        answer = self.post(query, body, headers, **parameters)
        assert answer.status_code == 200, answer.text
        return answer.content

    def refusal(self, query, **parameters):
        """(state, code) of an answer that is not."""
        answer = self.post(query, **parameters)
        return answer.status_code, int(answer.headers["X-ClickHouse-Exception-Code"])


@pytest.fixture
def clickhouse(service):
    made = ClickHouse(service("clickhouse"))
    yield made
    made.query(f"DROP DATABASE {made.database}")


def arrow_stream(table):
    """A table as ArrowStream, ClickHouse's name for Arrow's IPC stream."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def test_clickhouse_formats(clickhouse):
    table = pa.table({"device": ["a", "b"], "value": [1.5, 2.5]})
    clickhouse.query("CREATE TABLE t (device String, value Float64) ENGINE = MergeTree ORDER BY device")
    clickhouse.query("INSERT INTO t FORMAT ArrowStream", arrow_stream(table))
    parquet = io.BytesIO()
    pyarrow.parquet.write_table(table, parquet)
    clickhouse.query("INSERT INTO t (device, value) FORMAT Parquet", parquet.getvalue())
    clickhouse.query("", b"INSERT INTO t FORMAT RowBinary\n\x01c" + b"\0" * 8)
    clickhouse.query("INSERT INTO t VALUES ('d', 7)")
    clickhouse.query("INSERT INTO t SELECT device, value FROM t WHERE device = 'd' SETTINGS max_threads = 1")
    answer = clickhouse.query("SELECT device, sum(value) AS s FROM t GROUP BY device ORDER BY device FORMAT ArrowStream")
    assert pa.ipc.open_stream(answer).read_all().to_pydict()["s"] == [3.0, 5.0, 0.0, 14.0]
    assert clickhouse.query("SELECT toUInt16(258)", default_format="RowBinary") == b"\x02\x01"


def test_clickhouse_parameters_settings_and_errors(clickhouse):
    assert clickhouse.query("SELECT {a:UInt8} + 1", param_a="4") == b"5\n"
    assert clickhouse.query("SELECT getSetting('max_block_size')", max_block_size="77") == b"77\n"
    assert clickhouse.query("SELECT getSetting('max_block_size') = 77") == b"0\n", "settings are a request's own"
    assert clickhouse.refusal("SELECT 1", nonsense="1") == (404, 115)
    assert clickhouse.refusal("SELECT 1 FROM nothing") == (404, 60)
    assert clickhouse.refusal("SELEC 1") == (400, 62)
    read_only = requests.get(clickhouse.address, params={"query": "CREATE TABLE x (a Int8) ENGINE = Memory"}, timeout=30)
    assert read_only.headers["X-ClickHouse-Exception-Code"] == "164"
    assert requests.get(f"{clickhouse.address}/ping", timeout=30).text == "Ok.\n"


def test_clickhouse_compression(clickhouse):
    clickhouse.query("CREATE TABLE t (text String) ENGINE = MergeTree ORDER BY text")
    # What it gives in its own frames it takes in them, and knows when they are damaged.
    frames = clickhouse.query("SELECT 'x' || toString(number) FROM numbers(10000) FORMAT TSV", compress="1")
    clickhouse.query("INSERT INTO t FORMAT TSV", frames, decompress="1")
    damaged = frames[:30] + bytes([frames[30] ^ 1]) + frames[31:]
    answer = clickhouse.post("INSERT INTO t FORMAT TSV", damaged, decompress="1")
    assert answer.status_code == 400 and "checksum" in answer.text
    headers = {"Content-Encoding": "gzip", "Accept-Encoding": "gzip"}
    clickhouse.query("INSERT INTO t FORMAT TSV", gzip.compress(b"one\ntwo\n"), headers)
    assert clickhouse.query("SELECT uniqExact(text) FROM t", b"", headers, enable_http_compression="1") == b"10002\n"
    # A body in chunks.
    clickhouse.query("INSERT INTO t FORMAT TSV", iter([b"three\n", b"four\n"]))
    assert clickhouse.query("SELECT count() FROM t") == b"10004\n"


def test_clickhouse_drops_a_batch_that_comes_twice(clickhouse):
    clickhouse.query(
        "CREATE TABLE t (a UInt8) ENGINE = MergeTree ORDER BY a SETTINGS non_replicated_deduplication_window = 100"
    )
    for token in ("p0:0-9", "p0:0-9", "p0:10-19"):
        clickhouse.query("INSERT INTO t FORMAT TSV", b"1\n", insert_deduplication_token=token)
    assert clickhouse.query("SELECT count() FROM t") == b"2\n"
