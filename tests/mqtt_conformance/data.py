"""Chapters 1 and 2: texts, numbers, flags, packet identifiers."""

import struct

from harness import raw_mqtt as raw

from .registry import V5, case
from .wire import ack, connect, properties, publish, subscribe, topic, unique, unsubscribe

MALFORMED, PROTOCOL, TOPIC_NAME = 0x81, 0x82, 0x90
BAD_TEXTS = [b"a\xff", b"a\xc0\x80", b"a\xed\xa0\x80", b"a\xed\xbf\xbf", b"a\xf4\x90\x80\x80", b"a\xe2\x82"]


def packets_with(version, text):
    """Each packet that has a text which is this one."""
    yield publish(version, text, qos=1)
    yield subscribe(version, text)
    yield unsubscribe(version, text)
    if version == V5:
        yield publish(version, "a", content_type=text)
        yield publish(version, "a", response_topic=text)
        yield publish(version, "a", user=("k", text))
        yield publish(version, "a", user=(text, "v"))
        yield ack(raw.PUBACK, 1, 0, reason_string=text)


def connects_with(version, text):
    """Each CONNECT that has a text which is this one."""
    yield connect(version, text)
    yield connect(version, unique(), username=text)
    yield connect(version, unique(), will=(text, "x"))
    if version == V5:
        yield connect(version, unique(), user=("k", text))
        yield connect(version, unique(), auth_method=text)


def refuses_text(broker, version, text):
    for packet in packets_with(version, text):
        broker.open(version).send(packet).ends(MALFORMED, PROTOCOL, TOPIC_NAME)
    for packet in connects_with(version, text):
        broker.client(version).send(packet).refused(MALFORMED, PROTOCOL, TOPIC_NAME, 0x85)


@case(v3="1.5.3-1 3.1.3-4 3.1.3-10 3.1.3-11 3.8.3-1 3.10.3-1",
      v5="1.5.4-1 1.5.7-1 3.1.3-4 3.1.3-11 3.1.3-12 3.3.2-13 3.3.2-19 3.8.3-1 3.10.3-1")  # fmt: skip
def texts_are_utf8(broker, version):
    for text in BAD_TEXTS:
        refuses_text(broker, version, text)


@case(v3="1.5.3-2 4.7.3-2", v5="1.5.4-2 4.7.3-2")
def texts_have_no_null(broker, version):
    refuses_text(broker, version, b"a\0b")


@case(v3="1.5.3-3", v5="1.5.4-3")
def a_byte_order_mark_stays(broker, version):
    client, name = broker.open(version), topic()
    client.subscribed("\ufeff" + name)
    broker.publish(name)
    broker.publish("\ufeff" + name, b"marked")
    assert [packet.payload for packet in client.pending()] == [b"marked"]


@case(v5="1.5.5-1")
def lengths_are_as_short_as_can_be(broker, version):
    broker.open(version).send(b"\xc0\x80\x00").ends(MALFORMED)
    body = raw.text("a") + b"\x80\x00"
    broker.open(version).send(raw.packet(raw.PUBLISH, 0, body)).ends(MALFORMED)


@case(v3="2.2.2-1 2.2.2-2 3.6.1-1", v5="2.1.3-1 3.6.1-1")
def reserved_flags(broker, version):
    wrong = [
        (raw.PUBACK, 1, b"\0\1"), (raw.PUBREC, 2, b"\0\1"), (raw.PUBREL, 0, b"\0\1"), (raw.PUBCOMP, 2, b"\0\1"),
        (raw.PINGREQ, 1, b""), (raw.DISCONNECT, 1, b""),
    ]  # fmt: skip
    for kind, flags, body in wrong:
        broker.open(version).send(raw.packet(kind, flags, body)).ends(MALFORMED)
    broker.client(version).send(b"\x11" + connect(version, unique())[1:]).refused(MALFORMED, PROTOCOL)


@case(v3="2.3.1-1", v5="2.2.1-3")
def packet_identifiers_are_not_zero(broker, version):
    for packet in (
        publish(version, "a", qos=1, packet_id=0),
        publish(version, "a", qos=2, packet_id=0),
        subscribe(version, "a", packet_id=0),
        unsubscribe(version, "a", packet_id=0),
    ):
        broker.open(version).send(packet).ends(MALFORMED, PROTOCOL)


@case(v3="2.3.1-5", v5="2.2.1-2")
def qos_0_has_no_packet_identifier(broker, version):
    client, name = broker.open(version), topic()
    client.subscribed(name)
    # What stands where an identifier would be is payload.
    broker.publish(name, b"\0\1", qos=0)
    (packet,) = client.pending()
    assert (packet.payload, packet.packet_id) == (b"\0\1", 0)


