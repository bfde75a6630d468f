"""``crossfade checkpoints`` lists checkpoints with their state, and deletes only what no checkpoint needs."""

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
    """Write a checkpoint of each state, with what processes that were killed leave."""
    for step in (COMPLETE, FLIPPED, CORRUPT, NEWER):
        shards = split_table(TRACK, random_table(TRACK, SGD), 2)
        save_shards(checkpoints, step, [TRACK], SGD, [shards], {"run": "mine"})
    Folder(checkpoints).child(f"step-{UNFINISHED:09d}").write("part-00000-of-00001.json", b"{}")
    Folder(checkpoints).child(f"step-{COMPLETE:09d}").write("track/weights.00000-of-00001.npy", b"123")


def damage(checkpoints: Path) -> None:
    path = Path(step_folder(str(checkpoints), FLIPPED), "track", "weights.00001-of-00002.npy")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    Path(step_folder(str(checkpoints), CORRUPT), "track", "weights.00001-of-00002.npy").unlink()
    manifest = Path(step_folder(str(checkpoints), NEWER), "manifest.json")
    reseal(manifest, lambda text: text.replace('"version": 2', '"version": 3'))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run folder with checkpoints of all states and temporary files, written two hours ago."""
    run = tmp_path_factory.mktemp("checkpoints") / "run"
    with RunFolder(run).open_run(load_job(write_job(run.with_name("job.yaml"), run))):
        pass
    checkpoints = run / "checkpoints"
    save(str(checkpoints))
    damage(checkpoints)
    for path in (run / ".state.json.7.partial", checkpoints / ".owner.json.7.partial"):
        path.write_text("{")
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


def cleaned(source: object, *options: str) -> list[str]:
    """Clean, and return the kinds of what was, or would be, deleted."""
    result = crossfade_here("checkpoints", "clean", source, *options)
    assert (result.returncode, result.stderr) == (0, "")
    *lines, total = result.stdout.splitlines()
    assert total.startswith(f"{len(lines)} {'to delete' if '--dry-run' in options else 'deleted'}, ")
    return sorted(line.partition(": ")[2].partition(",")[0] for line in lines)


LEFT = ["file of no checkpoint", "temporary file", "temporary file", "unfinished checkpoint"]


def test_clean_deletes_what_no_checkpoint_needs_and_is_old_enough(copy: Path) -> None:
    before = set(copy.rglob("*"))
    assert cleaned(copy) == []
    assert cleaned(copy, "--older-than", "1", "--dry-run") == LEFT
    assert set(copy.rglob("*")) == before
    assert cleaned(copy, "--older-than", "1") == LEFT
    unfinished = copy / "checkpoints" / f"step-{UNFINISHED:09d}"
    assert before - set(copy.rglob("*")) == {
        *(copy / ".state.json.7.partial", copy / "checkpoints" / ".owner.json.7.partial"),
        *(unfinished, unfinished / "part-00000-of-00001.json"),
        copy / "checkpoints" / f"step-{COMPLETE:09d}" / "track" / "weights.00000-of-00001.npy",
    }
    assert cleaned(copy, "--older-than", "0") == []
    assert states(copy) == {step: state for step, state in EXPECTED.items() if step != UNFINISHED}


def error(*arguments: object) -> str:
    result = crossfade_here("checkpoints", *arguments)
    return single_line(result.returncode, result.stdout, result.stderr)


def test_clean_leaves_the_folder_of_a_run_in_progress_alone(copy: Path) -> None:
    with RunFolder(copy).lock.kept_free():
        assert "a run is in progress" in error("clean", copy, "--older-than", "0")
    assert set(states(copy)) == set(EXPECTED)


def test_folder_without_checkpoints_is_rejected(copy: Path, tmp_path: Path) -> None:
    assert "nowhere" in error("list", tmp_path / "nowhere")
    assert "checkpoint" in error("clean", step_folder(str(copy / "checkpoints"), COMPLETE))
    (copy / "checkpoints").rename(tmp_path / "elsewhere")
    assert states(copy) == {}


@pytest.mark.slow
def test_objects_on_s3_are_deleted(s3: ObjectStore, copy: Path) -> None:
    uri = s3.upload(copy / "checkpoints", "runs/checkpoints")
    assert states(uri, "--verify") == {**EXPECTED, FLIPPED: "corrupt"}
    objects = set(Folder(uri).sizes())
    assert cleaned(uri, "--older-than", "1") == []
    left = sorted([*LEFT[:1], "temporary file", "unfinished checkpoint"])
    assert cleaned(uri, "--older-than", "0", "--dry-run") == left
    assert set(Folder(uri).sizes()) == objects
    assert cleaned(uri, "--older-than", "0") == left
    assert objects - set(Folder(uri).sizes()) == {
        ".owner.json.7.partial",
        f"step-{COMPLETE:09d}/track/weights.00000-of-00001.npy",
        f"step-{UNFINISHED:09d}/part-00000-of-00001.json",
    }
