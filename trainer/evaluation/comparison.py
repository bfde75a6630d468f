"""Compare two runs query by query: how much their recall and ndcg differ, and whether more than by chance.

    check_same_dataset(RunEmbeddings(job, folder), RunEmbeddings(other_job, other_folder))
    found, other = QueryMetrics(job.evaluate.k), QueryMetrics(job.evaluate.k)      # observers of one evaluation each
    compare(found, other)["ndcg@10"].p_holm

Both runs rank for the same queries, so each query is its own control: the test is of the differences of pairs.

- p: probability of a mean difference at least as large, of either sign, if each query's difference were as likely the
  other way round (paired permutation test, Fisher 1935; exact where its 2^N cases are at most ``RESAMPLES``, otherwise
  by as many random ones). It makes no assumption on the distribution, where the t test would need more than a few
  differing queries; it agrees with it on many, and rejects less often by mistake than Wilcoxon's and the sign test
  (Smucker, Allan and Carterette, CIKM 2007; Urbano, Lima and Hanjalic, SIGIR 2019).
- p_holm: p after Holm's correction for the number of metrics (Scandinavian Journal of Statistics 1979): the probability
  that any metric is below a threshold by chance is at most the threshold.
- low, high: 95% confidence interval of the mean difference, between percentiles of means over queries drawn with
  replacement (bootstrap, Efron 1979).

All are of two trainings: whether one job is better than another takes several trainings of both. Random numbers have a
fixed seed, so results repeat. Of more than ``MAX_UNITS`` differences, random groups of equal size take the place of
queries: they are exchangeable in the same way, so time and memory are bounded.

Shapes: Q queries, K depths, N differences, U units.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.errors import InputError, Option, OptionError
from crossfade.base.io.folder import Folder
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.data.manifest import data_fingerprint
from crossfade.trainer.data.vocabulary import Vocabulary
from crossfade.trainer.embeddings.files import EmbeddingFiles
from crossfade.trainer.evaluation.held_out import HeldOut
from crossfade.trainer.evaluation.list_metrics import hit_metrics
from crossfade.trainer.runs.job_inputs import open_inputs

RESAMPLES = 9_999
MAX_UNITS = 2_048
_CONFIDENCE = 0.95
_SEED = 1
_BATCH = 256
"""Resamples that are in memory together."""
_NAMES = ("recall", "ndcg")


@dataclass(frozen=True)
class RunEmbeddings:
    """The job of a run and the folder of its embeddings."""

    job: JobConfig
    embeddings: Path


@dataclass(frozen=True)
class MetricComparison:
    """Comparison of one metric.

    Attributes:
        run: mean of the run.
        other: mean of the other run.
        difference: the first less the second.
        low: lower end of the confidence interval of the difference.
        high: its upper end.
        p: of the permutation test.
        p_holm: the same, corrected.
        better: number of queries with a larger value of the run.
        worse: number of queries with a smaller one.
        equal: number of the others.
    """

    run: float
    other: float
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    better: int
    worse: int
    equal: int


class QueryMetrics:
    """Keeps recall and ndcg of each query; implements ``RankingObserver``."""

    def __init__(self, depths: list[int]) -> None:
        """Keep the metrics at ``depths``."""
        self._depths = sorted(set(depths))
        self._queries: list[IntArray] = [np.empty(0, np.int64)]
        self._metrics: list[FloatArray] = [np.empty((0, len(self._depths), len(_NAMES)))]

    def observe(self, chunk: HeldOut, best_item_QK: IntArray) -> None:
        """Add the rankings of a chunk's queries."""
        self._queries.append(chunk.queries_Q)
        self._metrics.append(hit_metrics(best_item_QK, chunk.truth, self._depths)[:, :, :2].copy())

    def queries(self) -> IntArray:
        """Return the queries."""
        return np.concatenate(self._queries)

    def values(self) -> dict[str, FloatArray]:
        """Return the values of all queries by metric, float64 (Q,)."""
        metrics_QKM = np.concatenate(self._metrics)
        return {
            f"{name}@{depth}": metrics_QKM[:, k, m]
            for m, name in enumerate(_NAMES)
            for k, depth in enumerate(self._depths)
        }


