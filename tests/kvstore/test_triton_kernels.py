"""The fused kernel of Triton against PyTorch's operations and the kernels of the host.

Where PyTorch finds a GPU, the tests run the kernel on it. Elsewhere, Triton's interpreter runs it with numpy, which
tests what the kernel computes, but not what Triton's compiler makes of it.
"""

import json
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import random_rows
from needs import TORCH, TRITON

from crossfade.base.arrays import FloatArray
from crossfade.kvstore.local import LocalStore
from crossfade.kvstore.optimizer_spec import KINDS, OptimizerKind, OptimizerSpec
from crossfade.kvstore.optimizers import make_optimizer
from crossfade.kvstore.store import RowGradient, TableSpec
from crossfade.kvstore.torch import optimizers
from crossfade.kvstore.torch.optimizers import MAX_DIM, DeviceOptimizer, FusedOptimizer, find_fault
from crossfade.kvstore.torch.store import DeviceStore

torch = pytest.importorskip("torch", reason=TORCH)
HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda:0" if HAS_GPU else "cpu")


@contextmanager
def interpreting() -> Iterator[None]:
    """Let Triton define kernels for its interpreter where there is no GPU."""
    with pytest.MonkeyPatch.context() as patch:
        if not HAS_GPU:
            patch.setenv("TRITON_INTERPRET", "1")
        yield


with interpreting():
    pytest.importorskip("triton", reason=TRITON)
    from crossfade.kvstore.torch import triton_kernels

# The interpreter also computes values that a kernel masks or selects no row of.
pytestmark = pytest.mark.filterwarnings("ignore:(divide by zero|overflow|invalid value) encountered:RuntimeWarning")

ROWS, ACTIVE, NEVER_ACTIVE = 150, 70, 20
DIMS = [1, 3, 64, 100, 128]
OPTIONS: dict[str, dict[str, float]] = {
    "plain": {},
    "decay": {"weight_decay": 0.1},
    "max norm": {"max_norm": 0.9},
    "decay and max norm": {"weight_decay": 0.1, "max_norm": 0.9},
}
by_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module", autouse=True)
def _interpreting() -> Iterator[None]:
    with interpreting():  # Triton imports some of its modules when the first kernel starts
        yield


class Tables:
    """The same table, updated by the fused kernel, by PyTorch's operations, and by the kernels of the host."""

    def __init__(self, spec: OptimizerSpec, dim: int) -> None:
        norms_N1 = np.linspace(0, 2, ROWS, dtype=np.float32)[:, None]
        self.host_ND: FloatArray = random_rows(ROWS, dim, seed=1) * norms_N1 / np.float32(dim**0.5)
        self.fused_ND, self.plain_ND = (torch.from_numpy(self.host_ND).to(DEVICE, copy=True) for _ in range(2))
        self.host = make_optimizer(spec, ROWS, dim)
        self.fused, self.plain = (make(spec, ROWS, dim, DEVICE) for make in (FusedOptimizer, DeviceOptimizer))
        self.dim = dim

    def step(self, seed: int, lr_factor: float = 1.0) -> None:
        """Apply random gradients of random rows to the three tables."""
        rows_A = np.sort(np.random.default_rng(seed).choice(ROWS - NEVER_ACTIVE, ACTIVE, replace=False))
        gradient_AD = random_rows(ACTIVE, self.dim, seed=seed) / np.float32(self.dim**0.5)
        gradient_AD[7] = 0
        self.host.lr_factor = self.fused.lr_factor = self.plain.lr_factor = lr_factor
        self.host.update(self.host_ND, rows_A, gradient_AD)
        assert not self.update(torch.from_numpy(rows_A), torch.from_numpy(gradient_AD)).any()

    def update(self, rows_A: Any, gradient_AD: Any) -> Any:
        """Update the tables of PyTorch; return the rows that have diverged, which must be the same."""
        rows_A, gradient_AD = rows_A.to(DEVICE), gradient_AD.to(DEVICE)
        divergent_A = self.fused.update(self.fused_ND, rows_A, gradient_AD)
        assert divergent_A.dtype == torch.bool
        assert divergent_A.tolist() == self.plain.update(self.plain_ND, rows_A, gradient_AD).tolist()
        return divergent_A

    def values(self) -> dict[str, FloatArray]:
        """Return copies of the weights and the state of the fused kernel."""
        return {name: values.cpu().numpy().copy() for name, values in self._fused_tensors().items()}

    def _fused_tensors(self) -> dict[str, Any]:
        return {"weights": self.fused_ND, **self.fused.state}

    def assert_close(self, with_host: bool = True) -> None:
        plain = {"weights": self.plain_ND, **self.plain.state}
        host = {"weights": self.host_ND, **self.host.state} if with_host else {}
        for name, values in self.values().items():
            np.testing.assert_allclose(values, plain[name].cpu().numpy(), rtol=1e-5, atol=1e-6, err_msg=name)
            if with_host:
                np.testing.assert_allclose(values, host[name], rtol=1e-5, atol=1e-6, err_msg=name)


