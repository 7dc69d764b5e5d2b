"""Who comes in and what they may do, on a server that others can reach: passwords, rules about topics, realms, limits, bans;
all changed while it runs."""

import json
import shlex
import subprocess
import threading
import time

import pytest
import requests

from harness import Server, eventually, run
from harness import raw_mqtt as raw
from harness.paho_client import V3, V5, Client, connected

CONFIG = """
[admission.bans]
exempt = []
failures_max = 25
window_s = 3600
ban_s = 3600
"""
HOSTS = dict.fromkeys(["http", "mqtt", "pg"], "0.0.0.0")


def start(folder, config=""):
    server = Server(folder, hosts=HOSTS, config=config).start()
    server.session.headers.update(server.admin)
    return server


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    server = start(tmp_path_factory.mktemp("public"))
    yield server
    server.close()


@pytest.fixture
def own(tmp_path):
    """A server whose rules, limits and bans are the test's own."""
    server = start(tmp_path, CONFIG)
    yield server
    server.close()


def cli(server, *arguments, stdin=None):
    done = run(*arguments, "--url", server.url(""), "--data", server.data, stdin=stdin)
    assert done.returncode == 0, done.stderr
    return done.stdout


def add(server, device, *flags):
    """Registers a device; gives what it shows."""
    return cli(server, "device", "add", device, *flags).splitlines()[-1]


def connack(server, username, password, client_id="", version=5):
    payload = raw.text(client_id) + raw.text(username) + raw.text(password)
    with raw.Connection(server.mqtt_port) as connection:
        connection.send(raw.connect(version, flags=0xC2, payload=payload))
        return connection.read()[2][1]


def mosquitto(tool, server, *arguments, limit_s=10):
    command = [tool, "-h", "127.0.0.1", "-p", str(server.mqtt_port), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)


def rule(server, effect, action, subject, topic_filter, realm="main"):
    """Adds a rule; gives its id."""
    return cli(server, "acl", "add", effect, action, subject, topic_filter, "--realm", realm).split()[1]


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


def from_elsewhere(server, path, *arguments):
    """What the administrator is answered at another address of loopback."""
    command = ["curl", "-sS", "--interface", "127.0.0.2", "-H", f"Authorization: Bearer {server.token}", *arguments]
    return subprocess.run([*command, server.url(path)], capture_output=True, text=True, timeout=10, check=True).stdout


# What is shown.


@pytest.mark.parametrize("kind", ["token", "password"])
def test_settings_can_be_pasted(public, kind):
    device = f"pasted-{kind}"
    printed = cli(public, "device", "add", device, *(["--password"] if kind == "password" else []))
    lines = [line.strip().replace("0.0.0.0", "127.0.0.1") for line in printed.splitlines()]
    for start_of_line in ("mosquitto_pub", "curl"):
        (command,) = [line for line in lines if line.startswith(start_of_line)]
        done = subprocess.run(shlex.split(command), capture_output=True, text=True, timeout=20, check=False)
        assert done.returncode == 0 and "error" not in done.stdout, f"{command}: {done}"
    at = lines.index("import paho.mqtt.publish as mqtt")
    exec("\n".join(lines[at : at + 2]), {})
    public.wait_rows(f"SELECT 1 FROM raw_events WHERE device_id = '{device}' AND type = 'state'", 3)


