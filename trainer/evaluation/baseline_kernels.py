"""Rank items without training, compiled; ``baselines.py`` defines the baselines.

    nearest_items(0, items, (starts_R1, item_N), (starts_I1, query_N), (near_IK, cosine_IK))
    rank_by_neighbors(0, queries, queries_Q, (starts_R1, item_N, near_IK, cosine_IK), excluded, best_item_QK)

Threads take parts of the items and of the queries. Time follows the pairs of items that some query has, never the
square of the number of items.

Shapes: Q queries, R rows of the query entity, I items, K neighbors of an item, or ranks, N pairs of a query and an
item, once by query and once by item, T touched items.
"""

from __future__ import annotations

import numpy as np

from crossfade.kvstore.elements import lower_bound
from crossfade.kvstore.jit import njit


@njit(cache=True)
def rank_in_order(order_I, starts_Q1, excluded_N, depth):  # type: ignore[no-untyped-def]
    """Return the first ``depth`` items of ``order_I`` that are not excluded for each query, padded with -1."""
    queries = starts_Q1.shape[0] - 1
    best_item_QK = np.full((queries, depth), -1, np.int64)
    for q in range(queries):
        excluded = excluded_N[starts_Q1[q] : starts_Q1[q + 1]]
        rank = 0
        for item in order_I:
            if rank == depth:
                break
            place = lower_bound(excluded, item)
            if place == excluded.shape[0] or excluded[place] != item:
                best_item_QK[q, rank] = item
                rank += 1
    return best_item_QK


@njit(cache=True)
def _precedes(item, other, score_I):  # type: ignore[no-untyped-def]
    """Return whether an item ranks before another: by a higher score or, of equal ones, a lower number."""
    return score_I[item] > score_I[other] or (score_I[item] == score_I[other] and item < other)


@njit(cache=True)
def _sift_down(item_T, score_I, place, count):  # type: ignore[no-untyped-def]
    """Move the item at ``place`` of a heap of ``count`` items, whose top ranks last, below those that rank after it."""
    while 2 * place + 1 < count:
        last = place
        for child in range(2 * place + 1, min(2 * place + 3, count)):
            if _precedes(item_T[last], item_T[child], score_I):
                last = child
        if last == place:
            return
        item_T[place], item_T[last] = item_T[last], item_T[place]
        place = last


@njit(cache=True)
def _move_best(item_T, score_I, depth):  # type: ignore[no-untyped-def]
    """Reorder ``item_T``, so that the ``depth`` items that rank first come first, as a heap; return these."""
    count = min(depth, item_T.shape[0])
    for place in range(count // 2 - 1, -1, -1):
        _sift_down(item_T, score_I, place, count)
    for t in range(count, item_T.shape[0]):
        if count and _precedes(item_T[t], item_T[0], score_I):
            item_T[0], item_T[t] = item_T[t], item_T[0]
            _sift_down(item_T, score_I, 0, count)
    return item_T[:count]


@njit(cache=True)
def _sort_heap(item_K, score_I):  # type: ignore[no-untyped-def]
    """Sort the items of a heap as they rank: numba's sorts take seconds to compile."""
    for last in range(item_K.shape[0] - 1, 0, -1):
        item_K[0], item_K[last] = item_K[last], item_K[0]
        _sift_down(item_K, score_I, 0, last)


@njit(cache=True, nogil=True)
def nearest_items(first, last, by_query, by_item, nearest):  # type: ignore[no-untyped-def]
    """Write the items with the highest cosine to each item from ``first`` to before ``last``, in any order.

    Args:
        first: an item.
        last: the item after the last one.
        by_query: where the items of each query start, and these items; a query has an item once.
        by_item: where the queries of each item start, and these queries.
        nearest: gets the items, int32 (I, K), -1 where there are fewer, and the cosines, float32 (I, K).
    """
    (starts_R1, item_N), (starts_I1, query_N), (near_IK, cosine_IK) = by_query, by_item, nearest
    items = starts_I1.shape[0] - 1
    shared_I, touched_I, score_I = np.zeros(items, np.int64), np.empty(items + 1, np.int64), np.empty(items)
    for i in range(first, last):
        touched = 0
        shared_I[i] = 1  # so that it is none of the others
        for p in range(starts_I1[i], starts_I1[i + 1]):
            for n in range(starts_R1[query_N[p]], starts_R1[query_N[p] + 1]):
                other = item_N[n]
                touched_I[touched] = other  # replaced by the next one, unless it is new
                touched += shared_I[other] == 0
                shared_I[other] += 1
        shared_I[i] = 0
        owners = starts_I1[i + 1] - starts_I1[i]
        for t in range(touched):
            other = touched_I[t]
            score_I[other] = shared_I[other] / np.sqrt(owners * (starts_I1[other + 1] - starts_I1[other]))
            shared_I[other] = 0
        best_K = touched_I[:touched]
        if touched > near_IK.shape[1]:
            best_K = _move_best(best_K, score_I, near_IK.shape[1])
        for k in range(best_K.shape[0]):
            near_IK[i, k] = best_K[k]
            cosine_IK[i, k] = score_I[best_K[k]]


@njit(cache=True, nogil=True)
def rank_by_neighbors(first, last, queries_Q, neighbors, excluded, best_item_QK):  # type: ignore[no-untyped-def]
    """Rank items for the queries from ``first`` to before ``last``, in ``best_item_QK``, int64, which has -1.

    They are ranked by the sum of their cosines to a query's items, among the neighbors of these. ``neighbors`` are
    ``by_query`` and ``nearest`` of ``nearest_items``; ``excluded`` is where the items that are left out for each query
    start, and these items.
    """
    starts_R1, item_N, near_IK, cosine_IK = neighbors
    starts_Q1, excluded_N = excluded
    items = near_IK.shape[0]
    score_I, touched_I = np.zeros(items), np.empty(items + 1, np.int64)
    for q in range(first, last):
        touched = 0
        for n in range(starts_R1[queries_Q[q]], starts_R1[queries_Q[q] + 1]):
            for k in range(near_IK.shape[1]):
                near = near_IK[item_N[n], k]
                if near < 0:
                    break
                touched_I[touched] = near  # replaced by the next one, unless it is new
                touched += score_I[near] == 0.0
                score_I[near] += cosine_IK[item_N[n], k]
        for item in excluded_N[starts_Q1[q] : starts_Q1[q + 1]]:
            score_I[item] = 0.0
        best_K = _move_best(touched_I[:touched], score_I, best_item_QK.shape[1])
        _sort_heap(best_K, score_I)
        for k in range(best_K.shape[0]):
            if score_I[best_K[k]] > 0.0:
                best_item_QK[q, k] = best_K[k]
        for t in range(touched):
            score_I[touched_I[t]] = 0.0
