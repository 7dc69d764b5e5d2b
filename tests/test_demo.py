"""`catchment demo`: the platform and its worlds, with nothing else installed."""

import signal
import subprocess
import time

import pytest
import requests

from harness import BINARY, Server, eventually
from harness.server import clean_environment

COINS = {"BTC", "ETH", "DOT", "BTT"}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo in a folder of its own, started as a newcomer would, but on free ports."""
    server = Server(tmp_path_factory.mktemp("demo"))
    command = [BINARY, "demo", "--data", server.data, *server.listeners()]
    with server.log_path.open("wb") as log:
        server.process = subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=clean_environment(), cwd=server.folder
        )
    server.wait_ready()
    yield server
    server.close()


def test_it_tells_where_everything_listens(demo):
    def told():
        log = demo.log()
        return all(str(port) in log for port in (demo.http_port, demo.mqtt_port, demo.pg_port))

    eventually(told)


def test_ten_sensors_and_four_coins_appear(demo):
    devices = {name for (name,) in demo.wait_rows("SELECT device_id FROM devices", 14)}
    assert devices > COINS
    kinds = demo.sql(
        "SELECT type, count(DISTINCT device_id) FROM raw_events WHERE type <> 'demo' GROUP BY 1 ORDER BY 1"
    )
    assert len(kinds) == 6 and sum(count for _, count in kinds) == 10, kinds


def test_each_sends_every_second(demo):
    query = "SELECT device_id, count(*) FROM raw_events GROUP BY 1"
    before, began = dict(demo.sql(query)), time.monotonic()
    eventually(lambda: time.monotonic() - began > 5)
    after, took = dict(demo.sql(query)), time.monotonic() - began
    rates = {device: (after[device] - before[device]) / took for device in before}
    assert len(rates) == 14 and all(0.6 < rate < 1.4 for rate in rates.values()), rates


def test_the_messages_are_those_of_the_market(demo):
    rows = demo.sql("SELECT metric_name FROM snapshot WHERE device_id = 'BTC' ORDER BY 1")
    assert [name for (name,) in rows] == ["data_id", "name", "price"]
    assert demo.snapshot("BTC")["data_id"] == 150 and demo.snapshot("BTC")["name"] == "BTC"


def test_sensors_are_on_the_island(demo):
    rows = demo.sql(
        "SELECT device_id, max(CASE WHEN metric_name = 'location.latitude' THEN metric_value END),"
        " max(CASE WHEN metric_name = 'location.longitude' THEN metric_value END)"
        " FROM snapshot WHERE metric_name LIKE 'location.l%' GROUP BY 1"
    )
    assert len(rows) == 10
    assert all(14.3 < latitude < 15.0 and -61.3 < longitude < -60.7 for _, latitude, longitude in rows), rows


def test_nothing_is_rejected(demo):
    assert demo.sql("SELECT device_id, reason, detail FROM rejects") == []


def test_readings_are_fresh(demo):
    assert demo.value("SELECT max(date_part('epoch', now()) - date_part('epoch', received_at)) FROM snapshot") < 5


def test_the_page_opens(demo):
    assert requests.get(demo.url("/"), timeout=5).status_code == 200


def test_it_stops_on_ctrl_c(demo):
    assert demo.stop(signal.SIGINT) < 12
