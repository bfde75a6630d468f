"""Folders where data and checkpoints lie: on a file system, or under a prefix of an S3 bucket.

    folder = Folder("s3://music/runs/lastfm/checkpoints")
    folder.child("step-000000123").write("manifest.json", b"{}")
    folder.names()                                                # ["step-000000123"]

What a method promises holds for both kinds. Each raises OSError with the path or URI in its message.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, Protocol
from urllib.parse import unquote, urlsplit

from kvstore.errors import InputError

ATTEMPTS_VARIABLE = "CROSSFADE_S3_ATTEMPTS"
TIMEOUT_VARIABLE = "CROSSFADE_S3_TIMEOUT_SECONDS"
DEFAULT_ATTEMPTS = 12
"""Tries of one S3 request. The pause before each next one doubles, from 25 ms: all together they last 51 s where
connections are refused, and three minutes where nothing answers."""
DEFAULT_TIMEOUT_SECONDS = 10
"""How long an S3 request may stand still before it is tried again."""
_FIRST_PAUSE_SECONDS = 0.025
_CONNECT_TIMEOUT_SECONDS = 5
_ANSWER_TOO_LONG = "Failed to flush response stream"
_unfinished: list[Any] = []
"""Objects whose writing broke off: nothing may ever close them."""


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
    again for about a minute, or as ``CROSSFADE_S3_ATTEMPTS`` and ``CROSSFADE_S3_TIMEOUT_SECONDS`` say.
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
        elif scheme == "file" and rest.startswith("/"):
            self._files = _LocalFiles(Path(unquote(urlsplit(self.uri).path)))
        elif scheme == "s3":
            self._files = _S3Files(self.uri)
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
        return isinstance(self._files, _S3Files)

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

    def open_random(self, name: str) -> Any:
        """Open the file ``name`` for reading anywhere in it, as a ``pyarrow.NativeFile``.

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

    def lacks_bucket(self) -> bool:
        """Whether it is to lie in an S3 bucket that does not exist."""
        with self._naming():
            return self._files.lacks_root()

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

    def open_random(self, path: str) -> Any: ...

    def names(self, prefix: str) -> list[str]: ...

    def entries(self, prefix: str) -> dict[str, int | None]: ...

    def lacks_root(self) -> bool: ...

    def sizes(self, prefix: str) -> dict[str, int]: ...

    def remove(self, path: str) -> None: ...

    def delete(self, prefix: str) -> None: ...


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

    def open_random(self, path: str) -> Any:
        from pyarrow import OSFile

        return OSFile(str(self.root / path))

    def names(self, prefix: str) -> list[str]:
        with suppress(FileNotFoundError):
            return [path.name for path in (self.root / prefix).iterdir()]
        return []

    def entries(self, prefix: str) -> dict[str, int | None]:
        with suppress(FileNotFoundError):
            paths = list((self.root / prefix).iterdir())
            return {path.name: None if path.is_dir() else path.stat().st_size for path in paths}
        return {}

    def lacks_root(self) -> bool:
        return False

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


