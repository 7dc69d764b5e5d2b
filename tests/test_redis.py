"""The platform with Redis: latest values that others can read, live readings between processes, answers that are kept;
what Redis loses is written again, whatever is stopped, emptied or refused."""

import json
import re
import subprocess
import time
from contextlib import contextmanager
from urllib.parse import quote, urlencode

import pytest
from websockets.sync.client import connect

from harness import eventually, run
from harness.certificates import Authority
from harness.load import publishers
from harness.services import Redis, ServiceError
from harness.services.base import find

SECRET = "s3cret#of:redis"
TIME = 1_700_000_000


class OwnRedis(Redis):
    """A server of the test's own, with further flags."""

    def __init__(self, folder, flags=(), password=None, certificates=None):
        super().__init__(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.flags, self.password, self.certificates = list(flags), password, certificates

    def command(self, ports):
        flags = [*self.flags]
        if self.certificates:
            ca, certificate, key = self.certificates
            flags += ["--port", "0", "--tls-port", str(ports[0]), "--tls-auth-clients", "no"]
            flags += ["--tls-cert-file", certificate, "--tls-key-file", key, "--tls-ca-cert-file", ca]
        if self.password:
            flags += ["--requirepass", self.password]
        return [*super().command(ports), *flags]

    def cli(self, *arguments):
        """What redis-cli prints."""
        scheme = "rediss" if self.certificates else "redis"
        port = self._state()["ports"][0]
        command = [find("redis-cli"), "-u", f"{scheme}://127.0.0.1:{port}", *map(str, arguments)]
        if self.certificates:
            command[1:1] = ["--cacert", str(self.certificates[0])]
        environment = {"REDISCLI_AUTH": self.password} if self.password else {}
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True, env=environment)
        return done.stdout.strip()

    def probe(self, address):
        try:
            return self.cli("PING")
        except subprocess.CalledProcessError as error:
            raise ServiceError(f"{address}: {error.stderr}") from error

    def hash(self, key):
        """All fields of a hash."""
        lines = self.cli("HGETALL", key).splitlines()
        return dict(zip(lines[::2], lines[1::2], strict=True))


@pytest.fixture
def new_redis(tmp_path):
    """Makes Redis servers of the test's own; they end with it."""
    own = []

    def make(name="redis", **options):
        own.append(OwnRedis(tmp_path / name, **options))
        own[-1].url = own[-1].up()
        return own[-1]

    yield make
    for made in own:
        made.kill()


def on_redis(new_server, redis, name="platform", config="", url=None, **options):
    return new_server(name, flags=["--snapshot", url or redis.url], config=config, **options)


def written(server, devices):
    """Waits until the snapshot has so many devices and nothing is left to write."""

    def done():
        status = server.get("/api/v1/status", headers=server.admin).json()
        pending = re.search(r"^catchment_snapshot_pending_devices (\d+)", server.get("/metrics").text, re.M)
        return status["devices"] == devices and pending and pending.group(1) == "0"

    eventually(done, what=f"{devices} devices in Redis")


def figure(server, name):
    found = re.search(rf"^{re.escape(name)} (\S+)", server.get("/metrics").text, re.M)
    return float(found.group(1))


