"""Gradients by MXNet's autograd, on CPUs and on the GPUs that its package has code for (docs/gpus.md).

    engine = MXNetEngine(model, LossSpec("softmax"), NegativesConfig(kind="shared"), ["gpu:0", "gpu:1"])
    loss, gradients = engine.gradients(batch, vectors)

Each device computes a part of the batch from the vectors that it uses (``parts.py``). Work on several devices overlaps,
and so do copies: MXNet computes in the background, and the first results are waited for when all devices have work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from crossfade.base.arrays import FloatArray
from crossfade.base.errors import InputError
from crossfade.kvstore.mxnet.imports import import_mxnet
from crossfade.trainer.config.model_sections import NegativesConfig
from crossfade.trainer.model.batches import Batch
from crossfade.trainer.model.engines.mxnet_device import MXNetDevice, Queued, in_turns
from crossfade.trainer.model.engines.mxnet_gradients import MXNetGradients, PartArrays
from crossfade.trainer.model.engines.parts import BatchPart, split_batch, sum_rows
from crossfade.trainer.model.losses import LossSpec
from crossfade.trainer.model.negatives import IN_BATCH_KINDS
from crossfade.trainer.model.spec import ModelSpec


class MXNetEngine:
    """Computes gradients by autograd."""

    name = "mxnet"

    def __init__(
        self, model: ModelSpec, loss: LossSpec, negatives: NegativesConfig, devices: Sequence[str] = ("cpu",)
    ) -> None:
        """Prepare to compute on ``devices``: ``cpu``, possibly several times, or GPUs with their number, ``gpu:1``.

        Raises:
            MissingExtraError: MXNet is not installed.
            InputError: MXNet does not find one of the GPUs.
        """
        self._mx = import_mxnet()
        self.devices: Sequence[str] = list(devices)
        self._devices = _open_devices(self._mx, devices)
        self._model = model
        self._in_batch = negatives.kind in IN_BATCH_KINDS
        self._all_softmax = negatives.kind == "all" and loss.kind == "softmax" and negatives.num_hard is None
        self._gradients = MXNetGradients(self._mx, model, loss, negatives)

    def gradients(self, batch: Batch, vectors: Mapping[str, FloatArray]) -> tuple[float, dict[str, FloatArray]]:
        """Compute this worker's part of the mean loss, and the gradients of ``vectors`` (see ``Engine``)."""
        names = self._model.query.name, self._model.item.name
        if len(batch) == 0:
            return 0.0, {name: np.zeros_like(vectors[name]) for name in names}
        query_AD, item_AD = (vectors[name] for name in names)
        parts = split_batch(batch, len(self._devices), in_batch=self._in_batch)
        computations = [
            self._compute(batch, part, device, query_AD, item_AD)
            for part, device in zip(parts, self._devices, strict=False)
        ]
        queued = in_turns(computations)
        losses, by_query, by_item = zip(*([array.asnumpy() for array in arrays] for arrays in queued), strict=True)
        gradients = (
            sum_rows(len(query_AD), [part.query for part in parts], by_query),
            sum_rows(len(item_AD), [part.item for part in parts], by_item),
        )
        return float(sum(loss.sum(dtype=np.float64) for loss in losses)), dict(zip(names, gradients, strict=True))

    def _compute(
        self, batch: Batch, part: BatchPart, device: MXNetDevice, query_AD: FloatArray, item_AD: FloatArray
    ) -> Queued[list[Any]]:
        """Queue all work on a part: from the vectors of the batch to losses and gradients in the host's memory."""
        arrays = PartArrays.upload(device, part, part.query_rows(query_AD), part.item_rows(item_AD))
        shares_scores = self._all_softmax and batch.shares_query_scores
        results = yield from self._gradients.compute(part, arrays, shares_scores=shares_scores)
        return [device.download(f"result {number}", result) for number, result in enumerate(results)]

    def gpu_memory(self) -> tuple[int, int] | None:
        """Return the used and the total bytes of the GPUs together, None on the CPU. Any thread may call it."""
        numbers = [device.context.device_id for device in self._devices if device.is_gpu]
        if not numbers:
            return None
        sizes = [self._mx.context.gpu_memory_info(number) for number in numbers]
        return sum(total - free for free, total in sizes), sum(total for _, total in sizes)


def _open_devices(mx: Any, names: Sequence[str]) -> list[MXNetDevice]:
    """Return the devices of ``names``. Each ``cpu`` is a context of a different number, and thus has its own thread."""
    numbers = [int(name.removeprefix("gpu:")) for name in names if name != "cpu"]
    found = mx.context.num_gpus() if numbers else 0
    if any(number >= found for number in numbers):
        raise InputError(f"train.device is {', '.join(names)}, but the number of GPUs that MXNet finds here is {found}")
    gpus = [MXNetDevice(mx, mx.gpu(number), mx.cpu_pinned(number)) for number in numbers]
    return gpus or [MXNetDevice(mx, mx.cpu(number), mx.cpu(number)) for number in range(len(names))]
