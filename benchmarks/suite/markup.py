"""Markdown of the page: paragraphs, tables, and the cells of figures."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Sequence

from suite.results import Results

MAX_LINE_LENGTH = 118


def prose(text: str) -> str:
    """Wrap a paragraph."""
    return textwrap.fill(" ".join(text.split()), MAX_LINE_LENGTH, break_long_words=False, break_on_hyphens=False) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def cell(results: Results, key: str, figure: str, factor: float = 1.0) -> str:
    """Write the median of a figure, times ``factor``, and its range."""
    return spread([factor * value for value in results.values(key, figure)]) or absence(results, key)


def spread(values: Sequence[float]) -> str:
    """Write the median of ``values`` and their range; nothing if there are none."""
    if not values:
        return ""
    digits = 2 if abs(statistics.median(values)) < 10 else 1 if abs(statistics.median(values)) < 1000 else 0
    text = f"{statistics.median(values):,.{digits}f}"
    return text if len(values) == 1 else f"{text} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def absence(results: Results, key: str) -> str:
    """Return why there is no figure of ``key``."""
    return "not measured" if results.error(key) is None else "failed, see below"


def thousands(value: float | None) -> str:
    """Write a value in thousands; nothing for None."""
    return "" if value is None else f"{value / 1e3:,.0f}"
