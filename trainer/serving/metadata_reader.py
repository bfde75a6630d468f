"""The metadata of items in a database on disk, opened by a process of its own: read-only, within limits.

    process = BoundedProcess(MetadataReader, (folder / "metadata.duckdb", folder / "data", "track", True))
    process.ask("rows_where", "year > 1990", seconds=2.0)

Shapes: R rows.
"""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np

from crossfade.base.io.folder import Folder
from crossfade.trainer.data.manifest import read_manifest
from crossfade.trainer.prepare.database import execute
from crossfade.trainer.recommend.metadata_table import GroupLists, MetadataTable

_MEMORY = "512MB"


class MetadataReader:
    """The metadata of one entity."""

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
        return np.packbits(self._table.rows_where(condition, "where")).tobytes()

    def groups(self, column: str) -> GroupLists:
        """Return the groups of each row by the values of ``column``.

        Raises:
            InputError: there is no such column.
        """
        return self._table.groups(column)
