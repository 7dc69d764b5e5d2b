"""Bridges: messages of other brokers come in, and ours go out, whatever is killed on the way."""

import json
import re
import socket
import struct
import subprocess
import time

import pytest

from harness import eventually, raw_mqtt as raw, run
from harness.certificates import Authority
from harness.mosquitto import Mosquitto
from harness.paho_client import V3, V5, Client, connected

QUICK = "reconnect_ms_min = 50\nreconnect_ms_max = 500\n"
ROUTE = '[[gateway.routes]]\ntopic = "devices/{device_id}/{type}"\n'
CITY = ROUTE + '[[gateway.routes]]\ntopic = "city/{area}/traffic/{device_id}"\ntype = "traffic"\n'


@pytest.fixture
def new_broker(tmp_path):
    """Makes mosquittos of the test's own; they end with it."""
    own = []

    def make(name="mosquitto", **options):
        own.append(Mosquitto(tmp_path / name, **options))
        return own[-1]

    yield make
    for made in own:
        made.close()


def bridge(name, port, *, scheme="mqtt", options="", inward=(), outward=()):
    """A section of the settings."""
    rules = "".join(f"[[bridges.in]]\n{rule}\n" for rule in inward)
    rules += "".join(f"[[bridges.out]]\n{rule}\n" for rule in outward)
    return f'[[bridges]]\nname = "{name}"\nurl = "{scheme}://127.0.0.1:{port}"\n{QUICK}{options}\n{rules}'


def figure(server, name, of, **labels):
    """A figure of a bridge in /metrics; 0 while it is not there."""
    wanted = {"bridge": of, **labels}
    for line in server.get("/metrics").text.splitlines():
        found = re.fullmatch(rf"catchment_bridge_{name}\{{(.*)\}} (\d+)", line)
        if found and dict(re.findall(r'(\w+)="([^"]*)"', found[1])) == wanted:
            return int(found[2])
    return 0


def wait_connected(server, *names):
    for name in names:
        eventually(lambda name=name: figure(server, "connected", name) == 1, 20, f"{name} is connected")


def seqs(server, where="TRUE"):
    query = f"SELECT metric_value FROM raw_metrics WHERE metric_name = 'seq' AND {where} ORDER BY metric_value"
    return [int(seq) for (seq,) in server.sql(query)]


def events(server):
    return server.value("SELECT count(*) FROM raw_events")


def test_a_source_brings_events_with_tags_and_subscribers_see_them(new_server, new_broker):
    broker = new_broker().start()
    source = f"mqtt://127.0.0.1:{broker.mqtt_port}/city/#"
    server = new_server(config=CITY, flags=["--source", source]).start()
    name = source
    wait_connected(server, name)
    with connected(server, V5) as local, connected(broker, V3) as device:
        local.subscribe("city/#")
        for qos in (0, 1, 2):
            device.publish("city/nord/traffic/t1", json.dumps({"seq": qos}), qos)
        device.publish("city/nord/unknown", b"x")
        device.publish("elsewhere/t1/state", b"x")
        assert [local.next().topic for _ in range(4)] == ["city/nord/traffic/t1"] * 3 + ["city/nord/unknown"]
    server.wait_rows("SELECT 1 FROM raw_metrics", 3)
    rows = server.sql("SELECT device_id, metric_value, metadata FROM raw_metrics ORDER BY metric_value")
    assert rows == [("t1", seq, '{"area":"nord"}') for seq in (0, 1, 2)]
    types = server.sql("SELECT DISTINCT type, topic FROM raw_events")
    assert types == [("traffic", "city/nord/traffic/t1")]
    assert figure(server, "received_messages_total", name) == 4
    assert 'catchment_gateway_unrouted_messages_total{outcome="brokered"} 1' in server.get("/metrics").text


