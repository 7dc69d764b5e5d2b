"""Sections 3.1 (wills), 3.4 to 3.7 and 4.1 to 4.6: sessions, wills, delivery at each QoS, order."""

import time

from harness import raw_mqtt as raw

from .registry import V5, case
from .wire import ack, connect, disconnect, publish, topic

PROTOCOL, TAKEN_OVER = 0x82, 0x8E
CLIENT_CODES = (0x04, 0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99)


@case(v3="3.1.2-5 4.1.0-1 4.5.0-1", v5="4.1.0-1 4.5.0-1")
def messages_wait_for_the_session(broker, version):
    name, expiry = topic(), {"session_expiry": 60} if version == V5 else {}
    client = broker.open(version, clean=False, **expiry).subscribed((f"{name}/#", 2))
    client.vanish()
    for qos in (0, 1, 2):
        broker.publish(f"{name}/{qos}", bytes([qos]), qos)
    again = broker.open(version, client.client_id, clean=False, **expiry)
    assert [packet.qos for packet in again.take(2)] == [1, 2]
    # While the connection lasts, nothing is forgotten.
    broker.publish(f"{name}/x", b"live")
    assert again.take(1)[0].payload == b"live"


@case(v3="4.1.0-2", v5="4.1.0-2")
def sessions_end(broker, version):
    name = topic()
    if version == V5:
        for expiry in ({}, {"session_expiry": 0}):
            client = broker.open(version, clean=False, **expiry).subscribed((name, 1))
            client.leave()
            assert broker.open(version, client.client_id, clean=False).connack.session_present == 0
        client = broker.open(version, session_expiry=1).subscribed((name, 1))
        client.leave()
        again = broker.open(version, client.client_id, clean=False, session_expiry=1)
        assert again.connack.session_present == 1
        again.leave()
        time.sleep(1.6)
        broker.publish(name)
        late = broker.open(version, client.client_id, clean=False)
        assert late.connack.session_present == 0 and late.pending() == []
    else:
        client = broker.open(version, clean=True).subscribed((name, 1))
        time.sleep(0.2)
        broker.publish(name)
        assert len(client.pending()) == 1, "it lasts as long as the connection"
        client.leave()
        assert broker.open(version, client.client_id, clean=False).connack.session_present == 0


@case(v3="3.1.2-8 3.1.2-16", v5="3.1.2-7 3.1.2-8 3.1.2-14")
def wills_are_published(broker, version):
    """When the network fails, the keep-alive runs out, the client breaks the protocol, and on a take-over."""
    name = topic()
    watcher = broker.open(version).subscribed((name, 2))
    broker.open(version, will=(name, "lost", 2, 0)).vanish()
    (packet,) = [watcher.message()]
    assert (packet.payload, packet.qos, packet.retain) == (b"lost", 2, 0)
    broker.open(version, will=(name, "wrong")).send(b"\x00\x00").ends(0x81)
    assert watcher.message().payload == b"wrong"
    broker.open(version, will=(name, "silent"), keep_alive=1)
    assert watcher.message().payload == b"silent"
    old = broker.open(version, will=(name, "taken"))
    broker.open(version, old.client_id)
    assert watcher.message().payload == b"taken"
    assert broker.open(version).subscribed(name).pending() == [], "and are not retained"


@case(v3="3.1.2-17", v5="3.1.2-15")
def wills_are_retained_when_asked(broker, version):
    name = topic()
    watcher = broker.open(version).subscribed(name)
    broker.open(version, will=(name, "lost", 1, 1)).vanish()
    watcher.message()
    (packet,) = broker.open(version).subscribed((name, 1)).pending()
    assert (packet.payload, packet.qos, packet.retain) == (b"lost", 1, 1)


@case(v3="3.1.2-10 3.1.2-12 3.14.4-3", v5="3.1.2-10 3.14.4-3")
def a_goodbye_takes_the_will_back(broker, version):
    name = topic()
    watcher = broker.open(version).subscribed(name)
    client = broker.open(version, will=(name, "will"))
    client.leave()
    broker.open(version, client.client_id).vanish()
    assert watcher.pending() == []
    broker.open(version, will=(name, "once")).vanish()
    assert watcher.message().payload == b"once"
    assert watcher.pending() == []


@case(v5="3.14.2-1")
def other_goodbyes_publish_the_will(broker, version):
    name = topic()
    watcher = broker.open(version).subscribed(name)
    for code in CLIENT_CODES:
        client = broker.open(version, will=(name, bytes([code])))
        client.send(disconnect(code, reason_string="why", user=("k", "v")))
        assert client.rest() == []
        assert watcher.message().payload == bytes([code])
    for code in (0x01, 0x87, 0x8B, 0x8E, 0x9C):
        broker.open(version).send(disconnect(code)).ends(PROTOCOL, 0x81)


