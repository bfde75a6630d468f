"""How much the items of a query say about each other: the lift of co-occurrence, and the number of items.

    found = with_co_occurrence(folder, manifest, progress).co_occurrence
    found.lift, found.items_per_query       # 8.4 and 24 for places that people visit, 1.2 and 98 for films

Lift is P(i, j) / (P(i) · P(j)) in association rules (interest, Brin, Motwani, and Silverstein, "Beyond market baskets:
generalizing association rules to correlations", SIGMOD 1997). Here P(j | i) is that of a random walk, from an item to
another query that has it, and on to another item of that query: queries with many items count no more than others.
"""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc

from crossfade.base.arrays import IntArray
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.column_names import WEIGHT
from crossfade.trainer.data.manifest import CoOccurrence, DatasetManifest
from crossfade.trainer.data.parquet import ParquetFiles
from crossfade.trainer.data.reporter import ProgressReporter

_MAX_INTERACTIONS, _MIN_QUERIES, _MAX_ITEMS = 500_000, 2_000, 5_000
"""What it is measured on: interactions and queries of a random sample, and interactions of one query."""
_MIN_EVIDENCE = 100
"""Co-occurrences, found or expected by chance, below which the lift would be off by more than about 10 %."""
_PAIRS, _PAIRS_AT_ONCE = 20_000, 100


def with_co_occurrence(folder: Folder, manifest: DatasetManifest, progress: ProgressReporter) -> DatasetManifest:
    """Return ``manifest`` with the co-occurrence in train, whose files are in ``folder``, unless it has an earlier one.

    So days of one model have one temperature. It is measured on the positive interactions of the first queries, which
    are in random order; there is none if these have too few items in common.
    """
    if manifest.co_occurrence is not None:
        return manifest
    progress.phase("co-occurrence", None, "row")
    reader, train = ParquetFiles(folder), manifest.splits["train"]
    query_N = item_N = np.empty(0, np.int64)
    for file, group in [(each, group) for each in train.files for group in range(len(each.row_groups))]:
        table = reader.read(file, group, [manifest.query, manifest.item, WEIGHT])
        table = table.filter(pc.greater(table.column(WEIGHT), 0))
        query_N = np.concatenate([query_N, table.column(manifest.query).to_numpy()])
        item_N = np.concatenate([item_N, table.column(manifest.item).to_numpy()])
        if len(query_N) > _MAX_INTERACTIONS:
            query_N, item_N = _first_of_each(query_N, item_N)
        if len(query_N) > _MAX_INTERACTIONS and len(np.unique(query_N)) > _MIN_QUERIES:
            is_whole_N = query_N != query_N[-1]  # of the last one, there may be more
            query_N, item_N = query_N[is_whole_N], item_N[is_whole_N]
            break
    query_N, item_N = _first_of_each(query_N, item_N)
    number_N = np.cumsum(np.diff(query_N, prepend=query_N[:1]) != 0)  # their random order
    return manifest.model_copy(update={"co_occurrence": co_occurrence(number_N, item_N)})


def _first_of_each(query_N: IntArray, item_N: IntArray) -> tuple[IntArray, IntArray]:
    """Return the first ``_MAX_ITEMS`` interactions of each query."""
    order_N = np.argsort(query_N, kind="stable")
    place_N = np.arange(len(order_N)) - np.searchsorted(query_N[order_N], query_N[order_N])
    kept_N = np.sort(order_N[place_N < _MAX_ITEMS])
    return query_N[kept_N], item_N[kept_N]


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
