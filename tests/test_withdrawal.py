"""What is withdrawn, has expired or is banned ends what runs in its name: WebSockets, PostgreSQL sessions, running SQL, bodies."""

import json
import socket
import threading
import time

import psycopg
import pytest
import requests
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from harness import Server, eventually, jwt, run

SLOW = "SELECT max(value % 7919) FROM generate_series(1, 1000000000000)"
SECRET = b"a-secret-of-at-least-thirty-two-bytes"
#: Seconds in which an end is "at once" on a busy machine.
AT_ONCE_S = 3


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    folder = tmp_path_factory.mktemp("withdrawal")
    (folder / "secret").write_bytes(SECRET)
    config = f'[admission.jwt]\nkey_file = "{folder}/secret"\nleeway_s = 0\n'
    server = Server(folder, hosts=dict.fromkeys(["http", "mqtt", "pg"], "0.0.0.0"), config=config).start()
    server.session.headers.update(server.admin)
    yield server
    server.close()


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


def cli(server, *arguments):
    done = run(*arguments, "--url", server.url(""), "--data", server.data)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Revoked:
    """A reader's token that is taken away."""

    def __init__(self, server, name):
        self.server, self.name = server, name
        self.token = cli(server, "token", "create", name, "--role", "reader").splitlines()[-1].strip()

    def end(self):
        (entry,) = [entry for entry in self.server.get("/api/v1/tokens").json() if entry["name"] == self.name]
        cli(self.server, "token", "revoke", entry["id"])
        return time.monotonic()


class Expired:
    """A reader's JSON web token that ends by itself in a moment."""

    def __init__(self, _server, name):
        self.ends = time.monotonic() + 5
        claims = jwt.claims(name, expires_in_s=5, role="reader")
        self.token = jwt.signed("HS256", jwt.hs256(SECRET), claims)

    def end(self):
        time.sleep(max(self.ends - 1 - time.monotonic(), 0))
        return self.ends


@pytest.mark.parametrize("way", [Revoked, Expired])
def test_everything_that_a_reader_has_open_ends(public, way):
    reader = way(public, f"reader-{way.__name__}")
    stays = Revoked(public, f"stays-{way.__name__}")
    ended = {}

    def note(name, call):
        def wait():
            try:
                ended[name] = (call(), time.monotonic())
            except (psycopg.Error, ConnectionClosed) as error:
                ended[name] = (error, time.monotonic())

        thread = threading.Thread(target=wait)
        thread.start()
        return thread

    address = {"host": "127.0.0.1", "port": public.pg_port, "user": "x", "dbname": "main", "autocommit": True}
    url = f"ws://127.0.0.1:{public.http_port}/api/v1/{{}}"
    with (
        connect(url.format("live?device=*"), additional_headers=bearer(reader.token)) as live,
        connect(url.format("tail") + f"?token={reader.token}") as tail,
        connect(url.format("live?device=*"), additional_headers=bearer(stays.token)) as other,
        psycopg.connect(**address, password=reader.token) as idle,
        psycopg.connect(**address, password=reader.token) as busy,
        psycopg.connect(**address, password=stays.token) as another,
    ):
        for socket_ in (live, tail, other):
            assert json.loads(socket_.recv(timeout=10)) == {"subscribed": ""}
        assert idle.execute("SELECT 1").fetchone() == (1,)
        body = {"query": SLOW, "timeout_ms": 60_000}
        threads = [
            note("live", lambda: live.recv(timeout=30)),
            note("tail", lambda: tail.recv(timeout=30)),
            note("idle", lambda: idle_ends(idle)),
            note("busy", lambda: busy.execute(SLOW)),
            note("sql", lambda: requests.post(public.url("/api/v1/sql"), json=body, headers=bearer(reader.token), timeout=30)),
        ]
        eventually(lambda: len(running(public)) == 2, what="both queries run")
        at = reader.end()
        for thread in threads:
            thread.join(timeout=30)
        late = {name: when - at for name, (_, when) in ended.items() if when - at > AT_ONCE_S}
        assert len(ended) == len(threads) and not late, (ended, late)
        for name in ("live", "tail"):
            assert isinstance(ended[name][0], ConnectionClosed) and ended[name][0].rcvd.code == 1008, ended[name]
        assert isinstance(ended["busy"][0], psycopg.errors.AdminShutdown), ended["busy"]
        assert "the token" in str(ended["busy"][0])
        assert ended["sql"][0].status_code == 401, ended["sql"][0].text
        with pytest.raises(psycopg.Error):
            idle.execute("SELECT 1")
        eventually(lambda: running(public) == [], AT_ONCE_S, "no query runs on")
        # Others are not disturbed.
        assert another.execute("SELECT 1").fetchone() == (1,)
        public.post_event("stays", {"n": 1})
        assert json.loads(other.recv(timeout=10))[0]["device_id"] == "stays"
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(**address, password=reader.token)


def idle_ends(connection):
    """Waits until the server closes a connection that asks nothing."""
    with socket.socket(fileno=socket.dup(connection.fileno())) as twin:
        twin.setblocking(True)
        twin.settimeout(30)
        assert twin.recv(1, socket.MSG_PEEK) in (b"E", b"")


def running(server):
    return [query for query in server.get("/api/v1/queries").json() if SLOW in query["query"]]


def test_a_banned_address_is_cut_off(public):
    def open_from(address):
        bound = socket.create_connection(("127.0.0.1", public.http_port), source_address=(address, 0))
        return connect(
            f"ws://127.0.0.1:{public.http_port}/api/v1/live?device=*", sock=bound, additional_headers=public.admin
        )

    with open_from("127.0.0.2") as banned, open_from("127.0.0.3") as free:
        for socket_ in (banned, free):
            assert json.loads(socket_.recv(timeout=10)) == {"subscribed": ""}
        ban = cli(public, "ban", "add", "address", "127.0.0.2").split()[1]
        with pytest.raises(ConnectionClosed) as closed:
            banned.recv(timeout=AT_ONCE_S)
        assert closed.value.rcvd.code == 1008 and "kept out" in closed.value.rcvd.reason
        public.post_event("free", {"n": 1})
        assert json.loads(free.recv(timeout=10))[0]["device_id"] == "free"
    cli(public, "ban", "remove", ban)


@pytest.mark.parametrize("way", ["token", "device"])
def test_a_body_under_way_is_taken_no_further(public, way):
    device = f"body-{way}"
    token = cli(public, "device", "add", device).splitlines()[-1]
    rows = f"SELECT payload FROM raw_events WHERE device_id = '{device}'"

    def lines():
        yield b'{"n": 1}\n{"n": 2}\n'
        public.wait_rows(rows, 2)
        if way == "device":
            cli(public, "device", "remove", device)
        else:
            (entry,) = [entry for entry in public.get("/api/v1/tokens").json() if entry.get("device_id") == device]
            cli(public, "token", "revoke", entry["id"])
        yield b'{"n": 3}\n'

    headers = {**bearer(token), "Content-Type": "application/x-ndjson"}
    answer = requests.post(public.url(f"/api/v1/devices/{device}/events/s"), data=lines(), headers=headers, timeout=20)
    assert (answer.status_code, answer.json()["accepted"]) == (401, 2), answer.text
    public.wait_rows(rows, 2)
