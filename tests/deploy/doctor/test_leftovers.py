"""What processes that died have left is reported with the command that removes it, and is left in place."""

import os
import time
from pathlib import Path

import pytest
from cluster_data import write_job, write_planted
from killed_process import holding

from crossfade.base.io.folder import Folder
from crossfade.base.io.output import staged_folder
from crossfade.base.io.writer_lock import LOCK_NAME, folder_writer
from crossfade.deploy.doctor.run_checks import check_leftovers
from crossfade.trainer.config.loading import load_job
from crossfade.trainer.runs.run_folder import RunFolder

pytestmark = pytest.mark.slow


def found(folder: Path) -> list[str]:
    job, run = load_job(folder / "job.yaml"), RunFolder(folder / "run")
    findings = list(check_leftovers(job, run))
    assert {finding.state for finding in findings} in ({"ok"}, {"warning"})
    return [finding.message for finding in findings]


def age(path: Path) -> None:
    """Have it look as if it was written two days ago."""
    os.utime(path, (time.time() - 2 * 86_400,) * 2)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    data = write_planted(tmp_path / "data")
    with RunFolder(tmp_path / "run").open_run(load_job(write_job(tmp_path / "job.yaml", data))):
        pass
    return tmp_path


def test_folders_and_locks_are_left_only_once_their_process_has_ended(workspace: Path) -> None:
    data, embeddings = workspace / "data", workspace / "run" / "embeddings"
    assert found(workspace) == ["none"]
    with (
        holding(lambda: staged_folder(data)) as staging,
        holding(lambda: folder_writer(Folder(data))) as writing,
        holding(lambda: staged_folder(embeddings)),
    ):
        assert found(workspace) == ["none"]
    before = set(workspace.rglob("*"))
    messages = found(workspace)
    assert set(workspace.rglob("*")) == before
    assert sorted(message.partition(": ")[0].rpartition("-")[0] for message in messages[:2]) == [
        str(workspace / ".data.partial"),
        str(workspace / "run" / ".embeddings.partial"),
    ]
    assert {message.rpartition("; ")[2] for message in messages[:2]} == {
        "the next one that writes data deletes it",
        "the next one that writes embeddings deletes it",
    }
    assert [message.partition(" on host")[0] for message in messages[2:]] == [
        f"{data}/{LOCK_NAME}: the lock of process {writing}",
        f"{workspace}/.data.lock: the lock of process {staging}",
    ]


def test_files_are_left_once_they_are_a_day_old(workspace: Path) -> None:
    checkpoints, run = workspace / "run" / "checkpoints", workspace / "run"
    Folder(checkpoints).child("step-000000005").write("part-00000-of-00001.json", b"{}")
    work = workspace / "temporary" / "crossfade-prepare-abc"
    work.mkdir()
    new = [checkpoints / "step-000000005" / "part-00000-of-00001.json", run / ".state.json.7.partial", work]
    new[1].touch()
    assert found(workspace) == ["none"]
    for path in new:
        age(path)
    assert found(workspace) == [
        f"{checkpoints}: 1, 2 B (unfinished checkpoints); 'crossfade checkpoints clean {checkpoints}'",
        f"{run}: 1 temporary files; 'crossfade checkpoints clean {run}'",
        f"{work}; rm -r {work}",
    ]
