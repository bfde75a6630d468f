"""A store on a device of PyTorch does what a local store does."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import random_rows
from needs import LINUX, TORCH
from saved_shards import save_store, wait_for_save
from touched_pages import touched_pages

from crossfade.base.errors import CheckpointError, DivergedError, InputError
from crossfade.kvstore.local import LocalStore
from crossfade.kvstore.optimizer_spec import KINDS, OptimizerKind, OptimizerSpec
from crossfade.kvstore.store import RowGradient, RowStore, TableSpec
from crossfade.kvstore.torch.store import DeviceStore
from crossfade.trainer.model.engines.torch import torch_device

torch = pytest.importorskip("torch", reason=TORCH)

TABLES = [TableSpec("customer", rows=60, dim=5, init_std=0.3), TableSpec("track", rows=25, dim=8, init_std=0.5)]
ALL_ROWS = {table.name: np.arange(table.rows) for table in TABLES}
SGD = OptimizerSpec("sgd", learning_rate=1.0)
LARGE = TableSpec("track", rows=80_000, dim=64, init_std=0.1)
"""A table of 20 MB, of which pages can be counted."""


@pytest.fixture
def stores() -> Iterator[ExitStack]:
    """Close the stores that ``opened`` opens."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture(params=["cpu", pytest.param("a GPU", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Return PyTorch's name of the processor, and of a GPU where there is one."""
    if request.param == "cpu":
        return "cpu"
    return str(torch_device(request.getfixturevalue("gpu_device")))


def opened(stores: ExitStack, store: Any, optimizer: OptimizerSpec = SGD, **options: Any) -> Any:
    """Create the tables of ``store``, which is returned."""
    stores.enter_context(closing(store))
    store.create(options.pop("tables", TABLES), optimizer, 1, **options)
    return store


def random_step(seed: int) -> dict[str, RowGradient]:
    """Return random gradients of a random half of the rows of each table."""
    generator, step = np.random.default_rng(seed), {}
    for table in TABLES:
        rows_A = np.sort(generator.choice(table.rows, table.rows // 2, replace=False))
        values_AD = random_rows(len(rows_A), table.dim, seed=seed)
        rows_A.flags.writeable = values_AD.flags.writeable = False  # as arrays of Arrow and memory maps are
        step[table.name] = RowGradient(rows_A, values_AD)
    return step


def push_steps(store: RowStore, seeds: range) -> None:
    """Push a random step for each seed, at a learning rate that changes."""
    for seed in seeds:
        store.set_lr_factor((1.0, 0.25, 0.5)[seed % 3])
        store.push(random_step(seed))


def assert_close(store: RowStore, other: RowStore) -> None:
    """Compare all rows of two stores to the precision of float32."""
    for name, block_AD in store.pull(ALL_ROWS).items():
        np.testing.assert_allclose(block_AD, other.pull(ALL_ROWS)[name], rtol=1e-4, atol=1e-5, err_msg=name)


# ---- steps


PLAIN: dict[str, float] = {}
BOUNDED = {"weight_decay": 0.1, "max_norm": 1.2}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("sgd", PLAIN),
        ("sgd", BOUNDED),
        ("adagrad", PLAIN),
        ("adagrad", BOUNDED),
        ("rowwise_adagrad", PLAIN),
        ("rowwise_adagrad", BOUNDED),
        ("adam", PLAIN),
        ("adam", BOUNDED),
    ],
)
def test_steps_equal_those_of_a_local_store_and_repeat(
    stores: ExitStack, device: str, kind: OptimizerKind, options: dict[str, float]
) -> None:
    optimizer = OptimizerSpec(kind, learning_rate=0.05, epsilon=1e-6, **options)  # type: ignore[arg-type]
    store, again = (opened(stores, DeviceStore(device), optimizer) for _ in range(2))
    local, before = opened(stores, LocalStore(), optimizer), store.pull(ALL_ROWS)
    for each in (store, again, local):
        push_steps(each, range(40))
    assert_close(store, local)
    for name, block_AD in store.pull(ALL_ROWS).items():
        assert (block_AD != before[name]).mean() > 0.9
        assert block_AD.tobytes() == again.pull(ALL_ROWS)[name].tobytes()


@pytest.mark.gpu
def test_steps_on_a_gpu_leave_no_memory_allocated(stores: ExitStack, gpu_device: str) -> None:
    store = opened(stores, DeviceStore(torch_device(gpu_device)), OptimizerSpec("adam"))
    push_steps(store, range(5))
    allocated, peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_reserved()
    push_steps(store, range(20))
    assert (torch.cuda.memory_allocated(), torch.cuda.max_memory_reserved()) == (allocated, peak)


@pytest.mark.parametrize("with_index", [False, True])
def test_step_of_tensors_equals_pull_and_push(stores: ExitStack, with_index: bool) -> None:
    optimizer = OptimizerSpec("adam", weight_decay=0.1)
    store, other = (opened(stores, DeviceStore("cpu"), optimizer) for _ in range(2))
    for seed in range(3):
        step, updates = random_step(seed), []
        pulled = other.pull({name: gradient.rows_A for name, gradient in step.items()})
        for name, gradient in step.items():
            index_A = torch.tensor(gradient.rows_A) if with_index else None
            block_AD = store.device_rows(name, gradient.rows_A, index_A)
            np.testing.assert_array_equal(block_AD.numpy(), pulled[name])
            block_AD.zero_()  # it is a copy
            updates.append(store.update_rows(name, gradient.rows_A, torch.tensor(gradient.values_AD), index_A))
        store.check_divergence(updates)
        other.push(step)
    for name, block_AD in store.pull(ALL_ROWS).items():
        np.testing.assert_array_equal(block_AD, other.pull(ALL_ROWS)[name])
    assert store.stats.updated_rows == other.stats.updated_rows == {"customer": 90, "track": 36}


