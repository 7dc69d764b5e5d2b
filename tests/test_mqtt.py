"""MQTT as ordinary tools speak it: both versions, all qualities, both ways."""

import datetime
import json
import struct
import subprocess
import time

import pytest

from harness import eventually
from harness import raw_mqtt as raw
from harness.paho_client import V3, V5, Client, connected, properties

VERSIONS = pytest.mark.parametrize("version", [V3, V5], ids=["v3", "v5"])
QUALITIES = pytest.mark.parametrize("qos", [0, 1, 2])


def mosquitto_pub(server, topic, payload, *arguments):
    """Publishes with the tool from Debian."""
    port = str(server.mqtt_port)
    command = ["mosquitto_pub", "-h", "127.0.0.1", "-p", port, "-t", topic, "-s", *arguments]
    subprocess.run(command, input=payload.encode(), check=True, timeout=20)


# Devices publish.


@pytest.mark.parametrize("protocol", ["mqttv311", "mqttv5"])
@QUALITIES
def test_mosquitto_pub_reaches_snapshot_and_sql(server, device, protocol, qos):
    measured = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.250000Z")
    document = {"rpm": 1480.5, "oil": {"temp": 71}, "on": True, "state": "run", "ts": measured}
    mosquitto_pub(server, f"devices/{device}/engine", json.dumps(document), "-q", str(qos), "-V", protocol)
    expected = {"rpm": 1480.5, "oil.temp": 71, "on": True, "state": "run"}

    def arrived():
        answer = server.get(f"/api/v1/devices/{device}/snapshot")
        return answer.status_code == 200 and server.snapshot(device)

    assert eventually(arrived) == expected
    rows = server.wait_rows(
        f"SELECT metric_name, metric_value, text_value, timestamp = '{measured}'"
        f" FROM raw_metrics WHERE device_id = '{device}' ORDER BY metric_name",
        4,
    )
    assert rows == [
        ("oil.temp", 71.0, None, True),
        ("on", 1.0, "true", True),
        ("rpm", 1480.5, None, True),
        ("state", None, "run", True),
    ]
    events = server.sql(f"SELECT type, topic, event_time FROM raw_events WHERE device_id = '{device}'")
    assert [event[:2] for event in events] == [("engine", f"devices/{device}/engine")]


@VERSIONS
@QUALITIES
def test_every_publish_is_one_event(server, device, version, qos):
    with connected(server, version) as client:
        sent = [client.paho.publish(f"devices/{device}/count", json.dumps({"n": n}), qos) for n in range(200)]
        for message in sent:
            message.wait_for_publish(10)
            assert message.is_published()
    rows = server.wait_rows(
        f"SELECT metric_value FROM raw_metrics WHERE device_id = '{device}' ORDER BY log_offset", 200
    )
    assert rows == [(float(n),) for n in range(200)]


def test_acknowledged_means_durable(new_server, device):
    server = new_server().start()
    with connected(server) as client:
        client.publish(f"devices/{device}/state", b'{"kept": 1}')
        server.kill()
    server.start()
    assert server.wait_rows(f"SELECT metric_value FROM raw_metrics WHERE device_id = '{device}'", 1) == [(1.0,)]


@VERSIONS
def test_acknowledgements_come_in_order(server, device, version):
    version = 5 if version == V5 else 4
    with raw.Connection(server.mqtt_port).open(version) as connection:
        packets = [
            raw.publish(f"devices/{device}/state", b'{"n":%d}' % n, packet_id=n, version=version) for n in range(1, 101)
        ]
        connection.send(b"".join(packets))
        acknowledged = [connection.read() for _ in packets]
    assert [kind for kind, _, _ in acknowledged] == [raw.PUBACK] * 100
    assert [struct.unpack(">H", body[:2])[0] for _, _, body in acknowledged] == list(range(1, 101))


