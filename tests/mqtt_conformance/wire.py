"""A client that is bytes: it sends whatever it is told to, and takes apart what the server sends."""

import itertools
import struct
from dataclasses import dataclass, field

from harness import raw_mqtt as raw

from .registry import V5

LIMIT_S = 10
_numbers = itertools.count(1)

# name: identifier, type (b, h, i: 1, 2, 4 bytes; v: variable; s: text; d: bytes; p: pair)
PROPERTIES = {
    "payload_format": (0x01, "b"), "message_expiry": (0x02, "i"), "content_type": (0x03, "s"),
    "response_topic": (0x08, "s"), "correlation_data": (0x09, "d"), "subscription_id": (0x0B, "v"),
    "session_expiry": (0x11, "i"), "assigned_client_id": (0x12, "s"), "server_keep_alive": (0x13, "h"),
    "auth_method": (0x15, "s"), "auth_data": (0x16, "d"), "request_problem_info": (0x17, "b"),
    "will_delay": (0x18, "i"), "request_response_info": (0x19, "b"), "response_info": (0x1A, "s"),
    "server_reference": (0x1C, "s"), "reason_string": (0x1F, "s"), "receive_maximum": (0x21, "h"),
    "topic_alias_maximum": (0x22, "h"), "topic_alias": (0x23, "h"), "maximum_qos": (0x24, "b"),
    "retain_available": (0x25, "b"), "user": (0x26, "p"), "maximum_packet_size": (0x27, "i"),
    "wildcard_available": (0x28, "b"), "subscription_id_available": (0x29, "b"), "shared_available": (0x2A, "b"),
}  # fmt: skip
_BY_ID = {number: (name, kind) for name, (number, kind) in PROPERTIES.items()}
_STRUCTS = {"b": ">B", "h": ">H", "i": ">I"}


def properties(**values):
    """Encoded properties without their length, in the order given; a list means several of the same name."""
    out = b""
    for name, given in values.items():
        number, kind = PROPERTIES[name]
        for value in given if isinstance(given, list) else [given]:
            out += bytes([number])
            if kind in _STRUCTS:
                out += struct.pack(_STRUCTS[kind], value)
            elif kind == "v":
                out += raw.length(value)
            elif kind == "p":
                out += raw.text(value[0]) + raw.text(value[1])
            else:
                out += raw.text(value)
    return out


def block(**values):
    """Properties with their length."""
    encoded = properties(**values)
    return raw.length(len(encoded)) + encoded


class _Reader:
    def __init__(self, data):
        self.data = data

    def take(self, count):
        assert len(self.data) >= count, "the server's packet ends within a field"
        taken, self.data = self.data[:count], self.data[count:]
        return taken

    def number(self, form):
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def variable(self):
        value, shift = 0, 0
        while True:
            digit = self.number(">B")
            value |= (digit & 0x7F) << shift
            if not digit & 0x80:
                return value
            shift += 7

    def binary(self):
        return self.take(self.number(">H"))

    def text(self):
        return self.binary().decode()

    def properties(self):
        inner, found = _Reader(self.take(self.variable())), []
        while inner.data:
            name, kind = _BY_ID[inner.number(">B")]
            if kind in _STRUCTS:
                value = inner.number(_STRUCTS[kind])
            elif kind == "v":
                value = inner.variable()
            elif kind == "p":
                value = (inner.text(), inner.text())
            else:
                value = inner.text() if kind == "s" else inner.binary()
            found.append((name, value))
        return found


@dataclass
class Packet:
    """A packet of the server's, taken apart as its version says; every byte of it is accounted for."""

    kind: int
    flags: int
    size: int = 0
    packet_id: int = 0
    reason: int = 0
    reasons: list = field(default_factory=list)
    session_present: int = 0
    topic: str = ""
    payload: bytes = b""
    properties: list = field(default_factory=list)

    @property
    def qos(self):
        return self.flags >> 1 & 3

    @property
    def retain(self):
        return self.flags & 1

    @property
    def duplicate(self):
        return self.flags >> 3 & 1

    def all(self, name):
        """All values of a property."""
        return [value for found, value in self.properties if found == name]

    def get(self, name):
        """The one value of a property, or None."""
        values = self.all(name)
        assert len(values) <= 1, (name, values)
        return values[0] if values else None


