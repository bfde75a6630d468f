"""A run that is taken up again gives what it would have given anyway, whatever ended it and wherever it goes on."""

import json
import signal
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from cluster_data import TRACKS, train_rows, write_job, write_planted
from paced_training import paced
from running_command import crossfade, records, succeeded
from waiting import wait_until

from kvstore.arrays import FloatArray
from kvstore.checkpoint.lifecycle import latest_checkpoint
from kvstore.checkpoint.reader import open_checkpoint
from trainer.embeddings.files import vectors_of

pytestmark = pytest.mark.slow

EPOCHS = 16
TRAIN = {"epochs": EPOCHS, "eval_every_epochs": 4, "patience": None}
OPTIMIZER = {"kind": "adagrad", "schedule": "cosine", "warmup_steps": 20, "min_lr_factor": 0.1}
CHECKPOINT = {"interval_steps": 20, "interval_seconds": None}
ENTITIES = ("customer", "track")
ON_SERVERS = ("--servers", 2, "--workers", 2)
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and a job."""
    folder = tmp_path_factory.mktemp("resume")
    data = write_planted(folder / "data")
    write_job(folder / "job.yaml", data, optimizer=OPTIMIZER, train=TRAIN, checkpoint=CHECKPOINT)
    return folder


@pytest.fixture(scope="module")
def undisturbed(place: Path) -> Path:
    """A run that nothing disturbs, in process."""
    return train(place, "undisturbed")


@pytest.fixture(scope="module")
def undisturbed_on_servers(place: Path) -> Path:
    """The same by two workers on two servers."""
    return train(place, "undisturbed-2-2", *ON_SERVERS)


def train(place: Path, run: str, *options: object) -> Path:
    """Train to the end; the run's folder."""
    succeeded(crossfade("train", "job.yaml", "--run-dir", run, *options, cwd=place))
    return place / run


def vectors(run: Path, entity: str) -> FloatArray:
    """The embeddings of a run, in the order of rows."""
    tables = [pq.read_table(path) for path in sorted((run / "embeddings" / entity).glob("*.parquet"))]
    return np.concatenate([vectors_of(table.column("vector")) for table in tables])


def assert_same_bits(one: Path, other: Path) -> None:
    for entity in ENTITIES:
        assert vectors(one, entity).tobytes() == vectors(other, entity).tobytes(), entity


