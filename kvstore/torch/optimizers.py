"""The lazy row optimizers of ``kvstore/optimizers.py``, as PyTorch operations on the active rows alone.

    optimizer = make_device_optimizer(OptimizerSpec("adagrad"), rows=1_000, dim=64, device=device)
    divergent_A = optimizer.update(weights_ND, rows_A, gradient_AD)
    optimizer.fallback_reason  # why rows on a GPU are updated by separate operations; None if they are not

The formulas, the state, and the meaning of divergence are the same. Results differ in the last bits, since sums are
taken in another order. All arrays are tensors on one device, and no update waits for the device: which rows have
diverged is a tensor, too.

On a GPU, the fused kernel of ``triton_kernels.py`` makes the whole update where it works. That depends on the versions
of Triton, the driver, and the GPU, and on a C compiler, which Triton needs. So the kernel is compiled and compared with
the operations of PyTorch before it updates a table.
"""

from __future__ import annotations

import textwrap
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

from crossfade.kvstore.optimizer_spec import MAX_SQUARE, OptimizerKind, OptimizerSpec, state_dtype, state_shapes
from crossfade.kvstore.torch.device import to_float32

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class DeviceOptimizer:
    """Updates active rows of one table, and holds their optimizer state.

    Attributes:
        state: tensors by name, whose first axis is the rows; as in ``make_optimizer``.
        lr_factor: multiplies the learning rate of updates from now on; the learning rate schedule sets it.
        fused: whether one kernel makes the whole update.
        fallback_reason: why not, if the device is a GPU.
    """

    fused = False

    def __init__(self, spec: OptimizerSpec, rows: int, dim: int, device: torch.device) -> None:
        """Update by ``spec``, with zero state."""
        import torch

        self.state: dict[str, Tensor] = {
            name: torch.zeros(shape, dtype=getattr(torch, state_dtype(name)), device=device)
            for name, shape in state_shapes(spec.kind, rows, dim).items()
        }
        self.lr_factor = 1.0
        self.fallback_reason: str | None = None
        self._spec = spec

    def update(self, weights_ND: Tensor, rows_A: Tensor, gradient_AD: Tensor) -> Tensor:
        """Apply ``gradient_AD`` to rows ``rows_A``, int64 and unique, of ``weights_ND``, in place.

        Returns the rows that have diverged, bool (A,): their gradients or new values are not finite, or the norm of
        both exceeds 1e18. If any has, the table is no longer usable.
        """
        spec = self._spec
        weight_AD = weights_ND.index_select(0, rows_A)
        if spec.weight_decay:
            gradient_AD = gradient_AD.add(weight_AD, alpha=spec.weight_decay)
        gradient_square_A = gradient_AD.square().sum(1)
        direction_AD = self._direction(rows_A, gradient_AD, gradient_square_A)
        weight_AD.sub_(direction_AD, alpha=spec.learning_rate * self.lr_factor)
        square_A = weight_AD.square().sum(1)
        divergent_A = ~(gradient_square_A + square_A <= MAX_SQUARE)
        if spec.max_norm is not None:
            is_clipped_A = (square_A > spec.max_norm**2) & ~divergent_A
            scale_A = (spec.max_norm / square_A.sqrt()).where(is_clipped_A, 1.0)
            weight_AD.mul_(scale_A[:, None])
        weights_ND.index_copy_(0, rows_A, weight_AD)
        return divergent_A

    def _direction(self, rows_A: Tensor, gradient_AD: Tensor, square_A: Tensor) -> Tensor:
        """Update the state of ``rows_A``; return what the learning rate is multiplied by. ``square_A`` is |g|²."""
        epsilon = to_float32(self._spec.epsilon)
        match self._spec.kind:
            case "sgd":
                return gradient_AD
            case "adagrad":
                total_AD = self._add("sum_of_squares", rows_A, gradient_AD.square())
                return gradient_AD / (total_AD.sqrt() + epsilon)
            case "rowwise_adagrad":
                total_A = self._add("sum_of_squares", rows_A, square_A / gradient_AD.shape[1])
                return gradient_AD / (total_A.sqrt() + epsilon)[:, None]
            case "adam":
                return self._adam(rows_A, gradient_AD, epsilon)

    def _adam(self, rows_A: Tensor, gradient_AD: Tensor, epsilon: float) -> Tensor:
        beta1, beta2 = to_float32(self._spec.beta1), to_float32(self._spec.beta2)
        exp_avg_AD = self.state["exp_avg"].index_select(0, rows_A).mul_(beta1).add_(gradient_AD, alpha=1 - beta1)
        exp_avg_sq_AD = self.state["exp_avg_sq"].index_select(0, rows_A).mul_(beta2)
        exp_avg_sq_AD.addcmul_(gradient_AD, gradient_AD, value=1 - beta2)
        self.state["exp_avg"].index_copy_(0, rows_A, exp_avg_AD)
        self.state["exp_avg_sq"].index_copy_(0, rows_A, exp_avg_sq_AD)
        step_A1 = self._add("step", rows_A, 1)[:, None].double()
        correction1_A1, correction2_A1 = (1 - (beta**step_A1).float() for beta in (beta1, beta2))
        root_AD = (exp_avg_sq_AD / correction2_A1).sqrt_()
        return (exp_avg_AD / correction1_A1).div_(root_AD.add_(epsilon))

    def _add(self, name: str, rows_A: Tensor, values: Tensor | int) -> Tensor:
        """Add ``values`` to the state ``name`` of rows; return the sums."""
        total = self.state[name].index_select(0, rows_A) + values
        self.state[name].index_copy_(0, rows_A, total)
        return total


DEVICE_TYPE = "cuda"
"""PyTorch's name of GPUs, including ROCm's."""
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
