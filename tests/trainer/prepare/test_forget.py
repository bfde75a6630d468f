"""Forgetting ids: all_bytes of them is deleted from the dataset, also if the deletion is interrupted at any point."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from crashing_storage import Crash, CrashingStorage
from object_store import ObjectStore, running_object_store
from preparing import Row, forget_dataset, vocabulary_tuples
from preparing import interactions as interactions_of

from crossfade.base.errors import CrossfadeError, InputError
from crossfade.base.io.folder import Folder
from crossfade.base.io.writer_lock import LOCK_NAME
from crossfade.cli.main import main
from crossfade.trainer.data.manifest import DatasetManifest, read_manifest
from crossfade.trainer.data.parquet import ParquetFiles
from crossfade.trainer.data.reporter import NullReporter
from crossfade.trainer.prepare import staging as output
from crossfade.trainer.prepare.forget import ForgetReport, staged_deletion
from crossfade.trainer.prepare.id_list import read_ids
from crossfade.trainer.prepare.options import PrepareOptions
from crossfade.trainer.prepare.pipeline import prepare

FORGOTTEN = ["customer-0007", "customer-0042", "customer-0199"]
PLAIN = {"compression": "none", "use_dictionary": False}
CUSTOMERS, ITEMS, EVENTS = 200, 40, 9000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with running_object_store(tmp_path_factory.mktemp("object-store")) as server:
        yield server


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepare a dataset without compression, so that its bytes can be searched; train has several files."""
    folder = tmp_path_factory.mktemp("prepared")
    draw = np.random.default_rng(3)
    customers = draw.integers(0, CUSTOMERS - 1, EVENTS)
    customers[:3] = CUSTOMERS - 1  # the last of FORGOTTEN is in few files
    table = pa.table(
        {
            "customer": [f"customer-{number:04d}" for number in customers],
            "item": draw.integers(0, ITEMS, EVENTS) + 7_000_000_000_000,
            "when": np.arange(EVENTS),
        }
    )
    pq.write_table(table, folder / "events.parquet")
    (folder / "names.csv").write_text("id,name\n" + "".join(f"{text},Name of {text}\n" for text in FORGOTTEN))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(output, "write_options", lambda _: PLAIN)
        patch.setattr(output, "GROUPS_PER_FILE", 2)
        patch.setattr(output, "GROUP_ROWS_MIN", 512)
        prepare(
            PrepareOptions.of(
                out=folder / "data",
                train=[folder / "events.parquet"],
                timestamp="when",
                hold_out="random:0.1",
                names={"customer": names_file(folder)},
                threads=2,
            )
        )
    return folder / "data"


def names_file(folder: Path) -> Any:
    from crossfade.trainer.prepare.option_values import NamesFile

    return NamesFile(folder / "names.csv", "id", "name")


def copy_to(source: Path, target: Folder) -> Folder:
    for path in sorted(source.rglob("*.*")):
        target.write(path.relative_to(source).as_posix(), path.read_bytes())
    return target


