"""The interface between training and the tables: pull active rows, push their gradients.

store = LocalStore()
store.create([TableSpec("customer", rows=1_000, dim=64, init_std=0.1)], OptimizerSpec("adagrad"), seed=1)
block_AD = store.pull({"customer": rows_A})["customer"]             # float32 (A, D)
store.push({"customer": RowGradient(rows_A, gradient_AD)})          # one synchronous step of all workers
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.errors import CheckpointError, StoreError
from crossfade.kvstore.optimizer_spec import OptimizerSpec

ROW_ID_BYTES = 8
VALUE_BYTES = 4
MAX_ALL_REDUCE_LENGTH = 256


@dataclass(frozen=True)
class TableSpec:
    """An embedding table of ``rows`` x ``dim`` float32, initialized with standard deviation ``init_std``."""

    name: str
    rows: int
    dim: int
    init_std: float

    @property
    def bytes(self) -> int:
        """The size of the weights in bytes."""
        return self.rows * self.dim * VALUE_BYTES


@dataclass(frozen=True)
class RowGradient:
    """Gradients of active rows: ``rows_A`` int64, sorted and unique; ``values_AD`` float32."""

    rows_A: IntArray
    values_AD: FloatArray

    def __post_init__(self) -> None:
        assert self.values_AD.ndim == 2
        assert self.rows_A.shape == self.values_AD.shape[:1]


@dataclass
class Traffic:
    """Counters of what one worker's steps moved: rows, and bytes of values and row IDs.

    ``dense_equivalent_bytes_pushed`` is what pushing gradients of complete tables would have taken.
    """

    rows_pulled: int = 0
    rows_pushed: int = 0
    bytes_pulled: int = 0
    bytes_pushed: int = 0
    dense_equivalent_bytes_pushed: int = 0

    def count_pull(self, rows: int, dim: int) -> None:
        """Count a pull of ``rows`` rows: the request has their IDs, the answer their values."""
        self.rows_pulled += rows
        self.bytes_pulled += rows * (ROW_ID_BYTES + dim * VALUE_BYTES)

    def count_push(self, rows: int, table: TableSpec) -> None:
        """Count a push of ``rows`` rows of ``table``."""
        self.rows_pushed += rows
        self.bytes_pushed += rows * (ROW_ID_BYTES + table.dim * VALUE_BYTES)
        self.dense_equivalent_bytes_pushed += table.bytes


@dataclass(frozen=True)
class FileDigest:
    """The name, size in bytes and CRC-32 of a file of a checkpoint, as its manifest lists it."""

    name: str
    bytes: int
    crc32: int


@dataclass(frozen=True)
class SaveResult:
    """The tables of a checkpoint, written by all processes that hold them: servers, workers, or one that trains alone.

    ``parts`` has the list of files of each. ``pause_seconds`` is how long updates waited in the slowest, ``seconds``
    how long writing took, ``bytes`` what all wrote.
    """

    parts: tuple[FileDigest, ...]
    pause_seconds: float
    seconds: float
    bytes: int

    @staticmethod
    def of(statuses: Sequence[Mapping[str, Any]], role: str) -> SaveResult | None:
        """Join the statuses of a save in each of the ``role`` processes; None while one is in progress.

        Raises:
            CheckpointError: it failed in one of them.
        """
        if any(status["state"] == "running" for status in statuses):
            return None
        for number, status in enumerate(statuses):
            if status["state"] != "saved":
                raise CheckpointError(f"{role}-{number}: {status.get('message', 'has no save in progress')}")
        return SaveResult(
            tuple(FileDigest(**status["part"]) for status in statuses),
            pause_seconds=max(status["pause_seconds"] for status in statuses),
            seconds=max(status["seconds"] for status in statuses),
            bytes=sum(status["bytes"] for status in statuses),
        )


NO_RESETS: Mapping[str, IntArray] = MappingProxyType({})


def check_rows(table: TableSpec, rows_A: IntArray) -> None:
    """Check that sorted rows lie inside ``table``.

    Raises:
        StoreError: the first or the last of them does not.
    """
    if len(rows_A) and (rows_A[0] < 0 or rows_A[-1] >= table.rows):
        raise StoreError(
            f"table '{table.name}': rows {rows_A[0]} to {rows_A[-1]} were requested, but it has rows 0 to "
            f"{table.rows - 1}; check that the data and the vocabulary belong to the same dataset"
        )


class RowStore(Protocol):
    """Embedding tables that are pulled and pushed by row.

    ``push`` ends a step: every worker calls it once a step, with each table, even one without rows. Gradients are
    summed over the workers, in an order that does not depend on their speed for up to two workers, and the lazy
    optimizer applies them to active rows only. A later ``pull`` returns rows after that step of all workers.
    """

    rank: int
    workers: int
    first_step: int
    """Steps taken before the tables are created, 0 by default: servers name steps in errors."""

    def create(
        self,
        tables: Sequence[TableSpec],
        optimizer: OptimizerSpec,
        seed: int,
        checkpoint: str | None = None,
        reset_rows: Mapping[str, IntArray] = NO_RESETS,
    ) -> None:
        """Create the tables, with rows and optimizer state from ``checkpoint``, a URI, where present.

        Other rows are initialized from the counter-based generator. So are the rows of ``reset_rows`` (by table, int64,
        sorted and unique), with zero optimizer state, even if the checkpoint has them. Every worker calls it once.

        Raises:
            CheckpointError: the checkpoint is corrupt, or incompatible with the tables.
            StoreError: a row of ``reset_rows`` lies outside its table.
        """

    def assign(self, table: str, rows_A: IntArray, values_AD: FloatArray) -> None:
        """Replace the values of rows, int64, sorted and unique, by ``values_AD``, float32. Their state is unchanged.

        Every worker calls it, before the first step; only the rows of rank 0 count.

        Raises:
            StoreError: a row lies outside its table.
        """

    def save(self, folder: str) -> None:
        """Start writing all tables and optimizer state into the checkpoint folder ``folder``, a path or URI.

        Only rank 0 calls it, after its push of a step and before its next pull: the state after that step is written.
        It returns once a snapshot exists; writing continues in the background. One save at a time.
        """

    def poll_save(self) -> SaveResult | None:
        """Return the result of the last ``save``, or None while it is in progress. Only rank 0 calls it.

        Raises:
            CheckpointError: it failed. The tables are unaffected.
        """

    def pull(self, rows: Mapping[str, IntArray]) -> dict[str, FloatArray]:
        """Copy rows: for each table, from row numbers int64 (A,), sorted and unique, to values float32 (A, D).

        Raises:
            StoreError: a row lies outside its table.
        """

    def push(self, gradients: Mapping[str, RowGradient]) -> None:
        """Apply one synchronous step.

        Raises:
            StoreError: a row lies outside its table.
            DivergedError: a gradient is not finite. (A server that finds one ends the job instead.)
        """

    def set_lr_factor(self, factor: float) -> None:
        """Multiply the optimizer's learning rate by ``factor`` from the next step on, until it is set again.

        Every worker calls it, with the same factor, between two pushes. It costs nothing if the factor is unchanged.
        The initial factor is 1, also where rows come from a checkpoint.
        """

    def all_reduce(self, values_N: FloatArray) -> FloatArray:
        """Sum up to ``MAX_ALL_REDUCE_LENGTH`` float64 values over the workers.

        Every worker calls it; it is also a barrier.
        """

    def barrier(self) -> None:
        """Return when every worker has called it."""

    def close(self) -> None:
        """End the connection. Every worker calls it last."""
