"""Histories: the items that queries have interacted with, from the splits of a dataset and of its base datasets.

    histories = load_histories(lineage, ["train", "valid"], queries_Q, reporter)
    histories.lists.items_N, histories.weight_N

Histories of new queries come from a file (``history_file.py``). For many queries, histories are divided into parts on
disk, of which one is loaded at a time.

Shapes: Q queries, N interactions or distinct pairs, P parts.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crossfade.base.arrays import FloatArray, IntArray, list_places
from crossfade.trainer.data.lineage import LineageReader
from crossfade.trainer.data.manifest import DatasetManifest
from crossfade.trainer.data.query_history import HistoryWindows
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.data.split_names import SplitName
from crossfade.trainer.evaluation.held_out import ItemLists

_INTERACTION = np.dtype([("query", np.int64), ("item", np.int64), ("weight", np.float32)])
_BUFFERED_INTERACTIONS = 1 << 22


@dataclass(frozen=True)
class Histories:
    """The distinct items of each query, sorted, with the sum of the weights of their interactions.

    ``sequences`` has the items of each query in order, those of positive weight, where it is kept.
    """

    lists: ItemLists
    weight_N: FloatArray
    sequences: HistoryWindows | None = None

    def without_items(self) -> Histories:
        """Return empty histories of the same queries."""
        return Histories(ItemLists(np.zeros_like(self.lists.starts_Q1), self.lists.items_N[:0]), self.weight_N[:0])

    def keys(self) -> IntArray:
        """Return a number for each query that equal items have in common, int64 (Q,)."""
        lists = np.split(self.lists.items_N, self.lists.starts_Q1[1:-1])
        return np.array([zlib.crc32(items_N.tobytes()) for items_N in lists])

    def favorites(self, query: int, count: int) -> IntArray:
        """Return the ``count`` items of ``query`` with the largest positive weights, the largest first."""
        start, stop = self.lists.starts_Q1[query : query + 2]
        weight_N = self.weight_N[start:stop]
        order_N = np.argsort(-weight_N, kind="stable")[:count]
        favorites: IntArray = self.lists.items_N[start:stop][order_N[weight_N[order_N] > 0]]
        return favorites


def make_histories(query_N: IntArray, item_N: IntArray, weight_N: FloatArray, queries: int, items: int) -> Histories:
    """Build the histories of ``queries`` queries from interactions in any order.

    Args:
        query_N: the query of each interaction, from 0 to ``queries`` - 1.
        item_N: its item, from 0 to ``items`` - 1.
        weight_N: its weight.
        queries: number of queries.
        items: number of items.
    """
    exact = _sum_pairs(query_N, item_N, weight_N, queries, items)
    return replace(exact, weight_N=exact.weight_N.astype(np.float32))


def _sum_pairs(query_N: IntArray, item_N: IntArray, weight_N: FloatArray, queries: int, items: int) -> Histories:
    """Build the histories of ``make_histories``, with weights in float64."""
    pair_N, inverse_N = np.unique(query_N * items + item_N, return_inverse=True)
    total_N = np.bincount(inverse_N, weights=weight_N, minlength=len(pair_N))
    starts_Q1 = np.searchsorted(pair_N, np.arange(queries + 1) * items)
    return Histories(ItemLists(starts_Q1, pair_N % items), total_N)


def extend_histories(
    known: Histories, query_N: IntArray, item_N: IntArray, weight_N: FloatArray, queries: int, items: int
) -> Histories:
    """Return the histories of ``queries`` queries, of which ``known`` has the first, with further interactions.

    Weights are float64, so that the sums are those of all interactions at once. Only the queries with further
    interactions are grouped again. The other arguments are as of ``make_histories``.
    """
    added = queries + 1 - len(known.lists.starts_Q1)
    starts_Q1 = np.pad(known.lists.starts_Q1, (0, added), mode="edge")
    is_changed_Q = np.zeros(queries, np.bool_)
    is_changed_Q[query_N] = True
    changed_S, count_Q = np.flatnonzero(is_changed_Q), np.diff(starts_Q1)
    starts_S1, places_M = list_places(starts_Q1, changed_S)
    changed = _sum_pairs(
        np.concatenate([np.repeat(np.arange(len(changed_S)), np.diff(starts_S1)), np.searchsorted(changed_S, query_N)]),
        np.concatenate([known.lists.items_N[places_M], item_N]),
        np.concatenate([known.weight_N[places_M], weight_N.astype(np.float64)]),
        len(changed_S),
        items,
    )
    kept_N = ~np.repeat(is_changed_Q, count_Q)
    count_Q[changed_S] = np.diff(changed.lists.starts_Q1)
    is_changed_N = np.repeat(is_changed_Q, count_Q)
    items_N, weight_N = np.empty(len(is_changed_N), np.int64), np.empty(len(is_changed_N))
    items_N[~is_changed_N], items_N[is_changed_N] = known.lists.items_N[kept_N], changed.lists.items_N
    weight_N[~is_changed_N], weight_N[is_changed_N] = known.weight_N[kept_N], changed.weight_N
    return Histories(ItemLists(np.concatenate([[0], np.cumsum(count_Q)]), items_N), weight_N)


def make_sequences(query_N: IntArray, item_N: IntArray, weight_N: FloatArray, queries: int, items: int) -> Histories:
    """Build the same from interactions in their order, by query, the oldest first; the order is kept."""
    liked_N = weight_N > 0
    count_Q = np.bincount(query_N[liked_N], minlength=queries)
    sequences = HistoryWindows(item_N[liked_N], np.cumsum(count_Q) - count_Q, count_Q)
    return replace(make_histories(query_N, item_N, weight_N, queries, items), sequences=sequences)


class StoredHistories:
    """Histories of many queries in three arrays, of which some are taken at a time."""

    def __init__(self, starts_Q1: IntArray, items_N: IntArray, weights_N: FloatArray) -> None:
        """Use arrays as of ``Histories``, which may be files that are mapped into memory; weights may be float64."""
        self._starts_Q1, self._items_N, self._weights_N = starts_Q1, items_N, weights_N

    @staticmethod
    def of(histories: Histories) -> StoredHistories:
        """Return ``histories``, of which some may be taken."""
        return StoredHistories(histories.lists.starts_Q1, histories.lists.items_N, histories.weight_N)

    def load(self, queries_S: IntArray) -> Histories:
        """Return the histories of ``queries_S``, int64, in this order."""
        starts_S1, places_N = list_places(self._starts_Q1, queries_S)
        weight_N = self._weights_N[places_N].astype(np.float32, copy=False)
        return Histories(ItemLists(starts_S1, self._items_N[places_N].astype(np.int64)), weight_N)

    @property
    def queries(self) -> int:
        """How many queries there are."""
        return len(self._starts_Q1) - 1

    def slice(self, first: int, stop: int) -> Histories:
        """Return the histories of the queries ``first`` to before ``stop`` that are there, with weights as stored."""
        starts_Q1 = self._starts_Q1[min(first, self.queries) : stop + 1]
        part = slice(starts_Q1[0], starts_Q1[-1])
        return Histories(
            ItemLists(starts_Q1 - starts_Q1[0], self._items_N[part].astype(np.int64)), self._weights_N[part]
        )


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


@dataclass(frozen=True)
class DividedHistories:
    """Histories on disk: part p has those of the queries at ``starts_P1[p]`` to ``starts_P1[p + 1]``."""

    folder: Path
    starts_P1: IntArray
    manifest: DatasetManifest

    def load(self, part: int) -> Histories:
        """Load the histories of a part."""
        interaction_N = self._interactions(part)
        return _histories(interaction_N, int(self.starts_P1[part + 1] - self.starts_P1[part]), self.manifest)

    def load_added(self, part: int, known: StoredHistories) -> Histories:
        """Load the histories of a part of all queries, added to those in ``known``, with weights in float64."""
        first, stop = map(int, self.starts_P1[part : part + 2])
        interaction_N = self._interactions(part)
        query_N, item_N, weight_N = (interaction_N[name] for name in ("query", "item", "weight"))
        items = self.manifest.entities[self.manifest.item].rows
        return extend_histories(known.slice(first, stop), query_N, item_N, weight_N, stop - first, items)

    def _interactions(self, part: int) -> NDArray[np.void]:
        """Return the interactions of a part; its first query is number 0."""
        path = _part_path(self.folder, part)
        interaction_N = np.fromfile(path, _INTERACTION) if path.exists() else np.empty(0, _INTERACTION)
        interaction_N["query"] -= self.starts_P1[part]
        return interaction_N


def divide_histories(
    lineage: LineageReader,
    splits: Sequence[SplitName],
    queries_Q: IntArray,
    starts_P1: IntArray,
    folder: Path,
    reporter: ProgressReporter,
) -> DividedHistories:
    """Write the histories of ``queries_Q`` into ``folder``, a file for each part, in one pass over the interactions.

    Raises:
        InputError: a file is missing or corrupt.
        StorageUnavailableError: storage does not answer.
    """
    buffered: list[NDArray[np.void]] = []
    for piece in _selected(lineage, splits, queries_Q, reporter):
        buffered.append(piece)
        if sum(map(len, buffered)) >= _BUFFERED_INTERACTIONS:
            _append(folder, starts_P1, np.concatenate(buffered))
            buffered = []
    if buffered:
        _append(folder, starts_P1, np.concatenate(buffered))
    return DividedHistories(folder, starts_P1, lineage.manifest)


def _append(folder: Path, starts_P1: IntArray, interaction_N: NDArray[np.void]) -> None:
    part_N = np.searchsorted(starts_P1, interaction_N["query"], side="right") - 1
    order_N = np.argsort(part_N, kind="stable")
    bounds_P1 = np.searchsorted(part_N[order_N], np.arange(len(starts_P1)))
    for part in np.flatnonzero(np.diff(bounds_P1)):
        with _part_path(folder, int(part)).open("ab") as file:
            # Not tofile(), which ignores that the last bytes find no room.
            file.write(interaction_N[order_N[bounds_P1[part] : bounds_P1[part + 1]]].tobytes())


def _part_path(folder: Path, part: int) -> Path:
    return folder / f"{part:06d}"
