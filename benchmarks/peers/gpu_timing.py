"""Time steps of peers on a GPU, with IDs that wait in page-locked memory.

    device = torch.device(task.options["device"])
    time_steps(task, device, step)      # step(ids): int64 (3, B) on the device; prints the result as one line of JSON

A step queues its work; the device is waited for after the warm-up and after the last step.

Shapes: B examples of a step.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import numpy as np
import torch

from peers.task import Task, print_rate

MAX_BATCHES = 32


def pinned_batches(task: Task, device: torch.device) -> list[torch.Tensor]:
    """Return customers, positives and negatives of up to ``MAX_BATCHES`` steps, int64 (3, B) each."""
    count = min(MAX_BATCHES, len(task.triples()[0]) // task.batch)
    batches = [torch.from_numpy(np.stack(ids)) for ids in itertools.islice(task.batches(), count)]
    return [batch.pin_memory() for batch in batches] if device.type == "cuda" else batches


def time_steps(task: Task, device: torch.device, step: Callable[[torch.Tensor], object]) -> None:
    """Run the warm-up and the steps, each of which copies its IDs to ``device``, and print the rate of the latter."""
    batches = itertools.cycle(pinned_batches(task, device))

    def steps(count: int) -> float:
        begin = time.perf_counter()
        for batch in itertools.islice(batches, count):
            step(batch.to(device, non_blocking=True))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begin

    steps(task.warm_up)
    seconds = steps(task.steps)
    print_rate(task.batch * task.steps, seconds, step_ms=1e3 * seconds / task.steps)
