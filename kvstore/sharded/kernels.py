"""Copy rows between tables and messages, and apply what several ranks have sent for a shard in one pass.

Sums over ranks are added as a balanced binary tree over rank numbers: the sum of the first half of the ranks plus the
sum of the second, where a half without the row counts as nothing. The order of additions does not depend on the speed
of ranks, and each rank may itself send the sum of a subtree.

Shapes: A rows of a copy, N rows of a shard, W ranks, K rows that all ranks have sent, R rows of an array, D columns.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import types
from numpy.typing import NDArray

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.kvstore.cache_prefetch import AHEAD, prefetch_row
from crossfade.kvstore.elements import lower_bound_between
from crossfade.kvstore.jit import allocating_kernel, inner_kernel, intrinsic, njit
from crossfade.kvstore.optimizers import KernelOptimizer, update_row
from crossfade.kvstore.row_kernels import add_scaled, copy_row
from crossfade.kvstore.threads import chunk_size, for_chunks

_MAX_DEPTH = 64
_COUNTED = 1 << 32
"""Kernels return divergent rows in units of this, plus the rows that they updated."""


class OwnGradients(NamedTuple):
    """The gradients of this rank for its own shard: ``values_RD[order_A]`` belongs to ``positions_A``, sorted."""

    positions_A: IntArray
    order_A: IntArray
    values_RD: FloatArray


class SentGradients(NamedTuple):
    """The gradients that ranks have sent, each in memory of its own.

    Those of rank w are for positions ``positions_K[starts_W1[w] : starts_W1[w + 1]]`` of the shard, sorted and unique;
    their rows begin at ``address_W[w]``. This rank has none.
    """

    positions_K: NDArray[np.uint32]
    starts_W1: IntArray
    address_W: IntArray


class _Stack(NamedTuple):
    """Sums of a row's gradients over subtrees of ranks: in whose memory each is, and which row of it.

    ``first_S`` is the number of the first rank of each subtree.
    """

    rank_S: IntArray
    row_S: IntArray
    first_S: IntArray


@intrinsic
def _rows_at(_context: Any, address: Any, like: Any) -> Any:
    """Return the rows at an address in memory, as long as the rows of ``like``."""
    kind = types.Array(types.float32, 2, "C")

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        given = context.make_array(signature.args[1])(context, builder, arguments[1])
        rows = context.make_array(kind)(context, builder)
        context.populate_array(
            rows,
            data=builder.inttoptr(arguments[0], rows.data.type),
            shape=given.shape,
            strides=given.strides,
            itemsize=given.itemsize,
            meminfo=None,
        )
        return rows._getvalue()

    return kind(types.int64, like), generate


@inner_kernel()
def _gather_chunk(begin, end, out_AD, values_RD, from_A):  # type: ignore[no-untyped-def]
    for a in range(begin, end):
        if a + AHEAD < end:
            prefetch_row(values_RD, from_A[a + AHEAD])
        copy_row(out_AD, a, values_RD, from_A[a])


@inner_kernel()
def _scatter_chunk(begin, end, out_RD, to_A, values_AD):  # type: ignore[no-untyped-def]
    for a in range(begin, end):
        copy_row(out_RD, to_A[a], values_AD, a)


@inner_kernel()
def _move_chunk(begin, end, out_RD, to_A, values_MD, from_A):  # type: ignore[no-untyped-def]
    for a in range(begin, end):
        if a + AHEAD < end:
            prefetch_row(values_MD, from_A[a + AHEAD])
        copy_row(out_RD, to_A[a], values_MD, from_A[a])


@njit(cache=True, error_model="numpy", nogil=True)
def gather_rows(out_AD, values_RD, from_A):  # type: ignore[no-untyped-def]
    """Set ``out_AD`` to ``values_RD[from_A]``."""
    size = chunk_size(from_A.shape[0], out_AD.size)
    for_chunks(_gather_chunk, from_A.shape[0], size, (out_AD, values_RD, from_A))


@njit(cache=True, error_model="numpy", nogil=True)
def scatter_rows(out_RD, to_A, values_AD):  # type: ignore[no-untyped-def]
    """Set ``out_RD[to_A]`` to ``values_AD``."""
    size = chunk_size(to_A.shape[0], values_AD.size)
    for_chunks(_scatter_chunk, to_A.shape[0], size, (out_RD, to_A, values_AD))


@njit(cache=True, error_model="numpy", nogil=True)
def move_rows(out_RD, to_A, values_MD, from_A):  # type: ignore[no-untyped-def]
    """Set ``out_RD[to_A]`` to ``values_MD[from_A]``."""
    size = chunk_size(to_A.shape[0], to_A.shape[0] * out_RD.shape[1])
    for_chunks(_move_chunk, to_A.shape[0], size, (out_RD, to_A, values_MD, from_A))


@inner_kernel()
def _add_above(rank, own, sent, stack, depth):  # type: ignore[no-untyped-def]
    """Add up the sums at ``depth`` and above it, in memory that was received, and keep the result at ``depth``."""
    below, above = stack.rank_S[depth], stack.rank_S[depth + 1]
    row_below, row_above = stack.row_S[depth], stack.row_S[depth + 1]
    if below == rank:
        rows_RD = _rows_at(sent.address_W[above], own.values_RD)
        add_scaled(rows_RD, row_above, np.float32(1), own.values_RD, row_below)
        stack.rank_S[depth], stack.row_S[depth] = above, row_above
        return
    rows_RD = _rows_at(sent.address_W[below], own.values_RD)
    if above == rank:
        add_scaled(rows_RD, row_below, np.float32(1), own.values_RD, row_above)
    else:
        add_scaled(rows_RD, row_below, np.float32(1), _rows_at(sent.address_W[above], own.values_RD), row_above)


@inner_kernel()
def _first_difference(x, y):  # type: ignore[no-untyped-def]
    """Return the number of the highest bit in which two numbers differ."""
    bits, b = (x ^ y) >> 1, 0
    while bits:
        bits, b = bits >> 1, b + 1
    return b


@inner_kernel()
def _position(own, sent, rank, w, at):  # type: ignore[no-untyped-def]
    return np.int64(own.positions_A[at]) if w == rank else np.int64(sent.positions_K[at])


@inner_kernel()
def _find_range(rank, own, sent, low, high, at_W, stop_W):  # type: ignore[no-untyped-def]
    """Find where each rank's positions from ``low`` up to ``high`` begin and end."""
    for w in range(at_W.shape[0]):
        if w == rank:
            stop = own.positions_A.shape[0]
            at_W[w] = lower_bound_between(own.positions_A, low, 0, stop)
            stop_W[w] = lower_bound_between(own.positions_A, high, 0, stop)
        else:
            first, stop = sent.starts_W1[w], sent.starts_W1[w + 1]
            at_W[w] = lower_bound_between(sent.positions_K, low, first, stop)
            stop_W[w] = lower_bound_between(sent.positions_K, high, first, stop)


