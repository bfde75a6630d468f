"""Which held-out queries are evaluated: all, or a sample that is the same for every run on a dataset.

    sample = draw_sample((query_NK, ...), 10_000)        # None: these are all
    sample.contains(query_NK)

Queries are ordered by a hash of their row, context, and moment, with a fixed seed, and the first are taken. So a
smaller sample is a part of a larger one, and has the same queries whatever the job, the seed of training, the epoch,
and the number of workers: two evaluations are compared query by query. ``trainer/config/auto_values.py`` chooses how
many.

Shapes: N interactions, Q queries, K columns of what identifies a query.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from crossfade.base.arrays import BoolArray, IntArray
from crossfade.base.hashing import Unsigned, mix

_SEED = np.uint64(0x5EED)


@dataclass(frozen=True)
class QuerySample:
    """A part of the queries of a split: those whose key is at most ``last_key``, of ``queries`` in all."""

    last_key: np.uint64
    queries: int

    def contains(self, query_NK: IntArray) -> BoolArray:
        """Return which rows of ``query_NK`` are of a query in the sample."""
        within_N: BoolArray = query_keys(query_NK) <= self.last_key
        return within_N


def draw_sample(parts: Iterable[IntArray], size: int) -> QuerySample | None:
    """Draw ``size`` of the queries in ``parts``, int64 (N, K) each, in which they repeat; None if these are all.

    It holds eight bytes for each query of each part, and up to three times as many while it joins and sorts them: at
    most 24 bytes for each row of all parts.
    """
    keys_Q = np.unique(np.concatenate([np.empty(0, np.uint64), *(np.unique(query_keys(part)) for part in parts)]))
    return None if len(keys_Q) <= size else QuerySample(keys_Q[size - 1], len(keys_Q))


def query_keys(query_NK: IntArray) -> Unsigned:
    """Return the hash of each row of ``query_NK``, by which queries are ordered: uint64 (N,)."""
    key_N = np.full(len(query_NK), _SEED)
    for column_N in query_NK.T:
        key_N = mix(key_N ^ column_N.astype(np.uint64))
    return key_N
