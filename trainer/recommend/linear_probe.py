"""Fit linear probes: a logistic regression for each label on features that stay as they are, and measure their ranking.

    strength = choose_strength(features, has_SL, fitted_S, validated_S, reporter)
    probability_NL = fit_and_score(features, has_SL, fitted_S, tested_S, strength, reporter)
    rank_metrics(has_SL[tested_S], probability_NL)

A strength is the inverse of the L2 regularization, C of scikit-learn.

Shapes: S rows, N some of them, D columns, L labels.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from crossfade.base.arrays import BoolArray, FloatArray, IntArray
from crossfade.base.errors import MissingExtraError
from crossfade.trainer.data.reporter import ProgressReporter

STRENGTHS = (0.1, 0.5, 2.0, 10.0, 50.0)
_CHOOSING_LABELS = 50
"""Labels by which a strength is chosen: every n-th by frequency, if there are more."""
_MAX_ITERATIONS = 500

Features = Any
"""A row of D columns for each of S: a float array, or a sparse matrix of scipy."""


def check_scikit_learn() -> None:
    """Check that scikit-learn is installed.

    Raises:
        MissingExtraError: it is not.
    """
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("scikit-learn", extra="tag", purpose="crossfade tag") from error


def choose_strength(
    features: Features, has_SL: BoolArray, fitted_S: IntArray, validated_S: IntArray, reporter: ProgressReporter
) -> float:
    """Return the strength of ``STRENGTHS`` with the best macro PR-AUC of ``validated_S`` after a fit to ``fitted_S``.

    ``reporter`` advances by ``choosing_steps`` labels. The labels of ``has_SL`` are ordered by frequency.
    """
    chosen_SL = has_SL[:, _choosing_labels(has_SL.shape[1])]
    quality = [
        rank_metrics(
            chosen_SL[validated_S], fit_and_score(features, chosen_SL, fitted_S, validated_S, strength, reporter)
        )["pr_auc"]
        for strength in STRENGTHS
    ]
    return STRENGTHS[int(np.argmax(quality))]


def choosing_steps(labels: int) -> int:
    """Return how many labels ``choose_strength`` fits."""
    return len(_choosing_labels(labels)) * len(STRENGTHS)


def _choosing_labels(labels: int) -> IntArray:
    return np.unique(np.linspace(0, labels - 1, min(labels, _CHOOSING_LABELS)).astype(np.int64))


def fit_and_score(
    features: Features,
    has_SL: BoolArray,
    fitted_S: IntArray,
    scored_S: IntArray,
    strength: float,
    reporter: ProgressReporter,
) -> FloatArray:
    """Fit the rows ``fitted_S``, and return the probability of each label of ``scored_S``, float32 (N, L)."""
    fitted, scored = features[fitted_S], features[scored_S]
    probability_NL = np.empty((len(scored_S), has_SL.shape[1]), np.float32)
    for label in range(has_SL.shape[1]):
        weight_D, bias = fit_label(fitted, has_SL[fitted_S, label], strength)
        probability_NL[:, label] = sigmoid(scored @ weight_D + bias)
        reporter.advance(1)
    return probability_NL


def fit_label(features: Features, has_N: BoolArray, strength: float) -> tuple[FloatArray, float]:
    """Fit a logistic regression; return the weight of each column, float64 (D,), and the bias.

    A label that all or none of the rows have gets its smoothed frequency.
    """
    from scipy.sparse import issparse
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    positive = int(has_N.sum())
    if positive in (0, len(has_N)):
        return np.zeros(features.shape[1]), float(np.log((positive + 0.5) / (len(has_N) - positive + 0.5)))
    # Of both solvers, the first takes less time with sparse columns, the second with dense ones.
    solver = "liblinear" if issparse(features) else "lbfgs"
    model = LogisticRegression(C=strength, solver=solver, max_iter=_MAX_ITERATIONS, random_state=0)
    with warnings.catch_warnings():
        # A fit that is stopped is one with a stronger regularization, and is validated like any other.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features, has_N)
    return model.coef_[0], float(model.intercept_[0])


def sigmoid(logit_N: FloatArray) -> FloatArray:
    """Return the probability of each logit."""
    probability_N: FloatArray = 0.5 * (1.0 + np.tanh(0.5 * logit_N))
    return probability_N


def can_be_ranked(has_NL: BoolArray) -> BoolArray:
    """Return which labels some but not all of the rows have, bool (L,): a ranking of others has no quality."""
    count_L = has_NL.sum(axis=0)
    ranked_L: BoolArray = (count_L > 0) & (count_L < len(has_NL))
    return ranked_L


def rank_metrics(has_NL: BoolArray, score_NL: FloatArray) -> dict[str, float]:
    """Measure the ranking of rows for each label, and of labels for each row, as music tagging does.

    - roc_auc, pr_auc: area under the curve, averaged over labels; PR-AUC is average precision
    - pr_auc_micro: average precision of all pairs of a row and a label in one ranking
    - precision@1: fraction of rows whose best label is right

    Labels that all or none of the rows have are left out; there must be others.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    ranked_L = can_be_ranked(has_NL)
    has_NL, score_NL = has_NL[:, ranked_L], score_NL[:, ranked_L]
    return {
        "roc_auc": float(roc_auc_score(has_NL, score_NL, average="macro")),
        "pr_auc": float(average_precision_score(has_NL, score_NL, average="macro")),
        "pr_auc_micro": float(average_precision_score(has_NL, score_NL, average="micro")),
        "precision@1": float(has_NL[np.arange(len(has_NL)), score_NL.argmax(axis=1)].mean()),
    }
