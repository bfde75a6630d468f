"""Vectors of queries that were not in training, or have interacted since, from their histories.

    query_QD = new_query_vectors(model).vectors(histories)

A model that trained with histories of the table of items has a vector for any history: their mean (``HistoryMeans``).
Other models fold a history in, with the items' vectors fixed (``FoldIn``): the vector q of a history, items i with
weights w_i > 0, is the maximum a posteriori estimate

    argmin_q  Σ_i w_i · (log Σ_c exp(z_c(q) + b_c) − z_i(q))  +  ½ (q − μ)ᵀ Σ⁻¹ (q − μ)

where z_c(q) is the score of item c, divided by the temperature of training: the softmax likelihood of the history, and
a normal prior with the mean μ and the covariance Σ of trained queries, which have the average context of train. The
items c are a uniform sample, with those of the history; b_c is the log of how many items a sampled one stands for. The
objective is convex, so that Newton's method, damped by halving, converges in a few steps. With cosine scores, the prior
is that of unit vectors.

Shapes: Q queries, I sampled items, N items of a history, D columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.errors import InputError
from crossfade.trainer.config.sections import resolved
from crossfade.trainer.model.spec import HistorySpec
from crossfade.trainer.model.towers import mean_of_histories
from crossfade.trainer.recommend.history import Histories
from crossfade.trainer.recommend.top_k import unit_rows
from crossfade.trainer.recommend.trained_model import TrainedModel

_SAMPLED_ITEMS = 4096
_SAMPLED_QUERIES = 4096
_RIDGE = 1e-3
"""Added to the variances of the prior, as a fraction of their mean, so that its covariance can be inverted."""
_MAX_STEPS = 12
_TOLERANCE = 1e-4
"""A step that changes no column by more than this is the last."""


class FoldIn:
    """Computes vectors of histories for one trained model."""

    def __init__(self, model: TrainedModel, seed: int = 0) -> None:
        """Sample items and queries of ``model``.

        Raises:
            InputError: too few queries are trained.
            CheckpointError: the checkpoint is corrupt or cannot be read.
        """
        self._model = model
        query, item = model.spec.query, model.spec.item
        generator = np.random.default_rng(seed)
        trained_Q, trained_I = (
            np.flatnonzero(model.trained_rows(query.name)),
            np.flatnonzero(model.trained_rows(item.name)),
        )
        if len(trained_Q) <= query.dim:
            raise InputError(
                f"{model.uri}: has only {len(trained_Q)} trained vectors of {query.name}, but folding in needs more "
                f"than their {query.dim} columns"
            )
        item_I = np.sort(generator.choice(trained_I, min(_SAMPLED_ITEMS, len(trained_I)), replace=False))
        query_Q = np.sort(generator.choice(trained_Q, min(_SAMPLED_QUERIES, len(trained_Q)), replace=False))
        query_QD = model.vectors.vectors(query.name, query_Q) + model.average_context()
        self._mean_D, self._precision_DD = _normal_distribution(self._scored(query_QD))
        self._row_I, self._vector_ID = item_I, self._vectors(item.name, item_I)
        # The log of the items that each sampled one stands for, and the factors of a logit's terms.
        self._log_share = float(np.log(len(trained_I) / len(item_I)))
        temperature = resolved(model.job.model.temperature)
        self._scale, self._norm_scale = model.score.dot_scale / temperature, model.score.norm_scale / temperature

    def _vectors(self, entity: str, rows_N: IntArray) -> FloatArray:
        return self._scored(self._model.vectors.vectors(entity, rows_N))

    def _scored(self, vectors_ND: FloatArray) -> FloatArray:
        """Return vectors as scores use them, float64."""
        vectors_ND = vectors_ND.astype(np.float64)
        return unit_rows(vectors_ND) if self._model.score.normalized else vectors_ND

    def vectors(self, histories: Histories) -> FloatArray:
        """Return the vectors of ``histories``, float32 (Q, D).

        A history without an item of positive weight gets the mean of trained queries.
        """
        lists = histories.lists
        known_N, place_N = np.unique(lists.values_N, return_inverse=True)
        known_ND = self._vectors(self._model.spec.item.name, known_N)
        query_QD = np.tile(self._mean_D, (len(lists.starts_L1) - 1, 1))
        for query in range(len(query_QD)):
            part = slice(*lists.starts_L1[query : query + 2])
            liked_N = histories.weight_N[part] > 0
            if liked_N.any():
                row_N, weight_N = lists.values_N[part][liked_N], histories.weight_N[part][liked_N]
                likelihood = self._likelihood(row_N, known_ND[place_N[part][liked_N]], weight_N)
                query_QD[query] = _minimize(likelihood, self._mean_D, self._precision_DD)
        return query_QD.astype(np.float32)

    def _likelihood(self, row_N: IntArray, vector_ND: FloatArray, weight_N: FloatArray) -> _Likelihood:
        """Return the likelihood of a history of the items ``row_N``."""
        others_I = ~np.isin(self._row_I, row_N, assume_unique=True)
        vector_ID = np.concatenate([vector_ND, self._vector_ID[others_I]])
        bias_I = -self._norm_scale * np.square(vector_ID).sum(axis=1)
        bias_I[len(row_N) :] += self._log_share
        total = float(weight_N.sum())
        return _Likelihood(vector_ID, bias_I, self._scale, weight_N @ vector_ND / total, total)


def _normal_distribution(vector_ND: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the mean of vectors (D,), and the inverse of their covariance (D, D)."""
    covariance_DD = np.atleast_2d(np.cov(vector_ND, rowvar=False))
    ridge = _RIDGE * np.trace(covariance_DD) / len(covariance_DD)
    return vector_ND.mean(axis=0), np.linalg.inv(covariance_DD + ridge * np.eye(len(covariance_DD)))


