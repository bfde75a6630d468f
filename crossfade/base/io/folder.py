"""Folders of data and checkpoints, on a file system or under a prefix of an S3 bucket.

    folder = Folder("s3://music/runs/lastfm/checkpoints")
    folder.child("step-000000123").write("manifest.json", b"{}")
    folder.names()                                                # ["step-000000123"]

Both kinds behave alike, but only S3 has versions of small files. Every method raises OSError with the path or URI in
its message: FileNotFoundError if there is no such file (or bucket: ``NoBucketError``), PermissionError if access is
denied, ConnectionError if S3 stayed unreachable or too busy for all retries, and UnsuitableFileError if a FIFO or a
device is in place of a file. Through a link that leads out of the folder, no small file is read and nothing is deleted;
large files are read.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from stat import S_ISDIR
from urllib.parse import unquote

from crossfade.base.errors import InputError
from crossfade.base.io.durable_file import create_folder, link_or_copy, replace_file, sync
from crossfade.base.io.random_access import LocalRandomFile, RandomFile
from crossfade.base.io.regular_files import (
    SMALL_FILE_BYTES,
    FoundFile,
    UnsuitableFileError,
    open_regular,
    read_below,
)
from crossfade.base.io.s3 import S3Files, Version

_COPY_BYTES = 8 << 20

OutputFile = io.RawIOBase | io.BufferedIOBase
"""A file opened for writing. It accepts all that is written."""


class Folder:
    """A folder, which need not exist yet: a path, ``file:///path`` or ``s3://BUCKET/PREFIX``.

    S3's endpoint, region and credentials come from the same places as for the AWS tools (``AWS_ENDPOINT_URL``,
    ``AWS_REGION``, ``AWS_ACCESS_KEY_ID`` and so on, ``~/.aws``, the instance's role). A request that fails is retried
    for up to a minute, or as ``CROSSFADE_S3_ATTEMPTS`` and ``CROSSFADE_S3_TIMEOUT_SECONDS`` specify.
    """

    def __init__(self, location: str | os.PathLike[str]) -> None:
        """Represent the folder at ``location``, a path or URI, without accessing it.

        Raises:
            InputError: the scheme of the URI is not supported, or the URI is malformed.
        """
        uri = os.fspath(location)
        self.uri = uri.rstrip("/") or "/"
        scheme, separator, rest = uri.partition("://")
        if not separator:
            self._files: _LocalFiles | S3Files = _LocalFiles(Path(self.uri))
        elif scheme == "file" and rest.startswith("/") and not {"?", "#"} & set(rest):
            self._files = _LocalFiles(Path(unquote(rest)))
        elif scheme == "s3":
            self._files = S3Files(self.uri)
        else:
            raise InputError(f"{uri}: unsupported location; expected a path, file:///PATH or s3://BUCKET/PREFIX")
        self._prefix = ""

    def __reduce__(self) -> tuple[type[Folder], tuple[str]]:
        """Have another process open it by its URI."""
        return Folder, (self.uri,)

    @property
    def name(self) -> str:
        """The last component of the URI."""
        return self.uri.rpartition("/")[2]

    @property
    def on_s3(self) -> bool:
        """Whether the folder is on S3."""
        return isinstance(self._files, S3Files)

    @property
    def path(self) -> Path | None:
        """The local path; None on S3."""
        return self._files.root / self._prefix if isinstance(self._files, _LocalFiles) else None

    def child(self, name: str) -> Folder:
        """Return the subfolder ``name``."""
        child = object.__new__(Folder)
        child.uri = f"{self.uri.rstrip('/')}/{name}"
        child._files = self._files
        child._prefix = f"{self._prefix}{name}/"
        return child

    def write(self, name: str, data: bytes) -> None:
        """Write or replace the small file ``name`` atomically and durably."""
        with self._naming(name):
            self._files.write(self._prefix + name, data)

    @contextmanager
    def open_output(self, name: str) -> Iterator[OutputFile]:
        """Write the large file ``name`` in pieces: complete and durable when the block ends, absent after an error."""
        with self._naming(name), self._files.open_output(self._prefix + name) as file:
            yield file

    def take_over(self, name: str, source: Folder, source_name: str) -> None:
        """Make the complete file ``source_name`` of ``source`` available as ``name``, with no copying where possible.

        That is a hard link on a file system, and a copy by the server on S3. Files that are never written in place stay
        what they are when the other one is replaced or deleted.
        """
        with source._naming(source_name):
            if self._files.take_over(self._prefix + name, source._files, source._prefix + source_name):
                return
        with closing(source.open_random(source_name)) as file, self.open_output(name) as out:
            shutil.copyfileobj(file, out, _COPY_BYTES)

    def read(self, name: str, max_bytes: int = SMALL_FILE_BYTES) -> bytes:
        """Read the small file ``name``.

        Raises:
            FileNotFoundError: it does not exist.
            UnsuitableFileError: it has more than ``max_bytes``.
        """
        with self._naming(name):
            return self._files.read(self._prefix + name, max_bytes)

    @property
    def _objects(self) -> S3Files:
        assert isinstance(self._files, S3Files), "only S3 compares versions: on a file system, writers hold a lock"
        return self._files

    def read_version(self, name: str) -> Version:
        """Read the small file ``name`` on S3 as ``read`` does, together with what identifies this version of it."""
        with self._naming(name):
            return self._objects.read_version(self._prefix + name)

    def version(self, name: str) -> str | None:
        """Return what identifies the present version of the small file ``name`` on S3; None if it does not exist."""
        with suppress(FileNotFoundError):
            return self.read_version(name).version
        return None

    def write_over(self, name: str, data: bytes, version: str | None) -> str:
        """Write the small file ``name`` on S3, which compares and writes in one step; return the new version.

        The version must still be ``version``, None if there must be no such file.

        Raises:
            ChangedError: another process has written or deleted it.
        """
        with self._naming(name):
            return self._objects.write_over(self._prefix + name, data, version)

    def open_random(self, name: str) -> RandomFile:
        """Open the current version of the file ``name`` for random access. Errors of later reads do not name it.

        Raises:
            FileNotFoundError: it does not exist.
        """
        with self._naming(name):
            return self._files.open_random(self._prefix + name)

    def exists(self, name: str) -> bool:
        """Return whether there is a file or folder ``name``."""
        return name in self.names()

    def names(self) -> list[str]:
        """Return the names of its files and folders, sorted; none if it does not exist."""
        with self._naming():
            return sorted(self._files.names(self._prefix))

    def entries(self) -> dict[str, FoundFile | None]:
        """Return each file in it by name, and None for each folder; empty if it does not exist."""
        with self._naming():
            return self._files.entries(self._prefix)

    def sizes(self) -> dict[str, int]:
        """Return the size of every file below it, by path relative to it."""
        return {path: found.bytes for path, found in self.files().items()}

    def files(self) -> dict[str, FoundFile]:
        """Return every file below it, by path relative to it."""
        with self._naming():
            return self._files.files(self._prefix)

    def remove(self, name: str, version: str | None = None) -> None:
        """Delete the file ``name`` if it exists or, with ``version`` and on S3, if it still has this version.

        Raises:
            ChangedError: it has not.
        """
        with self._naming(name):
            if version is None:
                self._files.remove(self._prefix + name)
            else:
                self._objects.remove(self._prefix + name, version)

    def delete(self) -> None:
        """Delete it with all its content, if it exists."""
        with self._naming():
            self._files.delete(self._prefix)

    def interrupt(self) -> None:
        """Stop retrying requests of this folder and its subfolders, so that callers fail soon."""
        self._files.interrupt()

    @contextmanager
    def _naming(self, name: str | None = None) -> Iterator[None]:
        """Add the URI of the file or folder to errors."""
        try:
            yield
        except OSError as error:
            if error.filename is not None:
                raise
            uri = self.uri if name is None else f"{self.uri}/{name}"
            if error.errno is not None:
                raise type(error)(error.errno, error.strerror, uri) from error
            raise type(error)(f"{uri}: {error}") from error


class _LocalFiles:
    """Files on a file system, with the methods of ``S3Files``. Completed writes survive a crash of the machine.

    Paths are relative to the root; a prefix is empty or ends with a slash.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def _target(self, path: str) -> Path:
        """Return where to write ``path``. Reject one that is not below the root, where other files are."""
        if path.startswith("/") or ".." in path.split("/"):
            raise UnsuitableFileError(errno.EINVAL, f"'{path}' is not below the folder, where nothing is written")
        return self.root / path

    def write(self, path: str, data: bytes) -> None:
        target = self._target(path)
        create_folder(target.parent)
        replace_file(target, data)

    @contextmanager
    def open_output(self, path: str) -> Iterator[OutputFile]:
        target = self._target(path)
        create_folder(target.parent)
        target.unlink(missing_ok=True)  # it may be a hard link to a file of another dataset
        with target.open("xb") as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
            except BaseException:
                with suppress(FileNotFoundError):
                    if os.path.samestat(target.lstat(), os.fstat(file.fileno())):  # else of a later process
                        target.unlink()
                raise
        sync(target.parent)

    def take_over(self, path: str, source: object, source_path: str) -> bool:
        """Link ``path`` to a file of ``source``, or copy it; return False if that is on S3."""
        if not isinstance(source, _LocalFiles):
            return False
        target, found = self._target(path), (source.root / source_path).resolve()
        create_folder(target.parent)
        target.unlink(missing_ok=True)
        link_or_copy(found, target)
        sync(target.parent)
        return True

    def read(self, path: str, max_bytes: int) -> bytes:
        return read_below(self.root, path, max_bytes)

    def open_random(self, path: str) -> RandomFile:
        return LocalRandomFile(open_regular(self.root / path))

    def names(self, prefix: str) -> list[str]:
        with suppress(FileNotFoundError):
            return [path.name for path in (self.root / prefix).iterdir()]
        return []

    def entries(self, prefix: str) -> dict[str, FoundFile | None]:
        with suppress(FileNotFoundError):
            found = {path.name: path.stat() for path in (self.root / prefix).iterdir()}
            return {
                name: None if S_ISDIR(status.st_mode) else FoundFile(status.st_size, status.st_mtime)
                for name, status in found.items()
            }
        return {}

    def files(self, prefix: str) -> dict[str, FoundFile]:
        folder = self.root / prefix
        return {
            (Path(parent, name).relative_to(folder)).as_posix(): FoundFile(stat.st_size, stat.st_mtime)
            for parent, _, names in os.walk(folder, onerror=_raise)
            for name in names
            for stat in [Path(parent, name).stat()]
        }

    def remove(self, path: str) -> None:
        self._check_inside(path)
        (self.root / path).unlink(missing_ok=True)

    def delete(self, prefix: str) -> None:
        self._check_inside(prefix)
        with suppress(FileNotFoundError):
            shutil.rmtree(self.root / prefix)

    def _check_inside(self, path: str) -> None:
        """Reject a path that a link leads out of the root: what is there belongs to something else."""
        if path and not (self.root / path).parent.resolve().is_relative_to(self.root.resolve()):
            raise UnsuitableFileError(errno.ELOOP, "a link leads out of the folder, where nothing is deleted")

    def interrupt(self) -> None:
        """Return at once: nothing is retried."""


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
