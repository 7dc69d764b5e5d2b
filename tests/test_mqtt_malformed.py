"""Packets that are wrong: that connection ends with the right reason code, and nobody else notices."""

import struct

import pytest

from harness import raw_mqtt as raw
from harness.paho_client import V5, connected

MALFORMED, PROTOCOL, TOPIC_INVALID, TOO_LARGE, ALIAS_INVALID = 0x81, 0x82, 0x90, 0x95, 0x94
FILTER_INVALID, SHARED = 0x8F, 0x9E

# name: packet after CONNECT, reason codes that the standard allows for it
AFTER_CONNECT = {
    "reserved packet type 0": (b"\x00\x00", {MALFORMED, PROTOCOL}),
    "second CONNECT": (raw.connect(), {PROTOCOL}),
    "server's packet CONNACK": (raw.packet(raw.CONNACK, 0, b"\0\0\0"), {PROTOCOL, MALFORMED}),
    "PUBLISH with QoS 3": (raw.packet(raw.PUBLISH, 6, raw.text("devices/a/b") + b"\0\1\0"), {MALFORMED}),
    "PUBLISH DUP with QoS 0": (raw.packet(raw.PUBLISH, 8, raw.text("devices/a/b") + b"\0"), {MALFORMED, PROTOCOL}),
    "PUBLISH packet id 0": (raw.publish("devices/a/b", b"{}", packet_id=0), {MALFORMED, PROTOCOL}),
    "topic of invalid UTF-8": (raw.publish(b"devices/\xff\xfe/b", b"{}"), {MALFORMED, TOPIC_INVALID}),
    "topic with a surrogate": (raw.publish(b"devices/\xed\xa0\x80/b", b"{}"), {MALFORMED, TOPIC_INVALID}),
    "topic with NUL": (raw.publish("devices/a\0/b", b"{}"), {MALFORMED, PROTOCOL, TOPIC_INVALID}),
    "topic with #": (raw.publish("devices/#", b"{}"), {MALFORMED, PROTOCOL, TOPIC_INVALID}),
    "topic with +": (raw.publish("devices/+/a", b"{}"), {MALFORMED, PROTOCOL, TOPIC_INVALID}),
    "empty topic without alias": (raw.publish("", b"{}"), {PROTOCOL, TOPIC_INVALID, MALFORMED}),
    "topic longer than its packet": (raw.packet(raw.PUBLISH, 2, b"\xff\xff" + b"a" * 20), {MALFORMED}),
    "topic alias 0": (raw.publish("a", b"{}", properties=b"\x23\0\0"), {ALIAS_INVALID, PROTOCOL}),
    "unknown topic alias": (raw.publish("", b"{}", properties=b"\x23\0\x09"), {ALIAS_INVALID, PROTOCOL}),
    "unknown property": (raw.publish("a", b"{}", properties=b"\x7f\0"), {MALFORMED, PROTOCOL}),
    "property twice": (raw.publish("a", b"{}", properties=b"\x01\x01\x01\x01"), {PROTOCOL, MALFORMED}),
    "length of five bytes": (b"\x30\xff\xff\xff\xff\x01", {MALFORMED}),
    "SUBSCRIBE with flags 0": (raw.packet(raw.SUBSCRIBE, 0, b"\0\1\0" + raw.text("a") + b"\0"), {MALFORMED}),
    "SUBSCRIBE to nothing": (raw.packet(raw.SUBSCRIBE, 2, b"\0\1\0"), {PROTOCOL, MALFORMED}),
    "SUBSCRIBE with reserved options": (
        raw.packet(raw.SUBSCRIBE, 2, b"\0\1\0" + raw.text("a") + b"\xc0"),
        {PROTOCOL, MALFORMED},
    ),
    "PUBREL with flags 0": (raw.packet(raw.PUBREL, 0, b"\0\1"), {MALFORMED}),
    "PINGREQ with a body": (raw.packet(raw.PINGREQ, 0, b"x"), {MALFORMED}),
    "trailing bytes": (raw.packet(raw.UNSUBSCRIBE, 2, b"\0\1\0" + raw.text("a") + b"\0"), {MALFORMED, PROTOCOL}),
}


@pytest.fixture
def bystander(server, device):
    """A well-behaved client that was there before; afterwards it must still be served."""
    with connected(server, V5) as client:
        client.subscribe(f"devices/{device}/bystander")
        yield client
        client.publish(f"devices/{device}/bystander", b'{"fine": true}')
        assert client.next().payload == b'{"fine": true}'
        assert client.disconnects.empty()


