"""Raw files that lie on S3 come to this machine one at a time, each while the one before it is being read.

    with fetched(files, work, columns) as local:
        for file in local: ...          # each is there until the next is asked for

Of a Parquet file only the footer and the columns that are wanted are fetched, to the places they have in the file: what
lies between is a hole that takes no disk and that nobody reads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from kvstore.errors import CrossfadeError, InputError
from kvstore.io.random_access import RandomFile
from kvstore.io.storage_errors import translate_storage_errors
from trainer.prepare.input_files import RawFile, RemoteFile, Source

_CHUNK_BYTES = 8 << 20
_TAIL_BYTES = 64 << 10
_MAGIC = b"PAR1"


@contextmanager
def fetch_files(files: Sequence[Source], work: Path, columns: Collection[str]) -> Iterator[Iterator[RawFile]]:
    """``files`` in their order, all on this machine; those of S3 in ``work``, with ``columns`` alone.

    At most two are in ``work`` at a time.

    Raises:
        InputError: while they are taken: one cannot be fetched.
    """
    stop = threading.Event()
    with ThreadPoolExecutor(1, thread_name_prefix="fetch") as pool:
        try:
            yield _one_by_one(files, _Fetcher(work, columns, stop), pool)
        except BaseException:
            # Whoever fetches may be waiting for a server that is away.
            stop.set()
            for file in files:
                if isinstance(file, RemoteFile):
                    file.bucket.interrupt()
            raise


def _one_by_one(files: Sequence[Source], fetcher: _Fetcher, pool: ThreadPoolExecutor) -> Iterator[RawFile]:
    ahead: Future[RawFile] | RawFile | None = None

    def start(index: int) -> Future[RawFile] | RawFile | None:
        if index == len(files):
            return None
        file = files[index]
        return file if isinstance(file, RawFile) else pool.submit(fetcher.fetch, file, index)

    ahead = start(0)
    for index in range(len(files)):
        assert ahead is not None
        here = ahead.result() if isinstance(ahead, Future) else ahead
        ahead = start(index + 1)
        yield here
        if here.origin is not None:
            here.path.unlink()


class _Fetcher:
    def __init__(self, work: Path, columns: Collection[str], stop: threading.Event) -> None:
        self._work = work
        self._columns = columns
        self._stop = stop

    def fetch(self, file: RemoteFile, number: int) -> RawFile:
        """Bring ``file`` here."""
        target = self._work / f"fetched-{number}"
        with translate_storage_errors(str(file)):
            source = file.bucket.open_random(file.key)
        with closing(source):
            if source.size() != file.bytes:
                raise InputError(
                    f"{file}: has {source.size():,} bytes, but had {file.bytes:,} a while ago; prepare again when "
                    "nobody writes there"
                )
            try:
                self._copy(file, source, target)
            except OSError as error:
                raise CrossfadeError(
                    f"{self._work}: {file} cannot be put there: {error.strerror or error}; name a larger disk with "
                    "--work-dir DIR"
                ) from error
        return RawFile(target, file.format, origin=str(file))

    def _copy(self, file: RemoteFile, source: RandomFile, target: Path) -> None:
        with target.open("wb") as here:
            os.truncate(here.fileno(), file.bytes)
            copy = _Copy(str(file), source, here, self._stop)
            if file.format == "parquet":
                _copy_parquet(copy, target, self._columns)
            else:
                copy.range(0, file.bytes)


class _Copy:
    """Ranges of a file, copied to where they are in another one."""

    def __init__(self, name: str, source: RandomFile, here: BinaryIO, stop: threading.Event) -> None:
        self.bytes = source.size()
        self._name = name
        self._source = source
        self._here = here
        self._stop = stop

    def range(self, start: int, end: int) -> None:
        """Copy the bytes from ``start`` to before ``end``.

        Raises:
            InputError: they may not be read.
            UnreachableError: the server is away.
            OSError: they cannot be written.
        """
        self._here.seek(start)
        while start < end:
            if self._stop.is_set():
                raise InterruptedError("no longer wanted")
            length = min(_CHUNK_BYTES, end - start)
            with translate_storage_errors(self._name):
                data = self._source.read_at(start, length)
            self._here.write(data)
            start += length
        self._here.flush()


def _copy_parquet(copy: _Copy, target: Path, columns: Collection[str]) -> None:
    """What reading ``columns`` needs. Of what is no Parquet file enough for the reader to say so."""
    copy.range(0, min(len(_MAGIC), copy.bytes))
    tail = max(0, copy.bytes - _TAIL_BYTES)
    copy.range(tail, copy.bytes)
    with target.open("rb") as here:
        here.seek(max(0, copy.bytes - 8))
        length, magic = int.from_bytes(here.read(4), "little"), here.read(4)
    footer = copy.bytes - 8 - length
    if magic != _MAGIC or footer < 0:
        return
    copy.range(min(footer, tail), tail)
    try:
        ranges = _column_ranges(pq.read_metadata(target), columns)
    except (pa.ArrowException, OSError):
        return
    for start, end in ranges:
        copy.range(start, min(end, copy.bytes))


def _column_ranges(footer: pq.FileMetaData, columns: Collection[str]) -> list[tuple[int, int]]:
    """Where the chunks of ``columns`` lie, in order; those that touch are one range."""
    chunks = []
    for group in range(footer.num_row_groups):
        for index in range(footer.num_columns):
            chunk = footer.row_group(group).column(index)
            if chunk.path_in_schema.partition(".")[0] in columns:
                pages = [chunk.data_page_offset, chunk.dictionary_page_offset or chunk.data_page_offset]
                chunks.append((min(pages), min(pages) + chunk.total_compressed_size))
    ranges: list[tuple[int, int]] = []
    for start, end in sorted(chunks):
        if ranges and start <= ranges[-1][1]:
            ranges[-1] = (ranges[-1][0], max(end, ranges[-1][1]))
        else:
            ranges.append((start, end))
    return ranges
