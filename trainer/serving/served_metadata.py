"""The metadata of items, for the conditions and groups of requests, evaluated by processes that can be killed.

    metadata = ServedMetadata(folder / "metadata.duckdb", folder / "data", "track", 10_000, has_file=True)
    kept_R = metadata.rows_where("year > 1990")

Conditions come from unauthenticated clients. One process evaluates each for a moment; what is not done by then is
evaluated again by another process, until the limit. So a slow condition keeps others waiting for a moment only.

Shapes: R rows.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from crossfade.base.arrays import BoolArray
from crossfade.base.errors import CrossfadeError, InputError
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.manifest import read_manifest
from crossfade.trainer.prepare.database import execute
from crossfade.trainer.recommend.metadata_table import GroupLists, MetadataTable
from crossfade.trainer.serving.bounded_process import BoundedProcess, LimitError, TimeLimitError

QUICK_SECONDS, MAX_SECONDS = 0.25, 2.0
MAX_SLOW = 4
"""Questions that take longer than ``QUICK_SECONDS`` which may wait; more are rejected."""
_KEPT_MASKS, _KEPT_GROUPS, _KEPT_FAILURES = 256, 8, 256
_FAILURE_SECONDS = 60.0
"""How long the same question is rejected at once after it took too long."""
_MEMORY = "512MB"
_Question = tuple[str, str]
"""A method of ``MetadataReader`` and its argument."""


class MetadataReader:
    """The metadata of one entity in a database on disk, opened read-only by a separate process with limits."""

    def __init__(self, path: Path, data: Path, entity: str, has_file: bool) -> None:
        """Open what ``write_metadata`` has written; ``has_file`` states whether it had a file, for messages."""
        connection = duckdb.connect(str(path), read_only=True)
        for setting in (
            "threads = 1",
            f"memory_limit = '{_MEMORY}'",
            "max_temp_directory_size = '0B'",
            "TimeZone = 'UTC'",
            "autoinstall_known_extensions = false",
            "autoload_known_extensions = false",
            "python_enable_replacements = false",
            "enable_progress_bar = false",
        ):
            execute(connection, f"SET {setting}")
        folder = Folder(data)
        self._table = MetadataTable(connection, folder, read_manifest(folder), entity, has_file=has_file)
        self._table.lock()
        self.rows_where("true")  # has what DuckDB loads for the first condition not count for the limit of a client's

    def columns(self) -> list[str]:
        """Return the columns that conditions may use."""
        return self._table.columns()

    def rows_where(self, condition: str) -> bytes:
        """Return which rows meet ``condition``, a bit for each of R.

        Raises:
            InputError: it is not a condition on the columns, or has parts that are not accepted.
        """
        return np.packbits(self._table.rows_where(condition)).tobytes()

    def groups(self, column: str) -> GroupLists:
        """Return the groups of each row by the values of ``column``.

        Raises:
            InputError: there is no such column.
        """
        return self._table.groups(column)


class OverloadedError(CrossfadeError):
    """Too much is waiting to be answered."""


class ServedMetadata:
    """The metadata of one entity, used by any thread. Answers are kept, those that were used last."""

    def __init__(self, path: Path, data: Path, entity: str, rows: int, *, has_file: bool) -> None:
        """Read ``path`` and the manifest in ``data``; ``has_file`` states whether a file was given, for messages."""
        self._rows = rows
        self._quick, self._slow = (BoundedProcess(MetadataReader, (path, data, entity, has_file)) for _ in range(2))
        self._answers = {"rows_where": _Kept(_KEPT_MASKS), "groups": _Kept(_KEPT_GROUPS)}
        self._failures = _Kept(_KEPT_FAILURES)
        self._columns: list[str] | None = None
        self._slow_places = threading.BoundedSemaphore(MAX_SLOW)

    @property
    def columns(self) -> list[str]:
        """The columns that conditions may use."""
        if self._columns is None:
            self._columns = self._quick.ask("columns", seconds=MAX_SECONDS)
        return self._columns

    def start(self) -> None:
        """Start the processes, so that the first question does not wait for them.

        Raises:
            CrossfadeError: they cannot read the metadata.
        """
        self._quick.start()
        self._slow.start()

    def has(self, condition: str | None, column: str | None) -> bool:
        """Return whether the rows of ``condition`` and the groups of ``column`` are at hand."""
        return all(
            argument is None or self._answers[method].get(argument) is not None
            for method, argument in (("rows_where", condition), ("groups", column))
        )

    def rows_where(self, condition: str) -> BoolArray:
        """Return which rows meet ``condition``, bool (R,).

        Raises:
            InputError: it is not a condition on the columns, uses a function that is not accepted, or needs too much
                time or memory.
            OverloadedError: too many conditions that need long are waiting.
        """
        bits = np.frombuffer(self._ask(("rows_where", condition), f"where {condition}"), np.uint8)
        return np.unpackbits(bits, count=self._rows).astype(np.bool_)

    def groups(self, column: str) -> GroupLists:
        """Return the groups of each row by the values of ``column``.

        Raises:
            InputError: there is no such column, or it needs too much time or memory.
            OverloadedError: too many requests that need long are waiting.
        """
        groups: GroupLists = self._ask(("groups", column), f"max_per {column}")
        return groups

    def close(self) -> None:
        """End the processes."""
        self._quick.close()
        self._slow.close()

    def _ask(self, question: _Question, named: str) -> Any:
        method, argument = question
        kept = self._answers[method]
        answer = kept.get(argument)
        if answer is None:
            until, problem = self._failures.get(question) or (0.0, "")
            if time.monotonic() < until:
                raise InputError(problem)
            answer = self._evaluate(question, named)
            kept.put(argument, answer)
        return answer

    def _evaluate(self, question: _Question, named: str) -> Any:
        try:
            with suppress(TimeLimitError):
                return self._quick.ask(*question, seconds=QUICK_SECONDS)
            with self._slow_place(named):
                return self._slow.ask(*question, seconds=MAX_SECONDS)
        except LimitError as error:
            problem = f"{named}: {error}; expected a simpler condition"
            self._failures.put(question, (time.monotonic() + _FAILURE_SECONDS, problem))
            raise InputError(problem) from error

    @contextmanager
    def _slow_place(self, named: str) -> Iterator[None]:
        if not self._slow_places.acquire(blocking=False):
            raise OverloadedError(f"{named}: needs long, and {MAX_SLOW} others that do are waiting; try again later")
        try:
            yield
        finally:
            self._slow_places.release()


class _Kept:
    """The values that were used last, by key; used by any thread."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._values: OrderedDict[Any, Any] = OrderedDict()

    def get(self, key: object) -> Any:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: object, value: Any) -> None:
        with self._lock:
            self._values[key] = value
            while len(self._values) > self._most:
                self._values.popitem(last=False)
