"""Which held-out queries are evaluated: all, or a sample that is the same for every run on a dataset.

    size = sample_size(job.evaluate, manifest, "valid", in_training=True)        # 19,800
    sample = draw_sample((query_NK, ...), size)                                   # None: all queries
    kept_N = sample.contains(query_NK)

Queries are ordered by a hash of their row, context, and moment, with a fixed seed, and the first are taken. So a
smaller sample is a part of a larger one, and has the same queries whatever the job, the seed of training, the epoch,
and the number of workers: two evaluations are compared query by query.

The size ``auto`` depends on the dataset alone, so that runs with other jobs have the same sample:

    N = max(MIN_QUERIES, EPOCH_SHARE · INTERACTION_SCORES · interactions of train / items)

Rankings take N · items scores, each a product of two vectors. In an epoch, the default job compares an interaction with
the 1,024 items of its part of a batch, in one product for the scores and two for the gradients: INTERACTION_SCORES
products on the same CPUs, whatever the columns. So an evaluation takes at most about EPOCH_SHARE of an epoch
(docs/evaluation.md has a measurement). With all items as negatives, an epoch takes longer; on a GPU, it takes less. The
sample for the evaluation after training is FINAL_FACTOR times as large: about an epoch.

Shapes: N interactions, Q queries, K columns of what identifies a query.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from crossfade.base.arrays import BoolArray, IntArray
from crossfade.base.hashing import Unsigned, mix
from crossfade.trainer.config.schema import EvaluateConfig
from crossfade.trainer.data.manifest import DatasetManifest
from crossfade.trainer.data.split_names import SplitName

MIN_QUERIES = 2_000
"""Queries with which a standard error is still usable: that of ndcg is about 0.3/√N."""
INTERACTION_SCORES = 3_000
"""Scores of a ranking that take as long as an interaction in an epoch, at most."""
EPOCH_SHARE = 0.1
FINAL_FACTOR = 10
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


def sample_size(
    spec: EvaluateConfig, manifest: DatasetManifest, split: SplitName, *, in_training: bool = False
) -> int | None:
    """Return how many queries of ``split`` are evaluated, at most; None: all.

    ``in_training``: valid is evaluated during training, by ``max_queries``; otherwise by ``final``, as test is.
    """
    limit, factor = (spec.max_queries, 1) if in_training and split == "valid" else (spec.final, FINAL_FACTOR)
    if limit == "all":
        return None
    if limit != "auto":
        return limit
    item = manifest.entities[manifest.item]
    ranked = max(item.rows - len(item.vacant_rows), 1)
    affordable = EPOCH_SHARE * INTERACTION_SCORES * manifest.splits["train"].rows / ranked
    return factor * max(MIN_QUERIES, int(affordable))


def draw_sample(parts: Iterable[IntArray], size: int) -> QuerySample | None:
    """Draw ``size`` of the queries in ``parts``, int64 (N, K) each, in which they repeat; None if these are all.

    Eight bytes are held of each query of a part, and nothing else.
    """
    keys_Q = np.unique(np.concatenate([np.empty(0, np.uint64), *(np.unique(query_keys(part)) for part in parts)]))
    return None if len(keys_Q) <= size else QuerySample(keys_Q[size - 1], len(keys_Q))


def query_keys(query_NK: IntArray) -> Unsigned:
    """Return the hash of each row of ``query_NK``, by which queries are ordered: uint64 (N,)."""
    key_N = np.full(len(query_NK), _SEED)
    for column_N in query_NK.T:
        key_N = mix(key_N ^ column_N.astype(np.uint64))
    return key_N
