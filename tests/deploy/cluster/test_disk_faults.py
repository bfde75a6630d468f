"""Full and read-only disks: they cost checkpoints, not the run."""

import errno
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_here import crossfade_here
from fault_runs import (
    DISK_BYTES,
    ON_ONE_SERVER,
    assert_counted,
    assert_last_is_complete,
    assert_training_continues,
    assert_undisturbed,
    checkpoint_option,
    train,
)
from needs import root
from run_results import report_of
from running_command import succeeded
from small_disk import MountError, fill, make_room, mounted_disk

from crossfade.trainer.runs.events import EpochEvent, EventLog

pytestmark = [pytest.mark.slow, pytest.mark.cluster]


def mount(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a small disk."""
    try:
        with mounted_disk(tmp_path / "disk", DISK_BYTES) as disk:
            yield disk
    except MountError as reason:
        pytest.skip(root(reason))


def test_full_disk_costs_only_checkpoints(workspace: Path, undisturbed: Path, disk: Path) -> None:
    with train(workspace / "full", *ON_ONE_SERVER, *checkpoint_option(disk / "checkpoints")) as training:
        training.wait_for("checkpoint_saved")
        # Whenever an old checkpoint is deleted, there is room again.
        training.wait_for("checkpoint_failed", meanwhile=lambda: fill(disk))
        assert_training_continues(training)
        (disk / "filler").unlink()
        training.wait_for("checkpoint_saved")
        result = succeeded(training.finish())
    assert "was not written: " in result.stderr
    assert "No space left on device" in result.stderr
    assert "Traceback" not in result.stderr
    assert_undisturbed(training.run_dir, undisturbed)
    assert_counted(training)
    assert report_of(training.run_dir)["restarts"] == 0
    assert_last_is_complete(disk / "checkpoints")


def test_run_without_embeddings_fails_if_its_last_checkpoint_does(workspace: Path, disk: Path) -> None:
    options = (*checkpoint_option(disk / "checkpoints"), "--set", "train.save_embeddings=none")
    with train(workspace / "no-embeddings", *options) as training:
        training.wait_for("checkpoint_saved")
        training.wait(lambda: mount("-o", "remount,ro", disk).returncode == 0, "a moment to make it read-only")
        training.wait_for("checkpoint_failed")
        result = training.finish()
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(
        f"crossfade: error: {disk}/checkpoints: training is done, but its last checkpoint was not written"
    )
    assert not (training.run_dir / "report.json").exists()
    assert mount("-o", "remount,rw", disk).returncode == 0
    succeeded(crossfade_here("train", "job.yaml", "--run-dir", "no-embeddings", *options, "--resume", cwd=workspace))
    assert_last_is_complete(disk / "checkpoints")


def test_records_on_a_full_disk_are_omitted_completely(disk: Path) -> None:
    lost: list[OSError] = []
    path = disk / "events.jsonl"
    path.write_text('{"step": -1}\n{"step": -')  # of a writer that was killed
    log = EventLog(path, lost.append)
    fill(disk, leave=0)
    for number in range(200):
        log.write(EpochEvent(epoch=1, step=number, loss=0.5))
    assert [error.errno for error in lost] == [errno.ENOSPC]
    (disk / "filler").unlink()
    log.write(EpochEvent(epoch=1, step=200, loss=0.5))
    log.write(EpochEvent(epoch=1, step=201, loss=0.5))
    log.close()
    numbers = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    begun = numbers.index(200)
    assert numbers == [*range(-1, begun - 1), 200, 201]
    assert 1 < begun < 150


def test_full_disk_of_the_run_folder_is_named_and_the_run_resumes(
    workspace: Path, undisturbed: Path, disk: Path
) -> None:
    options = checkpoint_option(workspace / "beside")
    with train(disk / "run", *options, job=workspace / "job.yaml") as training:
        training.wait_for("checkpoint_saved")
        fill(disk)
        result = training.finish()
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert (
        f"crossfade: error: {disk}/run/embeddings: could not be written: no space is left on the disk of {disk}; "
        in last
    )
    assert re.search(
        rf"; the checkpoint of step [\d,]+ in {workspace}/beside is complete: make room, and add --resume$", last
    )
    assert not (disk / "run" / ".embeddings.partial").exists()
    make_room(disk)
    succeeded(crossfade_here("train", "job.yaml", "--run-dir", disk / "run", *options, "--resume", cwd=workspace))
    assert_undisturbed(disk / "run", undisturbed)


LOGGING = """
import logging, sys
from crossfade.base import logs
logs.configure("server-0", "text")
for line in sys.stdin:
    logging.getLogger("crossfade.x").info(line.strip())
    print(flush=True)
"""


def test_process_goes_on_where_its_log_is_full_and_counts_what_is_missing(disk: Path) -> None:
    with (disk / "log").open("ab") as log:
        command = [sys.executable, "-c", LOGGING]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)

    def write(text: str) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        print(text, file=process.stdin, flush=True)
        assert process.stdout.readline() == "\n"

    with process:
        write("first")
        fill(disk, leave=0)
        for _ in range(3):
            write("x" * 5000)
        make_room(disk)
        write("second")
    assert process.returncode == 0
    *_, missing, last = [line.partition(" server-0 ")[2] for line in (disk / "log").read_text().splitlines()]
    assert re.fullmatch("[23] records are missing here: they could not be written", missing)
    assert last == "second"


def test_read_only_checkpoint_folder_is_rejected_before_an_earlier_run_is_touched(workspace: Path, disk: Path) -> None:
    run = (
        "train",
        "job.yaml",
        "--run-dir",
        "rejected",
        *checkpoint_option(disk / "checkpoints"),
        "--set",
        "train.max_steps=20",
    )
    succeeded(crossfade_here(*run, cwd=workspace))
    before = (workspace / "rejected" / "report.json").read_bytes()
    assert mount("-o", "remount,ro", disk).returncode == 0
    for how in ("--resume", "--overwrite"):
        elsewhere = checkpoint_option(disk / "others") if how == "--overwrite" else ()
        result = crossfade_here(*run, *elsewhere, how, cwd=workspace)
        assert result.returncode == 2
        [line] = result.stderr.splitlines()
        assert line.startswith(f"crossfade: error: checkpoint.path: {disk}/")
        assert "Read-only file system" in line
        assert (workspace / "rejected" / "report.json").read_bytes() == before
