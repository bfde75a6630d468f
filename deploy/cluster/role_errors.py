"""Find the last line of a role's error, for people: one printable line of bounded length."""

from __future__ import annotations

import re

from crossfade.base.errors import escape_unprintable
from crossfade.deploy.cluster.messages import MAX_ERROR

_LOG_HEAD = re.compile(r"^\S+Z [A-Z]+ \S+ (?:generation=\d+ )?(?:step=\d+ )?")
_ERROR = re.compile(r"(?:[\w.]*(?:Error|Exception)\b.*|Fatal Python error: .*|terminate called .*|what\(\): .*)")
"""What Python and C++ write before they end: the line of a traceback with the exception, or an abort's reason."""


def error_line(text: str) -> str | None:
    """Return the first line of an error's message: what follows are details. None if it is empty."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    shown = escape_unprintable(line)
    return (shown if len(shown) <= MAX_ERROR else f"{shown[: MAX_ERROR - 1]}…") or None


def last_error(log: str) -> str | None:
    """Return the last line of ``log`` that names an exception or an abort; None if none does."""
    lines = (_LOG_HEAD.sub("", line).strip() for line in reversed(log.splitlines()))
    return next((error_line(line) for line in lines if _ERROR.match(line)), None)
