"""Byte sources of Parquet files, and storage errors that name the file.

with storage_errors_of(folder, path), closing(folder.open_random(path)) as source:
    source.read_at(0, 4)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from crossfade.base.errors import InputError, StorageUnavailableError
from crossfade.base.io.folder import Folder
from crossfade.base.io.random_access import RandomFile
from crossfade.base.io.regular_files import UnsuitableFileError
from crossfade.base.io.s3 import NoBucketError

NOT_LOADED = "a page extends beyond its column"


@dataclass(frozen=True)
class ListedIn:
    """Where a file is listed with its size and checksum, and what to do if it differs from them."""

    name: str
    fix: str


MANIFEST = ListedIn("the manifest", "prepare the data again")


@contextmanager
def storage_errors_of(folder: Folder, path: str, listed: ListedIn = MANIFEST) -> Iterator[None]:
    """Turn storage errors of the file ``path`` into errors of Crossfade that name it.

    Raises:
        InputError: the file is missing, or access is denied.
        StorageUnavailableError: storage does not answer.
    """
    uri = f"{folder.uri}/{path}"
    try:
        yield
    except NoBucketError as error:
        raise InputError(_message(uri, error)) from error
    except FileNotFoundError as error:
        raise InputError(f"{uri}: no such file, but {listed.name} lists it; {listed.fix}") from error
    except (PermissionError, IsADirectoryError, NotADirectoryError, UnsuitableFileError) as error:
        raise InputError(_message(uri, error)) from error
    except OSError as error:
        raise StorageUnavailableError(_message(uri, error)) from error


def _message(uri: str, error: OSError) -> str:
    """Put ``uri`` in front of the error's text, which on S3 begins with it already."""
    text = f"cannot be read: {error.strerror}" if error.errno else str(error)
    return f"{uri}: {' '.join(text.split()).removeprefix(f'{uri}: ')}"


class StorageFile(RandomFile):
    """The file ``path`` of ``folder``, with errors of Crossfade that name it."""

    def __init__(self, folder: Folder, path: str) -> None:
        """Open the file.

        Raises:
            InputError: it is missing, or access is denied.
            StorageUnavailableError: storage does not answer.
        """
        self._folder, self._path = folder, path
        with storage_errors_of(folder, path):
            self._source = folder.open_random(path)
        super().__init__(self._source.size(), self._source.version)

    def read_at(self, offset: int, length: int) -> bytes:
        """Read exactly ``length`` bytes from ``offset``.

        Raises:
            InputError: access is denied.
            StorageUnavailableError: storage does not answer.
        """
        with storage_errors_of(self._folder, self._path):
            return self._source.read_at(offset, length)

    def close(self) -> None:
        """Close the file."""
        self._source.close()
        super().close()


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
