"""Attackers, each a process of its own that can be stopped and let go on; and what they cost somebody who is not one.

A quiet client publishes one message of QoS 1 after the other and waits for each PUBACK. Windows in which the attacker stands
still and windows in which it runs take turns, so that whatever else the machine does falls on both. Attackers have the lowest
priority: in reality they have machines of their own.
"""

import http.client
import multiprocessing
import os
import signal
import socket
import ssl
import statistics
import struct
import threading
import time

from . import raw_mqtt as raw
from .wait import eventually

# More make better figures: `CATCHMENT_ATTACK_PAIRS=15 cargo xtask test -k attacks`.
PAIRS = int(os.environ.get("CATCHMENT_ATTACK_PAIRS", "5"))
# A window lasts so long, with a pause after each message.
WINDOW_S = 0.4
PAUSE_S = 0.003
# What the quiet client may see at worst before a test fails, so many times longer and by so much: machines that are shared
# stall by themselves.
RATIO_MAX = 5.0
SLOWER_MS_MAX = 50.0
SECONDS_MAX = 5.0


class Attack:
    """An attacker. `act(ready, …)` runs for ever in another process and calls `ready()` once it is at full strength."""

    def __init__(self, act, *arguments):
        context = multiprocessing.get_context("fork")
        self._ready = context.Event()
        self._process = context.Process(target=self._run, args=(act, arguments), daemon=True)

    def _run(self, act, arguments):
        os.nice(19)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        act(self._ready.set, *arguments)

    def __enter__(self):
        self._process.start()
        assert self._ready.wait(60), "the attacker does not get to work"
        return self

    def __exit__(self, *_):
        self.go_on()
        self._process.kill()
        self._process.join()

    def rest(self):
        """Stands still; its connections stay."""
        os.kill(self._process.pid, signal.SIGSTOP)

    def go_on(self):
        """Attacks."""
        os.kill(self._process.pid, signal.SIGCONT)

    def check(self):
        """An attacker that failed attacks nobody."""
        assert self._process.is_alive(), "the attacker has ended"


def round_trips(connection, topic):
    """Seconds from PUBLISH to PUBACK, of all messages of a window."""
    took, ends = [], time.perf_counter() + WINDOW_S
    while time.perf_counter() < ends:
        packet_id = len(took) + 1
        began = time.perf_counter()
        connection.send(raw.publish(topic, b'{"n": 1}', packet_id=packet_id))
        kind, _, body = connection.read()
        took.append(time.perf_counter() - began)
        assert (kind, body[:2]) == (raw.PUBACK, struct.pack(">H", packet_id)), (kind, body)
        time.sleep(PAUSE_S)
    return took


def idle(server):
    """Whether the server does next to nothing."""
    before = server.processor_seconds()
    time.sleep(0.1)
    return server.processor_seconds() - before < 0.03


def measure(name, server, *attacks, credentials=None):
    """Prints and gives how many times longer a quiet client waits while somebody attacks."""
    options = {}
    if credentials:
        options = {"flags": 0xC2, "payload": b"".join(map(raw.text, ["quiet", *credentials]))}
    device = credentials[0] if credentials else "quiet"
    with raw.Connection(server.mqtt_port, limit_s=SECONDS_MAX) as quiet:
        quiet.open(**options)
        topic = f"devices/{device}/state"
        round_trips(quiet, topic)
        ratios, calm, troubled = [], [], []
        for _ in range(PAIRS):
            for attack in attacks:
                attack.rest()
            # What the server was given before is done with first: a window with it is no calm one.
            eventually(lambda: idle(server), 30, "the server comes to rest")
            calm.append(round_trips(quiet, topic))
            for attack in attacks:
                attack.go_on()
            time.sleep(0.1)
            troubled.append(round_trips(quiet, topic))
            ratios.append(statistics.median(troubled[-1]) / statistics.median(calm[-1]))
            for attack in attacks:
                attack.check()
    ratio = statistics.median(ratios)

    def ms(windows, share):
        took = sorted(sum(windows, []))
        return took[int(share * (len(took) - 1))] * 1000

    print(
        f"\nattack | {name} | ratio {ratio:.2f} ({min(ratios):.2f}–{max(ratios):.2f}) | "
        f"p50 {ms(calm, 0.5):.2f} → {ms(troubled, 0.5):.2f} ms | p99 {ms(calm, 0.99):.2f} → {ms(troubled, 0.99):.2f} ms"
    )
    slower_ms = ms(troubled, 0.5) - ms(calm, 0.5)
    harm = f"{name}: a quiet client waits {ratio:.1f} times as long, by {slower_ms:.1f} ms"
    assert ratio < RATIO_MAX or slower_ms < SLOWER_MS_MAX, harm
    return ratio