def test_quality_two_is_stored_once(server, device):
    with raw.Connection(server.mqtt_port).open() as connection:
        topic = f"devices/{device}/state"
        connection.send(raw.publish(topic, b'{"n": 1}', qos=2, packet_id=7))
        assert connection.read()[0] == raw.PUBREC
        connection.send(raw.publish(topic, b'{"n": 1}', qos=2, packet_id=7, duplicate=True))
        assert connection.read()[0] == raw.PUBREC
        connection.send(raw.packet(raw.PUBREL, 2, struct.pack(">H", 7)))
        assert connection.read()[0] == raw.PUBCOMP
        # Released: the same number is a new message now.
        connection.send(raw.publish(topic, b'{"n": 2}', qos=2, packet_id=7))
        assert connection.read()[0] == raw.PUBREC
    query = f"SELECT metric_value FROM raw_metrics WHERE device_id = '{device}' ORDER BY log_offset"
    assert server.wait_rows(query, 2) == [(1.0,), (2.0,)]


def test_publishes_over_websocket(server, device):
    with connected(server, V5, websocket=True) as client:
        assert client.subscribe(f"devices/{device}/+") == 1
        client.publish(f"devices/{device}/state", b'{"n": 5}')
        assert client.next().payload == b'{"n": 5}'
    eventually(lambda: server.snapshot(device) == {"n": 5})


def test_a_client_id_is_taken_over(server, device):
    with raw.Connection(server.mqtt_port).open(client_id=f"id-{device}") as first:
        with connected(server, V5, f"id-{device}") as second:
            packets = first.read_to_end()
            assert [(kind, body[0]) for kind, _, body in packets] == [(raw.DISCONNECT, 0x8E)]
            second.publish(f"devices/{device}/state", b'{"n": 1}')


# Others listen.


