"""Cases of losses, scores and negatives for gradient engines, with reference results in float64.

loss, by_query, by_item = gradients_by(CpuEngine(case.model, case.loss_spec, case.spec), case)
assert_close((loss, by_query, by_item), reference(name), 2e-6)
"""

import json
import math
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Any, get_args
from unittest.mock import patch

import numpy as np
from builders import make_interactions, random_rows

from crossfade.kvstore.arrays import FloatArray, IntArray
from crossfade.kvstore.errors import InputError, MissingExtraError
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.config.model_sections import LossKind, NegativesConfig, ScoreKind
from crossfade.trainer.data.schedule import BatchSlice
from crossfade.trainer.model.batches import Batch, make_batch
from crossfade.trainer.model.engines.base import Engine
from crossfade.trainer.model.engines.cpu import CpuEngine
from crossfade.trainer.model.losses import LossSpec
from crossfade.trainer.model.negatives import IN_BATCH_KINDS
from crossfade.trainer.model.spec import ModelSpec, Score

TEMPERATURE = 0.5
MARGIN, NEGATIVE_WEIGHT = 0.3, 1.7
QUERIES, ITEMS, DIM, DRAWS = 6, 9, 3, 4
LOG_Q = np.linspace(-2, 1, ITEMS, dtype=np.float32)


@dataclass(frozen=True)
class Case:
    """A loss, a score and a kind of negatives, in a step with repeated rows, positives as negatives and a zero weight.

    With per-example negatives, those of one example are all its own item.
    """

    loss: LossKind
    score: ScoreKind
    negatives: str
    queries_B: IntArray
    items_B: IntArray
    weight_B: FloatArray
    negatives_N: IntArray
    global_size: int
    partition_sizes: tuple[int, ...] = ()
    num_hard: int | None = None
    log_q: bool = False

    @property
    def model(self) -> ModelSpec:
        tables = TableSpec("customer", QUERIES, DIM, 0.1), TableSpec("track", ITEMS, DIM, 0.1)
        return ModelSpec(*tables, Score.of(self.score, TEMPERATURE))

    @property
    def spec(self) -> NegativesConfig:
        return NegativesConfig(kind=self.negatives, count=DRAWS, num_hard=self.num_hard)

    @property
    def loss_spec(self) -> LossSpec:
        return LossSpec(self.loss, TEMPERATURE, margin=MARGIN, negative_weight=NEGATIVE_WEIGHT)

    @property
    def batch(self) -> Batch:
        interactions = make_interactions(self.queries_B, self.items_B, self.weight_B)
        batch_slice = BatchSlice(interactions, np.arange(len(self.queries_B)), self.global_size, self.partition_sizes)
        uses_N = np.concatenate([self.items_B, self.negatives_N])
        log_q_N = LOG_Q[uses_N] if self.log_q else LOG_Q[:0]
        return make_batch(batch_slice, uses_N, 0, 0, log_q_N, per_example=self.negatives == "per_example")

    def negatives_of(self, example: int) -> list[tuple[int, int | None]]:
        """Return the negatives of an example and, for in-batch ones, the query that each is a positive of."""
        if self.negatives == "per_example":
            return [(row, None) for row in self.negatives_N.reshape(-1, DRAWS)[example]]
        drawn = [(row, None) for row in self.negatives_N]
        if self.negatives in {"shared", "all"}:
            return drawn
        ends = np.cumsum(self.partition_sizes)
        partition = int(np.searchsorted(ends, example, side="right"))
        mates = range(ends[partition] - self.partition_sizes[partition], ends[partition])
        return [*drawn, *((self.items_B[mate], self.queries_B[mate]) for mate in mates)]

    def part(self, examples: slice) -> "Case":
        """Return the case of a worker that has some of the examples, or complete partitions."""
        negatives_N = self.negatives_N
        if self.negatives == "per_example":
            negatives_N = negatives_N.reshape(-1, DRAWS)[examples].ravel()
        return replace(
            self,
            queries_B=self.queries_B[examples],
            items_B=self.items_B[examples],
            weight_B=self.weight_B[examples],
            negatives_N=negatives_N,
            partition_sizes=(len(self.items_B[examples]),) if self.partition_sizes else (),
        )


SIGNS = {"positive": [1] * 6, "negative": [-1] * 6, "mixed": [1, -1, -1, 1, 1, -1]}


def make_case(loss: LossKind, score: ScoreKind, negatives: str, signs: str = "positive", **more: Any) -> Case:
    each_BN = [[3, 3, 7, 1], [4, 8, 8, 4], [2, 2, 2, 2], [0, 5, 1, 1], [7, 0, 3, 8], [1, 4, 0, 7]]
    drawn = {"shared": [3, 8, 2, 3], "mixed": [3, 8, 2, 3], "per_example": each_BN, "in_batch": [], "all": range(ITEMS)}
    return Case(
        loss,
        score,
        negatives,
        queries_B=np.array([0, 5, 2, 2, 0, 3]),
        items_B=np.array([1, 4, 2, 1, 8, 6]),
        weight_B=np.array([1.0, 0.5, 2.0, 0.0, 1.0, 3.0], np.float32) * np.array(SIGNS[signs], np.float32),
        negatives_N=np.array(drawn[negatives], np.int64).ravel(),
        global_size=10,
        partition_sizes=(2, 4) if negatives in IN_BATCH_KINDS else (),
        **more,
    )


