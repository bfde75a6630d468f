"""Write a snapshot of arrays in the background while their rows keep changing: copy-on-write by row.

    snapshot = Snapshot(folder, part=0, parts=1, shards=shards)     # writes what the shards hold now
    snapshot.before_update("customer", number, rows_A)              # before these rows of a shard change
    while (written := snapshot.poll()) is None: ...                 # keep training; raises CheckpointError on failure

A thread sends the arrays in pieces to a process (``writer.py``), which checksums and stores them. A row that is about
to change before it was sent is copied once, and the copy is sent in its place. So a snapshot starts at once, whatever
the size of the arrays, and takes memory only for changed rows; copy-on-write by ``fork`` would copy a page of 4 KiB
for each. Popular rows are first in their shard and are sent first, the shards of a table in turn, so few rows change
before they are sent.

Where rows change faster than they can be sent, updates wait.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossfade.base.arrays import IntArray
from crossfade.base.errors import CheckpointError, DivergedError, Option
from crossfade.kvstore.checkpoint.file_names import npy_header
from crossfade.kvstore.checkpoint.format import TableShard
from crossfade.kvstore.finite import find_non_finite_row
from crossfade.kvstore.jit import njit
from crossfade.kvstore.store import FileDigest

COPY_FRACTION = 8
"""Copies are limited to 1/``COPY_FRACTION`` of a table's rows, or to ``MIN_COPY_BYTES`` if that is more."""
MIN_COPY_BYTES = 1 << 26
COPY_INDEX_BYTES = 4
"""Bytes per row of the arrays for the index of copies."""
MAX_WAIT_SECONDS = 60.0
"""Seconds that updates may wait for one snapshot, in total, before it fails."""
MAX_STANDSTILL_SECONDS = 600.0
"""Seconds without progress of the writing process before the snapshot fails: one request to S3 may take 180."""
SAFE_PATH = ["-P"]
"""Python's option to keep the current folder, which may hold modules of any name, out of the import path."""
_PIECE_BYTES = 1 << 22
_PIPE_BYTES = 1 << 20

Words = NDArray[np.uint32]
"""Rows as 32-bit words, whatever their type: what one row of a table or of its optimizer state holds."""


@dataclass(frozen=True)
class PartResult:
    """A part of a checkpoint that was written: ``bytes`` in total, in ``seconds``."""

    part: FileDigest
    bytes: int
    seconds: float


# These kernels run with the lock held, and none in parallel: numba's threads may be running an update at the same time.


@njit(cache=True, nogil=True)
def _allocate_slots(rows_A, begin, sent, slot_N, free_M, free, copied_A, slots_A):  # type: ignore[no-untyped-def]
    """Allocate slots for the rows of ``rows_A[begin:]`` that were neither sent nor copied, until none is free."""
    copied = 0
    for a in range(begin, rows_A.shape[0]):
        row = rows_A[a]
        if row < sent or slot_N[row] != 0:
            continue
        if free == 0:
            return a, copied, free
        free -= 1
        slot_N[row] = free_M[free] + 1
        copied_A[copied], slots_A[copied] = row, free_M[free]
        copied += 1
    return rows_A.shape[0], copied, free


@njit(cache=True, nogil=True)
def _copy_rows(source_NW, rows_A, target_MW, slots_A, count):  # type: ignore[no-untyped-def]
    for a in range(count):
        source_W, target_W = source_NW[rows_A[a]], target_MW[slots_A[a]]
        for w in range(source_W.shape[0]):
            target_W[w] = source_W[w]


@njit(cache=True, nogil=True)
def _restore_rows(piece_PW, slot_P, copies_MW):  # type: ignore[no-untyped-def]
    """Overwrite the changed rows of a piece with their copies."""
    for p in range(slot_P.shape[0]):
        if slot_P[p] != 0:
            copy_W = copies_MW[slot_P[p] - 1]
            for w in range(copy_W.shape[0]):
                piece_PW[p, w] = copy_W[w]