def test_a_password_is_the_devices_own_and_changes_at_once(public):
    add(public, "pw-1", "--password")
    add(public, "pw-2", "--password")
    cli(public, "device", "password", "pw-1", "--stdin", stdin="correct horse\n")
    assert connack(public, "pw-1", "correct horse") == 0
    assert connack(public, "pw-1", "correct horse", version=4) == 0
    for username, password in [("pw-2", "correct horse"), ("pw-1", "correct hors"), ("nobody", "correct horse"), ("", "x")]:
        assert connack(public, username, password) == 0x86, username
    path = public.url("/api/v1/devices/{}/events/state")
    answers = [
        requests.post(path.format(device), json={"n": 1}, auth=("pw-1", "correct horse"), timeout=10).status_code
        for device in ("pw-1", "pw-2")
    ]
    assert answers == [200, 403]
    with raw.Connection(public.mqtt_port) as connected_by_old:
        payload = raw.text("old") + raw.text("pw-1") + raw.text("correct horse")
        connected_by_old.send(raw.connect(5, flags=0xC2, payload=payload))
        assert connected_by_old.read()[2][1] == 0
        new = cli(public, "device", "password", "pw-1").splitlines()[-1]
        kind, _, body = connected_by_old.read()
        assert (kind, body[0]) == (raw.DISCONNECT, 0x87)
    assert connack(public, "pw-1", "correct horse") == 0x86
    assert connack(public, "pw-1", new) == 0
    cli(public, "device", "password", "pw-1", "--remove")
    assert connack(public, "pw-1", new) == 0x86
    # At rest there is a hash and no password, nor is there one in the log.
    stored = b"".join(file.read_bytes() for file in public.data.glob("registry.sqlite*"))
    assert b"$argon2id$v=19$m=19456,t=2,p=1$" in stored and new.encode() not in stored
    assert new not in public.log() and "correct horse" not in public.log()


@pytest.mark.parametrize("withdraw", ["token", "device"])
def test_what_is_withdrawn_ends_its_connections_at_once(public, withdraw):
    device = f"withdrawn-{withdraw}"
    token = add(public, device)
    with raw.Connection(public.mqtt_port) as connection:
        connection.send(raw.connect(5, flags=0xC2, payload=raw.text("") + raw.text(device) + raw.text(token)))
        assert connection.read()[2][1] == 0
        if withdraw == "token":
            (listed,) = [entry for entry in public.get("/api/v1/tokens").json() if entry.get("device_id") == device]
            cli(public, "token", "revoke", listed["id"])
        else:
            cli(public, "device", "remove", device)
        began = time.monotonic()
        kind, _, body = connection.read()
        assert (kind, body[0]) == (raw.DISCONNECT, 0x87)
        assert time.monotonic() - began < 1
        assert connection.read_to_end() == []
    assert connack(public, device, token) == 0x86


def test_a_client_id_opens_nobody_elses_session(public):
    owner, thief = add(public, "owner"), add(public, "thief")
    with connected(public, V5, "shared-id", login=("owner", owner)) as client:
        assert client.subscribe("devices/owner/#") == 1
        assert connack(public, "thief", thief, client_id="shared-id") == 0x87
        assert connack(public, "thief", thief, client_id="shared-id", version=4) == 5
        client.publish("devices/owner/state", b'{"n": 1}')
        assert client.next().topic == "devices/owner/state"


# What they may do.


def test_nobody_speaks_as_somebody_else(own):
    token = add(own, "d1")
    add(own, "d2")
    # Not even where everything is allowed.
    rule(own, "allow", "any", "all", "#")
    login = ("-u", "d1", "-P", token)
    for version in ("mqttv311", "mqttv5"):
        done = mosquitto("mosquitto_pub", own, *login, "-V", version, "-q", "1", "-t", "devices/d2/state", "-m", "{}")
        assert done.returncode != 0 or "Not authorized" in done.stderr, done
        mosquitto("mosquitto_pub", own, *login, "-V", version, "-q", "0", "-t", "devices/d2/state", "-m", "{}")
    answer = own.post("/api/v1/devices/d2/events/state", json={"n": 1}, headers=bearer(token))
    assert answer.status_code == 403
    # Not by its last will, either.
    for topic, code in [("devices/d2/state", 0x87), ("devices/d1/state", 0)]:
        will = raw.text("c") + b"\x00" + raw.text(topic) + raw.text("{}") + raw.text("d1") + raw.text(token)
        with raw.Connection(own.mqtt_port) as connection:
            connection.send(raw.connect(5, flags=0xC6, payload=will))
            assert connection.read()[2][1] == code
    own.post_event("d1", {"n": 1}, headers=bearer(token))
    own.wait_rows("SELECT device_id FROM raw_events WHERE type = 'state' AND device_id = 'd2'", 0)


def check_withheld(own, client, denied, allowed):
    """Connected clients follow a changed rule when it is answered: of two messages, only the second comes."""
    with connected(own, V5, login=("admin", own.token)) as admin:
        admin.publish(denied, b"denied")
        admin.publish(allowed, b"allowed")
        assert client.next().payload == b"allowed"


