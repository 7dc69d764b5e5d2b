"""What stands in deploy/: that it fits together, and fits the binary. What is not installed here (haproxy, promtool) is not run."""

import json
import os
import re
import shutil
import stat
import subprocess
import time

import psycopg
import pytest
import requests
import yaml

from harness import BINARY, Server, eventually, free_ports, run
from harness.paho_client import Client
from harness.server import ROOT

DEPLOY = ROOT / "deploy"
COMPOSE = {name: yaml.safe_load((DEPLOY / name).read_text()) for name in ("compose.yaml", "compose.single.yaml")}
SERVICES = [(file, name, service) for file, compose in COMPOSE.items() for name, service in compose["services"].items()]
DASHBOARDS = {path.name: json.loads(path.read_text()) for path in sorted((DEPLOY / "grafana/dashboards").glob("*.json"))}
# Services that end when they have done their work.
ONCE = {"tokens", "bucket"}


def each_service(test):
    """Runs a test for every service of every compose file."""
    names = [f"{file}-{name}" for file, name, _ in SERVICES]
    return pytest.mark.parametrize("file, name, service", SERVICES, ids=names)(test)


def words(command):
    """A command as one list of words, whether it is a list or a text."""
    return command if isinstance(command, list) else (command or "").split()


# Compose.


@each_service
def test_a_service_names_only_what_there_is(file, name, service):
    compose = COMPOSE[file]
    for other, wanted in service.get("depends_on", {}).items():
        assert other in compose["services"]
        ends = other in ONCE
        assert wanted["condition"] == ("service_completed_successfully" if ends else "service_healthy")
        assert ends or "healthcheck" in compose["services"][other] or has_own_check(compose["services"][other])
    assert set(service.get("networks", [])) <= set(compose.get("networks", {}))
    for kind in ("configs", "secrets"):
        named = {entry["source"] if isinstance(entry, dict) else entry for entry in service.get(kind, [])}
        assert named <= set(compose.get(kind, {}))
    for volume in service.get("volumes", []):
        source = volume.split(":")[0]
        assert (DEPLOY / source).exists() if source.startswith(".") else source in compose["volumes"]


def has_own_check(service):
    """Whether the image brings a health check: ours does."""
    return "build" in service and "HEALTHCHECK" in (DEPLOY / "Dockerfile").read_text()


@each_service
def test_a_service_is_pinned_bounded_and_looked_after(file, name, service):
    if "build" not in service and not service["image"].startswith("catchment:"):
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+[\w.-]*", service["image"]), f"{service['image']} is not pinned"
    limits = service["deploy"]["resources"]["limits"]
    assert limits["cpus"] and limits["memory"]
    assert service["restart"] == ("on-failure" if name in ONCE else "unless-stopped")
    assert name in ONCE or "healthcheck" in service or has_own_check(service)
    assert service["logging"]["options"]["max-size"] and "no-new-privileges:true" in service["security_opt"]


@each_service
def test_nothing_is_open_by_itself(file, name, service):
    for port in service.get("ports", []):
        assert re.match(r"\$\{BIND\w*:-127\.0\.0\.1\}:", port), f"{port} is open to everybody"
    for key, value in service.get("environment", {}).items():
        secret = re.search("PASSWORD|SECRET|TOKEN|KEY", key) and not key.endswith(("_FILE", "__FILE"))
        assert not secret, f"{key} would be shown by docker inspect"
        assert "PASSWORD" not in str(value) or str(value).startswith("/run/secrets/")


def test_secrets_have_no_default():
    text = (DEPLOY / "compose.yaml").read_text()
    for name in re.findall(r"\$\{(\w*(?:PASSWORD|KEY|CLUSTER_ID)\w*)([^}]*)\}", text):
        assert name[1].startswith(":?"), f"{name[0]} has a default"


