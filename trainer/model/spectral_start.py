"""Spectral start: what the rows of a new run begin with, from the singular vectors of its interactions.

    matrix = interaction_matrix(reader, groups, queries, items, progress)
    start = SpectralStart.of(matrix, dim, seed, progress)
    store.assign("track", *start.items(0, 65_536))

The interactions, each divided by the roots of both rows' counts, are approximated by their leading singular vectors,
which are found by subspace iteration (Halko, Martinsson, and Tropp, "Finding structure with randomness", SIAM Review
2011). An item begins with the direction of its right singular vectors times the fourth roots of the singular values; a
query with the mean direction of its items. Epochs from there need not find the large structure first, so that fewer of
them are enough: docs/training.md has figures. Where singular values hardly fall, the last columns depend on the seed.

``start_bytes`` is what this takes meanwhile.

Shapes: Q queries, I items, P pairs, D columns, A rows with an interaction, S columns of the subspace.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.trainer.data.reader import InteractionReader, RowGroup
from crossfade.trainer.data.reporter import ProgressReporter

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_EXTRA_COLUMNS = 16
"""Columns of the subspace beyond those of the result (oversampling), which make the last ones more exact."""
_ITERATIONS = 8
_VALUE_POWER = 0.25
_MIN_LENGTH = 1e-6
_PART_ROWS = 2**16
"""Queries whose products with the subspace are in memory together."""


@dataclass(frozen=True)
class SpectralStart:
    """What rows begin with: unit vectors, float32. Rows without an interaction have none, and keep random values.

    Attributes:
        matrix: an ``interaction_matrix``, float32 (Q, I).
        item_ID: the items' vectors, float32 (I, D); 0 where there is none.
    """

    matrix: csr_matrix
    item_ID: FloatArray

    @classmethod
    def of(cls, matrix: csr_matrix, dim: int, seed: int, progress: ProgressReporter) -> SpectralStart:
        """Compute the vectors of ``dim`` columns from an ``interaction_matrix``; ``seed`` draws the first subspace.

        ``progress`` is advanced at each iteration.
        """
        progress.phase("spectral start", _ITERATIONS, "iteration")
        columns = min(dim + _EXTRA_COLUMNS, *matrix.shape)
        scaled = _scaled(matrix)
        rng = np.random.Generator(np.random.Philox(seed))
        basis_IS = rng.standard_normal((matrix.shape[1], columns), dtype=np.float32)
        for _ in range(_ITERATIONS):
            basis_IS = _orthonormal(sum(part.T @ (part @ basis_IS) for part in _parts(scaled)))
            progress.advance(1)
        square_SS = sum(_squared(part @ basis_IS) for part in _parts(scaled))
        square_S, rotation_SS = np.linalg.eigh(square_SS)  # in ascending order
        kept = slice(None, -min(dim, columns) - 1, -1)
        value_S = np.sqrt(np.maximum(square_S[kept], 0.0))
        item_ID = np.zeros((matrix.shape[1], dim), np.float32)
        item_ID[:, : len(value_S)] = basis_IS @ (rotation_SS[:, kept] * value_S**_VALUE_POWER).astype(np.float32)
        return cls(matrix, _unit(item_ID))

    def queries(self, first: int, last: int) -> tuple[IntArray, FloatArray]:
        """Return which of the queries from ``first`` to before ``last`` have a vector, int64 (A,), and it, (A, D)."""
        return _nonzero(_unit(self.matrix[first:last] @ self.item_ID), first)

    def items(self, first: int, last: int) -> tuple[IntArray, FloatArray]:
        """Return which of the items from ``first`` to before ``last`` have a vector, int64 (A,), and it, (A, D)."""
        return _nonzero(self.item_ID[first:last], first)


def start_bytes(pairs: int, items: int, dim: int) -> int:
    """Return the bytes that a start of ``pairs`` interactions takes at most."""
    return 24 * pairs + 4 * items * (dim + _EXTRA_COLUMNS) * 4


def interaction_matrix(
    reader: InteractionReader, groups: Sequence[RowGroup], queries: int, items: int, progress: ProgressReporter
) -> csr_matrix:
    """Read which queries and items interact with a positive weight in ``groups``: 1 for each pair, float32 (Q, I).

    ``progress`` is advanced at each row group.

    Raises:
        InputError: a file is missing or corrupt.
        StorageUnavailableError: storage does not answer.
    """
    from scipy.sparse import csr_matrix  # it takes a while

    progress.phase("interactions of the spectral start", len(groups), "row group")
    pairs_2P, pairs = np.empty((2, sum(group.rows for group in groups)), np.int32), 0
    for part in reader.map(reader.read, groups):
        liked_N = part.weight_N > 0.0
        first, pairs = pairs, pairs + np.count_nonzero(liked_N)
        pairs_2P[:, first:pairs] = part.query_N[liked_N], part.item_N[liked_N]
        progress.advance(1)
    matrix = csr_matrix((np.ones(pairs, np.float32), pairs_2P[:, :pairs]), shape=(queries, items))
    matrix.data[:] = 1.0  # pairs that occur several times have been added up
    return matrix


def _scaled(matrix: csr_matrix) -> csr_matrix:
    """Divide ``matrix`` by the roots of the counts of its rows and columns; the indexes are shared."""
    from scipy.sparse import csr_matrix

    count_Q, count_I = np.diff(matrix.indptr), np.bincount(matrix.indices, minlength=matrix.shape[1])
    scaled_P = np.repeat(_inverse_root(count_Q), count_Q)
    scaled_P *= _inverse_root(count_I)[matrix.indices]
    return csr_matrix((scaled_P, matrix.indices, matrix.indptr), shape=matrix.shape)


def _parts(matrix: csr_matrix) -> Iterator[csr_matrix]:
    for first in range(0, matrix.shape[0], _PART_ROWS):
        yield matrix[first : first + _PART_ROWS]


def _orthonormal(value_IS: FloatArray) -> FloatArray:
    """Return a basis of the columns (Stathopoulos and Wu, "A block orthogonalization procedure", SIAM 2002).

    Where they depend on each other, that many columns are close to 0. It takes a tenth of the time of a QR.
    """
    square_S, rotation_SS = np.linalg.eigh(_squared(value_IS))
    length_S = np.sqrt(np.maximum(square_S, _MIN_LENGTH**2 * square_S[-1]))
    basis_IS: FloatArray = value_IS @ (rotation_SS / np.maximum(length_S, _MIN_LENGTH)).astype(np.float32)
    return basis_IS


def _squared(value_RS: FloatArray) -> FloatArray:
    squared_SS: FloatArray = (value_RS.T @ value_RS).astype(np.float64)
    return squared_SS


def _inverse_root(count_R: IntArray) -> FloatArray:
    root_R: FloatArray = 1.0 / np.sqrt(np.maximum(count_R, 1), dtype=np.float32)
    return root_R


def _unit(value_RD: FloatArray) -> FloatArray:
    """Return rows at length 1; shorter ones than ``_MIN_LENGTH`` become 0."""
    length_R = np.linalg.norm(value_RD, axis=1)
    factor_R = np.where(length_R > _MIN_LENGTH, 1.0 / np.maximum(length_R, _MIN_LENGTH), 0.0)
    unit_RD: FloatArray = (value_RD * factor_R[:, None]).astype(np.float32)
    return unit_RD


def _nonzero(value_RD: FloatArray, first: int) -> tuple[IntArray, FloatArray]:
    row_A = np.flatnonzero(value_RD.any(axis=1))
    return first + row_A, value_RD[row_A]
