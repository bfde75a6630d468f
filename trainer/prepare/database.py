"""The DuckDB database that a preparation works in: on disk, with bounded memory and errors that a person can read."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

import duckdb

from kvstore.errors import CrossfadeError

_DEFAULT_MEMORY_BYTES = 4 << 30


def identifier(name: str) -> str:
    """``name`` as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """``text`` as an SQL string, for statements that take no parameters."""
    return "'" + text.replace("'", "''") + "'"


def exact_path(path: Path) -> str:
    """``path`` for DuckDB, which would otherwise take ``*``, ``?`` and ``[`` in it for wildcards."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in str(path))


def execute(
    connection: duckdb.DuckDBPyConnection, sql: str, parameters: Sequence[object] = ()
) -> list[tuple[object, ...]]:
    """Run a statement to its end and return its rows, of which there must be few."""
    return [tuple(row) for row in connection.execute(sql, list(parameters)).fetchall()]


def fetch_one(connection: duckdb.DuckDBPyConnection, sql: str, parameters: Sequence[object] = ()) -> tuple[object, ...]:
    """The only row of a query."""
    (row,) = execute(connection, sql, parameters)
    return row


def fetch_count(connection: duckdb.DuckDBPyConnection, sql: str, parameters: Sequence[object] = ()) -> int:
    """The only value of a query that counts."""
    value = fetch_one(connection, sql, parameters)[0]
    assert isinstance(value, int)
    return value


def default_memory_bytes() -> int:
    """Half of the machine's memory, and 4 GiB at most."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(_DEFAULT_MEMORY_BYTES, machine // 2)


@contextmanager
def working_database(
    folder: Path, memory_bytes: int | None, threads: int | None
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database below ``folder`` that spills there, loads no extension and reads no variable of the program.

    Raises:
        CrossfadeError: DuckDB failed; what the user's files are to blame for is to be caught closer to the file.
        KeyboardInterrupt: Ctrl-C; or whatever else the handler of a signal raised.
    """
    with _errors_translated():
        connection = duckdb.connect(str(folder / "events.duckdb"))
        try:
            execute(connection, "SET autoinstall_known_extensions = false")
            execute(connection, "SET autoload_known_extensions = false")
            execute(connection, "SET python_enable_replacements = false")
            execute(connection, "SET TimeZone = 'UTC'")
            execute(connection, "PRAGMA disable_checkpoint_on_shutdown")  # nobody opens this database again
            execute(connection, "SET enable_progress_bar = false")
            execute(connection, f"SET temp_directory = {literal(str(folder / 'spill'))}")
            execute(connection, f"SET memory_limit = '{memory_bytes or default_memory_bytes()}B'")
            if threads is not None:
                execute(connection, f"SET threads = {threads:d}")
            yield connection
        finally:
            connection.close()


@contextmanager
def _errors_translated() -> Iterator[None]:
    with _signals_remembered() as raised:
        try:
            yield
        except duckdb.InterruptException:
            raise (raised[-1] if raised else KeyboardInterrupt()) from None
        except duckdb.OutOfMemoryException as error:
            raise CrossfadeError(
                f"the preparation needs more memory or room on disk than it may use: {first_line(error)}; "
                "raise --memory, lower --threads, or name a larger disk with --work-dir DIR"
            ) from error
        except duckdb.Error as error:
            raise CrossfadeError(f"the preparation failed in DuckDB: {first_line(error)}") from error
        except RuntimeError as error:
            if str(error) != "Query interrupted":
                raise
            raise (raised[-1] if raised else KeyboardInterrupt()) from None


@contextmanager
def _signals_remembered() -> Iterator[list[BaseException]]:
    """What the handlers of SIGINT and SIGTERM raise while this lasts: DuckDB would say no more than 'interrupted'."""
    raised: list[BaseException] = []

    def remember(handler: Callable[[int, FrameType | None], object], number: int, frame: FrameType | None) -> None:
        try:
            handler(number, frame)
        except BaseException as error:
            raised.append(error)
            raise

    handlers: dict[int, Callable[[int, FrameType | None], object]] = {}
    if threading.current_thread() is threading.main_thread():
        for watched in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(watched)
            if callable(handler):
                handlers[watched] = handler
                signal.signal(watched, partial(remember, handler))
    try:
        yield raised
    finally:
        for number, handler in handlers.items():
            if isinstance(signal.getsignal(number), partial):  # else the handler has put another in its place
                signal.signal(number, handler)


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return str(error).strip().partition("\n")[0]
