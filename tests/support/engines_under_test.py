"""The gradient engines that tests compare.

    with other_process() as process:
        engine = EngineUnderTest("mxnet", process, model, loss_spec, negatives)
        loss, gradients = engine.gradients(batch, vectors)

MXNet installs signal handlers and starts threads, so it computes in a separate process, one for all calls.
"""

import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np
from engine_cases import CASES, Result, gradients_by
from needs import MXNET, TORCH

from crossfade.base.arrays import FloatArray
from crossfade.base.errors import MissingExtraError
from crossfade.kvstore.mxnet.imports import require_mxnet
from crossfade.kvstore.torch.device import require_torch
from crossfade.trainer.config.sections import NegativesConfig
from crossfade.trainer.model.batches import Batch
from crossfade.trainer.model.engines.engine import Engine
from crossfade.trainer.model.losses import LossSpec
from crossfade.trainer.model.spec import ModelSpec

ENGINES = "cpu", "torch", "mxnet"

Vectors = Mapping[str, FloatArray]


@dataclass(frozen=True)
class Computed:
    """What an engine returns, and whether its gradients can be reused as memory.

    Attributes:
        loss: the loss.
        gradients: by entity.
        unusable: the entities whose gradients are not contiguous or not writable, or share memory with vectors.
        changed: the entities whose vectors the engine changed.
    """

    loss: float
    gradients: dict[str, FloatArray]
    unusable: list[str]
    changed: list[str]


def missing(name: str) -> str | None:
    """Return why an engine cannot be tested here, None if it can."""
    require, reason = {"mxnet": (require_mxnet, MXNET), "torch": (require_torch, TORCH)}.get(name, (lambda: None, ""))
    try:
        require()
    except MissingExtraError:
        return reason
    return None


@dataclass(frozen=True)
class EngineUnderTest:
    """An engine of ``ENGINES``, which computes in ``process`` or, without it, in this one."""

    name: str
    process: ProcessPoolExecutor | None
    model: ModelSpec
    loss: LossSpec
    negatives: NegativesConfig

    def gradients(self, batch: Batch, vectors: Vectors) -> tuple[float, dict[str, FloatArray]]:
        """Compute one step, as ``Engine`` does."""
        [computed] = self.compute([(batch, vectors)])
        return computed.loss, computed.gradients

    def compute(self, steps: Sequence[tuple[Batch, Vectors]]) -> list[Computed]:
        """Create an engine, and compute steps with it, one after the other."""
        arguments = self.name, self.model, self.loss, self.negatives, steps
        return compute(*arguments) if self.process is None else self.process.submit(compute, *arguments).result()


def compute(
    name: str, model: ModelSpec, loss: LossSpec, negatives: NegativesConfig, steps: Sequence[tuple[Batch, Vectors]]
) -> list[Computed]:
    """Compute steps in this process."""
    engine = _make(name, model, loss, negatives)
    return [_computed(engine, batch, vectors) for batch, vectors in steps]


def _make(name: str, model: ModelSpec, loss: LossSpec, negatives: NegativesConfig) -> Engine:
    if name == "torch":
        from crossfade.trainer.model.engines.torch import TorchEngine

        return TorchEngine(model, loss, negatives)
    if name == "mxnet":
        from crossfade.trainer.model.engines.mxnet import MXNetEngine

        return MXNetEngine(model, loss, negatives)
    from crossfade.trainer.model.engines.cpu import CpuEngine

    return CpuEngine(model, loss, negatives)


def _computed(engine: Engine, batch: Batch, vectors: Vectors) -> Computed:
    before = {name: rows_AD.tobytes() for name, rows_AD in vectors.items()}
    loss, gradients = engine.gradients(batch, vectors)
    unusable = [
        name
        for name, rows_AD in gradients.items()
        if not (rows_AD.flags.c_contiguous and rows_AD.flags.writeable)
        or any(np.shares_memory(rows_AD, vectors_AD) for vectors_AD in vectors.values())
    ]
    changed = [name for name, rows_AD in vectors.items() if rows_AD.tobytes() != before[name]]
    return Computed(loss, gradients, unusable, changed)


def results_in_tiles(**limits: int) -> dict[str, Result]:
    """Return MXNet's results of all cases with other ``limits`` of the size of tiles."""
    from crossfade.trainer.model.engines import mxnet

    with patch.multiple(mxnet, **limits):
        return {name: gradients_by(_make("mxnet", *case.parts), case) for name, case in CASES.items()}


@contextmanager
def other_process() -> Iterator[ProcessPoolExecutor]:
    """Start another process, which ends with the context."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        yield process
