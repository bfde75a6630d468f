"""Import PyTorch, an optional package, and open its devices. Other modules import it in functions, once one is open."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from crossfade.base.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    import torch


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
            "train.device_memory_gib, train.batch_size or negatives.count, or set train.tables to host"
        ) from error
