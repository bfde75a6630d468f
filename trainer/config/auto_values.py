"""Values of a job that are ``auto``, such as the temperature: derived from other values and the size of the dataset.

    job = resolve(job, DatasetSize(queries=6_040, items=3_706, interactions=900_188, is_grouped=True))
    job.model.temperature, job.negatives.kind         # 0.17, "all"

The job file of a run has the resolved values, so that it trains the same wherever it is repeated. What depends on the
machine stays ``auto`` in it: each worker chooses ``train.engine``, ``train.device`` and ``train.tables`` at its start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from crossfade.base.errors import InputError
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.config.sections import HISTORY, NegativesConfig, Section

_MAX_ITEMS = 2**15
"""Items up to which all of them are negatives: a step of a worker scores each of its queries against all."""
_MAX_ITEMS_GROUPED, _MAX_SCORES_GROUPED = 2**17, 2**13
"""The same for a grouped dataset, and scores of an epoch by interaction: a query is scored about once an epoch."""
_MIN_TEMPERATURE, _MAX_TEMPERATURE = 0.05, 0.4
_BY_DIRECTION: dict[str, Any] = {"learning_rate": 0.2, "weight_decay": 0.0, "max_norm": 1.0}
"""The optimizer where only directions count. Rows that grew would turn ever more slowly."""
_BY_VALUE: dict[str, Any] = {"learning_rate": 0.015, "weight_decay": 1e-5, "max_norm": None}
_NEAR_RATE = 0.5
"""Factor of the learning rate where rows begin near their places: with a spectral or a warm start."""
RANDOM_EPOCHS, _SPECTRAL_EPOCHS, _SPECTRAL_STEPS = 40, 16, 80
_SPECTRAL_WARMUP, _SPECTRAL_BETA1 = 20, 0.7
_MAX_SPECTRAL_INTERACTIONS, _MAX_SPECTRAL_ITEMS = 10**8, 2 * 10**6
"""What the first process holds in memory for a spectral start: some 4 GB, and 2 GB at 64 columns."""
_MAX_SPECTRAL_LIFT = 4.0
"""Between what has been measured: 3.4, where 16 epochs from singular vectors are enough, and 6.5, where 40 are."""
_MIN_QUERIES = 2_000
"""Queries with which a standard error is still usable: that of ndcg is about 0.3/√N."""
_EPOCH_SHARE, _INTERACTION_SCORES, _PRODUCTS = 0.1, 3_000, 3
_FINAL_FACTOR = 10
"""Queries after training, about an epoch's time, by those of ``auto`` during training."""
AnySection = TypeVar("AnySection", bound=Section)


@dataclass(frozen=True)
class DatasetSize:
    """The rows of a dataset: of the query and the item entity, and of the train split, and whether they are grouped.

    ``lift`` and ``items_per_query`` are as in the ``CoOccurrence`` of its manifest; None if it was not measured.
    """

    queries: int
    items: int
    interactions: int
    is_grouped: bool
    lift: float | None = None
    items_per_query: float | None = None


def resolve(job: JobConfig, size: DatasetSize) -> JobConfig:
    """Return ``job`` with a value for each ``auto``; other values are left alone."""
    negatives = job.negatives if job.negatives.kind != "auto" else _negatives(job, size)
    shares_scores = size.is_grouped and not _has_histories(job)
    group: Any = "all" if negatives.kind == "all" and shares_scores else 1
    is_spectral = _is_spectral(job, size)
    is_warm = job.checkpoint.warm_start_from is not None
    near = _NEAR_RATE if is_warm or is_spectral else 1.0
    rate = _BY_VALUE["learning_rate"] * near if job.optimizer.learning_rate == "auto" else job.optimizer.learning_rate
    dense = _fill(job.model.dense, learning_rate=rate)
    start = "spectral" if is_spectral else "random"
    model = _fill(job.model, temperature=_temperature(job, size), initialization=start)
    model = model.model_copy(update={"dense": dense})
    update = _BY_DIRECTION if job.model.score == "cosine" else _BY_VALUE
    train = _fill(job.train, epochs=_epochs(job, size, is_spectral=is_spectral))
    optimizer = _fill(
        job.optimizer,
        **{**update, "learning_rate": near * update["learning_rate"]},
        beta1=_SPECTRAL_BETA1 if is_spectral else 0.9,
        warmup_steps=_SPECTRAL_WARMUP if is_spectral else 0,
    )
    data = _fill(job.data, group=group)
    queries = _evaluated_queries(size)
    limit = job.evaluate.max_queries
    final = "all" if limit == "all" else max(_FINAL_FACTOR * queries, 0 if limit == "auto" else limit)
    evaluate = _fill(job.evaluate, max_queries=queries, final=final)
    sections = {"data": data, "model": model, "negatives": negatives, "optimizer": optimizer, "train": train}
    return job.model_copy(update={**sections, "evaluate": evaluate})


