"""Move rows between active rows, tiles and pools of negatives, and sum gradients by active row, compiled.

Sums over the uses of an active row, and over the chunks of examples, run in a fixed order, whatever the number of
threads. Threads take active rows with about as many uses each.

Shapes: A active rows, B examples, C negatives of a pool, N uses, K chunks of examples, R rows of all chunks' sums, P
pools, D columns. Floats are float32.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.kvstore.elements import lower_bound
from crossfade.kvstore.jit import inner_kernel, njit
from crossfade.kvstore.lanes import dot_lanes
from crossfade.kvstore.threads import chunk_size, for_chunks
from crossfade.trainer.model.kernel_arguments import ScoreScales, Uses

_PARTS = 64
"""Parts of the active rows, divided among threads."""


@njit(cache=True, nogil=True)
def gather(rows_AD, index_N, out_ND):  # type: ignore[no-untyped-def]
    """Copy the rows ``index_N`` to ``out_ND``."""
    for n in range(index_N.shape[0]):
        row = index_N[n]
        for d in range(rows_AD.shape[1]):
            out_ND[n, d] = rows_AD[row, d]


@njit(cache=True, nogil=True)
def fill_squares(rows_CD, norm_scale, out_C):  # type: ignore[no-untyped-def]
    """Fill ``out_C`` with ``norm_scale`` times the squared norms."""
    for c in range(rows_CD.shape[0]):
        out_C[c] = norm_scale * dot_lanes(rows_CD[c], rows_CD[c]) if norm_scale else np.float32(0.0)


@njit(cache=True, nogil=True)
def add_to(sums_CD, values_CD):  # type: ignore[no-untyped-def]
    """Add ``values_CD`` to ``sums_CD``."""
    for c in range(sums_CD.shape[0]):
        for d in range(sums_CD.shape[1]):
            sums_CD[c, d] += values_CD[c, d]


@njit(cache=True, inline="always")
def _rows_of_part(starts_A1, part):  # type: ignore[no-untyped-def]
    uses, rows = starts_A1[-1], starts_A1.shape[0] - 1
    first = lower_bound(starts_A1[:rows], uses * part // _PARTS)
    return first, (lower_bound(starts_A1[:rows], uses * (part + 1) // _PARTS) if part + 1 < _PARTS else rows)


class OwnTerms(NamedTuple):
    """What the examples' own items add to the gradients of one side.

    Attributes:
        slope_B: derivatives by the score of the example's own item.
        other_B: each example's active row of the other side.
        other_AD: vectors of the active rows of the other side.
    """

    slope_B: FloatArray
    other_B: IntArray
    other_AD: FloatArray


class PoolProducts(NamedTuple):
    """What the pool adds to the gradients of queries.

    Attributes:
        product_BD: for each example the sum of the pool's vectors, weighted by derivatives over its factor.
        factor_B: the examples' factors.
        total_B: sums of an example's derivatives by all its scores; empty: 0.
    """

    product_BD: FloatArray
    factor_B: FloatArray
    total_B: FloatArray


class PoolSums(NamedTuple):
    """What the queries add to the gradients of pools.

    Attributes:
        sums_RD: for each chunk and each negative of its pool, the sum of queries' vectors, weighted by derivatives.
        slope_R: the sums of these derivatives; not used if squared norms do not count.
        row_K: first rows of the chunks.
        chunk_P1: first chunks of the pools.
        example_P: first examples of the pools.
        drawn: number of drawn negatives, which come first in each pool.
        in_batch: whether the items of a pool's examples follow.
    """

    sums_RD: FloatArray
    slope_R: FloatArray
    row_K: IntArray
    chunk_P1: IntArray
    example_P: IntArray
    drawn: int
    in_batch: bool


@inner_kernel()
def _sum_queries_of_parts(begin, end, own, products, query_AD, uses: Uses, scales: ScoreScales, out_AD):  # type: ignore[no-untyped-def]
    slope_B, item_B, item_AD = own
    product_BD, factor_B, total_B = products
    _, order_N, starts_A1 = uses
    columns = query_AD.shape[1]
    for part in range(begin, end):
        first_row, end_row = _rows_of_part(starts_A1, part)
        for a in range(first_row, end_row):
            total = np.float32(0.0)
            for n in range(starts_A1[a], starts_A1[a + 1]):
                b = order_N[n]
                factor, slope, item = scales.dot * factor_B[b], scales.dot * slope_B[b], item_B[b]
                for d in range(columns):
                    out_AD[a, d] += factor * product_BD[b, d] + slope * item_AD[item, d]
                if total_B.shape[0]:
                    total += total_B[b]
            if total_B.shape[0]:
                total *= np.float32(2.0) * scales.norm
                for d in range(columns):
                    out_AD[a, d] -= total * query_AD[a, d]


@njit(cache=True, error_model="numpy", nogil=True)
def sum_query_gradients(own, products, query_AD, uses: Uses, scales: ScoreScales):  # type: ignore[no-untyped-def]
    """Return the gradients of the active queries ``query_AD``, from ``OwnTerms``, ``PoolProducts``, and their uses."""
    out_AD = np.zeros_like(query_AD)
    for_chunks(_sum_queries_of_parts, _PARTS, 1, (own, products, query_AD, uses, scales, out_AD))
    return out_AD


@inner_kernel()
def _sum_items_of_parts(begin, end, own, sums, item_AD, uses: Uses, scales: ScoreScales, out_AD):  # type: ignore[no-untyped-def]
    slope_B, query_B, query_AD = own
    sums_RD, slope_R, row_K, chunk_P1, example_P, drawn, in_batch = sums
    _, order_N, starts_A1 = uses
    examples, columns = slope_B.shape[0], item_AD.shape[1]
    for part in range(begin, end):
        first_row, end_row = _rows_of_part(starts_A1, part)
        for a in range(first_row, end_row):
            total = np.float32(0.0)
            for n in range(starts_A1[a], starts_A1[a + 1]):
                use = order_N[n]
                place, first, last = use - examples, 0, row_K.shape[0]
                if use < examples:
                    slope, query = slope_B[use], query_B[use]
                    total += slope
                    for d in range(columns):
                        out_AD[a, d] += slope * query_AD[query, d]
                    pool = lower_bound(example_P, use + 1) - 1
                    place = drawn + use - example_P[pool]
                    first, last = chunk_P1[pool], (chunk_P1[pool + 1] if in_batch else chunk_P1[pool])
                for k in range(first, last):
                    row = row_K[k] + place
                    for d in range(columns):
                        out_AD[a, d] += sums_RD[row, d]
                    if scales.norm:
                        total += slope_R[row]
            total *= np.float32(2.0) * scales.norm
            for d in range(columns):
                out_AD[a, d] = scales.dot * out_AD[a, d] - total * item_AD[a, d]


@njit(cache=True, error_model="numpy", nogil=True)
def sum_item_gradients(own, sums, item_AD, uses: Uses, scales: ScoreScales):  # type: ignore[no-untyped-def]
    """Return the gradients of the active items ``item_AD``, from ``OwnTerms``, ``PoolSums``, and their uses."""
    out_AD = np.zeros_like(item_AD)
    for_chunks(_sum_items_of_parts, _PARTS, 1, (own, sums, item_AD, uses, scales, out_AD))
    return out_AD


@inner_kernel()
def _sum_rows_of_chunks(begin, end, sums_KAD, slope_KA, item_AD, scales: ScoreScales, out_AD):  # type: ignore[no-untyped-def]
    for a in range(begin, end):
        total = np.float32(0.0)
        for d in range(item_AD.shape[1]):
            out_AD[a, d] = sums_KAD[0, a, d]
        for k in range(1, sums_KAD.shape[0]):
            for d in range(item_AD.shape[1]):
                out_AD[a, d] += sums_KAD[k, a, d]
        if scales.norm:
            for k in range(sums_KAD.shape[0]):
                total += slope_KA[k, a]
        total *= np.float32(2.0) * scales.norm
        for d in range(item_AD.shape[1]):
            out_AD[a, d] = scales.dot * out_AD[a, d] - total * item_AD[a, d]


@njit(cache=True, error_model="numpy", nogil=True)
def sum_chunks(sums_KAD, slope_KA, item_AD, scales: ScoreScales):  # type: ignore[no-untyped-def]
    """Return the gradients of items that are the pool of all chunks, in the order of their rows."""
    out_AD = np.empty_like(item_AD)
    size = chunk_size(item_AD.shape[0], item_AD.size)
    for_chunks(_sum_rows_of_chunks, item_AD.shape[0], size, (sums_KAD, slope_KA, item_AD, scales, out_AD))
    return out_AD


@njit(cache=True, error_model="numpy", nogil=True)
def scale_rows(rows_AD, factor_A, scale):  # type: ignore[no-untyped-def]
    """Multiply each row by its factor and ``scale``, in place."""
    for a in range(rows_AD.shape[0]):
        factor = scale * factor_A[a]
        for d in range(rows_AD.shape[1]):
            rows_AD[a, d] *= factor
