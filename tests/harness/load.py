"""Publishers that know exactly which of their events were acknowledged, whatever happens to the server.

Each sends events `{"seq": 0}`, `{"seq": 1}`, … as a device of its own, one number for each event that it means.
"""

import json
import struct
import threading
import time

import requests

from . import raw_mqtt as raw
from .buckets import COLD
from .wait import eventually

ERRORS = (OSError, EOFError, requests.RequestException)


class Publisher(threading.Thread):
    """What the kinds of publishers share. Read `acknowledged` and `sent` only after `finish`."""

    # One event of so many is of a day that is over for long.
    cold_every = 0

    def __init__(self, server, device):
        super().__init__(name=device, daemon=True)
        self.server, self.device = server, device
        self.acknowledged = set()
        self.sent = 0
        self.resent = 0
        self.wrong = []
        self.is_over = threading.Event()

    def finish(self):
        """Stops and waits."""
        self.is_over.set()
        self.join(timeout=30)
        assert not self.is_alive(), f"{self.device} hangs"
        assert self.wrong == [], self.wrong

    def run(self):
        while not self.is_over.is_set():
            try:
                self.session()
            except ERRORS:
                time.sleep(0.01)
            except Exception as error:
                self.wrong.append(repr(error))
                return

    def document(self, seq, *, is_last=False):
        """The payload of an event: about 200 bytes, so that a block of the log holds some hundred. The last is of now."""
        document = {"seq": seq, "text": f"{self.device} says {seq}", "padding": "x" * 150}
        if self.cold_every and seq % self.cold_every == 0 and not is_last:
            document["ts"] = f"{COLD[seq // self.cold_every % len(COLD)]}T12:00:00Z"
        return json.dumps(document).encode()


class MqttPublisher(Publisher):
    """QoS 1 with a window. After a lost connection it either sends again what was not acknowledged, as a client with a
    persistent session does, or goes on with new events, as one without does."""

    WINDOW = 64

    def __init__(self, server, device, *, resends):
        super().__init__(server, device)
        self.resends = resends
        self.open = {}

    def session(self):
        with raw.Connection(self.server.mqtt_port, limit_s=5) as connection:
            connection.open(version=4, client_id=self.device)
            if self.resends:
                self.resent += len(self.open)
                connection.send(b"".join(self._packet(seq, duplicate=True) for seq in self.open.values()))
            else:
                self.open.clear()
            while not self.is_over.is_set() or self.open:
                self._fill(connection)
                # Acknowledgements must come in order, and only for what is open.
                kind, _, body = connection.read()
                packet_id = struct.unpack(">H", body)[0] if kind == raw.PUBACK else None
                if packet_id is None or packet_id != next(iter(self.open)):
                    self.wrong.append(f"got {kind} {body}, open are {list(self.open)[:3]}")
                    self.is_over.set()
                    return
                self.acknowledged.add(self.open.pop(packet_id))

    def _fill(self, connection):
        packets = []
        while len(self.open) < self.WINDOW and not self.is_over.is_set():
            self.open[self._id(self.sent)] = self.sent
            packets.append(self._packet(self.sent))
            self.sent += 1
        connection.send(b"".join(packets))

    @staticmethod
    def _id(seq):
        return seq % 60000 + 1

    def _packet(self, seq, duplicate=False):
        topic = f"devices/{self.device}/load"
        return raw.publish(topic, self.document(seq), packet_id=self._id(seq), version=4, duplicate=duplicate)


class HttpPublisher(Publisher):
    """Posts small arrays; never sends one again."""

    BATCH = 10

    def session(self):
        with requests.Session() as session:
            while not self.is_over.is_set():
                batch = range(self.sent, self.sent + self.BATCH)
                self.sent += self.BATCH
                body = b"\n".join(self.document(seq) for seq in batch)
                url = self.server.url(f"/api/v1/devices/{self.device}/events/load")
                headers = {"Content-Type": "application/x-ndjson"}
                answer = session.post(url, data=body, headers=headers, timeout=5)
                if answer.status_code == 200:
                    self.acknowledged.update(batch)
                elif answer.status_code != 503:
                    self.wrong.append(f"{answer.status_code}: {answer.text}")
                    self.is_over.set()


def publishers(server, name, *, resending=2, forgetful=2, http=2, cold_every=0):
    """A mix, not started yet."""
    load = (
        [MqttPublisher(server, f"{name}-resending-{n}", resends=True) for n in range(resending)]
        + [MqttPublisher(server, f"{name}-forgetful-{n}", resends=False) for n in range(forgetful)]
        + [HttpPublisher(server, f"{name}-http-{n}") for n in range(http)]
    )
    for publisher in load:
        publisher.cold_every = cold_every
    return load


def check_stored(server, publisher):
    """Every acknowledged event is stored, and none twice: an event that was sent again may be there as often as it was
    sent, as an event with an offset of its own each time."""
    rows = server.sql(
        f"SELECT metric_value FROM raw_metrics WHERE device_id = '{publisher.device}' AND metric_name = 'seq'"
    )
    stored = [int(seq) for (seq,) in rows]
    distinct = set(stored)
    lost = publisher.acknowledged - distinct
    assert not lost, f"{publisher.device}: {len(lost)} acknowledged events are lost: {sorted(lost)[:10]}"
    assert distinct <= set(range(publisher.sent)), f"{publisher.device}: events that were never sent"
    doubled = len(stored) - len(distinct)
    assert doubled <= publisher.resent, f"{publisher.device}: {doubled} events are stored twice"
    return len(stored)


def say_last(server, load, node=None, limit_s=90):
    """One more event of each device, which is the last of its partition, until it is seen, at `node` if one is named: then
    everything before it is."""
    for publisher in load:
        server.post_event(publisher.device, publisher.document(publisher.sent, is_last=True), "load")
        publisher.acknowledged.add(publisher.sent)
        publisher.sent += 1
    for publisher in load:
        query = (
            f"SELECT 1 FROM raw_metrics WHERE device_id = '{publisher.device}' AND metric_name = 'seq'"
            f" AND metric_value = {publisher.sent - 1}"
        )
        seen = node or server
        eventually(lambda query=query: seen.sql(query), limit_s, f"the last event of {publisher.device}")


def check_once(server, load):
    """Everything acknowledged is there, once, in the rollup too."""
    stored = sum(check_stored(server, publisher) for publisher in load)
    assert server.value("SELECT count(*) FROM raw_events") == stored
    doubled = "SELECT log_partition, log_offset FROM raw_events GROUP BY 1, 2 HAVING count(*) > 1 LIMIT 5"
    assert server.sql(doubled) == []
    assert server.value("SELECT sum(count) FROM aggregated_metrics WHERE metric_name = 'seq'") == stored


def check_all(server, load):
    """Says the last words, and checks."""
    say_last(server, load)
    check_once(server, load)
