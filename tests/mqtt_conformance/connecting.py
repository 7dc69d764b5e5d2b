"""Sections 3.1 and 3.2: CONNECT and CONNACK, keep-alive."""

import struct
import time

from harness import raw_mqtt as raw

from .registry import V3, V5, case
from .wire import PING, connect, publish, subscribe, topic, unique

# Taken for a token, and refused wherever it is shown.
WRONG = "ctm_wrong"
MALFORMED, PROTOCOL, UNSUPPORTED, CLIENT_ID, CREDENTIALS = 0x81, 0x82, 0x84, 0x85, 0x86
NOT_AUTHORIZED, AUTH_METHOD, TAKEN_OVER, TOO_LARGE, KEEP_ALIVE = 0x87, 0x8C, 0x8E, 0x95, 0x8D


def header(version, flags, name="MQTT", payload=b"", level=None):
    """CONNECT by its parts."""
    head = raw.text(name) + bytes([version if level is None else level, flags, 0, 0])
    return raw.packet(raw.CONNECT, 0, head + (b"\0" if version == V5 else b"") + payload)


@case(v3="3.1.0-1", v5="3.1.0-1")
def connect_comes_first(broker, version):
    for packet in (publish(version, "a"), subscribe(version, "a"), PING, b"\xe0\x00"):
        assert broker.client(version).send(packet).rest() == []


@case(v3="3.1.0-2", v5="3.1.0-2")
def a_second_connect_ends_the_connection(broker, version):
    broker.open(version).send(connect(version, unique())).ends(PROTOCOL)


@case(v3="3.1.2-1", v5="3.1.2-1")
def another_protocol_name(broker, version):
    for name in ("mqtt", "MQTTx", "HTTP", ""):
        broker.client(version).send(header(version, 2, name, raw.text("c"))).refused(UNSUPPORTED, PROTOCOL, MALFORMED)


@case(v3="3.1.2-2", v5="3.1.2-2")
def another_protocol_level(broker, version):
    for level in (0, 1, 2, 3) if version == V3 else (6, 99, 255):
        client = broker.client(version).send(header(version, 2, payload=raw.text("c"), level=level))
        connack = client.refused(1 if version == V3 else UNSUPPORTED)
        assert connack is not None, level


@case(v3="3.1.2-3", v5="3.1.2-3")
def the_reserved_connect_flag(broker, version):
    broker.client(version).send(header(version, 3, payload=raw.text(unique()))).refused(MALFORMED, PROTOCOL)


@case(v3="3.1.2-9 3.1.2-11 3.1.2-13 3.1.2-14 3.1.2-15 3.1.3-1", v5="3.1.2-9 3.1.2-11 3.1.2-12 3.1.2-13 3.1.3-1")
def flags_of_the_will(broker, version):
    will = (b"\0" if version == V5 else b"") + raw.text(topic()) + raw.text("x")
    name = raw.text(unique())
    for flags, payload in (
        (0x0A, name), (0x12, name), (0x22, name),  # QoS or retain without a will
        (0x1E, name + will),  # QoS 3
        (0x06, name), (0x06, name + will[:-2]), (0x02, name + will),  # missing, cut, not announced
    ):  # fmt: skip
        broker.client(version).send(header(version, flags, payload=payload)).refused(MALFORMED, PROTOCOL)


@case(v3="3.1.2-18 3.1.2-19 3.1.2-20 3.1.2-21 3.1.2-22", v5="3.1.2-16 3.1.2-17 3.1.2-18 3.1.2-19")
def flags_of_user_name_and_password(broker, version):
    name, text = raw.text(unique()), raw.text("u")
    wrong = [(0x82, name), (0xC2, name + text), (0x02, name + text), (0x82, name + text + text)]
    if version == V3:
        wrong.append((0x42, name + text))
    for flags, payload in wrong:
        broker.client(version).send(header(version, flags, payload=payload)).refused(MALFORMED, PROTOCOL)


@case(v3="3.1.2-24", v5="3.1.2-22")
def silence_for_one_and_a_half_keep_alives(broker, version):
    quiet, lively = broker.open(version, keep_alive=1), broker.open(version, keep_alive=1)
    began = time.monotonic()
    for _ in range(3):
        time.sleep(0.45)
        assert lively.pending() == []
    assert quiet.ends(KEEP_ALIVE) == (KEEP_ALIVE if version == V5 else None)
    assert 1.4 < time.monotonic() - began < 4
    lively.pending()


@case(v5="3.2.2-22 3.2.2-21 3.1.2-21")
def the_keep_alive_of_the_server(broker, version):
    """The server under test allows 60 seconds."""
    assert broker.open(version, keep_alive=30).connack.get("server_keep_alive") is None
    assert broker.open(version, keep_alive=120).connack.get("server_keep_alive") == 60


