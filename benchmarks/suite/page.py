"""Write the figures of ``make bench`` into docs/evidence.md: a table for each part of a run, and what failed.

blocks = render(json.loads(Path("docs/performance.json").read_text()))
page = fill(page, blocks)       # each between the comments <!-- measured: NAME --> and <!-- end -->

The page says what is measured, and keeps all that stands outside the comments. All tables have one form: a row for each
measurement, with the median and the range of its figures over repeats, and the ratio of its first figure to the
section's reference, as the median of ratios within repeats.
"""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from suite.plan import QUICK, SECTIONS, Section
from suite.provenance import origin
from suite.results import Result, Results

PAGE, RECORD = "evidence.md", "performance.json"
MAX_LINE_LENGTH = 118
UNITS = {
    "triples_per_second": ("thousand triples/s", 1e-3),
    "rows_per_second": ("thousand rows/s", 1e-3),
    "events_per_second": ("million events/s", 1e-6),
    "bytes_pulled": ("MB pulled", 1e-6),
    "bytes_pushed": ("MB pushed", 1e-6),
}
"""By figure, its head and factor, where they are not ``seconds``: the name with blanks, and 1."""


def render(record: dict[str, Any]) -> dict[str, str]:
    """Return what the page has of a record, by the names of its blocks: the machine, each section, and failures."""
    results = Results(Result(**entry) for entry in record["measurements"])
    blocks = {"machine": _machine(record)}
    for name, section in SECTIONS.items():
        if measured := [result for result in results if result.section == name]:
            where_from = _origin(measured, record["machine"]["cores"])
            blocks[name] = f"{where_from}\n{_section_table(section, results, measured)}"
        else:
            blocks[name] = f"Not measured: `make bench ARGS='--only {name}'` does it.\n"
    errors = {result.key: results.error(result.key) for result in results}
    rows = [[f"`{key}`", error.replace("|", "/")] for key, error in errors.items() if error]
    return blocks | {"failed": table(["measurement", "reason"], rows) if rows else "None.\n"}


def fill(page: str, blocks: Mapping[str, str]) -> str:
    """Return ``page`` with each of ``blocks`` between the comments of its name.

    Raises:
        ValueError: the page has no place for one of them, or one that does not end before the next.
    """
    for name, block in blocks.items():
        begin, end = f"<!-- measured: {name} -->\n", "<!-- end -->"
        before, found, rest = page.partition(begin)
        if not found:
            raise ValueError(f"{PAGE} has no line {begin.strip()}")
        old, found, after = rest.partition(end)
        if not found or "<!-- measured:" in old:
            raise ValueError(f"{PAGE} has no line {end} below {begin.strip()}")
        page = before + begin + "\n" + block + "\n" + end + after
    return page


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def _machine(record: dict[str, Any]) -> str:
    """Return facts on the machine, and a warning if the figures are of small sizes."""
    machine = record["machine"]
    virtual = ", virtual" if machine["virtual"] else ""
    facts = [
        ["machine", f"{machine['processor']}, {machine['cores']} cores{virtual}"],
        ["memory, system", f"{machine['memory_gib']} GiB; {machine['system']}"],
        ["versions", ", ".join(f"{name} {version}" for name, version in record["versions"].items())],
        ["last command", f"`{record['command']}`"],
    ]
    if machine.get("gpu"):
        facts.append(["GPU", machine["gpu"]])
    is_quick = record["scale"] == QUICK.name
    warning = "**Small sizes, to check the suite: these figures compare nothing.**\n\n" if is_quick else ""
    return warning + table(["", ""], facts)


def _origin(measured: Sequence[Result], cores: int) -> str:
    """Return where figures come from, and a warning if other processes took their part of the machine."""
    text = origin(measured)
    if statistics.median(result.load for result in measured) > cores + 1:
        text += """ **Other processes were busy on this machine: these figures are preliminary.** PyTorch's threads wait
            in loops, so FBGEMM and TorchRec lose most by that: ratios to them are too high."""
    return textwrap.fill(" ".join(text.split()), MAX_LINE_LENGTH, break_long_words=False, break_on_hyphens=False) + "\n"


def _section_table(section: Section, results: Results, measured: Sequence[Result]) -> str:
    """Return a row for each measurement; the columns are the section's figures that one of them has."""
    figures = [name for name in section.figures if any(name in result.values for result in measured)]
    heads = [UNITS.get(name, (name.replace("_", " "), 1.0)) for name in figures]
    rows = []
    for key in dict.fromkeys(result.key for result in measured):
        row = [key.partition("/")[2].replace("/", ", ")]
        row += [_cell(results, key, name, factor) for name, (_, factor) in zip(figures, heads, strict=True)]
        rows.append([*row, *([_ratio(section, results, key)] if section.references else [])])
    return table(["", *(head for head, _ in heads), *(["first figure, ratio"] if section.references else [])], rows)


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
