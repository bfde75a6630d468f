"""Measure the share of a device's copy bandwidth that an update of rows reaches.

The task: ``device`` as ``train.device`` names it, ``copy_bytes``, ``table_rows``, ``active_rows``, ``dim``, ``rounds``,
``repeats``. A copy on the device reads and writes ``copy_bytes``. An update by row-wise AdaGrad reads the gradient and
the number of each active row, and reads and writes its weights and its state. Both take turns; a round queues
``repeats`` of one of them and then waits for the device.

Shapes: A active rows, D columns.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
import torch

from crossfade.kvstore.optimizer_spec import OptimizerSpec
from crossfade.kvstore.store import TableSpec
from crossfade.kvstore.torch.store import DeviceStore
from crossfade.trainer.model.engines.torch import torch_device
from suite.timing import median_seconds

FLOAT_BYTES, ROW_NUMBER_BYTES = 4, 8


def repeated(work: Callable[[], object], repeats: int, device: torch.device) -> Callable[[], None]:
    """Return a function that queues ``work`` several times and waits for the device."""

    def run() -> None:
        for _ in range(repeats):
            work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Return the bandwidths of a copy and of an update, and the share."""
    rows, active, dim, repeats = (task[name] for name in ("table_rows", "active_rows", "dim", "repeats"))
    device = torch.device(torch_device(task["device"]))
    source = torch.zeros(task["copy_bytes"] // FLOAT_BYTES, device=device)
    target = torch.empty_like(source)
    generator = np.random.default_rng(1)
    rows_A = np.sort(generator.choice(rows, active, replace=False))
    index_A = torch.from_numpy(rows_A).to(device)
    gradient_AD = torch.from_numpy(generator.standard_normal((active, dim), np.float32)).to(device)
    with closing(DeviceStore(str(device))) as store:
        store.create([TableSpec("track", rows, dim, 0.1)], OptimizerSpec("rowwise_adagrad", 1e-3), seed=1)
        copy = repeated(lambda: target.copy_(source), repeats, device)
        update = repeated(lambda: store.update_rows("track", rows_A, gradient_AD, index_A), repeats, device)
        copy_seconds, update_seconds = median_seconds(task["rounds"], copy, update)
    copied = 2 * task["copy_bytes"] * repeats
    updated = active * repeats * (3 * dim * FLOAT_BYTES + 2 * FLOAT_BYTES + ROW_NUMBER_BYTES)
    rates = {"copy_gbytes": copied / copy_seconds / 1e9, "update_gbytes": updated / update_seconds / 1e9}
    return {
        "share": rates["update_gbytes"] / rates["copy_gbytes"],
        **rates,
        "update_ms": 1e3 * update_seconds / repeats,
    }


def main() -> None:
    """Print the result as a line of JSON."""
    print(json.dumps(measure(json.loads(sys.argv[1]))))


if __name__ == "__main__":
    main()
