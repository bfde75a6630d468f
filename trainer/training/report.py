"""The report of a finished run: what ``report.json`` says."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from kvstore.store import RowStore
from trainer.config.schema import JobConfig
from trainer.evaluation.ranking import EvalMetrics
from trainer.model.spec import ModelSpec
from trainer.training.state import TrainState


def total_traffic(progress: TrainState, store: RowStore) -> dict[str, int]:
    """What all workers sent and received: every one of them calls this."""
    mine = asdict(progress.traffic)
    totals = store.all_reduce(np.array(list(mine.values()), dtype=np.float64))
    return {name: int(value) for name, value in zip(mine, totals, strict=True)}


def make_report(
    job: JobConfig,
    model: ModelSpec,
    progress: TrainState,
    metrics: dict[str, EvalMetrics],
    store: RowStore,
    traffic: dict[str, int],
) -> dict[str, Any]:
    """The report, of ``metrics`` by split and the ``traffic`` of all workers."""
    return {
        "name": job.name,
        "metrics": metrics,
        "best_epoch": progress.best_epoch,
        "stopped_early": progress.stopped_early,
        "examples": progress.examples_total,
        "steps": progress.step,
        "epochs": progress.epochs,
        "parameters": model.parameters,
        "seconds_by_phase": progress.seconds,
        "background_seconds": progress.background,
        "checkpoints": asdict(progress.saves),
        "engine": job.train.engine,
        "store": type(store).__name__,
        "servers": job.cluster.servers,
        "workers": store.workers,
        "versions": {"python": platform.python_version(), **dict(_package_versions())},
        **traffic,
        "train_seconds": progress.train_seconds,
        "examples_per_second": progress.examples_total / progress.train_seconds,
    }


def _package_versions() -> Iterator[tuple[str, str]]:
    for package in ("crossfade", "numpy", "numba", "pyarrow"):
        try:
            yield package, version(package)
        except PackageNotFoundError:
            yield package, "not installed as a package"
    if "mxnet" in sys.modules:  # which comes in packages of several names
        yield "mxnet", sys.modules["mxnet"].__version__
