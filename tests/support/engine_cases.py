"""Cases of losses, scores and negatives for gradient engines; ``loss_formulas.py`` has their results in float64.

found = gradients_by(CpuEngine(*case.parts), case)
assert_close(found, reference(name), 2e-6)
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, get_args

import numpy as np
from builders import make_interactions, random_rows

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.config.score import ScoreKind
from crossfade.trainer.config.sections import LossKind, NegativesConfig
from crossfade.trainer.data.query_history import HistoryWindows
from crossfade.trainer.data.schedule import BatchSlice
from crossfade.trainer.model.batches import Batch, make_batch
from crossfade.trainer.model.engines.cpu import CpuEngine
from crossfade.trainer.model.engines.engine import Engine
from crossfade.trainer.model.losses import LossSpec
from crossfade.trainer.model.negatives import IN_BATCH_KINDS
from crossfade.trainer.model.spec import ModelSpec, Score

TEMPERATURE = 0.5
MARGIN, TOP_K_TEMPERATURE = 0.3, 0.4
QUERIES, ITEMS, DIM, DRAWS = 6, 9, 3, 4
LOG_Q = np.linspace(-2, 1, ITEMS, dtype=np.float32)
Result = tuple[float, FloatArray, FloatArray]
"""A loss, and its gradients by the complete tables of queries and items."""


@dataclass(frozen=True)
class Case:
    """A loss, a score and a kind of negatives, in a step with repeated rows, positives as negatives and a zero weight.

    With per-example negatives, those of one example are all its own item. ``context_NK`` and ``history`` are those of
    the interactions.
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
    log_q: bool = False
    items: int = ITEMS
    top_k: int | None = None
    context_NK: IntArray | None = None
    history: HistoryWindows | None = None

    @property
    def model(self) -> ModelSpec:
        tables = TableSpec("customer", QUERIES, DIM, 0.1), TableSpec("track", self.items, DIM, 0.1)
        return ModelSpec(*tables, Score.of(self.score, TEMPERATURE))

    @property
    def spec(self) -> NegativesConfig:
        return NegativesConfig(kind=self.negatives, count=DRAWS)

    @property
    def loss_spec(self) -> LossSpec:
        return LossSpec(self.loss, TEMPERATURE, MARGIN, top_k=self.top_k, top_k_temperature=TOP_K_TEMPERATURE)

    @property
    def parts(self) -> tuple[ModelSpec, LossSpec, NegativesConfig]:
        """What its engine is made of."""
        return self.model, self.loss_spec, self.spec

    @property
    def batch(self) -> Batch:
        interactions = make_interactions(self.queries_B, self.items_B, self.weight_B)
        interactions = replace(interactions, context_NK=self.context_NK, history=self.history)
        batch_slice = BatchSlice(interactions, np.arange(len(self.queries_B)), self.global_size, self.partition_sizes)
        uses_N = np.concatenate([self.items_B, self.negatives_N])
        log_q_N = LOG_Q[uses_N] if self.log_q else LOG_Q[:0]
        return make_batch(batch_slice, uses_N, 0, 0, log_q_N, per_example=self.negatives == "per_example")

    def query_of(self, example: int) -> tuple[int, ...]:
        """Return the query of an example, with its context."""
        return int(self.queries_B[example]), *([] if self.context_NK is None else self.context_NK[example].tolist())

    def negatives_of(self, example: int) -> list[tuple[int, tuple[int, ...] | None]]:
        """Return the negatives of an example and, for in-batch ones, the query that each is a positive of."""
        if self.negatives == "per_example":
            return [(row, None) for row in self.negatives_N.reshape(-1, DRAWS)[example]]
        drawn = [(row, None) for row in self.negatives_N]
        if self.negatives in {"shared", "all"}:
            return drawn
        ends = np.cumsum(self.partition_sizes)
        partition = int(np.searchsorted(ends, example, side="right"))
        mates = range(ends[partition] - self.partition_sizes[partition], ends[partition])
        return [*drawn, *((self.items_B[mate], self.query_of(mate)) for mate in mates)]

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


