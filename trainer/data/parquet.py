"""The Parquet files that a manifest lists: reading a few columns of a row group, and how they are written.

    files = ParquetFiles(folder)
    table = files.read(file, 3, ["customer", "track", "weight"])       # a pyarrow.Table

A file's size and the CRC-32 of its footer are compared with the manifest before pyarrow sees any of it, and each page
has a checksum of its own. Of a row group nothing is fetched but the columns that are asked for, in one request where
they lie side by side. A file is opened anew for each row group, so that one that changes or vanishes is noticed; its
footer is read again only if it has changed.
"""

from __future__ import annotations

import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kvstore.errors import InputError, format_names
from kvstore.io.folder import Folder
from kvstore.io.random_access import RandomFile
from trainer.data.manifest import DataFile
from trainer.data.parquet_io import NOT_THERE, Pieces, ReachedFile, reaching_file

_MAGIC = b"PAR1"
_END_BYTES = 8
"""After the metadata: their length in 4 bytes, and the magic."""
_TAIL_BYTES = 1 << 16
"""What is fetched from the end of a file to have its footer, most likely all of it; of a small file, all there is."""
_HOLE_BYTES = 1 << 16
"""Columns that lie so near to each other are fetched together with what is between them."""
_BUFFER_BYTES = 4 << 20
"""What is fetched at a time of each column of a row group that is not read at once."""
_GROUPS_KEPT = 1 << 14
"""Row groups of the files whose footers are kept: about 16 MiB of them. A footer takes as much as ``_FOOTER_GROUPS``
row groups besides."""
_FOOTER_GROUPS = 8


def write_options(schema: pa.Schema) -> dict[str, Any]:
    """How ``pyarrow.parquet.ParquetWriter`` writes files of ``schema``.

    Integers as packed differences: rows of random order take 40 % less than in a dictionary, and are read three times
    as fast. Every page has a checksum.
    """
    integers = [field.name for field in schema if pa.types.is_integer(field.type)]
    return {
        "compression": "zstd",
        "use_dictionary": [field.name for field in schema if field.name not in integers],
        "column_encoding": dict.fromkeys(integers, "DELTA_BINARY_PACKED"),
        "write_page_checksum": True,
    }


def file_entry(folder: Folder, path: str) -> DataFile:
    """The file ``path`` of ``folder``, as a manifest lists it.

    Raises:
        InputError: it is not there, is no Parquet file, or nobody may read it.
        UnreachableError: storage does not answer.
    """
    with reaching_file(folder, path), closing(folder.open_random(path)) as source:
        footer = _footer(f"{folder.uri}/{path}", source, _tail(source))
        metadata = _parse(f"{folder.uri}/{path}", footer)
        groups = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
        return DataFile(path=path, bytes=source.size(), footer_crc32=zlib.crc32(footer), row_groups=groups)


