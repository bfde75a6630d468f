"""Gradients of examples that each have negatives of their own, by row, and updates of the rows in place.

    by_query_AD, loss_B, slope_N = query_gradients(query, item, examples, objective)            # of pulled Vectors
    by_item_AD = item_gradients(item, ItemUses(query_AD, ..., slope_N), scales)

    loss_B, slope_N, divergent_rows = update_queries(tables, examples, objective, optimizer)    # of rows of tables
    divergent_rows = update_items(item_RD, rows_A, ItemUses(old_AD, ..., slope_N), scales, optimizer)

Examples are ordered by query. They are visited query by query, then the uses of items item by item. So a row's gradient
is summed in one place, without an array that has a gradient for each use, and in the second form a table's rows are
read and written once. The uses in a partition are summed in their order, and partitions as a tree
(``kvstore/tree_sums.py``), so sums do not depend on how workers divide the partitions. Both forms call the same
functions, and ``update_row`` is what a store applies to gradients: they give the same bits. Updates of queries use
items as they were before the step, and precede those of items, which use the queries of ``old_AD``.

Threads claim chunks of rows. A row's result depends on no other row's, so it does not matter which thread computes it.
Each thread prefetches rows of its own chunk only: a row that another thread also requests would move between the caches
of two cores.

Shapes: B examples, C negatives of an example, N uses of items (those of the examples, then the negatives of each in
turn), A active rows, R rows of items: a table's or, of rows that were pulled, the active ones; X rows that leaves are
summed in; K threads; D columns.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.kvstore.cache_prefetch import AHEAD, prefetch_row
from crossfade.kvstore.elements import get, put
from crossfade.kvstore.jit import allocating_kernel, inner_kernel, njit
from crossfade.kvstore.optimizers import update_row
from crossfade.kvstore.row_kernels import add_scaled, copy_row, dot, set_scaled
from crossfade.kvstore.threads import balanced_chunk_size, for_chunks_by_thread, thread_count
from crossfade.kvstore.tree_sums import add_leaves, leaf_rows, leaf_stride, lowest
from crossfade.trainer.model.kernel_arguments import Vectors
from crossfade.trainer.model.loss_kernels import BPR, example_loss
from crossfade.trainer.model.loss_math import log_sigmoid_loss
from crossfade.trainer.model.normalization_kernels import row_through_normalize

_ZERO, _TWO = np.float32(0.0), np.float32(2.0)
_GAP = 32
"""Values at least between the memory of threads, so that no two threads write to the same cache line."""


class Examples(NamedTuple):
    """Examples, ordered by query, and their negatives.

    Attributes:
        starts_A1: the examples of query a are ``starts_A1[a]`` to ``starts_A1[a + 1]``.
        row_N: the row of each use of an item.
        weight_B: weights of the examples.
        log_q_N: subtracted from the scores of negatives, by use (logQ correction); empty: nothing.
        negatives: their number for each example, C.
        leaf_B: as in ``Leaves``.
        leaves: their number.
    """

    starts_A1: IntArray
    row_N: IntArray
    weight_B: FloatArray
    log_q_N: FloatArray
    negatives: int
    leaf_B: NDArray[np.uint8]
    leaves: int


class ItemUses(NamedTuple):
    """Uses of items, and what the gradient of each is computed from.

    Attributes:
        query_AD: vectors of the active queries, as they were before a step.
        index_B: the active query of each example.
        order_N: the uses, ordered by item.
        starts_A1: the uses of item a are ``order_N[starts_A1[a]:starts_A1[a + 1]]``.
        slope_N: derivatives by score, from a pass over the queries.
        negatives: their number for each example.
        leaf_B: as in ``Leaves``.
        leaves: their number.
    """

    query_AD: FloatArray
    index_B: IntArray
    order_N: IntArray
    starts_A1: IntArray
    slope_N: FloatArray
    negatives: int
    leaf_B: NDArray[np.uint8]
    leaves: int


class QueryTables(NamedTuple):
    """The tables of a step, and ``old_AD``, which the active queries are copied to as they were before it.

    Attributes:
        query_RD: the table of queries.
        rows_A: the active queries.
        item_RD: the table of items.
        old_AD: filled.
    """

    query_RD: FloatArray
    rows_A: IntArray
    item_RD: FloatArray
    old_AD: FloatArray


class _Results(NamedTuple):
    """What a pass over queries fills beside their gradients: losses of examples, and derivatives by score."""

    loss_B: FloatArray
    slope_N: FloatArray


@allocating_kernel()
def _results(examples):  # type: ignore[no-untyped-def]
    return _Results(np.empty(examples.weight_B.shape[0], np.float32), np.empty(examples.row_N.shape[0], np.float32))


class _Scratch(NamedTuple):
    """Memory of each thread, by its number: parts of an example's loss, and which of its negatives count, 1 or 0."""

    parts_KC: FloatArray
    counted_KC: IntArray


