"""Build a map of items: the most frequent ones, at places where neighbors in the embedding are neighbors on the map.

    items_map = build_map(model, MapOptions(source="runs/lastfm"), reporter)
    items_map.place_N2, items_map.label_N, items_map.names

Shapes: N items of the map, K neighbors, D columns, R rows of the entity.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.errors import InputError, MissingExtraError
from crossfade.kvstore.jit import get_num_threads
from crossfade.trainer.data.jagged_array import JaggedArray
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.maps.map_labels import Labels, choose_labels
from crossfade.trainer.maps.options import MapOptions
from crossfade.trainer.model.spec import Score
from crossfade.trainer.prepare.summary import is_synthetic
from crossfade.trainer.recommend.candidates import read_lists
from crossfade.trainer.recommend.metadata_table import open_metadata
from crossfade.trainer.recommend.model import Model
from crossfade.trainer.recommend.top_k import rank_vectors, unit_rows
from crossfade.trainer.recommend.trained_model import TrainedModel

NEIGHBORS = 10
_MIN_ITEMS = 10
_PERPLEXITY = 30
_EXAGGERATED_STEPS, _STEPS = 250, 500
_STEPS_PER_REPORT = 25


@dataclass(frozen=True)
class ItemsMap:
    """A map of N items.

    Attributes:
        title: what is shown, in a few words.
        rows_N: the rows of the items, int64, the most frequent first.
        ids: their IDs.
        names: their names or, without one, IDs as text.
        place_N2: their places, float32 (N, 2).
        labels: their labels; None without colors.
        neighbor_NK: the nearest items of each by cosine of embeddings, as places in ``names``, int32 (N, K).
    """

    title: str
    rows_N: IntArray
    ids: pa.Array
    names: list[str]
    place_N2: FloatArray
    labels: Labels | None
    neighbor_NK: IntArray


def build_map(model: TrainedModel, options: MapOptions, reporter: ProgressReporter) -> ItemsMap:
    """Project the items of ``model``; report progress to ``reporter``.

    Raises:
        InputError: fewer than ten items are left, or there is no such column.
        CheckpointError: the checkpoint is corrupt or cannot be read.
    """
    item = model.spec.item.name
    color = options.color or next(iter(model.manifest.features_of(item)), None)
    rows_N = _choose_rows(model, options)
    vectors_ND = model.vectors.vectors(item, np.sort(rows_N))[np.argsort(np.argsort(rows_N))]
    vectors_ND = unit_rows(vectors_ND) if model.score.normalized else vectors_ND
    neighbor_NK = _neighbors(vectors_ND)
    labels = _labels(model, options, color, rows_N, neighbor_NK) if color is not None else None
    place_N2 = _project(vectors_ND, options.seed, reporter)
    found = Model(model).labels(item, rows_N)
    chosen = [found[int(row)] for row in rows_N]
    ids, names = pa.array([label.id for label in chosen]), [label.name or str(label.id) for label in chosen]
    data = ", synthetic listening" if is_synthetic(model.manifest) else ""
    title = f"{model.job.name}{data}: the {len(rows_N):,} most frequent of {item}"
    return ItemsMap(title, rows_N, ids, names, place_N2, labels, neighbor_NK)


def _choose_rows(model: TrainedModel, options: MapOptions) -> IntArray:
    """Return the rows of the most frequent items that are trained and that the filters keep."""
    item, opened = model.spec.item, Model(model)
    kept_N = np.flatnonzero(opened.candidates(item.name, read_lists(options, item.name)).kept_R)
    counts_N = model.counts(item.name)[kept_N]
    rows_N: IntArray = kept_N[np.argsort(-counts_N, kind="stable")][: options.count]
    if len(rows_N) < _MIN_ITEMS:
        raise InputError(f"only {len(rows_N)} of {item.name} can be mapped; expected {_MIN_ITEMS} or more")
    return rows_N


def _labels(model: TrainedModel, options: MapOptions, color: str, rows_N: IntArray, neighbor_NK: IntArray) -> Labels:
    with open_metadata(model, model.spec.item.name, options.metadata, {color}) as table:
        groups, names = table.groups(color)
    return choose_labels(groups.take(rows_N), names, neighbor_NK, options.colors)


def _neighbors(vectors_ND: FloatArray) -> IntArray:
    """Return the nearest items of each by cosine, int32 (N, K)."""
    count = len(vectors_ND)
    itself = JaggedArray(np.arange(count + 1), np.arange(count))
    unit_ND = unit_rows(vectors_ND).astype(np.float32)
    neighbor_NK, _ = rank_vectors(
        unit_ND, Score.of("cosine", 1.0), count, lambda rows_E: unit_ND[rows_E], itself, min(NEIGHBORS, count - 1)
    )
    return neighbor_NK.astype(np.int32)


def _project(vectors_ND: FloatArray, seed: int, reporter: ProgressReporter) -> FloatArray:
    """Return the places of ``vectors_ND`` on a map, float32 (N, 2), with mean 0, by t-SNE.

    The method is that of van der Maaten and Hinton (JMLR 2008), as openTSNE computes it.

    Raises:
        MissingExtraError: openTSNE is not installed.
    """
    try:
        from openTSNE import TSNE
    except ImportError as error:
        raise MissingExtraError("openTSNE", "map", "crossfade map") from error

    reporter.phase("t-SNE", _EXAGGERATED_STEPS + _STEPS, "step")

    def report(_step: int, _divergence: float, _place_N2: FloatArray) -> None:
        reporter.advance(_STEPS_PER_REPORT)

    tsne = TSNE(
        perplexity=min(_PERPLEXITY, max(1, (len(vectors_ND) - 1) // 3)),
        early_exaggeration_iter=_EXAGGERATED_STEPS,
        n_iter=_STEPS,
        initialization="pca",
        n_jobs=get_num_threads(),
        random_state=seed,
        callbacks=report,
        callbacks_every_iters=_STEPS_PER_REPORT,
    )
    place_N2: FloatArray = np.asarray(tsne.fit(vectors_ND.astype(np.float64)), np.float32)
    place_N2 -= place_N2.mean(axis=0)
    return place_N2
