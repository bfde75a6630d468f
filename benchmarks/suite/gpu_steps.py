"""Measure steps of Crossfade on tables in the memory of a device.

The task: ``device``, as ``train.device`` names it; ``customers``, ``tracks``, ``dim``, ``batch``, ``steps``, and
``warm_up``; ``negatives`` (per_example, one for each example, or in_batch); ``optimizer``;
and ``ids``, a folder as in ``work.py``, or null: popular rows
come first, as in a prepared dataset, and are drawn by a power law.

Batches are made before the steps, by the code that a training runs in a background thread. A step copies the indexes of
its batch to the device, reads rows, computes gradients, updates the rows, and waits for the device.

Shapes: B examples of a step, N triples.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from crossfade.base.arrays import IntArray
from crossfade.kvstore.store import TableSpec
from crossfade.kvstore.torch.store import DeviceStore
from crossfade.trainer.config.auto_values import DatasetSize, resolve
from crossfade.trainer.config.loading import check_job
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.data.reader import Interactions
from crossfade.trainer.data.schedule import BatchSlice
from crossfade.trainer.model.batches import Batch, make_batch
from crossfade.trainer.model.engines.engine import choose_engine
from crossfade.trainer.model.engines.torch import TorchEngine, torch_device
from crossfade.trainer.model.spec import ModelSpec, Score
from crossfade.trainer.training.state import TrainState
from crossfade.trainer.training.steps import DeviceStep, Step
from suite.training import bpr_job, softmax_job

GIB = 2**30
MAX_BATCHES = 32
EXPONENT = 1.1
"""Of the power law of drawn rows, as that of Zipf's law in ``work.py``."""


def job_of(task: dict[str, Any]) -> JobConfig:
    """Return the job that the task's steps are of."""
    sizes = {"steps": task["steps"], "batch": task["batch"], "dim": task["dim"]}
    in_batch = task["negatives"] == "in_batch"
    values = softmax_job(Path("-"), partitions=1, **sizes) if in_batch else bpr_job(Path("-"), **sizes)
    values["optimizer"]["kind"] = task["optimizer"]
    values["train"] |= {"engine": "torch", "tables": "device", "device": task["device"]}
    size = DatasetSize(task["customers"], task["tracks"], task["batch"], is_grouped=False)
    return resolve(check_job(values, "the benchmark"), size)


def triples_of(task: dict[str, Any]) -> list[IntArray]:
    """Return customers, positives and negatives, int64 (N,) each."""
    if task["ids"] is not None:
        return [np.load(Path(task["ids"]) / f"{name}.npy") for name in ("customer", "positive", "negative")]
    generator, count = np.random.default_rng(1), task["batch"] * MAX_BATCHES
    popular = [_popular_rows(generator, task[name], count) for name in ("customers", "tracks")]
    return [*popular, generator.integers(0, task["tracks"], count)]


def _popular_rows(generator: np.random.Generator, rows: int, count: int) -> IntArray:
    """Draw ``count`` of ``rows`` rows, the first ones most often, without an array of their size: int64 (count,)."""
    power = 1 - EXPONENT
    uniform_N = generator.random(count)
    ranks_N = (1 + uniform_N * ((rows + 1) ** power - 1)) ** (1 / power)
    return np.minimum(ranks_N.astype(np.int64) - 1, rows - 1)


def batches_of(task: dict[str, Any]) -> tuple[list[Batch], float]:
    """Return up to ``MAX_BATCHES`` batches, and the median milliseconds of making one from its interactions."""
    customer_N, positive_N, negative_N = triples_of(task)
    size, per_example = task["batch"], task["negatives"] == "per_example"
    made, seconds = [], []
    for step in range(min(MAX_BATCHES, len(customer_N) // size)):
        part = slice(step * size, (step + 1) * size)
        interactions = Interactions(customer_N[part], positive_N[part], np.ones(size, np.float32))
        uses = [positive_N[part], *([negative_N[part]] if per_example else [])]
        begin = time.perf_counter()
        batch_slice = BatchSlice(interactions, np.arange(size), size, (size,))
        made.append(make_batch(batch_slice, np.concatenate(uses), 0, step, per_example=per_example))
        seconds.append(time.perf_counter() - begin)
    return made, 1e3 * statistics.median(seconds)


def take(step: Step, batches: list[Batch], count: int) -> float:
    """Take ``count`` steps, each of which waits for the device; return their seconds."""
    state = TrainState()
    begin = time.perf_counter()
    for batch in itertools.islice(itertools.cycle(batches), count):
        step.take(batch, 1.0, state)
    return time.perf_counter() - begin


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Return the rate of the steps after the warm-up, and where the tables are."""
    job = job_of(task)
    customer, track = (TableSpec(name, task[f"{name}s"], task["dim"], 0.1) for name in ("customer", "track"))
    model = ModelSpec(customer, track, Score.of("dot", 1.0))
    batches, prepare_ms = batches_of(task)
    with closing(DeviceStore(torch_device(task["device"]))) as store:
        store.create([customer, track], job.optimizer_spec, seed=1)
        engine = choose_engine(job.train).build(job, model)
        assert isinstance(engine, TorchEngine)
        step = DeviceStep(store, engine, model)
        take(step, batches, task["warm_up"])
        seconds = take(step, batches, task["steps"])
        taken = list(itertools.islice(itertools.cycle(batches), task["steps"]))
        rows = sum(len(batch.query.rows_A) + len(batch.item.rows_A) for batch in taken)
        device_bytes = sum(table.bytes for table in store._tables.values())
    return {
        "triples_per_second": task["batch"] * task["steps"] / seconds,
        "rows_per_second": rows / seconds,
        "step_ms": 1e3 * seconds / task["steps"],
        "prepare_ms": prepare_ms,
        "device_gib": device_bytes / GIB,
    }


def main() -> None:
    """Print the result as a line of JSON."""
    print(json.dumps(measure(json.loads(sys.argv[1]))))


if __name__ == "__main__":
    main()
