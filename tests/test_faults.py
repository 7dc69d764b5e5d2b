"""Faults of the machine: a disk that is full, and a clock that jumps."""

import os
import struct
import subprocess
import time

import pytest
import requests

from harness import Server, eventually, jwt
from harness import raw_mqtt as raw
from mqtt_conformance.registry import V3, V5
from mqtt_conformance.wire import Broker, publish
from test_admission_jwt import HOSTS, SECRET, connack

QUOTA_EXCEEDED = 0x97
DISK_BYTES = 96 << 20


@pytest.fixture
def small_disk(tmp_path):
    """A data folder on a file system of its own."""
    data = tmp_path / "own" / "data"
    data.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=700", "tmpfs", data], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield data
    subprocess.run(["umount", "--lazy", data], check=True)


def fill(data):
    """Takes all the room there is."""
    with open(data / "filler", "wb") as filler:
        try:
            while True:
                filler.write(bytes(1 << 16))
                filler.flush()
        except OSError:
            pass
    return data / "filler"


class Way:
    """A way in. Knows which of its events were acknowledged and which refused."""

    def __init__(self, name, server):
        self.device, self.server = f"full-{name}", server
        self.acknowledged, self.refused = set(), set()
        self.next = 0

    def document(self):
        """The next event: large enough that no room lasts long."""
        return b'{"seq": %d, "padding": "%s"}' % (self.next, os.urandom(2000).hex().encode())

    def send(self):
        """Sends one more. Whether it was taken."""
        taken = self.offer(self.document())
        (self.acknowledged if taken else self.refused).add(self.next)
        self.next += 1
        return taken


class Mqtt(Way):
    """MQTT 5.0 at a QoS."""

    def __init__(self, qos, server):
        super().__init__(f"qos{qos}", server)
        self.qos = qos

    def offer(self, document):
        if self.next == 0:
            self.client = Broker(self.server).open(V5)
        answer = self.client.publish(f"devices/{self.device}/load", document, self.qos)
        assert answer.reason in (0, QUOTA_EXCEEDED), answer
        return answer.reason == 0


class Old(Way):
    """MQTT 3.1.1, which has no word for a refusal: the connection ends without an acknowledgement."""

    def __init__(self, server):
        super().__init__("old", server)

    def offer(self, document):
        client = Broker(self.server).open(V3)
        try:
            return client.publish(f"devices/{self.device}/load", document, 1) is not None
        except (EOFError, OSError):
            return False
        finally:
            client.wire.close()


class Http(Way):
    """HTTP ingest."""

    def __init__(self, server):
        super().__init__("http", server)

    def offer(self, document):
        url = self.server.url(f"/api/v1/devices/{self.device}/events/load")
        answer = requests.post(url, data=document, headers={"Content-Type": "application/json"}, timeout=15)
        assert answer.status_code in (200, 503), answer.text
        if answer.status_code == 503:
            assert int(answer.headers["Retry-After"]) > 0
        return answer.status_code == 200


def test_a_full_disk_refuses_and_goes_on_once_there_is_room(small_disk, new_server):
    config = "[log]\npartitions = 2\nsegment_bytes = 4194304\n[history]\nflush_interval_ms = 500\n"
    server = new_server(config=config).start()
    ways = [Mqtt(1, server), Mqtt(2, server), Old(server), Http(server)]
    for way in ways:
        for _ in range(5):
            assert way.send()
    # Somebody for whom messages are kept, too.
    broker = Broker(server)
    broker.open(V5, "keeps", session_expiry=3600).subscribed(("kept/for/it", 1)).leave()
    filler = fill(small_disk)
    for way in ways:
        # The log's files were made longer than they are, so that some are still taken.
        assert any(not way.send() for _ in range(20_000)), f"{way.device} is not refused"
    # The message that finds the journal without room waits for it; that others wait in vain they are told at once.
    waiting = broker.open(V5)
    for number in range(1, 1000):
        waiting.send(publish(V5, "kept/for/it", os.urandom(1000), qos=1, packet_id=number))
    publisher = broker.open(V5)
    eventually(lambda: publisher.publish("kept/for/it", b"x", 1).reason == QUOTA_EXCEEDED, 30)
    assert server.get("/healthz").status_code == 200
    before = {way.device: len(way.acknowledged) for way in ways}
    filler.unlink()
    for way in ways:
        eventually(way.send, 30, f"{way.device} is taken again")
        assert len(way.acknowledged) > before[way.device]
    eventually(lambda: publisher.publish("kept/for/it", b"after", 1).reason == 0, 30)
    answers = [waiting.read(raw.PUBACK).reason for _ in range(1, 1000)]
    assert set(answers) <= {0, QUOTA_EXCEEDED} and answers[0] == 0
    # What was acknowledged is there after a crash, each once; what was refused is not.
    server.restart()
    for way in ways:
        query = f"SELECT metric_value FROM raw_metrics WHERE device_id = '{way.device}' AND metric_name = 'seq'"

        def stored(query=query):
            return sorted(int(seq) for (seq,) in server.sql(query))

        eventually(lambda way=way, stored=stored: way.acknowledged <= set(stored()), 30, f"all of {way.device}")
        found = stored()
        assert len(found) == len(set(found)), f"{way.device}: an event is there twice"
        # Of a lost connection the client knows nothing; who was told so was not kept.
        if not isinstance(way, Old):
            assert not way.refused & set(found), f"{way.device}: refused, and kept all the same"
    kept = broker.open(V5, "keeps", clean=False, session_expiry=3600)
    assert kept.connack.session_present
    # Some were dropped since its queue holds a thousand.
    assert 1 <= len([packet for packet in kept.pending() if packet.kind == raw.PUBLISH]) <= 1000
    broker.close()