@case(v3="3.1.3-2 3.1.3-3", v5="3.1.3-2 3.1.3-3")
def the_client_id_names_the_session(broker, version):
    one, two = unique(), unique()
    expiry = {"session_expiry": 60} if version == V5 else {}
    for name in (one, two):
        client = broker.open(version, name, clean=False, **expiry)
        client.subscribed((name, 1)).leave()
    broker.publish(one, b"for one")
    assert broker.open(version, two, clean=False, **expiry).pending() == []
    again = broker.open(version, one, clean=False, **expiry)
    assert [packet.payload for packet in again.take(1)] == [b"for one"]
    broker.client(version).send(header(version, 2)).refused(MALFORMED, PROTOCOL)


@case(v3="3.1.3-5", v5="3.1.3-5")
def client_ids_of_the_least_alphabet(broker, version):
    letters = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    for start in (0, 23, 39):
        broker.open(version, letters[start : start + 23])
    for letter in "0aZ":
        broker.open(version, letter)


@case(v3="3.1.3-6", v5="3.1.3-6 3.1.3-7 3.2.2-16")
def an_empty_client_id_gets_a_unique_one(broker, version):
    clients = [broker.open(version, "") for _ in range(3)]
    for client in clients:
        assert client.pending() == [], "each has a session of its own"
    if version == V5:
        given = [client.connack.get("assigned_client_id") for client in clients]
        assert all(given) and len(set(given)) == 3
        taking = broker.open(version, given[0])
        assert taking.connack.get("assigned_client_id") is None
        clients[0].ends(TAKEN_OVER)
        kept = broker.open(version, "", clean=False, session_expiry=60)
        name = kept.connack.get("assigned_client_id")
        kept.leave()
        assert broker.open(version, name, clean=False, session_expiry=60).connack.session_present == 1


@case(v3="3.1.3-7 3.1.3-8")
def an_empty_client_id_without_a_clean_session(broker, version):
    connack = broker.client(version).send(connect(version, "", clean=False)).refused(2)
    assert connack is not None


@case(v3="3.1.3-9", v5="3.1.3-8")
def a_client_id_that_is_refused(broker, version):
    connack = broker.client(version).send(connect(version, "x" * 5000)).refused(2 if version == V3 else CLIENT_ID)
    assert connack is not None


@case(v3="3.1.4-1", v5="3.1.4-1")
def a_malformed_connect(broker, version):
    whole = connect(version, unique(), username="u", password="p")[2:]
    for cut in (1, 6, 7, 9, 10, 12, len(whole) - 1):
        connack = broker.client(version).send(raw.packet(raw.CONNECT, 0, whole[:cut])).refused(MALFORMED, PROTOCOL)
        assert version == V5 or connack is None, "3.1.1: without a CONNACK"
    broker.client(version).send(raw.packet(raw.CONNECT, 0, whole + b"x")).refused(MALFORMED, PROTOCOL)


@case(v5="3.1.4-2")
def wrong_credentials(broker, version):
    client = broker.client(version).send(connect(version, unique(), username="u", password=WRONG))
    assert client.refused(CREDENTIALS, NOT_AUTHORIZED) is not None


@case(v3="3.1.4-2", v5="3.1.4-3")
def a_session_is_taken_over(broker, version):
    old = broker.open(version)
    new = broker.open(version, old.client_id)
    assert old.ends(TAKEN_OVER) == (TAKEN_OVER if version == V5 else None)
    assert new.pending() == []


@case(v3="3.1.2-6 3.1.4-3 3.2.2-1", v5="3.1.2-4 3.1.4-4 3.2.2-2")
def a_clean_start_forgets(broker, version):
    name, expiry = topic(), {"session_expiry": 60} if version == V5 else {}
    old = broker.open(version, clean=False, **expiry).subscribed((name, 1))
    old.leave()
    broker.publish(name)
    clean = broker.open(version, old.client_id, clean=True, **expiry)
    assert clean.connack.session_present == 0
    broker.publish(name)
    assert clean.pending() == []
    clean.leave()
    # The state of a clean session of 3.1.1 is not used later either.
    again = broker.open(version, old.client_id, clean=False)
    assert again.connack.session_present == (1 if version == V5 else 0)


@case(v3="3.1.2-4 3.2.2-2 3.2.2-3", v5="3.1.2-5 3.1.2-6 3.1.2-23 3.2.2-3")
def a_session_is_resumed(broker, version):
    name, expiry = topic(), {"session_expiry": 60} if version == V5 else {}
    client = broker.open(version, clean=False, **expiry)
    assert client.connack.session_present == 0, "there was none"
    client.subscribed((name, 1)).vanish()
    broker.publish(name, b"missed")
    again = broker.open(version, client.client_id, clean=False, **expiry)
    assert again.connack.session_present == 1
    assert again.message().payload == b"missed"
    broker.publish(name, b"live")
    assert again.message().payload == b"live"


@case(v3="3.1.4-4 3.2.0-1", v5="3.1.4-5 3.2.0-1 3.2.0-2 3.2.2-1")
def connack_comes_first_and_once(broker, version):
    """Even when the client does not wait for it, and has a message waiting."""
    name, expiry = topic(), {"session_expiry": 60} if version == V5 else {}
    old = broker.open(version, clean=False, **expiry).subscribed((name, 1))
    old.leave()
    broker.publish(name)
    client = broker.client(version)
    client.send(connect(version, old.client_id, clean=False, **expiry), publish(version, topic(), qos=1), PING)
    first = client.read(raw.CONNACK)
    assert (first.reason, first.session_present) == (0, 1), "and the reserved bits are 0"
    kinds = sorted(packet.kind for packet in [client.read(), client.read(), client.read()])
    assert kinds == [raw.PUBLISH, raw.PUBACK, raw.PINGRESP]


