"""Trainings of a study share a process: with the results of processes of their own, and without sharing a crash."""

import json
import shutil
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
from cluster_data import write_job, write_planted
from command_here import crossfade_here
from needs import root
from running_command import records, succeeded
from small_disk import MountError, fill, mounted_disk

from crossfade.deploy.launch.trial_run import TrialProcess, TrialRun

pytestmark = pytest.mark.slow

LONG = {"train.epochs": 100000, "train.patience": None}
VALUES = {"train.epochs": 3, "checkpoint.interval_steps": 8}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a dataset and a short job."""
    folder = tmp_path_factory.mktemp("trials")
    write_job(folder / "job.yaml", write_planted(folder / "data"), train={"batch_size": 512})
    return folder


@pytest.fixture
def process() -> Iterator[TrialProcess]:
    _others[:] = _hosts()
    with closing(TrialProcess()) as process:
        yield process
    assert hosts() == []


_others: list[psutil.Process] = []
"""Processes that tests of other folders keep for their trainings."""


def hosts() -> list[psutil.Process]:
    """Return the processes that wait for trainings, or train."""
    return [host for host in _hosts() if host not in _others]


def _hosts() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "crossfade.cli.trial_host" in child.cmdline()]


def go_on(*_: object) -> bool:
    return False


def results(run: Path) -> tuple[Any, list[Any]]:
    """Return the metrics of a run, and the loss and metrics of each epoch."""
    epochs = [(each["loss"], each["valid"]) for each in records(run) if each["event"] == "epoch"]
    return json.loads((run / "report.json").read_text())["metrics"]["valid"], epochs


@pytest.mark.slow
def test_later_training_has_the_results_of_a_process_of_its_own(
    workspace: Path, process: TrialProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    used, folder = set(), workspace
    rate = {"optimizer.learning_rate": 0.3}
    for number, more in enumerate([rate, {"model.dim": -1}, {"model.dim": 16}, {"model.dim": 8}]):
        code = TrialRun(folder, f"shared-{number}", process).train(VALUES | more, go_on, go_on)
        assert code == (2 if number == 1 else 0)
        used |= {host.pid for host in hosts()}
        monkeypatch.chdir(workspace.parent)  # paths count from the folder of the request, wherever the process started
        folder = Path(workspace.name)
    assert len(used) == 1
    assert (workspace / "shared-1.log").read_text().startswith(f"crossfade: error: {folder}/job.yaml: model.dim: ")
    assert (workspace / "shared-3.log").read_text().count("best ndcg@10 on valid") == 1
    alone = [
        word
        for each in ("model.dim=8", *(f"{key}={value}" for key, value in VALUES.items()))
        for word in ("--set", each)
    ]
    succeeded(crossfade_here("train", "job.yaml", "--run-dir", "alone", *alone, cwd=workspace))
    assert results(workspace / "shared-3") == results(workspace / "alone")


@pytest.mark.slow
def test_crash_ends_only_its_training(workspace: Path, process: TrialProcess) -> None:
    first = TrialRun(workspace, "before", process)
    assert first.train(VALUES, go_on, go_on) == 0
    (host,) = hosts()

    def crash(epochs: int) -> None:
        if epochs:
            host.send_signal(signal.SIGSEGV)

    crashed = TrialRun(workspace, "crashed", process)
    assert crashed.train(LONG, go_on, crash) == -signal.SIGSEGV
    assert crashed.describe_failure().startswith("its process was killed by SIGSEGV; ")
    assert TrialRun(workspace, "after-crash", process).train(VALUES, go_on, go_on) == 0
    assert results(workspace / "after-crash") == results(workspace / "before")
    assert host.pid not in {each.pid for each in hosts()}


@pytest.mark.slow
def test_stopped_training_saves_its_work_and_the_next_one_has_a_new_process(
    workspace: Path, process: TrialProcess
) -> None:
    long = TrialRun(workspace, "long", process)
    assert long.train(LONG, lambda: long.epochs > 0, go_on) == 128 + signal.SIGTERM
    assert list((workspace / "long" / "checkpoints").iterdir())
    assert TrialRun(workspace, "after", process).train(VALUES, go_on, go_on) == 0


def test_training_whose_log_is_on_a_full_disk_leaves_its_reason(
    workspace: Path, process: TrialProcess, tmp_path: Path
) -> None:
    try:
        with mounted_disk(tmp_path / "disk", 1 << 16) as disk:
            shutil.copy(workspace / "job.yaml", disk)
            fill(disk, leave=0)
            run = TrialRun(disk, "trial", process)
            assert run.train(VALUES, go_on, go_on) == 1
            failure = run.describe_failure()
    except MountError as reason:
        pytest.skip(root(reason))
    assert failure.startswith("its process ended with exit code 1; OSError: ")
    assert "No space left on device" in failure