@pytest.mark.parametrize("case", AFTER_CONNECT)
def test_v5_connection_ends_with_the_reason(server, bystander, case):
    packet, reasons = AFTER_CONNECT[case]
    with raw.Connection(server.mqtt_port).open(version=5) as connection:
        connection.send(packet)
        packets = connection.read_to_end()
    assert [kind for kind, _, _ in packets] == [raw.DISCONNECT], packets
    assert packets[0][2][0] in reasons, f"reason {packets[0][2][0]:#x}"


@pytest.mark.parametrize(
    "packet",
    [
        b"\x00\x00",
        raw.connect(4),
        raw.packet(raw.PUBLISH, 6, raw.text("devices/a/b") + b"\0\1"),
        raw.publish("devices/#", b"{}", version=4),
        raw.publish(b"devices/\xff\xfe/b", b"{}", version=4),
        b"\x30\xff\xff\xff\xff\x01",
        raw.packet(raw.SUBSCRIBE, 2, b"\0\1"),
    ],
    ids=["type 0", "second CONNECT", "QoS 3", "wildcard", "UTF-8", "length", "SUBSCRIBE to nothing"],
)
def test_v3_connection_ends_in_silence(server, bystander, packet):
    with raw.Connection(server.mqtt_port).open(version=4) as connection:
        connection.send(packet)
        assert connection.read_to_end() == []


@pytest.mark.parametrize("pattern", ["", "a#", "a/#/b", "a+", "$share/a", "$share//a", "$share/g+/a", "a\0"], ids=repr)
def test_bad_filters_are_refused(server, bystander, pattern):
    """Either the whole connection ends, or the SUBACK refuses: both are in the standard."""
    with raw.Connection(server.mqtt_port).open(version=5) as connection:
        connection.send(raw.packet(raw.SUBSCRIBE, 2, struct.pack(">H", 1) + b"\0" + raw.text(pattern) + b"\0"))
        kind, _, body = connection.read()
    if kind == raw.SUBACK:
        assert body[-1] in {FILTER_INVALID, SHARED}, f"{body[-1]:#x}"
    else:
        assert kind == raw.DISCONNECT and body[0] in {MALFORMED, PROTOCOL, FILTER_INVALID}, (kind, body)


@pytest.mark.parametrize("version", [4, 5])
def test_oversized_packet_is_refused(server, bystander, version):
    with raw.Connection(server.mqtt_port).open(version) as connection:
        # The header alone says that 200 MB would follow.
        connection.send(b"\x32" + raw.length(200_000_000) + raw.text("devices/a/b") + b"\0\1")
        packets = connection.read_to_end()
    if version == 4:
        assert packets == []
    else:
        assert [(kind, body[0]) for kind, _, body in packets] == [(raw.DISCONNECT, TOO_LARGE)]


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        (raw.connect(6), 0x84),
        (raw.packet(raw.CONNECT, 0, raw.text("MQTT") + b"\x04\x03\0\x1e" + raw.text("")), None),
        (raw.packet(raw.CONNECT, 0, raw.text("HTTP") + b"\x05\x02\0\x1e\0" + raw.text("")), 0x84),
        (raw.publish("devices/a/b", b"{}"), None),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", None),
    ],
    ids=["version 6", "reserved flag", "other protocol", "PUBLISH first", "HTTP"],
)
def test_bad_first_packet(server, bystander, packet, expected):
    """An unknown version may be told so; anything else just ends."""
    with raw.Connection(server.mqtt_port) as connection:
        connection.send(packet)
        packets = connection.read_to_end()
    if expected is None:
        assert [kind for kind, _, _ in packets if kind != raw.CONNACK] == []
        assert all(body[1] != 0 for _, _, body in packets), packets
    else:
        assert packets == [] or packets[0][2][1] in {expected, 0x01}, packets


def test_garbage_harms_nobody(server, bystander):
    """Every prefix and every single flipped byte of good traffic."""
    good = raw.connect(client_id="x") + raw.publish("devices/garbage/state", b'{"n": 1}')
    for at in range(len(good)):
        for data in (good[:at], good[:at] + bytes([good[at] ^ 0xFF]) + good[at + 1 :]):
            with raw.Connection(server.mqtt_port) as connection:
                connection.send(data)