SMOOTH: tuple[LossKind, ...] = ("bpr", "logistic", "softmax")
SCORES: dict[LossKind, tuple[ScoreKind, ...]] = {"hinge": ("dot",), "warp": ("euclidean",), "ccl": ("cosine",)}
CASES: dict[str, Case] = {}
for any_loss in get_args(LossKind):
    for names in product(SCORES.get(any_loss, get_args(ScoreKind)), ("shared", "per_example"), SIGNS):
        CASES["-".join([any_loss, *names])] = make_case(any_loss, *names)
    for any_kind in ("in_batch", "mixed"):
        CASES[f"{any_loss}-{any_kind}"] = make_case(any_loss, "cosine", any_kind, "mixed")
    for any_kind in ("shared", "per_example", "mixed") if any_loss != "warp" else ():
        CASES[f"{any_loss}-hard-{any_kind}"] = make_case(any_loss, "cosine", any_kind, "mixed", num_hard=2)
for any_kind in get_args(NegativesConfig.model_fields["kind"].annotation)[1:]:  # auto is one of the others
    CASES[f"softmax-log_q-{any_kind}"] = make_case("softmax", "cosine", any_kind, "mixed", log_q=True)
for any_score in get_args(ScoreKind):
    CASES[f"softmax-{any_score}-all"] = make_case("softmax", any_score, "all")
for tied_loss in SMOOTH:  # A query row of zeros: all its scores are 0, where −log σ(x) by |x| has a kink.
    CASES[f"{tied_loss}-tied"] = replace(make_case(tied_loss, "dot", "per_example", "mixed"), queries_B=np.full(6, 4))
QUERY_TABLE, ITEM_TABLE = random_rows(QUERIES, DIM, seed=1), random_rows(ITEMS, DIM, seed=2)
QUERY_TABLE[4] = 0


def gradients_by(engine: Engine, case: Case) -> tuple[float, FloatArray, FloatArray]:
    """Return the loss of ``case``, and its gradients by complete tables."""
    batch = case.batch
    block = {"customer": QUERY_TABLE[batch.query.rows_A], "track": ITEM_TABLE[batch.item.rows_A]}
    loss, gradients = engine.gradients(batch, block)
    gradients_by_table = []
    for active, name, table_ND in ((batch.query, "customer", QUERY_TABLE), (batch.item, "track", ITEM_TABLE)):
        gradients_by_table.append(np.zeros_like(table_ND))
        gradients_by_table[-1][active.rows_A] = gradients[name]
    return loss, gradients_by_table[0], gradients_by_table[1]


def cpu_result(case: Case) -> tuple[float, FloatArray, FloatArray]:
    return gradients_by(CpuEngine(case.model, case.loss_spec, case.spec), case)


def reference_score(kind: ScoreKind, query_D: FloatArray, item_D: FloatArray) -> float:
    if kind == "euclidean":
        return -sum((query_D - item_D) ** 2) / TEMPERATURE
    lengths = math.sqrt(sum(query_D**2)) * math.sqrt(sum(item_D**2)) if kind == "cosine" else 1.0
    return sum(query_D * item_D) / lengths / TEMPERATURE


def minus_log_sigmoid(x: float) -> float:
    return math.log1p(math.exp(-x))


def reference_loss(case: Case, query_ND: FloatArray, item_ND: FloatArray) -> float:
    """Return the loss of ``case`` over its global size, in Python's floats."""
    total = 0.0
    for example, (query, item) in enumerate(zip(case.queries_B, case.items_B, strict=True)):

        def score(row: int, query: int = query) -> float:
            return reference_score(case.score, query_ND[query], item_ND[row])

        drawn = case.negatives_of(example)
        counted = [row for row, owner in drawn if row != item and owner != query]
        others = sorted((score(row) - (LOG_Q[row] if case.log_q else 0.0) for row in counted), reverse=True)
        count = min(case.num_hard or len(drawn), len(drawn))
        weight = float(case.weight_B[example])
        total += abs(weight) * example_loss(case.loss, score(item), others[:count], count, positive=weight >= 0)
    return total / case.global_size


