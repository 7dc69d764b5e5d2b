"""MQTT by hand: packets that no client library would send, and a publisher that knows exactly what was acknowledged."""

import socket
import struct

CONNECT, CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP = 1, 2, 3, 4, 5, 6, 7
SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK, PINGREQ, PINGRESP, DISCONNECT = 8, 9, 10, 11, 12, 13, 14


def text(value):
    """A string with its length."""
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack(">H", len(data)) + data


def length(value):
    """The variable-length number."""
    out = bytearray()
    while True:
        value, digit = divmod(value, 128)
        out.append(digit | (0x80 if value else 0))
        if not value:
            return bytes(out)


def packet(kind, flags, body):
    """A whole packet."""
    return bytes([kind << 4 | flags]) + length(len(body)) + body


def connect(version=5, client_id="", flags=0x02, keep_alive_s=30, properties=b"", payload=None):
    """CONNECT, clean by default."""
    body = text("MQTT") + bytes([version, flags]) + struct.pack(">H", keep_alive_s)
    if version == 5:
        body += length(len(properties)) + properties
    return packet(CONNECT, 0, body + (text(client_id) if payload is None else payload))


def publish(topic, payload, *, qos=1, packet_id=1, version=5, duplicate=False, properties=b""):
    """PUBLISH."""
    body = text(topic) + (struct.pack(">H", packet_id) if qos else b"")
    if version == 5:
        body += length(len(properties)) + properties
    return packet(PUBLISH, (8 if duplicate else 0) | qos << 1, body + payload)


class Connection:
    """A socket that reads whole packets."""

    def __init__(self, port, limit_s=10):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=limit_s)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""

    @classmethod
    def accepted(cls, listener, limit_s=10):
        """The other end: a connection that came to a listening socket."""
        own = cls.__new__(cls)
        listener.settimeout(limit_s)
        own.socket, _ = listener.accept()
        own.socket.settimeout(limit_s)
        own.buffer = b""
        return own

    def send(self, data):
        """All of it."""
        self.socket.sendall(data)

    def _take(self, count):
        while len(self.buffer) < count:
            data = self.socket.recv(65536)
            if not data:
                raise EOFError
            self.buffer += data
        taken, self.buffer = self.buffer[:count], self.buffer[count:]
        return taken

    def read(self):
        """The next packet as (kind, flags, body); EOFError at the end."""
        (first,) = self._take(1)
        size, shift = 0, 0
        while True:
            (digit,) = self._take(1)
            size |= (digit & 0x7F) << shift
            shift += 7
            if not digit & 0x80:
                return first >> 4, first & 15, self._take(size)

    def read_to_end(self):
        """All packets until the server closes."""
        packets = []
        try:
            while True:
                packets.append(self.read())
        except (EOFError, ConnectionResetError):
            return packets

    def open(self, version=5, **options):
        """Connects, and asserts that it was taken."""
        self.send(connect(version, **options))
        kind, _, body = self.read()
        assert (kind, body[1]) == (CONNACK, 0), (kind, body)
        return self

    def close(self):
        """Without a word."""
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
