"""MQTT between gateways: what is published at one reaches who subscribed at another, by Redis."""

import signal
import subprocess
import time

import pytest

from harness import eventually
from harness.paho_client import Client, properties
from harness.services import KINDS

@pytest.fixture
def gateways(new_server, service):
    """Three platforms that share nothing but Redis: what passes between them passes as between gateways."""
    redis = service("redis")
    prefix = f'[engines.redis]\nprefix = "peers-{time.time_ns()}:"\n'
    made = []

    def start(count=2, address=redis, config=""):
        for number in range(len(made), len(made) + count):
            made.append(new_server(f"gateway-{number}", flags=["--snapshot", address], config=config + prefix).start())
        return made

    return start


@pytest.fixture
def own_redis(service, tmp_path):
    """A Redis that a test may stop and wipe, and its address."""
    service("redis")
    own = KINDS["redis"](tmp_path / "redis")
    yield own, own.up()
    own.down()


def client(server, name, **options):
    made = Client(server, client_id=name, **options)
    made.connect()
    return made


def two_that_know(gateways, address, filter):
    """Two gateways, a subscriber of the second whom the first knows of, and a publisher of the first."""
    first, second = gateways(address=address)
    subscriber = client(second, "subscriber")
    subscriber.subscribe(filter, qos=1)
    known(first, 1)
    return first, second, subscriber, client(first, "operator")


def silent(client, limit_s=0.5):
    """Whether nothing comes for a while: what passes between gateways takes a way of its own, on which nothing can be waited for."""
    time.sleep(limit_s)
    return client.messages.empty()


def metric(server, name):
    """A figure of the gateway."""
    lines = server.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split()[0] == f"catchment_gateway_{name}")


def known(server, subscriptions, peers=None):
    """Waits until a gateway knows so many filters of others, and so many others."""
    is_known = lambda: metric(server, "peer_subscriptions") == subscriptions and (  # noqa: E731
        peers is None or metric(server, "peers") == peers
    )
    eventually(is_known, 15, "the gateway knows what others want")


def test_a_command_reaches_a_device_at_another_gateway(gateways):
    first, second, third = gateways(3)
    device = client(second, "pump-1")
    device.subscribe("commands/pump-1/+", qos=1)
    known(first, 1)
    operator = client(first, "operator")
    operator.publish("commands/pump-1/open", b"\x00\xff42", qos=1)
    message = device.next()
    assert (message.topic, message.payload, message.qos, message.retain) == (
        "commands/pump-1/open",
        b"\x00\xff42",
        1,
        False,
    )
    # What is not wanted there does not go there, and nothing comes twice.
    operator.publish("commands/pump-2/open", b"no", qos=1)
    operator.publish("commands/pump-1/close", b"yes", qos=1)
    assert device.next().payload == b"yes"
    assert silent(device)
    assert metric(first, "peer_sent_messages_total") == 2 and metric(third, "peer_received_messages_total") == 0
    device.paho.unsubscribe("commands/pump-1/+")
    known(first, 0)
    operator.publish("commands/pump-1/open", b"late", qos=1)
    assert silent(device) and metric(first, "peer_sent_messages_total") == 2


def test_properties_pass(gateways):
    first, second = gateways()
    device = client(second, "d")
    device.subscribe("ask/#", qos=2)
    known(first, 1)
    operator = client(first, "o")
    asked = properties("PUBLISH", ResponseTopic="answers/o", CorrelationData=b"17", ContentType="text/plain")
    operator.publish("ask/it", b"?", qos=2, properties=asked)
    message = device.next()
    assert message.qos == 2 and message.properties.ResponseTopic == "answers/o"
    assert message.properties.CorrelationData == b"17" and message.properties.ContentType == "text/plain"


