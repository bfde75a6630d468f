"""Measure steps on a GPU: at full size on the first card, at tiny sizes on the CPU to check the scripts.

for name, run in gpu_runs(planner):
    run()       # figures of bpr/crossfade, or MeasurementError: there is no GPU
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import psutil

from crossfade.trainer.model.engines.cuda_driver import find_gpus
from crossfade.trainer.model.engines.gpu_code import torch_reason
from suite.processes import MeasurementError, run_module
from suite.training import bpr_job, softmax_job, train
from suite.work import Draw, Work, make_work

if TYPE_CHECKING:
    from suite.plan import Planner

Runs = Iterator[tuple[str, Callable[[], dict[str, Any]]]]

CARD_SHARE, HOST_SHARE = 0.7, 0.6
"""The part of the GPU's memory that large tables take, and the part of the host's free memory that they may take.

All rows are in the memory of the host while tables are created.
"""
STATE_BYTES = 4
TIMEOUT_SECONDS = 1800.0


@dataclass(frozen=True)
class GpuScale:
    """Sizes of the work. ``table_bytes`` is None: by the memory."""

    customers: int = 10_000_000
    tracks: int = 1_000_000
    triples: int = 4_000_000
    dim: int = 64
    batch: int = 65_536
    softmax_batch: int = 16_384
    steps: int = 300
    softmax_steps: int = 60
    warm_up: int = 20
    train_steps: int = 600
    table_bytes: int | None = None


FULL = GpuScale()
TINY = GpuScale(
    customers=2_000,
    tracks=500,
    triples=4_096,
    dim=16,
    batch=512,
    softmax_batch=256,
    steps=4,
    softmax_steps=4,
    warm_up=1,
    train_steps=6,
    table_bytes=1 << 20,
)


class GpuPlanner:
    """Runs measurements of a scale on a device. IDs are generated when a measurement first needs them."""

    def __init__(self, planner: Planner, *, on_cpu: bool) -> None:
        """Keep IDs and runs below the folder of ``planner``."""
        self.scale, self.device = (TINY, "cpu") if on_cpu else (FULL, "gpu:0")
        self._folder, self._planner = planner.folder, planner

    def _memory_bytes(self) -> int:
        """Return the bytes of memory of the device.

        Raises:
            MeasurementError: there is no GPU that PyTorch can use.
        """
        if self.device == "cpu":
            return psutil.virtual_memory().total
        state = find_gpus()
        reason = torch_reason(state.gpus[0]) if state.gpus else state.problem or "no NVIDIA driver, or no device"
        if reason is not None:
            raise MeasurementError(f"there is no GPU that can be used: {reason}")
        return state.gpus[0].memory_bytes

    def run(self, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Measure on a device that can be used."""
        self._memory_bytes()
        return measure()

    def work(self) -> Work:
        """Return the IDs that all measurements share, popular ones more often."""
        scale = self.scale
        return make_work(self._folder / "work", Draw("zipf", scale.customers, scale.tracks, scale.triples))

    def crossfade(self, **options: Any) -> dict[str, Any]:
        """Measure steps of Crossfade; ``options`` replace those of the task in ``gpu_steps.py``."""
        task = {
            "negatives": "per_example",
            "optimizer": "rowwise_adagrad",
            **self._task(self.scale.batch, self.scale.steps),
            "device": self.device,
            **options,
        }
        return run_module(sys.executable, "suite.gpu_steps", task, TIMEOUT_SECONDS)

    def softmax(self, **options: Any) -> dict[str, Any]:
        """Measure steps of softmax with the update that the peer applies, Adam."""
        task = self._task(self.scale.softmax_batch, self.scale.softmax_steps)
        return self.crossfade(**task, negatives="in_batch", optimizer="adam", **options)

    def large_tables(self) -> dict[str, Any]:
        """Measure steps on large tables."""
        scale, available = self.scale, psutil.virtual_memory().available
        size = scale.table_bytes or int(min(CARD_SHARE * self._memory_bytes(), HOST_SHARE * available))
        rows = size // (4 * scale.dim + STATE_BYTES)
        tables = {"customers": rows * 10 // 11, "tracks": rows // 11, "ids": None}
        return self.crossfade(**tables)

    def peer(self, script: str, environment: str | None, **options: Any) -> dict[str, Any]:
        """Measure a peer in its environment, None: in ours."""
        python = self._planner.environment(environment) if environment else sys.executable
        task = self._task(self.scale.batch, self.scale.steps)
        for name in ("batch", "steps", "warm_up"):
            task[name] = options.pop(name, task[name])
        task["options"] = {"device": "cpu" if self.device == "cpu" else "cuda:0", **options}
        return run_module(python, f"peers.{script}", task, TIMEOUT_SECONDS)

    def train(self, loss: str) -> dict[str, Any]:
        """Measure ``crossfade train`` with tables on the device."""
        scale, dataset = self.scale, self.work().dataset
        if loss == "softmax":
            sizes = {"steps": scale.train_steps, "batch": scale.softmax_batch, "dim": scale.dim}
            job = softmax_job(dataset, partitions=1, **sizes)
        else:
            job = bpr_job(dataset, steps=scale.train_steps, batch=scale.batch, dim=scale.dim)
        job["train"] |= {"engine": "torch", "device": self.device, "tables": "device"}
        return train(job, self._folder / "runs" / "gpu")

    def _task(self, batch: int, steps: int) -> dict[str, Any]:
        scale = self.scale
        sizes = {"customers": scale.customers, "tracks": scale.tracks, "dim": scale.dim}
        run = {"batch": batch, "steps": steps, "warm_up": scale.warm_up, "threads": len(os.sched_getaffinity(0))}
        return {"ids": str(self.work().ids), **sizes, **run}


def gpu_runs(planner: Planner) -> Runs:
    """Yield the measurements of the section; peers that have environments of their own only on a GPU."""
    gpu = GpuPlanner(planner, on_cpu=planner.scale.name == "quick")
    sizes = {"batch": gpu.scale.softmax_batch, "steps": gpu.scale.softmax_steps}
    runs: dict[str, Callable[[], dict[str, Any]]] = {
        "bpr/crossfade": gpu.crossfade,
        "bpr/crossfade-adam": partial(gpu.crossfade, optimizer="adam"),
        "bpr/fbgemm": partial(gpu.peer, "gpu_fbgemm", "gpu_fbgemm"),
        "bpr/torch-sparse": partial(gpu.peer, "gpu_torch_sparse", None, loss="bpr"),
        "softmax/crossfade": gpu.softmax,
        "softmax/torch-sparse": partial(gpu.peer, "gpu_torch_sparse", None, loss="softmax", **sizes),
        "tables/resident": gpu.large_tables,
        "train/bpr": partial(gpu.train, "bpr"),
        "train/softmax": partial(gpu.train, "softmax"),
    }
    if gpu.device == "cpu":
        del runs["bpr/fbgemm"]
    for name, run in runs.items():
        yield name, partial(gpu.run, run)
