"""Baselines that are fit to train, with settings that are chosen on valid: what a model has to compete with.

    model = Ease(train_RI)
    settings = choose(model, lambda settings: ndcg_on_valid(model.fit(**settings)))
    rank_by_scores(model.fit(**settings), rankable_I, chunk, depth=20)

- als: matrix factorization by alternating least squares, in which a pair of train has the confidence alpha and every
  other pair counts as a 0 of confidence 1 (Hu, Koren, and Volinsky, ICDM 2008; the package implicit)
- ease: a linear model of the items that a query has, whose weights have a closed form (Steck, WWW 2019). With X the
  pairs of train, G = XᵀX and P = (G + λ1)⁻¹, the scores are X − XP/diag(P). Where queries are fewer than items, the
  inverse is of their side: XP = KX and diag(P) = (1 − diag(XᵀKX))/λ, with K = (XXᵀ + λ1)⁻¹.

Weights of pairs do not matter, as in the other baselines. The number of fits is fixed and the size of the data has a
limit, so that the time is bounded.

Shapes: R rows of the query entity, Q queries, I items, N rows of the smaller side, K ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from crossfade.base.arrays import BoolArray, FloatArray, IntArray
from crossfade.base.errors import MissingExtraError
from crossfade.kvstore.jit import get_num_threads
from crossfade.trainer.evaluation.held_out import HeldOut

MAX_SIDE = 10_000
"""Queries or items, whichever are fewer, of ``ease``: three square matrices take 2.4 GB."""
_SCORES = 1 << 24
"""Scores that are in memory together."""
_ITERATIONS, _SEED = 15, 1

Settings = Mapping[str, float]
Scores = Callable[[IntArray], FloatArray]
"""Returns the scores of all items for queries: float (Q, I)."""


class TunedBaseline(Protocol):
    """A model of the pairs of train, and the settings to choose from."""

    start: ClassVar[Settings]
    lines: ClassVar[Sequence[tuple[str, Sequence[float]]]]
    """The settings that are tried one after the other, and the values of each."""

    def fit(self, **settings: float) -> Scores:
        """Fit the model."""


class Als:
    """Alternating least squares."""

    start: ClassVar[Settings] = {"factors": 64, "regularization": 10.0, "alpha": 3.0}
    lines: ClassVar[Sequence[tuple[str, Sequence[float]]]] = (
        ("regularization", (1.0, 3.0, 10.0, 30.0, 100.0)),
        ("alpha", (1.0, 3.0, 10.0, 30.0)),
        ("factors", (32, 64, 128, 256)),
        ("regularization", (1.0, 3.0, 10.0, 30.0, 100.0)),
    )

    def __init__(self, train_RI: Any) -> None:
        """Fit to ``train_RI``, a sparse matrix of ones.

        Raises:
            MissingExtraError: implicit is not installed.
        """
        try:
            from implicit.cpu.als import AlternatingLeastSquares
        except ImportError as error:
            raise MissingExtraError("implicit", extra="baselines", purpose="the baseline als") from error
        self._train_RI, self._model = train_RI, AlternatingLeastSquares

    def fit(self, **settings: float) -> Scores:
        """Fit the factors of both sides."""
        threads = get_num_threads()
        with threadpool_limits(1, "blas"):  # its own threads call BLAS, and it warns otherwise
            model = self._model(
                factors=int(settings["factors"]),
                regularization=settings["regularization"],
                alpha=settings["alpha"],
                iterations=_ITERATIONS,
                num_threads=threads,
                random_state=_SEED,
            )
            model.fit(self._train_RI, show_progress=False)
        query_RD, item_ID = model.user_factors, model.item_factors
        return lambda queries_Q: query_RD[queries_Q] @ item_ID.T


class Ease:
    """The linear model of items."""

    start: ClassVar[Settings] = {"regularization": 300.0}
    lines: ClassVar[Sequence[tuple[str, Sequence[float]]]] = (
        ("regularization", (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)),
    )

    def __init__(self, train_RI: Any) -> None:
        """Fit to ``train_RI``, a sparse matrix of ones."""
        self._train_RI = train_RI.astype(np.float64)
        self._by_query = train_RI.shape[0] < train_RI.shape[1]
        smaller_RI = self._train_RI if self._by_query else self._train_RI.T
        self._gram_NN = (smaller_RI @ smaller_RI.T).toarray()

    def fit(self, **settings: float) -> Scores:
        """Compute the inverse of the smaller side."""
        train_RI, penalty = self._train_RI, settings["regularization"]
        inverse_NN = _inverse(self._gram_NN, penalty)

        def product(queries: Any) -> FloatArray:
            if self._by_query:
                return np.asarray((train_RI.T @ inverse_NN[:, queries]).T)
            return np.asarray(train_RI[queries] @ inverse_NN)

        if self._by_query:
            diagonal_I = np.ones(train_RI.shape[1])
            step = max(1, _SCORES // train_RI.shape[1])
            for part in (slice(first, first + step) for first in range(0, train_RI.shape[0], step)):
                diagonal_I -= np.asarray(train_RI[part].multiply(product(part)).sum(axis=0)).ravel()
            diagonal_I /= penalty
        else:
            diagonal_I = inverse_NN.diagonal().copy()
        return lambda queries_Q: train_RI[queries_Q].toarray() - product(queries_Q) / diagonal_I


def _inverse(gram_NN: FloatArray, penalty: float) -> FloatArray:
    """Return the inverse of a symmetric matrix with ``penalty`` added to its diagonal, by Cholesky's factors."""
    from scipy.linalg.lapack import dpotrf, dpotri  # few evaluations need it, and it takes a while

    shifted_NN = gram_NN.copy(order="F")
    np.fill_diagonal(shifted_NN, shifted_NN.diagonal() + penalty)
    factor_NN, failed = dpotrf(shifted_NN, lower=1, clean=1, overwrite_a=1)
    assert not failed, "the penalty makes the matrix positive definite"
    inverse_NN, _ = dpotri(factor_NN, lower=1, overwrite_c=1)
    inverse_NN += np.tril(inverse_NN, -1).T
    return np.asarray(inverse_NN)


