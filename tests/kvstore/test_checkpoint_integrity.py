"""A corrupt, incomplete or incompatible checkpoint is rejected with the name of a file and a reason."""

import json
import os
import shutil
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from saved_shards import blank_shards, poison, random_table, reseal, save_shards, split_table

from crossfade.base.errors import CheckpointError, InputError
from crossfade.base.io.folder import Folder
from crossfade.kvstore.checkpoint.checkpoint import open_checkpoint
from crossfade.kvstore.checkpoint.format import MANIFEST_NAME, CheckpointManifest
from crossfade.kvstore.checkpoint.lifecycle import clear_later, commit, latest_checkpoint, prune, step_folder
from crossfade.kvstore.local import LocalStore
from crossfade.kvstore.optimizer_spec import OptimizerSpec
from crossfade.kvstore.store import TableSpec

TRAINING = {"run": "mine", "cursor": [3, 2], "x": 0.1}
ADAM = OptimizerSpec("adam")
ROWWISE = OptimizerSpec("rowwise_adagrad")
CUSTOMER, TRACK = TableSpec("customer", rows=50, dim=4, init_std=0.1), TableSpec("track", rows=30, dim=3, init_std=0.5)


@pytest.fixture(scope="module")
def small_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with complete checkpoints of some steps."""
    folder = tmp_path_factory.mktemp("small")
    for step in (1, 2, 3, 4, 5, 6, 999_999_999, 1_000_000_000):
        save_small(str(folder), step)
    return folder


@pytest.fixture
def checkpoints(small_steps: Path, tmp_path: Path) -> str:
    """Return a folder with complete checkpoints of steps 1 and 2."""
    folder = str(tmp_path / "checkpoints")
    copy_steps(small_steps, folder, 1, 2)
    return folder


def copy_steps(small_steps: Path, folder: str, *steps: int) -> None:
    for step in steps:
        shutil.copytree(step_folder(str(small_steps), step), step_folder(folder, step))


def save_small(folder: str, step: int) -> str:
    customer, track = (random_table(table, ROWWISE, seed=step) for table in (CUSTOMER, TRACK))
    shards = [*split_table(CUSTOMER, customer, 4), *split_table(TRACK, track, 2)]
    return save_shards(folder, step, [CUSTOMER, TRACK], ROWWISE, [shards[::2], shards[1::2]], TRAINING)


def load_small(uri: str) -> None:
    open_checkpoint(uri).load([*blank_shards(CUSTOMER, ROWWISE, 3), *blank_shards(TRACK, ROWWISE, 3)])


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)


def files_of(uri: str) -> list[Path]:
    return sorted(path for path in Path(uri).rglob("*") if path.is_file())


@pytest.mark.slow
def test_changed_byte_in_any_file_is_rejected_by_file_name(checkpoints: str) -> None:
    uri = step_folder(checkpoints, 2)
    load_small(uri)
    assert len(files_of(uri)) == 1 + 2 + 2 * (4 + 2)
    for path in files_of(uri):
        original = path.read_bytes()
        for position in [*range(0, len(original), 31), -3, -2, -1]:
            flip(path, position)
            with pytest.raises(CheckpointError) as caught:
                load_small(uri)
            assert str(path) in str(caught.value), (path, position)
            assert caught.value.checkpoint == uri
            path.write_bytes(original)
    load_small(uri)


def test_file_of_wrong_size_or_missing_is_rejected_by_file_name(checkpoints: str) -> None:
    uri = step_folder(checkpoints, 2)
    for path in files_of(uri):
        original = path.read_bytes()
        for data in (b"", original[:-1], original[: len(original) // 2], original + b"\n", None):
            path.unlink()
            if data is not None:
                path.write_bytes(data)
            with pytest.raises(CheckpointError, match=": missing" if data is None else "bytes|CRC-32|not a") as caught:
                open_checkpoint(uri)
            assert str(path) in str(caught.value)
            assert caught.value.checkpoint == uri
            path.write_bytes(original)


def test_checkpoint_in_the_folder_of_another_step_is_rejected(checkpoints: str) -> None:
    shutil.copytree(step_folder(checkpoints, 1), step_folder(checkpoints, 3))
    with pytest.raises(CheckpointError, match=r"step-000000003/manifest.json: is of step 1"):
        open_checkpoint(step_folder(checkpoints, 3))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: text.replace('"crossfade-checkpoint"', '"other"'), "expected format .*, found 'other'"),
        (lambda text: text.replace('"seed": 1', '"seed": "x"'), "seed: input should be a valid integer"),
        (lambda text: text.replace('"seed": 1', '"seed": 1,\n "more": 1'), "more: is not a known key"),
        (lambda text: text.replace('"rowwise_adagrad"', '"nadam"'), "optimizer.kind: input should be"),
        (
            lambda text: text.replace('"rowwise_adagrad"', '"sgd"'),
            "belongs to no table and optimizer state in manifest.json",
        ),
        (lambda text: text.replace('"rows": 50', '"rows": 49'), "bytes, but its rows take"),
        (lambda text: text.replace('"dim": 3', '"dim": 5'), "bytes, but its rows take"),
        (lambda text: text.replace('"dim": 3', '"dim": 0'), "'track' has 30 rows of 0 columns"),
        (lambda text: text.replace('"rows": 50', '"rows": -1'), "'customer' has -1 rows of 4 columns"),
        (lambda text: text.replace('"rows": 50', '"rows": 9223372036854775807'), "rows of 4 columns"),
        (lambda text: text.replace('"rows": 50', '"rows": true'), "tables.0.rows: input should be a valid integer"),
        (lambda text: text.replace('"name": "track"', '"name": "../track"'), "cannot be the name of a table"),
        (lambda text: text.replace('"name": "track"', '"name": "customer"'), "expected each name once"),
        (lambda text: text.replace('"name": "part-00000', '"name": "../part-00000'), "is not the name of such a file"),
        (lambda text: text.replace('"init_std": 0.5', '"init_std": -1.0'), "'track' has init_std -1.0"),
        (lambda text: text.replace('"init_std": 0.5', '"init_std": 1e999'), "1e999 is not finite"),
        (lambda text: text.replace('"init_std": 0.5', '"init_std": NaN'), "NaN is not a number of JSON"),
        (lambda text: text.replace('"seed": 1', '"seed": 1,\n "seed": 2'), "the key 'seed' is given twice"),
        (lambda text: text.replace('"x": 0.1', f'"x": {"[" * 5000}{"]" * 5000}'), "nested too deeply"),
    ],
)
def test_manifest_that_does_not_match_the_files_is_rejected(
    checkpoints: str, change: Callable[[str], str], reason: str
) -> None:
    uri = step_folder(checkpoints, 2)
    reseal(Path(uri, "manifest.json"), lambda text: text)
    load_small(uri)
    reseal(Path(uri, "manifest.json"), change)
    with pytest.raises(CheckpointError, match=reason) as caught:
        open_checkpoint(uri)
    assert caught.value.checkpoint == uri


def test_number_of_shards_in_a_name_takes_no_memory(checkpoints: str) -> None:
    uri = Path(step_folder(checkpoints, 2))
    huge = {"path": "track/weights.00000-of-999999999.npy", "bytes": 128 + 4 * TRACK.dim, "crc32": 0}
    (uri / str(huge["path"])).write_bytes(bytes(128 + 4 * TRACK.dim))
    for number, path in enumerate(sorted(uri.glob("part-*"))):
        part = json.loads(path.read_bytes())
        files = [file for file in part["files"] if file["path"].startswith("customer")]
        path.write_text(json.dumps({**part, "files": files + [huge] * (number == 0)}))

    def with_digests(text: str) -> str:
        manifest = json.loads(text + "}")
        for entry in manifest["parts"]:
            content = (uri / entry["name"]).read_bytes()
            entry.update(bytes=len(content), crc32=zlib.crc32(content))
        return json.dumps(manifest, indent=1).removesuffix("\n}")

    reseal(uri / "manifest.json", with_digests)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="expected exactly one file for each shard"):
        open_checkpoint(str(uri))
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()


def test_checkpoint_with_a_fifo_for_a_manifest_is_skipped(checkpoints: str) -> None:
    manifest = Path(step_folder(checkpoints, 2), "manifest.json")
    manifest.unlink()
    os.mkfifo(manifest)
    checkpoint, [skipped] = latest_checkpoint(checkpoints)
    assert checkpoint is not None and checkpoint.uri == step_folder(checkpoints, 1)  # noqa: PT018
    assert "manifest.json: cannot be read: not a regular file" in skipped


def test_prune_deletes_nothing_through_a_link(small_steps: Path, checkpoints: str, tmp_path: Path) -> None:
    copy_steps(small_steps, str(tmp_path / "others"), 1)
    shutil.rmtree(step_folder(checkpoints, 1))
    Path(step_folder(checkpoints, 1)).symlink_to(step_folder(str(tmp_path / "others"), 1))
    with pytest.raises(CheckpointError, match="a link leads out of the folder"):
        prune(checkpoints, 2, 1, lambda _: True)
    load_small(step_folder(str(tmp_path / "others"), 1))


@pytest.mark.parametrize(
    ("version", "fix"), [(1, "train again"), (3, "use the version of Crossfade that wrote it, or a later one")]
)
def test_checkpoint_of_another_version_is_rejected_but_not_corrupt(checkpoints: str, version: int, fix: str) -> None:
    uri = step_folder(checkpoints, 2)
    reseal(Path(uri, "manifest.json"), lambda text: text.replace('"version": 2', f'"version": {version}'))
    for read in (lambda: open_checkpoint(uri), lambda: latest_checkpoint(checkpoints)):
        with pytest.raises(InputError, match=rf"has format version {version}, .* reads version 2 only; {fix}"):
            read()
    # Another version need not have this CRC.
    Path(uri, "manifest.json").write_text(f'{{"format": "crossfade-checkpoint", "version": {version}, "sha256": "0"}}')
    with pytest.raises(InputError, match=f"has format version {version}"):
        latest_checkpoint(checkpoints)


@pytest.mark.parametrize(("array", "value"), [("weights", np.nan), ("weights", -np.inf), ("exp_avg", np.inf)])
def test_value_that_is_not_finite_is_blamed_on_its_file_and_row(tmp_path: Path, array: str, value: float) -> None:
    shards = split_table(CUSTOMER, random_table(CUSTOMER, ADAM), 4)
    uri = save_shards(str(tmp_path), 2, [CUSTOMER], ADAM, [shards])
    name = f"customer/{array}.00001-of-00004.npy"
    poison(Path(uri), name, 7, value)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(uri).load(blank_shards(CUSTOMER, ADAM, 3))
    assert str(caught.value) == f"{uri}/{name}: row 29 of table 'customer' has values that are not finite"
    assert caught.value.checkpoint == uri
    if array == "weights":
        with pytest.raises(CheckpointError, match="row 29 of"):
            open_checkpoint(uri).read_rows("customer", np.arange(20, 50))


def test_shard_missing_from_all_parts_is_rejected(checkpoints: str) -> None:
    uri = step_folder(checkpoints, 2)

    def without_a_part(text: str) -> str:
        manifest = json.loads(text + "}")
        return json.dumps({**manifest, "parts": manifest["parts"][:1]}, indent=1).removesuffix("\n}")

    reseal(Path(uri, "manifest.json"), without_a_part)
    with pytest.raises(CheckpointError, match=r"customer/weights\.\*\.npy: expected exactly one file for each shard"):
        open_checkpoint(uri)


@pytest.mark.parametrize(
    ("tables", "optimizer", "reason"),
    [
        ([TableSpec("customer", 50, 8, 0.1)], ROWWISE, r"table 'customer' has 4 columns, but the job's has 8"),
        ([TableSpec("customer", 49, 4, 0.1)], ROWWISE, r"table 'customer' has 50 rows, but the job's has only 49"),
        ([CUSTOMER, TRACK], ADAM, r"state of the optimizer rowwise_adagrad, but the job uses adam"),
        ([TableSpec("artist", 50, 4, 0.1)], ROWWISE, r"has the tables customer, track, none of which the job has"),
    ],
)
def test_checkpoint_of_other_tables_is_rejected_but_not_corrupt(
    checkpoints: str, tables: list[TableSpec], optimizer: OptimizerSpec, reason: str
) -> None:
    checkpoint = open_checkpoint(step_folder(checkpoints, 2))
    with pytest.raises(CheckpointError, match=reason) as caught:
        checkpoint.check_fits(tables, optimizer)
    assert caught.value.checkpoint is None
    with pytest.raises(CheckpointError, match=reason):
        LocalStore().create(tables, optimizer, seed=1, checkpoint=checkpoint.uri)


def test_corrupt_file_is_detected_when_it_is_read(checkpoints: str) -> None:
    uri = step_folder(checkpoints, 2)
    flip(Path(uri, "customer", "weights.00001-of-00004.npy"), -1)
    checkpoint = open_checkpoint(uri)
    expected = random_table(CUSTOMER, ROWWISE, seed=2)["weights"]
    np.testing.assert_array_equal(checkpoint.read_rows("customer", np.array([8, 2])), expected[[8, 2]])
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"weights.00001.*CRC-32"):
            checkpoint.read_rows("customer", np.array([2, 5]))


def test_latest_checkpoint_is_the_newest_by_its_number(small_steps: Path, checkpoints: str) -> None:
    for step in (2, 999_999_999, 1_000_000_000):
        if step > 2:
            copy_steps(small_steps, checkpoints, step)
        checkpoint, skipped = latest_checkpoint(checkpoints)
        assert checkpoint is not None
        assert (checkpoint.uri, skipped) == (step_folder(checkpoints, step), [])
    assert latest_checkpoint(checkpoints + "/none-here") == (None, [])


def test_corrupt_incomplete_and_rejected_checkpoints_are_skipped_with_reasons(
    small_steps: Path, checkpoints: str
) -> None:
    copy_steps(small_steps, checkpoints, 3, 4, 5)
    Path(step_folder(checkpoints, 5), "manifest.json").unlink()
    flip(Path(step_folder(checkpoints, 4), "part-00000-of-00002.json"), 10)
    Path(step_folder(checkpoints, 3), "track", "sum_of_squares.00001-of-00002.npy").unlink()
    Path(checkpoints, "step-000000009").mkdir()
    Path(checkpoints, "notes.txt").write_text("not a checkpoint")
    checkpoint, skipped = latest_checkpoint(checkpoints, {step_folder(checkpoints, 2)})
    assert checkpoint is not None
    assert checkpoint.uri == step_folder(checkpoints, 1)
    expected = [
        "step-000000009/manifest.json: missing",
        "step-000000005/manifest.json: missing",
        "step-000000004/part-00000-of-00002.json: its CRC-32",
        "step-000000003/track/sum_of_squares.00001-of-00002.npy: missing",
        "step-000000002: was found corrupt before",
    ]
    for reason, part in zip(skipped, expected, strict=True):
        assert part in reason


def is_mine(manifest: CheckpointManifest) -> bool:
    return manifest.training.get("run") == "mine"


def steps_in(checkpoints: str) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in Path(checkpoints).glob("step-*"))


@pytest.mark.parametrize(
    ("steps", "incomplete", "foreign", "arguments", "kept"),
    [
        ((3, 5, 6), (3, 6), {}, (6, 2), [2, 5, 6]),
        ((3, 5, 6), (3, 6), {}, (6, 1), [5, 6]),
        ((3, 4), (), {}, (3, 1), [3, 4]),  # the run did not continue from 4
        ((3, 4, 5, 6), (), {"corrupt": 1, "newer": 3, "other": 5}, (6, 2), [1, 3, 4, 5, 6]),
    ],
)
def test_prune_keeps_the_newest_complete_checkpoints_and_what_is_not_of_the_run(
    small_steps: Path,
    checkpoints: str,
    steps: tuple[int, ...],
    incomplete: tuple[int, ...],
    foreign: dict[str, int],
    arguments: tuple[int, int],
    kept: list[int],
) -> None:
    copy_steps(small_steps, checkpoints, *steps)
    for step in incomplete:
        Path(step_folder(checkpoints, step), "manifest.json").unlink()
    if foreign:
        make_foreign(checkpoints, **foreign)
    Path(checkpoints, "owner.json").write_text("{}")
    prune(checkpoints, *arguments, is_mine)
    assert steps_in(checkpoints) == kept
    assert Path(checkpoints, "owner.json").exists()


def make_foreign(checkpoints: str, *, corrupt: int, newer: int, other: int) -> None:
    """Make these checkpoints unreadable, of a newer format, and of another run."""
    flip(Path(step_folder(checkpoints, corrupt), "manifest.json"), 40)
    for step, old, new in ((newer, '"version": 2', '"version": 3'), (other, '"mine"', '"other"')):
        reseal(Path(step_folder(checkpoints, step), "manifest.json"), lambda text, a=old, b=new: text.replace(a, b))


def test_only_unfinished_checkpoints_are_cleared_when_a_run_resumes(small_steps: Path, checkpoints: str) -> None:
    copy_steps(small_steps, checkpoints, 3, 4, 5, 6)
    Path(step_folder(checkpoints, 2), "manifest.json").unlink()
    make_foreign(checkpoints, corrupt=3, newer=4, other=5)
    Path(checkpoints, "step-000000007").mkdir()
    assert clear_later(checkpoints, 1, is_mine) == {3, 4, 5}
    assert steps_in(checkpoints) == [1, 3, 4, 5, 6]


def test_half_deleted_checkpoint_is_incomplete_not_corrupt(
    small_steps: Path, checkpoints: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_steps(small_steps, checkpoints, 3)

    def delete_half(folder: Path) -> None:
        (folder / "customer" / "weights.00000-of-00004.npy").unlink()
        raise OSError("interrupted")

    with monkeypatch.context() as patch:
        patch.setattr("crossfade.base.io.folder.shutil.rmtree", delete_half)
        with pytest.raises(CheckpointError, match="interrupted"):
            prune(checkpoints, 3, 2, is_mine)
    with pytest.raises(
        CheckpointError, match=r"manifest.json: missing: this is not a checkpoint, or an incomplete one"
    ):
        open_checkpoint(step_folder(checkpoints, 1))
    checkpoint, _ = latest_checkpoint(checkpoints)
    assert checkpoint is not None
    assert checkpoint.uri == step_folder(checkpoints, 3)


def test_unreadable_manifest_raises_instead_of_falling_back(checkpoints: str) -> None:
    manifest = Path(step_folder(checkpoints, 2), "manifest.json")
    manifest.unlink()
    manifest.symlink_to(manifest)
    with pytest.raises(CheckpointError, match=r"step-000000002/manifest.json: cannot be read: .*symbolic links"):
        latest_checkpoint(checkpoints)


def test_commit_writes_the_manifest_after_all_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    write = Folder.write

    def record_and_write(self: Folder, name: str, data: bytes) -> None:
        written.append(name)
        write(self, name, data)

    monkeypatch.setattr(Folder, "write", record_and_write)
    manifest = CheckpointManifest(step=1, tables=[], optimizer=OptimizerSpec("sgd", 0.1), seed=1, parts=[])
    commit(str(tmp_path), manifest, {"dense.npz": b"layers", "more.npz": b""})
    assert written == ["dense.npz", "more.npz", MANIFEST_NAME]
