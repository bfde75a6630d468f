"""Words for messages: counts with their nouns, the line of an error, and the name or path that was probably meant.

f"{counted(servers, 'server')} of {counted(entries, 'entry', 'entries')}"
similar_name("song_title", ["User Id", "Song Title"])                   # "Song Title"
similar_path("play", Path("jobs").glob("*.yaml"))                       # Path("jobs/plays.yaml")
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

from crossfade.base.errors import escape_unprintable

MAX_ERROR = 500
"""Maximum length of the line of an error that people read."""
_MIN_SIMILARITY = 0.75


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return ``number`` with its ``noun``, in the plural, by default with an s, unless it is 1."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def error_line(text: str) -> str | None:
    """Return the first line of an error's message: what follows are details. None if it is empty."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    shown = escape_unprintable(line)
    return (shown if len(shown) <= MAX_ERROR else f"{shown[: MAX_ERROR - 1]}…") or None


def similar_name(name: str, names: Iterable[str]) -> str | None:
    """Return that of ``names`` which is most like ``name``, without regard to case, blanks, and punctuation."""
    plain = {_plain(other): other for other in names}
    near = difflib.get_close_matches(_plain(name), plain, n=1, cutoff=_MIN_SIMILARITY)
    return plain[near[0]] if near else None


def similar_path(name: str, paths: Iterable[Path]) -> Path | None:
    """Return that of ``paths`` whose name, without the extension, is most like ``name``; of equal ones, the first."""
    by_name = {path.stem: path for path in reversed(list(paths))}
    near = similar_name(name, by_name)
    return None if near is None else by_name[near]


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())