def parse(version, kind, flags, body):
    """Takes a packet apart."""
    packet, reader, v5 = Packet(kind, flags), _Reader(body), version == V5
    packet.size = 1 + len(raw.length(len(body))) + len(body)
    assert kind == raw.PUBLISH or flags == (2 if kind == raw.PUBREL else 0), f"flags {flags} of packet type {kind}"
    if kind == raw.CONNACK:
        packet.session_present, packet.reason = reader.number(">B"), reader.number(">B")
        packet.properties = reader.properties() if v5 else []
    elif kind == raw.PUBLISH:
        packet.topic = reader.text()
        packet.packet_id = reader.number(">H") if packet.qos else 0
        packet.properties = reader.properties() if v5 else []
        packet.payload, reader.data = reader.data, b""
    elif kind in {raw.PUBACK, raw.PUBREC, raw.PUBREL, raw.PUBCOMP}:
        packet.packet_id = reader.number(">H")
        if v5 and reader.data:
            packet.reason = reader.number(">B")
            packet.properties = reader.properties() if reader.data else []
    elif kind in {raw.SUBACK, raw.UNSUBACK}:
        packet.packet_id = reader.number(">H")
        packet.properties = reader.properties() if v5 else []
        packet.reasons, reader.data = list(reader.data), b""
    elif kind == raw.DISCONNECT:
        assert v5, "a 3.1.1 server sends no DISCONNECT"
        packet.reason = reader.number(">B") if reader.data else 0
        packet.properties = reader.properties() if reader.data else []
    else:
        assert kind == raw.PINGRESP, f"packet type {kind}"
    assert reader.data == b"", f"{len(reader.data)} bytes after the packet's end"
    names = [name for name, _ in packet.properties if name not in {"user", "subscription_id"}]
    assert len(names) == len(set(names)), f"a property twice: {names}"
    return packet


def unique(name="c"):
    """A name that no other test uses."""
    return f"{name}{next(_numbers)}"


def connect(version, client_id, *, clean=True, keep_alive=0, will=None, username=None, password=None, **props):
    """CONNECT. `will`: topic, payload, QoS, retain, and a dictionary of properties."""
    flags, payload = 2 if clean else 0, raw.text(client_id)
    if will:
        topic, message, qos, retain, will_props = (*will, *(0, 0, {})[len(will) - 2 :])
        flags |= 4 | qos << 3 | retain << 5
        payload += (block(**will_props) if version == V5 else b"") + raw.text(topic) + raw.text(message)
    for bit, value in ((0x80, username), (0x40, password)):
        if value is not None:
            flags |= bit
            payload += raw.text(value)
    head = raw.text("MQTT") + bytes([version, flags]) + struct.pack(">H", keep_alive)
    return raw.packet(raw.CONNECT, 0, head + (block(**props) if version == V5 else b"") + payload)


def publish(version, topic, payload=b"x", *, qos=0, packet_id=1, retain=0, duplicate=0, **props):
    """PUBLISH."""
    body = raw.text(topic) + (struct.pack(">H", packet_id) if qos else b"")
    body += block(**props) if version == V5 else b""
    return raw.packet(raw.PUBLISH, duplicate << 3 | qos << 1 | retain, body + payload)


def subscribe(version, *filters, packet_id=1, **props):
    """SUBSCRIBE; each filter is a text (QoS 0) or a pair of text and options."""
    body = struct.pack(">H", packet_id) + (block(**props) if version == V5 else b"")
    for wanted in filters:
        text, options = wanted if isinstance(wanted, tuple) else (wanted, 0)
        body += raw.text(text) + bytes([options])
    return raw.packet(raw.SUBSCRIBE, 2, body)


def unsubscribe(version, *filters, packet_id=1, **props):
    """UNSUBSCRIBE."""
    body = struct.pack(">H", packet_id) + (block(**props) if version == V5 else b"")
    return raw.packet(raw.UNSUBSCRIBE, 2, body + b"".join(raw.text(text) for text in filters))


def ack(kind, packet_id, reason=None, **props):
    """PUBACK, PUBREC, PUBREL or PUBCOMP."""
    body = struct.pack(">H", packet_id)
    if reason is not None:
        body += bytes([reason]) + (block(**props) if props else b"")
    return raw.packet(kind, 2 if kind == raw.PUBREL else 0, body)


def disconnect(reason=None, **props):
    """DISCONNECT."""
    body = b"" if reason is None else bytes([reason]) + (block(**props) if props else b"")
    return raw.packet(raw.DISCONNECT, 0, body)


PING = b"\xc0\x00"


