"""The seam between the loop and whoever computes gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from kvstore.arrays import FloatArray
from trainer.config.schema import JobConfig
from trainer.model.batches import Batch
from trainer.model.losses import LossSpec
from trainer.model.spec import ModelSpec


class Engine(Protocol):
    """Computes gradients on the compact block of active rows, at a cost that no table's size enters."""

    def gradients(self, batch: Batch, block: Mapping[str, FloatArray]) -> tuple[float, dict[str, FloatArray]]:
        """This worker's part of the mean loss over the global batch, and its gradient.

        ``block`` has the active rows of each table, float32 (A, D), in the order of the batch's ``rows_A``; so have
        the gradients. Summed over the workers both are those of Σ_b |w_b|·loss_b / global_size, where loss_b is that of
        the opposite statement if w_b < 0 (see ``trainer/model/losses.py``). An empty batch gives 0 and gradients of no rows.
        """

    def gpu_memory(self) -> tuple[int, int] | None:
        """Used and all bytes of the GPU that it computes on; None where that is the CPU. For any thread to ask."""


def make_engine(job: JobConfig, model: ModelSpec) -> Engine:
    """The engine that ``job`` names.

    Raises:
        MissingExtraError: it is ``mxnet``, which is not installed.
        InputError: it is on a GPU that is not there.
    """
    if job.train.engine == "mxnet":
        from trainer.model.engines.mxnet import MXNetEngine

        return MXNetEngine(model, LossSpec.of(job), job.resolved_negatives(model.item.rows), job.train.device)
    from trainer.model.engines.cpu import CpuEngine

    return CpuEngine(model, LossSpec.of(job), job.resolved_negatives(model.item.rows))
