"""Move rows between active rows, tiles and pools of negatives, and sum gradients by active row, compiled.

Sums over the uses of an active row, and over the chunks of examples, run in a fixed order, whatever the number of
threads. Threads take active rows with about as many uses each.

Shapes: A active rows, B examples, C negatives of a pool, N uses, K chunks of examples, R rows of all chunks' sums, P
pools, D columns. Floats are float32.
"""

from __future__ import annotations

import numpy as np

from crossfade.kvstore.jit import inner_kernel, njit
from crossfade.kvstore.lanes import dot_lanes
from crossfade.kvstore.threads import chunk_size, for_chunks

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
    first = np.searchsorted(starts_A1[:rows], uses * part // _PARTS)
    return first, (np.searchsorted(starts_A1[:rows], uses * (part + 1) // _PARTS) if part + 1 < _PARTS else rows)


@inner_kernel()
def _sum_queries_of_parts(  # type: ignore[no-untyped-def]
    begin, end, product_BD, factor_B, slope_B, total_B, query_AD, item_AD, order_N, starts_A1, item_B,
    dot_scale, norm_scale, out_AD
):  # fmt: skip
    columns = query_AD.shape[1]
    for part in range(begin, end):
        first_row, end_row = _rows_of_part(starts_A1, part)
        for a in range(first_row, end_row):
            total = np.float32(0.0)
            for n in range(starts_A1[a], starts_A1[a + 1]):
                b = order_N[n]
                factor, slope, item = dot_scale * factor_B[b], dot_scale * slope_B[b], item_B[b]
                for d in range(columns):
                    out_AD[a, d] += factor * product_BD[b, d] + slope * item_AD[item, d]
                if total_B.shape[0]:
                    total += total_B[b]
            if total_B.shape[0]:
                total *= np.float32(2.0) * norm_scale
                for d in range(columns):
                    out_AD[a, d] -= total * query_AD[a, d]


@njit(cache=True, error_model="numpy", nogil=True)
def sum_query_gradients(  # type: ignore[no-untyped-def]
    product_BD, factor_B, slope_B, total_B, query_AD, item_AD, order_N, starts_A1, item_B, dot_scale, norm_scale
):
    """Return the gradients of the active queries.

    Args:
        product_BD: for each example the sum of the pool's vectors, weighted by derivatives over its factor.
        factor_B: the examples' factors.
        slope_B: derivatives by the score of the example's own item.
        total_B: sums of an example's derivatives by all its scores; empty: 0.
        query_AD: vectors of the active queries.
        item_AD: vectors of the active items.
        order_N: as in ``ActiveRows``, of queries.
        starts_A1: likewise.
        item_B: the active row of each example's item.
        dot_scale: factor of dot products in a score.
        norm_scale: factor of squared norms in a score.
    """
    out_AD = np.zeros_like(query_AD)
    arguments = (
        product_BD, factor_B, slope_B, total_B, query_AD, item_AD, order_N, starts_A1, item_B, dot_scale, norm_scale,
        out_AD
    )  # fmt: skip
    for_chunks(_sum_queries_of_parts, _PARTS, 1, arguments)
    return out_AD


@inner_kernel()
def _sum_items_of_parts(  # type: ignore[no-untyped-def]
    begin, end, sums_RD, slope_R, row_K, chunk_P1, example_P, drawn, in_batch, slope_B, query_AD, item_AD, order_N,
    starts_A1, query_B, dot_scale, norm_scale, out_AD
):  # fmt: skip
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
                    pool = np.searchsorted(example_P, use, side="right") - 1
                    place = drawn + use - example_P[pool]
                    first, last = chunk_P1[pool], (chunk_P1[pool + 1] if in_batch else chunk_P1[pool])
                for k in range(first, last):
                    row = row_K[k] + place
                    for d in range(columns):
                        out_AD[a, d] += sums_RD[row, d]
                    if norm_scale:
                        total += slope_R[row]
            total *= np.float32(2.0) * norm_scale
            for d in range(columns):
                out_AD[a, d] = dot_scale * out_AD[a, d] - total * item_AD[a, d]


@njit(cache=True, error_model="numpy", nogil=True)
def sum_item_gradients(  # type: ignore[no-untyped-def]
    sums_RD, slope_R, chunks, drawn, in_batch, slope_B, query_AD, item_AD, order_N, starts_A1, query_B,
    dot_scale, norm_scale
):  # fmt: skip
    """Return the gradients of the active items.

    Args:
        sums_RD: for each chunk and each negative of its pool, the sum of queries' vectors, weighted by derivatives.
        slope_R: the sums of these derivatives; not used if ``norm_scale`` is 0.
        chunks: (first rows of the chunks K, first chunks of the pools P + 1, first examples of the pools P).
        drawn: number of drawn negatives, which come first in each pool.
        in_batch: whether the items of a pool's examples follow.
        slope_B: derivatives by the score of the example's own item.
        query_AD: vectors of the active queries.
        item_AD: vectors of the active items.
        order_N: as in ``ActiveRows``, of items.
        starts_A1: likewise.
        query_B: the active row of each example's query.
        dot_scale: factor of dot products in a score.
        norm_scale: factor of squared norms in a score.
    """
    out_AD = np.zeros_like(item_AD)
    row_K, chunk_P1, example_P = chunks
    arguments = (
        sums_RD, slope_R, row_K, chunk_P1, example_P, drawn, in_batch, slope_B, query_AD, item_AD, order_N, starts_A1,
        query_B, dot_scale, norm_scale, out_AD
    )  # fmt: skip
    for_chunks(_sum_items_of_parts, _PARTS, 1, arguments)
    return out_AD


@inner_kernel()
def _sum_rows_of_chunks(begin, end, sums_KAD, slope_KA, item_AD, dot_scale, norm_scale, out_AD):  # type: ignore[no-untyped-def]
    for a in range(begin, end):
        total = np.float32(0.0)
        for d in range(item_AD.shape[1]):
            out_AD[a, d] = sums_KAD[0, a, d]
        for k in range(1, sums_KAD.shape[0]):
            for d in range(item_AD.shape[1]):
                out_AD[a, d] += sums_KAD[k, a, d]
        if norm_scale:
            for k in range(sums_KAD.shape[0]):
                total += slope_KA[k, a]
        total *= np.float32(2.0) * norm_scale
        for d in range(item_AD.shape[1]):
            out_AD[a, d] = dot_scale * out_AD[a, d] - total * item_AD[a, d]


@njit(cache=True, error_model="numpy", nogil=True)
def sum_chunks(sums_KAD, slope_KA, item_AD, dot_scale, norm_scale):  # type: ignore[no-untyped-def]
    """Return the gradients of items that are the pool of all chunks, in the order of their rows."""
    out_AD = np.empty_like(item_AD)
    size = chunk_size(item_AD.shape[0], item_AD.size)
    arguments = (sums_KAD, slope_KA, item_AD, dot_scale, norm_scale, out_AD)
    for_chunks(_sum_rows_of_chunks, item_AD.shape[0], size, arguments)
    return out_AD


@njit(cache=True, error_model="numpy", nogil=True)
def scale_rows(rows_AD, factor_A, scale):  # type: ignore[no-untyped-def]
    """Multiply each row by its factor and ``scale``, in place."""
    for a in range(rows_AD.shape[0]):
        factor = scale * factor_A[a]
        for d in range(rows_AD.shape[1]):
            rows_AD[a, d] *= factor
