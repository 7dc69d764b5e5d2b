"""Tokens: one for the administrator from the first start on; without tokens only while everything is on loopback."""

import contextlib
import stat

import psycopg
import pytest
import requests

from harness import Server, eventually, run
from harness import raw_mqtt as raw
from harness.paho_client import V3, V5, connected


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    """A server that others could reach; its session is the administrator's unless a request says otherwise."""
    hosts = dict.fromkeys(["http", "mqtt", "pg"], "0.0.0.0")
    server = Server(tmp_path_factory.mktemp("public"), hosts=hosts).start()
    server.session.headers.update(server.admin)
    yield server
    server.close()


def register(server, device):
    """Registers a device and gives its token."""
    answer = server.post("/api/v1/devices", json={"device_id": device}, headers=server.admin)
    assert answer.status_code == 201, answer.text
    return answer.json()["token"]


def create_token(server, name, role):
    """Makes a token with the command line."""
    done = run("token", "create", name, "--role", role, "--url", server.url(""), "--data", server.data)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].strip()


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


def test_the_first_start_makes_a_token_for_the_owner_only(new_server):
    server = new_server().start()
    path = server.data / "admin.token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    token = server.token
    assert len(token) >= 32
    assert server.log().count(token) <= 1, "printed once at most"
    server.restart()
    assert server.token == token, "later starts keep it"
    done = run("token", "show", "--data", server.data)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == token
    # The registry holds only a hash.
    for file in server.data.glob("registry.sqlite*"):
        assert token.encode() not in file.read_bytes()


def test_a_lost_token_file_is_made_anew(new_server):
    """Also what a kill in the middle of the first start leaves behind: nobody must be locked out for ever."""
    server = new_server().start()
    lost = server.token
    server.stop()
    (server.data / "admin.token").unlink()
    server.start()
    assert server.token != lost
    assert server.get("/api/v1/tokens", headers=server.admin).status_code == 200
    assert server.get("/api/v1/tokens", headers=bearer(lost)).status_code == 401


def test_loopback_reads_and_sends_without_token(server, device):
    server.post_event(device, {"n": 1})
    server.wait_rows(f"SELECT 1 FROM raw_metrics WHERE device_id = '{device}'", 1)
    with connected(server, V5) as client:
        client.publish(f"devices/{device}/state", b'{"n": 2}')


def test_loopback_does_not_change_without_token(server):
    for method, path, body in [
        ("PUT", "/api/v1/decoders/t", {}),
        ("POST", "/api/v1/tokens", {"name": "x", "role": "admin"}),
        ("DELETE", "/api/v1/devices/x", None),
    ]:
        answer = server.session.request(method, server.url(path), json=body)
        assert answer.status_code == 401, f"{method} {path}: {answer.status_code}"


def test_foreign_pages_get_nothing_from_loopback(server):
    for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}):
        assert server.get("/api/v1/devices", headers=headers).status_code == 403
        answer = server.post("/api/v1/devices/x/events/state", json={"n": 1}, headers=headers)
        assert answer.status_code in (401, 403), f"ingest with {headers}: {answer.status_code}"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/v1/devices"),
        ("GET", "/api/v1/devices/d/snapshot"),
        ("POST", "/api/v1/sql"),
        ("POST", "/api/v1/devices/d/events/state"),
        ("GET", "/api/v1/live"),
        ("GET", "/api/v1/tokens"),
        ("GET", "/api/v1/decoders"),
    ],
)
def test_public_http_needs_a_token(public, method, path):
    for headers in ({}, bearer("wrong"), {"Authorization": "Basic eDp5"}):
        answer = requests.request(method, public.url(path), json={"query": "SELECT 1"}, headers=headers, timeout=10)
        assert answer.status_code == 401, f"{headers}: {answer.status_code}"
        assert answer.json()["message"]


def test_public_http_with_the_administrators_token(public):
    assert public.value("SELECT 1") == 1
    public.post_event("with-token", {"n": 1})
    assert public.get("/api/v1/tokens").status_code == 200


