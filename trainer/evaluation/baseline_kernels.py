"""Rank items without training, compiled; ``baselines.py`` defines the baselines.

    near_IK, cosine_IK = nearest_items(starts_R1, item_N, starts_I1, query_N, 400)
    best_item_QK = rank_by_neighbors(queries_Q, starts_R1, item_N, near_IK, cosine_IK, *excluded, depth)

Time follows the pairs of items that some query has, never the square of the number of items.

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
def _sift_down(item_T, score_I, place, count):  # type: ignore[no-untyped-def]
    """Move the item at ``place`` of a heap of ``count`` items below those with a higher score, or a lower number."""
    while 2 * place + 1 < count:
        best = place
        for child in range(2 * place + 1, min(2 * place + 3, count)):
            score, highest = score_I[item_T[child]], score_I[item_T[best]]
            if score > highest or (score == highest and item_T[child] < item_T[best]):
                best = child
        if best == place:
            return
        item_T[place], item_T[best] = item_T[best], item_T[place]
        place = best


@njit(cache=True)
def _best_items(item_T, score_I, depth):  # type: ignore[no-untyped-def]
    """Return the ``depth`` of ``item_T`` with the highest scores, the highest first; of equal ones, the lower item.

    They are taken from a heap, which reorders ``item_T``: numba's sorts take seconds to compile.
    """
    count = item_T.shape[0]
    for place in range(count // 2 - 1, -1, -1):
        _sift_down(item_T, score_I, place, count)
    best_K = np.empty(min(depth, count), np.int64)
    for k in range(best_K.shape[0]):
        last = count - 1 - k
        best_K[k] = item_T[0]
        item_T[0], item_T[last] = item_T[last], item_T[0]
        _sift_down(item_T, score_I, 0, last)
    return best_K


@njit(cache=True)
def nearest_items(starts_R1, item_N, starts_I1, query_N, neighbors):  # type: ignore[no-untyped-def]
    """Return the items with the highest cosine to each item: int32 and float32 (I, K), padded with -1.

    Args:
        starts_R1: where the items of each query start in ``item_N``.
        item_N: the items by query; a query has an item once.
        starts_I1: where the queries of each item start in ``query_N``.
        query_N: the queries by item.
        neighbors: K.
    """
    items = starts_I1.shape[0] - 1
    near_IK = np.full((items, neighbors), -1, np.int32)
    cosine_IK = np.zeros((items, neighbors), np.float32)
    shared_I, touched_I, score_I = np.zeros(items, np.int64), np.empty(items, np.int64), np.empty(items)
    for i in range(items):
        touched = 0
        for p in range(starts_I1[i], starts_I1[i + 1]):
            for n in range(starts_R1[query_N[p]], starts_R1[query_N[p] + 1]):
                other = item_N[n]
                if other != i and shared_I[other] == 0:
                    touched_I[touched] = other
                    touched += 1
                shared_I[other] += other != i
        owners = starts_I1[i + 1] - starts_I1[i]
        for t in range(touched):
            other = touched_I[t]
            score_I[other] = shared_I[other] / np.sqrt(owners * (starts_I1[other + 1] - starts_I1[other]))
            shared_I[other] = 0
        best_K = _best_items(touched_I[:touched], score_I, neighbors)
        for k in range(best_K.shape[0]):
            near_IK[i, k] = best_K[k]
            cosine_IK[i, k] = score_I[best_K[k]]
    return near_IK, cosine_IK


@njit(cache=True)
def rank_by_neighbors(queries_Q, starts_R1, item_N, near_IK, cosine_IK, starts_Q1, excluded_N, depth):  # type: ignore[no-untyped-def]
    """Rank items by the sum of their cosines to a query's items, among the neighbors of these: int64, padded with -1.

    The lists are those of ``nearest_items`` and ``rank_in_order``.
    """
    items = near_IK.shape[0]
    best_item_QK = np.full((queries_Q.shape[0], depth), -1, np.int64)
    score_I, touched_I = np.zeros(items), np.empty(items, np.int64)
    for q in range(queries_Q.shape[0]):
        touched = 0
        for n in range(starts_R1[queries_Q[q]], starts_R1[queries_Q[q] + 1]):
            for k in range(near_IK.shape[1]):
                near = near_IK[item_N[n], k]
                if near < 0:
                    break
                if score_I[near] == 0.0:
                    touched_I[touched] = near
                    touched += 1
                score_I[near] += cosine_IK[item_N[n], k]
        excluded = excluded_N[starts_Q1[q] : starts_Q1[q + 1]]
        best_K = _best_items(touched_I[:touched], score_I, depth + excluded.shape[0])
        for t in range(touched):
            score_I[touched_I[t]] = 0.0
        rank = 0
        for item in best_K:
            if rank == depth:
                break
            known = lower_bound(excluded, item)
            if known == excluded.shape[0] or excluded[known] != item:
                best_item_QK[q, rank] = item
                rank += 1
    return best_item_QK
