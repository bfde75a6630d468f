"""A table on a GPU gets the fused kernel only where its results are those of PyTorch's operations.

No test needs Triton: other updates stand for the kernel.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import product
from typing import Any

import numpy as np
import pytest
from needs import TORCH

from crossfade.kvstore.optimizer_spec import KINDS, OptimizerKind, OptimizerSpec
from crossfade.kvstore.store import TableSpec
from crossfade.kvstore.torch import optimizers
from crossfade.kvstore.torch.optimizers import DeviceOptimizer, FusedOptimizer, find_fault, make_device_optimizer
from crossfade.kvstore.torch.store import DeviceStore

torch = pytest.importorskip("torch", reason=TORCH)

CPU = torch.device("cpu")
PLAIN_UPDATE = DeviceOptimizer.update
TABLES = [TableSpec("customer", 60, 5, 0.3), TableSpec("track", 25, 8, 0.5), TableSpec("wide", 3, 1100, 0.1)]

Update = Callable[[Any, Any, Any, Any], Any]


@pytest.fixture(autouse=True)
def _cpu_as_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Treat the processor as a GPU for which Triton is installed."""
    monkeypatch.setattr(optimizers, "DEVICE_TYPE", "cpu")
    monkeypatch.setattr(optimizers, "find_spec", lambda _: object())
    find_fault.cache_clear()
    yield
    find_fault.cache_clear()


def with_kernel(monkeypatch: pytest.MonkeyPatch, update: Update) -> None:
    """Let ``update`` stand for the fused kernel."""
    monkeypatch.setattr(FusedOptimizer, "update", update)


def notes_of_store() -> list[str]:
    with closing(DeviceStore("cpu")) as store:
        store.create(TABLES, OptimizerSpec("adagrad"), seed=1)
        return store.notes


# ---- kernels that are right


@pytest.mark.parametrize("kind", KINDS)
def test_kernel_with_equal_results_is_used(monkeypatch: pytest.MonkeyPatch, kind: OptimizerKind) -> None:
    with_kernel(monkeypatch, PLAIN_UPDATE)
    for options in ({}, {"weight_decay": 0.1}, {"max_norm": 2.0}):
        optimizer = make_device_optimizer(OptimizerSpec(kind, **options), 10, 64, CPU)
        assert (optimizer.fused, optimizer.fallback_reason) == (True, None)


def test_last_bits_may_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    def update(self: Any, weights_ND: Any, rows_A: Any, gradient_AD: Any) -> Any:
        divergent_A = PLAIN_UPDATE(self, weights_ND, rows_A, gradient_AD)
        weights_ND.mul_(1 + 1e-6)
        return divergent_A

    with_kernel(monkeypatch, update)
    for kind in KINDS:
        for dim in (1, 64, 1024):
            assert find_fault(kind, True, True, dim, CPU) is None


def test_check_runs_once_for_tables_that_need_the_same_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def update(self: Any, weights_ND: Any, rows_A: Any, gradient_AD: Any) -> Any:
        calls.append(gradient_AD.shape[1])
        return PLAIN_UPDATE(self, weights_ND, rows_A, gradient_AD)

    with_kernel(monkeypatch, update)
    for dim, rate in ((8, 0.1), (8, 0.2), (16, 0.1), (8, 0.1)):
        assert make_device_optimizer(OptimizerSpec("adam", learning_rate=rate), 10, dim, CPU).fused
    assert len(calls) == 2 * calls.count(8) == 2 * calls.count(16)


# ---- kernels that are wrong


def _wrong_rate(self: Any, weights_ND: Any, rows_A: Any, gradient_AD: Any) -> Any:
    self.lr_factor *= 1.01
    return PLAIN_UPDATE(self, weights_ND, rows_A, gradient_AD)


def _first_row_left_out(self: Any, weights_ND: Any, rows_A: Any, gradient_AD: Any) -> Any:
    weight_D = weights_ND[rows_A[0]].clone()
    divergent_A = PLAIN_UPDATE(self, weights_ND, rows_A, gradient_AD)
    weights_ND[rows_A[0]] = weight_D
    return divergent_A


