"""Copy rows between the memory of the host and that of a device.

Copies to and from a GPU use page-locked memory of the host, which the GPU reads and writes by itself: from other
memory, the driver copies first, with one thread, and the host waits for it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_CHUNK_BYTES = 1 << 26


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """Copy rows of a step to ``device``, without waiting for it. On "cpu" the tensor may share the array's memory."""
    import torch

    if not array.flags.writeable:
        array = array.copy()  # PyTorch warns about tensors that must not be written
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def copy_table(source: Tensor, target: Tensor) -> None:
    """Copy ``source`` to ``target``, one in the memory of the host, by way of a buffer of bounded size."""
    import torch

    step = max(1, _CHUNK_BYTES // (source.element_size() * math.prod(source.shape[1:])))
    is_pinned = "cuda" in {source.device.type, target.device.type}
    shape = min(step, len(source)), *source.shape[1:]
    buffer = torch.empty(shape, dtype=source.dtype, pin_memory=is_pinned)
    for start in range(0, len(source), step):
        rows = source[start : start + step]
        staged = buffer[: len(rows)].copy_(rows)
        target[start : start + step].copy_(staged)