def test_step_on_the_device_waits_for_it_only_to_check_divergence(stores: ExitStack) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    called: list[str] = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.append(str(func))
            return func(*args, **(kwargs or {}))

    rows_A = np.array([0, 3, 7])
    index_A, gradient_AD = torch.from_numpy(rows_A), torch.ones((3, TABLES[0].dim))
    for kind in KINDS:
        store = opened(stores, DeviceStore("cpu"), OptimizerSpec(kind, weight_decay=0.1, max_norm=1.0))
        with Recorder():
            store.device_rows("customer", rows_A, index_A)
            store.update_rows("customer", rows_A, gradient_AD, index_A)
    assert {"aten.index_select.default", "aten.index_copy_.default"} <= set(called)
    waiting = ("local_scalar", "item", "nonzero", "masked_select", "unique", "equal", "index.Tensor")
    assert [name for name in called if any(part in name for part in waiting)] == []


# ---- divergence


@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e30])
@pytest.mark.parametrize("kind", KINDS)
def test_divergence_names_table_and_row(stores: ExitStack, kind: OptimizerKind, value: float) -> None:
    store = opened(stores, DeviceStore("cpu"), OptimizerSpec(kind, max_norm=1.0))
    step = {table.name: RowGradient(np.array([2, 6]), np.ones((2, table.dim), np.float32)) for table in TABLES}
    step["track"].values_AD[1, 3] = value
    with pytest.raises(DivergedError, match=r"table 'track', row 6: .* 1 of [12] active rows") as caught:
        store.push(step)
    assert caught.value.row == 6
    update = store.update_rows("customer", np.array([4]), torch.full((1, 5), 0.5))
    store.check_divergence([update])


# ---- checkpoints


def open_large(stores: ExitStack) -> Any:
    """Open a store with the large table, after a step on all of its rows."""
    store = opened(stores, DeviceStore("cpu"), OptimizerSpec("rowwise_adagrad"), tables=[LARGE])
    store.push({LARGE.name: RowGradient(np.arange(LARGE.rows), random_rows(LARGE.rows, LARGE.dim, seed=5))})
    return store


def prefix_pages(store: Any) -> dict[str, int]:
    """Return the touched pages of the host's arrays."""
    [shard] = store._host.shards()
    assert set(shard.arrays) == {"weights", "sum_of_squares"}
    return {name: touched_pages(array) for name, array in shard.arrays.items()}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason=LINUX)
def test_rows_on_the_device_take_no_memory_of_the_host_but_during_a_save(stores: ExitStack, tmp_path: Path) -> None:
    store = open_large(stores)
    released = {"weights": 0, "sum_of_squares": 0}
    assert prefix_pages(store) == released
    rows = {LARGE.name: np.arange(LARGE.rows)}
    before = store.pull(rows)[LARGE.name]
    store.save(str(tmp_path / "step"))
    assert min(prefix_pages(store).values()) > 0
    wait_for_save(store)
    assert prefix_pages(store) == released
    (tmp_path / "file").touch()
    store.save(str(tmp_path / "file" / "step"))
    with pytest.raises(CheckpointError, match="could not be written"):
        wait_for_save(store)
    assert prefix_pages(store) == released
    np.testing.assert_array_equal(store.pull(rows)[LARGE.name], before)


def test_tables_are_copied_in_chunks(
    stores: ExitStack, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crossfade.kvstore.torch.device._CHUNK_BYTES", 7 * TABLES[0].dim * 4)
    optimizer = OptimizerSpec("adam")
    store = opened(stores, DeviceStore(device), optimizer)
    push_steps(store, range(2))
    checkpoint = save_store(store, str(tmp_path), 1, TABLES, optimizer)
    others = (LocalStore(), DeviceStore(device))
    loaded = [opened(stores, each, optimizer, checkpoint=checkpoint).pull(ALL_ROWS) for each in others]
    for name, block_AD in store.pull(ALL_ROWS).items():
        for each in loaded:
            np.testing.assert_array_equal(each[name], block_AD)


# ---- devices and imports


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "meta"])
def test_device_that_cannot_hold_tables_is_rejected_by_name(name: str) -> None:
    with pytest.raises(InputError, match=f"device '{name}' .*expected 'cpu', or a GPU"):
        DeviceStore(name)


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from crossfade.base.errors import MissingExtraError
from crossfade.kvstore.torch.store import DeviceStore
try:
    DeviceStore("cpu")
except MissingExtraError as error:
    print(error)
"""


def test_store_without_torch_can_be_imported_and_names_the_missing_package() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, check=True)
    assert "training on a GPU needs the package 'torch'" in done.stdout
    assert "crossfade[torch]" in done.stdout
