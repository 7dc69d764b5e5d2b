"""Attacks from outside: each meets a bound, and somebody who is not part of it goes on as before.

How much longer a quiet client waits for its PUBACK is printed (`-s` shows it) and kept in docs/attacks.md; here only gross harm
fails: five times as long, and by more than 50 ms. What stops each attack, and its setting, is in that document too.
"""

import gzip
import struct
import time

import pytest

from harness import attacks, eventually, free_ports
from harness import raw_mqtt as raw
from harness.attacks import Attack, measure
from harness.certificates import Authority
from mqtt_conformance.registry import V3, V5
from mqtt_conformance.wire import Broker, publish
from test_admission import add, cli, connack, start
from test_mqtt_slow import metric

QUOTA_EXCEEDED = 0x97
PACKET_TOO_LARGE = 0x95
MIB = 1 << 20


@pytest.fixture
def broker(new_server):
    """A server with its own settings, and clients that end with the test."""
    made = []

    def make(config=""):
        made.append(Broker(new_server(config=config).start()))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_what_the_measure_itself_shows(broker):
    with Attack(attacks.busy) as one, Attack(attacks.busy) as other:
        measure("none: 2 processes that compute and leave the server alone", broker().server, one, other)


def test_slow_connects(new_server, tmp_path):
    (mqtts,) = free_ports(1)
    pem, key = Authority(tmp_path).issue("server")
    server = new_server(
        config=f'mqtts = "127.0.0.1:{mqtts}"\n[tls]\ncertificate = "{pem}"\nkey = "{key}"\n'
        "[network]\nopening_s_max = 3\n[gateway.mqtt]\nconnect_s_max = 3\n"
    ).start()
    connect = raw.connect(5, "slow" * 20)
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + b"X-Padding: x\r\n" * 10
    with (
        Attack(attacks.slow_starts, server.mqtt_port, 150, connect) as plain,
        Attack(attacks.slow_starts, mqtts, 150, attacks.tls_hello()) as secured,
        Attack(attacks.slow_starts, server.http_port, 150, request) as http,
    ):
        measure("slow loris: 450 connects byte by byte, MQTT, TLS and HTTP", server, plain, secured, http)
        # Newcomers are let in all the while, and those who are slow are not kept.
        for _ in range(20):
            with raw.Connection(server.mqtt_port) as connection:
                connection.open(client_id="newcomer")
        assert server.get("/healthz").status_code == 200
        eventually(lambda: metric(server, "catchment_listener_refused_total") > 0, 20)


def test_half_open_clients(broker):
    made = broker("[gateway.mqtt]\nwrite_s_max = 3\n")
    with Attack(attacks.half_open, made.server.mqtt_port, 100, "bomb") as gone:
        measure("half open: 100 subscribers that take nothing, while much is published", made.server, gone)
        reason = 'catchment_gateway_disconnects_total{reason="write_timeout"}'
        eventually(lambda: metric(made.server, reason) >= 100, 30)


def test_packets_that_are_announced_and_do_not_come(broker):
    made = broker()
    before = made.server.resident_bytes()
    with Attack(attacks.announced, made.server.mqtt_port, 200, MIB - 100) as large:
        measure("packet bomb: 200 packets of 1 MiB that do not end", made.server, large)
        # What is announced reserves nothing: 200 MiB were, and a tenth of it has come.
        assert made.server.resident_bytes() - before < 100 * MIB
    for version in (V3, V5):
        client = made.open(version)
        client.send(bytes([raw.PUBLISH << 4]) + raw.length(256 * MIB - 1))
        client.ends(PACKET_TOO_LARGE)
    # Who is not known yet is not waited for that long, nor given that much.
    stranger = made.client(V5)
    stranger.send(bytes([raw.CONNECT << 4]) + raw.length(MIB - 10))
    assert stranger.rest() == []


def test_many_tiny_packets(broker):
    made = broker()
    with Attack(attacks.flood, made.server.mqtt_port, b"\xc0\x00", 4) as pings:
        measure("packet bomb: 4 connections of nothing but PINGREQ", made.server, pings)


def test_many_repeated_messages_of_qos_2(broker):
    made = broker()
    topic = "bomb/two"
    again = raw.publish(topic, b"", qos=2, packet_id=1, duplicate=True)
    with Attack(attacks.flood, made.server.mqtt_port, again, 2) as repeated:
        measure("packet bomb: the same message of QoS 2 again and again", made.server, repeated)


