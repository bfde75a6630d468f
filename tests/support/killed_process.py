"""Run functions in processes that are killed: at a chosen system call, or while they hold something.

killed_at(7, work)                        # it is killed at its seventh system call; False if it ends before
with holding(enter) as pid: ...           # it has entered the context ``enter()`` and stays there; killed at the end
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any


def killed_at(point: int, work: Callable[[], object]) -> bool:
    """Run ``work`` in a process that is killed at its point number ``point``, from 1; return whether it came so far.

    Points are before each system call by a function of ``os``, and before and after a function ``_exchange``.
    """
    pid = os.fork()
    if pid == 0:
        try:
            sys.setprofile(_Killer(point))
            work()
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "the work failed"
    return False


class _Killer:
    def __init__(self, point: int) -> None:
        self._left = point

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event in ("call", "return"):
            counts = frame.f_code.co_name == "_exchange"
        else:
            counts = event == "c_call" and getattr(argument, "__module__", None) == "posix"
        if counts:
            self._left -= 1
            if not self._left:
                os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def holding(enter: Callable[[], AbstractContextManager[object]]) -> Iterator[int]:
    """Run a process that has entered ``enter()`` while the context lasts; yield its ID. It is killed at the end."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            with enter():
                os.write(write_end, b"1")
                signal.pause()
        finally:
            os._exit(1)
    os.close(write_end)
    try:
        assert os.read(read_end, 1) == b"1", "the process could not enter"
        yield pid
    finally:
        os.close(read_end)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
