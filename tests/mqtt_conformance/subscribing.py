"""Sections 3.8 to 3.11, 4.7 and 4.8: subscriptions, topics and filters, shared subscriptions, the server's own topics."""

import time

from harness import raw_mqtt as raw

from .registry import V3, V5, case
from .wire import ack, publish, subscribe, topic, unsubscribe

MALFORMED, PROTOCOL, TOPIC_NAME, FILTER, NOT_AUTHORIZED = 0x81, 0x82, 0x90, 0x8F, 0x87
NO_LOCAL = 0x04


def refuses_filter(broker, version, wanted):
    """Refuses it alone, or ends the connection."""
    client = broker.open(version).send(subscribe(version, wanted))
    answer = client.read()
    if answer.kind == raw.SUBACK:
        assert answer.reasons == [0x80 if version == V3 else FILTER], answer
    else:
        assert answer.kind == raw.DISCONNECT and answer.reason in {MALFORMED, PROTOCOL, FILTER}, answer


@case(v3="3.8.1-1", v5="3.8.1-1")
def the_flags_of_subscribe(broker, version):
    body = subscribe(version, topic())[2:]
    for flags in (0, 1, 3, 6, 10):
        broker.open(version).send(raw.packet(raw.SUBSCRIBE, flags, body)).ends(MALFORMED)


@case(v3="3.8.3-3", v5="3.8.3-2")
def subscribe_needs_a_filter(broker, version):
    broker.open(version).send(subscribe(version)).ends(PROTOCOL, MALFORMED)
    broker.open(version).send(subscribe(version, "a")[:1] + b"\x05\0\1\0\1a").ends(PROTOCOL, MALFORMED)


@case(v5="3.8.3-3")
def no_local(broker, version):
    name = topic()
    client = broker.open(version, session_expiry=60).subscribed((name, NO_LOCAL), (f"{name}/both", NO_LOCAL))
    client.publish(name, b"own")
    broker.publish(name, b"other")
    got = client.pending()
    assert [packet.payload for packet in got] == [b"other"], got
    # Over a resumption too, and with another filter that has nothing against it.
    client.leave()
    again = broker.open(version, client.client_id, clean=False, session_expiry=60)
    again.publish(name, b"own")
    again.subscribed(f"{name}/+")
    again.send(publish(version, f"{name}/both", b"wanted", qos=1))
    packets = {packet.kind: packet for packet in (again.read(), again.read())}
    assert packets[raw.PUBLISH].payload == b"wanted"


@case(v5="3.8.3-4")
def no_local_on_a_shared_subscription(broker, version):
    client = broker.open(version).send(subscribe(version, (f"$share/g/{topic()}", NO_LOCAL)))
    assert client.ends(PROTOCOL) == PROTOCOL


@case(v3="3.8.3-4", v5="3.8.3-5")
def reserved_options(broker, version):
    wrong = (0x03, 0x04, 0x08, 0x10, 0x40, 0x80) if version == V3 else (0x03, 0x30, 0x40, 0x80, 0xC0)
    for options in wrong:
        broker.open(version).send(subscribe(version, (topic(), options))).ends(MALFORMED, PROTOCOL)


@case(v3="3.8.4-1 3.8.4-2 3.8.4-4 3.8.4-5 3.9.3-1 3.9.3-2",
      v5="3.8.4-1 3.8.4-2 3.8.4-5 3.8.4-6 3.8.4-7 3.9.3-1 3.9.3-2")  # fmt: skip
def each_filter_gets_its_code(broker, version):
    name = topic()
    client = broker.open(version)
    client.send(subscribe(version, (name, 2), "a#", (f"{name}/1", 0), "", (f"{name}/2", 1), packet_id=0xABCD))
    suback = client.read(raw.SUBACK)
    refused = 0x80 if version == V3 else FILTER
    assert (suback.packet_id, suback.reasons) == (0xABCD, [2, refused, 0, refused, 1])
    for at, qos in ((name, 2), (f"{name}/1", 0), (f"{name}/2", 1)):
        broker.publish(at, qos=2)
        assert client.message().qos == qos


