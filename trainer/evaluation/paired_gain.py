"""Whether a metric has risen by more than chance from one evaluation to another of the same queries.

    sums = GroupSums("ndcg@10")                       # an observer of an evaluation
    exceeds_error(sums.of_all(all_reduce), np.array(state.gained_from))

The standard error is that of the mean of the queries' differences, which is far below that of either mean: a query that
is hard for one epoch is hard for the next. Instead of a value for each query, sums over ``GROUPS`` random groups are
compared, which are the same for any number of workers, and which a checkpoint keeps. With G groups, whose sums differ
by d, the variance of Σd is about G·s², where s² is the sample variance of d (random groups; Wolter, Introduction to
Variance Estimation, 2007). With many more queries than groups, such an error is itself off by about
1/√(2G), 4 %; with few, by more. Where fewer than two groups differ, there is no error to compare with: any rise is a
gain. A query is always in the same group, by
its row.

Shapes: Q queries, G groups, K ranks.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.trainer.evaluation.exact_sums import AllReduceFunction, sum_over_workers
from crossfade.trainer.evaluation.held_out import HeldOut
from crossfade.trainer.evaluation.list_metrics import QUERY_METRICS, hit_metrics
from crossfade.trainer.evaluation.ranking import EvalMetrics
from crossfade.trainer.evaluation.sample import query_keys

GROUPS = 256


class Evaluation(NamedTuple):
    """The metrics of an evaluation and, where gains matter, the sums of one by group: float64 (G,)."""

    metrics: EvalMetrics
    sums_G: FloatArray | None = None


class GroupSums:
    """Sums ``metric``, such as ``ndcg@10``, over groups of queries; implements ``RankingObserver``."""

    def __init__(self, metric: str) -> None:
        """Begin with no query."""
        name, _, depth = metric.partition("@")
        self._metric, self._depth = QUERY_METRICS.index(name), int(depth)
        self._sums_G = np.zeros(GROUPS)

    def observe(self, chunk: HeldOut, best_item_QK: IntArray) -> None:
        """Add the rankings of a chunk's queries."""
        values_Q = hit_metrics(best_item_QK, chunk.truth, [self._depth])[:, 0, self._metric]
        group_Q = (query_keys(chunk.queries_Q[:, np.newaxis]) % np.uint64(GROUPS)).astype(np.int64)
        self._sums_G += np.bincount(group_Q, values_Q, GROUPS)

    def of_all(self, all_reduce: AllReduceFunction) -> FloatArray:
        """Return the sums over the queries of all workers, float64 (G,). Every worker calls this."""
        return sum_over_workers(self._sums_G, all_reduce)


def exceeds_error(sums_G: FloatArray, earlier_G: FloatArray) -> bool:
    """Return whether the mean of ``sums_G`` is above that of ``earlier_G`` by more than the error of the difference."""
    difference, error = difference_of(sums_G, earlier_G)
    return difference > error


def difference_of(sums_G: FloatArray, other_G: FloatArray) -> tuple[float, float]:
    """Return the sum of the first less that of the others, and its error, 0 where fewer than two groups differ."""
    difference_G = sums_G - other_G
    if np.count_nonzero(difference_G) < 2:  # the error would equal the difference, but for rounding
        return float(difference_G.sum()), 0.0
    return float(difference_G.sum()), math.sqrt(len(difference_G) * difference_G.var(ddof=1))
