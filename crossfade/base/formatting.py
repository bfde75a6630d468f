"""Format figures for display: counts, bytes, durations, shares, ratios. None becomes a dash."""

from __future__ import annotations

import math
import time

_MISSING = "–"  # noqa: RUF001 - a dash


def count(value: float | None) -> str:
    """Format a number of things: ``8,421``, ``1.21 M``."""
    if value is None:
        return _MISSING
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}" if abs(value) < 100 * size else f"{value / size:,.0f}{unit}"
    return f"{value:,.0f}" if abs(value) >= 10 or value == int(value) else f"{value:.2g}"


def size(value: float | None) -> str:
    """Format bytes: ``640 kB``, ``1.21 GB``."""
    if value is None:
        return _MISSING
    for unit_bytes, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(value) >= unit_bytes:
            number = value / unit_bytes
            return f"{number:.3g} {unit}" if abs(number) < 999.5 else f"{number:,.0f} {unit}"
    return f"{value:.0f} B"


def duration(seconds: float | None) -> str:
    """Format a time span: ``0.4 s``, ``12 s``, ``4 min 10 s``, ``3 h 20 min``, ``2 d 4 h``."""
    if seconds is None or not math.isfinite(seconds):
        return _MISSING
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    for unit_seconds, unit, part_seconds, part in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if seconds >= unit_seconds:
            units, rest = divmod(int(seconds), unit_seconds)
            return f"{units} {unit} {rest // part_seconds} {part}" if rest >= part_seconds else f"{units} {unit}"
    return f"{seconds:.0f} s"


def share(value: float | None) -> str:
    """Format a fraction as a percentage: ``3.1 %``, ``42 %``."""
    if value is None:
        return _MISSING
    return f"{100 * value:.0f} %" if value >= 0.1 or value == 0 else f"{100 * value:.1f} %"


def decimals(value: float | None) -> str:
    """Format a loss or an evaluation metric with four decimals."""
    return _MISSING if value is None else f"{value:.4f}"


def with_error(value: float | None, error: float | None) -> str:
    """Format an evaluation metric with its standard error, if it has one: ``0.0378 ± 0.0004``."""
    return decimals(value) if error is None else f"{decimals(value)} ± {decimals(error)}"


def times(value: float | None) -> str:
    """Format a ratio: ``3.7 ×``, ``1,250 ×``."""
    if value is None:
        return _MISSING
    return f"{value:,.0f} ×" if value >= 100 else f"{value:.3g} ×"  # noqa: RUF001 - the sign


def local_time(at: float | None) -> str:
    """Format a Unix time in the time zone of this machine: ``2026-03-01 12:00:00``; nothing if unknown."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at)) if at is not None else ""


def lost(steps: int, seconds: float | None, *, from_step: int) -> str:
    """Describe what a restart from ``from_step`` takes again: ``333 steps since the last checkpoint, 5.6 s``."""
    if steps == 0:
        return "no step"
    since = "the last checkpoint" if from_step else "the beginning"
    took = "" if seconds is None else f", {duration(seconds)}"
    return f"{steps:,} {'step' if steps == 1 else 'steps'} since {since}{took}"
