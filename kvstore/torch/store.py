"""Tables in the memory of a device, such as a GPU.

store = DeviceStore("cuda:0")
store.create(tables, OptimizerSpec("rowwise_adagrad"), seed=1)
block_AD = store.device_rows("track", rows_A)                   # a tensor
update = store.update_rows("track", rows_A, gradient_AD)        # of a tensor
store.check_divergence([update])                                # the only time that the step waits for the device

A ``LocalStore`` initializes, loads, and saves the tables. Its arrays take memory of the host only while tables are
created and while a checkpoint is written. Values on the device differ from those of ``LocalStore`` in the last bits, as
the kernels do.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.errors import CrossfadeError
from crossfade.kvstore.local import LocalStore
from crossfade.kvstore.optimizer_spec import OptimizerKind, OptimizerSpec, state_bytes_per_row
from crossfade.kvstore.optimizers import divergence, name_divergence
from crossfade.kvstore.store import NO_RESETS, RowGradient, SaveResult, TableSpec
from crossfade.kvstore.torch.device import describe_exhausted_memory, open_device, to_device
from crossfade.kvstore.torch.table import DeviceTable

if TYPE_CHECKING:
    import torch
    from torch import Tensor


_MEMORY_FRACTION = 0.8
"""The part of a GPU's free memory that tables may take; the rest is for the arrays of steps."""


def fits_device(name: str, tables: Sequence[TableSpec], kind: OptimizerKind) -> bool:
    """Return whether tables, with their optimizer state, fit into the memory of the GPU ``name`` beside steps.

    Raises:
        MissingExtraError: PyTorch is not installed.
        InputError: there is no such device.
    """
    import torch

    free_bytes, _ = torch.cuda.mem_get_info(open_device(name))
    state_bytes = sum(table.rows * state_bytes_per_row(kind, table.dim) for table in tables)
    return bool(sum(table.bytes for table in tables) + state_bytes <= _MEMORY_FRACTION * free_bytes)


@dataclass(frozen=True)
class DeviceUpdate:
    """An update of rows on the device, which may still be running: ``divergent_A`` are those that have diverged.

    ``count`` is their number, a tensor without dimensions.
    """

    table: str
    rows_A: IntArray
    divergent_A: Tensor
    count: Tensor