def decaying(kind: OptimizerKind) -> OptimizerSpec:
    """Return an optimizer with all switches; with a smaller epsilon, last bits of small gradients would matter."""
    return OptimizerSpec(kind, epsilon=1e-3, weight_decay=0.1, max_norm=0.9)


# ---- results


@pytest.mark.parametrize(
    ("options", "dim"), [*product(OPTIONS.values(), DIMS), (OPTIONS["decay and max norm"], MAX_DIM)]
)
@by_kind
def test_steps_equal_those_of_pytorch_and_of_the_host(kind: OptimizerKind, options: dict[str, float], dim: int) -> None:
    tables = Tables(OptimizerSpec(kind, learning_rate=0.1, epsilon=1e-3, **options), dim)  # type: ignore[arg-type]
    before = tables.values()["weights"]
    for seed, lr_factor in enumerate((1.0, 0.25, 0.5)):
        tables.step(seed, lr_factor)
    tables.assert_close()
    changed_N = (tables.values()["weights"] != before).any(axis=1)
    assert changed_N[:-NEVER_ACTIVE].mean() > 0.7
    norm_N = np.linalg.norm(tables.values()["weights"], axis=1)[changed_N]
    assert (norm_N.max() < 0.9001) == ("max_norm" in options)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.999999])
def test_bias_corrections_equal_those_of_pytorch(beta: float) -> None:
    tables = Tables(OptimizerSpec("adam", beta1=beta, beta2=beta), 3)
    for optimizer in (tables.fused, tables.plain, tables.host):
        optimizer.state["step"][:] = torch.arange(ROWS) * 100 if optimizer is not tables.host else np.arange(ROWS) * 100
    for seed in range(3):
        tables.step(seed)
    tables.assert_close()


@by_kind
def test_inactive_rows_and_their_state_keep_every_bit(kind: OptimizerKind) -> None:
    tables = Tables(decaying(kind), 5)
    for values in tables._fused_tensors().values():
        values[-NEVER_ACTIVE:] = 3
    tables.step(1)
    for name, values in tables.values().items():
        assert (values[-NEVER_ACTIVE:] == 3).all(), name
        assert (values[:-NEVER_ACTIVE] != 3).any(), name


@by_kind
def test_gradients_and_rows_need_not_be_contiguous(kind: OptimizerKind) -> None:
    tables = Tables(decaying(kind), 3)
    tables.update(torch.arange(0, 40)[1::4], torch.from_numpy(random_rows(3, 10, seed=1)).T)
    tables.update(torch.arange(0, 10)[3:], torch.from_numpy(random_rows(8, 3, seed=2))[1:])
    tables.assert_close(with_host=False)


# ---- divergence


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, 1.01e18, 0.99e18])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@by_kind
def test_same_rows_diverge_and_are_not_clipped(kind: OptimizerKind, options: dict[str, float], value: float) -> None:
    tables = Tables(OptimizerSpec(kind, learning_rate=1e-3, **options), 5)  # type: ignore[arg-type]
    gradient_AD = torch.from_numpy(random_rows(40, 5, seed=3))
    gradient_AD[11, 4] = gradient_AD[30, 0] = value
    divergent_A = tables.update(torch.arange(100, 140), gradient_AD)
    assert divergent_A.nonzero().ravel().tolist() == ([] if value == 0.99e18 else [11, 30])
    tables.assert_close(with_host=False)


@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_weights_that_grow_beyond_all_bounds_have_diverged(max_norm: float | None) -> None:
    tables = Tables(OptimizerSpec("sgd", learning_rate=1e25, max_norm=max_norm), 4)
    gradient_AD = torch.zeros((3, 4))
    gradient_AD[1] = 1.0
    assert tables.update(torch.arange(3), gradient_AD).tolist() == [False, True, False]
    assert tables.fused_ND[1].abs().min() > 1e24


