# ruff: noqa: S608  (what is put into SQL is quoted by `identifier` and `literal`, or is a number of this program)
"""Read raw files into one typed table of events; every value is checked, and all faults are listed with their lines.

    table = read_events(connection, {"train": files}, work, options, (), faults, progress)

The table ``events`` has ``query`` and ``item`` (the numbers that ``IdEncoder`` gives the IDs), ``weight``
float32, never 0, ``timestamp`` int64 (null throughout where there is none), ``split`` (0 train, 1 valid, 2 test) and
``seq``, which is unique and rises in the order of the files and of the rows in them. Numbers are not consecutive.
Where events have columns of context, the table ``event_context`` has their values by ``seq``, as text. The tables
``ids_query`` and ``ids_item`` have the ``id`` of each ``number``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import duckdb

from crossfade.base.errors import InputError, Option
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.data.split_names import ALL_SPLITS
from crossfade.trainer.prepare.database import count_rows, fetch_one
from crossfade.trainer.prepare.event_values import (
    INTEGER_TEXT,
    Check,
    id_sql,
    report_row_faults,
    sound_rows,
    timestamp_sql,
    value_checks,
    weight_sql,
)
from crossfade.trainer.prepare.faults import Faults, NoInteractionError
from crossfade.trainer.prepare.fetch import fetch_files
from crossfade.trainer.prepare.id_encoder import SIDES, IdEncoder, IdType
from crossfade.trainer.prepare.input_files import RawFile, Source
from crossfade.trainer.prepare.options import PrepareOptions
from crossfade.trainer.prepare.raw_files import (
    KIND_NAMES,
    Kind,
    close_raw,
    counted_records,
    find_delimiter,
    open_adjacency,
    open_columns,
    read_errors,
)
from crossfade.trainer.prepare.source_columns import columns_by_role
from crossfade.trainer.prepare.timestamp_formats import check_formats

if TYPE_CHECKING:
    from crossfade.trainer.prepare.extend import BaseDataset

_TYPED_ROLES = ("query", "item", "timestamp")


@dataclass
class ReadStats:
    """The numbers of files and rows that were read, and of rows that were left out, by reason."""

    files: int = 0
    empty_files: int = 0
    rows: int = 0
    zero_weight: int = 0
    lines_without_items: int = 0

    def add(self, other: ReadStats) -> None:
        """Add those of other files."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass(frozen=True)
class EventTable:
    """The types and statistics of the table ``events``: ID types by role, and the type of timestamps, if any.

    Roles of IDs are the sides, and those of columns of context.
    """

    id_types: dict[str, IdType]
    timestamps: Literal["integer", "datetime"] | None
    stats: ReadStats


def read_events(
    connection: duckdb.DuckDBPyConnection,
    files: Mapping[str, Sequence[Source]],
    work: Path,
    options: PrepareOptions,
    base: BaseDataset | None,
    faults: Faults,
    progress: ProgressReporter,
) -> EventTable:
    """Read the ``files`` of each split into the table ``events``; remote ones are first fetched to ``work``.

    IDs that are strings in the ``base`` dataset stay strings in files without types, even if all of them are integers.

    Events of weight 0 and those outside the time range are counted and left out. All files are read to the end, even
    if some are at fault: ``faults`` receives all faults, and rejects them or has them left out.

    Raises:
        InputError: a file cannot be read or holds a value that is not allowed; files disagree on the type of an ID or
            of the timestamp; there is no event at all.
    """
    check_formats(connection, options.timestamp_format)
    reader = EventReader(connection, options, base.string_id_sides() if base else (), faults, base)
    order = [(code, file) for code, split in enumerate(ALL_SPLITS) for file in files.get(split, ())]
    progress.phase("read events", sum(file.bytes for _, file in order), "B")
    with fetch_files([file for _, file in order], work, reader.columns_to_fetch()) as local_files:
        reads = (partial(reader.read, file, code) for (code, _), file in zip(order, local_files, strict=True))
        read_each(reader, [source for _, source in order], reads, progress)
    close_raw(connection)
    return reader.finish()