def test_rules_about_topics(own):
    token = add(own, "d1")
    reader = cli(own, "token", "create", "dash", "--role", "reader").splitlines()[-1].strip()
    with connected(own, V5, login=("d1", token)) as device, connected(own, V5, "dash", login=("x", reader)) as dash:
        assert device.subscribe("site/d1/#") == 0x87
        allowed = rule(own, "allow", "subscribe", "devices", "site/{device_id}/#")
        rule(own, "allow", "publish", "device:d1", "plant/{device_id}")
        # Retained messages come only through a filter that is allowed.
        with connected(own, V5, login=("admin", own.token)) as admin:
            admin.publish("site/d1/a", b"mine", retain=True)
            admin.publish("site/d2/a", b"not mine", retain=True)
        assert device.subscribe("site/d1/#") == 1
        assert device.next().payload == b"mine"
        assert device.subscribe("$share/group/site/d1/a") == 1
        for around in ("site/+/a", "site/#", "#", "$share/group/site/#", "+/d1/a", "site/d2/a", "$share/g/#"):
            assert device.subscribe(around) == 0x87, around
        assert device.messages.empty()
        device.publish("plant/d1", b"x")
        # A rule that denies takes a subscription away that is there, and no wildcard gets around it.
        assert dash.subscribe("plant/#") == 1
        rule(own, "deny", "subscribe", "readers", "plant/secret/#")
        assert dash.subscribe("#") == 0x87 and dash.subscribe("plant/+/x") == 0x87
        assert dash.subscribe("plant/open/#") == 1
        check_withheld(own, dash, "plant/secret/x", "plant/open/x")
        # A rule that is gone allows nothing any more.
        assert device.subscribe("devices/d1/#") == 1
        cli(own, "acl", "remove", allowed)
        assert device.subscribe("site/d1/#") == 0x87
        check_withheld(own, device, "site/d1/b", "devices/d1/b")
    for wrong in (["maybe", "any", "all", "#"], ["allow", "any", "all", "a/#/b"], ["allow", "any", "all", "{devise}/x"]):
        done = run("acl", "add", *wrong, "--url", own.url(""), "--data", own.data)
        assert done.returncode != 0 and done.stderr


def test_a_rule_holds_for_connected_clients_when_it_is_answered(own):
    """Whatever a client does after the answer is decided by the new rule, however busy its connection is."""
    token = add(own, "d1")
    rule(own, "allow", "subscribe", "devices", "plant/#")
    path = own.url("/api/v1/access/acl")
    deny = [
        {"effect": "deny", "action": "publish", "subject": "devices", "filter": "devices/d1/secret"},
        {"effect": "deny", "action": "subscribe", "subject": "devices", "filter": "plant/secret"},
    ]
    with (
        connected(own, V5, login=("d1", token)) as device,
        connected(own, V5, login=("d1", token)) as watching,
        connected(own, V5, login=("admin", own.token)) as admin,
    ):
        for n in range(25):
            assert watching.subscribe("plant/secret") == 1
            assert watching.subscribe("plant/open") == 1
            # The topic of the last message is remembered by a connection; it must not be what decides.
            device.publish("devices/d1/secret", b"{}")
            rules = [own.session.post(path, json=body, timeout=10).json()["id"] for body in deny]
            admin.publish("plant/secret", b"denied")
            admin.publish("plant/open", b"allowed")
            assert watching.next().payload == b"allowed", n
            message = device.paho.publish("devices/d1/secret", b"{}", 1)
            message.wait_for_publish(10)
            for made in rules:
                assert own.session.delete(f"{path}/{made}", timeout=10).status_code == 204
    # Every second of the messages was refused.
    own.wait_rows("SELECT 1 FROM raw_events WHERE topic = 'devices/d1/secret'", 25)


# Realms.


