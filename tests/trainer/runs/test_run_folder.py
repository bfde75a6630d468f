"""A run folder whose run was killed while it was made, taken up or emptied can be used again."""

import shutil
from pathlib import Path

import pytest
from cluster_data import write_job

from trainer.config.loading import load_job
from trainer.config.schema import JobConfig
from trainer.runs.folder import JOB_FILE, LOCK_FILE, RUN_FILE, RunFolder

HOW = pytest.mark.parametrize("how", [{}, {"resume": True}, {"overwrite": True}], ids=["fresh", "resume", "overwrite"])


@pytest.fixture
def job(tmp_path: Path) -> JobConfig:
    return load_job(write_job(tmp_path / "job.yaml", tmp_path))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def begin(run: RunFolder, job: JobConfig, **how: bool) -> Path | None:
    """Begin, and end at once; gives where an earlier run was moved to."""
    with run.open_run(job, **how) as moved:
        assert run.job() == job.with_absolute_paths()
        assert len(run.run_id()) == 32
    return moved


class Killed(BaseException):
    """The process ends here."""


def killed_writing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """From now on whoever writes the file ``name``, under whatever name at first, is killed half-way."""
    write = Path.write_text

    def write_half(path: Path, text: str, **options: str) -> int:
        if name not in path.name:
            return write(path, text, **options)
        write(path, text[: len(text) // 2], **options)
        raise Killed

    monkeypatch.setattr(Path, "write_text", write_half)


@HOW
@pytest.mark.parametrize("name", [RUN_FILE, JOB_FILE])
def test_a_run_that_is_killed_while_its_folder_is_made_is_no_run_yet(
    run: RunFolder, job: JobConfig, monkeypatch: pytest.MonkeyPatch, name: str, how: dict[str, bool]
) -> None:
    with monkeypatch.context() as patch:
        killed_writing(patch, name)
        with pytest.raises(Killed):
            begin(run, job)
    assert begin(run, job, **how) is None


@HOW
def test_a_run_that_is_killed_while_it_is_taken_up_is_as_it_was(
    run: RunFolder, job: JobConfig, monkeypatch: pytest.MonkeyPatch, how: dict[str, bool]
) -> None:
    begin(run, job)
    (run.path / "events.jsonl").write_text("{}\n")
    identity = run.run_id()
    with monkeypatch.context() as patch:
        killed_writing(patch, JOB_FILE)
        with pytest.raises(Killed):
            begin(run, job, resume=True)
    begin(run, job, **how)
    assert (run.run_id() == identity) == ("resume" in how)


def test_a_run_that_is_killed_while_an_earlier_one_is_deleted_can_delete_the_rest(
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
