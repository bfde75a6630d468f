"""Move rows between active rows, tiles and pools of negatives, and sum gradients by active row, compiled.

A row's gradient is the sum over its uses in a partition, in their order, and over the partition's chunks, in theirs;
then over partitions as a tree (``kvstore/tree_sums.py``). It depends neither on the number of threads nor on how
workers divide partitions. Threads take active rows with about as many uses each.

Shapes: A active rows, B examples, C negatives of a pool, N uses, K chunks of examples, R rows of all chunks' sums, P
partitions, X rows that leaves are summed in, D columns. Floats are float32.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.kvstore.elements import lower_bound
from crossfade.kvstore.jit import inner_kernel, njit
from crossfade.kvstore.lanes import dot_lanes
from crossfade.kvstore.row_kernels import copy_row
from crossfade.kvstore.threads import chunk_size, for_chunks, for_chunks_by_thread
from crossfade.kvstore.tree_sums import add_leaves, leaf_rows, leaf_stride
from crossfade.trainer.model.kernel_arguments import Leaves, ScoreScales, Uses, Vectors
from crossfade.trainer.model.normalization_kernels import row_through_normalize

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
        chunk_P1: first chunks of the partitions.
        example_P1: first examples of the partitions.
        leaf_P: leaves of the partitions.
        drawn: number of drawn negatives, which come first in each pool.
        in_batch: whether the items of a partition's examples follow.
    """

    sums_RD: FloatArray
    slope_R: FloatArray
    row_K: IntArray
    chunk_P1: IntArray
    example_P1: IntArray
    leaf_P: IntArray
    drawn: int
    in_batch: bool


@inner_kernel(forceinline=False)
def _complete_leaf(rows_XD, x, scale, total, side: Vectors, a):  # type: ignore[no-untyped-def]
    """Complete the sum g of a leaf, ``rows_XD[x]``, for active row a: scale·g − total·row, then normalization."""
    if scale != np.float32(1.0) or total != np.float32(0.0):
        for d in range(rows_XD.shape[1]):
            rows_XD[x, d] = scale * rows_XD[x, d] - total * side.rows_AD[a, d]
    if side.norm_A.shape[0]:
        row_through_normalize(rows_XD, x, side.rows_AD, a, side.norm_A[a])


@inner_kernel()
def _fill_with_zeros(rows_XD, x):  # type: ignore[no-untyped-def]
    for d in range(rows_XD.shape[1]):
        rows_XD[x, d] = np.float32(0.0)


@inner_kernel()
def _sum_queries_of_parts(begin, end, thread, terms, query: Vectors, uses: Uses, scales: ScoreScales, sums):  # type: ignore[no-untyped-def]
    (slope_B, item_B, item_AD), (product_BD, factor_B, total_B) = terms
    (_, order_N, starts_A1), ((leaf_B, count), rows_XD, out_AD) = uses, sums
    first_leaf, norm_scale = thread * leaf_stride(count, out_AD.shape[1]), np.float32(2.0) * scales.norm
    for part in range(begin, end):
        first_row, end_row = _rows_of_part(starts_A1, part)
        for a in range(first_row, end_row):
            n, leaves = np.int64(starts_A1[a]), np.int64(0)
            while n < starts_A1[a + 1]:
                leaf, total = np.int64(leaf_B[order_N[n]]), np.float32(0.0)
                x = first_leaf + leaf
                _fill_with_zeros(rows_XD, x)
                while n < starts_A1[a + 1] and leaf_B[order_N[n]] == leaf:
                    b = order_N[n]
                    factor, slope, item = scales.dot * factor_B[b], scales.dot * slope_B[b], item_B[b]
                    for d in range(rows_XD.shape[1]):
                        rows_XD[x, d] += factor * product_BD[b, d] + slope * item_AD[item, d]
                    if total_B.shape[0]:
                        total += total_B[b]
                    n += 1
                _complete_leaf(rows_XD, x, np.float32(1.0), norm_scale * total, query, a)
                leaves |= np.int64(1) << leaf
            copy_row(out_AD, a, rows_XD, add_leaves(rows_XD, first_leaf, leaves))


@njit(cache=True, error_model="numpy", nogil=True)
def sum_query_gradients(terms, query: Vectors, uses: Uses, scales: ScoreScales, leaves: Leaves):  # type: ignore[no-untyped-def]
    """Return the gradients of the active queries, from ``OwnTerms`` and ``PoolProducts``, and their uses."""
    out_AD = np.empty_like(query.rows_AD)
    sums = leaves, leaf_rows(leaves.leaf_count, out_AD.shape[1]), out_AD
    for_chunks_by_thread(_sum_queries_of_parts, _PARTS, 1, (terms, query, uses, scales, sums))
    return out_AD


