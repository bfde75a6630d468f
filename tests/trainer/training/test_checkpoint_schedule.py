"""When checkpoints are due, on a clock that the test sets."""

from pathlib import Path

import numpy as np
import pytest
from cluster_data import write_job, write_planted

from kvstore.local import LocalStore
from kvstore.store import RowGradient
from trainer.config.loading import load_job
from trainer.runs.events import CheckpointSaved, Event
from trainer.runs.inputs import open_inputs
from trainer.training.checkpoint_metadata import CheckpointMetadata
from trainer.training.checkpointing import CheckpointManager
from trainer.training.hooks import TrainingHooks
from trainer.training.state import TrainState

INTERVAL_SECONDS = 10.0


class Clock:
    """Returns the seconds that the test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def take_step(store: LocalStore, checkpoints: CheckpointManager, state: TrainState) -> None:
    rows_A = np.arange(1, dtype=np.int64)
    for name, block_AD in store.pull({"customer": rows_A, "track": rows_A}).items():
        store.push({name: RowGradient(rows_A, block_AD)})
    state.step += 1
    assert not checkpoints.after_step(state)


def test_interval_of_first_checkpoint_excludes_table_creation(tmp_path: Path, clock: Clock) -> None:
    section = {"interval_seconds": INTERVAL_SECONDS}
    job = load_job(write_job(tmp_path / "job.yaml", write_planted(tmp_path / "data"), checkpoint=section))
    model = open_inputs(job)[2]
    metadata = CheckpointMetadata.of(job, "run", model.tables)
    events: list[Event] = []
    store, state = LocalStore(), TrainState()
    with CheckpointManager(
        store,
        job.checkpoint,
        str(tmp_path / "checkpoints"),
        metadata,
        TrainingHooks(on_event=events.append),
        clock=clock,
    ) as checkpoints:
        store.create(model.tables, metadata.optimizer, job.train.seed)
        clock.now = 100.0
        checkpoints.begin(state)
        for seconds in (1.0, INTERVAL_SECONDS - 1.0, INTERVAL_SECONDS + 1.0):
            clock.now = 100.0 + seconds
            take_step(store, checkpoints, state)
    assert [event.step for event in events if isinstance(event, CheckpointSaved)] == [3]
