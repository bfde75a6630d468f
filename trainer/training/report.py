"""The report of a finished run, ``report.json``, and the names of the kernels that computed it.

    kernels = describe_kernels(engine="cpu")          # "OpenBLAS Zen, numpy AVX2, Numba znver3+avx2+fma"

Processors of another kind have other kernels, which round differently. Runs repeat and resume bit for bit on equal
kernels only, so reports and events name them.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info

from crossfade.kvstore import __version__
from crossfade.kvstore.jit import compiled_for
from crossfade.kvstore.store import RowStore
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.evaluation.ranking import EvalMetrics
from crossfade.trainer.model.spec import ModelSpec
from crossfade.trainer.training.composition import Composition
from crossfade.trainer.training.state import TrainState


def total_traffic(state: TrainState, store: RowStore) -> dict[str, int]:
    """Sum the traffic of all workers. Every worker calls this."""
    local = asdict(state.traffic)
    totals = store.all_reduce(np.array(list(local.values()), dtype=np.float64))
    return {name: int(value) for name, value in zip(local, totals, strict=True)}


def make_report(
    job: JobConfig,
    model: ModelSpec,
    state: TrainState,
    metrics: Mapping[str, EvalMetrics],
    composition: Composition,
    traffic: Mapping[str, int],
) -> dict[str, Any]:
    """Make the report of a run that ended at ``state``.

    Args:
        job: the job of the run.
        model: its model.
        state: the final train state of this worker.
        metrics: metrics of the best embeddings, by split.
        composition: what held the tables, and computed the gradients of this worker.
        traffic: rows and bytes that all workers moved.
    """
    return {
        "name": job.name,
        "task": job.evaluate.task,
        "metrics": dict(metrics),
        "valid_at_start": state.at_start,
        "best_epoch": state.best_epoch,
        "stopped_early": state.stopped_early,
        "advice": _advice(job, state),
        "examples": state.examples_total,
        "steps": state.step,
        "epochs": state.epochs,
        "parameters": model.parameters,
        "seconds_by_phase": state.seconds_by_phase,
        "checkpoints": asdict(state.checkpoints),
        "engine": composition.engine.name,
        "devices": [composition.engine.device],
        "store": type(composition.store).__name__,
        "servers": job.cluster.servers,
        "workers": composition.store.workers,
        "versions": {"python": platform.python_version(), **dict(_package_versions())},
        **traffic,
        "train_seconds": state.train_seconds,
        "examples_per_second": state.examples_total / state.train_seconds,
    }


def _advice(job: JobConfig, state: TrainState) -> str | None:
    """Return what to change where the run may have ended too early: its best epoch is its last, of several compared."""
    train = job.train
    if state.stopped_early or state.best_epoch != state.epochs or state.epochs <= train.eval_every_epochs:
        return None
    is_limited = train.max_steps is not None and state.step == train.max_steps
    longer = f"train.max_steps={2 * state.step}" if is_limited else f"train.epochs={2 * train.epochs}"
    return f"the best epoch is the last, {state.epochs}, so more may be better: train longer, with {longer}"


def _package_versions() -> Iterator[tuple[str, str]]:
    yield "crossfade", __version__
    for package in ("numpy", "numba", "pyarrow"):
        yield package, version(package)
    if "torch" in sys.modules:
        yield "torch", sys.modules["torch"].__version__
    if "mxnet" in sys.modules:  # several packages provide it, so its version is not that of a package
        yield "mxnet", sys.modules["mxnet"].__version__


_BLAS_NAMES = {"openblas": "OpenBLAS", "mkl": "MKL", "blis": "BLIS"}


def describe_kernels(engine: str) -> str:
    """Describe the kernels of this process, whose gradients ``engine`` computes.

    Call it once the engine is loaded: PyTorch and MXNet have kernels of their own.
    """
    parts = [_blas("numpy"), f"numpy {_numpy_features()}", f"Numba {compiled_for()}"]
    if engine == "mxnet":
        parts.append(f"MXNet {_blas('mxnet')}")
    if engine == "torch":
        parts.append(f"PyTorch {sys.modules['torch'].backends.cpu.get_cpu_capability()}")
    return ", ".join(parts)


def _blas(package: str) -> str:
    """Describe the BLAS libraries in the folders of ``package``, or all if it brings none."""
    libraries = [library for library in threadpool_info() if library["user_api"] == "blas"]
    own = [library for library in libraries if f"{os.sep}{package}" in library["filepath"]]
    found = set()
    for library in own or libraries:
        name = library["internal_api"]
        found.add(" ".join([_BLAS_NAMES.get(name, name), *filter(None, [library.get("architecture")])]))
    return "/".join(sorted(found)) or "BLAS unknown"


def _numpy_features() -> str:
    """Return the last of the extensions that numpy's own loops use here; the others follow from it."""
    show_config: Any = np.show_config  # numpy 1 declares neither its parameter nor its result
    extensions = show_config(mode="dicts")["SIMD Extensions"]
    return str((extensions.get("found") or extensions.get("baseline") or ["baseline"])[-1])
