"""Preparing from and to S3 on a real server: the same dataset as locally, complete or not at all, and errors."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_here import crossfade_here
from object_store import READER, ObjectStore, running_object_store
from preparing import InterruptingReporter, prepare_files, random_events, write_parquet
from running_command import single_line

from crossfade.base.errors import CrossfadeError, InputError, StorageUnavailableError
from crossfade.base.io.folder import Folder
from crossfade.base.io.s3 import ATTEMPTS_VARIABLE
from crossfade.trainer.data.lineage import LineageReader
from crossfade.trainer.data.manifest import FILE_NAME, read_manifest
from crossfade.trainer.prepare.fetch import _CHUNK_BYTES, fetch_files
from crossfade.trainer.prepare.input_files import find_files
from crossfade.trainer.prepare.options import PrepareOptions
from crossfade.trainer.prepare.pipeline import prepare

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with running_object_store(tmp_path_factory.mktemp("object-store")) as server:
        yield server


@pytest.fixture
def s3(server: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ObjectStore:
    """Configure this process for the server; temporary files go to a folder that must be empty in the end."""
    for name, value in server.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(ATTEMPTS_VARIABLE, "2")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return server


@pytest.fixture
def workspace(s3: ObjectStore, tmp_path: Path) -> Folder:
    return Folder(s3.uri(tmp_path.name))


def upload(workspace: Folder, name: str, path: Path) -> str:
    workspace.write(name, path.read_bytes())
    return f"{workspace.uri}/{name}"


def contents(folder: Folder) -> list[tuple[str, str]]:
    """Return folder and checksum of each file, in the order of the manifest, without its name."""
    manifest = read_manifest(folder)
    files = [file for kind in (manifest.entities, manifest.splits) for part in kind.values() for file in part.files]
    return [(os.path.dirname(file.path), hashlib.sha256(folder.read(file.path)).hexdigest()) for file in files]  # noqa: PTH120


def test_s3_gives_same_dataset_as_local_files(workspace: Folder, tmp_path: Path) -> None:
    options: dict[str, Any] = {"timestamp": "when", "hold_out": "last-1"}
    local = write_parquet(tmp_path / "raw.parquet", **random_events(30_000))
    workspace.write("raw/events/part-00000.parquet", local.read_bytes())
    prepare_files(tmp_path / "out", local, **options)
    manifest = prepare_files(f"{workspace.uri}/out", f"{workspace.uri}/r?w/**/part-*.parquet", **options)
    assert contents(workspace.child("out")) == contents(Folder(tmp_path / "out"))
    assert read_manifest(workspace.child("out")) == manifest
    assert list((tmp_path / "tmp").iterdir()) == []


def test_increment_carries_the_files_of_a_base_anywhere(workspace: Folder, tmp_path: Path) -> None:
    first = write_parquet(tmp_path / "first.parquet", **random_events(3000))
    second = write_parquet(tmp_path / "second.parquet", customer=["c1", "new"], item=[1001, 2000], when=[50, 51])
    local, remote = Folder(tmp_path / "out"), workspace
    places = {"a": (local, local), "b": (local, remote), "c": (remote, remote), "d": (remote, local)}
    for place, (base, out) in places.items():
        prepare_files(f"{base.uri}/base", first, overwrite=True)
        manifest = prepare_files(f"{out.uri}/{place}", second, base=f"{base.uri}/base", replay=5, hold_out_valid="none")
        found = out.child(place)
        assert contents(found) == contents(local.child("a"))
        assert set(found.sizes()) == {FILE_NAME, *(file.path for file in manifest.files())}
    remote.child("base").delete()
    with closing(LineageReader(found := remote.child("c"), read_manifest(found))) as lineage:
        assert sum(map(len, lineage.read_known(["train"]))) == 3002


def test_only_needed_columns_are_fetched(workspace: Folder, tmp_path: Path) -> None:
    count = 20_000
    blob = pa.array([hashlib.sha512(str(n).encode()).digest() * 4 for n in range(count)])
    path = write_parquet(tmp_path / "e.parquet", a=blob, customer=list(range(count)), b=blob, item=[1] * count)
    files = find_files("train", [upload(workspace, "e.parquet", path)], None)
    with fetch_files(files, tmp_path / "tmp", ["customer", "item"]) as here:
        (file,) = [(local.path.stat(), pq.read_table(local.path, columns=["customer", "item"])) for local in here]
    assert file[0].st_size == path.stat().st_size
    assert file[0].st_blocks * 512 < path.stat().st_size / 10
    assert file[1]["customer"].to_pylist() == list(range(count))


def test_special_characters_in_keys_are_read_and_globs_match_within_parts(workspace: Folder, tmp_path: Path) -> None:
    names = ['it\'s a "día" [1]/a*.parquet', "2024-01/ö #1?.parquet", "2024-02/b.parquet", "2024-02/deep/c.parquet"]
    uris = [
        upload(workspace, name, write_parquet(tmp_path / f"{number}.parquet", customer=[number], item=[1]))
        for number, name in enumerate([*names, "2024-02/.hidden.parquet", "2024-02/notes.txt"])
    ]

    def found(*patterns: str) -> list[str]:
        return [str(file).removeprefix(f"{workspace.uri}/") for file in find_files("train", patterns, None)]

    assert found(*uris[:2]) == names[:2]
    assert found(f"{workspace.uri}/2024-*/*.parquet") == names[1:3]
    assert found(f"{workspace.uri}/2024-0[2-9]/**/*.parquet") == names[2:4]
    assert found(f"{workspace.uri}/**/b.parquet") == [names[2]]
    prepare_files(tmp_path / "out", *uris[:2])
    assert read_manifest(Folder(tmp_path / "out")).entities["customer"].rows == 2


def bad_line(workspace: Folder, _: Path) -> dict[str, Any]:
    workspace.write("e.csv", b"customer,item\n1,1\n2,-5\n")
    return {"train": [f"{workspace.uri}/e.csv"]}


def output_above_input(workspace: Folder, tmp_path: Path) -> dict[str, Any]:
    good = write_parquet(tmp_path / "good.parquet", **random_events(10))
    return {"train": [upload(workspace, "out/e.parquet", good)], "overwrite": True}


def named(pattern: str) -> Callable[[Folder, Path], dict[str, Any]]:
    return lambda workspace, _: {"train": [f"{workspace.uri}{pattern}"]}


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (bad_line, "/e.csv, line 3: the item id '-5' of column 'item' is negative"),
        (named("/no.parquet"), "/no.parquet: no such object"),
        (named("/*.parquet"), "/*.parquet: matches no object"),
        (named(""), ": is a folder; expected files: try '"),
        (output_above_input, "/out/e.parquet: is inside out"),
    ],
)
def test_bad_objects_are_rejected_by_uri_and_nothing_is_left(
    workspace: Folder, tmp_path: Path, case: Callable[[Folder, Path], dict[str, Any]], expected: str
) -> None:
    workspace.write("there", b"")
    options = case(workspace, tmp_path)
    before = workspace.sizes()
    with pytest.raises(InputError) as caught:
        prepare(PrepareOptions.of(out=f"{workspace.uri}/out", **options))
    assert f"{workspace.uri}{expected}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert workspace.sizes() == before
    assert list((tmp_path / "tmp").iterdir()) == []


NO_BUCKET, DOWN = {"bucket": "nobodys"}, {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}


@pytest.mark.parametrize(
    ("wrong", "side", "found"),
    [
        (NO_BUCKET, "in", "there is no bucket 'nobodys'"),
        (NO_BUCKET, "out", "there is no bucket 'nobodys'"),
        (READER, "out", "access denied (403 AccessDenied)"),
        (DOWN, "in", "cannot be reached (NETWORK_CONNECTION)"),
        (DOWN, "out", "cannot be reached (NETWORK_CONNECTION)"),
    ],
)
def test_storage_errors_at_the_start_end_with_exit_code_2(
    workspace: Folder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wrong: dict[str, str],
    side: str,
    found: str,
) -> None:
    good = write_parquet(tmp_path / "e.parquet", **random_events(10))
    places = {"in": upload(workspace, "e.parquet", good), "out": f"{workspace.uri}/out"}
    if wrong is NO_BUCKET:
        places = {"in": "s3://nobodys/e.parquet", "out": "s3://nobodys/out"}
    source, out = {"in": good, "out": tmp_path / "out", side: places[side]}.values()
    before = workspace.sizes()
    with monkeypatch.context() as patch:
        for name, value in wrong.items():
            patch.setenv(name, value)
        result = crossfade_here("prepare", "--events", source, "--out", out)
    line = single_line(result.returncode, result.stdout, result.stderr)
    assert line.startswith(f"--{'events' if side == 'in' else 'out'} {places[side]}: ")
    assert found in line
    assert workspace.sizes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"e.parquet", "tmp"}
    assert list((tmp_path / "tmp").iterdir()) == []


def test_interrupt_on_s3_leaves_old_dataset_or_nothing(workspace: Folder, tmp_path: Path) -> None:
    train = write_parquet(tmp_path / "e.parquet", **random_events(400))
    prepare_files(f"{workspace.uri}/old", train)
    before = workspace.sizes()
    for name in ("old", "new"):
        with pytest.raises(KeyboardInterrupt):
            prepare(
                PrepareOptions.of(out=f"{workspace.uri}/{name}", train=[train], overwrite=True),
                InterruptingReporter("write train"),
            )
    assert workspace.sizes() == before
    assert list((tmp_path / "tmp").iterdir()) == []


class InterruptedFolder(Folder):
    """A folder that is interrupted right after its manifest is written."""

    def write_over(self, name: str, data: bytes, version: str | None) -> str:
        written = super().write_over(name, data, version)
        if name == FILE_NAME:
            raise KeyboardInterrupt
        return written


def test_interrupt_after_manifest_leaves_new_dataset_complete(
    workspace: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_files(workspace.uri, write_parquet(tmp_path / "e.parquet", **random_events(400)))
    old = contents(workspace)
    with pytest.raises(InputError, match=r"exists already.*overwrite"):
        prepare_files(workspace.uri, tmp_path / "e.parquet")
    with monkeypatch.context() as patch:
        patch.setattr("crossfade.trainer.prepare.staging.Folder", InterruptedFolder)
        with pytest.raises(KeyboardInterrupt):
            prepare_files(
                workspace.uri, write_parquet(tmp_path / "f.parquet", **random_events(500, seed=1)), overwrite=True
            )
    splits = read_manifest(workspace).splits
    assert splits["train"].rows + splits["valid"].rows == 500
    assert contents(workspace) != old
    # The next preparation deletes the leftovers of the old dataset.
    manifest = prepare_files(workspace.uri, tmp_path / "e.parquet", overwrite=True)
    assert contents(workspace) == old
    assert len(workspace.sizes()) == 1 + sum(
        len(part.files) for kind in (manifest.entities, manifest.splits) for part in kind.values()
    )


def test_manifest_that_was_replaced_meanwhile_stays(workspace: Folder, tmp_path: Path) -> None:
    train = write_parquet(tmp_path / "e.parquet", **random_events(400))
    other = prepare_files(workspace.uri, train).model_copy(update={"source": {"by": "another process"}})

    class Other:
        def phase(self, name: str, total: int | None, unit: str) -> None:
            other.write(workspace)

        def advance(self, amount: int) -> None:
            pass

    with pytest.raises(
        CrossfadeError, match="has written it since this command began, so the new dataset was discarded"
    ):
        prepare(PrepareOptions.of(out=workspace.uri, train=[train], overwrite=True), Other())
    assert read_manifest(workspace) == other
    assert set(workspace.sizes()) == {FILE_NAME, *(file.path for file in other.files())}


def test_foreign_objects_are_kept_and_leftovers_are_reported(workspace: Folder, tmp_path: Path) -> None:
    train = write_parquet(tmp_path / "e.parquet", **random_events(20))
    workspace.write("train/part-00000-aaaa.parquet", b"of a preparation that was killed")
    with pytest.raises(InputError, match="another preparation left or is writing"):
        prepare_files(workspace.uri, train)
    for name in ("notes.txt", "train/photo.jpg"):
        workspace.write(name, b"mine")
        with pytest.raises(InputError, match=f"holds '{name}'"):
            prepare_files(workspace.uri, train, overwrite=True)
        workspace.remove(name)
    prepare_files(workspace.uri, train, overwrite=True)
    assert "train/part-00000-aaaa.parquet" not in workspace.sizes()


def test_server_that_stops_while_reading_ends_the_preparation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv(ATTEMPTS_VARIABLE, "2")
    with running_object_store(tmp_path / "store") as server:
        for name, value in server.variables.items():
            monkeypatch.setenv(name, value)
        path = write_parquet(tmp_path / "e.parquet", **random_events(1000))
        for number in range(3):
            upload(Folder(server.uri("in")), f"{number}.parquet", path)

        class Stops:
            def phase(self, name: str, total: int | None, unit: str) -> None:
                if name == "read events":
                    server.stop()

            def advance(self, amount: int) -> None:
                pass

        options = PrepareOptions.of(
            out=tmp_path / "out", train=[server.uri("in/*.parquet")], work_dir=tmp_path / "work"
        )
        with pytest.raises(StorageUnavailableError, match=r"s3://.*\.parquet: .*cannot be reached") as caught:
            prepare(options, Stops())
    assert caught.value.exit_code == CrossfadeError.exit_code == 1
    assert {path.name for path in tmp_path.iterdir()} == {"e.parquet", "store", "work"}
    assert list((tmp_path / "work").iterdir()) == []


def test_large_and_small_objects_are_fetched_in_pieces(workspace: Folder, tmp_path: Path) -> None:
    texts = [os.urandom(48).hex() for _ in range(200_000)]
    large = write_parquet(tmp_path / "large.parquet", customer=texts, item=[1] * len(texts))
    small = write_parquet(tmp_path / "small.parquet", customer=["a"], item=[1])
    assert large.stat().st_size > 2 * _CHUNK_BYTES
    paths = [small, large, *[small] * 12]
    uris = [upload(workspace, f"{number}.parquet", path) for number, path in enumerate(paths)]
    with fetch_files(find_files("train", uris, None), tmp_path / "tmp", None) as here:
        for path, local in zip(paths, here, strict=True):
            assert pq.read_table(local.path).equals(pq.read_table(path))
    assert list((tmp_path / "tmp").iterdir()) == []
