"""Collect the faults of event files: what is wrong, how often, and where first; and decide which end the preparation.

faults = Faults(leave_out=True)
faults.add("the weight of column 'plays' is missing", [Place("plays.csv", "line", 7)], 12, message)
faults.check(1000)  # raises an error with a line for each problem that is not left out; also if too many are

"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

from crossfade.base.errors import InputError, Option, Text, as_typed, join, parts, worded
from crossfade.base.text import counted
from crossfade.trainer.prepare.input_files import RawFile
from crossfade.trainer.prepare.options import MAX_BAD
from crossfade.trainer.prepare.text_records import Record

MAX_PLACES = 5
"""How many places of a problem are shown."""
_MAX_SHOWN_PROBLEMS = 3


@dataclass(frozen=True)
class Place:
    """Where a fault is: the number, from 1, of the line or row (the unit) of a file; and the value found there."""

    file: str
    unit: str
    number: int
    value: str = ""

    def __str__(self) -> str:
        """Return file and number."""
        return f"{self.file}, {self.unit} {self.number}"


@dataclass
class _Problem:
    """A problem: whether it is always an error, how many faults are of it, and the first places."""

    fatal: bool
    message: tuple[str | Option, ...]
    count: int = 0
    places: list[Place] = field(default_factory=list)


class NoInteractionError(InputError):
    """The files hold no interaction."""


class FaultyFilesError(InputError):
    """Event files have faults.

    Attributes:
        files: the files that have to be left out for the others to be prepared: the problem of each, by name.
        count: how many faults ``details`` describes.
        details: of several, a line for each kind, with its number and its first places.
        choice: how some of them can be left out; empty: none can.
    """

    def __init__(self, *message: Text, count: int = 1, details: Sequence[Text] = (), choice: Text = "") -> None:
        super().__init__(*message)
        self.files: dict[str, str] = {}
        self.count, self.details, self.choice = count, details, choice


class FaultCounts(NamedTuple):
    """How many faults are left out, and how many end the preparation."""

    left_out: int = 0
    rejected: int = 0


@dataclass
class Faults:
    """The faults of all files, by problem.

    Attributes:
        leave_out: whether lines at fault are left out; else they are an error.
        max_bad: the largest share of rows that may be left out.
        first_row: the number of the first row of files without lines.
        files: the problem of each file without which the others could be prepared, by name.
        counts: how many faults there are, for ``judge_file``.
    """

    leave_out: bool = False
    max_bad: float = MAX_BAD
    first_row: int = 1
    files: dict[str, str] = field(default_factory=dict)
    counts: FaultCounts = field(default_factory=FaultCounts)
    _problems: dict[tuple[str | Option, ...], _Problem] = field(default_factory=dict)
    _last_rejected: Text = ""
    _over_share: dict[str, str] = field(default_factory=dict)

    def emptied(self) -> Faults:
        """Return faults without any, for another file."""
        return Faults(self.leave_out, self.max_bad, self.first_row)

    def state(self) -> Any:
        """Return a copy of the faults for ``absorb``, perhaps in another process."""
        return deepcopy(self._problems)

    def absorb(self, state: Any) -> None:
        """Add the faults of other files, their ``state``."""
        for text, found in state.items():
            self.add(text, found.places, found.count, found.message, found.fatal)

    def add(
        self,
        problem: Text,
        places: Sequence[Place],
        count: int,
        message: Text,
        fatal: bool = False,
    ) -> None:
        """Add ``count`` faults of a ``problem``, the first of which are at ``places``.

        ``message`` describes the first one by itself. A ``fatal`` one is never left out.
        """
        problem, message = parts(problem), parts(message)
        if fatal or not self.leave_out:
            self.counts, self._last_rejected = self.counts._replace(rejected=self.counts.rejected + count), problem
        else:
            self.counts = self.counts._replace(left_out=self.counts.left_out + count)
        found = self._problems.setdefault(problem, _Problem(fatal, message))
        found.count += count
        found.places += places[: MAX_PLACES - len(found.places)]

    def add_line(self, file: RawFile, record: Record) -> None:
        """Add a line that cannot be read."""
        place = Place(str(file), "line", record.line)
        self.add(record.problem, [place], 1, record.describe(file))

    def add_error(self, error: InputError) -> None:
        """Add an error about a whole file, which is never left out."""
        self.add(error.args, [], 1, error.args, fatal=True)

    def judge_file(self, name: str, before: FaultCounts, rows: int) -> None:
        """Note whether the others could be prepared without the file ``name``, of which ``rows`` were read.

        ``before`` is ``counts`` before its first row.
        """
        left_out = self.counts.left_out - before.left_out
        if self.counts.rejected > before.rejected:
            self.files[name] = worded(self._last_rejected)
        elif left_out > self.max_bad * rows:
            self._over_share[name] = f"{left_out:,} of {counted(rows, 'row')} would be left out"

    @property
    def rejected(self) -> bool:
        """Whether a fault ends the preparation."""
        return self.counts.rejected > 0

    def count(self) -> int:
        """Return the number of faults."""
        return sum(self.counts)

    def lines(self) -> list[str]:
        """Describe each problem, with its count and the first places, but without values, which may be of a person."""
        return [worded(_format(text, problem, values=False), as_typed) for text, problem in self._problems.items()]

    def check(self, rows: int) -> None:
        """Reject the files if a fault is not to be left out, or too many of their ``rows`` are.

        Raises:
            FaultyFilesError: there is such a fault, or there are too many.
        """
        exceeds_share = self.counts.left_out > self.max_bad * rows
        if self.rejected or exceeds_share:
            error = self._rejection() if self.rejected else self._share_error(rows)
            error.files = {**self._over_share, **self.files} if exceeds_share else self.files
            raise error

    def _rejection(self) -> FaultyFilesError:
        """Return the error that there are faults that are not left out."""
        rejected = {text: found for text, found in self._problems.items() if found.fatal or not self.leave_out}
        total = self.counts.rejected
        text, first = next(iter(rejected.items()))
        if total == 1 or (len(rejected) == 1 and text == first.message):
            return FaultyFilesError(first.message)
        listed = [_format(text, problem, values=True) for text, problem in rejected.items()]
        is_choice = not all(problem.fatal for problem in rejected.values())
        choice = ("bad lines with ", Option("on_bad_line", "skip")) if is_choice else ""
        correct, or_leave_out = "listed above; correct the files", (", or leave out ", choice) if choice else ""
        message = (f"the events have {total:,} faults, {correct}", or_leave_out)
        return FaultyFilesError(*message, count=total, details=listed, choice=choice)

    def _share_error(self, rows: int) -> FaultyFilesError:
        """Return the error that more than the allowed share of ``rows``, bad ones included, would be left out."""
        left_out = self.counts.left_out
        found = sorted(self._problems.items(), key=lambda entry: -entry[1].count)
        listed = [_format(text, problem, values=True) for text, problem in found[:_MAX_SHOWN_PROBLEMS]]
        if len(found) > len(listed):
            listed.append("others")
        return FaultyFilesError(
            f"{left_out:,} of {rows:,} rows would be left out ({left_out / rows:.1%}), more than the "
            f"{100 * self.max_bad:.4g}% of ",
            Option("max_bad"),
            ": ",
            join(listed, "; "),
            "; check the columns and the format, or allow this with ",
            Option("max_bad", f"{math.ceil(100 * left_out / rows)}%"),
        )


def _format(text: Text, problem: _Problem, values: bool) -> Text:
    if problem.fatal:
        return problem.message
    more = ", …" if problem.count > len(problem.places) else ""
    places = _format_places(problem.places, values)
    return (f"{counted(problem.count, problem.places[0].unit)}: ", text, f" ({places}{more})")


def _format_places(places: Iterable[Place], values: bool) -> str:
    """Join ``places``, with the name of each file once."""
    shown = []
    for file, group in groupby(places, key=lambda place: place.file):
        found = list(group)
        numbers = ", ".join(f"{at.number} '{at.value}'" if values and at.value else str(at.number) for at in found)
        shown.append(f"{file}, {found[0].unit}{'s'[: len(found) != 1]} {numbers}")
    return "; ".join(shown)
