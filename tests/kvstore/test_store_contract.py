"""The contract of every row store, and that a local step costs by its active rows, not by table size."""

import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import pytest
from builders import random_rows
from needs import TORCH
from saved_shards import load_table, make_manifest, save_store, wait_for_save
from sharded_ranks import MirroredStore

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.errors import CheckpointError, StoreError
from crossfade.kvstore.checkpoint.lifecycle import commit, step_folder
from crossfade.kvstore.local import LocalStore
from crossfade.kvstore.optimizer_spec import KINDS, OptimizerKind, OptimizerSpec
from crossfade.kvstore.store import NO_RESETS, RowGradient, RowStore, TableSpec, Traffic
from crossfade.kvstore.torch.store import DeviceStore


def open_device_store() -> RowStore:
    """Return a store on PyTorch's device "cpu"."""
    pytest.importorskip("torch", reason=TORCH)
    return DeviceStore("cpu")


def open_sharded_store(ranks: int) -> RowStore:
    """Return a store whose calls ``ranks`` ranks make."""
    return MirroredStore(ranks)


STORES: dict[str, Callable[[], RowStore]] = {
    "LocalStore": LocalStore,
    "DeviceStore": open_device_store,
    "ShardedStore of one rank": lambda: open_sharded_store(1),
    "ShardedStore of two ranks": lambda: open_sharded_store(2),
    "ShardedStore of three ranks": lambda: open_sharded_store(3),
}
TABLES = [TableSpec("customer", rows=50, dim=4, init_std=0.1), TableSpec("track", rows=30, dim=3, init_std=0.5)]
SGD = OptimizerSpec("sgd", learning_rate=1.0)

OpenStore = Callable[..., RowStore]


@pytest.fixture(params=STORES.values(), ids=STORES)
def open_store(request: pytest.FixtureRequest) -> Iterator[OpenStore]:
    """Return a function that opens a store of one kind with tables; close the stores at the end."""
    with ExitStack() as stack:

        def open_one(
            tables: list[TableSpec] = TABLES,
            optimizer: OptimizerSpec = SGD,
            seed: int = 1,
            checkpoint: str | None = None,
            reset_rows: Mapping[str, IntArray] = NO_RESETS,
        ) -> RowStore:
            store = stack.enter_context(closing(request.param()))
            store.create(tables, optimizer, seed, checkpoint, reset_rows)
            return store

        yield open_one


def pull_all(store: RowStore) -> dict[str, FloatArray]:
    return store.pull({table.name: np.arange(table.rows) for table in TABLES})


def make_step(store: RowStore, **rows: IntArray) -> dict[str, RowGradient]:
    """Return a step for all tables: fixed random gradients of the given rows, no rows of other tables."""
    gradients = {}
    for table in TABLES:
        rows_A = rows.get(table.name, np.empty(0, np.int64))
        values_AD = random_rows(len(rows_A), table.dim, seed=7) / np.float32(store.workers)
        gradients[table.name] = RowGradient(rows_A, values_AD)
    return gradients


def test_initial_rows_have_the_standard_deviation_of_their_table(open_store: OpenStore) -> None:
    for table, block_AD in zip(TABLES, pull_all(open_store()).values(), strict=True):
        assert block_AD.dtype == np.float32
        assert block_AD.shape == (table.rows, table.dim)
        assert block_AD.std() == pytest.approx(table.init_std, rel=0.25)


def test_initial_rows_depend_on_the_seed(open_store: OpenStore) -> None:
    first, again, other = (pull_all(open_store(seed=seed)) for seed in (1, 1, 2))
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
        assert (first[name] != other[name]).mean() > 0.9


def test_pull_of_some_rows_equals_that_part_of_the_table(open_store: OpenStore) -> None:
    store = open_store()
    rows = {"customer": np.array([0, 7, 8, 49]), "track": np.empty(0, np.int64)}
    all_rows, some = pull_all(store), store.pull(rows)
    assert list(some) == list(rows)
    for name, rows_A in rows.items():
        np.testing.assert_array_equal(some[name], all_rows[name][rows_A])


def test_pulled_rows_are_copies(open_store: OpenStore) -> None:
    store = open_store()
    before = {name: block_AD.copy() for name, block_AD in pull_all(store).items()}
    for block_AD in pull_all(store).values():
        block_AD[:] = 99.0
    for name, block_AD in pull_all(store).items():
        np.testing.assert_array_equal(block_AD, before[name])


def test_pull_after_a_push_has_the_step_in_active_rows_only(open_store: OpenStore) -> None:
    store = open_store()
    before = pull_all(store)
    rows = {"customer": np.array([0, 13, 49]), "track": np.array([5, 6])}
    step = make_step(store, **rows)
    store.push(step)
    for name, block_AD in pull_all(store).items():
        expected_AD = before[name].copy()
        expected_AD[rows[name]] -= step[name].values_AD * store.workers
        np.testing.assert_allclose(block_AD[rows[name]], expected_AD[rows[name]], rtol=1e-6, atol=1e-7)
        inactive = np.setdiff1d(np.arange(len(block_AD)), rows[name])
        np.testing.assert_array_equal(block_AD[inactive], before[name][inactive])