@dataclass(frozen=True)
class _Likelihood:
    """The negative log-likelihood of a history as a function of the query's vector, up to a constant.

    Attributes:
        vector_ID: vectors of the items that it is contrasted with, its own included.
        bias_I: terms of their logits that do not depend on the query.
        scale: factor of the dot product in a logit.
        mean_D: mean vector of the history's items, by weight.
        weight: sum of the weights.
    """

    vector_ID: FloatArray
    bias_I: FloatArray
    scale: float
    mean_D: FloatArray
    weight: float

    def value(self, query_D: FloatArray) -> float:
        logit_I = self.scale * (self.vector_ID @ query_D) + self.bias_I
        highest = logit_I.max()
        log_sum = highest + np.log(np.exp(logit_I - highest).sum())
        return float(self.weight * (log_sum - self.scale * (self.mean_D @ query_D)))

    def derivatives(self, query_D: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the gradient (D,) and the Hessian (D, D)."""
        logit_I = self.scale * (self.vector_ID @ query_D) + self.bias_I
        p_I = np.exp(logit_I - logit_I.max())
        p_I /= p_I.sum()
        expected_D = p_I @ self.vector_ID
        covariance_DD = self.vector_ID.T @ (p_I[:, None] * self.vector_ID) - np.outer(expected_D, expected_D)
        gradient_D = self.weight * self.scale * (expected_D - self.mean_D)
        return gradient_D, self.weight * self.scale**2 * covariance_DD


def _minimize(likelihood: _Likelihood, mean_D: FloatArray, precision_DD: FloatArray) -> FloatArray:
    """Return the maximum a posteriori estimate by Newton's method, from the mean of the prior on."""

    def objective(query_D: FloatArray) -> float:
        difference_D = query_D - mean_D
        return likelihood.value(query_D) + 0.5 * float(difference_D @ precision_DD @ difference_D)

    query_D = mean_D
    value = objective(query_D)
    for _ in range(_MAX_STEPS):
        gradient_D, hessian_DD = likelihood.derivatives(query_D)
        gradient_D += precision_DD @ (query_D - mean_D)
        step_D = np.linalg.solve(hessian_DD + precision_DD, gradient_D)
        while (lower := objective(query_D - step_D)) > value and np.abs(step_D).max() > _TOLERANCE:
            step_D /= 2
        if lower > value:
            break
        query_D, value = query_D - step_D, lower
        if np.abs(step_D).max() < _TOLERANCE:
            break
    return query_D


class HistoryMeans:
    """Computes the means that the model was trained with, in the average context. That of an empty history is 0."""

    def __init__(self, model: TrainedModel, spec: HistorySpec) -> None:
        """Use the vectors of the items of ``model``, which histories share by ``spec``."""
        self._model, self._spec = model, spec
        self._average_context_D = model.average_context()

    def vectors(self, histories: Histories) -> FloatArray:
        """Return the vectors of ``histories``, float32 (Q, D), of their last items."""
        assert histories.sequences is not None
        item = self._model.spec.item.name
        latest = histories.sequences.last(self._spec.length)
        query_QD = mean_of_histories(self._spec, latest, lambda rows_V: self._model.vectors.vectors(item, rows_V))
        return np.asarray(query_QD + self._average_context_D, np.float32)


def new_query_vectors(model: TrainedModel) -> FoldIn | HistoryMeans:
    """Choose how ``model`` represents new queries.

    Raises:
        InputError: too few queries are trained to fold in others.
        CheckpointError: the checkpoint is corrupt or cannot be read.
    """
    if model.spec.history is not None and model.spec.writes_history_rows:
        return HistoryMeans(model, model.spec.history)
    return FoldIn(model)