@njit(cache=True, nogil=True)
def _free_slots(slot_P, free_M, free):  # type: ignore[no-untyped-def]
    for p in range(slot_P.shape[0]):
        if slot_P[p] != 0:
            free_M[free] = slot_P[p] - 1
            slot_P[p] = 0
            free += 1
    return free


def compile_kernels() -> None:
    """Compile the kernels, or load them from the cache, so that the first snapshot does not pause training for it."""
    rows_N, slots_N = np.zeros(1, np.int64), np.zeros(1, np.int32)
    words_NW = np.zeros((1, 1), np.uint32)
    _allocate_slots(rows_N, 0, 0, slots_N, slots_N.copy(), 0, rows_N, slots_N.copy())
    _copy_rows(words_NW, rows_N, words_NW, slots_N, 1)
    _restore_rows(words_NW, slots_N, words_NW)
    _free_slots(slots_N, slots_N.copy(), 0)


def max_copied_rows(rows: int, row_bytes: int) -> int:
    """Return how many of ``rows`` rows, of ``row_bytes`` each with their state, a snapshot copies at one time."""
    return min(rows, max(-(-rows // COPY_FRACTION), MIN_COPY_BYTES // row_bytes))


class _CopyBuffer:
    """Copies of rows of one table that changed before they were sent."""

    def __init__(self, rows: int, words: dict[str, int]) -> None:
        capacity = max_copied_rows(rows, 4 * sum(words.values()))
        # Pages of np.empty take no memory until they are written.
        self.arrays: dict[str, Words] = {name: np.empty((capacity, count), np.uint32) for name, count in words.items()}
        self.free_M = np.arange(capacity, dtype=np.int32)
        self.free = capacity


class _PendingShard:
    """A shard while it is sent: the first ``sent`` rows are; ``slot_N`` is a row's slot among the copies.

    Slots count from 1; 0 means that the row was not copied.
    """

    def __init__(self, shard: TableShard) -> None:
        self.shard = shard
        self.rows = shard.rows
        self.arrays = {name: _as_words(array[: self.rows]) for name, array in shard.arrays.items()}
        self.slot_N = np.zeros(self.rows, np.int32)
        self.sent = 0
        self.copies: _CopyBuffer

    def copy_rows(self, rows_A: IntArray, begin: int) -> int:
        """Copy ``rows_A[begin:]`` as far as there are free slots; return the index where that ended."""
        copied_A, slots_A = np.empty(len(rows_A), np.int64), np.empty(len(rows_A), np.int32)
        copies = self.copies
        end, count, copies.free = _allocate_slots(
            rows_A, begin, self.sent, self.slot_N, copies.free_M, copies.free, copied_A, slots_A
        )
        for name, source_NW in self.arrays.items():
            _copy_rows(source_NW, copied_A, copies.arrays[name], slots_A, count)
        return int(end)

    def next_piece(self, stop: int) -> dict[str, Words]:
        """Copy the unsent rows up to ``stop``, as of the snapshot; they count as sent from now on."""
        slot_P = self.slot_N[self.sent : stop]
        pieces = {name: source_NW[self.sent : stop].copy() for name, source_NW in self.arrays.items()}
        for name, piece_PW in pieces.items():
            _restore_rows(piece_PW, slot_P, self.copies.arrays[name])
        self.copies.free = _free_slots(slot_P, self.copies.free_M, self.copies.free)
        self.sent = stop
        return pieces

    def check_finite(self, name: str, piece_PW: Words) -> None:
        """Check the piece of one of the arrays that ``next_piece`` returned last.

        Raises:
            DivergedError: a value is not finite.
        """
        bad = find_non_finite_row(piece_PW.view(self.shard.arrays[name].dtype))
        if bad is not None:
            row = (self.sent - len(piece_PW) + bad) * self.shard.num_shards + self.shard.number
            raise DivergedError(
                f"table '{self.shard.table}', row {row}: has values that are not finite ({name}), so no checkpoint of "
                "it is written: training has diverged; lower optimizer.learning_rate, and ",
                Option("resume"),
                row=row,
            )

    def header(self, name: str) -> bytes:
        """Return the .npy header of the file of one of the arrays."""
        array = self.shard.arrays[name]
        return npy_header(array.dtype, (self.rows, *array.shape[1:]))


def _as_words(array: NDArray[Any]) -> Words:
    assert array.flags.c_contiguous
    assert array.dtype.itemsize == 4
    return array.reshape(len(array), int(np.prod(array.shape[1:], dtype=np.int64))).view(np.uint32)


class Snapshot:
    """One part of a checkpoint that is being written: the state of the arrays when it was created.

    The creating thread must live until the snapshot ends: the kernel kills the writing process with that thread.
    """

    def __init__(self, folder: str, part: int, parts: int, shards: Sequence[TableShard]) -> None:
        """Start writing ``shards`` into the checkpoint folder ``folder``, as part ``part`` of ``parts``.

        Raises:
            CheckpointError: the writing process cannot be started.
        """
        self._started = self._last_progress = time.monotonic()
        self._folder = folder
        self._shards = {(shard.table, shard.number): _PendingShard(shard) for shard in shards}
        self._tables = _group_by_table(self._shards.values())
        self._changed = threading.Condition()
        self._finished = False
        self._failure: str | None = None
        self._diverged: DivergedError | None = None
        self._outcome: PartResult | CheckpointError | DivergedError | None = None
        try:
            self._writer, self._pipe = _start_writer(folder, part, parts)
        except OSError as error:
            raise CheckpointError(f"{folder}: could not be written: cannot start a process: {error}") from error
        self._thread = threading.Thread(target=self._send_all, name="snapshot", daemon=True)
        self._thread.start()
        self.pause_seconds = time.monotonic() - self._started
        """Seconds that updates waited so far: for the snapshot to start, and for free slots."""

    def before_update(self, table: str, number: int, rows_A: IntArray) -> None:
        """Copy rows ``rows_A`` (positions in shard ``number`` of ``table``, sorted), which are about to change.

        It may wait for free slots. If that takes too long the snapshot fails, which ``poll`` raises.
        """
        shard = self._shards.get((table, number))
        if shard is None or self._finished:
            return
        with self._changed:
            begin = 0
            while not self._finished and (begin := shard.copy_rows(rows_A, begin)) < len(rows_A):
                self._wait_for_slots()

    def _wait_for_slots(self) -> None:
        start = time.monotonic()
        self._changed.wait(max(0.0, MAX_WAIT_SECONDS - self.pause_seconds))
        self.pause_seconds += time.monotonic() - start
        if self.pause_seconds > MAX_WAIT_SECONDS:
            self._abandon(
                f"rows change faster than they can be written: updates waited for {self.pause_seconds:.0f} s in total"
            )

    def _abandon(self, reason: str) -> None:
        self._finished, self._failure = True, reason
        self._writer.kill()

    def poll(self) -> PartResult | None:
        """Return the result, or None while writing is in progress.

        Raises:
            CheckpointError: it could not be written. The arrays are unaffected.
            DivergedError: a row has values that are not finite, so that no run could continue from it.
        """
        if self._outcome is None and self._writer.poll() is not None:
            self._outcome = self._collect()
        elif self._outcome is None and time.monotonic() - self._last_progress > MAX_STANDSTILL_SECONDS:
            with self._changed:
                self._abandon(f"writing made no progress for {MAX_STANDSTILL_SECONDS:.0f} s")
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    def close(self) -> None:
        """Abandon the snapshot if it is still being written."""
        if self._outcome is None:
            with self._changed:
                self._abandon("was abandoned before it was written")
            self._outcome = self._collect()

    def _collect(self) -> PartResult | CheckpointError | DivergedError:
        """Wait for the writer, which is exiting, and return its result."""
        assert self._writer.stdout is not None
        output = self._writer.stdout.read()
        self._writer.stdout.close()
        code = self._writer.wait()
        self._thread.join()
        if self._diverged is not None:
            return self._diverged
        answer = json.loads(output) if output.endswith(b"\n") else {}
        if "name" in answer:
            total_bytes = answer.pop("total_bytes")
            return PartResult(FileDigest(**answer), total_bytes, time.monotonic() - self._started)
        reason = self._failure or answer.get("error") or f"the writing process {_describe_exit(code)}"
        return CheckpointError(f"{self._folder}: could not be written: {reason}")

    # ---- the sending thread

    def _send_all(self) -> None:
        try:
            for shards in self._tables:
                self._send_table(shards)
            self._send(memoryview(b'{"end": true}\n'))
        except BrokenPipeError:
            pass  # The writer has exited; its answer or exit code has the reason.
        except DivergedError as error:
            self._diverged = error
        except Exception as error:
            self._failure = f"its rows could not be sent: {type(error).__name__}: {error}"
        finally:
            with self._changed:
                self._finished = True
                self._shards.clear()
                self._tables.clear()
                self._changed.notify_all()
            os.close(self._pipe)

    def _send_table(self, shards: list[_PendingShard]) -> None:
        """Send pieces of a table's shards in turn, so that the popular rows of all shards go first."""
        row_bytes = 4 * sum(words.shape[1] for words in shards[0].arrays.values())
        step = max(1, _PIECE_BYTES // row_bytes)
        for start in range(0, max(1, *(shard.rows for shard in shards)), step):
            for shard in shards:
                # The first piece also creates the file, so it is sent even if it has no rows.
                if start < shard.rows or start == 0:
                    self._send_piece(shard, min(start + step, shard.rows))

    def _send_piece(self, shard: _PendingShard, stop: int) -> None:
        is_first = shard.sent == 0
        with self._changed:
            pieces = shard.next_piece(stop)
            self._changed.notify_all()
        for name, piece_PW in pieces.items():
            shard.check_finite(name, piece_PW)
            header = shard.header(name)
            prefix = header if is_first else b""
            file_bytes = len(header) + shard.rows * piece_PW.shape[1] * 4
            size = len(prefix) + piece_PW.nbytes
            frame = {"path": shard.shard.file_name(name), "bytes": size, "file_bytes": file_bytes}
            self._send(memoryview(json.dumps(frame).encode() + b"\n" + prefix))
            self._send(piece_PW.reshape(-1).view(np.uint8).data)

    def _send(self, data: memoryview) -> None:
        while data:
            data = data[os.write(self._pipe, data) :]
            self._last_progress = time.monotonic()


def _group_by_table(shards: Iterable[_PendingShard]) -> list[list[_PendingShard]]:
    """Group shards by table, each with a copy buffer; the smallest table, whose rows change most often, comes first."""
    tables: dict[str, list[_PendingShard]] = {}
    for shard in shards:
        tables.setdefault(shard.shard.table, []).append(shard)
    for members in tables.values():
        copies = _CopyBuffer(
            sum(shard.rows for shard in members), {name: words.shape[1] for name, words in members[0].arrays.items()}
        )
        for shard in members:
            shard.copies = copies
    return sorted(tables.values(), key=lambda members: members[0].shard.table_rows)


def _describe_exit(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _start_writer(folder: str, part: int, parts: int) -> tuple[subprocess.Popen[bytes], int]:
    """Start the process; also return the write end of the pipe to its standard input."""
    read_end, write_end = os.pipe()
    try:
        if sys.platform == "linux":
            import fcntl

            with suppress(OSError):
                fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        process = subprocess.Popen(  # noqa: S603 - our own command
            [
                *(sys.executable, *SAFE_PATH, "-m", "crossfade.kvstore.checkpoint.writer"),
                *(folder, str(part), str(parts), str(os.getpid())),
            ],
            stdin=read_end,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
    except BaseException:
        os.close(write_end)
        raise
    finally:
        os.close(read_end)
    return process, write_end
