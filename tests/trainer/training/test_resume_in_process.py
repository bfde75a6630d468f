"""A run in process that stops at an awkward step and resumes has the results and the report of one that did not."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster_data import train_rows, write_job, write_planted

from crossfade.trainer.config.loading import load_job
from crossfade.trainer.embeddings.files import EmbeddingFiles
from crossfade.trainer.runs.events import Event, StepEvent
from crossfade.trainer.runs.run_folder import RunFolder
from crossfade.trainer.training.checkpointing import StopResult
from crossfade.trainer.training.hooks import TrainingHooks
from crossfade.trainer.training.run import run_in_process

pytestmark = pytest.mark.slow

BATCH = 512
EPOCH_STEPS = -(-train_rows() // BATCH)
EPOCHS = 6
ENTITIES = ("customer", "track")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_planted(tmp_path_factory.mktemp("resume") / "data")


class Runs:
    """Runs of one job, each in its own folder."""

    def __init__(
        self,
        folder: Path,
        data: Path,
        interval_steps: int,
        rate: float = 0.05,
        keep: int = 3,
        schedule: str = "constant",
        **train: Any,
    ) -> None:
        train = {"batch_size": BATCH, "epochs": EPOCHS, "patience": None, **train}
        checkpoint = {"interval_steps": interval_steps, "interval_seconds": None, "keep_latest": keep}
        optimizer = {"kind": "adagrad", "learning_rate": rate, "schedule": schedule}
        path = write_job(folder / "job.yaml", data, optimizer=optimizer, train=train, checkpoint=checkpoint)
        self._folder, self._job = folder, load_job(path)

    def run(
        self,
        name: str,
        stop_at: int | None = None,
        *,
        resume: bool = False,
        skipped: Sequence[str] = (),
    ) -> dict[str, Any] | StopResult:
        """Train, and request a stop at the step ``stop_at``; check that the checkpoints ``skipped`` are skipped."""
        step = 0

        def emit(event: Event) -> None:
            nonlocal step
            step = event.step if isinstance(event, StepEvent) else step

        lines: list[str] = []
        with RunFolder(self._folder / name).open_run(self._job, resume=resume):
            hooks = TrainingHooks(
                on_event=emit, log=lines.append, stop_requested=lambda: stop_at is not None and step >= stop_at
            )
            result = run_in_process(self._job, RunFolder(self._folder / name), hooks, resume=resume)
        assert not lines or lines[-1].startswith("resuming from step ")
        reasons = [line for line in lines if line.startswith("skipped a checkpoint: ")]
        # One that is found corrupt while it is loaded is named again when the next one is sought.
        assert all(any(name in line for name in skipped) for line in reasons)
        assert all(any(name in line for line in reasons) for name in skipped)
        return result

    def losses(self, name: str) -> dict[int, float]:
        """Return the loss of each epoch, as logged last."""
        lines = (self._folder / name / "events.jsonl").read_text().splitlines()
        return {event["epoch"]: event["loss"] for event in map(json.loads, lines) if event["event"] == "epoch"}

    def checkpoints(self, name: str) -> list[Path]:
        """Return the checkpoints of a run, complete or not, the oldest first."""
        return sorted((self._folder / name / "checkpoints").glob("step-*"))

    def vectors(self, name: str) -> dict[str, np.ndarray]:
        """Read the embeddings that a run wrote."""
        files = EmbeddingFiles(self._folder / name / "embeddings")
        return {entity: files.vectors(entity, np.arange(files.rows(entity))) for entity in ENTITIES}


def assert_resumes_exactly(runs: Runs, stop_at: int, best_epoch: int, embeddings: bool = True) -> None:
    undisturbed = runs.run("undisturbed")
    assert isinstance(undisturbed, dict)
    stopped = runs.run("stopped", stop_at)
    assert isinstance(stopped, StopResult)
    assert (stopped.step, stopped.checkpoint is not None) == (stop_at, True)
    resumed = runs.run("stopped", resume=True)
    assert isinstance(resumed, dict)
    assert undisturbed["best_epoch"] == best_epoch, "the job must have its best epoch there"
    for name in ("steps", "epochs", "examples", "best_epoch", "stopped_early", "metrics", "rows_pushed"):
        assert resumed[name] == undisturbed[name], name
    assert runs.losses("stopped") == runs.losses("undisturbed")
    if embeddings:
        for entity, expected in runs.vectors("undisturbed").items():
            np.testing.assert_array_equal(runs.vectors("stopped")[entity], expected)


@pytest.mark.parametrize("epochs", [1, EPOCHS])
def test_run_stopped_before_an_evaluation_resumes_exactly(data: Path, tmp_path: Path, epochs: int) -> None:
    assert_resumes_exactly(Runs(tmp_path, data, interval_steps=EPOCH_STEPS), epochs * EPOCH_STEPS, EPOCHS)


@pytest.mark.parametrize(("epochs", "embeddings"), [(6, "none"), (7, "best")])
def test_run_stopped_after_an_evaluation_without_a_new_best_resumes_exactly(
    data: Path, tmp_path: Path, epochs: int, embeddings: str
) -> None:
    runs = Runs(tmp_path, data, interval_steps=EPOCH_STEPS, rate=0.3, epochs=20, patience=3, save_embeddings=embeddings)
    assert_resumes_exactly(runs, epochs * EPOCH_STEPS, 5, embeddings == "best")


def test_run_stopped_in_the_middle_of_an_epoch_resumes_exactly(data: Path, tmp_path: Path) -> None:
    assert_resumes_exactly(Runs(tmp_path, data, interval_steps=1, epochs=3), EPOCH_STEPS + 3, 3)


def test_run_stopped_in_the_middle_of_the_last_epoch_resumes_exactly(data: Path, tmp_path: Path) -> None:
    steps = 3 * EPOCH_STEPS + 7
    assert_resumes_exactly(Runs(tmp_path, data, interval_steps=1, max_steps=steps), steps, 4)


@pytest.mark.parametrize("damage", ["manifest.json", "part-00000-of-00001.json", "track/weights.00000-of-00001.npy"])
def test_corrupt_checkpoint_is_skipped_and_stays(data: Path, tmp_path: Path, damage: str) -> None:
    runs = Runs(tmp_path, data, interval_steps=EPOCH_STEPS)
    runs.run("run", 2 * EPOCH_STEPS)
    before, newest = runs.checkpoints("run")
    content = bytearray((newest / damage).read_bytes())
    content[len(content) // 2] ^= 1
    (newest / damage).write_bytes(content)
    stopped = runs.run("run", 1, resume=True, skipped=[newest.name])
    assert isinstance(stopped, StopResult)
    assert before.name < f"step-{stopped.step:09d}" < newest.name
    assert (newest / damage).read_bytes() == content