def test_answers_are_those_of_the_embedded_engine(new_server, new_redis):
    redis = new_redis()
    embedded, server = new_server("embedded").start(), on_redis(new_server, redis).start()
    bodies = [
        ("pump-1", {"ts": TIME, "rpm": 0.1 + 0.2, "on": True, "text": 'é "quoted" \\ {"value":1}', "@events": 7}),
        ("pump-1", {"ts": TIME + 5, "rpm": -1e-300, "nested": {"a": 5e-324}}),
        ("pump-1", {"ts": TIME + 1, "rpm": 99, "late": 1}),
        ("pump:2", {"ts": TIME, "rpm": 1}),
        ("a[1]*", {"ts": TIME, "on": False}),
        ("silent", {"nothing": {}}),
    ]
    for one in (embedded, server):
        for device, body in bodies:
            one.post_event(quote(device, safe=""), body)
        one.wait_rows("SELECT 1 FROM raw_events", len(bodies))
    written(server, 4)

    def without_arrival(document):
        text = json.dumps(document, ensure_ascii=False)
        return re.sub(r'"(received_at|first_seen|last_seen|created_at)": "[^"]*"', r'"\1": "…"', text)

    paths = ["/api/v1/devices", "/api/v1/devices?limit=2", "/api/v1/devices/pump-1", "/api/v1/devices/none/snapshot"]
    paths += [f"/api/v1/devices/{quote(device, safe='')}/snapshot" for device in ("pump-1", "pump:2", "a[1]*", "silent")]
    for path in paths:
        answers = [one.get(path) for one in (embedded, server)]
        assert answers[0].status_code == answers[1].status_code, path
        assert without_arrival(answers[0].json()) == without_arrival(answers[1].json()), path
    for query in (
        "SELECT device_id, metric_name, timestamp, metric_value, text_value FROM snapshot ORDER BY 1, 2",
        "SELECT metric_name, metric_value FROM snapshot WHERE device_id = 'pump-1' ORDER BY 1",
        "SELECT device_id, registered, events FROM devices ORDER BY 1",
        "SELECT count(*) FROM snapshot WHERE device_id = 'none'",
    ):
        assert embedded.sql(query) == server.sql(query), query
    for name in ("devices", "metrics"):
        figures = [one.get("/api/v1/status", headers=one.admin).json()[name] for one in (embedded, server)]
        assert figures[0] == figures[1]
    engines = server.get("/api/v1/status", headers=server.admin).json()["engines"]
    assert {"part": "snapshot", "url": f"{redis.url}/0"} in engines


def test_redis_cli_shows_what_is_documented(new_server, new_redis):
    redis = new_redis()
    config = '[engines.redis]\nprefix = "plant-7:"\n'
    server = on_redis(new_server, redis, config=config).start()
    server.post_event("truck-7", {"ts": TIME, "speed": 81.5, "@odd": "x"})
    server.post_event("truck-7", {"ts": TIME + 1, "speed": 80})
    written(server, 1)
    fields = eventually(
        lambda: (found := redis.hash("plant-7:snapshot:main:truck-7")).get("@events") == "2" and found, what="the hash"
    )
    assert set(fields) == {"speed", "@@odd", "@first_seen", "@last_seen", "@events", "@offset", "@epoch"}
    speed = json.loads(fields["speed"])
    assert list(speed) == ["timestamp", "received_at", "offset", "value"]
    assert (speed["timestamp"], speed["value"]) == ((TIME + 1) * 1_000_000, 80.0)
    assert speed["received_at"] == int(fields["@last_seen"]) > int(fields["@first_seen"]) > TIME * 1_000_000
    assert json.loads(fields["@@odd"])["value"] == "x"
    assert redis.cli("ZRANGE", "plant-7:devices:main", 0, -1) == "truck-7"
    assert redis.cli("GET", "plant-7:metrics:main") == "2"
    assert redis.cli("GET", "plant-7:log") == "embedded"
    # Nothing of ours is outside of the prefix, and what one process says of itself goes with it.
    server.stop()
    assert all(key.startswith("plant-7:") for key in redis.cli("KEYS", "*").splitlines())
    assert not redis.cli("KEYS", "plant-7:writer:*")


def test_a_restart_goes_on_where_it_was(new_server, new_redis):
    redis = new_redis()
    server = on_redis(new_server, redis).start()
    for n in range(5):
        server.post_event("d", {"ts": TIME + n, "n": n})
    before = eventually(
        lambda: (found := server.get("/api/v1/devices/d").json()).get("events") == 5 and found, what="five events"
    )
    snapshot = server.get("/api/v1/devices/d/snapshot").json()
    epoch = int(redis.hash("catchment:snapshot:main:d")["@epoch"])
    server.restart()
    assert server.get("/api/v1/devices/d/snapshot").json() == snapshot
    server.post_event("d", {"ts": TIME + 9, "n": 9})
    eventually(lambda: server.snapshot("d") == {"n": 9}, what="the new value")
    seen = server.get("/api/v1/devices/d").json()
    assert (seen["events"], seen["first_seen"]) == (6, before["first_seen"])
    assert int(redis.hash("catchment:snapshot:main:d")["@epoch"]) > epoch


