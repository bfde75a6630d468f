"""Ranking metrics: every item, never a sample of items, is ranked for every query that has held-out items, or for a
sample of these queries.

    metrics = evaluate(source, model, held_out, job.evaluate, counts_N, store.all_reduce)
    metrics = evaluate_embeddings(job, Path("runs/lastfm/embeddings"), "test")      # that a run has written
    metrics["ndcg@10"]

With H the held-out items of a query and its ranking cut at k:

- recall@k = |hits| / |H|
- ndcg@k = Σ_{hits at rank r} 1/log₂(r+1) / Σ_{r=1}^{min(k,|H|)} 1/log₂(r+1)      (Järvelin and Kekäläinen, 2002)
- map@k = Σ_{hits at rank r} (hits up to r)/r / min(k,|H|)      (mean average precision, as TREC cuts it)
- mrr@k = 1/rank of the first hit, 0 without one      (Voorhees, TREC 1999)
- hit_rate@k = 1 if there is a hit

averaged over queries, and over the rankings of all queries together

- coverage@k = items that are in some ranking / all items      (catalog coverage, Ge et al., RecSys 2010)
- popularity@k = mean count in train of ranked items / that of held-out items, each averaged within queries first; above
  1, rankings lean to popular items more than queries do      (1 + popularity lift, Abdollahpouri et al., RecSys 2020)

Where held-out items have no positive interaction in train (*cold*; the others are *warm*), recall and ndcg are also
reported separately, each averaged over the queries that have such a held-out item:

- recall_warm@k, ndcg_warm@k: H is the held-out warm items, in the same rankings
- recall_cold@k, ndcg_cold@k: H is the held-out cold items, in the same rankings, among all warm ones
- recall_among_cold@k, ndcg_among_cold@k: H is the held-out cold items, and only cold items are ranked, as on a page
  of new releases

and counted:

- queries: those with a held-out item that counts
- pairs, pairs_dropped: held-out pairs of a query and an item that count, and those that do not
- queries_in_split: the queries of the split, if only a sample of them is evaluated (``sample.py``); some of them may
  have no item that counts

Each mean over Q queries has its standard error, at the same name with ``_se``, if there are at least two:

- ndcg@k_se = s/√Q, with s² = Σ (value − mean)² / (Q − 1)      (standard error of the mean)

It measures by how much the mean would vary with other queries of the same kind, each drawn by itself, be those here a
sample or all that there are. It leaves out how much the metric varies with the seed of training, and is too large for
the difference of two runs on the same queries (``comparison.py``).

With the task ``new``, items that a query has in an excluded split with a positive weight are neither ranked nor counted
as held out: an item with negative feedback stays, and costs a rank if it is ranked high. With ``repeat``, all items are
ranked and all held-out ones count. In a dataset with context, a query is a combination of a row and the context of a
held-out event, whether the model uses context or not, so that models with and without it are measured on the same
queries. Queries are processed in chunks, so the memory for rankings is bounded, and divided among the workers. Sums
are exact (``exact_sums.py``), so metrics are the same to the last bit for any chunks and workers.

Shapes: Q queries, K ranks or depths, M metrics, N items, I ranked items, T kinds of items, V numbers of D
digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from crossfade.base.arrays import BoolArray, FloatArray, IntArray
from crossfade.base.errors import InputError, Option, join
from crossfade.base.io.folder import Folder
from crossfade.trainer.config.schema import EvaluateConfig, JobConfig
from crossfade.trainer.config.sections import resolved
from crossfade.trainer.data.jagged_array import JaggedArray
from crossfade.trainer.data.split_names import SplitName
from crossfade.trainer.embeddings.files import EmbeddingFiles, VectorSource
from crossfade.trainer.embeddings.popularity import read_term
from crossfade.trainer.embeddings.query_vectors import query_vectors
from crossfade.trainer.evaluation.exact_sums import AllReduceFunction, ExactSums, sum_over_workers
from crossfade.trainer.evaluation.held_out import HeldOut, load_held_out
from crossfade.trainer.evaluation.list_metrics import QUERY_METRICS, hit_metrics, mean_over_ranks, shown_at
from crossfade.trainer.model.spec import ModelSpec, Score
from crossfade.trainer.model.towers import load_latest_histories
from crossfade.trainer.recommend.options import RerankingOptions
from crossfade.trainer.recommend.reranking import Reranking
from crossfade.trainer.recommend.top_k import QUERY_BLOCK, rank_items, rank_vectors
from crossfade.trainer.runs.job_inputs import load_inputs, open_inputs, open_lineage
from crossfade.trainer.runs.shown_metrics import error_of

_MAX_RANKED = 1 << 23
"""Ranks of all queries of a chunk together."""
_EXACT_BITS = 52
"""Integers of up to this many bits, and their sums, are exact in float64."""

EvalMetrics = dict[str, int | float]


class Workers(Protocol):
    """The processes that divide the queries among themselves; a ``RowStore`` is one."""

    @property
    def rank(self) -> int:
        """The number of this process."""

    @property
    def workers(self) -> int:
        """How many there are."""

    def all_reduce(self, values_N: FloatArray) -> FloatArray:
        """Return sums over all; every process calls this."""


class Alone:
    """One process with all queries."""

    rank, workers = 0, 1

    def all_reduce(self, values_N: FloatArray) -> FloatArray:
        """Return ``values_N``."""
        return values_N


class RankingObserver(Protocol):
    """Computes more from the rankings of an evaluation."""

    def observe(self, chunk: HeldOut, best_item_QK: IntArray) -> None:
        """Take the rankings of all items of a chunk's queries, int64, padded with -1; chunks come in order."""