def test_gigantic_property_lists(broker):
    made = broker()
    one = b"\x26" + raw.text("k") + raw.text("v")

    def lists(count):
        return raw.publish("bomb/properties", b"", qos=0, properties=one * count)

    data = lists(37_000)
    with Attack(attacks.flood, made.server.mqtt_port, data, 2) as greedy:
        measure("property bomb: PUBLISH with 37,000 user properties", made.server, greedy)
    client = made.open(V5).subscribed("bomb/properties")
    client.send(data)
    assert len(client.message().properties) == 37_000
    client.send(lists(100_000))
    client.ends(QUOTA_EXCEEDED)


def test_many_and_deep_topics(broker):
    made = broker()
    with Attack(attacks.many_topics, made.server.mqtt_port, 500, 32) as topics:
        measure("topic bomb: every message of a new topic of 32 levels", made.server, topics)
    client = made.open(V5)
    client.send(publish(V5, "/".join("a" * 33), b"x", qos=1))
    client.ends(0x90)


def test_overlapping_subscriptions(broker):
    made = broker()
    with Attack(attacks.subscriptions, made.server.mqtt_port, 8, 1000, 12) as filters:
        assert metric(made.server, "catchment_gateway_subscriptions ") >= 8000
        measure("subscription bomb: 8 × 1,000 filters that all match, and a flood of their topic", made.server, filters)


def test_filters_that_topics_lead_past(broker):
    made = broker()
    with Attack(attacks.passing, made.server.mqtt_port, 1000, 31) as filters:
        assert metric(made.server, "catchment_gateway_subscriptions ") >= 1000
        measure("subscription bomb: topics that lead past 20,000 levels of filters, and fit none", made.server, filters)


def test_subscribing_again_and_again(broker):
    made = broker()
    with Attack(attacks.subscribing, made.server.mqtt_port, 2) as again:
        measure("subscription bomb: packets that subscribe 1,000 times", made.server, again)


def test_subscriptions_have_bounds_of_a_client_and_of_all(broker):
    made = broker("[gateway.mqtt]\nsubscriptions_per_client_max = 100\nsubscriptions_bytes_max = 200000\n")
    greedy = made.open(V5)
    reasons = greedy.subscribe(*(f"greedy/{number}" for number in range(150)))
    assert reasons == [0] * 100 + [QUOTA_EXCEEDED] * 50
    # One packet has room for a quarter of a million.
    assert len(made.open(V5).subscribe(*["greedy/same"] * 50_000)) == 50_000
    deep = [made.open(V5) for _ in range(5)]
    codes = []
    for number, client in enumerate(deep):
        codes += client.subscribe(*("/".join([f"{number}-{at}"] + ["x"] * 31) for at in range(20)))
    assert 0 in codes and QUOTA_EXCEEDED in codes, codes
    assert metric(made.server, "catchment_gateway_subscriptions_refused_total") >= 50
    assert 0x80 in made.open(V3).subscribe("/".join(["of-3"] + ["x"] * 31))
    # What is there can be had again, and what is given back can be had by others.
    assert greedy.subscribe("greedy/1") == [0]
    for client in deep:
        client.leave()
    eventually(lambda: made.open(V5).subscribe("/".join(["later"] + ["x"] * 31)) == [0])


def test_retained_messages_have_bounds(broker):
    made = broker("[gateway.mqtt]\nretained_messages_max = 1000\nretained_bytes_max = 400000\n")
    server, client = made.server, made.open(V5)
    before = server.resident_bytes()

    def fill(topic, payload, limit):
        for number in range(limit):
            answer = client.publish(topic(number), payload, retain=1)
            if answer.reason:
                return number, answer.reason
        return limit, 0

    # Few that are large; many that are deep; more than may be.
    for topic, payload in [
        (lambda number: f"large/{number}", b"x" * 50_000),
        (lambda number: f"deep/{number}" + "/y" * 30, b"x"),
        (lambda number: f"flat/{number}", b"x"),
    ]:
        kept, reason = fill(topic, payload, 3000)
        assert reason == QUOTA_EXCEEDED and 0 < kept <= 1000, (topic(0), kept, reason)
        # What is there can be replaced and removed, and others have what is left.
        assert client.publish(topic(0), payload, retain=1).reason == 0
        refused = metric(server, "catchment_gateway_retained_refused_total")
        # 3.1.1 has no word for it: the message goes to subscribers, and is not retained.
        old = made.open(V3).subscribed(topic(2999))
        assert old.publish(topic(2998), payload, retain=1) is not None
        made.publish(topic(2999), payload, 0, retain=1)
        assert old.message().payload == payload
        assert metric(server, "catchment_gateway_retained_refused_total") == refused + 2
        assert made.open(V5).subscribed(topic(2998), topic(2999)).pending() == []
        for number in range(kept):
            client.send(publish(V5, topic(number), b"", retain=1))
        client.pending()
    assert server.resident_bytes() - before < 50 * MIB


