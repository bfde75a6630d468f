"""Vectors of queries in context and at a moment: the sum of a query's vector and those of its context.

query_QD = query_vectors(source, model, queries_Q, {"hour": np.array([18, 18]), "device": np.array([2, -1])})

Shapes: Q queries, A distinct rows, D columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.trainer.data.query_history import MomentHistories
from crossfade.trainer.embeddings.files import VectorSource
from crossfade.trainer.model.spec import ModelSpec
from crossfade.trainer.model.towers import mean_of_histories


def query_vectors(
    source: VectorSource,
    model: ModelSpec,
    queries_Q: IntArray,
    context: Mapping[str, IntArray],
    histories: MomentHistories | None = None,
) -> FloatArray:
    """Return the vectors of ``queries_Q``, int64 and sorted, in their context: float32 (Q, D).

    Args:
        source: provides vectors by rows.
        model: which context adds to them; other context is ignored.
        queries_Q: rows of the query entity, which repeat where they are in several contexts or at several moments.
        context: by context entity, its row for each query, int64 (Q,), -1 for none; empty: no query has context.
        histories: their histories at the moment, which replace the latest ones if the model uses histories.
    """
    query_QD = vectors_of_rows(source, model.query.name, queries_Q)
    if histories is not None and model.history is not None:
        for sign, of_moment in ((1, histories.before), (-1, histories.latest)):
            query_QD += sign * mean_of_histories(model.history, of_moment, partial(source.vectors, model.item.name))
    for table in model.context if context else ():
        row_Q = context[table.name]
        has_Q = row_Q >= 0
        if has_Q.any():
            query_QD[has_Q] += vectors_of_rows(source, table.name, row_Q[has_Q])
    return query_QD


def vectors_of_rows(source: VectorSource, entity: str, rows_Q: IntArray) -> FloatArray:
    """Return a new array with the vectors of ``rows_Q``, in any order, float32 (Q, D)."""
    if len(rows_Q) == 1:
        return source.vectors(entity, rows_Q).copy()
    rows_A, index_Q = np.unique(rows_Q, return_inverse=True)
    vectors_QD: FloatArray = source.vectors(entity, rows_A)[index_Q]
    return vectors_QD