def test_an_older_owner_is_refused_and_an_older_value_does_not_come_back(new_server, new_redis):
    redis = new_redis()
    server = on_redis(new_server, redis).start()
    server.post_event("d", {"ts": TIME, "n": 1, "m": 1})
    eventually(lambda: server.get("/api/v1/devices/d/snapshot").status_code == 200, what="the device")
    key = "catchment:snapshot:main:d"
    # Another process has taken over and knows a newer value of one metric.
    newer = json.dumps({"timestamp": (TIME + 50) * 1_000_000, "received_at": 1, "offset": 9, "value": 50}, separators=(",", ":"))
    own_epoch = redis.hash(key)["@epoch"]
    redis.cli("HSET", key, "n", newer)
    server.post_event("d", {"ts": TIME + 10, "n": 10, "m": 10})
    eventually(lambda: server.snapshot("d").get("m") == 10, what="the newer value")
    assert server.snapshot("d")["n"] == 50
    redis.cli("HSET", key, "@epoch", int(own_epoch) + 1_000_000_000)
    server.post_event("d", {"ts": TIME + 60, "n": 60, "m": 60})
    eventually(lambda: figure(server, "catchment_snapshot_refused_devices_total") >= 1, what="a refusal")
    assert server.snapshot("d") == {"n": 50, "m": 10}
    assert "another process's to write" in server.log()


def check_against_sql(server):
    """Each latest value is the newest row of history."""
    newest = """SELECT device_id, metric_name, metric_value FROM (
        SELECT *, row_number() OVER (PARTITION BY device_id, metric_name ORDER BY timestamp DESC, log_offset DESC) AS place
        FROM raw_metrics) r WHERE place = 1 ORDER BY 1, 2"""

    def as_in_history():
        # What the log has is still coming in.
        wanted = server.sql(newest)
        assert server.sql("SELECT device_id, metric_name, metric_value FROM snapshot ORDER BY 1, 2") == wanted
        events = server.sql("SELECT device_id, count(*) FROM raw_events GROUP BY 1 ORDER BY 1")
        assert server.sql("SELECT device_id, events FROM devices ORDER BY 1") == events
        return len(wanted) > 0

    eventually(as_in_history, limit_s=30, what="latest values as in history")


def refused(server, path):
    """Waits until a path is answered by 503, and gives the answer."""
    answers = []

    def is_refused():
        answers.append(server.get(path))
        return answers[-1].status_code == 503

    eventually(is_refused, what=f"503 for {path}")
    return answers[-1]


def test_redis_is_stopped_and_emptied_under_load(new_server, new_redis):
    redis = new_redis()
    server = on_redis(new_server, redis).start()
    load = publishers(server, "redis-faults")
    for publisher in load:
        publisher.start()
    time.sleep(1)
    # It is away: events are taken all the same, reading latest values says why it cannot.
    redis.kill()
    answer = refused(server, "/api/v1/devices/x/snapshot")
    assert answer.json()["error"] == "snapshot_unavailable" and "Retry-After" in answer.headers
    assert "latest values are not written to Redis since" in refused(server, "/readyz").text
    assert 'catchment_snapshot_up{engine="redis"} 0' in server.get("/metrics").text
    count = server.value("SELECT count(*) FROM raw_events")
    eventually(lambda: server.value("SELECT count(*) FROM raw_events") > count, what="events while Redis is away")
    # It comes back with nothing, since it keeps nothing over a restart.
    redis.up()
    server.wait_ready()
    time.sleep(1)
    # It is emptied while it runs.
    redis.cli("FLUSHALL")
    eventually(lambda: figure(server, "catchment_snapshot_rebuilds_total") >= 2, what="everything written anew")
    time.sleep(1)
    for publisher in load:
        publisher.finish()
    assert sum(len(publisher.acknowledged) for publisher in load) > 200, "the load was too light"
    check_against_sql(server)
    # And while nobody sends.
    redis.cli("FLUSHALL")
    check_against_sql(server)
    server.restart()
    check_against_sql(server)


@contextmanager
def live(server, path="live", **filters):
    query = urlencode(filters, doseq=True)
    with connect(f"ws://127.0.0.1:{server.http_port}/api/v1/{path}?{query}", open_timeout=10) as pushed_to:
        assert json.loads(pushed_to.recv(timeout=10)) == {"subscribed": ""}
        yield pushed_to


def values_until(pushed_to, last, limit_s=15):
    """Values of pushed readings up to the last, and how often something was told to be missing."""
    values, lagged = [], 0
    deadline = time.monotonic() + limit_s
    while last not in values:
        message = json.loads(pushed_to.recv(timeout=max(deadline - time.monotonic(), 0.01)))
        if isinstance(message, dict):
            lagged += message["lagged"]
        else:
            values += [reading["value"] for reading in message]
    return values, lagged


