"""The lazy row optimizers of ``kvstore/optimizers.py``, as PyTorch operations on the active rows alone.

    optimizer = DeviceOptimizer(OptimizerSpec("adagrad", learning_rate=0.1), rows=1_000, dim=64, device=device)
    divergent_A = optimizer.update(weights_ND, rows_A, gradient_AD)

The formulas, the state, and the meaning of divergence are the same. Results differ in the last bits, since sums are
taken in another order. All arrays are tensors on one device, and no update waits for the device: which rows have
diverged is a tensor, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from crossfade.kvstore.optimizer_spec import OptimizerSpec, state_dtype, state_shapes

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MAX_SQUARE = 1e36


def to_float32(value: float) -> float:
    """Round as the kernels of the host do, so that the bias corrections of Adam agree."""
    return float(np.float32(value))


class DeviceOptimizer:
    """Updates active rows of one table, and holds their optimizer state.

    Attributes:
        state: tensors by name, whose first axis is the rows; as in ``make_optimizer``.
        lr_factor: multiplies the learning rate of updates from now on; the learning rate schedule sets it.
        fused: whether one kernel makes the whole update (``fused.py``).
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