@inner_kernel()
def _add_row(rank, own, sent, row, at_W, stop_W, stack):  # type: ignore[no-untyped-def]
    """Add up the gradients of a row over the ranks, as a tree; the sum is at the bottom of the stack.

    When the row is found at rank w, those sums are added up that belong to the largest subtree which has the last rank
    with this row, but not w.
    """
    depth = 0
    for w in range(at_W.shape[0]):
        at = at_W[w]
        if at == stop_W[w] or _position(own, sent, rank, w, at) != row:
            continue
        if depth:
            last = stack.first_S[depth - 1]
            b = _first_difference(last, w)
            while depth > 1 and stack.first_S[depth - 2] >> b == last >> b:
                depth -= 1
                _add_above(rank, own, sent, stack, depth - 1)
        stack.rank_S[depth] = stack.first_S[depth] = w
        stack.row_S[depth] = own.order_A[at] if w == rank else at - sent.starts_W1[w]
        depth += 1
        at_W[w] = at + 1
    while depth > 1:
        depth -= 1
        _add_above(rank, own, sent, stack, depth - 1)


@allocating_kernel()
def _apply_chunk(begin, end, bounds_C1, rank, weights_ND, optimizer, own, sent):  # type: ignore[no-untyped-def]
    """Update the rows at positions from ``bounds_C1[begin]`` up to ``bounds_C1[end]``."""
    ranks = sent.address_W.shape[0]
    at_W, stop_W = np.empty(ranks, np.int64), np.empty(ranks, np.int64)
    stack = _Stack(np.empty(_MAX_DEPTH, np.int64), np.empty(_MAX_DEPTH, np.int64), np.empty(_MAX_DEPTH, np.int64))
    high, result = bounds_C1[end], 0
    _find_range(rank, own, sent, bounds_C1[begin], high, at_W, stop_W)
    while True:
        row = high
        for w in range(ranks):
            if at_W[w] < stop_W[w]:
                row = min(row, _position(own, sent, rank, w, at_W[w]))
        if row == high:
            return result
        for w in range(ranks):
            if at_W[w] + AHEAD < stop_W[w]:
                ahead = _position(own, sent, rank, w, at_W[w] + AHEAD)
                prefetch_row(weights_ND, ahead)
                prefetch_row(optimizer, ahead)
        _add_row(rank, own, sent, row, at_W, stop_W, stack)
        if stack.rank_S[0] == rank:
            divergent = update_row(weights_ND, row, own.values_RD, stack.row_S[0], optimizer)
        else:
            rows_RD = _rows_at(sent.address_W[stack.rank_S[0]], own.values_RD)
            divergent = update_row(weights_ND, row, rows_RD, stack.row_S[0], optimizer)
        result += 1 + divergent * _COUNTED


