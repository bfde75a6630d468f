"""``crossfade status`` on real runs: during training, after a kill, and at the end."""

import json
from pathlib import Path
from typing import Any

import pytest
from cluster_data import CUSTOMERS, TRACKS, write_job, write_planted
from command_here import crossfade_here
from paced_training import paced
from run_folders import state, step, write_run
from running_command import records, succeeded

from crossfade.cli.main import make_parser

pytestmark = pytest.mark.slow


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


# tests/deploy/dashboard/test_dashboard.py shows a restart on servers, by this command too.
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
