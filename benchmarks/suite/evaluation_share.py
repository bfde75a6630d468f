"""Measure the ranking of all items, ``rank_items``, against its bare matrix products on all cores.

The task: ``queries``, ``items``, ``dim``, ``depth``, ``rounds``, ``threads``. Rankings and products take turns; the
best of several tile sizes is taken for the latter.
"""

from __future__ import annotations

import json
import sys

import numpy as np

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.data.jagged_array import JaggedArray
from crossfade.trainer.model.spec import ModelSpec, Score
from crossfade.trainer.recommend.top_k import rank_items
from suite.matrix_products import TILE_SCORES, Products
from suite.timing import median_seconds

EXCLUDED_PER_QUERY = 20


class Vectors:
    """Vectors in memory, by entity."""

    def __init__(self, arrays: dict[str, FloatArray]) -> None:
        self._arrays = arrays

    def vectors(self, entity: str, rows_N: IntArray) -> FloatArray:
        """Return the vectors of ``rows_N``: float32 (N, D)."""
        return self._arrays[entity][rows_N]


def main() -> None:
    """Print seconds of a ranking, of its products, and the ratio."""
    task = json.loads(sys.argv[1])
    queries, items, dim = task["queries"], task["items"], task["dim"]
    generator = np.random.default_rng(1)
    tables = {"customer": queries, "track": items}
    source = Vectors({name: generator.standard_normal((rows, dim), np.float32) for name, rows in tables.items()})
    specs = [TableSpec(name, rows, dim, 0.1) for name, rows in tables.items()]
    model = ModelSpec(specs[0], specs[1], Score.of("cosine", 1.0))
    excluded_QN = np.sort(generator.integers(0, items, (queries, EXCLUDED_PER_QUERY)), axis=1)
    excluded = JaggedArray(np.arange(queries + 1) * EXCLUDED_PER_QUERY, excluded_QN.ravel())
    bare = [Products([(queries, items, dim)], scores, task["threads"], backward=False) for scores in TILE_SCORES]

    def rank() -> None:
        rank_items(source, model, np.arange(queries), excluded, task["depth"])

    rank_seconds, *bare_seconds = median_seconds(task["rounds"], rank, *bare)
    best = min(bare_seconds)
    print(json.dumps({"ratio": rank_seconds / best, "rank_ms": 1e3 * rank_seconds, "products_ms": 1e3 * best}))


if __name__ == "__main__":
    main()
