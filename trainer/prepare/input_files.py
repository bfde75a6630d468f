"""The files that a user names: paths, ``file://`` addresses and globs of this machine, and the same of objects on S3.

    find_files("--train", ["s3://raw/2024-*/part-*.parquet", "more/*.csv"], given=None)

``*`` and ``?`` match within one part of a path, ``[…]`` one letter, and ``**`` any number of parts. What exists under
the very name is never taken for a glob, whatever letters are in it.
"""

from __future__ import annotations

import fnmatch
import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, get_args
from urllib.parse import unquote, urlsplit

from kvstore.errors import InputError
from kvstore.io.folder import Folder
from kvstore.io.storage_errors import translate_storage_errors

Format = Literal["parquet", "csv", "tsv", "lightgcn"]

FORMATS: tuple[str, ...] = get_args(Format)
ENDINGS: dict[str, Format] = {".parquet": "parquet", ".csv": "csv", ".tsv": "tsv", ".dat": "tsv"}
_S3 = "s3://"


@dataclass(frozen=True)
class RawFile:
    """One file of this machine and how to read it. ``origin`` is where it came from, if that is elsewhere."""

    path: Path
    format: Format
    origin: str | None = None

    @property
    def bytes(self) -> int:
        """Its size."""
        return self.path.stat().st_size

    def __str__(self) -> str:
        """What messages call it."""
        return self.origin or str(self.path)


@dataclass(frozen=True)
class RemoteFile:
    """One object of an S3 bucket, and how to read it once it is here."""

    bucket: Folder
    key: str
    bytes: int
    format: Format

    def __str__(self) -> str:
        """Its URI."""
        return f"{self.bucket.uri}/{self.key}"


Source = RawFile | RemoteFile


def find_files(option: str, patterns: Sequence[str | Path], given: Format | None) -> list[Source]:
    """The files that ``patterns`` (paths, ``file://`` and ``s3://`` addresses, globs) name, in order.

    The format of each is inferred unless ``given``. Messages name ``option``.

    Raises:
        InputError: a file is missing, a folder, or of no known format; a glob matches nothing; S3 refuses.
    """
    return [file for pattern in patterns for file in _find(option, str(pattern), given)]


def infer_format(path: str) -> Format:
    """The format that the ending of ``path`` stands for.

    Raises:
        InputError: it stands for none.
    """
    ending = PurePosixPath(path).suffix
    found = ENDINGS.get(ending.lower())
    if found is None:
        known = " ".join(ENDINGS)
        raise InputError(
            f"{path}: the ending '{ending}' does not say what the file is; expected one of {known}, "
            f"or say --format {'|'.join(FORMATS)}"
        )
    return found


def _find(option: str, pattern: str, given: Format | None) -> list[Source]:
    if pattern.startswith(_S3):
        found = _objects(option, pattern)
        return [
            RemoteFile(bucket, key, size, given or infer_format(f"{bucket.uri}/{key}")) for bucket, key, size in found
        ]
    return [RawFile(path, given or infer_format(str(path))) for path in _paths(option, pattern)]


def _paths(option: str, pattern: str) -> list[Path]:
    address = urlsplit(pattern)
    if address.scheme == "file":
        pattern = unquote(address.path)
    elif len(address.scheme) > 1 and pattern.startswith(f"{address.scheme}://"):
        raise InputError(
            f"{option} {pattern}: 'prepare' reads files of this machine and s3://BUCKET/KEY; copy it to one of the two"
        )
    path = Path(pattern)
    if path.is_dir():
        raise InputError(f"{option} {pattern}: is a folder; expected files: try '{pattern.rstrip('/')}/*.parquet'")
    if path.exists():
        return [path]
    if not glob.has_magic(pattern):
        raise InputError(f"{option} {pattern}: no such file; check the path (here is {Path.cwd()})")
    # Path.glob takes no absolute pattern.
    found = sorted(path for path in map(Path, glob.glob(pattern, recursive=True)) if path.is_file())  # noqa: PTH207
    if not found:
        raise InputError(f"{option} {pattern}: matches no file; check the pattern (here is {Path.cwd()})")
    return found


def _objects(option: str, pattern: str) -> list[tuple[Folder, str, int]]:
    """Bucket, key and bytes of each object that ``pattern`` names, by key."""
    name, _, key = pattern[len(_S3) :].partition("/")
    bucket = Folder(_S3 + name)
    with translate_storage_errors(f"{option} {pattern}", unreachable=InputError):
        bucket.check_bucket()
        folder, _, last = key.rpartition("/")
        entries = _below(bucket, folder).entries()
        if last and entries.get(last) is not None:
            return [(bucket, key, entries[last] or 0)]
        if not last or last in entries:
            raise InputError(f"{option} {pattern}: is a folder; expected files: try '{pattern.rstrip('/')}/*.parquet'")
        if not glob.has_magic(key):
            raise InputError(f"{option} {pattern}: no such object; check the key")
        found = sorted(dict(_matches(bucket, "", key.split("/"))).items())
    if not found:
        raise InputError(f"{option} {pattern}: matches no object; check the pattern")
    return [(bucket, match, size) for match, size in found]


def _below(bucket: Folder, path: str) -> Folder:
    return bucket.child(path) if path else bucket


def _matches(bucket: Folder, path: str, parts: list[str]) -> Iterator[tuple[str, int]]:
    """Key and bytes of the objects below ``path`` whose further parts match ``parts``: only such folders are listed."""
    first, rest = parts[0], parts[1:]
    if not glob.has_magic(first) and rest:
        yield from _matches(bucket, f"{path}{first}/", rest)
        return
    if first == "**" and rest:
        yield from _matches(bucket, path, rest)
    for name, size in _below(bucket, path.rstrip("/")).entries().items():
        if name.startswith(".") and not first.startswith("."):
            continue  # as a shell has it
        if size is None:
            if first == "**":
                yield from _matches(bucket, f"{path}{name}/", parts)
            elif rest and fnmatch.fnmatchcase(name, first):
                yield from _matches(bucket, f"{path}{name}/", rest)
        elif not rest and fnmatch.fnmatchcase(name, first):
            yield path + name, size
