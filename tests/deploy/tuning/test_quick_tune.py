"""``crossfade tune --quick``: halving on valid within ten trainings; a stopped study ends with equal results."""

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster_data import write_job, write_planted
from command_here import crossfade_here
from paced_training import Training, pace
from running_command import crossfade, messages, single_line, started, succeeded
from waiting import wait_until

pytestmark = pytest.mark.slow

EPOCHS, LIMIT, RUNGS = 3, 10, ((1, 18), (3, 4))
# A quarter of the settings diverges, as they often do at the ends of a range.
SEARCH = ("--search", "optimizer.learning_rate=0.1|1.0e30|3.0|10.0", "--search", "model.temperature=0.05..0.2")
STUDY_SECONDS = 600.0
TUNE = ("tune", "job.yaml", "--quick", *SEARCH, "--set", "checkpoint.interval_steps=2")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a dataset and a short job, train it, and run a study of it that is stopped once and resumed."""
    folder = tmp_path_factory.mktemp("quick")
    sections: dict[str, Any] = {
        "train": {"epochs": EPOCHS, "batch_size": 512},
        "optimizer": {"kind": "sgd", "learning_rate": 0.5},
    }
    write_job(folder / "job.yaml", write_planted(folder / "data"), **sections)
    succeeded(crossfade_here("train", "job.yaml", cwd=folder))
    study, release = folder / "runs" / "planted-tune-quick", folder / "release"
    with started(*TUNE, cwd=folder, variables=pace(folder, release)) as tuning:
        release.touch()
        training = Training(tuning, study / "rung-2-trial-00", release)
        training.wait((study / f"rung-1-trial-{RUNGS[0][1] - 1:02}.log").exists, "the last setting", STUDY_SECONDS)
        release.unlink()
        training.wait_for("checkpoint_saved")
        tuning.process.send_signal(signal.SIGINT)
        stopped = tuning.finish()
        wait_until(lambda: not tuning.mark.processes(), "the end of the training")
    assert stopped.returncode == 130
    (folder / "stopped").write_text(stopped.stderr)
    (folder / "first.json").write_text(json.dumps(written_at(study)))
    assert not (study / "rung-2-trial-00" / "report.json").exists()
    result = succeeded(crossfade(*TUNE, cwd=folder, seconds=STUDY_SECONDS))
    (folder / "stdout").write_text(result.stdout)
    (folder / "stderr").write_text(result.stderr)
    return folder


def written_at(study: Path) -> dict[str, int]:
    """Return when each report was written, by the name of its folder."""
    return {path.parent.name: path.stat().st_mtime_ns for path in study.glob("rung-*/report.json")}


def reports(study: Path) -> dict[str, dict[str, Any]]:
    """Return the report of each training that has one, by the name of its folder."""
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(study.glob("rung-*/report.json"))}


def test_study_tries_many_settings_within_ten_trainings(workspace: Path) -> None:
    study = workspace / "runs" / "planted-tune-quick"
    found = reports(study)
    whole = json.loads((workspace / "runs" / "planted" / "report.json").read_text())
    # Also those that diverged, which have no report, cost no more than a training of their rung.
    assert len(list(study.glob("rung-*-trial-*.log"))) == sum(trials for _, trials in RUNGS)
    assert sum(trials * epochs for epochs, trials in RUNGS) <= LIMIT * EPOCHS
    assert sum(report["examples"] for report in found.values()) <= LIMIT * whole["examples"]
    # Test is never evaluated, although there is one.
    assert set(whole["metrics"]) == {"valid", "test"}
    assert {split for report in found.values() for split in report["metrics"]} == {"valid"}
    assert not list(study.glob("rung-*/checkpoints"))
    # The job's own settings are trained as by 'crossfade train', although that training was stopped and resumed.
    assert found["rung-2-trial-00"]["metrics"]["valid"] == whole["metrics"]["valid"]


def test_study_prints_its_plan_and_all_it_tried(workspace: Path) -> None:
    study = workspace / "runs" / "planted-tune-quick"
    errors = (workspace / "stderr").read_text()
    assert "successive halving on valid ndcg@10; settings: 18 for 1 epoch, 4 for 3 epochs\n" in errors
    assert "  model.temperature: 0.05 to 0.2, in the job 0.1\n" in errors
    assert "\n30 epochs, as many as 10.0 trainings have\n" in errors
    stopped = (workspace / "stopped").read_text()
    assert re.search(r": \d+ trainings are left: about .+, at the speed of the second training$", stopped, re.M)
    assert re.search(r": rung 1 of 2: best valid ndcg@10 .+; 4 trainings are left: about .+$", stopped, re.M)
    assert any("failed: " in line and "(log: " in line for line in messages(errors))
    lines = (workspace / "stdout").read_text().splitlines()
    head, *rows = (line.split() for line in lines[:-3])
    assert head == ["epochs", "trial", "ndcg@10", "seconds", "learning_rate", "temperature"]
    found = reports(study)
    assert len(rows) == sum(trials for _, trials in RUNGS)
    failed = [row for row in rows if row[2] == "failed"]
    assert [float(row[4]) for row in failed] == [1e30] * (len(rows) - len(found))
    assert failed
    rows = [row for row in rows if row not in failed]
    for epochs, trial, value, _, rate, temperature in rows:
        number = 0 if trial == "own" else int(trial)
        name = f"rung-{[each for each, _ in RUNGS].index(int(epochs)) + 1}-trial-{number:02}"
        assert found[name]["metrics"]["valid"]["ndcg@10"] == pytest.approx(float(value), abs=5e-5)
        trained = yaml.safe_load((study / name / "job.yaml").read_text())
        assert trained["model"]["temperature"] == float(temperature)
        assert trained["optimizer"]["learning_rate"] == pytest.approx(float(rate) * EPOCHS / int(epochs))
    assert [int(row[0]) for row in rows] == sorted((int(row[0]) for row in rows), reverse=True)
    for length, _ in RUNGS:
        values = [float(row[2]) for row in rows if row[0] == str(length)]
        assert values == sorted(values, reverse=True)
        assert [row[:2] for row in rows].count([str(length), "own"]) == 1


def test_best_settings_are_those_of_the_best_whole_training(workspace: Path) -> None:
    study = workspace / "runs" / "planted-tune-quick"
    whole = {name: report for name, report in reports(study).items() if name.startswith("rung-2-")}
    best = max(whole, key=lambda name: whole[name]["metrics"]["valid"]["ndcg@10"])
    assert best != "rung-2-trial-00"
    *_, gain, following = (workspace / "stdout").read_text().splitlines()
    values = [whole[name]["metrics"]["valid"]["ndcg@10"] for name in (best, "rung-2-trial-00")]
    number = int(best.rpartition("-")[2])
    assert gain == (
        f"best: trial {number}, ndcg@10 {values[0]:.4f} instead of {values[1]:.4f} on valid, "
        f"{values[0] / values[1] - 1:+.1%}"
    )
    assert following.endswith("train runs/planted-tune-quick/best.yaml")
    succeeded(crossfade_here("train", "runs/planted-tune-quick/best.yaml", "--run-dir", "best", cwd=workspace))
    assert json.loads((workspace / "best" / "report.json").read_text())["metrics"]["valid"]["ndcg@10"] == values[0]


def test_stopped_study_resumes_within_its_training(workspace: Path) -> None:
    study = workspace / "runs" / "planted-tune-quick"
    first = json.loads((workspace / "first.json").read_text())
    stopped = f"stopped by SIGINT after {len(first)} of 22 trainings; the same command resumes the study"
    assert stopped in messages((workspace / "stopped").read_text())[-1]
    assert first.items() < written_at(study).items()
    assert "resuming from step" in (study / "rung-2-trial-00.log").read_text()


def test_three_failed_trainings_in_a_row_end_the_study(workspace: Path) -> None:
    search = ("--search", "optimizer.learning_rate=1.0e30|1.0e31")
    result = crossfade_here("tune", "job.yaml", "--quick", "--out", "failing", *search, cwd=workspace)
    assert result.returncode == 1
    assert messages(result.stderr)[-1].startswith("crossfade: error: 3 trials in a row failed, the last one: ")
    assert "(log: failing/rung-1-trial-03.log)" in result.stderr
    assert not (workspace / "failing" / "best.yaml").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--quick", "--trials", 5], "--trials 5: --quick itself chooses how many settings it tries; leave one out"),
        (["--quick", "--no-pruning"], "--no-pruning: --quick trains only the best settings to the end; "),
        (["--quick", "--search", "train.epochs=1..3"], "--search train.epochs: --quick sets it"),
        (["--quick", "--search", "model.dimm=4..8"], "unknown key 'model.dimm'; did you mean 'dim'?"),
        (["--quick", "--out", "data"], "data: exists and holds no study"),
        (["--quick"], "runs/planted-tune-quick: holds a study of another search space; name another folder"),
        (["--quick", "--set", "model.dim=9"], "holds a study of another job: model.dim was 8 and is now 9"),
        (["--out", "runs/planted-tune-quick"], "runs/planted-tune-quick: holds a study with --quick; name another"),
    ],
)
def test_invalid_study_is_rejected_in_one_line(workspace: Path, options: list[object], message: str) -> None:
    settings = ["--set", "checkpoint.interval_steps=2"]
    result = crossfade_here("tune", "job.yaml", *settings, *options, cwd=workspace)
    assert message in single_line(result.returncode, result.stdout, result.stderr)
