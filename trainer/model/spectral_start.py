"""Spectral start: vectors that tables begin with, from the singular vectors of the matrix of interactions.

    query_QD, item_ID = spectral_vectors(query_N, item_N, queries=6_040, items=3_706, dim=64, seed=1)

With A the matrix of queries by items, 1 where there is an interaction of positive weight, and d the numbers of these by
row and by column, Â = D_q^-1/2 A D_i^-1/2 ≈ U Σ Vᵀ (as spectral clustering scales it: Dhillon, KDD 2001). Queries begin
with the rows of U Σ^1/2, items with those of V Σ^1/2, each at length 1. U, Σ, and V come from a randomized subspace
iteration (Halko, Martinsson, and Tropp, SIAM Review 2011, algorithm 4.4), which multiplies A by a few columns more than
the vectors have, a few times.

Where all items are negatives, few epochs from these vectors reach more than from random ones: docs/model.md has
figures.

Shapes: N interactions, Q queries, I items, D columns, S columns of the iteration.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crossfade.base.arrays import BoolArray, FloatArray, IntArray
from crossfade.base.errors import InputError
from crossfade.trainer.data.reader import InteractionReader, RowGroup
from crossfade.trainer.data.reporter import NullReporter, ProgressReporter
from crossfade.trainer.model.given_vectors import BLOCK_ROWS
from crossfade.trainer.model.spec import ModelSpec

_EXTRA_COLUMNS, _ITERATIONS = 16, 4
_MIN_LENGTH = 1e-6
"""Length of a row below which its direction is rounding: it belongs to none of the leading singular vectors."""
BYTES_PER_INTERACTION = 36
"""Memory at the peak, besides vectors: both rows as int64, and A by rows and by columns; 33 were measured."""
COPIES_OF_VECTORS = 4
"""Arrays of S columns and a row per query and item that exist at the same time, at most; 3.7 were measured."""


@dataclass(frozen=True)
class SpectralVectors:
    """The vectors that the table of one entity begins with, float32 (R, D); rows of 0 have none."""

    vectors_RD: FloatArray

    def blocks(self, wanted_R: BoolArray) -> Iterator[tuple[IntArray, FloatArray]]:
        """Yield the vectors of the rows ``wanted_R``: sorted and unique rows, int64 (A,), and float32 (A, D)."""
        row_N = np.flatnonzero(wanted_R & self.vectors_RD.any(axis=1))
        for start in range(0, len(row_N), BLOCK_ROWS):
            row_A = row_N[start : start + BLOCK_ROWS]
            yield row_A, self.vectors_RD[row_A]

    def count_blocks(self) -> int:
        """Return the most blocks that ``blocks`` yields."""
        return -(-len(self.vectors_RD) // BLOCK_ROWS)


def check_columns(model: ModelSpec) -> None:
    """Check that the matrix of interactions has as many singular vectors as vectors have columns.

    Raises:
        InputError: it has fewer.
    """
    queries, items, dim = model.query.rows, model.item.rows, model.item.dim
    if dim > min(queries, items):
        raise InputError(
            f"model.init: 'spectral' needs at least as many queries and items as columns, but there are {queries:,} "
            f"and {items:,}, and model.dim is {dim}; lower it, or set model.init to random"
        )


def spectral_start(
    reader: InteractionReader, groups: Sequence[RowGroup], model: ModelSpec, seed: int, progress: ProgressReporter
) -> dict[str, SpectralVectors]:
    """Return what the tables of queries and items begin with, by name, from the interactions of ``groups``.

    ``progress`` is advanced at each row group and iteration.

    Raises:
        InputError: a file is missing or corrupt.
        StorageUnavailableError: storage does not answer.
    """
    progress.phase("spectral start", len(groups) + _ITERATIONS, "step")
    query, item = model.query, model.item
    query_N, item_N = _positive_pairs(reader, groups, progress)
    vectors = spectral_vectors(
        query_N, item_N, queries=query.rows, items=item.rows, dim=item.dim, seed=seed, progress=progress
    )
    return {table.name: SpectralVectors(of_rows) for table, of_rows in zip((query, item), vectors, strict=True)}


def _positive_pairs(
    reader: InteractionReader, groups: Sequence[RowGroup], progress: ProgressReporter
) -> tuple[IntArray, IntArray]:
    """Return the rows of the queries and of the items of interactions with a positive weight, int64 (N,) each."""
    query_N, item_N = (np.empty(sum(group.rows for group in groups), np.int64) for _ in range(2))
    count = 0
    for part in reader.map(reader.read, groups):
        places = slice(count, count := count + np.count_nonzero(part.weight_N > 0.0))
        query_N[places], item_N[places] = (rows_N[part.weight_N > 0.0] for rows_N in (part.query_N, part.item_N))
        progress.advance(1)
    return query_N[:count], item_N[:count]


def columns_of(dim: int) -> int:
    """Return the columns of the iteration that finds vectors of ``dim`` columns."""
    return dim + _EXTRA_COLUMNS


def spectral_vectors(
    query_N: IntArray,
    item_N: IntArray,
    *,
    queries: int,
    items: int,
    dim: int,
    seed: int,
    progress: ProgressReporter | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Return the vectors that queries and items begin with: float32 (Q, D) and (I, D), of length 1.

    There are at least ``dim`` queries and items. Rows that have no interaction, or none with those of the leading
    singular vectors, are 0. The result does not depend on the number of threads.

    Args:
        query_N: rows of the queries of interactions, int64; a pair may occur more than once, and counts once.
        item_N: rows of their items, int64.
        queries: rows of the query table.
        items: rows of the item table.
        dim: columns of the vectors.
        seed: of the random columns that the iteration begins with.
        progress: is advanced at each iteration.
    """
    from threadpoolctl import threadpool_limits  # takes time to import, as scipy does

    progress = progress or NullReporter()
    with threadpool_limits(1):
        scaled_QI = _scaled_matrix(query_N, item_N, queries, items)
        scaled_IQ = scaled_QI.T.tocsr()
        width = min(columns_of(dim), queries, items)
        basis_IS: FloatArray = np.random.default_rng(seed).standard_normal((items, width), np.float32)
        for _ in range(_ITERATIONS):
            basis_IS = np.linalg.qr(scaled_IQ @ (scaled_QI @ basis_IS))[0]
            progress.advance(1)
        product_QS = scaled_QI @ basis_IS
        square_S, vectors_SS = np.linalg.eigh(product_QS.T @ product_QS)  # in ascending order
        rotation_SD = vectors_SS[:, ::-1][:, :dim]
        root_D = np.maximum(square_S[::-1][:dim], np.finfo(np.float32).tiny) ** 0.25
        return _unit_rows(product_QS @ (rotation_SD / root_D)), _unit_rows(basis_IS @ (rotation_SD * root_D))


