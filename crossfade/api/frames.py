"""Tables of pandas, Polars, DuckDB, and Arrow: read as Arrow, and returned as the same kind.

kind = frame_kind(plays)                    # "pandas"
reader = open_batches(plays, {"query": "user", "item": "song"})     # a pyarrow.RecordBatchReader
to_frame(table, kind)                       # a pandas.DataFrame
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Literal

import pyarrow as pa

from crossfade.base.errors import InputError
from crossfade.trainer.prepare.source_columns import check_columns

FrameKind = Literal["pandas", "polars", "duckdb", "arrow"]
_PACKAGES: dict[str, FrameKind] = {"pandas": "pandas", "polars": "polars", "duckdb": "duckdb", "_duckdb": "duckdb"}


def frame_kind(data: object) -> FrameKind | None:
    """Return what kind of table ``data`` is; None if it is none.

    Tables of other libraries that export Arrow streams count as Arrow.
    """
    package = type(data).__module__.partition(".")[0]
    if package in _PACKAGES:
        return _PACKAGES[package]
    return "arrow" if package == "pyarrow" or hasattr(data, "__arrow_c_stream__") else None


def default_kind() -> FrameKind:
    """Return the kind of results for data that came from files: pandas if it can be imported, otherwise Arrow."""
    return "pandas" if find_spec("pandas") is not None else "arrow"


def open_batches(data: Any, columns: Mapping[str, str], name: str = "plays") -> pa.RecordBatchReader:
    """Open ``columns`` (role to column name) of a table for reading in batches; the others may be of any type.

    Messages call the table ``name``.

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
    except (TypeError, OverflowError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{name}: cannot be read as a table whose columns have one type each ({reason})") from error


def _open(data: Any, columns: Mapping[str, str], name: str) -> pa.RecordBatchReader:
    if frame_kind(data) == "pandas":
        used = _used_columns(columns, list(data.columns), name)
        data = pa.Table.from_pandas(data[used], preserve_index=False)
    elif frame_kind(data) == "polars":
        import polars

        used = _used_columns(columns, data.collect_schema().names(), name)
        # Categories of the newest level hold views of text, which Arrow cannot decode.
        data = data.lazy().select(used).collect().to_arrow(compat_level=polars.CompatLevel.oldest())
    elif isinstance(data, pa.RecordBatch):
        data = pa.Table.from_batches([data])
    elif hasattr(data, "scanner"):  # a dataset of Arrow
        data = data.scanner(columns=_used_columns(columns, data.schema.names, name)).to_reader()
    reader = pa.RecordBatchReader.from_stream(data)
    used = _used_columns(columns, reader.schema.names, name)
    schema = pa.schema([reader.schema.field(name) for name in used])
    return pa.RecordBatchReader.from_batches(schema, (batch.select(used) for batch in reader))


def _used_columns(columns: Mapping[str, str], names: Sequence[str], table: str) -> list[str]:
    """Return the names of the columns that are read, each once; ``names`` are all names of ``table``."""
    used = list(dict.fromkeys(columns.values()))
    check_columns(table, names, used)
    return used


def to_frame(table: pa.Table, kind: FrameKind) -> Any:
    """Return ``table`` as a ``pandas.DataFrame``, a ``polars.DataFrame``, a DuckDB relation, or itself."""
    if kind == "pandas":
        return table.to_pandas()
    if kind == "polars":
        import polars

        return polars.from_arrow(table)
    if kind == "duckdb":
        import duckdb

        return duckdb.from_arrow(table)
    return table