def test_nothing_leaks_between_realms(own):
    cli(own, "realm", "set", "plant")
    main, plant = add(own, "same"), add(own, "same", "--realm", "plant")
    password = cli(own, "device", "password", "same", "--realm", "plant").splitlines()[-1]
    assert connack(own, "same", password) == 0x86 and connack(own, "plant/same", password) == 0
    reader = cli(own, "token", "create", "r", "--role", "reader", "--realm", "plant").splitlines()[-1].strip()
    in_main = Client(own, V5, "same-id", login=("same", main), expiry_s=100)
    in_plant = Client(own, V5, "same-id", login=("plant/same", plant), expiry_s=100)
    for client in (in_main, in_plant):
        client.connect()
        for topic in ("devices/same/a", "$share/g/devices/same/b"):
            assert client.subscribe(topic) == 1
    assert in_main.disconnects.empty(), "the same client id in another realm is another session"
    for client, word in ((in_main, b"main"), (in_plant, b"plant")):
        client.publish("devices/same/a", word, retain=True)
        client.publish("devices/same/b", word)
        assert {client.next().payload for _ in range(2)} == {word}
    with connected(own, V5, login=("x", reader)) as watching:
        watching.subscribe("#")
        assert watching.next().payload == b"plant", "retained"
        in_main.publish("devices/same/c", b"main")
        in_plant.publish("devices/same/c", b"plant")
        assert watching.next().payload == b"plant"
    for client in (in_main, in_plant):
        client.disconnect()
    # What is not apart by realm yet is refused, and holds nothing of theirs.
    for method, path, body in [
        ("GET", "/api/v1/devices", None),
        ("GET", "/api/v1/devices/same/snapshot", None),
        ("POST", "/api/v1/sql", {"query": "SELECT * FROM raw_events"}),
        ("GET", "/api/v1/live", None),
        ("POST", "/api/v1/devices/same/events/a", {"n": 1}),
    ]:
        for token in (reader, plant):
            answer = requests.request(method, own.url(path), json=body, headers=bearer(token), timeout=10)
            assert answer.status_code == 403, f"{path}: {answer.status_code}"
    own.wait_rows("SELECT payload FROM raw_events WHERE topic = 'devices/same/c'", 1)
    assert run("device", "add", "x", "--realm", "nowhere", "--url", own.url(""), "--data", own.data).returncode != 0


# Limits.


def test_over_its_rate_a_device_waits_and_http_says_when(own):
    token = add(own, "fast")
    cli(own, "realm", "set", "main", "--device-messages", "20")
    with connected(own, V3, login=("fast", token)) as client:
        began = time.monotonic()
        sent = [client.paho.publish("devices/fast/n", b'{"n": 1}', 1) for _ in range(80)]
        for message in sent:
            message.wait_for_publish(20)
        # A read may hold more than the burst: the next waits until all of it is paid for.
        client.publish("devices/fast/n", b'{"n": 1}')
        took = time.monotonic() - began
        assert 1.5 < took < 10, took
    body = "\n".join(['{"n": 1}'] * 60)
    eventually(lambda: own.post_event("fast", body, headers={**bearer(token), "Content-Type": "application/x-ndjson"}))
    answer = own.post("/api/v1/devices/fast/events/n", json={"n": 1}, headers=bearer(token))
    assert answer.status_code == 429
    assert 1 <= int(answer.headers["Retry-After"]) <= 4
    time.sleep(int(answer.headers["Retry-After"]))
    own.post_event("fast", {"n": 1}, headers=bearer(token))
    # Limits are lifted on open connections too.
    cli(own, "realm", "set", "main")
    own.post_event("fast", body, headers={**bearer(token), "Content-Type": "application/x-ndjson"})
    own.post_event("fast", {"n": 1}, headers=bearer(token))


def test_connections_a_second(own):
    token = add(own, "restless")
    cli(own, "realm", "set", "main", "--device-connects", "2")
    codes = [connack(own, "restless", token, version=version) for version in (5, 5, 5, 5, 5, 4)]
    assert codes[0] == 0 and 0x9F in codes and codes[-1] in (0, 3), codes
    assert connack(own, "admin", own.token) == 0, "others are not held up"


# Bans.