def _scaled_matrix(query_N: IntArray, item_N: IntArray, queries: int, items: int) -> Any:
    """Return Â, a sparse matrix by rows, float32 (Q, I)."""
    import scipy.sparse

    ones_N = np.ones(len(query_N), np.float32)
    matrix_QI = scipy.sparse.csr_matrix((ones_N, (query_N, item_N)), (queries, items))
    matrix_QI.sum_duplicates()
    matrix_QI.data[:] = 1.0
    count_Q, count_I = np.diff(matrix_QI.indptr), np.bincount(matrix_QI.indices, minlength=items)
    scale_Q, scale_I = (np.maximum(count, 1).astype(np.float32) ** np.float32(-0.5) for count in (count_Q, count_I))
    matrix_QI.data *= np.repeat(scale_Q, count_Q) * scale_I[matrix_QI.indices]
    return matrix_QI


def _unit_rows(vectors_RD: FloatArray) -> FloatArray:
    """Return rows of length 1, float32; those that are about 0 become 0."""
    length_R1 = np.linalg.norm(vectors_RD, axis=1, keepdims=True)
    divisor_R1 = np.where(length_R1 > _MIN_LENGTH, length_R1, np.float32(np.inf))
    unit_RD: FloatArray = (vectors_RD / divisor_R1).astype(np.float32) + np.float32(0.0)
    return unit_RD
