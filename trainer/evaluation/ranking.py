"""Ranking quality: every item ranked for every query that has held-out items, never a sample of items.

With H the held-out items of a query and its ranking cut at k:

- recall@k = |hits| / |H|
- ndcg@k = Σ_{hits at rank r} 1/log₂(r+1) / Σ_{r=1}^{min(k,|H|)} 1/log₂(r+1)      (Järvelin and Kekäläinen, 2002)
- map@k = Σ_{hits at rank r} (hits up to r)/r / min(k,|H|)      (mean average precision, as TREC cuts it)
- mrr@k = 1/rank of the first hit, 0 without one      (Voorhees, TREC 1999)
- hit_rate@k = 1 if there is a hit

averaged over queries, and of the rankings of all queries together

- coverage@k = items that are in some ranking / all items      (catalogue coverage, Ge et al., RecSys 2010)
- popularity@k = mean count in train of ranked items / that of held-out items, each averaged within queries first; above
  1, rankings lean to popular items more than queries do      (1 + popularity lift, Abdollahpouri et al., RecSys 2020)

Where held-out items have no positive interaction in train (*cold*; the others are *warm*), recall and ndcg are told
apart, each averaged over the queries that have such a held-out item:

- recall_warm@k, ndcg_warm@k: H is the held-out warm items, in the same rankings
- recall_cold@k, ndcg_cold@k: H is the held-out cold items, in the same rankings, among all warm ones
- recall_among_cold@k, ndcg_among_cold@k: H is the held-out cold items, and cold items alone are ranked, as on a shelf
  of what is new

Items of the excluded splits leave a query's ranking where their weight is positive: one that was skipped stays, and
costs a place if it is ranked high. Ties rank the lower row first. Queries and items come in blocks, so the memory for
rankings is bounded; workers share the queries out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numba import njit, prange

from kvstore.arrays import BoolArray, FloatArray, IntArray
from kvstore.store import MAX_ALL_REDUCE_LENGTH
from trainer.config.schema import EvaluateConfig, SplitName
from trainer.data.manifest import DatasetManifest
from trainer.data.reader import InteractionReader
from trainer.embeddings.files import VectorSource
from trainer.model.spec import ModelSpec, Score

_ITEM_BLOCK = 1 << 14
_QUERY_BLOCK = 256
_RANKED_AT_ONCE = 1 << 23
"""Places of rankings that are held at a time."""
_OVER_QUERIES = ("recall", "ndcg", "map", "mrr", "hit_rate")
_EXACT_BITS = 52
"""Integers of so many bits, and sums of them, are exact in float64."""

EvalMetrics = dict[str, float]
Total = Callable[[FloatArray], FloatArray]
"""Sums up to ``SUM_LENGTH`` float64 values over all workers; every worker calls it."""


@dataclass(frozen=True)
class ItemLists:
    """A sorted list of items for each query: query ``q`` has ``items_N[starts_Q1[q]:starts_Q1[q + 1]]``. int64."""

    starts_Q1: IntArray
    items_N: IntArray

    def only(self, wanted_I: BoolArray) -> ItemLists:
        """The lists with the items that are ``wanted_I``, of all items, alone."""
        stays_N = wanted_I[self.items_N]
        kept_N1 = np.concatenate([np.zeros(1, np.int64), np.cumsum(stays_N)])
        return ItemLists(kept_N1[self.starts_Q1], self.items_N[stays_N])

    def of(self, wanted_Q: BoolArray) -> ItemLists:
        """The lists of the queries that are ``wanted_Q``."""
        counts_Q = np.diff(self.starts_Q1)
        starts_Q1 = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts_Q[wanted_Q])])
        return ItemLists(starts_Q1, self.items_N[np.repeat(wanted_Q, counts_Q)])

    def part(self, first: int, end: int) -> ItemLists:
        """The lists of queries ``first`` to ``end``."""
        starts_Q1 = self.starts_Q1[first : end + 1]
        return ItemLists(starts_Q1 - starts_Q1[0], self.items_N[starts_Q1[0] : starts_Q1[-1]])


@dataclass(frozen=True)
class HeldOut:
    """What one worker judges: its queries, the items held out for each, and those that leave its ranking."""

    queries_Q: IntArray
    truth: ItemLists
    excluded: ItemLists
    workers: int = 1
    """How many workers share the queries out."""
    item_I: IntArray | None = None
    """The items that are ranked, int64 and sorted, where these are not all: rows that no id has are no items."""

    def parts(self, queries: int) -> Iterator[HeldOut]:
        """The same, so many queries at a time."""
        for first in range(0, len(self.queries_Q), queries):
            end = min(first + queries, len(self.queries_Q))
            lists = self.truth.part(first, end), self.excluded.part(first, end)
            yield HeldOut(self.queries_Q[first:end], *lists, self.workers, self.item_I)


def load_held_out(
    reader: InteractionReader,
    manifest: DatasetManifest,
    split: SplitName,
    exclude: Iterable[SplitName],
    rank: int,
    workers: int,
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
    nobody_I = manifest.entities[manifest.item].vacant_rows
    item_I = np.delete(np.arange(items), nobody_I) if nobody_I else None
    lists = _lists(held_out_N, queries_Q, items), _lists(excluded_N, queries_Q, items)
    return HeldOut(queries_Q, *lists, workers, item_I)


def _pairs(
    reader: InteractionReader, manifest: DatasetManifest, splits: list[SplitName], queries_Q: IntArray | None = None
) -> IntArray:
    """Each (query, item) pair of ``splits`` once, of ``queries_Q`` alone if given: query·items + item, sorted."""
    items = manifest.entities[manifest.item].rows
    wanted_R = np.full(manifest.entities[manifest.query].rows, queries_Q is None)
    wanted_R[[] if queries_Q is None else queries_Q] = True
    parts = [np.empty(0, dtype=np.int64)]
    for name in splits:
        if name in manifest.splits:
            for part in reader.read_all(manifest.splits[name]):
                liked_N = (part.weight_N > 0) & wanted_R[part.query_N]
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


def rank_among(
    source: VectorSource, model: ModelSpec, queries_Q: IntArray, excluded: ItemLists, depth: int, item_I: IntArray
) -> IntArray:
    """The ``depth`` best of the items ``item_I`` (int64, sorted) of each query, as ``rank_items`` gives them."""
    wanted_I = np.zeros(model.item.rows, np.bool_)
    wanted_I[item_I] = True
    left = excluded.only(wanted_I)
    places = ItemLists(left.starts_Q1, np.searchsorted(item_I, left.items_N))
    best_QK, _ = _rank(source, model, queries_Q, places, depth, item_I)
    return np.where(best_QK >= 0, item_I[best_QK], -1)


def rank_items(
    source: VectorSource, model: ModelSpec, queries_Q: IntArray, excluded: ItemLists, depth: int
) -> tuple[IntArray, FloatArray]:
    """The ``depth`` best items of each query, best first: rows int64 (Q, K), and scores float32 (Q, K).

    Where a query has fewer items to rank, the rest are row -1 with score -inf. Scores leave out what is the same for
    all items of a query (under euclidean, its own square).
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
    """The same of the items ``item_I``, of all if that is None; they, and those excluded, are told by their place."""

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
    """The ``depth`` best of so many ``items`` for each of ``query_QD``: their places, and scores, as ``rank_items``.

    ``vectors`` gives those of consecutive places; ``excluded`` are places too.
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
        for start in range(0, len(query_QD), _QUERY_BLOCK):
            part = slice(start, start + _QUERY_BLOCK)
            # The query's own square is the same for all its items, so it does not change their order.
            scores_QE = np.float32(score.dot_scale) * (query_QD[part] @ item_ED.T) - penalty_E
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
    source: VectorSource,
    model: ModelSpec,
    held_out: HeldOut,
    spec: EvaluateConfig,
    counts_N: IntArray,
    all_reduce: Total,
) -> EvalMetrics:
    """The metrics of all workers' queries together; ``counts_N`` are the items' counts in train, int64 (items,)."""
    depths = sorted(set(spec.k))
    item_I, items = held_out.item_I, model.item.rows if held_out.item_I is None else len(held_out.item_I)
    apart = _WarmColdMetrics(counts_N, depths, item_I)
    sums_KM = np.zeros((len(depths), len(_OVER_QUERIES)))
    ranked_K, held_out_popularity = np.zeros(len(depths)), 0.0
    seen_KN = np.zeros((len(depths), model.item.rows), dtype=np.bool_)
    for part in held_out.parts(max(_QUERY_BLOCK, _RANKED_AT_ONCE // depths[-1])):
        if item_I is None:
            best_item_QK, _ = rank_items(source, model, part.queries_Q, part.excluded, depths[-1])
        else:
            best_item_QK = rank_among(source, model, part.queries_Q, part.excluded, depths[-1], item_I)
        sums_KM += _sums_over_queries(best_item_QK, part.truth, depths)
        apart.add(best_item_QK, part, lambda *ranked: rank_among(source, model, *ranked))
        ranked_K += _popularity(best_item_QK, counts_N)[:, np.array(depths) - 1].sum(axis=0)
        held_out_popularity += _means(counts_N[part.truth.items_N], part.truth.starts_Q1).sum()
        for seen_N, k in zip(seen_KN, depths, strict=True):
            ranked_N = best_item_QK[:, :k].ravel()
            seen_N[ranked_N[ranked_N >= 0]] = True
    own = np.concatenate([[len(held_out.queries_Q), held_out_popularity], ranked_K, sums_KM.ravel()])
    queries, held_out_popularity, *values = _total(own, all_reduce)
    metrics: EvalMetrics = {}
    for place, k in enumerate(depths):
        of_k = values[len(depths) :][place * len(_OVER_QUERIES) :]
        means = (float(value / max(queries, 1)) for value in of_k[: len(_OVER_QUERIES)])
        metrics |= {f"{name}@{k}": mean for name, mean in zip(_OVER_QUERIES, means, strict=True)}
        metrics[f"coverage@{k}"] = _count_seen(seen_KN[place], held_out.workers, all_reduce) / items
        metrics[f"popularity@{k}"] = float(values[place] / held_out_popularity) if held_out_popularity else 0.0
    return {**metrics, **apart.metrics(all_reduce), "queries": int(queries)}


class _WarmColdMetrics:
    """Recall and ndcg of warm and of cold held-out items, summed over queries."""

    _KINDS = ("warm", "cold", "among_cold")
    _NAMES = _OVER_QUERIES[:2]

    def __init__(self, counts_N: IntArray, depths: list[int], item_I: IntArray | None) -> None:
        self._warm_N: BoolArray = counts_N > 0
        self._cold_I = np.flatnonzero(~self._warm_N)
        if item_I is not None:
            self._cold_I = np.intersect1d(self._cold_I, item_I, assume_unique=True)
        self._depths = depths
        self._queries = np.zeros(len(self._KINDS))
        self._sums_TKM = np.zeros((len(self._KINDS), len(depths), len(self._NAMES)))

    def add(
        self, best_item_QK: IntArray, part: HeldOut, rank: Callable[[IntArray, ItemLists, int, IntArray], IntArray]
    ) -> None:
        """Judge rankings of all items, and those of cold ones, which ``rank`` makes."""
        if not len(self._cold_I):
            return
        for kind, wanted_N in enumerate((self._warm_N, ~self._warm_N)):
            truth = part.truth.only(wanted_N)
            has_Q = np.diff(truth.starts_Q1) > 0
            if has_Q.any():
                truth = truth.of(has_Q)
                self._judge(kind, best_item_QK[has_Q], truth)
                if kind == self._KINDS.index("cold"):
                    excluded = part.excluded.of(has_Q)
                    among_QK = rank(part.queries_Q[has_Q], excluded, self._depths[-1], self._cold_I)
                    self._judge(self._KINDS.index("among_cold"), among_QK, truth)

    def _judge(self, kind: int, best_item_QK: IntArray, truth: ItemLists) -> None:
        self._queries[kind] += len(best_item_QK)
        self._sums_TKM[kind] += _sums_over_queries(best_item_QK, truth, self._depths)[:, : len(self._NAMES)]

    def metrics(self, all_reduce: Total) -> EvalMetrics:
        """Those of all workers together; none, where no held-out item is cold."""
        if not len(self._cold_I):
            return {}
        values = _total(np.concatenate([self._queries, self._sums_TKM.ravel()]), all_reduce)
        queries = dict(zip(self._KINDS, values, strict=False))
        if not queries["cold"]:
            return {}
        sums_TKM = values[len(self._KINDS) :].reshape(self._sums_TKM.shape)
        return {
            **{
                f"{name}_{kind}@{k}": float(value / max(queries[kind], 1))
                for kind, sums_KM in zip(self._KINDS, sums_TKM, strict=True)
                for k, sums_M in zip(self._depths, sums_KM, strict=True)
                for name, value in zip(self._NAMES, sums_M, strict=True)
            },
            **{f"queries_{kind}": int(queries[kind]) for kind in ("warm", "cold")},
        }


def _sums_over_queries(best_item_QK: IntArray, truth: ItemLists, depths: list[int]) -> FloatArray:
    """The metrics of ``_OVER_QUERIES`` at each depth, summed over the queries."""
    hit_QK = _hits(best_item_QK, truth.starts_Q1, truth.items_N)
    truths_Q = np.diff(truth.starts_Q1)
    rank_K = np.arange(1, depths[-1] + 1)
    gain_K = 1.0 / np.log2(rank_K + 1)
    ideal_K = np.cumsum(gain_K)
    precision_QK = np.where(hit_QK, np.cumsum(hit_QK, axis=1) / rank_K, 0.0)
    first_Q = np.where(hit_QK.any(axis=1), hit_QK.argmax(axis=1) + 1.0, np.inf)
    sums = []
    for k in depths:
        most_Q = np.minimum(k, truths_Q)
        recall_Q = hit_QK[:, :k].sum(axis=1) / truths_Q
        ndcg_Q = hit_QK[:, :k] @ gain_K[:k] / ideal_K[most_Q - 1]
        map_Q = precision_QK[:, :k].sum(axis=1) / most_Q
        hit_Q = first_Q <= k
        sums.append([values_Q.sum() for values_Q in (recall_Q, ndcg_Q, map_Q, hit_Q / first_Q, hit_Q)])
    return np.array(sums)


def _popularity(best_item_QK: IntArray, counts_N: IntArray) -> FloatArray:
    """The mean count of each ranking's items up to each depth, float64 (Q, K)."""
    ranked_QK = best_item_QK >= 0
    counts_QK = np.where(ranked_QK, counts_N[best_item_QK], 0)
    means_QK: FloatArray = np.cumsum(counts_QK, axis=1) / np.maximum(np.cumsum(ranked_QK, axis=1), 1)
    return means_QK


