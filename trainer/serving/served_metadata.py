"""The metadata of items in a database on disk, for the conditions and groups of requests: read-only, within limits.

    metadata = ServedMetadata(folder / "metadata.duckdb", data, manifest, "track", has_file=True)
    kept_R = metadata.rows_where("year > 1990")

The file is one of ``write_metadata``. Conditions come from unauthenticated clients: each may use few functions
(``condition.py``), and is evaluated with one thread, bounded memory, no access to files, and interrupted after some
seconds.

Shapes: R rows.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from crossfade.kvstore.arrays import BoolArray
from crossfade.kvstore.errors import InputError
from crossfade.kvstore.io.folder import Folder
from crossfade.trainer.data.manifest import DatasetManifest
from crossfade.trainer.prepare.database import execute
from crossfade.trainer.recommend.metadata_table import GroupLists, MetadataTable
from crossfade.trainer.serving.condition import check_condition

MAX_SECONDS = 2.0
_MEMORY = "512MB"


class ServedMetadata:
    """The metadata of one entity, used by one thread at a time."""

    def __init__(self, path: Path, data: Folder, manifest: DatasetManifest, entity: str, *, has_file: bool) -> None:
        """Open ``path``; ``has_file`` states whether a metadata file was given, for messages."""
        self._connection = duckdb.connect(str(path), read_only=True)
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
            execute(self._connection, f"SET {setting}")
        self._lock = threading.Lock()
        self._table = MetadataTable(self._connection, data, manifest, entity, has_file=has_file)
        self._table.lock()
        self.columns = self._table.columns()
        """The columns that conditions may use."""

    def rows_where(self, condition: str) -> BoolArray:
        """Return which rows meet ``condition``, bool (R,).

        Raises:
            InputError: it is not a condition on the columns, uses a function that is not accepted, or needs too much
                time or memory.
        """
        with self._limited(f"where {condition}"):
            check_condition(self._connection, condition)
            return self._table.rows_where(condition, "where")

    def groups(self, column: str) -> GroupLists:
        """Return the groups of each row by the values of ``column``.

        Raises:
            InputError: there is no such column, or it needs too much time or memory.
        """
        with self._limited(f"max_per {column}"):
            return self._table.groups(column)

    def close(self) -> None:
        """Close the database."""
        self._connection.close()

    @contextmanager
    def _limited(self, request: str) -> Iterator[None]:
        """Interrupt the query of the block after ``MAX_SECONDS``."""
        with self._lock:
            timer = threading.Timer(MAX_SECONDS, self._connection.interrupt)
            timer.daemon = True
            timer.start()
            try:
                yield
            except duckdb.InterruptException as error:
                message = f"{request}: took longer than {MAX_SECONDS:g} seconds; expected a simpler one"
                raise InputError(message) from error
            finally:
                timer.cancel()