def followed(redis, count):
    """Waits until so many processes have said what they want, and a moment for it to be heard."""
    eventually(lambda: redis.cli("SCARD", "catchment:roster:live") == str(count), what="what is wanted is told")
    time.sleep(0.3)


def test_readings_reach_subscribers_of_another_process(new_server, new_redis):
    redis = new_redis()
    here, there = (on_redis(new_server, redis, name).start() for name in ("here", "there"))
    # Nobody follows: nothing is published.
    here.post_event("a", {"n": -1})
    with live(there, device="a") as exact, live(there, device=["a*", "b*"], type="state") as pattern, live(here, device="*") as own:
        followed(redis, 2)
        for n in range(100):
            here.post_event("a", {"n": n, "ts": TIME + n})
        here.post_event("c", {"n": 1000})
        here.post_event("b:1", {"n": 1001})
        assert values_until(exact, 99) == (list(range(100)), 0)
        assert values_until(pattern, 1001) == ([*range(100), 1001], 0)
        # In the process of the worker, each comes once.
        assert values_until(own, 1001) == ([*range(100), 1000, 1001], 0)
        there.post_event("e", {"n": 5})
        assert values_until(own, 5) == ([5], 0)
        sent = figure(here, "catchment_live_relay_sent_total")
        here.post_event("not wanted there", {"n": 1}, event_type="other")
        values_until(own, 1)
        assert figure(here, "catchment_live_relay_sent_total") == sent
    with live(there, path="tail", device="a") as tail:
        followed(redis, 1)
        here.post_event("a", b'{"n": 7, "raw": "\\u00e9"}')
        (event,) = json.loads(tail.recv(timeout=10))
        assert (event["device_id"], event["payload"]) == ("a", '{"n": 7, "raw": "\\u00e9"}')
    # When all have gone, nobody is on the roster.
    followed(redis, 0)
    assert redis.cli("PUBSUB", "NUMPAT") == "0"


def test_subscribers_are_told_of_a_gap_and_go_on(new_server, new_redis):
    redis = new_redis()
    here, there = (on_redis(new_server, redis, name).start() for name in ("here", "there"))
    with live(there, device="a") as pushed_to:
        followed(redis, 1)
        here.post_event("a", {"n": 1})
        assert values_until(pushed_to, 1) == ([1], 0)
        redis.kill()
        here.post_event("a", {"n": 2})
        redis.up()
        followed(redis, 1)
        here.post_event("a", {"n": 3})
        values, lagged = values_until(pushed_to, 3)
        assert values[-1] == 3 and lagged >= 1


def test_answers_are_kept_until_the_next_commit(new_server, new_redis):
    redis = new_redis()
    server = on_redis(new_server, redis).start()
    server.post_event("d", {"ts": TIME, "n": 1})
    server.wait_rows("SELECT 1 FROM raw_metrics", 1)

    def quiet():
        # The commit of the row has been told.
        version = redis.cli("GET", "catchment:version:main")
        time.sleep(0.2)
        return version != "" and version == redis.cli("GET", "catchment:version:main")

    eventually(quiet, what="the commit is told")
    query = "SELECT count(*) AS n FROM raw_metrics"
    status = lambda answer: answer.headers["Cache-Status"]  # noqa: E731
    first, second = server.sql_answer(query), server.sql_answer(query)
    assert (status(first), status(second)) == ("catchment; fwd=miss", "catchment; hit")
    assert first.content == second.content and second.json()["rows"] == [{"n": 1}]
    assert second.headers["Content-Type"] == "application/json"
    # Another format, another limit: another answer.
    assert status(server.sql_answer(query, accept="text/csv")) == "catchment; fwd=miss"
    assert status(server.sql_answer(query, accept="text/csv")) == "catchment; hit"
    assert status(server.sql_answer(query, limit_rows=5)) == "catchment; fwd=miss"
    for path in ("/api/v1/devices/d/history", "/api/v1/devices/d/aggregates?bucket=1h"):
        first, second = server.get(path), server.get(path)
        assert (status(first), status(second)) == ("catchment; fwd=miss", "catchment; hit"), path
        assert first.json() == second.json()
        assert status(server.get(path + ("&" if "?" in path else "?") + "from=-1h")) == "catchment; fwd=bypass"
    for volatile in ("SELECT now()", "SELECT random() FROM raw_metrics", "SELECT * FROM snapshot", "SELECT * FROM devices"):
        assert status(server.sql_answer(volatile)) == "catchment; fwd=bypass"
    # A row more: no old answer.
    for n in range(2, 30):
        server.post_event("d", {"ts": TIME + n, "n": n})
        server.wait_rows("SELECT 1 FROM raw_metrics WHERE random() < 2", n)
        eventually(lambda n=n: server.value(query) == n, limit_s=1, what="the new row")
    assert redis.cli("TTL", redis.cli("KEYS", "catchment:answer:*").splitlines()[0]) not in ("-1", "-2")
    # Redis away: answered all the same.
    redis.kill()
    answer = server.sql_answer(query)
    assert (answer.json()["rows"], status(answer)) == ([{"n": 29}], "catchment; fwd=bypass")


