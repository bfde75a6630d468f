"""Ranking quality: every item ranked for every query that has held-out items, never a sample of items.

With H the held-out items of a query and its ranking cut at k:

- recall@k = |hits| / |H|
- ndcg@k = Σ_{hits at rank r} 1/log₂(r+1) / Σ_{r=1}^{min(k,|H|)} 1/log₂(r+1)      (Järvelin and Kekäläinen, 2002)

both averaged over queries. Items of the excluded splits leave a query's ranking where their weight is positive: one
that was skipped stays, and costs a place if it is ranked high. Ties rank the lower row first.
Items come in blocks, so memory is bounded by the queries judged; workers share the queries out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numba import njit, prange

from kvstore.arrays import FloatArray, IntArray
from trainer.data.manifest import Manifest
from trainer.data.shards import ShardReader
from trainer.embeddings import VectorSource
from trainer.job import Evaluate, SplitName
from trainer.model import Model

_ITEM_BLOCK = 1 << 14
_QUERY_BLOCK = 256

Metrics = dict[str, float]


@dataclass(frozen=True)
class ItemLists:
    """A sorted list of items for each query: query ``q`` has ``items_N[starts_Q1[q]:starts_Q1[q + 1]]``. int64."""

    starts_Q1: IntArray
    items_N: IntArray


@dataclass(frozen=True)
class HeldOut:
    """What one worker judges: its queries, the items held out for each, and those that leave its ranking."""

    queries_Q: IntArray
    truth: ItemLists
    excluded: ItemLists


def load_held_out(
    reader: ShardReader, manifest: Manifest, split: SplitName, exclude: Iterable[SplitName], rank: int, workers: int
) -> HeldOut:
    """Worker ``rank``'s share of the queries of ``split``. Interactions of no positive weight do not count.

    A held-out pair that an excluded split has too, such as a track played again, stays in the ranking.

    Raises:
        InputError: a shard cannot be read.
    """
    items = manifest.entities[manifest.item].rows
    held_out_N = _pairs(reader, manifest, [split])
    queries_Q = np.unique(held_out_N // items)[rank::workers]
    excluded_N = _pairs(reader, manifest, [name for name in exclude if name != split], queries_Q)
    excluded_N = np.setdiff1d(excluded_N, held_out_N, assume_unique=True)
    return HeldOut(queries_Q, _lists(held_out_N, queries_Q, items), _lists(excluded_N, queries_Q, items))


def _pairs(
    reader: ShardReader, manifest: Manifest, splits: list[SplitName], queries_Q: IntArray | None = None
) -> IntArray:
    """Each (query, item) pair of ``splits`` once, of ``queries_Q`` alone if given: query·items + item, sorted."""
    items = manifest.entities[manifest.item].rows
    parts = [np.empty(0, dtype=np.int64)]
    for name in splits:
        if name in manifest.splits:
            for part in reader.read_all(manifest.splits[name]):
                liked_N = part.weight_N > 0
                if queries_Q is not None:
                    liked_N &= np.isin(part.query_N, queries_Q)
                parts.append(part.query_N[liked_N] * items + part.item_N[liked_N])
    return np.unique(np.concatenate(parts))


def _lists(pairs_N: IntArray, queries_Q: IntArray, items: int) -> ItemLists:
    begin_Q, end_Q = (np.searchsorted(pairs_N, bound * items) for bound in (queries_Q, queries_Q + 1))
    starts_Q1 = np.concatenate([[0], np.cumsum(end_Q - begin_Q)])
    chosen = [pairs_N[begin:end] % items for begin, end in zip(begin_Q, end_Q, strict=True)]
    return ItemLists(starts_Q1, np.concatenate([np.empty(0, np.int64), *chosen]))


@njit(cache=True, parallel=True)
def _keep_best(scores_QE, first_item, excluded_starts_Q1, excluded_N, best_score_QK, best_item_QK):  # type: ignore[no-untyped-def]
    """Merge a block of scores, of the items from ``first_item`` on, into the best K of each query, in place."""
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
    """``vectors_ND`` scaled to length one, row by row; a row of zeros stays one."""
    norms = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    scaled: FloatArray = vectors_ND / np.maximum(norms, 1e-12)
    return scaled


def rank_items(
    source: VectorSource, model: Model, queries_Q: IntArray, excluded: ItemLists, depth: int
) -> tuple[IntArray, FloatArray]:
    """The ``depth`` best items of each query, best first: rows int64 (Q, K), and scores float32 (Q, K).

    Where a query has fewer items to rank, the rest are row -1 with score -inf. Scores leave out what is the same for
    all items of a query (under euclidean, its own square).
    """
    items = model.item.rows
    best_item_QK = np.full((len(queries_Q), depth), -1, dtype=np.int64)
    best_score_QK = np.full((len(queries_Q), depth), -np.inf, dtype=np.float32)
    query_QD = source.vectors(model.query.name, queries_Q)
    if model.score.normalised:
        query_QD = unit_rows(query_QD)
    for first in range(0, items, _ITEM_BLOCK):
        item_ED = source.vectors(model.item.name, np.arange(first, min(first + _ITEM_BLOCK, items), dtype=np.int64))
        if model.score.normalised:
            item_ED = unit_rows(item_ED)
        penalty_E = np.float32(model.score.square) * np.square(item_ED).sum(axis=1)
        for start in range(0, len(queries_Q), _QUERY_BLOCK):
            part = slice(start, start + _QUERY_BLOCK)
            # The query's own square is the same for all its items, so it does not change their order.
            scores_QE = np.float32(model.score.product) * (query_QD[part] @ item_ED.T) - penalty_E
            starts_Q1 = excluded.starts_Q1[start : start + _QUERY_BLOCK + 1]
            _keep_best(scores_QE, first, starts_Q1, excluded.items_N, best_score_QK[part], best_item_QK[part])
    return best_item_QK, best_score_QK


@njit(cache=True)
def _hits(best_item_QK, starts_Q1, truth_N):  # type: ignore[no-untyped-def]
    hit_QK = np.zeros(best_item_QK.shape, dtype=np.bool_)
    for q in range(best_item_QK.shape[0]):
        truth = truth_N[starts_Q1[q] : starts_Q1[q + 1]]
        for k in range(best_item_QK.shape[1]):
            place = np.searchsorted(truth, best_item_QK[q, k])
            hit_QK[q, k] = place < truth.shape[0] and truth[place] == best_item_QK[q, k]
    return hit_QK


def evaluate(
    source: VectorSource, model: Model, held_out: HeldOut, spec: Evaluate, total: Callable[[FloatArray], FloatArray]
) -> Metrics:
    """The metrics of all workers' queries together; ``total`` sums a vector over the workers."""
    depths = sorted(set(spec.k))
    best_item_QK, _ = rank_items(source, model, held_out.queries_Q, held_out.excluded, depths[-1])
    hit_QK = _hits(best_item_QK, held_out.truth.starts_Q1, held_out.truth.items_N)
    truths_Q = np.diff(held_out.truth.starts_Q1)
    gain_K = 1.0 / np.log2(np.arange(2, depths[-1] + 2))
    ideal_K = np.cumsum(gain_K)
    sums = [float(len(truths_Q))]
    for k in depths:
        recall_Q = hit_QK[:, :k].sum(axis=1) / truths_Q
        ndcg_Q = hit_QK[:, :k] @ gain_K[:k] / ideal_K[np.minimum(k, truths_Q) - 1]
        sums += [recall_Q.sum(), ndcg_Q.sum()]
    queries, *values = total(np.array(sums))
    names = [f"{metric}@{k}" for k in depths for metric in ("recall", "ndcg")]
    metrics = {name: float(value / max(queries, 1)) for name, value in zip(names, values, strict=True)}
    return {**metrics, "queries": int(queries)}