@pytest.fixture
def data(request: pytest.FixtureRequest, tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """Copy the dataset to a local folder, or to S3."""
    monkeypatch.setattr(output, "write_options", lambda _: PLAIN)
    if getattr(request, "param", "path") == "path":
        return copy_to(prepared, Folder(tmp_path / "data"))
    server: ObjectStore = request.getfixturevalue("server")
    for name, value in server.variables.items():
        monkeypatch.setenv(name, value)
    return copy_to(prepared, Folder(server.uri(f"forget/{tmp_path.name}")))


AND_ON_S3 = pytest.mark.parametrize("data", ["path", pytest.param("s3", marks=pytest.mark.slow)], indirect=True)


def table_of(folder: Folder, path: str) -> pa.Table:
    with folder.open_random(path) as file:
        return pq.read_table(file)


def interactions(folder: Folder) -> dict[str, list[Row]]:
    """Return the interactions of each split."""
    return {split: interactions_of(folder, split) for split in read_manifest(folder).splits}


def all_bytes(folder: Folder) -> bytes:
    return b"".join(folder.read(name) for name in folder.sizes())


def check_complete(folder: Folder) -> DatasetManifest:
    """Check that the manifest describes the files, and return it."""
    manifest = read_manifest(folder)
    files = ParquetFiles(folder)
    for file in manifest.files():
        files.footer(file)
    return manifest


def forget_all(folder: Folder, ids: list[str] = FORGOTTEN, entity: str = "customer") -> ForgetReport:
    return forget_dataset(folder, pa.array(ids), entity, NullReporter())


@pytest.mark.slow
@AND_ON_S3
def test_forget_deletes_all_data_of_the_ids_only(data: Folder) -> None:
    before, rows_before = interactions(data), {name: vocabulary_tuples(data, name) for name in ("customer", "item")}
    content = all_bytes(data)
    assert all(content.count(text.encode()) >= 2 for text in FORGOTTEN), "the search below must be able to find them"
    forgotten = forget_all(data, [*FORGOTTEN, "stranger"])
    content = all_bytes(data)
    assert not [text for text in FORGOTTEN if text.encode() in content]
    expected = {split: [row for row in rows if row[0] not in FORGOTTEN] for split, rows in before.items()}
    assert interactions(data) == expected
    assert check_complete(data) == forgotten.manifest
    assert (forgotten.requested, forgotten.found) == (4, 3)
    assert forgotten.interactions == {split: len(before[split]) - len(expected[split]) for split in before}
    left = [(row[0], None, 0, None) if row[1] in FORGOTTEN else row for row in rows_before["customer"]]
    assert vocabulary_tuples(data, "customer") == left
    train = [row[1] for row in expected["train"]]
    assert all(number == train.count(item) for _, item, number in vocabulary_tuples(data, "item"))
    gone_rows = [row[0] for row in rows_before["customer"] if row[1] in FORGOTTEN]
    assert forgotten.manifest.entities["customer"].vacant_rows == sorted(gone_rows)


def test_empty_files_and_splits_are_removed(data: Folder) -> None:
    forgotten = forget_all(data, [row[1] for row in vocabulary_tuples(data, "customer")])
    assert [split.files for split in forgotten.manifest.splits.values()] == [[], [], []]
    assert forgotten.manifest == check_complete(data)
    assert not [path for path in data.sizes() if path.startswith(("train", "valid", "test"))]


@pytest.mark.slow
def test_crash_at_any_point_leaves_complete_dataset_and_next_call_finishes(
    tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "write_options", lambda _: PLAIN)
    last = FORGOTTEN[2]
    old = interactions(Folder(prepared))
    new = {split: [row for row in rows if row[0] != last] for split, rows in old.items()}
    for at in range(1, 1000):
        data = copy_to(prepared, Folder(tmp_path / f"crash-{at}"))
        with monkeypatch.context() as patch:
            storage = CrashingStorage(patch, at, ("write", "open_output"))
            with suppress(Crash):
                forget_all(data, [last])
        assert check_complete(data)
        assert interactions(data) == (old if storage.down else new), at
        forget_all(data, [last])
        assert interactions(data) == new
        if not storage.down:
            break
    assert at > 5


def test_kill_after_the_new_dataset_is_in_place_leaves_what_the_next_call_deletes(
    data: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object, **__: object) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", crash)
        with suppress(Crash):
            forget_all(data)
    assert any(text.encode() in all_bytes(Folder(tmp_path)) for text in FORGOTTEN)
    forget_all(data)
    assert not [text for text in FORGOTTEN if text.encode() in all_bytes(Folder(tmp_path))]
    check_complete(data)


@AND_ON_S3
def test_error_leaves_the_old_or_the_new_dataset_and_the_next_call_finishes(
    data: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, calls = data.sizes(), 0

    def failing(folder: Folder, name: str) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return open_output(folder, name)

    def kept(folder: Folder, name: str, *arguments: Any) -> None:
        if name.endswith(".parquet"):
            raise OSError("it is protected")
        remove(folder, name, *arguments)

    open_output, remove = Folder.open_output, Folder.remove
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "open_output", failing)
        with pytest.raises(CrossfadeError, match="move the dataset to a larger one"):
            forget_all(data, FORGOTTEN[2:])
    assert data.sizes() == before
    if data.on_s3:
        with monkeypatch.context() as patch:
            patch.setattr(Folder, "remove", kept)
            with pytest.raises(CrossfadeError, match="the new dataset is complete, but files of the old one"):
                forget_all(data)
        check_complete(data)
        assert FORGOTTEN[0].encode() in all_bytes(data)
    forget_all(data)
    assert not [text for text in FORGOTTEN if text.encode() in all_bytes(data)]
    assert set(data.sizes()) == {"manifest.json", *(file.path for file in check_complete(data).files())}


@pytest.mark.slow
@pytest.mark.parametrize("data", ["s3"], indirect=True)
def test_dataset_that_another_process_has_written_meanwhile_stays(data: Folder) -> None:
    """Its lock was taken over."""
    with staged_deletion(data, pa.array(FORGOTTEN[:1]), "customer", NullReporter()) as deletion:
        data.remove(LOCK_NAME)
        other = forget_all(Folder(data.uri), FORGOTTEN[1:]).manifest
        with pytest.raises(CrossfadeError, match="another process has written it since this command began"):
            deletion.publish()
    assert check_complete(data) == other


def test_ids_that_the_dataset_has_not_stage_nothing(data: Folder, tmp_path: Path) -> None:
    with staged_deletion(data, pa.array(["stranger"]), "customer", NullReporter()) as deletion:
        assert not [path for path in tmp_path.glob(".data.partial-*/**/*") if path.is_file()]
        assert deletion.publish().found == 0


@pytest.mark.slow
@pytest.mark.parametrize("data", ["s3"], indirect=True)
def test_block_that_ends_without_publishing_leaves_no_object(data: Folder) -> None:
    before = data.sizes()
    with staged_deletion(data, pa.array(FORGOTTEN), "customer", NullReporter()):
        assert len(data.sizes()) > len(before) + 2
    assert data.sizes() == before


def test_mount_point_is_rejected_before_anything_is_written() -> None:
    with pytest.raises(InputError, match="/proc: is a mount point"), output.staged_output("/proc", overwrite=True):
        pass


@pytest.mark.parametrize(
    ("name", "text", "column"),
    [
        ("ids.txt", "a\r\n\nb c\na\n", None),
        ("ids", "a\nb c", None),
        ("ids.csv", 'customer,when\n"a",1\nb c,2\n,3\n', None),
        ("ids.csv", "\ufeffid,customer\na,x\nb c,y\n", "id"),
        ("ids.tsv", "anything\na\nb c\n", None),
    ],
)
def test_ids_are_read_from_lines_or_a_column(tmp_path: Path, name: str, text: str, column: str | None) -> None:
    (tmp_path / name).write_bytes(text.encode())
    assert read_ids(str(tmp_path / name), column, "customer").to_pylist() == ["a", "b c"]


def test_ids_are_read_from_parquet_integers(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1, 2], "customer": [7, None]}), tmp_path / "ids.parquet")
    assert read_ids(str(tmp_path / "ids.parquet"), None, "customer").to_pylist() == ["7"]
    assert read_ids(str(tmp_path / "ids.parquet"), "x", "customer").to_pylist() == ["1", "2"]


