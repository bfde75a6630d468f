"""What the bytes of a Parquet file are read from, and what is said when they cannot be had."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kvstore.errors import InputError, StorageUnavailableError
from kvstore.io.folder import Folder
from kvstore.io.random_access import RandomFile
from kvstore.io.s3 import NoBucketError

NOT_THERE = "a page reaches beyond its column"


@contextmanager
def reaching_file(folder: Folder, path: str) -> Iterator[None]:
    """Turn what storage says of the file ``path`` into an error of Crossfade that names it.

    Raises:
        InputError: it is missing, or nobody may read it.
        UnreachableError: storage does not answer.
    """
    uri = f"{folder.uri}/{path}"
    try:
        yield
    except NoBucketError as error:
        raise InputError(_named(uri, error)) from error
    except FileNotFoundError as error:
        raise InputError(f"{uri}: no such file, but the manifest lists it; prepare the data again") from error
    except (PermissionError, IsADirectoryError, NotADirectoryError) as error:
        raise InputError(_named(uri, error)) from error
    except OSError as error:
        raise StorageUnavailableError(_named(uri, error)) from error


def _named(uri: str, error: OSError) -> str:
    """What ``error`` says, behind ``uri``, which it may name itself."""
    text = f"cannot be read: {error.strerror}" if error.errno else str(error)
    return f"{uri}: {' '.join(text.split()).removeprefix(f'{uri}: ')}"


class ReachedFile(RandomFile):
    """The file ``path`` of ``folder``, whose errors are those of Crossfade and name it."""

    def __init__(self, folder: Folder, path: str) -> None:
        """Open it.

        Raises:
            InputError: it is missing, or nobody may read it.
            UnreachableError: storage does not answer.
        """
        self._folder, self._path = folder, path
        with reaching_file(folder, path):
            self._source = folder.open_random(path)
        super().__init__(self._source.size(), self._source.version)

    def read_at(self, offset: int, length: int) -> bytes:
        """All ``length`` bytes from ``offset`` on.

        Raises:
            InputError: nobody may read it.
            UnreachableError: storage does not answer.
        """
        with reaching_file(self._folder, self._path):
            return self._source.read_at(offset, length)

    def close(self) -> None:
        """Let go of it."""
        self._source.close()
        super().close()


class Pieces(RandomFile):
    """A file of which only some pieces are there."""

    def __init__(self, size: int) -> None:
        """A file of ``size`` bytes, none of which is there yet."""
        super().__init__(size, version="")
        self._pieces: list[tuple[int, bytes]] = []

    def add(self, start: int, data: bytes) -> None:
        """Put ``data`` at ``start``."""
        self._pieces.append((start, data))

    def read_at(self, offset: int, length: int) -> bytes:
        """The bytes from ``offset`` on.

        Raises:
            OSError: they are not there.
        """
        stop = offset + length
        for first, data in self._pieces:
            if first <= offset and stop <= first + len(data):
                return data[offset - first : stop - first]
        raise OSError(f"{NOT_THERE}: bytes {offset:,} to {stop:,}")
