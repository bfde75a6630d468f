"""When a run saves, on a clock that the test turns."""

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

EVERY_SECONDS = 10.0


class Clock:
    """Seconds since the test began, as the test says."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def take_step(store: LocalStore, saver: CheckpointManager, progress: TrainState) -> None:
    rows_A = np.arange(1, dtype=np.int64)
    for name, block_AD in store.pull({"customer": rows_A, "track": rows_A}).items():
        store.push({name: RowGradient(rows_A, block_AD)})
    progress.step += 1
    assert not saver.after_step(progress)


def test_the_time_that_tables_take_to_be_made_does_not_count_towards_the_first_checkpoint(
    tmp_path: Path, clock: Clock
) -> None:
    checkpoint = {"interval_seconds": EVERY_SECONDS}
    job = load_job(write_job(tmp_path / "job.yaml", write_planted(tmp_path / "data"), checkpoint=checkpoint))
    model = open_inputs(job)[2]
    identity = CheckpointMetadata.of(job, "run", model.tables)
    events: list[Event] = []
    store, progress = LocalStore(), TrainState()
    with CheckpointManager(
        store,
        job.checkpoint,
        str(tmp_path / "checkpoints"),
        identity,
        TrainingHooks(on_event=events.append),
        clock=clock,
    ) as saver:
        store.create(model.tables, identity.optimizer, job.train.seed)
        clock.now = 100.0
        saver.begin(progress)
        for seconds in (1.0, EVERY_SECONDS - 1.0, EVERY_SECONDS + 1.0):
            clock.now = 100.0 + seconds
            take_step(store, saver, progress)
    assert [event.step for event in events if isinstance(event, CheckpointSaved)] == [3]
