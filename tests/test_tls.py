"""TLS by clients that others wrote: versions, certificates of both sides, revocation, reload."""

import json
import re
import select
import signal
import socket
import ssl
import subprocess

import psycopg
import pytest
from websockets.sync.client import connect

from harness import BINARY, eventually, free_ports, raw_mqtt, run
from harness.certificates import Authority
from harness.paho_client import Client, connected

EVENTS = "SELECT count(*) FROM raw_events"
CONNECT = raw_mqtt.connect(version=4, client_id="by-hand")
ACCEPTED = b"\x20\x02\x00\x00"


class Secured:
    """A server with certificates: `mqtts`, `https` and `mutual`, which is mqtts that asks for certificates."""

    def __init__(self, new_server, tmp_path, *, identity="cn", crl=True, extra="", **options):
        self.ca, self.devices, self.other = (Authority(tmp_path, name) for name in ("ca", "devices", "other"))
        self.north = Authority(tmp_path, "north")
        self.pem, self.key = self.ca.issue("server")
        self.mqtts, self.https, self.mutual = free_ports(3)
        self.crl = self.devices.revoke()
        lists = f'crl = ["{self.crl}"]' if crl else ""
        config = f"""
mqtts = "127.0.0.1:{self.mqtts}"
https = "127.0.0.1:{self.https}"
[tls]
certificate = "{self.pem}"
key = "{self.key}"
client_certificates = "optional"
identity = "{identity}"
reload_s = 1
[[tls.client_ca]]
file = "{self.devices.pem}"
{lists}
[[tls.client_ca]]
realm = "north"
file = "{self.north.pem}"
[[listeners]]
protocol = "mqtts"
address = "127.0.0.1:{self.mutual}"
client_certificates = "required"
{extra}
"""
        self.server = new_server(config=config, **options)

    def start(self):
        self.server.start()
        return self

    def context(self, client=None):
        """What a client of Python's ssl needs."""
        context = ssl.create_default_context(cafile=self.ca.pem)
        if client:
            context.load_cert_chain(*client)
        return context

    def metric(self, name, **labels):
        """The value of a metric, 0 when it is not there."""
        text = self.server.get("/metrics").text
        for line in text.splitlines():
            if line.startswith(name + "{") or line.startswith(name + " "):
                if all(f'{label}="{value}"' in line for label, value in labels.items()):
                    return float(line.rsplit(" ", 1)[1])
        return 0.0


@pytest.fixture
def secured(new_server, tmp_path):
    """A started server with certificates."""
    return Secured(new_server, tmp_path).start()


def mosquitto(program, port, *arguments, ca, limit_s=10):
    """Runs mosquitto_pub or mosquitto_sub over TLS."""
    command = [f"mosquitto_{program}", "-h", "localhost", "-p", port, "--cafile", ca, *arguments]
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=limit_s, check=False
    )


def s_client(port, *arguments, ca):
    """A handshake by openssl: what it prints."""
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-CAfile", ca, *arguments]
    done = subprocess.run(
        [str(part) for part in command], input="", capture_output=True, text=True, timeout=10, check=False
    )
    return done.stdout + done.stderr


def test_mosquitto_publishes_and_subscribes_over_tls(secured, device):
    topic = f"devices/{device}/state"
    command = ["mosquitto_sub", "-h", "localhost", "-p", str(secured.mqtts), "--cafile", str(secured.ca.pem)]
    subscriber = subprocess.Popen([*command, "-t", topic, "-C", "1", "-W", "20"], stdout=subprocess.PIPE, text=True)

    def published_and_received():
        sent = mosquitto("pub", secured.mqtts, "-t", topic, "-m", '{"t": 21}', "-q", "1", ca=secured.ca.pem)
        assert sent.returncode == 0, sent.stderr
        return subscriber.poll() is not None

    eventually(published_and_received)
    assert subscriber.stdout.read() == '{"t": 21}\n'
    eventually(lambda: secured.server.snapshot(device) == {"t": 21.0})


