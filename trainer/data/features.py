"""Features and content of the rows of an entity.

A feature has values of another entity, such as the artist and the tags of tracks:

    feature = load_feature(folder, manifest, "track", "tag")
    feature.take(np.array([7, 3]))              # the values of tracks 7 and 3, each sorted

Content is numbers and vectors, such as the tempo of tracks and embeddings of their audio:

    content = load_content(folder, manifest, "track", ["tempo", "audio"])
    content.values_RF[rows_A]                   # what a tower's content layer reads

Each column of content takes ``width`` places of a row, for its scaled numbers, and one more for its mask. Where a row
has no value, its numbers are 0 and its mask is 1; otherwise the mask is 0.

Shapes: R rows of the entity, A some of them, F places of a row, N values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from crossfade.base.arrays import BoolArray, FloatArray, IntArray
from crossfade.base.errors import InputError
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.jagged_array import JaggedArray
from crossfade.trainer.data.manifest import Content, DataFile, DatasetManifest
from crossfade.trainer.data.parquet import ParquetFiles, column_of

ROW, VALUE = "row", "value"
SCHEMA = pa.schema([pa.field(name, pa.int64(), nullable=False) for name in (ROW, VALUE)])
"""Schema of a feature's files: pairs of a row and a value."""


def iter_pairs(
    folder: Folder, manifest: DatasetManifest, entity: str, name: str
) -> Iterator[tuple[DataFile, IntArray, IntArray]]:
    """Yield the pairs of the feature ``name`` of ``entity`` in order, by row group: the file, the rows and the values.

    Raises:
        InputError: a file is missing or corrupt, or its pairs are unsorted or out of range.
        StorageUnavailableError: storage does not answer.
    """
    files, last = ParquetFiles(folder), 0
    rows, values = manifest.entities[entity].rows, manifest.entities[name].rows
    for file in manifest.features[entity][name].files:
        for index in range(len(file.row_groups)):
            if not file.row_groups[index]:
                continue
            where, table = f"{files.uri(file)}, row group {index}", files.read(file, index, [ROW, VALUE])
            row_N, value_N = (column_of(table, column, pa.int64(), where) for column in (ROW, VALUE))
            in_range = row_N[0] >= last and row_N[-1] < rows and value_N.min() >= 0 and value_N.max() < values
            if not in_range or (np.diff(row_N) < 0).any():
                raise InputError(
                    f"{where}: expected pairs sorted by row, with rows 0 to {rows - 1} of {entity} and values 0 to "
                    f"{values - 1} of {name}"
                )
            last = int(row_N[-1])
            yield file, row_N, value_N


def lists_bytes(rows: int, pairs: int, values: int) -> int:
    """Return the bytes of what ``load_feature`` returns: ``pairs`` of ``rows`` rows with ``values`` values."""
    return (rows + 1) * _packed_dtype(pairs).itemsize + pairs * _packed_dtype(values).itemsize


def load_feature(folder: Folder, manifest: DatasetManifest, entity: str, name: str) -> JaggedArray:
    """Load the sorted values of the feature ``name`` of each row of ``entity``, int32 where numbers fit, or else int64.

    Raises:
        InputError: a file is missing or corrupt, or its pairs are unsorted or out of range.
        StorageUnavailableError: storage does not answer.
    """
    feature, rows = manifest.features[entity][name], manifest.entities[entity].rows
    counts_R = np.zeros(rows, np.int64)
    values_N = np.empty(feature.pairs, _packed_dtype(manifest.entities[name].rows))
    end = 0
    for _, row_N, value_N in iter_pairs(folder, manifest, entity, name):
        values_N[end : end + len(value_N)] = value_N
        end += len(value_N)
        active_A, count_A = np.unique(row_N, return_counts=True)
        counts_R[active_A] += count_A
    starts_R1 = np.zeros(rows + 1, _packed_dtype(feature.pairs))
    np.cumsum(counts_R, out=starts_R1[1:])
    return JaggedArray(starts_R1, values_N)


def _packed_dtype(maximum: int) -> np.dtype[Any]:
    return np.dtype(np.int32) if maximum < 2**31 else np.dtype(np.int64)


_GROUP_NUMBERS = 1 << 22
"""Numbers of a row group, 16 MiB: readers hold it and two copies."""


