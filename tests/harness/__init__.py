"""What the tests from outside share: a server process, waiting, and MQTT clients."""

from .server import BINARY, Server, free_ports, run
from .wait import eventually

__all__ = ["BINARY", "Server", "eventually", "free_ports", "run"]
