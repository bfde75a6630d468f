"""Write the section on performance of docs/evidence.md: a table for each part of a run, and what was not measured.

section = render(json.loads(Path("docs/performance.json").read_text()))

All sections are tables of one form: a row for each measurement, with the median and the range of its figures over
repeats, and the ratio of its first figure to the section's reference, as the median of ratios within repeats.
"""

from __future__ import annotations

import re
import statistics
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from suite.plan import FULL, QUICK, SECTIONS, Section
from suite.provenance import origin, results_of
from suite.results import Result, Results

PAGE, RECORD = "evidence.md", "performance.json"
TITLE = "Performance"
MAX_LINE_LENGTH = 118
UNITS = {
    "triples_per_second": ("thousand triples/s", 1e-3),
    "rows_per_second": ("thousand rows/s", 1e-3),
    "events_per_second": ("million events/s", 1e-6),
    "bytes_pulled": ("MB pulled", 1e-6),
    "bytes_pushed": ("MB pushed", 1e-6),
}
"""By figure, its head and factor, where they are not ``seconds``: the name with blanks, and 1."""


def render(record: dict[str, Any]) -> str:
    """Return the section of a record."""
    return "\n".join(_page(record, Results(results_of(record))))


def replace_section(page: str, title: str, section: str) -> str:
    """Return ``page`` with ``section`` in place of the one below the heading ``title``, or at its end."""
    found = re.search(rf"^## {re.escape(title)}$.*?(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    if found is None:
        return page + section
    rest = page[found.end() :]
    return page[: found.start()] + section + ("\n" + rest if rest else "")


def _page(record: dict[str, Any], results: Results) -> Iterator[str]:
    yield from _head(record, results)
    for name, section in SECTIONS.items():
        yield f"### {section.title}\n"
        yield _prose(section.text)
        if measured := _measured(results, name):
            yield _prose(origin(measured))
            yield _section_table(section, results, measured)
        else:
            yield f"Not measured: `{section.command(name)}` does it.\n"
    errors = {result.key: results.error(result.key) for result in results}
    rows = [[f"`{key}`", error.replace("|", "/")] for key, error in errors.items() if error]
    if rows:
        yield "### Failed\n"
        yield _table(["measurement", "reason"], rows)


def _head(record: dict[str, Any], results: Results) -> Iterator[str]:
    machine, scale = record["machine"], QUICK if record["scale"] == QUICK.name else FULL
    yield f"## {TITLE}\n"
    yield _prose(
        f"""Written by `make bench` ([`benchmarks/bench.py`](../benchmarks/bench.py)) from the figures in
        [{RECORD}]({RECORD}). What was tried to get here, and what did not help: [below](#what-was-tried). Parts may be
        of different runs: each names its own."""
    )
    if scale is QUICK:
        yield "**Small sizes, to check the suite: these figures compare nothing.**\n"
    if busy := [title for title, load in _loads(results) if load > machine["cores"] + 1]:
        yield _prose(
            f"""**Other processes were busy on this machine during the measurements of: {", ".join(busy)}. These figures
            are preliminary.** PyTorch's threads wait in loops, so FBGEMM and TorchRec lose most by that: ratios to them
            are too high."""
        )
    virtual = ", virtual" if machine["virtual"] else ""
    facts = [
        ["machine", f"{machine['processor']}, {machine['cores']} cores{virtual}"],
        ["memory, system", f"{machine['memory_gib']} GiB; {machine['system']}"],
        ["versions", ", ".join(f"{name} {version}" for name, version in record["versions"].items())],
        ["last command", f"`{record['command']}`"],
    ]
    if machine.get("gpu"):
        facts.append(["GPU", machine["gpu"]])
    yield _table(["", ""], facts)
    yield _prose(
        f"""The work, unless a section says otherwise: BPR triples (customer, positive, one negative) on
        {scale.customers:,} customers and {scale.tracks:,} tracks with {scale.dim} float32 columns, scored by dot
        product; a step has {scale.batch:,} triples. IDs are the same for all: uniform, or by Zipf's law with exponent
        1.1 in random order. Crossfade's figures are of the command `crossfade train` on a Parquet dataset: reading,
        shuffling, and drawing negatives are part of them. Peers get arrays of IDs in memory. Rates are those of steps
        after a warm-up, without setup. Whatever is measured may use {machine["cores"]} cores."""
    )
    yield _prose(
        """Figures are medians over repeats in which the measurements of a section take turns, with the range from the
        lowest to the highest. Where there is a ratio, it is of the first figure to the row it names, the median
        over repeats."""
    )


def _section_table(section: Section, results: Results, measured: Sequence[Result]) -> str:
    """Return a row for each measurement; the columns are the section's figures that one of them has."""
    figures = [name for name in section.figures if any(name in result.values for result in measured)]
    heads = [UNITS.get(name, (name.replace("_", " "), 1.0)) for name in figures]
    rows = []
    for key in dict.fromkeys(result.key for result in measured):
        row = [key.partition("/")[2].replace("/", ", ")]
        row += [_cell(results, key, name, factor) for name, (_, factor) in zip(figures, heads, strict=True)]
        rows.append([*row, *([_ratio(section, results, key)] if section.references else [])])
    return _table(["", *(head for head, _ in heads), *(["first figure, ratio"] if section.references else [])], rows)


def _ratio(section: Section, results: Results, key: str) -> str:
    """Return the ratio of the first figure of ``key`` to the reference in its group, such as uniform."""
    group, _, name = key.rpartition("/")
    for reference in section.references:
        ratio = results.ratio(key, f"{group}/{reference}", section.figures[0]) if name != reference else None
        if ratio is not None:
            return f"{ratio:.2g} of {reference}"
    return ""


def _cell(results: Results, key: str, figure: str, factor: float) -> str:
    """Write the median of a figure, and its range."""
    values = [factor * value for value in results.values(key, figure)]
    if not values:
        return "failed" if results.error(key) else ""
    middle = statistics.median(values)
    digits = 2 if abs(middle) < 10 else 1 if abs(middle) < 1000 else 0
    text = f"{middle:,.{digits}f}"
    return text if len(values) == 1 else f"{text} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def _measured(results: Results, section: str) -> list[Result]:
    """Return the results, and failures, of a section."""
    return [result for result in results if result.section == section]


def _loads(results: Results) -> Iterator[tuple[str, float]]:
    """Yield the title of each section that was measured, and the median load before its measurements."""
    for name, section in SECTIONS.items():
        if measured := _measured(results, name):
            yield section.title, statistics.median(result.load for result in measured)


def _prose(text: str) -> str:
    """Wrap a paragraph."""
    return textwrap.fill(" ".join(text.split()), MAX_LINE_LENGTH, break_long_words=False, break_on_hyphens=False) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"
