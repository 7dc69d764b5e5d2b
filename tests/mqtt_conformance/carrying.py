"""Chapter 6: MQTT over WebSocket."""

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect as open_websocket

from .registry import case
from .wire import LIMIT_S, PING, connect, subscribe, topic, unique


def websocket(broker, protocols=("mqtt",)):
    """A WebSocket to the server."""
    url = f"ws://127.0.0.1:{broker.server.http_port}/mqtt"
    return open_websocket(url, subprotocols=protocols, open_timeout=LIMIT_S, close_timeout=LIMIT_S)


@case(v3="6.0.0-1", v5="6.0.0-1")
def only_binary_frames(broker, version):
    with websocket(broker) as socket:
        socket.send(connect(version, unique()))
        assert socket.recv(LIMIT_S)[0] == 0x20
        socket.send("text")
        try:
            while True:
                socket.recv(LIMIT_S)
        except ConnectionClosed:
            pass


@case(v3="6.0.0-2", v5="6.0.0-2")
def frames_need_not_be_packets(broker, version):
    with websocket(broker) as socket:
        stream = connect(version, unique()) + subscribe(version, topic()) + PING + PING
        for at in range(0, len(stream) - 3, 3):
            socket.send(stream[at : at + 3])
        socket.send(stream[at + 3 :])
        got = b""
        while got.count(b"\xd0\x00") < 2:
            got += socket.recv(LIMIT_S)
        assert got[0] == 0x20


@case(v3="6.0.0-3 6.0.0-4", v5="6.0.0-3 6.0.0-4")
def the_subprotocol_is_mqtt(broker, version):
    with websocket(broker, ("other", "mqtt")) as socket:
        assert socket.subprotocol == "mqtt"
    for protocols in (None, ("mqttv9",)):
        try:
            websocket(broker, protocols).close()
        except InvalidStatus as refused:
            assert refused.response.status_code == 400
        else:
            raise AssertionError(f"{protocols} was taken")
