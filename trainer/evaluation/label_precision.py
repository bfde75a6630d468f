"""Whether neighbours share a label: how well the geometry of embeddings agrees with what people say of rows.

    found = label_precision(source, model, reader, manifest, "artist", labels, counts_R, least=20, seed=1)
    found["precision"], found["precision_of_counts"], found["precision_by_chance"]

Of the rows that have a label and are liked at least so often in train, the ten nearest others of each are looked at:

- precision: by the score of the job, of two vectors of the one side
- precision_of_counts: by the cosine of their counts in train, a vector over the other side for each row (item-item
  neighbours, Sarwar et al., WWW 2001); neighbours are rows with a cosine above 0, ten at most
- precision_by_chance: of one other drawn at random, which is what one expects of any ranking that knows nothing

each the share of neighbours that have a label in common with the row, averaged over rows. Ties go to the lower row.
Of many rows a sample asks for its neighbours, which are looked for among all; of many interactions, those of a sample
of the other side are counted. Both samples are drawn by the seed.

Letters of shapes: S rows that take part, by place; Q places that ask; R rows; K neighbours; P pairs; C the other side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from kvstore.arrays import FloatArray, IntArray
from kvstore.errors import InputError
from trainer.data.manifest import DatasetManifest
from trainer.data.reader import InteractionReader
from trainer.embeddings.files import VectorSource
from trainer.evaluation.labels import LabelPairs
from trainer.evaluation.ranking import ItemLists, rank_vectors
from trainer.model.spec import ModelSpec

NEIGHBORS = 10
ASKED_MAX = 10_000
COUNTED_MAX = 1 << 23
"""Interactions that are counted; each takes some 100 bytes at the most."""

Found = dict[str, float | int]


@dataclass(frozen=True)
class _Labelled:
    """The rows that take part, and the labels of each place: ``labels_P[starts_S1[s]:starts_S1[s + 1]]``, sorted."""

    row_S: IntArray
    starts_S1: IntArray
    labels_P: IntArray


def label_precision(
    source: VectorSource,
    model: ModelSpec,
    reader: InteractionReader,
    manifest: DatasetManifest,
    entity: str,
    labels: LabelPairs,
    counts_R: IntArray,
    *,
    least: int,
    seed: int,
) -> Found:
    """Of the rows of ``entity`` with ``labels`` and counts in train, ``counts_R``, of ``least`` at the least.

    Raises:
        InputError: they are fewer than two, or a shard or the embeddings cannot be read.
    """
    labelled = _take_part(labels, counts_R, least)
    rows = len(labelled.row_S)
    if rows < 2:
        raise InputError(
            f"{rows} row(s) of {entity} have a label and {least} interactions in train; expected two at the least: "
            "lower --label-min-count, or give labels of more"
        )
    asked_Q = np.arange(rows)
    if rows > ASKED_MAX:
        asked_Q = np.sort(np.random.default_rng(seed).choice(rows, ASKED_MAX, replace=False))
    near_QK = _nearest_vectors(source, model, entity, labelled.row_S, asked_Q)
    counted_QK = _nearest_counts(reader, manifest, entity, labelled.row_S, asked_Q, seed)
    sharing_Q = _count_sharing(asked_Q, labelled.starts_S1, labelled.labels_P, *_by_label(labelled))
    return {
        "rows": rows,
        "labels": len(np.unique(labelled.labels_P)),
        "asked": len(asked_Q),
        "least": least,
        "neighbours": NEIGHBORS,
        "precision": _precision(near_QK, asked_Q, labelled),
        "precision_of_counts": _precision(counted_QK, asked_Q, labelled),
        "precision_by_chance": float(sharing_Q.mean() / (rows - 1)),
    }


def _take_part(labels: LabelPairs, counts_R: IntArray, least: int) -> _Labelled:
    kept_P = counts_R[labels.row_P] >= least
    row_S, starts_S = np.unique(labels.row_P[kept_P], return_index=True)
    return _Labelled(row_S, np.append(starts_S, kept_P.sum()), labels.label_P[kept_P])


def _nearest_vectors(
    source: VectorSource, model: ModelSpec, entity: str, row_S: IntArray, asked_Q: IntArray
) -> IntArray:
    """The places nearest to ``asked_Q`` by the score of ``model``: int64 (Q, K), -1 where there are no more."""
    own = ItemLists(np.arange(len(asked_Q) + 1), asked_Q)
    best_QK, _ = rank_vectors(
        source.vectors(entity, row_S[asked_Q]),
        model.score,
        len(row_S),
        lambda place_E: source.vectors(entity, row_S[place_E]),
        own,
        NEIGHBORS,
    )
    return best_QK


def _nearest_counts(
    reader: InteractionReader, manifest: DatasetManifest, entity: str, row_S: IntArray, asked_Q: IntArray, seed: int
) -> IntArray:
    """The places nearest to ``asked_Q`` by the cosine of their counts."""
    pair_P, count_P = _count_pairs(reader, manifest, entity, row_S, seed)
    other_P, place_P = np.divmod(pair_P, len(row_S))
    _, other_P = np.unique(other_P, return_inverse=True)
    starts_C1 = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(other_P))])
    norm_S = np.sqrt(np.bincount(place_P, np.square(count_P.astype(np.float64)), minlength=len(row_S)))
    # Pairs lie by the other side; by place they are a permutation of these.
    order_P = np.argsort(place_P, kind="stable")
    starts_S1 = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(place_P, minlength=len(row_S)))])
    by_place = starts_S1, other_P[order_P], count_P[order_P]
    best_QK: IntArray = _rank_counts(asked_Q, *by_place, starts_C1, place_P, count_P, norm_S, NEIGHBORS)
    return best_QK


def _count_pairs(
    reader: InteractionReader, manifest: DatasetManifest, entity: str, row_S: IntArray, seed: int
) -> tuple[IntArray, IntArray]:
    """Pairs of a row of the other side and a place, other·S + place, sorted, and how often train likes each."""
    on_query = entity == manifest.query
    place_R = np.full(manifest.entities[entity].rows, -1, np.int64)
    place_R[row_S] = np.arange(len(row_S))
    train = manifest.splits["train"]
    others = manifest.entities[manifest.item if on_query else manifest.query].rows
    counted_C = np.random.default_rng(seed).random(others) < COUNTED_MAX / max(train.rows, 1)
    parts = [np.empty(0, np.int64)]
    for part in reader.read_all(train):
        row_N, other_N = (part.query_N, part.item_N) if on_query else (part.item_N, part.query_N)
        kept_N = (part.weight_N > 0) & (place_R[row_N] >= 0) & counted_C[other_N]
        parts.append(other_N[kept_N].astype(np.int64) * len(row_S) + place_R[row_N[kept_N]])
    return np.unique(np.concatenate(parts), return_counts=True)


@njit(cache=True)
def _rank_counts(asked_Q, starts_S1, other_P, count_P, starts_C1, place_T, count_T, norm_S, depth):  # type: ignore[no-untyped-def]
    """The best of each that asks: its pairs are (other_P, count_P), those of the other side (place_T, count_T)."""
    best_QK = np.full((asked_Q.shape[0], depth), -1, dtype=np.int64)
    for q in range(asked_Q.shape[0]):
        own = asked_Q[q]
        product_S = np.zeros(norm_S.shape[0])
        for p in range(starts_S1[own], starts_S1[own + 1]):
            for t in range(starts_C1[other_P[p]], starts_C1[other_P[p] + 1]):
                product_S[place_T[t]] += count_P[p] * count_T[t]
        product_S[own] = 0.0
        best_K = np.zeros(depth)
        for s in range(product_S.shape[0]):
            if product_S[s] > 0.0:
                # The length of the asking vector is the same for all.
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


def _by_label(labelled: _Labelled) -> tuple[IntArray, IntArray]:
    """The places that have each label: where those of each begin, and they."""
    place_P = np.repeat(np.arange(len(labelled.row_S)), np.diff(labelled.starts_S1))
    order_P = np.argsort(labelled.labels_P, kind="stable")
    starts_L1 = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(labelled.labels_P))])
    return starts_L1, place_P[order_P]


@njit(cache=True)
def _count_sharing(asked_Q, starts_S1, labels_P, starts_L1, place_P):  # type: ignore[no-untyped-def]
    """How many other places have a label in common with each that asks."""
    sharing_Q = np.zeros(asked_Q.shape[0], np.int64)
    met_S = np.full(starts_S1.shape[0] - 1, -1, np.int64)
    for q in range(asked_Q.shape[0]):
        met_S[asked_Q[q]] = q
        for p in range(starts_S1[asked_Q[q]], starts_S1[asked_Q[q] + 1]):
            for n in range(starts_L1[labels_P[p]], starts_L1[labels_P[p] + 1]):
                if met_S[place_P[n]] != q:
                    met_S[place_P[n]] = q
                    sharing_Q[q] += 1
    return sharing_Q


@njit(cache=True)
def _share(near_QK, asked_Q, starts_S1, labels_P):  # type: ignore[no-untyped-def]
    """Which neighbours have a label in common with the place that asks."""
    share_QK = np.zeros(near_QK.shape, dtype=np.bool_)
    for q in range(near_QK.shape[0]):
        for k in range(near_QK.shape[1]):
            if near_QK[q, k] >= 0:
                one, other = starts_S1[asked_Q[q]], starts_S1[near_QK[q, k]]
                while one < starts_S1[asked_Q[q] + 1] and other < starts_S1[near_QK[q, k] + 1]:
                    if labels_P[one] == labels_P[other]:
                        share_QK[q, k] = True
                        break
                    if labels_P[one] < labels_P[other]:
                        one += 1
                    else:
                        other += 1
    return share_QK


def _precision(near_QK: IntArray, asked_Q: IntArray, labelled: _Labelled) -> float:
    """The share of neighbours with a label in common, averaged over the places that have neighbours."""
    share_QK = _share(near_QK, asked_Q, labelled.starts_S1, labelled.labels_P)
    found_Q: FloatArray = (near_QK >= 0).sum(axis=1)
    some_Q = found_Q > 0
    return float((share_QK.sum(axis=1)[some_Q] / found_Q[some_Q]).mean()) if some_Q.any() else 0.0
