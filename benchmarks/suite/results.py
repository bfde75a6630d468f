"""The results of measurements: appended to a file as they are made, so that an interrupted run resumes.

results = Results.open(Path("build/bench/full.jsonl"), commit)
results.add(Result("single/uniform/crossfade", 0, commit, {"triples_per_second": 9e5}))
results.values("single/uniform/crossfade", "triples_per_second")
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Result:
    """One measurement of one repeat.

    Attributes:
        key: what was measured, such as ``single/uniform/crossfade``.
        repeat: the repeat, from 0.
        commit: the commit that was measured.
        values: the figures; empty if it failed.
        error: why it failed; empty if it did not.
        seconds: the duration of the measurement, with its setup.
        load: the load average of the last minute before it.
        date: the day it was measured.
    """

    key: str
    repeat: int
    commit: str
    values: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    seconds: float = 0.0
    load: float = 0.0
    date: str = ""

    @property
    def section(self) -> str:
        """The section of the suite, such as ``single``."""
        return self.key.partition("/")[0]


class Results:
    """The latest result of each key and repeat."""

    def __init__(self, results: Iterable[Result] = (), path: Path | None = None) -> None:
        """Start with ``results``; new ones are appended to ``path``, if given."""
        self._path = path
        self._results = {(result.key, result.repeat): result for result in results}

    @staticmethod
    def open(path: Path, commit: str) -> Results:
        """Read the results of ``commit`` from the file ``path``, if it exists, and append to it."""
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        found = [Result(**json.loads(line)) for line in lines if line.endswith("}")]
        return Results([result for result in found if result.commit == commit], path)

    def add(self, result: Result) -> None:
        """Keep ``result`` and append it to the file."""
        self._results[result.key, result.repeat] = result
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(result)) + "\n")

    def has(self, key: str, repeat: int) -> bool:
        """Return whether this repeat succeeded."""
        result = self._results.get((key, repeat))
        return result is not None and not result.error

    def __iter__(self) -> Iterator[Result]:
        return iter(self._results.values())

    def values(self, key: str, name: str) -> list[float]:
        """Return the figure ``name`` of all repeats of ``key`` that succeeded."""
        found = [result for result in self if result.key == key and not result.error]
        return [float(result.values[name]) for result in found if name in result.values]

    def error(self, key: str) -> str | None:
        """Return why ``key`` has no figures; None if it has some, or was not measured."""
        found = [result for result in self if result.key == key]
        return found[-1].error if found and all(result.error for result in found) else None

    def ratio(self, key: str, other: str, name: str) -> float | None:
        """Return the median over repeats of the figure of ``key`` over that of ``other`` in the same repeat."""
        pairs = [(result, self._results.get((other, result.repeat))) for result in self if result.key == key]
        ratios = [
            one.values[name] / two.values[name]
            for one, two in pairs
            if two and name in one.values and name in two.values
        ]
        return statistics.median(ratios) if ratios else None
