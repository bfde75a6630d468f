"""Tables in the memory of a device, such as a GPU; rows that do not fit stay in the memory of the host.

store = DeviceStore("cuda:0")
store.create(tables, OptimizerSpec("rowwise_adagrad"), seed=1)
block_AD = store.device_rows("track", rows_A)                   # a tensor
update = store.update_rows("track", rows_A, gradient_AD)        # of a tensor
store.check_divergence([update])                                # the only time that the step waits for the device

Vocabularies are ordered by popularity, so the popular rows of a table are its first ones, and these are on the device.
A ``LocalStore`` has arrays for all rows: it initializes, loads, and saves tables, and updates the rows that stay on the
host. The beginning of its arrays, which belongs to the rows on the device, takes memory only while tables are created
and while a checkpoint is written.

Values on the device differ from those of ``LocalStore`` in the last bits, as the kernels do. A resumed run therefore
repeats an uninterrupted one bit for bit only if the same rows are on the device: set ``memory_bytes`` for that, since
the free memory of a GPU may differ from run to run.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.errors import CrossfadeError
from crossfade.kvstore.local import LocalStore
from crossfade.kvstore.optimizer_spec import OptimizerSpec
from crossfade.kvstore.optimizers import divergence, name_divergence
from crossfade.kvstore.store import NO_RESETS, RowGradient, SaveResult, TableSpec
from crossfade.kvstore.torch.device import describe_exhausted_memory, open_device, to_device
from crossfade.kvstore.torch.table import DeviceTable, divide, row_bytes

if TYPE_CHECKING:
    import torch
    from torch import Tensor


_MEMORY_FRACTION = 0.8
"""The part of a GPU's free memory that tables may take; the rest is for the arrays of steps."""


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

    def __init__(self, device: str, memory_bytes: int | None = None) -> None:
        """Hold tables on ``device``, as far as they fit into ``memory_bytes``.

        None is 80 % of the memory of a GPU that is free when the tables are created, and no limit on "cpu".

        Raises:
            MissingExtraError: PyTorch is not installed.
            InputError: there is no such device.
        """
        self.device: torch.device = open_device(device)
        self._memory_bytes = memory_bytes
        self._host = LocalStore()
        self._specs: dict[str, TableSpec] = {}
        self._optimizer = OptimizerSpec()
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
        """Create the tables. All rows are in the memory of the host at first; then popular ones move to the device."""
        self._host.create(tables, optimizer, seed, checkpoint, reset_rows)
        self._specs, self._optimizer = {table.name: table for table in tables}, optimizer
        rows = self._divide_rows()
        with describe_exhausted_memory():
            for shard in self._host.shards():
                self._tables[shard.table] = DeviceTable(shard.arrays, rows[shard.table], optimizer, self.device)

    def _divide_rows(self) -> dict[str, int]:
        """Return how many rows of each table to hold on the device."""
        budget = self._memory_bytes
        if budget is None and self.device.type == "cuda":
            import torch

            torch.cuda.empty_cache()  # what earlier tensors have left is not free otherwise
            free_bytes, _ = torch.cuda.mem_get_info(self.device)
            budget = int(_MEMORY_FRACTION * free_bytes)
        if budget is None:
            return {table.name: table.rows for table in self._specs.values()}
        return divide(budget, list(self._specs.values()), self._optimizer.kind)

    @property
    def hot_rows(self) -> dict[str, int]:
        """The number of rows on the device by table; they are its first ones."""
        return {name: table.rows for name, table in self._tables.items()}

    def describe(self) -> list[str]:
        """Return how much memory the created tables take."""
        on_device, on_host = (size / 2**30 for size in self.memory())
        return [f"tables take {on_device:.2f} GiB on {self.device}, {on_host:.2f} on the host"]

    def memory(self) -> tuple[int, int]:
        """Return the bytes of rows and optimizer state on the device and on the host, as they are between saves."""
        device_bytes = host_bytes = 0
        for name, table in self._specs.items():
            size, hot = row_bytes(table, self._optimizer.kind), self._tables[name].rows
            device_bytes += size * hot
            host_bytes += size * (table.rows - hot)
        return device_bytes, host_bytes

    def assign(self, table: str, rows_A: IntArray, values_AD: FloatArray) -> None:
        """Replace the values of rows."""
        self.check({table: rows_A})
        hot = self._tables[table].count(rows_A)
        values = to_device(values_AD[:hot], self.device)
        self._tables[table].weights_ND.index_copy_(0, to_device(rows_A[:hot], self.device), values)
        self._host.assign(table, rows_A[hot:], values_AD[hot:])

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
        return {name: self._pull(name, rows_A) for name, rows_A in rows.items()}

    def _pull(self, name: str, rows_A: IntArray) -> FloatArray:
        table = self._tables[name]
        hot = table.count(rows_A)
        hot_AD: FloatArray = table.weights_ND.index_select(0, to_device(rows_A[:hot], self.device)).cpu().numpy()
        if hot == len(rows_A):
            return hot_AD
        return np.concatenate([hot_AD, self._host.weights(name).take(rows_A[hot:], axis=0)])

    def device_rows(self, table: str, rows_A: IntArray, index_A: Tensor | None = None) -> Tensor:
        """Return rows, int64, sorted and unique, as a tensor (A, D) on the device, a copy.

        ``index_A`` is ``rows_A`` on the device, if it is there already. Those on the host are copied to the device.

        Raises:
            StoreError: a row lies outside its table.
        """
        self.check({table: rows_A})
        hot = self._tables[table].count(rows_A)
        index_A = to_device(rows_A, self.device) if index_A is None else index_A
        hot_AD = self._tables[table].weights_ND.index_select(0, index_A[:hot])
        if hot == len(rows_A):
            return hot_AD
        import torch

        cold_AD = self._host.weights(table).take(rows_A[hot:], axis=0)
        return torch.cat([hot_AD, to_device(cold_AD, self.device)])

    def update_rows(
        self, table: str, rows_A: IntArray, gradient_AD: Tensor, index_A: Tensor | None = None
    ) -> DeviceUpdate:
        """Start to apply ``gradient_AD``, float32 on the device, to rows, int64, sorted and unique.

        Rows on the host are updated before it returns, for which it waits for their gradients. Pass the result to
        ``check_divergence`` by the end of the step. ``index_A`` is as in ``device_rows``.

        Raises:
            StoreError: a row lies outside its table.
            DivergedError: a row on the host has diverged.
        """
        self.check({table: rows_A})
        hot = self._tables[table].count(rows_A)
        cold_AD = gradient_AD[hot:].cpu().numpy() if hot < len(rows_A) else None
        index_A = to_device(rows_A[:hot], self.device) if index_A is None else index_A[:hot]
        update = self._start_update(table, rows_A[:hot], index_A, gradient_AD[:hot])
        if cold_AD is not None:
            self._host.push({table: RowGradient(rows_A[hot:], cold_AD)})
        return update

    def _start_update(self, name: str, rows_A: IntArray, index_A: Tensor, gradient_AD: Tensor) -> DeviceUpdate:
        """Update rows that are on the device."""
        table = self._tables[name]
        with self.stats.timed_update(name, len(rows_A)):
            divergent_A = table.optimizer.update(table.weights_ND, index_A, gradient_AD)
            return DeviceUpdate(name, rows_A, divergent_A, divergent_A.sum())

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
        updates = []
        for name, gradient in gradients.items():
            hot = self._tables[name].count(gradient.rows_A)
            index_A, hot_AD = (to_device(array[:hot], self.device) for array in (gradient.rows_A, gradient.values_AD))
            updates.append(self._start_update(name, gradient.rows_A[:hot], index_A, hot_AD))
            self._host.push({name: RowGradient(gradient.rows_A[hot:], gradient.values_AD[hot:])})
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
        self._specs.clear()