def test_unrouted_topics_are_kept_or_refused_as_the_settings_say(new_server, new_broker):
    broker = new_broker().start()
    for action, kept, refused in (("keep", 1, 0), ("refuse", 0, 1)):
        config = f'[gateway.unrouted]\naction = "{action}"\n' + bridge(
            "b", broker.mqtt_port, inward=['filter = "plant/#"'], options='version = "3.1.1"'
        )
        server = new_server(action, config=config).start()
        wait_connected(server, "b")
        with connected(broker) as device:
            device.publish("plant/p1", b'{"seq": 1}')
            device.publish("plant/p1", b'{"seq": 2}', 2)
        eventually(lambda: figure(server, "received_messages_total", "b") == 2, what="both came")
        eventually(lambda: events(server) == 2 * kept, what="what is kept is there")
        assert figure(server, "refused_messages_total", "b", reason="topic_name_invalid") == 2 * refused
        # What was refused is not sent again for ever.
        assert figure(server, "connects_total", "b") == 1
        server.stop()


def test_tls_by_a_ca_and_with_a_certificate_of_ours(new_server, new_broker, tmp_path):
    authority = Authority(tmp_path)
    pem, key = authority.issue("broker", san="DNS:broker.example")
    own_pem, own_key = authority.issue("bridge")
    tls = f"cafile {authority.pem}\ncertfile {pem}\nkeyfile {key}\n"
    open_broker = new_broker("open", extra=tls).start()
    strict = new_broker("strict", extra=tls + "require_certificate true\nuse_identity_as_username true\n").start()
    ca, name = f'ca = "{authority.pem}"\n', 'server_name = "broker.example"\n'
    certificate = f'certificate = "{own_pem}"\nkey = "{own_key}"\n'
    rule = ['filter = "devices/#"']
    config = "".join(
        bridge(of, broker.mqtt_port, scheme="mqtts", options=options, inward=rule)
        for of, broker, options in (
            ("good", open_broker, ca + name),
            ("shows", strict, ca + name + certificate),
            ("shows-none", strict, ca + name),
            ("wrong-name", open_broker, ca),
            ("wrong-ca", open_broker, name),
        )
    )
    server = new_server(config=config).start()
    wait_connected(server, "good", "shows")
    for of in ("shows-none", "wrong-name", "wrong-ca"):
        eventually(lambda of=of: figure(server, "failures_total", of, reason="tls") >= 2, what=f"{of} fails")
        assert figure(server, "connected", of) == 0
    publish = ["mosquitto_pub", "-p", open_broker.mqtt_port, "-h", "127.0.0.1", "--cafile", authority.pem, "--insecure"]
    publish += ["-q", "1", "-t", "devices/d1/state", "-m", '{"seq": 1}']
    subprocess.run(list(map(str, publish)), check=True, timeout=20)
    server.wait_rows("SELECT 1 FROM raw_events", 1)
    log = server.log()
    assert 'bridge="wrong-name"' in log and "not valid for name" in log
    assert "UnknownIssuer" in log


def test_two_bridges_share_a_subscription(new_server, new_broker):
    broker = new_broker().start()
    config = bridge("b", broker.mqtt_port, inward=['filter = "$share/g/devices/#"'])
    first, second = (new_server(name, config=config).start() for name in ("first", "second"))
    wait_connected(first, "b")
    wait_connected(second, "b")
    with connected(broker) as device:
        for seq in range(200):
            device.publish("devices/d1/state", json.dumps({"seq": seq}))
    eventually(lambda: sorted(seqs(first) + seqs(second)) == list(range(200)), what="each message once")
    assert seqs(first) and seqs(second)


def test_the_broker_is_killed_and_comes_back(new_server, new_broker):
    broker = new_broker().start()
    server = new_server(config=bridge("b", broker.mqtt_port, inward=['filter = "devices/#"'])).start()
    wait_connected(server, "b")
    for seq in range(3):
        with connected(broker) as device:
            device.publish("devices/d1/state", json.dumps({"seq": seq}))
        eventually(lambda seq=seq: seqs(server) == list(range(seq + 1)), what="it came")
        (broker.kill if seq else broker.stop)()
        eventually(lambda: figure(server, "connected", "b") == 0, what="the loss is seen")
        broker.start()
        wait_connected(server, "b")
    assert figure(server, "connects_total", "b") == 4


