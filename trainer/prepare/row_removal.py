"""Remove what tables of a dataset hold of forgotten rows and IDs: functions from one table to the next.

    drop_rows(interactions, "customer", rows_R)         # without the interactions of these rows
    drop_ids(pending, ids)                              # without these pending IDs
    reduce_counts(vocabulary, lost, rows_R)             # lower counts, and vacant rows

``replace_files`` replaces files of features and content in a manifest.

Shapes: N rows of a table or of a list, R forgotten rows (sorted), V rows of a vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crossfade.base.arrays import BoolArray, IntArray
from crossfade.trainer.data.manifest import Content, DataFile, Feature

Column = TypeVar("Column", Feature, Content)

_NEVER_NULL = {"count": 0, "warm": False, "lineage_index": 0}
"""Columns of a vocabulary that have a value in every row, with their value in vacant rows."""


def is_in(column_N: IntArray, rows_R: IntArray) -> BoolArray:
    """Return which values of a column are in ``rows_R``, which is sorted and not empty: bool (N,)."""
    place_N = np.minimum(np.searchsorted(rows_R, column_N), len(rows_R) - 1)
    is_in_N: BoolArray = rows_R[place_N] == column_N
    return is_in_N


class ValueUses:
    """Counts the uses of each value that are dropped, and those that are left.

    Values that nothing else uses become vacant too, since they could identify who had them.
    """

    def __init__(self, values: int) -> None:
        self._dropped_V, self._left_V = (np.zeros(values, np.int64) for _ in range(2))

    def add(self, value_N: IntArray, is_dropped_N: BoolArray) -> None:
        """Count the uses ``value_N``; below 0 there is no value."""
        np.add.at(self._dropped_V, value_N[is_dropped_N & (value_N >= 0)], 1)
        np.add.at(self._left_V, value_N[~is_dropped_N & (value_N >= 0)], 1)

    def vacant(self) -> IntArray:
        """Return the values of which all uses are dropped, sorted."""
        return np.flatnonzero((self._dropped_V > 0) & (self._left_V == 0))


def drop_rows(table: pa.Table, column: str, rows_R: IntArray) -> pa.Table:
    """Return ``table`` without the rows whose ``column`` is in ``rows_R``."""
    return table.filter(pa.array(~is_in(table.column(column).to_numpy(), rows_R)))


def select_ids(table: pa.Table, ids: pa.Array) -> pa.Table:
    """Return the rows of ``table`` whose ID is in ``ids``."""
    return table.filter(pc.is_in(table.column("id"), value_set=ids))


def drop_ids(table: pa.Table, ids: pa.Array) -> pa.Table:
    """Return the rows of ``table`` whose ID is not in ``ids``."""
    return table.filter(pc.invert(pc.is_in(table.column("id"), value_set=ids)))


def reduce_counts(table: pa.Table, lost: tuple[IntArray, IntArray], vacant_R: IntArray) -> pa.Table:
    """Return a part of a vocabulary with lower counts, and the rows ``vacant_R`` emptied.

    ``lost`` are the rows whose counts are lower, sorted, and by how much.
    """
    index, first = table.schema.get_field_index("count"), table.column("row")[0].as_py()
    lost_N, lost_counts_N = lost
    begin, end = np.searchsorted(lost_N, [first, first + table.num_rows])
    count_N = table.column(index).to_numpy().copy()
    count_N[lost_N[begin:end] - first] -= lost_counts_N[begin:end]
    count_N = np.maximum(count_N, 0)
    table = table.set_column(index, table.schema.field(index), pa.chunked_array([count_N]))
    return _empty_rows(table, vacant_R) if len(vacant_R) else table


def replace_files(
    owners: Mapping[str, Mapping[str, Column]], replace: Callable[[list[DataFile]], list[DataFile]]
) -> dict[str, dict[str, Column]]:
    """Return the features or the content of entities, by name, with the files that ``replace`` returns for theirs."""
    return {
        owner: {name: column.model_copy(update={"files": replace(column.files)}) for name, column in columns.items()}
        for owner, columns in owners.items()
    }


def _empty_rows(table: pa.Table, rows_R: IntArray) -> pa.Table:
    """Return a part of a vocabulary in which ``rows_R`` have lost everything but their row number."""
    is_vacant = pa.array(is_in(table.column("row").to_numpy(), rows_R))
    for index, field in enumerate(table.schema):
        if field.name == "row":
            continue
        empty = pa.scalar(_NEVER_NULL.get(field.name), field.type)
        column = pc.if_else(is_vacant, empty, table.column(index))
        nullable = field.name not in _NEVER_NULL
        table = table.set_column(index, pa.field(field.name, field.type, nullable=nullable), column)
    return table
