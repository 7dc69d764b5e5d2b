"""What all services share: a folder, a port that stays the same, a process that outlives who started it.

```text
TARGET/services/NAME/state.json   port, process id and the moment it was started: a number alone may be another's by now
TARGET/services/NAME/log          what the process printed, of the last start
TARGET/services/NAME/lock         held while one starts or stops it
TARGET/services/NAME/data/…       its data; `down --wipe` removes it
TARGET/tools/NAME-VERSION/…       what was installed for it
```
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from ..server import free_ports, is_free

ROOT = Path(__file__).resolve().parents[3]
ASSETS = ROOT / "tests" / "services"
START_LIMIT_S = 90
STOP_LIMIT_S = 30
PORT_LIMIT_S = 2


class ServiceError(Exception):
    """A service cannot be had. Says what is missing, and what to do."""


def target_folder():
    """Cargo's target folder, as `cargo xtask` and the tests have it."""
    return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).absolute()


class Service:
    """One service. Kinds say in `kinds.py` how it is installed, configured, asked and stopped."""

    name = ""
    version = ""
    """What `up` shows."""
    packages = ()
    """(command, Debian package): what must be installed on the machine."""
    ports = 1
    is_large = False
    """Whether installing it is asked for by name only."""
    stop_signal = signal.SIGTERM
    user = None
    """Who it runs as; nobody in particular when empty."""

    def __init__(self, folder=None):
        self.is_own = folder is not None
        """Whether it is a test's, in a folder of its own, and not the one that all share."""
        self.folder = Path(folder) if folder else target_folder() / "services" / self.name
        self.tools = target_folder() / "tools"

    # What kinds say.

    def install(self):
        """Brings what the machine does not have."""

    def prepare(self, ports):
        """Writes the configuration, makes the data folder."""

    def command(self, ports):
        """The command that runs it in the foreground."""
        raise NotImplementedError

    def environment(self):
        """Further environment of the process."""
        return {}

    def address(self, port):
        """What tests are given."""
        raise NotImplementedError

    def probe(self, address):
        """Asks it something; gives its version. Raises OSError, or ServiceError, while it does not answer."""
        raise NotImplementedError

    # Its life.

    @property
    def variable(self):
        """The environment variable that names an operator's own."""
        return f"CATCHMENT_TEST_{self.name.upper()}"

    @property
    def data(self):
        """Where its data is."""
        return self.folder / "data"

    @property
    def log_path(self):
        """What the process printed."""
        return self.folder / "log"

    def own_address(self):
        """Where it is if an operator has named it."""
        return None if self.is_own else os.environ.get(self.variable) or None

    def running(self):
        """The address of the process that we have started, if it lives."""
        state = self._state()
        return self.address(state["ports"][0]) if _lives(state) else None

    def up(self):
        """Installs and starts what is not there, waits until it answers. Gives its address. May be called again."""
        if own := self.own_address():
            return own
        with self._locked():
            if address := self.running():
                self._wait(address)
                return address
            self._need_packages()
            self.install()
            return self._start()

    def down(self, *, wipe=False):
        """Ends the process as an operator would. Says whether there was one."""
        with self._locked():
            ended = self._end(self.stop_signal)
            if wipe:
                shutil.rmtree(self.data, ignore_errors=True)
            return ended

    def kill(self):
        """Ends the process at once, without a word to it."""
        with self._locked():
            return self._end(signal.SIGKILL)

    def pause(self):
        """The process does nothing until `resume`, and keeps what it has in memory."""
        os.kill(self._state()["pid"], signal.SIGSTOP)

    def resume(self):
        """Ends a pause."""
        os.kill(self._state()["pid"], signal.SIGCONT)

    def _start(self):
        ports = self._state().get("ports") or []
        # The threads of a process that has just died may hold its ports for a moment longer.
        deadline = time.monotonic() + PORT_LIMIT_S
        while not (is_there := all(map(is_free, ports))) and time.monotonic() < deadline:
            time.sleep(0.02)
        if len(ports) != self.ports or not is_there:
            ports = free_ports(self.ports)
        self.prepare(ports)
        with self.log_path.open("wb") as log:
            process = subprocess.Popen(
                [str(part) for part in self.command(ports)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder if self.user is None else "/",
                env={**os.environ, **self.environment()},
                start_new_session=True,
                **identity(self.user),
            )
        state = {"ports": ports, "pid": process.pid, "started": _started(process.pid)}
        (self.folder / "state.json").write_text(json.dumps(state))
        address = self.address(ports[0])
        try:
            self._wait(address, process)
        except ServiceError:
            self._end(signal.SIGKILL)
            raise
        return address

    def _wait(self, address, process=None):
        deadline = time.monotonic() + START_LIMIT_S
        while True:
            if process is not None and process.poll() is not None:
                raise ServiceError(f"{self.name} ended with {process.returncode} as it started:\n{self._log_tail()}")
            try:
                return self.probe(address)
            except (OSError, ServiceError) as error:
                if time.monotonic() > deadline:
                    message = f"{self.name} does not answer at {address} after {START_LIMIT_S} s: {error}"
                    raise ServiceError(f"{message}\n{self._log_tail()}") from error
            time.sleep(0.05)

    def _end(self, how):
        state = self._state()
        if not _lives(state):
            return False
        pid = state["pid"]
        os.kill(pid, how)
        deadline = time.monotonic() + STOP_LIMIT_S
        while _lives(state):
            if time.monotonic() > deadline:
                # It has a session of its own: what it has started ends with it.
                os.killpg(pid, signal.SIGKILL)
            time.sleep(0.02)
        # Whoever has started it as a child has to take its end in: until then, the next PostgreSQL in its folder takes it for alive.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
        return True

    def _state(self):
        try:
            return json.loads((self.folder / "state.json").read_text())
        except (OSError, ValueError):
            return {}

    def _log_tail(self, lines=20):
        text = self.log_path.read_text(errors="replace") if self.log_path.exists() else ""
        return f"the end of {self.log_path}:\n" + "\n".join(text.splitlines()[-lines:])

    @contextlib.contextmanager
    def _locked(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    # Installing.

    def _need_packages(self):
        missing = [package for command, package in self.packages if not find(command)]
        if not missing:
            return
        install = f"apt-get install --yes --no-install-recommends {' '.join(missing)}"
        if os.geteuid() != 0 or not shutil.which("apt-get"):
            raise ServiceError(f"{self.name} needs {', '.join(missing)}: install it, for instance with `sudo {install}`")
        say(f"{self.name}: {install}")
        # Packages of servers start them; ours run on their own.
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
        run(self.name, ["apt-get", "update", "--quiet"], env=quiet)
        run(self.name, install.split(), env=quiet)
        if still := [command for command, _ in self.packages if not find(command)]:
            raise ServiceError(f"{self.name}: apt-get was content, and yet there is no {', '.join(still)}")

    def python_with(self, requirements):
        """A Python of this service's own that has what a file lists."""
        folder, stamp = self.tools / self.name, self.tools / self.name / "requirements.installed"
        python, wanted = folder / "bin" / "python", requirements.read_text()
        if not stamp.exists() or stamp.read_text() != wanted:
            say(f"{self.name}: installing {requirements.relative_to(ROOT)} into {folder}")
            run(self.name, [sys.executable, "-m", "venv", "--clear", folder])
            run(self.name, [python, "-m", "pip", "install", "--quiet", "--requirement", requirements])
            # Last, so that an installation that broke off is done again.
            stamp.write_text(wanted)
        return python


def say(text):
    """Tells what takes time. Not on standard output, which has the addresses alone."""
    print(text, file=sys.stderr, flush=True)


def run(name, command, **options):
    """Runs a command to its end; what it printed is the reason when it fails."""
    command = [str(part) for part in command]
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if done.returncode != 0:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        raise ServiceError(f"{name}: `{' '.join(command)}` ended with {done.returncode}:\n{said}")
    return done.stdout


def find(command):
    """The path of a command, wherever Debian puts servers; a path with `*` is looked for as it is."""
    if command.startswith("/"):
        found = sorted(Path("/").glob(command[1:]))
        return str(found[-1]) if found else None
    return shutil.which(command, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


def identity(user):
    """Who a process runs as: options of `subprocess`. Only root can choose, and must for some servers."""
    if user is None or os.geteuid() != 0:
        return {}
    return {"user": user, "group": user, "extra_groups": []}


def _started(pid):
    """When a process was started, in ticks since the machine was; nothing if it is gone, or dead and not taken in yet."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _lives(state):
    return bool(state.get("started")) and _started(state["pid"]) == state["started"]
