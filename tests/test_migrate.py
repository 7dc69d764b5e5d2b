"""Moving to other engines: registry and history arrive as they were, whatever breaks off in between."""

import os
import random
import signal
import subprocess
import time
import uuid

import psycopg
import pytest
import requests

from harness import BINARY, eventually, run
from harness.server import clean_environment

EVENTS = 600
DAY_S = 86_400


@pytest.fixture
def database(service):
    """The URL of a new PostgreSQL database."""
    address = service("postgres")
    name = f"migrate_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"{address.rsplit('/', 1)[0]}/{name}"


@pytest.fixture
def clickhouse(service):
    """Asks ClickHouse, and names a database of it that is not there yet."""
    address = service("clickhouse")

    class ClickHouse:
        name = f"migrate_{uuid.uuid4().hex[:12]}"
        url = f"clickhouse://{address.split('://')[1]}/{name}"

        def ask(self, query):
            answer = requests.post(f"{address}/?database={self.name}", data=query.encode(), timeout=30)
            assert answer.status_code == 200, answer.text
            return answer.text.strip()

    made = ClickHouse()
    yield made
    requests.post(f"{address}/", data=f"DROP DATABASE IF EXISTS {made.name} SYNC".encode(), timeout=30)


def configuration(server, name, **engines):
    """A settings file of the server's ports with other engines, and a data folder of its own."""
    path = server.folder / f"{name}.toml"
    chosen = "".join(f'{seam} = "{url}"\n' for seam, url in engines.items() if url)
    path.write_text(f'data = "{server.folder / name}"\n[engines]\n{chosen}')
    return path


def migrate(source, target, **options):
    return run("migrate", "--from", source, "--to", target, limit_s=120, **options)


def counted(done):
    """What the table at the end says: what → (source, target)."""
    lines = [line.split("  ") for line in done.stdout.splitlines() if "  " in line]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    return {line[0]: (int(line[1]), int(line[2])) for line in cells if len(line) == 4 and line[1].isdigit()}


def fill(server):
    """Registers what there is to register, and sends events of several days, some of which do not decode."""
    headers = server.admin
    for number in range(3):
        made = server.post("/api/v1/devices", headers=headers, json={"device_id": f"truck-{number}", "labels": {"n": number}})
        assert made.status_code == 201, made.text
    token = server.post(
        "/api/v1/tokens", headers=headers, json={"name": "t", "role": "device", "device_id": "truck-1"}
    ).json()["token"]
    rule = requests.put(server.url("/api/v1/decoders/kept"), headers=headers, json={"include": ["kept"]}, timeout=10)
    assert rule.ok, rule.text
    route = {"topic": "yard/{device_id}", "type": "yard"}
    assert requests.put(server.url("/api/v1/routes"), headers=headers, json=route, timeout=10).ok
    now = time.time()
    for first in range(0, EVENTS, 100):
        lines = [
            f'{{"timestamp": {now - (number % 4) * DAY_S - number:.3f}, "speed": {number}, "text": "n{number}"}}'
            for number in range(first, first + 100)
        ]
        server.post_event(f"truck-{first // 100 % 3}", "\n".join(lines), headers={**headers, "Content-Type": "application/x-ndjson"})
    server.post_event("truck-0", "{", headers=headers)
    return token