def evaluate(
    source: VectorSource,
    model: ModelSpec,
    held_out: HeldOut,
    spec: EvaluateConfig,
    counts_N: IntArray,
    all_reduce: AllReduceFunction,
    observers: Sequence[RankingObserver] = (),
    reranking: Reranking | None = None,
) -> EvalMetrics:
    """Compute the metrics over all workers' queries.

    Args:
        source: vectors of both sides.
        model: defines the score, with ``reranking`` without the temperature, as of recommendations.
        held_out: this worker's queries.
        spec: the depths.
        counts_N: the items' counts in train, int64 (items,).
        all_reduce: sums values over all workers.
        observers: get this worker's rankings.
        reranking: changes the rankings of all items, not those among cold ones.
    """
    depths, item_I = sorted(set(spec.k)), held_out.item_I
    hits, warm_cold = QuerySums(depths), _WarmColdMetrics(counts_N, depths, item_I)
    seen_KN, most = np.zeros((len(depths), model.item.rows), np.bool_), float(counts_N.max(initial=1))
    popularity = ExactSums((len(depths) + 1,), most)
    for chunk in held_out.chunks(_chunk_queries(depths[-1], reranking)):
        best_item_QK = _rank(source, model, chunk, depths[-1], reranking, counts_N)
        hits.add(best_item_QK, chunk.truth)
        warm_cold.add(best_item_QK, chunk, partial(_rank_among, source, model))
        popularity.add(_popularity(best_item_QK, chunk.truth, counts_N, depths))
        for seen_N, shown_N in zip(seen_KN, shown_at(best_item_QK, depths), strict=True):
            seen_N[shown_N] = True
        for observer in observers:
            observer.observe(chunk, best_item_QK)
    seen_KN, hits = np.logical_or.accumulate(seen_KN), hits.of_all(all_reduce)
    pairs, dropped = sum_over_workers(np.array([len(held_out.truth.values_N), held_out.dropped], float), all_reduce)
    *popularity_K, held_out_popularity = popularity.of_all(all_reduce).values()
    items = model.item.rows if item_I is None else len(item_I)
    metrics, errors = EvalMetrics(), EvalMetrics()
    for place, k in enumerate(depths):
        metrics |= hits.means(place, f"@{k}")
        errors |= hits.errors(place, f"@{k}")
        metrics[f"coverage@{k}"] = _count_seen(seen_KN[place], held_out.workers, all_reduce) / items
        metrics[f"popularity@{k}"] = float(popularity_K[place] / held_out_popularity) if held_out_popularity else 0.0
    of_kinds, errors_of_kinds = warm_cold.metrics(all_reduce)
    metrics |= {**of_kinds, "queries": hits.queries, "pairs": int(pairs), "pairs_dropped": int(dropped)}
    if held_out.sampled_from is not None:
        metrics["queries_in_split"] = held_out.sampled_from
    return metrics | errors | errors_of_kinds