class Client:
    """A connection, from which packets are read one by one."""

    def __init__(self, port, version):
        self.version = version
        self.wire = raw.Connection(port, limit_s=LIMIT_S)
        self._packet_ids = itertools.count(1)

    def send(self, *packets):
        """Bytes, in one write."""
        self.wire.send(b"".join(packets))
        return self

    def read(self, kind=None):
        """The next packet, which must be of this type."""
        packet = parse(self.version, *self.wire.read())
        assert kind is None or packet.kind == kind, f"packet type {kind} wanted: {packet}"
        return packet

    def rest(self):
        """All packets until the server closes."""
        return [parse(self.version, *packet) for packet in self.wire.read_to_end()]

    def ends(self, *reasons):
        """The server must close now: a 5.0 client is told one of these reasons or nothing, a 3.1.1 client nothing."""
        packets = self.rest()
        if packets:
            assert [packet.kind for packet in packets] == [raw.DISCONNECT], packets
            assert packets[0].reason in reasons, f"{packets[0].reason:#x}: {packets[0].properties}"
        return packets[0].reason if packets else None

    def refused(self, *reasons):
        """The server must not let it in: CONNACK with one of these codes or nothing, and the end."""
        packets = self.rest()
        if packets:
            assert [packet.kind for packet in packets] == [raw.CONNACK], packets
            assert packets[0].reason in reasons and not packets[0].session_present, packets
        return packets[0] if packets else None

    def open(self, client_id=None, **options):
        """CONNECT, and gives the CONNACK, which must be a success."""
        self.client_id = unique() if client_id is None else client_id
        self.send(connect(self.version, self.client_id, **options))
        self.connack = self.read(raw.CONNACK)
        assert self.connack.reason == 0, self.connack
        return self

    def pending(self):
        """Everything that the server has for this client now: what comes before the answers to two pings, one after the
        other. The first may be read in the very moment in which a message is queued, and be answered before it."""
        packets = []
        for _ in range(2):
            self.send(PING)
            while (packet := self.read()).kind != raw.PINGRESP:
                packets.append(packet)
        return packets

    def subscribe(self, *filters, **props):
        """Subscribes, and gives the reason codes; the retained messages stay to be read."""
        packet_id = next(self._packet_ids)
        self.send(subscribe(self.version, *filters, packet_id=packet_id, **props))
        suback = self.read(raw.SUBACK)
        assert suback.packet_id == packet_id
        return suback.reasons

    def subscribed(self, *filters, **props):
        """Subscribes, which must succeed."""
        assert all(code < 0x80 for code in self.subscribe(*filters, **props))
        return self

    def publish(self, topic, payload=b"x", qos=1, **options):
        """Publishes to the end of the exchange, and gives the (first) acknowledgement."""
        packet_id = next(self._packet_ids)
        self.send(publish(self.version, topic, payload, qos=qos, packet_id=packet_id, **options))
        if qos == 0:
            return self.pending() and None
        answer = self.read(raw.PUBACK if qos == 1 else raw.PUBREC)
        assert answer.packet_id == packet_id
        if qos == 2 and answer.reason < 0x80:
            self.send(ack(raw.PUBREL, packet_id))
            assert self.read(raw.PUBCOMP).packet_id == packet_id
        return answer

    def message(self):
        """The next packet, which must be a PUBLISH; acknowledged to the end."""
        packet = self.read(raw.PUBLISH)
        if packet.qos == 1:
            self.send(ack(raw.PUBACK, packet.packet_id))
        elif packet.qos == 2:
            self.send(ack(raw.PUBREC, packet.packet_id))
            assert self.read(raw.PUBREL).packet_id == packet.packet_id
            self.send(ack(raw.PUBCOMP, packet.packet_id))
        return packet

    def leave(self):
        """Says goodbye, and waits until the server has closed."""
        self.send(disconnect())
        assert self.rest() == []

    def take(self, count):
        """So many packets, and no more. What waits for a kept session may come a moment later than a ping is answered."""
        packets = [self.read() for _ in range(count)]
        assert (more := self.pending()) == [], more
        return packets

    def vanish(self):
        """Ends without a word, once the server has read what it was sent."""
        self.pending()
        self.wire.close()


class Broker:
    """The server under test, and the clients of one test."""

    def __init__(self, server):
        self.server = server
        self.clients = []

    def client(self, version=V5):
        """A connection that has said nothing yet."""
        self.clients.append(Client(self.server.mqtt_port, version))
        return self.clients[-1]

    def open(self, version=V5, client_id=None, **options):
        """A client that was let in."""
        return self.client(version).open(client_id, **options)

    def publish(self, topic, payload=b"x", qos=1, **options):
        """Has somebody else publish; everybody who is to get it has it in his queue then."""
        publisher = self.open(V5)
        publisher.publish(topic, payload, qos, **options)
        publisher.leave()

    def close(self):
        """Ends all clients."""
        for client in self.clients:
            client.wire.close()


def topic():
    """A topic that no other test uses."""
    return unique("conformance/t")