@allocating_kernel()
def _scratch(count):  # type: ignore[no-untyped-def]
    shape = thread_count(), count + _GAP
    return _Scratch(np.empty(shape, np.float32), np.empty(shape, np.int32))


@inner_kernel()
def _of_thread(scratch, thread, count):  # type: ignore[no-untyped-def]
    return scratch.parts_KC[thread, :count], scratch.counted_KC[thread, :count]


class _Sums(NamedTuple):
    """Memory in which each thread sums the leaves of a gradient (``kvstore/tree_sums.py``), and norms.

    Attributes:
        rows_XD: the leaves of a thread, ``stride`` rows after those of the one before.
        stride: rows of ``rows_XD`` for each thread.
        norm_A: as in ``Vectors``.
    """

    rows_XD: FloatArray
    stride: int
    norm_A: FloatArray


@allocating_kernel()
def _sums(leaves, norm_A, dim):  # type: ignore[no-untyped-def]
    return _Sums(leaf_rows(leaves, dim), leaf_stride(leaves, dim), norm_A)


@inner_kernel(forceinline=False)
def _through_normalize(sums, x, leaves, own_RD, r, a):  # type: ignore[no-untyped-def]
    """Pass the leaves of the gradient by the unit row ``own_RD[r]``, the active row ``a``, back through its norm."""
    while leaves:
        row_through_normalize(sums.rows_XD, x + lowest(leaves), own_RD, r, get(sums.norm_A, a))
        leaves &= leaves - 1


@inner_kernel()
def _add_leaves(sums, x, leaves, own_RD, r, a):  # type: ignore[no-untyped-def]
    """Return the row of the sum of all leaves, the gradient by ``own_RD[r]``, the active row ``a``."""
    if sums.norm_A.shape[0]:
        _through_normalize(sums, x, leaves, own_RD, r, a)
    return add_leaves(sums.rows_XD, x, leaves)


@inner_kernel()
def _add_gradient(out_XD, x, slope, other_AD, a, own_RD, r, scales):  # type: ignore[no-untyped-def]
    """Add to ``out_XD[x]`` the gradient of a score by ``own_RD[r]``, one of its two vectors, times ``slope``.

    With v that vector and w the other, the score is scales.dot·v·w − scales.norm·(|v|² + |w|²).
    """
    add_scaled(out_XD, x, slope * scales.dot, other_AD, a)
    if scales.norm:
        add_scaled(out_XD, x, -slope * (_TWO * scales.norm), own_RD, r)


@inner_kernel()
def _set_gradient(out_XD, x, slope, other_AD, a, own_RD, r, scales):  # type: ignore[no-untyped-def]
    """Set ``out_XD[x]`` to what ``_add_gradient`` adds."""
    set_scaled(out_XD, x, slope * scales.dot, other_AD, a)
    if scales.norm:
        add_scaled(out_XD, x, -slope * (_TWO * scales.norm), own_RD, r)


@inner_kernel()
def _score(query_AD, a, query_square, item_RD, r, scales):  # type: ignore[no-untyped-def]
    score = scales.dot * dot(query_AD, a, item_RD, r)
    if scales.norm:
        score -= scales.norm * (query_square + dot(item_RD, r, item_RD, r))
    return score


