"""Run a check within a deadline; what it finds, its errors too, is a list of findings.

for finding in run_check("mxnet", partial(check_mxnet, needed=True, seconds=60), 60):
    finding.check, finding.state, finding.message
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from crossfade.base.errors import CrossfadeError, as_typed, option_named

State = Literal["ok", "warning", "fix"]
Check = Callable[[], Iterable["Finding"]]

_KILL_SECONDS = 1.0
"""Seconds that a check may take after its deadline, to kill a child process."""


@dataclass(frozen=True)
class Finding:
    """The result of a check. What is to ``fix`` keeps training from working; ``message`` has how to fix it."""

    check: str
    state: State
    message: str


def run_check(name: str, check: Check, seconds: float) -> Iterator[Finding]:
    """Yield what ``check`` finds; an error, or no end within ``seconds``, is to be fixed.

    A check that hangs, as on a file system that does not answer, is left in its thread, which ends with the process.
    """
    found: list[Finding] = []
    errors: list[BaseException] = []

    def collect() -> None:
        try:
            for finding in check():
                found.append(finding)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=collect, name=f"check of {name}", daemon=True)
    thread.start()
    thread.join(seconds + _KILL_SECONDS)
    hangs = thread.is_alive()
    yield from list(found)
    for error in errors:
        match error:
            case CrossfadeError():
                yield Finding(name, "fix", error.worded(as_typed))
            case OSError():
                yield Finding(name, "fix", str(error))
            case subprocess.TimeoutExpired():
                hangs = True
            case _:
                raise error
    if hangs:
        advice = f"look for a disk or a network that does not answer, or raise {option_named('timeout')}"
        yield Finding(name, "fix", f"did not end within {seconds:g} s; {advice}")