def evaluate_embeddings(
    job: JobConfig,
    embeddings: Path | Folder,
    split: SplitName,
    among: Workers | None = None,
    observers: Sequence[RankingObserver] = (),
    reranking: RerankingOptions | None = None,
) -> EvalMetrics:
    """Evaluate embeddings on ``split``, together with all workers of ``among``, or alone.

    As many queries are evaluated as ``evaluate.final`` says.

    ``observers`` get the rankings, which ``reranking`` changes.

    Raises:
        InputError: the dataset or the embeddings cannot be read, or there is no such split.
    """
    data, manifest, model, job = load_inputs(job) if among else open_inputs(job)
    if split not in manifest.splits:
        chosen = [Option("split", name) for name in manifest.splits if name != "train"]
        choice = ("choose ", join(chosen, " or "), ", or ") if chosen else ""
        raise InputError(f"{data.uri}: has no split '{split}': ", choice, "prepare the data with a hold-out")
    among = among or Alone()
    latest = None
    if model.history is not None and job.evaluate.by == "moment":
        latest = load_latest_histories(job, data, manifest, model.history)
    with closing(open_lineage(job, data, manifest)) as lineage:
        queries = job.evaluate.queries_of(split)
        held_out = load_held_out(lineage, split, job.evaluate, among.rank, among.workers, latest, queries)
        counts_N = lineage.counts(manifest.item)
    source, change, temperature = EmbeddingFiles(embeddings), None, resolved(job.model.temperature)
    if reranking is not None and reranking.is_reranked:
        change, temperature = Reranking.of(reranking, job), 1.0
        model = replace(model, score=Score.of(job.model.score, temperature))
    if (term := read_term(source, model.item.rows)) is not None:
        model = replace(model, score=term.added_to(model.score, temperature))
    return evaluate(source, model, held_out, job.evaluate, counts_N, among.all_reduce, observers, change)


