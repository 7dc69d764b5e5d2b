"""The platform as several processes with roles, on real engines, behind a balancer."""

import subprocess
import uuid

import psycopg
import requests

from . import buckets
from .server import Caller, Server, free_ports
from .wait import eventually

BALANCER = """
defaults
    mode tcp
    timeout connect 2s
    timeout client 5m
    timeout server 5m
    option redispatch
    retries 3
{sections}
"""
SECTION = """
listen {name}
    bind 127.0.0.1:{port}
    balance roundrobin
{servers}
"""


class Node(Server):
    """One process. The registry that all share has one administrator, whose token the first process to start has."""

    def __init__(self, folder, *, cluster, **options):
        super().__init__(folder, **options)
        self.cluster = cluster

    @property
    def token(self):
        """The administrator's."""
        return self.cluster.token

    def not_ready(self):
        """What it says that keeps it from its work; empty when it is ready."""
        answer = requests.get(self.url("/readyz"), timeout=10)
        return "" if answer.status_code == 200 else answer.text


class Cluster(Caller):
    """Processes of each role, and a TCP balancer before gateways and API nodes. What clients of a server use, is there:
    ports, `url`, `sql` and the like are those of the balancer."""

    def __init__(self, new_server, service, folder, *, config="", each=2):
        """`new_server` and `service` as the fixtures of these names; `each` processes of each role."""
        name = f"cluster_{uuid.uuid4().hex[:12]}"
        self.name, self.kafka, self.clickhouse = name, service("kafka"), service("clickhouse")
        postgres, s3 = service("postgres"), service("s3")
        self.bucket = s3, buckets.new_bucket(s3)
        with psycopg.connect(postgres, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        engines = {
            "--log": f"kafka://{self.kafka}/{name}",
            "--history": f"clickhouse://{self.clickhouse.split('://')[1]}/{name}",
            "--snapshot": service("redis"),
            "--registry": f"{postgres.rsplit('/', 1)[0]}/{name}",
            "--archive": f"s3://{self.bucket[1]}/cold",
        }
        flags = [part for flag in engines.items() for part in flag]
        config = f'{config}\n[engines.redis]\nprefix = "{name}:"\n{buckets.engine(s3, folder / "s3.secret")}'
        self.folder = folder
        self.nodes = {}
        for role in ("gateway", "distributor", "api"):
            for number in range(1, each + 1):
                own = {"flags": [*flags, "--roles", role], "config": config, "cluster": self}
                self.nodes[f"{role}-{number}"] = new_server(f"{role}-{number}", kind=Node, **own)
        self.mqtt_port, self.ingest_port, self.http_port = free_ports(3)
        self.balancer = None
        self.session = requests.Session()

    def of(self, role):
        """The processes of a role."""
        return [node for name, node in self.nodes.items() if name.startswith(role)]

    def start(self):
        """One after the other for the first time: the first makes what all share."""
        for node in self.nodes.values():
            node.start()
        self._balance()
        return self

    def _balance(self):
        def section(name, port, nodes, port_of):
            lines = [
                f"    server {name}-{at} 127.0.0.1:{port_of(node)} check inter 200 fall 1 rise 1"
                for at, node in enumerate(nodes)
            ]
            return SECTION.format(name=name, port=port, servers="\n".join(lines))

        sections = [
            section("mqtt", self.mqtt_port, self.of("gateway"), lambda node: node.mqtt_port),
            section("ingest", self.ingest_port, self.of("gateway"), lambda node: node.http_port),
            section("api", self.http_port, self.of("api"), lambda node: node.http_port),
        ]
        path = self.folder / "haproxy.cfg"
        path.write_text(BALANCER.format(sections="\n".join(sections)))
        log = (self.folder / "haproxy.log").open("ab")
        self.balancer = subprocess.Popen(["haproxy", "-db", "-f", path], stdout=log, stderr=log)
        eventually(lambda: requests.get(self.url("/healthz"), timeout=2).ok, 20, "the balancer answers")

    def in_clickhouse(self, condition):
        """How many rows of `raw_metrics` ClickHouse itself has."""
        query = f"SELECT count() FROM raw_metrics WHERE {condition}"
        answer = requests.post(self.clickhouse, params={"database": self.name}, data=query, timeout=30)
        assert answer.status_code == 200, answer.text
        return int(answer.text)

    def close(self):
        """Ends the balancer; the processes are the fixture's."""
        if self.balancer is not None:
            self.balancer.kill()
            self.balancer.wait()

    @property
    def token(self):
        """The administrator's: it is in the data folder of the process that made the registry."""
        files = [node.data / "admin.token" for node in self.nodes.values()]
        return next(file for file in files if file.exists()).read_text().strip()

    def url(self, path):
        """Of a path: ingest is the gateways', everything else the API nodes'."""
        port = self.ingest_port if "/events/" in path else self.http_port
        return f"http://127.0.0.1:{port}{path}"
