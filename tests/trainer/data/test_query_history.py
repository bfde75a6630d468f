"""Histories of interactions: windows against a plain search, and the latest history of each query."""

import numpy as np
import pytest

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.trainer.data.query_history import (
    HistoryWindows,
    history_windows,
    latest_histories,
    recency_shares,
)


def listed(windows: HistoryWindows) -> list[list[int]]:
    """Return the items of each history."""
    ends_N = windows.first_N + windows.count_N
    return [windows.items_S[first:end].tolist() for first, end in zip(windows.first_N, ends_N, strict=True)]


def random_interactions(seed: int) -> tuple[IntArray, IntArray, FloatArray, IntArray]:
    """Draw interactions of five queries, with repeated pairs, negative weights, and moments that several share."""
    random = np.random.default_rng(seed)
    query_N, item_N = random.integers(5, size=60), random.integers(12, size=60)
    return query_N, item_N, random.choice([-1.0, 0.0, 1.0, 2.0], 60).astype(np.float32), random.integers(9, size=60)


@pytest.mark.slow
@pytest.mark.parametrize("length", [1, 3, 100])
def test_history_has_the_last_items_before_the_moment(length: int) -> None:
    query_N, item_N, weight_N, timestamp_N = random_interactions(1)
    found = listed(history_windows(query_N, item_N, weight_N, timestamp_N, length))
    in_time = np.argsort(timestamp_N, kind="stable")
    for n, history in enumerate(found):
        before = [
            int(item_N[m])
            for m in in_time
            if query_N[m] == query_N[n] and weight_N[m] > 0 and timestamp_N[m] < timestamp_N[n]
        ]
        assert history == before[-length:]
    assert any(found)


@pytest.mark.parametrize("length", [1, 3, 100])
def test_history_without_timestamps_has_other_distinct_items_of_the_query(length: int) -> None:
    query_N, item_N, weight_N, _ = random_interactions(2)
    found = listed(history_windows(query_N, item_N, weight_N, None, length))
    for n, history in enumerate(found):
        others = set(item_N[(query_N == query_N[n]) & (weight_N > 0)].tolist()) - {int(item_N[n])}
        assert len(set(history)) == len(history) == min(length, len(others))
        assert set(history) <= others
    # The window moves along the file, so that all items of a query are in about as many histories.
    assert len({tuple(history) for history in found}) > 10


def test_shares_halve_after_the_half_life_and_add_up_to_one() -> None:
    starts_A1 = np.array([0, 0, 3, 4])
    np.testing.assert_allclose(recency_shares(starts_A1, None), [1 / 3, 1 / 3, 1 / 3, 1.0])
    np.testing.assert_allclose(recency_shares(starts_A1, 1.0), [1 / 7, 2 / 7, 4 / 7, 1.0])
    np.testing.assert_allclose(recency_shares(np.array([0, 3]), 2.0)[2] / recency_shares(np.array([0, 3]), 2.0)[0], 2.0)
    assert len(recency_shares(np.zeros(4, np.int64), 1.0)) == 0


def test_latest_histories_do_not_depend_on_the_parts() -> None:
    query_N, item_N, *_ = random_interactions(3)
    timestamp_N = np.random.default_rng(4).permutation(60)
    found = latest_histories([(query_N, item_N, timestamp_N)], 7, 4).gather(np.arange(7))
    parts = np.array_split(np.random.default_rng(5).permutation(60), 4)
    in_parts = latest_histories(((query_N[p], item_N[p], timestamp_N[p]) for p in parts), 7, 4).gather(np.arange(7))
    order = np.argsort(timestamp_N)
    expected = [item_N[order[query_N[order] == query]][-4:].tolist() for query in range(5)]
    assert listed(found) == listed(in_parts) == [*expected, [], []]
