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
import json
import re
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TextIO

from crossfade.base.errors import InputError, Option, Text
from crossfade.base.text import counted
from crossfade.trainer.prepare.input_files import RawFile

MAX_RECORD = 2 << 20
"""The longest record of a CSV, TSV or JSON file, in characters; DuckDB reads as many bytes."""
MAX_ADJACENCY = 16 << 20
"""The longest line of adjacency text, which may hold every item of a large catalog, in characters."""
_OPEN_QUOTE: Text = ("a quote opens and does not close; double quotes inside fields, or use ", Option("format", "tsv"))
_NOT_UTF8: Text = (
    "is not UTF-8 or not in the encoding that was named; name the encoding of events, as in ",
    Option("encoding", "latin-1"),
    " or utf-16, or convert the file, for instance: iconv -f latin1 -t utf-8",
)
_NUMBERS = re.compile(r"[ \t]*(?:[0-9]{1,18}(?:[ \t]++|$))*+")
"""A line of adjacency text without its end: numbers that 64 bits hold."""
_NOT_ADJACENCY = (
    "expected 'user item item …', non-negative integers with spaces between: fix the line, or give another format "
    "with ",
    Option("format"),
)
_NOT_OBJECT = "is not a JSON object; expected one in each line"
_JSON_NAMES_LINES = 1000  # an object may lack some keys, so that one line does not have all
_MAX_PATHS = 1000
"""After how many paths no further object is searched for others: keys may be data, such as IDs."""


@dataclass(frozen=True, slots=True)
class Record:
    """A record of a text file.

    Attributes:
        line: the number of its first line, from 1.
        text: the record, with the line end.
        values: the values of the columns; empty of adjacency text, and if there is a problem.
        problem: why it cannot be read; empty if it can.
    """

    line: int
    text: str
    values: Sequence[str | None] = ()
    problem: Text = ""

    def describe(self, file: RawFile) -> Text:
        """Describe the problem in one line, with the place."""
        return (f"{file}, line {self.line}: ", self.problem)


class _Lines:
    """The lines of a file, some of which are read again after a look ahead."""

    def __init__(self, file: RawFile, stream: TextIO) -> None:
        self._file, self._stream = file, stream
        self._ahead: deque[str] = deque()
        self.limit = MAX_ADJACENCY if file.format == "lightgcn" else MAX_RECORD
        self.number = 0

    def take(self) -> str:
        """Return the next line, empty at the end; of a line above the limit, one character more than the limit."""
        line = self._ahead.popleft() if self._ahead else self._read()
        self.number += bool(line)
        return line

    def _read(self) -> str:
        try:
            line = part = self._stream.readline(self.limit + 1)
            while len(part) > self.limit and not part.endswith("\n"):
                part = self._stream.readline(self.limit + 1)
        except UnicodeError as error:
            problem = f"{self._file}: cannot be read as {self._file.encoding} ({error}); correct "
            raise InputError(problem, Option("encoding")) from error
        return line

    def put_back(self, lines: Sequence[str]) -> None:
        """Return ``lines`` with the next calls of ``take``."""
        self._ahead.extendleft(reversed(lines))
        self.number -= len(lines)

    def problem(self, line: str) -> Text:
        """Return why ``line`` can be no record; empty if it can."""
        if len(line) > self.limit:
            return (
                f"the line is longer than {self.limit:,} characters; expected one record in each line: check ",
                Option("format"),
            )
        return "" if _is_text(line) else _NOT_UTF8


def _is_text(line: str) -> bool:
    """Return whether ``line`` has no surrogates, which stand for bytes that are not in the encoding of the file."""
    try:
        line.encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def open_records(file: RawFile) -> Iterator[tuple[list[Sequence[str]], Iterator[Record]]]:
    """Open a text file; return the paths of its columns and its records, of which lines without content are none.

    The path of a column is the keys that lead to it in JSON, and its name alone in the header of CSV and TSV.
    Adjacency text has no columns, and its records no values: their text is integers with spaces or tabs between.

    Raises:
        InputError: the file has no header, or one that cannot be read.
        OSError: it cannot be read.
    """
    with _open_lines(file) as lines:
        if file.format == "lightgcn":
            yield [], _adjacency_records(lines)
        elif file.format == "jsonl":
            paths = _json_paths(lines)
            records = _json_records(lines, paths)
            if not paths and (first := next(records, None)) is not None and first.problem:
                raise InputError(first.describe(file))
            yield paths, records
        else:
            header = next(_delimited_records(file, lines), None)
            if header is None or header.line != 1:
                raise InputError(f"{file}: is empty; expected a header line with the names of the columns")
            if header.problem:
                raise InputError(header.describe(file))
            names = [str(value) for value in header.values]
            yield [(name,) for name in names], _delimited_records(file, lines, len(names))


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
    """Open the lines of a text file, decompressed and decoded."""
    encoding = "utf-8-sig" if file.encoding == "utf-8" else file.encoding  # with or without a byte order mark
    opener = gzip.open if file.is_compressed() else open
    with opener(file.path, "rt", encoding=encoding, errors="surrogateescape", newline="\n") as stream:
        try:
            yield _Lines(file, stream)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(f"{file}: is a corrupt or truncated gzip file ({error}); compress it again") from error