@pytest.mark.parametrize(
    ("what", "name", "content", "column"),
    [
        ("no such file", "missing.txt", None, None),
        ("has no column 'customer", "ids.csv", b"a,b\n1,2\n", None),
        ("holds no id; expected ids of customer, one per line or row", "ids.txt", b"\n\n", None),
        ("or name a Parquet, CSV or TSV file", "ids.txt", b"a", "id"),
        ("is not UTF-8; convert the file, for instance: iconv -f latin1", "ids.txt", b"\xff\xfe", None),
        ("is not a readable Parquet file", "ids.parquet", b"PAR1", None),
    ],
)
def test_invalid_id_lists_are_rejected(
    tmp_path: Path, what: str, name: str, content: bytes | None, column: str | None
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_ids(str(tmp_path / name), column, "customer")
    assert what in str(caught.value)


def test_command_prints_what_was_deleted_and_what_remains_elsewhere(
    tmp_path: Path, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy_to(prepared, Folder(tmp_path / "data"))
    (tmp_path / "ids.txt").write_text("\n".join([*FORGOTTEN, "stranger"]))
    forget_command = ["forget", str(tmp_path / "data"), "--ids", str(tmp_path / "ids.txt")]
    assert main(forget_command) == 0
    printed = capsys.readouterr().out
    assert f"{tmp_path}/data: forgot 3 rows of customer (3 in all)" in printed
    assert "4 in " in printed
    assert "1 of them are not in the dataset" in printed
    for remaining in ("raw events", "checkpoint.warm_start_from", "embeddings"):
        assert remaining in printed
    assert main([*forget_command, "--entity", "artist"]) == 2
    assert "has no ids of 'artist' to forget; expected customer or item" in capsys.readouterr().err


def test_links_are_rejected_before_anything_changes(data: Folder, tmp_path: Path) -> None:
    """Data at their targets would remain."""
    file, elsewhere = tmp_path / "data/train/part-00001.parquet", tmp_path / "elsewhere"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)
    with pytest.raises(InputError, match=r"holds 'train/part-00001\.parquet'"):
        forget_all(data)
    check_complete(data)


def test_folder_itself_may_be_a_link(data: Folder, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "data")
    assert forget_all(Folder(tmp_path / "link")).found == len(FORGOTTEN)
    assert (tmp_path / "link").is_symlink()
    assert not [text for text in FORGOTTEN if text.encode() in all_bytes(data)]
