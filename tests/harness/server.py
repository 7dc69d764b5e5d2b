"""The product as a process: started on free ports of loopback with a data folder, killed, started again."""

import os
import random
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import requests

from .wait import eventually

ROOT = Path(__file__).resolve().parents[2]
START_LIMIT_S = 30
STOP_LIMIT_S = 30


def _binary():
    if path := os.environ.get("CATCHMENT_BIN"):
        return Path(path)
    return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "catchment"


BINARY = _binary()


def free_ports(count):
    """Ports that nobody listens on, below the range that clients are given, so that no client takes one between two
    starts of a server."""
    ports, chosen = [], random.SystemRandom()
    while len(ports) < count:
        port = chosen.randrange(15000, 32000)
        if port not in ports and is_free(port):
            ports.append(port)
    return ports


def is_free(port):
    """Whether nobody listens on a port of loopback."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def clean_environment(**extra):
    """The environment without settings of the product that the developer may have."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CATCHMENT_")}
    return {**kept, "NO_COLOR": "1", **extra}


def run(*arguments, stdin=None, limit_s=30, **environment):
    """Runs the binary to its end; gives what it printed and how it ended."""
    return subprocess.run(
        [BINARY, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=limit_s,
        env=clean_environment(**environment),
        check=False,
    )


class Caller:
    """What one asks a platform over HTTP. Needs `session`, `token` and `url(path)`."""

    @property
    def admin(self):
        """Headers of a request as the administrator."""
        return {"Authorization": f"Bearer {self.token}"}

    def get(self, path, **options):
        """A GET request."""
        return self.session.get(self.url(path), timeout=30, **options)

    def post(self, path, **options):
        """A POST request."""
        return self.session.post(self.url(path), timeout=30, **options)

    def post_event(self, device, body, event_type="state", **options):
        """Posts one event, or several, and asserts that they were taken."""
        kind = "data" if isinstance(body, (str, bytes)) else "json"
        answer = self.post(f"/api/v1/devices/{device}/events/{event_type}", **{kind: body}, **options)
        assert answer.status_code == 200, f"{answer.status_code}: {answer.text}"
        return answer

    def snapshot(self, device):
        """The latest readings of a device, metric → value."""
        answer = self.get(f"/api/v1/devices/{device}/snapshot")
        assert answer.status_code == 200, f"{answer.status_code}: {answer.text}"
        return {name: reading["value"] for name, reading in answer.json()["metrics"].items()}

    def sql_answer(self, query, accept="application/json", **fields):
        """The raw answer to a query."""
        return self.post("/api/v1/sql", json={"query": query, **fields}, headers={"Accept": accept})

    def sql(self, query):
        """All rows of a query, each a tuple."""
        answer = self.sql_answer(query, limit_rows=10_000_000)
        assert answer.status_code == 200, f"{query}: {answer.status_code}: {answer.text}"
        document = answer.json()
        assert "error" not in document, f"{query}: {document['error']}"
        return [tuple(row.values()) for row in document["rows"]]

    def value(self, query):
        """The one value of a query with one row and one column."""
        ((value,),) = self.sql(query)
        return value

    def wait_rows(self, query, count):
        """Waits until a query has exactly so many rows, and gives them; more at any moment is a failure at once."""

        def enough():
            rows = self.sql(query)
            if len(rows) > count:
                raise RuntimeError(f"{query}: {len(rows)} rows instead of {count}: {rows[:20]}")
            return len(rows) == count and [rows]

        return eventually(enough, what=f"{count} rows of {query}")[0]


class Server(Caller):
    """One `catchment serve`. Its ports and its data folder stay the same over restarts."""

    def __init__(self, folder, *, config="", hosts=None, flags=(), environment=None):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.data = self.folder / "data"
        self.log_path = self.folder / "server.log"
        self.http_port, self.mqtt_port, self.pg_port = free_ports(3)
        self.hosts = hosts or {}
        self.flags = list(flags)
        self.environment = environment or {}
        if config:
            path = self.folder / "catchment.toml"
            path.write_text(config)
            self.flags += ["--config", str(path)]
        self.process = None
        self.session = requests.Session()

    # Its life.

    def spawn(self):
        """Starts the process without waiting until it answers."""
        assert self.process is None or self.process.poll() is not None, "the server runs already"
        command = [BINARY, "serve", "--data", self.data, *self.listeners(), *self.flags]
        with self.log_path.open("ab") as log:
            log.write(b"---- start\n")
            log.flush()
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=clean_environment(**self.environment),
                cwd=self.folder,
            )
        return self

    def listeners(self):
        """The flags that say where it listens: on loopback, unless `hosts` names others."""
        ports = {"http": self.http_port, "mqtt": self.mqtt_port, "pg": self.pg_port}
        addresses = {name: f"{self.hosts.get(name, '127.0.0.1')}:{port}" for name, port in ports.items()}
        return [part for name, address in addresses.items() for part in (f"--{name}", address)]

    def start(self):
        """Starts the process and waits until it is ready."""
        self.spawn()
        self.wait_ready()
        return self

    def wait_ready(self):
        """Waits until the server says that it takes and answers everything."""

        def ready():
            ended = self.process.poll()
            if ended is not None:
                raise RuntimeError(f"the server ended with {ended}:\n{self.log_tail()}")
            return requests.get(self.url("/readyz"), timeout=5).status_code == 200

        eventually(ready, START_LIMIT_S, "the server is ready")

    def kill(self):
        """As a power cut does it to the process."""
        self.process.kill()
        self.process.wait()
        # Its connections died with it; a pooled one would fail the next request.
        self.session.close()

    def stop(self, sent=signal.SIGINT):
        """Ends it as an operator does; gives the seconds that it took."""
        began = time.monotonic()
        self.process.send_signal(sent)
        code = self.process.wait(timeout=STOP_LIMIT_S)
        took = time.monotonic() - began
        self.session.close()
        assert code == 0, f"the server ended with {code}:\n{self.log_tail()}"
        return took

    def restart(self):
        """Kill and start."""
        self.kill()
        return self.start()

    def close(self):
        """For the end of a test: whatever state it is in."""
        if self.process is not None and self.process.poll() is None:
            self.kill()

    def log(self):
        """All that it printed."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def log_tail(self, lines=80):
        """The end of what it printed."""
        return "\n".join(self.log().splitlines()[-lines:])

    def processor_seconds(self):
        """Time that all its threads have spent computing."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self):
        """Memory that it holds."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status).group(1)) * 1024

    @property
    def token(self):
        """The administrator's."""
        return (self.data / "admin.token").read_text().strip()

    def url(self, path):
        """Of a path on its HTTP port."""
        return f"http://127.0.0.1:{self.http_port}{path}"