def check_same_dataset(run: RunEmbeddings, other: RunEmbeddings) -> None:
    """Check that two runs were trained on the same dataset, or on copies of it, so that their queries are the same.

    Raises:
        InputError: they were not, or the dataset is no longer the one of the embeddings.
    """
    data, other_data = Folder(run.job.data.path), Folder(other.job.data.path)
    if data_fingerprint(data) != data_fingerprint(other_data):
        raise OptionError(
            "compare",
            found=other.embeddings.parent,
            problem=f"was trained on {other_data.uri}, another dataset or version of it than {data.uri} of "
            f"{run.embeddings.parent}, so their queries differ",
            fix="compare runs of one dataset",
        )
    for found in (run, other):
        _check_rows(found)


def _check_rows(run: RunEmbeddings) -> None:
    """Compare the number of rows, and the first IDs, of embeddings and dataset."""
    data, manifest, model, _ = open_inputs(run.job)
    embeddings = EmbeddingFiles(run.embeddings)
    for entity in (model.query.name, model.item.name):
        if not embeddings.has_rows_of(entity, Vocabulary(data, manifest, entity)):
            raise InputError(
                f"{run.embeddings}: has other rows of '{entity}' than {data.uri}, which was prepared again since; "
                "train again, or restore the dataset"
            )


def compare(run: QueryMetrics, other: QueryMetrics) -> dict[str, MetricComparison]:
    """Compare the metrics of the same queries by two runs.

    Raises:
        InputError: there is no query.
    """
    if not len(run.queries()):
        raise OptionError(
            "compare",
            problem="the split has no held-out interaction of positive weight",
            fix=("choose another ", Option("split")),
        )
    assert np.array_equal(run.queries(), other.queries())
    others = other.values()
    pairs = {name: (values_Q, others[name]) for name, values_Q in run.values().items()}
    p_values = {name: permutation_test(values_Q - other_Q) for name, (values_Q, other_Q) in pairs.items()}
    corrected = holm(list(p_values.values()))
    return {
        name: _describe(*pairs[name], p_values[name], p_holm) for name, p_holm in zip(pairs, corrected, strict=True)
    }


def _describe(run_Q: FloatArray, other_Q: FloatArray, p: float, p_holm: float) -> MetricComparison:
    difference_Q = run_Q - other_Q
    return MetricComparison(
        float(run_Q.mean()),
        float(other_Q.mean()),
        float(difference_Q.mean()),
        *confidence_interval(difference_Q),
        p,
        p_holm,
        int((difference_Q > 0).sum()),
        int((difference_Q < 0).sum()),
        int((difference_Q == 0).sum()),
    )


def permutation_test(difference_N: FloatArray) -> float:
    """Return the two-sided p-value of the paired permutation test.

    Differences of 0 are left out: they stay 0 in each permutation.
    """
    from scipy import stats  # most evaluations compare nothing, and it takes a second

    units_U = _units(difference_N[difference_N != 0])
    if len(units_U) < 2:
        return 1.0  # one difference is as likely of either sign
    found = stats.permutation_test(
        (units_U,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=_BATCH,
        rng=np.random.default_rng(_SEED),
    )
    return float(found.pvalue)


def confidence_interval(difference_N: FloatArray) -> tuple[float, float]:
    """Return the ends of the bootstrap interval of the mean, which are the difference if there is only one."""
    from scipy import stats

    units_U = _units(difference_N)
    if len(units_U) < 2:
        return float(units_U[0]), float(units_U[0])
    found = stats.bootstrap(
        (units_U,),
        np.mean,
        confidence_level=_CONFIDENCE,
        n_resamples=RESAMPLES,
        batch=_BATCH,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(_SEED),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def _units(difference_N: FloatArray) -> FloatArray:
    """Return at most ``MAX_UNITS`` differences with the same mean: the given ones or, of more, those of groups."""
    if len(difference_N) <= MAX_UNITS:
        return difference_N
    group_N = np.random.default_rng(_SEED).permutation(len(difference_N)) % MAX_UNITS
    return np.bincount(group_N, difference_N, MAX_UNITS) * (MAX_UNITS / len(difference_N))


def holm(p_values: list[float]) -> list[float]:
    """Return p-values after Holm's correction, in the same order."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, p_values[place] * (len(p_values) - rank)))
        corrected[place] = largest
    return corrected