@case(v5="3.1.3-9 3.1.3-10")
def the_will_delay(broker, version):
    name = topic()
    watcher = broker.open(version).subscribed(name)
    will = (name, "late", 0, 0, {"will_delay": 1, "user": [("b", "1"), ("a", "2")], "content_type": "t"})
    client = broker.open(version, will=will, session_expiry=60)
    client.vanish()
    time.sleep(0.3)
    assert watcher.pending() == [], "not yet"
    back = broker.open(version, client.client_id, clean=False, will=will, session_expiry=60)
    time.sleep(1.3)
    assert watcher.pending() == [], "the client was back in time"
    began = time.monotonic()
    back.vanish()
    packet = watcher.message()
    assert 0.7 < time.monotonic() - began < 3
    assert packet.all("user") == [("b", "1"), ("a", "2")] and packet.get("content_type") == "t"
    # The end of the session is the latest moment, whether by its time or by a new one.
    long = (name, "long", 0, 0, {"will_delay": 600})
    broker.open(version, will=long, session_expiry=1).vanish()
    assert watcher.message().payload == b"long"
    client = broker.open(version, will=long, session_expiry=600)
    client.vanish()
    broker.open(version, client.client_id, clean=True)
    assert watcher.message().payload == b"long"


@case(v5="3.14.2-2")
def the_session_expiry_of_disconnect(broker, version):
    client = broker.open(version, session_expiry=60)
    client.send(disconnect(0, session_expiry=0))
    assert client.rest() == []
    again = broker.open(version, client.client_id, clean=False)
    assert again.connack.session_present == 0
    # It cannot be kept after all.
    assert again.send(disconnect(0, session_expiry=5)).ends(PROTOCOL) == PROTOCOL
    # The server says no expiry when it closes.
    old = broker.open(version, session_expiry=60)
    broker.open(version, old.client_id)
    (packet,) = old.rest()
    assert packet.reason == TAKEN_OVER and packet.get("session_expiry") is None


@case(v3="4.3.2-2", v5="4.3.2-4 4.3.2-5")
def qos_1_identifiers_are_free_after_puback(broker, version):
    name = topic()
    watcher, client = broker.open(version).subscribed((name, 1)), broker.open(version)
    for payload, duplicate in ((b"1", 0), (b"2", 0), (b"3", 1)):
        client.send(publish(version, name, payload, qos=1, packet_id=9, duplicate=duplicate))
        assert client.read(raw.PUBACK).packet_id == 9
    assert [packet.payload for packet in watcher.pending()] == [b"1", b"2", b"3"]


@case(v3="4.3.3-2", v5="4.3.3-8 4.3.3-10 4.3.3-11 4.3.3-12")
def qos_2_comes_once(broker, version):
    name, expiry = topic(), {"session_expiry": 60} if version == V5 else {}
    watcher = broker.open(version).subscribed((name, 1))
    client = broker.open(version, clean=False, **expiry)
    client.send(publish(version, name, b"1", qos=2, packet_id=9))
    client.read(raw.PUBREC)
    client.send(publish(version, name, b"1", qos=2, packet_id=9, duplicate=1))
    assert client.read(raw.PUBREC).packet_id == 9
    client.vanish()
    again = broker.open(version, client.client_id, clean=False, **expiry)
    again.send(publish(version, name, b"1", qos=2, packet_id=9, duplicate=1))
    assert (answer := again.read(raw.PUBREC)).packet_id == 9 and answer.reason in {0, 0x91}
    again.send(ack(raw.PUBREL, 9))
    assert (answer := again.read(raw.PUBCOMP)).packet_id == 9 and answer.reason == 0
    again.send(publish(version, name, b"2", qos=2, packet_id=9))
    again.read(raw.PUBREC)
    assert [packet.payload for packet in watcher.pending()] == [b"1", b"2"]


@case(v5="4.3.3-9")
def a_refused_identifier_is_free(broker, version):
    name = topic()
    watcher, client = broker.open(version).subscribed(name), broker.open(version)
    client.send(publish(version, "$conformance/x", qos=2, packet_id=9))
    assert client.read(raw.PUBREC).reason >= 0x80
    client.send(publish(version, name, b"new", qos=2, packet_id=9))
    assert client.read(raw.PUBREC).reason == 0
    assert watcher.message().payload == b"new"


