"""A run resumes from a usable checkpoint of a folder that it owns; test_lost_checkpoints.py has runs that have none."""

import json
from pathlib import Path

import pytest
from run_folders import add, training_from
from saved_shards import random_table, reseal, save_shards, split_table

from crossfade.base.errors import InputError
from crossfade.kvstore.checkpoint.lifecycle import step_folder
from crossfade.kvstore.optimizer_spec import OptimizerSpec
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.runs.events import CheckpointSaved, to_record
from crossfade.trainer.runs.ownership import check_claimable, check_still_owned, claim
from crossfade.trainer.runs.resumption import find_start, last_saved_step

SGD = OptimizerSpec("sgd")
TRACK = TableSpec("track", rows=6, dim=2, init_std=0.1)


def saved(step: int) -> dict[str, object]:
    return to_record(CheckpointSaved(step=step, checkpoint="c", pause_seconds=0.0, seconds=0.1, bytes=9))


def save(checkpoints: Path, *steps: int) -> None:
    for step in steps:
        shards = split_table(TRACK, random_table(TRACK, SGD), 2)
        save_shards(str(checkpoints), step, [TRACK], SGD, [shards], {"run": "mine"})


def test_last_saved_step_is_that_since_training_began(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    assert last_saved_step(tmp_path) is None
    add(log, training_from(0, at=1))
    assert last_saved_step(tmp_path) is None
    add(log, saved(4), saved(8), training_from(8, at=2))
    assert last_saved_step(tmp_path) == 8
    add(log, training_from(0, at=3))
    assert last_saved_step(tmp_path) is None
    add(log, saved(2))
    with log.open("a") as file:
        file.write(json.dumps(saved(3))[:-9])
    assert last_saved_step(tmp_path) == 2


def test_run_that_has_saved_nothing_starts_over(tmp_path: Path) -> None:
    assert find_start(str(tmp_path / "none")) == (None, [])
    (tmp_path / "step-000000003").mkdir()
    checkpoint, skipped = find_start(str(tmp_path))
    assert (checkpoint, len(skipped)) == (None, 1)


@pytest.mark.slow
def test_checkpoint_of_a_newer_format_is_not_passed_over(tmp_path: Path) -> None:
    save(tmp_path, 1, 3)
    path = Path(step_folder(str(tmp_path), 3), "manifest.json")
    reseal(path, lambda text: text.replace('"version": 2', '"version": 3'))
    with pytest.raises(InputError) as caught:
        find_start(str(tmp_path))
    assert "has format version 3, but this version of Crossfade reads" in str(caught.value)


def test_new_run_rejects_checkpoints_without_an_owner(tmp_path: Path) -> None:
    save(tmp_path, 1)
    for attempt in (
        lambda: check_claimable(str(tmp_path), None, "plays", take_over=False),
        lambda: claim(str(tmp_path), "new", "plays", take_over=False),
    ):
        with pytest.raises(InputError) as caught:
            attempt()
        assert "holds checkpoints of an earlier run" in str(caught.value)
    claim(str(tmp_path), "new", "plays", take_over=True)
    assert check_still_owned(str(tmp_path), "new") == {"new"}


def test_run_that_takes_a_folder_over_owns_the_checkpoints_of_the_runs_before(tmp_path: Path) -> None:
    for run in ("first", "second", "third", "third"):
        claim(str(tmp_path), run, "plays", take_over=True)
    assert check_still_owned(str(tmp_path), "third") == {"first", "second", "third"}


def test_command_whose_run_was_resumed_elsewhere_no_longer_owns_the_checkpoints(tmp_path: Path) -> None:
    claim(str(tmp_path), "run", "plays", "first", take_over=False)
    check_still_owned(str(tmp_path), "run", "first")
    claim(str(tmp_path), "run", "plays", "second", take_over=True)
    check_still_owned(str(tmp_path), "run", "second")
    check_still_owned(str(tmp_path), "run")  # a role that was started by hand
    with pytest.raises(InputError, match="another command, with resume or standby, has taken the run over"):
        check_still_owned(str(tmp_path), "run", "first")
    with pytest.raises(InputError, match="another run, of job 'plays', was started in it"):
        check_still_owned(str(tmp_path), "another", "second")
