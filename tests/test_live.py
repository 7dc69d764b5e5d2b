"""Readings pushed over WebSocket."""

import json
import socket
import threading
import time
from contextlib import contextmanager, suppress
from urllib.parse import urlencode

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from harness import eventually


@contextmanager
def live(server, **filters):
    """A subscription; `next_readings` gives what was pushed."""
    query = urlencode(filters, doseq=True)
    with connect(f"ws://127.0.0.1:{server.http_port}/api/v1/live?{query}", open_timeout=10) as pushed_to:
        assert json.loads(pushed_to.recv(timeout=10)) == {"subscribed": ""}
        yield pushed_to


def next_readings(pushed_to, count, limit_s=10):
    """So many readings, in order."""
    readings = []
    while len(readings) < count:
        message = json.loads(pushed_to.recv(timeout=limit_s))
        assert isinstance(message, list), message
        readings += message
    assert len(readings) == count, readings
    return readings


def shown(reading):
    return reading["device_id"], reading["metric"], reading["value"]


def test_a_reading_is_pushed(server, device):
    with live(server, device=device) as pushed_to:
        server.post_event(device, {"n": 1.5, "on": True, "text": "é", "ts": 1_700_000_000 + 0})
        pushed = next_readings(pushed_to, 3)
    assert sorted(shown(reading) for reading in pushed) == [
        (device, "n", 1.5),
        (device, "on", True),
        (device, "text", "é"),
    ]
    assert {reading["type"] for reading in pushed} == {"state"}
    assert {reading["timestamp"] for reading in pushed} == {"2023-11-14T22:13:20.000000Z"}


def test_push_takes_milliseconds(server, device):
    """Not a benchmark: but whoever waits for a flush or a poll interval fails here."""
    with live(server, device=device) as pushed_to:
        delays = []
        for n in range(20):
            began = time.monotonic()
            server.post_event(device, {"n": n})
            assert next_readings(pushed_to, 1)[0]["value"] == n
            delays.append(time.monotonic() - began)
    assert sorted(delays)[10] < 0.5, delays


def test_filters(server, device):
    with (
        live(server, device=device, metric="oil.*") as oil,
        live(server, device=f"{device}*") as both,
        live(server, device=[device, f"{device}-b"], metric=["rpm", "oil.temp"]) as several,
        live(server, device=device, type="other") as other_type,
    ):
        server.post_event(device, {"rpm": 1, "oil": {"temp": 2, "bar": 3}})
        server.post_event(f"{device}-b", {"rpm": 4})
        server.post_event(device, {"end": 5}, event_type="other")
        assert sorted(map(shown, next_readings(oil, 2))) == [(device, "oil.bar", 3), (device, "oil.temp", 2)]
        assert {shown(reading) for reading in next_readings(both, 5)} == {
            (device, "rpm", 1),
            (device, "oil.temp", 2),
            (device, "oil.bar", 3),
            (f"{device}-b", "rpm", 4),
            (device, "end", 5),
        }
        assert {shown(reading) for reading in next_readings(several, 3)} == {
            (device, "rpm", 1),
            (device, "oil.temp", 2),
            (f"{device}-b", "rpm", 4),
        }
        assert [shown(reading) for reading in next_readings(other_type, 1)] == [(device, "end", 5)]


def test_order_of_a_device_is_kept(server, device):
    with live(server, device=device) as pushed_to:
        for first in range(0, 1000, 100):
            server.post_event(device, [{"n": n} for n in range(first, first + 100)])
        assert [reading["value"] for reading in next_readings(pushed_to, 1000)] == list(range(1000))


def test_a_lagging_reader_is_told_and_harms_nobody(new_server):
    """One client does not read at all while megabytes are pushed; others go on, and it hears how much it missed."""
    server = new_server().start()
    document = {"text": "x" * 5000}
    stop = threading.Event()
    slowly = f"ws://127.0.0.1:{server.http_port}/api/v1/live?device=d"
    with live(server, device="d") as quick, connect(slowly, max_queue=1, open_timeout=10) as slow:
        received = []

        def read_quick():
            while not stop.is_set():
                with suppress(TimeoutError):
                    received.append(json.loads(quick.recv(timeout=0.2)))

        reader = threading.Thread(target=read_quick)
        reader.start()
        for _ in range(40):
            server.post_event("d", [document] * 100)
        server.wait_rows("SELECT 1 FROM raw_metrics", 4000)
        eventually(lambda: len(received) > 0)
        lagged = 0
        try:
            while not lagged:
                message = json.loads(slow.recv(timeout=5))
                lagged = message.get("lagged", 0) if isinstance(message, dict) else 0
        finally:
            stop.set()
            reader.join()
    assert lagged > 0


