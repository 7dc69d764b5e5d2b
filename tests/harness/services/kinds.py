"""The six services: how each is installed, configured, asked and stopped."""

import base64
import hashlib
import os
import pwd
import shutil
import signal
import socket
import struct
import tempfile
import urllib.error
import urllib.request
import uuid
import xml.etree.ElementTree
from pathlib import Path

from .base import ASSETS, Service, ServiceError, find, identity, run, say

PROBE_LIMIT_S = 5


class Kafka(Service):
    """Apache Kafka in KRaft mode, broker and controller in one process, from Maven Central."""

    name = "kafka"
    packages = (("java", "openjdk-17-jre-headless"), ("mvn", "maven"))
    ports = 2
    # Of the plugin that copies the jars; Debian's Maven would take one of 2015.
    copy = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
    pom = ASSETS / "kafka" / "pom.xml"

    def __init__(self, folder=None):
        super().__init__(folder)
        properties = xml.etree.ElementTree.parse(self.pom).getroot().find("{*}properties")
        self.version = properties.findtext("{*}kafka.version")
        self.jars = self.tools / f"kafka-{self.version}"

    def install(self):
        stamp, wanted = self.jars / "pom.installed", self.pom.read_text()
        if stamp.exists() and stamp.read_text() == wanted:
            return
        say(f"kafka: fetching Apache Kafka {self.version} from Maven Central into {self.jars}")
        shutil.rmtree(self.jars, ignore_errors=True)
        run("kafka", ["mvn", "-q", "-B", "-f", self.pom, self.copy, f"-DoutputDirectory={self.jars}"])
        stamp.write_text(wanted)

    def more_settings(self, settings, ports):
        """Settings that one of a test's own has besides."""
        return {}

    def more_of_format(self):
        """Arguments that the data folder of a test's own is made with besides."""
        return []

    def java(self, *arguments):
        """A command of Kafka's."""
        level = "-Dorg.apache.logging.log4j.level=INFO"
        return ["java", "-Xmx512m", level, "-cp", f"{self.jars}/*", *arguments]

    def prepare(self, ports):
        settings = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{ports[1]}",
            "listeners": f"PLAINTEXT://127.0.0.1:{ports[0]},CONTROLLER://127.0.0.1:{ports[1]}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{ports[0]}",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": self.data,
            # One node has one replica of everything.
            "offsets.topic.replication.factor": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "offsets.topic.num.partitions": "4",
            "group.initial.rebalance.delay.ms": "0",
            # Clients say what they need; a topic out of a typing error would hide it.
            "auto.create.topics.enable": "false",
            # What a second replica does for a real cluster: little is lost with the machine.
            "log.flush.interval.ms": "1000",
        }
        settings |= self.more_settings(settings, ports)
        path = self.folder / "server.properties"
        path.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        if not (self.data / "meta.properties").exists():
            # The first letter is none of `-_`: the tool would take the identifier for an option.
            cluster = "C" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode()[1:22]
            run("kafka", self.java("kafka.tools.StorageTool", "format", "-t", cluster, "-c", path, *self.more_of_format()))

    def command(self, ports):
        return self.java("kafka.Kafka", self.folder / "server.properties")

    def address(self, port):
        return f"127.0.0.1:{port}"

    def probe(self, address):
        # ApiVersions, version 0: the one request that every broker answers to everybody.
        with connection(address) as broker:
            broker.sendall(struct.pack(">ihhih", 10, 18, 0, 7, -1))
            length, correlation, error = struct.unpack(">iih", receive(broker, 10))
        if (correlation, error) != (7, 0) or length < 6:
            raise ServiceError(f"{address} does not answer as Kafka does")
        return f"Apache Kafka {self.version}" if self.own_address() is None else "Apache Kafka"


class Postgres(Service):
    """PostgreSQL from Debian, with everybody on loopback as user postgres without a password."""

    name = "postgres"
    packages = (("/usr/lib/postgresql/*/bin/initdb", "postgresql-15"),)
    # A fast shutdown: does not wait for clients to leave.
    stop_signal = signal.SIGINT
    # PostgreSQL refuses to run as root.
    user = "postgres"

    @property
    def data(self):
        # A target folder in root's home is closed to user postgres: then the data is where everybody gets.
        if os.geteuid() != 0 or all(parent.stat().st_mode & 0o001 for parent in self.folder.parents if parent.exists()):
            return super().data
        name = hashlib.sha256(str(self.folder).encode()).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"catchment-postgres-{name}"

    @staticmethod
    def program(name):
        """Debian has them by version, not among the commands."""
        return find(f"/usr/lib/postgresql/*/bin/{name}")

    def prepare(self, ports):
        if (self.data / "PG_VERSION").exists():
            return
        shutil.rmtree(self.data, ignore_errors=True)
        self.data.mkdir(parents=True, mode=0o700)
        if os.geteuid() == 0:
            entry = pwd.getpwnam(self.user)
            os.chown(self.data, entry.pw_uid, entry.pw_gid)
        initdb = [self.program("initdb"), "-D", self.data, "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C"]
        run("postgres", initdb, cwd="/", **identity(self.user))

    def command(self, ports):
        # Survives its own death without fsync; only a machine's would cost data, and this is data of tests.
        options = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"}
        settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        return [self.program("postgres"), "-D", self.data, "-p", str(ports[0]), *settings]

    def address(self, port):
        return f"postgresql://postgres@127.0.0.1:{port}/postgres"

    def probe(self, address):
        import psycopg

        try:
            with psycopg.connect(address, connect_timeout=PROBE_LIMIT_S) as client:
                return f"PostgreSQL {client.execute('SHOW server_version').fetchone()[0]}"
        except psycopg.Error as error:
            raise ServiceError(str(error)) from error