def test_what_is_published_while_we_are_away_comes_later(new_server, new_broker):
    broker = new_broker().start()
    for version in ("3.1.1", "5.0"):
        config = bridge(
            "b", broker.mqtt_port, options=f'version = "{version}"', inward=['filter = "devices/#"\nqos = 2']
        )
        server = new_server(version, config=config).start()
        wait_connected(server, "b")
        server.stop() if version == "5.0" else server.kill()
        with connected(broker) as device:
            for seq in range(300):
                device.publish("devices/d1/state", json.dumps({"seq": seq}), 1 + seq % 2)
        # The broker, too, was down for a while.
        broker.stop()
        broker.start()
        server.start()
        eventually(lambda: len(seqs(server)) >= 300, what="all came")
        assert seqs(server) == list(range(300))
        server.stop()


@pytest.mark.parametrize(("version", "qos"), [("3.1.1", 1), ("5.0", 1), ("5.0", 2)])
def test_kill_under_load_loses_nothing_and_doubles_nothing(new_server, new_broker, version, qos):
    broker = new_broker().start()
    options = f'version = "{version}"\n'
    server = new_server(config=bridge("b", broker.mqtt_port, options=options, inward=[f'filter = "devices/#"\nqos = {qos}']))
    server.start()
    wait_connected(server, "b")
    sent = []
    with connected(broker, V5) as device:

        def publish(count):
            for _ in range(count):
                seq = len(sent)
                payload = json.dumps({"seq": seq, "padding": "x" * 200})
                sent.append(device.paho.publish(f"devices/d{seq % 7}/state", payload, 2 if qos == 2 else 1))

        for _ in range(8):
            publish(1500)
            eventually(lambda: figure(server, "received_messages_total", "b") > 0, what="some came")
            server.kill()
            publish(200)
            server.start()
        for each in sent:
            each.wait_for_publish(30)
    eventually(lambda: len(set(seqs(server))) == len(sent), 60, "all came")
    stored = seqs(server)
    assert sorted(set(stored)) == list(range(len(sent)))
    assert len(stored) == len(sent), f"{len(stored) - len(sent)} of {len(sent)} came twice"


class ScriptedBroker:
    """A broker that does what the test says, packet by packet."""

    def __init__(self, version):
        self.version = version
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.mqtt_port = self.listener.getsockname()[1]
        self.link = None

    def accept(self, *, session_present, subscribes=True):
        """Lets the bridge in, and grants its subscription."""
        self.link = raw.Connection.accepted(self.listener)
        kind, _, body = self.link.read()
        # Not a clean start, and always the same client id.
        assert kind == raw.CONNECT and body[7] & 2 == 0
        end = b"\0" if self.version == 5 else b""
        self.link.send(raw.packet(raw.CONNACK, 0, bytes([session_present, 0]) + end))
        if subscribes:
            kind, _, body = self.link.read()
            assert kind == raw.SUBSCRIBE
            self.link.send(raw.packet(raw.SUBACK, 0, body[:2] + end + bytes([2])))

    def publish(self, packet_id, seq, *, qos=1, duplicate=False):
        """Sends, and gives the answer's kind once it comes."""
        payload = json.dumps({"seq": seq}).encode()
        sent = {"qos": qos, "packet_id": packet_id, "version": self.version, "duplicate": duplicate}
        self.link.send(raw.publish("devices/d1/state", payload, **sent))
        return self.answer(packet_id)

    def answer(self, packet_id):
        """The kind of the next packet, which is about this identifier."""
        while True:
            kind, _, body = self.link.read()
            if kind != raw.PINGREQ:
                assert body[:2] == struct.pack(">H", packet_id)
                return kind

    def release(self, packet_id):
        """The second half of QoS 2."""
        self.link.send(raw.packet(raw.PUBREL, 2, struct.pack(">H", packet_id)))
        return self.answer(packet_id)


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("killed", [False, True])
def test_what_is_sent_again_is_taken_once(new_server, version, killed):
    """To the packet: over a broken line, and over `kill -9`."""
    broker = ScriptedBroker(version)
    options = f'version = "{"5.0" if version == 5 else "3.1.1"}"\n'
    rule = ['filter = "devices/#"\nqos = 2']
    server = new_server(config=bridge("b", broker.mqtt_port, options=options, inward=rule)).start()

    def again(*, session_present=True):
        if killed:
            server.kill()
            broker.link.close()
            server.spawn()
        else:
            broker.link.close()
        # A 3.1.1 broker would send all retained messages again.
        subscribes = killed or version == 5 or not session_present
        broker.accept(session_present=session_present, subscribes=subscribes)
        server.wait_ready()

    broker.accept(session_present=False)
    assert broker.publish(7, 1) == raw.PUBACK
    assert broker.publish(8, 2) == raw.PUBACK
    assert broker.publish(9, 3, qos=2) == raw.PUBREC
    again()
    # The acknowledgements were lost: all of it comes again.
    assert broker.publish(7, 1, duplicate=True) == raw.PUBACK
    # The same identifier, and another message, of which the first delivery was lost.
    assert broker.publish(8, 4, duplicate=True) == raw.PUBACK
    assert broker.publish(9, 3, qos=2, duplicate=True) == raw.PUBREC
    assert broker.release(9) == raw.PUBCOMP
    # A new message that is like the last is no duplicate, and has no flag that says so.
    assert broker.publish(7, 1) == raw.PUBACK
    assert broker.publish(9, 3, qos=2) == raw.PUBREC
    eventually(lambda: seqs(server) == [1, 1, 2, 3, 3, 4], what="each message as often as it was published")
    assert figure(server, "duplicate_messages_total", "b") == 1
    # The broker knows nothing of the session: its identifiers mean other messages.
    again(session_present=False)
    assert broker.publish(7, 1, duplicate=True) == raw.PUBACK
    assert broker.publish(9, 3, qos=2, duplicate=True) == raw.PUBREC
    eventually(lambda: seqs(server) == [1, 1, 1, 2, 3, 3, 3, 4], what="all of another session is new")


