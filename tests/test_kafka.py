"""The platform on a real Kafka: what is acknowledged is in the log and in SQL once, whatever is killed or stopped."""

import json
import re
import subprocess
import time
import uuid

import pytest
import requests

from harness import eventually, free_ports, run
from harness.load import check_all, publishers
from harness.services import Kafka

BUSY = """
[history]
flush_interval_ms = 1000
maintenance_interval_ms = 1000
compact_files_min = 2
vacuum_grace_ms = 1000
"""
KILLS = 5
STOPPED_S = 30


@pytest.fixture
def topic(service):
    """(address, name of a topic that nobody else uses)."""
    address, name = service("kafka"), f"e2e-{uuid.uuid4()}"
    yield address, name
    delete_topic(address, name)


def delete_topic(address, name):
    """By a client that is not ours."""
    from kafka import KafkaAdminClient
    from kafka.errors import KafkaError

    admin = KafkaAdminClient(bootstrap_servers=address)
    try:
        admin.delete_topics([name])
    except KafkaError:
        # A test that failed early has made none.
        pass
    finally:
        admin.close()


def on_kafka(new_server, topic, name="platform", **options):
    """A server whose log is that topic."""
    address, topic_name = topic
    flags = ["--log", f"kafka://{address}/{topic_name}"]
    return new_server(name, flags=flags, **options)


