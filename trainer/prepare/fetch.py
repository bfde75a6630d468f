"""Fetch raw files from S3 in the background, in several streams, while those before are read.

    with fetch_files(files, work, columns) as local_files:
        for file in local_files: ...    # each exists until the next is requested

Of a Parquet file only the footer and the requested columns are fetched, to their offsets in the file: what lies between
is a hole in a sparse file, which takes no disk space and is never read.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from crossfade.base.errors import CrossfadeError, InputError, Option
from crossfade.base.io.random_access import RandomFile
from crossfade.base.io.storage_errors import translate_storage_errors
from crossfade.trainer.prepare.input_files import RawFile, RemoteFile, Source

_CHUNK_BYTES = 8 << 20
_STREAMS = 8
"""Requests at a time, each of at most ``_CHUNK_BYTES``, which memory holds: one stream waits for its latency."""
_AHEAD_BYTES = 64 << 20
"""Small files are fetched ahead up to this total; of larger ones, only the next."""
_TAIL_BYTES = 64 << 10
_MAGIC = b"PAR1"


@contextmanager
def fetch_files(files: Sequence[Source], work: Path, columns: Collection[str] | None) -> Iterator[Iterator[RawFile]]:
    """Iterate over ``files`` in order, all of them local: remote ones are fetched to ``work``, only their ``columns``.

    None: all their columns. At most two remote files are in ``work`` at a time, or a few small ones.

    Raises:
        InputError: during iteration, if a file cannot be fetched.
        StorageUnavailableError: during iteration, if storage does not answer.
    """
    stop = threading.Event()
    with (
        ThreadPoolExecutor(_STREAMS, thread_name_prefix="fetch") as pool,
        ThreadPoolExecutor(_STREAMS, thread_name_prefix="stream") as streams,
    ):
        try:
            yield _iterate(files, _Fetcher(work, columns, stop, streams), pool)
        except BaseException:
            # The background thread may be waiting for a server that does not answer.
            stop.set()
            for file in files:
                if isinstance(file, RemoteFile):
                    file.bucket.interrupt()
            raise


def _iterate(files: Sequence[Source], fetcher: _Fetcher, pool: ThreadPoolExecutor) -> Iterator[RawFile]:
    upcoming: deque[Future[RawFile] | RawFile] = deque()
    started = 0
    for index in range(len(files)):
        while started < len(files) and (started <= index + 1 or _is_small(files[index + 1 : started + 1])):
            file = files[started]
            upcoming.append(pool.submit(fetcher.fetch, file, started) if isinstance(file, RemoteFile) else file)
            started += 1
        first = upcoming.popleft()
        current = first.result() if isinstance(first, Future) else first
        yield current
        if isinstance(first, Future):
            current.path.unlink()


def _is_small(ahead: Sequence[Source]) -> bool:
    return len(ahead) <= _STREAMS and sum(file.bytes for file in ahead) <= _AHEAD_BYTES


def _cannot_write(work: Path, file: Source, error: OSError) -> CrossfadeError:
    return CrossfadeError(
        f"{work}: {file} cannot be written there: {error.strerror or error}; name a larger disk with ",
        Option("work_dir", "DIR"),
    )


@dataclass
class _Fetcher:
    """Fetches remote files to the folder ``work``, of Parquet files only the ``columns``, until ``stop`` is set.

    The threads ``streams`` make the requests.
    """

    work: Path
    columns: Collection[str] | None
    stop: threading.Event
    streams: ThreadPoolExecutor

    def fetch(self, file: RemoteFile, number: int) -> RawFile:
        """Fetch ``file``; ``number`` makes its local name unique."""
        target = self.work / f"fetched-{number}"
        with translate_storage_errors(str(file)):
            source = file.bucket.open_random(file.key)
        with closing(source):
            if source.size() != file.bytes:
                raise InputError(
                    f"{file}: has {source.size():,} bytes, but had {file.bytes:,} when it was listed; prepare again "
                    "when nothing writes there"
                )
            try:
                self._copy(file, source, target)
            except OSError as error:
                raise _cannot_write(self.work, file, error) from error
        return RawFile(target, file.format, origin=str(file))

    def _copy(self, file: RemoteFile, source: RandomFile, target: Path) -> None:
        with target.open("wb") as local:
            os.truncate(local.fileno(), file.bytes)
            copier = _RangeCopier(str(file), source, local, self.stop, self.streams)
            if file.format == "parquet":
                _copy_parquet(copier, target, self.columns)
            else:
                copier.copy([(0, file.bytes)])


@dataclass
class _RangeCopier:
    """Copies byte ranges of ``source`` to the same offsets of the file ``local``, several pieces at a time."""

    name: str
    source: RandomFile
    local: BinaryIO
    stop: threading.Event
    streams: ThreadPoolExecutor
    lock: threading.Lock = field(default_factory=threading.Lock)

    def copy(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Copy the bytes of each range, from its start to before its end.

        Raises:
            InputError: they may not be read.
            StorageUnavailableError: storage does not answer.
            OSError: they cannot be written.
        """
        starts = ((at, min(at + _CHUNK_BYTES, end)) for start, end in ranges for at in range(start, end, _CHUNK_BYTES))
        pieces = [self.streams.submit(self._copy_piece, start, end) for start, end in starts]
        try:
            for piece in pieces:
                piece.result()
        finally:  # after an error, those that have not begun
            for piece in pieces:
                piece.cancel()
            wait(pieces)
        self.local.flush()

    def _copy_piece(self, start: int, end: int) -> None:
        if self.stop.is_set():
            raise InterruptedError("the preparation has ended")
        with translate_storage_errors(self.name):
            data = self.source.read_at(start, end - start)
        with self.lock:
            self.local.seek(start)
            self.local.write(data)


def _copy_parquet(copier: _RangeCopier, target: Path, columns: Collection[str] | None) -> None:
    """Copy what reading ``columns`` needs. Of invalid files, copy enough for the reader to report them."""
    size = copier.source.size()
    tail = max(0, size - _TAIL_BYTES)
    copier.copy([(0, min(len(_MAGIC), size)), (tail, size)])
    with target.open("rb") as local:
        local.seek(max(0, size - 8))
        length, magic = int.from_bytes(local.read(4), "little"), local.read(4)
    footer = size - 8 - length
    if magic != _MAGIC or footer < 0:
        return
    copier.copy([(min(footer, tail), tail)])
    try:
        ranges = _column_ranges(pq.read_metadata(target), columns)
    except (pa.ArrowException, OSError):
        return
    copier.copy([(start, min(end, size)) for start, end in ranges])


def _column_ranges(footer: pq.FileMetaData, columns: Collection[str] | None) -> list[tuple[int, int]]:
    """Return the byte ranges of the chunks of ``columns``, in order; adjacent ones are merged."""
    chunks, roots = [], {column.partition(".")[0] for column in columns or ()}
    for group in range(footer.num_row_groups):
        for index in range(footer.num_columns):
            chunk = footer.row_group(group).column(index)
            if columns is None or chunk.path_in_schema.partition(".")[0] in roots:
                pages = [chunk.data_page_offset, chunk.dictionary_page_offset or chunk.data_page_offset]
                chunks.append((min(pages), min(pages) + chunk.total_compressed_size))
    ranges: list[tuple[int, int]] = []
    for start, end in sorted(chunks):
        if ranges and start <= ranges[-1][1]:
            ranges[-1] = (ranges[-1][0], max(end, ranges[-1][1]))
        else:
            ranges.append((start, end))
    return ranges
