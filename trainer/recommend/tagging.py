"""Tag items by linear probes of their embeddings: measure how well, then predict the labels of those that have none.

    tagged = tag(model, TagOptions.of(labels="artist=tag"), NullReporter(), examples=8)
    tagged.quality.metrics["embeddings"]["roc_auc"], tagged.examples

A probe is a logistic regression for each label. Rows with a label are divided at random: 60 % are fitted, 20 % choose
the regularization, and 20 % are tested after a fit to both others, beside the frequency of labels. Predictions are by a
fit to all rows with a label. A strength is the inverse of the L2 regularization, C of scikit-learn.

Shapes: S rows with a label, L labels, N elements of anything else, P pairs of a row and a label, R rows, D columns.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from crossfade.base.arrays import BoolArray, FloatArray, IntArray
from crossfade.base.errors import InputError, MissingExtraError, Option
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.recommend.labels import OPTION, LabelPairs, read_labels
from crossfade.trainer.recommend.options import TagOptions
from crossfade.trainer.recommend.table_files import write_output
from crossfade.trainer.recommend.top_k import unit_rows
from crossfade.trainer.recommend.trained_model import TrainedModel

STRENGTHS = (0.1, 0.5, 2.0, 10.0, 50.0)
MAX_LABELS = 500
MAX_ROWS = 20_000
"""Rows with a label that take part; a random sample, if there are more."""
_CHOOSING_LABELS = 50
"""Labels by which a strength is chosen: every n-th by frequency, if there are more."""
_MAX_ITERATIONS = 500
_BLOCK_ROWS = 1 << 14
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TagQuality:
    """What was measured.

    Attributes:
        rows: rows that were fitted, that chose the regularization, and that were tested.
        labels: number of labels.
        labels_per_row: their mean number.
        columns: columns of the features of each method that has any: embeddings.
        strength: the chosen inverse of the regularization, of the same.
        metrics: of each method: embeddings, frequency.
        kept: of the predicted labels of tested rows: precision, labels_per_row, and share of rows that have one.
    """

    rows: tuple[int, int, int]
    labels: int
    labels_per_row: float
    columns: dict[str, int]
    strength: dict[str, float]
    metrics: dict[str, dict[str, float]]
    kept: dict[str, float]


@dataclass(frozen=True)
class Tagged:
    """What ``tag`` has measured and predicted.

    Attributes:
        entity: whose rows have labels.
        quality: the measurement.
        unlabeled: rows without a label.
        written: labels in the file; None without one.
        examples: the predicted labels of some rows, without a file.
    """

    entity: str
    quality: TagQuality
    unlabeled: int
    written: int | None
    examples: list[dict[str, Any]]


def tag(model: TrainedModel, options: TagOptions, reporter: ProgressReporter, examples: int = 0) -> Tagged:
    """Measure and predict labels, and write them to the file; without one, predict those of ``examples`` frequent rows.

    Raises:
        CrossfadeError: the file cannot be written.
        InputError: the labels cannot be read, no label has enough rows, or the file cannot be written.
        MissingExtraError: scikit-learn is not installed.
    """
    tagger = _Tagger(model, options, reporter)
    quality, rows_N, written, predicted = tagger.measure(), tagger.unlabeled_N, None, list[dict[str, Any]]()
    strength = quality.strength["embeddings"]
    if options.out is not None:
        written = write_output(options.out, tagger.tables(strength, rows_N))
    elif examples:
        frequent_N = np.argsort(-tagger.count_R[rows_N], kind="stable")[:examples]
        tables = tagger.tables(strength, np.sort(rows_N[frequent_N]))
        predicted = [row for table in tables for row in table.to_pylist()]
    return Tagged(options.labels.entity, quality, len(rows_N), written, predicted)


class _Tagger:
    """Measures and predicts the labels of one entity of a model."""

    def __init__(self, model: TrainedModel, options: TagOptions, reporter: ProgressReporter) -> None:
        """Read the labels, and select those that enough rows have."""
        try:
            import sklearn  # noqa: F401
        except ImportError as error:
            raise MissingExtraError("scikit-learn", extra="tag", purpose="crossfade tag") from error
        self._model, self._options, self._reporter = model, options, reporter
        self._entity = options.labels.entity
        pairs = read_labels(model.data, model.manifest, options.labels)
        self.count_R = model.counts(self._entity)
        usable_R = model.trained_rows(self._entity) & (self.count_R >= options.min_count)
        self._row_S, self._has_SL, label_L = _labeled_rows(pairs, usable_R, options)
        self._labels: list[str] = pairs.texts.take(label_L).to_pylist()
        usable_R[pairs.row_P] = False
        self.unlabeled_N = np.flatnonzero(usable_R)
        self._scale = self._mean_length()
        self._warn_of_known_labels()

    def measure(self) -> TagQuality:
        """Measure the probe, and the frequency of labels."""
        fitted_S, validated_S, tested_S = _divide(len(self._row_S), self._options.seed)
        for part_S in (validated_S, tested_S):
            if not _can_be_ranked(self._has_SL[part_S]).any():
                raise InputError(
                    OPTION,
                    f" {self._entity}=…: no label divides the {len(self._row_S):,} rows that have one; expected "
                    "labels that some of them have: lower ",
                    Option("min_items"),
                    ", or provide labels for more rows",
                )
        both_S, truth_NL = np.concatenate([fitted_S, validated_S]), self._has_SL[tested_S]
        features_SD = self._vectors(self._row_S)
        labels = len(self._labels)
        chosen_L = np.unique(np.linspace(0, labels - 1, min(labels, _CHOOSING_LABELS)).astype(np.int64))
        self._reporter.phase("fit embeddings", len(chosen_L) * len(STRENGTHS) + labels, "label")

        def quality(strength: float) -> float:
            has_SL = self._has_SL[:, chosen_L]
            probability_NL = self._fit_and_score(features_SD, has_SL, fitted_S, validated_S, strength)
            return rank_metrics(has_SL[validated_S], probability_NL)["pr_auc"]

        strength = max(STRENGTHS, key=quality)
        probability_NL = self._fit_and_score(features_SD, self._has_SL, both_S, tested_S, strength)
        frequency_NL = np.tile(self._has_SL[both_S].mean(axis=0), (len(tested_S), 1))
        return TagQuality(
            (len(fitted_S), len(validated_S), len(tested_S)),
            labels,
            float(self._has_SL.sum(axis=1).mean()),
            {"embeddings": features_SD.shape[1]},
            {"embeddings": strength},
            {"embeddings": rank_metrics(truth_NL, probability_NL), "frequency": rank_metrics(truth_NL, frequency_NL)},
            self._kept_quality(truth_NL, probability_NL),
        )

    def tables(self, strength: float, row_N: IntArray) -> Iterator[pa.Table]:
        """Yield the predicted labels of ``row_N``, int64, sorted, as tables, at least one; the most probable first."""
        self._reporter.phase("fit all rows", len(self._labels), "label")
        weight_LD, bias_L = self._fit(self._vectors(self._row_S), self._has_SL, strength)
        vocabulary, labels = self._model.vocabulary(self._entity), pa.array(self._labels, pa.string())
        self._reporter.phase("predict", len(row_N), "row")
        for first in range(0, max(len(row_N), 1), _BLOCK_ROWS):
            block_N = row_N[first : first + _BLOCK_ROWS]
            probability_NL = _sigmoid(self._vectors(block_N) @ weight_LD.T + bias_L).astype(np.float32)
            place_P, label_P = self._keep(probability_NL)
            found = vocabulary.take(block_N).take(pa.array(place_P))
            columns = {
                self._entity: found.column("id"),
                "label": labels.take(pa.array(label_P)),
                "probability": probability_NL[place_P, label_P],
            }
            if "name" in found.column_names:
                columns[f"{self._entity}_name"] = found.column("name")
            yield pa.table(columns)
            self._reporter.advance(len(block_N))

    def _fit_and_score(
        self, features_SD: FloatArray, has_SL: BoolArray, fitted_S: IntArray, scored_S: IntArray, strength: float
    ) -> FloatArray:
        """Fit the rows ``fitted_S``, and return the probability of each label of ``scored_S``, float32 (N, L)."""
        weight_LD, bias_L = self._fit(features_SD[fitted_S], has_SL[fitted_S], strength)
        return _sigmoid(features_SD[scored_S] @ weight_LD.T + bias_L).astype(np.float32)

    def _fit(self, features_ND: FloatArray, has_NL: BoolArray, strength: float) -> tuple[FloatArray, FloatArray]:
        """Fit each label; return the weights of the columns (L, D), and the biases (L,)."""
        weight_LD, bias_L = np.empty((has_NL.shape[1], features_ND.shape[1])), np.empty(has_NL.shape[1])
        for label in range(has_NL.shape[1]):
            weight_LD[label], bias_L[label] = fit_label(features_ND, has_NL[:, label], strength)
            self._reporter.advance(1)
        return weight_LD, bias_L

    def _vectors(self, row_N: IntArray) -> FloatArray:
        """Return the vectors of ``row_N``: of length 1 for cosine scores, otherwise of a mean square length of 1."""
        vectors_ND = self._model.vectors.vectors(self._entity, row_N).astype(np.float64)
        return unit_rows(vectors_ND) if self._model.score.normalized else vectors_ND / self._scale

    def _mean_length(self) -> float:
        if self._model.score.normalized:
            return 1.0
        vectors_SD = self._model.vectors.vectors(self._entity, self._row_S)
        return float(np.sqrt(np.square(vectors_SD, dtype=np.float64).sum(axis=1).mean())) or 1.0

    def _keep(self, probability_NL: FloatArray) -> tuple[IntArray, IntArray]:
        """Return the places and labels of what ``threshold`` and ``k`` keep, by place, the most probable first."""
        k = min(self._options.k, probability_NL.shape[1])
        best_NL = np.argsort(-probability_NL, axis=1, kind="stable")[:, :k]
        kept_NL = np.take_along_axis(probability_NL, best_NL, axis=1) >= self._options.threshold
        place_P, rank_P = np.nonzero(kept_NL)
        return place_P, best_NL[place_P, rank_P]

    def _kept_quality(self, truth_NL: BoolArray, probability_NL: FloatArray) -> dict[str, float]:
        place_P, label_P = self._keep(probability_NL)
        right_P = truth_NL[place_P, label_P]
        return {
            "precision": float(right_P.mean()) if len(right_P) else 0.0,
            "labels_per_row": len(place_P) / len(truth_NL),
            "share": len(np.unique(place_P)) / len(truth_NL),
        }

    def _warn_of_known_labels(self) -> None:
        towers = [tower for tower in self._model.spec.towers if tower.entity.name == self._entity]
        source = self._options.labels
        if source.id_column is None and any(source.path == table.name for t in towers for table in t.features):
            _logger.warning(
                f"the model was trained with the feature '{source.path}': the embeddings have seen the tested labels"
            )


def _labeled_rows(pairs: LabelPairs, usable_R: BoolArray, options: TagOptions) -> tuple[IntArray, BoolArray, IntArray]:
    """Return the rows, sorted, which labels they have, bool (S, L), and the labels, the most frequent first."""
    kept_P = usable_R[pairs.row_P]
    row_P, label_P = pairs.row_P[kept_P], pairs.label_P[kept_P]
    count_N = np.bincount(label_P, minlength=1)
    label_L = np.argsort(-count_N, kind="stable")[:MAX_LABELS]
    label_L = label_L[count_N[label_L] >= options.min_items]
    if not len(label_L):
        fewer = Option("min_items")
        raise InputError(
            OPTION,
            f" {options.labels.entity}=…: the most frequent label has {count_N.max()} rows with a trained "
            f"vector; expected at least {options.min_items}: lower ",
            fewer,
            ", or provide labels for more rows",
        )
    place_N = np.full(len(count_N), -1, np.int64)
    place_N[label_L] = np.arange(len(label_L))
    kept_P = place_N[label_P] >= 0
    row_S = np.unique(row_P[kept_P])
    if len(row_S) > MAX_ROWS:
        row_S = np.sort(np.random.default_rng(options.seed).choice(row_S, MAX_ROWS, replace=False))
        kept_P &= np.isin(row_P, row_S)
    has_SL = np.zeros((len(row_S), len(label_L)), np.bool_)
    has_SL[np.searchsorted(row_S, row_P[kept_P]), place_N[label_P[kept_P]]] = True
    return row_S, has_SL, label_L


def _divide(rows: int, seed: int) -> tuple[IntArray, IntArray, IntArray]:
    """Divide the places of ``rows`` rows at random: 60 % to fit, 20 % to validate, 20 % to test."""
    order_S = np.random.default_rng(seed).permutation(rows)
    fitted_S, validated_S, tested_S = np.split(order_S, [rows * 6 // 10, rows * 8 // 10])
    return np.sort(fitted_S), np.sort(validated_S), np.sort(tested_S)


def fit_label(features_ND: FloatArray, has_N: BoolArray, strength: float) -> tuple[FloatArray, float]:
    """Fit a logistic regression; return the weight of each column, float64 (D,), and the bias.

    A label that all or none of the rows have gets its smoothed frequency.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    positive = int(has_N.sum())
    if positive in (0, len(has_N)):
        return np.zeros(features_ND.shape[1]), float(np.log((positive + 0.5) / (len(has_N) - positive + 0.5)))
    model = LogisticRegression(C=strength, max_iter=_MAX_ITERATIONS)
    with warnings.catch_warnings():
        # A fit that is stopped is one with a stronger regularization, and is validated like any other.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features_ND, has_N)
    return model.coef_[0], float(model.intercept_[0])


def _sigmoid(logit_N: FloatArray) -> FloatArray:
    """Return the probability of each logit."""
    probability_N: FloatArray = 0.5 * (1.0 + np.tanh(0.5 * logit_N))
    return probability_N


def _can_be_ranked(has_NL: BoolArray) -> BoolArray:
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

    ranked_L = _can_be_ranked(has_NL)
    has_NL, score_NL = has_NL[:, ranked_L], score_NL[:, ranked_L]
    return {
        "roc_auc": float(roc_auc_score(has_NL, score_NL, average="macro")),
        "pr_auc": float(average_precision_score(has_NL, score_NL, average="macro")),
        "pr_auc_micro": float(average_precision_score(has_NL, score_NL, average="micro")),
        "precision@1": float(has_NL[np.arange(len(has_NL)), score_NL.argmax(axis=1)].mean()),
    }
