"""Folders where data and checkpoints lie: on a file system, or under a prefix of an S3 bucket.

    folder = Folder("s3://music/runs/lastfm/checkpoints")
    folder.child("step-000000123").write("manifest.json", b"{}")
    folder.names()                                                # ["step-000000123"]

What a method promises holds for both kinds. Each raises OSError with the path or URI in its message: FileNotFoundError
where there is no such file (or bucket: ``NoBucketError``), PermissionError where whoever asks may not, and
ConnectionError where S3 was out of reach, or too busy, for as long as requests are made again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, Protocol
from urllib.parse import unquote

from kvstore.errors import InputError
from kvstore.io.random_access import LocalRandomFile, RandomFile
from kvstore.io.s3 import S3Files


class InputFile(Protocol):
    """A file that is read from front to back, or from where ``seek`` puts it."""

    def readinto(self, buffer: Any, /) -> int | None:
        """Read up to as many bytes as ``buffer`` takes, and say how many; 0 at the end."""

    def seek(self, position: int, /) -> int:
        """Go to ``position`` of the file."""

    def close(self) -> None:
        """Let go of the file."""


class OutputFile(Protocol):
    """A file that is being written."""

    def write(self, data: Any, /) -> int | None:
        """Append ``data``, bytes or a buffer of them; a file on a file system may take fewer than all."""


class Folder:
    """A folder, which need not exist yet: a path, ``file:///path`` or ``s3://BUCKET/PREFIX``.

    S3 takes its endpoint, region and credentials from where the AWS tools take them (``AWS_ENDPOINT_URL``,
    ``AWS_REGION``, ``AWS_ACCESS_KEY_ID`` and so on, ``~/.aws``, the instance's role). A request that fails is tried
    again for up to a minute, or as ``CROSSFADE_S3_ATTEMPTS`` and ``CROSSFADE_S3_TIMEOUT_SECONDS`` say.
    """

    def __init__(self, location: str | os.PathLike[str]) -> None:
        """The folder at ``location``, a path or URI.

        Raises:
            InputError: it is neither a path nor a URI of a known kind.
        """
        uri = os.fspath(location)
        self.uri = uri.rstrip("/") or "/"
        scheme, separator, rest = uri.partition("://")
        if not separator:
            self._files: _Files = _LocalFiles(Path(self.uri))
        elif scheme == "file" and rest.startswith("/") and not {"?", "#"} & set(rest):
            self._files = _LocalFiles(Path(unquote(rest)))
        elif scheme == "s3":
            self._files = S3Files(self.uri)
        else:
            raise InputError(f"{uri}: not a folder that is known here; name a path, file:///PATH or s3://BUCKET/PREFIX")
        self._prefix = ""

    @property
    def name(self) -> str:
        """The last part of its URI."""
        return self.uri.rpartition("/")[2]

    @property
    def on_s3(self) -> bool:
        """Whether it lies on S3."""
        return isinstance(self._files, S3Files)

    @property
    def path(self) -> Path | None:
        """Where it lies on a file system of this machine; None on S3."""
        return self._files.root / self._prefix if isinstance(self._files, _LocalFiles) else None

    def child(self, name: str) -> Folder:
        """The folder ``name`` in this one."""
        child = object.__new__(Folder)
        child.uri = f"{self.uri.rstrip('/')}/{name}"
        child._files = self._files
        child._prefix = f"{self._prefix}{name}/"
        return child

    def write(self, name: str, data: bytes) -> None:
        """Write the small file ``name``, replacing any: it is there with all of ``data``, or not at all."""
        with self._naming(name):
            self._files.write(self._prefix + name, data)

    @contextmanager
    def open_output(self, name: str) -> Iterator[OutputFile]:
        """Write the large file ``name`` piece by piece. Left without an error, it is whole and lasts."""
        with self._naming(name), self._files.open_output(self._prefix + name) as file:
            yield file

    def read(self, name: str) -> bytes:
        """The content of the small file ``name``.

        Raises:
            FileNotFoundError: there is none.
        """
        with self._naming(name):
            return self._files.read(self._prefix + name)

    def open_input(self, name: str) -> InputFile:
        """Open the file ``name``. What is read from it later raises errors that do not name it.

        Raises:
            FileNotFoundError: there is none.
        """
        with self._naming(name):
            return self._files.open_input(self._prefix + name)

    def open_random(self, name: str) -> RandomFile:
        """Open the file ``name`` for reading anywhere in it, as its content is now.

        What is read from it later raises errors that do not name it.

        Raises:
            FileNotFoundError: there is none.
        """
        with self._naming(name):
            return self._files.open_random(self._prefix + name)

    def exists(self, name: str) -> bool:
        """Whether there is a file or folder ``name``."""
        return name in self.names()

    def names(self) -> list[str]:
        """The names of the files and folders in it, sorted; none if it does not exist."""
        with self._naming():
            return sorted(self._files.names(self._prefix))

    def entries(self) -> dict[str, int | None]:
        """The bytes of each file in it, by name, and None for each folder in it; none if it does not exist."""
        with self._naming():
            return self._files.entries(self._prefix)

    def check_bucket(self) -> None:
        """See that the S3 bucket exists that it is to lie in; listing what is in it would not say so.

        Raises:
            FileNotFoundError: it does not: ``NoBucketError``.
        """
        with self._naming():
            self._files.check_bucket()

    def sizes(self) -> dict[str, int]:
        """The bytes of every file in it and below, by its path from here."""
        with self._naming():
            return self._files.sizes(self._prefix)

    def remove(self, name: str) -> None:
        """Delete the file ``name``, if there is one."""
        with self._naming(name):
            self._files.remove(self._prefix + name)

    def delete(self) -> None:
        """Delete it with all that is in it, if it exists."""
        with self._naming():
            self._files.delete(self._prefix)

    def interrupt(self) -> None:
        """From now on, have no request of this folder and its children made again: whoever waits hears so soon."""
        self._files.interrupt()

    @contextmanager
    def _naming(self, name: str | None = None) -> Iterator[None]:
        """Let errors say which file they are about."""
        try:
            yield
        except OSError as error:
            if error.filename is not None:
                raise
            _raise_named(error, self.uri if name is None else f"{self.uri}/{name}")


def _raise_named(error: OSError, uri: str) -> NoReturn:
    if error.errno is not None:
        raise type(error)(error.errno, error.strerror, uri) from error
    raise type(error)(f"{uri}: {error}") from error


class _Files(Protocol):
    """One kind of storage. Paths are relative to its root; a prefix is empty or ends with a slash."""

    def write(self, path: str, data: bytes) -> None: ...

    def open_output(self, path: str) -> Any: ...

    def read(self, path: str) -> bytes: ...

    def open_input(self, path: str) -> InputFile: ...

    def open_random(self, path: str) -> RandomFile: ...

    def names(self, prefix: str) -> list[str]: ...

    def entries(self, prefix: str) -> dict[str, int | None]: ...

    def check_bucket(self) -> None: ...

    def sizes(self, prefix: str) -> dict[str, int]: ...

    def remove(self, path: str) -> None: ...

    def delete(self, prefix: str) -> None: ...

    def interrupt(self) -> None: ...


class _LocalFiles:
    """Files of a file system. What has been written survives a crash of the machine."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, path: str, data: bytes) -> None:
        target = self.root / path
        _make_folder(target.parent)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)

    @contextmanager
    def open_output(self, path: str) -> Iterator[OutputFile]:
        target = self.root / path
        _make_folder(target.parent)
        try:
            with target.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)

    def read(self, path: str) -> bytes:
        return (self.root / path).read_bytes()

    def open_input(self, path: str) -> InputFile:
        return (self.root / path).open("rb", buffering=0)

    def open_random(self, path: str) -> RandomFile:
        return LocalRandomFile(str(self.root / path))

    def names(self, prefix: str) -> list[str]:
        with suppress(FileNotFoundError):
            return [path.name for path in (self.root / prefix).iterdir()]
        return []

    def entries(self, prefix: str) -> dict[str, int | None]:
        with suppress(FileNotFoundError):
            paths = list((self.root / prefix).iterdir())
            return {path.name: None if path.is_dir() else path.stat().st_size for path in paths}
        return {}

    def check_bucket(self) -> None:
        """There is none."""

    def sizes(self, prefix: str) -> dict[str, int]:
        folder = self.root / prefix
        return {
            (Path(parent, name).relative_to(folder)).as_posix(): Path(parent, name).stat().st_size
            for parent, _, names in os.walk(folder, onerror=_raise)
            for name in names
        }

    def remove(self, path: str) -> None:
        (self.root / path).unlink(missing_ok=True)

    def delete(self, prefix: str) -> None:
        with suppress(FileNotFoundError):
            shutil.rmtree(self.root / prefix)

    def interrupt(self) -> None:
        """There is nothing to interrupt: requests are made once."""


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _make_folder(folder: Path) -> None:
    """Make ``folder`` and those above it, each entered durably in its parent."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