@case(v3="2.3.1-3 2.3.1-4 4.3.2-1", v5="2.2.1-4 4.3.2-1 4.3.2-2 4.3.3-1 4.3.3-2")
def the_server_gives_unused_packet_identifiers(broker, version):
    client, name = broker.open(version), topic()
    client.subscribed((name, 2))
    for qos in (1, 2) * 20:
        broker.publish(name, qos=qos)
    packets = client.pending()
    numbers = [packet.packet_id for packet in packets]
    assert len(set(numbers)) == 40 and 0 not in numbers
    assert not any(packet.duplicate for packet in packets)
    # One that is free may be given again, the others not.
    client.send(ack(raw.PUBACK, numbers[0]))
    broker.publish(name)
    (packet,) = client.pending()
    assert packet.packet_id not in numbers[1:]


@case(v3="2.3.1-6 2.3.1-7", v5="2.2.1-5 2.2.1-6")
def acknowledgements_name_the_packet(broker, version):
    client, name = broker.open(version), topic()
    client.send(publish(version, name, qos=1, packet_id=0x1234))
    assert client.read(raw.PUBACK).packet_id == 0x1234
    client.send(publish(version, name, qos=2, packet_id=0xFFFF))
    assert client.read(raw.PUBREC).packet_id == 0xFFFF
    client.send(ack(raw.PUBREL, 0xFFFF))
    assert client.read(raw.PUBCOMP).packet_id == 0xFFFF
    client.send(subscribe(version, name, packet_id=0x0102))
    assert client.read(raw.SUBACK).packet_id == 0x0102
    client.send(unsubscribe(version, name, packet_id=0x0201))
    assert client.read(raw.UNSUBACK).packet_id == 0x0201


@case(v5="2.2.2-1")
def no_properties_are_a_length_of_zero(broker, version):
    client = broker.open(version)
    client.send(raw.packet(raw.SUBSCRIBE, 2, b"\0\1"))
    client.ends(MALFORMED, PROTOCOL)
    client, name = broker.open(version), topic()
    # Every answer is taken apart with a property length in it.
    client.subscribed(name)
    broker.publish(name)
    assert client.message().properties == []


@case(v3="4.8.0-1", v5="4.13.1-1 4.13.2-1")
def malformed_packets_end_the_connection(broker, version):
    """Whatever the packet: cut short, too long, with a wrong length, of no type."""
    name = topic()
    whole = [
        publish(version, name, qos=1),
        subscribe(version, name),
        unsubscribe(version, name),
        ack(raw.PUBACK, 1),
        ack(raw.PUBREL, 1),
    ]
    for packet in whole:
        body = packet[2:]
        for wrong in (body[:1], body[:3] if packet[0] >> 4 not in {4, 6} else b""):
            broker.open(version).send(raw.packet(packet[0] >> 4, packet[0] & 15, wrong)).ends(MALFORMED, PROTOCOL)
    for packet in (b"\x00\x00", b"\xf0\x00", b"\x30\xff\xff\xff\xff\x01", raw.packet(raw.PINGREQ, 0, b"x")):
        broker.open(version).send(packet).ends(MALFORMED, PROTOCOL)
    broker.open(version).send(raw.packet(raw.CONNACK, 0, b"\0\0\0")).ends(MALFORMED, PROTOCOL)
    if version == V5:
        duplicates = {
            "message_expiry": 1, "payload_format": 1, "content_type": "a", "response_topic": "a", "topic_alias": 1,
            "correlation_data": b"a",
        }  # fmt: skip
        for twice, value in duplicates.items():
            broker.open(version).send(publish(version, name, **{twice: [value, value]})).ends(MALFORMED, PROTOCOL)
        twice = properties(session_expiry=[1, 1])
        head = raw.text("MQTT") + b"\x05\x02\0\0" + raw.length(len(twice)) + twice
        broker.client(version).send(raw.packet(raw.CONNECT, 0, head + raw.text("c"))).refused(MALFORMED, PROTOCOL)
        # Properties of other packets, and of the server's.
        for foreign in ("server_keep_alive", "receive_maximum", "session_expiry", "subscription_id", "maximum_qos"):
            broker.open(version).send(publish(version, name, **{foreign: 1})).ends(MALFORMED, PROTOCOL)
        broker.open(version).send(publish(version, name)[:-2] + b"\x02\x7f\x00").ends(MALFORMED, PROTOCOL)
        too_long = struct.pack(">H", 1) + raw.length(200) + raw.text("a")
        broker.open(version).send(raw.packet(raw.SUBSCRIBE, 2, too_long)).ends(MALFORMED)
        broker.client(version).send(connect(version, "c", will_delay=1)).refused(MALFORMED, PROTOCOL)
        broker.client(version).send(connect(version, "c", receive_maximum=0)).refused(MALFORMED, PROTOCOL)
        broker.client(version).send(connect(version, "c", maximum_packet_size=0)).refused(MALFORMED, PROTOCOL)
        broker.client(version).send(connect(version, "c", request_problem_info=2)).refused(MALFORMED, PROTOCOL)


@case(v3="7.0.0-2")
def nothing_beyond_the_standard_is_needed(broker, version):
    """The smallest exchange there is."""
    client, name = broker.open(version, client_id=""), topic()
    client.subscribed(name)
    client.send(publish(version, name, b"plain"))
    assert client.message().payload == b"plain"
    client.leave()
