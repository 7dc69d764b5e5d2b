"""Fixtures: a server for everybody, servers of one's own, real services, device names that nobody else uses."""

import itertools
import os
import signal

import pytest

from harness import BINARY, Server
from harness.services import KINDS, ServiceError

_numbers = itertools.count(1)
_running = []


def pytest_configure():
    # Whoever runs this in the background of a shell hands down that SIGINT is ignored, and so would what is started here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if not BINARY.is_file():
        pytest.exit(f"there is no {BINARY}: `cargo build --release -p catchment`, or name another in CATCHMENT_BIN", 2)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """One server that all tests share which only add devices of their own."""
    shared = Server(tmp_path_factory.mktemp("shared"))
    _running.append(shared)
    yield shared.start()
    shared.close()
    _running.remove(shared)


@pytest.fixture
def new_server(tmp_path):
    """Makes servers of the test's own; they end with it."""
    own = []

    def make(name="own", kind=Server, **options):
        own.append(kind(tmp_path / name, **options))
        _running.append(own[-1])
        return own[-1]

    yield make
    for made in own:
        made.close()
        _running.remove(made)


@pytest.fixture(scope="session")
def service():
    """Gives the address of a real service by its name; starts it unless it runs. What was started here stops here.

    One that cannot be had is a failure in CI; elsewhere the test is skipped, and its reason listed as NOT RUN. What is
    large is not installed unasked: `cargo xtask services up --only NAME` asks, and so does CATCHMENT_TEST_LARGE.
    """
    started = []

    def address(name):
        wanted = KINDS[name]()
        if wanted.is_large and not (wanted.own_address() or wanted.running() or os.environ.get("CATCHMENT_TEST_LARGE")):
            pytest.skip(f"{name} is large: start it by `cargo xtask services up --only {name}`")
        try:
            was_there = wanted.own_address() or wanted.running()
            found = wanted.up()
        except ServiceError as error:
            if os.environ.get("CI"):
                pytest.fail(f"the service {name} cannot be had: {error}")
            pytest.skip(f"{name} cannot be had: {error}")
        if not was_there:
            started.append(wanted)
        return found

    yield address
    for own in started:
        own.down()


def pytest_terminal_summary(terminalreporter):
    """What was left out is told by name: `cargo xtask test` repeats it in its summary."""
    for report in terminalreporter.getreports("skipped"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        reason = str(reason).removeprefix("Skipped: ").splitlines()[0]
        terminalreporter.write_line(f"NOT RUN  {report.nodeid}: {reason}")


@pytest.fixture
def device(request):
    """The name of a device that no other test uses."""
    return f"{request.node.originalname.removeprefix('test_')[:40]}-{next(_numbers)}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """A failed test shows the end of the log of each server that it had."""
    report = yield
    if report.failed:
        for running in _running:
            report.sections.append((f"server log {running.log_path}", running.log_tail()))
    return report