# What attackers do. Each takes `ready` and what it needs to know, and never returns.


def _open(port, count):
    found = []
    for _ in range(count):
        opened = socket.create_connection(("127.0.0.1", port), timeout=10)
        opened.setblocking(False)
        found.append(opened)
    return found


def _push(opened, data):
    """Sends what goes; `False` when the server has closed."""
    try:
        opened.send(data)
    except BlockingIOError:
        pass
    except OSError:
        return False
    return True


def busy(ready):
    """Computes, and leaves the server alone: what an attacker's own use of a processor costs."""
    ready()
    while True:
        pass


def slow_starts(ready, port, count, data):
    """Slow loris: connections that say what they have to say byte by byte, and come again when they are sent away."""
    places = [(opened, 0) for opened in _open(port, count)]
    ready()
    while True:
        for at, (opened, sent) in enumerate(places):
            if sent < len(data) and _push(opened, data[sent : sent + 1]):
                places[at] = (opened, sent + 1)
            else:
                opened.close()
                places[at] = (_open(port, 1)[0], 0)
        time.sleep(0.2)


def half_open(ready, port, count, topic):
    """Clients that subscribe to much and then are gone without a word: they take nothing and send nothing."""
    held = []
    for number in range(count):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", port))
        body = struct.pack(">H", 1) + b"\0" + raw.text(f"{topic}/#") + b"\1"
        connection.sendall(raw.connect(5, f"gone-{number}", keep_alive_s=0) + raw.packet(raw.SUBSCRIBE, 2, body))
        held.append(connection)
    ready()
    flood(lambda: None, port, raw.publish(f"{topic}/x", b"y" * 2000, qos=0), 1)


def flood(ready, port, data, count, first=b""):
    """Connections that send the same again and again as fast as they may, and read what they are answered."""
    data *= max(1, 65536 // len(data))
    places = []
    for number in range(count):
        connection = raw.Connection(port)
        # What waits in the network when the attacker stands still would be an attack that goes on.
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 15)
        connection.open(client_id=f"flood-{os.getpid()}-{number}")
        connection.send(first)
        connection.socket.setblocking(False)
        places.append([connection.socket, 0])
    ready()
    while True:
        for place in places:
            opened, sent = place
            try:
                while opened.recv(65536):
                    pass
                raise EOFError
            except BlockingIOError:
                pass
            try:
                place[1] = (sent + opened.send(data[sent:])) % len(data)
            except BlockingIOError:
                pass
        time.sleep(0.0005)


def announced(ready, port, count, size):
    """Packets that are announced to be large and never come to their end."""
    head = bytes([raw.PUBLISH << 4]) + raw.length(size)
    while True:
        places = []
        for number in range(count):
            connection = raw.Connection(port)
            connection.open(client_id=f"large-{number}")
            connection.send(head + b"\0\1a\0" + bytes(1000))
            places.append(connection)
        for _ in range(20):
            for connection in places:
                _push(connection.socket, bytes(1000))
            ready()
            time.sleep(0.05)
        for connection in places:
            connection.close()


