"""Hyperparameters and memory of the lazy optimizers (``optimizers.py``), without their compiled kernels.

Configuration, planning, and the scheduler import this module, which spares them the import of numba.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

OptimizerKind = Literal["sgd", "adagrad", "rowwise_adagrad", "adam"]
KINDS: tuple[OptimizerKind, ...] = get_args(OptimizerKind)
MAX_SQUARE = 1e36
"""Squared norm of a gradient and the new row together from which on the row has diverged."""


@dataclass(frozen=True)
class OptimizerSpec:
    """Hyperparameters of an optimizer: plain values, so that servers and checkpoints store it as JSON.

    ``epsilon`` is added to the root of the second moment; ``beta1`` and ``beta2`` are Adam's. After an update, a row
    whose Euclidean norm exceeds ``max_norm`` is scaled down to it; None disables that.
    """

    kind: OptimizerKind = "adagrad"
    learning_rate: float = 0.1
    weight_decay: float = 0.0
    epsilon: float = 1e-8
    beta1: float = 0.9
    beta2: float = 0.999
    max_norm: float | None = None


def state_shapes(kind: OptimizerKind, rows: int, dim: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the state arrays of a table by name; ``optimizers.make_optimizer`` describes them."""
    by_row: tuple[int, ...] = (rows,)
    by_value: tuple[int, ...] = (rows, dim)
    shapes_of: dict[OptimizerKind, dict[str, tuple[int, ...]]] = {
        "sgd": {},
        "adagrad": {"sum_of_squares": by_value},
        "rowwise_adagrad": {"sum_of_squares": by_row},
        "adam": {"exp_avg": by_value, "exp_avg_sq": by_value, "step": by_row},
    }
    return shapes_of[kind]


def state_dtype(name: str) -> str:
    """Return the type of the values of a state array."""
    return "int32" if name == "step" else "float32"


def state_bytes_per_row(kind: OptimizerKind, dim: int) -> int:
    """Return the bytes of optimizer state that one row of ``dim`` columns takes."""
    return {"sgd": 0, "adagrad": 4 * dim, "rowwise_adagrad": 4, "adam": 8 * dim + 4}[kind]
