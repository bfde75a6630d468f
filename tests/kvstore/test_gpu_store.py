"""Tables in the memory of a GPU: the results of a local store, rows beyond its memory, checkpoints, the same bits."""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import random_rows
from saved_shards import save_store

from crossfade.kvstore.local import LocalStore
from crossfade.kvstore.optimizer_spec import KINDS, OptimizerKind, OptimizerSpec
from crossfade.kvstore.store import RowGradient, RowStore, TableSpec
from crossfade.kvstore.torch.store import DeviceStore
from crossfade.trainer.model.engines.torch import torch_device

pytestmark = pytest.mark.gpu

TABLES = [TableSpec("customer", rows=3_000, dim=64, init_std=0.3), TableSpec("track", rows=500, dim=20, init_std=0.5)]
ALL_ROWS = {table.name: np.arange(table.rows) for table in TABLES}
BUDGETS = {"all rows on the GPU": None, "some rows on the GPU": 200_000, "no rows on the GPU": 0}
by_budget = pytest.mark.parametrize("budget", BUDGETS.values(), ids=BUDGETS)


@pytest.fixture
def stores() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def opened(stores: ExitStack, store: Any, optimizer: OptimizerSpec, **options: Any) -> Any:
    """Create the tables of ``store``, which is returned."""
    stores.enter_context(closing(store))
    store.create(TABLES, optimizer, 1, **options)
    return store


def push_steps(store: RowStore, count: int) -> None:
    """Push random gradients of a random half of the rows of each table."""
    for seed in range(count):
        generator, step = np.random.default_rng(seed), {}
        for table in TABLES:
            rows_A = np.sort(generator.choice(table.rows, table.rows // 2, replace=False))
            step[table.name] = RowGradient(rows_A, random_rows(len(rows_A), table.dim, seed=seed))
        store.set_lr_factor((1.0, 0.25, 0.5)[seed % 3])
        store.push(step)


@pytest.mark.parametrize("kind", KINDS)
@by_budget
def test_steps_equal_those_of_a_local_store_and_repeat(
    stores: ExitStack, gpu_device: str, budget: int | None, kind: OptimizerKind
) -> None:
    optimizer = OptimizerSpec(kind, learning_rate=0.05, epsilon=1e-6, weight_decay=0.1, max_norm=3.0)
    local = opened(stores, LocalStore(), optimizer)
    store, again = (opened(stores, DeviceStore(torch_device(gpu_device), budget), optimizer) for _ in range(2))
    before = store.pull(ALL_ROWS)
    for each in (local, store, again):
        push_steps(each, 20)
    for name, expected_AD in local.pull(ALL_ROWS).items():
        found_AD = store.pull(ALL_ROWS)[name]
        np.testing.assert_allclose(found_AD, expected_AD, rtol=1e-4, atol=1e-5, err_msg=name)
        assert found_AD.tobytes() == again.pull(ALL_ROWS)[name].tobytes()
        assert (found_AD != before[name]).mean() > 0.9


def test_rows_beyond_the_memory_stay_on_the_host(stores: ExitStack, gpu_device: str) -> None:
    optimizer = OptimizerSpec("rowwise_adagrad")
    store = opened(stores, DeviceStore(torch_device(gpu_device), 200_000), optimizer)
    device_bytes, host_bytes = store.memory()
    assert 0 < device_bytes <= 200_000 < host_bytes
    assert store.hot_rows["track"] == TABLES[1].rows
    assert 0 < store.hot_rows["customer"] < TABLES[0].rows
    complete = opened(stores, DeviceStore(torch_device(gpu_device)), optimizer)
    assert complete.hot_rows == {table.name: table.rows for table in TABLES}


@by_budget
def test_checkpoint_loads_into_either_store(
    stores: ExitStack, gpu_device: str, tmp_path: Path, budget: int | None
) -> None:
    optimizer = OptimizerSpec("adam")
    store = opened(stores, DeviceStore(torch_device(gpu_device), budget), optimizer)
    push_steps(store, 3)
    checkpoint = save_store(store, str(tmp_path), 1, TABLES, optimizer)
    local = opened(stores, LocalStore(), optimizer, checkpoint=checkpoint)
    again = opened(stores, DeviceStore(torch_device(gpu_device), budget), optimizer, checkpoint=checkpoint)
    expected = store.pull(ALL_ROWS)
    for each in (local, again):
        for name, block_AD in each.pull(ALL_ROWS).items():
            np.testing.assert_array_equal(block_AD, expected[name])
    push_steps(store, 3), push_steps(again, 3)  # the state of the optimizer is the same, too
    for name, block_AD in store.pull(ALL_ROWS).items():
        np.testing.assert_array_equal(again.pull(ALL_ROWS)[name], block_AD)


def test_steps_leave_no_memory_allocated(stores: ExitStack, gpu_device: str) -> None:
    import torch

    store = opened(stores, DeviceStore(torch_device(gpu_device), 200_000), OptimizerSpec("adam"))
    push_steps(store, 5)
    allocated, peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_reserved()
    push_steps(store, 20)
    assert (torch.cuda.memory_allocated(), torch.cuda.max_memory_reserved()) == (allocated, peak)
