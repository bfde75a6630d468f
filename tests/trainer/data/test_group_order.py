"""Orders of rows that keep rows of a query together."""

from itertools import groupby

import numpy as np
import pytest

from crossfade.base.arrays import IntArray
from crossfade.kvstore.philox import permutation
from crossfade.trainer.data.schedule import group_order

COUNTER = {"seed": 1, "stream": "shuffle", "epoch": 0, "position": 0}
QUERY_N = np.repeat(np.array([7, 2, 7, 10**12, 2, 5]), [4, 3, 5, 1, 6, 2])


def chunk_sizes(query_N: IntArray) -> dict[int, list[int]]:
    """Return the lengths of each query's runs."""
    sizes: dict[int, list[int]] = {}
    for query, run in groupby(query_N.tolist()):
        sizes.setdefault(query, []).append(len(list(run)))
    return sizes


@pytest.mark.parametrize("group_rows", [1, 2, 4, None])
@pytest.mark.parametrize("shuffled", [False, True])
def test_order_is_a_permutation(group_rows: int | None, shuffled: bool) -> None:
    query_N = np.random.default_rng(0).permutation(QUERY_N) if shuffled else QUERY_N
    order_N = group_order(query_N, group_rows=group_rows, **COUNTER)
    assert sorted(order_N.tolist()) == list(range(len(QUERY_N)))


@pytest.mark.parametrize("shuffled", [False, True])
def test_all_rows_of_a_query_are_together_in_their_order(shuffled: bool) -> None:
    query_N = np.random.default_rng(0).permutation(QUERY_N) if shuffled else QUERY_N
    order_N = group_order(query_N, group_rows=None, **COUNTER)
    assert chunk_sizes(query_N[order_N]) == {7: [9], 2: [9], 10**12: [1], 5: [2]}
    for query in np.unique(query_N):
        assert order_N[query_N[order_N] == query].tolist() == np.flatnonzero(query_N == query).tolist()


def test_queries_come_in_random_order() -> None:
    query_N = np.repeat(np.arange(100), 3)
    orders = [query_N[group_order(query_N, group_rows=None, **{**COUNTER, "epoch": epoch})] for epoch in range(2)]
    for order_N in (orders[0], orders[1][np.argsort(orders[0], kind="stable")]):
        assert np.count_nonzero(np.diff(order_N) < 0) > 20


def test_chunks_have_at_most_the_given_rows() -> None:
    query_N = np.repeat(np.arange(50), 7)
    order_N = group_order(query_N, group_rows=3, **COUNTER)
    # Chunks of 3, 3 and 1 rows, two of which may follow one another by chance.
    rows_by_chunk = order_N // 7 * 3 + order_N % 7 // 3
    assert sum(len(sizes) for sizes in chunk_sizes(rows_by_chunk).values()) == 150
    assert max(map(len, chunk_sizes(query_N[order_N]).values())) == 3


def test_single_rows_are_in_random_order() -> None:
    expected_N = permutation(len(QUERY_N), **COUNTER)
    assert group_order(QUERY_N, group_rows=1, **COUNTER).tolist() == expected_N.tolist()
    assert group_order(QUERY_N[:0], group_rows=None, **COUNTER).tolist() == []
