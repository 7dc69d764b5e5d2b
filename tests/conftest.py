"""Fixtures: a server for everybody, servers of one's own, device names that nobody else uses."""

import itertools
import signal

import pytest

from harness import BINARY, Server

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

    def make(name="own", **options):
        own.append(Server(tmp_path / name, **options))
        _running.append(own[-1])
        return own[-1]

    yield make
    for made in own:
        made.close()
        _running.remove(made)


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
