"""Section 3.3: PUBLISH, retained messages, properties, aliases, flow control."""

import time

from harness import raw_mqtt as raw

from .registry import V3, V5, case
from .wire import PING, ack, publish, subscribe, topic

MALFORMED, PROTOCOL, TOPIC_NAME, RECEIVE_MAXIMUM, ALIAS, TOO_LARGE = 0x81, 0x82, 0x90, 0x93, 0x94, 0x95
AS_PUBLISHED, ONLY_NEW, NEVER = 0x08, 0x10, 0x20


@case(v3="3.3.1-1 4.4.0-1", v5="3.3.1-1 4.4.0-1")
def what_is_sent_again_is_a_duplicate(broker, version):
    name, expiry = topic(), {"session_expiry": 60} if version == V5 else {}
    client = broker.open(version, clean=False, **expiry).subscribed((name, 2))
    for payload, qos in ((b"1", 1), (b"2", 2), (b"3", 2)):
        broker.publish(name, payload, qos)
    first = client.take(3)
    client.send(ack(raw.PUBREC, first[1].packet_id))
    client.read(raw.PUBREL)
    client.vanish()
    again = broker.open(version, client.client_id, clean=False, **expiry)
    packets = again.take(3)
    assert packets[0].kind == raw.PUBREL and packets[0].packet_id == first[1].packet_id
    sent = [(packet.payload, packet.packet_id, packet.duplicate) for packet in packets[1:]]
    assert sent == [(b"1", first[0].packet_id, 1), (b"3", first[2].packet_id, 1)]
    # At no other time is anything sent again.
    time.sleep(0.3)
    assert again.pending() == []


@case(v3="3.3.1-2 3.3.1-3 4.3.1-1", v5="3.3.1-2 3.3.1-3 4.3.1-1")
def the_duplicate_flag_is_the_senders_own(broker, version):
    client, name = broker.open(version), topic()
    client.subscribed((name, 2))
    publisher = broker.open(version)
    for qos in (0, 1, 2):
        publisher.publish(name, b"x", qos, duplicate=1 if qos else 0)
    packets = client.pending()
    assert [(packet.qos, packet.duplicate) for packet in packets] == [(0, 0), (1, 0), (2, 0)]
    broker.open(version).send(publish(version, name, duplicate=1)).ends(MALFORMED, PROTOCOL)


@case(v3="3.3.1-4", v5="3.3.1-4")
def there_is_no_qos_3(broker, version):
    broker.open(version).send(publish(version, topic(), qos=3)).ends(MALFORMED)


@case(v3="3.3.1-5 3.3.1-6 3.3.1-7 3.3.1-8", v5="3.3.1-5 3.3.1-9")
def the_last_retained_message_is_kept(broker, version):
    name = topic()
    for payload, qos in ((b"old", 1), (b"new", 2)):
        broker.publish(name, payload, qos, retain=1)
    (packet,) = broker.open(version).subscribed((f"{name}/#", 1)).pending()
    assert (packet.topic, packet.payload, packet.qos, packet.retain) == (name, b"new", 1, 1)
    broker.publish(name, b"zero", 0, retain=1)
    (packet,) = broker.open(version).subscribed((name, 1)).pending()
    assert (packet.payload, packet.qos) == (b"zero", 0)


@case(v3="3.3.1-10 3.3.1-11", v5="3.3.1-6 3.3.1-7")
def an_empty_payload_removes_the_retained_message(broker, version):
    name = topic()
    watcher = broker.open(version).subscribed(name)
    broker.publish(name, b"kept", retain=1)
    broker.publish(name, b"", retain=1)
    assert [packet.payload for packet in watcher.pending()] == [b"kept", b""], "both are processed as usual"
    assert broker.open(version).subscribed(name).pending() == []


