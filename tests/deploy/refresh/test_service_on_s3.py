"""A service that is kept on S3: any host makes its next version, one at a time, and each event is taken once."""

import io
import json
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from command_here import crossfade_here
from crashing_storage import Crash, CrashingStorage
from object_store import ObjectStore
from refreshed_service import ServiceFolder, crash_at, current, plays, rejected
from running_command import succeeded

from crossfade.base.io import writer_lock
from crossfade.base.io.folder import Folder
from crossfade.base.io.regular_files import FoundFile
from crossfade.base.io.writer_lock import LOCK_NAME
from crossfade.deploy.refresh import increment
from crossfade.deploy.refresh.remote import RemoteVersions

pytestmark = pytest.mark.slow


@pytest.fixture
def remote(s3: ObjectStore, tmp_path: Path) -> Folder:
    return Folder(s3.uri(f"services/{tmp_path.name}"))


@pytest.fixture
def first(history: ServiceFolder, tmp_path: Path, remote: Folder) -> ServiceFolder:
    """Return a host whose service with two versions was copied to S3."""
    (tmp_path / "first").mkdir()
    for path in history.path.rglob("*"):
        if path.is_file():
            remote.write(path.relative_to(history.path).as_posix(), path.read_bytes())
    return history.copied(tmp_path / "first", remote=remote.uri)


def other_host(service: ServiceFolder, folder: Path) -> ServiceFolder:
    """Return a host without any version, which reads the same event files."""
    folder.mkdir()
    keys = json.loads(service.file.read_text())
    return ServiceFolder(folder, *keys["events"], remote=keys["remote"])


def embeddings(folder: Path) -> dict[str, bytes]:
    """Return the files of vectors in a run."""
    return {path.name + path.parent.name: path.read_bytes() for path in folder.rglob("embeddings/*/*.parquet")}


def on_s3(remote: Folder, number: int) -> list[str]:
    """Return the names of folders and files of a version on S3."""
    return sorted({path.partition("/")[0] for path in remote.files() if f"{number:06}" in path.partition("/")[0]})


