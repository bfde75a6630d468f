"""Read text files record by record, to find every line that cannot be read, and the lines of rows.

    with open_records(file) as (paths, records):
        bad = [(record.line, record.problem) for record in records if record.problem]

DuckDB reads faster and stops at the first line that it rejects, so files are read here only if it rejects one, and to
locate rows. A bad record is one line: what follows it is read anew, so that a stray quote costs one line and not the
rest of the file.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

from crossfade.base.errors import InputError, Option, Text
from crossfade.base.text import counted
from crossfade.trainer.prepare.input_files import RawFile

MAX_RECORD_BYTES = 2 << 20
"""The longest record of a CSV, TSV or JSON file, as in DuckDB."""
MAX_ADJACENCY_BYTES = 16 << 20
"""The longest line of adjacency text, which may hold every item of a large catalog."""
_CARRIAGE_RETURN = "has a carriage return inside a line; remove it, for instance: tr -d '\\r'"
_OPEN_QUOTE: Text = ("a quote opens and does not close; double quotes inside fields, or use ", Option("format", "tsv"))
_NOT_UTF8: Text = (
    "is not UTF-8 or not in the encoding that was named; convert the file, for instance: iconv -f latin1 -t utf-8, or "
    "name the encoding of events, as in ",
    Option("encoding", "latin-1"),
)
_UTF_16: Text = ("is not UTF-8; it may be UTF-16: name the encoding with ", Option("encoding", "utf-16"))
_NUMBERS = re.compile(rb"[ \t]*(?:[0-9]{1,18}(?:[ \t]++|$))*+")
"""A line of adjacency text without its end: numbers that 64 bits hold."""
_NOT_ADJACENCY = (
    "expected 'user item item …', non-negative integers with spaces between: fix the line, or give another format "
    "with ",
    Option("format"),
)
_NOT_OBJECT = "is not a JSON object; expected one in each line"
_JSON_NAMES_LINES = 1000  # an object may lack some keys, so that one line does not have all
_MAX_DEPTH, _MAX_NESTED = 8, 1000
"""How many keys a path in JSON has at most, and after how many paths no object in an object is searched for more."""


def _too_long(limit: int) -> Text:
    return (f"the line is longer than {limit:,} bytes; expected one record in each line: check ", Option("format"))


def _not_utf8(text: bytes) -> Text:
    return _UTF_16 if text.startswith((b"\xff\xfe", b"\xfe\xff")) else _NOT_UTF8


@dataclass(frozen=True, slots=True)
class Record:
    """A record of a text file.

    Attributes:
        line: the number of its first line, from 1.
        text: its bytes, with the line end.
        values: the values of the columns; empty of adjacency text, and if there is a problem.
        problem: why it cannot be read; empty if it can.
    """

    line: int
    text: bytes
    values: Sequence[str | None] = ()
    problem: Text = ""

    def describe(self, file: RawFile) -> Text:
        """Describe the problem in one line, with the place."""
        return (f"{file}, line {self.line}: ", self.problem)


class _Lines:
    """The lines of a file, some of which are read again after a look ahead."""

    def __init__(self, readline: Callable[[int], bytes], max_bytes: int) -> None:
        self._readline = readline
        self._max_bytes = max_bytes
        self._ahead: deque[bytes] = deque()
        self._is_cut = False
        """Whether the rest of the last line that was read, which is above the limit, still follows."""
        self.number = 0

    def take(self) -> bytes:
        """Return the next line, empty at the end; of a line above the limit, one byte more than the limit."""
        line = self._ahead.popleft() if self._ahead else self._read()
        self.number += bool(line)
        return line

    def _read(self) -> bytes:
        while self._is_cut:  # not before the next line is needed: the rest of a file may be one line
            self._read_part()
        return self._read_part()

    def _read_part(self) -> bytes:
        part = self._readline(self._max_bytes + 1)
        self._is_cut = len(part) > self._max_bytes and not part.endswith(b"\n")
        return part

    def put_back(self, lines: Sequence[bytes]) -> None:
        """Return ``lines`` with the next calls of ``take``."""
        self._ahead.extendleft(reversed(lines))
        self.number -= len(lines)


@contextmanager
def open_records(file: RawFile, any_header: bool = False) -> Iterator[tuple[list[Sequence[str]], Iterator[Record]]]:
    """Open a text file; return the paths of its columns and its records, of which lines without content are none.

    The path of a column is the keys that lead to it in JSON, and its name alone in the header of CSV and TSV.
    Adjacency text has no columns, and its records no values: their text is integers with spaces or tabs between.

    Raises:
        InputError: the file has no header or, unless ``any_header``, one that cannot be read, which has no columns.
        OSError: it cannot be read.
    """
    with _open_lines(file) as lines:
        if file.format == "lightgcn":
            yield [], _adjacency_records(lines)
        elif file.format == "jsonl":
            paths = _json_paths(lines)
            records = _json_records(lines, paths)
            if not paths and not any_header and (first := next(records, None)) is not None and first.problem:
                raise InputError(first.describe(file))
            yield paths, records
        else:
            delimited = _Delimited(file, lines)
            header = delimited.header
            if header is None or header.line != 1:
                raise InputError(f"{file}: is empty; expected a header line with the names of the columns")
            if header.problem and not any_header:
                raise InputError(header.describe(file))
            yield [(str(value),) for value in header.values], delimited.records()


def find_records(file: RawFile, positions: Iterable[int]) -> Iterator[Record | None]:
    """Yield the record of each of the data rows at ``positions``, which rise; None where there are no lines to find."""
    if file.format == "parquet":
        yield from (None for _ in positions)
        return
    with open_records(file) as (_, records):
        rows = enumerate(record for record in records if not record.problem)
        for position in positions:
            yield next((record for number, record in rows if number == position), None)


@contextmanager
def _open_lines(file: RawFile) -> Iterator[_Lines]:
    """Open the lines of a text file, decompressed and in UTF-8."""
    with gzip.open(file.path, "rb") if file.is_compressed() else file.path.open("rb") as stream:
        begin = io.BufferedReader(cast(io.RawIOBase, stream), 1 << 16)
        try:
            if file.encoding == "utf-8" and begin.peek(3).startswith(b"\xef\xbb\xbf"):  # a byte order mark
                begin.read(3)
            readline = begin.readline if file.encoding == "utf-8" else _recoding(file, begin)
            yield _Lines(readline, MAX_ADJACENCY_BYTES if file.format == "lightgcn" else MAX_RECORD_BYTES)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(f"{file}: is a corrupt or truncated gzip file ({error}); compress it again") from error


def _recoding(file: RawFile, stream: io.BufferedReader[io.RawIOBase]) -> Callable[[int], bytes]:
    """Return what reads a line in UTF-8; what is not in the encoding of ``file`` is not in UTF-8 then, either."""
    text = io.TextIOWrapper(stream, file.encoding, "surrogateescape", newline="\n")

    def readline(size: int) -> bytes:
        try:
            return text.readline(size).encode("utf-8", "surrogateescape")
        except UnicodeError as error:
            problem = f"{file}: cannot be read as {file.encoding} ({error}); correct "
            raise InputError(problem, Option("encoding")) from error

    return readline


class _Delimited:
    """Reads the records of a CSV or TSV file; the first is its header, whose number of fields the others must have."""

    def __init__(self, file: RawFile, lines: _Lines) -> None:
        self._lines = lines
        self._quoted = file.format == "csv"
        self._delimiter = file.separator
        self._width: int | None = None
        csv.field_size_limit(MAX_RECORD_BYTES)
        self.header = next(self.records(), None)
        self._width = len(self.header.values) if self.header else None

    def records(self) -> Iterator[Record]:
        """Yield the records that follow."""
        while line := self._lines.take():
            if not line.strip(b"\r\n"):
                continue
            number = self._lines.number
            record = self._parse(number, line)
            if record.problem == _OPEN_QUOTE:
                more = self._look_ahead(line)
                longer = self._parse(number, b"".join([line, *more]))
                if longer.problem:
                    self._lines.put_back(more)
                else:
                    record = longer
            yield record

    def _look_ahead(self, first: bytes) -> list[bytes]:
        """Take the lines after ``first`` up to the one that closes its last quote."""
        taken: list[bytes] = []
        quotes, size = first.count(b'"'), len(first)
        while quotes % 2 and size <= MAX_RECORD_BYTES and (line := self._lines.take()):
            taken.append(line)
            quotes, size = quotes + line.count(b'"'), size + len(line)
        return taken

    def _parse(self, number: int, text: bytes) -> Record:
        if len(text) > MAX_RECORD_BYTES:
            return Record(number, text, problem=_too_long(MAX_RECORD_BYTES))
        try:
            fields = self._split(text.removesuffix(b"\n").removesuffix(b"\r").decode())
        except UnicodeDecodeError:
            return Record(number, text, problem=_not_utf8(text))
        except csv.Error as error:
            return Record(number, text, problem=_CARRIAGE_RETURN if "new-line" in str(error) else _OPEN_QUOTE)
        if self._width is not None and len(fields) != self._width:
            hint = "; quote fields that hold the delimiter" if self._quoted else ""
            problem = f"has {counted(len(fields), 'field')}, but the header has {self._width}; fix the line{hint}"
            return Record(number, text, problem=problem)
        return Record(number, text, fields)

    def _split(self, text: str) -> list[str]:
        if self._quoted and '"' in text:
            return next(csv.reader([text], delimiter=self._delimiter, strict=True))
        if "\r" in text:
            raise csv.Error("new-line character in an unquoted field")
        return text.split(self._delimiter)


def _json_paths(lines: _Lines) -> list[Sequence[str]]:
    """Return the paths to the values of the first objects of a file, and put their lines back."""
    taken: list[bytes] = []
    while len(taken) < _JSON_NAMES_LINES and (line := lines.take()):
        taken.append(line)
        if len(line) > MAX_RECORD_BYTES:
            break
    lines.put_back(taken)
    paths: dict[tuple[str, ...], None] = {}
    for line in taken:
        found: list[tuple[tuple[str, ...], object]] = [((), _parse_object(line))]
        for path, value in found:  # which grows
            if isinstance(value, dict) and (not path or (len(path) < _MAX_DEPTH and len(paths) < _MAX_NESTED)):
                found += [((*path, name), inner) for name, inner in value.items()]
        paths |= dict.fromkeys(path for path, _ in found[1:])
    return list(paths)


def _json_records(lines: _Lines, paths: Sequence[Sequence[str]]) -> Iterator[Record]:
    while line := lines.take():
        if not line.strip():
            continue
        found = _parse_object(line)
        values: list[str | None] = []
        if isinstance(found, dict):
            try:
                values, found = [_json_text(found, path) for path in paths], ""
            except RecursionError:
                found = _NOT_OBJECT
        yield Record(lines.number, line, values, problem=found)


def _parse_object(line: bytes) -> dict[str, object] | Text:
    """Return the object of a line, its numbers as text as they are written, or the problem of the line."""
    if len(line) > MAX_RECORD_BYTES:
        return _too_long(MAX_RECORD_BYTES)
    try:
        found = json.loads(line.decode(), parse_float=str, parse_int=str, parse_constant=str)
        if isinstance(found, dict):
            if b"\\ud" in line.lower():
                json.dumps(found, ensure_ascii=False).encode()
            return found
    except UnicodeDecodeError:
        return _not_utf8(line)
    except (ValueError, RecursionError):
        pass
    return _NOT_OBJECT


def _json_text(found: Mapping[str, object], path: Sequence[str]) -> str | None:
    """Return the value at ``path`` as text, None if there is none."""
    value: object = found
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _adjacency_records(lines: _Lines) -> Iterator[Record]:
    while line := lines.take():
        text = line.removesuffix(b"\n").removesuffix(b"\r")
        if len(line) > MAX_ADJACENCY_BYTES:
            yield Record(lines.number, line, problem=_too_long(MAX_ADJACENCY_BYTES))
        elif b"\r" in text:
            yield Record(lines.number, line, problem=_CARRIAGE_RETURN)
        elif not _NUMBERS.fullmatch(text):
            yield Record(lines.number, line, problem=_NOT_ADJACENCY)
        elif text.strip():
            yield Record(lines.number, line)
