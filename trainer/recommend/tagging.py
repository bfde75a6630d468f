"""Tag items by linear probes of their embeddings: measure how well, then predict the labels of those that have none.

    tagger = Tagger(model, TagOptions.of(labels="artist=tag"), NullReporter())
    measured = tagger.measure()
    for predicted in tagger.predict(measured.strength["embeddings"], tagger.unlabeled_N):
        predicted.row_N, predicted.label_N, predicted.probability_N

Rows with a label are divided at random: 60 % are fitted, 20 % choose the regularization, and 20 % are tested after a
fit to both others. The same probe and division measure two baselines, the row's interactions in train by customer
(TF-IDF, at length 1), and their truncated SVD with as many columns as the embeddings; a third is the frequency of
labels. Predictions are by a fit to all rows with a label.

Shapes: S rows with a label, L labels, N elements of anything else, P pairs of a row and a label, R rows, D columns.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from crossfade.base.arrays import BoolArray, FloatArray, IntArray
from crossfade.base.errors import InputError, Option
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.recommend.labels import OPTION, LabelPairs, count_pairs, read_labels
from crossfade.trainer.recommend.linear_probe import (
    Features,
    can_be_ranked,
    check_scikit_learn,
    choose_strength,
    choosing_steps,
    fit_and_score,
    fit_label,
    rank_metrics,
    sigmoid,
)
from crossfade.trainer.recommend.options import TagOptions
from crossfade.trainer.recommend.table_files import write_output
from crossfade.trainer.recommend.top_k import unit_rows
from crossfade.trainer.recommend.trained_model import TrainedModel

MAX_LABELS = 500
MAX_ROWS = 20_000
"""Rows with a label that take part; a random sample, if there are more."""
_BLOCK_ROWS = 1 << 14
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TagQuality:
    """What was measured.

    Attributes:
        rows: rows that were fitted, that chose the regularization, and that were tested.
        labels: number of labels.
        labels_per_row: their mean number.
        columns: columns of the features of each method.
        strength: the chosen inverse of the regularization of each method that has one.
        metrics: of each method: embeddings, counts, counts_svd, frequency.
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
class PredictedLabels:
    """Labels of rows, int64 and sorted by row, then by falling probability, float32."""

    row_N: IntArray
    label_N: IntArray
    probability_N: FloatArray


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
        InputError: as ``Tagger``, or the file cannot be written.
    """
    tagger = Tagger(model, options, reporter)
    quality, rows_N, written, predicted = tagger.measure(), tagger.unlabeled_N, None, list[dict[str, Any]]()
    strength, out = quality.strength["embeddings"], options.out
    if out is not None:
        written = write_output(out, tagger.tables(strength, rows_N))
    elif examples:
        frequent_N = np.argsort(-tagger.count_R[rows_N], kind="stable")[:examples]
        tables = tagger.tables(strength, np.sort(rows_N[frequent_N]))
        predicted = [row for table in tables for row in table.to_pylist()]
    return Tagged(tagger.entity, quality, len(rows_N), written, predicted)


class Tagger:
    """Measures and predicts the labels of one entity of a model."""

    def __init__(self, model: TrainedModel, options: TagOptions, reporter: ProgressReporter) -> None:
        """Read the labels, and select those that enough rows have.

        Raises:
            InputError: the labels cannot be read, or no label has enough rows.
            MissingExtraError: scikit-learn is not installed.
        """
        check_scikit_learn()
        self._model, self._options, self._reporter = model, options, reporter
        self.entity = options.labels.entity
        pairs = read_labels(model.data, model.manifest, options.labels)
        self.count_R = model.counts(self.entity)
        table = next(table for table in model.spec.vectors if table.name == self.entity)
        self._dim = table.dim
        usable_R = model.trained_rows(table) & (self.count_R >= options.min_count)
        self.row_S, self._has_SL, label_L = _labeled_rows(pairs, usable_R, options)
        self.labels: list[str] = pairs.texts.take(label_L).to_pylist()
        usable_R[pairs.row_P] = False
        self.unlabeled_N = np.flatnonzero(usable_R)
        self._scale = self._mean_length()
        self._warn_of_known_labels()

    def measure(self) -> TagQuality:
        """Measure the probe of the embeddings, and the baselines.

        Raises:
            InputError: every label is that of all rows or of none, or the dataset or embeddings cannot be read.
        """
        fitted_S, validated_S, tested_S = parts = _divide(len(self.row_S), self._options.seed)
        for part_S in (validated_S, tested_S):
            if not can_be_ranked(self._has_SL[part_S]).any():
                fewer = Option("min_items")
                raise InputError(
                    OPTION,
                    f" {self.entity}=…: no label divides the {len(self.row_S):,} rows that have one; expected "
                    "labels that some of them have: lower ",
                    fewer,
                    ", or provide labels for more rows",
                )
        both_S = np.concatenate([fitted_S, validated_S])
        frequency_L = self._has_SL[both_S].mean(axis=0)
        truth_NL = self._has_SL[tested_S]
        columns, strengths, metrics, kept = {}, {}, {}, {}
        for name, features in self._methods():
            labels = len(self.labels)
            self._reporter.phase(f"fit {name}", choosing_steps(labels) + labels, "label")
            strengths[name] = choose_strength(features, self._has_SL, fitted_S, validated_S, self._reporter)
            probability_NL = fit_and_score(features, self._has_SL, both_S, tested_S, strengths[name], self._reporter)
            columns[name] = features.shape[1]
            metrics[name] = rank_metrics(truth_NL, probability_NL)
            if name == "embeddings":
                kept = self._kept_quality(truth_NL, probability_NL)
        metrics["frequency"] = rank_metrics(truth_NL, np.tile(frequency_L, (len(tested_S), 1)))
        rows = (len(parts[0]), len(parts[1]), len(parts[2]))
        per_row = float(self._has_SL.sum(axis=1).mean())
        return TagQuality(rows, len(self.labels), per_row, columns, strengths, metrics, kept)

    def predict(self, strength: float, row_N: IntArray) -> Iterator[PredictedLabels]:
        """Yield the predicted labels of ``row_N``, int64, sorted, in blocks."""
        features_SD = self._vectors(self.row_S)
        self._reporter.phase("fit all rows", len(self.labels), "label")
        weight_LD, bias_L = np.empty((len(self.labels), self._dim)), np.empty(len(self.labels))
        for label in range(len(self.labels)):
            weight_LD[label], bias_L[label] = fit_label(features_SD, self._has_SL[:, label], strength)
            self._reporter.advance(1)
        self._reporter.phase("predict", len(row_N), "row")
        for first in range(0, len(row_N), _BLOCK_ROWS):
            block_N = row_N[first : first + _BLOCK_ROWS]
            probability_NL = sigmoid(self._vectors(block_N) @ weight_LD.T + bias_L).astype(np.float32)
            place_P, label_P = self._keep(probability_NL)
            yield PredictedLabels(block_N[place_P], label_P, probability_NL[place_P, label_P])
            self._reporter.advance(len(block_N))

    def tables(self, strength: float, row_N: IntArray) -> Iterator[pa.Table]:
        """Yield the predicted labels of ``row_N``, as ``predict``, as tables, at least one."""
        vocabulary = self._model.vocabulary(self.entity)
        none = PredictedLabels(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
        labels = pa.array(self.labels, pa.string())
        for predicted in [none] if not len(row_N) else self.predict(strength, row_N):
            found_N, place_N = np.unique(predicted.row_N, return_inverse=True)
            found = vocabulary.take(found_N).take(pa.array(place_N))
            columns = {
                self.entity: found.column("id"),
                "label": labels.take(pa.array(predicted.label_N)),
                "probability": predicted.probability_N,
            }
            if "name" in found.column_names:
                columns[f"{self.entity}_name"] = found.column("name")
            yield pa.table(columns)

    def _methods(self) -> Iterator[tuple[str, Features]]:
        from sklearn.decomposition import TruncatedSVD

        yield "embeddings", self._vectors(self.row_S)
        counts = self._counts()
        yield "counts", counts
        columns = min(self._dim, min(counts.shape) - 1)
        if columns > 0:
            yield "counts_svd", unit_rows(TruncatedSVD(columns, random_state=0).fit_transform(counts))

    def _counts(self) -> Features:
        """Return the interactions of each row in train by row of the other side, as TF-IDF at length 1."""
        from scipy.sparse import csr_matrix
        from sklearn.feature_extraction.text import TfidfTransformer

        self._reporter.phase("count interactions", None, "row")
        with closing(self._model.open_lineage()) as lineage:
            pair_P, count_P = count_pairs(lineage, self.entity, self.row_S, self._options.seed)
        other_P, place_P = np.divmod(pair_P, len(self.row_S))
        others, other_P = np.unique(other_P, return_inverse=True)
        shape = len(self.row_S), max(1, len(others))
        counts = csr_matrix((count_P.astype(np.float64), (place_P, other_P)), shape=shape)
        return TfidfTransformer(sublinear_tf=True).fit_transform(counts)

    def _vectors(self, row_N: IntArray) -> FloatArray:
        """Return the vectors of ``row_N``: of length 1 for cosine scores, otherwise of a mean square length of 1."""
        vectors_ND = self._model.vectors.vectors(self.entity, row_N).astype(np.float64)
        return unit_rows(vectors_ND) if self._model.score.normalized else vectors_ND / self._scale

    def _mean_length(self) -> float:
        if self._model.score.normalized:
            return 1.0
        vectors_SD = self._model.vectors.vectors(self.entity, self.row_S)
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
        towers = [tower for tower in self._model.spec.towers if tower.entity.name == self.entity]
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
