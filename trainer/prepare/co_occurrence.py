# ruff: noqa: S608  (what is put into SQL are numbers of this program)
"""How much the items of a query say about each other: the lift of co-occurrence, and the number of items.

    found = measure_co_occurrence(connection)
    found.lift, found.items_per_query       # 8.4 and 24 for places that people visit, 1.2 and 98 for films

Lift is P(i, j) / (P(i) · P(j)) in association rules (interest, Brin, Motwani, and Silverstein, "Beyond market baskets:
generalizing association rules to correlations", SIGMOD 1997). Here P(j | i) is that of a random walk, from an item to
another query that has it, and on to another item of that query: queries with many items count no more than others.
"""

from __future__ import annotations

import math

import duckdb
import numpy as np

from crossfade.base.arrays import IntArray
from crossfade.trainer.data.manifest import CoOccurrence
from crossfade.trainer.prepare.database import fetch_count, fetch_one

_MAX_INTERACTIONS, _MIN_QUERIES, _MAX_ITEMS = 2_000_000, 2_000, 5_000
"""What it is measured on: interactions and queries of a random sample, and different items of one query."""
_MIN_EVIDENCE = 100
"""Co-occurrences, found or expected by chance, below which the lift would be off by more than about 10 %."""
_PAIRS, _PAIRS_AT_ONCE = 20_000, 100


def measure_co_occurrence(connection: duckdb.DuckDBPyConnection) -> CoOccurrence | None:
    """Measure it in the view ``train_interactions``, on a random sample of the queries that have interactions there.

    Args:
        connection: the database of a preparation, with ``places``, ``counts_query``, and ``vocabulary_item``.

    Returns:
        What was found; None if there are too few co-occurrences in the sample.
    """
    return measure_pairs(
        connection,
        "(SELECT q.place, i.row FROM train_interactions e JOIN places q ON q.number = e.query "
        "JOIN vocabulary_item i ON i.number = e.item "
        f"WHERE weight > 0 AND place <= {find_last_place(connection)})",
    )


def find_last_place(connection: duckdb.DuckDBPyConnection) -> int:
    """Return the last place of the sample."""
    queries, positives = fetch_one(
        connection, "SELECT count(*), coalesce(sum(count)::BIGINT, 0) FROM counts_query WHERE count > 0"
    )
    assert isinstance(queries, int)
    assert isinstance(positives, int)
    share = max(_MAX_INTERACTIONS / max(positives, 1), _MIN_QUERIES / max(queries, 1))
    return math.ceil(share * fetch_count(connection, "SELECT count(*) FROM places"))


def measure_pairs(connection: duckdb.DuckDBPyConnection, sampled: str) -> CoOccurrence | None:
    """Measure it in the relation ``sampled``: the ``place`` of a query and the ``row`` of an item."""
    pairs = connection.execute(
        f"SELECT DISTINCT place, row FROM {sampled} "
        f"QUALIFY dense_rank() OVER (PARTITION BY place ORDER BY hash(row)) <= {_MAX_ITEMS}"
    ).fetchnumpy()
    return co_occurrence(pairs["place"], pairs["row"])


def co_occurrence(query_N: IntArray, item_N: IntArray, seed: int = 0) -> CoOccurrence | None:
    """Return how much the items of queries say about each other, to three digits.

    The lift is (C + c) / (E + c). C sums, over random pairs of items of a query, the other queries that have both, each
    divided by the number of its other items. E is what C would be if the items kept their numbers of queries, and all
    else were chance (the configuration model, Newman, "Networks", 2010). c is what one such query adds on average, and
    draws the lift to 1 where few pairs occur twice. Below 1, items are so popular that chance would give them to a
    query more than once.

    Args:
        query_N: the query of each interaction, any integers.
        item_N: its item, likewise; pairs that occur several times count once.
        seed: seed of the random pairs.

    Returns:
        The lift, and the mean number of different items of a query; None if there are too few co-occurrences.
    """
    from scipy.sparse import csr_matrix, diags  # it takes a second

    if not len(query_N):
        return None
    queries_N, items_N = (np.unique(ids_N, return_inverse=True)[1] for ids_N in (query_N, item_N))
    has_QI = csr_matrix((np.ones(len(queries_N), np.float32), (queries_N, items_N)))
    has_QI.sum_duplicates()
    has_QI.data[:] = 1
    by_item = has_QI.T.tocsr()
    items_Q, queries_I = (np.diff(matrix.indptr) for matrix in (has_QI, by_item))
    share_Q = 1 / np.maximum(items_Q - 1, 1)
    shares_by_item = (diags(share_Q) @ has_QI).T.tocsr()
    generator = np.random.default_rng(seed)
    place_P = generator.integers(has_QI.nnz, size=_PAIRS)
    query_P = np.searchsorted(has_QI.indptr, place_P, side="right") - 1
    other_P = generator.integers(has_QI.indptr[query_P], has_QI.indptr[query_P + 1])
    place_P, other_P, query_P = (values_P[place_P != other_P] for values_P in (place_P, other_P, query_P))
    one_P, two_P = has_QI.indices[place_P], has_QI.indices[other_P]
    together = -float(np.sum(share_Q[query_P]))  # the query that the pair is of
    for begin in range(0, len(one_P), _PAIRS_AT_ONCE):
        part = slice(begin, begin + _PAIRS_AT_ONCE)
        together += float(shares_by_item[one_P[part]].multiply(by_item[two_P[part]]).sum())
    others_P = np.maximum(has_QI.nnz - items_Q[query_P], 1)
    expected = float(np.sum((queries_I[one_P] - 1.0) * (queries_I[two_P] - 1) / others_P))
    one_query = float(np.mean(share_Q[query_P])) if len(query_P) else 1.0
    if max(together, expected) < _MIN_EVIDENCE * one_query:
        return None
    lift, items_per_query = (together + one_query) / (expected + one_query), float(np.mean(items_Q))
    return CoOccurrence(lift=float(f"{lift:.3g}"), items_per_query=float(f"{items_per_query:.3g}"))
