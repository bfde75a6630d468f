"""Read columns of row groups from the Parquet files of a manifest, with checksums; and how such files are written.

    files = ParquetFiles(folder)
    table = files.read(file, 3, ["customer", "track", "weight"])       # a pyarrow.Table

A file's size and the CRC-32 of its footer are compared with the manifest before pyarrow parses any of it, and each page
has a checksum. Only the requested columns of a row group are fetched, in one request where they are adjacent. A file is
opened again for each row group, so that a file that changes or disappears is detected; its footer is read again only if
it has changed.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from crossfade.base.errors import InputError, StorageUnavailableError, format_names
from crossfade.base.io.folder import Folder
from crossfade.base.io.random_access import RandomFile
from crossfade.base.io.storage_errors import translate_storage_errors
from crossfade.base.text import counted
from crossfade.trainer.data.manifest import DataFile

NOT_LOADED = "a page extends beyond its column"
GROUP_ROWS_MAX = 131_072
"""Rows of a row group of interactions, at most: ``row_group_rows`` in trainer/prepare/staging.py has the reasons."""


@dataclass(frozen=True)
class ListedIn:
    """Where a file is listed with its size and checksum, and what to do if it differs from them."""

    name: str
    fix: str


MANIFEST = ListedIn("the manifest", "prepare the data again")


def storage_errors_of(folder: Folder, path: str, listed: ListedIn = MANIFEST) -> AbstractContextManager[None]:
    """Turn storage errors of the file ``path`` into errors of Crossfade that name it.

    Raises:
        InputError: the file is missing, or access is denied.
        StorageUnavailableError: storage does not answer.
    """
    missing = f"no such file, but {listed.name} lists it; {listed.fix}"
    return translate_storage_errors(
        f"{folder.uri}/{path}", action="read", if_missing=missing, other=StorageUnavailableError
    )


class PartialFile(RandomFile):
    """A file of which only some ranges are loaded, into memory."""

    def __init__(self, size: int) -> None:
        """Create a file of ``size`` bytes, of which none is loaded yet."""
        super().__init__(size, version="")
        self._ranges: list[tuple[int, bytes]] = []

    def add(self, start: int, data: bytes) -> None:
        """Load ``data`` at ``start``."""
        self._ranges.append((start, data))

    def read_at(self, offset: int, length: int) -> bytes:
        """Read exactly ``length`` bytes from ``offset``.

        Raises:
            OSError: they are not loaded.
        """
        stop = offset + length
        for first, data in self._ranges:
            if first <= offset and stop <= first + len(data):
                return data[offset - first : stop - first]
        raise OSError(f"{NOT_LOADED}: bytes {offset:,} to {stop:,}")


_MAGIC = b"PAR1"
_END_BYTES = 8
"""Bytes after the metadata: their length in 4 bytes, and the magic."""
_TAIL_BYTES = 1 << 16
"""Bytes fetched from the end of a file to get its footer, which is usually smaller."""
_MAX_GAP_BYTES = 1 << 16
"""Largest gap between columns that are fetched in one request, with the gap."""
_MAX_CACHED_GROUPS = 1 << 14
"""Row groups whose footers are kept in memory: about 16 MiB."""
_FOOTER_GROUPS = 8
"""Fixed cost of a cached footer, in row groups."""


def write_options(schema: pa.Schema) -> dict[str, Any]:
    """Return the options with which ``pyarrow.parquet.ParquetWriter`` writes files of ``schema``.

    Integers are delta-encoded: rows in random order take 40 % less space than with a dictionary, and are read three
    times as fast. Every page has a checksum.
    """
    integers = [field.name for field in schema if pa.types.is_integer(field.type)]
    return {
        "compression": "zstd",
        "use_dictionary": [field.name for field in schema if field.name not in integers],
        "column_encoding": dict.fromkeys(integers, "DELTA_BINARY_PACKED"),
        "write_page_checksum": True,
    }


def file_entry(folder: Folder, path: str) -> DataFile:
    """Describe the file ``path`` of ``folder`` for a manifest.

    Raises:
        InputError: it is missing, is not a Parquet file, or access is denied.
        StorageUnavailableError: storage does not answer.
    """
    with storage_errors_of(folder, path), closing(folder.open_random(path)) as source:
        footer = _footer(f"{folder.uri}/{path}", source, _tail(source))
        metadata = _parse(f"{folder.uri}/{path}", footer)
        groups = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
        return DataFile(path=path, bytes=source.size(), footer_crc32=zlib.crc32(footer), row_groups=groups)


class ParquetFiles:
    """Reads the files that a manifest lists. Thread-safe."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._footers: dict[str, tuple[str, pq.FileMetaData]] = {}
        self._cached_groups = 0

    @property
    def folder(self) -> Folder:
        """The folder of the files."""
        return self._folder

    def uri(self, file: DataFile) -> str:
        """Return the URI of ``file``."""
        return f"{self._folder.uri}/{file.path}"

    def footer(self, file: DataFile) -> pq.FileMetaData:
        """Return the metadata of ``file``: schema, row groups, statistics.

        Raises:
            InputError: it is missing or corrupt, differs from the manifest, or access is denied.
            StorageUnavailableError: storage does not answer.
        """
        with storage_errors_of(self._folder, file.path), closing(self._folder.open_random(file.path)) as source:
            return self._checked(file, source)[0]

    def check_footer(self, file: DataFile) -> None:
        """Check that the column metadata in the footer of ``file`` are consistent, for files from an untrusted source.

        With inconsistent metadata, pyarrow's ``RowGroupMetaData.column`` aborts the process, while reading raises an
        error. So this reads one column after another from a file without any of its bytes.

        Raises:
            InputError: as ``footer``, or the metadata are inconsistent.
            StorageUnavailableError: storage does not answer.
        """
        metadata = self.footer(file)
        with open_parquet(PartialFile(file.bytes), metadata=metadata) as parsed:
            for index in range(metadata.num_row_groups):
                for column in range(metadata.num_columns):
                    try:
                        parsed.reader.read_row_group(index, column_indices=[column], use_threads=False)
                    except (OSError, pa.ArrowException) as error:
                        if NOT_LOADED not in str(error):
                            problem = f"its footer is corrupt and cannot be read ({_one_line(error)})"
                            raise _corrupt(self._where(file, index), problem) from error

    def read(self, file: DataFile, index: int, columns: Sequence[str]) -> pa.Table:
        """Read ``columns`` of row group ``index`` of ``file``.

        Raises:
            InputError: the file is missing or corrupt, differs from the manifest, or access is denied.
            StorageUnavailableError: storage does not answer.
        """
        with storage_errors_of(self._folder, file.path), closing(self._folder.open_random(file.path)) as source:
            metadata, tail = self._checked(file, source)
            ranges = _byte_ranges(self._where(file, index), metadata.row_group(index), source.size(), columns)
            loaded = PartialFile(source.size())
            for start, stop in ranges:
                loaded.add(start, _fetch(source, tail, start, stop))
        try:
            with open_parquet(loaded, metadata=metadata, page_checksum_verification=True) as parsed:
                table = parsed.read_row_group(index, columns=list(columns), use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise _corrupt(self._where(file, index), f"is corrupt and cannot be read ({_one_line(error)})") from error
        _check_text(table, self._where(file, index))
        if table.num_rows != file.row_groups[index]:
            # The footer matches the manifest, but pages may hold fewer rows.
            raise _corrupt(
                self._where(file, index), f"has {table.num_rows} rows, but {file.row_groups[index]} expected"
            )
        return table

    def column(self, file: DataFile, index: int, name: str, kind: pa.DataType) -> Any:
        """Read the column ``name`` of row group ``index`` of ``file`` as an array.

        Raises:
            InputError: as ``read``, or its type is not ``kind``, or it has nulls.
            StorageUnavailableError: storage does not answer.
        """
        return column_of(self.read(file, index, [name]), name, kind, self._where(file, index))

    def integer_ranges(self, file: DataFile, name: str) -> list[tuple[int, int] | None]:
        """Return the minimum and maximum of the column ``name`` in each row group of ``file``, None if unknown.

        Raises:
            InputError: as ``footer``.
            StorageUnavailableError: storage does not answer.
        """
        footer = self.footer(file)
        ranges: list[tuple[int, int] | None] = []
        for index in range(footer.num_row_groups):
            group, value_range = footer.row_group(index), None
            for number in range(group.num_columns):
                statistics = group.column(number).statistics if group.column(number).path_in_schema == name else None
                if statistics is not None and statistics.has_min_max and isinstance(statistics.min, int):
                    value_range = statistics.min, statistics.max
            ranges.append(value_range)
        return ranges

    def _where(self, file: DataFile, index: int) -> str:
        return f"{self.uri(file)}, row group {index}"

    def _checked(self, file: DataFile, source: RandomFile) -> tuple[pq.FileMetaData, bytes]:
        """Return the checked metadata of ``file``, which is open as ``source``, and the tail that was read."""
        uri = self.uri(file)
        _check_size(source, file, uri, MANIFEST)
        with self._lock:
            version, metadata = self._footers.get(file.path, ("", None))
        if metadata is not None and version == source.version:
            return metadata, b""
        metadata, tail = checked_metadata(source, file, uri, MANIFEST, has_changed=metadata is not None)
        self._cache(file.path, source.version, metadata)
        return metadata, tail

    def _cache(self, path: str, version: str, metadata: pq.FileMetaData) -> None:
        """Keep the metadata of a file, and of no other once they would take too much memory."""
        with self._lock:
            if self._cached_groups > _MAX_CACHED_GROUPS:
                self._footers.clear()
                self._cached_groups = 0
            self._footers[path] = version, metadata
            self._cached_groups += metadata.num_row_groups + _FOOTER_GROUPS


def checked_metadata(
    source: RandomFile, file: DataFile, uri: str, listed: ListedIn, *, has_changed: bool = False
) -> tuple[pq.FileMetaData, bytes]:
    """Return the metadata of ``file``, open as ``source``, and the end of it that was read, after comparing both.

    Raises:
        InputError: its size or footer is not the listed one.
        OSError: it cannot be read.
    """
    _check_size(source, file, uri, listed)
    tail = _tail(source)
    footer = _footer(uri, source, tail, listed)
    if zlib.crc32(footer) != file.footer_crc32:
        raise _corrupt(
            uri,
            f"its footer has the CRC-32 {zlib.crc32(footer)}, but {listed.name} lists {file.footer_crc32}: it was "
            f"corrupted or replaced{' since this run began' if has_changed else ''}",
            listed,
        )
    metadata = _parse(uri, footer, listed)
    found = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    if found != file.row_groups:
        groups = f"has {_format_groups(found)}, but {listed.name} lists {_format_groups(file.row_groups)}"
        raise _corrupt(uri, groups, listed)
    return metadata, tail


def _check_size(source: RandomFile, file: DataFile, uri: str, listed: ListedIn) -> None:
    if source.size() != file.bytes:
        raise _corrupt(
            uri,
            f"has {source.size():,} bytes, but {listed.name} lists {file.bytes:,}: it was truncated or replaced",
            listed,
        )


def column_of(table: pa.Table, name: str, kind: pa.DataType, where: str) -> Any:
    """Return the values of the column ``name`` as an array.

    Raises:
        InputError: its type is not ``kind``, or it has nulls; the message begins with ``where``.
    """
    column = table.column(name)
    if column.type != kind:
        raise _corrupt(where, f"column '{name}' has the type {column.type}, but expected {kind}")
    if column.null_count:
        first = column.is_null().to_numpy().argmax()
        raise _corrupt(
            f"{where}, row {first}", f"column '{name}' is null ({column.null_count} are), but expected no nulls"
        )
    return column.to_numpy()


def _corrupt(where: str, problem: str, listed: ListedIn = MANIFEST) -> InputError:
    return InputError(f"{where}: {' '.join(problem.split())}; {listed.fix}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


def _check_text(table: pa.Table, where: str) -> None:
    """Check that text columns are UTF-8, which pyarrow assumes and other readers, such as DuckDB, verify."""
    for field, column in zip(table.schema, table.columns, strict=True):
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            try:
                column.validate(full=True)
            except pa.ArrowInvalid as error:
                raise _corrupt(where, f"column '{field.name}' holds text that is not UTF-8") from error


def _format_groups(groups: Sequence[int]) -> str:
    return f"{counted(len(groups), 'row group')} of {format_names(groups)} rows"


def _tail(source: RandomFile) -> bytes:
    length = min(source.size(), _TAIL_BYTES)
    return source.read_at(source.size() - length, length) if length else b""


def _fetch(source: RandomFile, tail: bytes, start: int, stop: int) -> bytes:
    """Return the bytes from ``start`` to ``stop``, from ``tail``, the end of the file, if it covers them."""
    begin = source.size() - len(tail)
    return tail[start - begin : stop - begin] if start >= begin else source.read_at(start, stop - start)


def _footer(uri: str, source: RandomFile, tail: bytes, listed: ListedIn = MANIFEST) -> bytes:
    """Return the end of the file: metadata, their length, and the magic."""
    if len(tail) < len(_MAGIC) + _END_BYTES or tail[-len(_MAGIC) :] != _MAGIC:
        raise _corrupt(uri, "is not a Parquet file, or was truncated: it does not end with PAR1", listed)
    length = int.from_bytes(tail[-_END_BYTES : -len(_MAGIC)], "little") + _END_BYTES
    if length > source.size() - len(_MAGIC):
        raise _corrupt(uri, f"its footer would take {length:,} bytes, but the file has {source.size():,}", listed)
    return _fetch(source, tail, source.size() - length, source.size())


def _parse(uri: str, footer: bytes, listed: ListedIn = MANIFEST) -> pq.FileMetaData:
    try:
        return pq.read_metadata(pa.BufferReader(_MAGIC + footer))
    except (OSError, pa.ArrowException) as error:
        raise _corrupt(uri, f"its footer is corrupt and cannot be read ({_one_line(error)})", listed) from error


def _byte_ranges(where: str, group: pq.RowGroupMetaData, size: int, columns: Sequence[str]) -> list[tuple[int, int]]:
    """Return the byte ranges of ``columns``, merged where they are close to each other."""
    # The values of a column of lists have a longer path: 'value.list.element'.
    numbers = range(group.num_columns)
    chunks = {group.column(number).path_in_schema.partition(".")[0]: group.column(number) for number in numbers}
    if missing := [name for name in columns if name not in chunks]:
        raise _corrupt(
            where, f"has the columns {format_names(chunks)}, but not '{missing[0]}'; expected {format_names(columns)}"
        )
    ranges: list[tuple[int, int]] = []
    for chunk in sorted((chunks[name] for name in columns), key=_start):
        start = _start(chunk)
        stop = start + chunk.total_compressed_size
        if not len(_MAGIC) <= start <= stop <= size:
            raise _corrupt(
                where, f"column '{chunk.path_in_schema}' would lie in bytes {start:,} to {stop:,} of {size:,}"
            )
        if ranges and start - ranges[-1][1] <= _MAX_GAP_BYTES:
            ranges[-1] = ranges[-1][0], max(stop, ranges[-1][1])
        else:
            ranges.append((start, stop))
    return ranges


def open_parquet(source: Any, **options: Any) -> pq.ParquetFile:
    """Open ``source``, which may be a Python file object, without pyarrow's prefetching threads.

    Such a thread may hold the last reference to a Python file. If the interpreter has shut down by then, releasing it
    aborts the process ("terminate called without an active exception"). Read with ``use_threads=False`` for the same
    reason.
    """
    return pq.ParquetFile(source, pre_buffer=False, **options)


def _start(chunk: pq.ColumnChunkMetaData) -> int:
    first: int = chunk.data_page_offset
    return min(first, chunk.dictionary_page_offset) if chunk.has_dictionary_page else first
