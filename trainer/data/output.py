"""Writing a prepared data set: a folder that is whole or absent, and Parquet files with row groups of a known size.

with staged_folder(out, overwrite=False) as partial:
    writer = PartWriter(partial, "train", schema, row_group_rows(total))
    for batch in batches:
        writer.write(batch)
    files = writer.close()
    Manifest(...).write(Folder(partial))
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq

from kvstore.errors import CrossfadeError, InputError
from kvstore.storage import Folder
from trainer.data.manifest import FILE_NAME, SPLITS, VOCABULARY, DataFile, read_manifest
from trainer.data.parquet_files import describe, write_options

GROUPS_WANTED = 64
GROUP_ROWS_MIN = 1024
GROUP_ROWS_MAX = 131_072
GROUPS_PER_FILE = 64
WORK = ".work"
JOURNAL = "forget.json"

_OURS = {FILE_NAME, VOCABULARY, *SPLITS, JOURNAL}


def row_group_rows(rows: int) -> int:
    """The rows of each row group (the last of a split may have fewer) for a split of ``rows`` interactions.

    Small data is cut into about 64 groups so that several workers share it evenly; large data into groups that one
    read fetches well.
    """
    wanted = -(-rows // GROUPS_WANTED)
    return min(max(wanted, GROUP_ROWS_MIN), GROUP_ROWS_MAX)


class PartWriter:
    """Writes record batches of any sizes as ``part-00000.parquet``, … with row groups of exactly ``group_rows`` rows.

    Holds at most one row group and one batch in memory. Used with ``with``, an error closes the open file.
    """

    def __init__(self, root: Path, folder: str, schema: pa.Schema, group_rows: int) -> None:
        """Write below ``root / folder``, which is made; paths in the manifest are relative to ``root``."""
        self._root = root
        self._folder = folder
        self._schema = schema
        self._group_rows = group_rows
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = 0
        self._writer: pq.ParquetWriter | None = None
        self._groups_in_file = 0
        self._written = 0
        self._paths: list[str] = []
        (root / folder).mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> PartWriter:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the open file, whole or not."""
        self._close_file()

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
        files = [describe(Folder(self._root), path) for path in self._paths]
        found = sum(file.rows for file in files)
        if found != self._written:
            raise CrossfadeError(
                f"{self._root / self._folder}: the files hold {found} rows, but {self._written} were written; "
                "the disk or the file system lost some: prepare again, on another disk"
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
            path = f"{self._folder}/part-{len(self._paths):05d}.parquet"
            self._writer = pq.ParquetWriter(self._root / path, self._schema, **write_options(self._schema))
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


def check_free(out: Path, overwrite: bool) -> None:
    """Refuse an ``out`` that exists, unless ``overwrite`` is given and it holds prepared data and nothing else.

    Raises:
        InputError: it exists and may not be replaced.
    """
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise InputError(f"{out}: exists already; choose another --out, or replace prepared data with --overwrite")
    if out.is_symlink() or not out.is_dir():
        raise InputError(
            f"{out}: is not a folder of prepared data, so --overwrite leaves it alone; choose another --out"
        )
    try:
        read_manifest(Folder(out))
    except InputError as error:
        raise InputError(
            f"{out}: holds no prepared data, so --overwrite leaves it alone; choose another --out ({error})"
        ) from None
    foreign = sorted(entry.name for entry in out.iterdir() if entry.name not in _OURS)
    if foreign:
        raise InputError(
            f"{out}: holds '{foreign[0]}', which --overwrite would delete; move it, or choose another --out"
        )


@contextmanager
def staged_folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """A folder beside ``out`` that becomes ``out`` when the block ends well, and vanishes when it does not.

    ``WORK`` inside it may hold temporary files; it is removed before the folder is moved.

    Raises:
        InputError: ``out`` exists and may not be replaced, or its parent cannot be written.
    """
    check_free(out, overwrite)
    out = out.absolute()
    partial = out.with_name(f"{out.name}.partial-{os.getpid()}")
    made = [parent for parent in partial.parents if not parent.exists()]
    try:
        if partial.exists():
            shutil.rmtree(partial)
        (partial / WORK).mkdir(parents=True)
    except OSError as error:
        _remove(partial, made)
        raise InputError(
            f"{partial.parent}: cannot be written: {error.strerror or error}; choose another --out"
        ) from error
    try:
        yield partial
        shutil.rmtree(partial / WORK)
        check_free(out, overwrite)
        _swap(partial, out)
    except BaseException:
        _remove(partial, made)
        raise


def _remove(partial: Path, made: list[Path]) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    for parent in made:
        try:
            parent.rmdir()
        except OSError:
            return  # never made, or somebody else uses it by now


def _swap(partial: Path, out: Path) -> None:
    if not os.path.lexists(out):
        partial.rename(out)
        return
    old = out.with_name(f"{out.name}.old-{os.getpid()}")
    out.rename(old)
    try:
        partial.rename(out)
    except BaseException:
        old.rename(out)
        raise
    shutil.rmtree(old)
