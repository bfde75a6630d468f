"""Tables of pandas, Polars, DuckDB, and Arrow: read as Arrow, and returned as the same kind.

kind = frame_kind(plays)                    # "pandas"
reader = open_batches(plays, {"query": "user", "item": "song"})     # a pyarrow.RecordBatchReader
to_frame(table, kind)                       # a pandas.DataFrame
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa

from crossfade.api.arguments import shown
from crossfade.base.errors import InputError
from crossfade.base.packages import pandas_conflict
from crossfade.trainer.prepare.source_columns import check_columns, source_columns

FrameKind = Literal["pandas", "polars", "duckdb", "arrow"]
_PACKAGES: dict[str, FrameKind] = {"pandas": "pandas", "polars": "polars", "duckdb": "duckdb", "_duckdb": "duckdb"}

_FEW_ROWS = 10_000
"""Rows up to which a table is converted by the calling thread, which is faster than sharing its columns."""


def frame_kind(data: object) -> FrameKind | None:
    """Return what kind of table ``data`` is; None if it is none.

    Tables of other libraries that export Arrow streams count as Arrow.
    """
    package = type(data).__module__.partition(".")[0]
    if package in _PACKAGES:
        return _PACKAGES[package]
    return "arrow" if package == "pyarrow" or hasattr(data, "__arrow_c_stream__") else None


def check_kind(frame: object) -> None:
    """Check the name of a kind of table, and that it is installed.

    Raises:
        InputError: there is no such kind, or its package is not installed.
    """
    kinds: tuple[str, ...] = get_args(FrameKind)
    if frame not in kinds:
        raise InputError(f"frame={frame!r}: expected {', '.join(map(repr, kinds))}, or None")
    package = "pyarrow" if frame == "arrow" else str(frame)
    if find_spec(package) is None:
        raise InputError(f"frame={frame!r}: the package {package} is not installed here: pip install {package}")
    if frame == "pandas" and (conflict := pandas_conflict()):
        raise InputError(f"frame={frame!r}: {conflict}")


def default_kind() -> FrameKind:
    """Return the kind of results for data that came from files: pandas if it can be imported, otherwise Arrow."""
    return "pandas" if find_spec("pandas") is not None and pandas_conflict() is None else "arrow"


def open_batches(data: Any, columns: Mapping[str, str], name: str = "plays") -> pa.RecordBatchReader:
    """Open ``columns`` (role to column name) of a table for reading in batches; the others may be of any type.

    A column of IDs may join several (``trainer/prepare/source_columns.py``): then the parts are read. Messages call the
    table ``name``.

    Raises:
        InputError: ``data`` is no table, lacks a column, or the values of one have no type of Arrow.
    """
    if frame_kind(data) is None or hasattr(data, "str"):
        raise InputError(
            f"{name}: expected a table of pandas, Polars, DuckDB, or Arrow with the columns "
            f"{', '.join(map(repr, columns.values()))}, but found {type(data).__name__}"
        )
    try:
        return _open(data, columns, name)
    except (TypeError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{name}: cannot be read as a table ({reason}); expected a data frame") from error


def _open(data: Any, columns: Mapping[str, str], name: str) -> pa.RecordBatchReader:
    if frame_kind(data) == "pandas":
        return _from_pandas(data, columns, name)
    if frame_kind(data) == "polars":
        import polars

        used = _used_columns(columns, data.collect_schema().names(), name)
        # Categories of the newest level hold views of text, which Arrow cannot decode.
        data = data.lazy().select(used).collect().to_arrow(compat_level=polars.CompatLevel.oldest())
    if isinstance(data, pa.RecordBatch):
        data = pa.Table.from_batches([data])
    if hasattr(data, "scanner"):
        used = _used_columns(columns, data.schema.names, name)
        data = data.scanner(columns=used).to_reader()  # a dataset of Arrow
    reader = pa.RecordBatchReader.from_stream(data)
    used = _used_columns(columns, reader.schema.names, name)
    schema = pa.schema([reader.schema.field(name) for name in used])
    return pa.RecordBatchReader.from_batches(schema, (batch.select(used) for batch in reader))


def _used_columns(columns: Mapping[str, str], names: Sequence[str], table: str) -> list[str]:
    """Return those of the columns ``names`` of the events that ``columns`` name, each once."""
    parts = dict.fromkeys(part for role, column in columns.items() for part in source_columns(role, column, names))
    check_columns(table, names, parts)
    return list(parts)


def _from_pandas(frame: Any, columns: Mapping[str, str], table: str) -> pa.RecordBatchReader:
    named = [name for name in frame.index.names if name is not None and name not in frame.columns]
    if named:
        frame = frame.reset_index(named)
    names = [str(name) for name in frame.columns]
    used = _used_columns(columns, names, table)
    arrays = [_to_arrow(frame.iloc[:, names.index(name)], table, name) for name in used]
    return pa.table(arrays, names=used).to_reader()


def _to_arrow(series: Any, table: str, column: str) -> Any:
    """Return the values of a column of pandas.

    Raises:
        InputError: they have no type of Arrow.
    """
    try:
        return pa.array(series, from_pandas=True)
    except (pa.ArrowException, OverflowError) as error:
        given = zip(series, series.notna(), strict=True)
        values = [(row, value) for row, (value, is_given) in enumerate(given) if is_given]  # as iloc counts
        first_row, first = values[0]
        row, odd = next((at for at in values if type(at[1]) is not type(first)), values[0])
        expected = "integers, numbers, strings, timestamps, or dates"
        if row != first_row:
            expected = f"values of one type, as row {first_row} has {shown(first)}"
        raise InputError(
            f"{table}: column '{column}' has {shown(odd)} ({type(odd).__name__}) in row {row}; expected {expected}: "
            f"convert it, as by {table}['{column}'].astype(str)"
        ) from error


def to_frame(table: pa.Table, kind: FrameKind) -> Any:
    """Return ``table`` as a ``pandas.DataFrame``, a ``polars.DataFrame``, a DuckDB relation, or itself."""
    if kind == "pandas":
        return table.to_pandas() if table.num_rows > _FEW_ROWS else _small_pandas(table)
    if kind == "polars":
        import polars

        return polars.from_arrow(table)
    if kind == "duckdb":
        import duckdb

        return duckdb.from_arrow(table)
    return table


def _small_pandas(table: pa.Table) -> Any:
    """Return what ``table.to_pandas()`` does, in a third of the time if the table has few rows."""
    columns, kinds = _pandas_columns(table.schema)
    if columns is None:
        return table.to_pandas(use_threads=False)
    import pandas  # type: ignore[import-untyped]
    from pandas.api.internals import create_dataframe_from_blocks  # type: ignore[import-untyped]

    blocks = [
        (np.array(column)[np.newaxis] if isinstance(kind, np.dtype) else kind.__from_arrow__(column), np.array([place]))
        for place, (column, kind) in enumerate(zip(table.columns, kinds, strict=True))
    ]
    return create_dataframe_from_blocks(blocks, pandas.RangeIndex(table.num_rows), columns.view())


@lru_cache
def _pandas_columns(schema: pa.Schema) -> tuple[Any, list[Any]]:
    """Return the columns of a frame of pandas, and their types; None if they may not be made one by one."""
    # Before version 3, pandas has no function to do so.
    if (
        find_spec("pandas.api.internals") is None
        or schema.metadata is not None
        or not all(map(_is_plain, schema.types))
    ):
        return None, []
    empty = schema.empty_table().to_pandas()
    return empty.columns, list(empty.dtypes)


def _is_plain(kind: pa.DataType) -> bool:
    return any(is_kind(kind) for is_kind in (pa.types.is_integer, pa.types.is_floating, pa.types.is_string))
