"""The registry in PostgreSQL: two processes share one, and follow each other's changes."""

import time
import uuid

import psycopg
import pytest

from harness import eventually, run
from harness.paho_client import Client
from harness.services import Postgres


def new_database(address):
    """The URL of a new database on this server."""
    name = f"registry_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"{address.rsplit('/', 1)[0]}/{name}"


@pytest.fixture
def database(service):
    """The URL of a new database on the server that tests share."""
    return new_database(service("postgres"))


def start_pair(new_server, database):
    """Two processes with one registry, of which the first made it."""
    # Not on loopback, so that nobody is let in without credentials.
    options = {"flags": ["--registry", database], "hosts": {"mqtt": "0.0.0.0"}}
    return [new_server(name, **options).start() for name in ("one", "two")]


def rest(server, method, path, token, **options):
    headers = {"Authorization": f"Bearer {token}"}
    return server.session.request(method, server.url(path), headers=headers, timeout=20, **options)


def test_changes_of_one_hold_in_the_other(new_server, database):
    one, two = start_pair(new_server, database)
    admin = one.token
    assert not (two.data / "admin.token").exists(), "the second has no token of its own"
    assert rest(two, "GET", "/api/v1/devices", admin).status_code == 200
    made = rest(one, "POST", "/api/v1/devices", admin, json={"device_id": "truck-7"})
    assert made.status_code == 201, made.text
    token = rest(one, "POST", "/api/v1/tokens", admin, json={"name": "t", "role": "device", "device_id": "truck-7"})
    assert token.status_code == 201, token.text
    time.sleep(0.3)
    client = Client(two, client_id="truck-7", login=("truck-7", token.json()["token"]))
    client.connect()
    client.publish("devices/truck-7/state", '{"v": 1}')

    # A decoder and a route of one count in the other.
    rule = {"include": ["kept"]}
    assert rest(one, "PUT", "/api/v1/decoders/state", admin, json=rule).status_code in (200, 201)
    route = {"topic": "yard/{device_id}", "type": "yard"}
    assert rest(one, "PUT", "/api/v1/routes", admin, json=route).ok
    eventually(lambda: rest(two, "GET", "/api/v1/decoders/state", admin).json()["rule"]["include"] == ["kept"])
    time.sleep(0.3)
    client.publish("devices/truck-7/state", '{"v": 2, "kept": 3}')

    query = {"query": "SELECT metric_name AS name, count(*) AS n FROM raw_metrics GROUP BY 1"}

    def counts():
        answer = rest(two, "POST", "/api/v1/sql", admin, json=query)
        return {row["name"]: row["n"] for row in answer.json()["rows"]}

    eventually(lambda: counts() == {"v": 1, "kept": 1}, what="the decoder of the other holds")

    # What one withdraws ends connections of the other.
    assert rest(one, "DELETE", f"/api/v1/tokens/{token.json()['id']}", admin).ok
    assert client.disconnects.get(timeout=5).is_failure
    client.paho.loop_stop()


def test_both_outlive_the_database(new_server, tmp_path, monkeypatch, request):
    # One of its own, to be killed.
    monkeypatch.delenv("CATCHMENT_TEST_POSTGRES", raising=False)
    postgres = Postgres(tmp_path / "postgres")
    request.addfinalizer(postgres.down)
    one, two = start_pair(new_server, new_database(postgres.up()))
    admin = one.token
    assert rest(two, "POST", "/api/v1/devices/x/events/state", admin, json={"v": 1}).status_code == 200
    # The registry is asked about a device that has no values yet.
    eventually(lambda: rest(two, "GET", "/api/v1/devices/x/snapshot", admin).json().get("metrics"), what="a value")
    postgres.kill()
    # Who is known comes in, and events are kept; changes are refused and told why.
    assert rest(two, "GET", "/api/v1/devices/x/snapshot", admin).json()["metrics"]
    sent = rest(two, "POST", "/api/v1/devices/x/events/state", admin, json={"v": 1})
    assert sent.status_code == 200, sent.text
    refused = rest(one, "POST", "/api/v1/devices", admin, json={"device_id": "new"})
    assert refused.status_code == 503 and "Retry-After" in refused.headers, refused.text
    assert "registry" in refused.text, refused.text
    postgres.up()
    eventually(lambda: rest(one, "POST", "/api/v1/devices", admin, json={"device_id": "new"}).status_code == 201, 30)
    token = rest(one, "POST", "/api/v1/tokens", admin, json={"name": "r", "role": "reader"}).json()["token"]
    eventually(lambda: rest(two, "GET", "/api/v1/devices", token).status_code == 200, 30, "followed again")


def test_check_tells_what_is_there(database, new_server):
    found = run("check", "--data", new_server().data, "--registry", database, "--http", "127.0.0.1:0", "--mqtt", "127.0.0.1:0", "--pg", "127.0.0.1:0")
    assert "PostgreSQL 1" in found.stdout and "no tables yet" in found.stdout, found.stdout
    for wrong, said in [(database + "x", "does not exist"), ("postgres://u:secret@127.0.0.1:1/d", "refused")]:
        found = run("check", "--data", new_server().data, "--registry", wrong, "--http", "127.0.0.1:0", "--mqtt", "127.0.0.1:0", "--pg", "127.0.0.1:0")
        assert found.returncode != 0 and said in found.stdout and "secret" not in found.stdout + found.stderr, found.stdout