def _means(values_N: IntArray, starts_Q1: IntArray) -> FloatArray:
    """The mean of each query's values; every query has one at least."""
    means_Q: FloatArray = np.add.reduceat(values_N, starts_Q1[:-1]) / np.diff(starts_Q1)
    return means_Q


def _total(values_N: FloatArray, all_reduce: Total) -> FloatArray:
    """``total`` of any number of values."""
    starts = range(0, len(values_N), MAX_ALL_REDUCE_LENGTH)
    return np.concatenate(
        [np.empty(0), *(all_reduce(values_N[start : start + MAX_ALL_REDUCE_LENGTH]) for start in starts)]
    )


def _count_seen(seen_N: BoolArray, workers: int, all_reduce: Total) -> int:
    """How many items some worker has seen.

    Sums of 0 and 1 over W workers are digits to the base W + 1, of which as many as are exact go into one number.
    """
    base = workers + 1
    digits = int(_EXACT_BITS / math.log2(base))
    padded_VD = np.zeros((-(-len(seen_N) // digits), digits))
    padded_VD.ravel()[: len(seen_N)] = seen_N
    rest_V = _total(padded_VD @ float(base) ** np.arange(digits), all_reduce).astype(np.int64)
    seen = 0
    for _ in range(digits):
        seen += np.count_nonzero(rest_V % base)
        rest_V //= base
    return seen
