"""Softmax over pools of many negatives: tiles and chunks change only rounding, and threads change no bit.

``test_engine_contract.py`` compares losses and gradients with formulas in float64.
"""

from dataclasses import dataclass, replace

import numba
import numpy as np
import pytest
from builders import make_interactions

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.config.score import ScoreKind
from crossfade.trainer.config.sections import NegativesConfig
from crossfade.trainer.data.schedule import BatchSlice
from crossfade.trainer.model.batches import Batch, make_batch
from crossfade.trainer.model.engines import cpu
from crossfade.trainer.model.engines.cpu import CpuEngine
from crossfade.trainer.model.losses import LossSpec
from crossfade.trainer.model.softmax_kernels import store_powers
from crossfade.trainer.model.spec import ModelSpec, Score

pytestmark = pytest.mark.numbers

TEMPERATURE, TOP_K_TEMPERATURE, QUERIES, ITEMS, DIM = 0.5, 0.3, 70, 200, 20
Result = tuple[float, FloatArray, FloatArray]


@dataclass(frozen=True)
class Case:
    """A batch with repeated queries and items; in-batch negatives come from partitions, one of a single example."""

    kind: str
    score: ScoreKind
    drawn_N: IntArray
    sizes: tuple[int, ...]
    weight_B: FloatArray
    log_q: bool
    top_k: int | None = None
    seed: int = 1

    @property
    def examples(self) -> int:
        return len(self.weight_B)

    def batch(self) -> Batch:
        rng = np.random.default_rng(self.seed)
        queries_B = rng.integers(0, QUERIES, self.examples)
        items_B = np.minimum(rng.geometric(0.03, self.examples), ITEMS) - 1
        interactions = make_interactions(queries_B, items_B, self.weight_B)
        uses_N = np.concatenate([items_B, self.drawn_N])
        log_q_N = np.sin(uses_N).astype(np.float32) if self.log_q else np.empty(0, np.float32)
        return make_batch(BatchSlice(interactions, np.arange(self.examples), 400, self.sizes), uses_N, 0, 0, log_q_N)

    def vectors(self, batch: Batch) -> dict[str, FloatArray]:
        rng = np.random.default_rng(self.seed + 1)
        sides = (("customer", batch.query), ("track", batch.item))
        return {name: rng.normal(size=(len(rows.rows_A), DIM)).astype(np.float32) for name, rows in sides}

    def engine(self) -> CpuEngine:
        tables = TableSpec("customer", QUERIES, DIM, 0.1), TableSpec("track", ITEMS, DIM, 0.1)
        negatives = NegativesConfig(kind=self.kind, count=max(len(self.drawn_N), 1))
        model = ModelSpec(*tables, Score.of(self.score, TEMPERATURE))
        loss = LossSpec(
            "softmax",
            TEMPERATURE,
            top_k=self.top_k,
            top_k_temperature=TOP_K_TEMPERATURE,
        )
        return CpuEngine(model, loss, negatives)

    def result(self) -> Result:
        batch = self.batch()
        loss, gradients = self.engine().gradients(batch, self.vectors(batch))
        return loss, gradients["customer"], gradients["track"]


def make_case(kind: str, score: ScoreKind, *, drawn: int, weights: list[float], log_q: bool) -> Case:
    rng = np.random.default_rng(5)
    drawn_N = np.arange(ITEMS) if kind == "all" else rng.integers(0, ITEMS, drawn)
    sizes = (100, 1, 149) if kind in {"in_batch", "mixed"} else ()
    return Case(kind, score, drawn_N, sizes, rng.choice(weights, 250).astype(np.float32), log_q)


