"""Find input files: local paths, ``file://`` URIs and globs, objects and globs on S3, and tables.

    find_files("train", ["s3://raw/2024-*/part-*.parquet", "more/*.csv"], file_format=None)

``*`` and ``?`` match within one part of a path, ``[…]`` one character, and ``**`` any number of parts. A name that
exists literally is never treated as a glob.
"""

from __future__ import annotations

import fnmatch
import glob
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import get_args
from urllib.parse import unquote, urlsplit

from crossfade.base.errors import InputError, Option, Text
from crossfade.base.io.folder import Folder
from crossfade.base.io.regular_files import FoundFile
from crossfade.base.io.storage_errors import translate_storage_errors
from crossfade.trainer.prepare.lake_tables import CATALOG, is_delta, table_files
from crossfade.trainer.prepare.options import Format

FORMATS: tuple[str, ...] = get_args(Format)
EXTENSIONS: dict[str, Format] = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".dat": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
_GZIP, _GZIP_MAGIC = ".gz", b"\x1f\x8b"
_S3 = "s3://"


@dataclass(frozen=True)
class RawFile:
    """A local file and how to read it.

    Attributes:
        path: the file.
        format: its format.
        origin: where it was fetched from, if it is a copy: the URI.
        delimiter: what separates the fields of a CSV or TSV file, if it was given or found.
        encoding: how a text file is encoded, as Python names it.
    """

    path: Path
    format: Format
    origin: str | None = None
    delimiter: str | None = None
    encoding: str = "utf-8"

    @property
    def bytes(self) -> int:
        """The size of the file."""
        return self.path.stat().st_size

    @property
    def separator(self) -> str:
        """The delimiter, or the one that the format has by default."""
        return self.delimiter or ("\t" if self.format == "tsv" else ",")

    def is_compressed(self) -> bool:
        """Return whether gzip compressed the file, by its first bytes: a copy or a renamed file lacks the extension."""
        with self.path.open("rb") as file:
            return file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC

    def __str__(self) -> str:
        """Return the name for messages: where the file comes from."""
        return self.origin or str(self.path)


@dataclass(frozen=True)
class RemoteFile:
    """An object of an S3 bucket, and how to read it once it is fetched."""

    bucket: Folder
    key: str
    bytes: int
    format: Format
    modified: float

    def __str__(self) -> str:
        """Return the URI."""
        return f"{self.bucket.uri}/{self.key}"


Source = RawFile | RemoteFile


class NoMatchError(InputError):
    """A path or a glob matches no file."""


def find_files(
    option: str,
    patterns: Sequence[str | Path],
    file_format: Format | None,
    entity: str = "",
) -> list[Source]:
    """Find the files that ``patterns`` (paths, ``file://`` and ``s3://`` URIs, globs, tables) match, in order.

    The format of each is inferred from its extension if ``file_format`` is None. Messages name ``option`` and, if it
    has files of several ones, the ``entity``.

    Raises:
        InputError: a file is missing, a folder, or of no known format; a glob matches nothing; S3 rejects the request.
    """
    where = f"{entity} " if entity else ""
    found: list[Source] = []
    for pattern in patterns:
        found += _find(Option(option, f"{where}{pattern}"), plain_path(str(pattern)), file_format)
    return found


def find_arriving(option: str, pattern: str, file_format: Format | None) -> tuple[list[Source], dict[str, InputError]]:
    """Find the files that one pattern matches so far, and the error of each whose name cannot be used, by name.

    A pattern may match nothing yet, but not a table, whose files are replaced by others with the same rows.

    Raises:
        InputError: it names a table or a folder, or S3 rejects the request.
    """
    where = Option(option, pattern)
    pattern = plain_path(pattern)
    if _names_table(where, pattern):
        raise InputError(
            where,
            ": is a table, whose files are replaced when it is compacted: their rows would count twice; "
            "expected files of new events",
        )
    found: list[Source] = []
    unusable: dict[str, InputError] = {}
    with suppress(NoMatchError):
        for name, source in _matches(where, pattern):
            try:
                found.append(source(_format_of(name, file_format)))
            except InputError as error:
                unusable[name] = error
    return found, unusable


def infer_format(path: str) -> Format:
    """Infer the format of ``path`` from its extension, before that of the compression.

    Raises:
        InputError: the extension is unknown.
    """
    name = PurePosixPath(path)
    if name.suffix.lower() == _GZIP:
        name = name.with_suffix("")
    found = EXTENSIONS.get(name.suffix.lower())
    if found is None:
        known = " ".join(EXTENSIONS)
        raise InputError(
            f"{path}: the extension '{name.suffix}' has no known format; expected one of {known} (of text files also "
            f"with {_GZIP}), or ",
            Option("format", "|".join(FORMATS)),
        )
    return found


def plain_path(pattern: str) -> str:
    """Return the path of a ``file://`` URI, and anything else as it is."""
    return unquote(urlsplit(pattern).path) if pattern.startswith("file://") else pattern


def _find(option: Text, pattern: str, file_format: Format | None) -> list[Source]:
    if _names_table(option, pattern):
        return [_table_file(*file) for file in table_files(option, pattern)]
    return [source(_format_of(name, file_format)) for name, source in _matches(option, pattern)]