def test_images_of_the_build_are_pinned():
    images = re.findall(r"^FROM (\S+)", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert len(images) == 2 and all(re.search(r":[\w-]*\d+[\w.-]*$", image) for image in images)
    assert re.search(r"^USER \d+:\d+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE), "it runs as root"


@pytest.fixture(scope="module")
def serve_help():
    return run("serve", "--help").stdout


def flags_known(command, serve_help):
    """Asserts that `catchment serve` knows all flags of a command; gives the words."""
    command = words(command)
    assert command[0] == "serve"
    for word in command[1:]:
        if word.startswith("--"):
            assert re.search(rf"^ +(-\w, )?{word.split('=')[0]}\b", serve_help, re.MULTILINE), f"serve has no {word}"
    return command


def test_processes_are_started_with_flags_that_exist(serve_help):
    roles = []
    for _, _, service in SERVICES:
        if "command" in service and service.get("image", "").startswith("catchment:"):
            command = flags_known(service["command"], serve_help)
            roles += [word.split("=")[1] for word in command if word.startswith("--roles=")]
    assert sorted(roles) == ["api", "api", "distributor", "distributor", "gateway", "gateway"]
    assert all(role in serve_help for role in roles)
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    flags_known(json.loads(re.search(r"^CMD (\[.*\])$", dockerfile, re.MULTILINE).group(1)), serve_help)
    unit = (DEPLOY / "catchment.service").read_text()
    flags_known(re.search(r"^ExecStart=/usr/local/bin/catchment (.*)$", unit, re.MULTILINE).group(1), serve_help)


def test_the_settings_are_sound(tmp_path):
    # Without the engines, which are not here: every other key must be one that there is.
    text = COMPOSE["compose.yaml"]["configs"]["catchment"]["content"]
    text = re.sub(r"\$\{EDGE_SUBNET:-([^}]+)\}", r"\1", text)
    head, engines, tail = re.split(r"(?m)^(?=\[engines\]|\[log\])", text)
    free = re.sub(r"(\d\.\d):\d+\"", lambda found: f'{found.group(1)}:{free_ports(1)[0]}"', head + tail)
    (tmp_path / "catchment.toml").write_text(free)
    done = run("check", "--config", tmp_path / "catchment.toml", "--data", tmp_path / "data")
    assert done.returncode == 0, done.stdout + done.stderr
    seams = re.findall(r"(?m)^(\w+) = \"(\w+)://", engines.split("[engines.s3]")[0])
    expected = {"log": "kafka", "history": "clickhouse", "snapshot": "redis", "registry": "postgres"}
    assert dict(seams).items() >= expected.items()
    single = COMPOSE["compose.single.yaml"]["services"]["catchment"]["environment"]
    listeners = {f"CATCHMENT_{name}": f"127.0.0.1:{port}" for name, port in zip(("HTTP", "MQTT", "PG"), free_ports(3), strict=True)}
    done = run("check", "--data", tmp_path / "single", **listeners, **{name: str(value) for name, value in single.items()})
    assert done.returncode == 0, done.stdout + done.stderr


def test_setup_makes_every_secret_once(tmp_path):
    shutil.copy(DEPLOY / "setup.sh", tmp_path)
    made = subprocess.run([tmp_path / "setup.sh"], capture_output=True, text=True, check=True)
    path = tmp_path / ".env"
    before = path.read_text()
    values = dict(line.split("=", 1) for line in before.splitlines() if line and not line.startswith("#"))
    asked = set(re.findall(r"\$\{(\w+):\?", (DEPLOY / "compose.yaml").read_text()))
    asked |= {secret["environment"] for secret in COMPOSE["compose.yaml"]["secrets"].values()}
    assert asked <= set(values) and all(re.fullmatch(r"[\w.:/-]+", value) for value in values.values())
    secrets = [value for name, value in values.items() if re.search("PASSWORD|KEY", name)]
    assert len(set(secrets)) == len(secrets) and all(len(value) >= 20 for value in secrets)
    assert len(values["KAFKA_CLUSTER_ID"]) == 22
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not any(value in made.stdout for value in secrets)
    subprocess.run([tmp_path / "setup.sh"], check=True, capture_output=True)
    assert path.read_text() == before, "a second run has changed the passwords"


# Figures: dashboards and alerts.


def expressions():
    """Every PromQL expression, with where it stands."""
    rules = yaml.safe_load((DEPLOY / "prometheus/rules.yml").read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            yield f"rule {rule['alert']}", rule["expr"]
    for name, dashboard in DASHBOARDS.items():
        for panel in dashboard["panels"]:
            for target in panel.get("targets", []):
                if "expr" in target:
                    yield f"{name}: {panel['title']}", target["expr"]


def test_every_figure_exists(server):
    server.post_event("deploy-figures", {"v": 1})
    shown = set(re.findall(r"^(catchment_\w+?)(?:_bucket)?[{ ]", server.get("/metrics").text, re.MULTILINE))
    # A figure with a label is shown from its first count on; until then its name is in the source only.
    source = "".join(path.read_text() for path in (ROOT / "crates").glob("*/src/**/*metrics.rs"))
    missing = set()
    for where, expression in expressions():
        for name in re.findall(r"\bcatchment_\w+", expression):
            name = name.removesuffix("_bucket")
            bare = re.sub(r"^catchment_(?:gateway|history|distribute|sql|log|listener|tls|snapshot)_", "", name).removesuffix("_total")
            if name not in shown and f"{name}_count" not in shown and f'"{bare}"' not in source:
                missing.add(f"{where}: {name}")
    assert not missing


def test_dashboards_are_whole():
    provisioned = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/catchment.yaml").read_text())
    known = {(source["type"], source["uid"]) for source in provisioned["datasources"]}
    assert len({dashboard["uid"] for dashboard in DASHBOARDS.values()}) == len(DASHBOARDS) == 3
    for name, dashboard in DASHBOARDS.items():
        panels = dashboard["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)
        taken = set()
        for panel in panels:
            place = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert place["x"] + place["w"] <= 24 and not taken & cells, f"{name}: {panel['title']} lies on another"
            taken |= cells
            for target in panel.get("targets", []):
                source = target["datasource"]
                assert source == panel["datasource"] and (source["type"], source["uid"]) in known
                assert target.get("expr") or target.get("rawSql")
            assert panel["type"] == "row" or panel["targets"]


def sql_of(kind):
    """Every query of panels and variables to a data source of this type."""
    for name, dashboard in DASHBOARDS.items():
        for variable in dashboard["templating"]["list"]:
            if variable["datasource"]["type"] == kind:
                yield f"{name}: ${variable['name']}", variable["query"]
        for panel in dashboard["panels"]:
            for target in panel.get("targets", []):
                if target["datasource"]["type"] == kind:
                    yield f"{name}: {panel['title']}", target["rawSql"]


def as_grafana_asks(query, begin, end):
    """The query as Grafana's PostgreSQL data source sends it (pkg/tsdb/grafana-postgresql-datasource/macros.go)."""
    group = r'floor(extract(epoch from \1)/60)*60 AS "time"'
    query = re.sub(r"\$__timeGroupAlias\((\w+), \$__interval\)", group, query)
    query = re.sub(r"\$__timeFilter\((\w+)\)", rf"\1 BETWEEN '{begin}' AND '{end}'", query)
    query = query.replace("$device", "'deploy-panels','deploy-other'").replace("$metric", "'temperature','price'")
    assert "$" not in query, f"what is that in {query}?"
    return query


def test_the_sql_of_panels_is_answered(server):
    for temperature in (20, 22):
        server.post_event("deploy-panels", {"temperature": temperature, "text": "x"})
    server.post_event("deploy-panels", "{")
    server.wait_rows("SELECT 1 FROM raw_metrics WHERE device_id = 'deploy-panels' AND metric_name = 'temperature'", 2)
    now = time.time()
    begin, end = (time.strftime("%Y-%m-%dT%H:%M:%S.123Z", time.gmtime(now + seconds)) for seconds in (-3600, 3600))
    made = server.post("/api/v1/tokens", headers=server.admin, json={"name": "grafana", "role": "reader"})
    assert made.status_code == 201, made.text
    # As the data source is provisioned: any user name, and the token of a reader.
    login = f"host=127.0.0.1 port={server.pg_port} user=grafana dbname=main password={made.json()['token']}"
    answers = {}
    with psycopg.connect(login, autocommit=True) as client:
        for where, query in sql_of("grafana-postgresql-datasource"):
            cursor = client.execute(as_grafana_asks(query, begin, end))
            answers[where] = ([column.name for column in cursor.description], cursor.fetchall())
    assert len(answers) > 10
    for where in ("city.json: $metric, a minute", "city.json: $metric, each reading"):
        names, rows = answers[where]
        assert names == ["time", "metric", "value"] and {row[1] for row in rows} == {"deploy-panels temperature"}
    averages = [row[2] for row in answers["city.json: $metric, a minute"][1]]
    assert all(20 <= value <= 22 for value in averages)
    assert ("deploy-panels",) in answers["city.json: $device"][1]
    assert answers["city.json: $metric"][1] == [("temperature",)]
    assert any("deploy-panels" in row for row in answers["city.json: What did not decode"][1])


def test_the_sql_of_clickhouse_panels_is_answered(new_server, service):
    address = service("clickhouse")
    name = f"deploy_{os.getpid()}"

    def ask(query, database=name):
        answer = requests.post(f"{address}/?database={database}", data=query.encode(), timeout=30)
        assert answer.status_code == 200, f"{query}: {answer.text}"
        return [line.split("\t") for line in answer.text.splitlines()]

    ask(f"DROP DATABASE IF EXISTS {name}", "default")
    server = new_server(flags=["--history", f"clickhouse://{address.split('://')[1]}/{name}"]).start()
    for temperature in (20, 22):
        server.post_event("d", {"temperature": temperature})
    server.post_event("d", "{")
    eventually(lambda: ask("SELECT count() FROM raw_events") == [["3"]], 20, "the events are in ClickHouse")
    now, answers = int(time.time()), {}
    for where, query in sql_of("grafana-clickhouse-datasource"):
        # As the plug-in fills its macros in (github.com/grafana/clickhouse-datasource, README.md).
        query = re.sub(r"\$__timeInterval\((\w+)\)", r"toStartOfInterval(toDateTime(\1), INTERVAL 3600 second)", query)
        between = rf"\1 >= toDateTime({now - 7200}) AND \1 <= toDateTime({now + 60})"
        query = re.sub(r"\$__timeFilter\((\w+)\)", between, query)
        query = query.replace("${device:singlequote}", "'d','e'").replace("${metric:singlequote}", "'temperature'")
        assert "$" not in query, f"what is that in {query}?"
        answers[where.split(": ", 1)[1]] = ask(query)
    ask(f"DROP DATABASE {name} SYNC", "default")
    assert answers["$device"] == [["d"]] and answers["$metric"] == [["temperature"]]
    assert sum(float(row[2]) for row in answers["$metric, average"]) / len(answers["$metric, average"]) == 21
    assert sum(int(row[2]) for row in answers["Events, by type"]) == 3
    assert answers["Rejects, by reason"][0][2] == "1" and answers["The loudest devices"][0][:2] == ["d", "3"]


# Other programs' files, where those are installed.


def tool(name):
    """The path of a program; the test is not run without it."""
    return shutil.which(name) or pytest.skip(f"{name} is not installed")


def test_prometheus_takes_its_files():
    promtool = tool("promtool")
    files = DEPLOY / "prometheus"
    for arguments in (["check", "config", "--syntax-only", "prometheus.yml"], ["test", "rules", "rules.test.yml"]):
        done = subprocess.run([promtool, *arguments], cwd=files, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


class Front:
    """The balancer as clients see it: four servers behind it, which share a registry, as those of compose.yaml do."""

    gateways, nodes = ("gateway-1", "gateway-2"), ("api-1", "api-2")

    def __init__(self, new_server, registry, folder):
        self.behind, self.ports = {}, {}
        for name in self.gateways + self.nodes:
            mqtt, http = free_ports(2)
            listeners = "".join(
                f'[[listeners]]\nprotocol = "{protocol}"\naddress = "127.0.0.1:{port}"\nproxy_protocol_from = ["127.0.0.0/8"]\n'
                for protocol, port in (("mqtt", mqtt), ("http", http))
            )
            server = new_server(name, config=listeners, flags=["--registry", registry]).start()
            self.behind[name] = server
            self.ports[name] = {"1884": mqtt, "8081": http, "8080": server.http_port, "5433": server.pg_port}
        self.token = self.behind["gateway-1"].token
        bound = dict(zip(("1883", "8080", "5433", "8404"), free_ports(4), strict=True))
        self.mqtt_port, self.http_port, self.pg_port, self.figures_port = bound.values()
        self.config = folder / "haproxy.cfg"
        text = (DEPLOY / "haproxy/haproxy.cfg").read_text()
        text = re.sub(r"bind :(\d+)", lambda found: f"bind 127.0.0.1:{bound[found.group(1)]}", text)
        # Names are those of containers, and there are fewer open files.
        text = text.replace(" resolvers docker init-addr last,libc,none", "").replace("maxconn 50000", "maxconn 500")
        self.config.write_text(re.sub(r"server ([\w-]+) [\w-]+:(\d+)(.*)", self.here, text))

    def here(self, found):
        """The line of a server, with its address here."""
        ports = self.ports[found.group(1)]
        rest = re.sub(r"check port (\d+)", lambda port: f"check port {ports[port.group(1)]}", found.group(3))
        return f"server {found.group(1)} 127.0.0.1:{ports[found.group(2)]}{rest}"

    def has(self, state, count):
        """Whether the balancer sees so many servers in a state."""
        try:
            text = requests.get(f"http://127.0.0.1:{self.figures_port}/metrics", timeout=5).text
        except requests.ConnectionError:
            return False
        return len(re.findall(rf'^haproxy_server_status\{{.*state="{state}"\}} 1$', text, re.MULTILINE)) == count

    def publish(self, number):
        """One event of one of many clients."""
        client = Client(self, client_id=f"balanced-{number}", login=("admin", self.token))
        client.connect()
        client.paho.publish(f"devices/balanced-{number}/state", '{"v": 1}', qos=1).wait_for_publish(10)
        client.paho.disconnect()

    def count(self, query, name):
        """The one number that a server answers."""
        server = self.behind[name]
        answer = server.post("/api/v1/sql", json={"query": query}, headers={"Authorization": f"Bearer {self.token}"})
        return list(answer.json()["rows"][0].values())[0]


def test_the_balancer_leads_everybody_to_the_right_place(new_server, tmp_path, request, service):
    haproxy = tool("haproxy")
    address = service("postgres")
    name = f"deploy_{os.getpid()}"
    with psycopg.connect(address, autocommit=True) as client:
        client.execute(f"DROP DATABASE IF EXISTS {name}")
        client.execute(f"CREATE DATABASE {name}")
    front = Front(new_server, f"{address.rsplit('/', 1)[0]}/{name}", tmp_path)
    with (tmp_path / "haproxy.log").open("wb") as log:
        balancer = subprocess.Popen([haproxy, "-db", "-f", front.config], stdout=log, stderr=log)
    request.addfinalizer(lambda: (balancer.kill(), balancer.wait()))
    eventually(lambda: front.has("UP", 10), 20, "the balancer knows that all are up")

    # MQTT: one client, one gateway, however often it comes; clients are spread over both.
    for number in range(24):
        front.publish(number // 2)
    events = "SELECT count(*) FROM raw_events WHERE topic LIKE 'devices/balanced-%'"
    eventually(lambda: sum(front.count(events, name) for name in front.gateways) == 24, 10, "all events are in")
    clients = [
        {number for number in range(12) if front.count(f"{events} AND device_id = 'balanced-{number}'", name) == 2}
        for name in front.gateways
    ]
    assert all(clients) and not clients[0] & clients[1] and len(clients[0] | clients[1]) == 12, clients

    # HTTP: events to gateways, questions to API nodes.
    base, headers = f"http://127.0.0.1:{front.http_port}", {"Authorization": f"Bearer {front.token}"}
    for number in range(8):
        path = "/api/v1/devices/over-http/events/state"
        posted = requests.post(base + path, json={"v": number}, headers=headers, timeout=10)
        assert posted.status_code == 200, posted.text
    taken = "SELECT count(*) FROM raw_events WHERE device_id = 'over-http'"
    eventually(lambda: sum(front.count(taken, name) for name in front.gateways) == 8, 10, "all posts are in")
    assert [front.count(taken, name) for name in front.nodes] == [0, 0], "an API node was sent events"
    assert requests.get(f"{base}/readyz", timeout=5).text == "ready\n"
    answer = requests.post(f"{base}/api/v1/sql", json={"query": taken}, headers=headers, timeout=10).json()
    assert list(answer["rows"][0].values()) == [0], "a gateway was asked"

    # The PostgreSQL protocol: to an API node.
    login = f"host=127.0.0.1 port={front.pg_port} user=grafana dbname=main password={front.token}"
    with psycopg.connect(login) as sql:
        assert sql.execute(taken).fetchone() == (0,), "a gateway was asked"

    # One gateway goes: its clients come to the other.
    front.behind["gateway-1"].kill()
    eventually(lambda: front.has("DOWN", 3), 20, "the balancer knows that it is down")
    for number in range(12):
        front.publish(number)
    there = 12 + 2 * len(clients[1])
    eventually(lambda: front.count(events, "gateway-2") == there, 10, "the other gateway took them over")


def test_prometheus_scrapes_the_binary(new_server, tmp_path, request):
    prometheus = tool("prometheus")
    # Not on loopback, so that only a token opens its figures: as in compose.yaml.
    server: Server = new_server(hosts={"mqtt": "0.0.0.0"}).start()
    made = server.post("/api/v1/tokens", headers=server.admin, json={"name": "prometheus", "role": "reader"})
    (tmp_path / "token").write_text(made.json()["token"])
    assert server.get("/metrics").status_code == 401
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(DEPLOY / "prometheus/rules.yml")]
    (job,) = (job for job in config["scrape_configs"] if job["job_name"] == "catchment")
    job["authorization"]["credentials_file"] = str(tmp_path / "token")
    job["static_configs"] = [{"targets": [f"127.0.0.1:{server.http_port}"], "labels": {"role": "all"}}]
    config["scrape_configs"] = [job]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    (port,) = free_ports(1)
    command = [
        prometheus,
        f"--config.file={tmp_path / 'prometheus.yml'}",
        f"--storage.tsdb.path={tmp_path / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (tmp_path / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path)
    request.addfinalizer(lambda: (process.kill(), process.wait()))

    def ask(query):
        answer = requests.get(f"http://127.0.0.1:{port}/api/v1/query", params={"query": query}, timeout=5)
        assert answer.status_code == 200, f"{query}: {answer.text}"
        return answer.json()["data"]["result"]

    def scraped():
        try:
            return [found["value"][1] for found in ask('up{job="catchment"}')] == ["1"]
        except requests.ConnectionError:
            return False

    eventually(scraped, 30, "Prometheus scrapes it")
    server.post_event("deploy-scraped", {"v": 1}, headers=server.admin)
    eventually(lambda: ask("catchment_log_appended_events_total")[0]["value"][1] == "1", 10, "the event is counted")
    # Every question of the dashboards is one that Prometheus can answer.
    for where, expression in expressions():
        ask(expression.replace("$instance", ".*"))
    alerts = requests.get(f"http://127.0.0.1:{port}/api/v1/rules", timeout=5).json()["data"]["groups"]
    rules = [rule for group in alerts for rule in group["rules"]]
    assert len(rules) >= 10 and {rule["health"] for rule in rules} <= {"ok", "unknown"}
    assert not [rule["name"] for rule in rules if rule["state"] == "firing"]