def test_a_silent_broker_is_given_up_and_what_was_acknowledged_is_there(new_server):
    broker = ScriptedBroker(5)
    rule = ['filter = "devices/#"']
    server = new_server(config=bridge("b", broker.mqtt_port, options="keep_alive_s = 1", inward=rule)).start()
    broker.accept(session_present=False)
    wait_connected(server, "b")
    eventually(lambda: figure(server, "failures_total", "b", reason="keep_alive_timeout") == 1, what="given up")
    broker.accept(session_present=True)
    assert broker.publish(1, 1) == raw.PUBACK
    server.kill()
    server.start()
    eventually(lambda: seqs(server) == [1], what="what was acknowledged is there")


def test_what_is_published_here_waits_for_the_broker_and_comes_in_order(new_server, new_broker):
    broker = new_broker().start()
    with connected(broker, V5, "reader", clean=False, expiry_s=600) as reader:
        reader.subscribe("far/#", 2)
    broker.stop()
    config = bridge("b", broker.mqtt_port, outward=['filter = "devices/+/state"\nadd_prefix = "far/"\nqos = 2'])
    server = new_server(config=config).start()
    expected = []
    with connected(server) as device:
        for seq in range(150):
            device.publish("devices/d1/state", json.dumps({"seq": seq}), 1 + seq % 2)
            device.publish("devices/d1/other", b"not for them")
            expected.append(seq)
    server.post_event("d2", {"seq": 150})
    expected.append(150)
    eventually(lambda: figure(server, "queued_messages", "b") == 151, what="all wait")
    server.restart()
    eventually(lambda: figure(server, "queued_messages", "b") == 151, what="all wait after kill -9")
    broker.start()
    reader = Client(broker, V5, "reader", clean=False, expiry_s=600)
    assert reader.connect().session_present
    messages = [reader.next() for _ in expected]
    # Messages of one quality of service come in order; MQTT says nothing of those of different ones.
    of_qos = {qos: [json.loads(each.payload)["seq"] for each in messages if each.qos == qos] for qos in (1, 2)}
    assert of_qos == {1: expected[::2], 2: expected[1::2]}
    assert {message.topic for message in messages} == {"far/devices/d1/state", "far/devices/d2/state"}
    eventually(lambda: figure(server, "queued_messages", "b") == 0, what="none waits")
    assert figure(server, "published_messages_total", "b") == 151
    assert reader.messages.empty()
    reader.disconnect()


