"""What holds before a client has said who it is: PROXY headers, places by address, slow and silent clients."""

import socket
import struct
import time

import pytest

from harness import eventually, free_ports, raw_mqtt

V2 = b"\r\n\r\n\0\r\nQUIT\n"
V1 = b"PROXY TCP4 203.0.113.7 127.0.0.1 40000 1883\r\n"
CONNECT = raw_mqtt.connect(version=4, client_id="behind")
ACCEPTED = b"\x20\x02\x00\x00"


def v2(command=0x21, family=0x11, addresses=None, tlvs=b""):
    """A header of version 2."""
    if addresses is None:
        addresses = socket.inet_aton("203.0.113.7") + socket.inet_aton("127.0.0.1") + struct.pack(">HH", 40000, 1883)
    return V2 + bytes([command, family]) + struct.pack(">H", len(addresses) + len(tlvs)) + addresses + tlvs


class Balanced:
    """A server behind a balancer on loopback."""

    def __init__(self, new_server, *, trusted="127.0.0.0/8", extra=""):
        self.mqtt, self.http = free_ports(2)
        listeners = "".join(
            f'[[listeners]]\nprotocol = "{protocol}"\naddress = "127.0.0.1:{port}"\nproxy_protocol_from = ["{trusted}"]\n'
            for protocol, port in [("mqtt", self.mqtt), ("http", self.http)]
        )
        self.server = new_server(config=listeners + extra, name=f"balanced-{self.mqtt}", flags=["--log-level", "info,catchment_gateway=debug"]).start()
        self.token = self.server.token

    def refused(self, listener, reason):
        """How many connections were refused for this reason."""
        text = self.server.get("/metrics", headers=self.server.admin).text
        name = f'catchment_listener_refused_total{{listener="{listener}",reason="{reason}"}} '
        return sum(int(line.removeprefix(name)) for line in text.splitlines() if line.startswith(name))

    def open(self, port=None):
        """A connection to the listener of MQTT, or another."""
        return socket.create_connection(("127.0.0.1", port or self.mqtt), timeout=15)

    def connect(self):
        """A CONNECT of the administrator."""
        payload = raw_mqtt.text("x") + raw_mqtt.text("admin") + raw_mqtt.text(self.token)
        return raw_mqtt.connect(version=4, flags=0xC2, payload=payload)


@pytest.mark.parametrize(
    "header, source",
    [
        (V1, "203.0.113.7:40000"),
        (b"PROXY TCP6 2001:db8::7 ::1 40000 1883\r\n", "[2001:db8::7]:40000"),
        (v2(), "203.0.113.7:40000"),
        (v2(tlvs=b"\x04\x00\x05xxxxx" + b"\x05\x00\x80" + b"i" * 128), "203.0.113.7:40000"),
        (v2(0x21, 0x21, socket.inet_pton(socket.AF_INET6, "2001:db8::7") + bytes(16) + struct.pack(">HH", 40000, 1)), "[2001:db8::7]:40000"),
        (b"PROXY UNKNOWN\r\n", "127.0.0.1:"),
        (v2(0x20, 0, b""), "127.0.0.1:"),
        (v2(0x21, 0x31, bytes(216)), "127.0.0.1:"),
    ],
)
def test_the_address_behind_a_balancer(new_server, header, source):
    balanced = Balanced(new_server)
    with balanced.open() as stream:
        # In pieces, as networks may.
        for part in (header[:5], header[5:14], header[14:] + balanced.connect()):
            stream.sendall(part)
            time.sleep(0.02)
        assert stream.recv(4) == ACCEPTED
    # What is refused is told with the client's address: nobody is anonymous behind a balancer, even on loopback.
    with balanced.open() as stream:
        stream.sendall(header + CONNECT)
        assert stream.recv(4)[:3] == b"\x20\x02\x00"
    eventually(lambda: source in balanced.server.log(), what=source)


