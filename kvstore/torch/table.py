"""The popular rows of a table and their optimizer state, in the memory of a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crossfade.base.arrays import IntArray
from crossfade.kvstore.checkpoint.files import WEIGHTS
from crossfade.kvstore.memory import release_pages
from crossfade.kvstore.optimizer_spec import OptimizerKind, OptimizerSpec, state_bytes_per_row
from crossfade.kvstore.store import VALUE_BYTES, TableSpec
from crossfade.kvstore.torch.fused import make_device_optimizer
from crossfade.kvstore.torch.transfer import copy_table

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def row_bytes(table: TableSpec, kind: OptimizerKind) -> int:
    """Return the bytes of a row of ``table`` with its optimizer state."""
    return table.dim * VALUE_BYTES + state_bytes_per_row(kind, table.dim)


def divide(budget_bytes: int, tables: Sequence[TableSpec], kind: OptimizerKind) -> dict[str, int]:
    """Return how many rows of each table fit into ``budget_bytes``, with their optimizer state.

    Each table gets the same number of bytes, and what a small table leaves over goes to the larger ones. A step reads
    about as many rows of one table as of another, and popularity falls roughly as 1/rank, so a byte more then saves as
    many reads from the host in any table. The same share of each table would leave out rows of a small catalog that are
    far more popular than most customers.
    """
    rows: dict[str, int] = {}
    by_size = sorted(tables, key=lambda table: table.rows * row_bytes(table, kind))
    for number, table in enumerate(by_size):
        share = budget_bytes // (len(by_size) - number)
        rows[table.name] = min(table.rows, share // row_bytes(table, kind))
        budget_bytes -= rows[table.name] * row_bytes(table, kind)
    return rows


class DeviceTable:
    """The first ``rows`` rows of a table on a device. The memory of the host's arrays for them is released."""

    def __init__(
        self, arrays: Mapping[str, NDArray[Any]], rows: int, spec: OptimizerSpec, device: torch.device
    ) -> None:
        """Copy the first ``rows`` rows of ``arrays``, weights and state, to ``device``, and release their memory."""
        import torch

        self.rows = rows
        dim = arrays[WEIGHTS].shape[1]
        self.weights_ND: Tensor = torch.empty((rows, dim), dtype=torch.float32, device=device)
        self.optimizer = make_device_optimizer(spec, rows, dim, device)
        self._tensors = {WEIGHTS: self.weights_ND, **self.optimizer.state}
        self._arrays = {name: arrays[name][:rows] for name in self._tensors}
        for name, tensor in self._tensors.items():
            copy_table(torch.from_numpy(self._arrays[name]), tensor)
        self.release()

    def count(self, rows_A: IntArray) -> int:
        """Return how many of ``rows_A``, sorted, are on the device: those at the beginning."""
        return int(np.searchsorted(rows_A, self.rows))

    def download(self) -> None:
        """Copy the rows to the beginning of the host's arrays."""
        import torch

        for name, tensor in self._tensors.items():
            copy_table(tensor, torch.from_numpy(self._arrays[name]))

    def release(self) -> None:
        """Release the memory of the beginning of the host's arrays, which then reads as zeros."""
        for array in self._arrays.values():
            release_pages(array)