def test_the_cache_can_be_turned_off(new_server, new_redis):
    redis = new_redis()
    server = on_redis(new_server, redis, config="[engines.redis]\ncache = false\n").start()
    assert "Cache-Status" not in server.sql_answer("SELECT 1").headers
    assert not redis.cli("KEYS", "catchment:answer:*")


def test_a_wrong_password_is_told_and_never_shown(new_server, new_redis):
    redis = new_redis(password=SECRET)
    right = redis.url.replace("redis://", f"redis://:{quote(SECRET, safe='')}@")
    wrong = redis.url.replace("redis://", "redis://:not-the-s3cret@")
    server = on_redis(new_server, redis, url=right).start()
    server.post_event("d", {"n": 1})
    eventually(lambda: server.get("/api/v1/devices/d/snapshot").status_code == 200, what="the device")
    status = server.get("/api/v1/status", headers=server.admin).text
    server.stop()
    shown = server.log() + status
    for url in (wrong, redis.url):
        done = run("serve", "--data", server.data, *server.listeners(), "--snapshot", url)
        assert done.returncode != 0
        assert "Redis does not let us in" in done.stderr + done.stdout
        shown += done.stderr + done.stdout
        checked = run("check", "--data", server.data, "--snapshot", url)
        assert checked.returncode != 0 and "NOT OK" in checked.stdout
        shown += checked.stderr + checked.stdout
    checked = run("check", "--data", server.data, "--snapshot", right)
    shown += checked.stderr + checked.stdout
    assert re.search(r"Redis \d+\.\d+\.\d+, 1 devices, answers in [\d.]+ ms", checked.stdout), checked.stdout
    for secret in (SECRET, quote(SECRET, safe=""), "not-the-s3cret"):
        assert secret not in shown


def test_check_tells_what_is_missing(new_redis, tmp_path):
    def checked(redis, url=None):
        done = run("check", "--data", tmp_path / "data", "--snapshot", url or redis.url)
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("engine snapshot")]
        return line

    assert checked(new_redis("plain")).rstrip().endswith("ok")
    evicting = new_redis("evicting", flags=["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"])
    assert "loses latest values in silence (maxmemory-policy allkeys-lru)" in checked(evicting)
    limited = new_redis("limited")
    limited.cli("ACL", "SETUSER", "reader", "on", ">pw", "~*", "&*", "+@read", "+ping", "+info", "+client", "+auth", "+hello")
    line = checked(limited, limited.url.replace("redis://", "redis://reader:pw@"))
    assert "NOT OK" in line and "SET is refused" in line
    assert "NOT OK" in checked(None, "redis://127.0.0.1:1")


def test_tls(new_server, new_redis, tmp_path):
    authority = Authority(tmp_path)
    certificate, key = authority.issue("redis")
    redis = new_redis(certificates=(authority.pem, certificate, key), password=SECRET)
    url = redis.url.replace("redis://", f"rediss://:{quote(SECRET, safe='')}@")
    trusting = f'[engines.redis]\nca_file = "{authority.pem}"\n'
    server = on_redis(new_server, redis, url=url, config=trusting).start()
    server.post_event("d", {"n": 1})
    eventually(lambda: server.get("/api/v1/devices/d/snapshot").status_code == 200, what="the device")
    assert json.loads(redis.hash("catchment:snapshot:main:d")["n"])["value"] == 1.0
    # Its certificate leads to no CA that the system trusts.
    done = run("check", "--data", tmp_path / "data", "--snapshot", url)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("engine snapshot")]
    assert "NOT OK" in line and SECRET not in done.stdout