@inner_kernel()
def _add_sums(rows_XD, x, sums, pool, place):  # type: ignore[no-untyped-def]
    """Add the sums of the chunks of a partition, at a place of the pool; return the sum of derivatives."""
    total = np.float32(0.0)
    for k in range(sums.chunk_P1[pool], sums.chunk_P1[pool + 1]):
        row = sums.row_K[k] + place
        for d in range(rows_XD.shape[1]):
            rows_XD[x, d] += sums.sums_RD[row, d]
        if sums.slope_R.shape[0]:
            total += sums.slope_R[row]
    return total


@inner_kernel()
def _pool_of(sums, example):  # type: ignore[no-untyped-def]
    """Return the partition of an example, by its place among those of the worker."""
    return lower_bound(sums.example_P1, example + 1) - 1


@inner_kernel()
def _add_part(rows_XD, x, terms, pool, order_N, uses):  # type: ignore[no-untyped-def]
    """Add the terms of an item of a partition; return the first use of a later partition, and the sum of derivatives.

    ``uses`` are the first use of this or a later one, the first use that is drawn, and the end.
    """
    (slope_B, query_B, query_AD), sums = terms
    n, first_drawn, end_use = uses
    total = np.float32(0.0)
    while n < first_drawn and order_N[n] < sums.example_P1[pool + 1]:
        use = order_N[n]
        slope, query = slope_B[use], query_B[use]
        total += slope
        for d in range(rows_XD.shape[1]):
            rows_XD[x, d] += slope * query_AD[query, d]
        if sums.in_batch:
            total += _add_sums(rows_XD, x, sums, pool, sums.drawn + use - sums.example_P1[pool])
        n += 1
    for m in range(first_drawn, end_use):
        total += _add_sums(rows_XD, x, sums, pool, order_N[m] - slope_B.shape[0])
    return n, total


@inner_kernel()
def _sum_items_of_parts(begin, end, thread, terms, item: Vectors, uses: Uses, scales: ScoreScales, out):  # type: ignore[no-untyped-def]
    (_, order_N, starts_A1), (count, rows_XD, out_AD) = uses, out
    sums, examples, norm_scale = terms[1], terms[0].slope_B.shape[0], np.float32(2.0) * scales.norm
    pools, first_leaf = sums.leaf_P.shape[0], thread * leaf_stride(count, out_AD.shape[1])
    for part in range(begin, end):
        first_row, end_row = _rows_of_part(starts_A1, part)
        for a in range(first_row, end_row):
            n, first_drawn, end_use = np.int64(starts_A1[a]), np.int64(starts_A1[a + 1]), np.int64(starts_A1[a + 1])
            while first_drawn > n and order_N[first_drawn - 1] >= examples:
                first_drawn -= 1
            # Drawn items have terms of every partition, others of those where they are the item of an example.
            is_drawn, leaves = first_drawn < end_use, np.int64(0)
            pool = 0 if is_drawn else _pool_of(sums, order_N[n])
            while pool < pools:
                leaf, total = sums.leaf_P[pool], np.float32(0.0)
                _fill_with_zeros(rows_XD, first_leaf + leaf)
                while pool < pools and sums.leaf_P[pool] == leaf:
                    n, more = _add_part(rows_XD, first_leaf + leaf, terms, pool, order_N, (n, first_drawn, end_use))
                    total += more
                    pool += 1
                    if not is_drawn:
                        pool = _pool_of(sums, order_N[n]) if n < first_drawn else pools
                _complete_leaf(rows_XD, first_leaf + leaf, scales.dot, norm_scale * total, item, a)
                leaves |= np.int64(1) << leaf
            copy_row(out_AD, a, rows_XD, add_leaves(rows_XD, first_leaf, leaves))


@njit(cache=True, error_model="numpy", nogil=True)
def sum_item_gradients(terms, item: Vectors, uses: Uses, scales: ScoreScales, count):  # type: ignore[no-untyped-def]
    """Return the gradients of the active items, from ``OwnTerms`` and ``PoolSums``, and their uses.

    ``count`` is the number of leaves.
    """
    out_AD = np.empty_like(item.rows_AD)
    out = count, leaf_rows(count, out_AD.shape[1]), out_AD
    for_chunks_by_thread(_sum_items_of_parts, _PARTS, 1, (terms, item, uses, scales, out))
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
