"""Choose the popularity term of a trained model (``trainer/embeddings/popularity.py``) by its metric on valid.

    trials = RankingTrials(vectors, model, held_out, "ndcg@10", store.all_reduce)
    term = choose_term(trials, count_latest(lineage, job.data.time_range()), temperature=0.18)

The factor may have either sign. With timestamps, popularity is counted in all of train and in its latest ``SHARES``,
whichever ranks best on a sample of the queries. A term is taken if its metric on all of them exceeds the model's own by
more than two standard errors of the difference, query by query.

Shapes: I items, Q queries, G groups of queries.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.trainer.data.lineage import LineageReader
from crossfade.trainer.data.reader import Interactions
from crossfade.trainer.data.time_range import TimeRange
from crossfade.trainer.embeddings.files import VectorSource
from crossfade.trainer.embeddings.popularity import PopularityTerm
from crossfade.trainer.embeddings.query_vectors import query_vectors
from crossfade.trainer.evaluation.exact_sums import AllReduceFunction, sum_over_workers
from crossfade.trainer.evaluation.held_out import HeldOut
from crossfade.trainer.evaluation.paired_gain import GroupSums, difference_of
from crossfade.trainer.evaluation.sample import query_keys
from crossfade.trainer.model.spec import ModelSpec
from crossfade.trainer.recommend.top_k import rank_vectors

SHARES = 1.0, 0.5, 0.25, 0.1, 0.05
"""Shares of the latest interactions, not of time: a few wrong timestamps may span decades."""
_FACTORS = -0.3, -0.1, 0.1, 0.3, 1.0, 3.0
_RECENT = 0.3
"""The smallest factor of the latest interactions that is tried first."""
_STEPS = 1.75, 1.3
"""By which the best factor is divided and multiplied, one after the other."""
_ERRORS = 2.0
"""Standard errors that a gain must exceed: it is the best of a dozen."""
_LEAST_GROUPS = 10
"""Groups of queries that must differ: of fewer, the error says little."""
_SEARCHED = 2_000
"""About how many queries candidates are compared on: neighboring factors differ by less than their error on these."""
_CHUNK = 1 << 14
"""Queries that are ranked together."""
_MAX_TIMES = 1 << 22
"""Timestamps that quantiles are taken of, at most."""
_KEPT_BYTES = 1 << 28
"""Bytes of the items' vectors up to which they stay in memory."""