@case(v3="3.1.4-5 3.2.2-4 3.2.2-5", v5="3.1.4-6 3.2.2-6 3.2.2-7 3.2.2-8 3.14.0-1")
def after_a_refusal_nothing_is_done(broker, version):
    name = topic()
    watcher = broker.open(version).subscribed(name)
    client = broker.client(version)
    client.send(connect(version, unique(), username="u", password=WRONG), publish(version, name, qos=1))
    codes = (4, 5) if version == V3 else (CREDENTIALS, NOT_AUTHORIZED)
    connack = client.refused(*codes)
    assert connack is not None and connack.session_present == 0
    assert watcher.pending() == []


@case(v5="3.1.2-24 3.1.2-25")
def no_packet_is_larger_than_the_client_takes(broker, version):
    name = topic()
    client = broker.open(version, maximum_packet_size=100, session_expiry=60).subscribed((name, 2))
    broker.publish(name, b"x" * 100, qos=1)
    broker.publish(name, b"x" * 100, qos=2)
    broker.publish(name, b"fits")
    assert [packet.payload for packet in client.pending()] == [b"fits"]
    # The answer to a SUBSCRIBE of many filters does not fit either.
    filters = [f"{name}/{number}" for number in range(120)]
    client.send(subscribe(version, *filters))
    client.ends(TOO_LARGE)
    assert broker.client(version).send(connect(version, unique(), maximum_packet_size=10)).refused(TOO_LARGE)


@case(v5="3.2.2-19 3.2.2-20")
def the_reason_string_of_connack_is_left_out(broker, version):
    refused = connect(version, unique(), username="u", password=WRONG, maximum_packet_size=20)
    connack = broker.client(version).send(refused).refused(CREDENTIALS, NOT_AUTHORIZED)
    assert connack.size <= 20 and connack.get("reason_string") is None
    roomy = connect(version, unique(), username="u", password=WRONG)
    assert broker.client(version).send(roomy).refused(CREDENTIALS, NOT_AUTHORIZED).get("reason_string")


@case(v5="3.1.2-28")
def response_information_only_when_asked(broker, version):
    for asked in ({}, {"request_response_info": 0}):
        assert broker.open(version, **asked).connack.get("response_info") is None
    asking = broker.open(version, request_response_info=1)
    prefix = asking.connack.get("response_info")
    asking.subscribed(f"{prefix}/#")
    broker.publish(f"{prefix}/1", b"answer")
    assert asking.message().payload == b"answer"


@case(v5="3.1.2-29")
def reason_strings_only_when_wanted(broker, version):
    def answers(**options):
        client = broker.open(version, **options)
        wrong = "devices//x"
        client.send(publish(version, wrong, qos=1), publish(version, wrong, qos=2, packet_id=2))
        client.send(subscribe(version, "a/#/b", packet_id=3), b"\x62\x02\0\x09", b"\x50\x02\0\x09")
        return [client.read() for _ in range(5)]

    assert all(packet.get("reason_string") for packet in answers())
    assert all(packet.get("reason_string") for packet in answers(request_problem_info=1))
    for packet in answers(request_problem_info=0):
        assert packet.properties == [] and (packet.reason >= 0x80 or packet.reasons == [0x8F]), packet


@case(v5="4.12.0-1 4.12.0-4 3.1.2-30")
def enhanced_authentication_is_refused(broker, version):
    packet = connect(version, unique(), auth_method="SCRAM-SHA-1", auth_data=b"x")
    connack = broker.client(version).send(packet).refused(AUTH_METHOD)
    assert connack is not None
    broker.client(version).send(connect(version, unique(), auth_data=b"x")).refused(PROTOCOL)


@case(v5="4.12.0-6 4.12.0-7 4.12.1-1 3.15.1-1 3.15.2-1")
def auth_without_a_method(broker, version):
    assert broker.open(version).connack.get("auth_method") is None
    broker.open(version).send(b"\xf0\x00").ends(PROTOCOL)
    body = b"\x19" + struct.pack(">B", 0)
    broker.open(version).send(raw.packet(15, 0, body)).ends(PROTOCOL)
    broker.open(version).send(raw.packet(15, 1, body)).ends(MALFORMED)


@case(v3="3.2.2-6")
def connack_has_only_the_codes_there_are(broker, version):
    answers = [
        broker.client(version).send(connect(version, unique(), username="u", password=WRONG)).refused(4, 5),
        broker.client(version).send(connect(version, "", clean=False)).refused(2),
        broker.client(version).send(header(version, 2, payload=raw.text("c"), level=3)).refused(1),
    ]
    assert all(answers)
    assert broker.client(version).send(header(version, 3, payload=raw.text("c"))).refused() is None