class ParquetFiles:
    """Reads the files that a manifest of ``folder`` lists. Several threads may do so at a time."""

    def __init__(self, folder: Folder) -> None:
        """Files are opened as they are needed."""
        self._folder = folder
        self._lock = threading.Lock()
        self._footers: OrderedDict[str, tuple[str, pq.FileMetaData]] = OrderedDict()
        self._groups_kept = 0

    @property
    def folder(self) -> Folder:
        """Where they are."""
        return self._folder

    def uri(self, file: DataFile) -> str:
        """Where ``file`` is."""
        return f"{self._folder.uri}/{file.path}"

    def footer(self, file: DataFile) -> pq.FileMetaData:
        """The metadata of ``file``: schema, row groups, statistics.

        Raises:
            InputError: it is missing, damaged, not the one that the manifest lists, or nobody may read it.
            UnreachableError: storage does not answer.
        """
        with reaching_file(self._folder, file.path), closing(self._folder.open_random(file.path)) as source:
            return self._checked(file, source)[0]

    def look_through(self, file: DataFile) -> None:
        """See that what the footer of ``file`` says of columns makes sense: for files that nobody has vouched for.

        Where it does not, ``RowGroupMetaData.column`` of pyarrow ends the whole process, but reading raises an error:
        so one column after another is read from a file that has none of its bytes.

        Raises:
            InputError: as ``footer``, or it does not.
            UnreachableError: storage does not answer.
        """
        metadata = self.footer(file)
        with open_parquet(Pieces(file.bytes), metadata=metadata) as parsed:
            for index in range(metadata.num_row_groups):
                for column in range(metadata.num_columns):
                    try:
                        parsed.reader.read_row_group(index, column_indices=[column], use_threads=False)
                    except (OSError, pa.ArrowException) as error:
                        if NOT_THERE not in str(error):
                            what = f"its footer is damaged and cannot be read ({_said(error)})"
                            raise _damaged(self._where(file, index), what) from error

    def read(self, file: DataFile, index: int, columns: Sequence[str]) -> pa.Table:
        """``columns`` of row group ``index`` of ``file``, which must have them all.

        Raises:
            InputError: the file is missing, damaged, not the one that the manifest lists, or nobody may read it.
            UnreachableError: storage does not answer.
        """
        with reaching_file(self._folder, file.path), closing(self._folder.open_random(file.path)) as source:
            metadata, tail = self._checked(file, source)
            places = _places(self._where(file, index), metadata.row_group(index), source.size(), columns)
            pieces = Pieces(source.size())
            for start, stop in places:
                pieces.add(start, _fetch(source, tail, start, stop))
        try:
            with open_parquet(pieces, metadata=metadata, page_checksum_verification=True) as parsed:
                table = parsed.read_row_group(index, columns=list(columns), use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise _damaged(self._where(file, index), f"is damaged and cannot be read ({_said(error)})") from error
        _check_text(table, self._where(file, index))
        if table.num_rows != file.row_groups[index]:
            # What the footer says is checked; pages may hold less.
            raise _damaged(
                self._where(file, index), f"has {table.num_rows} rows, but {file.row_groups[index]} expected"
            )
        return table

    def parts(self, file: DataFile, index: int, columns: Sequence[str], rows: int) -> Iterator[pa.Table]:
        """What ``read`` gives, at most ``rows`` rows at a time: row groups of any size in bounded memory.

        Raises:
            InputError: as ``read``; also after some parts.
            UnreachableError: storage does not answer.
        """
        if file.row_groups[index] <= rows:
            if file.row_groups[index]:
                yield self.read(file, index, columns)
            return
        where, left = self._where(file, index), file.row_groups[index]
        with closing(ReachedFile(self._folder, file.path)) as source:
            metadata, _ = self._checked(file, source)
            _places(where, metadata.row_group(index), source.size(), columns)
            for table in _batches(where, source, metadata, index, columns, rows):
                _check_text(table, where)
                left -= table.num_rows
                yield table
        if left:
            raise _damaged(where, f"has {file.row_groups[index] - left} rows, but {file.row_groups[index]} expected")

    def column(self, file: DataFile, index: int, name: str, kind: pa.DataType) -> Any:
        """The column ``name`` of row group ``index`` of ``file``, of type ``kind``, as an array.

        Raises:
            InputError: as ``read``, or it has another type, or nulls.
            UnreachableError: storage does not answer.
        """
        return column_of(self.read(file, index, [name]), name, kind, self._where(file, index))

    def integer_ranges(self, file: DataFile, name: str) -> list[tuple[int, int] | None]:
        """The least and the greatest value of the column ``name`` in each row group of ``file``, where its footer says.

        Raises:
            InputError: as ``footer``.
            UnreachableError: storage does not answer.
        """
        footer = self.footer(file)
        ranges: list[tuple[int, int] | None] = []
        for index in range(footer.num_row_groups):
            group, known = footer.row_group(index), None
            for number in range(group.num_columns):
                facts = group.column(number).statistics if group.column(number).path_in_schema == name else None
                if facts is not None and facts.has_min_max and isinstance(facts.min, int):
                    known = facts.min, facts.max
            ranges.append(known)
        return ranges

    def _where(self, file: DataFile, index: int) -> str:
        return f"{self.uri(file)}, row group {index}"

    def _checked(self, file: DataFile, source: RandomFile) -> tuple[pq.FileMetaData, bytes]:
        """The metadata of ``file``, which is open as ``source``, and what was read of its end."""
        uri = self.uri(file)
        if source.size() != file.bytes:
            raise _damaged(
                uri, f"has {source.size():,} bytes, but the manifest says {file.bytes:,}: it was cut off or exchanged"
            )
        with self._lock:
            version, metadata = self._footers.get(file.path, ("", None))
        if metadata is not None and version == source.version:
            return metadata, b""
        tail = _tail(source)
        footer = _footer(uri, source, tail)
        if zlib.crc32(footer) != file.footer_crc32:
            raise _damaged(
                uri,
                f"its footer has the CRC-32 {zlib.crc32(footer)}, but the manifest says {file.footer_crc32}: it was "
                f"damaged or exchanged{' since this run began' if metadata is not None else ''}",
            )
        metadata = _parse(uri, footer)
        found = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
        if found != file.row_groups:
            raise _damaged(uri, f"has {_shown(found)}, but the manifest says {_shown(file.row_groups)}")
        self._keep(file.path, source.version, metadata)
        return metadata, tail

    def _keep(self, path: str, version: str, metadata: pq.FileMetaData) -> None:
        with self._lock:
            _, before = self._footers.pop(path, ("", None))
            self._footers[path] = version, metadata
            self._groups_kept += _groups(metadata) - (_groups(before) if before is not None else 0)
            while self._groups_kept > _GROUPS_KEPT and len(self._footers) > 1:
                self._groups_kept -= _groups(self._footers.popitem(last=False)[1][1])


def _groups(metadata: pq.FileMetaData) -> int:
    """How much keeping ``metadata`` takes, in row groups."""
    return int(metadata.num_row_groups) + _FOOTER_GROUPS


def column_of(table: pa.Table, name: str, kind: pa.DataType, where: str) -> Any:
    """The values of a column that has the type ``kind`` and no nulls.

    Raises:
        InputError: it has another type, or nulls; with ``where`` it is.
    """
    column = table.column(name)
    if column.type != kind:
        raise _damaged(where, f"column '{name}' has the type {column.type}, but expected {kind}")
    if column.null_count:
        first = column.is_null().to_numpy().argmax()
        raise _damaged(
            f"{where}, row {first}", f"column '{name}' is null ({column.null_count} are), but expected no nulls"
        )
    return column.to_numpy()


def _damaged(where: str, what: str) -> InputError:
    return InputError(f"{where}: {' '.join(what.split())}; prepare the data again")


def _said(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


def _check_text(table: pa.Table, where: str) -> None:
    """See that the text of a vocabulary is UTF-8, which pyarrow takes for granted, and DuckDB and others do not."""
    for field, column in zip(table.schema, table.columns, strict=True):
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            try:
                column.validate(full=True)
            except pa.ArrowInvalid as error:
                raise _damaged(where, f"column '{field.name}' holds text that is not UTF-8") from error


def _shown(groups: Sequence[int]) -> str:
    return f"{len(groups)} row group(s) of {format_names(groups)} rows"


def _tail(source: RandomFile) -> bytes:
    length = min(source.size(), _TAIL_BYTES)
    return source.read_at(source.size() - length, length) if length else b""


def _fetch(source: RandomFile, tail: bytes, start: int, stop: int) -> bytes:
    """The bytes from ``start`` to ``stop``, of which ``tail`` may be the end."""
    begin = source.size() - len(tail)
    return tail[start - begin : stop - begin] if start >= begin else source.read_at(start, stop - start)


def _footer(uri: str, source: RandomFile, tail: bytes) -> bytes:
    """The metadata at the end of ``source``, their length, and the magic."""
    if len(tail) < len(_MAGIC) + _END_BYTES or tail[-len(_MAGIC) :] != _MAGIC:
        raise _damaged(uri, "is no Parquet file, or was cut off: it does not end with PAR1")
    length = int.from_bytes(tail[-_END_BYTES : -len(_MAGIC)], "little") + _END_BYTES
    if length > source.size() - len(_MAGIC):
        raise _damaged(uri, f"its footer would take {length:,} bytes, but the file has {source.size():,}")
    return _fetch(source, tail, source.size() - length, source.size())


def _parse(uri: str, footer: bytes) -> pq.FileMetaData:
    try:
        return pq.read_metadata(pa.BufferReader(_MAGIC + footer))
    except (OSError, pa.ArrowException) as error:
        raise _damaged(uri, f"its footer is damaged and cannot be read ({_said(error)})") from error


def _places(where: str, group: pq.RowGroupMetaData, size: int, columns: Sequence[str]) -> list[tuple[int, int]]:
    """Where the bytes of ``columns`` begin and end, those next to each other as one."""
    chunks = {group.column(number).path_in_schema: group.column(number) for number in range(group.num_columns)}
    if missing := [name for name in columns if name not in chunks]:
        raise _damaged(
            where, f"has the columns {format_names(chunks)}, but not '{missing[0]}'; expected {format_names(columns)}"
        )
    places: list[tuple[int, int]] = []
    for chunk in sorted((chunks[name] for name in columns), key=_start):
        start = _start(chunk)
        stop = start + chunk.total_compressed_size
        if not len(_MAGIC) <= start <= stop <= size:
            raise _damaged(
                where, f"column '{chunk.path_in_schema}' would lie in bytes {start:,} to {stop:,} of {size:,}"
            )
        if places and start - places[-1][1] <= _HOLE_BYTES:
            places[-1] = places[-1][0], max(stop, places[-1][1])
        else:
            places.append((start, stop))
    return places


def _batches(
    where: str, source: RandomFile, metadata: pq.FileMetaData, index: int, columns: Sequence[str], rows: int
) -> Iterator[pa.Table]:
    """``columns`` of row group ``index``, read from ``source`` as they are asked for."""
    try:
        with open_parquet(
            source, metadata=metadata, page_checksum_verification=True, buffer_size=_BUFFER_BYTES
        ) as parsed:
            for batch in parsed.iter_batches(rows, row_groups=[index], columns=list(columns), use_threads=False):
                yield pa.Table.from_batches([batch])
    except (OSError, pa.ArrowException) as error:
        raise _damaged(where, f"is damaged and cannot be read ({_said(error)})") from error


def open_parquet(source: Any, **options: Any) -> pq.ParquetFile:
    """``source``, which may be a file made in Python, as Parquet that no thread of pyarrow's reads ahead.

    Such a thread may be the last to let go of a Python file. Where the interpreter is ending by then, that takes the
    process down ("terminate called without an active exception"). Read it with ``use_threads=False``, too.
    """
    return pq.ParquetFile(source, pre_buffer=False, **options)


def _start(chunk: pq.ColumnChunkMetaData) -> int:
    first: int = chunk.data_page_offset
    return min(first, chunk.dictionary_page_offset) if chunk.has_dictionary_page else first
