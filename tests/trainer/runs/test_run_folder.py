"""A run folder stays usable when its process is killed while it creates, resumes or deletes a run."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from cluster_data import write_job
from waiting import wait_until

from crossfade.base.errors import InputError
from crossfade.base.io import durable_file
from crossfade.trainer.config.loading import load_job
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.runs.run_folder import JOB_FILE, RUN_FILE, EarlierRun, RunFolder
from crossfade.trainer.runs.run_lock import LOCK_FILE, RunInProgressError

MODES = pytest.mark.parametrize(
    "mode", [{}, {"resume": True}, {"overwrite": True}], ids=["fresh", "resume", "overwrite"]
)


@pytest.fixture
def job(tmp_path: Path) -> JobConfig:
    return load_job(write_job(tmp_path / "job.yaml", tmp_path))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def begin(run: RunFolder, job: JobConfig, **mode: bool) -> EarlierRun | None:
    """Begin a run and end it at once; return the earlier run that was moved aside."""
    with run.open_run(job, **mode) as moved:
        assert run.job() == job.with_absolute_paths()
        assert len(run.run_id()) == 12
    return moved


class Killed(BaseException):
    """The process is killed here."""


def killed_writing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Raise ``Killed`` half-way through the next write of the file ``name``, whose temporary file then stays."""
    write = durable_file.replace_file

    def write_half(path: Path, data: bytes) -> None:
        if path.name != name:
            return write(path, data)
        path.with_name(f".{name}.1.partial").write_bytes(data[: len(data) // 2])
        raise Killed

    monkeypatch.setattr("crossfade.trainer.runs.run_folder.replace_file", write_half)


def test_run_keeps_its_id_and_start_when_it_resumes(run: RunFolder, job: JobConfig) -> None:
    begin(run, job)
    (run.path / "events.jsonl").write_text("{}\n")
    identity, started = run.run_id(), run.started()
    assert started is not None
    begin(run, job, resume=True)
    assert (run.run_id(), run.started()) == (identity, started)
    begin(run, job)
    assert run.run_id() != identity
    assert (run.started() or 0) > started


@MODES
@pytest.mark.parametrize("name", [RUN_FILE, JOB_FILE])
def test_folder_of_a_run_killed_while_it_was_created_is_not_a_run(
    run: RunFolder, job: JobConfig, monkeypatch: pytest.MonkeyPatch, name: str, mode: dict[str, bool]
) -> None:
    with monkeypatch.context() as patch:
        killed_writing(patch, name)
        with pytest.raises(Killed):
            begin(run, job)
    assert begin(run, job, **mode) is None


@MODES
def test_run_killed_while_it_resumes_is_unchanged(
    run: RunFolder, job: JobConfig, monkeypatch: pytest.MonkeyPatch, mode: dict[str, bool]
) -> None:
    begin(run, job)
    (run.path / "events.jsonl").write_text("{}\n")
    identity = run.run_id()
    with monkeypatch.context() as patch:
        killed_writing(patch, JOB_FILE)
        with pytest.raises(Killed):
            begin(run, job, resume=True)
    begin(run, job, **mode)
    assert (run.run_id() == identity) == ("resume" in mode)


def test_interrupted_deletion_of_an_earlier_run_can_be_repeated(
    run: RunFolder, job: JobConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(run, job)
    for name in ("checkpoints", "embeddings"):
        (run.path / name).mkdir()

    def kill(_path: Path) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", kill)
        with pytest.raises(Killed):
            begin(run, job, overwrite=True)
    assert begin(run, job, overwrite=True) is None
    assert {path.name for path in run.path.iterdir()} == {JOB_FILE, LOCK_FILE, RUN_FILE}


def test_overwriting_deletes_what_killed_commands_have_left_but_no_other_hidden_file(
    run: RunFolder, job: JobConfig
) -> None:
    begin(run, job)
    (run.path / "events.jsonl").write_text("{}\n")
    for name in ("map.lock", "map.partial-0a1b2c3d", "map.old", "embeddings.partial", "embeddings.worker-3"):
        (run.path / f".{name}").mkdir()
    (run.path / ".thesis.old").touch()
    with pytest.raises(InputError, match=r"holds \.thesis\.old, which is not part of a run"):
        begin(run, job, overwrite=True)
    (run.path / ".thesis.old").unlink()
    assert begin(run, job, overwrite=True) is None


def test_file_is_synced_before_its_name_and_its_folder_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    sync, replace = os.fsync, Path.replace

    def recording_sync(number: int) -> None:
        steps.append(Path(f"/proc/self/fd/{number}").readlink())
        sync(number)

    def recording_replace(path: Path, target: Path) -> Path:
        steps.append(target)
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", recording_sync)
    monkeypatch.setattr(Path, "replace", recording_replace)
    RunFolder(tmp_path).write_report({"steps": 1})
    partial, *later = steps
    assert partial.parent == tmp_path
    assert durable_file.is_partial(partial.name)
    assert later == [tmp_path / "report.json", tmp_path]
    assert (tmp_path / "report.json").read_text() == '{\n "steps": 1\n}\n'


def test_temporary_files_of_a_killed_process_are_deleted_by_the_next_run(run: RunFolder, job: JobConfig) -> None:
    begin(run, job)
    (run.path / ".state.json.7.partial").write_text("{")
    (run.path / ".embeddings.partial").mkdir()
    begin(run, job, resume=True)
    assert run.unfinished_files() == []
    assert (run.path / ".embeddings.partial").exists()


@pytest.fixture
def holder(run: RunFolder, job: JobConfig, tmp_path: Path) -> Iterator[psutil.Popen]:
    """Run a process that holds the run."""
    script = Path(__file__).resolve().parents[2] / "support" / "hold_run.py"
    command = [sys.executable, str(script), str(run.path), str(tmp_path / "job.yaml")]
    with psutil.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        if process.poll() is None:
            process.kill()


@pytest.mark.slow
def test_frozen_process_loses_its_run_to_one_of_two_standbys(
    run: RunFolder, job: JobConfig, holder: psutil.Popen
) -> None:
    first, second = RunFolder(run.path), RunFolder(run.path)
    holder.suspend()
    assert first.lock.wait_for_end(lambda: None, 1.5) is None
    # It has been resumed before its run was taken over.
    frozen_at = (run.path / LOCK_FILE).stat().st_mtime_ns
    holder.resume()
    wait_until(lambda: (run.path / LOCK_FILE).stat().st_mtime_ns > frozen_at, "a sign of life")
    with pytest.raises(RunInProgressError, match="a run is in progress"):
        begin(first, job, resume=True)
    holder.suspend()
    for standby in (first, second):
        assert standby.lock.wait_for_end(lambda: None, 1.5) is None
    with first.open_run(job, resume=True):
        with pytest.raises(RunInProgressError, match="a run is in progress"):
            begin(second, job, resume=True)
        holder.resume()
        assert "another command, with resume or standby, has taken the run over" in holder.stdout.readline()
        holder.wait(10)
        first.lock.check_owned()
    # The end of the process that lost it is not taken for the end of the run.
    assert (run.path / LOCK_FILE).read_text() == "done"
    assert second.lock.wait_for_end(lambda: None) is None


@pytest.mark.slow
def test_killed_process_leaves_a_run_to_resume(run: RunFolder, holder: psutil.Popen) -> None:
    standby = RunFolder(run.path)
    assert standby.lock.wait_for_end(holder.kill) is None