def test_no_header_or_a_bad_one_or_from_elsewhere(new_server):
    balanced = Balanced(new_server)
    bad = [
        CONNECT + bytes(20),
        b"PROXY TCP4 203.0.113.7 127.0.0.1 40000\r\n",
        b"PROXY TCP4 " + b"1" * 200,
        V2 + b"\x31\x11\x00\x0c" + bytes(12),
        V2 + b"\x21\x11\x00\x05" + bytes(5),
        V2 + b"\x21\x11\xff\xff" + bytes(100),
    ]
    for header in bad:
        with balanced.open() as stream:
            stream.sendall(header)
            try:
                assert stream.recv(16) == b"", header
            except ConnectionResetError:
                pass
    assert balanced.refused("mqtt", "proxy_header") == len(bad)
    other = Balanced(new_server, trusted="10.0.0.0/8")
    with other.open() as stream:
        stream.sendall(V1 + CONNECT)
        try:
            assert stream.recv(16) == b""
        except ConnectionResetError:
            pass
    assert other.refused("mqtt", "proxy_untrusted") == 1


def test_http_behind_a_balancer(new_server):
    balanced = Balanced(new_server)
    request = f"GET /api/v1/devices HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {balanced.token}\r\n\r\n".encode()
    for header in (V1, v2()):
        with balanced.open(balanced.http) as stream:
            stream.sendall(header + request)
            assert stream.recv(12) == b"HTTP/1.1 200"
    with balanced.open(balanced.http) as stream:
        stream.sendall(request)
        try:
            assert stream.recv(12) == b""
        except ConnectionResetError:
            pass


def test_places_by_address(new_server):
    balanced = Balanced(new_server, extra="[network]\nconnections_per_address_max = 3\n")
    held = []
    for _ in range(3):
        held.append(balanced.open())
        held[-1].sendall(V1 + balanced.connect())
        assert held[-1].recv(4) == ACCEPTED
    for _ in range(4):
        with balanced.open() as stream:
            stream.sendall(V1 + balanced.connect())
            try:
                assert stream.recv(4) == b""
            except ConnectionResetError:
                pass
    assert balanced.refused("mqtt", "address_max") == 4
    # One line for all of them.
    assert balanced.server.log().count("connections are refused") == 1
    # Others have their own places.
    with balanced.open() as stream:
        stream.sendall(V1.replace(b"113.7", b"113.8") + balanced.connect())
        assert stream.recv(4) == ACCEPTED
    held.pop().close()

    def free_again():
        with balanced.open() as stream:
            stream.sendall(V1 + balanced.connect())
            return stream.recv(4) == ACCEPTED

    eventually(free_again)
    for stream in held:
        stream.close()


def test_silent_clients_make_room(new_server):
    server = new_server(config="[network]\nopening_max = 16\nopening_s_max = 30\n").start()
    # Some say nothing, some a little.
    slow = []
    for n in range(16):
        slow.append(socket.create_connection(("127.0.0.1", server.mqtt_port if n % 2 else server.http_port), timeout=10))
        slow[-1].sendall([b"GET / HT", b"\x10"][n % 2])
    time.sleep(1.1)
    for n in range(10):
        with raw_mqtt.Connection(server.mqtt_port) as connection:
            connection.open(version=4, client_id=f"quick-{n}")
    assert server.get("/healthz").status_code == 200
    for stream in slow:
        stream.close()


def test_slow_requests_end(new_server):
    server = new_server(config="[network]\nopening_s_max = 1\n[gateway.mqtt]\nconnect_s_max = 1\n").start()
    for port in (server.http_port, server.mqtt_port):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as stream:
            began = time.monotonic()
            # HTTP/2's preface begins like this as well: nothing is known yet.
            stream.sendall(b"P" if port == server.http_port else b"\x10")
            try:
                assert stream.recv(16) == b""
            except ConnectionResetError:
                pass
            assert 0.9 < time.monotonic() - began < 5
    # Who has made a request may be silent for longer.
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=10) as stream:
        for _ in range(2):
            stream.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert stream.recv(1024).startswith(b"HTTP/1.1 200")
            time.sleep(1.5)