def test_a_queue_has_an_end(new_server, new_broker):
    broker = new_broker()
    config = bridge(
        "b", broker.mqtt_port, options="queue_messages_max = 10", outward=['filter = "devices/#"']
    )
    server = new_server(config=config).start()
    with connected(server) as device:
        for seq in range(25):
            device.publish("devices/d1/state", json.dumps({"seq": seq}))
    assert figure(server, "dropped_messages_total", "b", reason="queue_full") == 15
    # Who publishes is not held up, and what is kept here is complete.
    eventually(lambda: seqs(server) == list(range(25)), what="all are kept")


def test_prefixes_and_retained_messages_in_both_directions(new_server, new_broker):
    broker = new_broker().start()
    config = ROUTE + bridge(
        "b",
        broker.mqtt_port,
        inward=['filter = "theirs/+/state"\nstrip_prefix = "theirs/"\nadd_prefix = "devices/"'],
        outward=[
            'filter = "devices/+/out"\nstrip_prefix = "devices/"\nadd_prefix = "ours/"',
            'filter = "plain/#"\nretain = false',
        ],
    )
    with connected(broker) as device:
        device.publish("theirs/d1/state", b'{"seq": 1}', retain=True)
    server = new_server(config=config).start()
    wait_connected(server, "b")
    server.wait_rows("SELECT 1 FROM raw_events WHERE device_id = 'd1'", 1)
    with connected(server) as local, connected(broker) as far:
        local.subscribe("devices/+/state")
        message = local.next()
        assert (message.topic, message.retain, message.payload) == ("devices/d1/state", True, b'{"seq": 1}')
        far.subscribe("#")
        assert far.next().topic == "theirs/d1/state"
        local.publish("devices/d2/out", b"x", retain=True)
        local.publish("plain/a", b"y", retain=True)
        assert [far.next().topic for _ in range(2)] == ["ours/d2/out", "plain/a"]
    with connected(broker) as late:
        for topics in ("theirs/#", "ours/#", "plain/#"):
            late.subscribe(topics)
        assert {late.next().topic for _ in range(2)} == {"theirs/d1/state", "ours/d2/out"}
        assert late.has_nothing()
    # A retained message came once, not with every connection.
    server.restart()
    wait_connected(server, "b")
    with connected(broker) as device:
        device.publish("theirs/d9/state", b"{}")
    server.wait_rows("SELECT 1 FROM raw_events WHERE device_id = 'd9'", 1)
    assert server.value("SELECT count(*) FROM raw_events WHERE device_id = 'd1'") == 1


@pytest.mark.parametrize("version", ["3.1.1", "5.0"])
def test_a_wrong_password_is_told_and_not_shown(new_server, new_broker, tmp_path, version):
    broker = new_broker(password=("bridge", "right-secret")).start()
    url = f'url = "mqtt://bridge:wrong-secret@127.0.0.1:{broker.mqtt_port}/devices/#"'
    config = f'[[bridges]]\nname = "b"\n{url}\nversion = "{version}"\n{QUICK}'
    secret = tmp_path / "secret"
    secret.write_text("right-secret\n")
    good = f'[[bridges]]\nname = "g"\nurl = "mqtt://127.0.0.1:{broker.mqtt_port}/devices/#"\nuser = "bridge"\n'
    good += f'password_file = "{secret}"\n'
    server = new_server(config=config + good, flags=["--log-level", "trace"]).start()
    wait_connected(server, "g")
    reason = "not_authorized"
    eventually(lambda: figure(server, "failures_total", "b", reason=reason) >= 2, what="it is refused")
    log = server.log()
    assert "the broker refused the connection" in log
    # Told once, not with every attempt.
    assert log.count("not connected: the broker refused the connection") == 1
    checked = run("check", "--config", server.folder / "catchment.toml", "--data", server.folder / "other")
    shown = checked.stdout + checked.stderr
    assert f"mqtt://bridge@127.0.0.1:{broker.mqtt_port}" in shown
    for text in (log, shown, server.get("/metrics").text):
        assert "wrong-secret" not in text and "right-secret" not in text


