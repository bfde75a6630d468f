"""Histories of queries: for an interaction, other items that its query has interacted with.

    windows = history_windows(query_N, item_N, weight_N, timestamp_N, length=20)
    items_S, starts_N1 = windows.compact().items_S, windows.compact().starts_N1

In a dataset with timestamps, the history of an interaction is the last ``length`` items of positive weight before it,
those of the same moment left out. In one without, it is up to ``length`` other items of its query, in the order of the
file, which is random: from the one that follows it on, in a circle. An interaction is thus never in its own history.

Windows are found within a row group, which a grouped dataset fills with all interactions of its queries, except for the
query that continues in the next row group.

``LatestHistories`` has, for each query, the last ``length`` items of the complete train split, from which vectors are
computed once training is done.

Shapes: N interactions, M some of them, S items of a sequence, R rows of the query entity, H items of all histories.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from crossfade.base.arrays import BoolArray, FloatArray, IntArray
from crossfade.kvstore.jit import njit


@dataclass(frozen=True)
class HistoryWindows:
    """Histories as windows of a sequence of items.

    Attributes:
        items_S: the sequence, int64, the oldest item of a query first.
        first_N: where the history of interaction n begins in the sequence, int64.
        count_N: how many items it has, int64, which may be 0.
    """

    items_S: IntArray
    first_N: IntArray
    count_N: IntArray

    @property
    def nbytes(self) -> int:
        """The size of all arrays."""
        return self.items_S.nbytes + self.first_N.nbytes + self.count_N.nbytes

    @property
    def starts_N1(self) -> IntArray:
        """Where each history begins in ``compact().items_S``, and where the last ends, int64."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.count_N)])

    def take(self, indices_M: IntArray | BoolArray | slice) -> HistoryWindows:
        """Return the histories at ``indices_M``, in that order, of the same sequence."""
        return HistoryWindows(self.items_S, self.first_N[indices_M], self.count_N[indices_M])

    def last(self, length: int) -> HistoryWindows:
        """Return the last ``length`` items of each history."""
        count_N = np.minimum(self.count_N, length)
        return HistoryWindows(self.items_S, self.first_N + self.count_N - count_N, count_N)

    def compact(self) -> HistoryWindows:
        """Return the same histories with a sequence that has one after the other, and nothing else."""
        items_H = self.items_S[concatenate_ranges(self.first_N, self.count_N)]
        return HistoryWindows(items_H, np.cumsum(self.count_N) - self.count_N, self.count_N)


def concatenate_windows(parts: Sequence[HistoryWindows]) -> HistoryWindows:
    """Join the histories of ``parts``."""
    offsets = np.cumsum([0, *(len(part.items_S) for part in parts)])
    return HistoryWindows(
        np.concatenate([part.items_S for part in parts]),
        np.concatenate([part.first_N + offset for part, offset in zip(parts, offsets, strict=False)]),
        np.concatenate([part.count_N for part in parts]),
    )


def history_windows(
    query_N: IntArray, item_N: IntArray, weight_N: FloatArray, timestamp_N: IntArray | None, length: int
) -> HistoryWindows:
    """Find the history of each interaction among the others.

    Args:
        query_N: the query of each, int64, as the following.
        item_N: its item.
        weight_N: its weight, float32; only interactions of positive weight are in histories.
        timestamp_N: its time in seconds; None: their order in time is not recorded.
        length: items of a history, at most.
    """
    if timestamp_N is not None:
        return HistoryWindows(
            *_windows_before(np.lexsort((timestamp_N, query_N)), query_N, item_N, weight_N, timestamp_N, length)
        )
    liked_M = np.flatnonzero(weight_N > 0)
    pair_N = query_N * (item_N.max(initial=0) + 1) + item_N
    pair_A, first_A = np.unique(pair_N[liked_M], return_index=True)
    same_N = np.full(len(query_N), -1)
    if len(pair_A):
        place_N = np.minimum(np.searchsorted(pair_A, pair_N), len(pair_A) - 1)
        same_N = np.where(pair_A[place_N] == pair_N, liked_M[first_A[place_N]], -1)
    return HistoryWindows(*_windows_around(np.argsort(query_N, kind="stable"), query_N, item_N, same_N, length))


@njit(cache=True, nogil=True)
def _windows_before(order_N, query_N, item_N, weight_N, timestamp_N, length):  # type: ignore[no-untyped-def]
    """Return the sequence of positive items in order ``order_N``, by query and time, and the windows before each."""
    count = order_N.shape[0]
    items_S, first_N, count_N = np.empty(count, np.int64), np.empty(count, np.int64), np.empty(count, np.int64)
    items = query_start = moment_start = 0
    for p in range(count):
        n = order_N[p]
        if p == 0 or query_N[n] != query_N[order_N[p - 1]]:
            query_start = moment_start = items
        elif timestamp_N[n] != timestamp_N[order_N[p - 1]]:
            moment_start = items
        first_N[n] = max(query_start, moment_start - length)
        count_N[n] = moment_start - first_N[n]
        if weight_N[n] > 0:
            items_S[items] = item_N[n]
            items += 1
    return items_S[:items].copy(), first_N, count_N


