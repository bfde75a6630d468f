"""A checkpoint loads into any number of ranges with equal bits, or is refused by the name of a file and a reason."""

import json
import shutil
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from object_store import free_ports
from saved_ranges import Arrays, cut, joined, random_table, save, save_store

from kvstore.checkpoint.format import TableShard
from kvstore.checkpoint.lifecycle import delete_after, latest_checkpoint, prune, step_folder
from kvstore.checkpoint.reader import open_checkpoint
from kvstore.errors import CheckpointError
from kvstore.local import LocalStore
from kvstore.optimizers import KINDS, OptimizerKind, OptimizerSpec
from kvstore.store import TableSpec

RANGES = (1, 2, 3, 5, 6, 8, 10)
ROWS = (1, 2, 7, 100)
ADAM = OptimizerSpec("adam")
ROWWISE = OptimizerSpec("rowwise_adagrad")
CUSTOMER, TRACK = TableSpec("customer", rows=50, dim=4, init_std=0.1), TableSpec("track", rows=30, dim=3, init_std=0.5)


def equal(one: Arrays, other: Arrays) -> None:
    assert one.keys() == other.keys()
    for name, values in one.items():
        assert values.dtype == other[name].dtype
        np.testing.assert_array_equal(values, other[name], err_msg=name)


def blank(table: TableSpec, optimizer: OptimizerSpec, ranges: int) -> list[TableShard]:
    """The table in ranges, all its values the same."""
    arrays = {name: np.full_like(values, 55) for name, values in random_table(table, optimizer).items()}
    return cut(table, arrays, ranges)


class Saved:
    """A checkpoint of one optimizer, with a table of every size in ``ROWS`` cut into each number of ``RANGES``."""

    def __init__(self, folder: Path, kind: OptimizerKind) -> None:
        self.optimizer = OptimizerSpec(kind)
        self.tables = [TableSpec(f"rows{rows}-in{ranges}", rows, 3, 0.1) for rows in ROWS for ranges in RANGES]
        self.arrays = {table.name: random_table(table, self.optimizer, seed) for seed, table in enumerate(self.tables)}
        ranges = [held for table in self.tables for held in cut(table, self.arrays[table.name], self.saved_in(table))]
        self.uri = save(str(folder), 7, self.tables, self.optimizer, [ranges[::2], ranges[1::2]])

    @staticmethod
    def saved_in(table: TableSpec) -> int:
        return int(table.name.partition("-in")[2])


