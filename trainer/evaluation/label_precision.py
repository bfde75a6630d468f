"""Label precision: how often nearest neighbors share a label, as a measure of the geometry of embeddings.

    result = label_precision(source, model, lineage, "artist", labels, counts_R, min_count=20, seed=1)
    result["precision"], result["precision_of_counts"], result["precision_by_chance"]

For each row that has a label and at least ``min_count`` interactions in train, its ten nearest other such rows are
found:

- precision: by the score of the job, between two vectors of the same side
- precision_of_counts: by the cosine of their counts in train, a vector over the other side for each row (item-item
  neighbors, Sarwar et al., WWW 2001); neighbors are rows with a cosine above 0, ten at most
- precision_by_chance: of one other row drawn at random, the expectation for a random ranking

Each is the fraction of neighbors that share a label with the row, averaged over rows. Ties go to the lower row. With
many rows, neighbors are found for a random sample of rows, among all; with many interactions, counts are over a random
sample of the other side.

Shapes: S labeled rows, by place; Q sampled places; E places of a block; R rows; K neighbors; P pairs; L labels; C rows
of the other side; T its pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.errors import InputError, Option
from crossfade.kvstore.jit import njit
from crossfade.trainer.data.lineage import LineageReader
from crossfade.trainer.embeddings.files import VectorSource
from crossfade.trainer.evaluation.held_out import ItemLists
from crossfade.trainer.evaluation.labels import LabelPairs
from crossfade.trainer.evaluation.top_k import rank_vectors
from crossfade.trainer.model.spec import ModelSpec

NEIGHBORS = 10
MAX_SAMPLED_ROWS = 10_000
MAX_COUNTED_INTERACTIONS = 1 << 23
"""Interactions that are counted; each takes at most about 100 bytes of memory."""

LabelPrecision = dict[str, float | int]


@dataclass(frozen=True)
class _LabeledRows:
    """The labeled rows, and the labels of each place: ``labels_P[starts_S1[s]:starts_S1[s + 1]]``, sorted."""

    row_S: IntArray
    starts_S1: IntArray
    labels_P: IntArray


def label_precision(
    source: VectorSource,
    model: ModelSpec,
    lineage: LineageReader,
    entity: str,
    labels: LabelPairs,
    counts_R: IntArray,
    *,
    min_count: int,
    seed: int,
) -> LabelPrecision:
    """Compute the precisions above for the rows of ``entity``.

    Args:
        source: vectors of the entity's rows.
        model: defines the score.
        lineage: reads train, for the counts of pairs.
        entity: the query or the item entity.
        labels: pairs of a row and a label.
        counts_R: interactions of each row in train.
        min_count: least count of a row that takes part.
        seed: of the samples.

    Raises:
        InputError: fewer than two rows take part, or the dataset or the embeddings cannot be read.
    """
    labeled = _labeled_rows(labels, counts_R, min_count)
    rows = len(labeled.row_S)
    if rows < 2:
        raise InputError(
            f"rows of {entity} with a label and {min_count} interactions in train: {rows}; expected at least two: "
            "lower ",
            Option("label_min_count"),
            ", or provide labels for more rows",
        )
    sampled_Q = _sample(rows, seed)
    near_QK = _nearest_vectors(source, model, entity, labeled.row_S, sampled_Q)
    counted_QK = _nearest_counts(lineage, entity, labeled.row_S, sampled_Q, seed)
    sharing_Q = _count_sharing(sampled_Q, labeled.starts_S1, labeled.labels_P, *_by_label(labeled))
    return {
        "rows": rows,
        "labels": len(np.unique(labeled.labels_P)),
        "sampled": len(sampled_Q),
        "min_count": min_count,
        "neighbors": NEIGHBORS,
        "precision": _precision(near_QK, sampled_Q, labeled),
        "precision_of_counts": _precision(counted_QK, sampled_Q, labeled),
        "precision_by_chance": float(sharing_Q.mean() / (rows - 1)),
    }


def _sample(rows: int, seed: int) -> IntArray:
    if rows <= MAX_SAMPLED_ROWS:
        return np.arange(rows)
    return np.sort(np.random.default_rng(seed).choice(rows, MAX_SAMPLED_ROWS, replace=False))


def _labeled_rows(labels: LabelPairs, counts_R: IntArray, min_count: int) -> _LabeledRows:
    kept_P = counts_R[labels.row_P] >= min_count
    row_S, starts_S = np.unique(labels.row_P[kept_P], return_index=True)
    return _LabeledRows(row_S, np.append(starts_S, kept_P.sum()), labels.label_P[kept_P])


def _nearest_vectors(
    source: VectorSource, model: ModelSpec, entity: str, row_S: IntArray, sampled_Q: IntArray
) -> IntArray:
    """Return the places nearest to ``sampled_Q`` by the score of ``model``: int64 (Q, K), padded with -1."""
    themselves = ItemLists(np.arange(len(sampled_Q) + 1), sampled_Q)
    best_QK, _ = rank_vectors(
        source.vectors(entity, row_S[sampled_Q]),
        model.score,
        len(row_S),
        lambda place_E: source.vectors(entity, row_S[place_E]),
        themselves,
        NEIGHBORS,
    )
    return best_QK


def _nearest_counts(lineage: LineageReader, entity: str, row_S: IntArray, sampled_Q: IntArray, seed: int) -> IntArray:
    """Return the places nearest to ``sampled_Q`` by the cosine of their counts, as ``_nearest_vectors`` does."""
    pair_P, count_P = count_pairs(lineage, entity, row_S, seed)
    other_P, place_P = np.divmod(pair_P, len(row_S))
    _, other_P = np.unique(other_P, return_inverse=True)
    starts_C1 = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(other_P))])
    norm_S = np.sqrt(np.bincount(place_P, np.square(count_P.astype(np.float64)), minlength=len(row_S)))
    # Pairs are ordered by the other side; ordered by place, they are a permutation of these.
    order_P = np.argsort(place_P, kind="stable")
    starts_S1 = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(place_P, minlength=len(row_S)))])
    of_places = _Counts(starts_S1, other_P[order_P], count_P[order_P])
    best_QK: IntArray = _rank_counts(sampled_Q, of_places, _Counts(starts_C1, place_P, count_P), norm_S, NEIGHBORS)
    return best_QK


def count_pairs(lineage: LineageReader, entity: str, row_S: IntArray, seed: int) -> tuple[IntArray, IntArray]:
    """Return pairs of a row of the other side and a place, other·S + place, sorted, and their positive interactions.

    With more than ``MAX_COUNTED_INTERACTIONS`` in train, a sample of the other side is counted.
    """
    manifest = lineage.manifest
    on_query = entity == manifest.query
    place_R = np.full(manifest.entities[entity].rows, -1, np.int64)
    place_R[row_S] = np.arange(len(row_S))
    others = manifest.entities[manifest.item if on_query else manifest.query].rows
    counted_C = np.random.default_rng(seed).random(others) < MAX_COUNTED_INTERACTIONS / max(lineage.train_rows(), 1)
    parts = [np.empty(0, np.int64)]
    for part in lineage.read_train():
        row_N, other_N = (part.query_N, part.item_N) if on_query else (part.item_N, part.query_N)
        kept_N = (part.weight_N > 0) & (place_R[row_N] >= 0) & counted_C[other_N]
        parts.append(other_N[kept_N].astype(np.int64) * len(row_S) + place_R[row_N[kept_N]])
    return np.unique(np.concatenate(parts), return_counts=True)


class _Counts(NamedTuple):
    """The pairs of each row of one side: from ``starts_R1``, its rows of the other side, and their interactions."""

    starts_R1: IntArray
    other_P: IntArray
    count_P: IntArray


@njit(cache=True)
def _rank_counts(sampled_Q, of_places, of_others, norm_S, depth):  # type: ignore[no-untyped-def]
    """Rank places by cosine, from the ``_Counts`` of places and of the rows of the other side."""
    starts_S1, other_P, count_P = of_places
    starts_C1, place_T, count_T = of_others
    best_QK = np.full((sampled_Q.shape[0], depth), -1, dtype=np.int64)
    for q in range(sampled_Q.shape[0]):
        own = sampled_Q[q]
        product_S = np.zeros(norm_S.shape[0])
        for p in range(starts_S1[own], starts_S1[own + 1]):
            for t in range(starts_C1[other_P[p]], starts_C1[other_P[p] + 1]):
                product_S[place_T[t]] += count_P[p] * count_T[t]
        product_S[own] = 0.0
        best_K = np.zeros(depth)
        for s in range(product_S.shape[0]):
            if product_S[s] > 0.0:
                # The length of the sampled row's own vector does not affect the order.
                cosine = product_S[s] / norm_S[s]
                place = depth
                while place > 0 and cosine > best_K[place - 1]:
                    place -= 1
                if place < depth:
                    for k in range(depth - 1, place, -1):
                        best_K[k] = best_K[k - 1]
                        best_QK[q, k] = best_QK[q, k - 1]
                    best_K[place] = cosine
                    best_QK[q, place] = s
    return best_QK


def _by_label(labeled: _LabeledRows) -> tuple[IntArray, IntArray]:
    """Return the places that have each label: where those of each label start, and the places."""
    place_P = np.repeat(np.arange(len(labeled.row_S)), np.diff(labeled.starts_S1))
    order_P = np.argsort(labeled.labels_P, kind="stable")
    starts_L1 = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(labeled.labels_P))])
    return starts_L1, place_P[order_P]


@njit(cache=True)
def _count_sharing(sampled_Q, starts_S1, labels_P, starts_L1, place_P):  # type: ignore[no-untyped-def]
    """Count the other places that share a label with each sampled one."""
    sharing_Q = np.zeros(sampled_Q.shape[0], np.int64)
    last_S = np.full(starts_S1.shape[0] - 1, -1, np.int64)
    for q in range(sampled_Q.shape[0]):
        last_S[sampled_Q[q]] = q
        for p in range(starts_S1[sampled_Q[q]], starts_S1[sampled_Q[q] + 1]):
            for n in range(starts_L1[labels_P[p]], starts_L1[labels_P[p] + 1]):
                if last_S[place_P[n]] != q:
                    last_S[place_P[n]] = q
                    sharing_Q[q] += 1
    return sharing_Q


@njit(cache=True)
def _shares_label(near_QK, sampled_Q, starts_S1, labels_P):  # type: ignore[no-untyped-def]
    """Return which neighbors share a label with the sampled place."""
    share_QK = np.zeros(near_QK.shape, dtype=np.bool_)
    for q in range(near_QK.shape[0]):
        for k in range(near_QK.shape[1]):
            if near_QK[q, k] >= 0:
                one, other = starts_S1[sampled_Q[q]], starts_S1[near_QK[q, k]]
                while one < starts_S1[sampled_Q[q] + 1] and other < starts_S1[near_QK[q, k] + 1]:
                    if labels_P[one] == labels_P[other]:
                        share_QK[q, k] = True
                        break
                    if labels_P[one] < labels_P[other]:
                        one += 1
                    else:
                        other += 1
    return share_QK


def _precision(near_QK: IntArray, sampled_Q: IntArray, labeled: _LabeledRows) -> float:
    """Return the fraction of neighbors that share a label, averaged over the places that have neighbors."""
    share_QK = _shares_label(near_QK, sampled_Q, labeled.starts_S1, labeled.labels_P)
    found_Q: FloatArray = (near_QK >= 0).sum(axis=1)
    some_Q = found_Q > 0
    return float((share_QK.sum(axis=1)[some_Q] / found_Q[some_Q]).mean()) if some_Q.any() else 0.0