def many_topics(ready, port, count, levels):
    """Topics that nobody had before, as deep as they may be, two messages of each."""
    connection = raw.Connection(port)
    connection.open(client_id="topics")
    tail = "/x" * (levels - 2)
    number = 0
    while True:
        packets = []
        for _ in range(count):
            number += 1
            packets.append(raw.publish(f"t/{number}{tail}", b"", qos=0))
        connection.send(b"".join(packets))
        ready()


def subscriptions(ready, port, clients, filters, levels):
    """Filters that overlap in every way that one topic allows, and messages of that topic."""
    places = []
    for number in range(clients):
        connection = raw.Connection(port)
        connection.open(client_id=f"filters-{number}")
        wanted = []
        for bits in range(filters):
            parts = ["a" if bits >> at & 1 else "+" for at in range(min(levels, 10))] + ["a"] * max(0, levels - 10)
            wanted.append(raw.text("/".join(parts)) + b"\0")
        body = struct.pack(">H", 1) + b"\0" + b"".join(wanted)
        connection.send(raw.packet(raw.SUBSCRIBE, 2, body))
        places.append(connection)
    time.sleep(1)
    topic = "/".join("a" * levels)
    flood(ready, port, raw.publish(topic, b"", qos=0), 2)


def passing(ready, port, filters, levels):
    """Filters that a topic leads past, level after level, and none of which it fits in the end; each message has a new one."""
    connection = raw.Connection(port)
    connection.open(client_id="filters")
    ends = ["+"] * (levels - 11) + ["never"]
    wanted = [["a" if bits >> at & 1 else "+" for at in range(10)] + ends for bits in range(filters)]
    body = struct.pack(">H", 1) + b"\0" + b"".join(raw.text("/".join(parts)) + b"\0" for parts in wanted)
    connection.send(raw.packet(raw.SUBSCRIBE, 2, body))
    time.sleep(1)
    way = "/".join("a" * (levels - 1))
    flood(ready, port, b"".join(raw.publish(f"{way}/{number}", b"", qos=0) for number in range(200)), 2)


def subscribing(ready, port, clients):
    """One packet after the other that subscribes to the same a thousand times, and to what is not there no more."""
    one = raw.text("a/+/b") + b"\0"
    subscribe = raw.packet(raw.SUBSCRIBE, 2, struct.pack(">H", 1) + b"\0" + one * 1000)
    unsubscribe = raw.packet(raw.UNSUBSCRIBE, 2, struct.pack(">H", 1) + b"\0" + raw.text("b/+") * 1000)
    flood(ready, port, subscribe + unsubscribe, clients)


def bad_passwords(ready, port, username, at_once):
    """Connections with wrong passwords, as many at once and as fast as they are refused."""
    number = 0
    while True:
        places = []
        for _ in range(at_once):
            number += 1
            payload = raw.text("x") + raw.text(username) + raw.text(f"guess {number}")
            try:
                connection = raw.Connection(port)
                connection.send(raw.connect(5, flags=0xC2, payload=payload))
                places.append(connection)
            except OSError:
                pass
        for connection in places:
            connection.read_to_end()
            connection.close()
        ready()


def posting(ready, port, path, body, headers, at_once):
    """The same request again and again, several at once."""

    def post():
        connection = http.client.HTTPConnection("127.0.0.1", port)
        while True:
            connection.request("POST", path, body, headers)
            connection.getresponse().read()
            ready()

    for _ in range(at_once):
        threading.Thread(target=post, daemon=True).start()
    time.sleep(3600)


def tls_hello():
    """The first bytes of a TLS client."""
    context = ssl.create_default_context()
    sent, received = ssl.MemoryBIO(), ssl.MemoryBIO()
    shaking = context.wrap_bio(received, sent, server_hostname="localhost")
    try:
        shaking.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return sent.read()
