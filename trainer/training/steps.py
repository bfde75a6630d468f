"""One training step: from a batch to updated tables.

    step = compose(job, model, towers).step
    loss, rows = step.take(batch, lr_factor, state)

``PullPushStep`` is the general one, on any store. ``InPlaceStep`` does the same in two passes over tables in this
process, without copies of rows and arrays of gradients, to the same bits. ``DeviceStep`` takes steps on tables in the
memory of a device, which nothing leaves but the loss. ``composition.py`` chooses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from crossfade.base.arrays import IntArray
from crossfade.kvstore.local import LocalStore
from crossfade.kvstore.store import RowGradient, RowStore
from crossfade.kvstore.torch.device import describe_exhausted_memory, to_device
from crossfade.kvstore.torch.store import DeviceStore
from crossfade.trainer.model.batches import Batch
from crossfade.trainer.model.engines.engine import Engine
from crossfade.trainer.model.engines.torch import TorchEngine
from crossfade.trainer.model.losses import LossSpec
from crossfade.trainer.model.spec import ModelSpec
from crossfade.trainer.model.towers import Towers
from crossfade.trainer.training.state import TrainState


class Step(Protocol):
    """Takes steps."""

    def take(self, batch: Batch, lr_factor: float, state: TrainState) -> tuple[float, Mapping[str, IntArray]]:
        """Compute gradients and update the tables at ``lr_factor`` times the learning rate.

        Returns this worker's part of the mean loss, and the active rows of each table. ``state`` counts the seconds.

        Raises:
            CrossfadeError: the step failed.
        """


class PullPushStep:
    """Pulls active rows, computes their gradients with an engine, and pushes them."""

    def __init__(self, store: RowStore, engine: Engine, towers: Towers) -> None:
        """Connect the parts."""
        self._store, self._engine, self._towers = store, engine, towers

    def take(self, batch: Batch, lr_factor: float, state: TrainState) -> tuple[float, Mapping[str, IntArray]]:
        """Take a step; see ``Step``."""
        active = self._towers.active(batch)
        with state.timed("pull"):
            block = self._store.pull(active)
        with state.timed("gradients"):
            vectors, tape = self._towers.forward(batch, block)
            loss, by_vectors = self._engine.gradients(batch, vectors)
            gradients = self._towers.backward(batch, tape, by_vectors)
        with state.timed("push"):
            self._store.set_lr_factor(lr_factor)
            self._store.push({name: RowGradient(rows_A, gradients.tables[name]) for name, rows_A in active.items()})
            self._towers.update(gradients.dense, lr_factor)
        return loss, active


class InPlaceStep:
    """Updates the rows of tables in this process in place. All of its time counts as that of gradients."""

    def __init__(self, store: LocalStore, model: ModelSpec, loss: LossSpec) -> None:
        # Numba's kernels are loaded only where they are used: other engines do not need them.
        from crossfade.trainer.model.engines.cpu import PerExampleGradients

        self._store, self._model = store, model
        self._gradients = PerExampleGradients(loss, model)

    def take(self, batch: Batch, lr_factor: float, state: TrainState) -> tuple[float, Mapping[str, IntArray]]:
        """Take a step; see ``Step``."""
        loss = 0.0
        with state.timed("gradients"):
            self._store.set_lr_factor(lr_factor)
            if len(batch):
                weight_B = batch.normalized_weights()
                loss = float(self._gradients.update(batch, weight_B, self._store, self._model).sum(dtype="float64"))
        return loss, {self._model.query.name: batch.query.rows_A, self._model.item.name: batch.item.rows_A}


class DeviceStep:
    """Takes steps on a device that holds the tables. All of its time counts as that of gradients."""

    def __init__(self, store: DeviceStore, engine: TorchEngine, model: ModelSpec) -> None:
        """Connect the parts."""
        self._store, self._engine, self._model = store, engine, model

    def take(self, batch: Batch, lr_factor: float, state: TrainState) -> tuple[float, Mapping[str, IntArray]]:
        """Take a step; see ``Step``."""
        active = {self._model.query.name: batch.query.rows_A, self._model.item.name: batch.item.rows_A}
        with state.timed("gradients"), describe_exhausted_memory():
            self._store.set_lr_factor(lr_factor)
            if not len(batch):
                return 0.0, active
            indexes = [to_device(rows_A, self._store.device) for rows_A in active.values()]
            rows = zip(active.items(), indexes, strict=True)
            query_AD, item_AD = (self._store.device_rows(name, rows_A, index_A) for (name, rows_A), index_A in rows)
            loss, *gradients = self._engine.compute(batch, query_AD, item_AD)
            updates = [
                self._store.update_rows(name, rows_A, gradient_AD, index_A)
                for (name, rows_A), gradient_AD, index_A in zip(active.items(), gradients, indexes, strict=True)
            ]
            [value] = self._store.check_divergence(updates, loss)
            return value, active
