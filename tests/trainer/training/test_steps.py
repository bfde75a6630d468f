"""Steps in place equal steps that pull and push, bit for bit. ``test_engine_contract.py`` judges the latter."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numba
import numpy as np
import pytest
from builders import make_interactions
from resolved_jobs import make_resolved

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.errors import DivergedError, StoreError
from crossfade.kvstore.local import LocalStore
from crossfade.kvstore.optimizer_spec import OptimizerSpec
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.config.sections import LossKind
from crossfade.trainer.data.schedule import BatchSlice
from crossfade.trainer.model.active_rows import ActiveRows
from crossfade.trainer.model.batches import Batch, make_batch
from crossfade.trainer.model.engines.engine import choose_engine
from crossfade.trainer.model.losses import LossSpec
from crossfade.trainer.model.spec import ModelSpec, Score
from crossfade.trainer.model.towers import Towers
from crossfade.trainer.training.composition import compose
from crossfade.trainer.training.state import TrainState
from crossfade.trainer.training.steps import InPlaceStep, PullPushStep, Step

QUERIES, ITEMS, EXAMPLES = 90, 40, 300
Result = tuple[list[float], dict[str, FloatArray]]
"""Losses, and contents of the tables."""
FACTORS = (1.0, 0.5, 0.25, 0.125)


@dataclass(frozen=True)
class Variant:
    """What a job, its negatives and its examples are like."""

    loss: LossKind = "bpr"
    score: str = "dot"
    count: int = 1
    dim: int = 20
    log_q: bool = False
    signs: bool = False
    optimizer: tuple[tuple[str, Any], ...] = (("kind", "rowwise_adagrad"),)

    def job(self, **train: Any) -> JobConfig:
        values = {
            "name": "steps",
            "data": {"path": "nowhere"},
            "model": {"dim": self.dim, "score": self.score, "temperature": 0.5},
            "loss": self.loss,
            "negatives": {"kind": "per_example", "count": self.count},
            "optimizer": {"learning_rate": 0.1, **dict(self.optimizer)},
            "train": train,
        }
        return make_resolved(values)

    def batch(self, step: int) -> Batch:
        """Return examples with repeated rows, and positives among the negatives."""
        draws = np.random.default_rng(step)
        queries_B, items_B = draws.integers(0, QUERIES, EXAMPLES) ** 2 // QUERIES, draws.integers(0, ITEMS, EXAMPLES)
        weight_B = draws.random(EXAMPLES, dtype=np.float32) * (draws.choice([-1, 1], EXAMPLES) if self.signs else 1)
        batch_slice = BatchSlice(make_interactions(queries_B, items_B, weight_B), np.arange(EXAMPLES), EXAMPLES)
        uses_N = np.concatenate([items_B, draws.integers(0, ITEMS, EXAMPLES * self.count)])
        log_q_N = np.log(1 + uses_N).astype(np.float32) if self.log_q else np.empty(0, np.float32)
        return make_batch(batch_slice, uses_N, 0, step, log_q_N, per_example=True)


def model_of(job: JobConfig) -> ModelSpec:
    tables = TableSpec("customer", QUERIES, job.model.dim, 0.3), TableSpec("track", ITEMS, job.model.dim, 0.3)
    return ModelSpec(*tables, Score.of(job.model.score, job.model.temperature))


@contextmanager
def opened(variant: Variant) -> Iterator[tuple[LocalStore, ModelSpec, dict[str, Step]]]:
    """Open a store, and yield it with both kinds of steps on it."""
    job = variant.job()
    model = model_of(job)
    with closing(LocalStore()) as store:
        store.create(model.tables, OptimizerSpec(**{"learning_rate": 0.1, **dict(variant.optimizer)}), seed=1)
        towers = Towers(model, ())
        general = PullPushStep(store, choose_engine(job.train).build(job, model), towers)
        yield (
            store,
            model,
            {"in place": InPlaceStep(store, model, LossSpec.of(job)), "general": general},
        )


def contents(store: LocalStore, model: ModelSpec) -> dict[str, FloatArray]:
    """Return the weights and the optimizer state of all rows."""
    arrays = {}
    for table in model.tables:
        with store.updating(table.name, np.arange(table.rows)) as (weights_ND, optimizer):
            state = [array for array in optimizer if isinstance(array, np.ndarray)]
            arrays |= {f"{table.name} {number}": array.copy() for number, array in enumerate([weights_ND, *state])}
    return arrays


def train(variant: Variant, kind: str, threads: int = 2) -> Result:
    """Take some steps; return the losses, and the tables with their state."""
    before = numba.get_num_threads()
    numba.set_num_threads(threads)
    try:
        with opened(variant) as (store, model, steps):
            losses = [
                steps[kind].take(variant.batch(step), factor, TrainState())[0] for step, factor in enumerate(FACTORS)
            ]
            return losses, contents(store, model)
    finally:
        numba.set_num_threads(before)


def assert_same(
    one: tuple[list[float], dict[str, FloatArray]], other: tuple[list[float], dict[str, FloatArray]]
) -> None:
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    for name, array in one[1].items():
        assert array.tobytes() == other[1][name].tobytes(), name


ADAM = (("kind", "adam"), ("weight_decay", 0.01), ("max_norm", 1.0))
ADAGRAD = (("kind", "adagrad"), ("max_norm", 1.0))
# Kernels are compiled, in 8 seconds, for each kind of optimizer, with and without a maximum norm.
# test_recorded_results.py compiles most of these combinations too; test_optimizers.py covers the other optimizers.
VARIANTS = {
    "one negative": Variant(),
    "three negatives": Variant(count=3, dim=64),
    "one column": Variant(dim=1, optimizer=(("kind", "rowwise_adagrad"), ("weight_decay", 0.1))),
    "both signs": Variant(signs=True, count=2),
    "adam": Variant(optimizer=ADAM, signs=True),
    "euclidean": Variant(score="euclidean", count=2),
    "warp": Variant(loss="warp", score="euclidean", count=5, optimizer=ADAM),
    "softmax with log Q": Variant(loss="softmax", count=4, log_q=True),
    "logistic": Variant(loss="logistic", count=2, signs=True, optimizer=ADAGRAD),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_step_in_place_equals_pull_and_push(name: str) -> None:
    variant = VARIANTS[name]
    general = train(variant, "general")
    assert_same(train(variant, "in place"), general)
    assert len(set(general[0])) == len(FACTORS)


@pytest.mark.slow
def test_results_do_not_depend_on_the_number_of_threads() -> None:
    one = train(Variant(count=2), "in place", threads=1)
    assert_same(train(Variant(count=2), "in place", threads=numba.config.NUMBA_NUM_THREADS), one)


@pytest.mark.slow
def test_step_without_examples_changes_nothing() -> None:
    with opened(Variant()) as (store, model, steps):
        before = contents(store, model)
        batch_slice = BatchSlice(make_interactions([], []), np.empty(0, np.int64), EXAMPLES)
        batch = make_batch(batch_slice, np.empty(0, np.int64), 0, 0, per_example=True)
        loss, rows = steps["in place"].take(batch, 1.0, TrainState())
        assert (loss, [len(rows_A) for rows_A in rows.values()]) == (0.0, [0, 0])
        assert_same(([], contents(store, model)), ([], before))


@pytest.mark.slow
def test_row_outside_a_table_is_rejected_before_any_update() -> None:
    variant = Variant()
    with opened(variant) as (store, model, steps):
        before = contents(store, model)
        batch = variant.batch(0)
        uses_N = batch.item.uses_N.copy()
        uses_N[-1] = ITEMS
        with pytest.raises(StoreError, match=rf"table 'track': rows 0 to {ITEMS} were requested"):
            steps["in place"].take(replace(batch, item=ActiveRows.of(uses_N)), 1.0, TrainState())
        assert_same(([], contents(store, model)), ([], before))


@pytest.mark.slow
@pytest.mark.parametrize("table", ["customer", "track"])
def test_divergence_is_detected(table: str) -> None:
    variant = Variant()
    with opened(variant) as (store, _, steps):
        store.weights(table)[:] = np.inf if table == "customer" else 1e30
        with pytest.raises(DivergedError, match="training has diverged"):
            steps["in place"].take(variant.batch(0), 1.0, TrainState())


@pytest.mark.slow
def test_snapshot_copies_active_rows_of_each_table_before_they_change(monkeypatch: pytest.MonkeyPatch) -> None:
    variant = Variant(optimizer=ADAM)
    with opened(variant) as (store, model, steps):
        before = contents(store, model)
        batch = variant.batch(0)
        copied: dict[str, IntArray] = {}

        class Recorder:
            def before_update(self, table: str, number: int, rows_A: IntArray) -> None:
                assert number == 0
                np.testing.assert_array_equal(store.weights(table), before[f"{table} 0"])
                copied[table] = rows_A

            def close(self) -> None:
                pass

        monkeypatch.setattr(store, "_snapshot", Recorder())
        steps["in place"].take(batch, 1.0, TrainState())
        for table, rows_A in zip(model.tables, (batch.query.rows_A, batch.item.rows_A), strict=True):
            np.testing.assert_array_equal(copied[table.name], rows_A)
            changed_N = (store.weights(table.name) != before[f"{table.name} 0"]).any(axis=1)
            assert set(np.flatnonzero(changed_N)) <= set(rows_A)
            assert changed_N.any()


@pytest.mark.parametrize(
    ("values", "in_place"),
    [({}, True), ({"score": "cosine"}, False), ({"negatives": "shared"}, False), ({"servers": True}, False)],
    ids=["alone", "cosine", "shared negatives", "other store"],
)
def test_steps_are_in_place_where_tables_are_local_and_kernels_apply(values: dict[str, Any], in_place: bool) -> None:
    job = Variant(score=values.get("score", "dot")).job()
    if "negatives" in values:
        job = job.model_copy(update={"negatives": job.negatives.model_copy(update={"kind": values["negatives"]})})
    model = model_of(job)
    servers = LocalStore() if "servers" in values else None  # a step takes any store for that of a worker
    composition = compose(job, model, Towers(model, ()), servers)
    with closing(composition.store):
        assert isinstance(composition.step, InPlaceStep if in_place else PullPushStep)
