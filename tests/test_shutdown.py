"""Ctrl-C and SIGTERM drain and stop cleanly, in bounded time, under load too."""

import signal
import socket

import pytest
from deltalake import DeltaTable

from harness import eventually
from harness.load import check_stored, publishers
from harness.paho_client import V5, Client

STOP_S_MAX = 12


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_stop_under_load_loses_nothing(new_server, sent):
    server = new_server().start()
    load = publishers(server, "stop", resending=1, forgetful=1, http=1)
    for publisher in load:
        publisher.start()
    eventually(lambda: all(len(publisher.acknowledged) > 500 for publisher in load))
    assert server.stop(sent) < STOP_S_MAX
    server.start()
    for publisher in load:
        publisher.finish()
    for publisher in load:
        eventually(lambda publisher=publisher: check_stored(server, publisher))


def test_idle_stop_is_quick(new_server):
    server = new_server().start()
    server.post_event("a", {"n": 1})
    assert server.stop() < 5


def test_clients_are_told(new_server):
    """A 5.0 client hears 0x8B (server shutting down), not a broken line; an idle one does not hold the stop up."""
    server = new_server().start()
    client = Client(server, V5)
    client.connect()
    assert server.stop() < STOP_S_MAX
    reason = client.disconnects.get(timeout=5)
    client.paho.loop_stop()
    assert reason.value == 0x8B, reason


def test_a_silent_peer_does_not_hold_the_stop_up(new_server):
    server = new_server().start()
    ports = [server.http_port, server.mqtt_port, server.pg_port]
    silent = [socket.create_connection(("127.0.0.1", port)) for port in ports]
    assert server.stop() < STOP_S_MAX
    for peer in silent:
        peer.close()


def test_stop_writes_history(new_server):
    """After an orderly stop the tables on disk are complete: the next start has nothing to take in again."""
    server = new_server().start()
    server.post_event("a", [{"n": n} for n in range(1000)])
    server.wait_rows("SELECT metric_value FROM raw_metrics", 1000)
    server.stop()
    assert DeltaTable(server.data / "history" / "raw_metrics").count() == 1000
