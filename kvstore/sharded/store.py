"""Tables whose rows are divided among the ranks that train: a ``RowStore``.

    store = ShardedStore(Ranks.join(rendezvous, rank, num_ranks, address, timeout_seconds))

Row r of a table is on rank r mod W, with its optimizer state. A pull sends row numbers to their owners, which send
rows back; a push sends gradients to the owners, which add them up as a tree over ranks and update their shards. Each is
an all-to-all of active rows, of all tables of the same width together. A rank reads its own rows from its shard. Rows
travel as float32, so every rank sees every bit.

Ranks act in rounds: in each, every rank announces what it wants to do (``_Operation``). A round that has a command of
rank 0 executes it on all ranks; one that has pulls serves them, while ranks that want something else wait; in any other
round all want the same. So ranks may pull as often as they like between two steps, as they do to evaluate, and rank 0
may save: no table changes before all ranks push.

Shapes: T tables, W ranks, A rows of a request, K row positions of a message, R rows of a message, D columns.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.errors import CheckpointError, StoreError
from crossfade.kvstore.checkpoint.format import shard_rows
from crossfade.kvstore.local import LocalStore
from crossfade.kvstore.optimizer_spec import OptimizerSpec
from crossfade.kvstore.optimizers import check_convergence
from crossfade.kvstore.shard_grouping import group_by_shard
from crossfade.kvstore.sharded.kernels import (
    OwnGradients,
    SentGradients,
    apply_gradients,
    gather_rows,
    move_rows,
    replace_rows,
    scatter_rows,
)
from crossfade.kvstore.sharded.ranks import Ranks
from crossfade.kvstore.store import (
    MAX_ALL_REDUCE_LENGTH,
    NO_RESETS,
    VALUE_BYTES,
    RowGradient,
    SaveResult,
    TableSpec,
    check_rows,
)

POSITION_BYTES = 4
MAX_SHARD_ROWS = 1 << 32
"""Positions in a shard are sent as unsigned numbers of 32 bits."""
NO_POSITIONS = np.empty(0, np.uint32)
_STATUS_BYTES = 8192
_MAX_MESSAGE_LENGTH = 600
_NONE: IntArray = np.empty(0, np.int64)


class _Operation(IntEnum):
    """What a rank wants a round to do."""

    COMMAND = 0
    PULL = 1
    PUSH = 2
    ASSIGN = 3
    ALL_REDUCE = 4
    BARRIER = 5


@dataclass(frozen=True)
class _Request:
    """Rows of each table, grouped by the rank that has them.

    For table t and rank w, ``positions[t][starts[t][w] : starts[t][w + 1]]`` are the positions of rows in that rank's
    shard, and the same slice of ``order[t]`` has the places of these rows in ``rows[t]``.
    """

    rows: tuple[IntArray, ...]
    order: tuple[IntArray, ...]
    positions: tuple[IntArray, ...]
    starts: tuple[IntArray, ...]

    @staticmethod
    def of(rows: Sequence[IntArray], num_ranks: int) -> _Request:
        """Group ``rows`` of each table, int64, sorted and unique."""
        groups = [group_by_shard(rows_A, num_ranks) for rows_A in rows]
        order, positions, starts = zip(*groups, strict=True) if groups else ((), (), ())
        return _Request(tuple(rows), order, positions, starts)

    def counts(self) -> IntArray:
        """Return how many rows are requested from each rank: (W, T)."""
        return np.stack([np.diff(starts_W1) for starts_W1 in self.starts], axis=1)

    def slice_of(self, table: int, rank: int) -> slice:
        """Return where the rows of a table on a rank are in the arrays of that table."""
        return slice(*self.starts[table][rank : rank + 2])


class _Announcement(NamedTuple):
    """What a rank sends to each other one at the start of a round, before how many rows of each table it has for it."""

    operation: _Operation
    command_bytes: int = 0
    """The length of rank 0's command."""


@dataclass(frozen=True)
class _Round:
    """What the ranks announced; ``counts_WT`` are the rows that each has for this one."""

    operations_W: IntArray
    command_bytes_W: IntArray
    counts_WT: IntArray


