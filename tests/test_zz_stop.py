import time, random, os
import pytest
from harness import eventually
from harness.load import check_all, publishers
from harness.services import Kafka
from test_kafka import BUSY, on_kafka
import requests
@pytest.fixture(scope="module")
def kafka(tmp_path_factory):
    k = Kafka(tmp_path_factory.mktemp("k"))
    yield k
    k.down(wipe=True)

@pytest.mark.parametrize("n", range(int(os.environ.get("ROUNDS","15"))))
def test_stop(new_server, kafka, n):
    topic = (kafka.up(), f"stopped{n}")
    server = on_kafka(new_server, topic, config=BUSY + "[log]\nqueue_bytes_max = 65536\n")
    server.start()
    load = publishers(server, "kafka-stop", http=0)
    for p in load: p.start()
    r = random.Random()
    eventually(lambda: sum(len(p.acknowledged) for p in load) > r.choice([0, 64, 200, 500]), 30, "flow")
    time.sleep(r.random()*0.3)
    kafka.down()
    ack = sum(len(p.acknowledged) for p in load)
    time.sleep(r.choice([3, 10, 20]))
    kafka.up()
    t = time.monotonic()
    def on():
        assert [p.wrong for p in load if p.wrong] == []
        return sum(len(p.acknowledged) for p in load) > ack + 200
    try:
        eventually(on, 60, "goes on")
    finally:
        print("ROUND", n, ack, time.monotonic() - t, server.get("/readyz").text if time.monotonic()-t > 59 else "")
        with open("/tmp/rounds.txt", "a") as f: print("ROUND", n, ack, time.monotonic() - t, file=f)
    for p in load: p.finish()
    check_all(server, load)
    server.stop()