def test_hosts_take_turns_and_end_as_one_host_does(
    first: ServiceFolder, undisturbed: ServiceFolder, remote: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert succeeded(first.command("refresh")).stdout.startswith("no new event files\n")
    assert on_s3(remote, 2) == [f"version-000002{ending}" for ending in ("", "-data", ".json", ".log")]
    second = other_host(first, tmp_path / "second")
    (second.path / ".version-000003-data.partial-1").mkdir(parents=True)
    (second.path / ".version-000003.json.1.partial").touch()
    second.configure(events=[*json.loads(first.file.read_text())["events"], str(undisturbed.event_file(3))])
    assert succeeded(second.command("refresh")).stdout.startswith("version 3 published: ")
    assert embeddings(second.run(3)) == embeddings(undisturbed.run(3)) != {}
    assert second.files(3) == ["day-003.parquet"]
    assert list(second.path.glob(".version-*")) == [], "what a killed process has left"
    # The first host follows, and a fresh one reads what is served without a folder of its own.
    first.add(4)
    assert succeeded(first.command("refresh")).stdout.startswith("version 4 published: ")
    assert first.statuses() == ["published"] * 4
    assert first.current() == json.loads(remote.read("current.json")) == current(4)
    [line] = succeeded(crossfade_here("recommend", remote.uri, "--customer", "c1", "--k", 1)).stdout.splitlines()[-1:]
    assert (
        line == succeeded(crossfade_here("recommend", first.path, "--customer", "c1", "--k", 1)).stdout.splitlines()[-1]
    )
    third = other_host(first, tmp_path / "third")
    assert succeeded(third.command("rollback", "--to", 3)).stdout
    assert json.loads(remote.read("current.json"))["version"] == 3
    # As if the record had been changed within the second in which it was written.
    monkeypatch.setattr(RemoteVersions, "_is_same", lambda versions, name: name in versions._found)
    assert succeeded(first.command("refresh", "--publish")).stdout.startswith("version 5 published: ")
    assert on_s3(remote, 4) == ["version-000004.json"], "it was withdrawn"


def test_while_a_host_works_others_are_rejected_and_take_over_when_it_is_gone(
    first: ServiceFolder, remote: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    succeeded(first.command("refresh"))
    first.add(3)
    second = other_host(first, tmp_path / "second")
    gone = writer_lock._Owner.this_process().model_copy(update={"host": "gone", "machine": "gone", "renewals": 3})
    remote.write(LOCK_NAME, gone.model_dump_json().encode())
    rejected(second.command("refresh"), "gone")
    assert second.statuses() == []
    monkeypatch.setattr(writer_lock, "_LEASE_SECONDS", 0.0)
    monkeypatch.setattr(writer_lock, "_RENEWAL_SECONDS", 0.05)
    assert succeeded(second.command("refresh")).stdout.startswith("version 3 published: ")
    assert LOCK_NAME not in remote.names()


def test_host_that_crashes_at_any_change_on_s3_leaves_a_service_that_another_continues(
    first: ServiceFolder, undisturbed: ServiceFolder, remote: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    succeeded(first.command("refresh"))
    first.add(3)
    at, version, hosts = 0, 2, 0
    while True:
        at, hosts = at + 1, hosts + 1
        host = other_host(first, tmp_path / f"host-{hosts}")
        with monkeypatch.context() as patch:
            CrashingStorage(patch, at, ["write", "write_over", "remove"])
            with suppress(Crash):
                assert host.command("refresh").returncode == 0
                break
        remote.remove(LOCK_NAME)  # as if nobody had renewed it for a minute
        found, files = json.loads(remote.read("current.json")), remote.files()
        assert {f"{found['run']}/report.json", f"{found['data']}/manifest.json"} <= files.keys()
        if version == 2 and "version-000003.json" in files:
            at, version = 0, 3
    assert (version, hosts >= 7) == (3, True)
    assert host.statuses() == ["published"] * 3
    assert host.files(3) == ["day-003.parquet"]
    assert embeddings(host.run(3)) == embeddings(undisturbed.run(3)) != {}


def test_version_that_another_host_has_published_meanwhile_is_not_replaced(
    first: ServiceFolder, remote: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    succeeded(first.command("refresh"))
    first.add(3)
    train = increment.TrialRun.train

    def slow(*arguments: object) -> int:
        remote.write(LOCK_NAME, b"{}")  # this host was stopped for so long that another one has taken its lock over
        return train(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(increment.TrialRun, "train", slow)
        rejected(first.command("refresh"), "the lock")
    assert on_s3(remote, 3) == [], "it would replace what the other one has uploaded"
    remote.remove(LOCK_NAME)
    assert succeeded(first.command("refresh")).stdout.startswith("version 3 published: ")


def test_file_that_leads_out_of_its_folder_is_not_downloaded(
    first: ServiceFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    succeeded(first.command("refresh"))
    files = Folder.files
    strange = {"version-000002/../../escaped": FoundFile(1, 0.0)}
    monkeypatch.setattr(Folder, "files", lambda self: {**files(self), **strange})
    rejected(other_host(first, tmp_path / "second").command("refresh"), "has a file whose name leads out of it")


def test_forgotten_customer_is_neither_on_s3_nor_on_hosts_that_follow(
    first: ServiceFolder, remote: Folder, tmp_path: Path
) -> None:
    succeeded(first.command("refresh"))
    first.add(3, plays(1))  # of customer 0, too
    remote.child("version-000001").delete()
    second = other_host(first, tmp_path / "second")
    with crash_at(4), suppress(Crash):  # when it is about to train
        second.command("refresh")
    assert second.data(3).exists()
    (first.folder / "ids.txt").write_text("c0\n")
    for place, phrase in (("", "is a service on S3"), ("/version-000002-data", "is a dataset of a service")):
        rejected(crossfade_here("forget", f"{remote.uri}{place}", "--ids", first.folder / "ids.txt"), phrase)
    succeeded(crossfade_here("forget", first.path, "--ids", first.folder / "ids.txt"))
    assert succeeded(second.command("refresh")).stdout.startswith("version 3 published: without the forgotten ids")
    for name in remote.files():
        if name.endswith(".parquet"):
            assert "c0" not in _values(remote.read(name)), name
    assert (on_s3(remote, 2), "forgotten.json" in remote.names()) == (["version-000002.json"], False)
    assert on_s3(remote, 1) == ["version-000001.json"], "no log of a run that was deleted earlier"
    first.event_file(3).unlink()
    succeeded(first.command("refresh"))
    for path in [*first.path.rglob("*.parquet"), *second.path.rglob("*.parquet")]:
        assert "c0" not in _values(path.read_bytes()), path


def _values(data: bytes) -> set[object]:
    return {
        value
        for column in pq.read_table(io.BytesIO(data)).columns
        for value in column.to_pylist()
        if isinstance(value, str)
    }


def test_damaged_and_mixed_services_are_named(first: ServiceFolder, remote: Folder, tmp_path: Path) -> None:
    succeeded(first.command("refresh"))
    second = first.copied(tmp_path, remote=None)
    rejected(second.command("refresh"), "is a copy of the service at s3://")
    (second.path / "remote.json").unlink()
    second.add(3)
    succeeded(second.command("refresh"))
    second.configure(remote=json.loads(first.file.read_text())["remote"])
    rejected(second.command("refresh"), f"{second.path}: has other versions than s3://")
    assert second.statuses() == ["published"] * 3
    remote.child("version-000002").delete()
    rejected(other_host(first, tmp_path / "third").command("refresh"), "version-000002: is missing; restore it")
    remote.delete()
    rejected(first.command("refresh"), f"{first.path}: has other versions than s3://")
    assert first.statuses() == ["published"] * 2, "the copy is kept"
    (first.folder / "ids.txt").write_text("c0\n")
    for uri in ("services/music", "s3://music", "s3://music//"):
        (first.path / "remote.json").write_text(json.dumps({"uri": uri}))
        forgotten = crossfade_here("forget", first.path, "--ids", first.folder / "ids.txt")
        rejected(forgotten, "remote.json: is not the place of a service: uri: ")
