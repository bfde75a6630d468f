"""Select the best items of each query from tiles of approximate scores, compiled, and rank them by exact ones.

    keys_QK = np.zeros((queries, depth), np.uint64)
    for each block of items:
        candidates = load_candidates(...)       # the best so far
        for each tile of the block: scan_tile(...)
        store_candidates(...)
    decode_keys(keys_QK, best_item_QK, best_score_QK)

The scores of a tile are products of matrices, which round by the shape of the matrices, the item's place in them, and
the processor. They only find candidates: whatever exceeds the lowest of the best K by less than twice the bound of
their error stays one. Candidates are then scored again (``_exact_score``): the products of float32 are exact in
float64, and are added in an order that depends on nothing but their number. Rounded to float32, these scores are the
same wherever they are computed, and the ranking is that of a stable sort of them.

A key is a score and an item in one integer: larger keys rank first. Its upper half orders as the score does, its lower
half falls with the item's place, so that of equal scores the lower place ranks first. Keys are distinct, and 0 marks an
empty entry.

A query's candidates are collected unsorted: scores above its threshold. When a buffer is full, only those stay that may
be among the best K, and the threshold rises. Where too many may be, such as thousands of equal vectors, those of the
block are scored exactly at once, and the best K stay. An item of the same exact score as the lowest of these is of a
higher place than all of them, so it cannot be among the best. Keys of items before the block are of exact scores.

Scores are compared 64 at a time by an intrinsic, since LLVM does not vectorize a loop that may branch. A NaN compares
as false, so it is never ranked.

Shapes: Q queries of a tile, E items of a tile or block, K ranks, C candidates, D columns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types

from crossfade.kvstore.elements import lower_bound
from crossfade.kvstore.jit import inner_kernel, intrinsic, njit
from crossfade.kvstore.lanes import exact_dot

SCANNED = 64
"""Scores compared at a time, one for each bit of a mask."""
MAX_ITEMS = (1 << 32) - 1
"""A key has 32 bits for the item's place."""
_LANES = 16
_HALF, _LOW_HALF, _SIGN = np.uint64(32), np.uint64(0xFFFFFFFF), np.uint64(0x80000000)
_ONE, _ALL_BITS = np.uint64(1), np.uint64(0xFFFFFFFFFFFFFFFF)


@intrinsic
def _scores_above(_context: Any, scores: Any, penalties: Any, row: Any, first: Any, scale: Any, threshold: Any) -> Any:
    """Return the mask of the ``SCANNED`` scores from ``scores[row, first]`` on that are above ``threshold``.

    A score is ``scale`` times the value in ``scores`` less that in ``penalties``; rows are contiguous.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector = ir.VectorType(ir.FloatType(), _LANES)
        int32, int64 = ir.IntType(32), ir.IntType(64)
        row, first, scale, threshold = arguments[2:]
        start = builder.mul(row, builder.extract_value(_array(context, builder, signature, arguments, 0).strides, 0))
        starts = (
            builder.add(_address(context, builder, signature, arguments, 0), start),
            _address(context, builder, signature, arguments, 1),
        )

        def splat(value: Any) -> Any:
            single = builder.insert_element(ir.Constant(vector, ir.Undefined), value, int32(0))
            return builder.shuffle_vector(single, single, ir.Constant(ir.VectorType(int32, _LANES), [0] * _LANES))

        def load(array: int, lane: int) -> Any:
            offset = builder.mul(builder.add(first, int64(lane)), int64(4))
            address = builder.inttoptr(builder.add(starts[array], offset), vector.as_pointer())
            return builder.load(address, align=4)

        scales, thresholds, mask = splat(scale), splat(threshold), int64(0)
        for lane in range(0, SCANNED, _LANES):
            scores = builder.fsub(builder.fmul(load(0, lane), scales), load(1, lane))
            above = builder.bitcast(builder.fcmp_ordered(">", scores, thresholds), ir.IntType(_LANES))
            mask = builder.or_(mask, builder.shl(builder.zext(above, int64), int64(lane)))
        return mask

    return types.uint64(scores, penalties, types.int64, types.int64, types.float32, types.float32), generate


def _array(context: Any, builder: Any, signature: Any, arguments: Any, number: int) -> Any:
    return context.make_array(signature.args[number])(context, builder, arguments[number])


def _address(context: Any, builder: Any, signature: Any, arguments: Any, number: int) -> Any:
    return builder.ptrtoint(_array(context, builder, signature, arguments, number).data, ir.IntType(64))


@intrinsic
def _lowest_bit(_context: Any, mask: Any) -> Any:
    """Return the number of the lowest bit that is set in ``mask``, which is not 0."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.IntType(1)(1))

    return types.int64(types.uint64), generate