def _delimited_records(file: RawFile, lines: _Lines, width: int | None = None) -> Iterator[Record]:
    """Yield the records of a CSV or TSV file, each of which must have ``width`` fields, if it is given."""
    csv.field_size_limit(MAX_RECORD)
    while line := lines.take():
        if not line.strip("\r\n"):
            continue
        number = lines.number
        record = _delimited(file, lines, number, line, width)
        if record.problem == _OPEN_QUOTE:
            more = _rest_of_quote(lines, line)
            longer = _delimited(file, lines, number, "".join([line, *more]), width)
            if longer.problem:
                lines.put_back(more)
            else:
                record = longer
        yield record


def _rest_of_quote(lines: _Lines, first: str) -> list[str]:
    """Take the lines after ``first`` up to the one that closes its last quote."""
    taken: list[str] = []
    quotes, size = first.count('"'), len(first)
    while quotes % 2 and size <= lines.limit and (line := lines.take()):
        taken.append(line)
        quotes, size = quotes + line.count('"'), size + len(line)
    return taken


def _delimited(file: RawFile, lines: _Lines, number: int, text: str, width: int | None) -> Record:
    if problem := lines.problem(text):
        return Record(number, text, problem=problem)
    fields = text.removesuffix("\n").removesuffix("\r").split(file.separator)
    is_quoted = file.format == "csv"
    if is_quoted and '"' in text:
        try:
            fields = next(csv.reader([text], delimiter=file.separator, strict=True))
        except csv.Error:
            return Record(number, text, problem=_OPEN_QUOTE)
    if width is not None and len(fields) != width:
        hint = "; quote fields that hold the delimiter" if is_quoted else ""
        problem = f"has {counted(len(fields), 'field')}, but the header has {width}; fix the line{hint}"
        return Record(number, text, problem=problem)
    return Record(number, text, fields)


def _json_paths(lines: _Lines) -> list[Sequence[str]]:
    """Return the paths to the values of the first objects of a file, and put their lines back."""
    taken = list(islice(iter(lines.take, ""), _JSON_NAMES_LINES))
    lines.put_back(taken)
    paths: dict[tuple[str, ...], None] = {}
    for line in taken:
        found: list[tuple[tuple[str, ...], object]] = [((), _parse_object(lines, line))]
        for path, value in found:  # which grows
            if isinstance(value, dict) and len(paths) < _MAX_PATHS:
                found += [((*path, name), inner) for name, inner in value.items()]
        paths |= dict.fromkeys(path for path, _ in found[1:])
    return list(paths)


def _json_records(lines: _Lines, paths: Sequence[Sequence[str]]) -> Iterator[Record]:
    while line := lines.take():
        if not line.strip():
            continue
        found = _parse_object(lines, line)
        values: list[str | None] = []
        if isinstance(found, dict):
            try:
                values, found = [_json_text(found, path) for path in paths], ""
            except RecursionError:
                found = _NOT_OBJECT
        yield Record(lines.number, line, values, problem=found)


def _parse_object(lines: _Lines, line: str) -> dict[str, object] | Text:
    """Return the object of a line, its numbers as text as they are written, or the problem of the line."""
    if problem := lines.problem(line):
        return problem
    try:
        found = json.loads(line, parse_float=str, parse_int=str, parse_constant=str)
        if isinstance(found, dict) and ("\\u" not in line or _is_text(json.dumps(found, ensure_ascii=False))):
            return found
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
        text = line.removesuffix("\n").removesuffix("\r")
        problem = lines.problem(line) or ("" if _NUMBERS.fullmatch(text) else _NOT_ADJACENCY)
        if problem or text.strip():
            yield Record(lines.number, line, problem=problem)
