"""The lazy row optimizers of ``kvstore/optimizers.py`` as one Triton kernel, which reads and writes each row once.

    divergent_A = update_rows(spec, lr, state, weights_ND, rows_A, gradient_AD)

Only ``optimizers.py`` imports this module, once Triton, an optional package, is installed.

A program of the kernel updates a block of active rows. Columns are padded to a power of two, as Triton requires, and
padding is masked. Division and square root are those that round correctly, and a sum over a row is a fixed tree, so
results repeat bit for bit. Only the optimizer's kind, its switches, and the dimension are compiled into the kernel.
What may change from step to step, such as the learning rate and the number of rows, is an argument for which Triton
does not compile another version.
"""

import math
from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from crossfade.kvstore.optimizer_spec import MAX_SQUARE, OptimizerSpec
from crossfade.kvstore.torch.device import to_float32

_BLOCK_VALUES = 1024
"""Values of a table that a program updates: 8 for each of its threads, enough to have many reads under way."""
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}
"""Triton's, for the compiler. Products and sums are not fused, whatever the default, which depends on the version."""


@triton.jit
def _adagrad(sums_pointer, offsets_AD, mask_AD, gradient_AD, epsilon):  # type: ignore[no-untyped-def]
    """Update the state; return what the learning rate is multiplied by. Padding reads 1, so that 0 is not divided."""
    total_AD = tl.load(sums_pointer + offsets_AD, mask=mask_AD, other=1.0) + gradient_AD * gradient_AD
    tl.store(sums_pointer + offsets_AD, total_AD, mask=mask_AD)
    return tl.div_rn(gradient_AD, tl.sqrt_rn(total_AD) + epsilon)


@triton.jit
def _rowwise_adagrad(  # type: ignore[no-untyped-def]
    sums_pointer, rows_A, is_active_A, gradient_AD, gradient_square_A, epsilon, DIM: tl.constexpr
):
    """Update the state; return what the learning rate is multiplied by."""
    total_A = tl.load(sums_pointer + rows_A, mask=is_active_A, other=1.0) + tl.div_rn(gradient_square_A, DIM * 1.0)
    tl.store(sums_pointer + rows_A, total_A, mask=is_active_A)
    divisor_A = tl.sqrt_rn(total_A) + epsilon
    return tl.div_rn(gradient_AD, divisor_A[:, None])


@triton.jit
def _bias_correction(step_A, log_beta):  # type: ignore[no-untyped-def]
    """Return 1 - beta**step. The power is computed in float64 and then rounded, as on the host."""
    return 1.0 - tl.exp(step_A.to(tl.float64) * log_beta).to(tl.float32)


@triton.jit
def _adam(  # type: ignore[no-untyped-def]
    exp_avg_pointer, exp_avg_sq_pointer, step_pointer, rows_A, is_active_A, offsets_AD, mask_AD, gradient_AD, epsilon,
    beta1, beta2, log_beta1, log_beta2,
):  # fmt: skip
    """Update the state; return what the learning rate is multiplied by. Padding reads 1, so that 0 is not divided."""
    step_A = tl.load(step_pointer + rows_A, mask=is_active_A, other=0) + 1
    exp_avg_AD = tl.load(exp_avg_pointer + offsets_AD, mask=mask_AD, other=0.0)
    exp_avg_sq_AD = tl.load(exp_avg_sq_pointer + offsets_AD, mask=mask_AD, other=1.0)
    exp_avg_AD = beta1 * exp_avg_AD + (1.0 - beta1) * gradient_AD
    exp_avg_sq_AD = beta2 * exp_avg_sq_AD + (1.0 - beta2) * gradient_AD * gradient_AD
    tl.store(step_pointer + rows_A, step_A, mask=is_active_A)
    tl.store(exp_avg_pointer + offsets_AD, exp_avg_AD, mask=mask_AD)
    tl.store(exp_avg_sq_pointer + offsets_AD, exp_avg_sq_AD, mask=mask_AD)
    corrected_AD = tl.div_rn(exp_avg_AD, _bias_correction(step_A, log_beta1)[:, None])
    root_AD = tl.sqrt_rn(tl.div_rn(exp_avg_sq_AD, _bias_correction(step_A, log_beta2)[:, None]))
    return tl.div_rn(corrected_AD, root_AD + epsilon)


@triton.jit
def _clip_norm(weight_AD, square_A, is_divergent_A, max_norm):  # type: ignore[no-untyped-def]
    """Scale rows whose norm exceeds ``max_norm`` down to it, but not those that have diverged."""
    is_clipped_A = (square_A > max_norm * max_norm) & (is_divergent_A == 0)
    scale_A = tl.where(is_clipped_A, tl.div_rn(max_norm, tl.sqrt_rn(square_A)), 1.0)
    return weight_AD * scale_A[:, None]


