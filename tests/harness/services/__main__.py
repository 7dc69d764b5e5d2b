"""`cargo xtask services up|down|status`.

`up` prints a line for each service that a shell can take in: `eval "$(cargo xtask services up --only kafka,redis)"`.
"""

import argparse
import sys

from . import KINDS, ServiceError
from .base import say


def main():
    """Gives what the process ends with: 0 when everything is as it was asked for."""
    parser = argparse.ArgumentParser(prog="cargo xtask services", description="real services for developers and tests")
    parser.add_argument("action", choices=("up", "down", "status"))
    parser.add_argument("--only", type=names, metavar="NAME,…", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--wipe", action="store_true", help="with down: remove the data too")
    asked = parser.parse_args()
    # Nobody has to wait for what is large without having named it.
    chosen = asked.only or [name for name, kind in KINDS.items() if asked.action != "up" or not kind.is_large]
    actions = {"up": up, "down": lambda service: down(service, asked.wipe), "status": status}
    good = True
    for service in (KINDS[name]() for name in chosen):
        try:
            good &= actions[asked.action](service)
        except ServiceError as error:
            say(f"{error}")
            good = False
    if asked.action == "up" and not asked.only:
        left_out = ", ".join(name for name in KINDS if name not in chosen)
        say(f"not started, because it is large: {left_out} (`--only {left_out}` starts it)")
    return 0 if good else 1


def names(text):
    """The names in a list with commas between."""
    chosen = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in chosen if name not in KINDS]:
        raise argparse.ArgumentTypeError(f"there is no service {', '.join(unknown)}; there are {', '.join(KINDS)}")
    return chosen


def up(service):
    """Starts it, and prints its variable."""
    address = service.up()
    say(f"{service.name:<12} {address:<52} {service.probe(address)}")
    print(f"export {service.variable}={address}", flush=True)
    return True


def down(service, wipe):
    """Stops it."""
    if own := service.own_address():
        say(f"{service.name:<12} {own:<52} is not ours, and stays")
    else:
        say(f"{service.name:<12} {'stopped' if service.down(wipe=wipe) else 'was not running'}")
    return True


def status(service):
    """Tells whether it answers."""
    address = service.own_address() or service.running()
    if address is None:
        print(f"{service.name:<12} is not running")
        return False
    try:
        print(f"{service.name:<12} {address:<52} {service.probe(address)}")
    except OSError as error:
        print(f"{service.name:<12} {address:<52} does not answer: {error}")
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