@njit(cache=True, error_model="numpy", nogil=True)
def _apply(rank, weights_ND, optimizer, own, sent):  # type: ignore[no-untyped-def]
    rows = own.positions_A.shape[0] + sent.starts_W1[-1]
    size = chunk_size(rows, rows * weights_ND.shape[1])
    # Ranks send about as many rows of any range of positions as this one has.
    chunks = max(1, min(own.positions_A.shape[0], rows // max(1, size)))
    bounds_C1 = np.empty(chunks + 1, np.int64)
    for c in range(chunks):
        bounds_C1[c] = own.positions_A[c * own.positions_A.shape[0] // chunks] if c else 0
    bounds_C1[chunks] = weights_ND.shape[0]
    return for_chunks(_apply_chunk, chunks, 1, (bounds_C1, rank, weights_ND, optimizer, own, sent))


def apply_gradients(
    rank: int, weights_ND: FloatArray, optimizer: KernelOptimizer, own: OwnGradients, sent: SentGradients
) -> tuple[int, int]:
    """Add up the gradients of each row of a shard over the ranks, and update it.

    Received gradients are overwritten; this rank's are not.

    Args:
        rank: this rank.
        weights_ND: the shard.
        optimizer: its rule and state, as ``LazyOptimizer.for_kernels`` returns them.
        own: what this rank adds.
        sent: what the others add.

    Returns:
        How many rows were updated, and how many of them have diverged.
    """
    divergent_rows, rows = divmod(_apply(rank, weights_ND, optimizer, own, sent), _COUNTED)
    return rows, divergent_rows


@njit(cache=True, error_model="numpy", nogil=True)
def replace_rows(weights_ND, own, sent):  # type: ignore[no-untyped-def]
    """Replace rows of a shard by rows of this rank and rows that others have sent."""
    for a in range(own.positions_A.shape[0]):
        copy_row(weights_ND, own.positions_A[a], own.values_RD, own.order_A[a])
    for w in range(sent.address_W.shape[0]):
        rows_RD = _rows_at(sent.address_W[w], own.values_RD)
        for k in range(sent.starts_W1[w], sent.starts_W1[w + 1]):
            copy_row(weights_ND, sent.positions_K[k], rows_RD, k - sent.starts_W1[w])