def make_case(
    loss: LossKind, score: ScoreKind, negatives: str, signs: str = "positive", items: int = ITEMS, **more: Any
) -> Case:
    each_BN = [[3, 3, 7, 1], [4, 8, 8, 4], [2, 2, 2, 2], [0, 5, 1, 1], [7, 0, 3, 8], [1, 4, 0, 7]]
    drawn = {"shared": [3, 8, 2, 3], "mixed": [3, 8, 2, 3], "per_example": each_BN, "in_batch": [], "all": range(items)}
    values: dict[str, Any] = {
        "queries_B": np.array([0, 5, 2, 2, 0, 3]),
        "items_B": np.array([1, 4, 2, 1, 8, 6]) % items,
        "weight_B": np.array([1.0, 0.5, 2.0, 0.0, 1.0, 3.0], np.float32) * np.array(SIGNS[signs], np.float32),
        "negatives_N": np.array(drawn[negatives], np.int64).ravel() % items,
        "global_size": 10,
        "partition_sizes": (2, 4) if negatives in IN_BATCH_KINDS else (),
        "items": items,
    }
    return Case(loss, score, negatives, **(values | more))


SMOOTH: tuple[LossKind, ...] = ("bpr", "logistic", "softmax")
KINDS: tuple[str, ...] = get_args(NegativesConfig.model_fields["kind"].annotation)[1:]
"""Kinds of negatives; auto is one of the others."""
LOSSES: tuple[LossKind, ...] = get_args(LossKind)
SCORES: tuple[ScoreKind, ...] = get_args(ScoreKind)


def score_of(loss: LossKind, number: int) -> ScoreKind:
    """Return a score for ``loss``, which ``number`` rotates."""
    return SCORES[(LOSSES.index(loss) + number) % len(SCORES)]


# Pairwise: every loss with every kind of negatives, and every score with every loss and with every kind.
CASES: dict[str, Case] = {}
for any_loss, (any_number, any_kind) in product(LOSSES, enumerate(KINDS)):
    any_score = score_of(any_loss, any_number)
    CASES[f"{any_loss}-{any_score}-{any_kind}-mixed"] = make_case(any_loss, any_score, any_kind, "mixed")
ONE_SIGN = list(enumerate(product(("shared", "per_example"), ("positive", "negative"))))
for any_loss, (any_number, (any_kind, sign)) in product(LOSSES, ONE_SIGN):
    any_score = score_of(any_loss, any_number)
    CASES[f"{any_loss}-{any_score}-{any_kind}-{sign}"] = make_case(any_loss, any_score, any_kind, sign)
for any_kind in KINDS:
    CASES[f"softmax-log_q-{any_kind}"] = make_case("softmax", "cosine", any_kind, "mixed", log_q=True)
for any_score in SCORES:  # Queries are scored once, as in a softmax with weights of one sign.
    CASES[f"softmax-{any_score}-all"] = make_case("softmax", any_score, "all")
CASES["softmax-top-2-mixed"] = make_case("softmax", "cosine", "all", "mixed", top_k=2)
for any_score in SCORES:
    CASES[f"softmax-top-3-{any_score}-all"] = make_case("softmax", any_score, "all", top_k=3)
for tied_loss in SMOOTH:  # A query row of zeros: all its scores are 0, where −log σ(x) by |x| has a kink.
    CASES[f"{tied_loss}-tied"] = replace(make_case(tied_loss, "dot", "per_example", "mixed"), queries_B=np.full(6, 4))
QUERY_TABLE, ITEM_TABLE = random_rows(QUERIES, DIM, seed=1), random_rows(ITEMS, DIM, seed=2)
QUERY_TABLE[4] = 0


def vectors_of(batch: Batch) -> dict[str, FloatArray]:
    """Return the rows of both tables that ``batch`` uses."""
    return {"customer": QUERY_TABLE[batch.query.rows_A], "track": ITEM_TABLE[batch.item.rows_A]}


def by_table(batch: Batch, loss: float, gradients: Mapping[str, FloatArray]) -> Result:
    """Return a loss with gradients by complete tables, from those of active rows."""
    query_ND, item_ND = np.zeros_like(QUERY_TABLE), np.zeros_like(ITEM_TABLE)
    query_ND[batch.query.rows_A], item_ND[batch.item.rows_A] = gradients["customer"], gradients["track"]
    return loss, query_ND, item_ND


def gradients_by(engine: Engine, case: Case) -> Result:
    """Return the loss of ``case``, and its gradients by complete tables."""
    batch = case.batch
    return by_table(batch, *engine.gradients(batch, vectors_of(batch)))


def cpu_result(case: Case) -> Result:
    return gradients_by(CpuEngine(*case.parts), case)


def assert_close(found: Result, expected: Result, tolerance: float) -> None:
    for found_part, expected_part in zip(found, expected, strict=True):
        np.testing.assert_allclose(found_part, expected_part, rtol=tolerance, atol=tolerance)
