"""``crossfade train`` in process, and the commands that read its run folder."""

import json
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
from cluster_data import CUSTOMERS, HELD_OUT, TRACKS, train_rows, write_job, write_planted
from command_here import crossfade_here
from running_command import messages, records, started, succeeded, wait_for_steps

from crossfade.trainer.runs.run_folder import RunFolder

pytestmark = pytest.mark.slow

DIM, EPOCHS, BATCH = 8, 12, 256
STEPS = EPOCHS * -(-train_rows() // BATCH)
KINDS = ("recall", "ndcg", "map", "mrr", "hit_rate", "coverage", "popularity")
COUNTED = {"queries", "pairs", "pairs_dropped"}


def names_at(*depths: int) -> set[str]:
    """Return the names of metrics at ``depths``, of the standard errors of those that are means, and of counts."""
    metrics = {f"{kind}@{depth}" for kind in KINDS for depth in depths}
    return metrics | {f"{kind}@{depth}_se" for kind in KINDS[:5] for depth in depths} | COUNTED


METRICS = names_at(5, 10)
REPORT_KEYS = {
    *("metrics", "examples", "wall_seconds", "train_seconds", "examples_per_second", "steps", "epochs", "parameters"),
    *("rows_pulled", "rows_pushed", "bytes_pulled", "bytes_pushed", "dense_equivalent_bytes_pushed"),
    *("restarts", "engine", "store", "versions", "run", "started", "kernels"),
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepare a dataset and jobs, and train ``job.yaml`` into ``run``."""
    folder = tmp_path_factory.mktemp("commands")
    data = write_planted(folder / "data", named=True)
    train = {"epochs": EPOCHS, "batch_size": BATCH, "patience": None}
    write_job(folder / "job.yaml", data, model={"dim": DIM}, train=train)
    (folder / "printed").write_text(
        succeeded(crossfade_here("train", "job.yaml", "--run-dir", "run", cwd=folder)).stdout
    )
    return folder


@pytest.fixture(scope="module")
def report(workspace: Path) -> dict[str, Any]:
    return read_report(workspace / "run")


def train(workspace: Path, run: str, *settings: str) -> dict[str, Any]:
    """Train into ``run`` in this process, and return its report."""
    words = [word for setting in settings for word in ("--set", setting)]
    succeeded(crossfade_here("train", "job.yaml", "--run-dir", run, *words, cwd=workspace))
    return read_report(workspace / run)


def read_report(run_dir: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((run_dir / "report.json").read_text())
    return report


def test_report_has_every_documented_figure(report: dict[str, Any]) -> None:
    assert set(report) >= REPORT_KEYS
    assert report["examples"] == train_rows() * EPOCHS
    assert (report["epochs"], report["steps"], report["restarts"]) == (EPOCHS, STEPS, 0)
    assert (report["engine"], report["store"]) == ("cpu", "LocalStore")
    assert report["parameters"] == (CUSTOMERS + TRACKS) * DIM
    assert 0 < report["train_seconds"] <= report["wall_seconds"] < 60
    assert report["examples_per_second"] == pytest.approx(report["examples"] / report["train_seconds"])
    assert set(report["versions"]) >= {"python", "crossfade", "numpy"}
    phases = ("data", "sample", "pull", "gradients", "push")
    seconds = report["seconds_by_phase"]
    assert set(seconds) == {*phases, "sync", "evaluate", "save"}
    assert 0 < sum(seconds[phase] for phase in phases) <= report["train_seconds"]


def test_training_finds_planted_genres(report: dict[str, Any]) -> None:
    ranked_tracks = TRACKS - train_rows() / CUSTOMERS
    for split in ("valid", "test"):
        found = report["metrics"][split]
        assert set(found) == METRICS
        # Planted tracks are distinct, so no pair is in two splits.
        assert (found["queries"], found["pairs"], found["pairs_dropped"]) == (CUSTOMERS, CUSTOMERS * HELD_OUT, 0)
        assert found["recall@10"] > 3 * 10 / ranked_tracks


def test_event_log_has_epochs_and_steps(workspace: Path, report: dict[str, Any]) -> None:
    lines = records(workspace / "run")
    assert (workspace / "run" / "events.jsonl").read_text().endswith("\n")
    assert {line["event"] for line in lines} == {"step", "epoch", "phase", "checkpoint_saved", "totals"}
    epochs = [line for line in lines if line["event"] == "epoch"]
    assert [line["epoch"] for line in epochs] == list(range(1, EPOCHS + 1))
    assert epochs[-1]["step"] == STEPS
    assert epochs[-1]["loss"] < epochs[0]["loss"]
    best = max(epochs, key=lambda line: line["valid"]["ndcg@10"])
    assert best["epoch"] == report["best_epoch"]
    assert best["valid"] == report["metrics"]["valid"]
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)


def test_missing_valid_split_is_said_before_training(tmp_path: Path) -> None:
    write_job(tmp_path / "job.yaml", write_planted(tmp_path / "data", held_out=False))
    result = succeeded(crossfade_here("train", "job.yaml", "--run-dir", "run", cwd=tmp_path))
    note, *rest = (line for line in result.stderr.splitlines() if line)
    assert note.startswith(f"{tmp_path}/data: has no valid split, so training takes all its epochs")
    assert any("epoch=1 " in line for line in rest)
    assert "nothing on valid to select an epoch by" in result.stdout
    assert "baselines" not in read_report(tmp_path / "run")


def test_earlier_run_is_moved_aside_or_overwritten(workspace: Path) -> None:
    stop = "train.max_steps={}".format
    first = train(workspace, "again", stop(7))
    assert (first["steps"], first["epochs"]) == (7, 1)
    moved = crossfade_here("train", "job.yaml", "--run-dir", "again", "--set", stop(2), cwd=workspace)
    assert "crossfade: the earlier run in again was moved to again.1\n" in succeeded(moved).stderr
    assert "to resume it" not in moved.stderr
    assert read_report(workspace / "again.1") == first
    assert read_report(workspace / "again")["steps"] == 2
    succeeded(crossfade_here("train", "job.yaml", "--run-dir", "again", "--overwrite", "--set", stop(3), cwd=workspace))
    assert read_report(workspace / "again")["steps"] == 3
    assert not (workspace / "again.2").exists()


def test_killed_run_is_moved_aside_and_can_be_resumed_there(workspace: Path) -> None:
    with started("train", "job.yaml", "--run-dir", "killed", cwd=workspace) as first:
        wait_for_steps(first, workspace / "killed")
    assert first.process.returncode == -signal.SIGKILL
    identity = RunFolder(workspace / "killed").run_id()
    second = crossfade_here("train", "job.yaml", "--run-dir", "killed", "--set", "train.max_steps=1", cwd=workspace)
    lines = messages(succeeded(second).stderr)
    aside = "crossfade: the earlier run in killed, which was not finished, was moved to killed.1; to resume it: "
    [options] = [line.removeprefix(f"{aside}crossfade train ") for line in lines if line.startswith(aside)]
    succeeded(crossfade_here("train", *shlex.split(options), "--set", "train.max_steps=2", cwd=workspace))
    assert read_report(workspace / "killed.1")["run"] == identity
    assert read_report(workspace / "killed")["run"] != identity