def test_versions_and_strangers(secured):
    for flag, version in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")]:
        for port in (secured.mqtts, secured.https):
            text = s_client(port, flag, ca=secured.ca.pem)
            assert re.search(rf"Protocol *: {version}|New, {version}", text), text
            assert "Verify return code: 0 (ok)" in text, text
    text = s_client(secured.mqtts, "-tls1_1", "-cipher", "ALL@SECLEVEL=0", ca=secured.ca.pem)
    assert re.search("alert (protocol version|handshake failure)", text), text
    assert "New, TLS" not in text, text
    assert "ALPN protocol: h2" in s_client(secured.https, "-alpn", "h2,http/1.1", ca=secured.ca.pem)
    # A client of AWS IoT asks for a protocol of its own, and is served all the same.
    assert "Verify return code: 0" in s_client(secured.mqtts, "-alpn", "x-amzn-mqtt-ca", ca=secured.ca.pem)
    # A client that knows another CA, or another host, leaves.
    wrong_ca = mosquitto("pub", secured.mqtts, "-t", "a", "-m", "b", ca=secured.other.pem)
    assert wrong_ca.returncode != 0
    context = secured.context()
    with socket.create_connection(("127.0.0.1", secured.mqtts)) as plain, pytest.raises(ssl.SSLError, match="mismatch"):
        context.wrap_socket(plain, server_hostname="elsewhere.example")
    # Who does not speak TLS is cut off.
    with socket.create_connection(("127.0.0.1", secured.mqtts), timeout=10) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
        while plain.recv(1024):
            pass
    eventually(lambda: secured.metric("catchment_tls_handshakes_total", outcome="not_tls") >= 1)
    assert secured.metric("catchment_tls_handshakes_total", listener="mqtts", outcome="ok") >= 3


def test_only_1_3_where_it_is_asked_for(new_server, tmp_path):
    ca = Authority(tmp_path)
    pem, key = ca.issue("server")
    (port,) = free_ports(1)
    new_server(
        config=f'mqtts = "127.0.0.1:{port}"\n[tls]\ncertificate = "{pem}"\nkey = "{key}"\nversion_min = "1.3"\n'
    ).start()
    assert "alert protocol version" in s_client(port, "-tls1_2", ca=ca.pem)
    assert "New, TLSv1.3" in s_client(port, "-tls1_3", ca=ca.pem)


