"""When checkpoints are due, on a clock that the test sets, and what becomes of them."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster_data import write_job, write_planted
from saved_shards import reseal

from crossfade.base.errors import CheckpointError
from crossfade.kvstore.local import LocalStore
from crossfade.kvstore.store import RowGradient
from crossfade.trainer.config.loading import load_job
from crossfade.trainer.runs.events import (
    CheckpointFailed,
    CheckpointPruneFailed,
    CheckpointSaved,
    Event,
    TotalsEvent,
)
from crossfade.trainer.runs.job_inputs import open_inputs
from crossfade.trainer.training.checkpointing import CheckpointManager, CheckpointMetadata
from crossfade.trainer.training.hooks import TrainingHooks
from crossfade.trainer.training.restore import restore_train_state
from crossfade.trainer.training.state import TrainState

pytestmark = pytest.mark.slow

INTERVAL_SECONDS = 10.0


class Training:
    """Steps on a local store with checkpoints; ``now`` and ``stop`` are set by the test."""

    def __init__(self, folder: Path, data: Path, opened: ExitStack, begin_at: float = 0.0, **section: Any) -> None:
        section = {"interval_seconds": None, "interval_steps": None, **section}
        job = load_job(write_job(folder / "job.yaml", data, checkpoint=section))
        inputs = open_inputs(job)
        job, model = inputs.job, inputs.model
        self.now, self.stop = 0.0, False
        self.events: list[Event] = []
        self.folder = folder / "checkpoints"
        self.state = TrainState()
        self.metadata = CheckpointMetadata.of(job, "run", model.tables)
        self.store = LocalStore()
        self._opened = opened
        hooks = TrainingHooks(
            on_event=self.events.append,
            stop_requested=lambda: self.stop,
        )
        manager = CheckpointManager(
            self.store, job.checkpoint, str(self.folder), self.metadata, hooks, clock=lambda: self.now
        )
        self.checkpoints = opened.enter_context(manager)
        self.store.create(model.tables, self.metadata.optimizer, job.train.seed)
        self.now = begin_at
        self.checkpoints.begin(self.state)

    def step(self, seconds: float = 1.0) -> bool:
        """Take a step; return whether the workers stop."""
        self.now += seconds
        rows_A = np.arange(1, dtype=np.int64)
        for name, block_AD in self.store.pull({"customer": rows_A, "track": rows_A}).items():
            self.store.push({name: RowGradient(rows_A, block_AD)})
        self.state.step += 1
        return self.checkpoints.after_step(self.state)

    def saved(self) -> list[int]:
        """Wait for the checkpoint being written, and return the steps of all."""
        self._opened.close()
        return [event.step for event in self.events if isinstance(event, CheckpointSaved)]


Start = Callable[..., Training]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_planted(tmp_path_factory.mktemp("schedule") / "data")


@pytest.fixture
def start(tmp_path: Path, data: Path) -> Iterator[Start]:
    """Return a function that starts a training with a section ``checkpoint`` of the job."""
    with ExitStack() as opened:
        yield lambda **section: Training(tmp_path, data, opened, **section)


def test_interval_of_first_checkpoint_excludes_table_creation(start: Start) -> None:
    training = start(begin_at=100.0, interval_seconds=INTERVAL_SECONDS)  # creating the tables took long
    for seconds in (1.0, INTERVAL_SECONDS - 2.0, 2.0):
        assert not training.step(seconds)
    assert training.saved() == [3]


def test_checkpoint_is_written_at_every_multiple_of_interval_steps(start: Start) -> None:
    training = start(interval_steps=3, keep_latest=9)
    for _ in range(7):
        training.step(seconds=0.01)  # a second has many steps, but synchronization does not pass a checkpoint
        training.checkpoints._writer.wait()
    assert training.saved() == [3, 6]


def test_stop_request_writes_a_checkpoint_and_stops(start: Start) -> None:
    training = start()
    assert not training.step()
    training.stop = True
    assert training.step()
    result = training.checkpoints.stop_result(training.state)
    assert (result.step, result.checkpoint) == (2, str(training.folder / "step-000000002"))
    restored = restore_train_state(training.metadata, str(result.checkpoint), rank=0)
    assert (restored.step, restored.checkpoints.written) == (2, 0)


def test_totals_are_emitted_about_once_a_second(start: Start) -> None:
    training = start(interval_steps=1)
    for _ in range(6):
        training.step(seconds=0.5)
    assert [event.step for event in training.events if isinstance(event, TotalsEvent)] == [1, 3, 5]


def test_last_checkpoint_is_not_written_twice(start: Start) -> None:
    training = start(interval_steps=2)
    training.step()
    training.step()
    training.checkpoints.save_last(training.state)
    assert training.saved() == [2]
    assert training.checkpoints.has_saved(2)
    assert not training.checkpoints.has_saved(1)


def test_checkpoint_that_cannot_be_committed_is_reported_and_training_continues(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise CheckpointError("disk full")

    training = start(interval_steps=1)
    with monkeypatch.context() as patch:
        patch.setattr("crossfade.trainer.training.checkpointing.commit", fail)
        assert not training.step()
        training.checkpoints._writer.wait()
    assert training.events[-1] == CheckpointFailed(step=1, message="disk full")
    assert not list(training.folder.glob("step-*"))
    assert not training.step()
    assert training.saved() == [2]
    assert (training.state.checkpoints.written, training.state.checkpoints.failed) == (1, 1)


def test_failure_to_delete_old_checkpoints_does_not_fail_the_new_one(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise CheckpointError("permission denied")

    monkeypatch.setattr("crossfade.trainer.training.checkpointing.prune", fail)
    training = start(interval_steps=1)
    training.step()
    assert training.saved() == [1]
    assert CheckpointPruneFailed(message="permission denied") in training.events


@pytest.mark.slow
def test_run_that_resumes_keeps_later_checkpoints_and_overwrites_its_own(start: Start) -> None:
    training = start(interval_steps=1, keep_latest=9)
    for _ in range(4):
        training.step()
        training.checkpoints._writer.wait()
    own, foreign = (training.folder / f"step-{step:09d}" / "manifest.json" for step in (3, 4))
    reseal(foreign, lambda text: text.replace('"run": "run"', '"run": "another"'))
    before = own.read_bytes(), foreign.read_bytes()
    (training.folder / "step-000000005").mkdir()
    training.state.step = 2
    training.checkpoints.begin(training.state)
    assert (own.read_bytes(), foreign.read_bytes()) == before
    assert not (training.folder / "step-000000005").exists()
    training.events.clear()
    for _ in range(3):
        training.step()
        training.checkpoints._writer.wait()
    assert training.saved() == [3, 5]
    assert own.read_bytes() != before[0]
    assert foreign.read_bytes() == before[1]
    [failure] = [event for event in training.events if isinstance(event, CheckpointFailed)]
    assert failure == CheckpointFailed(
        step=4, message=f"{foreign.parent}: holds a checkpoint that is not this run's; move it"
    )