TUNED: Mapping[str, Callable[[Any], TunedBaseline]] = {"als": Als, "ease": Ease}
"""The baselines by name, each made from the pairs of train."""


def fits_of(baseline: TunedBaseline) -> int:
    """Return the number of fits to choose settings, at most."""
    return sum(len(values) for _, values in baseline.lines)


def choose(baseline: TunedBaseline, measure: Callable[[Settings], float]) -> Settings:
    """Return the settings with the highest measure: along one line after the other, from the best so far."""
    best = dict(baseline.start)
    for name, values in baseline.lines:
        best = max(({**best, name: value} for value in values), key=measure)
    return best


def rank_by_scores(scores: Scores, rankable_I: BoolArray, chunk: HeldOut, depth: int) -> IntArray:
    """Return the best items in ``rankable_I`` of each query of ``chunk`` that are not excluded, padded with -1."""
    items, best = len(rankable_I), [np.empty((0, depth), np.int64)]
    for part in chunk.chunks(max(1, _SCORES // items)):
        score_QI = np.asarray(scores(part.queries_Q), np.float64)
        score_QI[:, ~rankable_I] = -np.inf
        excluded_Q = np.repeat(np.arange(len(score_QI)), part.excluded.counts_L)
        score_QI[excluded_Q, part.excluded.values_N] = -np.inf
        best.append(_best(score_QI, depth))
    return np.concatenate(best)


def _best(score_QI: FloatArray, depth: int) -> NDArray[np.int64]:
    """Return the places of the ``depth`` highest finite scores of each row, highest first, padded with -1."""
    kept = min(depth, score_QI.shape[1])
    place_QK = np.sort(np.argpartition(-score_QI, kept - 1, axis=1)[:, :kept], axis=1)
    score_QK = np.take_along_axis(score_QI, place_QK, axis=1)
    order_QK = np.argsort(-score_QK, axis=1, kind="stable")
    best_QK = np.full((len(score_QI), depth), -1, np.int64)
    best_QK[:, :kept] = np.take_along_axis(np.where(np.isneginf(score_QK), -1, place_QK), order_QK, axis=1)
    return best_QK
