"""What the bytes of a Parquet file are read from, and what is said when they cannot be had."""

from __future__ import annotations

from contextlib import AbstractContextManager

from kvstore.errors import StorageUnavailableError
from kvstore.io.folder import Folder
from kvstore.io.random_access import RandomFile
from kvstore.io.storage_errors import translate_storage_errors

NOT_THERE = "a page reaches beyond its column"


def reaching_file(folder: Folder, path: str) -> AbstractContextManager[None]:
    """Translate errors of storage about the file ``path``, which a manifest lists, into ones that name it.

    Raises:
        InputError: it is missing, or access is denied.
        StorageUnavailableError: storage does not answer.
    """
    return translate_storage_errors(
        f"{folder.uri}/{path}",
        action="read",
        if_missing="no such file, but the manifest lists it; prepare the data again",
        other=StorageUnavailableError,
    )


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
