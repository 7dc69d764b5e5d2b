#!/usr/bin/env python3
"""Catchment's gateway and Debian's mosquitto, in turn, under the same load.

    bench/beside_mosquitto.py [--pairs 7] [--seconds 5] [--connections 50] [--qos 0,1] [--burst 56] [--json]

Each pair is one run of `catchment bench gateway --scenario fan-in` for each server, one after the other (A B A B …), so that what
else the machine does falls on both. The generator is the same program for both, and its CPU is not in the servers' figures. Every
run meets a new server with an empty folder. Printed are the medians, the least and the most; and the same of the ratio in each
pair. Catchment makes every message durable before PUBACK (`events`) or, as a broker does, not (`brokered`); mosquitto keeps
nothing (its default), and has no subscriber either.

Needs: a release build (`cargo build --release -p catchment`, or CATCHMENT_BIN), mosquitto (`apt install mosquitto`).
"""

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BINARY = Path(os.environ.get("CATCHMENT_BIN", ROOT / "target/release/catchment"))
CONFIGURATION = """\
listener {port} 127.0.0.1
allow_anonymous true
persistence false
log_type error
"""


def find_mosquitto():
    for place in (shutil.which("mosquitto"), "/usr/sbin/mosquitto"):
        if place and Path(place).is_file():
            return place
    sys.exit("there is no mosquitto: apt install mosquitto")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Mosquitto:
    """One mosquitto on a free port, as long as the block lasts."""

    def __init__(self, program):
        self.program = program

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory()
        self.port = free_port()
        configuration = Path(self.folder.name) / "mosquitto.conf"
        configuration.write_text(CONFIGURATION.format(port=self.port))
        self.process = subprocess.Popen([self.program, "-c", configuration])
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return self
            except OSError:
                time.sleep(0.05)
        self.__exit__()
        sys.exit("mosquitto does not answer")

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(10)
        self.folder.cleanup()


def run(options, *arguments):
    """One run of the bench; gives the results of its measurements."""
    load = ("--duration", options.seconds, "--connections", options.connections)
    load = (*load, "--qos", options.qos, "--burst", options.burst)
    command = [BINARY, "bench", "gateway", "--json", "--scenario", "fan-in", *map(str, load), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stderr}")
    return json.loads(done.stdout)["results"]


def measure(options, program, topics):
    """Pairs of (Catchment's, mosquitto's) results."""
    pairs = []
    for number in range(options.pairs):
        ours = run(options, "--topics", topics)
        with Mosquitto(program) as peer:
            theirs = run(options, "--target", f"127.0.0.1:{peer.port}", "--pid", peer.process.pid)
        pairs.append((ours, theirs))
        told = "; ".join(
            f"{one['connections']} connections, QoS {one['qos']}: {one['gateway_and_log_cpu_seconds_per_million']}"
            f" and {other['server_cpu_seconds_per_million']} CPU-s a million"
            for one, other in zip(ours, theirs)
        )
        print(f"{topics}, pair {number + 1} of {options.pairs}: {told}", file=sys.stderr, flush=True)
    return pairs


def spread(values):
    values = [value for value in values if value is not None]
    if not values:
        return None
    return {"median": round(statistics.median(values), 2), "least": min(values), "most": max(values)}


def summary(topics, pairs):
    """A row for each number of connections and QoS."""
    rows = []
    for at, first in enumerate(pairs[0][0]):
        ours = [pair[0][at] for pair in pairs]
        theirs = [pair[1][at] for pair in pairs]
        cpu = "server_cpu_seconds_per_million"
        gateway = [one["gateway_and_log_cpu_seconds_per_million"] for one in ours]
        peer = [one[cpu] for one in theirs]
        rows.append(
            {
                "topics": topics,
                "connections": first["connections"],
                "qos": first["qos"],
                "pairs": len(pairs),
                "catchment_messages_per_second": spread([one["messages_per_second"] for one in ours]),
                "mosquitto_messages_per_second": spread([one["messages_per_second"] for one in theirs]),
                "catchment_gateway_and_log_cpu_s_per_million": spread(gateway),
                "catchment_whole_process_cpu_s_per_million": spread([one[cpu] for one in ours]),
                "catchment_until_in_tables_cpu_s_per_million": spread(
                    [one["until_in_tables_cpu_seconds_per_million"] for one in ours]
                ),
                "mosquitto_cpu_s_per_million": spread(peer),
                "ratio_of_cpu": spread([round(mine / yours, 3) for mine, yours in zip(gateway, peer)]),
            }
        )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--connections", default="50", help="N,…")
    parser.add_argument("--qos", default="0,1")
    parser.add_argument("--burst", type=int, default=56, help="messages that a connection writes at once")
    parser.add_argument("--topics", default="events,brokered", help="events, brokered, or both")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not BINARY.is_file():
        sys.exit(f"there is no {BINARY}: cargo build --release -p catchment, or name another in CATCHMENT_BIN")
    program = find_mosquitto()
    rows = [row for topics in options.topics.split(",") for row in summary(topics, measure(options, program, topics))]
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(f"\n{row['topics']}, {row['connections']} connections, QoS {row['qos']}, {row['pairs']} pairs")
        for name, value in row.items():
            if isinstance(value, dict):
                print(f"  {name:<48} {value['median']:>12}   {value['least']} to {value['most']}")


if __name__ == "__main__":
    main()