@inner_kernel()
def _prefetch_items(item_RD, row_N, b, examples, count):  # type: ignore[no-untyped-def]
    """Prefetch the items of example ``b``."""
    prefetch_row(item_RD, get(row_N, b))
    for c in range(examples + b * count, examples + (b + 1) * count):
        prefetch_row(item_RD, get(row_N, c))


@inner_kernel()
def _example_slopes(results, query_AD, a, query_square, item_RD, examples, b, inputs):  # type: ignore[no-untyped-def]
    """Compute the loss of example ``b`` of query ``a``, and its derivatives by score."""
    objective, (parts_C, counted_C), _ = inputs
    scales, (loss_B, slope_N) = objective.scales, results
    _, row_N, weight_B, log_q_N, count, _, _ = examples
    first = weight_B.shape[0] + b * count
    score = _score(query_AD, a, query_square, item_RD, np.int64(get(row_N, b)), scales)
    for c in range(first, first + count):
        put(slope_N, c, _score(query_AD, a, query_square, item_RD, np.int64(get(row_N, c)), scales))
    weight = get(weight_B, b)
    if log_q_N.shape[0]:
        for c in range(first, first + count):
            put(slope_N, c, get(slope_N, c) - get(log_q_N, c))
    if objective.code == BPR and count == 1 and weight >= _ZERO:
        loss, pull = log_sigmoid_loss(score - get(slope_N, first))
        weight = weight if get(row_N, first) != get(row_N, b) else _ZERO
        put(loss_B, b, weight * loss)
        put(slope_N, b, -weight * pull)
        put(slope_N, first, weight * pull)
    else:
        scores_C = slope_N[first : first + count]
        for c in range(count):
            # Rows have 32 or 64 bits. That a loss finds 0 or 1 instead saves compiling it for both.
            put(counted_C, c, np.int32(get(row_N, first + c) != get(row_N, b)))
        loss, slope = example_loss(objective, score, scores_C, parts_C, np.int32(0), counted_C, weight)
        put(loss_B, b, loss)
        put(slope_N, b, slope)


@inner_kernel()
def _query_gradient(results, sums, x, query_AD, a, item_RD, examples, inputs):  # type: ignore[no-untyped-def]
    """Compute losses and slopes of the examples of query ``a``, and its row's gradient.

    Its leaves are those from row ``x`` of ``sums`` on. Returns the row of the gradient.
    """
    objective, _, end = inputs
    scales, rows_XD, slope_N, leaves = objective.scales, sums.rows_XD, results.slope_N, np.int64(0)
    starts_A1, row_N, count = examples.starts_A1, examples.row_N, examples.negatives
    query_square = dot(query_AD, a, query_AD, a) if scales.norm else _ZERO
    for b in range(get(starts_A1, a), get(starts_A1, a + 1)):
        if b + AHEAD < end:
            _prefetch_items(item_RD, row_N, b + AHEAD, examples.weight_B.shape[0], count)
        _example_slopes(results, query_AD, a, query_square, item_RD, examples, b, inputs)
        leaf = np.int64(get(examples.leaf_B, b))
        if (leaves >> leaf) & 1:
            _add_gradient(rows_XD, x + leaf, get(slope_N, b), item_RD, np.int64(get(row_N, b)), query_AD, a, scales)
        else:
            _set_gradient(rows_XD, x + leaf, get(slope_N, b), item_RD, np.int64(get(row_N, b)), query_AD, a, scales)
        leaves |= np.int64(1) << leaf
        first = examples.weight_B.shape[0] + b * count
        for c in range(first, first + count):
            _add_gradient(rows_XD, x + leaf, get(slope_N, c), item_RD, np.int64(get(row_N, c)), query_AD, a, scales)
    return _add_leaves(sums, x, leaves, query_AD, a, a)


