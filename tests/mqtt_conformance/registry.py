"""Which function tests which statement."""

from dataclasses import dataclass
from typing import Callable

V3, V5 = 4, 5
NAMES = {V3: "3.1.1", V5: "5.0"}
CASES = []


@dataclass(frozen=True)
class Case:
    """One statement of one version, and the function that shows whether it is kept."""

    version: int
    statement: str
    function: Callable

    def __str__(self):
        return f"{NAMES[self.version]}-MQTT-{self.statement}"


def case(*, v3="", v5=""):
    """The function tests these statements (numbers with blanks between), called with a broker and the version."""

    def register(function):
        for version, statements in ((V3, v3), (V5, v5)):
            CASES.extend(Case(version, statement, function) for statement in statements.split())
        return function

    return register
