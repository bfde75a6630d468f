"""Vectors of queries in context: the sum of the query's vector and those of its context.

query_QD = query_vectors(source, model, queries_Q, {"hour": np.array([18, 18]), "device": np.array([2, -1])})

Shapes: Q queries, A distinct rows, D columns.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from crossfade.kvstore.arrays import FloatArray, IntArray
from crossfade.trainer.embeddings.files import VectorSource
from crossfade.trainer.model.spec import ModelSpec


def query_vectors(
    source: VectorSource, model: ModelSpec, queries_Q: IntArray, context: Mapping[str, IntArray]
) -> FloatArray:
    """Return the vectors of ``queries_Q``, int64 and sorted, in their context: float32 (Q, D).

    Args:
        source: provides vectors by rows.
        model: which context adds to them; other context is ignored.
        queries_Q: rows of the query entity; unique without ``context``.
        context: by context entity, its row for each query, int64 (Q,), -1 for none; empty: no query has context.
    """
    if not context:
        return source.vectors(model.query.name, queries_Q)
    query_QD = _vectors(source, model.query.name, queries_Q)
    for table in model.context:
        row_Q = context[table.name]
        has_Q = row_Q >= 0
        if has_Q.any():
            query_QD[has_Q] += _vectors(source, table.name, row_Q[has_Q])
    return query_QD


def _vectors(source: VectorSource, entity: str, rows_Q: IntArray) -> FloatArray:
    rows_A, index_Q = np.unique(rows_Q, return_inverse=True)
    vectors_QD: FloatArray = source.vectors(entity, rows_A)[index_Q]
    return vectors_QD
