"""Spectral start: what the rows of a new run begin with, from the singular vectors of its interactions.

    matrix = interaction_matrix(reader, groups, queries, items, progress)
    start = spectral_start(matrix, dim, seed)
    store.assign("track", start.item_A, start.item_AD)

The interactions, each divided by the roots of both rows' counts, are approximated by their leading singular vectors,
which are found by subspace iteration (Halko, Martinsson, and Tropp, "Finding structure with randomness", SIAM Review
2011). An item begins with the direction of its right singular vectors times the fourth roots of the singular values; a
query with the mean direction of its items. Epochs from there need not find the large structure first, so that fewer of
them come close: docs/training.md has figures. Where singular values hardly fall, the last columns depend on the seed.

Shapes: Q queries, I items, P pairs, D columns, A rows with an interaction, S columns of the subspace.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.trainer.data.reader import InteractionReader, RowGroup
from crossfade.trainer.data.reporter import ProgressReporter

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_EXTRA_COLUMNS = 16
"""Columns of the subspace beyond those of the result (oversampling), which make the last ones more exact."""
_ITERATIONS = 4
_VALUE_POWER = 0.25
_MIN_LENGTH = 1e-6


class SpectralStart(NamedTuple):
    """The rows that have an interaction, int64 and sorted, and the unit vectors they begin with, float32 (A, D)."""

    query_A: IntArray
    query_AD: FloatArray
    item_A: IntArray
    item_AD: FloatArray


def interaction_matrix(
    reader: InteractionReader, groups: Sequence[RowGroup], queries: int, items: int, progress: ProgressReporter
) -> csr_matrix:
    """Read which queries and items interact with a positive weight in ``groups``: 1 for each pair, float32 (Q, I).

    ``progress`` is advanced at each row group.

    Raises:
        InputError: a file is missing or corrupt.
        StorageUnavailableError: storage does not answer.
    """
    from scipy.sparse import csr_matrix  # few runs need it, and it takes a while

    progress.phase("spectral start", len(groups), "row group")
    query_P, item_P = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for part in reader.map(reader.read, groups):
        liked_N = part.weight_N > 0.0
        query_P.append(part.query_N[liked_N])
        item_P.append(part.item_N[liked_N])
        progress.advance(1)
    rows, columns = np.concatenate(query_P), np.concatenate(item_P)
    matrix = csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=(queries, items))
    matrix.data[:] = 1.0  # pairs that occur several times have been added up
    return matrix


def spectral_start(matrix: csr_matrix, dim: int, seed: int) -> SpectralStart:
    """Return what rows begin with, of ``dim`` columns, from an ``interaction_matrix``; ``seed`` draws the subspace.

    Rows without an interaction are left out, and so are those whose vectors cancel out.
    """
    count_Q, count_I = np.asarray(matrix.sum(axis=1)).ravel(), np.asarray(matrix.sum(axis=0)).ravel()
    scaled = matrix.multiply(_inverse_root(count_Q)[:, None]).multiply(_inverse_root(count_I)).tocsr()
    columns = min(dim + _EXTRA_COLUMNS, *matrix.shape)
    rng = np.random.Generator(np.random.Philox(seed))
    image_QS = scaled @ rng.standard_normal((matrix.shape[1], columns), dtype=np.float32)
    for _ in range(_ITERATIONS):
        basis_IS = np.linalg.qr(scaled.T @ np.linalg.qr(image_QS)[0])[0]
        image_QS = scaled @ basis_IS
    projected_IS = scaled.T @ np.linalg.qr(image_QS)[0]
    vectors_IS, value_S, _ = np.linalg.svd(projected_IS, full_matrices=False)
    item_ID = np.zeros((matrix.shape[1], dim), np.float32)
    kept = min(dim, columns)
    item_ID[:, :kept] = vectors_IS[:, :kept] * value_S[:kept] ** _VALUE_POWER
    item_ID = _unit(item_ID)
    query_A, query_AD = _nonzero(_unit(matrix @ item_ID))
    item_A, item_AD = _nonzero(item_ID)
    return SpectralStart(query_A, query_AD, item_A, item_AD)


def _inverse_root(count_R: FloatArray) -> FloatArray:
    root_R: FloatArray = 1.0 / np.sqrt(np.maximum(count_R, 1.0, dtype=np.float32))
    return root_R


def _unit(value_RD: FloatArray) -> FloatArray:
    """Return rows at length 1; shorter ones than ``_MIN_LENGTH`` become 0."""
    length_R = np.linalg.norm(value_RD, axis=1)
    factor_R = np.where(length_R > _MIN_LENGTH, 1.0 / np.maximum(length_R, _MIN_LENGTH), 0.0)
    unit_RD: FloatArray = (value_RD * factor_R[:, None]).astype(np.float32)
    return unit_RD


def _nonzero(value_RD: FloatArray) -> tuple[IntArray, FloatArray]:
    row_A = np.flatnonzero(value_RD.any(axis=1))
    return row_A, value_RD[row_A]