@case(v3="3.3.1-12", v5="3.3.1-8")
def what_is_not_retained_changes_nothing(broker, version):
    name = topic()
    broker.publish(name, b"first")
    assert broker.open(version).subscribed(name).pending() == []
    broker.publish(name, b"kept", retain=1)
    broker.publish(name, b"live")
    broker.publish(name, b"")
    assert [packet.payload for packet in broker.open(version).subscribed(name).pending()] == [b"kept"]


@case(v3="3.1.2-7")
def retained_messages_outlive_the_session(broker, version):
    name = topic()
    publisher = broker.open(version)
    publisher.publish(name, b"kept", retain=1)
    publisher.leave()
    assert broker.open(version).subscribed(name).message().payload == b"kept"


@case(v5="3.3.1-10 3.3.1-11")
def retain_handling(broker, version):
    name = topic()
    broker.publish(f"{name}/a", b"kept", retain=1)
    for wanted in (f"{name}/a", f"{name}/+"):
        client = broker.open(version)
        assert client.subscribed((wanted, NEVER)).pending() == []
        assert client.subscribed((wanted, ONLY_NEW)).pending() == [], "it existed"
        assert len(client.subscribed((wanted, 0)).pending()) == 1
        other = broker.open(version)
        assert len(other.subscribed((wanted, ONLY_NEW)).pending()) == 1, "it is new"


@case(v3="3.3.1-9", v5="3.3.1-12 3.3.1-13")
def retain_as_published(broker, version):
    name = topic()
    client = broker.open(version).subscribed((name, 0))
    broker.publish(name, b"1", retain=1)
    broker.publish(name, b"2")
    assert [packet.retain for packet in client.pending()] == [0, 0]
    if version == V5:
        client = broker.open(version).subscribed((name, AS_PUBLISHED | NEVER))
        broker.publish(name, b"1", retain=1)
        broker.publish(name, b"2")
        assert [packet.retain for packet in client.pending()] == [1, 0]


@case(v3="3.3.2-1 3.3.2-2 4.7.1-1", v5="3.3.2-1 3.3.2-2 4.7.0-1")
def topic_names_have_no_wildcards(broker, version):
    for name in ("#", "a/#", "+", "a/+/b", "a+", "a#"):
        broker.open(version).send(publish(version, name)).ends(TOPIC_NAME, MALFORMED, PROTOCOL)
    broker.open(version).send(raw.packet(raw.PUBLISH, 0, b"\0")).ends(MALFORMED)


@case(v3="3.3.2-3", v5="3.3.2-3")
def what_is_sent_matches_the_filter(broker, version):
    name = topic()
    client = broker.open(version).subscribed(f"{name}/+/x")
    for other in ("a/x", "a/y", "a/b/x", "b/x"):
        broker.publish(f"{name}/{other}")
    assert [packet.topic for packet in client.pending()] == [f"{name}/a/x", f"{name}/b/x"]


@case(v5="3.3.2-4 3.3.2-15 3.3.2-16 3.3.2-17 3.3.2-18 3.3.2-20")
def properties_are_handed_on(broker, version):
    """In order, each, for messages that are live, retained and waiting."""
    name = topic()
    given = {
        "payload_format": 1, "content_type": "text/plain", "response_topic": "answer/here",
        "correlation_data": b"\0\xff", "user": [("b", "1"), ("a", "2"), ("b", "1"), ("", "")],
    }  # fmt: skip
    away = broker.open(version, session_expiry=60).subscribed((name, 1))
    away.leave()
    live = broker.open(version).subscribed((name, 1))
    broker.publish(name, b"text", retain=1, **given)
    late = broker.open(version).subscribed((name, 1))
    back = broker.open(version, away.client_id, clean=False, session_expiry=60)
    for client in (live, late, back):
        packet = client.message()
        assert packet.all("user") == given["user"]
        for single in ("payload_format", "content_type", "response_topic", "correlation_data"):
            assert packet.get(single) == given[single]
    plain = broker.open(V3).subscribed(name)
    assert plain.message().payload == b"text"