@njit(cache=True, inline="always")
def _key(score, place):  # type: ignore[no-untyped-def]
    # Adding 0 turns -0 into 0, which it equals. Negative numbers order by their bits from high to low.
    bits = np.uint64(np.float32(score + np.float32(0.0)).view(np.uint32))
    bits ^= _LOW_HALF if bits & _SIGN else _SIGN
    return (bits << _HALF) | (_LOW_HALF - np.uint64(place))


@njit(cache=True, inline="always")
def _score(key):  # type: ignore[no-untyped-def]
    bits = key >> _HALF
    return np.uint32(bits ^ (_SIGN if bits & _SIGN else _LOW_HALF)).view(np.float32)


@inner_kernel()
def _at_most(value):  # type: ignore[no-untyped-def]
    """Return a float32 that is not above the float64 ``value``, and equals it if a float32 does."""
    rounded = np.float32(value)
    if np.float64(rounded) > value:
        rounded = np.float32(value - abs(value) * 2.0**-23 - 2.0**-148)
    return np.float32(-np.inf) if np.isnan(rounded) else rounded


@inner_kernel()
def _exact_score(query_D, item_D, scale, penalty):  # type: ignore[no-untyped-def]
    """Return the score that ranks: computed in float64, in a fixed order, and rounded once to float32."""
    return np.float32(scale * exact_dot(query_D, item_D) - penalty)


@inner_kernel()
def _lowest_of_best(keys_C, count, depth):  # type: ignore[no-untyped-def]
    """Return the smallest of the ``depth`` largest of the first ``count`` keys, which are more.

    The bits of a number that just ``depth`` keys reach are found one by one, the highest first.
    """
    bound = np.uint64(0)
    for shift in range(63, -1, -1):
        trial = bound | (_ONE << np.uint64(shift))
        reaching = 0
        for c in range(count):
            reaching += keys_C[c] >= trial
        if reaching >= depth:
            bound = trial
        if reaching == depth:
            break
    smallest = _ALL_BITS
    for c in range(count):
        if keys_C[c] >= bound:
            smallest = min(smallest, keys_C[c])
    return smallest


@inner_kernel()
def _keep_from(keys_C, count, bound):  # type: ignore[no-untyped-def]
    """Move those of the first ``count`` keys that reach ``bound`` to the front; return their number."""
    kept = 0
    for c in range(count):
        key = keys_C[c]
        keys_C[kept] = key
        kept += key >= bound
    return kept


@inner_kernel()
def _keep_possible(keys_C, count, depth, error):  # type: ignore[no-untyped-def]
    """Drop candidates that cannot be among the best ``depth``, of more; return the number left and the threshold."""
    lowest = _at_most(np.float64(_score(_lowest_of_best(keys_C, count, depth))) - 2 * error)
    return _keep_from(keys_C, count, _key(lowest, _LOW_HALF)), lowest


@inner_kernel()
def _keep_best(keys_C, count, depth, error, query_D, block):  # type: ignore[no-untyped-def]
    """Score the candidates of the block exactly, and keep the best ``depth``; return their number and the threshold."""
    first_place, item_ED, scale, penalty_E = block
    scored = 0
    for c in range(count):
        key = keys_C[c]
        place = np.int64(_LOW_HALF - (key & _LOW_HALF))
        if place >= first_place:
            e = place - first_place
            score = _exact_score(query_D, item_ED[e], scale, penalty_E[e])
            if not score > -np.inf:
                continue
            key = _key(score, place)
        keys_C[scored] = key
        scored += 1
    if scored < depth:
        return scored, np.float32(-np.inf)
    lowest = _ALL_BITS
    if scored > depth:
        lowest = _lowest_of_best(keys_C, scored, depth)
        scored = _keep_from(keys_C, scored, lowest)
    else:
        for c in range(scored):
            lowest = min(lowest, keys_C[c])
    return scored, _at_most(np.float64(_score(lowest)) - error)


@njit(cache=True, nogil=True)
def load_candidates(keys_QK, first_place, lists, candidates):  # type: ignore[no-untyped-def]
    """Start on a block of items: copy the best so far, and find the block's first excluded place.

    Args:
        keys_QK: the best so far; 0 where there are fewer.
        first_place: the first place of the block.
        lists: where each query's excluded places start, and the places, sorted within each query.
        candidates: keys (Q, C), their number, the score that further ones must exceed, and the position of the next
            excluded place, which are filled; and how far scores of tiles may be from exact ones, float64 (Q,).
    """
    starts_Q1, excluded_N = lists
    keys_QC, count_Q, threshold_Q, next_Q, error_Q = candidates
    depth = keys_QK.shape[1]
    for q in range(keys_QK.shape[0]):
        count, smallest = 0, _ALL_BITS
        for k in range(depth):
            if keys_QK[q, k]:
                keys_QC[q, count] = keys_QK[q, k]
                smallest = min(smallest, keys_QK[q, k])
                count += 1
        count_Q[q] = count
        threshold_Q[q] = np.float32(-np.inf)
        if count == depth:
            threshold_Q[q] = _at_most(np.float64(_score(smallest)) - error_Q[q])
        excluded = excluded_N[starts_Q1[q] : starts_Q1[q + 1]]
        next_Q[q] = starts_Q1[q] + lower_bound(excluded, first_place)


