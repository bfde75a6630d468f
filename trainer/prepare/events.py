# ruff: noqa: S608  (what is put into SQL is quoted by `identifier` and `literal`, or is a number of this program)
"""Read raw files into one typed table of events; every value is checked, and errors name the file and the line.

    table = read_events(connection, {"train": files}, work, ColumnMapping("customer", "track"), "auto", time_range, …)

The table ``events`` has ``query`` and ``item`` (int64, the numbers that ``id_encoder.py`` gives the IDs), ``weight``
float32, never 0, ``timestamp`` int64 (null throughout where there is none), ``split`` (0 train, 1 valid, 2 test) and
``seq``, which is unique and rises in the order of the files and of the rows in them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NoReturn

import duckdb

from crossfade.kvstore.errors import InputError
from crossfade.trainer.data.manifest import SPLITS
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.data.time_values import EventTimeRange, check_seconds
from crossfade.trainer.prepare.database import fetch_count, fetch_one, identifier
from crossfade.trainer.prepare.event_values import INTEGER_TEXT, Check, id_sql, timestamp_sql, value_checks, weight_sql
from crossfade.trainer.prepare.fetch import fetch_files
from crossfade.trainer.prepare.id_encoder import IdEncoder
from crossfade.trainer.prepare.input_files import RawFile, Source
from crossfade.trainer.prepare.raw_files import (
    KIND_NAMES,
    Kind,
    close_raw,
    locate_row,
    open_adjacency,
    open_columns,
    read_errors,
)

IdChoice = Literal["auto", "integer", "string"]
IdType = Literal["int64", "string"]

_TYPED_ROLES = ("query", "item", "timestamp")
_ROLE_NAMES = {
    "query": "query id",
    "item": "item id",
    "weight": "weight",
    "event": "event",
    "timestamp": "timestamp",
}


@dataclass(frozen=True)
class ColumnMapping:
    """Which column of the raw files has which role; ``None`` if there is no such column."""

    query: str
    item: str
    weight: str | None = None
    event: str | None = None
    event_weights: Mapping[str, float] = field(default_factory=dict)
    timestamp: str | None = None

    def roles(self) -> dict[str, str]:
        """Return the column of each role that has one."""
        columns = {
            "query": self.query,
            "item": self.item,
            "weight": self.weight,
            "event": self.event,
            "timestamp": self.timestamp,
        }
        return {role: column for role, column in columns.items() if column is not None}


@dataclass
class ReadStats:
    """The numbers of files and rows that were read, and of rows that were left out, by reason."""

    files: int = 0
    empty_files: int = 0
    rows: int = 0
    before_since: int = 0
    from_until: int = 0
    zero_weight: int = 0
    lines_without_items: int = 0


@dataclass(frozen=True)
class EventTable:
    """The types and statistics of the table ``events``: ID types by side, and the type of timestamps, if any."""

    id_types: dict[str, IdType]
    timestamps: Literal["integer", "datetime"] | None
    stats: ReadStats


def read_events(
    connection: duckdb.DuckDBPyConnection,
    files: Mapping[str, Sequence[Source]],
    work: Path,
    columns: ColumnMapping,
    id_type: IdChoice,
    time_range: EventTimeRange,
    progress: ProgressReporter,
    string_id_sides: Collection[str] = (),
) -> EventTable:
    """Read the ``files`` of each split into the table ``events``; remote ones are first fetched to ``work``.

    Events of weight 0 and those outside ``time_range`` are counted and left out. The IDs of ``string_id_sides`` stay
    strings in files without types, even if all of them are integers.

    Raises:
        InputError: a file cannot be read or holds a value that is not allowed; files disagree on the type of an ID or
            of the timestamp; there is no event at all.
    """
    reader = _Reader(connection, columns, id_type, time_range, string_id_sides)
    order = [(code, file) for code, split in enumerate(SPLITS) for file in files.get(split, ())]
    progress.phase("read events", sum(file.bytes for _, file in order), "B")
    with fetch_files([file for _, file in order], work, columns.roles().values()) as local_files:
        for (code, source), file in zip(order, local_files, strict=True):
            reader.read(file, code)
            progress.advance(source.bytes)
    close_raw(connection)
    return reader.finish()


class _Reader:
    """Appends one file after another to the table ``events``."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        columns: ColumnMapping,
        id_type: IdChoice,
        time_range: EventTimeRange,
        string_id_sides: Collection[str],
    ) -> None:
        self._connection = connection
        self._columns = columns
        self._id_type = id_type
        self._time_range = time_range
        self._string_id_sides = string_id_sides
        self._weight_sql = weight_sql(columns.weight is not None, columns.event_weights)
        # The type of each ID and of the timestamp, and the first file that has it.
        self._types: dict[str, tuple[str, RawFile]] = {}
        self._encoder: IdEncoder | None = None
        self._stats = ReadStats()

    def read(self, file: RawFile, split: int) -> None:
        """Check ``file`` and append its events."""
        kinds: dict[str, Kind]
        if file.format == "lightgcn":
            self._stats.lines_without_items += open_adjacency(self._connection, file)
            kinds = {"query": "integer", "item": "integer"}
        else:
            kinds = open_columns(self._connection, file, self._columns.roles())
        self._stats.files += 1
        with read_errors(file):
            if not fetch_count(self._connection, "SELECT count(*) FROM (SELECT 1 FROM raw LIMIT 1)"):
                self._stats.empty_files += 1
                return
            types = {role: self._infer_type(file, role, kind) for role, kind in kinds.items() if role in _TYPED_ROLES}
            for role, found in types.items():
                self._check_same_type(file, role, found)
            rows = self._check(file, value_checks(kinds, types, self._columns.event_weights), types)
            self._insert(types, split, rows)

    def finish(self) -> EventTable:
        """Encode the last IDs and describe the table.

        Raises:
            InputError: there was no event.
        """
        if self._encoder is None:
            raise InputError("the files given hold no interaction; expected at least one in --train")
        self._encoder.finish()
        id_types: dict[str, IdType] = {
            side: "int64" if self._types[side][0] == "integer" else "string" for side in ("query", "item")
        }
        timestamp = self._types.get("timestamp")
        timestamps: Literal["integer", "datetime"] | None = None
        if timestamp is not None:
            timestamps = "integer" if timestamp[0] == "integer" else "datetime"
        return EventTable(id_types, timestamps, self._stats)

    def _infer_type(self, file: RawFile, role: str, kind: Kind) -> str:
        """Return the type of the IDs or timestamps of a file: 'integer', 'string' or 'datetime'."""
        other = "datetime" if role == "timestamp" else "string"
        if role != "timestamp" and self._id_type != "auto" and kind in ("text", "string", "integer"):
            return self._id_type
        if kind == "text" and role in self._string_id_sides:
            return "string"
        if kind == "text" or (kind == "string" and role == "timestamp"):
            is_integer = INTEGER_TEXT.format(role)
            others = fetch_count(
                self._connection, f"SELECT count(*) FILTER (NOT coalesce({is_integer}, {role} IS NULL)) FROM raw"
            )
            return other if others else "integer"
        if kind in ("integer", other):
            return kind
        expected = "integers, timestamps, dates or ISO text" if role == "timestamp" else "integers or strings"
        raise InputError(
            f"{file}: column '{self._column(role)}' holds {KIND_NAMES[kind]}; expected {expected}: cast it, "
            "or name another column"
        )

    def _check_same_type(self, file: RawFile, role: str, found: str) -> None:
        expected, first = self._types.setdefault(role, (found, file))
        if expected != found:
            fix = "make them the same"
            if role != "timestamp":
                fix += ", or read all ids as text with --id-type string"
            raise InputError(
                f"{file}: column '{self._column(role)}' holds {KIND_NAMES[found]}, but {first} holds "
                f"{KIND_NAMES[expected]} there; expected one type in all files: {fix}"
            )

    def _check(self, file: RawFile, checks: list[Check], types: Mapping[str, str]) -> int:
        """Count the rows and check every value in one scan; return the number of rows."""
        timestamp, weight = timestamp_sql(types.get("timestamp")), self._weight_sql
        before, after = self._time_range.outside_sql(timestamp)
        counts = (
            f"max({timestamp}), count(*), count(*) FILTER ({before}), count(*) FILTER ({after}), "
            f"count(*) FILTER ({weight} = 0 AND NOT {before} AND NOT {after})"
        )
        firsts = "".join(f", min(position) FILTER ({check.violation})" for check in checks)
        latest, *numbers = fetch_one(self._connection, f"SELECT {counts}{firsts} FROM raw")
        for check, position in zip(checks, numbers[4:], strict=True):
            if position is not None:
                assert isinstance(position, int)
                self._reject(file, check, position)
        if types.get("timestamp") == "integer":
            for option in self._time_range.dates():
                check_seconds(option, latest)
        rows, before_since, from_until, zero_weight = (number for number in numbers[:4] if isinstance(number, int))
        self._stats.rows += rows
        self._stats.before_since += before_since
        self._stats.from_until += from_until
        self._stats.zero_weight += zero_weight
        return rows

    def _reject(self, file: RawFile, check: Check, position: int) -> NoReturn:
        sql = f"SELECT CAST({identifier(check.role)} AS VARCHAR) FROM raw WHERE position = ?"
        value = fetch_one(self._connection, sql, [position])[0]
        shown = "" if value is None or value == "" else f" '{str(value)[:60]}'"
        column = "" if file.format == "lightgcn" else f" of column '{self._column(check.role)}'"
        raise InputError(f"{locate_row(file, position)}: the {_ROLE_NAMES[check.role]}{shown}{column} {check.problem}")

    def _insert(self, types: Mapping[str, str], split: int, rows: int) -> None:
        if self._encoder is None:
            self._encoder = IdEncoder(self._connection, types["query"], types["item"])
        before, after = self._time_range.outside_sql("timestamp")
        selected = ", ".join(
            (
                f"{id_sql('query', types['query'])} AS query_id",
                f"{id_sql('item', types['item'])} AS item_id",
                f"{self._weight_sql} AS weight",
                f"{timestamp_sql(types.get('timestamp'))} AS timestamp",
                f"{split:d}::UTINYINT AS split",
                "position",
            )
        )
        self._encoder.add(f"(SELECT {selected} FROM raw) WHERE weight <> 0 AND NOT {before} AND NOT {after}", rows)

    def _column(self, role: str) -> str:
        return self._columns.roles()[role]