def _format_of(name: str, given: Format | None) -> Format:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(f"{ascii(name)[1:-1]}: the name of the file is not UTF-8; rename it") from None
    return given or infer_format(name)


def _names_table(option: Text, pattern: str) -> bool:
    if pattern.startswith(CATALOG) or glob.has_magic(pattern):
        return pattern.startswith(CATALOG)
    has_extension = PurePosixPath(pattern).suffix.lower() in (*EXTENSIONS, _GZIP)
    if has_extension if pattern.startswith(_S3) else not Path(pattern).is_dir():
        return False
    with translate_storage_errors(option, unreachable=InputError):
        return is_delta(Folder(pattern))


def _matches(option: Text, pattern: str) -> list[tuple[str, Callable[[Format], Source]]]:
    """Return the name of each file that ``pattern`` matches, and what makes the file from its format."""
    if not pattern.startswith(_S3):
        return [(str(path), partial(_raw_file, subject, path)) for subject, path in _find_paths(option, pattern)]
    return [
        (f"{bucket.uri}/{key}", partial(RemoteFile, bucket, key, found.bytes, modified=found.modified))
        for bucket, key, found in _find_objects(option, pattern)
    ]


def _table_file(uri: str, size: int) -> Source:
    if not uri.startswith(_S3):
        return RawFile(Path(uri), "parquet")
    bucket, _, key = uri.removeprefix(_S3).partition("/")
    # Its time stays unknown: a file of a table is never written again.
    return RemoteFile(Folder(_S3 + bucket), key, size, "parquet", modified=0.0)


def _find_paths(option: Text, pattern: str) -> list[tuple[Text, Path]]:
    """Return each path that ``pattern`` matches and is no folder, after what messages name it by."""
    uri = urlsplit(pattern)
    if len(uri.scheme) > 1 and pattern.startswith(f"{uri.scheme}://"):
        raise InputError(option, ": expected a local file or s3://BUCKET/KEY; copy the file to one of the two")
    path = Path(pattern)
    if path.is_dir():
        raise InputError(option, f": is a folder; expected files: try '{pattern.rstrip('/')}/*.parquet'")
    if path.exists():
        return [(option, path)]
    if not glob.has_magic(pattern):
        raise NoMatchError(option, f": no such file; check the path (the current folder is {Path.cwd()})")
    # Path.glob rejects absolute patterns.
    matches = map(Path, glob.glob(pattern, recursive=True))  # noqa: PTH207
    found = sorted(path for path in matches if path.exists() and not path.is_dir())
    if not found:
        raise NoMatchError(option, f": matches no file; check the pattern (the current folder is {Path.cwd()})")
    return [((option, f": {path}"), path) for path in found]


def _raw_file(subject: Text, path: Path, file_format: Format) -> RawFile:
    """Return the file at ``path``, which exists.

    Raises:
        InputError: it is no regular file.
    """
    if path.is_file():
        return RawFile(path, file_format)
    raise InputError(
        subject,
        ": is a FIFO, socket, or device; expected a regular file: write what it has to one",
    )


def _find_objects(option: Text, pattern: str) -> list[tuple[Folder, str, FoundFile]]:
    """Return the bucket, key and listing of each object that ``pattern`` matches, ordered by key."""
    name, _, key = pattern[len(_S3) :].partition("/")
    bucket = Folder(_S3 + name)
    with translate_storage_errors(option, unreachable=InputError):
        folder, _, last = key.rpartition("/")
        entries = _below(bucket, folder).entries()
        if last and (named := entries.get(last)) is not None:
            return [(bucket, key, named)]
        if not last or last in entries:
            raise InputError(option, f": is a folder; expected files: try '{pattern.rstrip('/')}/*.parquet'")
        if not glob.has_magic(key):
            raise NoMatchError(option, ": no such object; check the key")
        found = sorted(dict(_match_objects(bucket, "", key.split("/"))).items())
    if not found:
        raise NoMatchError(option, ": matches no object; check the pattern")
    return [(bucket, match, listed) for match, listed in found]


def _below(bucket: Folder, path: str) -> Folder:
    return bucket.child(path) if path else bucket


def _match_objects(bucket: Folder, path: str, parts: list[str]) -> Iterator[tuple[str, FoundFile]]:
    """Yield key and listing of the objects below ``path`` that match ``parts``, listing only folders that match."""
    first, rest = parts[0], parts[1:]
    if not glob.has_magic(first) and rest:
        yield from _match_objects(bucket, f"{path}{first}/", rest)
        return
    if first == "**" and rest:
        yield from _match_objects(bucket, path, rest)
    for name, listed in _below(bucket, path.rstrip("/")).entries().items():
        if name.startswith(".") and not first.startswith("."):
            continue  # as in a shell
        if listed is None:
            if first == "**":
                yield from _match_objects(bucket, f"{path}{name}/", parts)
            elif rest and fnmatch.fnmatchcase(name, first):
                yield from _match_objects(bucket, f"{path}{name}/", rest)
        elif not rest and fnmatch.fnmatchcase(name, first):
            yield path + name, listed