@njit(cache=True, nogil=True)
def scan_tile(tile, query_QD, block, lists, candidates, depth):  # type: ignore[no-untyped-def]
    """Add the candidates of a tile of the block to those of ``load_candidates``, for rankings of length ``depth``.

    Args:
        tile: dot products of all queries with its items (Q, E), which are overwritten where items are excluded; the
            first place; and the scale, and the penalties, of its scores: scale times the product less the penalty.
        query_QD: vectors of the queries.
        block: its first place, its vectors (E, D), and the scale, and the penalties, float64, of exact scores.
        lists: as for ``load_candidates``.
        candidates: as for ``load_candidates``.
        depth: as above.
    """
    scores_QE, first_place, scale, penalty_E = tile
    starts_Q1, excluded_N = lists
    keys_QC, count_Q, threshold_Q, next_Q, error_Q = candidates
    items = scores_QE.shape[1]
    full = keys_QC.shape[1] - SCANNED
    for q in range(scores_QE.shape[0]):
        while next_Q[q] < starts_Q1[q + 1] and excluded_N[next_Q[q]] < first_place + items:
            scores_QE[q, excluded_N[next_Q[q]] - first_place] = -np.inf
            next_Q[q] += 1
        threshold, count = threshold_Q[q], count_Q[q]
        for first in range(0, items, SCANNED):
            if first + SCANNED <= items:
                mask = _scores_above(scores_QE, penalty_E, q, first, scale, threshold)
            else:
                mask = np.uint64(0)
                for e in range(first, items):
                    above = scores_QE[q, e] * scale - penalty_E[e] > threshold
                    mask |= np.uint64(above) << np.uint64(e - first)
            while mask:
                e = first + _lowest_bit(mask)
                mask &= mask - _ONE
                score = scores_QE[q, e] * scale - penalty_E[e]
                keys_QC[q, count] = _key(score, first_place + e)
                count += 1
            if count > full:
                count, threshold = _keep_possible(keys_QC[q], count, depth, error_Q[q])
                if count > depth + depth // 2:
                    count, threshold = _keep_best(keys_QC[q], count, depth, error_Q[q], query_QD[q], block)
        threshold_Q[q], count_Q[q] = threshold, count


@njit(cache=True, nogil=True)
def store_candidates(candidates, query_QD, block, keys_QK):  # type: ignore[no-untyped-def]
    """Finish a block of items: score its candidates exactly, and copy the best to ``keys_QK``, unsorted."""
    keys_QC, count_Q, _, _, error_Q = candidates
    depth = keys_QK.shape[1]
    for q in range(keys_QK.shape[0]):
        count = count_Q[q]
        if count > depth:
            count, _ = _keep_possible(keys_QC[q], count, depth, error_Q[q])
        count, _ = _keep_best(keys_QC[q], count, depth, error_Q[q], query_QD[q], block)
        for k in range(depth):
            keys_QK[q, k] = keys_QC[q, k] if k < count else np.uint64(0)


@njit(cache=True, nogil=True)
def decode_keys(keys_QK, best_item_QK, best_score_QK):  # type: ignore[no-untyped-def]
    """Write the items and scores of each query's keys, sorted; ``keys_QK`` may be the memory of ``best_item_QK``."""
    depth = keys_QK.shape[1]
    for q in range(keys_QK.shape[0]):
        sorted_K = keys_QK[q].copy()
        for k in range(depth):
            key = sorted_K[depth - 1 - k]
            best_item_QK[q, k] = np.int64(_LOW_HALF - (key & _LOW_HALF)) if key else -1
            best_score_QK[q, k] = _score(key) if key else np.float32(-np.inf)


@njit(cache=True, nogil=True)
def squared_lengths(vectors_ED):  # type: ignore[no-untyped-def]
    """Return |v|² of each vector, float64, summed in the order of ``exact_dot``."""
    squared_E = np.empty(vectors_ED.shape[0])
    for e in range(vectors_ED.shape[0]):
        squared_E[e] = exact_dot(vectors_ED[e], vectors_ED[e])
    return squared_E


@njit(cache=True, nogil=True)
def largest_magnitude(bits_N):  # type: ignore[no-untyped-def]
    """Return the bits of the largest magnitude of float32 numbers, given as int32: they order as integers do."""
    largest = np.int32(0)
    for n in range(bits_N.shape[0]):
        largest = max(largest, bits_N[n] & np.int32(0x7FFFFFFF))
    return largest