def test_a_client_that_goes_is_forgotten(server, device):
    for _ in range(50):
        with connect(f"ws://127.0.0.1:{server.http_port}/api/v1/live?device={device}") as gone:
            gone.socket.shutdown(socket.SHUT_RDWR)
    with live(server, device=device) as still:
        server.post_event(device, {"n": 1})
        assert next_readings(still, 1)[0]["value"] == 1


def test_several_subscriptions_on_one_connection(server, device):
    with connect(f"ws://127.0.0.1:{server.http_port}/api/v1/live") as pushed_to:
        say(pushed_to, {"op": "subscribe", "id": "a", "device": device, "metric": ["rpm"]}, {"subscribed": "a"})
        say(
            pushed_to,
            {"op": "subscribe", "id": "b", "device": [device, f"{device}-b"], "type": "state"},
            {"subscribed": "b"},
        )
        server.post_event(device, {"rpm": 1, "oil": 2})
        pushed = [(reading["id"], *shown(reading)) for reading in next_readings(pushed_to, 3)]
        assert sorted(pushed) == [("a", device, "rpm", 1), ("b", device, "oil", 2), ("b", device, "rpm", 1)]
        say(pushed_to, {"op": "unsubscribe", "id": "b"}, {"unsubscribed": "b"})
        server.post_event(device, {"rpm": 3})
        assert [reading["id"] for reading in next_readings(pushed_to, 1)] == ["a"]


def say(pushed_to, message, answer):
    pushed_to.send(json.dumps(message))
    assert json.loads(pushed_to.recv(timeout=10)) == answer


def test_the_latest_values_come_first(server, device):
    server.post_event(device, {"n": 1, "t": "x"})
    server.wait_rows(f"SELECT 1 FROM raw_metrics WHERE device_id = '{device}'", 2)
    with live(server, device=device, snapshot="true") as pushed_to:
        first = next_readings(pushed_to, 2)
        assert sorted(map(shown, first)) == [(device, "n", 1), (device, "t", "x")]
        assert all(reading["snapshot"] is True for reading in first)
        server.post_event(device, {"n": 2})
        (pushed,) = next_readings(pushed_to, 1)
        assert shown(pushed) == (device, "n", 2) and not pushed.get("snapshot")


def test_a_wrong_message_is_answered(server):
    with connect(f"ws://127.0.0.1:{server.http_port}/api/v1/live") as pushed_to:
        for message in ("no json", '{"op": "dance"}', '{"op": "subscribe"}', '{"op": "unsubscribe", "id": "none"}'):
            pushed_to.send(message)
            answer = json.loads(pushed_to.recv(timeout=10))
            assert answer["error"] and answer["message"], answer


def test_events_as_received(server, device):
    with connect(f"ws://127.0.0.1:{server.http_port}/api/v1/tail?device={device}") as pushed_to:
        assert json.loads(pushed_to.recv(timeout=10)) == {"subscribed": ""}
        server.post_event(device, b"\xff\x00", headers={"Content-Type": "application/octet-stream"})
        server.post_event(device, {"n": 1}, event_type="other")
        first, second = next_readings(pushed_to, 2)
    assert (first["payload_encoding"], first["payload"]) == ("base64", "/wA=")
    assert (second["payload_encoding"], json.loads(second["payload"]), second["type"]) == ("text", {"n": 1}, "other")


def test_bad_parameters_are_refused(server):
    with pytest.raises(InvalidStatus) as refusal, live(server, dvice="a"):
        pass
    assert refusal.value.response.status_code == 400
    assert server.get("/api/v1/live?device=a").status_code in (400, 426)