@triton.jit(do_not_specialize=["active_rows"])
def _update_kernel(  # type: ignore[no-untyped-def]
    weights_pointer, rows_pointer, gradient_pointer, divergent_pointer, sums_pointer, exp_avg_pointer,
    exp_avg_sq_pointer, step_pointer, active_rows, lr, decay, epsilon, beta1, beta2, log_beta1, log_beta2, max_norm,
    max_square, KIND: tl.constexpr, HAS_DECAY: tl.constexpr, HAS_MAX_NORM: tl.constexpr, DIM: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Update a block of active rows. Offsets are int64: a table may have more than 2**31 values."""
    active_A = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns_D = tl.arange(0, BLOCK_COLUMNS)
    is_active_A = active_A < active_rows
    mask_AD = is_active_A[:, None] & (columns_D < DIM)[None, :]
    rows_A = tl.load(rows_pointer + active_A, mask=is_active_A, other=0)
    offsets_AD = rows_A[:, None] * DIM + columns_D[None, :]
    gradient_AD = tl.load(gradient_pointer + active_A[:, None] * DIM + columns_D[None, :], mask=mask_AD, other=0.0)
    weight_AD = tl.load(weights_pointer + offsets_AD, mask=mask_AD, other=0.0)
    if HAS_DECAY:
        gradient_AD = gradient_AD + decay * weight_AD
    gradient_square_A = tl.sum(gradient_AD * gradient_AD, axis=1)
    direction_AD = gradient_AD
    if KIND == "adagrad":
        direction_AD = _adagrad(sums_pointer, offsets_AD, mask_AD, gradient_AD, epsilon)
    if KIND == "rowwise_adagrad":
        direction_AD = _rowwise_adagrad(sums_pointer, rows_A, is_active_A, gradient_AD, gradient_square_A, epsilon, DIM)
    if KIND == "adam":
        direction_AD = _adam(
            exp_avg_pointer, exp_avg_sq_pointer, step_pointer, rows_A, is_active_A, offsets_AD, mask_AD, gradient_AD,
            epsilon, beta1, beta2, log_beta1, log_beta2,
        )  # fmt: skip
    weight_AD = weight_AD - lr * direction_AD
    square_A = tl.sum(weight_AD * weight_AD, axis=1)
    is_divergent_A = tl.where(gradient_square_A + square_A <= max_square, 0, 1)  # 1 for NaN, too
    if HAS_MAX_NORM:
        weight_AD = _clip_norm(weight_AD, square_A, is_divergent_A, max_norm)
    tl.store(weights_pointer + offsets_AD, weight_AD, mask=mask_AD)
    tl.store(divergent_pointer + active_A, is_divergent_A.to(tl.int8), mask=is_active_A)


def block_shape(dim: int) -> tuple[int, int]:
    """Return the rows and columns of the block that a program updates, powers of two."""
    columns = triton.next_power_of_2(dim)
    return max(1, _BLOCK_VALUES // columns), columns


def _scalars(spec: OptimizerSpec, lr: float) -> list[float]:
    """Return the arguments of the kernel from ``lr`` to ``max_square``, rounded as the kernels of the host do.

    All are of type float: for the integer 1, Triton would compile another version of the kernel.
    """
    decays = to_float32(spec.beta1), to_float32(spec.beta2)
    logs = (math.log(beta) if beta else -math.inf for beta in decays)
    max_norm = 0.0 if spec.max_norm is None else spec.max_norm
    return [*map(to_float32, (lr, spec.weight_decay, spec.epsilon, *decays, *logs, max_norm, MAX_SQUARE))]


def update_rows(
    spec: OptimizerSpec,
    lr: float,
    state: Mapping[str, Tensor],
    weights_ND: Tensor,
    rows_A: Tensor,
    gradient_AD: Tensor,
) -> Tensor:
    """Update rows as ``DeviceOptimizer.update`` does, by ``spec`` but at the learning rate ``lr``."""
    active_rows, dim = gradient_AD.shape
    divergent_A = torch.empty(active_rows, dtype=torch.int8, device=weights_ND.device)
    if active_rows:
        rows, columns = block_shape(dim)
        names = "sum_of_squares", "exp_avg", "exp_avg_sq", "step"
        with torch.cuda.device_of(weights_ND):  # Triton starts kernels on the current device
            _update_kernel[(triton.cdiv(active_rows, rows),)](
                weights_ND,
                rows_A.contiguous(),
                gradient_AD.contiguous(),
                divergent_A,
                *map(state.get, names),
                active_rows,
                *_scalars(spec, lr),
                KIND=spec.kind,
                HAS_DECAY=bool(spec.weight_decay),
                HAS_MAX_NORM=spec.max_norm is not None,
                DIM=dim,
                BLOCK_ROWS=rows,
                BLOCK_COLUMNS=columns,
                **OPTIONS,
            )
    return divergent_A.view(torch.bool)