@case(v5="3.3.2-14")
def response_topics_have_no_wildcards(broker, version):
    for wrong in ("a/#", "+", "a+"):
        broker.open(version).send(publish(version, topic(), response_topic=wrong)).ends(MALFORMED, PROTOCOL, TOPIC_NAME)


@case(v5="3.3.2-5 3.3.2-6 4.3.3-7 4.3.3-13")
def messages_expire(broker, version):
    name = topic()
    client = broker.open(version, session_expiry=60).subscribed((name, 2))
    broker.publish(name, b"sent", 2, message_expiry=1)
    (sent,) = client.take(1)
    client.vanish()
    broker.publish(name, b"short", 1, message_expiry=1)
    broker.publish(name, b"long", 1, message_expiry=100)
    broker.publish(name, b"always", 2)
    broker.publish(f"{name}/r", b"kept", retain=1, message_expiry=1)
    time.sleep(1.3)
    again = broker.open(version, client.client_id, clean=False, session_expiry=60)
    packets = again.take(3)
    assert [packet.payload for packet in packets] == [b"sent", b"long", b"always"]
    assert (packets[0].packet_id, packets[0].duplicate) == (sent.packet_id, 1), "what was sent does not expire"
    assert 97 <= packets[1].get("message_expiry") <= 99
    assert packets[2].get("message_expiry") is None
    again.send(ack(raw.PUBREC, sent.packet_id))
    assert again.read(raw.PUBREL).packet_id == sent.packet_id
    assert broker.open(version).subscribed(f"{name}/#").pending() == []


@case(v5="3.3.2-7 3.3.2-12 3.2.2-17 3.2.2-18")
def aliases_of_the_client(broker, version):
    one, two = topic(), topic()
    watcher = broker.open(version).subscribed(one, two)
    client = broker.open(version, session_expiry=60)
    highest = client.connack.get("topic_alias_maximum")
    assert highest > 1
    for alias in (1, highest):
        client.publish(one, b"1", topic_alias=alias)
        client.publish("", b"2", topic_alias=alias)
        client.publish(two, b"3", topic_alias=alias)
        client.publish("", b"4", topic_alias=alias)
        assert [packet.topic for packet in watcher.pending()] == [one, one, two, two]
    client.leave()
    again = broker.open(version, client.client_id, clean=False, session_expiry=60)
    again.send(publish(version, "", topic_alias=1)).ends(PROTOCOL, ALIAS)
    broker.open(version).send(publish(version, "")).ends(PROTOCOL, TOPIC_NAME)


@case(v5="3.3.2-8 3.3.2-9")
def aliases_that_are_none(broker, version):
    client = broker.open(version)
    highest = client.connack.get("topic_alias_maximum")
    assert client.send(publish(version, topic(), topic_alias=0)).ends(ALIAS, PROTOCOL) == ALIAS
    client = broker.open(version)
    assert client.send(publish(version, topic(), topic_alias=highest + 1)).ends(ALIAS, PROTOCOL) == ALIAS


@case(v5="3.1.2-26 3.1.2-27 3.3.2-11")
def aliases_of_the_server(broker, version):
    names = [topic() for _ in range(3)]
    client = broker.open(version, topic_alias_maximum=2).subscribed(*names)
    for _ in range(2):
        for name in names:
            broker.publish(name)
    sent = [(packet.topic, packet.get("topic_alias")) for packet in client.pending()]
    first, second, third = names
    assert sent == [(first, 1), (second, 2), (third, None), ("", 1), ("", 2), (third, None)]
    for options in ({}, {"topic_alias_maximum": 0}):
        client = broker.open(version, **options).subscribed(first)
        broker.publish(first)
        broker.publish(first)
        sent = [(packet.topic, packet.get("topic_alias")) for packet in client.pending()]
        assert sent == [(first, None)] * 2


