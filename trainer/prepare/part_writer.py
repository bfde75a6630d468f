"""Write the Parquet files of a dataset, with row groups of a given size.

with staged_output(out, False) as staged, PartWriter(staged, "train", schema, row_group_rows(total)) as writer:
    for batch in batches:
        writer.write(batch)
    files = writer.close()
    staged.publish(DatasetManifest(...))
"""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq

from crossfade.base.errors import CrossfadeError
from crossfade.trainer.data.manifest import DataFile
from crossfade.trainer.data.parquet import file_entry, write_options
from crossfade.trainer.prepare.staging import Staged

_TARGET_GROUPS = 64
GROUP_ROWS_MIN = 1024
GROUP_ROWS_MAX = 131_072
GROUPS_PER_FILE = 64


def row_group_rows(rows: int) -> int:
    """Return the rows per row group for a split of ``rows`` interactions; the last group may have fewer.

    Small data are cut into about 64 groups, so that several workers share them evenly. Large data are cut into groups
    of 131,072 rows: the columns that training reads take about 0.7 MB of each, so that a million interactions per
    second need 8 requests per second, which a few connections serve despite the first-byte latency of S3; and a
    partition of the reader, which shuffles the rows that it holds, holds one or two groups in a few MB. Larger groups
    would save requests that are no bottleneck, but take more memory and leave fewer groups to assign to workers.
    64 groups make a file of about 70 MB.
    """
    target = -(-rows // _TARGET_GROUPS)
    return min(max(target, GROUP_ROWS_MIN), GROUP_ROWS_MAX)


class PartWriter:
    """Writes record batches of any size as ``part-00000.parquet``, … with row groups of exactly ``group_rows`` rows.

    Holds at most one row group and one batch in memory. As a context manager, it discards the open file on errors.
    """

    def __init__(self, staged: Staged, folder: str, schema: pa.Schema, group_rows: int) -> None:
        self._staged = staged
        self._folder = folder
        self._schema = schema
        self._group_rows = group_rows
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = 0
        self._writer: pq.ParquetWriter | None = None
        self._file = ExitStack()
        self._groups_in_file = 0
        self._rows = 0
        self._paths: list[str] = []

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the open file; after an error, discard it, so that it does not appear."""
        if kind is None:
            self._close_file()
        elif self._writer is not None:
            self._file.__exit__(kind, error, trace)

    def write(self, batch: pa.RecordBatch) -> None:
        """Write ``batch``, whose columns are those of the schema, in order; types are cast if that loses nothing."""
        if batch.schema != self._schema:
            columns = [column.cast(field.type) for column, field in zip(batch.columns, self._schema, strict=True)]
            batch = pa.RecordBatch.from_arrays(columns, schema=self._schema)
        self._pending.append(batch)
        self._pending_rows += batch.num_rows
        if self._pending_rows >= self._group_rows:
            self._write_groups()

    def close(self) -> list[DataFile]:
        """Write the last rows and return the files as their footers describe them.

        Raises:
            CrossfadeError: the footers do not account for all rows that were written.
        """
        self._write_groups()
        if self._pending_rows:
            self._write_group(pa.Table.from_batches(self._pending, schema=self._schema))
            self._pending, self._pending_rows = [], 0
        self._close_file()
        files = [file_entry(self._staged.folder, path) for path in self._paths]
        found = sum(file.rows for file in files)
        if found != self._rows:
            raise CrossfadeError(
                f"{self._staged.folder.uri}/{self._folder}: the files hold {found} rows, but {self._rows} were "
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
        self._rows += group.num_rows
        self._groups_in_file += 1
        if self._groups_in_file == GROUPS_PER_FILE:
            self._close_file()

    def _close_file(self) -> None:
        writer, self._writer, self._groups_in_file = self._writer, None, 0
        if writer is not None:
            writer.close()
            self._file.close()