@pytest.mark.parametrize("protocol", ["mqttv311", "mqttv5"])
def test_mosquitto_sub_hears_mosquitto_pub(server, device, protocol):
    topic = f"devices/{device}/state"
    # It tells on standard output when it has subscribed, in lines at once.
    command = ["stdbuf", "-oL", "mosquitto_sub", "-h", "127.0.0.1", "-p", str(server.mqtt_port), "-V", protocol, "-d"]
    command += ["-t", f"devices/{device}/#", "-q", "1", "-C", "2", "-W", "15", "-F", "%t %p"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as listener:
        for line in listener.stdout:
            if "SUBACK" in line:
                break
        mosquitto_pub(server, topic, '{"n": 1}', "-q", "1", "-V", protocol)
        mosquitto_pub(server, topic, '{"n": 2}', "-q", "1", "-V", protocol)
        heard = [line.strip() for line in listener.stdout if line.startswith("devices/")]
        assert listener.wait(timeout=20) == 0
    assert heard == [f'{topic} {{"n": 1}}', f'{topic} {{"n": 2}}']


@VERSIONS
@pytest.mark.parametrize("pattern", ["devices/{}/state", "devices/{}/+", "+/{}/state", "devices/{}/#"])
def test_filters_match(server, device, version, pattern):
    with connected(server, version) as client:
        client.subscribe(pattern.format(device), qos=1)
        client.publish(f"devices/{device}-other/state", b"{}")
        client.publish(f"devices/{device}/state", b'{"n": 1}')
        message = client.next()
        assert (message.topic, message.payload, message.qos) == (f"devices/{device}/state", b'{"n": 1}', 1)
        assert client.has_nothing()


@QUALITIES
def test_quality_is_the_lower_of_both_sides(server, device, qos):
    with connected(server, V5) as client:
        assert client.subscribe(f"devices/{device}/state", qos=1) == 1
        client.publish(f"devices/{device}/state", b"{}", qos=qos)
        assert client.next().qos == min(qos, 1)


def test_unsubscribed_is_silent(server, device):
    with connected(server, V5) as client:
        client.subscribe(f"devices/{device}/state")
        client.paho.unsubscribe(f"devices/{device}/state")
        client.publish(f"devices/{device}/state", b"{}")
        assert client.has_nothing()


def test_properties_are_forwarded(server, device):
    with connected(server, V5) as client:
        client.subscribe(f"devices/{device}/state")
        given = properties(
            "PUBLISH",
            ContentType="application/json",
            ResponseTopic="answers/1",
            CorrelationData=b"\x00\x01",
            UserProperty=[("site", "a"), ("site", "b")],
            PayloadFormatIndicator=1,
        )
        client.publish(f"devices/{device}/state", b"{}", properties=given)
        received = client.next().properties
    assert received.ContentType == "application/json"
    assert received.ResponseTopic == "answers/1"
    assert received.CorrelationData == b"\x00\x01"
    assert received.UserProperty == [("site", "a"), ("site", "b")]
    assert received.PayloadFormatIndicator == 1


@VERSIONS
def test_retained_messages(server, device, version):
    topic = f"devices/{device}/state"
    with connected(server, version) as client:
        client.publish(topic, b'{"n": 1}', retain=True)
        client.publish(topic, b'{"n": 2}', retain=True)
        client.subscribe(topic)
        message = client.next()
        assert (message.payload, message.retain) == (b'{"n": 2}', True)
        client.publish(topic, b'{"n": 3}', retain=True)
        message = client.next()
        assert (message.payload, message.retain) == (b'{"n": 3}', False)
        client.publish(topic, b"", retain=True)
        assert client.next().payload == b""
    with connected(server, version) as late:
        late.subscribe(topic)
        assert late.has_nothing()


@VERSIONS
def test_will_of_a_lost_client(server, device, version):
    topic = f"devices/{device}/status"
    will = {"topic": topic, "payload": b'{"online": false}', "qos": 1}
    with connected(server, version) as listener:
        listener.subscribe(topic)
        polite = Client(server, version, will=will)
        polite.connect()
        polite.disconnect()
        assert listener.has_nothing()
        lost = Client(server, version, will=will)
        lost.connect()
        lost.drop()
        assert listener.next().payload == b'{"online": false}'
    eventually(lambda: server.snapshot(device) == {"online": False})


@VERSIONS
def test_session_keeps_messages_for_an_absent_client(server, device, version):
    topic = f"devices/{device}/state"
    options = {"clean": False, "expiry_s": 60}
    with connected(server, version, f"absent-{device}", **options) as first:
        assert not first.flags.session_present
        first.subscribe(topic)
    with connected(server, version) as sender:
        for n in range(10):
            sender.publish(topic, b'{"n": %d}' % n)
    with connected(server, version, f"absent-{device}", **options) as again:
        assert again.flags.session_present
        assert [again.next().payload for _ in range(10)] == [b'{"n": %d}' % n for n in range(10)]
        assert again.has_nothing()
    with connected(server, version, f"absent-{device}", clean=True) as fresh:
        assert not fresh.flags.session_present
        fresh.publish(topic, b"{}")
        assert fresh.has_nothing()


def test_session_expires(server, device):
    client_id = f"expiring-{device}"
    with connected(server, V5, client_id, clean=False, expiry_s=1):
        pass
    gone = time.monotonic() + 1.5
    eventually(lambda: time.monotonic() > gone)
    with connected(server, V5, client_id, clean=False) as again:
        assert not again.flags.session_present


@VERSIONS
def test_shared_subscription_shares(server, device, version):
    topic = f"devices/{device}/work"
    with connected(server, version) as one, connected(server, version) as two, connected(server, version) as sender:
        for worker in (one, two):
            worker.subscribe(f"$share/workers-{device}/{topic}")
        for n in range(100):
            sender.paho.publish(topic, b"%d" % n, 1)
        eventually(lambda: one.messages.qsize() + two.messages.qsize() >= 100)
        assert one.messages.qsize() > 0 and two.messages.qsize() > 0
        heard = [int(worker.next().payload) for worker in (one, two) for _ in range(worker.messages.qsize())]
        assert sorted(heard) == list(range(100))