class Redis(Service):
    """Redis from Debian, which keeps nothing over a restart."""

    name = "redis"
    packages = (("redis-server", "redis-server"), ("redis-cli", "redis-tools"))

    def command(self, ports):
        keep = ("--save", "", "--appendonly", "no")
        return [find("redis-server"), "--bind", "127.0.0.1", "--port", str(ports[0]), *keep]

    def address(self, port):
        return f"redis://127.0.0.1:{port}"

    def probe(self, address):
        with connection(address) as server:
            server.sendall(b"INFO server\r\n")
            answer = server.recv(4096).decode(errors="replace")
        version = [line.split(":")[1] for line in answer.splitlines() if line.startswith("redis_version:")]
        if not version:
            raise ServiceError(f"{address} answers {answer[:80]!r}")
        return f"Redis {version[0]}"


class S3(Service):
    """S3 in memory: moto, whose conditional puts are atomic. Takes any credentials."""

    name = "s3"
    requirements = ASSETS / "s3" / "requirements.txt"

    def install(self):
        self.python = self.python_with(self.requirements)

    def command(self, ports):
        return [self.python, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(ports[0])]

    def address(self, port):
        return f"http://127.0.0.1:{port}"

    def probe(self, address):
        get(f"{address}/")
        return f"S3 of {self.requirements.read_text().split()[-1]}" if self.own_address() is None else "S3"


class ClickHouse(Service):
    """ClickHouse's engine as a library, behind an HTTP front of our own that speaks as its server does."""

    name = "clickhouse"
    is_large = True

    def install(self):
        self.python = self.python_with(ASSETS / "clickhouse" / "requirements.txt")

    def prepare(self, ports):
        self.data.mkdir(exist_ok=True)

    def command(self, ports):
        return [self.python, ASSETS / "clickhouse" / "front.py", self.data, str(ports[0])]

    def address(self, port):
        return f"http://127.0.0.1:{port}"

    def probe(self, address):
        return f"ClickHouse {get(f'{address}/?query=SELECT+version()').strip()}"


class Mosquitto(Service):
    """An MQTT broker to bridge to."""

    name = "mosquitto"
    packages = (("mosquitto", "mosquitto"),)

    def prepare(self, ports):
        settings = f"listener {ports[0]} 127.0.0.1\nallow_anonymous true\npersistence false\n"
        (self.folder / "mosquitto.conf").write_text(settings)
        # As root it would become user mosquitto, who may not get at this folder.
        if os.geteuid() == 0:
            (self.folder / "mosquitto.conf").write_text(settings + "user root\n")

    def command(self, ports):
        return [find("mosquitto"), "-c", self.folder / "mosquitto.conf"]

    def address(self, port):
        return f"mqtt://127.0.0.1:{port}"

    def probe(self, address):
        with connection(address) as broker:
            broker.sendall(b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x0a\x00\x00")
            answer = receive(broker, 4)
        if answer != b"\x20\x02\x00\x00":
            raise ServiceError(f"{address} answers {answer!r}")
        return "an MQTT broker"


KINDS = {kind.name: kind for kind in (Kafka, Postgres, Redis, S3, ClickHouse, Mosquitto)}


def connection(address):
    """A socket to `host:port`, with or without a scheme before it."""
    host, port = address.rsplit("://", 1)[-1].rsplit("@", 1)[-1].split("/")[0].rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=PROBE_LIMIT_S)


def receive(peer, count):
    """Exactly so many bytes."""
    data = b""
    while len(data) < count:
        part = peer.recv(count - len(data))
        if not part:
            raise ConnectionResetError("the connection was closed")
        data += part
    return data


def get(url):
    """The text at a URL."""
    try:
        with urllib.request.urlopen(url, timeout=PROBE_LIMIT_S) as answer:
            return answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        raise ServiceError(f"{url} answers {error.code}: {error.read(500).decode(errors='replace')}") from error