@case(v3="3.8.4-3", v5="3.8.4-3 3.8.4-4")
def a_subscription_is_replaced(broker, version):
    name = topic()
    broker.publish(name, b"kept", retain=1)
    client = broker.open(version)
    assert client.subscribe((name, 1)) == [1]
    assert client.message().payload == b"kept"
    assert client.subscribe((name, 0)) == [0]
    assert client.message().payload == b"kept", "retained messages come again"
    broker.publish(name, b"live")
    assert [(packet.payload, packet.qos) for packet in client.pending()] == [(b"live", 0)], "once, at the new QoS"
    assert client.subscribe((f"{name}/#", 0)) == [0]


@case(v3="3.8.4-6", v5="3.8.4-8")
def the_lower_qos_counts(broker, version):
    for granted in (0, 1, 2):
        name = topic()
        client = broker.open(version).subscribed((name, granted))
        for published in (0, 1, 2):
            broker.publish(name, qos=published)
        assert [packet.qos for packet in client.pending()] == [min(granted, published) for published in (0, 1, 2)]


@case(v3="3.10.1-1", v5="3.10.1-1")
def the_flags_of_unsubscribe(broker, version):
    body = unsubscribe(version, topic())[2:]
    for flags in (0, 1, 3, 6, 10):
        broker.open(version).send(raw.packet(raw.UNSUBSCRIBE, flags, body)).ends(MALFORMED)


@case(v3="3.10.3-2", v5="3.10.3-2")
def unsubscribe_needs_a_filter(broker, version):
    broker.open(version).send(unsubscribe(version)).ends(PROTOCOL, MALFORMED)


@case(v3="3.10.4-1 3.10.4-2", v5="3.10.4-1 3.10.4-2")
def filters_are_compared_exactly(broker, version):
    name = topic()
    client = broker.open(version).subscribed(f"{name}/+", f"{name}/A")
    client.send(unsubscribe(version, f"{name}/#", f"{name}/a", f"{name}/+/", packet_id=5))
    client.read(raw.UNSUBACK)
    broker.publish(f"{name}/b")
    assert len(client.pending()) == 1, "none was meant"
    client.send(unsubscribe(version, f"{name}/+", packet_id=6))
    client.read(raw.UNSUBACK)
    broker.publish(f"{name}/b")
    broker.publish(f"{name}/A")
    assert [packet.topic for packet in client.pending()] == [f"{name}/A"]


@case(v3="3.10.4-3", v5="3.10.4-3")
def what_was_begun_is_finished(broker, version):
    name, expiry = topic(), {"session_expiry": 60} if version == V5 else {}
    client = broker.open(version, clean=False, **expiry).subscribed((name, 2))
    broker.publish(name, b"1", 1)
    broker.publish(name, b"2", 2)
    one, two = client.take(2)
    client.send(unsubscribe(version, name))
    client.read(raw.UNSUBACK)
    client.send(ack(raw.PUBREC, two.packet_id))
    assert client.read(raw.PUBREL).packet_id == two.packet_id
    client.vanish()
    again = broker.open(version, client.client_id, clean=False, **expiry)
    kinds = [(packet.kind, packet.packet_id) for packet in again.take(2)]
    assert kinds == [(raw.PUBREL, two.packet_id), (raw.PUBLISH, one.packet_id)]


@case(v3="3.10.4-4 3.10.4-5 3.10.4-6", v5="3.10.4-4 3.10.4-5 3.10.4-6 3.11.3-1 3.11.3-2")
def unsuback_answers_each_filter(broker, version):
    name = topic()
    client = broker.open(version).subscribed(f"{name}/1", f"{name}/2")
    client.send(unsubscribe(version, f"{name}/2", f"{name}/none", "a#", f"{name}/1", f"{name}/1", packet_id=0x0A0B))
    unsuback = client.read(raw.UNSUBACK)
    assert unsuback.packet_id == 0x0A0B
    assert unsuback.reasons == ([] if version == V3 else [0, 0x11, FILTER, 0, 0x11])
    broker.publish(f"{name}/1")
    broker.publish(f"{name}/2")
    assert client.pending() == []