def test_lr_factor_applies_to_later_steps_until_it_is_set_again(open_store: OpenStore) -> None:
    store, moved = open_store(), []
    for factor in (1.0, 0.25, 0.25, 1.0):
        store.set_lr_factor(factor)
        before = pull_all(store)["customer"]
        store.push(make_step(store, customer=np.array([3, 4])))
        moved.append(np.abs(pull_all(store)["customer"] - before).sum())
    np.testing.assert_allclose(moved, moved[0] * np.array([1.0, 0.25, 0.25, 1.0]), rtol=1e-5)


def test_push_does_not_modify_the_gradients(open_store: OpenStore) -> None:
    store = open_store(optimizer=OptimizerSpec("adam", weight_decay=0.5))
    step = make_step(store, customer=np.array([1, 2]))
    before = {name: gradient.values_AD.copy() for name, gradient in step.items()}
    store.push(step)
    for name, gradient in step.items():
        np.testing.assert_array_equal(gradient.values_AD, before[name])


def test_assigned_rows_are_replaced_and_their_optimizer_state_stays(open_store: OpenStore) -> None:
    optimizer = OptimizerSpec("adagrad", learning_rate=1.0)
    store, other = open_store(optimizer=optimizer), open_store(optimizer=optimizer)
    before, rows_A = pull_all(store), np.array([0, 7, 49])
    values_AD = random_rows(len(rows_A), 4, seed=3)
    store.assign("customer", rows_A, values_AD)
    assigned = pull_all(store)
    np.testing.assert_array_equal(assigned["customer"][rows_A], values_AD)
    rest = np.setdiff1d(np.arange(50), rows_A)
    np.testing.assert_array_equal(assigned["customer"][rest], before["customer"][rest])
    np.testing.assert_array_equal(assigned["track"], before["track"])
    # The first step of Adagrad depends on its state, which is 0 as in the other store.
    for each in (store, other):
        each.push(make_step(each, customer=rows_A))
    moved, expected = (
        pull_all(each)["customer"][rows_A] - start
        for each, start in ((store, values_AD), (other, before["customer"][rows_A]))
    )
    np.testing.assert_allclose(moved, expected, atol=1e-6)
    with pytest.raises(StoreError, match="customer"):
        store.assign("customer", np.array([50]), values_AD[:1])


@pytest.mark.parametrize("rows", [[0, 30], [-1, 3], [2**40]], ids=["beyond the end", "negative", "far beyond"])
def test_rows_outside_a_table_are_rejected_with_its_name_and_size(open_store: OpenStore, rows: list[int]) -> None:
    store = open_store()
    before = pull_all(store)
    rows_A = np.array(rows, dtype=np.int64)
    with pytest.raises(StoreError, match=r"table 'track': rows .* has rows 0 to 29"):
        store.pull({"track": rows_A})
    with pytest.raises(StoreError, match=r"table 'track': rows .* has rows 0 to 29"):
        store.push({"track": RowGradient(rows_A, np.ones((len(rows_A), 3), np.float32))})
    for name, block_AD in pull_all(store).items():
        np.testing.assert_array_equal(block_AD, before[name])


def push_step(store: RowStore) -> RowStore:
    """Push a step for every table; return the store."""
    store.push(make_step(store, customer=np.array([0, 13, 49]), track=np.arange(30)))
    return store


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_training_equals_uninterrupted_training(
    open_store: OpenStore, tmp_path: Path, kind: OptimizerKind
) -> None:
    optimizer = OptimizerSpec(kind, weight_decay=0.1)
    store = push_step(open_store(optimizer=optimizer))
    checkpoint = save_store(store, str(tmp_path), 1, TABLES, optimizer)
    with closing(LocalStore()) as local:
        local.create(TABLES, optimizer, 3, checkpoint)
        saved_locally = save_store(local, str(tmp_path), 2, TABLES, optimizer)
    resumed = [open_store(optimizer=optimizer, seed=2, checkpoint=each) for each in (checkpoint, saved_locally)]
    for _ in range(2):
        for each in resumed:
            for name, block_AD in pull_all(each).items():
                np.testing.assert_array_equal(block_AD, pull_all(store)[name])
        for each in (store, *resumed):
            push_step(each)


