"""Two processes of each role on Kafka, ClickHouse, Redis and PostgreSQL: they are one platform, whatever is killed.

The seed of a kill test is printed; `CATCHMENT_SEED=… cargo xtask test -k cluster` repeats the same schedule.
"""

import json
import os
import random
import secrets
import time

import pytest
from websockets.sync.client import connect

from harness import eventually
from harness.cluster import Cluster
from harness.load import check_stored, publishers
from harness.paho_client import Client

KILLS = 6
# A member that was killed is missed by Kafka after its session is over.
TAKEN_OVER_S = 120
BUSY = "[log]\npartitions = 4\n"


@pytest.fixture
def cluster(new_server, service, tmp_path):
    made = Cluster(new_server, service, tmp_path, config=BUSY)
    yield made.start()
    made.close()


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
    # Each does what its role is, and says so where it is asked for more.
    refused = gateways[0].get("/api/v1/devices", headers=cluster.admin)
    assert refused.status_code == 404 and "no role api" in refused.text
    owned = [node.get("/api/v1/status").json()["partitions"] for node in cluster.of("distributor")]
    numbers = [partition["partition"] for of_one in owned for partition in of_one]
    assert sorted(numbers) == [0, 1, 2, 3], "every partition is worked on once"


def test_an_orderly_stop_hands_over_at_once(cluster):
    first, second = cluster.of("distributor")
    cluster.post_event("a", {"v": 1})
    first.stop()
    began = time.monotonic()

    def has_all():
        return len(second.get("/api/v1/status").json()["partitions"]) == 4

    eventually(has_all, 15, "the other has all partitions")
    assert time.monotonic() - began < 10
    cluster.post_event("a", {"v": 2})
    query = "SELECT metric_value FROM raw_metrics WHERE device_id = 'a' ORDER BY 1"
    assert cluster.wait_rows(query, 2) == [(1.0,), (2.0,)]


def test_kill_under_load(cluster, capsys):
    seed = int(os.environ.get("CATCHMENT_SEED", secrets.randbits(32)))
    with capsys.disabled():
        print(f"\nkill test of processes with roles: CATCHMENT_SEED={seed}", flush=True)
    moments = random.Random(seed)
    load = publishers(cluster, "cluster")
    for publisher in load:
        publisher.start()
    for _ in range(KILLS):
        time.sleep(moments.uniform(0.5, 2.5))
        name = moments.choice([name for name in cluster.nodes if not name.startswith("api")])
        node = cluster.nodes[name]
        node.kill()
        time.sleep(moments.uniform(0, 1))
        node.spawn()
        node.wait_ready()
    for publisher in load:
        publisher.finish()
    assert sum(len(publisher.acknowledged) for publisher in load) > 50 * KILLS, "the load was too light"
    for publisher in load:
        cluster.post_event(publisher.device, publisher.document(publisher.sent))
        publisher.acknowledged.add(publisher.sent)
        publisher.sent += 1
    for node in cluster.of("api"):
        for publisher in load:
            query = (
                f"SELECT 1 FROM raw_metrics WHERE device_id = '{publisher.device}' AND metric_name = 'seq'"
                f" AND metric_value = {publisher.sent - 1}"
            )
            eventually(lambda query=query, node=node: node.sql(query), TAKEN_OVER_S, f"the last of {publisher.device}")
            last = publisher.sent - 1
            eventually(
                lambda node=node, publisher=publisher, last=last: node.snapshot(publisher.device)["seq"] == last,
                TAKEN_OVER_S,
                f"the snapshot of {publisher.device}",
            )
        stored = sum(check_stored(node, publisher) for publisher in load)
        assert node.value("SELECT count(*) FROM raw_events") == stored
        assert node.value("SELECT count(*) FROM raw_metrics") == 3 * stored
        doubled = "SELECT log_partition, log_offset FROM raw_events GROUP BY 1, 2 HAVING count(*) > 1 LIMIT 5"
        assert node.sql(doubled) == []
        counted = "SELECT sum(count) FROM aggregated_metrics WHERE metric_name = 'seq'"
        assert node.value(counted) == stored
