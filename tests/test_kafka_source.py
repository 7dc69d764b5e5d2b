"""Topics of Kafka as sources: their records become events once, whatever is killed, with devices from where they are named."""

import json
import struct
import time
import uuid

import pytest
from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import NewTopic
from kafka.structs import TopicPartition

from harness import eventually, free_ports, run
from test_kafka import KafkaWithPassword

PARTITIONS = 3
KILLS = 4


@pytest.fixture
def demo(service):
    """(address, name) of a topic of somebody else's."""
    address, name = service("kafka"), f"demo-{uuid.uuid4()}"
    admin = KafkaAdminClient(bootstrap_servers=address)
    admin.create_topics([NewTopic(name, num_partitions=PARTITIONS, replication_factor=1)])
    yield address, name
    admin.delete_topics([name])
    admin.close()


@pytest.fixture
def producer(demo):
    """A client that is not ours."""
    made = KafkaProducer(bootstrap_servers=demo[0], value_serializer=lambda value: json.dumps(value).encode())
    yield made
    made.close()


def url(topic, **settings):
    """Of a source."""
    query = "&".join(f"{name}={value}" for name, value in settings.items())
    return f"kafka://{topic[0]}/{topic[1]}" + (f"?{query}" if query else "")


def committed(topic, group):
    """The offsets that a group has, by partition."""
    admin = KafkaAdminClient(bootstrap_servers=topic[0])
    try:
        found = admin.list_group_offsets(group)[group]
    finally:
        admin.close()
    return [found[place].offset if (place := TopicPartition(topic[1], at)) in found else 0 for at in range(PARTITIONS)]


def test_the_demo_topic_of_others(new_server, demo, producer):
    for name, value, second in (("BTC", 41000.5, 401), ("ETH", 2800, 402), ("BTC", 41001, 403)):
        producer.send(demo[1], {"data_id": 150, "name": name, "value": value, "timestamp": 1645270000 + second})
    producer.send(demo[1], {"nothing": "has a name"})
    producer.flush()
    source = url(demo, type="quote", device="name")
    server = new_server(flags=["--source", source]).start()
    query = "SELECT device_id, type, topic, count(*) FROM raw_events GROUP BY 1, 2, 3 ORDER BY 1"
    expected = [("BTC", "quote", demo[1], 2), ("ETH", "quote", demo[1], 1), (demo[1], "quote", demo[1], 1)]
    eventually(lambda: server.sql(query) == expected, 30, "what was there before is taken")
    rows = server.sql(
        "SELECT metric_value, CAST(timestamp AS text) FROM raw_metrics"
        " WHERE device_id = 'ETH' AND metric_name = 'value'"
    )
    assert [(value, str(moment)[:19].replace("T", " ")) for value, moment in rows] == [(2800.0, "2022-02-19 11:33:22")]
    # Kafka's tools show how far it is: nothing is left.
    eventually(lambda: sum(committed(demo, f"catchment-{demo[1]}")) == 4, 20, "all offsets are committed")
    metrics = server.get("/metrics").text
    name = f"kafka://{demo[0]}/{demo[1]} (group catchment-{demo[1]})"
    assert f'catchment_source_taken_records_total{{source="{name}"}} 4' in metrics
    # And it goes on there.
    server.restart()
    producer.send(demo[1], {"name": "ADA", "value": 1}).get(10)
    server.wait_rows("SELECT 1 FROM raw_events WHERE device_id = 'ADA'", 1)
    assert server.value("SELECT count(*) FROM raw_events") == 5


def test_keys_and_iot_hub(new_server, demo, producer):
    amqp_time = b"\x83" + struct.pack(">q", 1_645_270_401_250)
    producer.send(demo[1], {"x": 1}, key=b"by-key")
    producer.send(
        demo[1],
        {"x": 2},
        key=b"not-this",
        headers=[("iothub-connection-device-id", b"\xa1\x05hub-1"), ("iothub-enqueuedtime", amqp_time)],
    )
    producer.send(demo[1], {"x": 3}, key="\u00e9".encode("latin-1"))
    producer.send(demo[1], {"x": 4}, key=b"a/+/b")
    producer.flush()
    server = new_server(flags=["--source", url(demo)]).start()
    rows = server.wait_rows("SELECT device_id, received_at, type FROM raw_events ORDER BY 1", 2)
    assert [(row[0], row[2]) for row in rows] == [("by-key", demo[1]), ("hub-1", demo[1])]
    moments = server.sql("SELECT CAST(received_at AS text) FROM raw_events WHERE device_id = 'hub-1'")
    assert str(moments[0][0])[:22].replace("T", " ") == "2022-02-19 11:33:21.25"
    eventually(
        lambda: f'group catchment-{demo[1]})"}} 2\n'
        in server.get("/metrics").text.split("catchment_source_refused_records_total{", 1)[-1],
        20,
        "what can be no event is counted",
    )
    eventually(lambda: sum(committed(demo, f"catchment-{demo[1]}")) == 4, 20, "and passed over")


