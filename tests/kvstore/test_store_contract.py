"""What every row store promises, and that a step in process costs by its active rows, not by its tables."""

import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import pytest
from builders import random_rows
from saved_ranges import joined, manifest, save_store, saved

from kvstore.arrays import FloatArray, IntArray
from kvstore.checkpoint.format import TableShard
from kvstore.checkpoint.lifecycle import commit, step_folder
from kvstore.checkpoint.reader import open_checkpoint
from kvstore.errors import CheckpointError, StoreError
from kvstore.local import LocalStore
from kvstore.optimizers import KINDS, OptimizerKind, OptimizerSpec, make_optimizer
from kvstore.store import NO_RESETS, RowGradient, RowStore, TableSpec, Traffic

STORES: dict[str, Callable[[], RowStore]] = {"LocalStore": LocalStore}
TABLES = [TableSpec("customer", rows=50, dim=4, init_std=0.1), TableSpec("track", rows=30, dim=3, init_std=0.5)]
SGD = OptimizerSpec("sgd", learning_rate=1.0)

OpenStore = Callable[..., RowStore]


@pytest.fixture(params=STORES.values(), ids=STORES)
def open_store(request: pytest.FixtureRequest) -> Iterator[OpenStore]:
    """Opens stores of one kind, their tables made, and closes them at the end."""
    with ExitStack() as stack:

        def open_one(
            tables: list[TableSpec] = TABLES,
            optimizer: OptimizerSpec = SGD,
            seed: int = 1,
            checkpoint: str | None = None,
            afresh: Mapping[str, IntArray] = NO_RESETS,
        ) -> RowStore:
            store = stack.enter_context(closing(request.param()))
            store.create(tables, optimizer, seed, checkpoint, afresh)
            return store

        yield open_one


def everything(store: RowStore) -> dict[str, FloatArray]:
    return store.pull({table.name: np.arange(table.rows) for table in TABLES})


def step_of(store: RowStore, **rows: IntArray) -> dict[str, RowGradient]:
    """A step for all tables: random gradients of the given rows, no rows of the others. The same each time."""
    gradients = {}
    for table in TABLES:
        rows_A = rows.get(table.name, np.empty(0, np.int64))
        values_AD = random_rows(len(rows_A), table.dim, seed=7) / np.float32(store.workers)
        gradients[table.name] = RowGradient(rows_A, values_AD)
    return gradients


def test_fresh_rows_have_the_scale_of_their_table(open_store: OpenStore) -> None:
    for table, block_AD in zip(TABLES, everything(open_store()).values(), strict=True):
        assert block_AD.dtype == np.float32
        assert block_AD.shape == (table.rows, table.dim)
        assert block_AD.std() == pytest.approx(table.init_std, rel=0.25)


def test_a_seed_gives_the_same_rows_again_and_another_gives_others(open_store: OpenStore) -> None:
    first, again, other = (everything(open_store(seed=seed)) for seed in (1, 1, 2))
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
        assert (first[name] != other[name]).mean() > 0.9


def test_the_rows_of_a_table_do_not_depend_on_the_tables_beside_it(open_store: OpenStore) -> None:
    both, alone = everything(open_store()), open_store(tables=TABLES[1:])
    np.testing.assert_array_equal(alone.pull({"track": np.arange(30)})["track"], both["track"])


def test_a_pull_of_some_rows_is_that_part_of_the_table(open_store: OpenStore) -> None:
    store = open_store()
    rows = {"customer": np.array([0, 7, 8, 49]), "track": np.array([29])}
    whole, some = everything(store), store.pull(rows)
    assert list(some) == list(rows)
    for name, rows_A in rows.items():
        np.testing.assert_array_equal(some[name], whole[name][rows_A])


def test_a_pull_of_no_rows_keeps_the_columns(open_store: OpenStore) -> None:
    assert open_store().pull({"customer": np.empty(0, np.int64)})["customer"].shape == (0, 4)


