#!/usr/bin/env python3
"""ClickHouse's HTTP interface over its engine as a library (chdb): `front.py DATA_FOLDER PORT`.

For developers and tests, on loopback: there are no users, but for one whose password is in the environment
(`CLICKHOUSE_PASSWORD`), if that is set. What it has of ClickHouse's server: queries by GET (read only)
and POST, inserts and selects in every format, settings and `param_…` in the query string, `X-ClickHouse-…` headers,
error codes and HTTP states, bodies in chunks, both ways of compression. What it has not: sessions, progress headers,
`ENGINE = Kafka`, replication, the native port. One process owns a data folder.
"""

import json
import os
import re
import sys
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import chdb

from frames import DECODE, ENCODE, BadFrame, pack, unpack

# Parameters of a request that are not settings of its query.
NOT_SETTINGS = frozenset(
    "query database default_format compress decompress user password session_id session_timeout session_check query_id"
    " wait_end_of_query buffer_size quota_key role stacktrace close_session enable_http_compression client_protocol_version"
    " http_zlib_compression_level http_native_compression_disable_checksumming_on_decompress".split()
)
# ClickHouse's error codes that have an HTTP state of their own; all others are 500.
STATES = {
    **dict.fromkeys((6, 27, 36, 38, 43, 44, 47, 53, 62, 70, 117, 130, 396), 400),
    **dict.fromkeys((192, 193, 194, 497, 516), 403),
    **dict.fromkeys((16, 46, 60, 81, 115), 404),
    159: 408,
}
CODE = re.compile(r"Code: (\d+)")
BAD_ARGUMENTS, CANNOT_PARSE, AUTHENTICATION_FAILED, UNKNOWN = 36, 27, 516, 1002

TEXT = {"Content-Type": "text/plain; charset=UTF-8"}

INSERT = re.compile(rb"\A(?:\s|--[^\n]*\n|/\*.*?\*/)*INSERT\s+INTO\s", re.IGNORECASE | re.DOTALL)
# After the format's name the data begins, after one end of line or space.
FORMAT = re.compile(rb"\sFORMAT\s+([A-Za-z0-9_]+)[ \t]*;?(?:\r?\n|\s|\Z)", re.IGNORECASE)
SELECT = re.compile(rb"\bSELECT\b(?!.*\binput\s*\()", re.IGNORECASE | re.DOTALL)
# The library gives queries names of its own: the client's is a setting of the query, and ending it by name looks there.
KILL = re.compile(r"\A\s*KILL\s+QUERY\b", re.IGNORECASE)
# A statement before its data is shorter than this.
STATEMENT_BYTES = 256 << 10


class Refused(Exception):
    """A request that does not get as far as the engine."""

    def __init__(self, code, message):
        super().__init__(f"Code: {code}. DB::Exception: {message}")