def _last_column_left_out(self: Any, weights_ND: Any, rows_A: Any, gradient_AD: Any) -> Any:
    weight_N = weights_ND[:, -1].clone()
    divergent_A = PLAIN_UPDATE(self, weights_ND, rows_A, gradient_AD)
    weights_ND[:, -1] = weight_N
    return divergent_A


def _other_row_changed(self: Any, weights_ND: Any, rows_A: Any, gradient_AD: Any) -> Any:
    divergent_A = PLAIN_UPDATE(self, weights_ND, rows_A, gradient_AD)
    is_other_N = torch.ones(len(weights_ND), dtype=torch.bool)
    is_other_N[rows_A] = False
    weights_ND[is_other_N] *= 1.001
    return divergent_A


def _decay_left_out(self: Any, weights_ND: Any, rows_A: Any, gradient_AD: Any) -> Any:
    self._spec = OptimizerSpec(**{**vars(self._spec), "weight_decay": 0.0})
    return PLAIN_UPDATE(self, weights_ND, rows_A, gradient_AD)


def _clip_left_out(self: Any, weights_ND: Any, rows_A: Any, gradient_AD: Any) -> Any:
    self._spec = OptimizerSpec(**{**vars(self._spec), "max_norm": None})
    return PLAIN_UPDATE(self, weights_ND, rows_A, gradient_AD)


def _nan_not_found(self: Any, weights_ND: Any, rows_A: Any, gradient_AD: Any) -> Any:
    return PLAIN_UPDATE(self, weights_ND, rows_A, gradient_AD) & ~gradient_AD.isnan().any(1)


def _state_not_written(self: Any, weights_ND: Any, rows_A: Any, gradient_AD: Any) -> Any:
    divergent_A = PLAIN_UPDATE(self, weights_ND, rows_A, gradient_AD)
    for values in self.state.values():
        values.zero_()
    return divergent_A


WRONG = [
    _wrong_rate,
    _first_row_left_out,
    _last_column_left_out,
    _other_row_changed,
    _decay_left_out,
    _clip_left_out,
    _nan_not_found,
]


@pytest.mark.parametrize("dim", [1, 64, 1024])
@pytest.mark.parametrize(
    ("update", "kind"),
    [*product(WRONG, KINDS), *product([_state_not_written], ["adagrad", "rowwise_adagrad", "adam"])],
)
def test_wrong_kernel_is_not_used(
    monkeypatch: pytest.MonkeyPatch, update: Update, kind: OptimizerKind, dim: int
) -> None:
    with_kernel(monkeypatch, update)
    optimizer = make_device_optimizer(OptimizerSpec(kind, weight_decay=0.1, max_norm=1.0), 10, dim, CPU)
    assert not optimizer.fused
    assert (optimizer.fallback_reason or "").endswith("PyTorch's operations")


# ---- notes of the store


def test_tables_on_the_processor_have_no_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers, "DEVICE_TYPE", "cuda")
    assert notes_of_store() == []
    optimizer = make_device_optimizer(OptimizerSpec("sgd"), 10, 4, CPU)
    assert (optimizer.fused, optimizer.fallback_reason) == (False, None)


def test_note_names_tables_with_too_many_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    with_kernel(monkeypatch, PLAIN_UPDATE)
    assert notes_of_store() == [
        "rows of 'wide' on cpu are updated by separate operations, which take longer than the fused kernel: "
        "it is for up to 1,024 columns, not 1,100"
    ]


def test_note_says_that_triton_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers, "find_spec", lambda _: None)
    notes = notes_of_store()
    assert notes[0].startswith("rows of 'customer', 'track' on cpu are updated by separate operations")
    assert notes[0].endswith(": Triton is not installed")


def test_store_whose_kernel_cannot_be_compiled_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def update(*_: Any) -> Any:
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC environment variable. " + "x" * 1000)

    with_kernel(monkeypatch, update)
    with closing(DeviceStore("cpu")) as store:
        store.create(TABLES[:1], OptimizerSpec("adagrad"), seed=1)
        [note] = store.notes
        assert "RuntimeError: Failed to find C compiler. Please specify via CC" in note
        assert len(note) < 500
        rows_A = np.array([2, 7])
        before_AD = store.device_rows("customer", rows_A)
        store.check_divergence([store.update_rows("customer", rows_A, torch.ones((2, 5)))])
        assert (store.device_rows("customer", rows_A) != before_AD).all()