class _S3Files:
    """Objects of an S3 bucket. Connects when it is first used."""

    def __init__(self, uri: str) -> None:
        parts = urlsplit(uri)
        if not parts.netloc or "//" in parts.path or parts.query or parts.fragment or "@" in parts.netloc:
            raise InputError(
                f"{uri}: not an S3 folder: expected s3://BUCKET/PREFIX; credentials, region and endpoint come from the "
                "environment (AWS_ACCESS_KEY_ID, AWS_REGION, AWS_ENDPOINT_URL ...)"
            )
        self._uri = uri
        self._bucket = parts.netloc
        self._root = f"{parts.netloc}{parts.path}".rstrip("/") + "/"

    @cached_property
    def _fs(self) -> Any:
        from pyarrow import fs

        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        where = {}
        if endpoint:
            url = urlsplit(endpoint)
            if url.scheme not in {"http", "https"} or not url.netloc:
                raise InputError(f"AWS_ENDPOINT_URL is {endpoint!r}, which is not a URL such as https://HOST:PORT")
            where = {"scheme": url.scheme, "endpoint_override": url.netloc}
        attempts = _setting(ATTEMPTS_VARIABLE, DEFAULT_ATTEMPTS)
        return fs.S3FileSystem(
            region=self._region(bool(endpoint)),
            connect_timeout=_CONNECT_TIMEOUT_SECONDS,
            request_timeout=_setting(TIMEOUT_VARIABLE, DEFAULT_TIMEOUT_SECONDS),
            retry_strategy=fs.AwsDefaultS3RetryStrategy(max_attempts=attempts - 1),  # it counts further ones
            # A part at a time: in the background there is no bound to how much waits in memory for a slow network.
            background_writes=False,
            # No upload is begun before there is something to send, and a small file is one request.
            allow_delayed_open=True,
            **where,
        )

    def _region(self, endpoint: bool) -> str | None:
        """The bucket's region, asked for where nothing says it: AWS sends other regions' requests away."""
        known = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        if known or endpoint:
            return known
        from pyarrow import fs

        with suppress(OSError):
            region: str = fs.resolve_s3_region(self._bucket)
            return region
        return None

    def write(self, path: str, data: bytes) -> None:
        with self.open_output(path) as file:
            file.write(data)

    @contextmanager
    def open_output(self, path: str) -> Iterator[OutputFile]:
        file = self._fs.open_output_stream(self._root + path)
        # Not after an error: closing would make an object of what there is so far, and so would forgetting it.
        _unfinished.append(file)
        yield file
        file.close()
        _unfinished.remove(file)

    def read(self, path: str) -> bytes:
        with closing(self._fs.open_input_file(self._root + path)) as file:
            data = bytearray(file.size())
            _S3Input(file).readinto(data)
        return bytes(data)

    def open_input(self, path: str) -> InputFile:
        return _S3Input(self._fs.open_input_file(self._root + path))

    def open_random(self, path: str) -> Any:
        return self._fs.open_input_file(self._root + path)

    def names(self, prefix: str) -> list[str]:
        return [info.base_name for info in self._list(prefix, recursive=False)]

    def entries(self, prefix: str) -> dict[str, int | None]:
        return {info.base_name: info.size if info.is_file else None for info in self._list(prefix, recursive=False)}

    def lacks_root(self) -> bool:
        from pyarrow import fs

        return bool(self._fs.get_file_info(self._bucket).type == fs.FileType.NotFound)

    def sizes(self, prefix: str) -> dict[str, int]:
        start = len(self._root + prefix)
        return {info.path[start:]: info.size for info in self._list(prefix, recursive=True) if info.is_file}

    def _list(self, prefix: str, *, recursive: bool) -> list[Any]:
        from pyarrow import fs

        folder = (self._root + prefix).rstrip("/")
        listed: list[Any] = self._fs.get_file_info(fs.FileSelector(folder, recursive=recursive, allow_not_found=True))
        return listed

    def remove(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._fs.delete_file(self._root + path)

    def delete(self, prefix: str) -> None:
        with suppress(FileNotFoundError):
            self._fs.delete_dir((self._root + prefix).rstrip("/"))


class _S3Input:
    """An object that is being read.

    The client does not try again when the answer that says "later" is longer than the data that it had asked for, and
    so did not fit. That is done here.
    """

    def __init__(self, file: Any) -> None:
        self._file = file

    def readinto(self, buffer: Any, /) -> int:
        for attempt in range(_setting(ATTEMPTS_VARIABLE, DEFAULT_ATTEMPTS) - 1):
            position = self._file.tell()
            try:
                return int(self._file.readinto(buffer))
            except OSError as error:
                if _ANSWER_TOO_LONG not in str(error):
                    raise
            time.sleep(_FIRST_PAUSE_SECONDS * 2**attempt)
            self._file.seek(position)
        return int(self._file.readinto(buffer))

    def seek(self, position: int, /) -> int:
        return int(self._file.seek(position))

    def close(self) -> None:
        self._file.close()


def _setting(variable: str, default: int) -> int:
    value = os.environ.get(variable, str(default))
    if not value.isdecimal() or int(value) < 1:
        raise InputError(f"{variable} is {value!r}, but must be a whole number of at least 1")
    return int(value)