def report_of(run: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((run / "report.json").read_text())
    return report


def saved_steps(run: Path) -> list[int]:
    """The steps of which a checkpoint was written, as the run's records tell."""
    return [record["step"] for record in records(run) if record["event"] == "checkpoint_saved"]


def stop_after_a_checkpoint(
    place: Path, run: str, number: signal.Signals, *options: object, checkpoints: int = 2
) -> tuple[int, str]:
    """Train, and send ``number`` once so many checkpoints are written; exit code and standard error."""
    with paced("train", "job.yaml", *options, run_dir=place / run) as training:
        for _ in range(checkpoints):
            training.wait_for("checkpoint_saved")
        training.command.process.send_signal(number)
        result = training.command.finish()
        wait_until(lambda: training.command.mark.processes() == [], 10, "the end of all processes")
    assert not (place / run / "report.json").exists()
    return result.returncode, result.stderr


@pytest.mark.parametrize(
    ("number", "shape"),
    [(signal.SIGKILL, ()), (signal.SIGINT, ()), (signal.SIGKILL, ON_SERVERS), (signal.SIGTERM, ON_SERVERS)],
    ids=["SIGKILL-in process", "SIGINT-in process", "SIGKILL-on servers", "SIGTERM-on servers"],
)
def test_a_run_that_was_ended_resumes_to_the_bits_of_one_that_was_not(
    place: Path, undisturbed: Path, undisturbed_on_servers: Path, number: signal.Signals, shape: Sequence[object]
) -> None:
    run = f"ended-{number.name}-{len(shape)}"
    code, stderr = stop_after_a_checkpoint(place, run, number, *shape)
    assert code == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[number], stderr
    ended_at = saved_steps(place / run)[-1]
    assert ended_at < report_of(undisturbed)["steps"], "it was to be ended before its end"
    if number != signal.SIGKILL:
        assert "--resume" in stderr
    train(place, run, *shape, "--resume")
    assert_same_bits(place / run, undisturbed_on_servers if shape else undisturbed)
    ours, theirs = report_of(place / run), report_of(undisturbed_on_servers if shape else undisturbed)
    for name in ("examples", "steps", "epochs", "rows_pushed", "bytes_pulled", "best_epoch"):
        assert ours[name] == theirs[name], name


def test_a_run_that_is_resumed_reads_on_from_its_cursor(place: Path, undisturbed: Path) -> None:
    run = place / "reads-on"
    stop_after_a_checkpoint(place, run.name, signal.SIGTERM)
    at = saved_steps(run)[-1]
    before = len(records(run))
    train(place, run.name, "--resume")
    [begins] = [
        record for record in records(run)[before:] if record["event"] == "phase" and record["name"] == "training"
    ]
    assert begins["step"] == at > 0
    assert report_of(run)["examples"] == train_rows() * EPOCHS


def test_the_newest_checkpoints_are_kept_and_a_run_ends_with_one(undisturbed: Path) -> None:
    names = sorted(path.name for path in (undisturbed / "checkpoints").glob("step-*"))
    steps = report_of(undisturbed)["steps"]
    assert len(names) == 3
    assert names[-1] == f"step-{steps:09d}"
    checkpoint, reasons = latest_checkpoint(str(undisturbed / "checkpoints"))
    assert checkpoint is not None
    assert checkpoint.manifest.step == steps
    assert reasons == []
    counted = report_of(undisturbed)["checkpoints"]
    assert counted["written"] == len(saved_steps(undisturbed)) > 3
    assert counted["failed"] == 0
    assert 0 < counted["longest_pause_seconds"] <= counted["pause_seconds"]


def damage(path: Path) -> None:
    """Flip a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("victim", "shape"),
    [("manifest.json", ()), ("part-00000*.json", ON_SERVERS), ("track/weights.00000*.npy", ())],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    place: Path, undisturbed: Path, undisturbed_on_servers: Path, victim: str, shape: Sequence[object]
) -> None:
    run = place / f"damaged-{victim[:5]}-{len(shape)}"
    stop_after_a_checkpoint(place, run.name, signal.SIGTERM, *shape)
    *_, before, newest = sorted((run / "checkpoints").glob("step-*"))
    [path] = newest.glob(victim)
    damage(path)
    resumed = len(records(run))
    result = succeeded(crossfade("train", "job.yaml", "--run-dir", run, *shape, "--resume", cwd=place))
    assert f"{newest.name}/{path.relative_to(newest)}" in result.stderr
    started_at = [record["step"] for record in records(run)[resumed:] if record.get("name") == "training"]
    assert started_at[-1] == int(before.name.removeprefix("step-"))
    assert_same_bits(run, undisturbed_on_servers if shape else undisturbed)


def test_a_run_without_any_whole_checkpoint_resumes_from_the_start_and_says_so(place: Path, undisturbed: Path) -> None:
    run = place / "none-whole"
    stop_after_a_checkpoint(place, run.name, signal.SIGKILL)
    for path in (run / "checkpoints").glob("step-*/manifest.json"):
        path.unlink()
    result = succeeded(crossfade("train", "job.yaml", "--run-dir", run, "--resume", cwd=place))
    assert "skipped a checkpoint" in result.stderr
    assert_same_bits(run, undisturbed)


def test_a_resume_says_from_where_or_that_there_is_nothing_to_take_up(place: Path) -> None:
    run = ("train", "job.yaml", "--run-dir", "says", "--resume", "--set")
    first = succeeded(crossfade(*run, "train.max_steps=1", cwd=place))
    assert first.stderr.startswith("crossfade: says: there is no run to resume, so a new one starts\n")
    second = succeeded(crossfade(*run, "train.max_steps=2", cwd=place))
    assert second.stderr.startswith("crossfade: resuming from step 1\n")


@pytest.mark.parametrize("name", ["nowhere", "empty", "partial"])
def test_a_place_to_start_from_that_holds_no_checkpoint_is_refused(place: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "partial" / "step-000000007").mkdir(parents=True)
    start = ("--set", f"checkpoint.warm_start_from={tmp_path / name}")
    result = crossfade("train", "job.yaml", "--run-dir", tmp_path / "run", *start, cwd=place)
    assert result.returncode == 2
    assert f"checkpoint.warm_start_from: {tmp_path / name}: found no complete checkpoint" in result.stderr
    assert ("step-000000007/manifest.json: missing" in result.stderr) == (name == "partial")


def test_resuming_another_job_is_refused_and_the_keys_named(place: Path) -> None:
    run = place / "another-job"
    stop_after_a_checkpoint(place, run.name, signal.SIGKILL)
    other = ("--set", "optimizer.learning_rate=0.2", "--set", "train.epochs=3")
    result = crossfade("train", "job.yaml", "--run-dir", run, "--resume", *other, cwd=place)
    assert result.returncode == 2
    assert "cannot resume: optimizer.learning_rate was 0.1 and is now 0.2" in result.stderr
    assert "epochs" not in result.stderr


def test_resuming_on_other_data_is_refused(place: Path, tmp_path: Path) -> None:
    data = write_planted(tmp_path / "data")
    write_job(tmp_path / "job.yaml", data, train=TRAIN, checkpoint=CHECKPOINT)
    stop_after_a_checkpoint(tmp_path, "run", signal.SIGKILL)
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["source"]["made"] = "anew"
    (data / "manifest.json").write_text(json.dumps(manifest))
    result = crossfade("train", "job.yaml", "--run-dir", "run", "--resume", cwd=tmp_path)
    assert result.returncode == 2
    assert f"cannot resume: {data} has changed since" in result.stderr


def test_a_run_longer_than_the_last_goes_on_from_its_end(place: Path) -> None:
    # A schedule's rate goes by the steps of the whole run, so that a run made longer is another one.
    constant = ("--set", "optimizer.schedule=constant")
    whole, run = train(place, "whole", *constant), place / "longer"
    train(place, run.name, *constant, "--set", "train.max_steps=137")
    assert saved_steps(run)[-1] == 137
    train(place, run.name, *constant, "--resume")
    # It was judged once more, when it ended first, so that other embeddings may be the best; its tables are the same.
    for entity in ENTITIES:
        np.testing.assert_array_equal(weights_at_the_end(run, entity), weights_at_the_end(whole, entity))
    assert report_of(run)["examples"] == report_of(whole)["examples"]


def test_checkpoints_may_be_said_to_be_where_they_are_anyway(place: Path) -> None:
    inside = ("--set", "checkpoint.path=inside/checkpoints", "--set", "train.epochs=1")
    for _ in range(2):
        train(place, "inside", *inside)
        assert list((place / "inside" / "checkpoints").glob("step-*"))
    assert (place / "inside.1" / "checkpoints").exists()


def test_two_runs_do_not_share_a_folder_of_checkpoints(place: Path, tmp_path: Path) -> None:
    shared = ("--set", f"checkpoint.path={tmp_path / 'shared'}", "--set", "train.epochs=1")
    train(place, "first", *shared)
    result = crossfade("train", "job.yaml", "--run-dir", "second", *shared, cwd=place)
    assert result.returncode == 2
    assert f"{tmp_path / 'shared'}: holds checkpoints of another run, of job 'planted'" in result.stderr
    assert not (place / "second" / "events.jsonl").exists()


def test_a_folder_that_cannot_be_written_is_refused_at_the_start(place: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    nowhere = tmp_path / "file" / "checkpoints"
    result = crossfade(
        "train", "job.yaml", "--run-dir", tmp_path / "run", "--set", f"checkpoint.path={nowhere}", cwd=place
    )
    assert result.returncode == 2
    assert f"checkpoint.path: {nowhere} cannot be written" in result.stderr


@pytest.mark.cluster
@pytest.mark.parametrize("servers", [0, 3])
def test_a_checkpoint_of_two_servers_goes_on_with_any_number(
    place: Path, undisturbed: Path, undisturbed_on_servers: Path, servers: int
) -> None:
    run = place / f"moved-to-{servers}"
    stop_after_a_checkpoint(place, run.name, signal.SIGTERM, *ON_SERVERS)
    train(place, run.name, *(("--servers", servers, "--workers", 2) if servers else ()), "--resume")
    if servers:
        assert_same_bits(run, undisturbed_on_servers)
    else:
        for entity in ENTITIES:
            assert np.abs(vectors(run, entity) - vectors(undisturbed, entity)).max() < TOLERANCE


@pytest.mark.cluster
def test_a_checkpoint_of_a_process_goes_on_with_servers(place: Path, undisturbed: Path) -> None:
    run = place / "moved-from-0"
    stop_after_a_checkpoint(place, run.name, signal.SIGTERM)
    train(place, run.name, "--servers", 3, "--resume")
    assert_same_bits(run, undisturbed)


def weights_at_the_end(run: Path, entity: str) -> FloatArray:
    """The rows of the newest checkpoint of a run."""
    checkpoint, _ = latest_checkpoint(str(run / "checkpoints"))
    assert checkpoint is not None
    with closing(checkpoint):
        return checkpoint.weights(entity, 0, checkpoint.rows(entity))


@pytest.mark.parametrize("shape", [(), ON_SERVERS], ids=["in process", "on servers"])
def test_a_larger_vocabulary_starts_with_the_rows_of_a_smaller_one(
    place: Path, undisturbed: Path, tmp_path: Path, shape: Sequence[object]
) -> None:
    data = write_planted(tmp_path / "larger", tracks=TRACKS + 37)
    still = {"optimizer": {"kind": "adagrad", "learning_rate": 1e-30}, "train": {"max_steps": 1, "epochs": 1}}
    write_job(tmp_path / "fresh.yaml", data, **still)
    write_job(tmp_path / "warm.yaml", data, **still, checkpoint={"warm_start_from": str(undisturbed / "checkpoints")})
    # Fresh rows have the same bits in process and on servers.
    succeeded(crossfade("train", "fresh.yaml", "--run-dir", "fresh", cwd=tmp_path))
    succeeded(crossfade("train", "warm.yaml", "--run-dir", "warm", *shape, cwd=tmp_path))
    fresh, warm = (weights_at_the_end(tmp_path / name, "track") for name in ("fresh", "warm"))
    old = weights_at_the_end(undisturbed, "track")
    assert len(warm) == len(old) + 37
    np.testing.assert_array_equal(warm[: len(old)], old)
    np.testing.assert_array_equal(warm[len(old) :], fresh[len(old) :])
    assert not np.allclose(fresh[: len(old)], old)


def test_rows_of_another_size_are_refused_before_anything_starts(
    place: Path, undisturbed: Path, tmp_path: Path
) -> None:
    start = ("--set", f"checkpoint.warm_start_from={undisturbed / 'checkpoints'}", "--set", "model.dim=16")
    result = crossfade("train", "job.yaml", "--run-dir", tmp_path / "run", *start, cwd=place)
    assert result.returncode == 2
    assert "checkpoint.warm_start_from: " in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_says_which_run_and_job_it_is_of(undisturbed: Path) -> None:
    [*_, newest] = sorted((undisturbed / "checkpoints").glob("step-*"))
    training = open_checkpoint(str(newest)).manifest.training
    assert training["job"]["name"] == "planted"
    assert training["run"] == json.loads((undisturbed / "run.json").read_text())["id"]
    assert Path(training["job"]["data"]["path"]).is_absolute()
