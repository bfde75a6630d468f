# ruff: noqa: S608  (what is put into SQL are numbers of this program)
"""How much more often items occur together than chance would have it: the lift of co-occurrence.

    measure_lift(connection, train_rows)    # 4.6 for places that people visit, 0.8 for films that most have seen

Lift is P(i, j) / (P(i) · P(j)) in association rules (interest, Brin, Motwani, and Silverstein, "Beyond market baskets:
generalizing association rules to correlations", SIGMOD 1997). Here it is a mean over pairs of items of the same query,
so 1 means that the other queries of an item do not help to predict which other items a query has.
"""

from __future__ import annotations

import duckdb
import numpy as np

from crossfade.base.arrays import IntArray
from crossfade.trainer.prepare.database import fetch_count

MAX_QUERIES, MAX_INTERACTIONS = 20_000, 2_000_000
"""Queries and interactions that it is measured on: samples of this size give it within a few percent."""
_PAIRS, _PAIRS_AT_ONCE = 20_000, 100


def measure_lift(connection: duckdb.DuckDBPyConnection, train_rows: int) -> float:
    """Return the lift in the view ``train_interactions``, of a random sample of its queries, to three digits.

    Args:
        connection: the database of a preparation, with ``places`` and ``vocabulary_item``.
        train_rows: interactions in train.
    """
    queries = max(1, MAX_INTERACTIONS * fetch_count(connection, "SELECT count(*) FROM places") // max(train_rows, 1))
    sampled = connection.execute(
        "SELECT q.place, i.row FROM train_interactions e JOIN places q ON q.number = e.query "
        f"JOIN vocabulary_item i ON i.number = e.item WHERE weight > 0 AND place <= {min(queries, MAX_QUERIES)}"
    ).fetchnumpy()
    return float(f"{co_occurrence_lift(sampled['place'], sampled['row']):.3g}")


def co_occurrence_lift(query_N: IntArray, item_N: IntArray, seed: int = 0) -> float:
    """Return the mean lift of pairs of items that a query has.

    It is (C + 1) / (E + 1), where C sums, over random pairs, the number of other queries that have both items, and E is
    what C would be if those queries kept their numbers of items, the items their numbers of queries, and all else were
    chance (the configuration model, Newman, "Networks", 2010). The ones draw it to 1 where pairs hardly occur twice.
    Below 1, items are so popular that chance would give them to a query more than once.

    Args:
        query_N: the query of each interaction, any integers.
        item_N: its item, likewise; pairs that occur several times count once.
        seed: seed of the random pairs.

    Returns:
        A value above 0; 1 if there is no interaction.
    """
    from scipy.sparse import csr_matrix  # it takes a second

    if not len(query_N):
        return 1.0
    queries_N, items_N = (np.unique(ids_N, return_inverse=True)[1] for ids_N in (query_N, item_N))
    has_QI = csr_matrix((np.ones(len(queries_N), np.int32), (queries_N, items_N)))
    has_QI.sum_duplicates()
    has_QI.data[:] = 1
    by_item = has_QI.T.tocsr()
    items_Q, queries_I = (np.diff(matrix.indptr).astype(np.float64) for matrix in (has_QI, by_item))
    generator = np.random.default_rng(seed)
    place_P = generator.integers(has_QI.nnz, size=_PAIRS)
    query_P = np.searchsorted(has_QI.indptr, place_P, side="right") - 1
    other_P = generator.integers(has_QI.indptr[query_P], has_QI.indptr[query_P + 1])
    is_pair_P = place_P != other_P
    one_P, two_P, query_P = has_QI.indices[place_P[is_pair_P]], has_QI.indices[other_P[is_pair_P]], query_P[is_pair_P]
    together = -len(one_P)  # the query that the pair is of
    for begin in range(0, len(one_P), _PAIRS_AT_ONCE):
        part = slice(begin, begin + _PAIRS_AT_ONCE)
        together += int(by_item[one_P[part]].multiply(by_item[two_P[part]]).sum())
    pairs_Q = items_Q * (items_Q - 1)
    chance_P = (np.sum(pairs_Q) - pairs_Q[query_P]) / np.maximum(np.sum(items_Q) - items_Q[query_P], 1) ** 2
    expected = float(np.sum((queries_I[one_P] - 1) * (queries_I[two_P] - 1) * chance_P))
    return (together + 1) / (expected + 1)
