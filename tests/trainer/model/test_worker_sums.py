"""Gradients do not depend on how many workers, or threads, compute them: they have the same bits."""

from dataclasses import dataclass, replace

import numba
import numpy as np
import pytest
from builders import make_interactions
from partition_trees import add_as_tree, add_rows_as_tree

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.config.score import ScoreKind
from crossfade.trainer.config.sections import LossKind, NegativesConfig
from crossfade.trainer.data.schedule import BatchSlice
from crossfade.trainer.model.batches import Batch, make_batch
from crossfade.trainer.model.engines import cpu
from crossfade.trainer.model.engines.cpu import CpuEngine
from crossfade.trainer.model.losses import LossSpec
from crossfade.trainer.model.spec import ModelSpec, Score

pytestmark = [pytest.mark.slow, pytest.mark.numbers]

QUERIES, ITEMS = 300, 150
SIZES = 170, 0, 1, 64, 1333, 90, 130, 7
"""Examples of the partitions."""
Sums = dict[str, tuple[IntArray, FloatArray]]
"""Active rows of each table, and their gradients."""


@dataclass(frozen=True)
class Step:
    """A loss, a score, and a kind of negatives, and the global batch of a step: rows are frequent by Zipf's law."""

    loss: LossKind
    score: ScoreKind
    negatives: str
    count: int = 40
    dim: int = 20
    seed: int = 1
    weights: tuple[float, ...] = (-1.0, 0.5, 2.0)
    top_k: int | None = None

    @property
    def model(self) -> ModelSpec:
        tables = TableSpec("customer", QUERIES, self.dim, 0.3), TableSpec("track", ITEMS, self.dim, 0.3)
        return ModelSpec(*tables, Score.of(self.score, 0.5))

    def batch(self, rank: int, workers: int) -> Batch:
        """Return the batch of a worker."""
        draws, examples = np.random.default_rng(self.seed), sum(SIZES)
        query_B, item_B = (draws.zipf(1.3, examples) % rows for rows in (QUERIES, ITEMS))
        weight_B = draws.choice(np.array(self.weights, np.float32), examples)
        shape = {"in_batch": 0, "per_example": (examples, self.count)}.get(self.negatives, self.count)
        negatives = np.arange(ITEMS) if self.negatives == "all" else draws.zipf(1.3, shape) % ITEMS
        block = slice(rank * len(SIZES) // workers, (rank + 1) * len(SIZES) // workers)
        starts_P1 = np.cumsum([0, *SIZES])
        own = slice(starts_P1[block.start], starts_P1[block.stop])
        interactions = make_interactions(query_B[own], item_B[own], weight_B[own])
        batch_slice = BatchSlice(
            interactions, np.arange(examples)[own], examples, SIZES[block], len(SIZES), block.start
        )
        if self.negatives == "per_example":
            negatives = negatives[own]
        elif own.start == own.stop:
            negatives = negatives[:0]
        uses_N = np.concatenate([item_B[own], negatives.ravel()])
        return make_batch(batch_slice, uses_N, 0, 0, per_example=self.negatives == "per_example")

    def gradients(self, rank: int, workers: int) -> Sums:
        """Return the gradients of a worker."""
        batch, tables = self.batch(rank, workers), np.random.default_rng(2)
        negatives = NegativesConfig(kind=self.negatives, count=self.count)
        engine = CpuEngine(self.model, LossSpec(self.loss, 0.5, top_k=self.top_k, top_k_temperature=0.3), negatives)
        weights = {
            table.name: tables.standard_normal((table.rows, self.dim)).astype(np.float32) for table in self.model.tables
        }
        active = {"customer": batch.query.rows_A, "track": batch.item.rows_A}
        _, gradients = engine.gradients(batch, {name: weights[name][rows_A] for name, rows_A in active.items()})
        return {name: (rows_A, gradients[name]) for name, rows_A in active.items()}


def joined(step: Step, workers: int) -> Sums:
    """Return the sums of the gradients of several workers."""
    parts = [step.gradients(rank, workers) for rank in range(workers)]
    sums = {}
    for name in parts[0]:
        rows, gradients = zip(*(part[name] for part in parts), strict=True)
        sums[name] = add_rows_as_tree(rows, gradients)
    return sums


def added_by_numpy(step: Step) -> Sums:
    """Return the same from as many workers as there are partitions, row by row."""
    parts = [step.gradients(rank, len(SIZES)) for rank in range(len(SIZES))]
    sums = {}
    for name in parts[0]:
        by_row: dict[int, dict[int, FloatArray]] = {}
        for partition, part in enumerate(parts):
            for row, gradient_D in zip(*part[name], strict=True):
                by_row.setdefault(int(row), {})[partition] = gradient_D
        rows = sorted(by_row)
        sums[name] = np.array(rows), np.array([add_as_tree(by_row[row]) for row in rows])
    return sums


def assert_same_bits(found: Sums, expected: Sums) -> None:
    assert found.keys() == expected.keys()
    for name, (rows_A, gradient_AD) in found.items():
        np.testing.assert_array_equal(rows_A, expected[name][0])
        assert gradient_AD.tobytes() == expected[name][1].tobytes(), name


STEPS = {
    "bpr, dot": Step("bpr", "dot", "per_example", 1),
    "bpr, cosine": Step("bpr", "cosine", "per_example", 1, 64),
    "bpr, euclidean, three negatives": Step("bpr", "euclidean", "per_example", 3),
    "softmax, one column": Step("softmax", "dot", "per_example", 4, 1),
    "softmax, shared": Step("softmax", "dot", "shared", dim=64),
    "softmax, shared, cosine": Step("softmax", "cosine", "shared"),
    "softmax, in batch": Step("softmax", "cosine", "in_batch", dim=64),
    "softmax, mixed": Step("softmax", "euclidean", "mixed"),
    "warp, shared": Step("warp", "euclidean", "shared"),
    "logistic, mixed": Step("logistic", "cosine", "mixed"),
}


@pytest.mark.parametrize("name", STEPS)
def test_gradients_do_not_depend_on_the_number_of_workers(name: str) -> None:
    step = STEPS[name]
    alone = joined(step, 1)
    assert_same_bits(alone, added_by_numpy(step))
    for workers in (2, 4, 8):
        assert_same_bits(joined(step, workers), alone)
    other = joined(replace(step, seed=2), 1)
    assert any(other[table][1].shape != alone[table][1].shape for table in alone)


ALL_ITEMS = {
    "softmax, all": Step("softmax", "euclidean", "all", weights=(1.0, 0.5)),
    "softmax, all, top 20": Step("softmax", "cosine", "all", weights=(1.0, 0.5), top_k=20),
    "softmax, all, both signs, top 20": Step("softmax", "cosine", "all", top_k=20),
}
"""Steps in which a query is scored once for all its examples, or would be but for negative feedback."""


@pytest.mark.parametrize("step", [*STEPS.values(), *ALL_ITEMS.values()], ids=[*STEPS, *ALL_ITEMS])
def test_number_of_threads_changes_no_bit(step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_CHUNK_EXAMPLES", 16)
    monkeypatch.setattr(cpu, "_CHUNK_QUERIES", 8)
    expected, all_threads = joined(step, 1), numba.get_num_threads()
    for threads in (1, 3, 8):
        monkeypatch.setattr(cpu, "get_num_threads", lambda threads=threads: threads)
        numba.set_num_threads(min(threads, all_threads))
        try:
            assert_same_bits(joined(step, 1), expected)
        finally:
            numba.set_num_threads(all_threads)


def test_tiny_weights_have_finite_gradients() -> None:
    # Divided by the number of examples, they are so small that a sum of powers over them overflows.
    gradients = Step("softmax", "dot", "all", weights=(4e-35,)).gradients(0, 1)
    assert all(np.isfinite(gradient_AD).all() and gradient_AD.any() for _, gradient_AD in gradients.values())


@pytest.mark.parametrize("name", ["softmax, shared, cosine", "softmax, in batch"])
def test_chunks_do_not_depend_on_the_number_of_workers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_CHUNK_EXAMPLES", 16)
    monkeypatch.setattr(cpu, "_CHUNKS_OF_POOL", 1)
    step = STEPS[name]
    for workers in (2, 8):
        assert_same_bits(joined(step, workers), joined(step, 1))


def test_partitions_beyond_the_leaves_share_one() -> None:
    interactions = make_interactions(range(100), range(100))
    batch_slice = BatchSlice(interactions, np.arange(100), 400, (1,) * 100, 400, 100)
    batch = make_batch(batch_slice, interactions.item_N, 0, 0)
    np.testing.assert_array_equal(batch.leaf_B, np.arange(100, 200) // 8)
