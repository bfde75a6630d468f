"""Rank items without training, compiled; ``baselines.py`` defines the baselines.

    near_IK, cosine_IK = nearest_items(starts_R1, item_N, starts_I1, query_N, 400)
    best_item_QK = rank_by_neighbors(queries_Q, starts_R1, item_N, near_IK, cosine_IK, *excluded, depth)

Time follows the pairs of items that some query has, never the square of the number of items.

Shapes: Q queries, R rows of the query entity, I items, K neighbors of an item, or ranks, N pairs of a query and an
item, once by query and once by item, T touched items.
"""

from __future__ import annotations

import numpy as np

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
            place = np.searchsorted(excluded, item)
            if place == excluded.shape[0] or excluded[place] != item:
                best_item_QK[q, rank] = item
                rank += 1
    return best_item_QK


@njit(cache=True)
def _best_places(score_T, depth):  # type: ignore[no-untyped-def]
    """Return the places of the ``depth`` highest scores, the highest first; of equal ones, the lower place first."""
    return np.argsort(-score_T, kind="mergesort")[:depth]


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
    shared_I, touched_I = np.zeros(items, np.int64), np.empty(items, np.int64)
    for i in range(items):
        touched = 0
        for p in range(starts_I1[i], starts_I1[i + 1]):
            for n in range(starts_R1[query_N[p]], starts_R1[query_N[p] + 1]):
                other = item_N[n]
                if other != i and shared_I[other] == 0:
                    touched_I[touched] = other
                    touched += 1
                shared_I[other] += other != i
        touched_T = np.sort(touched_I[:touched])
        owners = starts_I1[i + 1] - starts_I1[i]
        cosine_T = np.empty(touched)
        for t in range(touched):
            other = touched_T[t]
            cosine_T[t] = shared_I[other] / np.sqrt(owners * (starts_I1[other + 1] - starts_I1[other]))
            shared_I[other] = 0
        best_K = _best_places(cosine_T, neighbors)
        for k in range(best_K.shape[0]):
            near_IK[i, k] = touched_T[best_K[k]]
            cosine_IK[i, k] = cosine_T[best_K[k]]
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
        touched_T = np.sort(touched_I[:touched])
        score_T = score_I[touched_T]
        score_I[touched_T] = 0.0
        rank = 0
        for place in _best_places(score_T, depth + excluded.shape[0]):
            if rank == depth:
                break
            item = touched_T[place]
            known = np.searchsorted(excluded, item)
            if known == excluded.shape[0] or excluded[known] != item:
                best_item_QK[q, rank] = item
                rank += 1
    return best_item_QK
