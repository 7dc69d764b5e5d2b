"""Waiting for what happens soon: until a condition holds, with a limit, never for a fixed time."""

import time


def eventually(condition, limit_s=15.0, what=None):
    """Calls `condition` until it returns something true, and returns that.

    An AssertionError or a refused connection inside the condition means "not yet". When the time is over, the last
    one is raised, so that the test's report shows how far it got.
    """
    deadline = time.monotonic() + limit_s
    pause_s = 0.005
    while True:
        problem = None
        try:
            if value := condition():
                return value
        except (AssertionError, OSError) as error:
            problem = error
        if time.monotonic() > deadline:
            message = f"not within {limit_s} s: {what or condition.__name__}"
            raise AssertionError(message) from problem
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, 0.2)
