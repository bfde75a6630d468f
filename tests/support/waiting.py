"""Wait for a condition."""

import time
from collections.abc import Callable

POLL_SECONDS = 0.02
_PAUSES, _MAX_PAUSE = 8.0, 0.25
"""Times that a check takes until the next one, and seconds at most: looking at all processes must not keep a core busy,
and a process that lives shortly must be seen."""
MAX_SECONDS = 180.0
"""Much longer than any condition takes on a loaded machine: the limit only ends a test that would never end."""


def wait_until(condition: Callable[[], object], what: str, seconds: float = MAX_SECONDS) -> None:
    """Return as soon as ``condition()`` is true; fail, naming ``what`` was waited for, after ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        begin = time.monotonic()
        if condition():
            return
        if (now := time.monotonic()) > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(max(POLL_SECONDS, min(_PAUSES * (now - begin), _MAX_PAUSE)))
