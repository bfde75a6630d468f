"""A snapshot of arrays, written behind the back of whoever goes on changing them.

    snapshot = Snapshot(to, part=0, parts=1, ranges=ranges)     # the arrays may change from here on
    while (written := snapshot.poll()) is None: ...             # train on; raises CheckpointError if it went wrong

``os.fork`` makes a copy of this process whose memory is shared until one side writes to it. The copy sends the arrays
through a pipe to a clean process (``checkpoint_writer.py``), which may use threads and the network: a copy of one that
runs MXNet or numba may not. What it has sent it lets go of, so that a page that changes later need not be copied.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from kvstore.checkpoint import RowRange, npy_header, range_file, range_rows
from kvstore.errors import CheckpointError
from kvstore.processes import PAGE_BYTES, die_with_parent, give_back
from kvstore.store import SavedPart

_PIECE_BYTES = 1 << 24
_PIPE_BYTES = 1 << 20
_NOT_FROM_HERE = ["-P"]
_HELD_BACK = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


@dataclass(frozen=True)
class Written:
    """A part of a checkpoint that has been written, ``bytes`` in all, in ``seconds``."""

    part: SavedPart
    bytes: int
    seconds: float


@dataclass(frozen=True)
class _File:
    """What the copy sends of one array. All of it is laid out before the fork: the copy should do little."""

    lead: bytes
    values: memoryview
    address: int

    @staticmethod
    def of(path: str, array: NDArray[Any]) -> _File:
        assert array.flags.c_contiguous
        header = npy_header(array.dtype, array.shape)
        frame = {"path": path, "bytes": len(header) + array.nbytes}
        values = array.reshape(-1).view(np.uint8).data
        return _File(json.dumps(frame).encode() + b"\n" + header, values, array.ctypes.data)


class Snapshot:
    """One part of a checkpoint that is being written: the state of the arrays at the time of its making.

    To be made by a thread that lives on until it is written: its processes end when that thread does.
    """

    def __init__(self, to: str, part: int, parts: int, ranges: Sequence[RowRange]) -> None:
        """Begin to write ``ranges`` into the checkpoint folder ``to``, as part ``part`` of ``parts``.

        ``pause_seconds`` is how long that took.

        Raises:
            CheckpointError: the processes cannot be started.
        """
        self._started = time.monotonic()
        self._to = to
        files = [
            _File.of(range_file(held, name), array[: range_rows(held.rows, held.number, held.ranges)])
            for held in ranges
            for name, array in held.arrays.items()
        ]
        try:
            self._writer, pipe = _start_writer(to, part, parts)
        except OSError as error:
            raise CheckpointError(f"{to}: cannot be written: no process could be started: {error}") from error
        try:
            self._child = _fork(files, pipe)
        except OSError as error:
            self._writer.kill()
            self._reap_writer()
            raise CheckpointError(f"{to}: cannot be written: this process could not be forked: {error}") from error
        finally:
            os.close(pipe)
        self._child_status: int | None = None
        self._outcome: Written | CheckpointError | None = None
        self.pause_seconds = time.monotonic() - self._started

    def poll(self) -> Written | None:
        """What was written, or None while it still is being written.

        Raises:
            CheckpointError: it could not be written. The arrays are unharmed.
        """
        if self._outcome is None and self._writer.poll() is not None:
            self._outcome = self._end()
        if isinstance(self._outcome, CheckpointError):
            raise self._outcome
        return self._outcome

    def close(self) -> None:
        """End the writing, if it still goes on."""
        if self._outcome is None:
            self._writer.kill()
            self._end()
            self._outcome = CheckpointError(f"{self._to}: was given up before it was written")

    def _end(self) -> Written | CheckpointError:
        """Reap both processes, the writer of which is ending, and say what came of it."""
        said = self._reap_writer()
        answer = json.loads(said) if said.endswith(b"\n") else {}
        self._reap_child(wait=answer.get("cut_short", False))
        if "name" in answer:
            written = answer.pop("written")
            return Written(SavedPart(**answer), written, time.monotonic() - self._started)
        if answer.get("cut_short"):
            reason = f"the process that held its snapshot {_how(self._child_status)}"
        elif "error" in answer:
            reason = answer["error"]
        else:
            reason = f"the process that wrote it {_how(self._writer.returncode)}"
        return CheckpointError(f"{self._to}: could not be written: {reason}")

    def _reap_writer(self) -> bytes:
        assert self._writer.stdout is not None
        said = self._writer.stdout.read()
        self._writer.stdout.close()
        self._writer.wait()
        return said

    def _reap_child(self, *, wait: bool) -> None:
        """``wait`` for it where it ends by itself, to learn how; else it is of no more use."""
        if not wait:
            os.kill(self._child, signal.SIGKILL)
        _, status = os.waitpid(self._child, 0)
        self._child_status = os.waitstatus_to_exitcode(status)


def _how(code: int | None) -> str:
    assert code is not None
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
                *(sys.executable, *_NOT_FROM_HERE, "-m", "kvstore.checkpoint_writer"),
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


def _fork(files: Sequence[_File], pipe: int) -> int:
    """Fork off a process that sends ``files`` down ``pipe``, and say its id."""
    parent = os.getpid()
    # In the copy signals to a whole group, as a terminal sends them, must not start the stop that they mean here.
    held_before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)
    try:
        child = os.fork()
        if child == 0:
            _send_all(files, pipe, parent)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held_before)
    return child


def _send_all(files: Sequence[_File], pipe: int, parent: int) -> NoReturn:
    """The life of the copy: it touches the arrays and the pipe, and ends without any of Python's tidying."""
    try:
        gc.disable()
        die_with_parent(parent)
        # Whoever waits for the end of another pipe or socket of this process must not have to wait for the copy.
        os.closerange(3, pipe)
        os.closerange(pipe + 1, os.sysconf("SC_OPEN_MAX"))
        for file in files:
            _send(pipe, memoryview(file.lead))
            _send_values(pipe, file)
        _send(pipe, memoryview(b'{"end": true}\n'))
        os._exit(0)
    finally:
        os._exit(1)


def _send_values(pipe: int, file: _File) -> None:
    """Send the values, and give back each page once all of it is sent."""
    kept = -(-file.address // PAGE_BYTES) * PAGE_BYTES
    for start in range(0, len(file.values), _PIECE_BYTES):
        piece = file.values[start : start + _PIECE_BYTES]
        _send(pipe, piece)
        sent = (file.address + start + len(piece)) // PAGE_BYTES * PAGE_BYTES
        give_back(kept, sent - kept)
        kept = max(kept, sent)


def _send(pipe: int, data: memoryview) -> None:
    while data:
        data = data[os.write(pipe, data) :]
