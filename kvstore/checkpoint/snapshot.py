"""Write a snapshot of arrays in the background while their rows keep changing: copy-on-write by row.

    snapshot = Snapshot(folder, part=0, parts=1, shards=shards)     # writes what the shards hold now
    snapshot.before_update("customer", number, rows_A)              # before these rows of a shard change
    while (written := snapshot.poll()) is None: ...                 # keep training; raises CheckpointError on failure

A thread writes the arrays in pieces, with checksums. A row that is about to change before it was written is copied
once, and the copy is written in its place. So a snapshot starts at once, whatever the size of the arrays, and takes
memory only for changed rows; copy-on-write by ``fork`` would copy a page of 4 KiB for each. Popular rows are first in
their shard and are written first, the shards of a table in turn, so few rows change before they are written.

Where rows change faster than they can be written, updates wait.
"""

from __future__ import annotations

import json
import threading
import time
import zlib
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossfade.base.arrays import IntArray
from crossfade.base.errors import CheckpointError, DivergedError, Option
from crossfade.base.io.folder import Folder
from crossfade.kvstore.checkpoint.format import FORMAT_VERSION, PART_FORMAT, TableShard, npy_header, part_name
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
"""Seconds without progress before the snapshot fails: one request to S3 may take 180."""
_PIECE_BYTES = 1 << 22
_END_SECONDS = 10.0
"""Seconds to wait for the thread of a snapshot that was abandoned: one that storage holds up ends later."""

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
def _allocate_slots(rows_A, begin, written, slot_N, free_M, free, copied_A, slots_A):  # type: ignore[no-untyped-def]
    """Allocate slots for the rows of ``rows_A[begin:]`` that were neither written nor copied, until none is free."""
    copied = 0
    for a in range(begin, rows_A.shape[0]):
        row = rows_A[a]
        if row < written or slot_N[row] != 0:
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
    """Copies of rows of one table that changed before they were written."""

    def __init__(self, rows: int, words: dict[str, int]) -> None:
        capacity = max_copied_rows(rows, 4 * sum(words.values()))
        # Pages of np.empty take no memory until they are written.
        self.arrays: dict[str, Words] = {name: np.empty((capacity, count), np.uint32) for name, count in words.items()}
        self.free_M = np.arange(capacity, dtype=np.int32)
        self.free = capacity


class _PendingShard:
    """A shard while it is written: the first ``written`` rows are; ``slot_N`` is a row's slot among the copies.

    Slots count from 1; 0 means that the row was not copied.
    """

    def __init__(self, shard: TableShard) -> None:
        self.shard = shard
        self.rows = shard.rows
        self.arrays = {name: _as_words(array[: self.rows]) for name, array in shard.arrays.items()}
        self.slot_N = np.zeros(self.rows, np.int32)
        self.written = 0
        self.copies: _CopyBuffer

    def copy_rows(self, rows_A: IntArray, begin: int) -> int:
        """Copy ``rows_A[begin:]`` as far as there are free slots; return the index where that ended."""
        copied_A, slots_A = np.empty(len(rows_A), np.int64), np.empty(len(rows_A), np.int32)
        copies = self.copies
        end, count, copies.free = _allocate_slots(
            rows_A, begin, self.written, self.slot_N, copies.free_M, copies.free, copied_A, slots_A
        )
        for name, source_NW in self.arrays.items():
            _copy_rows(source_NW, copied_A, copies.arrays[name], slots_A, count)
        return int(end)

    def next_piece(self, stop: int) -> dict[str, Words]:
        """Copy the rows that are not written up to ``stop``, as of the snapshot; they count as written from now on."""
        slot_P = self.slot_N[self.written : stop]
        pieces = {name: source_NW[self.written : stop].copy() for name, source_NW in self.arrays.items()}
        for name, piece_PW in pieces.items():
            _restore_rows(piece_PW, slot_P, self.copies.arrays[name])
        self.copies.free = _free_slots(slot_P, self.copies.free_M, self.copies.free)
        self.written = stop
        return pieces

    def check_finite(self, name: str, piece_PW: Words) -> None:
        """Check the piece of one of the arrays that ``next_piece`` returned last.

        Raises:
            DivergedError: a value is not finite.
        """
        bad = find_non_finite_row(piece_PW.view(self.shard.arrays[name].dtype))
        if bad is not None:
            row = (self.written - len(piece_PW) + bad) * self.shard.num_shards + self.shard.number
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


class _OpenFile:
    """A file of ``size`` bytes, written in pieces that alternate with pieces of other files."""

    def __init__(self, folder: Folder, path: str, size: int) -> None:
        self.path, self.size, self.crc32 = path, size, 0
        self.context = ExitStack()
        self._left = size
        self._file = self.context.enter_context(folder.open_output(path))

    def append(self, data: bytes | memoryview) -> None:
        """Append ``data``; close the file once it is complete."""
        self.crc32 = zlib.crc32(data, self.crc32)
        self._file.write(data)
        self._left -= len(data)
        if self._left == 0:
            self.context.close()