def test_bans_by_hand_hold_at_once_and_are_lifted(own):
    token = add(own, "bad")
    for kind, value in (("device", "bad"), ("client", "its-client-id")):
        with raw.Connection(own.mqtt_port) as connection:
            payload = raw.text("its-client-id") + raw.text("bad") + raw.text(token)
            connection.send(raw.connect(5, flags=0xC2, payload=payload))
            assert connection.read()[2][1] == 0
            ban = cli(own, "ban", "add", kind, value, "--reason", "stolen").split()[1]
            packet, _, body = connection.read()
            assert (packet, body[0]) == (raw.DISCONNECT, 0x8A)
        assert connack(own, "bad", token, "its-client-id") == 0x8A
        assert connack(own, "bad", token, "its-client-id", version=4) == 5
        assert "stolen" in cli(own, "ban", "list")
        cli(own, "ban", "remove", ban)
        assert connack(own, "bad", token, "its-client-id") == 0
    cli(own, "ban", "add", "device", "bad", "--for", "1")
    answer = own.post("/api/v1/devices/bad/events/n", json={"n": 1}, headers=bearer(token))
    assert answer.status_code == 403 and answer.headers["Retry-After"]
    eventually(lambda: connack(own, "bad", token) == 0, what="the ban ends by itself")
    done = run("ban", "add", "address", "10.0.0.0/33", "--url", own.url(""), "--data", own.data)
    assert done.returncode != 0 and "network" in done.stderr


def test_failed_logins_ban_their_address(own):
    token = add(own, "honest")
    for _ in range(25):
        assert connack(own, "honest", "ctm_wrong") == 0x86
    with raw.Connection(own.mqtt_port) as connection:
        assert connection.read_to_end() == [], "not even asked"
    answer = own.get("/api/v1/devices")
    assert answer.status_code == 403 and answer.json()["error"] == "banned"
    # From elsewhere everything goes on, and the ban can be lifted.
    (ban,) = json.loads(from_elsewhere(own, "/api/v1/access/bans"))
    assert (ban["value"], ban["automatic"]) == ("127.0.0.1", True)
    metrics = from_elsewhere(own, "/metrics")
    assert 'catchment_gateway_admission_total{reason="bad_credentials"} 25' in metrics
    assert 'catchment_gateway_connections_refused_total{reason="address"} 1' in metrics
    from_elsewhere(own, f"/api/v1/access/bans/{ban['id']}", "-X", "DELETE")
    assert connack(own, "honest", token) == 0
    log = own.log()
    assert "too many failed logins" in log and "not let in" in log and token not in log and "ctm_wrong" not in log


# Under attack.


def test_a_flood_of_logins_does_not_hold_up_others(tmp_path):
    server = start(tmp_path)
    try:
        token = add(server, "victim")
        add(server, "steady", "--password")
        cli(server, "device", "password", "steady", "--stdin", stdin="steady-password\n")
        assert connack(server, "steady", "steady-password") == 0
        over = threading.Event()
        tried = [0] * 8

        def flood(number):
            while not over.is_set():
                try:
                    connack(server, "victim", f"guess-{number}-{tried[number]}")
                except (OSError, EOFError):
                    pass
                tried[number] += 1

        with connected(server, V5, login=("victim", token)) as client:

            def latencies():
                took = []
                for _ in range(150):
                    began = time.monotonic()
                    client.publish("devices/victim/n", b'{"n": 1}')
                    took.append(time.monotonic() - began)
                return sorted(took)

            calm = latencies()
            threads = [threading.Thread(target=flood, args=(number,), daemon=True) for number in range(8)]
            for thread in threads:
                thread.start()
            stormy = latencies()
            # Who was verified before needs no hash, and is let in past those who wait for one.
            began = time.monotonic()
            assert connack(server, "steady", "steady-password") == 0
            known = time.monotonic() - began
            over.set()
            for thread in threads:
                thread.join(30)
        print(f"guesses {sum(tried)}; median publish {calm[75] * 1e3:.1f} ms calm, {stormy[75] * 1e3:.1f} ms under the flood;")
        print(f"p99 {calm[148] * 1e3:.1f} and {stormy[148] * 1e3:.1f} ms; a known login {known * 1e3:.1f} ms")
        assert sum(tried) > 8
        assert stormy[75] < calm[75] * 4 + 0.05, "the flood takes the machine"
        assert known < 1
    finally:
        server.close()
