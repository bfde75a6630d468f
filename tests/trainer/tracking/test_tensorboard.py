"""Event files of TensorBoard, read back with TensorBoard's own reader; test_invariants.py has a run on servers."""

import json
from pathlib import Path
from typing import Any

import pytest
from cluster_data import write_job, write_planted
from command_here import crossfade_here
from running_command import records, succeeded
from waiting import wait_until

from crossfade.trainer.config.loading import load_job
from crossfade.trainer.runs.events import EpochEvent
from crossfade.trainer.tracking.background import BackgroundSender
from crossfade.trainer.tracking.records import EventRecords, Point, TrainingStart
from crossfade.trainer.tracking.tensorboard_file import TensorBoardFile

pytestmark = pytest.mark.slow


def read(folder: Path) -> Any:
    """Return what TensorBoard shows of ``folder``."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(each.step, each.value) for each in read(folder).Scalars(tag)]


def hyperparameters(folder: Path) -> dict[str, Any]:
    from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG, parse_session_start_info_plugin_data

    content = read(folder).SummaryMetadata(SESSION_START_INFO_TAG).plugin_data.content
    return dict(parse_session_start_info_plugin_data(content).hparams)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    return write_job(tmp_path / "job.yaml", write_planted(tmp_path / "data"), tracking={"tensorboard": True})


def test_finished_run_shows_metrics_and_hyperparameters(job: Path, tmp_path: Path) -> None:
    succeeded(crossfade_here("train", job, "--run-dir", "run", cwd=tmp_path))
    folder = tmp_path / "run" / "tensorboard"
    epochs = [event for event in records(tmp_path / "run") if event["event"] == "epoch"]
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert len(epochs) == 2
    expected = [(event["step"], pytest.approx(event["valid"]["ndcg@10"])) for event in epochs]
    assert scalars(folder, "valid/ndcg_at_10") == expected
    assert scalars(folder, "train/epoch_loss") == [(event["step"], pytest.approx(event["loss"])) for event in epochs]
    assert scalars(folder, "train/loss")[0][0] == 1
    assert scalars(folder, "train/learning_rate")[0][1] == pytest.approx(0.1)
    assert scalars(folder, "report/test/ndcg_at_10") == [
        (report["steps"], pytest.approx(report["metrics"]["test"]["ndcg@10"]))
    ]
    values = hyperparameters(folder)
    assert values["model.dim"].number_value == 8
    assert values["optimizer.kind"].string_value == "adagrad"


def test_resumed_run_continues_in_the_same_folder(job: Path, tmp_path: Path) -> None:
    shared = f"tracking.tensorboard={tmp_path / 'boards'}"
    train = ("train", job, "--run-dir", "run", "--set", shared)
    succeeded(crossfade_here(*train, "--set", "train.epochs=1", cwd=tmp_path))
    run_id = json.loads((tmp_path / "run" / "run.json").read_text())["id"]
    succeeded(crossfade_here(*train, "--resume", "--set", "train.epochs=3", cwd=tmp_path))
    (folder,) = (tmp_path / "boards").iterdir()
    assert folder.name == f"planted-{run_id}"
    assert len(list(folder.iterdir())) == 2
    assert [value for _, value in scalars(folder, "train/epoch")] == [1.0, 2.0, 3.0]


def test_repeated_steps_replace_those_before_the_restart(job: Path, tmp_path: Path) -> None:
    for first, last, value in ((1, 6, 1.0), (4, 8, 2.0)):
        file = TensorBoardFile(tmp_path / "board", load_job(job), "abc")
        file.start()
        points = [Point(100.0 + number, number, {"loss": value}) for number in range(first, last + 1)]
        file.write([TrainingStart(100.0, first - 1), *points])
        file.finish("stopped", None)
    assert scalars(tmp_path / "board", "loss") == [(1, 1.0), (2, 1.0), (3, 1.0), *((step, 2.0) for step in range(4, 9))]


def test_records_wait_until_the_folder_can_be_written(job: Path, tmp_path: Path) -> None:
    board, lines, made = tmp_path / "board", list[str](), EventRecords()
    board.write_text("in the way")
    sender = BackgroundSender(TensorBoardFile(board, load_job(job), "abc"), lines.append)
    for number in (1, 2, 3):
        record = made.of(EpochEvent(epoch=number, step=10 * number, loss=0.5), now=100.0 + number)
        assert record is not None
        sender.put(record)
    wait_until(lambda: lines, "a warning")
    board.unlink()
    sender.end("stopped", None)
    sender.wait()
    assert lines == [
        f"tracking.tensorboard: {board}: cannot be written: File exists; training goes on, and it is tried again"
    ]
    assert scalars(board, "train/epoch") == [(10, 1.0), (20, 2.0), (30, 3.0)]
