"""Measure the softmax gradients of ``CpuEngine`` against the bare matrix products of the same shapes and threads.

The task: ``negatives`` (in_batch, with logQ correction, or all), ``examples``, ``customers``, ``tracks``,
``partitions``, ``dim``, ``rounds``, ``threads``. Engine and products take turns; of several tile sizes for the latter,
the best is taken.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

from crossfade.kvstore.store import TableSpec
from crossfade.trainer.config.sections import NegativesConfig
from crossfade.trainer.data.reader import Interactions
from crossfade.trainer.data.schedule import BatchSlice
from crossfade.trainer.model.batches import Batch, make_batch
from crossfade.trainer.model.engines.cpu import CpuEngine
from crossfade.trainer.model.losses import LossSpec
from crossfade.trainer.model.negatives import NegativeSampler
from crossfade.trainer.model.spec import ModelSpec, Score
from suite.matrix_products import TILE_SCORES, Products
from suite.timing import median_seconds
from suite.work import draw_rows

TEMPERATURE = 0.17


def sampled_batch(task: dict[str, Any], negatives: NegativesConfig) -> Batch:
    """Build a batch of Zipf's law in equal partitions, with its negatives."""
    generator = np.random.default_rng(1)
    examples, tracks, partitions = task["examples"], task["tracks"], task["partitions"]
    customer_N = draw_rows(generator, "uniform", task["customers"], examples)
    track_N = draw_rows(generator, "zipf", tracks, examples)
    interactions = Interactions(customer_N, track_N, np.ones(examples, np.float32))
    sizes = (examples // partitions,) * partitions
    part = BatchSlice(interactions, np.arange(examples), examples, sizes, partitions)
    sampler = NegativeSampler(negatives, tracks, np.bincount(track_N, minlength=tracks), seed=1)
    uses_N = np.concatenate([track_N, sampler.draw(part, 0, 0)])
    return make_batch(part, uses_N, 0, 0, sampler.log_q(uses_N, part))


def main() -> None:
    """Print seconds of a step, of its products, and the share."""
    task = json.loads(sys.argv[1])
    in_batch = task["negatives"] == "in_batch"
    negatives = NegativesConfig(kind=task["negatives"], logq_correction=in_batch)
    batch = sampled_batch(task, negatives)
    customer, track = (TableSpec(name, task[f"{name}s"], task["dim"], 0.1) for name in ("customer", "track"))
    model = ModelSpec(customer, track, Score.of("cosine", TEMPERATURE))
    engine = CpuEngine(model, LossSpec("softmax", TEMPERATURE), negatives)
    generator = np.random.default_rng(1)
    vectors = {
        name: generator.standard_normal((len(active.rows_A), task["dim"]), np.float32)
        for name, active in (("customer", batch.query), ("track", batch.item))
    }
    size = task["examples"] // task["partitions"]
    shapes = [(size, size, task["dim"])] * task["partitions"]
    if not in_batch:
        shapes = [(len(batch.query.rows_A), task["tracks"], task["dim"])]
    bare = [Products(shapes, scores, task["threads"], backward=True) for scores in TILE_SCORES]
    engine_seconds, *bare_seconds = median_seconds(task["rounds"], lambda: engine.gradients(batch, vectors), *bare)
    best = min(bare_seconds)
    figures = {"share": best / engine_seconds, "engine_ms": 1e3 * engine_seconds, "products_ms": 1e3 * best}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
