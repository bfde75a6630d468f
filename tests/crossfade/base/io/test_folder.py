"""A folder behaves alike on a file system and on S3, where conditional requests lock it for one writer."""

import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from contextlib import closing, suppress
from pathlib import Path

import pytest
from flaky_proxy import flaky_proxy
from needs import LINUX
from object_store import ObjectStore

from crossfade.base.errors import InputError
from crossfade.base.io import writer_lock
from crossfade.base.io.folder import Folder
from crossfade.base.io.regular_files import UnsuitableFileError
from crossfade.base.io.s3 import ChangedError
from crossfade.base.io.writer_lock import LOCK_NAME, folder_writer


@pytest.fixture(params=["a/b c/%20", "file:///b%20c/%3F%231", pytest.param("s3", marks=pytest.mark.slow)])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """Return a folder of each kind, which does not exist yet."""
    if request.param == "s3":
        server: ObjectStore = request.getfixturevalue("s3")
        return Folder(server.uri(f"folder/{tmp_path.name}"))
    scheme, _, path = request.param.rpartition("://")
    return Folder(f"{scheme and 'file://'}{tmp_path}/folder/{path.strip('/')}")


def test_failed_file_is_deleted_unless_another_process_has_replaced_it(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    with suppress(BrokenPipeError), folder.open_output("part") as older:
        older.write(b"of the older")
        with folder.open_output("part") as newer:
            newer.write(b"of the newer")
        raise BrokenPipeError
    assert folder.read("part") == b"of the newer"
    with pytest.raises(OSError, match="/part: lost"), folder.open_output("part"):
        raise OSError("lost")
    assert folder.names() == []


def test_written_files_are_read_and_listed(folder: Folder) -> None:
    assert (folder.names(), folder.sizes(), folder.entries(), folder.exists("x")) == ([], {}, {}, False)
    folder.delete()
    folder.remove("x")
    folder.write("one.json", b"first")
    folder.write("one.json", b"second")
    folder.child("below").write("two.json", b"")
    with folder.child("below").open_output("deep/large.npy") as file:
        for number in range(5):
            file.write(memoryview(bytes([number])))
    assert folder.read("one.json") == b"second"
    assert folder.child("below").read("two.json") == b""
    assert pickle.loads(pickle.dumps(folder.child("below"))).read("two.json") == b""
    assert folder.names() == ["below", "one.json"]
    assert folder.child("below").names() == ["deep", "two.json"]
    assert folder.sizes() == {"one.json": 6, "below/two.json": 0, "below/deep/large.npy": 5}
    assert (folder.exists("one.json"), folder.exists("below"), folder.exists("two.json")) == (True, True, False)
    listed = {name: found and found.bytes for name, found in folder.entries().items()}
    assert listed == {"one.json": 6, "below": None}
    assert (folder.child("a").uri, folder.child("a").name) == (f"{folder.uri}/a", "a")
    assert Folder(folder.uri + "/").uri == folder.uri
    assert folder.on_s3 == folder.uri.startswith("s3://")


def test_file_is_read_in_pieces_from_any_position(folder: Folder) -> None:
    folder.write("digits", b"0123456789")
    buffer = bytearray(4)
    with closing(folder.open_random("digits")) as file:
        assert file.readinto(buffer) == 4
        file.seek(7)
        assert file.readinto(buffer) == 3
        assert bytes(buffer) == b"7893"
        assert file.readinto(buffer) == 0


def test_delete_removes_the_folder_and_nothing_else(folder: Folder) -> None:
    for child in ("step-1", "step-10"):
        folder.child(child).write("a", b"1")
        folder.child(child).child("below").write("b", b"1")
    folder.child("step-1").delete()
    assert folder.sizes() == {"step-10/a": 1, "step-10/below/b": 1}
    folder.child("step-10").remove("a")
    assert folder.sizes() == {"step-10/below/b": 1}


def test_missing_file_is_named(folder: Folder) -> None:
    folder.write("there", b"1")
    for read in (folder.read, folder.open_random):
        with pytest.raises(FileNotFoundError, match=r"folder.*/missing"):
            read("missing")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("gs://music/x", r"gs://music/x: unsupported location; expected a path, file:///PATH or s3://"),
        ("file://host/x", "file://host/x: unsupported location"),
        ("file:///music/what?/x", r"file:///music/what\?/x: unsupported location"),
        ("file:///music/#1", "file:///music/#1: unsupported location"),
        ("s3://", "expected s3://BUCKET/PREFIX"),
        ("s3:///x", "expected s3://BUCKET/PREFIX"),
        ("s3://music//x", "expected s3://BUCKET/PREFIX"),
        ("s3://key:secret@music/x", "credentials, region and endpoint come from the environment"),
        ("s3://music/x?region=eu", "credentials, region and endpoint come from the environment"),
    ],
)
def test_unsupported_uri_is_rejected(uri: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Folder(uri)


def record_syncs_and_moves(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the names of files that are synced or moved from now on."""
    recorded: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def record_sync(descriptor: int) -> None:
        fsync(descriptor)
        recorded.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")

    def record_move(path: Path, target: Path) -> Path:
        recorded.append(f"move to {target.name}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(Path, "replace", record_move)
    return recorded


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason=LINUX)
def test_file_is_synced_before_it_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = record_syncs_and_moves(monkeypatch)
    folder = Folder(str(tmp_path / "folder"))
    with folder.open_output("weights.npy") as file:
        file.write(b"123")
        assert recorded == [f"sync {tmp_path.name}"]  # the parent of the new folder
    assert recorded[1:] == ["sync weights.npy", "sync folder"]
    recorded.clear()
    folder.write("manifest.json", b"{}")
    [synced, *rest] = recorded
    assert synced.startswith("sync .manifest.json")
    assert rest == ["move to manifest.json", "sync folder"]


@pytest.fixture
def s3_folder(s3: ObjectStore, tmp_path: Path) -> Folder:
    return Folder(s3.uri(f"locks/{tmp_path.name}"))


@pytest.mark.slow
def test_lock_on_s3_of_a_dead_process_is_taken_over(s3_folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
    code = (
        "import sys; from crossfade.base.io.folder import Folder\n"
        "from crossfade.base.io.writer_lock import folder_writer\n"
        "with folder_writer(Folder(sys.argv[1])): print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, s3_folder.uri], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(InputError) as caught, folder_writer(s3_folder):
            pass
        assert f"process {process.pid} on host {socket.gethostname()} has been" in str(caught.value)
        process.send_signal(signal.SIGKILL)
    with caplog.at_level(logging.WARNING), folder_writer(s3_folder):
        assert caplog.messages[-1].endswith(f"process {process.pid} on host {socket.gethostname()}, which has ended")
    assert s3_folder.sizes() == {}


@pytest.mark.slow
def test_lock_on_s3_of_another_host_is_taken_over_once_it_is_not_renewed(
    s3_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3_folder.write(LOCK_NAME, b"")
    delete = f"if that process has ended, delete {s3_folder.uri}/{LOCK_NAME}$"
    with pytest.raises(InputError, match=delete), folder_writer(s3_folder):
        pass
    other = writer_lock._Owner.this_process().model_copy(update={"host": "other", "machine": "other"})
    s3_folder.write(LOCK_NAME, other.model_dump_json().encode())
    with pytest.raises(InputError, match="on host other has been writing it since"), folder_writer(s3_folder):
        pass
    monkeypatch.setattr(writer_lock, "_LEASE_SECONDS", 0.0)
    monkeypatch.setattr(writer_lock, "_RENEWAL_SECONDS", 0.2)
    with folder_writer(s3_folder) as lock:
        lock.check()
        with pytest.raises(InputError, match="has been writing it since"):
            writer_lock._ObjectLock(Folder(s3_folder.uri)).acquire()
        s3_folder.write(LOCK_NAME, other.model_dump_json().encode())
        with pytest.raises(ChangedError):
            lock.check()
    assert list(s3_folder.sizes()) == [LOCK_NAME], "the lock of the other one is not deleted"


@pytest.mark.slow
def test_of_writers_of_one_version_on_s3_one_succeeds(s3_folder: Folder) -> None:
    version: str | None = None
    for turn in range(3):
        barrier, written = threading.Barrier(4, timeout=240), []

        def write(number: int, barrier: threading.Barrier = barrier, version: str | None = version) -> None:
            own = Folder(s3_folder.uri)
            barrier.wait()
            with suppress(ChangedError):
                written.append((own.write_over("manifest", f"{turn} {number}".encode(), version), number))  # noqa: B023

        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        [(version, winner)] = written
        assert s3_folder.read_version("manifest")[:2] == (f"{turn} {winner}".encode(), version)
    with pytest.raises(ChangedError):
        s3_folder.write_over("manifest", b"", None)
    with pytest.raises(ChangedError):
        s3_folder.write_over("missing", b"", version)
    with pytest.raises(ChangedError):
        s3_folder.remove("manifest", '"0"')
    s3_folder.remove("manifest", version)
    assert s3_folder.version("manifest") is None


@pytest.mark.slow
def test_conditional_request_is_repeated_after_a_fault(
    s3_folder: Folder, s3: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = None
    for data in (b"old", b"new"):
        first = s3_folder.write_over("manifest", data, version)
        assert s3_folder.write_over("manifest", data, version) == first, "as if the first answer had been lost"
        version = first
    with flaky_proxy(s3.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        through = Folder(s3_folder.uri)
        for fault in ("reset", "throttle", "cut"):
            proxy.inject(fault, 2)
            assert through.read_version("manifest") == s3_folder.read_version("manifest")
            assert proxy.left == 0


def test_fifo_in_place_of_a_file_is_rejected_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    folder = Folder(tmp_path)
    for read in (folder.read, folder.open_random):
        with pytest.raises(UnsuitableFileError, match="not a regular file"):
            read("pipe")


def test_file_above_the_limit_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    folder = Folder(tmp_path)
    with pytest.raises(UnsuitableFileError, match=r"1,099,511,627,776 bytes, of 67,108,864 at most"):
        folder.read("sparse")
    folder.write("small", b"12345")
    assert folder.read("small", 5) == b"12345"
    with pytest.raises(UnsuitableFileError, match="5 bytes, of 4 at most"):
        folder.read("small", 4)


@pytest.mark.parametrize("name", ["link", "below/file", "absolute"])
def test_small_file_is_not_read_through_a_link_that_leads_outside(tmp_path: Path, name: str) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_bytes(b"secret")
    root = tmp_path / "data"
    root.mkdir()
    (root / "link").symlink_to("../outside/file")
    (root / "below").symlink_to("../outside")
    (root / "absolute").symlink_to(tmp_path / "outside" / "file")
    folder = Folder(root)
    with pytest.raises(
        UnsuitableFileError, match=r"leads out of the folder; copy the file into it: '.*/data/"
    ) as caught:
        folder.read(name)
    assert "secret" not in str(caught.value)
    with closing(folder.open_random(name)) as data:
        assert data.read_at(0, 6) == b"secret"


def test_small_file_is_read_through_links_to_the_folder_and_within_it(tmp_path: Path) -> None:
    (tmp_path / "disk" / "below").mkdir(parents=True)
    (tmp_path / "disk" / "below" / "file").write_bytes(b"content")
    (tmp_path / "data").symlink_to("disk")
    (tmp_path / "disk" / "link").symlink_to("below/file")
    (tmp_path / "disk" / "folder").symlink_to(tmp_path / "disk" / "below")
    for name in ("link", "folder/file", "below/file"):
        assert Folder(tmp_path / "data").read(name) == b"content"
    for name in ("none", "none/file"):
        with pytest.raises(FileNotFoundError, match=f"data/{name}"):
            Folder(tmp_path / "data").read(name)


def test_nothing_is_deleted_through_a_link_that_leads_outside(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "kept").touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train").symlink_to(outside)
    folder = Folder(tmp_path / "data")
    for delete in (
        lambda: folder.remove("train/kept"),
        lambda: folder.child("train").remove("kept"),
        lambda: folder.child("train").child("deep").delete(),
        lambda: folder.child("train").delete(),
    ):
        with pytest.raises(OSError, match=r"link"):
            delete()
    assert sorted(path.name for path in outside.iterdir()) == ["deep", "kept"]


def test_file_that_was_taken_over_is_independent_of_its_source(folder: Folder, tmp_path: Path) -> None:
    others = [Folder(tmp_path / "other"), folder.child("other")]
    for source in others:
        source.write("a", b"before")
        folder.take_over("b", source, "a")
        with folder.open_output("b") as file:
            file.write(b"after")
        assert (source.read("a"), folder.read("b")) == (b"before", b"after")
        folder.take_over("b", source, "a")
        source.write("a", b"after")
        assert folder.read("b") == b"before"
        with pytest.raises(FileNotFoundError, match="missing"):
            folder.take_over("b", source, "missing")
