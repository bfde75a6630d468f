"""Import PyTorch, an optional package, open its devices, and copy rows to and from them.

Other modules import PyTorch in functions, once a device is open. Copies to and from a GPU use page-locked memory of the
host, which the GPU reads and writes by itself: from other memory, the driver copies first, with one thread, and the
host waits for it.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crossfade.base.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def require_torch() -> None:
    """Check that PyTorch is installed, without the seconds that an import takes.

    Raises:
        MissingExtraError: it is not.
    """
    if importlib.util.find_spec("torch") is None:
        raise MissingExtraError("torch", extra="torch", purpose="training on a GPU")


def import_torch() -> Any:
    """Import PyTorch.

    Raises:
        MissingExtraError: it is not installed.
    """
    require_torch()
    import torch

    return torch


def open_device(name: str) -> torch.device:
    """Return PyTorch's device ``name``, such as "cuda:0" or "cpu", after allocating memory on it.

    Raises:
        MissingExtraError: PyTorch is not installed.
        InputError: there is no such device here, or it is neither a GPU of CUDA or ROCm nor the processor.
    """
    pytorch = import_torch()
    expected = "expected 'cpu', or a GPU such as 'cuda:0'"
    try:
        device: torch.device = pytorch.empty(1, device=name).device
    except (RuntimeError, AssertionError) as error:  # the latter where PyTorch is built without CUDA
        reason, _, _ = str(error).partition("\n")
        raise InputError(f"device '{name}' cannot be used: {reason}; {expected}") from error
    if device.type not in {"cpu", "cuda"}:
        raise InputError(f"device '{name}' cannot hold tables; {expected}")
    return device


@contextmanager
def describe_exhausted_memory() -> Iterator[None]:
    """Turn PyTorch's error about exhausted memory of a device into one with what to change.

    Raises:
        InputError: the memory of a device is exhausted.
    """
    pytorch = import_torch()
    try:
        yield
    except pytorch.OutOfMemoryError as error:
        reason, _, _ = str(error).partition("\n")
        raise InputError(
            f"the memory of the device is exhausted: {reason.rstrip('.')}; lower "
            "train.batch_size or negatives.count, or set train.tables to host"
        ) from error


_CHUNK_BYTES = 1 << 26


def to_float32(value: float) -> float:
    """Round as the kernels of the host do, so that the bias corrections of Adam agree."""
    return float(np.float32(value))


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
