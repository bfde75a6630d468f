"""Choose how rows on a device are updated: on a GPU by the fused kernel of ``triton_kernels.py``, where it works.

    optimizer = make_device_optimizer(OptimizerSpec("adagrad"), rows=1_000, dim=64, device=device)
    optimizer.fallback_reason  # why rows on a GPU are updated by separate operations; None if they are not

Whether the kernel works depends on the versions of Triton, the driver, and the GPU, and on a C compiler, which Triton
needs. So it is compiled and compared with the operations of PyTorch before it updates a table.
"""

from __future__ import annotations

import textwrap
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

from crossfade.kvstore.optimizer_spec import OptimizerKind, OptimizerSpec
from crossfade.kvstore.torch.optimizers import DeviceOptimizer

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DEVICE_TYPE = "cuda"
"""PyTorch's name of GPUs, those of ROCm included."""
MAX_DIM = 1024
"""Columns of a table up to which a program of the kernel holds a row in registers."""
_CHECKED_ROWS, _CHECKED_ACTIVE, _CHECKED_STEPS = 400, 301, 3


class FusedOptimizer(DeviceOptimizer):
    """Updates rows as ``DeviceOptimizer`` does, but reads and writes each of them once."""

    fused = True

    def update(self, weights_ND: Tensor, rows_A: Tensor, gradient_AD: Tensor) -> Tensor:
        """Apply ``gradient_AD`` as ``DeviceOptimizer`` does."""
        from crossfade.kvstore.torch.triton_kernels import update_rows

        lr = self._spec.learning_rate * self.lr_factor
        return update_rows(self._spec, lr, self.state, weights_ND, rows_A, gradient_AD)


def make_device_optimizer(spec: OptimizerSpec, rows: int, dim: int, device: torch.device) -> DeviceOptimizer:
    """Create an optimizer with zero state, the fused one if ``device`` is a GPU on which it works."""
    if device.type != DEVICE_TYPE:
        return DeviceOptimizer(spec, rows, dim, device)
    reason = find_fault(spec.kind, bool(spec.weight_decay), spec.max_norm is not None, dim, device)
    if reason is None:
        return FusedOptimizer(spec, rows, dim, device)
    optimizer = DeviceOptimizer(spec, rows, dim, device)
    optimizer.fallback_reason = reason
    return optimizer


@cache
def find_fault(kind: OptimizerKind, has_decay: bool, has_max_norm: bool, dim: int, device: torch.device) -> str | None:
    """Return why the fused kernel cannot be used for such tables on ``device``, or None; compile and run it for that.

    A process does so once for each version of the kernel that its tables need.
    """
    if dim > MAX_DIM:
        return f"it is for up to {MAX_DIM:,} columns, not {dim:,}"
    if find_spec("triton") is None:
        return "Triton is not installed"
    decay, max_norm = 0.01 if has_decay else 0.0, 1.0 if has_max_norm else None
    # With a smaller epsilon, a gradient close to 0 would be divided by its root, and its last bits would matter.
    spec = OptimizerSpec(kind, learning_rate=0.1, weight_decay=decay, epsilon=1e-3, max_norm=max_norm)
    try:
        return _find_difference(spec, dim, device)
    except Exception as error:  # of the compiler, the linker, the driver, or another version of Triton
        return textwrap.shorten(f"{type(error).__name__}: {error}", 300)


def _find_difference(spec: OptimizerSpec, dim: int, device: torch.device) -> str | None:
    """Return in what the fused kernel differs from the operations of PyTorch on random rows, or None."""
    import torch

    generator = torch.Generator().manual_seed(1)
    optimizers = [make(spec, _CHECKED_ROWS, dim, device) for make in (DeviceOptimizer, FusedOptimizer)]
    norms_N1 = torch.linspace(0.0, 2.0, _CHECKED_ROWS)[:, None]  # max_norm clips some of the rows
    start_ND = torch.randn((_CHECKED_ROWS, dim), generator=generator) * norms_N1 / dim**0.5
    weights = [start_ND.to(device, copy=True) for _ in optimizers]
    for step in range(_CHECKED_STEPS):
        rows_A = torch.randperm(_CHECKED_ROWS, generator=generator)[:_CHECKED_ACTIVE].sort().values.to(device)
        gradient_AD = torch.randn((_CHECKED_ACTIVE, dim), generator=generator) / dim**0.5
        gradient_AD[5] = 0.0
        gradient_AD[50, 0], gradient_AD[150, -1], gradient_AD[-1, 0] = 1e30, torch.nan, -torch.inf
        divergent = []
        for optimizer, weights_ND in zip(optimizers, weights, strict=True):
            optimizer.lr_factor = 1 / (1 + step)
            divergent.append(optimizer.update(weights_ND, rows_A, gradient_AD.to(device)))
        if not torch.equal(*divergent):
            return "it does not find the same rows divergent as PyTorch's operations"
    first, second = ({"weights": w_ND, **o.state} for w_ND, o in zip(weights, optimizers, strict=True))
    for name, expected in first.items():
        if not torch.allclose(second[name], expected, rtol=1e-4, atol=1e-5, equal_nan=True):
            return f"its results ({name}) differ from those of PyTorch's operations"
    return None
