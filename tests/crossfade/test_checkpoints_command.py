"""``crossfade checkpoints list`` shows checkpoints with their state."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from cluster_data import write_job
from command_here import crossfade_here
from object_store import ObjectStore
from running_command import single_line
from saved_shards import random_table, reseal, save_shards, split_table

from crossfade.base.io.folder import Folder
from crossfade.kvstore.checkpoint.lifecycle import step_folder
from crossfade.kvstore.optimizer_spec import OptimizerSpec
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.config.loading import load_job
from crossfade.trainer.runs.run_folder import RunFolder

pytestmark = pytest.mark.slow

SGD = OptimizerSpec("sgd")
TRACK = TableSpec("track", rows=6, dim=2, init_std=0.1)
COMPLETE, FLIPPED, CORRUPT, NEWER, UNFINISHED = 1, 2, 3, 4, 5
"""Steps of a checkpoint that is complete, and of others: with a changed value, without a file, ..."""


def save(checkpoints: str) -> None:
    """Write a checkpoint of each state."""
    for step in (COMPLETE, FLIPPED, CORRUPT, NEWER):
        shards = split_table(TRACK, random_table(TRACK, SGD), 2)
        save_shards(checkpoints, step, [TRACK], SGD, [shards], {"run": "mine"})
    Folder(checkpoints).child(f"step-{UNFINISHED:09d}").write("part-00000-of-00001.json", b"{}")


def damage(checkpoints: Path) -> None:
    path = Path(step_folder(str(checkpoints), FLIPPED), "track", "weights.00001-of-00002.npy")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    Path(step_folder(str(checkpoints), CORRUPT), "track", "weights.00001-of-00002.npy").unlink()
    manifest = Path(step_folder(str(checkpoints), NEWER), "manifest.json")
    reseal(manifest, lambda text: text.replace('"version": 2', '"version": 3'))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run folder with checkpoints of all states, written two hours ago."""
    run = tmp_path_factory.mktemp("checkpoints") / "run"
    with RunFolder(run).open_run(load_job(write_job(run.with_name("job.yaml"), run))):
        pass
    checkpoints = run / "checkpoints"
    save(str(checkpoints))
    damage(checkpoints)
    for path in run.rglob("*"):
        os.utime(path, (time.time() - 7200,) * 2)
    return run


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(run, tmp_path / "run")


def states(source: object, *options: str) -> dict[int, str]:
    result = crossfade_here("checkpoints", "list", source, "--json", *options)
    assert (result.returncode, result.stderr) == (0, "")
    return {entry["step"]: entry["state"] for entry in json.loads(result.stdout)}


EXPECTED = {
    COMPLETE: "complete",
    FLIPPED: "complete",
    CORRUPT: "corrupt",
    NEWER: "other format",
    UNFINISHED: "incomplete",
}


def test_list_has_each_state_and_verify_reads_the_values(run: Path) -> None:
    assert states(run) == EXPECTED
    assert states(run / "checkpoints", "--verify") == {**EXPECTED, FLIPPED: "corrupt"}
    lines = crossfade_here("checkpoints", "list", run).stdout.splitlines()
    assert lines[0].split() == ["step", "size", "age", "state"]
    assert lines[1].endswith("2 h  complete")
    assert "weights.00001-of-00002.npy: missing" in lines[3]
    assert lines[5].endswith("incomplete: it has no manifest")
    [entry, *_] = json.loads(crossfade_here("checkpoints", "list", run, "--json").stdout)
    assert (entry["run"], entry["bytes"] > 500) == ("mine", True)


def error(*arguments: object) -> str:
    result = crossfade_here("checkpoints", *arguments)
    return single_line(result.returncode, result.stdout, result.stderr)


def test_folder_without_checkpoints_is_rejected(copy: Path, tmp_path: Path) -> None:
    assert "nowhere" in error("list", tmp_path / "nowhere")
    assert "checkpoint" in error("list", step_folder(str(copy / "checkpoints"), COMPLETE))
    (copy / "checkpoints").rename(tmp_path / "elsewhere")
    assert states(copy) == {}


def test_checkpoints_on_s3_are_listed(s3: ObjectStore, run: Path) -> None:
    uri = s3.upload(run / "checkpoints", "runs/checkpoints")
    assert states(uri, "--verify") == {**EXPECTED, FLIPPED: "corrupt"}
