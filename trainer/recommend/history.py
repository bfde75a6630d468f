"""Histories: the items that queries have interacted with, from the splits of a dataset and of its base datasets.

    histories = load_histories(lineage, ["train", "valid"], queries_Q, reporter)
    histories.lists.values_N, histories.weight_N

    histories = write_histories(lineage, ALL_SPLITS, folder, reporter)      # of all queries, in files that are mapped
    histories.take(queries_Q)

Shapes: Q queries, N interactions or distinct pairs, S selected queries, P parts.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.trainer.data.jagged_array import JaggedArray
from crossfade.trainer.data.lineage import LineageReader
from crossfade.trainer.data.manifest import DatasetManifest
from crossfade.trainer.data.query_history import HistoryWindows
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.data.split_names import SplitName

_INTERACTION = np.dtype([("query", np.int64), ("item", np.int64), ("weight", np.float32)])
_MAX_PART_INTERACTIONS = 1 << 25
"""Interactions in train of the queries of a part, unless the last one has more."""
_FILES = "starts", "items", "weights"
"""Where the items of each query start, int64 (Q + 1,); its distinct items, int32 (N,); their weights, float32 (N,)."""


@dataclass(frozen=True)
class Histories:
    """The distinct items of each query, sorted, with the sum of the weights of their interactions.

    ``sequences`` has the items of each query in order, those of positive weight, where it is kept.
    """

    lists: JaggedArray
    weight_N: FloatArray
    sequences: HistoryWindows | None = None

    def take(self, queries_S: IntArray) -> Histories:
        """Return the histories of ``queries_S``, int64, in this order, without sequences; of -1, an empty one."""
        starts_S1, places_N = self.lists.places(queries_S)
        lists = JaggedArray(starts_S1, self.lists.values_N[places_N].astype(np.int64, copy=False))
        return Histories(lists, self.weight_N[places_N])

    def favorites(self, query: int, count: int) -> IntArray:
        """Return the ``count`` items of ``query`` with the largest positive weights, the largest first."""
        start, stop = self.lists.starts_L1[query : query + 2]
        weight_N = self.weight_N[start:stop]
        order_N = np.argsort(-weight_N, kind="stable")[:count]
        favorites: IntArray = self.lists.values_N[start:stop][order_N[weight_N[order_N] > 0]]
        return favorites


def make_histories(query_N: IntArray, item_N: IntArray, weight_N: FloatArray, queries: int, items: int) -> Histories:
    """Build the histories of ``queries`` queries from interactions in any order; weights are added in float64.

    Args:
        query_N: the query of each interaction, from 0 to ``queries`` - 1.
        item_N: its item, from 0 to ``items`` - 1.
        weight_N: its weight.
        queries: number of queries.
        items: number of items.
    """
    pair_N, inverse_N = np.unique(query_N * items + item_N, return_inverse=True)
    total_N = np.bincount(inverse_N, weights=weight_N, minlength=len(pair_N))
    starts_Q1 = np.searchsorted(pair_N, np.arange(queries + 1) * items)
    return Histories(JaggedArray(starts_Q1, pair_N % items), total_N.astype(np.float32))


def new_histories(items: Sequence[IntArray], weights: Sequence[FloatArray], rows: int) -> Histories:
    """Build histories, and their sequences, from the items of each query, the oldest first, and their weights.

    ``rows`` is the number of all items.
    """
    query_N = np.repeat(np.arange(len(items)), [len(item_N) for item_N in items])
    item_N = np.concatenate([np.empty(0, np.int64), *items])
    weight_N = np.concatenate([np.empty(0, np.float32), *weights])
    liked_N = weight_N > 0
    count_Q = np.bincount(query_N[liked_N], minlength=len(items))
    sequences = HistoryWindows(item_N[liked_N], np.cumsum(count_Q) - count_Q, count_Q)
    return replace(make_histories(query_N, item_N, weight_N, len(items), rows), sequences=sequences)


def load_histories(
    lineage: LineageReader,
    splits: Sequence[SplitName],
    queries_Q: IntArray,
    reporter: ProgressReporter,
) -> Histories:
    """Load the histories of ``queries_Q``, int64, sorted and unique, from ``splits`` and base datasets; report rows.

    Query -1, which may repeat, has none.

    Interactions of weight 0 do not count; negative feedback does, so a weight may be negative.

    Raises:
        InputError: a file is missing or corrupt.
        StorageUnavailableError: storage does not answer.
    """
    pieces = [np.empty(0, _INTERACTION), *_selected(lineage, splits, queries_Q, reporter)]
    return _histories(np.concatenate(pieces), len(queries_Q), lineage.manifest)


def _histories(interaction_N: NDArray[np.void], queries: int, manifest: DatasetManifest) -> Histories:
    query_N, item_N, weight_N = (interaction_N[name] for name in ("query", "item", "weight"))
    return make_histories(query_N, item_N, weight_N, queries, manifest.entities[manifest.item].rows)


def _selected(
    lineage: LineageReader,
    splits: Sequence[SplitName],
    queries_Q: IntArray,
    reporter: ProgressReporter,
) -> Iterator[NDArray[np.void]]:
    """Yield the interactions of ``queries_Q``, with the query's place in it, one row group at a time."""
    manifest = lineage.manifest
    reporter.phase("read histories", lineage.known_rows(splits), "row")
    place_R = np.full(manifest.entities[manifest.query].rows, -1, np.int64)
    known_Q = queries_Q >= 0
    place_R[queries_Q[known_Q]] = np.flatnonzero(known_Q)
    for part in lineage.read_known(splits):
        selected_N = (place_R[part.query_N] >= 0) & (part.weight_N != 0)
        interaction_N = np.empty(np.count_nonzero(selected_N), _INTERACTION)
        interaction_N["query"] = place_R[part.query_N[selected_N]]
        interaction_N["item"] = part.item_N[selected_N]
        interaction_N["weight"] = part.weight_N[selected_N]
        yield interaction_N
        reporter.advance(len(part))


