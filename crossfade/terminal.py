r"""Print text whose names come from data: what commands print must not control the terminal that shows it.

    print_line(f"{cosine:6.3f}  {name}")
    print_result(options, {"name": name}, lambda: print_line(name))

Names of artists, files, and runs may contain escape sequences, which move the cursor or change the clipboard, and
directional overrides, which reorder what is shown. They are printed as Python would write them: ``\x1b``, ``\u202e``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, TextIO

from crossfade.base.errors import escape_unprintable, to_json_line
from crossfade.base.options import Options, option

Progress = Literal["bar", "lines", "metrics"]
"""How the progress of a training is shown."""


class PrintOptions(Options):
    """How a command prints its result."""

    json_: bool = option(False, "print the result as JSON", group="output")


def print_result(options: PrintOptions, value: Any, show: Callable[[], object]) -> None:
    """Print a result as requested: ``value`` as JSON in a line, or else ``show`` it to people."""
    if options.json_:
        print_json(value)
    else:
        show()


def print_line(text: object = "", *, file: TextIO | None = None, flush: bool = False) -> None:
    """Print ``text`` as one line, by default on stdout."""
    print(escape_unprintable(str(text)), file=file, flush=flush)


def print_lines(lines: Iterable[str]) -> None:
    """Print ``lines`` on stdout."""
    for line in lines:
        print_line(line)


def print_table(rows: Sequence[Sequence[str]], *, min_width: int = 8) -> None:
    """Print ``rows``: the first column to the left, the others to the right, at least ``min_width`` wide."""
    print_lines(align(rows, min_width=min_width))


def align(rows: Sequence[Sequence[str]], *, left: int = 1, min_width: int = 0) -> Iterator[str]:
    """Yield ``rows`` as lines: the first ``left`` columns to the left, the others, of ``min_width``, to the right."""
    columns = enumerate(zip(*rows, strict=True))
    widths = [max(0 if place < left else min_width, *map(len, column)) for place, column in columns]
    for row in rows:
        cells = (f"{cell:{'<' if place < left else '>'}{widths[place]}}" for place, cell in enumerate(row))
        yield "  ".join(cells).rstrip()


def print_json(value: Any) -> None:
    """Print ``value`` as JSON in one line."""
    print(to_json_line(value))


def print_log(text: str) -> None:
    """Print a part of another process's log, which may end within a line."""
    sys.stdout.write("\n".join(map(escape_unprintable, text.expandtabs().split("\n"))))
    sys.stdout.flush()
