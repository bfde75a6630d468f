"""Gradients by PyTorch, on CPUs and on GPUs from NVIDIA's Turing on (docs/gpus.md).

    engine = TorchEngine(model, LossSpec("softmax"), NegativesConfig(kind="shared"), ["gpu:0", "gpu:1"])
    loss, gradients = engine.gradients(batch, vectors)

Each device computes a part of the batch from the vectors that it uses (``parts.py``), so tables may be anywhere. Work
on several devices overlaps: all parts are queued before the first result is fetched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from crossfade.base.arrays import FloatArray
from crossfade.kvstore.jit import get_num_threads
from crossfade.kvstore.torch.imports import describe_exhausted_memory, import_torch
from crossfade.trainer.config.model_sections import NegativesConfig
from crossfade.trainer.model.batches import Batch
from crossfade.trainer.model.engines.parts import BatchPart, split_batch, sum_rows
from crossfade.trainer.model.engines.torch_gradients import PartTensors, TorchGradients
from crossfade.trainer.model.losses import LossSpec
from crossfade.trainer.model.negatives import IN_BATCH_KINDS
from crossfade.trainer.model.spec import ModelSpec


class TorchEngine:
    """Computes gradients with PyTorch."""

    name = "torch"

    def __init__(
        self,
        model: ModelSpec,
        loss: LossSpec,
        negatives: NegativesConfig,
        devices: Sequence[str] = ("cpu",),
        compute_dtype: str = "float32",
    ) -> None:
        """Prepare to compute on ``devices``, such as ``cpu`` or ``gpu:1``, as ``train.device`` names them.

        Raises:
            MissingExtraError: PyTorch is not installed.
        """
        torch = import_torch()
        torch.set_num_threads(get_num_threads())
        torch.set_float32_matmul_precision("highest")  # some containers set another one, which rounds to 10 bits
        self.devices: Sequence[str] = list(devices)
        self._torch = torch
        self._targets = [torch.device(torch_device(name)) for name in devices]
        self._model = model
        self._in_batch = negatives.kind in IN_BATCH_KINDS
        self._all_softmax = negatives.kind == "all" and loss.kind == "softmax" and negatives.num_hard is None
        self._gradients = TorchGradients(torch, model, loss, negatives, compute_dtype)

    def gradients(self, batch: Batch, vectors: Mapping[str, FloatArray]) -> tuple[float, dict[str, FloatArray]]:
        """Compute this worker's part of the mean loss, and the gradients of ``vectors`` (see ``Engine``)."""
        names = self._model.query.name, self._model.item.name
        if len(batch) == 0:
            return 0.0, {name: np.zeros_like(vectors[name]) for name in names}
        parts = split_batch(batch, len(self._targets), in_batch=self._in_batch)
        query_AD, item_AD = (vectors[name] for name in names)
        results = []
        with describe_exhausted_memory():
            for part, target in zip(parts, self._targets, strict=False):
                rows = part.query_rows(query_AD), part.item_rows(item_AD)
                results.append(self.compute(batch, part, *(self._upload(rows_AD, target) for rows_AD in rows)))
            losses, by_query, by_item = ([part.cpu() for part in of_parts] for of_parts in zip(*results, strict=True))
        gradients = (
            sum_rows(len(query_AD), [part.query for part in parts], [rows.numpy() for rows in by_query]),
            sum_rows(len(item_AD), [part.item for part in parts], [rows.numpy() for rows in by_item]),
        )
        return float(sum(losses)), dict(zip(names, gradients, strict=True))

    def compute(self, batch: Batch, part: BatchPart, query_AD: Any, item_AD: Any) -> tuple[Any, Any, Any]:
        """Compute the loss and the gradients of a part of ``batch`` on the device of its rows, without waiting.

        Args:
            batch: the batch, which has examples.
            part: the part.
            query_AD: vectors of the part's queries, a tensor.
            item_AD: vectors of the part's items, likewise.

        Returns:
            The loss, a float64 scalar, and the gradients of both sides, all of them tensors.
        """
        with self._torch.no_grad():
            tensors = PartTensors.of(self._torch, part, query_AD.device)
            shares_scores = self._all_softmax and batch.shares_query_scores
            return self._gradients.compute(part, tensors, query_AD, item_AD, shares_scores=shares_scores)

    def complete(self, batch: Batch) -> BatchPart:
        """Return ``batch``, which has examples, as the only part."""
        return split_batch(batch, 1, in_batch=self._in_batch)[0]

    def _upload(self, rows_AD: FloatArray, target: Any) -> Any:
        rows = self._torch.from_numpy(np.ascontiguousarray(rows_AD))
        return rows if target.type == "cpu" else rows.pin_memory().to(target, non_blocking=True)

    def gpu_memory(self) -> tuple[int, int] | None:
        """Return the used and the total bytes of the GPUs together, None on the CPU. Any thread may call it."""
        gpus = [target for target in self._targets if target.type == "cuda"]
        if not gpus:
            return None
        sizes = [self._torch.cuda.mem_get_info(target) for target in gpus]
        return sum(total - free for free, total in sizes), sum(total for _, total in sizes)


def torch_device(name: str) -> str:
    """Return PyTorch's name of a device of ``train.device``, such as ``cuda:1`` for ``gpu:1``."""
    kind, _, number = name.partition(":")
    return "cpu" if kind == "cpu" else f"cuda:{number or 0}"