def _chunk_queries(depth: int, reranking: Reranking | None) -> int:
    """Return how many queries are ranked together."""
    ranked = depth if reranking is None else reranking.options.depth(depth)
    return max(QUERY_BLOCK, _MAX_RANKED // ranked)


def _rank(
    source: VectorSource,
    model: ModelSpec,
    chunk: HeldOut,
    depth: int,
    reranking: Reranking | None,
    counts_N: IntArray,
) -> IntArray:
    """Rank the items of the catalog for each query of ``chunk``."""
    if reranking is not None:
        return _rerank(source, model, chunk, depth, reranking, counts_N)
    return _rank_among(source, model, chunk, depth, chunk.item_I)


def _rank_among(
    source: VectorSource, model: ModelSpec, chunk: HeldOut, depth: int, item_I: IntArray | None
) -> IntArray:
    asked = chunk.queries_Q, chunk.excluded, depth, chunk.context, chunk.histories
    return rank_items(source, model, *asked, item_I)[0]


def _rerank(
    source: VectorSource, model: ModelSpec, chunk: HeldOut, depth: int, reranking: Reranking, counts_N: IntArray
) -> IntArray:
    """Rank the same, and re-rank."""
    penalty_N = reranking.damping(counts_N)
    if chunk.item_I is not None:
        penalty_N[np.delete(np.arange(len(penalty_N)), chunk.item_I)] = np.inf
    query_QD = query_vectors(source, model, chunk.queries_Q, chunk.context, chunk.histories)
    vectors, candidates = partial(source.vectors, model.item.name), reranking.options.depth(depth)
    best = rank_vectors(query_QD, model.score, len(penalty_N), vectors, chunk.excluded, candidates, penalty_N)
    return reranking.choose(*best, depth, source, model.item)[0] if reranking.options.chooses else best[0]


class QuerySums:
    """The sums of ``QUERY_METRICS`` and of their squares over queries, at each depth."""

    def __init__(self, depths: list[int]) -> None:
        self._depths, self.queries = depths, 0
        self._sums = ExactSums((2, len(depths), len(QUERY_METRICS)), 1.0)

    def add(self, best_item_QK: IntArray, truth: JaggedArray) -> None:
        """Add the queries of these rankings."""
        metrics_QKM = hit_metrics(best_item_QK, truth, self._depths)
        self.queries += len(best_item_QK)
        self._sums.add(np.stack([metrics_QKM, np.square(metrics_QKM)], axis=1))

    def of_all(self, all_reduce: AllReduceFunction) -> QuerySums:
        """Return the sums over the queries of all workers."""
        found = QuerySums(self._depths)
        found.queries = int(sum_over_workers(np.array([self.queries], float), all_reduce)[0])
        found._sums = self._sums.of_all(all_reduce)
        return found

    def means(self, place: int, suffix: str, names: Sequence[str] = QUERY_METRICS) -> EvalMetrics:
        """Return the mean of each metric at the depth at ``place``, by its name with ``suffix``."""
        means = (float(value / max(self.queries, 1)) for value in self._sums.values()[0, place])
        return {f"{name}{suffix}": mean for name, mean in zip(names, means, strict=False)}

    def errors(self, place: int, suffix: str, names: Sequence[str] = QUERY_METRICS) -> EvalMetrics:
        """Return the standard error of each mean, by its name; none with fewer than two queries."""
        if self.queries < 2:
            return {}
        sums_M, squares_M = self._sums.values()[:, place]
        squares_M = squares_M - np.square(sums_M) / self.queries
        errors_M = np.sqrt(np.maximum(squares_M, 0.0) / (self.queries - 1) / self.queries)
        return {error_of(f"{name}{suffix}"): float(error) for name, error in zip(names, errors_M, strict=False)}


class _WarmColdMetrics:
    """Accumulates recall and ndcg of warm and of cold held-out items over queries."""

    _KINDS = ("warm", "cold", "among_cold")
    _NAMES = QUERY_METRICS[:2]

    def __init__(self, counts_N: IntArray, depths: list[int], item_I: IntArray | None) -> None:
        self._warm_N: BoolArray = counts_N > 0
        self._cold_I = np.flatnonzero(~self._warm_N)
        if item_I is not None:
            self._cold_I = np.intersect1d(self._cold_I, item_I, assume_unique=True)
        self._depths = depths
        self._sums = {kind: QuerySums(depths) for kind in self._KINDS}

    def add(
        self,
        best_item_QK: IntArray,
        chunk: HeldOut,
        rank: Callable[[HeldOut, int, IntArray], IntArray],
    ) -> None:
        """Add rankings of all items, and those among cold items, which ``rank`` computes."""
        if not len(self._cold_I):
            return
        for kind, of_kind_N in (("warm", self._warm_N), ("cold", ~self._warm_N)):
            truth = chunk.truth.filter_values(of_kind_N)
            has_Q = truth.counts_L > 0
            if has_Q.any():
                truth = truth.take(np.flatnonzero(has_Q))
                self._sums[kind].add(best_item_QK[has_Q], truth)
                if kind == "cold":
                    among_QK = rank(chunk.take(np.flatnonzero(has_Q)), self._depths[-1], self._cold_I)
                    self._sums["among_cold"].add(among_QK, truth)

    def metrics(self, all_reduce: AllReduceFunction) -> tuple[EvalMetrics, EvalMetrics]:
        """Return the metrics over all workers' queries, and their errors; none if no held-out item is cold."""
        if not len(self._cold_I):
            return {}, {}
        sums = {kind: of_kind.of_all(all_reduce) for kind, of_kind in self._sums.items()}
        if not sums["cold"].queries:
            return {}, {}
        metrics: EvalMetrics = {}
        errors: EvalMetrics = {}
        for kind, of_kind in sums.items():
            for place, k in enumerate(self._depths):
                metrics |= of_kind.means(place, f"_{kind}@{k}", self._NAMES)
                errors |= of_kind.errors(place, f"_{kind}@{k}", self._NAMES)
        return metrics | {f"queries_{kind}": sums[kind].queries for kind in ("warm", "cold")}, errors


def _popularity(best_item_QK: IntArray, truth: JaggedArray, counts_N: IntArray, depths: list[int]) -> FloatArray:
    """Return the mean count of each ranking's items at each depth, and of its held-out items: float64 (Q, K + 1)."""
    ranked_QK = np.nan_to_num(mean_over_ranks(best_item_QK, counts_N, depths))
    held_out_Q = np.add.reduceat(counts_N[truth.values_N], truth.starts_L1[:-1]) / truth.counts_L
    return np.column_stack([ranked_QK, held_out_Q])


def _count_seen(seen_N: BoolArray, workers: int, all_reduce: AllReduceFunction) -> int:
    """Count the items that some worker has seen.

    Sums of 0 and 1 over W workers are digits to the base W + 1; as many as stay exact are packed into one float64.
    """
    base = workers + 1
    digits = int(_EXACT_BITS / math.log2(base))
    padded_VD = np.zeros((-(-len(seen_N) // digits), digits))
    padded_VD.ravel()[: len(seen_N)] = seen_N
    rest_V = sum_over_workers(padded_VD @ float(base) ** np.arange(digits), all_reduce).astype(np.int64)
    seen = 0
    for _ in range(digits):
        seen += np.count_nonzero(rest_V % base)
        rest_V //= base
    return seen