def _fill(section: AnySection, **values: Any) -> AnySection:
    """Return ``section`` with those of ``values`` whose key is ``auto`` in it."""
    return section.model_copy(update={key: value for key, value in values.items() if getattr(section, key) == "auto"})


def _is_spectral(job: JobConfig, size: DatasetSize) -> bool:
    """Return whether a new run begins with singular vectors; ``auto`` says so for what that has been measured with."""
    model = job.model
    if job.checkpoint.warm_start_from is not None:
        return False
    if model.initialization != "auto":
        return model.initialization == "spectral"
    is_measured = model.score == "cosine" and job.loss == "softmax" and job.optimizer.kind == "adam"
    fits = size.interactions <= _MAX_SPECTRAL_INTERACTIONS and size.items <= _MAX_SPECTRAL_ITEMS
    has_low_lift = size.lift is None or size.lift <= _MAX_SPECTRAL_LIFT
    return is_measured and fits and has_low_lift and not model.has_towers


def _epochs(job: JobConfig, size: DatasetSize, *, is_spectral: bool) -> int:
    """Return how many epochs are enough; from singular vectors fewer, but for datasets of a few batches."""
    if not is_spectral:
        return RANDOM_EPOCHS
    steps = -(-size.interactions // job.train.batch_size)
    return min(max(_SPECTRAL_EPOCHS, -(-_SPECTRAL_STEPS // max(steps, 1))), RANDOM_EPOCHS)


def _temperature(job: JobConfig, size: DatasetSize) -> float:
    """Return a temperature, lower where interactions say more: the more items a query has, and the higher their lift.

    At the optimum, cosine/T is the pointwise mutual information of query and item (Levy and Goldberg, NIPS 2014), which
    cosines from -1 to 1 can only span with a T that fits its range. Fitted to what was best on valid on twenty splits,
    published ones and parts of them (docs/training.md). Without a lift, the numbers of items and interactions stand for
    it. The bounds hold where the data is far from those: at 0.05, logits are within ±20.
    """
    if job.model.score != "cosine":
        return 0.17
    if size.lift is None or size.items_per_query is None:
        fitted = min(1.67 * size.items**-0.155 * max(size.interactions, 1) ** -0.075, 0.2)
    else:
        fitted = 0.588 * size.lift**-0.45 * size.items_per_query**-0.25
    return float(f"{min(max(fitted, _MIN_TEMPERATURE), _MAX_TEMPERATURE):.2g}")


def _evaluated_queries(size: DatasetSize) -> int:
    """Return how many queries are evaluated during training: what takes at most about a tenth of an epoch.

    Rankings of N queries take N · items scores, each a product of two vectors. In an epoch, the default job compares an
    interaction with the 1,024 items of its part of a batch, in one product for the scores and two for the gradients:
    ``_INTERACTION_SCORES`` products on the same CPUs, whatever the columns (docs/evaluation.md has a measurement). With
    all items as negatives, it compares each query with them instead, in ``_PRODUCTS``. On a GPU, an epoch takes less.

    The number depends on the dataset alone, so that runs with other settings are evaluated on the same queries.
    """
    affordable = _INTERACTION_SCORES * size.interactions / max(size.items, 1)
    if _affords_all_items(size) and size.is_grouped:
        affordable = min(affordable, _PRODUCTS * size.queries)
    return max(_MIN_QUERIES, round(_EPOCH_SHARE * affordable))


def _affords_all_items(size: DatasetSize) -> bool:
    """Return whether an epoch whose negatives are all items takes about as long as one with in-batch negatives."""
    scores = size.queries * size.items
    is_cheap = size.items <= _MAX_ITEMS_GROUPED and scores <= _MAX_SCORES_GROUPED * size.interactions
    return size.items <= _MAX_ITEMS or (size.is_grouped and is_cheap)


def _negatives(job: JobConfig, size: DatasetSize) -> NegativesConfig:
    if job.loss != "softmax":
        return job.negatives.model_copy(update={"kind": "shared"})
    if not _has_histories(job) and _affords_all_items(size):
        return job.negatives.model_copy(update={"kind": "all", "logq_correction": False})
    if job.top_k is not None:
        costs = f"which takes long for {size.items:,} items and {size.interactions:,} interactions"
        reason = "which auto does not choose with histories" if _has_histories(job) else costs
        raise InputError(f"top_k needs all items as negatives, {reason}: set negatives.kind to all, or leave out top_k")
    return job.negatives.model_copy(update={"kind": "in_batch", "logq_correction": True})


def _has_histories(job: JobConfig) -> bool:
    """Whether examples of a query have different histories, and so different vectors, which cannot share scores."""
    return HISTORY in job.model.query_features