def count_latest(lineage: LineageReader, time_range: TimeRange | None) -> dict[float, IntArray]:
    """Return the interactions of each item, int64 (I,), in the latest of train by share, 1 for all of train.

    Interactions of positive weight within ``time_range`` count, of base datasets too.

    Raises:
        InputError: a file is missing or corrupt.
        StorageUnavailableError: storage does not answer.
    """
    manifest = lineage.manifest
    if not manifest.has_timestamp:
        return {1.0: lineage.counts(manifest.item)}
    timed = partial(_timed, lineage, time_range)
    step = -(-lineage.train_rows() // _MAX_TIMES) or 1
    times_N = np.concatenate([np.empty(0, np.int64), *(times_N[::step] for _, times_N in timed())])
    since = {share: np.quantile(times_N, 1 - share, method="lower") if len(times_N) else 0 for share in SHARES}
    items = manifest.entities[manifest.item].rows
    counts = {share: np.zeros(items, np.int64) for share in since}
    for item_N, times_N in timed():
        for share in since:
            counts[share] += np.bincount(item_N[times_N >= since[share]], minlength=items)
    return counts


def _timed(lineage: LineageReader, time_range: TimeRange | None) -> Iterator[tuple[IntArray, IntArray]]:
    """Yield the items and times of what counts."""

    def counts(part: Interactions) -> tuple[IntArray, IntArray]:
        assert part.timestamp_N is not None
        kept_N = part.weight_N > 0
        if time_range is not None:
            kept_N &= time_range.contains(part.timestamp_N)
        return part.item_N[kept_N], part.timestamp_N[kept_N]

    yield from map(counts, lineage.read_train(timestamps=True))


@dataclass(frozen=True)
class RankingTrials:
    """Ranks the same queries again and again, by scores that differ in their offsets.

    Attributes:
        source: vectors of both sides.
        model: defines the score.
        held_out: this worker's queries.
        metric: the metric, such as ``ndcg@10``.
        all_reduce: sums values over all workers.
    """

    source: VectorSource
    model: ModelSpec
    held_out: HeldOut
    metric: str
    all_reduce: AllReduceFunction

    def measure(self, offset_I: FloatArray | float = 0.0, *, sampled: bool = False) -> FloatArray:
        """Return the sums of the metric by group of queries, with the scores of items raised by ``offset_I``.

        They are float64 (G,), over all workers, each of which calls this; ``sampled``: on about ``_SEARCHED`` queries.
        """
        sums, items = GroupSums(self.metric), self.model.item.rows
        penalty_I = (self._vacancy_I - offset_I).astype(np.float32)
        depth = int(self.metric.partition("@")[2])
        for chunk, query_QD in self._sample if sampled else self._chunks:
            best = rank_vectors(query_QD, self.model.score, items, self._items, chunk.excluded, depth, penalty_I)
            sums.observe(chunk, best[0])
        return sums.of_all(self.all_reduce)

    @cached_property
    def _chunks(self) -> list[tuple[HeldOut, FloatArray]]:
        """The queries and their vectors, in chunks."""
        return self._with_vectors(self.held_out)

    @cached_property
    def _sample(self) -> list[tuple[HeldOut, FloatArray]]:
        """A sample of the same, the same for any number of workers; all if there are no more."""
        queries_Q = self.held_out.queries_Q
        share = _SEARCHED / max(sum_over_workers(np.array([len(queries_Q)], float), self.all_reduce)[0], 1)
        if share >= 1:
            return self._chunks
        # By the later bits of the keys: their first bits chose these queries where valid is sampled itself.
        is_drawn_Q = query_keys(queries_Q[:, np.newaxis]) << np.uint64(32) < share * 2.0**64
        return self._with_vectors(self.held_out.take(np.flatnonzero(is_drawn_Q)))

    def _with_vectors(self, held_out: HeldOut) -> list[tuple[HeldOut, FloatArray]]:
        return [
            (chunk, query_vectors(self.source, self.model, chunk.queries_Q, chunk.context, chunk.histories))
            for chunk in held_out.chunks(_CHUNK)
        ]

    @cached_property
    def _vacancy_I(self) -> FloatArray:
        """Infinite for vacant rows, which are not ranked, otherwise 0."""
        vacancy_I = np.zeros(self.model.item.rows)
        if self.held_out.item_I is not None:
            vacancy_I[np.delete(np.arange(len(vacancy_I)), self.held_out.item_I)] = np.inf
        return vacancy_I

    @cached_property
    def _kept_ID(self) -> FloatArray | None:
        """The vectors of all items, if memory may have them."""
        item = self.model.item
        return self._read(np.arange(item.rows)) if item.rows * item.dim * 4 <= _KEPT_BYTES else None

    def _items(self, rows_N: IntArray) -> FloatArray:
        """Return the vectors of consecutive items."""
        return self._read(rows_N) if self._kept_ID is None else self._kept_ID[rows_N[0] : rows_N[-1] + 1]

    def _read(self, rows_N: IntArray) -> FloatArray:
        return self.source.vectors(self.model.item.name, rows_N)


def choose_term(
    trials: RankingTrials,
    counts: Mapping[float, IntArray],
    temperature: float,
    factor: float | None = None,
) -> PopularityTerm | None:
    """Return the term that ranks best; None if none ranks clearly better than the model alone.

    Every worker calls this.

    Args:
        trials: rank the queries of valid.
        counts: interactions of each item, int64 (I,), by the share of the latest that they are, 1 among them.
        temperature: of the loss.
        factor: the only factor to try; it is taken whatever it gains. None: choose.
    """
    log_counts = {share: np.log1p(count_I) for share, count_I in counts.items()}
    tried: dict[tuple[float, float], FloatArray] = {}

    def best_of(candidates: Iterable[tuple[float, float]]) -> tuple[float, float]:
        for share, each in candidates:
            if (share, each) not in tried:
                tried[share, each] = trials.measure(each * log_counts[share], sampled=True)
        return max(tried, key=lambda candidate: float(tried[candidate].sum()))

    if factor is not None:
        share, factor = best_of((share, factor) for share in counts)
        return PopularityTerm.of(factor, share, temperature, counts[share])
    # Recent plays are evidence for an item: only of all plays may the model have learned too much.
    share, factor = best_of((share, each) for share in counts for each in _FACTORS if share == 1 or each >= _RECENT)
    for step in _STEPS:
        share, factor = best_of([(share, factor / step), (share, factor * step)])
    factor = round(factor, 3)
    found_G = trials.measure(factor * log_counts[share])
    alone_G = trials.measure()
    gain, error = difference_of(found_G, alone_G)
    if gain <= _ERRORS * error or np.count_nonzero(found_G != alone_G) < _LEAST_GROUPS:
        return None
    return PopularityTerm.of(factor, share, temperature, counts[share])
