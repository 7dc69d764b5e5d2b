"""Sessions survive restart and `kill -9`: with clients that others wrote, on both sides of every message.

The server is killed and started again at random moments, sometimes while it still starts. The seed is printed;
`CATCHMENT_SEED=… cargo xtask test -k persist` repeats the same schedule.
"""

import os
import random
import secrets
import subprocess
import threading
import time
from collections import Counter

import paho.mqtt.client as paho
import pytest

from harness import eventually
from harness.paho_client import V3, V5, Client, Paho, connected, properties

KILLS = int(os.environ.get("CATCHMENT_PERSIST_KILLS", "12"))
WINDOW = 20

# Nothing may be dropped by a bound here; the small journal files are written anew all the time.
ROOMY = """
[gateway.mqtt]
session_queue_messages_max = 200000
session_queue_bytes_max = 100000000
journal_segment_bytes = 65536
"""


class Line(threading.Thread):
    """A paho client with a persistent session that connects again and again; all of it happens in its own thread."""

    def __init__(self, server, name, seed):
        super().__init__(name=name, daemon=True)
        self.server, self.random = server, random.Random(seed)
        self.is_over = threading.Event()
        self.wrong = []
        self.client = Paho(
            paho.CallbackAPIVersion.VERSION2, client_id=name, protocol=V3, clean_session=False, reconnect_on_failure=False
        )
        self.client.max_inflight_messages_set(WINDOW)
        self.client.on_connect = self.on_connect
        self.was_connected = False

    def on_connect(self, client, _, flags, reason, __):
        if reason.is_failure:
            return
        if self.was_connected and not flags.session_present:
            self.wrong.append("the session is gone")
        self.was_connected = True
        self.connected(client, flags)

    def connected(self, client, flags):
        """For those who have something to do then."""

    def work(self):
        """What there is to do at each round of the loop."""

    def run(self):
        try:
            while not self.is_over.is_set():
                try:
                    self.client.connect("127.0.0.1", self.server.mqtt_port, keepalive=30)
                except OSError:
                    time.sleep(0.01)
                    continue
                until = time.monotonic() + self.stays_s()
                while self.client.loop(0.02) == paho.MQTT_ERR_SUCCESS and not self.is_over.is_set():
                    self.work()
                    if time.monotonic() > until:
                        # Without a word: what was on its way in both directions stays on its way.
                        self.client._sock_close()
                        self.is_over.wait(self.random.uniform(0.1, 1.5))
                        break
        except Exception as error:
            self.wrong.append(repr(error))

    def stays_s(self):
        return float("inf")

    def finish(self):
        self.is_over.set()
        self.join(timeout=20)
        assert not self.is_alive(), f"{self.name} hangs"
        assert self.wrong == [], f"{self.name}: {self.wrong}"


class Source(Line):
    """Publishes numbers, and knows which were acknowledged."""

    def __init__(self, server, name, seed, topic, qos):
        super().__init__(server, name, seed)
        self.topic, self.qos = topic, qos
        self.by_mid, self.acknowledged, self.sent = {}, set(), 0
        self.stops = threading.Event()
        self.next_burst = 0.0
        self.client.on_publish = lambda _, __, mid, ___, ____: self.acknowledged.add(self.by_mid.pop(mid))

    def work(self):
        # In bursts, and not more than readers in Python can follow.
        if self.stops.is_set() or not self.client.is_connected() or time.monotonic() < self.next_burst:
            return
        self.next_burst = time.monotonic() + self.random.uniform(0.0, 0.2)
        for _ in range(self.random.randrange(1, WINDOW - len(self.by_mid) + 1) if len(self.by_mid) < WINDOW else 0):
            sent = self.client.publish(self.topic, f'{{"seq": {self.sent}}}', self.qos)
            self.by_mid[sent.mid] = self.sent
            self.sent += 1

    def drain(self):
        self.stops.set()
        eventually(lambda: not self.by_mid, 60, f"{self.name}: everything is acknowledged")


