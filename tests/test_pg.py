"""The PostgreSQL protocol, with the clients that people have."""

import asyncio
import os
import socket
import subprocess
import threading
import time

import asyncpg
import pandas
import psycopg
import psycopg2
import pytest
import sqlalchemy

from harness import eventually

SLOW = "SELECT max(value % 7919) FROM generate_series(1, 1000000000000)"


@pytest.fixture(scope="module")
def device(server):
    """A device with known rows."""
    now = int(time.time()) - 100
    server.post_event("pg", [{"n": n + 0.5, "name": f"é {n}", "ts": now + n} for n in range(10)])
    server.wait_rows("SELECT 1 FROM raw_metrics WHERE device_id = 'pg'", 20)
    return "pg"


def address(server):
    return {"host": "127.0.0.1", "port": server.pg_port, "user": "admin", "dbname": "main"}


def url(server, driver):
    return f"postgresql+{driver}://admin:{server.token}@127.0.0.1:{server.pg_port}/main"


def psql(server, *commands, password=None):
    """What psql prints, unaligned; a mistake fails."""
    arguments = [part for command in commands for part in ("-c", command)]
    environment = {**os.environ, "PGPASSWORD": password or server.token, "PAGER": ""}
    command = ["psql", "-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", str(server.pg_port)]
    return subprocess.run(
        [*command, "-U", "admin", "main", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def connect(server, **options):
    return psycopg.connect(**address(server), password=server.token, autocommit=True, **options)


# psql.


def test_psql_lists_tables(server):
    done = psql(server, r"\dt")
    assert done.returncode == 0, done.stderr
    tables = {line.split("|")[1] for line in done.stdout.splitlines()}
    assert {"raw_events", "raw_metrics", "rejects"} <= tables, done.stdout


def test_psql_describes_a_table(server):
    done = psql(server, r"\d raw_metrics")
    assert done.returncode == 0, done.stderr
    columns = dict(line.split("|")[:2] for line in done.stdout.splitlines() if "|" in line)
    assert columns == {
        "device_id": "text",
        "timestamp": "timestamp with time zone",
        "metric_name": "text",
        "metric_value": "double precision",
        "text_value": "text",
        "metadata": "text",
        "log_partition": "integer",
        "log_offset": "bigint",
    }


@pytest.mark.parametrize(
    "command", [r"\l", r"\dn", r"\du", r"\df", r"\dv", r"\d", r"\conninfo", r"\d aggregated_metrics"]
)
def test_psql_commands_work(server, command):
    done = psql(server, command)
    assert done.returncode == 0 and "ERROR" not in done.stderr, done.stderr


def test_psql_queries(server, device):
    query = f"SELECT metric_name, metric_value, text_value FROM raw_metrics WHERE device_id = '{device}'"
    done = psql(server, f"{query} ORDER BY log_offset, metric_name LIMIT 2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["n|0.5|", "name||é 0"]


def test_psql_shows_where_a_mistake_is(server):
    done = psql(server, "SELECT devic_id FROM raw_events")
    assert done.returncode != 0
    assert "devic_id" in done.stderr and "LINE 1: SELECT devic_id" in done.stderr, done.stderr
    assert "HINT" in done.stderr and "device_id" in done.stderr.split("HINT")[1], done.stderr


def test_a_wrong_password_is_refused(server):
    done = psql(server, "SELECT 1", password="wrong")
    assert done.returncode != 0
    assert "authentication" in done.stderr, done.stderr
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(**address(server), password="wrong")


def test_another_database_is_refused(server):
    with pytest.raises(psycopg.OperationalError, match="does not exist|other"):
        psycopg.connect(**{**address(server), "dbname": "other"}, password=server.token)


# Drivers.


def test_psycopg_types(server):
    query = (
        "SELECT 1::int, 2::bigint, 1.5::double precision, 'a'::text, true, NULL, TIMESTAMP '2026-01-02 03:04:05.123456Z',"
        " DATE '2026-01-02', 'NaN'::double precision, 12.34::numeric(10, 2)"
    )
    for binary in (False, True):
        with connect(server) as connection, connection.cursor(binary=binary) as cursor:
            (row,) = cursor.execute(query).fetchall()
        assert row[:6] == (1, 2, 1.5, "a", True, None)
        assert row[6].isoformat().startswith("2026-01-02T03:04:05.123456")
        assert row[7].isoformat() == "2026-01-02"
        assert row[8] != row[8]
        assert str(row[9]) == "12.34"


def test_psycopg_parameters(server, device):
    query = (
        "SELECT metric_value FROM raw_metrics WHERE device_id = %s AND metric_value > %s ORDER BY metric_value LIMIT %s"
    )
    with connect(server) as connection:
        for _ in range(10):  # from the sixth on it is prepared
            assert connection.execute(query, (device, 7.0, 2)).fetchall() == [(7.5,), (8.5,)]
        since = connection.execute("SELECT min(timestamp) FROM raw_metrics WHERE device_id = %s", (device,)).fetchone()[
            0
        ]
        (count,) = connection.execute(
            "SELECT count(*) FROM raw_metrics WHERE device_id = %s AND timestamp = %s", (device, since)
        ).fetchone()
        assert count == 2
        awkward = "'; DROP TABLE raw_events; --\\"
        assert connection.execute("SELECT %s::text", (awkward,)).fetchone() == (awkward,)


def test_psycopg_binary_payload(server, device):
    query = "SELECT payload FROM raw_events WHERE device_id = %s ORDER BY log_offset LIMIT 1"
    with connect(server) as connection:
        for binary in (False, True):
            (payload,) = connection.cursor(binary=binary).execute(query, (device,)).fetchone()
            assert bytes(payload).startswith(b'{"n"'), payload


def test_psycopg_in_a_transaction(server, device):
    with psycopg.connect(**address(server), password=server.token) as connection:
        assert connection.execute("SELECT count(*) FROM raw_events WHERE device_id = %s", (device,)).fetchone() == (10,)
        with pytest.raises(psycopg.errors.Error):
            connection.execute("SELECT nothing FROM nowhere")
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            connection.execute("SELECT 1")
        connection.rollback()
        with connection.transaction(), connection.transaction():
            assert connection.execute("SELECT 1").fetchone() == (1,)


def test_psycopg_server_side_cursor(server):
    """Either it works or it is refused in words; the connection lives on."""
    with psycopg.connect(**address(server), password=server.token) as connection:
        try:
            with connection.cursor(name="c") as cursor:
                cursor.execute("SELECT value FROM generate_series(1, 1000)")
                assert [row[0] for row in cursor] == list(range(1, 1001))
        except psycopg.errors.FeatureNotSupported:
            connection.rollback()
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_psycopg_rows_in_portions(server):
    with connect(server) as connection, connection.cursor() as cursor:
        rows = list(cursor.stream("SELECT value FROM generate_series(1, 100000)"))
    assert [row[0] for row in rows] == list(range(1, 100_001))


def test_psycopg_pipeline(server):
    with connect(server) as connection, connection.pipeline():
        cursors = [connection.execute("SELECT %s::int", (n,)) for n in range(50)]
        assert [cursor.fetchone() for cursor in cursors] == [(n,) for n in range(50)]


def test_psycopg2(server, device):
    connection = psycopg2.connect(**address(server), password=server.token)
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT text_value FROM raw_metrics WHERE device_id = %s AND metric_name = 'name' ORDER BY log_offset",
            (device,),
        )
        assert cursor.fetchall() == [(f"é {n}",) for n in range(10)]
        assert [column.name for column in cursor.description] == ["text_value"]
    connection.close()


def test_asyncpg(server, device):
    async def ask():
        connection = await asyncpg.connect(
            host="127.0.0.1", port=server.pg_port, user="admin", password=server.token, database="main"
        )
        try:
            query = (
                "SELECT timestamp, metric_value FROM raw_metrics WHERE device_id = $1 AND metric_value < $2 ORDER BY 1"
            )
            return await connection.fetch(query, device, 2.0)
        finally:
            await connection.close()

    rows = asyncio.run(ask())
    assert [row["metric_value"] for row in rows] == [0.5, 1.5]
    assert (rows[1]["timestamp"] - rows[0]["timestamp"]).total_seconds() == 1
    assert rows[0]["timestamp"].tzinfo is not None


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_sqlalchemy(server, device, driver):
    engine = sqlalchemy.create_engine(url(server, driver))
    inspector = sqlalchemy.inspect(engine)
    names = set(inspector.get_table_names()) | set(inspector.get_view_names())
    assert {"raw_events", "raw_metrics", "aggregated_metrics", "snapshot", "devices", "rejects"} <= names
    columns = {column["name"]: str(column["type"]) for column in inspector.get_columns("raw_metrics")}
    assert columns["device_id"] in ("TEXT", "VARCHAR") and columns["metric_value"] == "DOUBLE PRECISION", columns
    table = sqlalchemy.Table("raw_metrics", sqlalchemy.MetaData(), autoload_with=engine)
    query = sqlalchemy.select(sqlalchemy.func.count(), sqlalchemy.func.max(table.c.metric_value)).where(
        table.c.device_id == device, table.c.metric_name == "n"
    )
    with engine.connect() as connection:
        assert connection.execute(query).one() == (10, 9.5)
        like = sqlalchemy.select(sqlalchemy.func.count()).where(
            table.c.device_id == device, table.c.text_value.contains("é_", autoescape=True)
        )
        assert connection.execute(like).scalar_one() == 0
    engine.dispose()


def test_pandas(server, device):
    engine = sqlalchemy.create_engine(url(server, "psycopg"))
    frame = pandas.read_sql(
        "SELECT timestamp, metric_value FROM raw_metrics WHERE device_id = 'pg' AND metric_name = 'n' ORDER BY timestamp",
        engine,
    )
    engine.dispose()
    assert list(frame["metric_value"]) == [n + 0.5 for n in range(10)]
    assert str(frame["timestamp"].dtype).startswith("datetime64[") and "UTC" in str(frame["timestamp"].dtype)


# Fences.


@pytest.mark.parametrize(
    "statement",
    [
        "COPY raw_events TO '/tmp/catchment-pg-copy'",
        "COPY raw_events FROM STDIN",
        "CREATE TABLE t (a INT)",
        "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'",
        "DROP TABLE raw_events",
        "INSERT INTO raw_events (device_id) VALUES ('x')",
        "UPDATE raw_metrics SET metric_value = 1",
        "DELETE FROM raw_metrics",
        "TRUNCATE raw_metrics",
    ],
)
def test_only_questions_are_allowed(server, device, statement):
    with connect(server) as connection:
        with pytest.raises(psycopg.Error) as refusal:
            connection.execute(statement)
        assert refusal.value.sqlstate in ("25006", "0A000", "42501"), refusal.value.sqlstate
        assert connection.execute("SELECT count(*) FROM raw_events WHERE device_id = %s", (device,)).fetchone() == (10,)
    assert not os.path.exists("/tmp/catchment-pg-copy")


def test_copy_to_the_client_works(server, device):
    query = f"SELECT metric_value, text_value FROM raw_metrics WHERE device_id = '{device}' ORDER BY log_offset, metric_name"
    with connect(server) as connection, connection.cursor() as cursor:
        with cursor.copy(f"COPY ({query} LIMIT 4) TO STDOUT") as copy:
            assert list(copy.rows()) == [("0.5", None), (None, "é 0"), ("1.5", None), (None, "é 1")]
        assert cursor.execute("SELECT 1").fetchone() == (1,)


def test_scalar_subqueries_are_right(server, device):
    """A known trap of the ready-made service: it answered NULL."""
    with connect(server) as connection:
        rows = f"FROM raw_metrics WHERE device_id = '{device}'"
        query = f"SELECT (SELECT count(*) {rows}), (SELECT max(metric_value) {rows})"
        assert connection.execute(query).fetchone() == (20, 9.5)


def test_errors_have_sqlstates(server):
    expected = {
        "SELEC 1": "42601",
        "SELECT * FROM nowhere": "42P01",
        "SELECT nothing FROM raw_events": "42703",
        "SELECT nothing(1)": "42883",
    }
    with connect(server) as connection:
        for query, sqlstate in expected.items():
            with pytest.raises(psycopg.Error) as problem:
                connection.execute(query)
            assert problem.value.sqlstate == sqlstate, query


def test_cancel(server):
    with connect(server) as connection:
        timer = threading.Timer(0.5, connection.cancel_safe)
        timer.start()
        began = time.monotonic()
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute(SLOW)
        assert time.monotonic() - began < 5
        timer.join()
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_statement_timeout(server):
    with connect(server) as connection:
        connection.execute("SET statement_timeout = 300")
        began = time.monotonic()
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute(SLOW)
        assert time.monotonic() - began < 5
        connection.execute("SET statement_timeout = 0")
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_client_that_goes_ends_its_query(server):
    def running():
        answer = server.get("/api/v1/queries", headers=server.admin)
        return [query for query in answer.json() if SLOW in query["query"]]

    connection = psycopg2.connect(**address(server), password=server.token)
    asker = threading.Thread(target=pytest.raises, args=(psycopg2.Error, connection.cursor().execute, SLOW))
    asker.start()
    eventually(running)
    with socket.socket(fileno=os.dup(connection.fileno())) as line:
        line.shutdown(socket.SHUT_RDWR)
    eventually(lambda: not running())
    asker.join()


def test_sessions_are_apart(server):
    with connect(server) as one, connect(server) as two:
        one.execute("SET statement_timeout = 100")
        assert two.execute("SHOW statement_timeout").fetchone()[0] in ("0", "30s", "30000", "30000ms")
        assert one.execute("SHOW statement_timeout").fetchone()[0] in ("100ms", "100")


def test_many_connections(server):
    connections = [connect(server) for _ in range(50)]
    assert [
        connection.execute("SELECT %s::int", (n,)).fetchone()[0] for n, connection in enumerate(connections)
    ] == list(range(50))
    for connection in connections:
        connection.close()
