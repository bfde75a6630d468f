"""The training loop by itself: the order of its calls, and when it evaluates, stops, resumes and ends."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from resolved_jobs import make_resolved

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.kvstore.store import RowGradient, TableSpec
from crossfade.trainer.evaluation.paired_gain import Evaluation
from crossfade.trainer.model.active_rows import ActiveRows
from crossfade.trainer.model.batches import Batch, BatchTimers
from crossfade.trainer.runs.events import EpochEvent, Event, PhaseEvent, StepEvent
from crossfade.trainer.training.hooks import TrainingHooks
from crossfade.trainer.training.loop import TrainLoop
from crossfade.trainer.training.state import TrainState
from crossfade.trainer.training.steps import PullPushStep

STEPS_PER_EPOCH, BATCH = 3, 4
TABLES = [TableSpec("customer", 10, 2, 0.1), TableSpec("track", 10, 2, 0.1)]


@dataclass
class Model:
    tables: list[TableSpec] = field(default_factory=lambda: TABLES)


@dataclass
class Gradients:
    tables: Mapping[str, FloatArray]
    dense: None = None


@dataclass
class Fakes:
    """Fakes of all parts of a loop; each call is logged in ``calls``."""

    metrics: list[float] = field(default_factory=list)
    """Values that evaluations return, in order; once they are used up, there is no valid split."""
    sums: list[list[float]] = field(default_factory=list)
    """The sums of the metric over groups of queries in these evaluations; empty: evaluations have none."""
    queries: int = 3
    """Number of queries that evaluations count."""
    stop_at: int | None = None
    calls: list[str] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    batches_from: list[tuple[int, int]] = field(default_factory=list)
    interrupted: bool = False
    rank: int = 0
    workers: int = 1

    # ---- store

    def pull(self, active: Mapping[str, IntArray], *, exact: bool = False) -> dict[str, FloatArray]:
        self.calls.append("pull")
        return {name: np.zeros((len(rows_A), 2), np.float32) for name, rows_A in active.items()}

    def set_lr_factor(self, factor: float) -> None:
        assert 0 < factor <= 1

    def push(self, gradients: Mapping[str, RowGradient]) -> None:
        assert set(gradients) == {"customer", "track"}
        self.calls.append("push")

    def all_reduce(self, values_N: FloatArray) -> FloatArray:
        return values_N

    # ---- engine

    def gradients(self, batch: Batch, block: Mapping[str, FloatArray]) -> tuple[float, dict[str, FloatArray]]:
        self.calls.append("gradients")
        return 0.5, dict(block)

    # ---- towers

    def active(self, batch: Batch) -> dict[str, IntArray]:
        return {"customer": batch.query.rows_A, "track": batch.item.rows_A}

    def forward(self, batch: Batch, block: Mapping[str, FloatArray]) -> tuple[Mapping[str, FloatArray], None]:
        return block, None

    def backward(self, batch: Batch, tape: None, gradients: Mapping[str, FloatArray]) -> Gradients:
        return Gradients(gradients)

    def update(self, dense: None, factor: float) -> None:
        pass

    # ---- batches

    steps_per_epoch: int = STEPS_PER_EPOCH

    def remaining(self, state: TrainState, total_steps: int, timers: BatchTimers) -> Iterator[Batch]:
        self.batches_from.append((state.epoch, state.epoch_step))
        for step in range(state.step, total_steps):
            rows_B = np.arange(BATCH, dtype=np.int64)
            weight_B = np.ones(BATCH, np.float32)
            epoch, epoch_step = divmod(step, STEPS_PER_EPOCH)
            yield Batch(epoch, epoch_step, ActiveRows.of(rows_B), ActiveRows.of(rows_B), weight_B, BATCH)

    def interrupt(self) -> None:
        self.interrupted = True

    # ---- embeddings

    def evaluate(self) -> Evaluation | None:
        if not self.metrics:
            return None
        self.calls.append("evaluate")
        mean, sums_G = self.metrics.pop(0), None if not self.sums else np.array(self.sums.pop(0))
        return Evaluation({"ndcg@10": mean, "queries": self.queries}, sums_G)

    def save(self, epoch: int) -> None:
        self.calls.append(f"save {epoch}")

    # ---- checkpoints

    def after_step(self, state: TrainState) -> bool:
        return state.step == self.stop_at


def make_loop(fakes: Fakes, schedule: str = "cosine", **train: Any) -> TrainLoop:
    optimizer = {"schedule": schedule, "learning_rate": 1.0}
    given = {"name": "loop", "data": {"path": "nowhere"}, "optimizer": optimizer}
    job = make_resolved({**given, "train": {"epochs": 2, **train}})
    part: Any = fakes
    model: Any = Model()
    hooks = TrainingHooks(on_event=fakes.events.append)
    return TrainLoop(job, model, part, PullPushStep(part, part, part), part, part, part, hooks)


def run(fakes: Fakes, state: TrainState | None = None, **train: Any) -> tuple[TrainState, bool]:
    state = state or TrainState()
    return state, make_loop(fakes, **train).run(state)


def evaluated_epochs(fakes: Fakes) -> list[int]:
    return [event.epoch for event in fakes.events if isinstance(event, EpochEvent) and event.valid is not None]


def test_step_pulls_then_computes_then_pushes_and_an_epoch_ends_with_its_evaluation() -> None:
    fakes = Fakes(metrics=[0.1, 0.2])
    state, finished = run(fakes)
    step = ["pull", "gradients", "push"]
    assert fakes.calls == [*step * 3, "evaluate", "save 1", *step * 3, "evaluate", "save 2"]
    assert finished
    assert (state.epoch, state.epoch_step, state.step, state.stopped_early) == (2, 0, 6, False)
    assert (state.best, state.best_epoch) == ({"ndcg@10": 0.2, "queries": 3}, 2)
    assert fakes.interrupted  # the thread that makes batches does not outlive the loop


def test_events_describe_steps_and_epochs_in_order() -> None:
    fakes = Fakes(metrics=[0.1])
    run(fakes, epochs=1)
    assert [event.kind for event in fakes.events] == ["step"] * 3 + ["phase", "phase", "epoch"]
    step = fakes.events[0]
    assert isinstance(step, StepEvent)
    assert (step.epoch, step.step, step.steps, step.examples, step.local_examples) == (1, 1, 3, BATCH, BATCH)
    assert (step.loss, step.rows) == (0.5, {"customer": BATCH, "track": BATCH})
    assert [event.name for event in fakes.events if isinstance(event, PhaseEvent)] == ["evaluate", "embeddings"]
    assert fakes.events[-1] == EpochEvent(epoch=1, step=3, loss=0.5, valid={"ndcg@10": 0.1, "queries": 3})


def test_evaluation_without_a_query_selects_no_epoch() -> None:
    fakes = Fakes(metrics=[0.0, 0.0, 0.0], queries=0)
    state, finished = run(fakes, epochs=3, patience=1)
    assert (finished, state.stopped_early, state.best) == (True, False, None)
    assert [call for call in fakes.calls if call.startswith("save")] == ["save 3"]


def test_only_every_nth_epoch_and_the_last_are_evaluated() -> None:
    fakes = Fakes(metrics=[0.1, 0.2, 0.3])
    run(fakes, epochs=5, eval_every_epochs=2)
    assert evaluated_epochs(fakes) == [2, 4, 5]


def test_embeddings_of_a_worse_epoch_are_not_saved() -> None:
    fakes = Fakes(metrics=[0.3, 0.2, 0.4])
    state, _ = run(fakes, epochs=3)
    assert [call for call in fakes.calls if call.startswith("save")] == ["save 1", "save 3"]
    assert (state.best_epoch, state.evals_since_best) == (3, 0)


def test_run_without_valid_split_saves_the_last_embeddings_once() -> None:
    fakes = Fakes()
    state, _ = run(fakes)
    assert [call for call in fakes.calls if call.startswith("save")] == ["save 2"]
    assert state.best is None


def test_run_stops_early_after_patience_evaluations_without_a_new_best() -> None:
    fakes = Fakes(metrics=[0.3, 0.2, 0.3, 0.9])
    state, finished = run(fakes, epochs=9, patience=2)
    assert finished
    assert (state.epoch, state.stopped_early, state.best_epoch) == (3, True, 1)
    assert fakes.metrics == [0.9]


# Means and group sums of five evaluations: a small gain in all groups, then a larger one that is only chance.
MEANS = [0.30, 0.31, 0.32, 0.32, 0.31]
SUMS = [[3.0, 3.0, 3.0], [3.1, 3.1, 3.1], [3.2, 3.9, 2.5], [3.2, 2.5, 3.9], [3.1, 3.1, 3.1]]


def test_patience_counts_evaluations_without_a_gain_beyond_its_error() -> None:
    fakes = Fakes(metrics=[*MEANS], sums=[*SUMS])
    state, _ = run(fakes, epochs=9, patience=2)
    # The third has a higher mean and is kept, but it is no gain over the second, and neither is the fourth.
    assert (state.epoch, state.stopped_early, state.best_epoch, state.evals_since_best) == (4, True, 3, 2)
    assert state.gained_from == SUMS[1]


def test_patience_goes_on_after_a_resume() -> None:
    state, _ = run(Fakes(metrics=MEANS[:3], sums=SUMS[:3], stop_at=10), epochs=9, patience=2)
    assert (state.epoch, state.evals_since_best) == (3, 1)
    record = json.loads(json.dumps(state.to_record(state.counters())))
    resumed = TrainState.from_record(record, keep_counters=True)
    state, _ = run(Fakes(metrics=MEANS[3:], sums=SUMS[3:]), resumed, epochs=9, patience=2)
    assert (state.epoch, state.stopped_early, state.best_epoch) == (4, True, 3)


def test_run_that_ended_on_a_plateau_goes_on_with_more_patience() -> None:
    state, _ = run(Fakes(metrics=[0.3, 0.2]), epochs=9, patience=1)
    assert (state.step, state.stopped_early) == (6, True)
    state, _ = run(Fakes(metrics=[0.4, 0.3, 0.3]), state, epochs=9, patience=2)
    assert (state.step, state.best_epoch) == (15, 3)


def test_small_gains_add_up() -> None:
    sums = [[3.0, 3.0, 3.0], [3.0, 2.98, 3.1], [3.0, 3.1, 3.1], [3.1, 3.08, 3.1], [3.1, 3.08, 3.1]]
    state, _ = run(Fakes(metrics=[0.30, 0.31, 0.32, 0.33, 0.33], sums=sums), epochs=5, patience=3)
    assert (state.epoch, state.best_epoch, state.gained_from) == (5, 4, [3.0, 3.1, 3.1])


def test_stop_request_ends_the_run_in_the_middle_of_an_epoch() -> None:
    fakes = Fakes(metrics=[0.1], stop_at=5)
    state, finished = run(fakes, epochs=4)
    assert not finished
    assert (state.epoch, state.epoch_step, state.step) == (1, 2, 5)
    assert fakes.calls[-1] == "push"  # neither evaluated nor saved
    assert fakes.interrupted


@pytest.mark.parametrize(("max_steps", "epoch", "epoch_step"), [(4, 1, 1), (3, 1, 0), (60, 2, 0)])
def test_max_steps_ends_the_run_with_an_evaluation(max_steps: int, epoch: int, epoch_step: int) -> None:
    fakes = Fakes(metrics=[0.1, 0.2])
    state, finished = run(fakes, max_steps=max_steps)
    assert finished
    assert (state.step, state.epoch, state.epoch_step) == (min(max_steps, 6), epoch, epoch_step)
    assert evaluated_epochs(fakes)[-1] == state.epochs
    assert not state.stopped_early


def test_resumed_run_takes_only_the_remaining_steps() -> None:
    fakes = Fakes(metrics=[0.1], stop_at=4)
    state, _ = run(fakes, epochs=3)
    resumed = Fakes(metrics=[0.2, 0.3])
    state, finished = run(resumed, state, epochs=3)
    assert finished
    assert resumed.batches_from == [(1, 1)]
    assert resumed.calls.count("pull") == 3 * STEPS_PER_EPOCH - 4
    assert evaluated_epochs(resumed) == [2, 3]
    assert (state.step, state.best_epoch) == (9, 3)


def test_epoch_loss_is_the_mean_over_its_examples_also_after_a_resume() -> None:
    stopped, _ = run(Fakes(stop_at=2), epochs=1)
    resumed = Fakes()
    run(resumed, replace(stopped), epochs=1)
    assert [event.loss for event in resumed.events if isinstance(event, EpochEvent)] == [0.5]


def test_run_resumed_after_its_last_step_still_ends_its_last_epoch() -> None:
    state, _ = run(Fakes(stop_at=6))
    resumed = Fakes(metrics=[0.4])
    state, finished = run(resumed, state)
    assert finished
    assert resumed.calls == ["evaluate", "save 2"]
    again = Fakes(metrics=[0.5])
    assert run(again, state)[1]
    assert again.calls == []  # the run was finished


def test_error_in_batch_preparation_is_raised() -> None:
    class Broken(Fakes):
        def remaining(self, state: TrainState, total_steps: int, timers: BatchTimers) -> Iterator[Batch]:
            yield from list(super().remaining(state, 1, timers))
            raise ValueError("a broken file")

    with pytest.raises(ValueError, match="a broken file"):
        run(Broken())


def test_state_of_a_checkpoint_keeps_counts_as_integers() -> None:
    state = TrainState(best={"queries": 300, "ndcg@10": 0.5}, best_epoch=1)
    record = json.loads(json.dumps(state.to_record(state.counters())))
    assert repr(TrainState.from_record(record, keep_counters=True).best) == repr(state.best)
