"""Features: values that the rows of an entity have of another, such as the artist and the tags of tracks.

    feature = load_feature(folder, manifest, "track", "tag")
    starts_A1, values_N = feature.gather(np.array([7, 3]))      # track 7 has values_N[starts_A1[0]:starts_A1[1]]

Shapes: R rows of the entity, A some of them, N values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from crossfade.base.arrays import BoolArray, IntArray
from crossfade.base.errors import InputError
from crossfade.base.io.folder import Folder
from crossfade.kvstore.jit import njit
from crossfade.trainer.data.manifest import DataFile, DatasetManifest
from crossfade.trainer.data.parquet import ParquetFiles, column_of

ROW, VALUE = "row", "value"
SCHEMA = pa.schema([pa.field(name, pa.int64(), nullable=False) for name in (ROW, VALUE)])
"""Schema of a feature's files: pairs of a row and a value."""

Packed = npt.NDArray[np.signedinteger[Any]]
"""int32 where its numbers fit, otherwise int64."""


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
                    f"{where}: pairs must be sorted by row, with rows of {entity} and values of {name}; run 'crossfade "
                    f"validate {folder.uri}' for details"
                )
            last = int(row_N[-1])
            yield file, row_N, value_N


@dataclass(frozen=True)
class JaggedFeature:
    """The values of each row of an entity: row r has ``values_N[starts_R1[r]:starts_R1[r + 1]]``, sorted."""

    starts_R1: Packed
    values_N: Packed

    def gather(self, rows_A: IntArray) -> tuple[IntArray, IntArray]:
        """Return the values of ``rows_A``, row after row.

        Returns:
            Where the values of each row start, int64 (A + 1,), and the values, int64 (N,).
        """
        counts_A = self.starts_R1[rows_A + 1] - self.starts_R1[rows_A]
        starts_A1 = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts_A, dtype=np.int64)])
        values_N: IntArray = _gather(self.starts_R1, self.values_N, rows_A, starts_A1)
        return starts_A1, values_N

    def has_values(self, rows_A: IntArray) -> BoolArray:
        """Return which of ``rows_A`` have a value, bool (A,)."""
        filled_A: BoolArray = self.starts_R1[rows_A + 1] > self.starts_R1[rows_A]
        return filled_A


@njit(cache=True, nogil=True)
def _gather(starts_R1, values_N, rows_A, starts_A1):  # type: ignore[no-untyped-def]
    out_N = np.empty(starts_A1[-1], np.int64)
    for a in range(rows_A.shape[0]):
        first = starts_R1[rows_A[a]]
        for n in range(starts_A1[a + 1] - starts_A1[a]):
            out_N[starts_A1[a] + n] = values_N[first + n]
    return out_N


def lists_bytes(rows: int, pairs: int, values: int) -> int:
    """Return the memory of a ``JaggedFeature`` in bytes: ``pairs`` pairs of ``rows`` rows with ``values`` values."""
    return (rows + 1) * _packed_dtype(pairs).itemsize + pairs * _packed_dtype(values).itemsize


def load_feature(folder: Folder, manifest: DatasetManifest, entity: str, name: str) -> JaggedFeature:
    """Load the feature ``name`` of all rows of ``entity``.

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
    return JaggedFeature(starts_R1, values_N)


def _packed_dtype(maximum: int) -> np.dtype[np.signedinteger[Any]]:
    return np.dtype(np.int32) if maximum < 2**31 else np.dtype(np.int64)