# ---- large tables


@pytest.mark.skipif(HAS_GPU or not sys.platform.startswith("linux"), reason="needs Linux without a GPU")
def test_offsets_of_rows_exceed_32_bits() -> None:
    dim, row = 64, 2**25 + 7  # at offset 2**31 + 448; with 32 bits, it would be at -2**31 + 448
    middle = 2**31 + 2**12
    pages = mmap.mmap(-1, 8 * middle, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0))
    values = np.frombuffer(pages, np.float32)
    start_ND = torch.from_numpy(values[middle : middle + dim].reshape(1, dim))  # the interpreter copies what it has
    spec, rows_A, gradient_AD = OptimizerSpec("sgd"), torch.tensor([row]), torch.ones((1, dim))
    triton_kernels.update_rows(spec, 0.5, {}, start_ND, rows_A, gradient_AD)
    written = middle + row * dim
    np.testing.assert_array_equal(values[written : written + dim], np.full(dim, -0.5, np.float32))
    assert not values[written - 2**32 : written - 2**32 + dim].any()


# ---- stores


@pytest.fixture
def _fused_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use the fused kernel on the processor, too."""
    monkeypatch.setattr(optimizers, "DEVICE_TYPE", DEVICE.type)
    find_fault.cache_clear()
    yield
    find_fault.cache_clear()


@pytest.mark.usefixtures("_fused_here")
@by_kind
def test_store_uses_the_kernel_and_equals_a_local_store(kind: OptimizerKind) -> None:
    tables, optimizer = [TableSpec("customer", 60, 5, 0.3), TableSpec("track", 25, 8, 0.5)], decaying(kind)
    all_rows = {table.name: np.arange(table.rows) for table in tables}
    with closing(DeviceStore(str(DEVICE))) as store, closing(LocalStore()) as local:
        store.create(tables, optimizer, 1), local.create(tables, optimizer, 1)
        assert store.notes == []
        assert all(table.optimizer.fused for table in store._tables.values())
        for seed in range(3):
            for table in tables:
                rows_A = np.arange(seed, table.rows, 2)
                step = {table.name: RowGradient(rows_A, random_rows(len(rows_A), table.dim, seed=seed))}
                store.push(step), local.push(step)
        for name, block_AD in store.pull(all_rows).items():
            np.testing.assert_allclose(block_AD, local.pull(all_rows)[name], rtol=1e-4, atol=1e-5)


# ---- compiled code


@pytest.mark.slow
def test_kernel_compiles_to_exact_operations_and_wide_reads(tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    script = Path(__file__).parents[1] / "support" / "compile_kernels.py"
    targets = ("75:3", "75:64", "80:100", "90:3", "90:1024")  # compute capabilities and dimensions
    command = [sys.executable, str(script), *targets]
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    codes = dict(map(json.loads, output.splitlines()))
    assert len(codes) == len(KINDS) * 2 * len(targets)
    for name, code in codes.items():
        assert "div.full" not in code, name
        assert ".approx" not in code, name
        assert ("ld.global.v4.b32" in code) == (not name.endswith(" 3")), name


# ---- a real GPU


@pytest.mark.gpu
@by_kind
def test_fused_kernel_is_used_on_a_gpu(kind: OptimizerKind) -> None:
    find_fault.cache_clear()
    for dim in (*DIMS, MAX_DIM):
        for options in OPTIONS.values():
            table = TableSpec("track", 10, dim, 0.1)
            with closing(DeviceStore("cuda:0")) as store:
                store.create([table], OptimizerSpec(kind, **options), 1)  # type: ignore[arg-type]
                assert store.notes == []
                assert store._tables["track"].optimizer.fused


@pytest.mark.gpu
@by_kind
def test_steps_on_a_gpu_compile_nothing_again(
    kind: OptimizerKind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    weights_ND = torch.zeros((1000, 48), device="cuda")  # 48 columns: no other test has compiled for them
    optimizer = FusedOptimizer(OptimizerSpec(kind), 1000, 48, weights_ND.device)
    compiled = []
    for rows, lr_factor in ((100, 0.3), (1, 1.0), (16, 10.0), (1000, 0.0)):
        optimizer.lr_factor = lr_factor
        optimizer.update(weights_ND, torch.arange(rows, device="cuda"), torch.ones((rows, 48), device="cuda"))
        compiled.append(len(list(tmp_path.rglob("*.cubin"))))
    assert compiled == [1, 1, 1, 1]
