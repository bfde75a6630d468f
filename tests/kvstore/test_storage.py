"""A folder means the same on a file system and on S3; and S3 may be slow or away for a while, but not for ever."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from object_store import ObjectStore, free_ports, running_object_store
from saved_ranges import WRITE_SECONDS, Arrays, cut, joined, random_table, save, written
from waiting import wait_until

from kvstore.checkpoint.format import TableShard
from kvstore.checkpoint.lifecycle import latest_checkpoint, prune, step_folder
from kvstore.checkpoint.reader import Checkpoint, open_checkpoint
from kvstore.checkpoint.snapshot import Snapshot
from kvstore.errors import CheckpointError, InputError
from kvstore.io.folder import Folder
from kvstore.optimizers import OptimizerSpec
from kvstore.store import TableSpec

SGD = OptimizerSpec("sgd")
SMALL = TableSpec("small", rows=50, dim=4, init_std=0.1)
LARGE = TableSpec("large", rows=(64 << 20) // 256, dim=64, init_std=0.1)
"""64 MB: several parts of an upload."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with running_object_store(tmp_path_factory.mktemp("object-store")) as server:
        yield server


@pytest.fixture
def s3(server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """The server, which this process and those that it starts reach."""
    for name, value in server.variables.items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture(params=["path", "file", pytest.param("s3", marks=pytest.mark.slow)])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """A folder of each kind, which does not exist yet."""
    if request.param == "s3":
        server: ObjectStore = request.getfixturevalue("s3")
        return Folder(server.uri(f"folder/{tmp_path.name}"))
    return Folder(f"file://{tmp_path}/folder" if request.param == "file" else f"{tmp_path}/folder")


def test_a_folder_that_does_not_exist_is_empty(folder: Folder) -> None:
    assert folder.names() == []
    assert folder.sizes() == {}
    assert not folder.exists("x")
    folder.delete()
    folder.remove("x")


def test_what_was_written_is_read_and_listed(folder: Folder) -> None:
    folder.write("one.json", b"first")
    folder.write("one.json", b"second")
    folder.child("below").write("two.json", b"")
    with folder.child("below").open_output("deep/large.npy") as file:
        for number in range(5):
            file.write(memoryview(bytes([number])))
    assert folder.read("one.json") == b"second"
    assert folder.child("below").read("two.json") == b""
    assert folder.names() == ["below", "one.json"]
    assert folder.child("below").names() == ["deep", "two.json"]
    assert folder.sizes() == {"one.json": 6, "below/two.json": 0, "below/deep/large.npy": 5}
    assert folder.exists("one.json")
    assert folder.exists("below")
    assert not folder.exists("two.json")


def test_entries_are_the_files_with_their_sizes_and_the_folders(folder: Folder) -> None:
    assert folder.entries() == {}
    folder.write("a b", b"123")
    folder.child("below").write("c", b"")
    assert folder.entries() == {"a b": 3, "below": None}
    assert folder.child("below").entries() == {"c": 0}
    folder.check_bucket()


def test_a_file_is_read_in_pieces_from_any_place(folder: Folder) -> None:
    folder.write("digits", b"0123456789")
    buffer = bytearray(4)
    with closing(folder.open_input("digits")) as file:
        assert file.readinto(buffer) == 4
        file.seek(7)
        assert file.readinto(buffer) == 3
        assert bytes(buffer) == b"7893"
        assert file.readinto(buffer) == 0


def test_deleting_takes_all_that_is_in_a_folder_and_no_more(folder: Folder) -> None:
    for child in ("step-1", "step-10"):
        folder.child(child).write("a", b"1")
        folder.child(child).child("below").write("b", b"1")
    folder.child("step-1").delete()
    assert folder.sizes() == {"step-10/a": 1, "step-10/below/b": 1}
    folder.child("step-10").remove("a")
    assert folder.sizes() == {"step-10/below/b": 1}


def test_a_missing_file_is_named(folder: Folder) -> None:
    folder.write("there", b"1")
    for read in (folder.read, folder.open_input):
        with pytest.raises(FileNotFoundError, match=r"folder.*/missing"):
            read("missing")


def test_a_file_whose_writing_breaks_off_is_not_there(tmp_path: Path) -> None:
    def write() -> None:
        with Folder(str(tmp_path)).open_output("broken") as file:
            file.write(b"123")
            raise OSError("no more")

    with pytest.raises(OSError, match=r"/broken: no more"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_names_and_uris(folder: Folder) -> None:
    assert folder.child("a").uri == f"{folder.uri}/a"
    assert folder.child("a").name == "a"
    assert Folder(folder.uri + "/").uri == folder.uri
    assert folder.on_s3 == folder.uri.startswith("s3://")


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
def test_other_uris_are_refused(uri: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Folder(uri)


@pytest.mark.parametrize(
    ("name", "value"),
    [("AWS_ENDPOINT_URL", "localhost:1"), ("CROSSFADE_S3_ATTEMPTS", "0"), ("CROSSFADE_S3_TIMEOUT_SECONDS", "1.5")],
)
def test_settings_that_are_none_are_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"{name} is '{value}'"):
        Folder("s3://music/x").names()


def test_a_path_may_hold_anything(tmp_path: Path) -> None:
    folder = Folder(f"{tmp_path}/with space/and%20more")
    folder.write("x", b"1")
    assert (tmp_path / "with space" / "and%20more" / "x").read_bytes() == b"1"
    assert Folder(f"file://{tmp_path}/with%20space").names() == ["and%20more"]
    Folder(f"file://{tmp_path}/what%3F%231").write("x", b"1")
    assert (tmp_path / "what?#1" / "x").exists()


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["with space", "and%20more", "plus+equals=&;:,$'()!*", "Größe/日本", "~tilde.[x]"])
def test_a_prefix_on_s3_may_hold_anything(s3: ObjectStore, prefix: str) -> None:
    folder = Folder(s3.uri(f"odd/{prefix}"))
    folder.child("step-1").write("manifest.json", b"1")
    with folder.open_output("step-1/weights.npy") as file:
        file.write(b"123")
    assert folder.names() == ["step-1"]
    assert folder.sizes() == {"step-1/manifest.json": 1, "step-1/weights.npy": 3}
    assert folder.child("step-1").read("manifest.json") == b"1"
    assert Folder(s3.uri("odd")).sizes() == {f"{prefix}/step-1/manifest.json": 1, f"{prefix}/step-1/weights.npy": 3}
    folder.child("step-1").delete()
    assert folder.sizes() == {}


def synced_and_moved(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is synced and what is moved from now on, by name."""
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def note_sync(descriptor: int) -> None:
        fsync(descriptor)
        done.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")

    def note_move(path: Path, target: Path) -> Path:
        done.append(f"move to {target.name}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_move)
    return done


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux says which file is synced")
def test_a_file_lasts_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = synced_and_moved(monkeypatch)
    folder = Folder(str(tmp_path / "folder"))
    with folder.open_output("weights.npy") as file:
        file.write(b"123")
        assert done == [f"sync {tmp_path.name}"]  # which holds the new folder
    assert done[1:] == ["sync weights.npy", "sync folder"]
    done.clear()
    folder.write("manifest.json", b"{}")
    [synced, *rest] = done
    assert synced.startswith("sync .manifest.json")
    assert rest == ["move to manifest.json", "sync folder"]


def test_a_small_file_that_cannot_be_written_leaves_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(str(tmp_path))
    folder.write("manifest.json", b"earlier")

    def refuse(_descriptor: int) -> None:
        raise OSError(errno.EIO, "no")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="no"):
        folder.write("manifest.json", b"later")
    assert folder.read("manifest.json") == b"earlier"
    assert folder.names() == ["manifest.json"]


# Checkpoints on S3.


@pytest.fixture
def checkpoints(s3: ObjectStore, tmp_path: Path) -> str:
    return s3.uri(f"checkpoints/{tmp_path.name}")


def into(table: TableSpec) -> list[TableShard]:
    return cut(table, {name: np.zeros_like(values) for name, values in random_table(table, SGD).items()}, 2)


def assert_loads(checkpoint: Checkpoint, expected: dict[str, Arrays]) -> None:
    for table in checkpoint.manifest.tables:
        held = into(table)
        checkpoint.load(held)
        np.testing.assert_array_equal(joined(held)["weights"], expected[table.name]["weights"])


def save_large(checkpoints: str, step: int) -> dict[str, Arrays]:
    arrays = {table.name: random_table(table, SGD, seed=step) for table in (SMALL, LARGE)}
    ranges = [held for table in (SMALL, LARGE) for held in cut(table, arrays[table.name], 3)]
    save(checkpoints, step, [SMALL, LARGE], SGD, [ranges[::2], ranges[1::2]])
    return arrays


@pytest.mark.slow
def test_checkpoints_on_s3_are_written_found_loaded_and_pruned(checkpoints: str) -> None:
    for step in (1, 2):
        arrays = save_large(checkpoints, step)
    Folder(checkpoints).child("step-000000003").write("part-00000-of-00001.json", b"{}")
    checkpoint, skipped = latest_checkpoint(checkpoints)
    assert checkpoint is not None
    assert checkpoint.uri == step_folder(checkpoints, 2)
    assert skipped == [
        f"{checkpoints}/step-000000003/manifest.json: missing: this is not a checkpoint, or an incomplete one"
    ]
    assert_loads(checkpoint, arrays)
    with closing(checkpoint):
        pieces = [checkpoint.weights("large", start, start + 65536) for start in range(0, LARGE.rows, 65536)]
    np.testing.assert_array_equal(np.concatenate(pieces), arrays["large"]["weights"])
    prune(checkpoints, keep_latest=1)
    # Not by its names: this server goes on listing the first as an empty folder.
    assert {path.partition("/")[0] for path in Folder(checkpoints).sizes()} == {"step-000000002", "step-000000003"}
    assert_loads(open_checkpoint(checkpoint.uri), arrays)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [1 << 10, 24 << 20], ids=["before its first part", "after it"])
def test_an_object_whose_snapshot_breaks_off_is_not_there(checkpoints: str, sent: int) -> None:
    to = Folder(step_folder(checkpoints, 1))
    size = 64 << 20
    frame = json.dumps({"path": "track/weights.00000-of-00001.npy", "bytes": size, "file_bytes": size}).encode() + b"\n"
    writer = subprocess.run(
        [sys.executable, "-P", "-m", "kvstore.checkpoint.writer", to.uri, "0", "1", str(os.getpid())],
        input=frame + bytes(sent),
        capture_output=True,
        check=False,
    )
    assert writer.returncode == 1
    assert json.loads(writer.stdout) == {"error": "the snapshot is truncated"}
    assert writer.stderr == b""
    assert to.sizes() == {}


@pytest.mark.slow
def test_damage_on_s3_is_found(checkpoints: str) -> None:
    save_large(checkpoints, 1)
    step = Folder(checkpoints).child("step-000000001")
    path = "small/weights.00001-of-00003.npy"
    data = step.read(path)
    step.write(path, data[:-1] + b"?")
    with pytest.raises(CheckpointError, match=r"small/weights.00001-of-00003.npy: its CRC-32") as caught:
        open_checkpoint(step.uri).load(into(SMALL))
    assert caught.value.checkpoint == step.uri
    step.write(path, data[:-1])
    with pytest.raises(CheckpointError, match=r"small/weights.00001-of-00003.npy: has 399 bytes, expected 400"):
        open_checkpoint(step.uri)


@pytest.mark.slow
def test_a_wrong_secret_is_refused_at_once_and_no_reason_to_refuse_a_checkpoint(
    checkpoints: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_large(checkpoints, 1)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    held = cut(SMALL, random_table(SMALL, SGD), 1)
    before = held[0].arrays["weights"].copy()
    with pytest.raises(CheckpointError, match=r"step-000000002: could not be written: .*SignatureDoesNotMatch"):
        written(Snapshot(step_folder(checkpoints, 2), 0, 1, held))
    np.testing.assert_array_equal(held[0].arrays["weights"], before)
    for read in (latest_checkpoint, lambda uri: open_checkpoint(step_folder(uri, 1))):
        with pytest.raises(CheckpointError, match=r"cannot be read: .*SignatureDoesNotMatch") as caught:
            read(checkpoints)
        assert caught.value.checkpoint is None


def writers_ports() -> set[int]:
    """The ports from which writers of this process have connections."""
    ports = set()
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if "kvstore.checkpoint.writer" in child.cmdline():
                ports |= {connection.laddr.port for connection in child.net_connections() if connection.laddr}
    return ports


@pytest.mark.slow
def test_a_save_survives_an_s3_that_says_nothing_for_a_while(
    s3: ObjectStore, checkpoints: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CROSSFADE_S3_TIMEOUT_SECONDS", "1")
    arrays = random_table(SMALL, SGD)
    seen: set[int] = set()
    with closing(Snapshot(step_folder(checkpoints, 1), 0, 1, cut(SMALL, arrays, 1))) as snapshot:
        with s3.paused():

            def tries_again() -> bool:
                seen.update(writers_ports())
                return len(seen) > 2

            wait_until(tries_again, WRITE_SECONDS, "a third connection of the writer")
            assert snapshot.poll() is None
        part = written(snapshot).part
    assert len(Folder(step_folder(checkpoints, 1)).read(part.name)) == part.bytes


@pytest.mark.slow
def test_a_save_survives_an_s3_that_is_gone_for_a_while(s3: ObjectStore, checkpoints: str) -> None:
    to = Folder(step_folder(checkpoints, 1))
    held = [*cut(SMALL, random_table(SMALL, SGD), 1), *cut(LARGE, random_table(LARGE, SGD), 1)]
    before = [array.arrays["weights"].copy() for array in held]
    with closing(Snapshot(to.uri, 0, 1, held)) as snapshot:
        wait_until(lambda: to.names() == ["small"], WRITE_SECONDS, "the first file")
        s3.stop()
        assert snapshot.poll() is None
        s3.start()
        written(snapshot)
    for array, expected in zip(held, before, strict=True):
        np.testing.assert_array_equal(array.arrays["weights"], expected)
        path = f"{array.table}/weights.00000-of-00001.npy"
        assert to.read(path)[128:] == expected.tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("opened", [False, True], ids=["before it is opened", "after it is opened"])
def test_a_load_survives_an_s3_that_is_gone_for_a_while(s3: ObjectStore, checkpoints: str, opened: bool) -> None:
    arrays = save_large(checkpoints, 1)
    uri = step_folder(checkpoints, 1)
    checkpoint = open_checkpoint(uri) if opened else None
    with ThreadPoolExecutor(1) as thread:
        s3.stop()
        loading = thread.submit(lambda: assert_loads(checkpoint or open_checkpoint(uri), arrays))
        s3.start()
        loading.result(timeout=120)


@pytest.mark.slow
def test_an_s3_that_stays_away_is_an_error_that_leaves_the_tables_as_they_are(
    s3: ObjectStore, checkpoints: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_large(checkpoints, 1)
    monkeypatch.setenv("CROSSFADE_S3_ATTEMPTS", "4")
    checkpoint = open_checkpoint(step_folder(checkpoints, 1))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_ports(1)[0]}")
    held = cut(LARGE, random_table(LARGE, SGD), 1)
    before = held[0].arrays["weights"].copy()
    with pytest.raises(CheckpointError, match=r"step-000000002: could not be written: .*NETWORK_CONNECTION"):
        written(Snapshot(step_folder(checkpoints, 2), 0, 1, held))
    np.testing.assert_array_equal(held[0].arrays["weights"], before)
    s3.stop()
    try:
        with pytest.raises(CheckpointError, match=r"weights.00000-of-00003.npy: cannot be read: ") as caught:
            checkpoint.load(into(SMALL))
    finally:
        s3.start()
    assert caught.value.checkpoint is None
