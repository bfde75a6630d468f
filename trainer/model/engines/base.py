"""The interface of gradient engines, and the choice of one.

    engine = make_engine(job, model)
    vectors, tape = towers.forward(batch, block)
    loss, gradients = engine.gradients(batch, vectors)

An engine gets vectors, after towers and dense layers, and returns their gradients: it does not depend on how they were
made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from crossfade.base.arrays import FloatArray
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.model.batches import Batch
from crossfade.trainer.model.engines.choice import EngineChoice, choose_engine
from crossfade.trainer.model.losses import LossSpec
from crossfade.trainer.model.spec import ModelSpec


class Engine(Protocol):
    """Computes losses and gradients from the vectors of a batch's active rows, at a cost independent of table size.

    Attributes:
        name: as ``train.engine`` names it.
        devices: as ``train.device`` names them, GPUs with their number.
    """

    name: str
    devices: Sequence[str]

    def gradients(self, batch: Batch, vectors: Mapping[str, FloatArray]) -> tuple[float, dict[str, FloatArray]]:
        """Compute this worker's part of the mean loss over the global batch, and its gradients.

        Args:
            batch: the examples and negatives, by active row.
            vectors: by entity, the vectors of its active rows, float32 (A, D), in the order of the batch's ``rows_A``.

        Returns:
            The loss, and the gradients of ``vectors``. Summed over workers, both are those of
            Σ_b |w_b|·loss_b / global_size, where loss_b is the reversed loss if w_b < 0
            (``trainer/model/losses.py``). An empty batch gives 0 and gradients of shape (0, D).
        """

    def gpu_memory(self) -> tuple[int, int] | None:
        """Return the used and the total bytes of the engine's GPU, None on the CPU. Any thread may call it."""


def make_engine(job: JobConfig, model: ModelSpec, choice: EngineChoice | None = None) -> Engine:
    """Create the engine of a worker, by default of the first one of ``job``.

    Raises:
        MissingExtraError: it needs a package that is not installed.
        InputError: it needs a GPU that is not available.
    """
    choice = choice or choose_engine(job.train)
    loss = LossSpec.of(job)
    if choice.engine == "torch":
        from crossfade.trainer.model.engines.torch import TorchEngine

        return TorchEngine(model, loss, job.negatives, choice.devices, job.train.compute_dtype)
    if choice.engine == "mxnet":
        from crossfade.trainer.model.engines.mxnet import MXNetEngine

        return MXNetEngine(model, loss, job.negatives, choice.devices)
    from crossfade.trainer.model.engines.cpu import CpuEngine

    return CpuEngine(model, loss, job.negatives)
