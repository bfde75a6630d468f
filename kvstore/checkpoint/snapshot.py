"""A snapshot of arrays, written behind the back of whoever goes on changing their rows.

    snapshot = Snapshot(to, part=0, parts=1, ranges=ranges)     # what is written is what they hold now
    snapshot.before_update("customer", number, rows_A)          # before these rows of a range change
    while (written := snapshot.poll()) is None: ...             # train on; raises CheckpointError if it went wrong

A thread sends the arrays piece by piece to a process of its own (``checkpoint_writer.py``), which checks and stores
them. A row that is about to change before it was sent is kept aside, once, until the thread comes by. So a snapshot
begins at once, whatever the size of the arrays, and takes memory for changed rows alone: a copy-on-write of rows, where
one of the operating system, by ``fork``, would copy a page of 4 KiB for each of them. Popular rows stand first in their
range and are sent first, the ranges of a table side by side, so that few rows change before they were sent.

Where rows change faster than they can be sent, whoever changes them waits.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from kvstore.arrays import IntArray
from kvstore.checkpoint.format import TableShard, npy_header, shard_file, shard_rows
from kvstore.errors import CheckpointError
from kvstore.store import FileDigest

COPY_FRACTION = 8
"""One of so many rows of a table may be kept aside, or as many as fit into ``LEAST_KEPT_BYTES``."""
LEAST_KEPT_BYTES = 1 << 26
KEPT_INDEX_BYTES = 4
"""For each row of the arrays, to know whether it is kept, and where."""
MAX_WAIT_SECONDS = 60.0
"""How long updates may wait for one snapshot, all together, before it is given up."""
MAX_STANDSTILL_SECONDS = 600.0
"""How long the process that writes may take nothing before it is given up: a request to S3 may last three minutes."""
_PIECE_BYTES = 1 << 22
_PIPE_BYTES = 1 << 20
SAFE_PATH = ["-P"]

Words = NDArray[np.uint32]
"""Rows as 32-bit words: what of a table or of an optimizer's state stands in one row, whatever its type."""


@dataclass(frozen=True)
class PartResult:
    """A part of a checkpoint that has been written, ``bytes`` in all, in ``seconds``."""

    part: FileDigest
    bytes: int
    seconds: float


# All of these run with the lock held, and none in parallel: numba's threads may be at work on an update meanwhile.


@njit(cache=True, nogil=True)
def _take_slots(rows_A, begin, sent, slot_N, free_M, free, taken_A, slots_A):  # type: ignore[no-untyped-def]
    """Slots for those of ``rows_A[begin:]`` that were neither sent nor kept, while there are some."""
    taken = 0
    for a in range(begin, rows_A.shape[0]):
        row = rows_A[a]
        if row < sent or slot_N[row] != 0:
            continue
        if free == 0:
            return a, taken, free
        free -= 1
        slot_N[row] = free_M[free] + 1
        taken_A[taken], slots_A[taken] = row, free_M[free]
        taken += 1
    return rows_A.shape[0], taken, free


@njit(cache=True, nogil=True)
def _copy_rows(source_NW, rows_A, target_MW, slots_A, count):  # type: ignore[no-untyped-def]
    for a in range(count):
        source_W, target_W = source_NW[rows_A[a]], target_MW[slots_A[a]]
        for w in range(source_W.shape[0]):
            target_W[w] = source_W[w]


@njit(cache=True, nogil=True)
def _put_back(piece_PW, slot_P, kept_MW):  # type: ignore[no-untyped-def]
    """Put the kept rows of a piece in the place of what they have become."""
    for p in range(slot_P.shape[0]):
        if slot_P[p] != 0:
            kept_W = kept_MW[slot_P[p] - 1]
            for w in range(kept_W.shape[0]):
                piece_PW[p, w] = kept_W[w]


@njit(cache=True, nogil=True)
def _free_slots(slot_P, free_M, free):  # type: ignore[no-untyped-def]
    for p in range(slot_P.shape[0]):
        if slot_P[p] != 0:
            free_M[free] = slot_P[p] - 1
            slot_P[p] = 0
            free += 1
    return free


def compile_kernels() -> None:
    """Compile, or load, what a snapshot runs while training waits, so that the first one does not take longer."""
    rows_N, slots_N = np.zeros(1, np.int64), np.zeros(1, np.int32)
    words_NW = np.zeros((1, 1), np.uint32)
    _take_slots(rows_N, 0, 0, slots_N, slots_N.copy(), 0, rows_N, slots_N.copy())
    _copy_rows(words_NW, rows_N, words_NW, slots_N, 1)
    _put_back(words_NW, slots_N, words_NW)
    _free_slots(slots_N, slots_N.copy(), 0)