def read_each(
    reader: EventReader, files: Sequence[Source], reads: Iterable[Callable[[], None]], progress: ProgressReporter
) -> None:
    """Read the ``files``, each by one of ``reads``, to the end, even if some are at fault; then reject all faults.

    Raises:
        InputError: a file cannot be used.
    """
    faults = reader.faults
    for source, read in zip(files, reads, strict=True):
        before, rows, is_own = faults.counts, reader.records, True
        try:
            read()
        except InputError as error:
            faults.add_error(error)
            is_own = not isinstance(error, _OtherTypeError)
        if is_own:
            faults.judge_file(str(source), before, reader.records - rows)
        progress.advance(source.bytes)
    faults.files.update(reader.files_of_rare_types())
    faults.check(reader.records)


def _violations(checks: Sequence[Check]) -> str:
    """Return SQL of whether any row violates each of the ``checks``."""
    return ", ".join(f"bool_or({check.violation})" for check in checks)


class _OtherTypeError(InputError):
    """A file holds another type than the first file; either may be wrong."""


class EventReader:
    """Appends one file after another to the table ``events``.

    Readers in other processes, each of one file, can be put together in the order of their files: one ``absorb``s what
    the ``state`` of each has.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        options: PrepareOptions,
        string_id_sides: Collection[str],
        faults: Faults,
        base: BaseDataset | None = None,
    ) -> None:
        """Read nothing yet; IDs of all files must have the types that ``base`` has."""
        self._connection = connection
        self._options = options
        self._string_id_sides = string_id_sides
        self.faults = faults
        self._base = base
        self._weight_sql = ""
        context = {plan.key: plan.source for plan in options.context_plans() if not plan.is_derived}
        self._context = list(context)
        self.columns = columns_by_role(options, context)
        # The type of each ID and of the timestamp, and the first file that has it.
        self.types: dict[str, tuple[str, RawFile]] = {}
        self._files_of_types: dict[str, dict[str, list[str]]] = {}
        self._encoder: IdEncoder | None = None
        self._stats = ReadStats()
        # The lines or rows of all files, those at fault included: a line of adjacency text has several rows.
        self.records = 0

    def columns_to_fetch(self) -> set[str]:
        """Return all columns that reading a file needs."""
        return set(self.columns.values())

    def read(self, file: RawFile, split: int) -> None:
        """Check ``file`` and append its events, unless the preparation is to end because of a fault."""
        faults_before = self.faults.count()
        kinds, file = self._open(file)
        self._weight_sql = weight_sql(kinds.get("weight"), self._options)
        self._stats.files += 1
        bad_lines = self.faults.count() - faults_before
        self._stats.rows += bad_lines
        counted = counted_records(file)
        records = count_rows(self._connection, counted)
        self.records += bad_lines + records
        with read_errors(file):
            rows = records if counted == "raw" else count_rows(self._connection, "raw")
            if not rows:
                self._stats.empty_files += 1
                return
            typed = {*_TYPED_ROLES, *self._context}
            types = {role: self._infer_type(file, role, kind) for role, kind in kinds.items() if role in typed}
            self._check_types(file, types)
            formats = self._options.timestamp_format if kinds.get("timestamp") != "datetime" else ()
            checks = value_checks(kinds, types, self._options, formats, self._context)
            timestamp = timestamp_sql(types.get("timestamp"), formats)
            rows, sound = self._check(file, checks)
            if not self.faults.rejected:
                self._insert(sound, types, timestamp, split, rows)

    def files_of_rare_types(self) -> dict[str, str]:
        """Return a problem of each file that holds another type than most files do, by name."""
        problems = {}
        for role, by_type in self._files_of_types.items():
            most = max(map(len, by_type.values()))
            for found, files in by_type.items():
                if len(files) < most:
                    problem = f"column '{self.columns[role]}' holds {KIND_NAMES[found]}, unlike in most files"
                    problems.update(dict.fromkeys(files, problem))
        return problems

    def state(self) -> dict[str, Any]:
        """Return what was read, except events and IDs."""
        return {"types": self.types, "stats": self._stats, "records": self.records, "faults": self.faults.state()}

    def absorb(self, state: Mapping[str, Any], faults_before: Any) -> None:
        """Add the ``state`` of a reader of the next file; it had ``faults_before`` it checked types and values.

        Raises:
            InputError: a type differs from the one in files before.
        """
        self._stats.add(state["stats"])
        self.records += state["records"]
        found = {role: found_type for role, (found_type, _) in state["types"].items()}
        try:
            for _, file in list(state["types"].values())[:1]:
                self._check_types(file, found)
        except InputError:
            self.faults.absorb(faults_before)
            raise
        self.faults.absorb(state["faults"])

    def _open(self, file: RawFile) -> tuple[dict[str, Kind], RawFile]:
        """Open ``file`` as ``raw``; return the kinds of its columns by role, and the file with its delimiter."""
        file = replace(file, delimiter=self._options.delimiter, encoding=self._options.encoding)
        if file.format == "lightgcn":
            self._stats.lines_without_items += open_adjacency(self._connection, file, self.faults.add_line)
            return {"query": "integer", "item": "integer"}, file
        file = find_delimiter(file, self.columns)
        return open_columns(self._connection, file, self.columns, on_fault=self.faults.add_line), file

    def finish(self) -> EventTable:
        """Encode the last IDs and describe the table.

        Raises:
            InputError: there was no event.
        """
        table = self.describe(has_events=self._encoder is not None)
        assert self._encoder is not None
        for side in SIDES:
            self._connection.execute(f"DROP TABLE IF EXISTS file_{side}")
        self._encoder.finish()
        return table

    def describe(self, has_events: bool) -> EventTable:
        """Describe the events of all files, wherever they are.

        Raises:
            NoInteractionError: there are none.
        """
        if not has_events:
            raise NoInteractionError("the files given hold no interaction; expected at least one in ", Option("train"))
        id_types: dict[str, IdType] = {
            role: "int64" if self.types[role][0] == "integer" else "string"
            for role in ("query", "item", *self._context)
        }
        timestamp = self.types.get("timestamp")
        timestamps: Literal["integer", "datetime"] | None = None
        if timestamp is not None:
            timestamps = "integer" if timestamp[0] == "integer" else "datetime"
        return EventTable(id_types, timestamps, self._stats)

    def _infer_type(self, file: RawFile, role: str, kind: Kind) -> str:
        """Return the type of the IDs or timestamps of a file: 'integer', 'string' or 'datetime'."""
        other = "datetime" if role == "timestamp" else "string"
        if role == "timestamp":
            if self._options.timestamp_format and kind in ("text", "string", "integer"):
                return "datetime"
        elif self._options.id_type != "auto" and kind in ("text", "string", "integer"):
            return self._options.id_type
        elif kind == "text" and role in self._string_id_sides:
            return "string"
        if kind == "text" or (kind == "string" and role == "timestamp"):
            return self._infer_text_type(role, other)
        if kind in ("integer", other):
            return kind
        expected = "integers, timestamps, dates or ISO text" if role == "timestamp" else "integers or strings"
        raise InputError(
            f"{file}: column '{self.columns[role]}' holds {KIND_NAMES[kind]}; expected {expected}: cast it, "
            "or name another column"
        )

    def _infer_text_type(self, role: str, other: str) -> str:
        """Return 'integer' if all texts of ``role`` are, or one of timestamps is: others are faults then."""
        is_other = f"NOT coalesce({INTEGER_TEXT}, coalesce({{0}}, '') = '')"
        if not self._exists(is_other.format(role)):
            return "integer"
        return "integer" if role == "timestamp" and self._exists(INTEGER_TEXT.format(role)) else other

    def _exists(self, condition: str) -> bool:
        """Return whether a row meets ``condition``; the first one ends the search."""
        return bool(count_rows(self._connection, f"(SELECT 1 FROM raw WHERE {condition} LIMIT 1)"))

    def _check_types(self, file: RawFile, types: Mapping[str, str]) -> None:
        if self._base is not None:
            for entity, side in self._options.sides().items():
                self._base.check_id_type(entity, "int64" if types[side] == "integer" else "string")
        for role, found in types.items():
            self._check_same_type(file, role, found)

    def _check_same_type(self, file: RawFile, role: str, found: str) -> None:
        self._files_of_types.setdefault(role, {}).setdefault(found, []).append(str(file))
        expected, first = self.types.setdefault(role, (found, file))
        if expected != found:
            fix = ("read all ids as text with ", Option("id_type", "string"))
            if role == "timestamp":
                fix = ("name their formats, as in ", Option("timestamp_format", "iso epoch-s"))
            raise _OtherTypeError(
                f"{file}: column '{self.columns[role]}' holds {KIND_NAMES[found]}, but {first} holds "
                f"{KIND_NAMES[expected]} there; expected one type in all files: make them the same, or ",
                fix,
            )

    def _check(self, file: RawFile, checks: Sequence[Check]) -> tuple[int, str]:
        """Check every value; return the number of rows, and SQL of the relation of those that pass.

        IDs are checked once each. Only a file that is at fault is searched for the rows that are.
        """
        of_rows = [check for check in checks if check.role not in SIDES]
        rows, zeros, violated = self._scan("raw", of_rows)
        self._collect_ids("raw", f"{self._weight_sql} <> 0" if zeros else "true")
        for side in SIDES:
            of_side = [check for check in checks if check.role == side]
            found = fetch_one(self._connection, f"SELECT {_violations(of_side)} FROM file_{side}")
            violated += [check for check, is_violated in zip(of_side, found, strict=True) if is_violated]
        sound = "raw"
        if violated:
            report_row_faults(self._connection, file, checks, self.columns, self.faults)
            sound = sound_rows(checks)
            _, zeros, _ = self._scan(sound, [])
            self._collect_ids(sound, f"{self._weight_sql} <> 0")
        self._stats.rows += rows
        self._stats.zero_weight += zeros
        return rows, sound

    def _scan(self, relation: str, checks: Sequence[Check]) -> tuple[int, int, list[Check]]:
        """Return the numbers of rows and of those of weight 0, and those of the ``checks`` that some row violates."""
        found = f", {_violations(checks)}" if checks else ""
        counts = f"count(*), count(*) FILTER ({self._weight_sql} = 0)"
        rows, zeros, *violations = fetch_one(self._connection, f"SELECT {counts}{found} FROM {relation}")
        assert isinstance(rows, int)
        assert isinstance(zeros, int)
        return rows, zeros, [check for check, is_violated in zip(checks, violations, strict=True) if is_violated]

    def _collect_ids(self, relation: str, kept: str) -> None:
        """Create the tables ``file_SIDE`` of the IDs in ``relation``, with their ``kept`` events, and positive ones."""
        counts = f"count(*) FILTER ({kept}) AS kept, count(*) FILTER ({kept} AND {self._weight_sql} > 0) AS positives"
        for side in SIDES:
            self._connection.execute(
                f"CREATE OR REPLACE TABLE file_{side} AS SELECT {side}, {counts} FROM {relation} GROUP BY {side}"
            )

    def _insert(self, sound: str, types: Mapping[str, str], timestamp: str, split: int, rows: int) -> None:
        selected = ", ".join(
            (
                f"{id_sql('query', types['query'])} AS query_id",
                f"{id_sql('item', types['item'])} AS item_id",
                f"{self._weight_sql} AS weight",
                f"{timestamp} AS timestamp",
                f"{split:d}::UTINYINT AS split",
                "position",
                *(f"nullif(CAST({role} AS VARCHAR), '') AS {role}" for role in self._context),
            )
        )
        count = "positives" if split == 0 else "0"
        ids = {side: f"SELECT {id_sql(side, types[side])}, {count} FROM file_{side} WHERE kept > 0" for side in SIDES}
        kept = f"(SELECT {selected} FROM {sound} WHERE {self._weight_sql} <> 0)"
        self._append(kept, rows, ids)

    def _append(self, events: str, rows: int, ids: Mapping[str, str]) -> None:
        """Append the relation ``events`` of a file with ``rows`` data rows, as ``IdEncoder.add`` does."""
        if self._encoder is None:
            query_type, item_type = (self.types[side][0] for side in SIDES)
            self._encoder = IdEncoder(self._connection, query_type, item_type, self._context)
        self._encoder.add(events, rows, ids)