@case(v3="3.3.4-1 3.5.4-1 3.6.4-1", v5="3.3.4-1 3.5.4-1 3.6.4-1")
def each_qos_has_its_answer(broker, version):
    client, name = broker.open(version), topic()
    client.send(publish(version, name, qos=0), PING)
    client.read(raw.PINGRESP)
    client.send(publish(version, name, qos=1, packet_id=5))
    assert client.read(raw.PUBACK).packet_id == 5
    client.send(publish(version, name, qos=2, packet_id=5))
    assert client.read(raw.PUBREC).packet_id == 5
    client.send(ack(raw.PUBREL, 5))
    assert client.read(raw.PUBCOMP).packet_id == 5


@case(v3="3.3.5-1", v5="3.3.4-2")
def overlapping_subscriptions_give_the_highest_qos(broker, version):
    client, name = broker.open(version), topic()
    client.subscribed((f"{name}/#", 0), (f"{name}/+", 2), (f"{name}/a", 1))
    # Once, since a filter is the topic itself; else a copy for each filter. The standard leaves it to the server.
    broker.publish(f"{name}/a", qos=2)
    assert [packet.qos for packet in client.pending()] == [2]
    broker.publish(f"{name}/b", qos=2)
    assert sorted(packet.qos for packet in client.pending()) == [0, 2]


@case(v5="3.3.4-3 3.3.4-4 3.3.4-5")
def subscription_identifiers(broker, version):
    client, name = broker.open(version), topic()
    client.subscribed(f"{name}/#", subscription_id=1)
    client.subscribed(f"{name}/+", subscription_id=268_435_455)
    client.subscribed(f"{name}/a")
    broker.publish(f"{name}/a", retain=1)
    (packet,) = client.pending()
    assert sorted(packet.all("subscription_id")) == [1, 268_435_455]
    broker.publish(f"{name}/b")
    assert sorted(packet.all("subscription_id") for packet in client.pending()) == [[1], [268_435_455]]
    # Of retained messages too, and the newest of a filter.
    client.subscribed(f"{name}/+", subscription_id=7)
    (packet,) = client.pending()
    assert packet.all("subscription_id") == [7]
    broker.publish(f"{name}/b/c")
    assert client.message().all("subscription_id") == [1]
    none = broker.open(version).subscribed(f"{name}/a")
    assert none.message().all("subscription_id") == []
    broker.open(version).send(subscribe(version, name, subscription_id=0)).ends(PROTOCOL)
    broker.open(version).send(subscribe(version, name, subscription_id=[1, 2])).ends(PROTOCOL, MALFORMED)


@case(v5="3.3.4-6")
def clients_publish_no_subscription_identifier(broker, version):
    broker.open(version).send(publish(version, topic(), subscription_id=1)).ends(PROTOCOL, MALFORMED)


@case(v5="3.3.4-7")
def the_receive_maximum_of_the_server(broker, version):
    client, name = broker.open(version), topic()
    highest = client.connack.get("receive_maximum")
    packets = [publish(version, name, qos=2, packet_id=number) for number in range(1, highest + 2)]
    client.send(*packets[:highest])
    for _ in range(highest):
        assert client.read(raw.PUBREC).reason == 0
    client.send(packets[highest])
    assert client.ends(RECEIVE_MAXIMUM) == RECEIVE_MAXIMUM
    # What is acknowledged makes room.
    client = broker.open(version)
    for number in range(1, 3 * highest):
        client.publish(name, qos=1 + number % 2)


