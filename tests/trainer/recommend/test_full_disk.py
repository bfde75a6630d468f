"""Commands on a disk that is full: they name it, leave no lock, and continue with more room."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_here import crossfade_here
from running_command import succeeded
from small_disk import MountError, fill, make_room, mounted_disk
from written_runs import write_run

from crossfade.base.errors import CrossfadeError
from crossfade.base.io.disk_errors import describe_disk_error
from crossfade.base.io.durable_file import replace_file
from crossfade.base.io.folder import Folder
from crossfade.base.io.writer_lock import LOCK_NAME, path_lock
from crossfade.deploy.serving.options import ServeOptions
from crossfade.deploy.serving.refresher import Refresher
from crossfade.deploy.tuning.study_folder import JOURNAL_FILE, claim_study
from crossfade.trainer.config.loading import load_job
from crossfade.trainer.data.manifest import data_fingerprint, read_manifest
from crossfade.trainer.data.reporter import NullReporter
from crossfade.trainer.data.vocabulary import Vocabulary
from crossfade.trainer.serving.copies_folder import CopiesFolder


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    try:
        with mounted_disk(tmp_path / "disk", 2**21) as disk:
            yield disk
    except MountError as reason:
        pytest.skip(str(reason))


def failed(cause: str, *arguments: object, cwd: Path) -> str:
    result = crossfade_here(*arguments, cwd=cwd)
    [line] = result.stderr.splitlines()
    assert cause in line
    assert result.returncode == 1
    return line.removeprefix("crossfade: error: ")


@pytest.mark.slow
def test_recommendations_on_a_full_disk_leave_nothing(disk: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "written").path
    fill(disk, leave=0)
    failed("no space is left on the disk of", "recommend", run, "--all", "--out", disk / "recs.csv", cwd=tmp_path)
    assert [path.name for path in disk.iterdir()] == ["filler"]


def test_forgetting_on_a_full_disk_changes_nothing(disk: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "written")
    data = Path(shutil.copytree(tmp_path / "written" / "data", disk / "data"))
    before = data_fingerprint(Folder(data))
    (tmp_path / "ids.txt").write_text("{7}\n")
    for leave, cause in ((4096 * 3, "is full:"), (0, "could not be written: no space is left on the disk of")):
        fill(disk, leave)
        failed(cause, "forget", data, "--ids", tmp_path / "ids.txt", cwd=tmp_path)
        assert data_fingerprint(Folder(data)) == before
        assert not (data / LOCK_NAME).exists()
    make_room(disk)
    succeeded(crossfade_here("forget", data, "--ids", tmp_path / "ids.txt", cwd=tmp_path))
    assert data_fingerprint(Folder(data)) != before
    customers = Vocabulary(Folder(data), read_manifest(Folder(data)), "customer")
    assert "{7}" not in customers.read(0, customers.rows, ["id"]).column("id").to_pylist()


def test_lock_on_a_full_disk_is_deleted(disk: Path) -> None:
    fill(disk, leave=0)
    for _ in range(2):
        message = f"the subject: could not be written: no space is left on the disk of {disk}"
        with pytest.raises(CrossfadeError) as caught, path_lock(disk / "lock", "the subject"):
            pass
        assert str(caught.value) == message
        assert not (disk / "lock").exists()
    with pytest.raises(OSError, match="No space left on device") as failure:
        replace_file(disk / "plan.json", b"{}" * 4096)
    assert describe_disk_error(failure.value) == f"{disk}/plan.json: {message.removeprefix('the subject: ')}"


@pytest.mark.parametrize("leave", [0, 4096, 8192])
def test_version_on_a_full_disk_does_not_blame_the_dataset(disk: Path, tmp_path: Path, leave: int) -> None:
    source = ServeOptions.of(source=write_run(tmp_path / "written").path, exact=True)
    folder = CopiesFolder(disk)
    fill(disk, leave)
    with pytest.raises(CrossfadeError, match=f"could not be written: no space is left on the disk of {disk}"):
        Refresher(source, folder).write_first(NullReporter())
    folder.delete()
    assert [path.name for path in disk.iterdir()] == ["filler"]


def test_study_on_a_full_disk_is_named_and_resumes(disk: Path, tmp_path: Path) -> None:
    job = load_job(write_run(tmp_path / "written").path / "job.yaml")
    fill(disk, leave=0)
    with pytest.raises(OSError, match="No space left on device") as failure:
        claim_study(disk / "study", job, JOURNAL_FILE)
    assert describe_disk_error(failure.value).endswith(f"no space is left on the disk of {disk}")
    make_room(disk)
    claim_study(disk / "study", job, JOURNAL_FILE).close()
