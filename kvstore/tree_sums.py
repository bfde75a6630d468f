"""Add sums of numbered parts in one order, however many workers have computed them: as a balanced binary tree.

Its leaves are the sums of single parts, numbered from 0. A node is left + right, or the one of them that there is:
leaves 2, 3, and 5 add up to (2 + 3) + 5, and leaves 2, 4, and 5 to 2 + (4 + 5). A worker that has the leaves from k·2ⁿ
up to (k+1)·2ⁿ thus computes a node of the tree, and the nodes of workers are added by the same rule.

A kernel sums each leaf of a row in a place of its own, and then adds those that there are:

    x = thread * leaf_stride(count, dim)            # in leaf_rows(count, dim)
    leaves = 0                                      # a set, as bits
    ...                                             # sum in rows_XD[x + leaf], and set leaves |= 1 << leaf
    root = add_leaves(rows_XD, x, leaves)           # rows_XD[root] is the sum

Since sets are bits, there are at most 64 leaves. If there are more parts, adjacent ones share a leaf (``leaf_shift``),
in which they are summed one after the other.

Shapes: X rows that are leaves or, once added, nodes; D columns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types

from crossfade.kvstore.jit import allocating_kernel, inner_kernel, intrinsic
from crossfade.kvstore.row_kernels import add_scaled
from crossfade.kvstore.threads import thread_count
from crossfade.kvstore.vector_ir import INT64

MAX_LEAVES = 64
_ONE = np.float32(1.0)
_GAP = 32
"""Values at least between the leaves of two threads, so that they do not write to the same cache line."""


def leaf_shift(parts: int) -> int:
    """Return by how many bits to shift the number of one of ``parts`` parts right, for the number of its leaf."""
    shift = 0
    while (parts - 1) >> shift >= MAX_LEAVES:
        shift += 1
    return shift


@inner_kernel()
def leaf_stride(count, dim):  # type: ignore[no-untyped-def]
    """Return the stride from one thread's leaves to the next thread's, in rows of ``dim`` columns."""
    return count + -(-_GAP // dim)


@allocating_kernel()
def leaf_rows(count, dim):  # type: ignore[no-untyped-def]
    """Return memory for ``count`` leaves of each thread of a loop, ``leaf_stride`` apart."""
    return np.empty((thread_count() * leaf_stride(count, dim), dim), np.float32)


@intrinsic
def lowest(_context: Any, bits: Any) -> Any:
    """Return the number of the lowest bit that is set; there must be one."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.IntType(1)(1))

    return types.int64(types.int64), generate


@intrinsic
def _highest(_context: Any, bits: Any) -> Any:
    """Return the number of the highest bit that is set; there must be one."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.sub(INT64(63), builder.ctlz(arguments[0], ir.IntType(1)(1)))

    return types.int64(types.int64), generate


@inner_kernel()
def add_leaves(rows_XD, x, leaves):  # type: ignore[no-untyped-def]
    """Add the ``leaves``, a set that is not empty, of a row: leaf n is ``rows_XD[x + n]``. Return the row of the root.

    The sum of a node is in the place of its first leaf, while others may change.
    """
    node = last = lowest(leaves)
    leaves &= leaves - 1
    waiting = np.int64(0)  # nodes that wait for their right sibling, by their first leaf
    while leaves:
        leaf = lowest(leaves)
        leaves &= leaves - 1
        # Complete the nodes below the lowest one that has both the last leaf and this one.
        level = _highest(last ^ leaf)
        while waiting >> (last >> level << level):
            left = _highest(waiting)
            add_scaled(rows_XD, x + left, _ONE, rows_XD, x + node)
            waiting ^= np.int64(1) << left
            node = left
        waiting |= np.int64(1) << node
        node = last = leaf
    while waiting:
        left = _highest(waiting)
        add_scaled(rows_XD, x + left, _ONE, rows_XD, x + node)
        waiting ^= np.int64(1) << left
        node = left
    return x + node
