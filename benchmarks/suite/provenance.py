"""Where the figures of a page come from: sections that a run did not measure keep those of the record before.

record = keep_other_sections(record, previous, measured=["single"], say=print)
origin(results)     # "Commit 0a795c0968, 2026-11-27; 3 repeats; load before a measurement: median 1.6, ..."
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from suite.results import Result

SAME = ("processor", "cores")
"""Facts of the machine that figures on one page share."""


def keep_other_sections(
    record: dict[str, Any], previous: dict[str, Any], measured: Sequence[str], say: Callable[[str], None]
) -> dict[str, Any]:
    """Return ``record`` with the figures that ``previous`` has of sections other than ``measured``.

    Figures of another scale or machine are dropped, as they would be compared with what they cannot be.
    """
    others = [entry for entry in previous["measurements"] if _section(entry) not in measured]
    sections = list(dict.fromkeys(map(_section, others)))
    if not others:
        return record
    differences = _differences(record, previous)
    if differences:
        say(f"dropped the earlier figures of {', '.join(sections)}: {'; '.join(differences)}")
        return record
    say(f"kept the earlier figures of {', '.join(sections)}")
    own = [entry for entry in record["measurements"] if _section(entry) not in sections]
    versions = _merged(previous["versions"], record["versions"])
    return record | {"versions": versions, "measurements": [*others, *own]}


def origin(results: Iterable[Result]) -> str:
    """Return a sentence: commits and dates of ``results``, how often each was measured, and the load before."""
    results = list(results)
    commits = dict.fromkeys(f"{result.commit}, {result.date}" for result in results)
    succeeded = Counter(result.key for result in results if not result.error) or Counter(results[0].key)
    repeats = sorted({min(succeeded.values()), max(succeeded.values())})
    count = " to ".join(map(str, repeats)) + (" repeat" if repeats == [1] else " repeats")
    loads = [result.load for result in results]
    load = f"median {statistics.median(loads):.1f}, at most {max(loads):.1f}"
    return f"Commit {' and '.join(commits)}; {count}; load before a measurement: {load}."


def _section(entry: dict[str, Any]) -> str:
    return str(entry["key"]).partition("/")[0]


def _differences(record: dict[str, Any], previous: dict[str, Any]) -> list[str]:
    pairs = [("scale", previous["scale"], record["scale"])]
    pairs += [(name, previous["machine"][name], record["machine"][name]) for name in SAME]
    return [f"{name} was {old} and is {new}" for name, old, new in pairs if old != new]


def _merged(old: dict[str, str], new: dict[str, str]) -> dict[str, str]:
    """Return both versions of a package where they differ: each is that of some section."""
    names = dict.fromkeys([*old, *new])
    both = {
        name: dict.fromkeys(part for side in (old, new) if name in side for part in side[name].split(" and "))
        for name in names
    }
    return {name: " and ".join(versions) for name, versions in both.items()}
