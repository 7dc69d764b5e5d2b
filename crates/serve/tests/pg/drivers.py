"""Python's drivers against one server. Usage: drivers.py PORT.

Needs psycopg, psycopg2, asyncpg, SQLAlchemy and pandas. Every function with a name that starts with `check` is run; what fails is
told at the end, and the exit status says so.
"""

import asyncio
import datetime as dt
import decimal
import sys
import threading
import time
import traceback

import asyncpg
import pandas
import psycopg
import psycopg2
import sqlalchemy as sa

PORT = int(sys.argv[1])
ROWS = 50_000
LOGIN = dict(host="127.0.0.1", port=PORT, user="admin", password="token")
START = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
ENDLESS = "select count(*) from raw_metrics a cross join raw_metrics b where a.log_offset * b.log_offset % 7 = 3"


def connect(**options):
    return psycopg.connect(**LOGIN, dbname="main", **options)


def check_psycopg_parameters():
    with connect() as connection:
        for binary in (False, True):
            cursor = connection.cursor(binary=binary)
            cursor.execute(
                "select device_id, timestamp, metric_value from raw_metrics"
                " where timestamp >= %s and device_id = %s and metric_value > %s and log_offset < %s order by log_offset limit %s",
                (START, "device-1", 0.05, 100, 3),
            )
            rows = cursor.fetchall()
            assert len(rows) == 3 and rows[0] == ("device-1", START + dt.timedelta(seconds=1), 0.1), rows
            values = (1, "é", 1.5, True, START, dt.date(2026, 1, 2), b"\0\1", decimal.Decimal("1.25"), None)
            cursor.execute(
                "select %s::int, %s::text, %s::float8, %s::bool, %s::timestamptz, %s::date, %s::bytea, %s::numeric(10,2), %s::text",
                values,
            )
            assert cursor.fetchone() == values
            cursor.execute("select count(*) from raw_metrics where device_id = any(%s)", (["device-1", "device-2"],))
            assert cursor.fetchone() == (ROWS // 5,)
            cursor.execute("select count(*) from raw_metrics where log_offset = any(%s)", ([1, 2, 3],))
            assert cursor.fetchone() == (3,)
            cursor.execute("select array_agg(distinct metric_name order by metric_name), 12.5::numeric(10,2), interval '1 day' from raw_metrics")
            assert cursor.fetchone() == (["humidity", "temperature"], decimal.Decimal("12.50"), dt.timedelta(days=1))
        with connection.pipeline():
            first, second = connection.execute("select 1"), connection.execute("select %s::int", (2,))
            assert (first.fetchone(), second.fetchone()) == ((1,), (2,))


def check_psycopg_server_side_cursors():
    with connect() as connection:
        with connection.cursor("named") as cursor:
            cursor.execute("select log_offset from raw_metrics where log_offset >= %s order by log_offset", (10,))
            assert cursor.description[0].name == "log_offset"
            assert cursor.fetchone() == (10,)
            assert [row[0] for row in cursor.fetchmany(3)] == [11, 12, 13]
            cursor.scroll(5)
            assert cursor.fetchone() == (19,)
            assert sum(1 for _ in cursor) == ROWS - 20
        with connection.cursor("binary", binary=True) as cursor:
            cursor.itersize = 5000
            cursor.execute("select log_offset, timestamp from raw_metrics order by log_offset")
            assert sum(1 for _ in cursor) == ROWS
    with connect(autocommit=True) as connection:
        with connection.cursor("held", withhold=True) as cursor:
            cursor.execute("select 1")
            assert cursor.fetchall() == [(1,)]
        try:
            connection.cursor("unheld").execute("select 1")
            raise AssertionError("a cursor without a transaction was accepted")
        except psycopg.errors.NoActiveSqlTransaction:
            pass
        assert connection.execute("select 1").fetchone() == (1,)


def check_psycopg_transactions():
    status = psycopg.pq.TransactionStatus
    with connect() as connection:
        assert connection.info.transaction_status == status.IDLE
        connection.execute("select 1")
        assert connection.info.transaction_status == status.INTRANS
        try:
            connection.execute("select nope")
        except psycopg.errors.UndefinedColumn as error:
            assert error.diag.statement_position
        assert connection.info.transaction_status == status.INERROR
        try:
            connection.execute("select 1")
            raise AssertionError("a failed transaction went on")
        except psycopg.errors.InFailedSqlTransaction:
            pass
        connection.rollback()
        with connection.transaction():
            try:
                with connection.transaction():
                    connection.execute("select nope")
            except psycopg.Error:
                pass
            assert connection.execute("select 1").fetchone() == (1,)


def check_psycopg_cancel_and_timeout():
    with connect(autocommit=True) as connection:
        threading.Timer(0.3, connection.cancel).start()
        started = time.monotonic()
        try:
            connection.execute(ENDLESS)
            raise AssertionError("not cancelled")
        except psycopg.errors.QueryCanceled:
            assert time.monotonic() - started < 10
        connection.execute("set statement_timeout = '200ms'")
        try:
            connection.execute(ENDLESS)
            raise AssertionError("no timeout")
        except psycopg.errors.QueryCanceled:
            pass
        assert connection.execute("select 1").fetchone() == (1,)


def check_psycopg_copy():
    with connect() as connection:
        with connection.cursor().copy("copy (select log_offset, metric_value from raw_metrics order by 1) to stdout") as copy:
            rows = list(copy.rows())
        assert len(rows) == ROWS and rows[0] == ("0", None) and rows[1] == ("1", "0.1")


def check_psycopg2():
    connection = psycopg2.connect(**LOGIN, dbname="main")
    cursor = connection.cursor()
    cursor.execute("select device_id, timestamp from raw_metrics where timestamp > %s limit 2", (START,))
    assert len(cursor.fetchall()) == 2
    named = connection.cursor("named")
    named.itersize = 1000
    named.execute("select log_offset from raw_metrics")
    assert sum(1 for _ in named) == ROWS
    connection.commit()
    connection.set_session(readonly=True, autocommit=True)
    cursor.execute("select version()")
    connection.close()


def check_asyncpg():
    async def run():
        connection = await asyncpg.connect(**LOGIN, database="main")
        rows = await connection.fetch(
            "select timestamp, metric_value from raw_metrics where timestamp >= $1 and device_id = $2 order by 1 limit $3", START, "device-1", 2
        )
        assert rows[0]["timestamp"] == START + dt.timedelta(seconds=1)
        assert await connection.fetchval("select $1::int + 1", 41) == 42
        assert await connection.fetchval("select count(*) from raw_metrics where device_id = any($1::text[])", ["device-1"]) == ROWS // 10
        assert await connection.fetchval("select array_agg(log_offset order by log_offset) from raw_metrics where log_offset < 3") == [0, 1, 2]
        async with connection.transaction():
            assert [row async for row in connection.cursor("select log_offset from raw_metrics", prefetch=777)].__len__() == ROWS
        try:
            await connection.fetch(ENDLESS, timeout=0.3)
            raise AssertionError("no timeout")
        except asyncio.TimeoutError:
            pass
        assert await connection.fetchval("select 1") == 1
        await connection.reset()
        await connection.close()

    asyncio.run(run())


def check_sqlalchemy_and_pandas():
    for driver in ("psycopg", "psycopg2"):
        engine = sa.create_engine(f"postgresql+{driver}://admin:token@127.0.0.1:{PORT}/main")
        inspector = sa.inspect(engine)
        assert inspector.get_table_names() == ["raw_metrics"]
        assert inspector.get_view_names() == []
        columns = {column["name"]: column for column in inspector.get_columns("raw_metrics")}
        assert isinstance(columns["timestamp"]["type"], sa.TIMESTAMP) and columns["timestamp"]["type"].timezone
        assert not columns["log_offset"]["nullable"]
        assert inspector.get_pk_constraint("raw_metrics")["constrained_columns"] == []
        for of in ("get_foreign_keys", "get_indexes", "get_unique_constraints", "get_check_constraints"):
            assert getattr(inspector, of)("raw_metrics") == [], of
        table = sa.Table("raw_metrics", sa.MetaData(), autoload_with=engine)
        with engine.connect() as connection:
            question = sa.select(sa.func.count()).select_from(table).where(table.c.device_id == "device-1")
            assert connection.execute(question).scalar() == ROWS // 10
        with engine.connect().execution_options(stream_results=True, max_row_buffer=1000) as connection:
            assert sum(1 for _ in connection.execute(sa.select(table.c.log_offset))) == ROWS
        frame = pandas.read_sql("select metric_name, avg(metric_value), max(timestamp) as last from raw_metrics group by 1 order by 1", engine)
        assert list(frame.columns) == ["metric_name", "avg", "last"] and len(frame) == 2


def check_grafana():
    search_path = """(SELECT CASE WHEN trim(s[i]) = '"$user"' THEN user ELSE trim(s[i]) END
        FROM generate_series(array_lower(string_to_array(current_setting('search_path'),','),1),
        array_upper(string_to_array(current_setting('search_path'),','),1)) as i, string_to_array(current_setting('search_path'),',') s)"""
    connection = psycopg2.connect(**LOGIN, dbname="main")
    cursor = connection.cursor()

    def ask(text):
        cursor.execute(text)
        return cursor.fetchall()

    assert ask("SELECT current_setting('server_version_num')::int/100 as version") == [(1500,)]
    tables = ask(
        f"""SELECT CASE WHEN quote_ident(table_schema) IN {search_path} THEN quote_ident(table_name)
        ELSE quote_ident(table_schema) || '.' || quote_ident(table_name) END AS "table" FROM information_schema.tables
        WHERE quote_ident(table_schema) NOT IN ('information_schema', 'pg_catalog')"""
    )
    assert tables == [("raw_metrics",)]
    types = dict(
        ask(
            f"""SELECT quote_ident(column_name) AS "column", data_type AS "type" FROM information_schema.columns
            WHERE quote_ident(table_name) = 'raw_metrics' AND quote_ident(table_schema) IN {search_path}"""
        )
    )
    assert types["metric_value"] == "double precision", types
    rows = ask("SELECT timestamp AS time, metric_value FROM raw_metrics WHERE timestamp BETWEEN '2026-01-01T00:00:00Z' AND '2026-01-01T00:00:09.5Z'")
    assert len(rows) == 10


def main():
    failed = 0
    for name, check in list(globals().items()):
        if name.startswith("check"):
            try:
                check()
                print("ok", name)
            except Exception:
                failed += 1
                print("FAILED", name)
                traceback.print_exc()
    sys.exit(failed)


main()
