"""JSON web tokens as credentials, by MQTT and HTTP: what is checked, and keys that change while the server runs."""

import pytest

from harness import Server, eventually, run
from harness import jwt
from harness import raw_mqtt as raw
from harness.certificates import Authority

HOSTS = dict.fromkeys(["http", "mqtt", "pg"], "0.0.0.0")
SECRET = b"a-secret-of-at-least-thirty-two-bytes"


def connack(server, password, version=5):
    """What CONNECT with this password is answered."""
    payload = raw.text("") + raw.text("anybody") + raw.text(password)
    with raw.Connection(server.mqtt_port) as connection:
        connection.send(raw.connect(version, flags=0xC2, payload=payload))
        return connection.read()[2][1]


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


def post(server, device, token):
    """The status of an event that is posted with this token."""
    path = f"/api/v1/devices/{device}/events/state"
    return server.post(path, json={"n": 1}, headers=bearer(token)).status_code


@pytest.fixture(scope="module")
def secret_server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jwt")
    (folder / "secret").write_bytes(SECRET + b"\n")
    config = f"""
[admission.jwt]
key_file = "{folder}/secret"
issuer = "https://login.example"
audience = "catchment"
leeway_s = 0
"""
    server = Server(folder, config=config, hosts=HOSTS).start()
    yield server
    server.close()


def good(device="d1", **more):
    return jwt.claims(device, **{"iss": "https://login.example", "aud": "catchment", **more})


def token(token_claims, algorithm="HS256"):
    return jwt.signed(algorithm, jwt.hs256(SECRET), token_claims)


def test_a_good_token_opens_the_door_to_its_device_only(secret_server):
    mine = token(good(aud=["other", "catchment"]))
    assert connack(secret_server, mine) == 0
    assert post(secret_server, "d1", mine) == 200
    assert post(secret_server, "d2", mine) == 403


@pytest.mark.parametrize(
    "wrong",
    [
        {"aud": "somebody-else"},
        {"aud": None},
        {"iss": "https://evil.example"},
        {"expires_in_s": -5},
        {"exp": None},
        {"nbf": 4102444800},
    ],
)
def test_claims_that_do_not_hold(secret_server, wrong):
    bad = token(good(**wrong))
    assert connack(secret_server, bad) == 0x86
    assert connack(secret_server, bad, version=4) == 4
    assert post(secret_server, "d1", bad) == 401


def test_alg_none_and_foreign_signatures(secret_server):
    unsigned = jwt.signed("none", lambda _: b"", good())
    foreign = jwt.signed("HS256", jwt.hs256(b"x" * 40), good())
    relabelled = jwt.signed("RS256", jwt.hs256(SECRET), good())
    for bad in (unsigned, foreign, relabelled, token(good())[:-4]):
        assert connack(secret_server, bad) == 0x86
        assert post(secret_server, "d1", bad) == 401


def test_a_reader_by_token_asks_rest_and_publishes_nothing(secret_server):
    reader = token(good("grafana", role="reader"))
    answer = secret_server.post("/api/v1/sql", json={"query": "SELECT 1"}, headers=bearer(reader))
    assert answer.status_code == 200, answer.text
    assert post(secret_server, "d1", reader) == 403
    assert secret_server.get("/api/v1/tokens", headers=bearer(reader)).status_code == 403
    assert connack(secret_server, token(good(role="root"))) == 0x87
    assert connack(secret_server, token(good(realm="no-such-realm"))) == 0x87


def test_the_connection_ends_with_its_token(secret_server):
    short = token(good(expires_in_s=2))
    payload = raw.text("") + raw.text("u") + raw.text(short)
    with raw.Connection(secret_server.mqtt_port) as connection:
        connection.send(raw.connect(5, flags=0xC2, payload=payload))
        assert connection.read()[2][1] == 0
        kind, _, body = connection.read()
        assert (kind, body[0]) == (raw.DISCONNECT, 0x87)
        assert connection.read_to_end() == []
    assert connack(secret_server, short) == 0x86


def test_keys_rotate_without_a_restart(new_server, tmp_path):
    first, second, stranger = (jwt.RsaKey(tmp_path, name) for name in ("first", "second", "stranger"))
    keys = jwt.KeySet([first])
    try:
        config = f'[admission.jwt]\njwks_url = "{keys.url}"\nrefresh_s = 3600\n'
        server = new_server(config=config, hosts=HOSTS).start()
        eventually(lambda: connack(server, first.token(jwt.claims("d1"))) == 0, what="the first key is known")
        assert connack(server, stranger.token(jwt.claims("d1"))) == 0x86
        # A token of a key that is not known yet makes the server look, though the next reading would be in an hour.
        keys.keys = [second]
        new = second.token(jwt.claims("d1"))
        eventually(lambda: connack(server, new) == 0, what="the second key is known")
        assert connack(server, first.token(jwt.claims("d1"))) == 0x86, "a key that was taken out"
        # However many of them come, the key set is read at most every two seconds.
        before = keys.reads
        for _ in range(50):
            connack(server, stranger.token(jwt.claims("d1")))
        assert keys.reads - before <= 4
        assert post(server, "d1", new) == 200
    finally:
        keys.close()
    # Without the key set, what is known stays good.
    assert connack(server, stranger.token(jwt.claims("d1"))) == 0x86
    assert connack(server, new) == 0


