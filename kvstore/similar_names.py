"""Suggest the name or the path that was probably meant, for messages about one that does not exist.

similar_name("song_title", ["User Id", "Song Title"])                   # "Song Title"
similar_path("play", Path("jobs").glob("*.yaml"))                       # Path("jobs/plays.yaml")
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

_MIN_SIMILARITY = 0.75


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
