"""Losses of single examples by the formulas of ``trainer/model/losses.py``, and their gradients, all in float64.

    loss = loss_of(case, queries_BD, items_ND)          # of numpy's vectors or of PyTorch's
    loss, by_query, by_item = reference_of(case)        # gradients by autograd; without PyTorch, by differences

They are written example by example, with the numbers of Python and scalars of PyTorch, and share nothing with engines.
"""

import importlib.util
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from engine_cases import (
    CASES,
    ITEM_TABLE,
    LOG_Q,
    MARGIN,
    QUERY_TABLE,
    TEMPERATURE,
    TOP_K_TEMPERATURE,
    Case,
    Result,
)

from crossfade.base.arrays import FloatArray
from crossfade.trainer.config.score import ScoreKind

Number = Any
"""A Python number, or a scalar of PyTorch, float64, that autograd follows."""
Vector = Any
"""A vector of numpy or PyTorch, float64."""

HAS_TORCH = importlib.util.find_spec("torch") is not None


def exp(x: Number) -> Number:
    return x.exp() if hasattr(x, "exp") else math.exp(x)


def log(x: Number) -> Number:
    return x.log() if hasattr(x, "log") else math.log(x)


def minus_log_sigmoid(x: Number) -> Number:
    return log(1 + exp(-x))


def score_of(kind: ScoreKind, query_D: Vector, item_D: Vector) -> Number:
    if kind == "euclidean":
        return -((query_D - item_D) ** 2).sum() / TEMPERATURE
    lengths = ((query_D**2).sum() * (item_D**2).sum()) ** 0.5 if kind == "cosine" else 1.0
    return (query_D * item_D).sum() / lengths / TEMPERATURE if lengths > 0 else 0.0


def loss_of(
    case: Case, queries_BD: Sequence[Vector], items_ND: Sequence[Vector], at: tuple[Any, Any] | None = None
) -> Number:
    """Return the loss of ``case`` over its global size, from the vectors of each example's query and of all items.

    What counts as a constant is computed from the vectors ``at``, by default from the same.
    """
    total, (fixed_BD, fixed_ND) = 0.0, at or (queries_BD, items_ND)
    for example, (item, query_D) in enumerate(zip(case.items_B, queries_BD, strict=True)):
        drawn = case.negatives_of(example)
        counted = [row for row, owner in drawn if row != item and owner != case.query_of(example)]
        scores = {row: score_of(case.score, query_D, items_ND[row]) for row in {item, *counted}}
        others = [scores[row] - (float(LOG_Q[row]) if case.log_q else 0.0) for row in counted]
        weight = float(case.weight_B[example])
        loss = example_loss(case, scores[item], others, len(drawn), positive=weight >= 0)
        if case.top_k and weight > 0:
            plain = [float(score_of(case.score, fixed_BD[example], fixed_ND[row])) for row in (item, *counted)]
            weight *= top_k_weight(case.top_k, plain)
        total = total + abs(weight) * loss
    return total / case.global_size


def top_k_weight(k: int, scores: list[float]) -> float:
    """Return 2σ((s − β)/τ) of the first of ``scores``; β is the k-th highest."""
    beta = sorted(scores, reverse=True)[min(k, len(scores)) - 1]
    return 2 / (1 + math.exp(-(scores[0] - beta) * TEMPERATURE / TOP_K_TEMPERATURE))


def example_loss(case: Case, own: Number, others: list[Number], count: int, *, positive: bool) -> Number:
    """Return the loss of one example; ``others`` are the scores of those of its ``count`` negatives that count."""
    loss, margin = case.loss, MARGIN / TEMPERATURE
    if loss == "logistic":
        pushed = sum(minus_log_sigmoid(-other) for other in others) / max(count, 1)
        return minus_log_sigmoid(own) + pushed if positive else minus_log_sigmoid(-own)
    if not others:
        return 0.0
    if loss == "softmax":
        power, powers = exp(own), sum(exp(other) for other in others)
        return -log((power if positive else powers) / (power + powers))
    gaps = [other - own if positive else own - other for other in others]
    if loss == "bpr":
        return sum(minus_log_sigmoid(-gap) for gap in gaps) / count
    if not positive:
        return sum(max(0.0, margin + gap) for gap in gaps) / count
    violators = sum(1 for gap in gaps if margin + gap > 0)
    return math.log(1 + violators * (case.items - 1) / count) * max(0.0, margin + max(gaps))


def autograd(loss: Number, leaves: Mapping[str, Any]) -> tuple[float, dict[str, FloatArray]]:
    """Return ``loss`` as a float, and its gradients by ``leaves``."""
    import torch

    if not isinstance(loss, torch.Tensor):  # a constant
        return loss, {name: np.zeros(leaf.shape) for name, leaf in leaves.items()}
    gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    return loss.item(), {name: gradient.detach().numpy() for name, gradient in zip(leaves, gradients, strict=True)}


def leaves_of(tables: Mapping[str, FloatArray]) -> dict[str, Any]:
    """Return ``tables`` as tensors in float64 that autograd follows."""
    import torch

    return {name: torch.tensor(table, dtype=torch.float64, requires_grad=True) for name, table in tables.items()}


def constants_of(case: Case) -> tuple[FloatArray, FloatArray]:
    """Return the vectors that constants of ``case`` are computed from: the queries of its examples, and all items."""
    return QUERY_TABLE[case.queries_B].astype(np.float64), ITEM_TABLE.astype(np.float64)


def by_autograd(case: Case) -> Result:
    """Return the loss of ``case``, and its gradients by complete tables."""
    leaves = leaves_of({"query": QUERY_TABLE, "item": ITEM_TABLE})
    queries, items = leaves["query"].unbind(), leaves["item"].unbind()
    loss = loss_of(case, [queries[row] for row in case.queries_B], items, constants_of(case))
    loss, gradients = autograd(loss, leaves)
    return loss, gradients["query"], gradients["item"]


def by_differences(case: Case) -> Result:
    """Return what ``by_autograd`` does, by central differences."""
    step, tables = 1e-5, [QUERY_TABLE.astype(np.float64), ITEM_TABLE.astype(np.float64)]

    constants = constants_of(case)

    def loss() -> float:
        return float(loss_of(case, tables[0][case.queries_B], tables[1], constants))

    gradients = []
    for table_ND in tables:
        gradient_ND = np.zeros_like(table_ND)
        for index in np.ndindex(table_ND.shape):
            middle = table_ND[index]
            table_ND[index] = middle + step
            above = loss()
            table_ND[index] = middle - step
            gradient_ND[index] = (above - loss()) / (2 * step)
            table_ND[index] = middle
        gradients.append(gradient_ND)
    return loss(), gradients[0], gradients[1]


def reference_of(case: Case) -> Result:
    """Return the loss of ``case`` and its gradients by complete tables, in float64."""
    return by_autograd(case) if HAS_TORCH else by_differences(case)


@lru_cache
def reference(name: str) -> Result:
    """Return the reference of a case by its name."""
    return reference_of(CASES[name])