def test_pulled_rows_are_copies(open_store: OpenStore) -> None:
    store = open_store()
    before = {name: block_AD.copy() for name, block_AD in everything(store).items()}
    for block_AD in everything(store).values():
        block_AD[:] = 99.0
    for name, block_AD in everything(store).items():
        np.testing.assert_array_equal(block_AD, before[name])


def test_a_pull_after_a_push_sees_the_step_and_only_active_rows_moved(open_store: OpenStore) -> None:
    store = open_store()
    before = everything(store)
    rows = {"customer": np.array([0, 13, 49]), "track": np.array([5, 6])}
    step = step_of(store, **rows)
    store.push(step)
    for name, block_AD in everything(store).items():
        expected_AD = before[name].copy()
        expected_AD[rows[name]] -= step[name].values_AD * store.workers
        np.testing.assert_allclose(block_AD[rows[name]], expected_AD[rows[name]], rtol=1e-6, atol=1e-7)
        inactive = np.setdiff1d(np.arange(len(block_AD)), rows[name])
        np.testing.assert_array_equal(block_AD[inactive], before[name][inactive])


def test_a_rate_multiplies_the_steps_that_follow_until_it_is_set_again(open_store: OpenStore) -> None:
    store, moved = open_store(), []
    for factor in (1.0, 0.25, 0.25, 1.0):
        store.set_lr_factor(factor)
        before = everything(store)["customer"]
        store.push(step_of(store, customer=np.array([3, 4])))
        moved.append(np.abs(everything(store)["customer"] - before).sum())
    np.testing.assert_allclose(moved, moved[0] * np.array([1.0, 0.25, 0.25, 1.0]), rtol=1e-5)


def test_weight_decay_does_not_reach_inactive_rows(open_store: OpenStore) -> None:
    store = open_store(optimizer=OptimizerSpec("adam", weight_decay=0.5))
    before = everything(store)
    for _ in range(2):
        store.push(step_of(store, customer=np.array([3])))
    after = everything(store)
    changed = (after["customer"] != before["customer"]).any(axis=1)
    assert np.flatnonzero(changed).tolist() == [3]
    np.testing.assert_array_equal(after["track"], before["track"])


def test_a_push_leaves_the_gradients_as_they_were(open_store: OpenStore) -> None:
    store = open_store(optimizer=OptimizerSpec("adam", weight_decay=0.5))
    step = step_of(store, customer=np.array([1, 2]))
    before = {name: gradient.values_AD.copy() for name, gradient in step.items()}
    store.push(step)
    for name, gradient in step.items():
        np.testing.assert_array_equal(gradient.values_AD, before[name])


def test_a_push_of_zero_rows_changes_nothing(open_store: OpenStore) -> None:
    store = open_store(optimizer=OptimizerSpec("adam", weight_decay=0.5))
    before = everything(store)
    store.push(step_of(store))
    for name, block_AD in everything(store).items():
        np.testing.assert_array_equal(block_AD, before[name])


@pytest.mark.parametrize("rows", [[0, 30], [-1, 3], [2**40]], ids=["beyond the end", "negative", "far beyond"])
def test_rows_outside_a_table_are_refused_by_its_name_and_size(open_store: OpenStore, rows: list[int]) -> None:
    store = open_store()
    before = everything(store)
    rows_A = np.array(rows, dtype=np.int64)
    with pytest.raises(StoreError, match=r"table 'track': rows .* has rows 0 to 29"):
        store.pull({"track": rows_A})
    with pytest.raises(StoreError, match=r"table 'track': rows .* has rows 0 to 29"):
        store.push({"track": RowGradient(rows_A, np.ones((len(rows_A), 3), np.float32))})
    for name, block_AD in everything(store).items():
        np.testing.assert_array_equal(block_AD, before[name])


def moved(store: RowStore) -> RowStore:
    """``store`` after a step for every table."""
    store.push(step_of(store, customer=np.array([0, 13, 49]), track=np.arange(30)))
    return store


