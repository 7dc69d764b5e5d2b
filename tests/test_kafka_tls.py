"""Kafka as it is run where others are on the network: TLS, SCRAM and client certificates, against a real broker."""

import json

import pytest
from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import NewTopic

from harness import eventually, run
from harness.certificates import Authority
from harness.services import Kafka

USER, PASSWORD = "catchment", "correct-horse"
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


class SecuredKafka(Kafka):
    """Has a listener for TLS with a password in it, one for client certificates, and one whose certificate is of another host."""

    ports = 5
    listeners = ("SASL_SSL", "SSL", "OTHER")

    def __init__(self, folder, authority):
        super().__init__(folder)
        self.authority = authority

    def more_of_format(self):
        users = [f"{mechanism}=[name={USER},password={PASSWORD}]" for mechanism in MECHANISMS[1:]]
        return [part for user in users for part in ("--add-scram", user)]

    def store(self, name, **options):
        """A certificate and its key in the one file that Kafka wants."""
        path = self.authority.folder / f"{name}.store.pem"
        if not path.exists():
            certificate, key = self.authority.issue(name, **options)
            path.write_text(key.read_text() + certificate.read_text())
        return path

    def more_settings(self, settings, ports):
        listeners = "".join(
            f",{name}://localhost:{port}" for name, port in zip(self.listeners, ports[2:], strict=True)
        )
        plain = "org.apache.kafka.common.security.plain.PlainLoginModule required"
        scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        more = {
            "listeners": settings["listeners"] + listeners,
            "advertised.listeners": settings["advertised.listeners"] + listeners,
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL,SSL:SSL,OTHER:SSL",
            "sasl.enabled.mechanisms": ",".join(MECHANISMS),
            "listener.name.sasl_ssl.plain.sasl.jaas.config": f'{plain} user_{USER}="{PASSWORD}";',
            "listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config": scram,
            "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": scram,
            "listener.name.ssl.ssl.client.auth": "required",
        }
        for name in self.listeners:
            san = "DNS:elsewhere.example" if name == "OTHER" else "DNS:localhost,IP:127.0.0.1"
            listener = f"listener.name.{name.lower()}.ssl"
            more |= {
                f"{listener}.keystore.type": "PEM",
                f"{listener}.keystore.location": self.store(f"broker-{name.lower()}", san=san),
                f"{listener}.truststore.type": "PEM",
                f"{listener}.truststore.location": self.authority.pem,
            }
        return more

    def at(self, listener):
        """The address of a listener."""
        ports = json.loads((self.folder / "state.json").read_text())["ports"]
        return f"localhost:{ports[2 + self.listeners.index(listener)]}"


@pytest.fixture(scope="module")
def secured(service, tmp_path_factory):
    """The broker, its CA, another CA, and the file of the password."""
    service("kafka")
    folder = tmp_path_factory.mktemp("secured")
    kafka = SecuredKafka(folder / "kafka", Authority(folder))
    kafka.other = Authority(folder, "other")
    kafka.password_file = folder / "password"
    kafka.password_file.write_text(f"{PASSWORD}\n")
    kafka.up()
    yield kafka
    kafka.down()


def url_of(kafka, topic, mechanism="SCRAM-SHA-512", *, ca=None, user=USER):
    """The log's URL for someone with the password."""
    secret = f"mechanism={mechanism}&password_file={kafka.password_file}&ca_file={ca or kafka.authority.pem}"
    return f"kafka://{user}@{kafka.at('SASL_SSL')}/{topic}?security=sasl_ssl&{secret}"


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_password_over_tls(new_server, secured, mechanism):
    url = url_of(secured, f"log-{mechanism.lower()}", mechanism)
    checked = run("check", "--log", url)
    assert "→ Kafka cluster" in checked.stdout, checked.stdout
    server = new_server(flags=["--log", url]).start()
    for number in range(20):
        server.post_event("pump-1", {"n": number})
    total = "SELECT count(*), sum(metric_value) FROM raw_metrics"
    eventually(lambda: server.sql(total) == [(20, 190.0)], what="all are in")
    server.restart()
    server.post_event("pump-1", {"n": 20})
    eventually(lambda: server.sql(total) == [(21, 210.0)], what="it goes on")
    assert PASSWORD not in server.log() + checked.stdout
    server.stop()


def test_client_certificate(new_server, secured):
    certificate, key = secured.authority.issue("gateway")
    url = f"kafka://{secured.at('SSL')}/log-mutual?security=ssl&ca_file={secured.authority.pem}"
    mutual = f"{url}&certificate_file={certificate}&key_file={key}"
    assert "→ Kafka cluster" in run("check", "--log", mutual).stdout
    server = new_server(flags=["--log", mutual]).start()
    server.post_event("pump-1", {"n": 1})
    server.wait_rows("SELECT 1 FROM raw_metrics", 1)
    server.stop()
    without = run("check", "--log", url)
    assert without.returncode == 1 and "NOT OK" in without.stdout, without.stdout
    stranger, its_key = secured.other.issue("stranger")
    strange = run("check", "--log", f"{url}&certificate_file={stranger}&key_file={its_key}")
    assert strange.returncode == 1 and "NOT OK" in strange.stdout, strange.stdout


def test_who_is_not_to_be_trusted(secured):
    """Neither a broker that another CA vouches for, nor one of another name; and who has the wrong password is told so."""
    refused = {
        url_of(secured, "t", ca=secured.other.pem): "certificate verify failed",
        # The system's CAs do not know it.
        url_of(secured, "t").split("&ca_file=")[0]: "certificate verify failed",
        f"kafka://{secured.at('OTHER')}/t?security=ssl&ca_file={secured.authority.pem}": "certificate verify failed",
        url_of(secured, "t", user="nobody"): "uthentication failed",
        # Does not speak TLS.
        url_of(secured, "t").replace("sasl_ssl", "sasl_plaintext"): "NOT OK",
    }
    for url, said in refused.items():
        checked = run("check", "--log", url)
        assert checked.returncode == 1 and said in checked.stdout, f"{url}: {checked.stdout}"
        assert PASSWORD not in checked.stdout + checked.stderr


def test_source_over_tls(new_server, secured):
    """As Event Hubs are read: TLS and PLAIN."""
    admin = KafkaAdminClient(bootstrap_servers=secured.running())
    admin.create_topics([NewTopic("hub", num_partitions=1, replication_factor=1)])
    admin.close()
    producer = KafkaProducer(bootstrap_servers=secured.running())
    producer.send("hub", b'{"x": 1}', key=b"d").get(10)
    producer.close()
    source = url_of(secured, "hub", "PLAIN")
    server = new_server(flags=["--source", source]).start()
    server.wait_rows("SELECT 1 FROM raw_events WHERE device_id = 'd'", 1)
    assert PASSWORD not in server.log()
    server.stop()