@case(v5="3.3.4-9 4.9.0-1 4.9.0-2")
def the_receive_maximum_of_the_client(broker, version):
    client, name = broker.open(version, receive_maximum=2), topic()
    client.subscribed((name, 2))
    for payload in (b"1", b"2", b"3", b"4", b"5"):
        broker.publish(name, payload, 2)
    first, second = client.pending()
    assert (first.payload, second.payload) == (b"1", b"2")
    client.send(ack(raw.PUBREC, first.packet_id))
    client.read(raw.PUBREL)
    assert client.pending() == [], "PUBREC alone makes no room"
    client.send(ack(raw.PUBCOMP, first.packet_id))
    assert client.read(raw.PUBLISH).payload == b"3"
    client.send(ack(raw.PUBREC, second.packet_id, 0x80))
    assert client.read(raw.PUBLISH).payload == b"4", "a refusal does"
    assert client.pending() == []


@case(v5="3.3.4-10 4.9.0-3 3.3.4-8")
def a_full_window_holds_nothing_else_back(broker, version):
    client, name = broker.open(version, receive_maximum=1), topic()
    client.subscribed((name, 1))
    broker.publish(name)
    broker.publish(name)
    assert len(client.pending()) == 1
    assert client.subscribe((topic(), 1)) == [1]
    assert client.publish(topic()).reason == 0
    assert client.publish(topic(), qos=2).reason == 0
    assert client.pending() == []


@case(v5="3.2.2-15")
def the_largest_packet_of_the_server(broker, version):
    client, name = broker.open(version), topic()
    highest = client.connack.get("maximum_packet_size")
    watcher = broker.open(version).subscribed(name)
    overhead = len(publish(version, name, b"x" * 20_000, qos=1)) - 20_000
    client.send(publish(version, name, b"x" * (highest - overhead), qos=1))
    client.read(raw.PUBACK)
    assert len(watcher.message().payload) == highest - overhead
    client.send(publish(version, name, b"x" * (highest - overhead + 1), qos=1))
    assert client.ends(TOO_LARGE) == TOO_LARGE


@case(v3="3.3.5-2")
def a_publish_that_is_not_allowed(broker, version):
    """3.1.1 has no word for it: the server's own topics are acknowledged and dropped, else the connection ends."""
    watcher = broker.open(version).subscribed("$conformance/#")
    client = broker.open(version)
    for qos in (0, 1, 2):
        client.publish("$conformance/x", qos=qos)
    assert watcher.pending() == []
    client.send(publish(version, "devices//state", qos=1)).ends()


@case(v5="3.4.2-1 3.5.2-1 3.6.2-1 3.7.2-1")
def reason_codes_of_acknowledgements(broker, version):
    client = broker.open(version)
    assert client.publish("$conformance/x").reason == 0x87
    assert client.publish("$conformance/x", qos=2).reason == 0x87
    assert client.publish("devices//x").reason == TOPIC_NAME
    client.send(ack(raw.PUBREL, 9), ack(raw.PUBREC, 9))
    answers = {packet.kind: packet.reason for packet in (client.read(), client.read())}
    assert answers == {raw.PUBCOMP: 0x92, raw.PUBREL: 0x92}
    # Codes that do not belong to these packets.
    for kind, code in ((raw.PUBACK, 0x01), (raw.PUBREC, 0x92), (raw.PUBREL, 0x80), (raw.PUBCOMP, 0x10)):
        broker.open(version).send(ack(kind, 1, code)).ends(MALFORMED, PROTOCOL)


@case(v5="3.4.2-2 3.4.2-3 3.5.2-2 3.5.2-3 3.6.2-2 3.6.2-3 3.7.2-2 3.7.2-3 3.9.2-1 3.9.2-2 3.11.2-1 3.11.2-2")
def reason_strings_only_where_there_is_room(broker, version):
    for limit, told in ((40, False), (1000, True)):
        client = broker.open(version, maximum_packet_size=limit)
        client.send(publish(version, "devices//x", qos=1), publish(version, "devices//x", qos=2, packet_id=2))
        client.send(ack(raw.PUBREL, 9), ack(raw.PUBREC, 9), subscribe(version, "a#"))
        for _ in range(5):
            packet = client.read()
            assert packet.size <= limit and bool(packet.get("reason_string")) == told, packet
            assert packet.all("user") == []