class Reader(Line):
    """Subscribes once, and counts what comes."""

    def __init__(self, server, name, seed, filters, qos, *, leaves):
        super().__init__(server, name, seed)
        self.filters, self.qos, self.leaves = filters, qos, leaves
        self.got, self.order = Counter(), []
        self.is_subscribed = threading.Event()
        self.client.on_message = self.on_message
        self.client.on_subscribe = lambda *_: self.is_subscribed.set()

    def connected(self, client, flags):
        if not flags.session_present:
            client.subscribe([(name, self.qos) for name in self.filters])

    def on_message(self, _, __, message):
        key = (message.topic, int(message.payload[8:-1]))
        self.got[key] += 1
        if not message.dup:
            self.order.append(key)

    def stays_s(self):
        return self.random.uniform(0.2, 2.0) if self.leaves else float("inf")


def seed_of(capsys, name):
    seed = int(os.environ.get("CATCHMENT_SEED", secrets.randbits(32)))
    with capsys.disabled():
        print(f"\n{name}: CATCHMENT_SEED={seed}", flush=True)
    return seed


def kill_often(server, moments):
    for _ in range(KILLS):
        time.sleep(moments.uniform(0.1, 1.5))
        server.kill()
        server.spawn()
        while moments.random() < 0.25:
            time.sleep(moments.uniform(0.0, 0.3))
            server.kill()
            server.spawn()
        server.wait_ready()


def test_persist_no_acknowledged_message_is_lost(new_server, capsys):
    seed = seed_of(capsys, "sessions under kill")
    moments = random.Random(seed)
    server = new_server(config=ROOMY).start()
    filters = ["devices/+/state", "plain/#"]
    readers = {
        1: [Reader(server, f"once-{leaves}", seed + leaves, filters, 1, leaves=leaves) for leaves in (False, True)],
        2: [Reader(server, f"exactly-{leaves}", seed + leaves, filters, 2, leaves=leaves) for leaves in (False, True)],
    }
    lines = readers[1] + readers[2]
    for reader in lines:
        reader.start()
    for reader in lines:
        assert reader.is_subscribed.wait(20)
    sources = [
        Source(server, f"source{number}", seed, topic, qos)
        for number, (topic, qos) in enumerate(
            [("devices/pk1/state", 1), ("devices/pk2/state", 2), ("plain/1", 1), ("plain/2", 2)]
        )
    ]
    for source in sources:
        source.start()
    kill_often(server, moments)
    for source in sources:
        source.drain()
    sent = sum(len(source.acknowledged) for source in sources)
    assert sent > 20 * KILLS, "the load was too light to prove anything"
    for source in sources:
        wanted = {(source.topic, number) for number in source.acknowledged}
        for reader in lines:

            def all_there(reader=reader, wanted=wanted):
                missing = wanted - reader.got.keys()
                assert not missing, f"{reader.name} misses {len(missing)} of {len(wanted)}: {sorted(missing)[:5]}"
                return True

            eventually(all_there, 60, f"{reader.name} has all of {source.topic}")
    for line in sources + lines:
        line.finish()
    repeated = []
    for source in sources:
        for reader in readers[2]:
            doubled = {key: count for key, count in reader.got.items() if key[0] == source.topic and count > 1}
            if source.qos == 2 and doubled:
                repeated.append(f"{reader.name}: {doubled}")
        # In order, as far as first attempts go.
        for reader in lines:
            order = [number for topic, number in reader.order if topic == source.topic]
            firsts = list(dict.fromkeys(order))
            assert firsts == sorted(firsts), f"{reader.name}: {source.topic} is out of order"
    assert not repeated, f"QoS 2 messages were repeated after a kill: {repeated}"
    # QoS 2 makes one event of each message, QoS 1 at least one.
    events = "SELECT metric_value, count(*) FROM raw_metrics WHERE metric_name = 'seq' AND device_id = '{}' GROUP BY 1"
    for source in sources[:2]:
        def stored(source=source):
            rows = dict(server.sql(events.format(source.topic.split("/")[1])))
            assert set(map(int, rows)) >= source.acknowledged
            return rows
        counts = eventually(stored, 60, f"all of {source.topic} are in history")
        if source.qos == 2:
            assert set(counts.values()) == {1}, {key: count for key, count in counts.items() if count > 1}
    metrics = server.get("/metrics").text
    assert "catchment_gateway_journal_damaged_total 0" in metrics
    with capsys.disabled():
        print(f"{sent} messages acknowledged over {KILLS} kills; {sum(len(r.got) for r in lines)} received", flush=True)


