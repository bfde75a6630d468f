"""A checkpoint loads into any number of shards, bit for bit, and its files are as documented."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from saved_shards import (
    PADDING,
    Arrays,
    blank_shards,
    join_shards,
    random_table,
    save_shards,
    split_table,
)

from crossfade.kvstore.checkpoint import checkpoint as reader
from crossfade.kvstore.checkpoint.checkpoint import open_checkpoint
from crossfade.kvstore.optimizer_spec import KINDS, OptimizerKind, OptimizerSpec
from crossfade.kvstore.store import TableSpec

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference.md"
NUM_SHARDS = (1, 2, 3, 5, 6, 8, 10)
ROWS = (1, 2, 7, 100)
CUSTOMER = TableSpec("customer", rows=50, dim=4, init_std=0.1)


def assert_equal(one: Arrays, other: Arrays) -> None:
    assert one.keys() == other.keys()
    for name, values in one.items():
        assert values.dtype == other[name].dtype
        np.testing.assert_array_equal(values, other[name], err_msg=name)


class Saved:
    """A checkpoint of one optimizer, with a table of every size in ``ROWS`` split into every number of shards."""

    def __init__(self, folder: Path, kind: OptimizerKind) -> None:
        self.optimizer = OptimizerSpec(kind)
        self.tables = [TableSpec(f"rows{rows}-in{shards}", rows, 3, 0.1) for rows in ROWS for shards in NUM_SHARDS]
        self.arrays = {table.name: random_table(table, self.optimizer, seed) for seed, table in enumerate(self.tables)}
        shards = [
            shard
            for table in self.tables
            for shard in split_table(table, self.arrays[table.name], self.num_shards(table))
        ]
        self.uri = save_shards(str(folder), 7, self.tables, self.optimizer, [shards[::2], shards[1::2]])

    @staticmethod
    def num_shards(table: TableSpec) -> int:
        return int(table.name.partition("-in")[2])


@pytest.fixture(scope="module", params=KINDS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return Saved(tmp_path_factory.mktemp(request.param), request.param)


@pytest.mark.parametrize(
    ("num_shards", "chunk_rows", "servers"),
    [*((number, 1 << 20, 1) for number in (*NUM_SHARDS, 128)), *((3, rows, 1) for rows in (1, 3, 16)), (6, 16, 3)],
)
def test_checkpoint_loads_into_any_number_of_shards_in_chunks_of_any_size(
    saved: Saved, monkeypatch: pytest.MonkeyPatch, num_shards: int, chunk_rows: int, servers: int
) -> None:
    monkeypatch.setattr(reader, "CHUNK_BYTES", chunk_rows * 3 * 4)
    into = {table.name: blank_shards(table, saved.optimizer, num_shards) for table in saved.tables}
    for server in range(servers):
        open_checkpoint(saved.uri).load([shard for shards in into.values() for shard in shards[server::servers]])
    for name, shards in into.items():
        assert_equal(join_shards(shards), saved.arrays[name])


@pytest.mark.parametrize("num_shards", [1, 4, 5])
def test_larger_table_loads_old_rows_and_keeps_new_ones(saved: Saved, num_shards: int) -> None:
    larger = [TableSpec(table.name, table.rows + 13, table.dim, table.init_std) for table in saved.tables]
    into = {table.name: blank_shards(table, saved.optimizer, num_shards) for table in larger}
    checkpoint = open_checkpoint(saved.uri)
    checkpoint.check_fits(larger, saved.optimizer)
    checkpoint.load([shard for shards in into.values() for shard in shards])
    for name, shards in into.items():
        rows = checkpoint.rows(name)
        arrays = join_shards(shards)
        assert_equal({array: values[:rows] for array, values in arrays.items()}, saved.arrays[name])
        for values in arrays.values():
            assert (values[rows:] == 55).all()


def test_padding_is_neither_written_nor_read(saved: Saved) -> None:
    table = next(table for table in saved.tables if table.name == "rows7-in5")
    shapes = [np.load(path).shape for path in sorted(Path(saved.uri, table.name).glob("weights.*"))]
    assert shapes == [(2, 3), (2, 3), (1, 3), (1, 3), (1, 3)]
    into = blank_shards(table, saved.optimizer, 4)
    open_checkpoint(saved.uri).load(into)
    assert (into[3].arrays["weights"][1:] == PADDING).all()


def test_weights_in_blocks_and_in_any_order_equal_the_table(saved: Saved) -> None:
    with closing(open_checkpoint(saved.uri)) as checkpoint:
        for table in saved.tables:
            expected = saved.arrays[table.name]["weights"]
            for rows in (1, 16, 33, 1000):
                starts = range(0, table.rows, rows)
                blocks = [checkpoint.weights(table.name, start, min(start + rows, table.rows)) for start in starts]
                np.testing.assert_array_equal(np.concatenate(blocks), expected)
            for start in (table.rows // 2, 0, table.rows - 1, table.rows // 3, table.rows // 3 + 1):
                np.testing.assert_array_equal(checkpoint.weights(table.name, start, table.rows), expected[start:])
                assert checkpoint.weights(table.name, start, start).shape == (0, 3)


@pytest.mark.parametrize("sizes", [{}, {"_MAX_GAP_BYTES": 12, "CHUNK_BYTES": 60}], ids=["together", "by themselves"])
def test_single_rows_in_any_order_equal_the_table(
    saved: Saved, monkeypatch: pytest.MonkeyPatch, sizes: dict[str, int]
) -> None:
    for name, value in sizes.items():
        monkeypatch.setattr(reader, name, value)
    checkpoint = open_checkpoint(saved.uri)
    for table in saved.tables:
        expected, draws = saved.arrays[table.name]["weights"], np.random.default_rng(1)
        steps = (range(0, table.rows, step) for step in (1, 2, 13))
        for rows in ([0], [table.rows - 1, 0], draws.permutation(table.rows), [], *steps):
            rows_N = np.array(rows, np.int64)
            np.testing.assert_array_equal(checkpoint.read_rows(table.name, rows_N), expected[rows_N])


@pytest.mark.slow
def test_example_in_the_docs_reads_a_table(saved: Saved) -> None:
    text = PAGE.read_text().partition("## Checkpoint format\n")[2]
    example: dict[str, Callable[..., np.ndarray]] = {}
    exec(text.partition("```python\n")[2].partition("```")[0], example)
    for table in saved.tables:
        for name, expected in saved.arrays[table.name].items():
            np.testing.assert_array_equal(example["read_array"](Path(saved.uri), table.name, name), expected)


def test_docs_list_the_arrays_of_each_optimizer(saved: Saved) -> None:
    text = PAGE.read_text().partition("## Checkpoint format\n")[2]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    column = rows[0].index(saved.optimizer.kind)
    documented = {name.strip("`"): row[column] for row in rows[2:6] for name in row[0].split(", ") if row[column]}
    table = saved.tables[-1]
    shapes = {1: "(n,)", 2: "(n, d)"}
    arrays = saved.arrays[table.name]
    assert documented == {name: f"{values.dtype} {shapes[values.ndim]}" for name, values in arrays.items()}


def test_row_offset_in_a_file_is_as_documented(tmp_path: Path) -> None:
    optimizer = OptimizerSpec("sgd")
    arrays = random_table(CUSTOMER, optimizer)
    uri = save_shards(str(tmp_path), 1, [CUSTOMER], optimizer, [split_table(CUSTOMER, arrays, 4)])
    weights = arrays["weights"]
    file = Path(uri, "customer", "weights.00003-of-00004.npy").read_bytes()
    assert file[128 + 5 * 16 : 128 + 6 * 16] == weights[5 * 4 + 3].tobytes()
