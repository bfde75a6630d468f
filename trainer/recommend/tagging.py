"""Tag items by linear probes of their embeddings: measure how well, then predict the labels of those that have none.

    tagged = tag(model, TagOptions.of(labels="tag"), NullReporter(), examples=8)
    tagged.quality.metrics["embeddings"]["roc_auc"], tagged.examples

A probe is a logistic regression for each label. Rows with a label are divided at random: 60 % are fitted, 20 % choose
the regularization, and 20 % are tested after a fit to both others, beside the frequency of labels. Predictions are by a
fit to all rows with a label. A strength is the inverse of the L2 regularization, C of scikit-learn.

Shapes: S rows with a label, L labels, N elements of anything else, P pairs of a row and a label, R rows, D columns.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from crossfade.base.arrays import BoolArray, FloatArray, IntArray
from crossfade.base.errors import InputError, MissingExtraError, Option
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.recommend.metadata_table import GroupLists, open_metadata
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
_SEED = 1


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
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("scikit-learn", extra="tag", purpose="crossfade tag") from error
    entity = options.entity or model.spec.item.name
    usable_R = model.trained_rows(entity)
    with open_metadata(model.data, model.manifest, entity, options.metadata, {options.labels}, model.counts) as table:
        groups = table.groups(options.labels)
    row_S, has_SL, label_L = _labeled_rows(groups, usable_R, options)
    usable_R[np.diff(groups.starts_R1) > 0] = False
    unlabeled_N, features = np.flatnonzero(usable_R), _features(model, entity, row_S)
    features_SD = features(row_S)
    quality = _measure(features_SD, has_SL, options, reporter)

    def predict(row_N: IntArray) -> Iterator[pa.Table]:
        """Yield the labels of ``row_N``, sorted, as tables, at least one; the most probable first."""
        reporter.phase("fit all rows", len(label_L), "label")
        score = _fit(features_SD, has_SL, quality.strength["embeddings"], reporter)
        vocabulary, labels = model.vocabulary(entity), pa.array([groups.names[label] for label in label_L])
        for first in range(0, max(len(row_N), 1), _BLOCK_ROWS):
            block_N = row_N[first : first + _BLOCK_ROWS]
            probability_NL = score(features(block_N))
            place_P, label_P = _keep(probability_NL, options)
            found = vocabulary.take(block_N).take(pa.array(place_P))
            columns = {
                entity: found.column("id"),
                "label": labels.take(pa.array(label_P)),
                "probability": probability_NL[place_P, label_P],
            }
            if "name" in found.column_names:
                columns[f"{entity}_name"] = found.column("name")
            yield pa.table(columns)

    if options.out is not None:
        return Tagged(entity, quality, len(unlabeled_N), write_output(options.out, predict(unlabeled_N)), [])
    predicted: list[dict[str, Any]] = []
    if examples:
        frequent_N = np.argsort(-model.counts(entity)[unlabeled_N], kind="stable")[:examples]
        predicted = [row for table in predict(np.sort(unlabeled_N[frequent_N])) for row in table.to_pylist()]
    return Tagged(entity, quality, len(unlabeled_N), None, predicted)


def _features(model: TrainedModel, entity: str, row_S: IntArray) -> Callable[[IntArray], FloatArray]:
    """Return what reads vectors: of length 1 for cosines, otherwise of a mean square length of 1 for ``row_S``."""
    read = partial(model.vectors.vectors, entity)
    if model.score.normalized:
        return lambda row_N: unit_rows(read(row_N).astype(np.float64))
    length = float(np.sqrt(np.square(read(row_S), dtype=np.float64).sum(axis=1).mean())) or 1.0
    return lambda row_N: read(row_N).astype(np.float64) / length


def _measure(features_SD: FloatArray, has_SL: BoolArray, options: TagOptions, reporter: ProgressReporter) -> TagQuality:
    """Choose the regularization, and measure the probe, and the frequency of labels."""
    rows, labels = has_SL.shape
    fitted_S, validated_S, tested_S = _divide(rows)
    if not all(_can_be_ranked(has_SL[part_S]).any() for part_S in (validated_S, tested_S)):
        raise InputError(
            Option("labels", options.labels),
            f": no label divides the {rows:,} rows that have one; expected labels that some of them have: lower ",
            Option("min_items"),
            ", or provide labels for more rows",
        )
    chosen_L = np.unique(np.linspace(0, labels - 1, min(labels, _CHOOSING_LABELS)).astype(np.int64))
    reporter.phase("fit embeddings", len(chosen_L) * len(STRENGTHS) + labels, "label")

    def quality(strength: float) -> float:
        score = _fit(features_SD[fitted_S], has_SL[fitted_S][:, chosen_L], strength, reporter)
        return rank_metrics(has_SL[validated_S][:, chosen_L], score(features_SD[validated_S]))["pr_auc"]

    strength = max(STRENGTHS, key=quality)
    both_S, truth_NL = np.concatenate([fitted_S, validated_S]), has_SL[tested_S]
    probability_NL = _fit(features_SD[both_S], has_SL[both_S], strength, reporter)(features_SD[tested_S])
    frequency_NL = np.tile(has_SL[both_S].mean(axis=0), (len(tested_S), 1))
    place_P, label_P = _keep(probability_NL, options)
    right_P = truth_NL[place_P, label_P]
    return TagQuality(
        (len(fitted_S), len(validated_S), len(tested_S)),
        labels,
        float(has_SL.sum(axis=1).mean()),
        {"embeddings": features_SD.shape[1]},
        {"embeddings": strength},
        {"embeddings": rank_metrics(truth_NL, probability_NL), "frequency": rank_metrics(truth_NL, frequency_NL)},
        {
            "precision": float(right_P.mean()) if len(right_P) else 0.0,
            "labels_per_row": len(place_P) / len(truth_NL),
            "share": len(np.unique(place_P)) / len(truth_NL),
        },
    )


def _keep(probability_NL: FloatArray, options: TagOptions) -> tuple[IntArray, IntArray]:
    """Return the places and labels of what ``threshold`` and ``k`` keep, by place, the most probable first."""
    best_NL = np.argsort(-probability_NL, axis=1, kind="stable")[:, : options.k]
    kept_NL = np.take_along_axis(probability_NL, best_NL, axis=1) >= options.threshold
    place_P, rank_P = np.nonzero(kept_NL)
    return place_P, best_NL[place_P, rank_P]


def _fit(
    features_ND: FloatArray, has_NL: BoolArray, strength: float, reporter: ProgressReporter
) -> Callable[[FloatArray], FloatArray]:
    """Fit each label; return what computes the probability of each, float32 (N, L), from features."""
    weight_LD, bias_L = np.empty((has_NL.shape[1], features_ND.shape[1])), np.empty(has_NL.shape[1])
    for label in range(has_NL.shape[1]):
        weight_LD[label], bias_L[label] = fit_label(features_ND, has_NL[:, label], strength)
        reporter.advance(1)
    return lambda block_ND: (0.5 * (1.0 + np.tanh(0.5 * (block_ND @ weight_LD.T + bias_L)))).astype(np.float32)


def _labeled_rows(groups: GroupLists, usable_R: BoolArray, options: TagOptions) -> tuple[IntArray, BoolArray, IntArray]:
    """Return the rows, sorted, which labels they have, bool (S, L), and the labels, the most frequent first."""
    row_P, label_P = np.repeat(np.arange(len(usable_R)), np.diff(groups.starts_R1)), groups.values_N
    row_P, label_P = row_P[usable_R[row_P]], label_P[usable_R[row_P]]
    count_N = np.bincount(label_P, minlength=1)
    label_L = np.argsort(-count_N, kind="stable")[:MAX_LABELS]
    label_L = label_L[count_N[label_L] >= options.min_items]
    if not len(label_L):
        fewer = Option("min_items")
        raise InputError(
            Option("labels", options.labels),
            f": the most frequent label has {count_N.max()} rows with a trained "
            f"vector; expected at least {options.min_items}: lower ",
            fewer,
            ", or provide labels for more rows",
        )
    place_N = np.full(len(count_N), -1, np.int64)
    place_N[label_L] = np.arange(len(label_L))
    kept_P = place_N[label_P] >= 0
    row_S = np.unique(row_P[kept_P])
    if len(row_S) > MAX_ROWS:
        row_S = np.sort(np.random.default_rng(_SEED).choice(row_S, MAX_ROWS, replace=False))
        kept_P &= np.isin(row_P, row_S)
    has_SL = np.zeros((len(row_S), len(label_L)), np.bool_)
    has_SL[np.searchsorted(row_S, row_P[kept_P]), place_N[label_P[kept_P]]] = True
    return row_S, has_SL, label_L


def _divide(rows: int) -> tuple[IntArray, IntArray, IntArray]:
    """Divide the places of ``rows`` rows at random: 60 % to fit, 20 % to validate, 20 % to test."""
    order_S = np.random.default_rng(_SEED).permutation(rows)
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
