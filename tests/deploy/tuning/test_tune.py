"""``crossfade tune``: trials are compared only on the valid split, and studies resume."""

import json
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster_data import write_job, write_planted
from command_here import crossfade_here
from paced_training import Training, pace
from running_command import messages, single_line, started, succeeded
from waiting import wait_until

from crossfade.base.errors import InputError
from crossfade.cli.tune import describe_best
from crossfade.deploy.tuning.rungs import Rung
from crossfade.deploy.tuning.search_space import SearchParameter
from crossfade.deploy.tuning.study import TrialResult

pytestmark = pytest.mark.slow

EPOCHS, LIMIT, RUNGS = 3, 10, ((1, 18), (3, 4))
# A quarter of the settings diverges, as they often do at the ends of a range.
SEARCH = ("optimizer.learning_rate=0.1|1.0e30|3.0|10.0", "model.temperature=0.05..0.2")
QUICK = ("tune", "job.yaml", "--quick", *(word for each in SEARCH for word in ("--search", each)))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a dataset and a short job, and train it."""
    folder = tmp_path_factory.mktemp("tune")
    sections: dict[str, Any] = {
        "train": {"epochs": EPOCHS, "batch_size": 512},
        "optimizer": {"kind": "sgd", "learning_rate": 0.5},
    }
    write_job(folder / "job.yaml", write_planted(folder / "data"), **sections)
    write_planted(folder / "train-only", held_out=False)
    succeeded(crossfade_here("train", "job.yaml", cwd=folder))
    return folder


@pytest.fixture(scope="module")
def quick(workspace: Path) -> Path:
    """Run a quick study; return its folder, beside what it has printed."""
    result = succeeded(crossfade_here(*QUICK, cwd=workspace))
    (workspace / "stdout").write_text(result.stdout)
    (workspace / "stderr").write_text(result.stderr)
    return workspace / "runs" / "planted-tune-quick"


def reports(study: Path) -> dict[int, dict[str, Any]]:
    """Return the report of each trial that has one, by its number."""
    return {int(path.parent.name[6:]): json.loads(path.read_text()) for path in study.glob("trial-*/report.json")}


def valid(report: dict[str, Any]) -> float:
    found: float = report["metrics"]["valid"]["ndcg@10"]
    return found


def rows(printed: str) -> list[list[str]]:
    """Return the cells of the printed trials, without the heading."""
    lines = [line for line in printed.splitlines() if re.match(r"\d+ ", line)]
    return [re.split(r"  +", line) for line in lines]


def test_study_finds_better_parameters_and_writes_them_as_a_job(workspace: Path) -> None:
    # One learning rate trains nothing, the other does.
    search = ["--search", "optimizer.learning_rate=1.0e-9|0.3", "--search", "model.dim=4..8", "--out", "found"]
    result = succeeded(crossfade_here("tune", "job.yaml", "--trials", 4, *search, cwd=workspace))
    head, *_, last = result.stdout.splitlines()
    assert head.split() == ["epochs", "trial", "valid", "ndcg@10", "seconds", "learning_rate", "dim"]
    values = [float(row[2]) for row in rows(result.stdout)]
    assert len(values) == 4
    assert values == sorted(values, reverse=True)
    assert values[0] > values[-1]
    assert last.startswith("next: ")
    assert last.endswith(" train found/best.yaml --run-dir planted-best")
    best = yaml.safe_load((workspace / "found" / "best.yaml").read_text())
    _, number, value, _, rate, dim = rows(result.stdout)[0]
    assert (best["optimizer"]["learning_rate"], float(rate), best["model"]["dim"]) == (0.3, 0.3, int(dim))
    report = reports(workspace / "found")[int(number)]
    assert valid(report) == pytest.approx(float(value), abs=5e-5)
    # Trials must not be evaluated on the test split, although the dataset has one.
    assert set(report["metrics"]) == {"valid"}
    assert not list((workspace / "found").glob("trial-*/checkpoints"))
    trained = succeeded(crossfade_here("train", "found/best.yaml", "--run-dir", "best", cwd=workspace))
    assert "test" in trained.stdout
    again = json.loads((workspace / "best" / "report.json").read_text())
    assert again["metrics"]["valid"] == pytest.approx(report["metrics"]["valid"])


def test_quick_study_tries_many_settings_within_ten_trainings(workspace: Path, quick: Path) -> None:
    found = reports(quick)
    whole = json.loads((workspace / "runs" / "planted" / "report.json").read_text())
    # Also those that diverged, which have no report, cost no more than a training of their rung.
    assert len(list(quick.glob("trial-*.log"))) == sum(trials for _, trials in RUNGS)
    assert sum(trials * epochs for epochs, trials in RUNGS) <= LIMIT * EPOCHS
    assert sum(report["examples"] for report in found.values()) <= LIMIT * whole["examples"]
    assert {split for report in found.values() for split in report["metrics"]} == {"valid"}
    # The job's own settings are trained as by 'crossfade train'.
    assert found[18]["metrics"]["valid"] == whole["metrics"]["valid"]


def test_quick_study_prints_all_it_tried(workspace: Path, quick: Path) -> None:
    errors, printed = (workspace / "stderr").read_text(), (workspace / "stdout").read_text()
    assert any("failed: " in line and "(log: " in line for line in messages(errors))
    found, tried = reports(quick), rows(printed)
    assert [int(row[0]) for row in tried] == [epochs for epochs, trials in reversed(RUNGS) for _ in range(trials)]
    failed = [row for row in tried if row[2] == "failed"]
    assert {float(row[4]) for row in failed} == {1e30}
    for epochs, number, value, _, rate, temperature, *note in (row for row in tried if row not in failed):
        assert valid(found[int(number)]) == pytest.approx(float(value), abs=5e-5)
        trained = yaml.safe_load((quick / f"trial-{int(number):04}" / "job.yaml").read_text())
        assert trained["model"]["temperature"] == pytest.approx(float(temperature), rel=1e-3)
        assert trained["optimizer"]["learning_rate"] == pytest.approx(float(rate) * EPOCHS / int(epochs))
        assert (note == ["the job's own"]) == (number in {"0", "18"})
    for epochs, _ in RUNGS:
        values = [float(row[2]) for row in tried if row[0] == str(epochs) and row not in failed]
        assert values == sorted(values, reverse=True)
    assert printed.splitlines()[-1].endswith(" train runs/planted-tune-quick/best.yaml --run-dir runs/planted-best")
    settings = yaml.safe_load((quick / "best.yaml").read_text())
    assert settings["optimizer"]["learning_rate"] == float(tried[0][4])


def test_no_command_is_printed_where_no_setting_is_better() -> None:
    best = TrialResult(3, Rung(1, 16, 4, None), is_own=True, parameters={}, value=0.2, seconds=1.0)
    assert describe_best(best, Path("study"), "x") == "no setting that was tried is better than the job's own"
    assert describe_best(replace(best, is_own=False), Path("study"), "x").startswith("next: ")


def test_killed_and_stopped_study_resumes_within_its_trial(workspace: Path) -> None:
    out = workspace / "ended"
    trial, release = out / "trial-0000", workspace / "ended.release"
    command = ["tune", "job.yaml", "--out", out.name, "--search", "model.dim=4..8", "--trials", "2"]
    command += ["--set", "checkpoint.interval_steps=2"]
    dims = []
    for number in (signal.SIGKILL, signal.SIGINT):
        with started(*command, cwd=workspace, variables=pace(workspace, release, step_seconds=0.5)) as tuning:
            Training(tuning, trial, release).wait_for("checkpoint_saved")
            dims.append(yaml.safe_load((trial / "job.yaml").read_text())["model"]["dim"])
            tuning.process.send_signal(number)
            stopped = tuning.finish()
            wait_until(lambda mark=tuning.mark: not mark.processes(), "the end of the trial")
    assert stopped.returncode == 130
    assert "crossfade: stopped by SIGINT after 0 of 2 trials; the same command resumes the study" in stopped.stderr
    succeeded(crossfade_here(*command, cwd=workspace))
    assert len(reports(out)) == 2
    assert (out / "trial-0000.log").read_text().count("resuming from step") == 2
    assert {*dims, yaml.safe_load((trial / "job.yaml").read_text())["model"]["dim"]} == {dims[0]}


@pytest.mark.parametrize("options", [(), ("--quick",)])
def test_five_failed_trials_in_a_row_end_the_study(workspace: Path, options: tuple[str, ...]) -> None:
    search = ["--search", "optimizer.learning_rate=1.0e30|1.0e31", "--out", f"failing{len(options)}"]
    result = crossfade_here("tune", "job.yaml", *options, *search, cwd=workspace)
    assert result.returncode == 1
    error = messages(result.stderr)[-1]
    assert error.startswith("crossfade: error: 5 trials in a row failed, the last one: ")
    assert f"(log: failing{len(options)}/trial-000{5 if options else 4}.log)" in error
    assert not (workspace / f"failing{len(options)}" / "best.yaml").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--search", "model.dim=64..4"], "--search model.dim=64..4: expected KEY=LOW..HIGH"),
        (["--search", "model.dimm=4..8"], "unknown key 'model.dimm'; did you mean 'dim'?"),
        (["--search", "model.dim=0..8"], "model.dim: input should be greater than or equal to 1"),
        (["--search", "loss=bpr|bprr"], "loss: "),
        (["--search", "model.dim=4..8", "--search", "model.dim=4|5"], "--search model.dim: the key is repeated"),
        (["--out", "data"], "data: exists and holds no study"),
        (["--set", "data.path=nowhere"], "nowhere"),
        (["--set", "data.path=train-only"], "has no valid split to compare settings by"),
        (["--quick", "--trials", 5], "--trials 5: --quick itself chooses how many settings it tries; leave one out"),
        (["--quick", "--search", "train.epochs=1..3"], "--search train.epochs: --quick sets it"),
        (["--quick"], "runs/planted-tune-quick: holds a study of another search space; name another folder"),
        (["--quick", "--set", "model.dim=9"], "holds a study of another job: model.dim was 8 and is now 9"),
        (["--out", "runs/planted-tune-quick"], "runs/planted-tune-quick: holds a study with --quick; name another"),
    ],
)
@pytest.mark.usefixtures("quick")
def test_invalid_study_is_rejected_in_one_line(workspace: Path, options: list[object], message: str) -> None:
    result = crossfade_here("tune", "job.yaml", *options, cwd=workspace)
    assert message in single_line(result.returncode, result.stdout, result.stderr)
    assert not (workspace / "runs" / "planted-tune").exists()


def test_search_parameter_parses_integers_floats_and_choices() -> None:
    assert SearchParameter.parse("a.b=1..8") == SearchParameter("a.b", 1, 8)
    assert isinstance(SearchParameter.parse("a.b=1..8").low, int)
    assert SearchParameter.parse("a.b=log:1e-3..1") == SearchParameter("a.b", 0.001, 1, log=True)
    assert SearchParameter.parse("a=x|2|null|1e-3").choices == ("x", 2, None, 0.001)
    for invalid in ("a", "a=", "=1..2", "a=1", "a=1..x", "a=2..1"):
        with pytest.raises(InputError, match=r"expected KEY=LOW\.\.HIGH"):
            SearchParameter.parse(invalid)
