"""What the listing of a folder has of a file."""

from __future__ import annotations

from typing import NamedTuple


class FoundFile(NamedTuple):
    """A file of a listing: its size, and when it was last written, as Unix time."""

    bytes: int
    modified: float