@case(v3="4.3.3-1", v5="4.3.2-3 4.3.3-3 4.3.3-4 4.3.3-5 4.3.3-6")
def the_server_sends_in_steps(broker, version):
    """What is not acknowledged is sent again at each resumption, up to the step that was reached."""
    name, expiry = topic(), {"session_expiry": 60} if version == V5 else {}
    client = broker.open(version, clean=False, **expiry).subscribed((name, 2))

    def resumed():
        client.vanish()
        return broker.open(version, client.client_id, clean=False, **expiry)

    broker.publish(name, b"1", 1)
    broker.publish(name, b"2", 2)
    one, two = client.take(2)
    for _ in range(2):
        client = resumed()
        assert [packet.packet_id for packet in client.take(2)] == [one.packet_id, two.packet_id]
    client.send(ack(raw.PUBACK, one.packet_id), ack(raw.PUBREC, two.packet_id))
    assert client.read(raw.PUBREL).packet_id == two.packet_id
    for _ in range(2):
        client = resumed()
        (packet,) = client.take(1)
        assert (packet.kind, packet.packet_id) == (raw.PUBREL, two.packet_id), "PUBLISH no more"
    client.send(ack(raw.PUBCOMP, two.packet_id))
    client = resumed()
    assert client.pending() == []


@case(v5="4.4.0-2 4.8.2-6")
def what_was_refused_is_not_sent_again(broker, version):
    name = topic()
    client = broker.open(version, session_expiry=60).subscribed((name, 2))
    broker.publish(name, b"1", 1)
    broker.publish(name, b"2", 2)
    one, two = client.take(2)
    client.send(ack(raw.PUBACK, one.packet_id, 0x80), ack(raw.PUBREC, two.packet_id, 0x97))
    assert client.pending() == []
    client.vanish()
    assert broker.open(version, client.client_id, clean=False, session_expiry=60).pending() == []
    # Nor to another member of a shared subscription.
    members = [broker.open(version).subscribed((f"$share/g/{name}", 1)) for _ in range(2)]
    broker.publish(name)
    got = [(member, packet) for member in members for packet in member.pending()]
    ((member, packet),) = got
    member.send(ack(raw.PUBACK, packet.packet_id, 0x80))
    member.leave()
    assert [other.pending() for other in members if other is not member] == [[]]


@case(v3="4.6.0-1 4.6.0-5 4.6.0-6", v5="4.6.0-5 4.6.0-6")
def topics_are_ordered(broker, version):
    name, expiry = topic(), {"session_expiry": 60} if version == V5 else {}
    client = broker.open(version, clean=False, **expiry).subscribed((name, 2))
    publisher = broker.open(version)
    numbers = [b"%d" % number for number in range(60)]
    publisher.send(
        *(publish(version, name, text, qos=1 + at % 2, packet_id=at + 1) for at, text in enumerate(numbers[:16]))
    )
    answers = [publisher.read() for _ in range(16)]
    assert [answer.packet_id for answer in answers] == list(range(1, 17)), "acknowledged in order too"
    for number in numbers[16:]:
        publisher.send(publish(version, name, number, qos=1, packet_id=100))
        publisher.read(raw.PUBACK)
    assert [packet.payload for packet in client.take(60)] == numbers
    client.vanish()
    again = broker.open(version, client.client_id, clean=False, **expiry)
    assert [packet.payload for packet in again.take(60)] == numbers


@case(v3="3.12.4-1", v5="3.12.4-1")
def pings_are_answered(broker, version):
    client = broker.open(version)
    client.send(b"\xc0\x00" * 3)
    assert [client.read(raw.PINGRESP).flags for _ in range(3)] == [0, 0, 0]


@case(v3="3.14.1-1", v5="3.14.1-1")
def the_reserved_bits_of_disconnect(broker, version):
    name = topic()
    watcher = broker.open(version).subscribed(name)
    broker.open(version, will=(name, "will")).send(b"\xe1\x00").ends(0x81)
    assert watcher.message().payload == b"will", "it was no goodbye"


@case(v3="3.14.4-1 3.14.4-2", v5="3.14.4-1 3.14.4-2")
def after_disconnect_comes_nothing(broker, version):
    name = topic()
    watcher, client = broker.open(version).subscribed(name), broker.open(version)
    client.send(disconnect(), publish(version, name))
    assert client.rest() == []
    assert watcher.pending() == []
    # Nor after the server's own.
    broker.open(version).send(b"\x00\x00", publish(version, name, qos=1)).ends(0x81)
    assert watcher.pending() == []


@case(v5="3.14.2-3 3.14.2-4")
def the_reason_string_of_disconnect_is_left_out(broker, version):
    for limit, told in ((20, False), (1000, True)):
        client = broker.open(version, maximum_packet_size=limit, request_problem_info=0)
        client.send(connect(version, "again"))
        (packet,) = client.rest()
        assert packet.size <= limit and bool(packet.get("reason_string")) == told