def test_check_tells_what_sources_resolve_to(tmp_path):
    source = "mqtts://u:tiger@localhost:1/$share/g/city/#"
    checked = run("check", "--data", tmp_path / "d", "--source", source)
    assert "tiger" not in checked.stdout + checked.stderr
    assert "mqtts://u@localhost:1" in checked.stdout and "in $share/g/city/# at QoS 1" in checked.stdout
    assert "nobody is there now" in checked.stdout
    for bad in ("mqtt://u:tiger@h", "mqtt://u:tiger@h:x/a", "http://u:tiger@h/a", "mqtt://u:tiger@h/a#"):
        for how in ({"CATCHMENT_SOURCES": bad}, {}):
            flags = () if how else ("--source", bad)
            checked = run("check", "--data", tmp_path / "d", *flags, **how)
            assert checked.returncode != 0, bad
            assert "tiger" not in checked.stdout + checked.stderr, bad
    listed = "[{name = 'n', url = 'mqtt://localhost:1/a', keep_alive_s = 0}]"
    checked = run("check", "--data", tmp_path / "d", CATCHMENT_BRIDGES=listed)
    assert checked.returncode != 0 and "keep_alive_s is 0" in checked.stdout


def test_both_directions_do_not_make_a_loop(new_server, new_broker):
    """Everything in and everything out over one bridge, between two of ours, and with mosquitto."""
    for version in ("ours", "mosquitto"):
        other = new_server(f"other-{version}").start() if version == "ours" else new_broker().start()
        both = ['filter = "devices/#"']
        server = new_server(f"own-{version}", config=bridge("b", other.mqtt_port, inward=both, outward=both)).start()
        wait_connected(server, "b")
        with connected(server) as here, connected(other) as there:
            for seq in range(20):
                here.publish("devices/here/state", json.dumps({"seq": seq}))
                there.publish("devices/there/state", json.dumps({"seq": 100 + seq}))
        expected = [*range(20), *range(100, 120)]
        for each in (server, other) if version == "ours" else (server,):
            eventually(lambda each=each: seqs(each) == expected, what="each message once")
        published = figure(server, "published_messages_total", "b")
        assert (published, figure(server, "received_messages_total", "b")) == (20, 20)


def test_bridges_that_make_a_ring_end_it(new_server):
    """Two of ours that subscribe to each other: what comes back is known."""
    # Each listens when the other's port is chosen.
    rule = ['filter = "devices/#"']
    first = new_server("first", config=ROUTE).start()
    second = new_server("second", config=bridge("b", first.mqtt_port, inward=rule)).start()
    first.stop()
    (first.folder / "catchment.toml").write_text(bridge("b", second.mqtt_port, inward=rule))
    first.start()
    wait_connected(first, "b")
    wait_connected(second, "b")
    with connected(first) as here, connected(second) as there:
        for seq in range(20):
            here.publish("devices/here/state", json.dumps({"seq": seq}))
            there.publish("devices/there/state", json.dumps({"seq": 100 + seq}))
    expected = [*range(20), *range(100, 120)]
    for server in (first, second):
        eventually(lambda server=server: seqs(server) == expected, what="each message once")
        eventually(lambda server=server: figure(server, "refused_messages_total", "b", reason="loop") == 20, what="ended")
    time.sleep(0.5)
    assert seqs(first) == expected and seqs(second) == expected


def test_a_bridge_that_is_configured_no_more_leaves_nothing_behind(new_server, new_broker):
    broker = new_broker()
    config = bridge("b", broker.mqtt_port, outward=['filter = "devices/#"'])
    server = new_server(config=config).start()
    server.post_event("d1", {"seq": 1})
    eventually(lambda: figure(server, "queued_messages", "b") == 1, what="it waits")
    server.stop()
    (server.folder / "catchment.toml").write_text("")
    server.start()
    assert "configured no more" in server.log()
    assert "catchment_gateway_sessions 0" in server.get("/metrics").text