def test_a_shared_subscription_is_one_over_all_gateways(gateways):
    first, second, third = gateways(3)
    members = [client(server, f"m{number}") for number, server in enumerate([second, second, third])]
    for member in members:
        member.subscribe("$share/workers/jobs/#", qos=1)
    watcher = client(third, "watcher")
    watcher.subscribe("jobs/+", qos=1)
    known(first, 3)
    operator = client(first, "operator")
    for number in range(60):
        operator.publish(f"jobs/{number}", str(number), qos=1)
    eventually(lambda: sum(member.messages.qsize() for member in members) >= 60, 10, "all jobs are given out")
    eventually(lambda: watcher.messages.qsize() == 60, 10, "who subscribes by itself gets all")
    time.sleep(0.5)
    jobs = [[int(member.next().payload) for _ in range(member.messages.qsize())] for member in members]
    assert sorted(sum(jobs, [])) == list(range(60)), "each job once"
    assert all(len(of_one) >= 10 for of_one in jobs), "nobody is left out"


def test_retained_messages_are_everywhere(gateways):
    first, second = gateways()
    # Nobody subscribes yet.
    known(first, 0, peers=1)
    operator = client(first, "operator")
    operator.publish("state/door", b"open", qos=1, retain=True)
    eventually(lambda: metric(second, "peer_received_messages_total") == 1, 10, "it has come")
    late = client(second, "late")
    late.subscribe("state/#", qos=1)
    message = late.next()
    assert (message.payload, message.retain) == (b"open", True)
    operator.publish("state/door", b"", qos=1, retain=True)
    assert late.next().payload == b""
    later = client(second, "later")
    later.subscribe("state/#", qos=1)
    assert silent(later)


def retained_by(server, name, filter="state/#"):
    """The retained messages that a new subscriber gets: payloads by topic."""
    reader = client(server, name)
    reader.subscribe(filter, qos=1)
    time.sleep(0.5)
    messages = [reader.next() for _ in range(reader.messages.qsize())]
    assert all(message.retain for message in messages), messages
    reader.disconnect()
    return {message.topic: message.payload for message in messages}


def test_a_gateway_that_comes_later_has_what_was_retained(gateways, service):
    (first,) = gateways(1)
    operator = client(first, "operator")
    for number in range(1200):
        operator.publish(f"state/{number}", b"old", qos=0, retain=True)
    operator.publish("state/7", b"new", qos=1, retain=True)
    operator.publish("state/8", b"", qos=1, retain=True)
    lived = properties("PUBLISH", MessageExpiryInterval=600, ContentType="text/plain")
    operator.publish("state/kept", b"for ten minutes", qos=1, retain=True, properties=lived)
    short = properties("PUBLISH", MessageExpiryInterval=1)
    operator.publish("state/short", b"for a second", qos=1, retain=True, properties=short)
    time.sleep(1.2)
    _, second = gateways(1)
    wanted = {f"state/{number}": b"old" for number in range(1200)}
    wanted |= {"state/7": b"new", "state/kept": b"for ten minutes"}
    del wanted["state/8"]
    assert retained_by(second, "a") == wanted

    # One that was away learns what has changed, and brings nothing back that is gone.
    second.stop()
    operator.publish("state/9", b"", qos=1, retain=True)
    operator.publish("state/10", b"newer", qos=1, retain=True)
    time.sleep(0.3)
    second.start()
    del wanted["state/9"]
    wanted["state/10"] = b"newer"
    assert retained_by(second, "b") == wanted and retained_by(first, "c") == wanted


def test_what_was_changed_just_before_a_stop_counts(gateways):
    first, second = gateways()
    for round in range(5):
        operator = client(first, "operator")
        operator.publish("state/gone", f"{round}", qos=1, retain=True)
        operator.publish("state/kept", b"before", qos=1, retain=True)
        # Now both have it, and so has Redis.
        eventually(lambda: retained_by(second, f"r{time.time_ns()}").get("state/kept") == b"before", 10, "it has come")
        second.stop()
        operator.publish("state/gone", b"", qos=1, retain=True)
        operator.publish("state/kept", f"after {round}", qos=1, retain=True)
        first.stop(signal.SIGTERM)
        second.start()
        wanted = {"state/kept": f"after {round}".encode()}
        assert retained_by(second, "s") == wanted
        first.start()
        assert retained_by(first, "f") == wanted


