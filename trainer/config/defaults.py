"""Values of a job that follow from its other values and from the size of its dataset, where the job has ``auto``.

    job = resolve(job, DatasetSize(queries=6_040, items=3_706, interactions=900_188, is_grouped=True))
    job.model.temperature, job.negatives.kind         # 0.17, "all"

The job file of a run has the resolved values, so that it trains the same wherever it is repeated. What depends on the
machine stays ``auto`` in it: each worker chooses ``train.engine``, ``train.device`` and ``train.tables`` at its start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.config.sections import HISTORY, NegativesConfig, Section

_MAX_ITEMS = 2**15
"""Items up to which all of them are negatives: a step of a worker scores each of its queries against all."""
_MAX_ITEMS_GROUPED, _MAX_SCORES_GROUPED = 2**17, 2**13
"""The same for a grouped dataset, and scores of an epoch by interaction: a query is scored about once an epoch."""
_MIN_TEMPERATURE, _MAX_TEMPERATURE = 0.05, 0.2
_BY_DIRECTION: dict[str, Any] = {"learning_rate": 0.2, "weight_decay": 0.0, "max_norm": 1.0}
"""The optimizer where only directions count. Rows that grew would turn ever more slowly."""
_BY_VALUE: dict[str, Any] = {"learning_rate": 0.015, "weight_decay": 1e-5, "max_norm": None}
AnySection = TypeVar("AnySection", bound=Section)


@dataclass(frozen=True)
class DatasetSize:
    """The rows of a dataset: of the query and the item entity, and of the train split, and whether they are grouped."""

    queries: int
    items: int
    interactions: int
    is_grouped: bool


def resolve(job: JobConfig, size: DatasetSize) -> JobConfig:
    """Return ``job`` with a value for each ``auto``; other values are left alone."""
    negatives = job.negatives if job.negatives.kind != "auto" else _negatives(job, size)
    shares_scores = size.is_grouped and not _has_histories(job)
    group: Any = "all" if negatives.kind == "all" and shares_scores else 1
    rate = 0.015 if job.optimizer.learning_rate == "auto" else job.optimizer.learning_rate
    dense = _fill(job.model.dense, learning_rate=rate)
    model = _fill(job.model, temperature=_temperature(job, size)).model_copy(update={"dense": dense})
    optimizer = _fill(job.optimizer, **(_BY_DIRECTION if job.model.score == "cosine" else _BY_VALUE))
    data = _fill(job.data, group=group)
    return job.model_copy(
        update={"data": data, "model": model, "negatives": negatives, "optimizer": optimizer},
    )


def _fill(section: AnySection, **values: Any) -> AnySection:
    """Return ``section`` with those of ``values`` whose key is ``auto`` in it."""
    return section.model_copy(update={key: value for key, value in values.items() if getattr(section, key) == "auto"})


def _temperature(job: JobConfig, size: DatasetSize) -> float:
    """Return a temperature, which decreases with the number of items, and with that of interactions to learn from.

    Fitted to what was best on the valid split: Last.fm 0.16, MovieLens-1M 0.18, Gowalla 0.11, and parts of them. The
    bounds hold where the data is far from those: at 0.05, logits are within ±20.
    """
    if job.model.score != "cosine":
        return 0.17
    fitted = 1.67 * size.items**-0.155 * max(size.interactions, 1) ** -0.075
    return float(f"{min(max(fitted, _MIN_TEMPERATURE), _MAX_TEMPERATURE):.2g}")


def _negatives(job: JobConfig, size: DatasetSize) -> NegativesConfig:
    if job.loss != "softmax" or job.negatives.num_hard is not None:
        return job.negatives.model_copy(update={"kind": "shared"})
    scores = size.queries * size.items
    is_cheap = size.items <= _MAX_ITEMS_GROUPED and scores <= _MAX_SCORES_GROUPED * size.interactions
    if not _has_histories(job) and (size.items <= _MAX_ITEMS or (size.is_grouped and is_cheap)):
        return job.negatives.model_copy(update={"kind": "all", "logq_correction": False})
    return job.negatives.model_copy(update={"kind": "in_batch", "logq_correction": True})


def _has_histories(job: JobConfig) -> bool:
    """Whether examples of a query have different histories, and so different vectors, which cannot share scores."""
    return HISTORY in job.model.query_features
