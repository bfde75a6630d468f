"""Collect the problems of a dataset's files: the first are kept, the others only counted.

with problems.collect_errors():
    if problems.check_columns(files, file, {"row": pa.int64()}) == 0:
        problems.add_values(is_bad_N, value_N, "row group 3, row {}: the weight is {}; expected a finite one")

Shapes: N rows of a part of a row group.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crossfade.base.arrays import BoolArray, FloatArray, IntArray
from crossfade.base.errors import InputError, escape_unprintable, format_names
from crossfade.trainer.data.manifest import DataFile
from crossfade.trainer.data.parquet import ParquetFiles

MAX_LISTED = 20


class Problems:
    """Counts problems and lists the first ``MAX_LISTED``. Each check returns how many it has added."""

    def __init__(self) -> None:
        self.listed: list[str] = []
        self.count = 0

    def add(self, problem: str) -> None:
        """Add one problem."""
        self.count += 1
        if self.count <= MAX_LISTED:
            self.listed.append(escape_unprintable(problem))

    @contextmanager
    def collect_errors(self) -> Iterator[None]:
        """Add the message of an ``InputError`` that ends the block, and continue after the block."""
        try:
            yield
        except InputError as error:
            self.add(str(error).removesuffix("; prepare the data again"))

    def check_columns(self, files: ParquetFiles, file: DataFile, expected: Mapping[str, pa.DataType]) -> int:
        """Check that a file has the ``expected`` columns with their types."""
        files.check_footer(file)
        schema = files.footer(file).schema.to_arrow_schema()
        before = self.count
        for name, data_type in expected.items():
            times = schema.names.count(name)
            if times != 1:
                columns = "no column" if times == 0 else f"{times} columns"
                self.add(f"{files.uri(file)}: has {columns} '{name}'; its columns are {format_names(schema.names)}")
            elif plain_type(schema.field(name).type) != data_type:
                found = schema.field(name).type
                self.add(f"{files.uri(file)}: column '{name}' has the type {found}; expected {data_type}: cast it")
        return self.count - before

    def check_no_nulls(self, column: pa.ChunkedArray, name: str, where: str, first: int = 0) -> int:
        """Check that a column, whose rows count from ``first``, has no null."""
        if column.null_count:
            row = first + pc.index(pc.is_null(column), True).as_py()
            self.add(f"{where}, row {row}: column '{name}' is null{_others(column.null_count)}; expected none")
        return int(column.null_count)

    def add_values(self, is_bad_N: BoolArray, value_N: IntArray | FloatArray, template: str, first: int = 0) -> int:
        """Add a problem for the first bad value: ``template`` gets its row, counted from ``first``, and its value."""
        bad = int(is_bad_N.sum())
        if bad:
            index = int(np.argmax(is_bad_N))
            self.add(template.format(first + index, value_N[index]) + _others(bad))
        return bad


def plain_type(data_type: pa.DataType) -> pa.DataType:
    """Return the type as which columns of ``data_type`` are read: large strings are read as strings."""
    return pa.string() if pa.types.is_large_string(data_type) else data_type


def _others(count: int) -> str:
    return f" (and {count - 1:,} more in this row group)" if count > 1 else ""