def consumed(address, topic):
    """(key, headers, payload) of all records, as kcat reads them."""
    command = ["kcat", "-b", address, "-t", topic, "-C", "-e", "-q", "-J"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    records = []
    for line in done.stdout.splitlines():
        record = json.loads(line)
        names, values = record["headers"][::2], record["headers"][1::2]
        records.append((record["key"], dict(zip(names, values, strict=True)), json.loads(record["payload"])))
    return records


def test_what_history_has_is_deleted(new_server, topic):
    """By Kafka's DeleteRecords: at a start, and each minute."""
    server = on_kafka(new_server, topic, config=BUSY + "\n[log]\nretention_hours = 0\n").start()
    for number in range(10):
        server.post_event("pump-1", {"number": number})
    assert len(consumed(*topic)) == 10
    server.wait_rows("SELECT 1 FROM raw_events", 10)
    server.stop()
    server.start()
    eventually(lambda: consumed(*topic) == [], 60, "what is in history is no longer in Kafka")
    # Nobody misses it, and what comes goes on behind it.
    server.post_event("pump-1", {"number": 10})
    numbers = "SELECT metric_value FROM raw_metrics ORDER BY 1"
    assert server.wait_rows(numbers, 11) == [(float(number),) for number in range(11)]
    server.restart()
    assert server.wait_rows(numbers, 11) == [(float(number),) for number in range(11)]


def test_publish_is_in_kafka_and_in_sql(new_server, topic):
    server = on_kafka(new_server, topic).start()
    to = ("-h", "127.0.0.1", "-p", str(server.mqtt_port), "-t", "devices/pump-1/state", "-q", "1")
    subprocess.run(["mosquitto_pub", *to, "-m", '{"rpm": 900}'], check=True, timeout=20)
    # mosquitto_pub has waited for the PUBACK: the record is there.
    ((key, headers, payload),) = consumed(*topic)
    assert (key, payload) == ("pump-1", {"rpm": 900})
    assert re.fullmatch(r"\d{16}", headers.pop("received_at"))
    assert headers == {"realm": "main", "type": "state", "topic": "devices/pump-1/state"}
    rows = server.wait_rows("SELECT device_id, metric_name, metric_value FROM raw_metrics", 1)
    assert rows == [("pump-1", "rpm", 900.0)]
    status = server.get("/api/v1/status", headers=server.admin).json()
    urls = {engine["part"]: engine["url"] for engine in status["engines"]}
    assert urls["log"] == f"kafka://{topic[0]}/{topic[1]}"
    assert 'catchment_log_up{engine="kafka"} 1' in server.get("/metrics").text
    # Another process goes on from the offsets that history has, with nothing in memory.
    server.stop()
    server.start()
    assert server.wait_rows("SELECT device_id, metric_name, metric_value FROM raw_metrics", 1) == rows
    assert server.snapshot("pump-1") == {"rpm": 900.0}


def test_readings_and_rejects_are_published(new_server, topic):
    address, name = topic
    server = new_server("platform", flags=["--log", f"kafka://{address}/{name}", "--publish-readings"]).start()
    to = ("-h", "127.0.0.1", "-p", str(server.mqtt_port), "-t", "devices/pump-1/state", "-q", "1")
    subprocess.run(["mosquitto_pub", *to, "-m", '{"rpm": 900, "gear": "D"}'], check=True, timeout=20)
    subprocess.run(["mosquitto_pub", *to, "-m", '{"rpm": '], check=True, timeout=20)
    server.wait_rows("SELECT 1 FROM rejects", 1)
    # What is in the tables was published before.
    try:
        readings = consumed(address, f"{name}.readings")
        assert [(key, row["device_id"], row["metric_name"]) for key, _, row in readings] == [
            ("pump-1", "pump-1", "rpm"),
            ("pump-1", "pump-1", "gear"),
        ]
        assert (readings[0][2]["metric_value"], readings[1][2]["text_value"]) == (900.0, "D")
        ((key, headers, reject),) = consumed(address, f"{name}.rejects")
        assert (key, reject["reason"], reject["payload"]) == ("pump-1", "syntax", '{"rpm": ')
        assert headers["type"] == "state" and headers["content_type"] == "application/json"
    finally:
        delete_topic(address, f"{name}.readings")
        delete_topic(address, f"{name}.rejects")


def test_another_log_is_refused(new_server, topic):
    server = on_kafka(new_server, topic, config=BUSY).start()
    server.post_event("a", {"x": 1})
    server.wait_rows("SELECT 1 FROM raw_events", 1)
    server.stop()
    done = run("serve", "--data", server.data, *server.listeners())
    assert done.returncode != 0
    assert "goes on from offsets of another event log" in done.stderr + done.stdout
    assert f"topic {topic[1]}, not embedded" in done.stderr + done.stdout


def test_kill_under_load(new_server, topic):
    server = on_kafka(new_server, topic, config=BUSY).start()
    load = publishers(server, "kafka-kill")
    for publisher in load:
        publisher.start()
    for _ in range(KILLS):
        time.sleep(1.5)
        server.kill()
        server.spawn()
        server.wait_ready()
    for publisher in load:
        publisher.finish()
    assert sum(len(publisher.acknowledged) for publisher in load) > 50 * KILLS, "the load was too light"
    check_all(server, load)
    server.restart()
    check_all(server, load)


class KafkaWithPassword(Kafka):
    """Has one more listener, which wants user and password, and is a test's own to stop."""

    ports = 3
    password = "correct-horse"

    def more_settings(self, settings, ports):
        login = "org.apache.kafka.common.security.plain.PlainLoginModule required"
        listener = f",SASL_PLAINTEXT://127.0.0.1:{ports[2]}"
        return {
            "listeners": settings["listeners"] + listener,
            "advertised.listeners": settings["advertised.listeners"] + listener,
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT",
            "sasl.enabled.mechanisms": "PLAIN",
            "listener.name.sasl_plaintext.plain.sasl.jaas.config": f'{login} user_catchment="{self.password}";',
        }

    @property
    def closed_address(self):
        """Of the listener that wants a password."""
        return f"127.0.0.1:{json.loads((self.folder / 'state.json').read_text())['ports'][2]}"


@pytest.fixture
def kafka(service, tmp_path):
    service("kafka")
    own = KafkaWithPassword(tmp_path / "kafka")
    own.up()
    yield own
    own.down()


def test_password(kafka, tmp_path):
    address, url = kafka.closed_address, f"kafka://catchment@{kafka.closed_address}/t"
    good = run("check", "--log", url, CATCHMENT_ENGINES__KAFKA__PASSWORD=kafka.password)
    assert f"kafka://{address}/t → Kafka cluster" in good.stdout
    file = tmp_path / "password"
    file.write_text(f"{kafka.password}\n")
    good = run("check", "--log", f"{url}?password_file={file}")
    assert f"kafka://{address}/t → Kafka cluster" in good.stdout
    bad = run("check", "--log", f"kafka://catchment:battery-staple@{address}/t")
    assert bad.returncode == 1 and "uthentication failed" in bad.stdout, bad.stdout
    assert "battery-staple" not in bad.stdout + bad.stderr


def test_kafka_stopped_under_load(new_server, kafka):
    topic = kafka.closed_address, "stopped"
    server = on_kafka(new_server, topic, config=BUSY + "[log]\nqueue_bytes_max = 65536\n")
    server.flags[server.flags.index("--log") + 1] = f"kafka://catchment:{kafka.password}@{topic[0]}/{topic[1]}"
    server.start()
    load = publishers(server, "kafka-stop", http=0)
    for publisher in load:
        publisher.start()
    eventually(lambda: sum(len(publisher.acknowledged) for publisher in load) > 200, 30, "events flow")
    kafka.down()
    stopped = time.monotonic()

    def told():
        answer = requests.get(server.url("/readyz"), timeout=5)
        return answer.status_code == 503 and f"kafka://{topic[0]}/stopped" in answer.text

    eventually(told, 20, "readyz names the engine")
    assert 'catchment_log_up{engine="kafka"} 0' in server.get("/metrics").text
    acknowledged = sum(len(publisher.acknowledged) for publisher in load)
    time.sleep(max(0.0, STOPPED_S - (time.monotonic() - stopped)))
    assert sum(len(publisher.acknowledged) for publisher in load) == acknowledged, "nothing is acknowledged meanwhile"
    queued = int(re.search(r"^catchment_log_queued_bytes (\d+)", server.get("/metrics").text, re.MULTILINE)[1])
    partitions = len(server.get("/api/v1/status", headers=server.admin).json()["partitions"])
    assert queued <= 65536 * partitions, "what waits is bounded"
    kafka.up()
    assert kafka.closed_address == topic[0]

    def goes_on():
        assert [(publisher.device, publisher.wrong) for publisher in load if publisher.wrong] == []
        return sum(len(publisher.acknowledged) for publisher in load) > acknowledged + 200

    eventually(goes_on, 60, "it goes on")
    server.wait_ready()
    for publisher in load:
        publisher.finish()
    check_all(server, load)
    log = server.log()
    assert "Kafka answers again" in log
    assert log.count("Kafka does not answer") < 10, "it is told once, not with every attempt"
    assert kafka.password not in log
    server.stop()


def test_check(topic):
    address, name = topic
    url = f"kafka://{address}/{name}"
    checked = run("check", "--log", url)
    assert re.search(rf"engine log +{url} → Kafka cluster \S+, version 4.0 or later, 1 broker, no topic yet, answers in [\d.]+ ms", checked.stdout)
    assert "the topic will be made, with " in checked.stdout
    (port,) = free_ports(1)
    checked = run("check", "--log", f"kafka://user:secret@127.0.0.1:{port}/t")
    assert checked.returncode == 1 and "secret" not in checked.stdout + checked.stderr
    assert f"NOT OK: no broker of kafka://127.0.0.1:{port}/t answers: " in checked.stdout
