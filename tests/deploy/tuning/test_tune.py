"""``crossfade tune``: trials are compared only on the valid split, and studies resume."""

import json
import signal
from pathlib import Path

import pytest
import yaml
from cluster_data import write_job, write_planted
from command_here import crossfade_here
from paced_training import Training, pace
from running_command import single_line, started, succeeded
from waiting import wait_until

from crossfade.base.errors import InputError
from crossfade.deploy.tuning.search_space import SearchParameter

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a dataset and a short job."""
    folder = tmp_path_factory.mktemp("tune")
    write_job(folder / "job.yaml", write_planted(folder / "data"), train={"epochs": 3, "batch_size": 512})
    return folder


def trials(study: Path) -> list[Path]:
    return sorted(path for path in study.glob("trial-*") if path.is_dir())


def test_study_finds_better_parameters_and_writes_them_as_a_job(workspace: Path) -> None:
    # One learning rate trains nothing, the other does.
    search = ["--search", "optimizer.learning_rate=1.0e-9|0.3", "--search", "model.dim=4..8", "--out", "found"]
    result = succeeded(crossfade_here("tune", "job.yaml", "--trials", 4, "--no-pruning", *search, cwd=workspace))
    head, *rows, last = result.stdout.splitlines()
    assert head.split() == ["trial", "valid", "ndcg@10", "optimizer.learning_rate", "model.dim"]
    assert len(rows) == len(trials(workspace / "found")) == 4
    values = [float(row.split()[1]) for row in rows]
    assert values == sorted(values, reverse=True)
    assert values[0] > values[-1]
    assert last.startswith("next: ")
    assert last.endswith(" train found/best.yaml")
    best = yaml.safe_load((workspace / "found" / "best.yaml").read_text())
    number, value, rate, dim = rows[0].split()
    assert (best["optimizer"]["learning_rate"], best["model"]["dim"]) == (0.3, int(dim))
    assert float(rate) == 0.3
    report = json.loads((workspace / "found" / f"trial-{int(number):04}" / "report.json").read_text())
    # Trials must not be evaluated on the test split, although the dataset has one.
    assert set(report["metrics"]) == {"valid"}
    assert report["metrics"]["valid"]["ndcg@10"] == pytest.approx(float(value), abs=5e-5)
    assert not (workspace / "found" / f"trial-{int(number):04}" / "checkpoints").exists()
    trained = succeeded(crossfade_here("train", "found/best.yaml", "--run-dir", "best", cwd=workspace))
    assert "test" in trained.stdout
    again = json.loads((workspace / "best" / "report.json").read_text())
    assert again["metrics"]["valid"] == pytest.approx(report["metrics"]["valid"])


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
    assert "crossfade: stopped by SIGINT after 0 trials; the same command resumes the study" in stopped.stderr
    succeeded(crossfade_here(*command, cwd=workspace))
    assert len(trials(out)) == 2
    assert (out / "trial-0000.log").read_text().count("resuming from step") == 2
    assert {*dims, yaml.safe_load((trial / "job.yaml").read_text())["model"]["dim"]} == {dims[0]}


def test_three_failed_trials_in_a_row_end_the_study(workspace: Path) -> None:
    search = ["--search", "optimizer.learning_rate=1.0e30|1.0e31", "--set", "optimizer.kind=sgd"]
    result = crossfade_here("tune", "job.yaml", "--out", "failing", *search, cwd=workspace)
    assert result.returncode == 1
    error = result.stderr.splitlines()[-1]
    assert error.startswith("crossfade: error: 3 trials in a row failed, the last one: ")
    assert "(log: failing/trial-0002.log)" in error
    assert not (workspace / "failing" / "best.yaml").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--search", "model.dim=64..4"], "--search model.dim=64..4: expected KEY=LOW..HIGH"),
        (["--search", "model.dim=log:0..4"], "expected KEY=LOW..HIGH"),
        (["--search", "model.dimm=4..8"], "unknown key 'model.dimm'; did you mean 'dim'?"),
        (["--search", "model.dim=0..8"], "model.dim: input should be greater than or equal to 1"),
        (["--search", "loss=bpr|bprr"], "loss: "),
        (["--search", "model.dim=4..8", "--search", "model.dim=4|5"], "--search model.dim: the key is repeated"),
        (["--out", "data"], "data: exists and holds no study"),
        (["--set", "data.path=nowhere"], "nowhere"),
    ],
)
def test_invalid_search_is_rejected_in_one_line(workspace: Path, options: list[str], message: str) -> None:
    result = crossfade_here("tune", "job.yaml", *options, cwd=workspace)
    assert message in single_line(result.returncode, result.stdout, result.stderr)
    assert not (workspace / "runs").exists()


def test_dataset_without_valid_split_is_rejected(workspace: Path, tmp_path: Path) -> None:
    write_job(tmp_path / "job.yaml", write_planted(tmp_path / "data", held_out=False))
    result = crossfade_here("tune", "job.yaml", cwd=tmp_path)
    assert result.returncode == 2
    assert "has no valid split to compare settings by" in result.stderr


def test_search_parameter_parses_integers_floats_and_choices() -> None:
    assert SearchParameter.parse("a.b=1..8") == SearchParameter("a.b", 1, 8)
    assert isinstance(SearchParameter.parse("a.b=1..8").low, int)
    assert SearchParameter.parse("a.b=log:1e-3..1") == SearchParameter("a.b", 0.001, 1, log=True)
    assert SearchParameter.parse("a=x|2|null|1e-3").choices == ("x", 2, None, 0.001)
    for invalid in ("a", "a=", "=1..2", "a=1", "a=1..x", "a=2..1"):
        with pytest.raises(InputError, match=r"expected KEY=LOW\.\.HIGH"):
            SearchParameter.parse(invalid)