@case(v3="4.7.1-2", v5="4.7.1-1")
def the_multi_level_wildcard(broker, version):
    for wanted in ("a#", "a/#/b", "#/", "a/b#", "##"):
        refuses_filter(broker, version, wanted)
    name = topic()
    client = broker.open(version).subscribed(f"{name}/#")
    for at in (name, f"{name}/", f"{name}/a", f"{name}/a/b/c", f"{name}x"):
        broker.publish(at)
    got = [packet.topic for packet in client.pending()]
    assert got == [name, f"{name}/", f"{name}/a", f"{name}/a/b/c"]


@case(v3="4.7.1-3", v5="4.7.1-2")
def the_single_level_wildcard(broker, version):
    for wanted in ("a+", "+a/b", "a/b+/c", "++"):
        refuses_filter(broker, version, wanted)
    name = topic()
    client = broker.open(version).subscribed(f"{name}/+", f"{name}/+/+/x")
    for at in (name, f"{name}/", f"{name}/a", f"{name}/a/b", f"{name}/a//x", f"{name}/a/b/x"):
        broker.publish(at)
    got = [packet.topic for packet in client.pending()]
    assert got == [f"{name}/", f"{name}/a", f"{name}/a//x", f"{name}/a/b/x"]


@case(v3="4.7.2-1", v5="4.7.2-1")
def wildcards_do_not_reach_the_servers_topics(broker, version):
    wild = broker.open(version).subscribed("#", "+/#", "+/broker/uptime", "+/broker/#")
    named = broker.open(version).subscribed("$SYS/broker/uptime")
    first = named.message()
    assert first.retain == 1 and first.payload.endswith(b" seconds")
    assert named.message().retain == 0, "the next second"
    assert not any(packet.topic.startswith("$") for packet in wild.pending())


@case(v5="4.7.2-1")
def the_servers_own_figures(broker, version):
    client = broker.open(version).subscribed("$SYS/#")
    time.sleep(1.1)
    figures = {packet.topic.removeprefix("$SYS/broker/"): packet.payload.decode() for packet in client.pending()}
    assert figures["version"].startswith("Catchment ")
    for name in ("clients/connected", "clients/total", "subscriptions/count", "messages/received", "messages/sent",
                 "bytes/received", "bytes/sent"):  # fmt: skip
        assert int(figures[name]) > 0, name
    assert client.publish("$SYS/broker/version", b"mine").reason == NOT_AUTHORIZED
    again = broker.open(version).subscribed("$SYS/broker/version")
    assert again.message().payload.decode() == figures["version"]


@case(v3="4.7.3-1", v5="4.7.3-1")
def topics_and_filters_are_not_empty(broker, version):
    refuses_filter(broker, version, "")
    broker.open(version).send(publish(version, "")).ends(PROTOCOL, TOPIC_NAME, MALFORMED)


@case(v3="4.7.3-3", v5="4.7.3-3")
def long_topics(broker, version):
    """As long as a text can be: taken or refused, never cut."""
    refuses_filter(broker, version, "x" * 65_535)
    broker.open(version).send(publish(version, "x" * 65_000)).ends(TOPIC_NAME, 0x95)
    long = topic() + "/" + "x" * 900
    client = broker.open(version).subscribed(long)
    broker.publish(long)
    assert client.message().topic == long


@case(v3="4.7.3-4", v5="4.7.3-4")
def topics_are_compared_as_they_are(broker, version):
    name = topic()
    client = broker.open(version).subscribed(f"{name}/\u00e9", f"{name}/ACC", f"{name}//a", f"{name}/\ufffd")
    others = (f"{name}/e\u0301", f"{name}/acc", f"{name}/a", f"{name}/?", f"/{name}/ACC", f"{name}/ACC/")
    for at in (*others, f"{name}/\u00e9", f"{name}/ACC", f"{name}//a"):
        broker.publish(at)
    assert [packet.topic for packet in client.pending()] == [f"{name}/\u00e9", f"{name}/ACC", f"{name}//a"]