def example_loss(loss: LossKind, own: float, others: list[float], count: int, *, positive: bool) -> float:
    """Return the loss of one example by its formula; ``others`` are those of its ``count`` negatives that count."""
    margin = MARGIN / TEMPERATURE
    if loss == "logistic":
        pushed = sum(minus_log_sigmoid(-other) for other in others) / count
        return minus_log_sigmoid(own) + pushed if positive else minus_log_sigmoid(-own)
    if loss == "ccl":
        above = sum(max(0.0, other - margin) for other in others) / count
        return 1 / TEMPERATURE - own + NEGATIVE_WEIGHT * above if positive else max(0.0, own - margin)
    if not others:
        return 0.0
    if loss == "softmax":
        probability = math.exp(own) / (math.exp(own) + sum(math.exp(other) for other in others))
        return -math.log(probability if positive else 1 - probability)
    gaps = [other - own if positive else own - other for other in others]
    if loss == "bpr":
        return sum(minus_log_sigmoid(-gap) for gap in gaps) / count
    if loss == "hinge" or not positive:
        return sum(max(0.0, margin + gap) for gap in gaps) / count
    violators = sum(margin + gap > 0 for gap in gaps)
    return math.log(1 + violators * (ITEMS - 1) / count) * max(0.0, margin + max(gaps))


def central_differences(case: Case, query_ND: FloatArray, item_ND: FloatArray) -> tuple[FloatArray, FloatArray]:
    step = 1e-5
    gradients = []
    for table_ND in (query_ND, item_ND):
        gradient_ND = np.zeros_like(table_ND)
        for index in np.ndindex(table_ND.shape):
            middle = table_ND[index]
            table_ND[index] = middle + step
            above = reference_loss(case, query_ND, item_ND)
            table_ND[index] = middle - step
            below = reference_loss(case, query_ND, item_ND)
            table_ND[index] = middle
            gradient_ND[index] = (above - below) / (2 * step)
        gradients.append(gradient_ND)
    return gradients[0], gradients[1]


@lru_cache
def reference(name: str) -> tuple[float, FloatArray, FloatArray]:
    query_ND, item_ND = QUERY_TABLE.astype(np.float64), ITEM_TABLE.astype(np.float64)
    return reference_loss(CASES[name], query_ND, item_ND), *central_differences(CASES[name], query_ND, item_ND)


def assert_close(
    found: tuple[float, FloatArray, FloatArray], expected: tuple[float, FloatArray, FloatArray], tolerance: float
) -> None:
    for found_part, expected_part in zip(found, expected, strict=True):
        np.testing.assert_allclose(found_part, expected_part, rtol=tolerance, atol=tolerance)


def mxnet_results(devices: list[str]) -> dict[str, Any]:
    """Return the results of MXNet's engine on ``devices`` by case. Each engine computes a smaller batch first."""
    from crossfade.trainer.model.engines.mxnet import MXNetEngine

    results = {}
    for name, case in CASES.items():
        engine = MXNetEngine(case.model, case.loss_spec, case.spec, devices)
        gradients_by(engine, case.part(slice(0, 2)))
        loss, *gradients = gradients_by(engine, case)
        results[name] = [loss, *(gradient.tolist() for gradient in gradients)]
    return results


def mxnet_results_with_gpus() -> dict[str, Any]:
    """Return results by case on GPUs, whose part CPU contexts play, with copies from and to pinned memory as for GPUs.

    Also return under ``memory`` the memory that is in use, and under ``error`` what a GPU that is missing leads to.
    """
    from crossfade.kvstore.mxnet.imports import import_mxnet
    from crossfade.trainer.model.engines.mxnet import MXNetEngine

    mx, case = import_mxnet(), CASES["softmax-dot-all"]
    memory = {0: (1, 10), 1: (2, 20)}
    with (
        patch.object(mx, "gpu", mx.cpu),
        patch.multiple(mx.context, num_gpus=lambda: 2, gpu_memory_info=memory.__getitem__),
    ):
        results = mxnet_results(["gpu:1", "gpu:0"])
        engine = MXNetEngine(case.model, case.loss_spec, case.spec, ["gpu:1", "gpu:0"])
        results["memory"] = engine.gpu_memory()
        try:
            MXNetEngine(case.model, case.loss_spec, case.spec, ["gpu:1", "gpu:2"])
        except InputError as error:
            results["error"] = str(error)
    return results


def print_mxnet_results() -> None:
    """Print results of MXNet's engine by devices and case as JSON, or why MXNet is missing. Runs in its own process."""
    from crossfade.trainer.model.engines import mxnet_gradients

    try:
        results: dict[str, Any] = {
            "one": mxnet_results(["cpu"]),
            "three": mxnet_results(["cpu"] * 3),
            "three again": mxnet_results(["cpu"] * 3),
            "gpus": mxnet_results_with_gpus(),
        }
        with patch.multiple(mxnet_gradients, _CPU_TILE=1, _MIN_CPU_ROWS=2):
            results["tiles of two"] = mxnet_results(["cpu"])
        with patch.multiple(mxnet_gradients, _MAX_TILE=1):
            results["tiles of one"] = mxnet_results(["cpu"] * 2)
    except MissingExtraError as error:
        results = {"missing": str(error)}
    print(json.dumps(results))
