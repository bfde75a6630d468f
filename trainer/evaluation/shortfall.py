"""Compare the metrics of a run with baselines, and name the baselines that it is not clearly above.

    found = compare_with_baselines(job, {"test": metrics}, {"test": sums_G})
    found["shortfall"]      # "ndcg@10 on test is 0.2078, below als (0.2150, by 0.0072 ± 0.0021): try …", or None

A baseline is named unless the run is ahead of it by more than the standard error of the difference. With the run's
sums over groups of queries (``paired_gain.py``), that is the error of paired differences; without, it is combined from
both means' errors, which is larger.

Shapes: G groups.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from crossfade.base.arrays import FloatArray
from crossfade.base.errors import command
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.data.split_names import SplitName
from crossfade.trainer.evaluation.baselines import load_baselines
from crossfade.trainer.evaluation.paired_gain import difference_of
from crossfade.trainer.recommend.options import RerankingOptions
from crossfade.trainer.runs.shown_metrics import error_of

_RERANKING = "popularity_damping", "diversity"


def compare_with_baselines(
    job: JobConfig,
    metrics: Mapping[SplitName, Mapping[str, float]],
    sums: Mapping[SplitName, FloatArray] | None = None,
    *,
    in_training: bool = False,
    tuned: ProgressReporter | None = None,
    reranking: RerankingOptions | None = None,
) -> dict[str, Any]:
    """Return the ``metrics`` of the baselines by split and name, ``notes``, and the ``shortfall`` in words, or None.

    Where no query of the run counts, there is nothing to compare, and no ``shortfall``.

    Args:
        job: the job of the run.
        metrics: those of the run, by split.
        sums: the run's ``GroupSums`` of ``evaluate.best_metric`` by split, if there are any.
        in_training: as ``load_baselines`` takes it.
        tuned: likewise.
        reranking: how the lists of the run were re-ranked, if they were; those of the baselines were not.

    Raises:
        InputError: the dataset cannot be read.
    """
    found = load_baselines(job, list(metrics), in_training=in_training, tuned=tuned)
    sums_of = found.pop("sums")
    split: SplitName = "test" if "test" in metrics else next(iter(metrics))
    run_G = (sums or {}).get(split)
    of_baselines = [(name, each, sums_of[split].get(name)) for name, each in found["metrics"][split].items()]
    below, level = _compare(job.evaluate.best_metric, metrics[split], run_G, of_baselines)
    advice = _describe_settings(job, is_tuned="als" in found["metrics"][split])
    if reranking and reranking.is_reranked:
        advice = _describe_reranking(reranking)
    shown = f"{job.evaluate.best_metric} on {split} is {metrics[split][job.evaluate.best_metric]:.4f}"
    parts = list(_describe_baselines({"below": below, "not clearly above": level}))
    shortfall = f"{shown}, {', '.join(parts)}: {advice}" if parts else None
    return {"shortfall": shortfall, **found}


def _compare(
    metric: str,
    metrics: Mapping[str, float],
    run_G: FloatArray | None,
    baselines: Iterable[tuple[str, Mapping[str, float], Sequence[float] | None]],
) -> tuple[list[tuple[float, str]], list[tuple[float, str]]]:
    """Return the baselines that a run is below, and the ones it is not clearly above: a gap and a description of each.

    Args:
        metric: what is compared.
        metrics: metrics of the run.
        run_G: its sums by group of queries, if there are any.
        baselines: name, metrics, and sums of each.
    """
    below: list[tuple[float, str]] = []
    level: list[tuple[float, str]] = []
    queries = metrics.get("queries", 0)
    for name, baseline, sums_G in baselines if queries else ():
        gap = baseline[metric] - metrics[metric]
        if run_G is not None and sums_G is not None:
            error = difference_of(np.array(sums_G), run_G)[1] / queries
        else:
            error = math.hypot(*(values.get(error_of(metric), 0.0) for values in (baseline, metrics)))
        if gap > -error:
            difference = f"by {gap:.4f}" if gap > error else f"{metrics[metric] - baseline[metric]:+.4f}"
            shown = f"{name.replace('_', ' ')} ({baseline[metric]:.4f}, {difference} ± {error:.4f})"
            (below if gap > error else level).append((gap, shown))
    return below, level


def _describe_baselines(named: Mapping[str, list[tuple[float, str]]]) -> Iterator[str]:
    """Describe each group of baselines with their gaps, the furthest ahead first."""
    for how, baselines in named.items():
        if baselines:
            yield f"{how} {', '.join(text for _, text in sorted(baselines)[::-1])}"


def _describe_settings(job: JobConfig, *, is_tuned: bool) -> str:
    """Return which settings of the model to change, and, unless they are there, how to compare tuned baselines."""
    log_scale = ", train.weight_scale=log if weights are numbers of plays" if job.train.weight_scale == "linear" else ""
    others = "" if is_tuned else f"; {command('evaluate', 'RUN', baselines=True)} shows what ALS and EASE reach"
    popularity = "model.popularity=auto, " if job.model.popularity == "off" else ""
    tuned = f"{command('tune', 'JOB', quick=True)}, which chooses on valid"
    return (
        f"try {tuned}, or {popularity}model.dim={2 * job.model.dim}, model.temperature (now "
        f"{job.model.temperature}){log_scale}, or train.item_frequency_power{others}"
    )


def _describe_reranking(options: RerankingOptions) -> str:
    """Return that re-ranking, which costs accuracy, may be why: the model itself may be below no baseline."""
    names = [name for name in _RERANKING if getattr(options, name) > 0]
    return f"the lists are re-ranked ({', '.join(names).replace('_', ' ')}); compare without re-ranking first"
