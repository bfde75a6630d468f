"""``crossfade status`` on real runs: during training, after a kill, and at the end."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from cluster_data import CUSTOMERS, TRACKS, write_job, write_planted
from command_here import crossfade_here
from paced_training import paced
from run_folders import BEGAN, epoch, state, step, write_run
from running_command import records, started, succeeded
from waiting import wait_until

from crossfade.base.errors import InputError
from crossfade.cli.main import make_parser

pytestmark = pytest.mark.slow

DIM = 8


def status(workspace: Path, *arguments: object) -> list[dict[str, Any]]:
    printed = json.loads(succeeded(crossfade_here("status", "--json", *arguments, cwd=workspace)).stdout)
    found: list[dict[str, Any]] = printed["runs"]
    return found


def printed_by(*arguments: object, capsys: pytest.CaptureFixture[str]) -> str:
    """Run the command in this process, and return what it prints."""
    parsed = make_parser().parse_args(["status", *map(str, arguments)])
    assert parsed.run(parsed) == 0
    return capsys.readouterr().out


def read_state(run_dir: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((run_dir / "state.json").read_text())
    return values


@pytest.fixture
def job(tmp_path: Path) -> Path:
    data = write_planted(tmp_path / "data")
    return write_job(
        tmp_path / "job.yaml", data, train={"epochs": 20, "eval_every_epochs": 10}, checkpoint={"interval_steps": 5}
    )


@pytest.mark.slow
def test_run_in_process_shows_progress_and_result(job: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "live"
    run_dir.parent.mkdir()
    with paced("train", job, run_dir=run_dir) as training:
        training.wait_for("checkpoint_saved")
        training.wait(lambda: read_state(run_dir)["processes"]["in-process"]["load"].get("updates"), "its load")
        (live,) = status(tmp_path)
        assert (live["name"], live["state"], live["phase"]) == ("live", "running", "training")
        assert 0 < live["step"] < live["planned_steps"]
        assert live["checkpoints"]["last_step"] >= 5
        assert live["traffic"]["dense_equivalent_bytes_pushed"] > live["traffic"]["bytes_pushed"] > 0
        (process,) = live["processes"]
        assert process["rows"] == CUSTOMERS + TRACKS
        assert process["updated"] > 0
        assert process["resident_bytes"] > 20e6
        assert live["alerts"] == []
        succeeded(training.finish())
    (done,) = status(tmp_path, run_dir)
    report = json.loads((run_dir / "report.json").read_text())
    assert (done["state"], done["progress"], done["step"]) == ("done", 1.0, report["steps"])
    for name in ("bytes_pulled", "bytes_pushed", "dense_equivalent_bytes_pushed"):
        assert done["traffic"][name] == report[name]
        assert [event for event in records(run_dir) if event["event"] == "totals"][-1][name] == report[name]
    assert done["examples_per_second"] == report["examples_per_second"]
    assert done["best_epoch"] == report["best_epoch"]
    screen = succeeded(crossfade_here("status", run_dir, cwd=tmp_path)).stdout
    assert "live: done, " in screen
    assert done["run_id"] == report["run"]
    assert done["started"] == report["started"]
    assert f"run          {report['run']}, started 20" in screen
    assert "[##############################] 100 %" in screen
    assert len(screen.splitlines()) <= 24
    shortfall = report["baselines"]["shortfall"] or ""
    assert max(len(line) for line in screen.splitlines() if line.strip() != shortfall) <= 120


@pytest.mark.slow
def test_killed_run_is_lost_and_stopped_run_is_stopped(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "runs" / "killed"
    run_dir.parent.mkdir()
    with paced("train", job, run_dir=run_dir) as training:
        training.wait_for("step")
        training.command.process.kill()
        training.command.process.wait()
        wait_until(lambda: status(tmp_path)[0]["state"] == "lost", "that it is lost")
        (lost,) = status(tmp_path)
        assert (lost["alerts"][0]["level"], lost["failure"]) == ("critical", None)
        screen = printed_by(run_dir, capsys=capsys)
        assert "critical: the process of its command no longer exists: it was killed" in screen
    with paced("train", job, "--resume", run_dir=run_dir) as training:
        training.wait(lambda: read_state(run_dir)["state"] == "running", "its state")
        training.wait_for("step")
        training.command.process.send_signal(signal.SIGTERM)
        assert training.command.finish().returncode == 143
    (stopped,) = status(tmp_path)
    assert stopped["state"] == "stopped"
    assert "--resume" in stopped["message"]


# tests/deploy/dashboard/test_dashboard.py shows a restart on servers, by this command too.


def test_diverged_run_shows_its_error_and_what_was_lost(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    result = crossfade_here("train", job, "--run-dir", run_dir, "--set", "optimizer.learning_rate=1e18")
    assert result.returncode == 1
    error = result.stderr.splitlines()[-1].removeprefix("crossfade: error: ")
    (failed,) = json.loads(printed_by(run_dir, "--json", capsys=capsys))["runs"]
    failure = failed["failure"]
    assert (failed["state"], failure["role"], failure["cause"]) == ("failed", "in-process", "ended with exit code 1")
    assert failure["error"] == error
    lines = printed_by(run_dir, capsys=capsys).splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("last failure in-process on "))
    assert lines[first + 1].strip() == error
    assert lines[first + 2].strip().startswith("lost ")
    assert lines[first + 2].endswith("; it ended the run")


@pytest.mark.parametrize(
    ("settings", "longer"),
    [
        (["train.epochs=4"], "train.epochs=8"),
        (["train.epochs=9", "train.max_steps=16"], "train.max_steps=32"),
        (["train.epochs=2", "train.eval_every_epochs=2"], None),  # one evaluation compares nothing
    ],
)
def test_best_epoch_that_is_the_last_is_said_once_with_what_to_do(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: list[str], longer: str | None
) -> None:
    chosen = ["train.eval_every_epochs=1", "train.batch_size=1024", "optimizer.learning_rate=0.02", *settings]
    options = [word for each in chosen for word in ("--set", each)]
    trained = succeeded(crossfade_here("train", job, "--run-dir", tmp_path / "run", *options)).stdout
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["best_epoch"] == report["epochs"]
    texts = trained, json.dumps(report), printed_by(tmp_path / "run", capsys=capsys)
    for text in texts:
        assert text.count("the best epoch is the last, ") == (longer is not None)
        assert longer is None or text.count(f"train longer, with {longer}") == 1


def test_several_runs_are_a_table_with_alerts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "runs" / "fine", metrics=[step(50, at=9)], state=state("done", at=9))
    corrupt = write_run(
        tmp_path / "runs" / "damaged", metrics=[step(7, at=3)], state=state("failed", at=5, message="no")
    )
    (corrupt / "report.json").write_text('{"metrics"')
    printed = printed_by(tmp_path / "runs", capsys=capsys).splitlines()
    assert printed[0].split()[:3] == ["run", "state", "done"]
    assert [line.split()[:2] for line in printed[1:3]] == [["damaged", "failed"], ["fine", "done"]]
    assert any(line.startswith("damaged: warning: report.json cannot be read") for line in printed)
    assert "damaged: critical: no" in printed


def test_early_stop_baselines_and_lost_steps_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = [step(333, at=9), epoch(1, at=9, step=10, quality=0.31), epoch(2, at=19, step=20, quality=0.29)]
    restart = {"generation": 2, "cause": "x", "step": 100, "lost_steps": 333, "lost_seconds": 5.6}
    processes = [{"time": BEGAN + 15, "event": "restart", **restart}]
    baselines = {"popularity": {"ndcg@10": 0.21, "ndcg@10_se": 0.02}, "item_cosine": {"ndcg@10": 0.32}}
    report = {
        "metrics": {"valid": {"ndcg@10": 0.31}},
        "baselines": {"metrics": {"valid": baselines}, "notes": []},
        "stopped_early": True,
    }
    files = {"state": state("done", at=19), "report": report, "processes": processes}
    folder = write_run(tmp_path / "plays", metrics=events, **files)
    lines = printed_by(folder, capsys=capsys).splitlines()
    assert lines[0].startswith("plays: done, stopped early, ")
    assert "metric       best ndcg@10 on valid 0.3100 in epoch 1; 0.2900 in the last evaluation" in lines
    assert "baselines    ndcg@10 on valid by popularity 0.2100 ± 0.0200, by item cosine 0.3200" in lines
    assert "restarts     1; the last one lost 333 steps since the last checkpoint, 5.6 s" in lines


@pytest.mark.slow
def test_watch_repeats_until_signal(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "runs" / "plays", metrics=[step(5, at=9)], state=state("done", at=9))
    with started("status", folder, "--json", "--watch", 0.1, cwd=tmp_path) as watching:
        assert watching.process.stdout is not None
        assert json.loads(watching.process.stdout.readline())["runs"][0]["step"] == 5
        with (folder / "events.jsonl").open("a") as file:
            file.write(json.dumps(step(6, at=10)) + "\n")
        wait_until(lambda: json.loads(watching.process.stdout.readline())["runs"][0]["step"] == 6, "step 6")  # type: ignore[union-attr]
        watching.process.send_signal(signal.SIGINT)
        assert watching.finish().returncode == 130


def test_missing_run_is_rejected_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = crossfade_here("status", cwd=tmp_path)
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert "runs: is not there" in result.stderr
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file: is a file"):
        printed_by(tmp_path / "file", capsys=capsys)
    (tmp_path / "runs").mkdir()
    assert printed_by(tmp_path / "runs", capsys=capsys) == "no runs yet\n"
    assert printed_by(tmp_path / "runs", "--json", capsys=capsys) == '{"runs": [], "services": []}\n'
