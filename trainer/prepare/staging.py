"""Write a dataset completely or not at all, to a folder or to a prefix on S3.

with staged_output("s3://music/lastfm", overwrite=True) as staged:
    ...                                 # write files into staged.folder, temporary ones into staged.work
    staged.publish(manifest)

On a file system the files are written to a folder next to the output and moved there in one step. On S3, where nothing
can be moved, they get unique names; the manifest, written last, makes them the dataset, and then the files of the
dataset before it are deleted. If the block ends without ``publish``, nothing remains. A lock keeps
other processes from writing the same output; on S3, the manifest also replaces only the one that was there when the
block began.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from crossfade.base.errors import CrossfadeError, InputError, Option, StorageUnavailableError
from crossfade.base.io.durable_file import is_partial
from crossfade.base.io.folder import Folder
from crossfade.base.io.output import staged_folder
from crossfade.base.io.replacing import check_replaceable, replace_folder
from crossfade.base.io.s3 import ChangedError
from crossfade.base.io.storage_errors import translate_storage_errors
from crossfade.base.io.temporary_folder import temporary_folder
from crossfade.base.io.writer_lock import LOCK_NAME, WriterLock, folder_writer
from crossfade.trainer.data.manifest import (
    BASELINES_FILE,
    CONTENT,
    EARLIER,
    FEATURES,
    FILE_NAME,
    PENDING,
    REPLAY,
    VOCABULARY,
    DataFile,
    DatasetManifest,
    read_manifest,
)
from crossfade.trainer.data.parquet import GROUP_ROWS_MAX, ParquetFiles, file_entry, write_options
from crossfade.trainer.data.reporter import NullReporter, ProgressReporter
from crossfade.trainer.data.split_names import ALL_SPLITS

ATTEMPTS = ".attempts"
"""The folder of files that are not of the dataset, which a preparation on Spark writes and deletes."""
_OUT, _OVERWRITE = Option("out"), Option("overwrite")
_OF_INTERACTIONS = (*ALL_SPLITS, REPLAY)
_OURS = re.compile(
    rf"(?:(?:{VOCABULARY}|{PENDING}|{EARLIER})/[^/]+|(?:{FEATURES}|{CONTENT})/[^/]+/[^/]+|{'|'.join(_OF_INTERACTIONS)})"
    rf"/part-[0-9a-z-]+\.parquet|\{ATTEMPTS}/.+|{'|'.join(map(re.escape, (FILE_NAME, BASELINES_FILE, LOCK_NAME)))}"
)
"""The names of files that preparations write."""


@dataclass
class Staged:
    """A dataset that is being written.

    Attributes:
        out: Where it is published.
        overwrite: Whether it may replace a dataset there.
        folder: Where its files are written.
        work: A local folder for temporary files.
        lock: The lock of the dataset at ``out``; None if there is none yet on a file system.
        tag: A suffix of the file names that makes them unique; empty on file systems.
    """

    out: Folder
    overwrite: bool
    folder: Folder
    work: Path
    lock: WriterLock | None
    tag: str = ""

    def __post_init__(self) -> None:
        self._replaced = self.out.version(FILE_NAME) if self.tag else None
        self.is_published = False

    def file_name(self, stem: str) -> str:
        """Return the name of the Parquet file ``stem``."""
        return f"{stem}{self.tag}.parquet"

    def publish(self, manifest: DatasetManifest | None) -> None:
        """Publish the files that were written, replacing a dataset that may be overwritten.

        ``manifest`` is None for files that need none, such as raw events.

        Raises:
            InputError: something else has been written there since the check.
            CrossfadeError: another process has written it meanwhile, or the dataset is complete, but files of the one
                before it could not be deleted.
        """
        if manifest is not None and not self.out.on_s3:
            manifest.write(self.folder)
        check_free(self.out, self.overwrite, self.tag)
        try:
            if self.lock is not None:
                self.lock.check()
            if not self.out.on_s3:
                replace_folder(_path(self.out), _path(self.folder))
            elif manifest is not None:
                self._replace_on_s3(manifest)
            self.is_published = True
        except ChangedError as error:
            raise CrossfadeError(
                f"{self.out.uri}: another process has written it since this command began, so the new dataset was "
                f"discarded; run the command again ({error})"
            ) from error

    def delete_leftovers(self) -> None:
        """Delete what a command that was killed has left on S3: objects of the dataset that this one has replaced."""
        if self.out.on_s3:
            assert self.lock is not None
            self.lock.check()
            listed = {FILE_NAME, BASELINES_FILE, LOCK_NAME, *(file.path for file in read_manifest(self.out).files())}
            for name in self.out.sizes().keys() - listed:
                self.out.remove(name)

    def _replace_on_s3(self, manifest: DatasetManifest) -> None:
        # Listed before the manifest is written: a process that writes here later loses nothing.
        others = [name for name in self.folder.sizes() if name not in (FILE_NAME, LOCK_NAME) and self.tag not in name]
        manifest.write_over(self.folder, self._replaced)
        try:
            for name in others:
                self.folder.remove(name)
        except OSError as error:
            raise CrossfadeError(
                f"{self.out.uri}: the new dataset is complete, but files of the old one could not be deleted: {error}; "
                f"nothing reads them: delete the files without '{self.tag}' in their names"
            ) from error


def check_free(out: Folder, overwrite: bool, tag: str = "") -> None:
    """Reject an ``out`` that exists, unless ``overwrite`` is given and it holds a prepared dataset and nothing else.

    On S3, ``tag`` marks the objects of this preparation.

    Raises:
        InputError: it exists and may not be replaced, or it cannot be read.
    """
    with translate_storage_errors(Option("out", out.uri), unreachable=StorageUnavailableError if tag else InputError):
        if out.path is not None:
            check_replaceable(out.path, overwrite, "prepared data", lambda: _find_foreign(out))
            return
        found = {name for name in out.sizes() if name != LOCK_NAME and (not tag or tag not in name)}
        if not found:
            return
        if not overwrite:
            is_complete = FILE_NAME in found
            state = "exists already" if is_complete else "holds files that another preparation left or is writing"
            raise InputError(f"{out.uri}: {state}; choose another ", _OUT, ", or replace it with ", _OVERWRITE)
        foreign = _find_foreign(out) if FILE_NAME in found else foreign_name(out)
        if foreign is not None:
            raise InputError(
                f"{out.uri}: holds '{foreign}', which ", _OVERWRITE, " would delete; move it, or choose another ", _OUT
            )


def _find_foreign(out: Folder) -> str | None:
    try:
        listed = {file.path for file in read_manifest(out).files()}
    except InputError as error:
        raise InputError(
            f"{out.uri}: holds no prepared data, so ",
            _OVERWRITE,
            " does not replace it; choose another ",
            _OUT,
            f" ({error})",
        ) from None
    return foreign_name(out, listed)


def foreign_name(out: Folder, listed: Set[str] = frozenset()) -> str | None:
    """Return the name of an entry of ``out`` that is neither ``listed`` nor of a preparation; None if there is none."""
    links = (path for path in out.path.rglob("*") if path.is_symlink()) if out.path is not None else ()
    if (link := min(links, default=None)) is not None:  # no preparation makes one
        return link.relative_to(str(out.path)).as_posix()
    # A file that another command is writing, or was when it was killed, is none of its user's.
    names = (name for name in out.sizes() if not _OURS.fullmatch(name) and not is_partial(name.rpartition("/")[2]))
    return min((name for name in names if name not in listed), default=None)


def read_complete(out: Folder) -> DatasetManifest | None:
    """Return the manifest of the dataset in ``out``, or None if it has none or lacks a file of the right size.

    Raises:
        InputError: the folder cannot be read, or its manifest is not one of this format version.
    """
    with translate_storage_errors(Option("out", out.uri), unreachable=InputError):
        sizes = out.sizes()
        if FILE_NAME not in sizes:
            return None
        manifest = read_manifest(out)
    return manifest if all(sizes.get(file.path) == file.bytes for file in manifest.files()) else None


@contextmanager
def staged_output(out: str | os.PathLike[str], overwrite: bool, work: Path | None = None) -> Iterator[Staged]:
    """Stage a dataset to write at ``out``, a path or URI; nothing of it remains unless it is published.

    Temporary files go to a new folder in ``work``; by default next to a local ``out``, else to the system's folder of
    temporary files.

    Raises:
        InputError: ``out`` exists and may not be replaced, it or ``work`` cannot be written, or another process writes
            ``out``.
    """
    folder = Folder(out)
    if not folder.on_s3 and not overwrite:
        check_free(folder, overwrite)
    with ExitStack() as stack:
        # Entered first, so that it is removed last: a folder created for ``out`` may lie in it.
        own = stack.enter_context(_work_folder(work)) if work is not None or folder.on_s3 else None
        if folder.on_s3:
            assert own is not None
            yield stack.enter_context(_stage_on_s3(folder, overwrite, own))
        else:
            yield stack.enter_context(_stage_locally(folder, overwrite, own))


@contextmanager
def _work_folder(parent: Path | None) -> Iterator[Path]:
    with ExitStack() as stack:
        try:
            work = stack.enter_context(temporary_folder("prepare", parent))
        except OSError as error:
            raise InputError(
                Option("work_dir", parent), f": cannot be written: {error.strerror or error}; choose another"
            ) from error
        yield work


@contextmanager
def _stage_locally(out: Folder, overwrite: bool, work: Path | None) -> Iterator[Staged]:
    target = _path(out).absolute()
    if target.is_mount():
        raise InputError(
            f"{target}: is a mount point, which cannot be replaced in one step; keep the dataset in a folder of it"
        )
    with ExitStack() as stack:
        try:
            partial = stack.enter_context(staged_folder(target))
            inner = partial.with_name(f"{partial.name}.work")
            stack.callback(shutil.rmtree, inner, ignore_errors=True)
            if work is None:
                inner.mkdir()
        except OSError as error:
            raise InputError(
                f"{target.parent}: cannot be written: {error.strerror or error}; choose another ", _OUT
            ) from error
        is_folder = target.is_dir() and not target.is_symlink()
        lock = stack.enter_context(folder_writer(out)) if is_folder else None
        check_free(out, overwrite)
        yield Staged(out, overwrite, Folder(partial), work or inner, lock)


@contextmanager
def _stage_on_s3(out: Folder, overwrite: bool, work: Path) -> Iterator[Staged]:
    tag = f"-{uuid.uuid4().hex[:12]}"
    with ExitStack() as stack:
        with translate_storage_errors(Option("out", out.uri), unreachable=InputError):
            out.names()  # of a bucket that does not exist, which some servers would create by the lock
            lock = stack.enter_context(folder_writer(out))
            check_free(out, overwrite)
            staged = Staged(out, overwrite, out, work, lock, tag)
        try:
            yield staged
        finally:
            if not (staged.is_published or _is_published(out, tag)):
                _delete_tagged(out, tag)


def _is_published(out: Folder, tag: str) -> bool:
    """Return whether the manifest was written, so that the error came after it."""
    try:
        return tag.encode() in out.read(FILE_NAME)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # unknown: leftover files are better than a dataset that lacks files


def _delete_tagged(out: Folder, tag: str) -> None:
    with suppress(OSError):  # the error that ended the preparation is reported, and is most likely the same
        for name in out.sizes():
            if tag in name:
                out.remove(name)


def _path(folder: Folder) -> Path:
    assert folder.path is not None
    return folder.path


def take_over_files(staged: Staged, folder: str, base: Folder, files: Sequence[DataFile]) -> list[DataFile]:
    """Take files of the dataset in ``base`` over into ``folder``, unread; return how the manifest lists them.

    Raises:
        InputError: one is not the file that is listed.
        OSError: one cannot be read or written.
    """
    sources = ParquetFiles(base)

    def take_over(number: int, file: DataFile) -> DataFile:
        sources.footer(file)
        taken = file.model_copy(update={"path": f"{folder}/{staged.file_name(f'part-{number:05d}')}"})
        staged.folder.take_over(taken.path, base, file.path)
        return taken

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="take-over") as pool:
        return list(pool.map(take_over, range(len(files)), files))


_THREADS = 8
_TARGET_GROUPS = 64
GROUP_ROWS_MIN = 1024
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

    Holds at most one row group and one batch in memory. As a context manager, it discards the open file on errors. The
    first file has the number ``first_part``.
    """

    def __init__(self, staged: Staged, folder: str, schema: pa.Schema, group_rows: int, first_part: int = 0) -> None:
        self._staged = staged
        self._first_part = first_part
        self._folder = folder
        self._schema = schema
        self._group_rows = group_rows
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = 0
        self._writer: pq.ParquetWriter | None = None
        self._file = ExitStack()
        self._groups_in_file = 0
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
        """Write the last rows and return the files as their footers describe them."""
        self._write_groups()
        if self._pending_rows:
            self._write_group(pa.Table.from_batches(self._pending, schema=self._schema))
            self._pending, self._pending_rows = [], 0
        self._close_file()
        return [file_entry(self._staged.folder, path) for path in self._paths]

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
            path = f"{self._folder}/{self._staged.file_name(f'part-{self._first_part + len(self._paths):05d}')}"
            file = self._file.enter_context(self._staged.folder.open_output(path))
            self._writer = pq.ParquetWriter(file, self._schema, **write_options(self._schema))
            self._paths.append(path)
        # Pages end where chunks do: of one chunk, the bytes do not depend on the batches that the rows came in.
        self._writer.write_table(group.combine_chunks(), row_group_size=self._group_rows)
        self._groups_in_file += 1
        if self._groups_in_file == GROUPS_PER_FILE:
            self._close_file()

    def _close_file(self) -> None:
        writer, self._writer, self._groups_in_file = self._writer, None, 0
        if writer is not None:
            writer.close()
            self._file.close()


def write_relation(
    staged: Staged,
    folder: str,
    schema: pa.Schema,
    relation: duckdb.DuckDBPyRelation,
    rows: int,
    progress: ProgressReporter | None = None,
) -> list[DataFile]:
    """Write the ``rows`` rows of a query to files in ``folder``, and return these."""
    group_rows, progress = row_group_rows(rows), progress or NullReporter()
    with PartWriter(staged, folder, schema, group_rows) as writer:
        for batch in relation.to_arrow_reader(group_rows):
            writer.write(batch)
            progress.advance(batch.num_rows)
        return writer.close()