def test_health_needs_no_token(public):
    for path in ("/healthz", "/readyz"):
        assert requests.get(public.url(path), timeout=10).status_code == 200


@pytest.mark.parametrize(("version", "code"), [(4, {4, 5}), (5, {0x86, 0x87})])
def test_public_mqtt_needs_a_token(public, version, code):
    wrong = raw.text("") + raw.text("device") + raw.text("wrong")
    for flags, payload in ((0x02, raw.text("")), (0xC2, wrong)):
        with raw.Connection(public.mqtt_port) as connection:
            connection.send(raw.connect(version, flags=flags, payload=payload))
            kind, _, body = connection.read()
            assert kind == raw.CONNACK and body[1] in code, body
            assert connection.read_to_end() == []


@pytest.mark.parametrize("version", [V3, V5], ids=["v3", "v5"])
def test_a_device_publishes_with_its_token_and_only_as_itself(public, version):
    token = register(public, f"truck-{version}")
    with connected(public, version, login=(f"truck-{version}", token)) as client:
        client.publish(f"devices/truck-{version}/state", b'{"n": 1}')
        refused = client.paho.publish(f"devices/other-{version}/state", b'{"n": 1}', 1)
        with contextlib.suppress(RuntimeError, ValueError):  # the server may end the connection
            refused.wait_for_publish(2)
    query = "SELECT device_id FROM raw_events WHERE device_id IN ('{0}', '{1}')"
    public.wait_rows(query.format(f"truck-{version}", f"other-{version}"), 1)


def test_a_device_posts_only_as_itself(public):
    token = register(public, "poster")
    path = "/api/v1/devices/{}/events/state"
    assert public.post(path.format("poster"), json={"n": 1}, headers=bearer(token)).status_code == 200
    assert public.post(path.format("other"), json={"n": 1}, headers=bearer(token)).status_code == 403
    assert public.post("/api/v1/sql", json={"query": "SELECT 1"}, headers=bearer(token)).status_code == 403


def test_a_reader_reads_only(public):
    token = create_token(public, "dashboard", "reader")
    assert public.post("/api/v1/sql", json={"query": "SELECT 1"}, headers=bearer(token)).status_code == 200
    assert public.post("/api/v1/devices/d/events/state", json={"n": 1}, headers=bearer(token)).status_code == 403
    assert public.session.put(public.url("/api/v1/decoders/t"), json={}, headers=bearer(token)).status_code == 403
    assert public.post("/api/v1/tokens", json={"name": "x", "role": "admin"}, headers=bearer(token)).status_code == 403


def test_a_revoked_token_is_worthless_at_once(public):
    token = create_token(public, "short-lived", "reader")
    listed = public.get("/api/v1/tokens").json()
    (entry,) = [entry for entry in listed if entry["name"] == "short-lived"]
    assert token not in str(listed)
    done = run("token", "revoke", str(entry["id"]), "--url", public.url(""), "--data", public.data)
    assert done.returncode == 0, done.stderr
    eventually(lambda: public.post("/api/v1/sql", json={"query": "SELECT 1"}, headers=bearer(token)).status_code == 401)


def test_postgres_takes_the_token_as_password(public):
    address = {"host": "127.0.0.1", "port": public.pg_port, "user": "admin", "dbname": "main"}
    with psycopg.connect(**address, password=public.token) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    for password in ("wrong", ""):
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(**address, password=password or None)


@pytest.mark.parametrize("listener", ["http", "mqtt", "pg"])
def test_one_public_listener_is_enough_to_need_tokens(new_server, listener):
    server = new_server(hosts={listener: "0.0.0.0"}).start()
    assert requests.get(server.url("/api/v1/devices"), timeout=10).status_code == 401
    with raw.Connection(server.mqtt_port) as connection:
        connection.send(raw.connect(5))
        kind, _, body = connection.read()
    assert kind == raw.CONNACK and body[1] in {0x86, 0x87}
