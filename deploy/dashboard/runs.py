"""Find run folders: folders of runs themselves, or folders that hold some, where new ones may appear."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from crossfade.deploy.dashboard.run_reader import RunReader, is_run

SCAN_SECONDS = 1.0
_MAX_DEPTH = 2
"""Depth of the search for runs: those of 'crossfade tune' are one level below the others."""


class Runs:
    """The runs in some folders. Thread-safe."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Look in ``paths``, each the folder of a run or one that holds such folders."""
        self._paths = paths
        self._readers: dict[Path, RunReader] = {}
        self._lock = threading.Lock()
        self._scanned_at = float("-inf")

    def readers(self) -> list[RunReader]:
        """Return a reader for each run, sorted by name. A run keeps its reader as long as it exists."""
        with self._lock:
            if time.monotonic() - self._scanned_at >= SCAN_SECONDS:
                found = dict(self._find())
                self._readers = {path: self._readers.get(path) or RunReader(path, name) for path, name in found.items()}
                self._scanned_at = time.monotonic()
            return sorted(self._readers.values(), key=lambda reader: reader.name)

    def _find(self) -> Iterator[tuple[Path, str]]:
        for path in self._paths:
            if is_run(path):
                yield path, path.absolute().name if len(self._paths) == 1 else str(path)
            else:
                prefix = "" if len(self._paths) == 1 else f"{path}/"
                yield from ((found, f"{prefix}{found.relative_to(path)}") for found in _runs_in(path, _MAX_DEPTH))


def _runs_in(folder: Path, depth: int) -> Iterator[Path]:
    try:
        folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return
    for path in folders:
        if is_run(path):
            yield path
        elif depth > 1:
            yield from _runs_in(path, depth - 1)
