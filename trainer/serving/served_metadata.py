"""The metadata of items, for the filters and groups of requests.

    metadata = ServedMetadata(folder / "metadata.duckdb", folder / "data", "track", 10_000, has_file=True)
    kept_R = metadata.rows_where(metadata.condition([("year", "gt", 1990)]))

Filters come from unauthenticated clients, so they are data: columns that exist, comparisons, and values, which become
SQL in quotes. To evaluate one takes as long as to read its column. Any thread may use the metadata, and waits for
another only where an answer is not at hand.

Shapes: R rows.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import duckdb
import numpy as np

from crossfade.base.arrays import BoolArray
from crossfade.base.errors import InputError, Option
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.jagged_array import JaggedArray
from crossfade.trainer.data.manifest import read_manifest
from crossfade.trainer.prepare.database import execute, identifier, literal
from crossfade.trainer.recommend.metadata_table import MetadataTable

Comparison = Literal["eq", "ne", "lt", "le", "gt", "ge", "in"]
Value = bool | int | float | str
Filter = tuple[str, Comparison, Value | list[Value]]
"""A column, how it is compared, and with what; ``in`` has a list of values."""
_OPERATORS: dict[Comparison, str] = {"eq": "=", "ne": "<>", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "in": "IN"}
_KEPT_MASKS, _KEPT_GROUPS = 256, 8
_LIMITS: dict[str, str | bool | int | float | list[str]] = {
    "threads": 1,
    "memory_limit": "512MB",
    "max_temp_directory_size": "0B",
}


class ServedMetadata:
    """The metadata of one entity, in a database on disk. Answers are kept, those that were used last."""

    def __init__(self, path: Path, data: Path, entity: str, rows: int, *, has_file: bool) -> None:
        """Open what ``write_metadata`` has written; ``has_file`` states whether it had a file, for messages."""
        self._rows = rows
        self._connection = duckdb.connect(str(path), read_only=True, config=_LIMITS)
        execute(self._connection, "SET TimeZone = 'UTC'")
        folder = Folder(data)
        self._table = MetadataTable(self._connection, folder, read_manifest(folder), entity, has_file=has_file)
        self._types, self._columns_hint = self._table.types(), self._table.columns_hint()
        lock = threading.Lock()  # of the connection, which only what holds it uses
        self._masks, self._groups = _Kept(_KEPT_MASKS, lock), _Kept(_KEPT_GROUPS, lock)

    @property
    def columns(self) -> list[str]:
        """The columns that filters may use."""
        return list(self._types)

    def condition(self, filters: Iterable[Filter]) -> str:
        """Return the SQL condition that all of ``filters`` are met.

        A column with lists meets one if one of its values does, and ``ne`` if none is equal.

        Raises:
            InputError: there is no such column.
        """
        return " AND ".join(self._comparison(*each) for each in filters)

    def _comparison(self, column: str, comparison: Comparison, value: Value | list[Value]) -> str:
        found = self._types.get(column)
        if found is None:
            raise InputError(Option("where"), f": there is no column '{column}'; ", self._columns_hint)
        quoted = ", ".join(map(_literal, value if isinstance(value, list) else [value]))
        if not found.endswith("[]"):
            return f"{identifier(column)} {_OPERATORS[comparison]} ({quoted})"
        number, operator = ("=", "=") if comparison == "ne" else (">", _OPERATORS[comparison])
        met = f"list_filter({identifier(column)}, lambda value: value {operator} ({quoted}))"
        return f"coalesce(len({met}), 0) {number} 0"

    def has(self, condition: str | None, column: str | None) -> bool:
        """Return whether the rows of ``condition`` and the groups of ``column`` are at hand."""
        return (condition is None or condition in self._masks) and (column is None or column in self._groups)

    def rows_where(self, condition: str) -> BoolArray:
        """Return which rows meet ``condition``, bool (R,).

        Raises:
            InputError: a value is not of the type of its column.
        """
        bits = self._masks.get(condition, lambda: np.packbits(self._table.rows_where(condition)))
        return np.unpackbits(bits, count=self._rows).astype(np.bool_)

    def groups(self, column: str) -> JaggedArray:
        """Return the groups of each row by the values of ``column``.

        Raises:
            InputError: there is no such column, or it needs too much memory.
        """
        groups: JaggedArray = self._groups.get(column, lambda: self._table.groups(column)[0])
        return groups

    def close(self) -> None:
        """Close the database."""
        self._connection.close()


def _literal(value: Value) -> str:
    return literal(value) if isinstance(value, str) else repr(value)


class _Kept:
    """The values that were used last, by key. One is made at a time."""

    def __init__(self, most: int, lock: threading.Lock) -> None:
        self._most, self._lock = most, lock
        self._values: OrderedDict[str, Any] = OrderedDict()

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def get(self, key: str, make: Callable[[], Any]) -> Any:
        value = self._values.get(key)
        if value is None:
            with self._lock:
                value = self._values.get(key)
                if value is None:
                    value = make()
        self._values[key] = value
        with suppress(KeyError):  # another thread has dropped it meanwhile
            self._values.move_to_end(key)
        if len(self._values) > self._most:
            self._values.popitem(last=False)
        return value