@dataclass(frozen=True)
class _Width:
    """The tables of one width, whose rows travel together."""

    dim: int
    tables: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Return the bytes of a row."""
        return self.dim * VALUE_BYTES


class ShardedStore:
    """The row store of one rank. Methods are as in ``RowStore``."""

    def __init__(self, ranks: Ranks) -> None:
        """Hold a shard of each table, and exchange rows with the other ``ranks``."""
        self.rank, self.workers = ranks.rank, ranks.num_ranks
        self.first_step = 0
        self._ranks = ranks
        self._shard = LocalStore(ranks.rank, ranks.num_ranks)
        self.stats = self._shard.stats
        self._tables: list[TableSpec] = []
        self._numbers: dict[str, int] = {}
        self._widths: list[_Width] = []
        self._saves = _Saves(self._shard)

    def create(
        self,
        tables: Sequence[TableSpec],
        optimizer: OptimizerSpec,
        seed: int,
        checkpoint: str | None = None,
        reset_rows: Mapping[str, IntArray] = NO_RESETS,
    ) -> None:
        """Create this rank's shards, with its rows of ``checkpoint``."""
        for table in tables:
            if shard_rows(table.rows, 0, self.workers) > MAX_SHARD_ROWS:
                raise StoreError(
                    f"table '{table.name}' has {table.rows:,} rows, of which a worker can hold {MAX_SHARD_ROWS:,}: "
                    "raise cluster.workers"
                )
        self._tables = list(tables)
        self._numbers = {table.name: number for number, table in enumerate(tables)}
        dims = dict.fromkeys(table.dim for table in tables)
        self._widths = [_Width(dim, tuple(t for t, table in enumerate(tables) if table.dim == dim)) for dim in dims]
        self._shard.create(tables, optimizer, seed, checkpoint, reset_rows)

    # ---- rounds

    def _announce(self, own: _Announcement, counts_WT: IntArray | None = None) -> _Round:
        fields = len(own)
        width = fields + len(self._tables)
        sizes_W = self._ranks.sizes(width * np.dtype(np.int64).itemsize)
        message = self._ranks.buffer(int(sizes_W.sum())).view(np.int64).reshape(-1, width)
        message[:, :fields] = own
        message[:, fields:] = 0 if counts_WT is None else np.delete(counts_WT, self.rank, axis=0)
        announced_WC = np.empty((self.workers, width), np.int64)
        announced_WC[self.rank, :fields], announced_WC[self.rank, fields:] = own, 0
        for w, section in enumerate(self._ranks.exchange(sizes_W, sizes_W)):
            if w != self.rank:
                announced_WC[w] = section.view(np.int64)
        operations_W, command_bytes_W = announced_WC[:, :fields].T
        return _Round(operations_W, command_bytes_W, announced_WC[:, fields:])

    def _meet(self, own: _Announcement, counts_WT: IntArray | None = None) -> _Round:
        """Serve commands and pulls of other ranks until all want the same, or one pulls, as this one."""
        operation = own.operation
        while True:
            found = self._announce(own, counts_WT)
            if found.operations_W[0] == _Operation.COMMAND:
                self._execute(np.empty(found.command_bytes_W[0], np.uint8))
            elif (found.operations_W == operation).all() or operation is _Operation.PULL:
                return found
            elif (found.operations_W == _Operation.PULL).any():
                self._serve(found, _Request.of([_NONE] * len(self._tables), self.workers))
            else:
                raise StoreError(f"the ranks do not take the same steps: {found.operations_W.tolist()}")

    # ---- pulls

    def pull(self, rows: Mapping[str, IntArray]) -> dict[str, FloatArray]:
        """Copy the requested rows. It returns once all ranks have announced an operation."""
        request = self._request(rows)
        blocks = self._serve(self._meet(_Announcement(_Operation.PULL), request.counts()), request)
        return {name: blocks[self._numbers[name]] for name in rows}

    def _request(self, rows: Mapping[str, IntArray]) -> _Request:
        """Group rows of tables by rank; a table that is not in ``rows`` has none."""
        for name, rows_A in rows.items():
            check_rows(self._tables[self._numbers[name]], rows_A)
        return _Request.of([rows.get(table.name, _NONE) for table in self._tables], self.workers)

    def _others(self) -> Iterator[int]:
        return (w for w in range(self.workers) if w != self.rank)

    def _sections(self, width: _Width) -> Iterator[tuple[int, int]]:
        """Yield rank and table of each section of a message, in order."""
        return product(self._others(), width.tables)

    def _exchange_positions(
        self, request: _Request, counts_WT: IntArray, senders_W: Sequence[bool]
    ) -> list[list[NDArray[np.uint32]]]:
        """Send the positions of ``request`` to their ranks; return those that each of ``senders_W`` has sent here.

        ``counts_WT`` is how many rows each rank has announced.
        """
        counted_WT = np.where(np.array(senders_W)[:, None], counts_WT, 0)
        own_W = request.counts().sum(axis=1) if senders_W[self.rank] else np.zeros(self.workers, np.int64)
        own_W[self.rank] = 0
        message = self._ranks.buffer(int(own_W.sum()) * POSITION_BYTES).view(np.uint32)
        at, tables = 0, range(len(self._tables))
        for w, t in product(self._others(), tables):
            if own_W[w]:
                part = request.positions[t][request.slice_of(t, w)]
                message[at : at + len(part)] = part
                at += len(part)
        sections = self._ranks.exchange(own_W * POSITION_BYTES, counted_WT.sum(axis=1) * POSITION_BYTES)
        # Copies, since a section is valid until the next exchange.
        copies = [section.view(np.uint32).copy() for section in sections]
        return [np.split(copies[w], np.cumsum(counted_WT[w])[:-1]) for w in range(self.workers)]

    def _serve(self, found: _Round, request: _Request) -> list[FloatArray]:
        """Exchange the rows of a round with pulls: send what others ask for, and return what ``request`` asks for."""
        pulling_W = found.operations_W == _Operation.PULL
        asked = self._exchange_positions(request, found.counts_WT, pulling_W.tolist())
        blocks = [
            np.empty((len(rows_A), table.dim), np.float32)
            for rows_A, table in zip(request.rows, self._tables, strict=True)
        ]
        for width in self._widths:
            self._exchange_rows(width, asked, request, blocks)
        for t, table in enumerate(self._tables):
            own = request.slice_of(t, self.rank)
            move_rows(blocks[t], request.order[t][own], self._shard.weights(table.name), request.positions[t][own])
        return blocks

    def _exchange_rows(
        self,
        width: _Width,
        asked: list[list[NDArray[np.uint32]]],
        request: _Request,
        blocks: list[FloatArray],
    ) -> None:
        """Send the rows that others have ``asked`` for, and copy the rows of ``request`` into ``blocks``."""
        sent_W, received_W = np.zeros((2, self.workers), np.int64)
        for w, t in self._sections(width):
            sent_W[w] += len(asked[w][t])
            received_W[w] += request.starts[t][w + 1] - request.starts[t][w]
        message_RD, at = self._message(width, sent_W), 0
        for w, t in self._sections(width):
            rows = len(asked[w][t])
            gather_rows(message_RD[at : at + rows], self._shard.weights(self._tables[t].name), asked[w][t])
            at += rows
        sent_rows = self._exchange(width, sent_W, received_W)
        for w in self._others():
            at = 0
            for t in width.tables:
                order_A = request.order[t][request.slice_of(t, w)]
                scatter_rows(blocks[t], order_A, sent_rows[w][at : at + len(order_A)])
                at += len(order_A)

    def _message(self, width: _Width, rows_W: IntArray) -> FloatArray:
        """Return memory for ``rows_W`` rows of a width for each of the other ranks, in their order."""
        message: FloatArray = self._ranks.buffer(int(rows_W.sum()) * width.row_bytes).view(np.float32)
        return message.reshape(-1, width.dim)

    def _exchange(self, width: _Width, sent_W: IntArray, received_W: IntArray) -> list[FloatArray]:
        """Send the last message; return the ``received_W`` rows of each rank, which the next exchange overwrites."""
        sections = self._ranks.exchange(sent_W * width.row_bytes, received_W * width.row_bytes)
        return [section.view(np.float32).reshape(-1, width.dim) for section in sections]

    # ---- pushes

    def push(self, gradients: Mapping[str, RowGradient]) -> None:
        """Apply one step of all ranks."""
        self._push(_Operation.PUSH, gradients)

    def assign(self, table: str, rows_A: IntArray, values_AD: FloatArray) -> None:
        """Replace the values of rows by rank 0's."""
        check_rows(self._tables[self._numbers[table]], rows_A)
        if self.rank != 0:
            rows_A, values_AD = rows_A[:0], values_AD[:0]
        self._push(_Operation.ASSIGN, {table: RowGradient(rows_A, values_AD)})

    def _push(self, operation: _Operation, gradients: Mapping[str, RowGradient]) -> None:
        """Send rows to their owners, which apply them."""
        request = self._request({name: gradient.rows_A for name, gradient in gradients.items()})
        found = self._meet(_Announcement(operation), request.counts())
        positions = self._exchange_positions(request, found.counts_WT, [True] * self.workers)
        values = {self._numbers[name]: np.ascontiguousarray(gradient.values_AD) for name, gradient in gradients.items()}
        for width in self._widths:
            self._push_width(operation, width, positions, request, values)

    def _push_width(
        self,
        operation: _Operation,
        width: _Width,
        positions: list[list[NDArray[np.uint32]]],
        request: _Request,
        values: Mapping[int, FloatArray],
    ) -> None:
        """Exchange the gradients of tables of one width, and apply them. Those in ``values`` are the pushed ones."""
        tables = [t for t in width.tables if t in values]
        sent_W, received_W = np.zeros((2, self.workers), np.int64)
        for w, t in product(self._others(), tables):
            received_W[w] += len(positions[w][t])
            sent_W[w] += request.starts[t][w + 1] - request.starts[t][w]
        message_RD, at = self._message(width, sent_W), 0
        for w, t in product(self._others(), tables):
            order_A = request.order[t][request.slice_of(t, w)]
            gather_rows(message_RD[at : at + len(order_A)], values[t], order_A)
            at += len(order_A)
        sent_rows = self._exchange(width, sent_W, received_W)
        address_W = np.array([rows_RD.ctypes.data for rows_RD in sent_rows])
        for t in tables:
            mine = request.slice_of(t, self.rank)
            own = OwnGradients(request.positions[t][mine], request.order[t][mine], values[t])
            sent_positions = [positions[w][t] if w != self.rank else NO_POSITIONS for w in range(self.workers)]
            counts_W = np.array([len(positions_K) for positions_K in sent_positions])
            starts_W1 = np.concatenate([[0], np.cumsum(counts_W)])
            sent = SentGradients(np.concatenate(sent_positions), starts_W1, address_W.copy())
            apply = self._replace if operation is _Operation.ASSIGN else self._update
            apply(self._tables[t].name, own, sent)
            address_W += counts_W * width.row_bytes

    def _update(self, table: str, own: OwnGradients, sent: SentGradients) -> None:
        positions_K = np.concatenate([own.positions_A, sent.positions_K.astype(np.int64)])
        # Rows that several ranks update count once, so the kernel counts them.
        with self._shard.updating(table, positions_K, counts_rows=False) as (weights_ND, optimizer):
            rows, divergent_rows = apply_gradients(self.rank, weights_ND, optimizer, own, sent)
            self.stats.updated_rows[table] += rows
            check_convergence(divergent_rows, weights_ND, positions_K)

    def _replace(self, table: str, own: OwnGradients, sent: SentGradients) -> None:
        """Replace rows of this shard: of all ranks, only rank 0 has any."""
        replace_rows(self._shard.weights(table), own, sent)

    # ---- saves

    def save(self, folder: str) -> None:
        """Start writing all shards, each by its rank, once the other ranks have announced their next operation."""
        self._command({"command": "save", "folder": folder})

    def poll_save(self) -> SaveResult | None:
        """Return the result of the last ``save``, or None while it is in progress."""
        return SaveResult.of(self._command({"command": "status"}), "worker")

    def _command(self, command: dict[str, Any]) -> list[dict[str, Any]]:
        """Execute a command on all ranks, from rank 0; return their answers."""
        assert self.rank == 0
        body = np.frombuffer(json.dumps(command).encode(), np.uint8)
        self._announce(_Announcement(_Operation.COMMAND, command_bytes=len(body)))
        return self._execute(body)

    def _execute(self, body: NDArray[np.uint8]) -> list[dict[str, Any]]:
        """Execute a command, which rank 0 sends and the others receive into ``body``."""
        nothing_W, sizes_W = np.zeros(self.workers, np.int64), self._ranks.sizes(len(body))
        if self.rank == 0:
            self._ranks.buffer(int(sizes_W.sum())).reshape(-1, len(body))[:] = body
            self._ranks.exchange(sizes_W, nothing_W)
        else:
            self._ranks.buffer(0)
            received_W = nothing_W.copy()
            received_W[0] = len(body)
            body = self._ranks.exchange(nothing_W, received_W)[0]
        return self._collect(self._saves.execute(json.loads(body.tobytes())))

    def _collect(self, answer: dict[str, Any]) -> list[dict[str, Any]]:
        """Send an answer to rank 0, which gets the answers of all ranks; the others get only their own."""
        nothing_W, sizes_W = np.zeros(self.workers, np.int64), self._ranks.sizes(_STATUS_BYTES)
        if self.rank == 0:
            self._ranks.buffer(0)
            _, *others = self._ranks.exchange(nothing_W, sizes_W)
            return [answer, *(json.loads(other.tobytes()) for other in others)]
        text = json.dumps(answer).encode()
        assert len(text) <= _STATUS_BYTES
        self._ranks.buffer(_STATUS_BYTES)[:] = np.frombuffer(text.ljust(_STATUS_BYTES), np.uint8)
        to_first_W = nothing_W.copy()
        to_first_W[0] = _STATUS_BYTES
        self._ranks.exchange(to_first_W, nothing_W)
        return [answer]

    # ---- the rest

    def set_lr_factor(self, factor: float) -> None:
        """Multiply the learning rate by ``factor`` from the next step on."""
        self._shard.set_lr_factor(factor)

    def all_reduce(self, values_N: FloatArray) -> FloatArray:
        """Sum ``values_N`` over all ranks, in float64 and in their order."""
        assert len(values_N) <= MAX_ALL_REDUCE_LENGTH
        self._meet(_Announcement(_Operation.ALL_REDUCE))
        return self._ranks.sum(values_N.astype(np.float64))

    def barrier(self) -> None:
        """Return when every rank has called it."""
        self._meet(_Announcement(_Operation.BARRIER))

    def close(self) -> None:
        """Leave the other ranks once all do, and abandon a save that is in progress."""
        self.barrier()
        self.abandon()

    def abandon(self) -> None:
        """Leave the other ranks at once, which ends them."""
        self._shard.close()
        self._ranks.close()


class _Saves:
    """Executes rank 0's commands about checkpoints on this rank's shards."""

    def __init__(self, shard: LocalStore) -> None:
        self._shard = shard
        self._status: dict[str, Any] = {"state": "idle"}

    def execute(self, command: dict[str, Any]) -> dict[str, Any]:
        """Execute a command; return the status of the last save."""
        try:
            if command["command"] == "save":
                self._shard.save(command["folder"])
                self._status = {"state": "running"}
            elif self._status["state"] == "running" and (result := self._shard.poll_save()) is not None:
                self._status = {"state": "saved", **asdict(result), "part": asdict(result.parts[0])}
                del self._status["parts"]
        except (CheckpointError, OSError) as error:
            self._status = {"state": "failed", "message": str(error)[:_MAX_MESSAGE_LENGTH]}
        return self._status
