"""Gradients of examples that each have negatives of their own, by row, and updates of the rows in place.

    by_query_AD, loss_B, slope_N = query_gradients(...)             # of rows that were pulled
    by_item_AD = item_gradients(..., slope_N)

    old_AD, loss_B, slope_N, divergent_rows = update_queries(...)   # of tables, whose rows are updated
    divergent_rows = update_items(..., old_AD, slope_N)

Examples are ordered by query. They are visited query by query, then the uses of items item by item. So a row's gradient
is summed in one place, in the order of its uses, without an array that has a gradient for each use, and in the second
form a table's rows are read and written once. Both forms call the same functions, and ``update_row`` is what a store
applies to gradients: they give the same bits. Updates of queries use items as they were before the step, and precede
those of items, which use the queries of ``old_AD``.

Threads claim chunks of rows. A row's result depends on no other row's, so it does not matter which thread computes it.
Each thread prefetches rows of its own chunk only: a row that another thread also requests would move between the caches
of two cores.

Shapes: B examples, C negatives of an example, N uses of items (those of the examples, then the negatives of each in
turn), A active rows, R rows of items: a table's or, of rows that were pulled, the active ones; X rows of an array that
gradients are written to; D columns.
"""

from __future__ import annotations

import numpy as np

from crossfade.kvstore.cache_prefetch import AHEAD, prefetch_row
from crossfade.kvstore.elements import get, put
from crossfade.kvstore.jit import allocating_kernel, inner_kernel, njit
from crossfade.kvstore.optimizers import prefetch_state, update_row
from crossfade.kvstore.row_kernels import add_scaled, copy_row, dot, set_scaled
from crossfade.kvstore.threads import balanced_chunk_size, for_chunks
from crossfade.trainer.model.loss_kernels import BPR, example_loss, hard_negatives_loss
from crossfade.trainer.model.loss_math import log_sigmoid_loss

_ZERO = np.float32(0.0)


@allocating_kernel()
def _loss(code, score, scores_C, parts_C, item, negatives_C, weight, params, num_hard):  # type: ignore[no-untyped-def]
    """Return the loss of an example and its derivative by ``score``; see ``example_loss``."""
    if num_hard is not None:
        return hard_negatives_loss(code, score, scores_C, parts_C, item, negatives_C, weight, params, num_hard)
    return example_loss(code, score, scores_C, parts_C, item, negatives_C, weight, params)


@inner_kernel()
def _add_gradient(out_XD, x, slope, other_AD, a, own_RD, r, dot_scale, twice):  # type: ignore[no-untyped-def]
    """Add to ``out_XD[x]`` the gradient of a score by ``own_RD[r]``, one of its two vectors, times ``slope``.

    With v that vector and w the other, the score is dot_scale·v·w − norm_scale·(|v|² + |w|²); ``twice`` is
    2·norm_scale.
    """
    add_scaled(out_XD, x, slope * dot_scale, other_AD, a)
    if twice:
        add_scaled(out_XD, x, -slope * twice, own_RD, r)


@inner_kernel()
def _set_gradient(out_XD, x, slope, other_AD, a, own_RD, r, dot_scale, twice):  # type: ignore[no-untyped-def]
    """Set ``out_XD[x]`` to what ``_add_gradient`` adds."""
    set_scaled(out_XD, x, slope * dot_scale, other_AD, a)
    if twice:
        add_scaled(out_XD, x, -slope * twice, own_RD, r)


@inner_kernel()
def _score(query_AD, a, query_square, item_RD, r, dot_scale, norm_scale):  # type: ignore[no-untyped-def]
    score = dot_scale * dot(query_AD, a, item_RD, r)
    if norm_scale:
        score -= norm_scale * (query_square + dot(item_RD, r, item_RD, r))
    return score


@inner_kernel()
def _prefetch_items(item_RD, row_N, b, examples, count):  # type: ignore[no-untyped-def]
    """Prefetch the items of example ``b``."""
    prefetch_row(item_RD, get(row_N, b))
    for c in range(examples + b * count, examples + (b + 1) * count):
        prefetch_row(item_RD, get(row_N, c))