def faketime_library():
    """The library that moves the clock of a process; none: it is not installed."""
    found = subprocess.run(["dpkg", "-L", "libfaketime"], capture_output=True, text=True, check=False).stdout.split()
    return next((path for path in found if path.endswith("libfaketimeMT.so.1")), None)


class Clock:
    """A server's clock on the wall, as an administrator or NTP may set it; the monotonic one goes on as it does."""

    def __init__(self, folder):
        self.path = folder / "clock"
        self.set("+0")
        library = faketime_library()
        if library is None:
            pytest.skip("libfaketime is not installed")
        self.environment = {
            "LD_PRELOAD": library,
            "FAKETIME_TIMESTAMP_FILE": str(self.path),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, offset):
        """Jumps, to the true time and so much."""
        new = self.path.with_suffix(".new")
        new.write_text(offset + "\n")
        new.replace(self.path)


def test_a_jump_of_the_clock_ends_nothing_that_runs(tmp_path, new_server):
    clock = Clock(tmp_path)
    server = new_server(environment=clock.environment).start()
    broker = Broker(server)
    steady = broker.open(V5, keep_alive=60)
    broker.open(V5, "away", session_expiry=3600).subscribed(("for/away", 1)).leave()
    broker.publish("for/away", b"waits", 1, message_expiry=3600)
    broker.publish("retained", b"stays", 1, retain=1, message_expiry=3600)
    for number, offset in enumerate(["+2d", "-2d", "+0"]):
        clock.set(offset)
        # Longer than it takes the server to look after sessions.
        time.sleep(0.6)
        assert steady.publish(f"devices/jump-{number}/state", b'{"n": 1}', 1).reason == 0, offset
        assert [m.payload for m in broker.open(V5).subscribed("retained").pending()] == [b"stays"], offset
        away = broker.open(V5, "away", clean=False, session_expiry=3600)
        assert away.connack.session_present, offset
        assert away.message().payload == b"waits", offset
        away.leave()
        broker.publish("for/away", b"waits", 1, message_expiry=3600)
    # Events have the time that the clock told.
    (rows,) = server.wait_rows("SELECT count(DISTINCT device_id) FROM raw_events WHERE device_id LIKE 'jump-%'", 1)
    eventually(lambda: server.value("SELECT count(*) FROM raw_events WHERE device_id LIKE 'jump-%'") == 3)
    times = dict(server.sql("SELECT device_id, to_unixtime(received_at) FROM raw_events WHERE device_id LIKE 'jump-%'"))
    day = 86400
    assert 3.9 * day < times["jump-0"] - times["jump-1"] < 4.1 * day
    assert abs(times["jump-2"] - time.time()) < 60
    # Over a restart only the clock on the wall can tell how long it was.
    clock.set("+2d")
    server.restart()
    again = Broker(server).open(V5, "away", clean=False)
    assert not again.connack.session_present
    broker.close()


def test_a_jump_of_the_clock_and_credentials(tmp_path):
    clock = Clock(tmp_path)
    (tmp_path / "secret").write_bytes(SECRET)
    config = f'[admission.jwt]\nkey_file = "{tmp_path}/secret"\nleeway_s = 0\n'
    config += "[admission.bans]\nexempt = []\nfailures_max = 5\nwindow_s = 3600\nban_s = 600\n"
    server = Server(tmp_path / "own", config=config, hosts=HOSTS, environment=clock.environment).start()
    try:
        token = jwt.signed("HS256", jwt.hs256(SECRET), jwt.claims("d1", expires_in_s=600))
        assert connack(server, token) == 0
        clock.set("+1h")
        assert connack(server, token) == 0x86, "it has expired by the clock"
        clock.set("+0")
        assert connack(server, token) == 0
        # The administrator's token has no end.
        payload = raw.text("x") + raw.text("admin") + raw.text(server.token)
        clock.set("-10d")
        with raw.Connection(server.mqtt_port) as connection:
            connection.open(flags=0xC2, payload=payload)
            connection.send(raw.publish("devices/d1/state", b'{"n": 1}'))
            kind, _, body = connection.read()
            assert (kind, body[:2]) == (raw.PUBACK, struct.pack(">H", 1))
        clock.set("+0")

        def is_banned():
            try:
                return connack(server, "a guess") == 0x8A
            except (EOFError, OSError):
                return True

        # A ban after failed logins lasts as long as it lasts, whatever the clock on the wall does.
        eventually(is_banned)
        clock.set("+1d")
        assert is_banned()
    finally:
        server.close()