@njit(cache=True, nogil=True)
def _windows_around(order_N, query_N, item_N, same_N, length):  # type: ignore[no-untyped-def]
    """Return the distinct items of each query twice in succession, and windows that begin after an interaction's own.

    ``same_N`` is the first interaction of positive weight of the same query and item, -1 if there is none.
    """
    count = order_N.shape[0]
    items_S, first_N, count_N = np.empty(2 * count, np.int64), np.empty(count, np.int64), np.empty(count, np.int64)
    place_N = np.empty(count, np.int64)
    items = start = 0
    while start < count:
        stop, distinct = start, 0
        while stop < count and query_N[order_N[stop]] == query_N[order_N[start]]:
            n = order_N[stop]
            if same_N[n] == n:
                place_N[n] = distinct
                items_S[items + distinct] = item_N[n]
                distinct += 1
            stop += 1
        for place in range(distinct):
            items_S[items + distinct + place] = items_S[items + place]
        for p in range(start, stop):
            n = order_N[p]
            is_in = same_N[n] >= 0
            first_N[n] = items + (place_N[same_N[n]] + 1 if is_in else 0)
            count_N[n] = min(length, distinct - 1 if is_in else distinct)
        items += 2 * distinct
        start = stop
    return items_S[:items].copy(), first_N, count_N


@dataclass(frozen=True)
class LatestHistories:
    """The history of each query after train: query r has ``items_H[starts_R1[r]:starts_R1[r + 1]]``, int64.

    ``length`` is how many items a history has at most.
    """

    items_H: IntArray
    starts_R1: IntArray
    length: int

    def gather(self, rows_M: IntArray) -> HistoryWindows:
        """Return the histories of the queries ``rows_M``."""
        first_M = self.starts_R1[rows_M]
        return HistoryWindows(self.items_H, first_M, self.starts_R1[rows_M + 1] - first_M)


def latest_histories(
    parts: Iterable[tuple[IntArray, IntArray, IntArray]], queries: int, length: int
) -> LatestHistories:
    """Return the last ``length`` items of each of ``queries`` rows.

    Args:
        parts: query, item, and timestamp of interactions, int64 (N,) each, in any order. Of each part, no more than
            ``length`` interactions of a query are held.
        queries: rows of the query entity.
        length: items of a history, at most.
    """
    held = [np.empty((0, 3), np.int64)]
    for query_N, item_N, timestamp_N in parts:
        held.append(_last_of_each(np.column_stack([query_N, item_N, timestamp_N]), length))
    kept_H3 = _last_of_each(np.concatenate(held), length)
    starts_R1 = np.searchsorted(kept_H3[:, 0], np.arange(queries + 1))
    return LatestHistories(np.ascontiguousarray(kept_H3[:, 1]), starts_R1, length)


@dataclass(frozen=True)
class MomentHistories:
    """Histories of queries at a moment, and, of the same queries, those after train that their vectors have."""

    before: HistoryWindows
    latest: HistoryWindows

    def take(self, indices_M: IntArray | BoolArray | slice) -> MomentHistories:
        """Return those of some of the queries."""
        return MomentHistories(self.before.take(indices_M), self.latest.take(indices_M))


def histories_before(
    query_Q: IntArray, moment_Q: IntArray, query_N: IntArray, item_N: IntArray, timestamp_N: IntArray, length: int
) -> HistoryWindows:
    """Return the last ``length`` items of each query before a moment.

    Args:
        query_Q: the queries, int64.
        moment_Q: the moment of each, int64.
        query_N: the query of each interaction, int64, as the following.
        item_N: its item.
        timestamp_N: its time.
        length: items of a history, at most.
    """
    order_N = np.lexsort((timestamp_N, query_N))
    moments = np.unique(np.concatenate([moment_Q, timestamp_N]))
    key_N = query_N[order_N] * (len(moments) + 1) + np.searchsorted(moments, timestamp_N[order_N])
    end_Q = np.searchsorted(key_N, query_Q * (len(moments) + 1) + np.searchsorted(moments, moment_Q))
    first_Q = np.maximum(np.searchsorted(key_N, query_Q * (len(moments) + 1)), end_Q - length)
    return HistoryWindows(item_N[order_N], first_Q, end_Q - first_Q)


def _last_of_each(rows_N3: IntArray, length: int) -> IntArray:
    """Return the last ``length`` rows of each query, by time, sorted by query and time."""
    sorted_N3 = rows_N3[np.lexsort((rows_N3[:, 2], rows_N3[:, 0]))]
    ends_N = np.searchsorted(sorted_N3[:, 0], sorted_N3[:, 0], side="right")
    last_N3: IntArray = sorted_N3[ends_N - np.arange(len(sorted_N3)) <= length]
    return last_N3


def recency_shares(starts_A1: IntArray, half_life: float | None) -> FloatArray:
    """Return the share of each item in the mean of its history, float64 (H,); those of a history add up to 1.

    Args:
        starts_A1: where each history begins; its newest item is the last.
        half_life: after how many newer items an item counts for half as much; None: all count alike.
    """
    counts_A = np.diff(starts_A1)
    if half_life is None:
        return np.repeat(1.0 / np.maximum(counts_A, 1), counts_A)
    newer_H = np.repeat(starts_A1[1:], counts_A) - 1 - np.arange(starts_A1[-1])
    weight_H = 0.5 ** (newer_H / half_life)
    totals_A = np.add.reduceat(np.append(weight_H, 0.0), starts_A1[:-1])
    shares_H: FloatArray = weight_H / np.repeat(totals_A, counts_A)
    return shares_H


@njit(cache=True, error_model="numpy", nogil=True)
def concatenate_ranges(starts_R, sizes_R):  # type: ignore[no-untyped-def]
    """Return the numbers of all ranges, one range after the other: each starts at ``starts_R``, with ``sizes_R``."""
    total, n = 0, 0
    for r in range(sizes_R.shape[0]):  # the code of ``sizes_R.sum()`` would import scipy
        total += sizes_R[r]
    numbers_N = np.empty(total, np.int64)
    for r in range(starts_R.shape[0]):
        for number in range(starts_R[r], starts_R[r] + sizes_R[r]):
            numbers_N[n] = number
            n += 1
    return numbers_N
