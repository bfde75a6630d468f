"""Vectors of queries that were not in training, or have interacted since, from their histories.

    vectors = new_query_vectors(model)
    query_QD = vectors.vectors(histories)

A model that trained with histories of the table of items has a vector for any history: their mean (``HistoryMeans``).
For other models, a vector is estimated (``FoldIn``).

Shapes: Q queries, D columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from crossfade.base.arrays import FloatArray
from crossfade.trainer.model.spec import HistorySpec
from crossfade.trainer.model.towers import mean_of_histories
from crossfade.trainer.recommend.context import average_context
from crossfade.trainer.recommend.fold_in import FoldIn
from crossfade.trainer.recommend.history import Histories
from crossfade.trainer.recommend.trained_model import TrainedModel


class NewQueryVectors(Protocol):
    """Computes vectors of histories."""

    def vectors(self, histories: Histories, on_query: Callable[[], None] = lambda: None) -> FloatArray:
        """Return the vectors of ``histories``, float32 (Q, D); ``on_query`` is called after each."""


class HistoryMeans:
    """Computes the means that the model was trained with, in the average context. That of an empty history is 0."""

    def __init__(self, model: TrainedModel, spec: HistorySpec) -> None:
        """Use the vectors of the items of ``model``, which histories share by ``spec``."""
        self._model, self._spec = model, spec
        self._average_context_D = average_context(model)

    def vectors(self, histories: Histories, on_query: Callable[[], None] = lambda: None) -> FloatArray:
        """Return the vectors of ``histories``, float32 (Q, D), of their last items; ``on_query`` is called for each."""
        assert histories.sequences is not None
        item = self._model.spec.item.name
        latest = histories.sequences.last(self._spec.length)
        query_QD = mean_of_histories(self._spec, latest, lambda rows_V: self._model.vectors.vectors(item, rows_V))
        for _ in range(len(query_QD)):
            on_query()
        return np.asarray(query_QD + self._average_context_D, np.float32)


def new_query_vectors(model: TrainedModel) -> NewQueryVectors:
    """Choose how ``model`` represents new queries.

    Raises:
        InputError: too few queries are trained to fold in others.
        CheckpointError: the checkpoint is corrupt or cannot be read.
    """
    if model.spec.history is not None and model.spec.writes_history_rows:
        return HistoryMeans(model, model.spec.history)
    return FoldIn(model)