CASES = {
    "in batch": make_case("in_batch", "cosine", drawn=0, weights=[1, 2], log_q=True),
    "in batch, negative feedback": make_case("in_batch", "dot", drawn=0, weights=[1, 0, -1], log_q=True),
    "mixed": make_case("mixed", "cosine", drawn=77, weights=[1, 0.5], log_q=True),
    "mixed, euclidean": make_case("mixed", "euclidean", drawn=64, weights=[1, -0.5], log_q=False),
    "shared": make_case("shared", "dot", drawn=128, weights=[1], log_q=False),
    "shared, one negative": make_case("shared", "cosine", drawn=1, weights=[1, -1], log_q=False),
    "all": make_case("all", "cosine", drawn=0, weights=[1, 0.5, 0], log_q=False),
    "all, euclidean": make_case("all", "euclidean", drawn=0, weights=[1, 0.5], log_q=False),
}
CASES |= {
    "all, negative feedback, top 20": replace(
        make_case("all", "cosine", drawn=0, weights=[1, -1], log_q=False), top_k=20
    ),
    "all, top 20": replace(CASES["all"], top_k=20),
    "all, top 100": replace(CASES["all"], top_k=100),
    "all, more than there are": replace(CASES["all"], top_k=1000),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@each_case
@pytest.mark.parametrize("tile", [1, 777, 5000])
def test_tiles_and_chunks_change_only_rounding(case: Case, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = case.result()
    monkeypatch.setattr(cpu, "_TILE_SCORES", tile)
    monkeypatch.setattr(cpu, "_MIN_TILE", 3)
    monkeypatch.setattr(cpu, "_CHUNK_EXAMPLES", 37)
    monkeypatch.setattr(cpu, "_CHUNK_QUERIES", 11)
    for found_part, expected_part in zip(case.result(), expected, strict=True):
        np.testing.assert_allclose(found_part, expected_part, rtol=2e-5, atol=2e-6 * np.abs(expected_part).max())


@each_case
def test_number_of_threads_changes_no_bit(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_CHUNK_EXAMPLES", 16)
    monkeypatch.setattr(cpu, "_CHUNK_QUERIES", 8)
    expected = case.result()
    all_threads = numba.get_num_threads()
    for threads in (1, 3, 8):
        monkeypatch.setattr(cpu, "get_num_threads", lambda threads=threads: threads)
        numba.set_num_threads(min(threads, all_threads))
        try:
            found = case.result()
        finally:
            numba.set_num_threads(all_threads)
        for found_part, expected_part in zip(found, expected, strict=True):
            np.testing.assert_array_equal(found_part, expected_part)


@pytest.mark.parametrize("count", [1, 16, 63, 64, 20_001])
def test_powers_are_accurate_to_two_ulp(count: int) -> None:
    # The row has dot products: a score is half of one, less an offset.
    score_C = np.linspace(-87, 0, count).astype(np.float32)
    offset_C = np.linspace(-3, 3, count).astype(np.float32)
    row_C = 2 * (score_C + offset_C)
    expected_C = np.exp((row_C * np.float32(0.5) - offset_C).astype(np.float64))
    total = store_powers(row_C, offset_C, np.float32(0.5), np.float32(0.0))
    assert (np.abs(row_C - expected_C) / np.spacing(expected_C.astype(np.float32))).max() < 2
    assert total == pytest.approx(expected_C.sum(), rel=1e-6)


def test_powers_are_clamped_below_their_range_and_propagate_nan() -> None:
    row_C = np.array([-1000, -np.inf, -87, np.nan, 0], np.float32)
    store_powers(row_C, np.zeros(5, np.float32), np.float32(1.0), np.float32(0.0))
    assert row_C[0] == row_C[1] == row_C[2] == pytest.approx(np.exp(-87.0), rel=1e-5)
    assert np.isnan(row_C[3])
    assert row_C[4] == 1.0


def test_tiny_weights_have_finite_gradients() -> None:
    # Divided by the number of examples, they are so small that a sum of powers over them overflows.
    case = make_case("all", "dot", drawn=0, weights=[4e-35], log_q=False)
    loss, *gradients = case.result()
    assert 0 < loss < 1e-30
    assert all(np.isfinite(gradient_AD).all() for gradient_AD in gradients)
