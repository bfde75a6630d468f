# ruff: noqa: S608  (relations are of this program)
"""The DuckDB working database of a preparation: bounded memory, the rest on disk, and errors in one readable line.

with working_database(folder, memory_bytes=4 << 30, threads=None) as connection:
    connection.execute("CREATE TABLE t AS SELECT 1 AS x")
    count_rows(connection, "t")
"""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

import duckdb
import pyarrow as pa

from crossfade.base.errors import CrossfadeError, Option, Text
from crossfade.base.io.disk_errors import TEMPORARY_ADVICE, full_disk_error, is_full_disk
from crossfade.base.machine import limit_bytes

PREPARING_ADVICE = (
    "name another disk with ",
    Option("out"),
    " and, for temporary files, with ",
    Option("work_dir"),
    " (or TMPDIR)",
)


def identifier(name: str) -> str:
    """Quote ``name`` as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Quote ``text`` as an SQL string, for statements that take no parameters."""
    return "'" + text.replace("'", "''") + "'"


def shuffled(seed: int, number: str) -> str:
    """Return SQL that orders by a hash of ``seed`` and a unique integer, the SQL ``number``."""
    # Hashed twice: DuckDB combines the hashes of several values so cheaply that neighbors stay close together.
    return f"hash(hash({seed}::BIGINT, {number}::BIGINT)), {number}"


def exact_path(path: Path) -> str:
    """Escape ``*``, ``?`` and ``[`` in ``path``, which are wildcards for DuckDB."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in str(path))


def execute(
    connection: duckdb.DuckDBPyConnection, sql: str, parameters: Sequence[object] = ()
) -> list[tuple[object, ...]]:
    """Return all rows of a query, of which there must be few."""
    return [tuple(row) for row in connection.execute(sql, list(parameters)).fetchall()]


def fetch_one(connection: duckdb.DuckDBPyConnection, sql: str, parameters: Sequence[object] = ()) -> tuple[object, ...]:
    """Return the only row of a query."""
    (row,) = execute(connection, sql, parameters)
    return row


def fetch_count(connection: duckdb.DuckDBPyConnection, sql: str, parameters: Sequence[object] = ()) -> int:
    """Return the only value of a query, an integer."""
    value = fetch_one(connection, sql, parameters)[0]
    assert isinstance(value, int)
    return value


def count_rows(connection: duckdb.DuckDBPyConnection, relation: str) -> int:
    """Return the number of rows of ``relation``, which is what follows FROM in a query."""
    return fetch_count(connection, f"SELECT count(*) FROM {relation}")


def execute_on(connection: duckdb.DuckDBPyConnection, part: pa.Table, sql: str) -> None:
    """Execute a statement that selects from ``part``, which is this table."""
    connection.register("part", part)
    connection.execute(sql)
    connection.unregister("part")


def default_memory_bytes() -> int:
    """Return half of the machine's memory, or of the limit of a cgroup if that is less."""
    return limit_bytes() // 2


@contextmanager
def working_database(
    folder: Path, memory_bytes: int | None, threads: int | None, disk_advice: Text = TEMPORARY_ADVICE
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a database in memory that spills to ``folder``, loads no extension and reads no variable of the program.

    ``memory_bytes`` defaults to ``default_memory_bytes()``, ``threads`` to one per core. ``disk_advice`` is how to use
    another disk than that of ``folder``.

    Raises:
        CrossfadeError: DuckDB failed; errors of the user's files are caught closer to the file (``read_errors``).
        KeyboardInterrupt: Ctrl-C; or any other exception that the handler of a signal raised.
    """
    with _translate_errors(folder, disk_advice):
        connection = duckdb.connect()
        try:
            connection.execute("SET autoinstall_known_extensions = false")
            connection.execute("SET autoload_known_extensions = false")
            connection.execute("SET python_enable_replacements = false")
            connection.execute("SET TimeZone = 'UTC'")
            # In a notebook without ipywidgets, the bar is off, and DuckDB rejects even to turn it off.
            if fetch_one(connection, "SELECT current_setting('enable_progress_bar')")[0]:
                connection.execute("SET enable_progress_bar = false")
            connection.execute(f"SET temp_directory = {literal(str(folder / 'spill'))}")
            # All that is free, so that only a full disk ends it: by default it is 90% of that.
            connection.execute(f"SET max_temp_directory_size = '{shutil.disk_usage(folder).free}B'")
            connection.execute(f"SET memory_limit = '{memory_bytes or default_memory_bytes()}B'")
            if threads is not None:
                connection.execute(f"SET threads = {threads:d}")
            yield connection
        finally:
            connection.close()


@contextmanager
def _translate_errors(folder: Path, disk_advice: Text) -> Iterator[None]:
    with _record_signal_exceptions() as raised:
        try:
            yield
        except duckdb.InterruptException:
            raise (raised[-1] if raised else KeyboardInterrupt()) from None
        except duckdb.OutOfMemoryException as error:
            if "failed to offload data block" in str(error):  # what was free at the start is spilled
                raise full_disk_error(folder, disk_advice) from error
            raise CrossfadeError(
                f"the preparation needs more memory or disk space than allowed: {first_line(error)}; raise ",
                Option("memory"),
                ", lower ",
                Option("threads"),
                ", or name a larger disk with ",
                Option("work_dir", "DIR"),
            ) from error
        except duckdb.Error as error:
            if is_full_disk(error):
                raise full_disk_error(folder, disk_advice) from error
            raise CrossfadeError(f"the preparation failed in DuckDB: {first_line(error)}") from error
        except RuntimeError as error:
            if str(error) != "Query interrupted":
                raise
            raise (raised[-1] if raised else KeyboardInterrupt()) from None


@contextmanager
def _record_signal_exceptions() -> Iterator[list[BaseException]]:
    """Record what the handlers of SIGINT and SIGTERM raise: DuckDB only reports that it was interrupted."""
    raised: list[BaseException] = []

    def record(handler: Callable[[int, FrameType | None], object], number: int, frame: FrameType | None) -> None:
        try:
            handler(number, frame)
        except BaseException as error:
            raised.append(error)
            raise

    handlers: dict[int, Callable[[int, FrameType | None], object]] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (int(signal.SIGINT), int(signal.SIGTERM)):
            handler = signal.getsignal(number)
            if callable(handler):
                handlers[number] = handler
                signal.signal(number, partial(record, handler))
    try:
        yield raised
    finally:
        for number, handler in handlers.items():
            if isinstance(signal.getsignal(number), partial):  # else the handler has replaced itself
                signal.signal(number, handler)


def first_line(error: BaseException) -> str:
    """Return the first line of the message of ``error``."""
    return str(error).strip().partition("\n")[0]