def quoted(text):
    """A string literal of ClickHouse's SQL."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def split_insert(statement, body):
    """(statement without its format, format, data) of an insert that brings data; None for anything else.

    The statement may stand in the query string, with all of the body as data, or before the data in the body.
    """
    head = statement or body[:STATEMENT_BYTES]
    found = INSERT.match(head) and FORMAT.search(head)
    if not found or SELECT.search(head[: found.start()]):
        return None
    data = head[found.end() :] + body if statement else body[found.end() :]
    return head[: found.start()].decode(), found.group(1).decode(), data


class Engine:
    """The engine in one data folder. Each query has a connection of its own, and so settings of its own."""

    def __init__(self, folder):
        self.folder = folder
        # The engine lives as long as some connection does.
        self.kept = chdb.connect(folder)
        self.version = str(self.kept.query("SELECT version()", "TSVRaw")).strip()

    def run(self, statement, body, *, database, settings, parameters, output_format):
        """(result, its format, summary) of a query."""
        connection = chdb.connect(self.folder)
        try:
            if database and database != "default":
                connection.query(f"USE `{database.replace('`', '')}`")
            if settings:
                connection.query("SET " + ", ".join(f"{name} = {quoted(value)}" for name, value in settings.items()))
            if insert := split_insert(statement, body):
                return self._insert(connection, *insert)
            whole = (statement + b"\n" + body if statement and body else statement or body).decode()
            text = whole.strip().rstrip(";")
            if KILL.match(text):
                text = text.replace("query_id", "Settings['log_comment']")
            if not text:
                raise Refused(62, "Empty query. (SYNTAX_ERROR)")
            more = {"params": parameters} if parameters else {}
            result = connection.query(text, output_format, **more)
            data = bytes(result.bytes() or b"")
            named = FORMAT.search(whole.encode())
            summary = {
                "read_rows": str(result.rows_read()),
                "read_bytes": str(result.bytes_read()),
                "written_rows": str(result.rows_written()),
                "result_bytes": str(len(data)),
            }
            return data, named.group(1).decode() if named else output_format, summary
        finally:
            connection.close()

    @staticmethod
    def _insert(connection, statement, data_format, data):
        with connection.send_insert(statement, data_format) as insert:
            if data:
                insert.append(data)
            result = insert.finish()
        summary = {"written_rows": str(result.rows_written), "written_bytes": str(result.bytes_written)}
        return b"", data_format, summary


class Front(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    engine = None
    password = os.environ.get("CLICKHOUSE_PASSWORD")

    def log_message(self, *_):
        """Says nothing of good requests."""

    def do_GET(self):  # noqa: N802
        """A read-only query, or one of the two health checks."""
        if urlsplit(self.path).path in ("/ping", "/replicas_status"):
            return self._send(200, b"Ok.\n", TEXT)
        return self._answer(read_only=True)

    def do_HEAD(self):  # noqa: N802
        """Says that somebody is there."""
        self._send(200, b"")

    def do_POST(self):  # noqa: N802
        """A query."""
        self._answer(read_only=False)

    def _answer(self, *, read_only):
        asked = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
        headers = {
            "X-ClickHouse-Query-Id": asked.get("query_id") or str(uuid.uuid4()),
            "X-ClickHouse-Server-Display-Name": "chdb",
            "X-ClickHouse-Timezone": "UTC",
        }
        # Read before anything can be refused, or the rest of it would be taken for the next request.
        body = self._body()
        try:
            self._let_in()
            body = self._decoded(body, asked)
            settings = {
                name: value
                for name, value in asked.items()
                if name not in NOT_SETTINGS and not name.startswith("param_")
            }
            settings["log_comment"] = headers["X-ClickHouse-Query-Id"]
            if read_only:
                settings["readonly"] = "2"
            data, data_format, summary = self.engine.run(
                asked.get("query", "").encode(),
                body,
                database=asked.get("database") or self.headers.get("X-ClickHouse-Database"),
                settings=settings,
                parameters={name[6:]: value for name, value in asked.items() if name.startswith("param_")},
                output_format=asked.get("default_format") or self.headers.get("X-ClickHouse-Format") or "TabSeparated",
            )
        except Exception as error:
            text = str(error)
            found = CODE.search(text)
            code = int(found.group(1)) if found else UNKNOWN
            headers |= {"X-ClickHouse-Exception-Code": str(code), **TEXT}
            self._send(STATES.get(code, 500), f"{text} (version {self.engine.version})\n".encode(), headers)
            return
        headers["X-ClickHouse-Format"] = data_format
        headers["X-ClickHouse-Summary"] = json.dumps(summary)
        if asked.get("compress") == "1":
            data = pack(data)
        elif asked.get("enable_http_compression") == "1" and (encoding := self._accepted()):
            headers["Content-Encoding"] = encoding
            data = ENCODE[encoding](data)
        self._send(200, data, headers)

    def _let_in(self):
        if self.password is not None and self.headers.get("X-ClickHouse-Key") != self.password:
            user = self.headers.get("X-ClickHouse-User", "default")
            reason = "Authentication failed: password is incorrect, or there is no user with such name."
            raise Refused(AUTHENTICATION_FAILED, f"{user}: {reason} (AUTHENTICATION_FAILED)")

    def _decoded(self, body, asked):
        encoding = self.headers.get("Content-Encoding")
        try:
            if encoding and encoding not in DECODE:
                raise Refused(BAD_ARGUMENTS, f"Unknown compression method: {encoding}. (BAD_ARGUMENTS)")
            body = DECODE[encoding](body) if encoding else body
            return unpack(body) if asked.get("decompress") == "1" and body else body
        except (BadFrame, OSError, RuntimeError) as error:
            raise Refused(CANNOT_PARSE, f"Cannot decompress the body: {error}") from error

    def _accepted(self):
        offered = {part.split(";")[0].strip() for part in self.headers.get("Accept-Encoding", "").split(",")}
        return next((name for name in ENCODE if name in offered), None)

    def _body(self):
        if "chunked" not in self.headers.get("Transfer-Encoding", "").lower():
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(chunks)

    def _send(self, state, data, headers=None):
        self.send_response(state)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Server(ThreadingHTTPServer):
    """A thread a connection, none of which holds the process."""

    daemon_threads = True
    request_queue_size = 128


def main():
    """Serves until it is told to stop."""
    folder, port = Path(sys.argv[1]), int(sys.argv[2])
    Front.engine = Engine(str(folder))
    print(f"ClickHouse {Front.engine.version} in {folder}, http://127.0.0.1:{port}", flush=True)
    Server(("127.0.0.1", port), Front).serve_forever()


if __name__ == "__main__":
    main()
