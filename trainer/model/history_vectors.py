"""Vectors of histories outside training, where the history of a query is the end of all its interactions in train.

    latest = load_latest_histories(job, folder, manifest, model.history)
    vectors_MD = mean_of_histories(model.history, latest.gather(rows_M), lambda rows_V: embeddings_RD[rows_V])

Shapes: M queries, V distinct items, R rows of a table, D columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

import numpy as np

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.io.folder import Folder
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.config.sections import HISTORY
from crossfade.trainer.data.lineage import LineageReader
from crossfade.trainer.data.manifest import DatasetManifest
from crossfade.trainer.data.query_history import HistoryWindows, LatestHistories, latest_histories
from crossfade.trainer.model.active_rows import TowerInputs, history_bag
from crossfade.trainer.model.spec import HistorySpec, TowerSpec


def mean_of_histories(
    spec: HistorySpec, histories: HistoryWindows, embeddings: Callable[[IntArray], FloatArray]
) -> FloatArray:
    """Return the weighted mean embedding of each history, float32 (M, D); zeros for an empty one.

    ``embeddings`` returns rows of the table of histories, sorted and unique.
    """
    bag = history_bag(histories, len(histories.first_N), spec.half_life)
    inputs = TowerInputs(np.zeros(len(bag.counts_A), np.bool_), np.empty(0, np.int64), {HISTORY: bag}, None)
    tower = TowerSpec(spec.named, None, (spec.named,), mean=False)
    return inputs.combine(tower, {HISTORY: embeddings(bag.values.rows_A)})


def load_latest_histories(
    job: JobConfig, folder: Folder, manifest: DatasetManifest, spec: HistorySpec
) -> LatestHistories:
    """Load the end of each query's interactions in train, here and in base datasets, up to ``data.until``.

    Raises:
        InputError: a file is missing or corrupt.
        StorageUnavailableError: storage does not answer.
    """
    time_range = job.data.time_range()
    until = None if time_range is None else time_range.until
    items = manifest.entities[manifest.item].rows

    def parts() -> Iterator[tuple[IntArray, IntArray, IntArray]]:
        for part in lineage.read_train(timestamps=True):
            timestamp_N = np.zeros(len(part), np.int64) if part.timestamp_N is None else part.timestamp_N
            kept_N = part.weight_N > 0
            if until is not None:
                kept_N &= timestamp_N < until
            query_N, item_N, timestamp_N = part.query_N[kept_N], part.item_N[kept_N], timestamp_N[kept_N]
            if not manifest.has_timestamp:  # Each item once, as in training.
                _, first_A = np.unique(query_N * items + item_N, return_index=True)
                query_N, item_N, timestamp_N = (of_N[np.sort(first_A)] for of_N in (query_N, item_N, timestamp_N))
            yield query_N, item_N, timestamp_N

    only = job.data.history_from_this_dataset_only
    with closing(LineageReader(folder, manifest, job.data.reader_threads, this_dataset_only=only)) as lineage:
        return latest_histories(parts(), manifest.entities[manifest.query].rows, spec.length)