def write_histories(
    lineage: LineageReader, splits: Sequence[SplitName], folder: Path, reporter: ProgressReporter
) -> Histories:
    """Write the histories of all queries to ``folder``, and map them; arguments as of ``load_histories``.

    In one pass, interactions are divided by query into parts on disk, of which one is in memory at a time.

    Raises:
        InputError: a file is missing or corrupt.
        OSError: ``folder`` cannot be written.
        StorageUnavailableError: storage does not answer.
    """
    manifest = lineage.manifest
    starts_P1 = part_starts(lineage.counts(manifest.query))
    everyone_Q = np.arange(starts_P1[-1])
    with tempfile.TemporaryDirectory(prefix="parts-", dir=folder) as work, ExitStack() as opened:
        for interaction_N in _selected(lineage, splits, everyone_Q, reporter):
            _append(Path(work), starts_P1, interaction_N)
        starts, items, weights = (opened.enter_context((folder / name).open("wb")) for name in _FILES)
        starts.write(np.zeros(1, np.int64).tobytes())
        end = 0
        for part, (first, stop) in enumerate(pairwise(starts_P1.tolist())):
            path = Path(work, str(part))
            interaction_N = np.fromfile(path, _INTERACTION) if path.exists() else np.empty(0, _INTERACTION)
            interaction_N["query"] -= first
            histories = _histories(interaction_N, stop - first, manifest)
            starts.write((end + histories.lists.starts_L1[1:]).tobytes())
            items.write(histories.lists.values_N.astype(np.int32).tobytes())
            weights.write(histories.weight_N.tobytes())
            end += len(histories.lists.values_N)
    return map_histories(folder)


def map_histories(folder: Path) -> Histories:
    """Map the histories in ``folder`` into memory: ``take`` reads the history of a query, and makes its items int64."""

    def map_file(name: str, dtype: type[np.generic]) -> NDArray[Any]:
        path = folder / name  # a file of no bytes cannot be mapped
        return np.asarray(np.memmap(path, dtype, "r")) if path.stat().st_size else np.empty(0, dtype)

    starts, items, weights = _FILES
    lists = JaggedArray(map_file(starts, np.int64), map_file(items, np.int32))
    return Histories(lists, map_file(weights, np.float32))


def part_starts(counts_Q: IntArray) -> IntArray:
    """Divide queries with ``counts_Q`` interactions into parts; return where each starts, int64 (P + 1,)."""
    part_Q = np.cumsum(counts_Q) // _MAX_PART_INTERACTIONS
    return np.concatenate([np.flatnonzero(np.diff(part_Q, prepend=-1)), [len(counts_Q)]])


def _append(folder: Path, starts_P1: IntArray, interaction_N: NDArray[np.void]) -> None:
    part_N = np.searchsorted(starts_P1, interaction_N["query"], side="right") - 1
    order_N = np.argsort(part_N, kind="stable")
    bounds_P1 = np.searchsorted(part_N[order_N], np.arange(len(starts_P1)))
    for part in np.flatnonzero(np.diff(bounds_P1)).tolist():
        with Path(folder, str(part)).open("ab") as file:
            # Not tofile(), which ignores that the last bytes find no room.
            file.write(interaction_N[order_N[bounds_P1[part] : bounds_P1[part + 1]]].tobytes())
