# ruff: noqa: S608  (what is put into SQL is quoted by `identifier` and `literal`, or is a number of this program)
"""Find the rows of the relation ``raw`` whose values violate a check of ``event_values.py``.

    report_row_faults(connection, file, checks, {"query": "user", "item": "track"}, faults)
    f"SELECT count(*) FROM {sound_rows(checks)}"

A row counts for the first check that it violates.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import tee
from typing import Any

import duckdb

from crossfade.trainer.prepare.database import execute, identifier
from crossfade.trainer.prepare.event_values import Check
from crossfade.trainer.prepare.faults import MAX_PLACES, Faults, Place
from crossfade.trainer.prepare.input_files import RawFile
from crossfade.trainer.prepare.text_records import Record, find_place, find_records

_ROLE_NAMES = {
    "query": "query id",
    "item": "item id",
    "weight": "weight",
    "event": "event",
    "timestamp": "timestamp",
}
_FETCHED_ROWS = 10_000
_MAX_SHOWN = 60


def sound_rows(checks: Sequence[Check]) -> str:
    """Return SQL of a relation with the rows of ``raw`` that violate no check."""
    return f"(SELECT * FROM raw WHERE {_fault(checks)} IS NULL)"


def report_row_faults(
    connection: duckdb.DuckDBPyConnection,
    file: RawFile,
    checks: Sequence[Check],
    columns: Mapping[str, str],
    faults: Faults,
) -> None:
    """Add the rows of ``file``, which is ``raw``, that violate a check to ``faults``; ``columns`` are by role."""
    found = execute(
        connection,
        f"SELECT fault, count(*), min(position, {MAX_PLACES}) "
        f"FROM (SELECT {_fault(checks)} AS fault, position FROM raw) "
        "WHERE fault IS NOT NULL GROUP BY fault ORDER BY fault",
    )
    positions = sorted({position for _, _, first in found for position in _integers(first)})
    records = dict(zip(positions, find_records(file, positions), strict=True))
    for index, count, first in found:
        assert isinstance(index, int)
        assert isinstance(count, int)
        _add(connection, file, checks[index], columns, faults, count, [(at, records[at]) for at in _integers(first)])
    bad = [str(index) for index, *_ in found if isinstance(index, int) and not checks[index].missing]
    if faults.quarantine is not None and bad and not faults.rejected:
        _write_rows(connection, file, checks, bad, columns, faults)


def _add(
    connection: duckdb.DuckDBPyConnection,
    file: RawFile,
    check: Check,
    columns: Mapping[str, str],
    faults: Faults,
    count: int,
    first: Sequence[tuple[int, Record | None]],
) -> None:
    """Add ``count`` violations of ``check``, the ``first`` of them with their positions and records."""
    listed = ", ".join(str(position) for position, _ in first)
    rows = execute(
        connection,
        f"SELECT position, CAST({identifier(check.role)} AS VARCHAR) FROM raw WHERE position IN ({listed})",
    )
    values = {position: str(value or "")[:_MAX_SHOWN] for position, value in rows}
    places = [
        Place(str(file), *find_place(position, record, faults.first_row), values[position])
        for position, record in first
    ]
    column = "" if file.format == "lightgcn" else f" of column '{columns[check.role]}'"
    name = _ROLE_NAMES.get(check.role, "context")
    shown = f" '{places[0].value}'" if places[0].value else ""
    message = f"{places[0]}: the {name}{shown}{column} {check.problem}"
    faults.add(f"the {name}{column} {check.problem}", places, count, message, missing=check.missing)


def _write_rows(
    connection: duckdb.DuckDBPyConnection,
    file: RawFile,
    checks: Sequence[Check],
    indexes: Sequence[str],
    columns: Mapping[str, str],
    faults: Faults,
) -> None:
    """Write the rows that violate the checks at ``indexes``: their lines, or of Parquet their values."""
    quarantine = faults.quarantine
    assert quarantine is not None
    values = "".join(f", CAST({identifier(role)} AS VARCHAR)" for role in columns)
    rows = connection.execute(
        f"SELECT * FROM (SELECT position, {_fault(checks)} AS fault{values} FROM raw) "
        f"WHERE fault IN ({', '.join(indexes)}) ORDER BY position"
    )

    def fetched() -> Iterator[tuple[Any, ...]]:
        while batch := rows.fetchmany(_FETCHED_ROWS):
            yield from batch

    rows_read, rows_found = tee(fetched())
    for row, record in zip(rows_read, find_records(file, (row[0] for row in rows_found)), strict=True):
        unit, number = find_place(row[0], record, faults.first_row)
        text = json.dumps(dict(zip(columns.values(), row[2:], strict=True)), ensure_ascii=False).encode()
        check = checks[row[1]]
        problem = f"the {_ROLE_NAMES.get(check.role, 'context')} {check.problem}"
        quarantine.write(str(file), unit, number, problem, text if record is None else record.text)


def _fault(checks: Sequence[Check]) -> str:
    """Return SQL of the index of the first check that a row violates, null if there is none."""
    cases = " ".join(f"WHEN {check.violation} THEN {index}" for index, check in enumerate(checks))
    return f"CASE {cases} END"


def _integers(values: object) -> list[int]:
    assert isinstance(values, list)
    return values
