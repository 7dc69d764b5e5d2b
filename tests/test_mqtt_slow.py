"""Clients that do not read, or want everything at once: they get what the standard gives them, and nobody else waits for it."""

import time

from harness import eventually
from harness import raw_mqtt as raw
from mqtt_conformance.registry import V5
from mqtt_conformance.wire import Broker, publish, subscribe

RETAINED = 20_000


def metric(server, line_start):
    """A figure of /metrics; 0 when it is not there."""
    lines = [line for line in server.get("/metrics").text.splitlines() if line.startswith(line_start)]
    return float(lines[0].rsplit(" ", 1)[1]) if lines else 0.0


def test_a_client_that_pings_but_never_reads_is_closed(new_server):
    server = new_server(config="[gateway.mqtt]\nwrite_s_max = 2\n").start()
    broker = Broker(server)
    slow, publisher = broker.open(V5, keep_alive=60), broker.open(V5)
    slow.subscribed("much")
    payload = b"x" * 200_000

    def closed():
        # It goes on talking; only its reading has stopped.
        try:
            slow.send(b"\xc0\x00")
        except OSError:
            pass
        publisher.send(publish(V5, "much", payload))
        return metric(server, 'catchment_gateway_disconnects_total{reason="write_timeout"}') == 1

    began = time.monotonic()
    eventually(closed, 20)
    assert time.monotonic() - began > 1.5
    publisher.pending()
    broker.close()


def test_a_thousand_filters_over_many_retained_messages_hold_nobody_up(new_server):
    server = new_server().start()
    broker = Broker(server)
    publisher, other = broker.open(V5), broker.open(V5)
    for start in range(0, RETAINED, 1000):
        numbers = range(start, start + 1000)
        publisher.send(*(publish(V5, f"many/{number % 50}/{number}/x", retain=1) for number in numbers))
        publisher.pending()
    greedy = broker.open(V5)
    # Each looks at every topic; the first finds all of them, the others none.
    filters = ["many/#", *(f"many/+/+/none{number}" for number in range(999))]
    greedy.send(subscribe(V5, *filters))
    assert len(greedy.read(raw.SUBACK).reasons) == 1000
    longest = 0.0
    seen = 0
    while seen < RETAINED:
        for _ in range(500):
            assert greedy.read(raw.PUBLISH).retain
        seen += 500
        began = time.monotonic()
        other.pending()
        longest = max(longest, time.monotonic() - began)
    # The scans for nothing go on meanwhile; live messages come between them.
    began = time.monotonic()
    other.publish("many/live", b"now")
    assert greedy.read(raw.PUBLISH).payload == b"now"
    longest = max(longest, time.monotonic() - began)
    assert longest < 1.0, f"somebody waited for {longest:.3f} s"
    broker.close()
