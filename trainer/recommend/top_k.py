"""Exact top-k rankings: every item is scored for every query, never a sample of items.

    items_QK, scores_QK = rank_items(source, model, queries_Q, excluded, depth=20)

Items are processed in blocks, so memory does not grow with their number. Threads take tiles of queries: a matrix
product with a tile of items at a time, whose scores stay in the cache until they are scanned for candidates. These are
scored again, in a fixed order (``top_k_kernels.py``), so that a ranking and its scores depend only on the vectors: not
on blocks, tiles, threads, the other queries, or the processor. Ties rank the lower row first.

Shapes: Q queries, K ranks, E items of a block, T queries of a tile, C candidates, I ranked items, D columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from numpy.typing import NDArray

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.kvstore.jit import get_num_threads
from crossfade.trainer.data.jagged_array import JaggedArray
from crossfade.trainer.data.query_history import MomentHistories
from crossfade.trainer.embeddings.files import VectorSource
from crossfade.trainer.embeddings.query_vectors import query_vectors
from crossfade.trainer.model.spec import ModelSpec, Score
from crossfade.trainer.recommend.top_k_kernels import (
    MAX_ITEMS,
    SCANNED,
    decode_keys,
    largest_magnitude,
    load_candidates,
    scan_tile,
    squared_lengths,
    store_candidates,
)

QUERY_BLOCK = 256
"""Queries of a tile."""
_TILE_SCORES = 1 << 17
"""Scores of a tile: half a mebibyte, which a core's own cache has room for."""
_ITEM_BLOCK = 1 << 14
"""Items whose vectors are fetched at a time."""
_ROUNDING, _SMALLEST = 2.0**-24, 2.0**-126
"""The relative error of a float32, and the smallest with all its digits."""
_MAX_SUM = 1e38
"""Products that may add up to more are not trusted in float32: the items are scored exactly."""


def unit_rows(vectors_ND: FloatArray) -> FloatArray:
    """Scale each row of ``vectors_ND`` to length 1; rows of zeros stay zero."""
    norms = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    scaled: FloatArray = vectors_ND / np.maximum(norms, 1e-12)
    return scaled


def rank_items(
    source: VectorSource,
    model: ModelSpec,
    queries_Q: IntArray,
    excluded: JaggedArray,
    depth: int,
    context: Mapping[str, IntArray] | None = None,
    histories: MomentHistories | None = None,
    item_I: IntArray | None = None,
) -> tuple[IntArray, FloatArray]:
    """Return the ``depth`` best items of each query, best first: rows int64 (Q, K) and scores float32 (Q, K).

    Only the items ``item_I`` (int64, sorted) are ranked; None: all. Queries with fewer items are padded with row -1 and
    score -inf. Scores omit terms that are the same for all items of a query (with euclidean scores, its squared norm).
    ``context`` and ``histories`` are as ``query_vectors`` takes them.
    """
    query_QD = query_vectors(source, model, queries_Q, context or {}, histories)
    vectors = partial(source.vectors, model.item.name)
    if item_I is None:
        return rank_vectors(query_QD, model.score, model.item.rows, vectors, excluded, depth)
    ranked_I = np.zeros(model.item.rows, np.bool_)
    ranked_I[item_I] = True
    kept = excluded.filter_values(ranked_I)
    places = JaggedArray(kept.starts_L1, np.searchsorted(item_I, kept.values_N))
    score, chosen = model.score.of_items(item_I), lambda place_E: vectors(item_I[place_E])
    best_QK, score_QK = rank_vectors(query_QD, score, len(item_I), chosen, places, depth)
    return np.where(best_QK >= 0, item_I[best_QK], -1), score_QK


def rank_vectors(
    query_QD: FloatArray,
    score: Score,
    items: int,
    vectors: Callable[[IntArray], FloatArray],
    excluded: JaggedArray,
    depth: int,
    penalty_I: FloatArray | None = None,
) -> tuple[IntArray, FloatArray]:
    """Return the ``depth`` best of ``items`` places for each row of ``query_QD``, as ``rank_items`` does.

    Args:
        query_QD: vectors of the queries.
        score: compares them with the items' vectors.
        items: number of items, at places 0 to ``items`` - 1.
        vectors: returns the vectors of consecutive places, float32 (E, D).
        excluded: places removed from each query's ranking.
        depth: length of a ranking.
        penalty_I: subtracted from the scores of each place, float32; infinite where a place is never ranked.
    """
    return rank_blocks(query_QD, score, item_blocks(score, items, vectors, penalty_I), excluded, depth)


def item_blocks(
    score: Score,
    items: int,
    vectors: Callable[[IntArray], FloatArray],
    penalty_I: FloatArray | None = None,
    *,
    size: int | None = None,
) -> Iterator[Block]:
    """Yield the items in blocks, as ``rank_blocks`` compares them with queries; arguments as of ``rank_vectors``.

    ``size``: items of a block, if not the usual number.
    """
    assert items <= MAX_ITEMS
    size = size or _ITEM_BLOCK
    for first in range(0, items, size):
        item_ED = vectors(np.arange(first, min(first + size, items), dtype=np.int64))
        block = slice(first, first + len(item_ED))
        penalty_E = None if penalty_I is None else penalty_I[block]
        yield Block(first, unit_rows(item_ED) if score.normalized else item_ED, score.of_items(block), penalty_E)