@inner_kernel()
def _example_of(use, examples, count):  # type: ignore[no-untyped-def]
    """Return the example of a use; division of 32 bits takes half the time of 64."""
    if use < examples:
        return np.int64(use)
    return np.int64(use - examples) if count == 1 else np.int64(np.uint32(use - examples) // np.uint32(count))


@inner_kernel()
def _item_gradient(sums, x, item_RD, r, uses, a, end, scales):  # type: ignore[no-untyped-def]
    """Compute the gradient of item ``r``, the active one ``a``; its leaves are those from row ``x`` of ``sums`` on.

    Returns the row of the gradient.

    ``end`` is the end of the active items whose uses' queries may be prefetched.
    """
    rows_XD, leaves = sums.rows_XD, np.int64(0)
    query_AD, index_B, order_N, starts_A1, slope_N, count, leaf_B, _ = uses
    last = get(starts_A1, end)
    for n in range(get(starts_A1, a), get(starts_A1, a + 1)):
        if n + AHEAD < last:
            _prefetch_use(uses, n + AHEAD)
        use = get(order_N, n)
        b = _example_of(use, index_B.shape[0], count)
        q, leaf = np.int64(get(index_B, b)), np.int64(get(leaf_B, b))
        if (leaves >> leaf) & 1:
            _add_gradient(rows_XD, x + leaf, get(slope_N, use), query_AD, q, item_RD, r, scales)
        else:
            _set_gradient(rows_XD, x + leaf, get(slope_N, use), query_AD, q, item_RD, r, scales)
        leaves |= np.int64(1) << leaf
    return _add_leaves(sums, x, leaves, item_RD, r, a)


@inner_kernel()
def _prefetch_use(uses, n):  # type: ignore[no-untyped-def]
    """Prefetch the query and the slope of the use at place ``n``."""
    use = get(uses.order_N, n)
    prefetch_row(uses.query_AD, uses.index_B[_example_of(use, uses.index_B.shape[0], uses.negatives)])
    prefetch_row(uses.slope_N, use)


@inner_kernel()
def _query_gradients(begin, end, thread, vectors, examples, objective, results, memory):  # type: ignore[no-untyped-def]
    (query_AD, item_AD), (gradient_AD, of_examples), (scratch, sums) = vectors, results, memory
    x = thread * sums.stride
    inputs = objective, _of_thread(scratch, thread, examples.negatives), get(examples.starts_A1, end)
    for a in range(begin, end):
        root = _query_gradient(of_examples, sums, x, query_AD, a, item_AD, examples, inputs)
        copy_row(gradient_AD, a, sums.rows_XD, root)


@njit(cache=True, error_model="numpy", nogil=True)
def query_gradients(query: Vectors, item: Vectors, examples, objective):  # type: ignore[no-untyped-def]
    """Return the gradients of active queries, float32 (A, D), the losses (B,), and derivatives by score (N,).

    Args:
        query: ``Vectors`` of the active queries.
        item: those of the active items.
        examples: the ``Examples``, whose rows of items are active ones.
        objective: the ``Objective``.
    """
    results, gradient_AD = _results(examples), np.empty_like(query.rows_AD)
    rows, dim = query.rows_AD.shape
    size = balanced_chunk_size(rows)
    memory = _scratch(examples.negatives), _sums(examples.leaves, query.norm_A, dim)
    arguments = ((query.rows_AD, item.rows_AD), examples, objective, (gradient_AD, results), memory)
    for_chunks_by_thread(_query_gradients, rows, size, arguments)
    return gradient_AD, results.loss_B, results.slope_N


@inner_kernel()
def _item_gradients_of_chunk(begin, end, thread, item_AD, uses, scales, gradient_AD, sums):  # type: ignore[no-untyped-def]
    x = thread * sums.stride
    for a in range(begin, end):
        root = _item_gradient(sums, x, item_AD, a, uses, a, end, scales)
        copy_row(gradient_AD, a, sums.rows_XD, root)


@njit(cache=True, error_model="numpy", nogil=True)
def item_gradients(item: Vectors, uses, scales):  # type: ignore[no-untyped-def]
    """Return the gradients of active items, float32 (A, D), from their ``Vectors``, ``ItemUses``, and scales."""
    gradient_AD = np.empty_like(item.rows_AD)
    rows, dim = item.rows_AD.shape
    size = balanced_chunk_size(rows)
    arguments = (item.rows_AD, uses, scales, gradient_AD, _sums(uses.leaves, item.norm_A, dim))
    for_chunks_by_thread(_item_gradients_of_chunk, rows, size, arguments)
    return gradient_AD


@inner_kernel()
def _update_queries(begin, end, thread, tables, examples, objective, results, memory):  # type: ignore[no-untyped-def]
    query_RD, rows_A, item_RD, old_AD = tables
    starts_A1, divergent_rows, (scratch, sums, optimizer) = examples.starts_A1, 0, memory
    x = thread * sums.stride
    inputs = objective, _of_thread(scratch, thread, examples.negatives), get(starts_A1, end)
    for a in range(begin, min(begin + AHEAD, end)):
        prefetch_row(query_RD, get(rows_A, a))
    for b in range(get(starts_A1, begin), min(get(starts_A1, begin) + AHEAD, get(starts_A1, end))):
        _prefetch_items(item_RD, examples.row_N, b, examples.weight_B.shape[0], examples.negatives)
    for a in range(begin, end):
        if a + AHEAD < end:
            prefetch_row(query_RD, get(rows_A, a + AHEAD))
            prefetch_row(optimizer, get(rows_A, a + AHEAD))
        copy_row(old_AD, a, query_RD, get(rows_A, a))
        root = _query_gradient(results, sums, x, old_AD, a, item_RD, examples, inputs)
        divergent_rows += update_row(query_RD, get(rows_A, a), sums.rows_XD, root, optimizer)
    return divergent_rows


@njit(cache=True, error_model="numpy", nogil=True)
def update_queries(tables, examples, objective, optimizer):  # type: ignore[no-untyped-def]
    """Update the active queries of ``QueryTables``; ``Examples`` have rows of the table of items.

    Other arguments are as in ``query_gradients``, then ``LazyOptimizer.for_kernels()``. Returns the losses (B,),
    derivatives by score (N,), and how many rows have diverged.
    """
    results, no_norms = _results(examples), examples.weight_B[:0]
    rows, size = tables.rows_A.shape[0], balanced_chunk_size(tables.rows_A.shape[0])
    sums = _sums(examples.leaves, no_norms, tables.query_RD.shape[1])
    memory = _scratch(examples.negatives), sums, optimizer
    arguments = (tables, examples, objective, results, memory)
    divergent_rows = for_chunks_by_thread(_update_queries, rows, size, arguments)
    return results.loss_B, results.slope_N, divergent_rows


@inner_kernel()
def _update_items(begin, end, thread, item_RD, rows_A, uses, scales, memory):  # type: ignore[no-untyped-def]
    starts_A1, divergent_rows, (sums, optimizer) = uses.starts_A1, 0, memory
    x = thread * sums.stride
    for a in range(begin, min(begin + AHEAD, end)):
        prefetch_row(item_RD, get(rows_A, a))
    for n in range(get(starts_A1, begin), min(get(starts_A1, begin) + AHEAD, get(starts_A1, end))):
        _prefetch_use(uses, n)
    for a in range(begin, end):
        if a + AHEAD < end:
            prefetch_row(item_RD, get(rows_A, a + AHEAD))
            prefetch_row(optimizer, get(rows_A, a + AHEAD))
        root = _item_gradient(sums, x, item_RD, get(rows_A, a), uses, a, end, scales)
        divergent_rows += update_row(item_RD, get(rows_A, a), sums.rows_XD, root, optimizer)
    return divergent_rows


@njit(cache=True, error_model="numpy", nogil=True)
def update_items(item_RD, rows_A, uses, scales, optimizer):  # type: ignore[no-untyped-def]
    """Update the active items in their table; return how many rows have diverged.

    The queries and slopes of ``ItemUses`` are ``old_AD`` and ``slope_N`` of ``update_queries``. Other arguments are as
    in ``item_gradients``, then ``LazyOptimizer.for_kernels()``.
    """
    rows, size = rows_A.shape[0], balanced_chunk_size(rows_A.shape[0])
    sums = _sums(uses.leaves, uses.slope_N[:0], item_RD.shape[1])
    return for_chunks_by_thread(_update_items, rows, size, (item_RD, rows_A, uses, scales, (sums, optimizer)))