def test_persist_mosquitto_queue_over_kill(new_server):
    server = new_server().start()
    port = str(server.mqtt_port)
    reader = ["mosquitto_sub", "-p", port, "-c", "-i", "mosq", "-t", "devices/m/+", "-q", "2"]
    subprocess.run([*reader, "-E"], check=True, timeout=20)
    for number in range(10):
        subprocess.run(
            ["mosquitto_pub", "-p", port, "-t", "devices/m/state", "-q", str(1 + number % 2), "-m", str(number)],
            check=True,
            timeout=20,
        )
        if number % 3 == 0:
            server.restart()
    got = subprocess.run([*reader, "-C", "10", "-W", "10"], check=True, timeout=20, capture_output=True, text=True)
    # It shows QoS 1 at once, QoS 2 when it is released: each in order.
    numbers = [int(number) for number in got.stdout.split()]
    assert [number for number in numbers if number % 2 == 0] == [0, 2, 4, 6, 8]
    assert [number for number in numbers if number % 2 == 1] == [1, 3, 5, 7, 9]
    # All was acknowledged: nothing comes again, after a restart either.
    server.stop()
    server.start()
    rest = subprocess.run([*reader, "-W", "1"], timeout=20, capture_output=True, text=True, check=False)
    assert rest.stdout == ""


def test_persist_retained(new_server, capsys):
    moments = random.Random(seed_of(capsys, "retained under kill"))
    server = new_server(config=ROOMY).start()
    wanted = {}
    for _ in range(6):
        with connected(server) as client:
            for _ in range(moments.randrange(1, 200)):
                topic = f"r/{moments.randrange(40)}"
                payload = b"" if moments.random() < 0.2 else str(moments.random()).encode() * moments.randrange(1, 20)
                client.publish(topic, payload, moments.choice([1, 2]), retain=True)
                wanted[topic] = payload
            server.kill()
        server.start()
        expected = {topic: payload for topic, payload in wanted.items() if payload}
        with connected(server) as client:
            client.subscribe("r/#")
            got = {}
            while len(got) < len(expected):
                message = client.next()
                assert message.retain
                got[message.topic] = message.payload
            assert got == expected
            assert client.has_nothing()


def test_persist_a_copy_for_each_filter(new_server):
    server = new_server().start()
    reader = Client(server, V5, "reader", clean=False, expiry_s=600)
    reader.connect()
    for number, filter in enumerate(["news/#", "news/+", "+/here"], 1):
        subscribed = properties("SUBSCRIBE", SubscriptionIdentifier=number)
        reader.paho.subscribe(filter, options=paho.SubscribeOptions(qos=number % 3), properties=subscribed)
        reader.subscribed.get(timeout=10)
    reader.drop()
    with connected(server) as client:
        client.publish("news/here", b"1", 2)
    server.kill()
    server.start()
    reader.connect()
    got = [reader.next() for _ in range(2)]
    # QoS 0 is not kept while nobody is there.
    assert sorted((message.qos, message.properties.SubscriptionIdentifier) for message in got) == [(1, [1]), (2, [2])]
    assert reader.has_nothing()