def content_schema(width: int) -> pa.Schema:
    """Return the schema of a content column's files: a row, and a list of ``width`` numbers."""
    value = pa.list_(pa.field("element", pa.float32()), width)
    return pa.schema([pa.field(ROW, pa.int64(), nullable=False), pa.field(VALUE, value, nullable=False)])


def content_width(columns: Sequence[Content]) -> int:
    """Return the places of a row: the numbers and the mask of each column."""
    return sum(column.width + 1 for column in columns)


def content_group_rows(rows: int, width: int) -> int:
    """Return the most rows of a row group of a column, of ``rows`` that a group of other columns would have."""
    return max(1, min(rows, _GROUP_NUMBERS // width))


def iter_content(
    folder: Folder, manifest: DatasetManifest, entity: str, name: str
) -> Iterator[tuple[DataFile, IntArray, FloatArray]]:
    """Yield the content column ``name`` of ``entity`` by row group: the file, the rows, and the numbers, not scaled.

    Raises:
        InputError: a file is missing or corrupt, or its rows are unsorted or out of range.
        StorageUnavailableError: storage does not answer.
    """
    column, rows = manifest.content[entity][name], manifest.entities[entity].rows
    files, last = ParquetFiles(folder), -1
    for file in column.files:
        for index, filled in enumerate(file.row_groups):
            if not filled:
                continue
            where, table = f"{files.uri(file)}, row group {index}", files.read(file, index, [ROW, VALUE])
            row_N = column_of(table, ROW, pa.int64(), where)
            value_ND = content_values(table.column(VALUE), column.width, where)
            if row_N[0] <= last or row_N[-1] >= rows or (np.diff(row_N) <= 0).any():
                raise InputError(f"{where}: expected rows 0 to {rows - 1} of {entity}, sorted and each once")
            last = int(row_N[-1])
            yield file, row_N, value_ND


def content_values(lists: pa.ChunkedArray, width: int, where: str) -> FloatArray:
    """Return lists of ``width`` finite numbers, float32 (N, D).

    Raises:
        InputError: there are others; the message begins with ``where``.
    """
    kind = lists.type
    lengths = np.diff(lists.combine_chunks().offsets.to_numpy()) if pa.types.is_list(kind) else np.array([])
    fixed = pa.types.is_fixed_size_list(kind) and kind.list_size == width
    is_list = fixed or (pa.types.is_list(kind) and bool((lengths == width).all()))
    if not is_list or kind.value_type != pa.float32() or lists.null_count:
        raise InputError(
            f"{where}: column '{VALUE}' holds {kind}; expected lists of {width} float32 numbers, none null"
        )
    flat_N = lists.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    value_ND: FloatArray = flat_N.reshape(len(lists), width)
    if not np.isfinite(value_ND).all():
        raise InputError(f"{where}: column '{VALUE}' has numbers that are null or not finite; expected finite ones")
    return value_ND


@dataclass(frozen=True)
class ContentMatrix:
    """Content columns of all rows of an entity.

    Attributes:
        values_RF: scaled numbers and masks, float32 (R, F).
        filled_R: which rows have a value of any column.
    """

    values_RF: FloatArray
    filled_R: BoolArray


def load_content(folder: Folder, manifest: DatasetManifest, entity: str, names: Sequence[str]) -> ContentMatrix:
    """Load the content columns ``names`` of all rows of ``entity``, scaled as the manifest says.

    Raises:
        InputError: a file is missing or corrupt, or its rows are unsorted or out of range.
        StorageUnavailableError: storage does not answer.
    """
    columns, rows = [manifest.content[entity][name] for name in names], manifest.entities[entity].rows
    values_RF = np.zeros((rows, content_width(columns)), np.float32)
    filled_R, first = np.zeros(rows, np.bool_), 0
    for name, column in zip(names, columns, strict=True):
        mask = first + column.width
        values_RF[:, mask] = 1
        for _, row_N, value_ND in iter_content(folder, manifest, entity, name):
            values_RF[row_N, first:mask] = (value_ND - np.float32(column.mean)) / np.float32(column.std)
            values_RF[row_N, mask] = 0
            filled_R[row_N] = True
        first = mask + 1
    return ContentMatrix(values_RF, filled_R)
