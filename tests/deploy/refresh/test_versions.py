"""The versions in the folder of a service: what counts as taken, what is served, and what is deleted."""

from collections.abc import Callable
from pathlib import Path

import pytest
from recorded_service import make_record

from crossfade.base.errors import InputError
from crossfade.deploy.refresh.versions import ServiceVersions
from crossfade.trainer.embeddings.current_run import current_run


@pytest.fixture
def versions(tmp_path: Path) -> ServiceVersions:
    """Write a published, a rejected, and two further published versions."""
    versions = ServiceVersions(tmp_path)
    for number in range(1, 5):
        versions.write(make_record(number, status="rejected" if number == 2 else "published"))
    return versions


def test_servers_follow_the_records_whatever_was_interrupted(versions: ServiceVersions) -> None:
    path = versions.folder / "current.json"
    for damage in (path.unlink, lambda: path.write_text("{}")):
        damage()
        versions.repair()
        assert current_run(str(versions.folder)).run == str(versions.run_path(4))


def test_half_deleted_versions_are_not_kept(versions: ServiceVersions) -> None:
    assert versions.kept == []
    for number in (1, 3, 4):
        versions.run_path(number).mkdir()
        versions.data_path(number).mkdir()
        (versions.data_path(number) / "manifest.json").touch()
    (versions.run_path(4) / "report.json").touch()
    assert versions.kept == [4], "a run without its report was being deleted"
    (versions.folder / ".trash-version-000001").mkdir()
    versions.clean(2)
    left = sorted(path.name for path in versions.folder.iterdir() if path.is_dir())
    assert left == ["version-000004", "version-000004-data"]


def test_logs_of_all_outdated_versions_are_deleted(versions: ServiceVersions) -> None:
    versions.mark_forgotten(complete=True)
    versions.write(make_record(5))
    for number in (1, 4, 5):
        versions.run_path(number).with_suffix(".log").touch()
    versions.clean(2)
    assert [path.name for path in versions.folder.glob("*.log")] == ["version-000005.log"]


@pytest.mark.parametrize(
    ("name", "text", "read"),
    [
        ("current.json", '{"version": 1, "run": "../elsewhere"}', lambda versions: current_run(str(versions.folder))),
        ("plan.json", "[]", ServiceVersions.plan),
        ("forgotten.json", '{"through": "all"}', lambda versions: versions.forgotten),
        ("version-000003.json", "{", lambda versions: ServiceVersions(versions.folder).records),
    ],
)
def test_damaged_file_is_named(
    versions: ServiceVersions, name: str, text: str, read: Callable[[ServiceVersions], object]
) -> None:
    (versions.folder / name).write_text(text)
    with pytest.raises(InputError, match=f"{name}: "):
        read(versions)