def test_persist_expiry(new_server):
    server = new_server().start()

    def session(name, expiry_s, **options):
        return Client(server, V5, name, clean=False, expiry_s=expiry_s, **options)

    short, long = session("short", 2), session("long", 100)
    for client in (short, long):
        client.connect()
        client.subscribe("news")
        client.drop()
    will = {"topic": "will", "payload": "died", "qos": 1, "properties": properties("WILLMESSAGE", WillDelayInterval=2)}
    dying = session("dying", 100, will=will)
    dying.connect()
    watcher = session("watcher", 100)
    watcher.connect()
    watcher.subscribe("will")
    watcher.disconnect()
    with connected(server) as client:
        client.publish("news", "old", properties=properties("PUBLISH", MessageExpiryInterval=1))
        client.publish("news", "new", properties=properties("PUBLISH", MessageExpiryInterval=100))
    # A record that the server lives is written now and then; from the last on the dead connection's time runs.
    server.kill()
    dying.drop()
    time.sleep(2.5)
    server.start()
    again = session("short", 2)
    assert not again.connect().session_present
    again.disconnect()
    again = session("long", 100)
    assert again.connect().session_present
    message = again.next()
    assert message.payload == b"new"
    assert message.properties.MessageExpiryInterval < 99
    assert again.has_nothing()
    again.disconnect()
    watcher = session("watcher", 100)
    assert watcher.connect().session_present
    assert watcher.next().payload == b"died"
    watcher.disconnect()
    # Published once, however often the server starts again. An acknowledgement of QoS 1 is recorded within 50 ms.
    time.sleep(0.2)
    server.restart()
    watcher = session("watcher", 100)
    assert watcher.connect().session_present
    assert watcher.has_nothing()
    watcher.disconnect()


@pytest.mark.parametrize("ends", ["a new start", "expiry"])
def test_persist_shared_messages_pass_on_after_a_restart(new_server, ends):
    """What waits for a member of a group that never comes back goes to another, also over a kill."""
    server = new_server().start()

    def member(name, expiry_s=100, **options):
        return Client(server, V5, name, clean=options.pop("clean", False), expiry_s=expiry_s, **options)

    for client in (member("leaves", 100 if ends == "a new start" else 3), member("stays")):
        client.connect()
        client.subscribe("$share/group/jobs")
        client.drop()
    with connected(server) as publisher:
        for n in range(10):
            publisher.publish("jobs", str(n))
    server.restart()
    if ends == "a new start":
        leaving = member("leaves", 0, clean=True)
        assert not leaving.connect().session_present
        leaving.disconnect()
    staying = member("stays")
    assert staying.connect().session_present
    assert sorted(int(staying.next().payload) for _ in range(10)) == list(range(10))
    assert staying.has_nothing()
    staying.disconnect()


def test_persist_queue_is_bounded(new_server):
    server = new_server(config="[gateway.mqtt]\nsession_queue_messages_max = 10\n").start()
    away = Client(server, V5, "away", clean=False, expiry_s=100)
    away.connect()
    away.subscribe("news")
    away.disconnect()
    with connected(server) as client:
        for number in range(25):
            client.publish("news", str(number))
    assert "catchment_gateway_dropped_full_total 15" in server.get("/metrics").text
    server.restart()
    away = Client(server, V5, "away", clean=False, expiry_s=100)
    assert away.connect().session_present
    assert [away.next().payload for _ in range(10)] == [str(number).encode() for number in range(10)]
    assert away.has_nothing()
    away.disconnect()


def test_persist_damage_is_reported_and_passed_over(new_server):
    server = new_server().start()
    for name in ("one", "two", "three"):
        client = Client(server, V5, f"session-{name}", clean=False, expiry_s=100)
        client.connect()
        client.subscribe("news")
        client.disconnect()
    server.kill()
    (journal,) = (server.data / "gateway").glob("*.journal")
    content = bytearray(journal.read_bytes())
    content[content.index(b"session-two")] ^= 1
    # A tail that a loss of power has torn.
    journal.write_bytes(bytes(content) + b"\x07\x00\x00\x00torn")
    server.start()
    assert "records of sessions are damaged" in server.log()
    present = {}
    for name in ("one", "two", "three"):
        client = Client(server, V5, f"session-{name}", clean=False, expiry_s=100)
        present[name] = client.connect().session_present
        client.disconnect()
    assert present == {"one": True, "two": False, "three": True}