@case(v5="4.8.2-1 4.8.2-2")
def names_of_shared_subscriptions(broker, version):
    for wanted in ("$share/", "$share/g", "$share/g/", "$share//a", "$share/g+/a", "$share/#/a", "$share/+/a",
                   "$share/g/a#"):  # fmt: skip
        refuses_filter(broker, version, wanted)
    name = topic()
    assert broker.open(version).subscribe((f"$share/gr\u00fc\u00dfe/{name}/#", 1)) == [1]


@case(v5="4.8.2-3")
def shared_subscriptions_are_spread(broker, version):
    """Each message to one member of each group, in turn, at its QoS, and never a retained one upon subscribing."""
    name = topic()
    broker.publish(name, b"kept", retain=1)
    ones = [broker.open(version).subscribed((f"$share/one/{name}", qos)) for qos in (0, 1, 2)]
    two = broker.open(version).subscribed((f"$share/two/{name}", 1))
    both = broker.open(version).subscribed((name, 2), (f"$share/three/{name}", 2))
    assert [packet.payload for packet in both.pending()] == [b"kept"]
    for _ in range(9):
        broker.publish(name, b"live", 2)
    for qos, member in enumerate(ones):
        assert [(packet.qos, packet.payload) for packet in member.pending()] == [(qos, b"live")] * 3
    assert len(two.pending()) == 9
    assert len(both.pending()) == 18, "a shared subscription is one of its own"


@case(v5="4.8.2-4 4.8.2-5")
def a_member_that_is_lost(broker, version):
    """QoS 2 that was sent waits for the member, or is gone with its session; the rest goes to the others."""
    name = topic()
    member = broker.open(version, session_expiry=60, receive_maximum=3).subscribed((f"$share/g/{name}", 2))
    for payload, qos in ((b"1", 1), (b"2", 2), (b"3", 2), (b"4", 1), (b"5", 2)):
        broker.publish(name, payload, qos)
    sent = member.take(3)
    assert [packet.payload for packet in sent] == [b"1", b"2", b"3"]
    member.send(ack(raw.PUBREC, sent[2].packet_id))
    member.read(raw.PUBREL)
    member.vanish()
    other = broker.open(version).subscribed((f"$share/g/{name}", 2))
    back = broker.open(version, member.client_id, clean=False, session_expiry=60, receive_maximum=3)
    again = [(packet.kind, packet.packet_id) for packet in back.take(3)]
    assert again == [
        (raw.PUBREL, sent[2].packet_id), (raw.PUBLISH, sent[0].packet_id), (raw.PUBLISH, sent[1].packet_id),
    ]  # fmt: skip
    assert other.pending() == []
    back.send(b"\xe0\x07\x00\x05\x11\0\0\0\0")
    assert back.rest() == []
    assert [packet.payload for packet in other.take(3)] == [b"1", b"4", b"5"]


@case(v5="3.3.2-15 3.3.2-16")
def request_and_response(broker, version):
    requests, answers = topic(), topic()
    client, responder = broker.open(version).subscribed(answers), broker.open(version).subscribed(requests)
    client.publish(requests, b"?", response_topic=answers, correlation_data=b"42")
    request = responder.message()
    responder.publish(request.get("response_topic"), b"!", correlation_data=request.get("correlation_data"))
    answer = client.message()
    assert (answer.payload, answer.get("correlation_data")) == (b"!", b"42")


@case(v3="7.1.1-1", v5="4.2-1")
def tcp_is_served(broker, version):
    """In pieces of any size."""
    client, name = broker.open(version), topic()
    for byte in subscribe(version, name) + publish(version, name, b"x" * 300):
        client.send(bytes([byte]))
    client.read(raw.SUBACK)
    assert client.message().payload == b"x" * 300
