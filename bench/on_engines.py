#!/usr/bin/env python3
"""What taking events in costs on Kafka, ClickHouse, Redis and PostgreSQL: of Catchment's processes, and of each engine.

    bench/on_engines.py [--seconds 20] [--rate 0] [--json]

Starts the engines (`cargo xtask services`), one process of each role on them, and `catchment bench ingest`; everything runs on this
machine, the load generator too. ClickHouse is its engine behind a small HTTP front (tests/services/clickhouse), which the
figures of "clickhouse" include. Needs: a release build, or CATCHMENT_BIN, and what the tests need (Python with tests/requirements.txt).
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from harness import BINARY, Server  # noqa: E402
from harness.cluster import Cluster  # noqa: E402
from harness.services import KINDS  # noqa: E402

ENGINES = ("kafka", "clickhouse", "redis", "postgres")


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seconds", type=int, default=20)
    arguments.add_argument("--rate", type=int, default=0, help="events a second; 0: as fast as they are taken")
    arguments.add_argument("--json", action="store_true")
    asked = arguments.parse_args()
    services, servers = {name: KINDS[name]() for name in ENGINES}, []
    was_there = {name: service.running() for name, service in services.items()}
    addresses = {name: service.up() for name, service in services.items()}
    with tempfile.TemporaryDirectory() as folder:

        def new_server(name, kind=Server, **options):
            servers.append(kind(Path(folder) / name, **options))
            return servers[-1]

        cluster = Cluster(new_server, addresses.__getitem__, Path(folder), each=1)
        try:
            cluster.start()
            pids = ",".join(str(server.process.pid) for server in servers)
            states = {name: json.loads((service.folder / "state.json").read_text()) for name, service in services.items()}
            beside = ",".join(f"{name}={state['pid']}" for name, state in states.items())
            command = [BINARY, "bench", "ingest", "--target", f"127.0.0.1:{cluster.of('gateway')[0].mqtt_port}"]
            command += ["--url", cluster.of("api")[0].url(""), "--token", cluster.token, "--pid", pids, "--beside", beside]
            command += ["--duration", str(asked.seconds), "--rate", str(asked.rate), *(["--json"] if asked.json else [])]
            sys.exit(subprocess.run(command, check=False).returncode)
        finally:
            cluster.close()
            for server in servers:
                server.close()
            for name, service in services.items():
                if not was_there[name]:
                    service.down()


if __name__ == "__main__":
    main()
