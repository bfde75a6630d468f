"""Histories of all queries in files that are mapped into memory: those of a query are read when they are needed.

    write_histories(model, folder, reporter)
    histories = MappedHistories(folder).load(np.array([5]))

    FOLDER/starts       int64 (Q + 1,): where the items of each query start
    FOLDER/items        int32 (N,): distinct items of each query, sorted
    FOLDER/weights      float32 (N,): the sum of the weights of their interactions

Shapes: Q queries, N items of all histories, S some queries.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crossfade.base.arrays import IntArray
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.evaluation.held_out import ItemLists
from crossfade.trainer.recommend.bulk import part_starts
from crossfade.trainer.recommend.history import Histories, divide_histories
from crossfade.trainer.recommend.recommender import ALL_SPLITS
from crossfade.trainer.recommend.trained_model import TrainedModel

_STARTS, _ITEMS, _WEIGHTS = "starts", "items", "weights"


def write_histories(model: TrainedModel, folder: Path, reporter: ProgressReporter) -> None:
    """Write the histories of all queries of ``model``, from all splits and base datasets, into the new ``folder``.

    Raises:
        InputError: the dataset cannot be read.
        StorageUnavailableError: storage does not answer.
    """
    folder.mkdir()
    queries_Q = np.arange(model.spec.query.rows, dtype=np.int64)
    starts_P1 = part_starts(model.counts(model.spec.query.name))
    with (
        tempfile.TemporaryDirectory(prefix="parts-", dir=folder) as work,
        closing(model.open_lineage()) as lineage,
        ExitStack() as stack,
    ):
        divided = divide_histories(lineage, ALL_SPLITS, queries_Q, starts_P1, Path(work), reporter)
        starts, items, weights = (
            stack.enter_context((folder / name).open("wb")) for name in (_STARTS, _ITEMS, _WEIGHTS)
        )
        end = 0
        np.zeros(1, np.int64).tofile(starts)
        for part in range(len(starts_P1) - 1):
            histories = divided.load(part)
            (end + histories.lists.starts_Q1[1:]).tofile(starts)
            histories.lists.items_N.astype(np.int32).tofile(items)
            histories.weight_N.astype(np.float32).tofile(weights)
            end += len(histories.lists.items_N)


class MappedHistories:
    """Histories that ``write_histories`` has written."""

    def __init__(self, folder: Path) -> None:
        """Map the files in ``folder``."""
        self._starts_Q1 = _map(folder / _STARTS, np.int64)
        self._items_N = _map(folder / _ITEMS, np.int32)
        self._weights_N = _map(folder / _WEIGHTS, np.float32)

    def load(self, queries_S: IntArray) -> Histories:
        """Return the histories of ``queries_S``, int64, in this order."""
        pieces = [slice(*self._starts_Q1[query : query + 2]) for query in queries_S]
        counts = [piece.stop - piece.start for piece in pieces]
        starts_S1 = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
        items_N = np.concatenate([np.empty(0, np.int64), *(self._items_N[piece] for piece in pieces)])
        weights_N = np.concatenate([np.empty(0, np.float32), *(self._weights_N[piece] for piece in pieces)])
        return Histories(ItemLists(starts_S1, items_N), weights_N)


def _map(path: Path, dtype: type[np.generic]) -> npt.NDArray[Any]:
    # A file of no bytes cannot be mapped.
    return np.asarray(np.memmap(path, dtype, "r")) if path.stat().st_size else np.empty(0, dtype)
