# ruff: noqa: S608  (what is put into SQL is quoted by `identifier` and `literal`, or is a number of this program)
"""From raw files to one typed table of events, every value checked; what is wrong is said with file and line.

The table ``events`` has ``query`` and ``item`` (int64, the numbers that ``numbering.py`` gives the ids), ``weight``
float32, never 0, ``timestamp`` int64 (null throughout where there is none), ``split`` (0 train, 1 valid, 2 test) and
``seq``, which rises in the order of the files and of the rows in them and no two events share.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NoReturn

import duckdb

from kvstore.errors import InputError
from trainer.data.manifest import SPLITS
from trainer.data.reporter import ProgressReporter
from trainer.data.time_values import EventTimeRange, check_seconds
from trainer.prepare.database import fetch_count, fetch_one, identifier, literal
from trainer.prepare.fetch import fetch_files
from trainer.prepare.id_encoder import IdEncoder
from trainer.prepare.input_files import RawFile, Source
from trainer.prepare.raw_files import Kind, close_raw, open_adjacency, open_columns, read_errors, where_is

IdChoice = Literal["auto", "integer", "string"]
IdType = Literal["int64", "string"]

_FLOAT_MAX = 3.4028234663852886e38
INTEGER_TEXT = "{0} = CAST(TRY_CAST({0} AS BIGINT) AS VARCHAR)"
"""Whether text of a column is an integer, exactly: '007' and '+7' are not the number 7."""
KIND_NAMES = {
    "integer": "integers",
    "string": "strings",
    "moment": "dates",
    "number": "fractional numbers",
    "text": "text",
}
"""What messages call the values of a column."""


@dataclass(frozen=True)
class ColumnMapping:
    """Which columns of the raw files are what; ``None`` where there is none."""

    query: str
    item: str
    weight: str | None = None
    event: str | None = None
    event_weights: Mapping[str, float] = field(default_factory=dict)
    timestamp: str | None = None

    def roles(self) -> dict[str, str]:
        """Role to column, of those that are there."""
        named = {
            "query": self.query,
            "item": self.item,
            "weight": self.weight,
            "event": self.event,
            "timestamp": self.timestamp,
        }
        return {role: column for role, column in named.items() if column is not None}


@dataclass
class ReadStats:
    """What was seen in the files, and what was left out for which reason."""

    files: int = 0
    empty_files: int = 0
    rows: int = 0
    before_since: int = 0
    from_until: int = 0
    zero_weight: int = 0
    lines_without_items: int = 0


@dataclass(frozen=True)
class EventTable:
    """What was read into the table ``events``."""

    id_types: dict[str, IdType]
    timestamps: Literal["integer", "moment"] | None
    tally: ReadStats


@dataclass(frozen=True)
class _Check:
    """A predicate over ``raw`` that no row may meet, and what to say of the first that does."""

    role: str
    bad: str
    problem: str


def read_events(
    connection: duckdb.DuckDBPyConnection,
    files: Mapping[str, Sequence[Source]],
    work: Path,
    columns: ColumnMapping,
    ids: IdChoice,
    window: EventTimeRange,
    progress: ProgressReporter,
    text_ids: Collection[str] = (),
) -> EventTable:
    """Read ``files`` (split to files) into the table ``events``; those that lie elsewhere come to ``work`` first.

    Events of weight 0 and those outside of ``window`` are counted and left out.

    ``text_ids`` names the roles whose ids stay text in files without types, even if all of them are integers.

    Raises:
        InputError: a file cannot be read or holds a value that is not allowed; files disagree on the type of an id or
            of the timestamp; there is no event at all.
    """
    reader = _Reader(connection, columns, ids, window, text_ids)
    order = [(code, file) for code, split in enumerate(SPLITS) for file in files.get(split, ())]
    progress.phase("read events", sum(file.bytes for _, file in order), "B")
    with fetch_files([file for _, file in order], work, columns.roles().values()) as here:
        for (code, source), file in zip(order, here, strict=True):
            reader.read(file, code)
            progress.advance(source.bytes)
    close_raw(connection)
    return reader.result()


class _Reader:
    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        columns: ColumnMapping,
        ids: IdChoice,
        window: EventTimeRange,
        text_ids: Collection[str],
    ) -> None:
        self._connection = connection
        self._columns = columns
        self._ids = ids
        self._window = window
        self._text_ids = text_ids
        self._settled: dict[str, tuple[str, RawFile]] = {}
        self._numbering: IdEncoder | None = None
        self._tally = ReadStats()

    def read(self, file: RawFile, split: int) -> None:
        """Check ``file`` and append its events."""
        kinds: dict[str, Kind]
        if file.format == "lightgcn":
            self._tally.lines_without_items += open_adjacency(self._connection, file)
            kinds = {"query": "integer", "item": "integer"}
        else:
            kinds = open_columns(self._connection, file, self._columns.roles())
        self._tally.files += 1
        with read_errors(file):
            if not fetch_count(self._connection, "SELECT count(*) FROM (SELECT 1 FROM raw LIMIT 1)"):
                self._tally.empty_files += 1
                return
            types = {role: self._type(file, role, kind) for role, kind in kinds.items() if role in _TYPED}
            for role, found in types.items():
                self._settle(file, role, found)
            rows = self._check(file, self._checks(kinds, types), types)
            self._insert(types, split, rows)

    def result(self) -> EventTable:
        """What was read.

        Raises:
            InputError: nothing was.
        """
        if self._numbering is None:
            raise InputError("the files given hold no interaction; expected one at least in --train")
        self._numbering.finish()
        moment = self._settled.get("timestamp")
        id_types: dict[str, IdType] = {
            role: "int64" if self._settled[role][0] == "integer" else "string" for role in ("query", "item")
        }
        return EventTable(
            id_types=id_types,
            timestamps=None if moment is None else "integer" if moment[0] == "integer" else "moment",
            tally=self._tally,
        )

    def _type(self, file: RawFile, role: str, kind: Kind) -> str:
        """What the values of an id or of a timestamp become: 'integer', 'string' or 'moment'."""
        other = "moment" if role == "timestamp" else "string"
        if role != "timestamp" and self._ids != "auto" and kind in ("text", "string", "integer"):
            return self._ids
        if kind == "text" and role in self._text_ids:
            return "string"
        if kind == "text" or (kind == "string" and role == "timestamp"):
            whole = INTEGER_TEXT.format(role)
            odd = fetch_count(
                self._connection, f"SELECT count(*) FILTER (NOT coalesce({whole}, {role} IS NULL)) FROM raw"
            )
            return other if odd else "integer"
        if kind in ("integer", other):
            return kind
        expected = "integers, timestamps, dates or ISO text" if role == "timestamp" else "integers or strings"
        raise InputError(
            f"{file}: column '{self._name(role)}' holds {KIND_NAMES[kind]}; expected {expected}: cast it, "
            "or name another column"
        )

    def _settle(self, file: RawFile, role: str, found: str) -> None:
        before, first = self._settled.setdefault(role, (found, file))
        if before != found:
            mend = (
                "make them alike"
                if role == "timestamp"
                else "make them alike, or read all ids as text with --id-type string"
            )
            raise InputError(
                f"{file}: column '{self._name(role)}' holds {KIND_NAMES[found]}, but {first} holds "
                f"{KIND_NAMES[before]} there; expected one type in all files: {mend}"
            )

    def _checks(self, kinds: Mapping[str, Kind], types: Mapping[str, str]) -> list[_Check]:
        checks = []
        for role in ("query", "item"):
            checks.append(_Check(role, f"{role} IS NULL OR CAST({role} AS VARCHAR) = ''", _EMPTY_ID))
            if types[role] == "integer":
                text = kinds[role] in ("text", "string")
                checks += [
                    _Check(
                        role, f"TRY_CAST({role} AS BIGINT) < 0", "is negative; expected an integer id of at least 0"
                    ),
                    _Check(role, f"TRY_CAST({role} AS BIGINT) IS NULL", "is no 64-bit integer; try --id-type string"),
                ]
                if text:
                    whole = INTEGER_TEXT.format(role)
                    checks.append(_Check(role, f"NOT {whole}", "is no plain integer; try --id-type string"))
        if "weight" in kinds:
            checks += _weight_checks(kinds["weight"])
        if "event" in kinds:
            checks += self._event_checks()
        if "timestamp" in kinds:
            value = _timestamp_sql(types["timestamp"])
            checks += [
                _Check("timestamp", "timestamp IS NULL", "is missing; expected one in every row"),
                _Check(
                    "timestamp",
                    f"{value} IS NULL",
                    "is no timestamp; expected an integer, or a date such as 2024-05-31T20:15:00",
                ),
            ]
        return checks

    def _event_checks(self) -> list[_Check]:
        known = ", ".join(self._columns.event_weights)
        allowed = ", ".join(literal(event) for event in self._columns.event_weights)
        return [
            _Check("event", "event IS NULL", "is missing; expected an event in every row"),
            _Check(
                "event",
                f"CAST(event AS VARCHAR) NOT IN ({allowed})",
                f"has no weight; --event-weights names only: {known} (weight 0 drops an event)",
            ),
        ]

    def _check(self, file: RawFile, checks: list[_Check], types: Mapping[str, str]) -> int:
        """Look at every value and count, in one scan; only where one is wrong, in a second. Returns the rows."""
        moment, weight = _timestamp_sql(types.get("timestamp")), self._weight_sql()
        since, until = self._window.outside_sql(moment)
        counts = (
            f"max({moment}), count(*), count(*) FILTER ({since}), count(*) FILTER ({until}), "
            f"count(*) FILTER ({weight} = 0 AND NOT {since} AND NOT {until})"
        )
        firsts = "".join(f", min(position) FILTER ({check.bad})" for check in checks)
        latest, *numbers = fetch_one(self._connection, f"SELECT {counts}{firsts} FROM raw")
        for check, position in zip(checks, numbers[4:], strict=True):
            if position is not None:
                assert isinstance(position, int)
                self._refuse(file, check, position)
        if types.get("timestamp") == "integer":
            for option in self._window.dates():
                check_seconds(option, latest)
        rows, before, after, zero = (number for number in numbers[:4] if isinstance(number, int))
        self._tally.rows += rows
        self._tally.before_since += before
        self._tally.from_until += after
        self._tally.zero_weight += zero
        return rows

    def _refuse(self, file: RawFile, check: _Check, position: int) -> NoReturn:
        sql = f"SELECT CAST({identifier(check.role)} AS VARCHAR) FROM raw WHERE position = ?"
        value = fetch_one(self._connection, sql, [position])[0]
        shown = "" if value is None or value == "" else f" '{str(value)[:60]}'"
        column = "" if file.format == "lightgcn" else f" of column '{self._name(check.role)}'"
        raise InputError(f"{where_is(file, position)}: the {_ROLE_NAMES[check.role]}{shown}{column} {check.problem}")

    def _insert(self, types: Mapping[str, str], split: int, rows: int) -> None:
        if self._numbering is None:
            self._numbering = IdEncoder(self._connection, types["query"], types["item"])
        moment = _timestamp_sql(types.get("timestamp"))
        since, until = self._window.outside_sql("timestamp")
        selected = ", ".join(
            (
                f"{_id_sql('query', types['query'])} AS query_id",
                f"{_id_sql('item', types['item'])} AS item_id",
                f"{self._weight_sql()} AS weight",
                f"{moment} AS timestamp",
                f"{split:d}::UTINYINT AS split",
                "position",
            )
        )
        self._numbering.add(f"(SELECT {selected} FROM raw) WHERE weight <> 0 AND NOT {since} AND NOT {until}", rows)

    def _weight_sql(self) -> str:
        if self._columns.event is not None:
            cases = " ".join(
                f"WHEN {literal(event)} THEN {float(weight)!r}" for event, weight in self._columns.event_weights.items()
            )
            return f"CAST(CASE CAST(event AS VARCHAR) {cases} END AS FLOAT)"
        return "1.0::FLOAT" if self._columns.weight is None else _WEIGHT

    def _name(self, role: str) -> str:
        return self._columns.roles()[role]


_TYPED = ("query", "item", "timestamp")
_ROLE_NAMES = {
    "query": "query id",
    "item": "item id",
    "weight": "weight",
    "event": "event",
    "timestamp": "timestamp",
}
_EMPTY_ID = "is missing or empty; expected an id in every row"
_NUMBER = "TRY_CAST(weight AS DOUBLE)"
_WEIGHT = f"TRY_CAST({_NUMBER} AS FLOAT)"


def _weight_checks(kind: Kind) -> list[_Check]:
    wanted = "expected a finite number"
    if kind == "moment":
        return [_Check("weight", "true", f"is a date; {wanted}")]
    return [
        _Check("weight", "weight IS NULL", f"is missing; {wanted} in every row"),
        _Check("weight", f"{_NUMBER} IS NULL", f"is not a number; {wanted}"),
        _Check("weight", f"NOT isfinite({_NUMBER})", f"is not finite; {wanted}"),
        _Check(
            "weight", f"{_WEIGHT} IS NULL OR NOT isfinite({_WEIGHT})", "is too large for a 32-bit float; scale it down"
        ),
    ]


def _id_sql(role: str, found: str) -> str:
    return f"CAST({role} AS {'BIGINT' if found == 'integer' else 'VARCHAR'})"


def _timestamp_sql(found: str | None) -> str:
    if found is None:
        return "NULL::BIGINT"
    if found == "integer":
        return "TRY_CAST(timestamp AS BIGINT)"
    moment = "TRY_CAST(timestamp AS TIMESTAMPTZ)"  # the session's zone is UTC, so that times without one are UTC
    return f"CASE WHEN isfinite({moment}) THEN CAST(floor(epoch({moment})) AS BIGINT) END"


def check_event_weights(weights: Mapping[str, float]) -> None:
    """Refuse weights that are not finite. One below 0 says that the item is not wanted.

    Raises:
        InputError: one is not.
    """
    for event, weight in weights.items():
        if not math.isfinite(weight) or abs(weight) > _FLOAT_MAX:
            raise InputError(f"--event-weights {event}={weight}: expected a finite number that a 32-bit float can hold")
