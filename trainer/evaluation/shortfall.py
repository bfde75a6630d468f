"""Compare the metrics of a run with those of baselines, and name those that it does not reach.

    found = compare_with_baselines(job, {"test": metrics}, {"test": sums_G})
    found["shortfall"]      # "ndcg@10 on test is 0.2078, below als (0.2150, by 0.0072 ± 0.0021): try …", or None

A baseline is named if it is ahead by more than the standard error of the difference. With the run's sums over groups of
queries (``paired_gain.py``), that is the error of paired differences; without, it is combined from both means' errors,
which is larger.

Shapes: G groups.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from crossfade.base.arrays import FloatArray
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.data.split_names import SplitName
from crossfade.trainer.evaluation.baselines import load_baselines
from crossfade.trainer.evaluation.options import RerankingOptions
from crossfade.trainer.evaluation.paired_gain import difference_of
from crossfade.trainer.runs.shown_metrics import error_of

_RERANKING = "popularity_damping", "diversity", "exploration"


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
    of_run = (sums or {}).get(split)
    below = []
    queries = metrics[split].get("queries", 0)
    for name, baseline in found["metrics"][split].items() if queries else ():
        metric, sums_G = job.evaluate.best_metric, sums_of[split].get(name)
        gap = baseline[metric] - metrics[split][metric]
        if of_run is not None and sums_G is not None:
            error = difference_of(np.array(sums_G), of_run)[1] / queries
        else:
            error = math.hypot(*(values.get(error_of(metric), 0.0) for values in (baseline, metrics[split])))
        if gap > error:
            below.append((gap, f"{name.replace('_', ' ')} ({baseline[metric]:.4f}, by {gap:.4f} ± {error:.4f})"))
    shortfall = None
    if below:
        metric, names = job.evaluate.best_metric, ", ".join(text for _, text in sorted(below)[::-1])
        advice = _describe_reranking(reranking) if reranking and reranking.is_reranked else _describe_settings(job)
        shortfall = f"{metric} on {split} is {metrics[split][metric]:.4f}, below {names}: {advice}"
    return {"shortfall": shortfall, **found}


def _describe_settings(job: JobConfig) -> str:
    """Return which settings of the model to change."""
    log_scale = (
        ", with numbers of plays as weights train.weight_scale=log," if job.train.weight_scale == "linear" else ""
    )
    return (
        f"try model.dim={2 * job.model.dim}, a higher or lower model.temperature (now {job.model.temperature})"
        f"{log_scale} or train.item_frequency_power"
    )


def _describe_reranking(options: RerankingOptions) -> str:
    """Return that re-ranking, which costs accuracy, may be why: the model itself may be below no baseline."""
    names = [name for name in _RERANKING if getattr(options, name) > 0]
    return f"the lists are re-ranked ({', '.join(names).replace('_', ' ')}); compare without re-ranking first"