def test_a_key_set_over_https(new_server, tmp_path):
    """By a CA of one's own; keys rotate; a server that is down changes nothing."""
    authority = Authority(tmp_path)
    first, second, third = (jwt.RsaKey(tmp_path, name) for name in ("first", "second", "third"))
    certificate = authority.issue("login")
    keys = jwt.KeySet([first], certificate)
    try:
        config = f'[admission.jwt]\njwks_url = "{keys.url}"\nca = "{authority.pem}"\nrefresh_s = 3600\n'
        server = new_server(config=config, hosts=HOSTS).start()
        eventually(lambda: connack(server, first.token(jwt.claims("d1"))) == 0, what="the first key is known")
        keys.keys = [second]
        eventually(lambda: connack(server, second.token(jwt.claims("d1"))) == 0, what="the second key is known")
        assert connack(server, first.token(jwt.claims("d1"))) == 0x86, "a key that was taken out"
        assert post(server, "d1", second.token(jwt.claims("d1"))) == 200
    finally:
        keys.close()
    assert connack(server, third.token(jwt.claims("d1"))) == 0x86
    eventually(lambda: "keys stay as they are" in server.log(), what="the failure is told")
    assert connack(server, second.token(jwt.claims("d1"))) == 0
    # Up again, with a certificate that another CA signed: refused, until the CA file names that one.
    other = Authority(tmp_path, "other")
    keys = jwt.KeySet([third], other.issue("login"), keys.port)
    try:
        new = third.token(jwt.claims("d1"))
        told = "the server's certificate is refused; admission.jwt.ca names the file"
        eventually(lambda: connack(server, new) == 0x86 and told in server.log(), what="the refusal is told")
        assert connack(server, second.token(jwt.claims("d1"))) == 0
        authority.pem.write_bytes(other.pem.read_bytes())
        eventually(lambda: connack(server, new) == 0, what="the key set by the new CA")
        # Nor does a redirection lead to a place that nobody vouches for.
        plain = jwt.KeySet([first])
        keys.location = plain.url
        before = keys.reads
        eventually(lambda: connack(server, first.token(jwt.claims("d1"))) == 0x86 and keys.reads > before)
        assert plain.reads == 0
        plain.close()
    finally:
        keys.close()


@pytest.mark.parametrize("wrong", ["name", "expired"])
def test_a_bad_certificate_of_the_key_set(new_server, tmp_path, wrong):
    authority = Authority(tmp_path)
    flaw = {"san": "DNS:elsewhere.example"} if wrong == "name" else {"days": -1}
    key = jwt.RsaKey(tmp_path, "key")
    keys = jwt.KeySet([key], authority.issue("login", **flaw))
    try:
        config = f'[admission.jwt]\njwks_url = "{keys.url}"\nca = "{authority.pem}"\n'
        server = new_server(config=config, hosts=HOSTS).start()
        eventually(lambda: "the server's certificate is refused" in server.log(), what="the refusal is told")
        assert connack(server, key.token(jwt.claims("d1"))) == 0x86 and keys.reads == 0
    finally:
        keys.close()


def test_settings_of_the_key_set_that_cannot_work(tmp_path):
    file = tmp_path / "catchment.toml"
    for settings, told in [
        ('jwks_url = "ftp://x/y"', "https://"),
        ('jwks_url = "http://127.0.0.1:1/y"\nca = "x.pem"', "admission.jwt.ca"),
    ]:
        file.write_text(f"[admission.jwt]\n{settings}\n")
        done = run("check", "--config", file, "--data", tmp_path / "data")
        assert done.returncode == 1 and told in done.stderr + done.stdout, done


def test_a_public_key_is_no_secret(new_server, tmp_path):
    key = jwt.RsaKey(tmp_path, "pem")
    server = new_server(config=f'[admission.jwt]\nkey_file = "{key.public}"\n', hosts=HOSTS).start()
    assert connack(server, key.token(jwt.claims("d1"))) == 0
    confused = jwt.signed("HS256", jwt.hs256(key.public.read_bytes()), jwt.claims("d1"))
    assert connack(server, confused) == 0x86