@inner_kernel()
def _query_gradient(  # type: ignore[no-untyped-def]
    out_XD, x, query_AD, a, item_RD, starts_A1, end, row_N, weight_B, log_q_N, loss_B, slope_N, parts_C, counted_C,
    code, params, num_hard, dot_scale, norm_scale
):  # fmt: skip
    """Compute losses and slopes of the examples of query ``a``, and the gradient of its row into ``out_XD[x]``.

    ``end`` is the end of the examples whose items may be prefetched.
    """
    examples, count = weight_B.shape[0], parts_C.shape[0]
    twice = np.float32(2.0) * norm_scale
    query_square = dot(query_AD, a, query_AD, a) if norm_scale else _ZERO
    for b in range(get(starts_A1, a), get(starts_A1, a + 1)):
        if b + AHEAD < end:
            _prefetch_items(item_RD, row_N, b + AHEAD, examples, count)
        first = examples + b * count
        score = _score(query_AD, a, query_square, item_RD, np.int64(get(row_N, b)), dot_scale, norm_scale)
        for c in range(first, first + count):
            put(slope_N, c, _score(query_AD, a, query_square, item_RD, np.int64(get(row_N, c)), dot_scale, norm_scale))
        if log_q_N.shape[0]:
            for c in range(first, first + count):
                put(slope_N, c, get(slope_N, c) - get(log_q_N, c))
        if code == BPR and count == 1 and get(weight_B, b) >= _ZERO:
            loss, pull = log_sigmoid_loss(score - get(slope_N, first))
            weight = get(weight_B, b) if get(row_N, first) != get(row_N, b) else _ZERO
            put(loss_B, b, weight * loss)
            put(slope_N, b, -weight * pull)
            put(slope_N, first, weight * pull)
        else:
            negatives = slice(first, first + count)
            for c in range(count):
                # Rows have 32 or 64 bits. That a loss finds 0 or 1 instead saves compiling it for both.
                put(counted_C, c, np.int32(get(row_N, first + c) != get(row_N, b)))
            loss, slope = _loss(
                code, score, slope_N[negatives], parts_C, np.int32(0), counted_C, get(weight_B, b), params, num_hard
            )
            put(loss_B, b, loss)
            put(slope_N, b, slope)
        if b == get(starts_A1, a):
            _set_gradient(out_XD, x, get(slope_N, b), item_RD, np.int64(get(row_N, b)), query_AD, a, dot_scale, twice)
        else:
            _add_gradient(out_XD, x, get(slope_N, b), item_RD, np.int64(get(row_N, b)), query_AD, a, dot_scale, twice)
        for c in range(first, first + count):
            _add_gradient(out_XD, x, get(slope_N, c), item_RD, np.int64(get(row_N, c)), query_AD, a, dot_scale, twice)