def test_https_by_curl_and_secure_websockets(secured, device):
    base = f"https://localhost:{secured.https}"
    curl = ["curl", "--silent", "--show-error", "--cacert", str(secured.ca.pem)]
    for flag in ("--http1.1", "--http2"):
        url = f"{base}/api/v1/devices/{device}/events/state"
        done = subprocess.run(
            [*curl, flag, "-H", "content-type: application/json", "-d", '{"t": 1}', url],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
        assert json.loads(done.stdout)["accepted"] == 1, done
    strange = subprocess.run(["curl", "--silent", f"{base}/healthz"], capture_output=True, timeout=10, check=False)
    assert strange.returncode == 60

    context = secured.context()
    with connect(f"wss://localhost:{secured.https}/api/v1/live?device={device}", ssl=context) as pushed_to:
        assert json.loads(pushed_to.recv(timeout=10)) == {"subscribed": ""}
        secured.server.post_event(device, {"t": 5})
        (reading,) = json.loads(pushed_to.recv(timeout=10))
        assert reading["value"] == 5
    with connect(f"wss://localhost:{secured.https}/mqtt", ssl=context, subprotocols=["mqtt"]) as mqtt:
        mqtt.send(CONNECT)
        assert mqtt.recv(timeout=10) == ACCEPTED


def test_a_client_certificate_is_a_device(secured):
    own = secured.devices.issue("truck-7", san="DNS:truck-7.example,URI:urn:truck:7")
    arguments = ("--cert", own[0], "--key", own[1], "-q", "1", "-V", "5")
    sent = mosquitto(
        "pub", secured.mutual, *arguments, "-t", "devices/truck-7/state", "-m", '{"t": 3}', ca=secured.ca.pem
    )
    assert sent.returncode == 0, sent.stderr
    eventually(lambda: secured.server.snapshot("truck-7") == {"t": 3.0})
    # It speaks as itself only, although everything here is on loopback.
    foreign = mosquitto(
        "pub", secured.mutual, *arguments, "-d", "-t", "devices/truck-8/state", "-m", "{}", ca=secured.ca.pem
    )
    assert "135" in foreign.stdout + foreign.stderr or "Not authorized" in foreign.stdout + foreign.stderr, foreign
    # By HTTP too.
    curl = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--cacert", secured.ca.pem]
    for name, status in [("truck-7", "200"), ("truck-8", "403")]:
        url = f"https://localhost:{secured.https}/api/v1/devices/{name}/events/state"
        done = subprocess.run(
            [*curl, "--cert", own[0], "--key", own[1], "-d", "{}", "-H", "content-type: application/json", url],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
        assert done.stdout == status, (name, done)


@pytest.mark.parametrize("identity, name", [("san_dns", "truck.dns"), ("san_uri", "urn:truck:7")])
def test_alternative_names_are_devices(new_server, tmp_path, identity, name):
    secured = Secured(new_server, tmp_path, identity=identity).start()
    pem, key = secured.devices.issue("t", cn="somebody", san="URI:urn:truck:7,DNS:truck.dns")
    arguments = ("--cert", pem, "--key", key, "-q", "1", "-V", "5")
    for device, taken in [(name, True), ("somebody", False)]:
        topic = f"devices/{device}/state"
        sent = mosquitto("pub", secured.mutual, *arguments, "-d", "-t", topic, "-m", "{}", ca=secured.ca.pem)
        assert ("(Success)" in sent.stdout or "rc0" in sent.stdout or "RC:0" in sent.stdout) == taken, (device, sent)


def test_bad_client_certificates_are_refused_with_an_alert(secured):
    good = secured.devices.issue("good")
    expired = secured.devices.issue("expired", days=-1)
    strange = secured.other.issue("strange")
    revoked = secured.devices.issue("revoked")
    secured.devices.revoke("revoked")
    secured.server.process.send_signal(signal.SIGHUP)
    eventually(lambda: secured.metric("catchment_tls_reloads_total", outcome="ok") >= 1)

    def handshake(client):
        arguments = ("-cert", client[0], "-key", client[1]) if client else ()
        return s_client(secured.mutual, "-tls1_2", *arguments, ca=secured.ca.pem)

    assert "Verify return code: 0 (ok)" in handshake(good)
    cases = [
        (None, "certificate required|handshake failure|bad certificate", "no_certificate"),
        (expired, "certificate expired", "certificate_expired"),
        (strange, "unknown ca", "unknown_ca"),
        (revoked, "certificate revoked", "revoked"),
    ]
    for client, alert, outcome in cases:
        text = handshake(client)
        assert re.search(f"alert ({alert})", text), (outcome, text)
        count = secured.metric("catchment_tls_handshakes_total", outcome=outcome)
        assert count == 1, (outcome, count)
    assert "connections are refused" in secured.server.log()


def test_a_revocation_cuts_off_who_is_there(secured):
    stays, leaves = secured.devices.issue("stays"), secured.devices.issue("leaves")

    def join(name, client):
        raw = socket.create_connection(("127.0.0.1", secured.mutual), timeout=15)
        stream = secured.context(client).wrap_socket(raw, server_hostname="localhost")
        stream.sendall(raw_mqtt.connect(version=4, client_id=name))
        assert stream.recv(4) == ACCEPTED
        return stream

    staying, leaving = join("stays", stays), join("leaves", leaves)
    secured.devices.revoke("leaves")
    # Seen without a signal, as the file has changed.
    assert leaving.recv(16) == b""
    staying.sendall(b"\xc0\x00")
    assert staying.recv(2) == b"\xd0\x00"
    assert secured.metric("catchment_tls_revoked_connections_total") == 1


def test_certificates_are_replaced_without_a_restart(secured):
    def serial():
        text = s_client(secured.mqtts, ca=secured.ca.pem)
        pem = text[text.index("-----BEGIN") : text.index("-----END CERTIFICATE-----") + 26]
        done = subprocess.run(
            ["openssl", "x509", "-noout", "-serial"], input=pem, capture_output=True, text=True, check=True
        )
        return done.stdout

    before = serial()
    expiry = secured.metric("catchment_tls_expiry_timestamp_seconds", of="server")
    with socket.create_connection(("127.0.0.1", secured.mqtts), timeout=10) as raw:
        held = secured.context().wrap_socket(raw, server_hostname="localhost")
        held.sendall(CONNECT)
        assert held.recv(4) == ACCEPTED
        # A broken file changes nothing.
        whole = secured.pem.read_bytes()
        secured.pem.write_text("nothing\n")
        eventually(lambda: secured.metric("catchment_tls_reloads_total", outcome="failed") >= 1)
        assert "those from before stay in force" in secured.server.log()
        assert serial() == before
        secured.pem.write_bytes(whole)
        secured.ca.issue("server", days=60)
        eventually(lambda: serial() != before)
        assert secured.metric("catchment_tls_expiry_timestamp_seconds", of="server") > expiry + 20 * 86400
        # Connections from before go on.
        held.sendall(b"\xc0\x00")
        assert held.recv(2) == b"\xd0\x00"


def test_realms_by_ca(secured):
    with connected(secured.server) as watcher:
        watcher.subscribe("#")
        here, there = secured.devices.issue("dev"), secured.north.issue("dev")
        for client, payload in [(there, b"north"), (here, b"main")]:
            sent = mosquitto(
                *("pub", secured.mutual, "--cert", client[0], "--key", client[1], "-q", "1"),
                *("-t", "devices/dev/note", "-m", payload.decode()),
                ca=secured.ca.pem,
            )
            assert sent.returncode == 0, sent
        assert watcher.next().payload == b"main"


def test_resumed_sessions_keep_their_certificate(secured):
    own = secured.devices.issue("resumed-1")
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context, session = secured.context(own), None
        context.minimum_version = context.maximum_version = version
        for resumed in (False, True):
            raw = socket.create_connection(("127.0.0.1", secured.mutual), timeout=10)
            with context.wrap_socket(raw, server_hostname="localhost", session=session) as stream:
                stream.sendall(CONNECT)
                assert stream.recv(4) == ACCEPTED
                # A device may not subscribe to everything, resumed or not.
                stream.sendall(b"\x82\x06\x00\x01\x00\x01#\x01")
                assert stream.recv(5) == b"\x90\x03\x00\x01\x80"
                assert stream.session_reused == resumed, version
                session = stream.session


def test_paho_over_tls(secured, device):
    client = Client(secured.server)
    client.port = secured.mqtts
    client.paho.tls_set_context(secured.context())
    client.connect()
    try:
        client.subscribe(f"devices/{device}/#")
        client.publish(f"devices/{device}/state", b"x" * 200_000)
        assert len(client.next().payload) == 200_000
    finally:
        client.disconnect()


def test_psql_verifies_the_server(secured):
    token = secured.server.token
    base = f"host=localhost hostaddr=127.0.0.1 port={secured.server.pg_port} user=admin dbname=main password={token}"
    full = f"{base} sslmode=verify-full sslrootcert={secured.ca.pem}"
    done = subprocess.run(
        ["psql", full, "-Atc", "SELECT 40 + 2"], capture_output=True, text=True, timeout=20, check=False
    )
    assert done.stdout.strip() == "42", done.stderr
    with psycopg.connect(full) as connection:
        assert connection.pgconn.ssl_in_use
        assert connection.execute("SELECT sum(1) FROM generate_series(1, 100000)").fetchone()
    with pytest.raises(psycopg.OperationalError, match="certificate verify failed"):
        psycopg.connect(f"{base} sslmode=verify-full sslrootcert={secured.other.pem}")
    with psycopg.connect(f"{base} sslmode=disable") as connection:
        assert not connection.pgconn.ssl_in_use


def test_postgres_may_ask_for_tls(new_server, tmp_path):
    secured = Secured(new_server, tmp_path, extra="[postgres]\ntls_required = true\n").start()
    base = f"host=localhost port={secured.server.pg_port} user=anonymous dbname=main"
    with pytest.raises(psycopg.OperationalError, match="without TLS are not let in"):
        psycopg.connect(f"{base} sslmode=disable")
    psycopg.connect(f"{base} sslmode=require").close()
    # Bytes in clear text behind the request are not taken for the client's words.
    with socket.create_connection(("127.0.0.1", secured.server.pg_port), timeout=10) as raw:
        raw.sendall(b"\x00\x00\x00\x08\x04\xd2\x16\x2f" + b"\x00\x00\x00\x08\x00\x03\x00\x00")
        assert raw.recv(1) == b"S"
        assert b"R" not in raw.recv(100)[:1]


def test_the_command_line_speaks_tls(secured, device):
    secured.server.post_event(device, {"t": 7})
    url, trust = ("--url", f"https://localhost:{secured.https}"), ("--ca", secured.ca.pem)
    done = run("query", *url, *trust, "--format", "csv", "SELECT 40 + 2 AS n")
    assert done.stdout.split() == ["n", "42"], done.stderr
    for stranger in ((), ("--ca", secured.other.pem)):
        done = run("device", "list", *url, *stranger)
        assert done.returncode == 1 and "UnknownIssuer" in done.stderr, done
    done = run("device", "list", *url, "--ca", secured.ca.key)
    assert done.returncode == 1 and "no CA to verify" in done.stderr, done
    command = [BINARY, "tail", *url, *trust, device]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True) as tail:
        try:
            def posted_and_seen():
                secured.server.post_event(device, {"t": 8})
                return select.select([tail.stdout], [], [], 0.2)[0]

            eventually(posted_and_seen)
            assert f"{device}  state" in tail.stdout.readline()
        finally:
            tail.kill()


def test_worlds_publish_over_tls(secured, tmp_path):
    def simulate(log, *trust):
        command = [BINARY, "simulate", "market", "--to", f"mqtts://localhost:{secured.mqtts}", *trust]
        return subprocess.Popen(list(map(str, command)), stdout=log, stderr=log)

    paths = [tmp_path / "stranger.log", tmp_path / "good.log"]
    with paths[0].open("wb") as first, paths[1].open("wb") as second:
        stranger = simulate(first, "--ca", secured.other.pem)
        try:
            eventually(lambda: "UnknownIssuer" in paths[0].read_text(), what="the server is not trusted")
            good = simulate(second, "--ca", secured.ca.pem)
            try:
                eventually(lambda: secured.metric("catchment_gateway_connections") >= 1, what="the world is connected")
                before = secured.server.value(EVENTS)
                eventually(lambda: secured.server.value(EVENTS) >= before + 4, what="prices")
                good.send_signal(signal.SIGINT)
                assert good.wait(timeout=10) == 0
            finally:
                good.kill()
        finally:
            stranger.kill()
    done = run("simulate", "city", "--to", "amqp://localhost")
    assert done.returncode != 0 and "mqtts://" in done.stderr


def test_check_says_what_is_wrong(tmp_path):
    ca = Authority(tmp_path)
    server, other = ca.issue("server"), ca.issue("other")
    expired, soon = ca.issue("expired", days=-1), ca.issue("soon", days=3)

    def check(pem, key, extra=""):
        path, names = tmp_path / "c.toml", ("http", "mqtt", "pg", "mqtts")
        path.write_text(f'[tls]\ncertificate = "{pem}"\nkey = "{key}"\n{extra}')
        listeners = [part for name, port in zip(names, free_ports(4)) for part in (f"--{name}", f"127.0.0.1:{port}")]
        done = run("check", "--config", path, "--data", tmp_path / "data", *listeners)
        return done.returncode, done.stdout + done.stderr

    code, text = check(*server)
    assert code == 0 and "TLS certificate" in text and "good until" in text, text
    code, text = check(*soon)
    assert code == 0 and "it ends in" in text, text
    for pem, key, extra, said in [
        (*expired, "", "it ended on"),
        (server[0], other[1], "", "does not belong to the certificate"),
        (server[0], tmp_path / "none.key", "", "cannot be read"),
        (server[1], server[1], "", "holds no certificate"),
        ("", "", "", "needs a certificate"),
        (*server, 'client_certificates = "required"\n', "[[tls.client_ca]]"),
        (*server, f'[[tls.client_ca]]\nfile = "{ca.pem}"\ncrl = ["{ca.pem}"]\n', "holds no revocation list"),
    ]:
        code, text = check(pem, key, extra)
        assert code == 1 and said in text, (said, text)
    assert run("serve", "--mqtts", "127.0.0.1:1", "--data", tmp_path / "d").returncode == 1
