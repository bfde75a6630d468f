"""A table on a device, and its lazy optimizer, as PyTorch operations on the active rows alone.

    table = DeviceTable(shard.arrays, OptimizerSpec("adagrad"), device)
    divergent_A = table.optimizer.update(table.weights_ND, rows_A, gradient_AD)

The formulas, the state, and the meaning of divergence are as in ``kvstore/optimizers.py``. Results differ in the last
bits, since sums are taken in another order. All arrays are tensors on one device, and no update waits for the device:
which rows have diverged is a tensor, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from crossfade.kvstore.checkpoint.format import WEIGHTS
from crossfade.kvstore.memory import release_pages
from crossfade.kvstore.optimizer_spec import (
    MAX_SQUARE,
    OptimizerSpec,
    state_dtype,
    state_shapes,
)
from crossfade.kvstore.torch.device import copy_table, to_float32

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class DeviceOptimizer:
    """Updates active rows of one table, and holds their optimizer state.

    Attributes:
        state: tensors by name, whose first axis is the rows; as in ``make_optimizer``.
        lr_factor: multiplies the learning rate of updates from now on; the learning rate schedule sets it.
    """

    def __init__(self, spec: OptimizerSpec, rows: int, dim: int, device: torch.device) -> None:
        """Update by ``spec``, with zero state."""
        import torch

        self.state: dict[str, Tensor] = {
            name: torch.zeros(shape, dtype=getattr(torch, state_dtype(name)), device=device)
            for name, shape in state_shapes(spec.kind, rows, dim).items()
        }
        self.lr_factor = 1.0
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


class DeviceTable:
    """A table on a device. The memory of the host's arrays for it is released."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]], spec: OptimizerSpec, device: torch.device) -> None:
        """Copy ``arrays``, weights and state, to ``device``, and release their memory."""
        import torch

        rows, dim = arrays[WEIGHTS].shape
        self.weights_ND: Tensor = torch.empty((rows, dim), dtype=torch.float32, device=device)
        self.optimizer = DeviceOptimizer(spec, rows, dim, device)
        self._tensors = {WEIGHTS: self.weights_ND, **self.optimizer.state}
        self._arrays = arrays
        self.bytes = sum(array.nbytes for array in arrays.values())
        for name, tensor in self._tensors.items():
            copy_table(torch.from_numpy(arrays[name]), tensor)
        self.release()

    def download(self) -> None:
        """Copy the rows to the host's arrays."""
        import torch

        for name, tensor in self._tensors.items():
            copy_table(tensor, torch.from_numpy(self._arrays[name]))

    def release(self) -> None:
        """Release the memory of the host's arrays, which then read as zeros."""
        for array in self._arrays.values():
            release_pages(array)