def everything(server, headers):
    """The answers to what a user asks, which must stay the same."""
    questions = (
        "SELECT device_id, received_at, event_time, type, topic, content_type, payload, log_partition, log_offset "
        "FROM raw_events ORDER BY log_partition, log_offset",
        "SELECT device_id, timestamp, metric_name, metric_value, text_value FROM raw_metrics ORDER BY 1, 2, 3, 4",
        "SELECT device_id, time_bucket, metric_name, avg_value, min_value, max_value, count FROM aggregated_metrics ORDER BY 1, 2, 3",
        "SELECT device_id, received_at, reason, detail FROM rejects ORDER BY 1, 2",
    )

    def ask(question):
        body = {"query": question, "limit_rows": 100_000}
        answer = server.post("/api/v1/sql", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        return [tuple(row.values()) for row in answer.json()["rows"]]

    return [ask(question) for question in questions]


def listed(server, headers):
    """What the registry has, as REST shows it."""
    paths = ("devices", "tokens", "decoders", "routes", "access/realms", "access/acl", "access/bans")
    answers = {path: server.get(f"/api/v1/{path}", headers=headers) for path in paths}
    assert all(answer.ok for answer in answers.values()), {path: answer.text for path, answer in answers.items()}
    shown = {path: answer.json() for path, answer in answers.items()}
    registered = shown["devices"] if isinstance(shown["devices"], list) else shown["devices"]["devices"]
    shown["devices"] = sorted(device["device_id"] for device in registered if device.get("registered", True))
    return shown


def filled(new_server):
    """A server that was filled and stopped in order; with its administrator, a device's token, and what it answered."""
    server = new_server().start()
    token = fill(server)
    headers = dict(server.admin)
    eventually(lambda: len(everything(server, headers)[0]) == EVENTS + 1, 20, "all events are there")
    before = everything(server, headers), listed(server, headers)
    server.stop(signal.SIGTERM)
    return server, headers, token, before


def test_the_registry_goes_to_postgresql_and_back(new_server, database):
    server, headers, token, (rows, registered) = filled(new_server)
    # The same data folder, log and history: only the registry is elsewhere.
    to = configuration(server, "data", registry=database)
    there = migrate(f"file:{server.data}", to)
    assert there.returncode == 0, there.stdout + there.stderr
    counts = counted(there)
    assert counts["registry devices"] == (3, 3) and counts["registry tokens"] == (5, 5), there.stdout
    assert not any(what.startswith("history") for what in counts)
    again = migrate(f"file:{server.data}", to)
    assert again.returncode == 0 and counted(again) == counts, "a second call finds that nothing is to be done"

    server.flags = ["--config", str(to)]
    server.start()
    assert server.admin == headers and listed(server, headers) == registered
    assert everything(server, headers) == rows
    session = requests.get(server.url("/api/v1/devices"), headers={"Authorization": f"Bearer {token}"}, timeout=10)
    assert session.status_code == 403, "a device's token is known, and is not a reader's"
    server.post_event("truck-1", {"v": 1}, headers={"Authorization": f"Bearer {token}"})
    server.stop()

    # Back, into a registry that is not there yet; the old one is refused, since it is not the same any more.
    made = server.data / "registry.sqlite"
    with psycopg.connect(database, autocommit=True) as sql:
        sql.execute("INSERT INTO devices VALUES ('main', 'late', NULL, 1)")
    refused = migrate(to, f"file:{server.data}")
    assert refused.returncode == 1 and "has other rows than the source (devices: 3 instead of 4)" in refused.stderr
    assert "secret" not in refused.stderr and "@" not in refused.stderr
    for suffix in ("", "-wal", "-shm"):
        made.with_name(f"registry.sqlite{suffix}").unlink(missing_ok=True)
    back = migrate(to, f"file:{server.data}")
    assert back.returncode == 0 and counted(back)["registry devices"] == (4, 4), back.stdout + back.stderr
    server.flags = []
    server.start()
    assert "late" in listed(server, headers)["devices"]


def test_what_cannot_be_moved_safely_is_refused(new_server, database):
    server = new_server().start()
    server.post_event("d", {"v": 1})
    to = configuration(server, "data", registry=database)
    used = migrate(f"file:{server.data}", to)
    assert used.returncode == 1 and f"in use by process {server.process.pid}" in used.stderr
    server.stop()
    same = migrate(f"file:{server.data}", f"file:{server.data}")
    assert same.returncode == 1 and "nothing to move" in same.stderr
    for source, reason in (
        (f"file:{server.folder / 'nowhere'}", "there is no data folder"),
        (str(server.data), "write file:"),
        (f"file:{server.folder}", "the source has no registry"),
    ):
        refused = migrate(source, to)
        assert refused.returncode == 1 and reason in refused.stderr, refused.stderr
    lost = migrate(f"file:{server.data}", configuration(server, "other", registry=database, history="", log=""))
    assert lost.returncode == 1 and "not into Delta tables" in lost.stderr, lost.stderr


def test_history_goes_to_clickhouse(new_server, database, clickhouse):
    server, headers, token, (rows, registered) = filled(new_server)
    to = configuration(server, "data", registry=database, history=clickhouse.url)
    done = migrate(f"file:{server.data}", to)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = counted(done)
    assert counts["history raw_events"] == (EVENTS + 1, EVENTS + 1), done.stdout
    # Speed of each event; the text is a metric of its own.
    assert counts["history raw_metrics"] == (2 * EVENTS, 2 * EVENTS) and counts["history rejects"] == (1, 1)
    assert counts["history metric_rollups"][0] == len(rows[2]) == counts["history metric_rollups"][1]
    assert clickhouse.ask("SELECT count() FROM raw_metrics") == str(2 * EVENTS)
    assert clickhouse.ask("SELECT sum(count) FROM aggregated_metrics") == str(EVENTS), "rollups count twice"
    assert "migrate" not in clickhouse.ask("SHOW TABLES")
    again = migrate(f"file:{server.data}", to)
    assert again.returncode == 0 and counted(again) == counts
    assert "there already" in again.stderr and " rows in " not in again.stderr

    # It goes on where the source has stopped: the same answers, and a new event once.
    server.flags = ["--config", str(to)]
    server.start()
    assert everything(server, headers) == rows and listed(server, headers) == registered
    server.post_event("truck-1", {"speed": 1}, headers={"Authorization": f"Bearer {token}"})
    eventually(lambda: len(everything(server, headers)[0]) == EVENTS + 2, 20, "the new event is there, and no other twice")
    server.stop(signal.SIGTERM)
    # Now it is ahead of the source.
    late = migrate(f"file:{server.data}", to)
    assert late.returncode == 1, late.stdout


def test_everything_goes_past_one_machine(new_server, database, clickhouse, service):
    """Kafka begins anew, with an empty topic; history and registry have all that was before."""
    server, headers, token, (rows, registered) = filled(new_server)
    topic = f"migrate-{uuid.uuid4().hex[:12]}"
    log = f"kafka://{service('kafka')}/{topic}"
    to = configuration(server, "past", log=log, registry=database, history=clickhouse.url, snapshot=service("redis"))
    with to.open("a") as settings:
        settings.write(f'[engines.redis]\nprefix = "{topic}:"\n')
    done = migrate(f"file:{server.data}", to)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = counted(done)
    assert counts["history raw_events"] == (EVENTS + 1, EVENTS + 1) and all(there == was for was, there in counts.values())
    assert migrate(f"file:{server.data}", to).returncode == 0

    old, server.data, server.flags = server.data, server.folder / "past", ["--config", str(to)]
    server.start()
    assert everything(server, headers) == rows and listed(server, headers) == registered
    # Latest values too, though the new log has none of the events they came from.
    latest = lambda: server.get("/api/v1/devices/truck-0/snapshot", headers=headers).json()["metrics"]  # noqa: E731
    eventually(lambda: "speed" in latest(), 10, "the latest values are there")
    sent = [server.post_event("truck-1", {"speed": n}, headers={"Authorization": f"Bearer {token}"}) for n in range(20)]
    count = EVENTS + 1 + len(sent)
    eventually(lambda: len(everything(server, headers)[0]) == count, 20, "the new events are there, and no other twice")
    # Killed and started again, it reads the new log again, from where it was.
    server.kill()
    server.start()
    server.post_event("truck-1", {"speed": 99}, headers={"Authorization": f"Bearer {token}"})
    eventually(lambda: len(everything(server, headers)[0]) == count + 1, 20, "and one more")
    time.sleep(3)
    assert len(everything(server, headers)[0]) == count + 1
    assert clickhouse.ask("SELECT sum(count) FROM aggregated_metrics WHERE metric_name = 'speed'") == str(EVENTS + 21)
    assert old.is_dir(), "the source stays"


def test_a_move_that_is_killed_is_called_again(new_server, database, clickhouse):
    server, headers, _, (rows, _) = filled(new_server)
    to = configuration(server, "data", registry=database, history=clickhouse.url)
    seed = int(os.environ.get("CATCHMENT_SEED", random.randrange(1 << 30)))
    print(f"CATCHMENT_SEED={seed}")
    chosen = random.Random(seed)
    command = [BINARY, "migrate", "--from", f"file:{server.data}", "--to", to]
    killed = 0
    for _ in range(12):
        process = subprocess.Popen(
            command, env=clean_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            process.wait(timeout=chosen.uniform(0.02, 0.8))
        except subprocess.TimeoutExpired:
            process.kill()
            killed += 1
        process.wait()
    assert killed, "none was killed: nothing was tried"
    done = migrate(f"file:{server.data}", to)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(source == target for source, target in counted(done).values())
    server.flags = ["--config", str(to)]
    server.start()
    assert everything(server, headers) == rows


def test_a_database_with_other_data_is_refused(new_server, database, clickhouse):
    server, _, _, _ = filled(new_server)
    to = configuration(server, "data", registry=database, history=clickhouse.url)
    other = new_server("other", flags=["--history", clickhouse.url]).start()
    other.post_event("other", {"v": 1})
    eventually(lambda: clickhouse.ask("SELECT count() FROM raw_events") == "1", 20, "the other's event is there")
    other.stop(signal.SIGTERM)
    done = migrate(f"file:{server.data}", to)
    assert done.returncode == 1 and "it has other data" in done.stderr, done.stderr
    assert clickhouse.ask("SELECT count() FROM raw_events") == "1"
    with psycopg.connect(database) as sql:
        (tables,) = sql.execute("SELECT count(*) FROM information_schema.tables WHERE table_name = 'devices'").fetchone()
    assert tables == 0, "the registry was touched before that was known"
