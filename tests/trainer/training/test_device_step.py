"""Steps on tables in device memory equal steps on tables of the host, and the job's keys choose between them."""

from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from engine_cases import CASES, ITEM_TABLE, QUERY_TABLE, Case
from needs import TORCH
from resolved_jobs import make_resolved

from crossfade.base.arrays import FloatArray
from crossfade.base.errors import DivergedError, InputError
from crossfade.kvstore.local import LocalStore
from crossfade.kvstore.optimizer_spec import OptimizerSpec
from crossfade.kvstore.torch.store import DeviceStore
from crossfade.trainer.model.engines.cpu import CpuEngine
from crossfade.trainer.model.engines.torch import TorchEngine
from crossfade.trainer.model.spec import HistorySpec, ModelSpec
from crossfade.trainer.model.towers import Towers
from crossfade.trainer.training.composition import Composition, compose
from crossfade.trainer.training.state import TrainState
from crossfade.trainer.training.steps import DeviceStep, PullPushStep, Step

pytest.importorskip("torch", reason=TORCH)

OPTIMIZER = OptimizerSpec("rowwise_adagrad", learning_rate=0.2, weight_decay=0.01, max_norm=1.0)


def create(store: LocalStore | DeviceStore, case: Case) -> None:
    store.create(case.model.tables, OPTIMIZER, seed=1)
    for table, values_ND in zip(case.model.tables, (QUERY_TABLE, ITEM_TABLE), strict=True):
        store.assign(table.name, np.arange(table.rows), values_ND)


def take_steps(step: Step, store: LocalStore | DeviceStore, case: Case) -> tuple[list[float], list[FloatArray]]:
    """Take some steps; return the losses, and the tables."""
    losses = [step.take(case.batch, factor, TrainState())[0] for factor in (1.0, 0.5, 0.25)]
    every = {table.name: np.arange(table.rows) for table in case.model.tables}
    return losses, list(store.pull(every).values())


def on_device(store: DeviceStore, case: Case) -> DeviceStep:
    return DeviceStep(store, TorchEngine(case.model, case.loss_spec, case.spec), case.model)


@pytest.mark.parametrize("name", [name for name in CASES if "hard" not in name and "tied" not in name])
def test_steps_on_the_device_equal_steps_on_the_host(name: str) -> None:
    case = CASES[name]
    with closing(LocalStore()) as local, closing(DeviceStore("cpu")) as store:
        create(local, case)
        create(store, case)
        general = PullPushStep(local, CpuEngine(case.model, case.loss_spec, case.spec), Towers(case.model, ()))
        expected_losses, expected = take_steps(general, local, case)
        losses, tables = take_steps(on_device(store, case), store, case)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5, atol=1e-6)
    for found_ND, expected_ND, before_ND in zip(tables, expected, (QUERY_TABLE, ITEM_TABLE), strict=True):
        assert (np.abs(expected_ND - before_ND) > 0.01).any()
        np.testing.assert_allclose(found_ND, expected_ND, rtol=1e-4, atol=1e-5)


def test_empty_batch_changes_nothing_on_the_device() -> None:
    case = CASES["softmax-cosine-all"].part(slice(0, 0))
    with closing(DeviceStore("cpu")) as store:
        create(store, case)
        losses, tables = take_steps(on_device(store, case), store, case)
    assert losses == [0.0, 0.0, 0.0]
    assert [table.tobytes() for table in tables] == [QUERY_TABLE.tobytes(), ITEM_TABLE.tobytes()]


def test_divergence_on_the_device_names_table_and_row() -> None:
    case = CASES["bpr-dot-shared-positive"]
    with closing(DeviceStore("cpu")) as store:
        create(store, case)
        store.assign("customer", np.array([5]), np.full((1, QUERY_TABLE.shape[1]), np.nan, np.float32))
        with pytest.raises(DivergedError, match="table 'customer', row 5: "):
            on_device(store, case).take(case.batch, 1.0, TrainState())


class ExhaustedGradients:
    """Raises what PyTorch does where the memory of a GPU is exhausted."""

    def compute(self, *arguments: Any, **options: Any) -> Any:
        import torch

        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation")


def test_exhausted_memory_of_the_device_is_an_error_with_what_to_change() -> None:
    case = CASES["softmax-cosine-all"]
    message = "exhausted: CUDA out of memory. Tried to allocate 2.00 GiB; lower train.batch"
    engine = TorchEngine(case.model, case.loss_spec, case.spec)
    engine._gradients = ExhaustedGradients()  # type: ignore[assignment]
    with closing(DeviceStore("cpu")) as store:
        create(store, case)
        with pytest.raises(InputError, match=message):
            DeviceStep(store, engine, case.model).take(case.batch, 1.0, TrainState())
    with pytest.raises(InputError, match=message):
        engine.gradients(case.batch, {"customer": QUERY_TABLE, "track": ITEM_TABLE})


VALUES = {"name": "steps", "data": {"path": "nowhere"}, "model": {"dim": 3}}


def composed(train: dict[str, Any], model: ModelSpec = CASES["softmax-cosine-all"].model) -> Composition:
    return compose(make_resolved({**VALUES, "train": train}), model, Towers(model, ()))


@pytest.mark.parametrize(
    ("train", "store_type"),
    [
        ({}, LocalStore),
        ({"engine": "torch", "device": "cpu"}, LocalStore),
        ({"engine": "torch", "device": "cpu", "tables": "device"}, DeviceStore),
        ({"engine": "torch", "device": "cpu", "tables": "host"}, LocalStore),
    ],
)
def test_tables_are_where_the_job_requests(train: dict[str, Any], store_type: type) -> None:
    composition = composed(train)
    with closing(composition.store):
        assert type(composition.store) is store_type


@pytest.mark.parametrize("has_history", [False, True])
def test_steps_stay_on_the_device_unless_vectors_are_sums(has_history: bool) -> None:
    model = CASES["softmax-cosine-all"].model
    if has_history:
        model = replace(model, history=HistorySpec(model.item, 2, None))
    composition = composed({"engine": "torch", "device": "cpu", "tables": "device"}, model)
    with closing(composition.store):
        assert isinstance(composition.step, PullPushStep if has_history else DeviceStep)
