"""Exact top-k rankings: every item is scored for every query, never a sample of items.

    items_QK, scores_QK = rank_items(source, model, queries_Q, excluded, depth=20)

Queries and items are processed in blocks, so memory does not grow with the number of items. Ties rank the lower row
first.

Shapes: Q queries, K ranks, E items of a block, I ranked items, D columns.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import njit, prange

from kvstore.arrays import FloatArray, IntArray
from trainer.embeddings.files import VectorSource
from trainer.evaluation.held_out import ItemLists
from trainer.model.spec import ModelSpec, Score

QUERY_BLOCK = 256
_ITEM_BLOCK = 1 << 14


@njit(cache=True, parallel=True)
def _keep_best(scores_QE, first_item, excluded_starts_Q1, excluded_N, best_score_QK, best_item_QK):  # type: ignore[no-untyped-def]
    """Merge the scores of a block of items, which starts at ``first_item``, into the top K of each query, in place."""
    depth = best_score_QK.shape[1]
    for q in prange(scores_QE.shape[0]):
        skip = excluded_starts_Q1[q]
        end = excluded_starts_Q1[q + 1]
        while skip < end and excluded_N[skip] < first_item:
            skip += 1
        for e in range(scores_QE.shape[1]):
            if skip < end and excluded_N[skip] == first_item + e:
                skip += 1
                continue
            score = scores_QE[q, e]
            place = depth
            while place > 0 and score > best_score_QK[q, place - 1]:
                place -= 1
            if place == depth:
                continue
            for k in range(depth - 1, place, -1):
                best_score_QK[q, k] = best_score_QK[q, k - 1]
                best_item_QK[q, k] = best_item_QK[q, k - 1]
            best_score_QK[q, place] = score
            best_item_QK[q, place] = first_item + e


def unit_rows(vectors_ND: FloatArray) -> FloatArray:
    """Scale each row of ``vectors_ND`` to length 1; rows of zeros stay zero."""
    norms = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    scaled: FloatArray = vectors_ND / np.maximum(norms, 1e-12)
    return scaled


def rank_among(
    source: VectorSource, model: ModelSpec, queries_Q: IntArray, excluded: ItemLists, depth: int, item_I: IntArray
) -> IntArray:
    """Return the ``depth`` best of the items ``item_I`` (int64, sorted) for each query: rows as ``rank_items``."""
    ranked_I = np.zeros(model.item.rows, np.bool_)
    ranked_I[item_I] = True
    kept = excluded.filter_items(ranked_I)
    places = ItemLists(kept.starts_Q1, np.searchsorted(item_I, kept.items_N))
    best_QK, _ = _rank(source, model, queries_Q, places, depth, item_I)
    return np.where(best_QK >= 0, item_I[best_QK], -1)


def rank_items(
    source: VectorSource, model: ModelSpec, queries_Q: IntArray, excluded: ItemLists, depth: int
) -> tuple[IntArray, FloatArray]:
    """Return the ``depth`` best items of each query, best first: rows int64 (Q, K) and scores float32 (Q, K).

    Queries with fewer items are padded with row -1 and score -inf. Scores omit terms that are the same for all items of
    a query (with euclidean scores, its squared norm).
    """
    return _rank(source, model, queries_Q, excluded, depth, None)


def _rank(
    source: VectorSource,
    model: ModelSpec,
    queries_Q: IntArray,
    excluded: ItemLists,
    depth: int,
    item_I: IntArray | None,
) -> tuple[IntArray, FloatArray]:
    """Rank the items ``item_I``, None: all; ``excluded`` and the result are places in ``item_I``."""

    def vectors(place_E: IntArray) -> FloatArray:
        return source.vectors(model.item.name, place_E if item_I is None else item_I[place_E])

    items = model.item.rows if item_I is None else len(item_I)
    query_QD = source.vectors(model.query.name, queries_Q)
    return rank_vectors(query_QD, model.score, items, vectors, excluded, depth)


def rank_vectors(
    query_QD: FloatArray,
    score: Score,
    items: int,
    vectors: Callable[[IntArray], FloatArray],
    excluded: ItemLists,
    depth: int,
) -> tuple[IntArray, FloatArray]:
    """Return the ``depth`` best of ``items`` places for each row of ``query_QD``, as ``rank_items`` does.

    Args:
        query_QD: vectors of the queries.
        score: compares them with the items' vectors.
        items: number of items, at places 0 to ``items`` - 1.
        vectors: returns the vectors of consecutive places, float32 (E, D).
        excluded: places removed from each query's ranking.
        depth: length of a ranking.
    """
    best_item_QK = np.full((len(query_QD), depth), -1, dtype=np.int64)
    best_score_QK = np.full((len(query_QD), depth), -np.inf, dtype=np.float32)
    if score.normalized:
        query_QD = unit_rows(query_QD)
    for first in range(0, items, _ITEM_BLOCK):
        item_ED = vectors(np.arange(first, min(first + _ITEM_BLOCK, items), dtype=np.int64))
        if score.normalized:
            item_ED = unit_rows(item_ED)
        penalty_E = np.float32(score.norm_scale) * np.square(item_ED).sum(axis=1)
        for start in range(0, len(query_QD), QUERY_BLOCK):
            part = slice(start, start + QUERY_BLOCK)
            # The query's squared norm is the same for all its items, so it does not affect their order.
            scores_QE = np.float32(score.dot_scale) * (query_QD[part] @ item_ED.T) - penalty_E
            starts_Q1 = excluded.starts_Q1[start : start + QUERY_BLOCK + 1]
            _keep_best(scores_QE, first, starts_Q1, excluded.items_N, best_score_QK[part], best_item_QK[part])
    return best_item_QK, best_score_QK