def rank_blocks(
    query_QD: FloatArray, score: Score, blocks: Iterable[Block], excluded: JaggedArray, depth: int
) -> tuple[IntArray, FloatArray]:
    """Return the ``depth`` best items of ``blocks`` for each row of ``query_QD``, as ``rank_vectors`` does."""
    best_item_QK = np.zeros((len(query_QD), depth), dtype=np.int64)
    best_score_QK = np.empty((len(query_QD), depth), dtype=np.float32)
    keys_QK = best_item_QK.view(np.uint64)
    query_QD = np.ascontiguousarray(unit_rows(query_QD) if score.normalized else query_QD, np.float32)
    length_Q = np.sqrt(squared_lengths(query_QD))
    tiles = range(0, len(query_QD), QUERY_BLOCK)
    threads = min(get_num_threads(), len(tiles))

    def decode(starts: Iterator[int]) -> None:
        for start in starts:
            tile = slice(start, start + QUERY_BLOCK)
            keys_QK[tile].sort(axis=1)  # by numpy: its sort takes numba seconds to compile
            decode_keys(keys_QK[tile], best_item_QK[tile], best_score_QK[tile])

    with ThreadPoolExecutor(max(threads, 1), thread_name_prefix="ranking") as pool:

        def share(work: Callable[[Iterator[int]], None]) -> None:
            """Call ``work`` in each thread, with the same iterator of tiles; to start one for a single tile is slow."""
            left = iter(tiles)
            if threads > 1:
                for done in [pool.submit(work, left) for _ in range(threads)]:
                    done.result()
            else:
                work(left)

        for block in blocks:
            share(partial(block.rank, query_QD, block.errors(length_Q), excluded, keys_QK))
        share(decode)
    return best_item_QK, best_score_QK


class Block:
    """A block of items that queries are compared with; it can be used again for other queries."""

    def __init__(self, first: int, item_ED: FloatArray, score: Score, penalty_E: FloatArray | None) -> None:
        item_ED = np.ascontiguousarray(item_ED, np.float32)
        self._first = first
        self._item_ED = item_ED
        self._scale = np.float32(score.dot_scale)
        # The query's squared norm is the same for all its items, so it does not affect their order.
        exact_penalty_E = np.zeros(len(item_ED))
        if score.norm_scale:
            squared_E = squared_lengths(item_ED)
            self._longest = math.sqrt(squared_E.max(initial=0))
            exact_penalty_E += score.norm_scale * squared_E
        elif score.normalized:
            self._longest = 1.001
        else:  # at most √D times the largest number
            bits = largest_magnitude(item_ED.ravel().view(np.int32))
            self._longest = math.sqrt(item_ED.shape[1]) * float(np.int32(bits).view(np.float32))
        if score.offset_I is not None:
            exact_penalty_E -= score.offset_I
        if penalty_E is not None:
            exact_penalty_E += penalty_E
        self._penalty_E = exact_penalty_E.astype(np.float32)
        self._largest_penalty = np.abs(exact_penalty_E).max(where=np.isfinite(exact_penalty_E), initial=0)
        self._exact = first, item_ED, float(score.dot_scale), exact_penalty_E

    def errors(self, length_Q: FloatArray) -> FloatArray:
        """Bound how far scores of tiles are from exact ones, float64 (Q,), in whatever order products are added.

        A sum of D products is off by at most D·u/(1 − D·u) times the sum of their magnitudes (Higham, "Accuracy and
        Stability of Numerical Algorithms", 2002, section 3.1), which |q|·|v| bounds, with u the relative error of a
        float32. Scale, penalty, and the score itself are rounded as well.
        """
        dim, scale = self._item_ED.shape[1], abs(self._scale)
        sum_Q = float(scale) * length_Q * self._longest
        error_Q = 1.01 * _ROUNDING * ((dim + 8) * sum_Q + 4 * self._largest_penalty)
        error_Q += np.where(sum_Q > 0, (dim + 1) * (float(scale) + 1) * _SMALLEST, 0)
        trusted_Q: FloatArray = np.where(sum_Q + self._largest_penalty < _MAX_SUM, error_Q, np.inf)
        return trusted_Q

    def rank(
        self,
        query_QD: FloatArray,
        error_Q: FloatArray,
        excluded: JaggedArray,
        keys_QK: NDArray[np.uint64],
        tiles: Iterator[int],
    ) -> None:
        """Merge the block's items into the best ``keys_QK`` of the queries in ``tiles``, each from a number on."""
        depth = keys_QK.shape[1]
        scores_N = np.empty(max(_TILE_SCORES, QUERY_BLOCK), np.float32)
        keys_TC = np.empty((QUERY_BLOCK, 2 * depth + SCANNED), np.uint64)
        count_T, threshold_T = np.empty(QUERY_BLOCK, np.int64), np.empty(QUERY_BLOCK, np.float32)
        next_T = np.empty(QUERY_BLOCK, np.int64)
        for start in tiles:
            query_TD = query_QD[start : start + QUERY_BLOCK]
            best_TK = keys_QK[start : start + QUERY_BLOCK]
            lists = excluded.starts_L1[start : start + QUERY_BLOCK + 1], excluded.values_N
            candidates = keys_TC, count_T, threshold_T, next_T, error_Q[start : start + QUERY_BLOCK]
            load_candidates(best_TK, self._first, lists, candidates)
            items = max(1, _TILE_SCORES // len(query_TD))
            for e in range(0, len(self._item_ED), items):
                tile_ED = self._item_ED[e : e + items]
                scores_TE = scores_N[: len(query_TD) * len(tile_ED)].reshape(len(query_TD), len(tile_ED))
                np.matmul(query_TD, tile_ED.T, out=scores_TE)
                tile = scores_TE, self._first + e, self._scale, self._penalty_E[e : e + items]
                scan_tile(tile, query_TD, self._exact, lists, candidates, depth)
            store_candidates(candidates, query_TD, self._exact, best_TK)