def max_copied_rows(rows: int, row_bytes: int) -> int:
    """How many of a table's ``rows`` here, of ``row_bytes`` with their state, a snapshot keeps at most at one time."""
    return min(rows, max(-(-rows // COPY_FRACTION), LEAST_KEPT_BYTES // row_bytes))


class _CopyBuffer:
    """Room for rows of one table that changed before they were sent."""

    def __init__(self, rows: int, words: dict[str, int]) -> None:
        room = max_copied_rows(rows, 4 * sum(words.values()))
        # Memory that is not written takes none.
        self.arrays: dict[str, Words] = {name: np.empty((room, count), np.uint32) for name, count in words.items()}
        self.free_M = np.arange(room, dtype=np.int32)
        self.free = room


class _Range:
    """One range of a table while it is sent: ``sent`` of its ``rows`` are, and ``slot_N`` says where others are kept.

    A slot is counted from 1; 0 means that the row was not kept.
    """

    def __init__(self, held: TableShard) -> None:
        self.held = held
        self.rows = shard_rows(held.rows, held.number, held.ranges)
        self.arrays = {name: _words(array[: self.rows]) for name, array in held.arrays.items()}
        self.slot_N = np.zeros(self.rows, np.int32)
        self.sent = 0
        self.kept: _CopyBuffer

    def keep(self, rows_A: IntArray, begin: int) -> int:
        """Keep what ``rows_A[begin:]`` hold, as far as there is room; gives where that ended."""
        taken_A, slots_A = np.empty(len(rows_A), np.int64), np.empty(len(rows_A), np.int32)
        kept = self.kept
        begin, count, kept.free = _take_slots(
            rows_A, begin, self.sent, self.slot_N, kept.free_M, kept.free, taken_A, slots_A
        )
        for name, source_NW in self.arrays.items():
            _copy_rows(source_NW, taken_A, kept.arrays[name], slots_A, count)
        return begin

    def piece(self, stop: int) -> dict[str, Words]:
        """Copies of the rows up to ``stop`` that were not sent yet, as they were; they count as sent from now on."""
        slot_P = self.slot_N[self.sent : stop]
        pieces = {name: source_NW[self.sent : stop].copy() for name, source_NW in self.arrays.items()}
        for name, piece_PW in pieces.items():
            _put_back(piece_PW, slot_P, self.kept.arrays[name])
        self.kept.free = _free_slots(slot_P, self.kept.free_M, self.kept.free)
        self.sent = stop
        return pieces

    def header(self, name: str) -> bytes:
        """The start of the file of one of the arrays."""
        array = self.held.arrays[name]
        return npy_header(array.dtype, (self.rows, *array.shape[1:]))


def _words(array: NDArray[Any]) -> Words:
    assert array.flags.c_contiguous
    assert array.dtype.itemsize == 4
    return array.reshape(len(array), int(np.prod(array.shape[1:], dtype=np.int64))).view(np.uint32)


class Snapshot:
    """One part of a checkpoint that is being written: the state of the arrays at the time of its making.

    To be made by a thread that lives on until it is written: the writing process ends when that thread does.
    """

    def __init__(self, to: str, part: int, parts: int, ranges: Sequence[TableShard]) -> None:
        """Begin to write ``ranges`` into the checkpoint folder ``to``, as part ``part`` of ``parts``.

        Raises:
            CheckpointError: the writing process cannot be started.
        """
        self._started = self._taken_at = time.monotonic()
        self._to = to
        self._ranges = {(held.table, held.number): _Range(held) for held in ranges}
        self._tables = _by_table(self._ranges.values())
        self._changed = threading.Condition()
        self._over = False
        self._why_over: str | None = None
        self._outcome: PartResult | CheckpointError | None = None
        try:
            self._writer, self._pipe = _start_writer(to, part, parts)
        except OSError as error:
            raise CheckpointError(f"{to}: cannot be written: no process could be started: {error}") from error
        self._thread = threading.Thread(target=self._send_all, name="snapshot", daemon=True)
        self._thread.start()
        self.pause_seconds = time.monotonic() - self._started
        """How long whoever changes the arrays had to wait so far, for the snapshot to begin and for room."""

    def before_update(self, table: str, number: int, rows_A: IntArray) -> None:
        """Keep what rows ``rows_A`` (entries of range ``number`` of ``table``, sorted) hold: they are about to change.

        It may wait for room. If that takes too long, the snapshot is given up, which ``poll`` tells.
        """
        held = self._ranges.get((table, number))
        if held is None or self._over:
            return
        with self._changed:
            begin = 0
            while not self._over and (begin := held.keep(rows_A, begin)) < len(rows_A):
                self._wait_for_room()

    def _wait_for_room(self) -> None:
        since = time.monotonic()
        self._changed.wait(max(0.0, MAX_WAIT_SECONDS - self.pause_seconds))
        self.pause_seconds += time.monotonic() - since
        if self.pause_seconds > MAX_WAIT_SECONDS:
            self._give_up(
                f"rows change faster than they can be written: updates had to wait for {self.pause_seconds:.0f} s"
            )

    def _give_up(self, reason: str) -> None:
        self._over, self._why_over = True, reason
        self._writer.kill()

    def poll(self) -> PartResult | None:
        """What was written, or None while it still is being written.

        Raises:
            CheckpointError: it could not be written. The arrays are unharmed.
        """
        if self._outcome is None and self._writer.poll() is not None:
            self._outcome = self._end()
        elif self._outcome is None and time.monotonic() - self._taken_at > MAX_STANDSTILL_SECONDS:
            with self._changed:
                self._give_up(f"nothing of it could be written for {MAX_STANDSTILL_SECONDS:.0f} s")
        if isinstance(self._outcome, CheckpointError):
            raise self._outcome
        return self._outcome

    def close(self) -> None:
        """End the writing, if it still goes on."""
        if self._outcome is None:
            with self._changed:
                self._give_up("was given up before it was written")
            self._outcome = self._end()

    def _end(self) -> PartResult | CheckpointError:
        """Reap the writer, which is ending, and say what came of it."""
        assert self._writer.stdout is not None
        said = self._writer.stdout.read()
        self._writer.stdout.close()
        code = self._writer.wait()
        self._thread.join()
        answer = json.loads(said) if said.endswith(b"\n") else {}
        if "name" in answer:
            written = answer.pop("written")
            return PartResult(FileDigest(**answer), written, time.monotonic() - self._started)
        reason = self._why_over or answer.get("error") or f"the process that wrote it {_how(code)}"
        return CheckpointError(f"{self._to}: could not be written: {reason}")

    # ---- the thread

    def _send_all(self) -> None:
        try:
            for ranges in self._tables:
                self._send_table(ranges)
            self._send(memoryview(b'{"end": true}\n'))
        except BrokenPipeError:
            pass  # the writer has ended, and says why
        except Exception as error:
            self._why_over = f"its rows could not be sent: {type(error).__name__}: {error}"
        finally:
            with self._changed:
                self._over = True
                self._ranges.clear()
                self._tables.clear()
                self._changed.notify_all()
            os.close(self._pipe)

    def _send_table(self, ranges: list[_Range]) -> None:
        """Send the ranges of a table side by side, popular rows first."""
        row_bytes = 4 * sum(words.shape[1] for words in ranges[0].arrays.values())
        step = max(1, _PIECE_BYTES // row_bytes)
        for start in range(0, max(1, *(held.rows for held in ranges)), step):
            for held in ranges:
                if start < held.rows or start == 0:
                    self._send_piece(held, min(start + step, held.rows))

    def _send_piece(self, held: _Range, stop: int) -> None:
        first = held.sent == 0
        with self._changed:
            pieces = held.piece(stop)
            self._changed.notify_all()
        for name, piece_PW in pieces.items():
            header = held.header(name)
            lead = header if first else b""
            size = len(header) + held.rows * piece_PW.shape[1] * 4
            frame = {"path": shard_file(held.held, name), "bytes": len(lead) + piece_PW.nbytes, "of": size}
            self._send(memoryview(json.dumps(frame).encode() + b"\n" + lead))
            self._send(piece_PW.reshape(-1).view(np.uint8).data)

    def _send(self, data: memoryview) -> None:
        while data:
            data = data[os.write(self._pipe, data) :]
            self._taken_at = time.monotonic()


def _by_table(ranges: Any) -> list[list[_Range]]:
    """The ranges of each table, which get room for kept rows; first the table with the fewest rows, changed most."""
    tables: dict[str, list[_Range]] = {}
    for held in ranges:
        tables.setdefault(held.held.table, []).append(held)
    for members in tables.values():
        kept = _CopyBuffer(
            sum(held.rows for held in members), {name: words.shape[1] for name, words in members[0].arrays.items()}
        )
        for held in members:
            held.kept = kept
    return sorted(tables.values(), key=lambda members: members[0].held.rows)


def _how(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _start_writer(to: str, part: int, parts: int) -> tuple[subprocess.Popen[bytes], int]:
    """The process, and the end of a pipe that leads to it."""
    theirs, ours = os.pipe()
    try:
        with suppress(AttributeError, OSError):
            import fcntl

            fcntl.fcntl(ours, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        process = subprocess.Popen(  # noqa: S603 - our own command
            [
                *(sys.executable, *SAFE_PATH, "-m", "kvstore.checkpoint.writer"),
                *(to, str(part), str(parts), str(os.getpid())),
            ],
            stdin=theirs,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    return process, ours
