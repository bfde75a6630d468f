"""Writing the Parquet files of a data set, with row groups of a known size.

with staged_output(out, False) as staged, PartWriter(staged, "train", schema, row_group_rows(total)) as writer:
    for batch in batches:
        writer.write(batch)
    files = writer.close()
    staged.publish(Manifest(...))
"""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq

from kvstore.errors import CrossfadeError
from trainer.data.manifest import DataFile
from trainer.data.parquet import file_entry, write_options
from trainer.prepare.staging import Staged

GROUPS_WANTED = 64
GROUP_ROWS_MIN = 1024
GROUP_ROWS_MAX = 131_072
GROUPS_PER_FILE = 64


def row_group_rows(rows: int) -> int:
    """The rows of each row group (the last of a split may have fewer) for a split of ``rows`` interactions.

    Small data is cut into about 64 groups so that several workers share it evenly. Large data is cut into groups of
    131,072: the columns that training reads are about 0.7 MB of each, so that a million interactions a second are 8
    requests a second, which a few connections answer while the time of S3 to the first byte passes; and a lane of the
    reader, which shuffles within what it holds, holds one or two of them in a few MB. Larger ones would save requests
    that nobody waits for, at the price of memory and of fewer groups to deal. 64 groups make a file of about 70 MB.
    """
    wanted = -(-rows // GROUPS_WANTED)
    return min(max(wanted, GROUP_ROWS_MIN), GROUP_ROWS_MAX)


class PartWriter:
    """Writes record batches of any sizes as ``part-00000.parquet``, … with row groups of exactly ``group_rows`` rows.

    Holds at most one row group and one batch in memory. Used with ``with``, an error closes the open file.
    """

    def __init__(self, staged: Staged, folder: str, schema: pa.Schema, group_rows: int) -> None:
        """Write into ``folder`` of what is ``staged``."""
        self._staged = staged
        self._folder = folder
        self._schema = schema
        self._group_rows = group_rows
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = 0
        self._writer: pq.ParquetWriter | None = None
        self._file = ExitStack()
        self._groups_in_file = 0
        self._written = 0
        self._paths: list[str] = []

    def __enter__(self) -> PartWriter:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """After an error, let go of the open file: it is not to appear."""
        if kind is None:
            self._close_file()
        elif self._writer is not None:
            self._file.__exit__(kind, error, trace)

    def write(self, batch: pa.RecordBatch) -> None:
        """Take ``batch``, whose columns are those of the schema in its order; types are cast, never lossily."""
        if batch.schema != self._schema:
            columns = [column.cast(field.type) for column, field in zip(batch.columns, self._schema, strict=True)]
            batch = pa.RecordBatch.from_arrays(columns, schema=self._schema)
        self._pending.append(batch)
        self._pending_rows += batch.num_rows
        if self._pending_rows >= self._group_rows:
            self._write_groups()

    def close(self) -> list[DataFile]:
        """Write what is left and return the files as their own footers describe them.

        Raises:
            CrossfadeError: the footers do not hold the rows that were written.
        """
        self._write_groups()
        if self._pending_rows:
            self._write_group(pa.Table.from_batches(self._pending, schema=self._schema))
            self._pending, self._pending_rows = [], 0
        self._close_file()
        files = [file_entry(self._staged.folder, path) for path in self._paths]
        found = sum(file.rows for file in files)
        if found != self._written:
            raise CrossfadeError(
                f"{self._staged.folder.uri}/{self._folder}: the files hold {found} rows, but {self._written} were "
                "written; the disk or the file system lost some: prepare again, on another disk"
            )
        return files

    def _write_groups(self) -> None:
        table = pa.Table.from_batches(self._pending, schema=self._schema)
        start = 0
        while table.num_rows - start >= self._group_rows:
            self._write_group(table.slice(start, self._group_rows))
            start += self._group_rows
        rest = table.slice(start)
        self._pending, self._pending_rows = rest.to_batches(), rest.num_rows

    def _write_group(self, group: pa.Table) -> None:
        if self._writer is None:
            path = f"{self._folder}/{self._staged.file_name(f'part-{len(self._paths):05d}')}"
            file = self._file.enter_context(self._staged.folder.open_output(path))
            self._writer = pq.ParquetWriter(file, self._schema, **write_options(self._schema))
            self._paths.append(path)
        self._writer.write_table(group, row_group_size=self._group_rows)
        self._written += group.num_rows
        self._groups_in_file += 1
        if self._groups_in_file == GROUPS_PER_FILE:
            self._close_file()

    def _close_file(self) -> None:
        writer, self._writer, self._groups_in_file = self._writer, None, 0
        if writer is not None:
            writer.close()
            self._file.close()