@pytest.mark.parametrize("how", ["wiped", "restarted"])
def test_what_is_retained_outlives_redis(gateways, own_redis, how):
    redis, address = own_redis
    first, second, watcher, operator = two_that_know(gateways, address, "state/#")
    for topic in ("door", "light", "heat"):
        operator.publish(f"state/{topic}", b"1", qos=1, retain=True)
    assert sorted(watcher.next().topic for _ in range(3)) == ["state/door", "state/heat", "state/light"]
    time.sleep(0.3)
    wanted = {"state/door": b"2", "state/heat": b"1"}
    if how == "wiped":
        subprocess.run(["redis-cli", "-u", address, "FLUSHALL"], check=True, capture_output=True, timeout=10)
        operator.publish("state/door", b"2", qos=1, retain=True)
        operator.publish("state/light", b"", qos=1, retain=True)
    else:
        redis.down()
        # Nobody hears of it now.
        operator.publish("state/door", b"2", qos=1, retain=True)
        operator.publish("state/light", b"", qos=1, retain=True)
        time.sleep(0.5)
        redis.up()
    # Who subscribed all the time gets what it has missed, once.
    found = {}
    for _ in range(2):
        message = watcher.next(30)
        found[message.topic] = message.payload
    assert found == {"state/door": b"2", "state/light": b""}
    assert silent(watcher, 1)
    eventually(lambda: retained_by(second, f"s{time.time_ns()}") == wanted, 20, "the second has the new ones")
    time.sleep(11 if how == "wiped" else 1)
    third = gateways(1, address=address)[-1]
    assert retained_by(third, "t") == wanted == retained_by(first, "f")


def test_a_kept_session_and_a_will(gateways):
    first, second = gateways()
    device = client(second, "sleeper", clean=False, expiry_s=600)
    device.subscribe("commands/sleeper", qos=1)
    known(first, 1)
    device.disconnect()
    operator = client(first, "operator", will={"topic": "commands/sleeper", "payload": b"the operator is gone", "qos": 1})
    operator.publish("commands/sleeper", b"while you slept", qos=1)
    operator.drop()
    eventually(lambda: metric(second, "peer_received_messages_total") == 2, 10, "both have come")
    second.stop()
    second.start()
    again = client(second, "sleeper", clean=False, expiry_s=600)
    assert [again.next().payload for _ in range(2)] == [b"while you slept", b"the operator is gone"]


def test_many_filters_are_told_as_few(gateways):
    first, second = gateways()
    # Each client may have a thousand filters.
    device, further = client(second, "many"), client(second, "more")
    for number in range(1500):
        (further if number < 750 else device).subscribe(f"many/{number}/x/y", qos=0)
    known(first, 1)
    operator = client(first, "operator")
    operator.publish("many/1499/x/y", b"one", qos=1)
    assert device.next().payload == b"one"
    # Told by their levels above: more comes than is wanted, and nobody gets it.
    operator.publish("many/none/x/y", b"no", qos=1)
    eventually(lambda: metric(second, "peer_received_messages_total") == 2, 10, "it came, since filters were told as few")
    assert silent(device)
    operator.publish("other/1/x/y", b"no", qos=1)
    time.sleep(0.5)
    assert metric(first, "peer_sent_messages_total") == 2


def test_redis_away_and_back(gateways, own_redis):
    own, address = own_redis
    first, _, device, operator = two_that_know(gateways, address, "commands/#")
    own.down()
    # Acknowledged, since it is durable where it has to be; and clients of the same gateway get it.
    near = client(first, "near")
    near.subscribe("commands/#", qos=1)
    operator.publish("commands/1", b"lost", qos=1)
    assert near.next().payload == b"lost"
    eventually(lambda: metric(first, "peer_dropped_messages_total") >= 1, 20, "the loss is counted")
    own.up()

    def arrives():
        operator.publish("commands/2", b"back", qos=1)
        return not silent(device)

    eventually(arrives, 30, "messages pass again")
    assert device.next().payload == b"back"


def test_a_gateway_that_is_gone_is_forgotten(gateways):
    first, second = gateways()
    device = client(second, "device")
    device.subscribe("commands/#", qos=1)
    known(first, 1, peers=1)
    second.stop()
    operator = client(first, "operator")
    known(first, 0, peers=0)
    operator.publish("commands/1", b"nobody", qos=1)
    time.sleep(0.5)
    assert metric(first, "peer_sent_messages_total") == 0
    assert metric(first, "subscriptions") == 0
