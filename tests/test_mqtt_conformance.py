"""MQTT 3.1.1 and 5.0, statement by statement; see `mqtt_conformance`."""

from pathlib import Path

import pytest

from harness import Server
from mqtt_conformance.document import render, state
from mqtt_conformance.registry import CASES
from mqtt_conformance.statements import NO_OCCASION, STATEMENTS
from mqtt_conformance.wire import Broker

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "mqtt-conformance.md"
# Small limits, so that the tests reach them, and figures every second.
CONFIG = """\
[gateway.mqtt]
keep_alive_s_max = 60
packet_bytes_max = 100000
receive_maximum = 16
topic_aliases_max = 8
sys_interval_s = 1
"""


@pytest.fixture(scope="module")
def configured(tmp_path_factory):
    """The server under test."""
    server = Server(tmp_path_factory.mktemp("conformance"), config=CONFIG).start()
    yield server
    server.close()


@pytest.fixture
def broker(configured):
    """It, and the clients of one test."""
    broker = Broker(configured)
    yield broker
    broker.close()
    assert configured.process.poll() is None, configured.log_tail()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_statement(broker, case):
    case.function(broker, case.version)


def test_each_statement_is_accounted_for():
    unknown = [str(case) for case in CASES if case.statement not in STATEMENTS[case.version]]
    assert unknown == []
    assert [key for key in NO_OCCASION if key[1] not in STATEMENTS[key[0]]] == []
    missing = [
        f"{version} {number}"
        for version, statements in STATEMENTS.items()
        for number in statements
        if state(version, number) == "NOT TESTED"
    ]
    assert missing == []


def test_the_document_says_what_the_suite_does():
    assert DOCUMENT.read_text() == render(), "run `python -m mqtt_conformance` in `tests`"
