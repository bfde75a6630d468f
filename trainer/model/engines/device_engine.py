"""What engines share: the pools of a batch, scores, and the way from vectors on the host to gradients on a device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from crossfade.base.arrays import FloatArray
from crossfade.trainer.config.sections import NegativesConfig
from crossfade.trainer.model.batches import Batch
from crossfade.trainer.model.losses import LossSpec
from crossfade.trainer.model.negatives import IN_BATCH_KINDS
from crossfade.trainer.model.spec import ModelSpec


@dataclass(frozen=True)
class Pool:
    """Examples that share negatives: the drawn ones, and the items of their partition.

    Attributes:
        examples: the examples.
        in_batch: the examples whose items are in-batch negatives; empty: none.
    """

    examples: slice
    in_batch: slice


@dataclass(frozen=True)
class Scores:
    """The scores of some examples, as arrays of the engine's library.

    Attributes:
        positive: of the examples' items, (B,), or (B, 1) with MXNet.
        negative_BC: of their negatives, float32.
        excluded_BC: which of these do not count; with MXNet 1 for those, and 0 for the others.
    """

    positive: Any
    negative_BC: Any
    excluded_BC: Any


def split(part: slice, size: int) -> list[slice]:
    """Split ``part`` into slices of ``size``; the last one may be shorter."""
    return [slice(start, min(start + size, part.stop)) for start in range(part.start, part.stop, size)]


class DeviceEngine(ABC):
    """An engine that computes the gradients of a batch on one device.

    Attributes:
        device: as ``train.device`` names it.
    """

    def __init__(self, model: ModelSpec, loss: LossSpec, negatives: NegativesConfig, device: str) -> None:
        """Prepare to compute on ``device``."""
        self.device = device
        self._model = model
        self._in_batch = negatives.kind in IN_BATCH_KINDS
        self._all_softmax = negatives.kind == "all" and loss.kind == "softmax"

    def gradients(self, batch: Batch, vectors: Mapping[str, FloatArray]) -> tuple[float, dict[str, FloatArray]]:
        """Compute this worker's part of the mean loss, and the gradients of ``vectors`` (see ``Engine``)."""
        names = self._model.query.name, self._model.item.name
        if len(batch) == 0:
            return 0.0, {name: np.zeros_like(vectors[name]) for name in names}
        loss, *gradients = self._compute(batch, *(vectors[name] for name in names))
        return loss, dict(zip(names, gradients, strict=True))

    @abstractmethod
    def _compute(self, batch: Batch, query_AD: FloatArray, item_AD: FloatArray) -> tuple[float, FloatArray, FloatArray]:
        """Compute the sum of the losses, and the gradients of both sides' vectors."""

    def _pools(self, batch: Batch) -> list[Pool]:
        """Return the examples by the negatives that they share; none if negatives are drawn per example."""
        if batch.is_ordered:
            return []
        if self._in_batch:
            return [Pool(part, part) for part in batch.partition_slices]
        return [Pool(slice(0, len(batch)), slice(0, 0))]

    def _shares_scores(self, batch: Batch) -> bool:
        """Return whether a query is scored once for all its examples."""
        return self._all_softmax and batch.shares_query_scores