def test_killed_while_it_reads(new_server, demo, producer):
    """Offsets are committed after events are durable: what a crash leaves between is known by its mark."""
    server = new_server(flags=["--source", url(demo, group="crash")]).start()
    sent = 0
    for _ in range(KILLS):
        begun = time.monotonic()
        while time.monotonic() < begun + 1.5:
            producer.send(demo[1], {"number": sent}, key=f"device-{sent % 7}".encode(), partition=sent % PARTITIONS)
            sent += 1
            if sent % 100 == 0:
                time.sleep(0.01)
        server.kill()
        server.spawn()
        server.wait_ready()
    producer.flush()
    # The member that was killed last is missed after its session.
    eventually(lambda: server.value("SELECT count(DISTINCT metric_value) FROM raw_metrics") == sent, 90, "all is there")
    assert server.value("SELECT count(*) FROM raw_events") == sent, "once"
    eventually(lambda: sum(committed(demo, "crash")) == sent, 20, "and committed")


def test_two_gateways_share(new_server, demo, producer):
    """Each has some of the partitions; what one that was stopped leaves, the other takes."""
    source = ["--source", url(demo, group="shared")]
    servers = [new_server(name, flags=source).start() for name in ("one", "two")]

    def send(numbers):
        for number in numbers:
            producer.send(demo[1], {"number": number}, key=b"d", partition=number % PARTITIONS)
        producer.flush()

    def taken():
        return [server.value("SELECT count(*) FROM raw_events") for server in servers]

    begun, sent = time.monotonic(), 0
    while min(taken()) == 0 and time.monotonic() < begun + 60:
        send(range(sent, sent + 30))
        sent += 30
        time.sleep(0.5)
    assert min(taken()) > 0, "both have something"
    eventually(lambda: sum(taken()) == sent, 30, "together they have all")
    first = taken()[0]
    servers[0].stop()
    servers.pop(0)
    send(range(sent, sent + 30))
    eventually(lambda: taken() == [sent + 30 - first], 30, "the other has the rest")


def test_connection_string(new_server, service, tmp_path):
    """Event Hubs know everybody as $ConnectionString; this broker is told so."""
    string = "Endpoint=sb://x.servicebus.windows.net/;SharedAccessKeyName=k;SharedAccessKey=c2VjcmV0=;EntityPath=hub"
    login = "org.apache.kafka.common.security.plain.PlainLoginModule required"

    class Hub(KafkaWithPassword):
        """Takes the connection string for a password."""

        def more_settings(self, settings, ports):
            more = super().more_settings(settings, ports)
            more["listener.name.sasl_plaintext.plain.sasl.jaas.config"] = (
                f'{login} user_$ConnectionString="{string}";'
            )
            return more

    service("kafka")
    hub = Hub(tmp_path / "hub")
    hub.up()
    try:
        open_address = hub.running()
        admin = KafkaAdminClient(bootstrap_servers=open_address)
        admin.create_topics([NewTopic("hub", num_partitions=1, replication_factor=1)])
        admin.close()
        producer = KafkaProducer(bootstrap_servers=open_address)
        producer.send("hub", b'{"x": 1}', key=b"d").get(10)
        producer.close()
        file = tmp_path / "connection-string"
        file.write_text(f"{string}\n")
        query = f"connection_string_file={file}&security=sasl_plaintext"
        source = f"kafka://{hub.closed_address}/hub?{query}"
        checked = run("check", "--source", source)
        assert f"kafka://{hub.closed_address}/hub (group catchment-hub) → Kafka cluster" in checked.stdout
        server = new_server(flags=["--source", source]).start()
        server.wait_rows("SELECT 1 FROM raw_events WHERE device_id = 'd'", 1)
        assert "c2VjcmV0" not in server.log() + checked.stdout + server.get("/metrics").text
        server.stop()
    finally:
        hub.down()


def test_a_source_that_is_not_there_holds_nothing_up(new_server):
    (port,) = free_ports(1)
    source = f"kafka://u:secret@127.0.0.1:{port}/t"
    server = new_server(flags=["--source", source]).start()
    server.post_event("a", {"x": 1})
    server.wait_rows("SELECT 1 FROM raw_events", 1)
    eventually(lambda: "its records are taken once it does" in server.log(), 30, "it is told")
    checked = run("check", "--source", source)
    assert "source of records" in checked.stdout and "ok, but no broker" in checked.stdout
    assert "secret" not in server.log() + checked.stdout + checked.stderr
    server.stop()
    bad = run("serve", "--source", "kafka://u:secret@h")
    assert bad.returncode != 0 and "secret" not in bad.stdout + bad.stderr
    assert "names no topic" in bad.stdout + bad.stderr