def test_filling_the_retained_store(broker):
    made = broker()
    topics = [f"fill/{number}{'/z' * 20}" for number in range(500)]
    packets = b"".join(publish(V5, topic, b"x" * 100, retain=1) for topic in topics)
    with Attack(attacks.flood, made.server.mqtt_port, packets, 2) as filling:
        measure("retained bomb: 500 deep topics set again and again", made.server, filling)


def test_wildcards_do_not_reach_the_servers_own_topics(broker):
    made = broker("[gateway.mqtt]\nsys_interval_s = 1\n")
    own = made.open(V5).subscribed("$SYS/#")
    assert own.message().topic.startswith("$SYS/")
    for version in (V3, V5):
        client = made.open(version).subscribed("#", "+/#", "+/broker/#")
        time.sleep(1.5)
        assert client.pending() == []
    # Nobody writes there.
    assert made.open(V5).publish("$SYS/broker/version", b"mine", retain=1).reason == 0x87
    made.open(V3).publish("$SYS/broker/version", b"mine", retain=1)
    topics = {packet.topic: packet.payload for packet in made.open(V5).subscribed("$SYS/broker/version").pending()}
    assert topics["$SYS/broker/version"].startswith(b"Catchment")


def test_nobody_speaks_as_somebody_else(tmp_path):
    server = start(tmp_path)
    try:
        secrets = {}
        for device in ("mine", "yours"):
            add(server, device, "--password")
            cli(server, "device", "password", device, "--stdin", stdin=f"{device}-password\n")
            secrets[device] = f"{device}-password"
        payload = b"".join(map(raw.text, ["some-id", "mine", secrets["mine"]]))

        def mine(version):
            connection = raw.Connection(server.mqtt_port)
            return connection.open(version, flags=0xC2, payload=payload)

        for topic in ("devices/yours/state", "devices/yours/commands/1/result", "devices/mine-too/state", "anything"):
            with mine(5) as connection:
                connection.send(raw.publish(topic, b'{"n": 666}'))
                kind, _, body = connection.read()
                assert (kind, body[2]) == (raw.PUBACK, 0x87), topic
            with mine(4) as connection:
                connection.send(raw.publish(topic, b'{"n": 666}', version=4))
                assert connection.read_to_end() == [], topic
        for topic_filter in ("#", "devices/yours/#", "devices/+/state", "$SYS/#", "$share/g/devices/yours/#"):
            with mine(5) as connection:
                body = struct.pack(">H", 1) + b"\0" + raw.text(topic_filter) + b"\0"
                connection.send(raw.packet(raw.SUBSCRIBE, 2, body))
                kind, _, answer = connection.read()
                assert (kind, answer[-1]) == (raw.SUBACK, 0x87), topic_filter
        # Nor under another's name, nor into another's session.
        assert connack(server, "yours", secrets["mine"]) == 0x86
        assert connack(server, "yours", secrets["yours"], client_id="theirs") == 0
        assert server.value("SELECT count(*) FROM raw_events WHERE device_id <> 'mine'") == 0
    finally:
        server.close()


def test_large_requests(broker):
    made = broker()
    path = "/api/v1/devices/bomb/events/state"
    array = b"[" + b",".join([b'{"n": 1}'] * 10_000) + b"]"
    zeros = gzip.compress(b" " * (64 * MIB), 1)
    json_type = {"Content-Type": "application/json"}
    with (
        Attack(attacks.posting, made.server.http_port, path, array, json_type, 2) as arrays,
        Attack(attacks.posting, made.server.http_port, path, zeros, {**json_type, "Content-Encoding": "gzip"}, 2) as bombs,
    ):
        measure("HTTP bomb: arrays of 10,000 events, and 64 MiB in a few KiB", made.server, arrays, bombs)
    # As long as what is left of the attack has the memory for bodies, it is said that there is none.
    post = lambda: made.server.post(path, data=zeros, headers={**json_type, "Content-Encoding": "gzip"})  # noqa: E731
    answer = eventually(lambda: [answer for answer in [post()] if answer.status_code != 503], 10, "room for a body")[0]
    assert answer.status_code == 413, answer.text


def test_a_flood_of_bad_passwords(tmp_path):
    # Bans would end it at once; they are tested elsewhere.
    server = start(tmp_path, "[admission.bans]\nfailures_max = 0\n")
    try:
        for device in ("quiet", "known"):
            add(server, device, "--password")
            cli(server, "device", "password", device, "--stdin", stdin="the-password\n")
        with Attack(attacks.bad_passwords, server.mqtt_port, "known", 50) as guesses:
            measure("connect flood: 50 at once with bad passwords", server, guesses, credentials=("quiet", "the-password"))
            # Who was known before comes in all the while.
            for _ in range(10):
                assert connack(server, "quiet", "the-password") == 0
    finally:
        server.close()
