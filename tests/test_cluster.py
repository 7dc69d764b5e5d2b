"""Two processes of each role on Kafka, ClickHouse, Redis, PostgreSQL and S3: they are one platform, whatever is killed or stopped.

The seed is printed of what ends when; `CATCHMENT_SEED=… cargo xtask test -k cluster` repeats the same schedule. Engines are stopped
for 10 seconds each, or for `CATCHMENT_STOPPED_S`.
"""

import json
import os
import random
import secrets
import time

import pytest
from websockets.sync.client import connect

from harness import eventually
from harness.buckets import HOT, archived
from harness.cluster import Cluster
from harness.load import check_once, publishers, say_last
from harness.paho_client import Client
from harness.services import KINDS

ENDS = 8
STOPPED_S = int(os.environ.get("CATCHMENT_STOPPED_S", "10"))
# A member that was killed is missed by Kafka after its session is over.
TAKEN_OVER_S = 120
BUSY = "[log]\npartitions = 4\n[history]\nmaintenance_interval_ms = 1000\nvacuum_grace_ms = 1000\n"
ENGINES = ("kafka", "clickhouse", "redis", "postgres", "s3")
# What each process says when an engine is away. A gateway knows nothing of what is behind the log.
NAMED = {
    "kafka": {"gateway": "event log", "distributor": "event log"},
    "clickhouse": {"distributor": "ClickHouse", "api": "ClickHouse"},
    "redis": {"distributor": "Redis", "api": "Redis"},
    "postgres": {"gateway": "registry", "distributor": "registry", "api": "registry"},
    # Hot rows need no archive; what is due moves later.
    "s3": {},
}


@pytest.fixture
def cluster(new_server, service, tmp_path):
    made = Cluster(new_server, service, tmp_path, config=BUSY)
    yield made.start()
    made.close()


@pytest.fixture
def engines(service, tmp_path):
    """Services of the test's own, to be stopped: name → service."""
    for name in ENGINES:
        # Says what is missing, and installs it, as for everybody.
        service(name)
    own = {name: KINDS[name](tmp_path / name) for name in ENGINES}
    yield own
    for one in own.values():
        one.down()


def test_processes_are_one_platform(cluster):
    gateways, nodes = cluster.of("gateway"), cluster.of("api")
    address = f"ws://127.0.0.1:{nodes[1].http_port}/api/v1/live?device=truck-7&metric=speed"
    with connect(address) as socket:
        assert "subscribed" in socket.recv(timeout=20)
        # Until the other processes know that somebody listens here.
        time.sleep(2)
        client = Client(gateways[0], client_id="truck-7")
        client.connect()
        client.publish("devices/truck-7/state", json.dumps({"speed": 71.5, "gear": "D"}))
        message = socket.recv(timeout=20)
        assert '"speed"' in message and "71.5" in message, message
    gateways[1].post_event("truck-8", {"speed": 12})
    for node in nodes:
        eventually(lambda node=node: node.snapshot("truck-7") == {"speed": 71.5, "gear": "D"}, 20, "the snapshot")
        query = "SELECT device_id, metric_value FROM raw_metrics WHERE metric_name = 'speed' ORDER BY 1"
        assert node.wait_rows(query, 2) == [("truck-7", 71.5), ("truck-8", 12.0)]
        query = "SELECT count, avg_value FROM aggregated_metrics WHERE device_id = 'truck-7' AND metric_name = 'speed'"
        assert node.wait_rows(query, 1) == [(1, 71.5)]
        devices = node.get("/api/v1/devices", headers=cluster.admin).json()
        assert "truck-8" in json.dumps(devices)
    # A command reaches its device, whichever gateway each of them is connected to.
    device = Client(gateways[1], client_id="truck-9")
    device.connect()
    device.subscribe("commands/truck-9/#")
    known = 'catchment_gateway_peer_subscriptions 1'
    eventually(lambda: known in gateways[0].get("/metrics").text, 15, "the other gateway knows")
    client.publish("commands/truck-9/lock", b"now")
    message = device.next()
    assert (message.topic, message.payload) == ("commands/truck-9/lock", b"now")
    # Each does what its role is, and says so where it is asked for more.
    refused = gateways[0].get("/api/v1/devices", headers=cluster.admin)
    assert refused.status_code == 404 and "no role api" in refused.text
    assert "REST" not in gateways[0].log() and "MQTT" not in nodes[0].log()
    owned = [node.get("/api/v1/status").json()["partitions"] for node in cluster.of("distributor")]
    numbers = [partition["partition"] for of_one in owned for partition in of_one]
    assert sorted(numbers) == [0, 1, 2, 3], "every partition is worked on once"
    assert all(owned), "both distributors work"


