"""The paho client, with what a test wants to wait for."""

import queue
from contextlib import contextmanager

import paho.mqtt.client as paho
from paho.mqtt.enums import MessageState
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from .wait import eventually

V3, V5 = paho.MQTTv311, paho.MQTTv5
LIMIT_S = 10


def properties(packet, **values):
    """MQTT 5 properties of a packet type by their names: `properties("PUBLISH", ContentType="text/plain")`."""
    made = Properties(getattr(PacketTypes, packet))
    for name, value in values.items():
        setattr(made, name, value)
    return made


class Paho(paho.Client):
    """paho's client, without a fault of 2.1.0: of a QoS 2 message whose PUBREL it has to send again it forgets that when
    a second attempt to connect follows without a CONNACK in between, and publishes it anew. The server has completed
    and forgotten that identifier by then, and has to take the message for another one ([MQTT-4.3.3-1])."""

    def _messages_reconnect_reset_out(self):
        released = [message for message in self._out_messages.values() if message.state == MessageState.MQTT_MS_RESEND_PUBREL]
        super()._messages_reconnect_reset_out()
        for message in released:
            message.state = MessageState.MQTT_MS_RESEND_PUBREL


class Client:
    """A connected client; received messages are in `messages`."""

    def __init__(
        self, server, version=V5, client_id="", *, clean=True, expiry_s=0, websocket=False, will=None, login=None
    ):
        self.server, self.version, self.clean, self.expiry_s = server, version, clean, expiry_s
        self.messages = queue.Queue()
        self.connects = queue.Queue()
        self.subscribed = queue.Queue()
        self.disconnects = queue.Queue()
        options = {} if version == V5 else {"clean_session": clean}
        self.paho = Paho(
            paho.CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=version,
            transport="websockets" if websocket else "tcp",
            reconnect_on_failure=False,
            **options,
        )
        self.paho.max_inflight_messages_set(100)
        self.port = server.http_port if websocket else server.mqtt_port
        if websocket:
            self.paho.ws_set_options(path="/mqtt")
        if will:
            self.paho.will_set(**will)
        if login:
            self.paho.username_pw_set(*login)
        self.paho.on_message = lambda _, __, message: self.messages.put(message)
        self.paho.on_connect = lambda _, __, flags, reason, ___: self.connects.put((flags, reason))
        self.paho.on_subscribe = lambda _, __, ___, reasons, ____: self.subscribed.put(reasons)
        self.paho.on_disconnect = lambda _, __, ___, reason, ____: self.disconnects.put(reason)

    def connect(self):
        """Connects and gives the flags of the answer (`session_present`); a refusal fails."""
        options = {}
        if self.version == V5:
            options["clean_start"] = self.clean
            options["properties"] = properties("CONNECT", SessionExpiryInterval=self.expiry_s)
        self.paho.connect("127.0.0.1", self.port, keepalive=30, **options)
        self.paho.loop_start()
        flags, reason = self.connects.get(timeout=LIMIT_S)
        assert not reason.is_failure, reason
        return flags

    def publish(self, topic, payload, qos=1, **options):
        """Publishes and waits for the acknowledgement."""
        sent = self.paho.publish(topic, payload, qos, **options)
        sent.wait_for_publish(LIMIT_S)
        assert sent.is_published(), f"no acknowledgement of {topic} within {LIMIT_S} s"

    def subscribe(self, topic, qos=1):
        """Subscribes and waits for the answer; gives the granted quality."""
        self.paho.subscribe(topic, qos)
        (reason,) = self.subscribed.get(timeout=LIMIT_S)
        return reason.value

    def next(self, limit_s=LIMIT_S):
        """The next message that was received."""
        return self.messages.get(timeout=limit_s)

    def has_nothing(self):
        """Whether no message waits, after everything that the server had sent before was taken in: a message to
        oneself comes behind them."""
        marker = f"marker/{id(self)}"
        self.subscribe(marker)
        self.publish(marker, b"")
        return self.next().topic == marker and self.messages.empty()

    def drop(self):
        """Ends the connection as a broken line does: without a word."""
        self.paho.loop_stop()
        self.paho._sock_close()

    def disconnect(self):
        """Says goodbye."""
        self.paho.disconnect()
        eventually(lambda: not self.paho.is_connected(), what="disconnected")
        self.paho.loop_stop()


@contextmanager
def connected(server, *arguments, **options):
    """A client for a block."""
    client = Client(server, *arguments, **options)
    client.flags = client.connect()
    try:
        yield client
    finally:
        client.disconnect()
