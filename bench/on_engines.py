#!/usr/bin/env python3
"""What taking events in costs on Kafka, ClickHouse, Redis and PostgreSQL: of Catchment's processes, and of each engine.

    bench/on_engines.py [--seconds 20] [--rate 0] [--json]

Starts the engines (`cargo xtask services`), one process of each role on them, and `catchment bench ingest`; everything runs on this
machine, the load generator too. ClickHouse is its engine behind a small HTTP front (tests/services/clickhouse), which the
figures of "clickhouse" include, and which does one statement after the other. Then, as the floor, a plain consumer brings the
same topic from Kafka into ClickHouse: undecoded, without rollups, exactly once, latest values or anybody who asks.

Needs: a release build, or CATCHMENT_BIN; the floor's, `cargo build --release --workspace --examples`, or no floor is measured; and what
the tests need (Python with tests/requirements.txt).
"""

import argparse
import json
import os
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


def cpu_seconds(pid):
    """User and system, so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def floor(cluster, clickhouse_pid):
    """What the plain consumer costs for all that is in the topic now."""
    program = BINARY.parent / "examples" / "kafka_to_clickhouse"
    if not program.exists():
        print(f"the floor: not measured, there is no {program}")
        return
    before = cpu_seconds(clickhouse_pid)
    command = [program, cluster.kafka, cluster.name, cluster.clickhouse, cluster.name]
    done = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    millions = done["events"] / 1e6
    print(
        f"the floor: {done['events']} events in {done['seconds']} s ({done['events'] / done['seconds']:.0f}/s), CPU seconds"
        f" per million: consumer {done['cpu_seconds'] / millions:.2f},"
        f" clickhouse {(cpu_seconds(clickhouse_pid) - before) / millions:.2f}"
    )


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
            done = subprocess.run(command, check=False)
            floor(cluster, states["clickhouse"]["pid"])
            sys.exit(done.returncode)
        finally:
            cluster.close()
            for server in servers:
                server.close()
            for name, service in services.items():
                if not was_there[name]:
                    service.down()


if __name__ == "__main__":
    main()