class DeviceStore:
    """The row store of a single process with a GPU. Methods are as in ``RowStore``, and there are some for tensors.

    The seconds that ``stats`` counts for updates on a GPU are those that starting them takes.
    """

    rank = 0
    workers = 1
    first_step = 0

    def __init__(self, device: str) -> None:
        """Hold tables on ``device``.

        Raises:
            MissingExtraError: PyTorch is not installed.
            InputError: there is no such device.
        """
        self.device: torch.device = open_device(device)
        self._host = LocalStore()
        self._tables: dict[str, DeviceTable] = {}
        self._download_seconds = 0.0
        self.stats = self._host.stats

    def create(
        self,
        tables: Sequence[TableSpec],
        optimizer: OptimizerSpec,
        seed: int,
        checkpoint: str | None = None,
        reset_rows: Mapping[str, IntArray] = NO_RESETS,
    ) -> None:
        """Create the tables, in the memory of the host at first."""
        self._host.create(tables, optimizer, seed, checkpoint, reset_rows)
        with describe_exhausted_memory():
            for shard in self._host.shards():
                self._tables[shard.table] = DeviceTable(shard.arrays, optimizer, self.device)

    def describe(self) -> list[str]:
        """Return how much memory the created tables take."""
        return [f"tables take {sum(table.bytes for table in self._tables.values()) / 2**30:.2f} GiB on {self.device}"]

    def assign(self, table: str, rows_A: IntArray, values_AD: FloatArray) -> None:
        """Replace the values of rows."""
        self.check({table: rows_A})
        index_A, values = (to_device(array, self.device) for array in (rows_A, values_AD))
        self._tables[table].weights_ND.index_copy_(0, index_A, values)

    def save(self, folder: str) -> None:
        """Start writing all tables and their state into the checkpoint folder ``folder``.

        Rows on the device are copied to the host first, where they take memory until the save ends.

        Raises:
            CheckpointError: the previous save is still in progress.
        """
        self._host.check_not_saving(folder)  # it still reads the arrays that are written here
        start = time.monotonic()
        for table in self._tables.values():
            table.download()
        self._download_seconds = time.monotonic() - start
        self._host.save(folder)

    def poll_save(self) -> SaveResult | None:
        """Return the result of the last ``save``, or None while it is in progress."""
        try:
            result = self._host.poll_save()
        except CrossfadeError:
            self._release()
            raise
        if result is None:
            return None
        self._release()
        pause_seconds, seconds = result.pause_seconds + self._download_seconds, result.seconds + self._download_seconds
        return replace(result, pause_seconds=pause_seconds, seconds=seconds)

    def _release(self) -> None:
        for table in self._tables.values():
            table.release()

    def pull(self, rows: Mapping[str, IntArray]) -> dict[str, FloatArray]:
        """Copy the requested rows into the memory of the host."""
        self.check(rows)
        return {name: self._rows(name, rows_A).cpu().numpy() for name, rows_A in rows.items()}

    def device_rows(self, table: str, rows_A: IntArray, index_A: Tensor | None = None) -> Tensor:
        """Return rows, int64, sorted and unique, as a tensor (A, D) on the device, a copy.

        ``index_A`` is ``rows_A`` on the device, if it is there already.

        Raises:
            StoreError: a row lies outside its table.
        """
        self.check({table: rows_A})
        return self._rows(table, rows_A, index_A)

    def _rows(self, table: str, rows_A: IntArray, index_A: Tensor | None = None) -> Tensor:
        index_A = to_device(rows_A, self.device) if index_A is None else index_A
        return self._tables[table].weights_ND.index_select(0, index_A)

    def update_rows(
        self, table: str, rows_A: IntArray, gradient_AD: Tensor, index_A: Tensor | None = None
    ) -> DeviceUpdate:
        """Start to apply ``gradient_AD``, float32 on the device, to rows, int64, sorted and unique.

        Pass the result to ``check_divergence`` by the end of the step. ``index_A`` is as in ``device_rows``.

        Raises:
            StoreError: a row lies outside its table.
        """
        self.check({table: rows_A})
        index_A = to_device(rows_A, self.device) if index_A is None else index_A
        with self.stats.timed_update(table, len(rows_A)):
            on_device = self._tables[table]
            divergent_A = on_device.optimizer.update(on_device.weights_ND, index_A, gradient_AD)
            return DeviceUpdate(table, rows_A, divergent_A, divergent_A.sum())

    def check_divergence(self, updates: Sequence[DeviceUpdate], *others: Tensor) -> list[float]:
        """Check that all rows of ``updates`` are finite; wait for the device, once.

        Returns the values of ``others``, scalars that are fetched with the counts, such as the loss of the step.

        Raises:
            DivergedError: some have diverged; it names the table and the first of these rows.
        """
        import torch

        scalars = [scalar.double() for scalar in (*others, *(update.count for update in updates))]
        values: list[float] = torch.stack(scalars).tolist() if scalars else []
        for update, count in zip(updates, map(int, values[len(others) :]), strict=True):
            if count:
                row = int(update.rows_A[update.divergent_A.cpu().numpy().argmax()])
                with name_divergence(update.table):
                    raise divergence(count, len(update.rows_A), row)
        return values[: len(others)]

    def push(self, gradients: Mapping[str, RowGradient]) -> None:
        """Apply one step."""
        self.check({name: gradient.rows_A for name, gradient in gradients.items()})
        updates = [
            self.update_rows(name, gradient.rows_A, to_device(gradient.values_AD, self.device))
            for name, gradient in gradients.items()
        ]
        self.check_divergence(updates)

    def check(self, rows: Mapping[str, IntArray]) -> None:
        """Check that rows, int64 and sorted, lie inside their tables.

        Raises:
            StoreError: a row does not.
        """
        self._host.check(rows)

    def set_lr_factor(self, factor: float) -> None:
        """Multiply the learning rate by ``factor`` from the next step on."""
        self._host.set_lr_factor(factor)
        for table in self._tables.values():
            table.optimizer.lr_factor = factor

    def all_reduce(self, values_N: FloatArray) -> FloatArray:
        """Return the values in float64: there is one worker."""
        return self._host.all_reduce(values_N)

    def barrier(self) -> None:
        """Return at once: there is one worker."""

    def close(self) -> None:
        """Release the tables, and abandon a save that is in progress."""
        self._host.close()
        self._tables.clear()