@pytest.mark.parametrize("kind", KINDS)
def test_training_from_a_checkpoint_goes_on_as_if_it_had_never_stopped(
    open_store: OpenStore, tmp_path: Path, kind: OptimizerKind
) -> None:
    optimizer = OptimizerSpec(kind, weight_decay=0.1)
    store = moved(open_store(optimizer=optimizer))
    checkpoint = save_store(store, str(tmp_path), 1, TABLES, optimizer)
    resumed = open_store(optimizer=optimizer, seed=2, checkpoint=checkpoint)
    for _ in range(2):
        for name, block_AD in everything(resumed).items():
            np.testing.assert_array_equal(block_AD, everything(store)[name])
        moved(store), moved(resumed)


def test_what_is_saved_is_the_state_at_the_call(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store()
    before = everything(store)
    to = step_folder(str(tmp_path), 1)
    store.save(to)
    moved(store)
    commit(str(tmp_path), manifest(1, TABLES, SGD, saved(store).parts))
    after, loaded = everything(store), everything(open_store(checkpoint=to))
    for name in before:
        np.testing.assert_array_equal(loaded[name], before[name])
        assert (after[name] != before[name]).any()


def test_rows_that_a_checkpoint_lacks_are_those_of_a_fresh_table(open_store: OpenStore, tmp_path: Path) -> None:
    old = moved(open_store(seed=1))
    checkpoint = save_store(old, str(tmp_path), 1, TABLES, SGD)
    larger = [TableSpec(table.name, table.rows + 9, table.dim, table.init_std) for table in TABLES]
    tables = [*larger, TableSpec("artist", 8, 4, 0.1)]
    rows = {table.name: np.arange(table.rows) for table in tables}
    grown = open_store(tables=tables, seed=2, checkpoint=checkpoint).pull(rows)
    fresh = open_store(tables=tables, seed=2).pull(rows)
    for table in TABLES:
        np.testing.assert_array_equal(grown[table.name][: table.rows], everything(old)[table.name])
        np.testing.assert_array_equal(grown[table.name][table.rows :], fresh[table.name][table.rows :])
    np.testing.assert_array_equal(grown["artist"], fresh["artist"])


def saved_arrays(checkpoint: str, table: TableSpec, optimizer: OptimizerSpec) -> dict[str, FloatArray]:
    """Weights and optimizer state of a table in a checkpoint."""
    state = make_optimizer(optimizer, table.rows, table.dim).state
    arrays = {"weights": np.empty((table.rows, table.dim), np.float32), **state}
    held = TableShard(table.name, table.rows, 0, 1, arrays)
    open_checkpoint(checkpoint).load([held])
    return joined([held])


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_start_afresh_keep_nothing_of_a_checkpoint_and_the_others_keep_all(
    open_store: OpenStore, tmp_path: Path, kind: OptimizerKind
) -> None:
    optimizer = OptimizerSpec(kind, weight_decay=0.1)
    old = save_store(moved(moved(open_store(optimizer=optimizer))), str(tmp_path), 1, TABLES, optimizer)
    afresh = {"customer": np.array([1, 13, 49]), "track": np.empty(0, np.int64)}
    store = open_store(optimizer=optimizer, seed=2, checkpoint=old, afresh=afresh)
    new = save_store(store, str(tmp_path), 2, TABLES, optimizer)
    fresh = save_store(open_store(optimizer=optimizer, seed=2), str(tmp_path), 3, TABLES, optimizer)
    for table in TABLES:
        before, after, never = (saved_arrays(checkpoint, table, optimizer) for checkpoint in (old, new, fresh))
        rows = afresh[table.name]
        kept = np.setdiff1d(np.arange(table.rows), rows)
        for name, values in after.items():
            np.testing.assert_array_equal(values[rows], never[name][rows], err_msg=name)
            np.testing.assert_array_equal(values[kept], before[name][kept], err_msg=name)
    moved(store)


def test_rows_start_afresh_without_a_checkpoint_too(open_store: OpenStore) -> None:
    fresh, again = everything(open_store()), everything(open_store(afresh={"track": np.arange(3, 9)}))
    for name, block_AD in fresh.items():
        np.testing.assert_array_equal(again[name], block_AD)


def test_rows_beyond_a_table_cannot_start_afresh(open_store: OpenStore) -> None:
    with pytest.raises(StoreError, match=r"table 'track': rows 2 to 30 .* has rows 0 to 29"):
        open_store(afresh={"track": np.array([2, 30])})


def test_a_save_says_what_it_wrote_and_how_long_it_took(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store()
    store.save(str(tmp_path / "here"))
    result = saved(store)
    files = [path for path in (tmp_path / "here").rglob("*") if path.is_file()]
    assert result.bytes == sum(path.stat().st_size for path in files)
    assert 0.0 < result.pause_seconds < result.seconds
    for part in result.parts:
        assert part.bytes == (tmp_path / "here" / part.name).stat().st_size


def test_a_save_that_fails_leaves_the_tables_as_they_are_and_another_may_follow(
    open_store: OpenStore, tmp_path: Path
) -> None:
    store = open_store()
    before = everything(store)
    (tmp_path / "file").touch()
    store.save(str(tmp_path / "file" / "step"))
    with pytest.raises(CheckpointError, match=r"file/step: could not be written: .*file"):
        saved(store)
    for name, block_AD in everything(store).items():
        np.testing.assert_array_equal(block_AD, before[name])
    store.save(str(tmp_path / "folder"))
    saved(store)


def test_a_damaged_checkpoint_is_refused_with_its_uri(open_store: OpenStore, tmp_path: Path) -> None:
    checkpoint = save_store(open_store(), str(tmp_path), 1, TABLES, SGD)
    file = next((tmp_path / "step-000000001" / "track").iterdir())
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(CheckpointError, match=f"{file.name}: its CRC-32") as caught:
        open_store(checkpoint=checkpoint)
    assert caught.value.checkpoint == checkpoint


def test_sum_adds_over_the_workers_in_float64(open_store: OpenStore) -> None:
    store = open_store()
    values_N = np.array([1.0, -2.5, 1e-12, 2.0**40 + 0.125])
    total_N = store.all_reduce(values_N)
    assert total_N.dtype == np.float64
    np.testing.assert_array_equal(total_N, values_N * store.workers)
    total_N[:] = 0.0
    assert values_N[0] == 1.0


def test_a_worker_knows_its_rank(open_store: OpenStore) -> None:
    store = open_store()
    assert 0 <= store.rank < store.workers


def peak_of_a_step(rows: int) -> int:
    """The most bytes that a pull and a push of 1000 of ``rows`` rows hold at once."""
    store = LocalStore()
    store.create([TableSpec("track", rows, 8, 0.1)], OptimizerSpec("rowwise_adagrad", weight_decay=0.1), seed=1)
    rows_A = np.linspace(0, rows - 1, 1000).astype(np.int64)
    gradient = RowGradient(rows_A, random_rows(1000, 8, seed=1))
    store.pull({"track": rows_A})
    store.push({"track": gradient})
    tracemalloc.start()
    try:
        store.pull({"track": rows_A})
        store.push({"track": gradient})
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        store.close()


@pytest.mark.slow
def test_a_step_in_process_allocates_by_its_active_rows_whatever_the_size_of_the_table() -> None:
    small, large = peak_of_a_step(1_000_000), peak_of_a_step(16_000_000)
    block_bytes = 1000 * 8 * 4
    assert abs(large - small) < 4096
    assert large < block_bytes + 16_384


def test_traffic_counts_row_ids_with_their_values_and_what_a_dense_push_would_have_been() -> None:
    traffic = Traffic()
    traffic.count_pull(10, dim=4)
    traffic.count_push(3, TABLES[0])
    traffic.count_push(0, TABLES[0])
    assert (traffic.rows_pulled, traffic.bytes_pulled) == (10, 10 * (8 + 16))
    assert (traffic.rows_pushed, traffic.bytes_pushed) == (3, 3 * (8 + 16))
    assert traffic.bytes_pushed_if_dense == 2 * 50 * 4 * 4
