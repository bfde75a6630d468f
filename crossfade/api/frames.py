"""Tables of pandas, Polars, DuckDB, and Arrow: read as Arrow, and returned as the same kind.

kind = frame_kind(plays)                    # "pandas"
reader = open_batches(plays)                # a pyarrow.RecordBatchReader
to_frame(table, kind)                       # a pandas.DataFrame
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal

import pyarrow as pa

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
    """Return the kind of results for data that came from files: pandas if it is installed, otherwise Arrow."""
    return "pandas" if find_spec("pandas") is not None else "arrow"


def open_batches(data: Any) -> pa.RecordBatchReader:
    """Open a table for reading in batches, without a copy where its library allows that."""
    if frame_kind(data) == "polars":
        import polars

        # Categories of the newest level hold views of text, which Arrow cannot decode.
        data = data.lazy().collect().to_arrow(compat_level=polars.CompatLevel.oldest())
    if isinstance(data, pa.RecordBatch):
        data = pa.Table.from_batches([data])
    if hasattr(data, "scanner"):
        data = data.scanner().to_reader()  # a dataset of Arrow
    return pa.RecordBatchReader.from_stream(data)


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
