"""`docs/mqtt-conformance.md`, made of the statements and of the cases that test them."""

from collections import defaultdict

from . import carrying, connecting, data, delivering, publishing, subscribing  # noqa: F401 (each registers its cases)
from .registry import CASES, NAMES, V3, V5
from .statements import NO_OCCASION, STATEMENTS

# Other people's suites, as they were run against this server. What they expect beyond the standard is told with the section.
_OTHERS = """\
## Suites of others

The conformance suite of `mqtt-lib` (`mqtt5-conformance`, 187 tests of 5.0), against a new server with its default settings, over TCP and
WebSocket:

- 184 of 184. Three more do not run: two want client ids with a `/` refused, which 5.0, section 3.1.3.1, leaves to the server, and one wants
  clients to publish below `$SYS`, where only the server itself does.
- Its client registers that it waits for SUBACK, PUBACK, PUBREC or PUBCOMP after it has written the packet. An answer that is faster is lost to
  it, and the test ends after 30 s with `Timeout("suback")` or the like: none to five tests of a run here, others each time, and with mosquitto
  too. With a client that waits for its own registration, all runs were as above.

The interoperability suites of Eclipse Paho (`paho.mqtt.testing`, `client_test.py` and `client_test5.py`), run against a server with
`keep_alive_s_max = 60`, which the second expects:

- 3.1.1: 10 of 10.
- 5.0: 26 of 27. `test_subscribe_failure` wants SUBACK to say 0x80 (unspecified error) where a client may not have the filter
  `test/nosubscribe`, and its decoder fails on any other reason code; a client that may not have it is told 0x87 (not authorized), which is
  the code that 5.0, section 3.9.3, has for that.
- For `test_subscribe_failure` the suites' clients log in, as a device which a rule refuses the filter: anonymous ones are bound by none. The other
  tests run as they are, one at a time, each against a new server.
- `test_request_response` and `test_subscribe_options` (5.0) publish without waiting for the SUBACK of their second client. The two connections
  are served at the same time, so that the publish may be first (5.0, section 4.6, orders messages of one client only). What arrives first is
  begun first, yet the other may overtake it on another thread: of the first, 6 of 6 runs passed here, of the second 10 of 14.
- `client_test5.py` refuses a PUBACK, PUBREC or PUBCOMP that has a reason string (its decoder wants a remaining length of 2 to 4),
  which 5.0, sections 3.4.2.2.2, 3.5.2.2.2 and 3.7.2.2.2, allow. No test of it depends on that.
"""

_HEAD = """\
# MQTT conformance

Every numbered normative statement of [MQTT 3.1.1](https://docs.oasis-open.org/mqtt/mqtt/v3.1.1/os/mqtt-v3.1.1-os.html) and
[MQTT 5.0](https://docs.oasis-open.org/mqtt/mqtt/v5.0/os/mqtt-v5.0-os.html), in our words, and what shows that the server keeps it. The tests
are in `tests/mqtt_conformance`: they send and read raw bytes, and drive the binary from outside. One statement alone:
`cargo xtask test -k "5.0-MQTT-3.1.2-24"`. This file is made by `python -m mqtt_conformance` in `tests`, and a test fails when it is not what
the suite says.

"""


def functions():
    """The names of the functions that test each statement."""
    found = defaultdict(list)
    for case in CASES:
        found[case.version, case.statement].append(case.function.__name__)
    return found


def state(version, number):
    """What shows that a statement is kept."""
    who, _ = STATEMENTS[version][number]
    if tests := functions().get((version, number)):
        return "tested: " + ", ".join(f"`{name}`" for name in tests)
    if reason := NO_OCCASION.get((version, number)):
        return f"no occasion: {reason}"
    return "of the client" if who == "C" else "NOT TESTED"


def render():
    """The whole file."""
    lines = [_HEAD]
    tested = functions()
    for version in (V3, V5):
        statements = STATEMENTS[version]
        ours = [number for number, (who, _) in statements.items() if who == "S"]
        count = sum((version, number) in tested for number in statements)
        lines.append(f"## MQTT {NAMES[version]}\n\n")
        lines.append(
            f"{len(statements)} statements, {len(ours)} of them about the server; {count} are tested, "
            f"{sum(key[0] == version for key in NO_OCCASION)} have no occasion here.\n\n"
        )
        lines.append("| statement | what it asks | state |\n| --- | --- | --- |\n")
        for number, (_, what) in statements.items():
            lines.append(f"| MQTT-{number} | {what} | {state(version, number)} |\n")
        lines.append("\n")
    return "".join(lines) + _OTHERS