def test_save_has_the_state_at_the_call(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store()
    before = pull_all(store)
    folder = step_folder(str(tmp_path), 1)
    store.save(folder)
    push_step(store)
    commit(str(tmp_path), make_manifest(1, TABLES, SGD, wait_for_save(store).parts))
    after, loaded = pull_all(store), pull_all(open_store(checkpoint=folder))
    for name in before:
        np.testing.assert_array_equal(loaded[name], before[name])
        assert (after[name] != before[name]).any()


def test_rows_missing_in_a_checkpoint_are_initialized(open_store: OpenStore, tmp_path: Path) -> None:
    old = push_step(open_store(seed=1))
    checkpoint = save_store(old, str(tmp_path), 1, TABLES, SGD)
    larger = [TableSpec(table.name, table.rows + 9, table.dim, table.init_std) for table in TABLES]
    tables = [*larger, TableSpec("artist", 8, 4, 0.1)]
    rows = {table.name: np.arange(table.rows) for table in tables}
    grown = open_store(tables=tables, seed=2, checkpoint=checkpoint).pull(rows)
    fresh = open_store(tables=tables, seed=2).pull(rows)
    for table in TABLES:
        np.testing.assert_array_equal(grown[table.name][: table.rows], pull_all(old)[table.name])
        np.testing.assert_array_equal(grown[table.name][table.rows :], fresh[table.name][table.rows :])
    np.testing.assert_array_equal(grown["artist"], fresh["artist"])


@pytest.mark.parametrize("kind", KINDS)
def test_reset_rows_are_initialized_and_other_rows_are_loaded(
    open_store: OpenStore, tmp_path: Path, kind: OptimizerKind
) -> None:
    optimizer = OptimizerSpec(kind, weight_decay=0.1)
    old = save_store(push_step(push_step(open_store(optimizer=optimizer))), str(tmp_path), 1, TABLES, optimizer)
    resets = {"customer": np.array([1, 13, 49]), "track": np.empty(0, np.int64)}
    store = open_store(optimizer=optimizer, seed=2, checkpoint=old, reset_rows=resets)
    new = save_store(store, str(tmp_path), 2, TABLES, optimizer)
    fresh = save_store(open_store(optimizer=optimizer, seed=2), str(tmp_path), 3, TABLES, optimizer)
    for table in TABLES:
        before, after, never = (load_table(checkpoint, table, optimizer) for checkpoint in (old, new, fresh))
        rows = resets[table.name]
        other_rows = np.setdiff1d(np.arange(table.rows), rows)
        for name, values in after.items():
            np.testing.assert_array_equal(values[rows], never[name][rows], err_msg=name)
            np.testing.assert_array_equal(values[other_rows], before[name][other_rows], err_msg=name)
    push_step(store)


def test_reset_of_rows_outside_a_table_is_rejected(open_store: OpenStore) -> None:
    with pytest.raises(StoreError, match=r"table 'track': rows 2 to 30 .* has rows 0 to 29"):
        open_store(reset_rows={"track": np.array([2, 30])})


def test_save_result_has_bytes_and_seconds(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store()
    store.save(str(tmp_path / "here"))
    result = wait_for_save(store)
    files = [path for path in (tmp_path / "here").rglob("*") if path.is_file()]
    assert result.bytes == sum(path.stat().st_size for path in files)
    assert min(result.pause_seconds, result.seconds) > 0.0
    for part in result.parts:
        assert part.bytes == (tmp_path / "here" / part.name).stat().st_size


def test_failed_save_keeps_the_tables_and_allows_another(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store()
    before = pull_all(store)
    (tmp_path / "file").touch()
    store.save(str(tmp_path / "file" / "step"))
    with pytest.raises(CheckpointError, match=r"file/step: could not be written: .*file"):
        wait_for_save(store)
    for name, block_AD in pull_all(store).items():
        np.testing.assert_array_equal(block_AD, before[name])
    store.save(str(tmp_path / "folder"))
    wait_for_save(store)


def test_corrupt_checkpoint_is_rejected_with_its_uri(open_store: OpenStore, tmp_path: Path) -> None:
    checkpoint = save_store(open_store(), str(tmp_path), 1, TABLES, SGD)
    file = next((tmp_path / "step-000000001" / "track").iterdir())
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(CheckpointError, match=f"{file.name}: its CRC-32") as caught:
        open_store(checkpoint=checkpoint)
    assert caught.value.checkpoint == checkpoint


def test_all_reduce_sums_over_workers_in_float64(open_store: OpenStore) -> None:
    store = open_store()
    values_N = np.array([1.0, -2.5, 1e-12, 2.0**40 + 0.125])
    total_N = store.all_reduce(values_N)
    assert total_N.dtype == np.float64
    np.testing.assert_array_equal(total_N, values_N * store.workers)
    total_N[:] = 0.0
    assert values_N[0] == 1.0


def step_peak_bytes(rows: int) -> int:
    """Return the peak bytes that a pull and a push of 1000 of ``rows`` rows allocate."""
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
def test_local_step_memory_is_independent_of_table_size() -> None:
    small, large = step_peak_bytes(1_000_000), step_peak_bytes(16_000_000)
    block_bytes = 1000 * 8 * 4
    assert abs(large - small) < 4096
    assert large < block_bytes + 16_384


def test_traffic_counts_row_ids_values_and_dense_equivalent() -> None:
    traffic = Traffic()
    traffic.count_pull(10, dim=4)
    traffic.count_push(3, TABLES[0])
    traffic.count_push(0, TABLES[0])
    assert (traffic.rows_pulled, traffic.bytes_pulled) == (10, 10 * (8 + 16))
    assert (traffic.rows_pushed, traffic.bytes_pushed) == (3, 3 * (8 + 16))
    assert traffic.dense_equivalent_bytes_pushed == 2 * 50 * 4 * 4