class _PartWriter:
    """Writes the files of one part, then the list of them. After an error, none is left on a file system.

    So an unfinished checkpoint does not fill the disk. On S3 nothing is deleted, since S3 may be what failed.
    """

    def __init__(self, folder: Folder, part: int, parts: int) -> None:
        self._folder, self._name = folder, part_name(part, parts)
        self._files: dict[str, _OpenFile] = {}
        self._opened = ExitStack()

    def __enter__(self) -> _PartWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        try:
            self._opened.__exit__(kind, *error)
        finally:
            if kind is not None and not self._folder.on_s3:
                for path in self._files:
                    with suppress(OSError):
                        self._folder.remove(path)

    def file(self, path: str, size: int) -> _OpenFile:
        """Return the file ``path``, which is created when it is first asked for."""
        if path not in self._files:
            file = self._files[path] = _OpenFile(self._folder, path, size)
            self._opened.push(file.context)
        return self._files[path]

    def finish(self) -> tuple[FileDigest, int]:
        """Write the list of the files; return its digest, and the bytes of all."""
        listed = [{"path": file.path, "bytes": file.size, "crc32": file.crc32} for file in self._files.values()]
        listing = json.dumps({"format": PART_FORMAT, "version": FORMAT_VERSION, "files": listed}, indent=1).encode()
        listing += b"\n"
        self._folder.write(self._name, listing)
        total_bytes = len(listing) + sum(file.size for file in self._files.values())
        return FileDigest(self._name, len(listing), zlib.crc32(listing)), total_bytes


class Snapshot:
    """One part of a checkpoint that is being written: the state of the arrays when it was created."""

    def __init__(self, folder: str, part: int, parts: int, shards: Sequence[TableShard]) -> None:
        """Start writing ``shards`` into the checkpoint folder ``folder``, as part ``part`` of ``parts``."""
        self._started = self._last_progress = time.monotonic()
        self._folder = Folder(folder)
        self._shards = {(shard.table, shard.number): _PendingShard(shard) for shard in shards}
        self._tables = _group_by_table(self._shards.values())
        self._changed = threading.Condition()
        self._finished = False
        self._outcome: PartResult | Exception | None = None
        writer = _PartWriter(self._folder, part, parts)
        self._thread = threading.Thread(target=self._write_all, args=(writer,), name="snapshot", daemon=True)
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
        """Fail for ``reason``; the thread ends at its next piece. The caller holds the lock."""
        self._end(self._error(reason))
        self._folder.interrupt()

    def _error(self, reason: object) -> CheckpointError:
        return CheckpointError(f"{self._folder.uri}: could not be written: {reason}")

    def _end(self, outcome: PartResult | Exception) -> None:
        self._finished = True
        self._outcome = self._outcome or outcome
        self._changed.notify_all()

    def poll(self) -> PartResult | None:
        """Return the result, or None while writing is in progress.

        Raises:
            CheckpointError: it could not be written. The arrays are unaffected.
            DivergedError: a row has values that are not finite, so that no run could continue from it.
        """
        if self._outcome is None and time.monotonic() - self._last_progress > MAX_STANDSTILL_SECONDS:
            with self._changed:
                self._abandon(f"writing made no progress for {MAX_STANDSTILL_SECONDS:.0f} s")
        if self._outcome is None:
            return None
        self._thread.join(_END_SECONDS)
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    def close(self) -> None:
        """Abandon the snapshot if it is still being written."""
        with self._changed:
            self._abandon("was abandoned before it was written")
        self._thread.join(_END_SECONDS)

    # ---- the thread

    def _write_all(self, writer: _PartWriter) -> None:
        outcome: PartResult | Exception
        try:
            with writer:
                for shards in self._tables:
                    self._write_table(writer, shards)
                part, total_bytes = writer.finish()
            outcome = PartResult(part, total_bytes, time.monotonic() - self._started)
        except DivergedError as error:
            outcome = error
        except Exception as error:
            outcome = self._error(error if str(error) else type(error).__name__)
        with self._changed:
            self._end(outcome)
            self._shards.clear()
            self._tables.clear()

    def _write_table(self, writer: _PartWriter, shards: list[_PendingShard]) -> None:
        """Write pieces of a table's shards in turn, so that the popular rows of all shards go first."""
        row_bytes = 4 * sum(words.shape[1] for words in shards[0].arrays.values())
        step = max(1, _PIECE_BYTES // row_bytes)
        for start in range(0, max(1, *(shard.rows for shard in shards)), step):
            for shard in shards:
                # The first piece also creates the file, so it is written even if it has no rows.
                if start < shard.rows or start == 0:
                    self._write_piece(writer, shard, min(start + step, shard.rows))

    def _write_piece(self, writer: _PartWriter, shard: _PendingShard, stop: int) -> None:
        is_first = shard.written == 0
        with self._changed:
            if self._finished:
                raise self._error("was abandoned")
            pieces = shard.next_piece(stop)
            self._changed.notify_all()
        for name, piece_PW in pieces.items():
            shard.check_finite(name, piece_PW)
            header = shard.header(name)
            file = writer.file(shard.shard.file_name(name), len(header) + shard.rows * piece_PW.shape[1] * 4)
            if is_first:
                file.append(header)
            if len(piece_PW):
                file.append(piece_PW.reshape(-1).view(np.uint8).data)
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
