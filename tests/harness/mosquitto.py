"""Debian's mosquitto as the other broker: on a free port of loopback, killed, started again, with TLS or passwords."""

import shutil
import socket
import subprocess
from pathlib import Path

from .server import free_ports
from .wait import eventually

PROGRAM = shutil.which("mosquitto") or "/usr/sbin/mosquitto"


class Mosquitto:
    """One broker. Its port stays the same over restarts, and with it what it keeps of sessions and retained messages."""

    def __init__(self, folder, *, extra="", password=None):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.mqtt_port,) = free_ports(1)
        lines = [
            f"listener {self.mqtt_port} 127.0.0.1",
            "user root",
            "persistence true",
            f"persistence_location {self.folder}/",
            # What is tested is the bridge, not how much mosquitto is ready to hold.
            "max_queued_messages 0",
            "max_inflight_messages 500",
            extra,
        ]
        if password:
            file = self.folder / "passwords"
            user, secret = password
            subprocess.run(["mosquitto_passwd", "-b", "-c", file, user, secret], check=True, capture_output=True)
            lines += ["allow_anonymous false", f"password_file {file}"]
        else:
            lines += ["allow_anonymous true"]
        self.config = self.folder / "mosquitto.conf"
        self.config.write_text("\n".join(lines) + "\n")
        self.process = None

    def start(self):
        """Starts it and waits until it listens."""
        with (self.folder / "mosquitto.log").open("ab") as log:
            self.process = subprocess.Popen([PROGRAM, "-v", "-c", self.config], stdout=log, stderr=log)

        def listens():
            with socket.create_connection(("127.0.0.1", self.mqtt_port), timeout=1):
                return True

        eventually(listens, what="mosquitto listens")
        return self

    def stop(self):
        """An orderly end: it writes what it keeps."""
        self.process.terminate()
        self.process.wait(timeout=20)

    def kill(self):
        """As a power cut: what it keeps is as old as its last save."""
        self.process.kill()
        self.process.wait()

    def close(self):
        """For the end of a test: whatever state it is in."""
        if self.process is not None and self.process.poll() is None:
            self.kill()

    def log(self):
        """All that it printed."""
        return (self.folder / "mosquitto.log").read_text(errors="replace")