@pytest.fixture(scope="module", params=KINDS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return Saved(tmp_path_factory.mktemp(request.param), request.param)


@pytest.mark.parametrize("ranges", [*RANGES, 128])
def test_a_checkpoint_loads_into_any_number_of_ranges_with_equal_bits(saved: Saved, ranges: int) -> None:
    into = {table.name: blank(table, saved.optimizer, ranges) for table in saved.tables}
    open_checkpoint(saved.uri).load([held for table in into.values() for held in table])
    for name, held in into.items():
        equal(joined(held), saved.arrays[name])


@pytest.mark.parametrize("entries", [1, 3, 16])
def test_a_checkpoint_loads_in_pieces_of_any_size(saved: Saved, monkeypatch: pytest.MonkeyPatch, entries: int) -> None:
    monkeypatch.setattr("kvstore.checkpoint.reader.CHUNK_BYTES", entries * 3 * 4)
    into = {table.name: blank(table, saved.optimizer, 3) for table in saved.tables}
    open_checkpoint(saved.uri).load([held for table in into.values() for held in table])
    for name, held in into.items():
        equal(joined(held), saved.arrays[name])


def test_each_server_of_several_loads_its_own_ranges(saved: Saved) -> None:
    into = {table.name: blank(table, saved.optimizer, 6) for table in saved.tables}
    for server in range(3):
        open_checkpoint(saved.uri).load([held for table in into.values() for held in table[server::3]])
    for name, held in into.items():
        equal(joined(held), saved.arrays[name])


@pytest.mark.parametrize("ranges", [1, 4, 5])
def test_a_larger_table_takes_the_old_rows_and_keeps_its_own_new_ones(saved: Saved, ranges: int) -> None:
    larger = [TableSpec(table.name, table.rows + 13, table.dim, table.init_std) for table in saved.tables]
    into = {table.name: blank(table, saved.optimizer, ranges) for table in larger}
    checkpoint = open_checkpoint(saved.uri)
    checkpoint.check_fits(larger, saved.optimizer)
    checkpoint.load([held for table in into.values() for held in table])
    for name, held in into.items():
        rows = checkpoint.rows(name)
        whole = joined(held)
        equal({array: values[:rows] for array, values in whole.items()}, saved.arrays[name])
        for values in whole.values():
            assert (values[rows:] == 55).all()


def test_padding_in_memory_is_neither_written_nor_read(saved: Saved) -> None:
    table = next(table for table in saved.tables if table.name == "rows7-in5")
    shapes = [np.load(path).shape for path in sorted(Path(saved.uri, table.name).glob("weights.*"))]
    assert shapes == [(2, 3), (2, 3), (1, 3), (1, 3), (1, 3)]
    into = blank(table, saved.optimizer, 4)
    open_checkpoint(saved.uri).load(into)
    assert (into[3].arrays["weights"][1:] == 77).all()


def test_numpy_alone_reads_a_table(saved: Saved) -> None:
    for table in saved.tables:
        for name, expected in saved.arrays[table.name].items():
            files = sorted(Path(saved.uri, table.name).glob(f"{name}.*.npy"))
            assert len(files) == Saved.saved_in(table)
            values = np.empty_like(expected)
            for number, path in enumerate(files):
                values[number :: len(files)] = np.load(path)
            np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("piece", [1, 16, 33, 1000])
def test_weights_are_read_in_consecutive_pieces(saved: Saved, piece: int) -> None:
    with closing(open_checkpoint(saved.uri)) as checkpoint:
        for table in saved.tables:
            starts = range(0, table.rows, piece)
            pieces = [checkpoint.weights(table.name, start, min(start + piece, table.rows)) for start in starts]
            np.testing.assert_array_equal(np.concatenate(pieces), saved.arrays[table.name]["weights"])


def test_weights_are_read_in_any_order(saved: Saved) -> None:
    with closing(open_checkpoint(saved.uri)) as checkpoint:
        for table in saved.tables:
            expected = saved.arrays[table.name]["weights"]
            for start in (table.rows // 2, 0, table.rows - 1, table.rows // 3, table.rows // 3 + 1):
                np.testing.assert_array_equal(
                    checkpoint.weights(table.name, start, table.rows), expected[start:], err_msg=table.name
                )
                assert checkpoint.weights(table.name, start, start).shape == (0, 3)


@pytest.fixture(scope="module")
def small_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with whole checkpoints of some steps."""
    folder = tmp_path_factory.mktemp("small")
    for step in (1, 2, 3, 4, 5, 6, 999_999_999, 1_000_000_000):
        save_small(str(folder), step)
    return folder


@pytest.fixture
def checkpoints(small_steps: Path, tmp_path: Path) -> str:
    """A folder with the whole checkpoints of steps 1 and 2."""
    folder = str(tmp_path / "checkpoints")
    copy_steps(small_steps, folder, 1, 2)
    return folder


def copy_steps(small_steps: Path, folder: str, *steps: int) -> None:
    for step in steps:
        shutil.copytree(step_folder(str(small_steps), step), step_folder(folder, step))


def save_small(folder: str, step: int) -> str:
    customer, track = (random_table(table, ROWWISE, seed=step) for table in (CUSTOMER, TRACK))
    ranges = [*cut(CUSTOMER, customer, 4), *cut(TRACK, track, 2)]
    return save(folder, step, [CUSTOMER, TRACK], ROWWISE, [ranges[::2], ranges[1::2]], {"cursor": [3, step], "x": 0.1})


def load_small(uri: str) -> None:
    open_checkpoint(uri).load([*blank(CUSTOMER, ROWWISE, 3), *blank(TRACK, ROWWISE, 3)])


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)


def files_of(uri: str) -> list[Path]:
    return sorted(path for path in Path(uri).rglob("*") if path.is_file())


def test_a_changed_byte_anywhere_in_any_file_is_found_and_named(checkpoints: str) -> None:
    uri = step_folder(checkpoints, 2)
    load_small(uri)
    assert len(files_of(uri)) == 1 + 2 + 2 * (4 + 2)
    for path in files_of(uri):
        whole = path.read_bytes()
        for position in [*range(0, len(whole), 31), -3, -2, -1]:
            flip(path, position)
            with pytest.raises(CheckpointError) as caught:
                load_small(uri)
            assert str(path) in str(caught.value), (path, position)
            assert caught.value.checkpoint == uri
            path.write_bytes(whole)
    load_small(uri)


def test_a_file_cut_short_or_made_longer_is_found_and_named(checkpoints: str) -> None:
    uri = step_folder(checkpoints, 2)
    for path in files_of(uri):
        whole = path.read_bytes()
        for data in (b"", whole[:-1], whole[: len(whole) // 2], whole + b"\n"):
            path.write_bytes(data)
            with pytest.raises(CheckpointError) as caught:
                open_checkpoint(uri)
            assert str(path) in str(caught.value)
            assert caught.value.checkpoint == uri
        path.write_bytes(whole)


def test_a_missing_file_is_found_and_named(checkpoints: str) -> None:
    uri = step_folder(checkpoints, 2)
    for path in files_of(uri):
        whole = path.read_bytes()
        path.unlink()
        with pytest.raises(CheckpointError, match="missing") as caught:
            open_checkpoint(uri)
        assert str(path) in str(caught.value)
        path.write_bytes(whole)


@pytest.mark.parametrize(
    "names", [("weights.00000-of-00004", "weights.00001-of-00004"), ("sum_of_squares.00000-of-00004",) * 2]
)
def test_files_put_in_each_others_place_are_found(checkpoints: str, names: tuple[str, str]) -> None:
    uri = step_folder(checkpoints, 2)
    one = Path(uri, "customer", f"{names[0]}.npy")
    other = Path(uri if names[0] != names[1] else step_folder(checkpoints, 1), "customer", f"{names[1]}.npy")
    assert one.stat().st_size == other.stat().st_size
    one_data, other_data = one.read_bytes(), other.read_bytes()
    one.write_bytes(other_data)
    other.write_bytes(one_data)
    with pytest.raises(CheckpointError, match=f"{names[0]}.*CRC-32"):
        load_small(uri)


def test_parts_of_another_step_are_found(checkpoints: str) -> None:
    uri = step_folder(checkpoints, 2)
    shutil.copy(Path(step_folder(checkpoints, 1), "part-00001-of-00002.json"), uri)
    with pytest.raises(CheckpointError, match=r"part-00001-of-00002.json: (its CRC-32|has)"):
        open_checkpoint(uri)


def test_a_checkpoint_under_another_steps_name_is_refused(checkpoints: str) -> None:
    shutil.copytree(step_folder(checkpoints, 1), step_folder(checkpoints, 3))
    with pytest.raises(CheckpointError, match=r"step-000000003/manifest.json: is of step 1"):
        open_checkpoint(step_folder(checkpoints, 3))


def resealed(path: Path, change: Callable[[str], str]) -> None:
    """Change a manifest as whoever knows the format would."""
    body = change(path.read_text()[: path.read_text().rindex(',\n "crc32"')])
    path.write_text(f'{body},\n "crc32": {zlib.crc32(body.encode())}\n}}\n')


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
    ],
)
def test_a_manifest_that_is_not_of_these_files_is_refused(
    checkpoints: str, change: Callable[[str], str], reason: str
) -> None:
    uri = step_folder(checkpoints, 2)
    resealed(Path(uri, "manifest.json"), lambda text: text)
    load_small(uri)
    resealed(Path(uri, "manifest.json"), change)
    with pytest.raises(CheckpointError, match=reason) as caught:
        open_checkpoint(uri)
    assert caught.value.checkpoint == uri


def test_checkpoint_of_another_version_is_rejected_and_not_skipped_as_corrupt(checkpoints: str) -> None:
    uri = step_folder(checkpoints, 2)
    resealed(Path(uri, "manifest.json"), lambda text: text.replace('"version": 2', '"version": 1'))
    for read in (lambda: open_checkpoint(uri), lambda: latest_checkpoint(checkpoints)):
        with pytest.raises(CheckpointError, match=r"has format version 1, .* reads version 2 only") as caught:
            read()
        assert caught.value.checkpoint is None


@pytest.mark.parametrize("content", ["{}", "[]", "", "\0\xff", '{"format": "crossfade-interactions", "version": 1}'])
def test_a_foreign_manifest_is_refused(checkpoints: str, content: str) -> None:
    Path(step_folder(checkpoints, 2), "manifest.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"step-000000002/manifest.json: not "):
        open_checkpoint(step_folder(checkpoints, 2))


def test_a_range_that_no_part_lists_is_missed(checkpoints: str) -> None:
    uri = step_folder(checkpoints, 2)

    def without_a_part(text: str) -> str:
        manifest = json.loads(text + "}")
        return json.dumps({**manifest, "parts": manifest["parts"][:1]}, indent=1).removesuffix("\n}")

    resealed(Path(uri, "manifest.json"), without_a_part)
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
def test_a_checkpoint_of_other_tables_is_refused_and_not_called_damaged(
    checkpoints: str, tables: list[TableSpec], optimizer: OptimizerSpec, reason: str
) -> None:
    checkpoint = open_checkpoint(step_folder(checkpoints, 2))
    with pytest.raises(CheckpointError, match=reason) as caught:
        checkpoint.check_fits(tables, optimizer)
    assert caught.value.checkpoint is None
    with pytest.raises(CheckpointError, match=reason):
        LocalStore().create(tables, optimizer, seed=1, checkpoint=checkpoint.uri)


def test_what_the_trainer_put_into_the_manifest_comes_back(checkpoints: str) -> None:
    manifest = open_checkpoint(step_folder(checkpoints, 2)).manifest
    assert manifest.training == {"cursor": [3, 2], "x": 0.1}
    assert (manifest.step, manifest.tables, manifest.optimizer) == (2, [CUSTOMER, TRACK], ROWWISE)


def test_files_without_a_wanted_row_are_not_opened(checkpoints: str) -> None:
    uri = step_folder(checkpoints, 2)
    for path in [Path(uri, "customer", "weights.00001-of-00004.npy"), *Path(uri, "track").iterdir()]:
        flip(path, 130)
    even = blank(CUSTOMER, ROWWISE, 2)[0]
    open_checkpoint(uri).load([even])
    np.testing.assert_array_equal(even.arrays["weights"], random_table(CUSTOMER, ROWWISE, seed=2)["weights"][::2])
    with pytest.raises(CheckpointError, match=r"weights.00001-of-00004.npy"):
        open_checkpoint(uri).load([blank(CUSTOMER, ROWWISE, 2)[1]])


@pytest.mark.parametrize("starts", [(0, 25), (25,), (49,)], ids=["in order", "from the middle", "the last row"])
def test_damage_is_found_by_whoever_reads_weights(checkpoints: str, starts: tuple[int, ...]) -> None:
    uri = step_folder(checkpoints, 2)
    flip(Path(uri, "customer", "weights.00001-of-00004.npy"), -1)
    with closing(open_checkpoint(uri)) as checkpoint:
        for start in starts[:-1]:
            checkpoint.weights("customer", start, start + 25)
        with pytest.raises(CheckpointError, match=r"weights.00001.*CRC-32"):
            checkpoint.weights("customer", starts[-1], min(starts[-1] + 25, 50))


def test_the_newest_whole_checkpoint_is_found(checkpoints: str) -> None:
    checkpoint, skipped = latest_checkpoint(checkpoints)
    assert checkpoint is not None
    assert (checkpoint.uri, skipped) == (step_folder(checkpoints, 2), [])
    assert latest_checkpoint(checkpoints + "/none-here") == (None, [])


def test_steps_are_ordered_as_numbers(small_steps: Path, checkpoints: str) -> None:
    copy_steps(small_steps, checkpoints, 999_999_999, 1_000_000_000)
    checkpoint, _ = latest_checkpoint(checkpoints)
    assert checkpoint is not None
    assert checkpoint.uri == step_folder(checkpoints, 1_000_000_000)


def test_damaged_partial_and_refused_checkpoints_are_skipped_with_the_reason(
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


def test_prune_keeps_the_newest_whole_ones_and_what_is_being_written(small_steps: Path, checkpoints: str) -> None:
    copy_steps(small_steps, checkpoints, 3, 5, 6)
    Path(step_folder(checkpoints, 6), "manifest.json").unlink()
    Path(step_folder(checkpoints, 3), "manifest.json").unlink()
    Path(checkpoints, "owner.json").write_text("{}")
    prune(checkpoints, keep_latest=2)
    assert sorted(path.name for path in Path(checkpoints).iterdir()) == [
        "owner.json",
        "step-000000002",
        "step-000000005",
        "step-000000006",
    ]
    load_small(step_folder(checkpoints, 2))
    prune(checkpoints, keep_latest=1)
    assert not Path(step_folder(checkpoints, 2)).exists()


def test_what_is_half_deleted_is_no_checkpoint_and_not_called_damaged(
    small_steps: Path, checkpoints: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_steps(small_steps, checkpoints, 3)

    def delete_half(folder: Path) -> None:
        (folder / "customer" / "weights.00000-of-00004.npy").unlink()
        raise OSError("gone in the middle")

    for action in (lambda: prune(checkpoints, keep_latest=2), lambda: delete_after(checkpoints, 2)):
        with monkeypatch.context() as patch:
            patch.setattr("kvstore.io.folder.shutil.rmtree", delete_half)
            with pytest.raises(CheckpointError, match="gone in the middle"):
                action()
    for step in (1, 3):
        with pytest.raises(
            CheckpointError, match=r"manifest.json: missing: this is not a checkpoint, or an incomplete one"
        ):
            open_checkpoint(step_folder(checkpoints, step))
    checkpoint, _ = latest_checkpoint(checkpoints)
    assert checkpoint is not None
    assert checkpoint.uri == step_folder(checkpoints, 2)


def test_storage_out_of_reach_is_no_reason_to_fall_back_to_an_older_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_ports(1)[0]}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tests")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "tests")
    monkeypatch.setenv("CROSSFADE_S3_ATTEMPTS", "2")
    for attempt in (latest_checkpoint, open_checkpoint):
        with pytest.raises(CheckpointError, match=r"s3://music/run.*cannot be read: .*NETWORK_CONNECTION") as caught:
            attempt("s3://music/run")
        assert caught.value.checkpoint is None


def test_a_checkpoint_that_cannot_be_reached_is_no_reason_to_fall_back_to_an_older_one(checkpoints: str) -> None:
    manifest = Path(step_folder(checkpoints, 2), "manifest.json")
    manifest.unlink()
    manifest.symlink_to(manifest)
    with pytest.raises(CheckpointError, match=r"step-000000002/manifest.json: cannot be read: .*symbolic links"):
        latest_checkpoint(checkpoints)


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_in_process_loads_what_servers_wrote_and_servers_what_it_wrote(
    kind: OptimizerKind, tmp_path: Path
) -> None:
    optimizer = OptimizerSpec(kind)
    arrays = random_table(CUSTOMER, optimizer)
    from_servers = save(str(tmp_path), 1, [CUSTOMER], optimizer, [cut(CUSTOMER, arrays, 4)])
    with closing(LocalStore()) as store:
        store.create([CUSTOMER, TRACK], optimizer, seed=1, checkpoint=from_servers)
        np.testing.assert_array_equal(store.pull({"customer": np.arange(50)})["customer"], arrays["weights"])
        from_here = save_store(store, str(tmp_path), 2, [CUSTOMER, TRACK], optimizer)
    into = blank(CUSTOMER, optimizer, 4)
    open_checkpoint(from_here).load(into)
    equal(joined(into), arrays)


def test_the_example_of_the_documentation_reads_a_table(saved: Saved) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "checkpoint-format.md").read_text()
    example: dict[str, Callable[..., np.ndarray]] = {}
    exec(text.partition("```python\n")[2].partition("```")[0], example)
    for table in saved.tables:
        for name, expected in saved.arrays[table.name].items():
            np.testing.assert_array_equal(example["read_array"](Path(saved.uri), table.name, name), expected)


def test_the_documented_table_of_arrays_is_that_of_the_optimizers(saved: Saved) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "checkpoint-format.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    column = rows[0].index(saved.optimizer.kind)
    documented = {name.strip("`"): row[column] for row in rows[2:6] for name in row[0].split(", ") if row[column]}
    table = saved.tables[-1]
    shapes = {1: "(n,)", 2: "(n, d)"}
    arrays = saved.arrays[table.name]
    assert documented == {name: f"{values.dtype} {shapes[values.ndim]}" for name, values in arrays.items()}


def test_entries_lie_where_the_documentation_says(checkpoints: str) -> None:
    weights = random_table(CUSTOMER, ROWWISE, seed=2)["weights"]
    file = Path(step_folder(checkpoints, 2), "customer", "weights.00003-of-00004.npy").read_bytes()
    assert file[128 + 5 * 16 : 128 + 6 * 16] == weights[5 * 4 + 3].tobytes()
