"""Answer questions in a child process that is killed, and replaced, when an answer takes too long or too much memory.

    process = BoundedProcess(BodyReader)
    process.ask("read", "recommend", b"{}", seconds=2.0)        # BodyReader().read("recommend", b"{}")
    process.close()

A parser of JSON cannot be interrupted within a call, and keeps Python's lock. Children are forked by a process that has
imported this module, so that another one starts quickly.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.util import get_temp_dir
from typing import Any

import psutil

from crossfade.base.errors import CrossfadeError, InputError
from crossfade.base.processes import die_with_parent
from crossfade.trainer.prepare.database import first_line

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__])
_START_SECONDS = 60.0
_MEMORY_BYTES = 1 << 30
"""How much a child may allocate beyond what it has once it is ready."""
_MAX_FOLDER_BYTES = 70
"""The longest temporary folder for the socket of the fork server, whose address may have 107 bytes."""
_NICENESS = 5
"""Questions that take long leave time to the others."""
_logger = logging.getLogger(__name__)


class LimitError(CrossfadeError):
    """An answer needed too much memory, or ended the process; the message is about the answer."""


class TimeLimitError(LimitError):
    """An answer took too long."""


class BoundedProcess:
    """A child process with an object that answers one question at a time; other threads wait."""

    def __init__(self, make: Callable[..., object], arguments: tuple[object, ...] = ()) -> None:
        """Have ``make(*arguments)``, which can be pickled, build the object in the child, once it is needed."""
        self._make, self._arguments = make, arguments
        self._lock = threading.Lock()
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None
        self._is_ready = False

    def start(self) -> None:
        """Start the child, so that the first question does not wait for it.

        Raises:
            CrossfadeError: the child cannot start.
        """
        with self._lock:
            self._ready()

    def ask(self, method: str, *arguments: object, seconds: float) -> Any:
        """Return what ``method`` of the object returns for ``arguments``.

        Raises:
            InputError: the method raised it.
            LimitError: the answer needs too much memory, or, as a TimeLimitError, longer than ``seconds``, not counting
                questions before it.
        """
        with self._lock:
            connection = self._ready()
            try:
                connection.send((method, arguments))
                if not connection.poll(seconds):
                    self._replace()
                    raise TimeLimitError(f"took longer than {seconds:g} seconds")
                error, answer = connection.recv()
            except (EOFError, OSError):
                self._replace()
                raise LimitError("ended the process that evaluates it") from None
        if error is not None:
            raise error(answer)
        return answer

    def close(self) -> None:
        """End the child, after the question that it is answering."""
        with self._lock:
            self._kill()

    def _ready(self) -> Connection:
        """Return the connection to a child that is ready."""
        if self._connection is None:
            self._begin()
        assert self._connection is not None
        if not self._is_ready:
            try:
                problem = self._connection.recv() if self._connection.poll(_START_SECONDS) else "it takes too long"
            except (EOFError, OSError):
                problem = "it ended"
            if problem is not None:
                self._kill()
                raise CrossfadeError(f"a process for bodies of requests cannot start: {problem}")
            self._is_ready = True
        return self._connection

    def _begin(self) -> None:
        if len(os.fsencode(tempfile.gettempdir())) > _MAX_FOLDER_BYTES:
            _place_sockets_in("/tmp")  # noqa: S108 - a new folder in it, which is private
        self._connection, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(
            target=_answer_questions, args=(theirs, self._make, self._arguments), name="questions", daemon=True
        )
        self._process.start()
        theirs.close()

    def _replace(self) -> None:
        """Kill the child, and start another one without waiting for it."""
        self._kill()
        self._begin()

    def _kill(self) -> None:
        if self._process is not None and self._connection is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
        self._process, self._connection, self._is_ready = None, None, False


def _place_sockets_in(folder: str) -> None:
    """Have multiprocessing place its sockets in a new folder in ``folder``, unless it has placed some."""
    before, tempfile.tempdir = tempfile.tempdir, folder
    try:
        get_temp_dir()  # keeps the folder that it creates
    finally:
        tempfile.tempdir = before


def _answer_questions(connection: Connection, make: Callable[..., Any], arguments: tuple[object, ...]) -> None:
    """Build the object in this child process, then answer one question after another until the parent closes."""
    die_with_parent(os.getppid())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when it ends
    os.nice(_NICENESS)
    try:
        answering = make(*arguments)
    except Exception as error:  # the parent reports it
        connection.send(f"{type(error).__name__}: {error}")
        return
    if sys.platform.startswith("linux"):
        limit = psutil.Process().memory_info().vms + _MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    connection.send(None)
    while True:
        try:
            method, parameters = connection.recv()
        except EOFError:
            return
        connection.send(_answer(getattr(answering, method), parameters))


def _answer(ask: Callable[..., object], arguments: tuple[object, ...]) -> tuple[type[CrossfadeError] | None, object]:
    """Return the class of an error and its message, or None and the answer."""
    try:
        return None, ask(*arguments)
    except InputError as error:
        return InputError, str(error)
    except MemoryError:
        return LimitError, "needs too much memory"
    except Exception as error:  # the next question must be answered whatever this one does
        _logger.warning(f"a question was rejected: {type(error).__name__}: {first_line(error)}")
        return LimitError, "cannot be evaluated"
