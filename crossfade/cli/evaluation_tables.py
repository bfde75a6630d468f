"""Tables of ``crossfade evaluate``: metrics by segment, and the comparison of two runs.

print_segments({"new": {"min_interactions": 0, "max_interactions": 0, "queries": 12, "recall@10": 0.1}, "all": ...})
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crossfade.base.text import counted
from crossfade.terminal import print_line, print_table

Values = Mapping[str, float | int | None]


def print_segments(segments: Mapping[str, Values]) -> None:
    """Print a column for each segment and a row for each metric at each depth; "-" where a segment has no value."""
    metrics = list(dict.fromkeys(name for values in segments.values() for name in values if "@" in name))
    rows = [["segment", *segments]]
    if any("min_interactions" in values for values in segments.values()):
        rows.append(["interactions", *map(_range, segments.values())])
    rows.append(["queries", *(f"{values['queries']:,}" for values in segments.values())])
    for metric in metrics:
        found = [values.get(metric) for values in segments.values()]
        rows.append([metric, *("-" if value is None else f"{value:.4f}" for value in found)])
    print_table(rows)


def _range(values: Values) -> str:
    """Return the limits of a segment's counts as ``5-9`` or ``10+``; empty where it has none."""
    if "min_interactions" not in values:
        return ""
    least, largest = values["min_interactions"], values["max_interactions"]
    if largest is None:
        return f"{least:,}+"
    return f"{least:,}" if least == largest else f"{least:,}-{largest:,}"


def print_comparison(comparison: Mapping[str, Any], run: str) -> None:
    """Print a row for each metric: means of ``run`` and the other run, their difference, its interval and p-value."""
    print_line(f"{run} less {comparison['other']}, over the same {counted(comparison['queries'], 'query', 'queries')}")
    rows = [["", "run", "other", "difference", "95% interval", "p (Holm)", "better", "worse", "equal"]]
    for name, found in comparison["metrics"].items():
        means = [f"{found['run']:.4f}", f"{found['other']:.4f}", f"{found['difference']:+.4f}"]
        test = [f"{found['low']:+.4f} to {found['high']:+.4f}", f"{found['p_holm']:.4f}"]
        rows.append([name, *means, *test, *(f"{found[key]:,}" for key in ("better", "worse", "equal"))])
    print_table(rows)
