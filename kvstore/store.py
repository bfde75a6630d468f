"""The seam between training and the tables: pull active rows, push their gradients.

store = LocalStore()
store.create([TableSpec("customer", rows=1_000, dim=64, scale=0.1)], OptimizerSpec("adagrad"), seed=1)
block = store.pull({"customer": rows_A})["customer"]                # float32 (A, D)
store.push({"customer": RowGradient(rows_A, gradient_AD)})          # one synchronous step of all workers
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from kvstore.arrays import FloatArray, IntArray
from kvstore.optimizers import OptimizerSpec

ROW_ID_BYTES = 8
VALUE_BYTES = 4


@dataclass(frozen=True)
class TableSpec:
    """An embedding table: ``rows`` x ``dim`` float32, each row drawn at first with standard deviation ``scale``."""

    name: str
    rows: int
    dim: int
    scale: float

    @property
    def bytes(self) -> int:
        """The size of the weights."""
        return self.rows * self.dim * VALUE_BYTES


@dataclass(frozen=True)
class RowGradient:
    """Gradients of active rows: ``rows_A`` int64, sorted and unique; ``values_AD`` float32."""

    rows_A: IntArray
    values_AD: FloatArray

    def __post_init__(self) -> None:
        """Check that rows and values belong together."""
        assert self.values_AD.ndim == 2
        assert self.rows_A.shape == self.values_AD.shape[:1]


@dataclass
class Traffic:
    """What one worker's steps have moved: rows, bytes of values and row ids, and of dense gradients instead."""

    rows_pulled: int = 0
    rows_pushed: int = 0
    bytes_pulled: int = 0
    bytes_pushed: int = 0
    bytes_pushed_if_dense: int = 0

    def pulled(self, rows: int, dim: int) -> None:
        """Count a pull of ``rows`` rows: their ids go out, their values come back."""
        self.rows_pulled += rows
        self.bytes_pulled += rows * (ROW_ID_BYTES + dim * VALUE_BYTES)

    def pushed(self, rows: int, table: TableSpec) -> None:
        """Count a push of ``rows`` rows of ``table``."""
        self.rows_pushed += rows
        self.bytes_pushed += rows * (ROW_ID_BYTES + table.dim * VALUE_BYTES)
        self.bytes_pushed_if_dense += table.bytes


@dataclass(frozen=True)
class FileDigest:
    """What one server has written of a checkpoint: the name, bytes and CRC-32 of the file that lists its files."""

    name: str
    bytes: int
    crc32: int


@dataclass(frozen=True)
class SaveResult:
    """A checkpoint's tables, written by all servers.

    ``pause_seconds`` is how long the slowest server stood still for its snapshot, ``seconds`` how long writing took,
    ``bytes`` what all of them wrote.
    """

    parts: tuple[FileDigest, ...]
    pause_seconds: float
    seconds: float
    bytes: int


NO_RESETS: Mapping[str, IntArray] = MappingProxyType({})


class RowStore(Protocol):
    """Embedding tables that are pulled and pushed by row.

    ``push`` ends a step: it is called by every worker once a step, with each table, be it with zero rows; the rows'
    gradients are summed over the workers, in an order that does not depend on their speed where there are two or fewer,
    and applied by the lazy optimizer to active rows alone. A ``pull`` after it sees the step of all workers.
    """

    rank: int
    workers: int

    def create(
        self,
        tables: Sequence[TableSpec],
        optimizer: OptimizerSpec,
        seed: int,
        checkpoint: str | None = None,
        reset_rows: Mapping[str, IntArray] = NO_RESETS,
    ) -> None:
        """Make the tables: rows and optimizer state from ``checkpoint``, a URI, as far as it has them.

        The other rows come from the counter-based generator, and so do, with fresh optimizer state, the rows that
        ``afresh`` names of a table (int64, sorted and unique), whatever the checkpoint has there. Called once, by
        every worker.

        Raises:
            CheckpointError: the checkpoint is damaged, or is not one of such tables.
            StoreError: a row of ``afresh`` lies outside its table.
        """

    def save(self, to: str) -> None:
        """Begin to write all tables and optimizer states into the checkpoint folder ``to``, a path or URI.

        Called by rank 0 alone, after its push of a step and before its next pull; what is written is the state after
        that step. It returns as soon as a snapshot is taken: the writing goes on behind training. One at a time.
        """

    def poll_save(self) -> SaveResult | None:
        """How the last ``save`` went, or None while it is still under way. Called by rank 0 alone.

        Raises:
            CheckpointError: it could not be written. The tables are unharmed.
        """

    def pull(self, rows: Mapping[str, IntArray]) -> dict[str, FloatArray]:
        """Copies of the named rows: for each table, rows int64 (A,), sorted and unique, to float32 (A, D).

        Raises:
            StoreError: a row lies outside its table.
        """

    def push(self, gradients: Mapping[str, RowGradient]) -> None:
        """Apply one synchronous step.

        Raises:
            StoreError: a row lies outside its table.
            DivergedError: a gradient is not finite. (Where servers hold the tables, it ends the job there.)
        """

    def set_lr_factor(self, factor: float) -> None:
        """Multiply the optimizer's learning rate by ``factor``, from the next step on, until it is set again.

        Called by every worker, with the same factor, between a push and the next; to set what is set costs nothing. It
        is 1 at first, also where rows come from a checkpoint.
        """

    def all_reduce(self, values_N: FloatArray) -> FloatArray:
        """The sum over all workers of up to ``SUM_LENGTH`` float64 values. Called by every worker; also a barrier."""

    def barrier(self) -> None:
        """Return when every worker has called it."""

    def close(self) -> None:
        """End the connection. Called by every worker, last."""


MAX_ALL_REDUCE_LENGTH = 256