@inner_kernel()
def _example_of(use, examples, count):  # type: ignore[no-untyped-def]
    """Return the example of a use; division of 32 bits takes half the time of 64."""
    if use < examples:
        return np.int64(use)
    return np.int64(use - examples) if count == 1 else np.int64(np.uint32(use - examples) // np.uint32(count))


@inner_kernel()
def _item_gradient(  # type: ignore[no-untyped-def]
    out_XD, x, item_RD, r, query_AD, order_N, first, last, end, index_B, slope_N, count, dot_scale, norm_scale
):  # fmt: skip
    """Compute the gradient of item ``r``, which has the uses ``order_N[first:last]``, into ``out_XD[x]``.

    ``end`` is the end of the uses whose queries may be prefetched.
    """
    examples = index_B.shape[0]
    twice = np.float32(2.0) * norm_scale
    for n in range(first, last):
        if n + AHEAD < end:
            _prefetch_use(query_AD, get(order_N, n + AHEAD), index_B, slope_N, count)
        use = get(order_N, n)
        a = np.int64(get(index_B, _example_of(use, examples, count)))
        if n == first:
            _set_gradient(out_XD, x, get(slope_N, use), query_AD, a, item_RD, r, dot_scale, twice)
        else:
            _add_gradient(out_XD, x, get(slope_N, use), query_AD, a, item_RD, r, dot_scale, twice)


@inner_kernel()
def _prefetch_use(query_AD, use, index_B, slope_N, count):  # type: ignore[no-untyped-def]
    """Prefetch the query and the slope of a use."""
    prefetch_row(query_AD, index_B[_example_of(use, index_B.shape[0], count)])
    prefetch_row(slope_N, use)


@allocating_kernel()
def _query_gradients_of_chunk(  # type: ignore[no-untyped-def]
    begin, end, query_AD, item_AD, starts_A1, index_N, weight_B, log_q_N, count,
    code, params, num_hard, dot_scale, norm_scale, gradient_AD, loss_B, slope_N
):  # fmt: skip
    parts_C, counted_C = np.empty(count, np.float32), np.empty(count, np.int32)
    for a in range(begin, end):
        _query_gradient(
            gradient_AD, a, query_AD, a, item_AD, starts_A1, get(starts_A1, end), index_N, weight_B, log_q_N,
            loss_B, slope_N, parts_C, counted_C, code, params, num_hard, dot_scale, norm_scale
        )  # fmt: skip


@njit(cache=True, error_model="numpy", nogil=True)
def query_gradients(  # type: ignore[no-untyped-def]
    query_AD, item_AD, starts_A1, index_N, weight_B, log_q_N, count,
    code, params, num_hard, dot_scale, norm_scale
):  # fmt: skip
    """Return the gradients of active queries, float32 (A, D), the losses (B,), and derivatives by score (N,).

    Args:
        query_AD: vectors of the active queries.
        item_AD: vectors of the active items.
        starts_A1: the examples of query a are ``starts_A1[a]`` to ``starts_A1[a + 1]``.
        index_N: the active item of each use.
        weight_B: weights of the examples.
        log_q_N: subtracted from the scores of negatives, by use (logQ correction); empty: nothing.
        count: negatives of an example, C.
        code: the loss.
        params: its constants.
        num_hard: how many negatives count; None: all, which compiles to simpler code.
        dot_scale: factor of dot products in a score.
        norm_scale: factor of squared norms in a score.
    """
    gradient_AD = np.empty_like(query_AD)
    loss_B, slope_N = np.empty(weight_B.shape[0], np.float32), np.empty(index_N.shape[0], np.float32)
    arguments = (
        query_AD, item_AD, starts_A1, index_N, weight_B, log_q_N, count, code, params, num_hard, dot_scale, norm_scale,
        gradient_AD, loss_B, slope_N
    )  # fmt: skip
    for_chunks(_query_gradients_of_chunk, query_AD.shape[0], balanced_chunk_size(query_AD.shape[0]), arguments)
    return gradient_AD, loss_B, slope_N


@inner_kernel()
def _item_gradients_of_chunk(  # type: ignore[no-untyped-def]
    begin, end, query_AD, item_AD, index_B, order_N, starts_A1, slope_N, count, dot_scale, norm_scale, gradient_AD
):
    for a in range(begin, end):
        _item_gradient(
            gradient_AD, a, item_AD, a, query_AD, order_N, get(starts_A1, a), get(starts_A1, a + 1),
            get(starts_A1, end), index_B, slope_N, count, dot_scale, norm_scale
        )  # fmt: skip


@njit(cache=True, error_model="numpy", nogil=True)
def item_gradients(  # type: ignore[no-untyped-def]
    query_AD, item_AD, index_B, order_N, starts_A1, slope_N, count, dot_scale, norm_scale
):
    """Return the gradients of active items, float32 (A, D).

    Args:
        query_AD: vectors of the active queries.
        item_AD: vectors of the active items.
        index_B: the active query of each example.
        order_N: the uses, ordered by item.
        starts_A1: the uses of item a are ``order_N[starts_A1[a]:starts_A1[a + 1]]``.
        slope_N: derivatives by score, from ``query_gradients``.
        count: negatives of an example.
        dot_scale: factor of dot products in a score.
        norm_scale: factor of squared norms in a score.
    """
    gradient_AD = np.empty_like(item_AD)
    arguments = (
        query_AD, item_AD, index_B, order_N, starts_A1, slope_N, count, dot_scale, norm_scale, gradient_AD
    )  # fmt: skip
    for_chunks(_item_gradients_of_chunk, item_AD.shape[0], balanced_chunk_size(item_AD.shape[0]), arguments)
    return gradient_AD


@inner_kernel(forceinline=False)
def _update_queries(  # type: ignore[no-untyped-def]
    begin, end, query_RD, rows_A, item_RD, starts_A1, uses_N, weight_B, log_q_N, old_AD, loss_B, slope_N,
    gradient_1D, parts_C, counted_C, code, params, num_hard, dot_scale, norm_scale,
    sums_ND, sums_N, exp_avg_ND, exp_avg_sq_ND, step_N, max_norm, rule
):  # fmt: skip
    divergent_rows, examples, count = 0, weight_B.shape[0], parts_C.shape[0]
    for a in range(begin, min(begin + AHEAD, end)):
        prefetch_row(query_RD, get(rows_A, a))
    for b in range(get(starts_A1, begin), min(get(starts_A1, begin) + AHEAD, get(starts_A1, end))):
        _prefetch_items(item_RD, uses_N, b, examples, count)
    for a in range(begin, end):
        if a + AHEAD < end:
            prefetch_row(query_RD, get(rows_A, a + AHEAD))
            prefetch_state(get(rows_A, a + AHEAD), sums_ND, sums_N, exp_avg_ND, exp_avg_sq_ND)
        copy_row(old_AD, a, query_RD, get(rows_A, a))
        _query_gradient(
            gradient_1D, np.int64(0), old_AD, a, item_RD, starts_A1, get(starts_A1, end), uses_N, weight_B, log_q_N,
            loss_B, slope_N, parts_C, counted_C, code, params, num_hard, dot_scale, norm_scale
        )  # fmt: skip
        divergent_rows += update_row(
            query_RD, get(rows_A, a), gradient_1D, 0, sums_ND, sums_N, exp_avg_ND, exp_avg_sq_ND, step_N, max_norm, rule
        )
    return divergent_rows


@allocating_kernel()
def _update_queries_of_chunk(  # type: ignore[no-untyped-def]
    begin, end, query_RD, rows_A, item_RD, starts_A1, uses_N, weight_B, log_q_N, old_AD, loss_B, slope_N, count,
    code, params, num_hard, dot_scale, norm_scale,
    sums_ND, sums_N, exp_avg_ND, exp_avg_sq_ND, step_N, max_norm, rule
):  # fmt: skip
    gradient_1D = np.empty((1, query_RD.shape[1]), np.float32)
    parts_C, counted_C = np.empty(count, np.float32), np.empty(count, np.int32)
    return _update_queries(
        begin, end, query_RD, rows_A, item_RD, starts_A1, uses_N, weight_B, log_q_N, old_AD, loss_B, slope_N,
        gradient_1D, parts_C, counted_C, code, params, num_hard, dot_scale, norm_scale,
        sums_ND, sums_N, exp_avg_ND, exp_avg_sq_ND, step_N, max_norm, rule
    )  # fmt: skip


@njit(cache=True, error_model="numpy", nogil=True)
def update_queries(  # type: ignore[no-untyped-def]
    old_AD, query_RD, rows_A, item_RD, starts_A1, uses_N, weight_B, log_q_N, count,
    code, params, num_hard, dot_scale, norm_scale,
    optimizer
):  # fmt: skip
    """Update the active queries, ``rows_A`` of ``query_RD``, and copy them to ``old_AD`` as they were before.

    ``item_RD`` is the table of items, and ``uses_N`` has the row of each use of an item. Other arguments are as in
    ``query_gradients``, then ``LazyOptimizer.kernel_arguments()``. Returns the losses (B,), derivatives by score (N,),
    and how many rows have diverged.
    """
    loss_B, slope_N = np.empty(weight_B.shape[0], np.float32), np.empty(uses_N.shape[0], np.float32)
    arguments = (
        query_RD, rows_A, item_RD, starts_A1, uses_N, weight_B, log_q_N, old_AD, loss_B, slope_N, count,
        code, params, num_hard, dot_scale, norm_scale, *optimizer
    )  # fmt: skip
    size = balanced_chunk_size(rows_A.shape[0])
    divergent_rows = for_chunks(_update_queries_of_chunk, rows_A.shape[0], size, arguments)
    return loss_B, slope_N, divergent_rows


@inner_kernel(forceinline=False)
def _update_items(  # type: ignore[no-untyped-def]
    begin, end, item_RD, rows_A, old_AD, index_B, order_N, starts_A1, slope_N, gradient_1D, count,
    dot_scale, norm_scale,
    sums_ND, sums_N, exp_avg_ND, exp_avg_sq_ND, step_N, max_norm, rule
):  # fmt: skip
    divergent_rows = 0
    for a in range(begin, min(begin + AHEAD, end)):
        prefetch_row(item_RD, get(rows_A, a))
    for n in range(get(starts_A1, begin), min(get(starts_A1, begin) + AHEAD, get(starts_A1, end))):
        _prefetch_use(old_AD, get(order_N, n), index_B, slope_N, count)
    for a in range(begin, end):
        if a + AHEAD < end:
            prefetch_row(item_RD, get(rows_A, a + AHEAD))
            prefetch_state(get(rows_A, a + AHEAD), sums_ND, sums_N, exp_avg_ND, exp_avg_sq_ND)
        _item_gradient(
            gradient_1D, np.int64(0), item_RD, get(rows_A, a), old_AD, order_N, get(starts_A1, a),
            get(starts_A1, a + 1), get(starts_A1, end), index_B, slope_N, count, dot_scale, norm_scale
        )  # fmt: skip
        divergent_rows += update_row(
            item_RD, get(rows_A, a), gradient_1D, 0, sums_ND, sums_N, exp_avg_ND, exp_avg_sq_ND, step_N, max_norm, rule
        )
    return divergent_rows


@allocating_kernel()
def _update_items_of_chunk(  # type: ignore[no-untyped-def]
    begin, end, item_RD, rows_A, old_AD, index_B, order_N, starts_A1, slope_N, count, dot_scale, norm_scale,
    sums_ND, sums_N, exp_avg_ND, exp_avg_sq_ND, step_N, max_norm, rule
):  # fmt: skip
    gradient_1D = np.empty((1, item_RD.shape[1]), np.float32)
    return _update_items(
        begin, end, item_RD, rows_A, old_AD, index_B, order_N, starts_A1, slope_N, gradient_1D, count,
        dot_scale, norm_scale, sums_ND, sums_N, exp_avg_ND, exp_avg_sq_ND, step_N, max_norm, rule
    )  # fmt: skip


@njit(cache=True, error_model="numpy", nogil=True)
def update_items(  # type: ignore[no-untyped-def]
    item_RD, rows_A, old_AD, index_B, order_N, starts_A1, slope_N, count, dot_scale, norm_scale,
    optimizer
):  # fmt: skip
    """Update the active items in their table; return how many rows have diverged.

    ``old_AD`` and ``slope_N`` are from ``update_queries``; other arguments are as in ``item_gradients``, then
    ``LazyOptimizer.kernel_arguments()``.
    """
    arguments = (
        item_RD, rows_A, old_AD, index_B, order_N, starts_A1, slope_N, count, dot_scale, norm_scale, *optimizer
    )  # fmt: skip
    return for_chunks(_update_items_of_chunk, rows_A.shape[0], balanced_chunk_size(rows_A.shape[0]), arguments)
