"""Problems of a data set's files, as they are found: the first are kept, the others counted.

with problems.catching():
    if problems.of_columns(files, file, {"row": pa.int64()}) == 0:
        problems.of_values(bad_N, values_N, "row group 3, row {}: the weight is {}; expected a finite one")
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kvstore.arrays import BoolArray, FloatArray, IntArray
from kvstore.errors import InputError, escape_unprintable, format_names
from trainer.data.manifest import DataFile
from trainer.data.parquet import ParquetFiles

LISTED = 20


class Problems:
    """``count`` problems, of which the first are ``listed``. What looks for some returns how many it found."""

    def __init__(self) -> None:
        """None so far."""
        self.listed: list[str] = []
        self.count = 0

    def add(self, problem: str) -> None:
        """Take one down."""
        self.count += 1
        if self.count <= LISTED:
            self.listed.append(escape_unprintable(problem))

    @contextmanager
    def catching(self) -> Iterator[None]:
        """Take down what an InputError says, and go on after the block."""
        try:
            yield
        except InputError as error:
            self.add(str(error).removesuffix("; prepare the data again"))

    def of_columns(self, files: ParquetFiles, file: DataFile, wanted: Mapping[str, pa.DataType]) -> int:
        """See that a file has the columns ``wanted``, each of its type."""
        schema = files.footer(file).schema.to_arrow_schema()
        before = self.count
        for name, kind in wanted.items():
            times = schema.names.count(name)
            if times != 1:
                many = "no column" if times == 0 else f"{times} columns"
                self.add(f"{files.uri(file)}: has {many} '{name}'; its columns are {format_names(schema.names)}")
            elif plain_type(schema.field(name).type) != kind:
                found = schema.field(name).type
                self.add(f"{files.uri(file)}: column '{name}' has the type {found}; expected {kind}: cast it")
        return self.count - before

    def of_nulls(self, column: pa.ChunkedArray, name: str, where: str, first: int = 0) -> int:
        """See that a column, whose rows count from ``first``, has no null."""
        if column.null_count:
            row = first + pc.index(pc.is_null(column), True).as_py()
            self.add(f"{where}, row {row}: column '{name}' is null{_others(column.null_count)}; expected none")
        return int(column.null_count)

    def of_values(self, bad_N: BoolArray, values_N: IntArray | FloatArray, said: str, first: int = 0) -> int:
        """Say of the first of the ``bad_N`` values what ``said`` makes of its row, from ``first`` on, and itself."""
        bad = int(bad_N.sum())
        if bad:
            place = int(np.argmax(bad_N))
            self.add(said.format(first + place, values_N[place]) + _others(bad))
        return bad


def plain_type(kind: pa.DataType) -> pa.DataType:
    """``kind``, or what it is read as: how long the strings of a column may be altogether makes no difference."""
    return pa.string() if pa.types.is_large_string(kind) else kind


def _others(count: int) -> str:
    return f" (and {count - 1:,} more in this row group)" if count > 1 else ""