def test_an_orderly_stop_hands_over_at_once(cluster):
    first, second = cluster.of("distributor")

    def owned(node):
        return len(node.get("/api/v1/status").json()["partitions"])

    eventually(lambda: owned(first) == owned(second) == 2, 20, "both have a half")
    cluster.post_event("a", {"v": 1})
    assert first.stop() < 5
    # Long before Kafka would have missed the first.
    eventually(lambda: owned(second) == 4, 5, "the other has all partitions")
    cluster.post_event("a", {"v": 2})
    query = "SELECT metric_value FROM raw_metrics WHERE device_id = 'a' ORDER BY 1"
    assert cluster.wait_rows(query, 2) == [(1.0,), (2.0,)]
    # One that comes gets its share.
    first.start()
    eventually(lambda: owned(first) == owned(second) == 2, 20, "both have a half again")


def test_members_end_and_come_back_under_load(cluster, capsys):
    """Some are killed, some stop in order: partitions move, and move back, either way."""
    seed = int(os.environ.get("CATCHMENT_SEED", secrets.randbits(32)))
    with capsys.disabled():
        print(f"\ntest of processes with roles that end: CATCHMENT_SEED={seed}", flush=True)
    moments = random.Random(seed)
    load = started_load(cluster)
    for _ in range(ENDS):
        time.sleep(moments.uniform(0.5, 2.5))
        node = cluster.nodes[moments.choice(list(cluster.nodes))]
        moments.choice([node.kill, node.stop])()
        time.sleep(moments.uniform(0, 1))
        node.spawn()
        node.wait_ready()
    check_everywhere(cluster, load)


def test_each_engine_stopped_under_load(new_server, engines, tmp_path):
    """Devices wait or go on, and lose nothing; who cannot work says why, by the engine's name."""
    cluster = Cluster(new_server, lambda name: engines[name].up(), tmp_path, config=BUSY)
    try:
        cluster.start()
        load = started_load(cluster)
        for name, told in NAMED.items():
            acknowledged = total(load)
            eventually(lambda acknowledged=acknowledged: total(load) > acknowledged + 100, 60, "events flow")
            away(engines[name])
            ends = time.monotonic() + STOPPED_S
            for role, word in told.items():
                for node in cluster.of(role):
                    says = f"{role} says {word} while {name} is away"
                    eventually(lambda node=node, word=word: word in node.not_ready(), max(STOPPED_S, 15), says)
            time.sleep(max(0, ends - time.monotonic()))
            back(engines[name])
            for node in cluster.nodes.values():
                eventually(lambda node=node: node.not_ready() == "", 120, f"ready after {name} is back")
        check_everywhere(cluster, load)
    finally:
        cluster.close()


def test_a_gateway_starts_while_what_is_behind_the_log_is_away(new_server, engines, tmp_path):
    cluster = Cluster(new_server, lambda name: engines[name].up(), tmp_path, config=BUSY, each=1)
    try:
        cluster.start()
        for node in cluster.nodes.values():
            node.stop()
        engines["clickhouse"].down()
        engines["redis"].down()
        (gateway,) = cluster.of("gateway")
        gateway.start()
        gateway.post_event("a", {"v": 1})
        engines["clickhouse"].up()
        engines["redis"].up()
        for role in ("distributor", "api"):
            cluster.of(role)[0].start()
        cluster.wait_rows("SELECT metric_value FROM raw_metrics WHERE device_id = 'a'", 1)
    finally:
        cluster.close()


def away(engine):
    """Ends it at once; the S3 of tests, which has everything in memory, hangs instead."""
    if engine.name == "s3":
        engine.pause()
    else:
        engine.kill()


def back(engine):
    """Ends its absence."""
    if engine.name == "s3":
        engine.resume()
    engine.up()


def started_load(cluster):
    load = publishers(cluster, "cluster", cold_every=5)
    for publisher in load:
        publisher.start()
    return load


def total(load):
    return sum(len(publisher.acknowledged) for publisher in load)


def check_everywhere(cluster, load):
    """Ends the load; then every API node gives the same answers, with everything once."""
    for publisher in load:
        publisher.finish()
    assert total(load) > 300, "the load was too light to prove anything"
    nodes = cluster.of("api")
    say_last(cluster, load, nodes[0], TAKEN_OVER_S)
    for node in nodes:
        for publisher in load:
            last = publisher.sent - 1
            latest = lambda node=node, publisher=publisher: node.snapshot(publisher.device)["seq"]  # noqa: E731
            eventually(lambda latest=latest, last=last: latest() == last, 60, f"the snapshot of {publisher.device}")
        check_once(node, load)
        check_moved(cluster, node)
        assert node.value("SELECT count(*) FROM raw_metrics") == 3 * node.value("SELECT count(*) FROM raw_events")


def check_moved(cluster, node):
    """What is past its hot days leaves ClickHouse for the archive, and is seen as it was."""
    past = f"SELECT count(*), count(DISTINCT log_offset * 100 + log_partition) FROM raw_metrics WHERE timestamp < '{HOT}'"
    ((rows, _),) = expected = node.sql(past)
    assert rows > 30

    def moved():
        if (seen := node.sql(past)) != expected:
            raise RuntimeError(f"{seen}, and there were {expected}")
        table = archived((cluster.bucket, "cold"))
        return table is not None and table.count() == rows and cluster.in_clickhouse(f"timestamp < '{HOT}'") == 0

    eventually(moved, 120, "cold rows are in the archive alone")
