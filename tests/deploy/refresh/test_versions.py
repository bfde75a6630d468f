"""The versions in the folder of a service: what counts as taken, what is served, and what is deleted."""

from collections.abc import Callable
from pathlib import Path

import pytest

from crossfade.base.errors import InputError
from crossfade.deploy.refresh.versions import EventFile, ServiceVersions, Status, VersionRecord
from crossfade.trainer.embeddings.current_run import current_run


def event_file(name: str) -> EventFile:
    return EventFile(uri=f"/events/{name}", state="1", bytes=1)


def record(number: int, status: Status, *names: str) -> VersionRecord:
    return VersionRecord(
        number=number,
        status=status,
        base=number - 1 or None,
        files=[event_file(name) for name in names],
        events=1,
        newest=None,
        metric="ndcg@10",
        before=None,
        after=0.5,
        decided=0.0,
        seconds={},
    )


@pytest.fixture
def versions(tmp_path: Path) -> ServiceVersions:
    """Write a published, a rejected, and two further published versions."""
    versions = ServiceVersions(tmp_path)
    versions.write(record(1, "published", "a"))
    versions.write(record(2, "rejected", "b"))
    versions.write(record(3, "published", "b", "c"))
    versions.write(record(4, "published", "d"))
    return versions


def test_newest_published_version_is_current(versions: ServiceVersions) -> None:
    assert versions.current is not None
    assert (versions.current.number, versions.next_number) == (4, 5)
    assert current_run(str(versions.folder)) == (str(versions.run_path(4)), str(versions.data_path(4)), 4)
    assert set(versions.taken()) == {f"/events/{name}" for name in "abcd"}


def test_empty_folder_has_no_version(tmp_path: Path) -> None:
    versions = ServiceVersions(tmp_path)
    versions.repair()
    assert (versions.current, versions.next_number, versions.taken(), versions.plan()) == (None, 1, {}, None)
    assert list(tmp_path.iterdir()) == []


def test_files_of_withdrawn_versions_are_not_taken(versions: ServiceVersions) -> None:
    assert versions.tried() == {event_file("b")}
    assert versions.withdraw(after=1) == [4, 3]
    reopened = ServiceVersions(versions.folder)
    assert [each.status for each in reopened.records] == ["published", "rejected", "withdrawn", "withdrawn"]
    assert set(reopened.taken()) == {"/events/a"}
    assert reopened.tried() == {event_file(name) for name in "bcd"}
    assert reopened.next_number == 5, "numbers are not used again"


def test_servers_follow_the_records_whatever_was_interrupted(versions: ServiceVersions) -> None:
    path = versions.folder / "current.json"
    for damage in (path.unlink, lambda: path.write_text("{}")):
        damage()
        versions.repair()
        assert current_run(str(versions.folder)).run == str(versions.run_path(4))


def test_half_deleted_versions_are_not_kept_and_nothing_is_deleted_while_the_served_one_is_unreadable(
    versions: ServiceVersions,
) -> None:
    assert versions.kept == []
    for number in (1, 3, 4):
        versions.run_path(number).mkdir()
        versions.data_path(number).mkdir()
        (versions.data_path(number) / "manifest.json").touch()
    (versions.run_path(4) / "report.json").touch()
    assert versions.kept == [4], "a run without its report was being deleted"
    (versions.folder / ".trash-version-000001").mkdir()
    with pytest.raises(InputError, match="version-000004-data"):
        versions.clean(2)
    assert versions.run_path(1).exists(), "what is served cannot be read, so nothing may be deleted"
    assert not (versions.folder / ".trash-version-000001").exists()


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
