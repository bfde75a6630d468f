# ruff: noqa: S608  (what is put into SQL is quoted by `identifier` and `literal`, or is a number of this program)
"""Read the user's raw files (Parquet, CSV, TSV, adjacency text), each in turn as the DuckDB relation ``raw``.

    kinds = open_columns(connection, file, {"query": "user_id", "item": "track_id"})
    with read_errors(file):
        rows = fetch_count(connection, "SELECT count(*) FROM raw")
    close_raw(connection)

``raw`` has a column ``position`` (int64, counting the data rows of the file from 0, in the file's order) and one column
for each requested role. Columns of text files are text; those of Parquet keep their types.

    format    contents
    parquet   any columns
    csv       a header line, commas, fields quoted with " where they hold commas, quotes or line ends
    tsv       a header line, tabs, no quoting at all: a quote is a character like any other
    lightgcn  ``user item item …``: one line for each user, non-negative integers, spaces between; no header
"""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from crossfade.kvstore.errors import CrossfadeError, InputError, format_names
from crossfade.trainer.prepare.database import exact_path, execute, fetch_count, first_line, identifier, literal
from crossfade.trainer.prepare.input_files import Format, RawFile

Kind = Literal["text", "string", "integer", "number", "datetime"]
"""What a column holds: 'text' is untyped, of a text file; the others are types of Parquet."""
KIND_NAMES = {
    "integer": "integers",
    "string": "strings",
    "datetime": "dates",
    "number": "fractional numbers",
    "text": "text",
}
"""The names of kinds in messages."""

_DELIMITERS = {"csv": ",", "tsv": "\t"}
_MAX_LINE_BYTES = 256 << 20  # a line of adjacency text may hold every item of a large catalog


def open_columns(
    connection: duckdb.DuckDBPyConnection, file: RawFile, columns: Mapping[str, str], lists: Collection[str] = ()
) -> dict[str, Kind]:
    """Create ``raw`` from ``columns`` (role to column name) of a Parquet, CSV or TSV file; return the kinds by role.

    The columns of the roles in ``lists`` may hold lists, of which ``raw`` has one row per value.

    Raises:
        InputError: the file cannot be read, or lacks a column.
    """
    assert file.format != "lightgcn"
    with read_errors(file):
        close_raw(connection)
        if file.format == "parquet":
            return _open_parquet(connection, file, columns, lists)
        return _open_text(connection, file, columns)


def open_adjacency(connection: duckdb.DuckDBPyConnection, file: RawFile) -> int:
    """Create ``raw`` from the pairs of adjacency text (``query``, ``item``: int64); return the lines without an item.

    Raises:
        InputError: the file cannot be read, or a line holds something that is not a non-negative integer.
    """
    with read_errors(file):
        close_raw(connection)
        # DuckDB requires a delimiter: \x01 does not occur in such files, so all of a line is in the first column.
        execute(
            connection,
            "CREATE TABLE raw_lines AS SELECT string_split_regex(trim(line, ' \t\r'), '[ \t]+') AS numbers, "
            "NOT regexp_full_match(trim(line, ' \t\r'), '[0-9]{1,18}([ \t]+[0-9]{1,18})*') OR rest IS NOT NULL AS bad "
            "FROM read_csv(?, columns = {'line': 'VARCHAR', 'rest': 'VARCHAR'}, header = false, auto_detect = false, "
            "delim = '\x01', quote = '', escape = '', null_padding = true, strict_mode = false, "
            f"max_line_size = {_MAX_LINE_BYTES}) WHERE line IS NOT NULL AND trim(line, ' \t\r') <> ''",
            [exact_path(file.path)],
        )
        if fetch_count(connection, "SELECT count(*) FILTER (bad) FROM raw_lines"):
            raise InputError(_describe_bad_line(file))
        execute(
            connection,
            "CREATE TABLE raw_rows AS "
            "SELECT numbers[1]::BIGINT AS query, unnest(numbers[2:])::BIGINT AS item FROM raw_lines",
        )
        execute(connection, "CREATE VIEW raw AS SELECT *, rowid AS position FROM raw_rows")
        return fetch_count(connection, "SELECT count(*) FILTER (len(numbers) = 1) FROM raw_lines")


def close_raw(connection: duckdb.DuckDBPyConnection) -> None:
    """Drop ``raw`` and the tables that it reads."""
    execute(connection, "DROP VIEW IF EXISTS raw")
    execute(connection, "DROP TABLE IF EXISTS raw_rows")
    execute(connection, "DROP TABLE IF EXISTS raw_lines")


def locate_row(file: RawFile, position: int) -> str:
    """Format the place of the data row at ``position``: ``FILE, line N`` if lines can be counted, else ``FILE, row N``.

    Both count from 1.
    """
    if file.format in _DELIMITERS:
        try:
            with _open_rows(file) as rows:
                next(rows)
                line_numbers = (rows.line_num for row in rows if row)
                for _ in range(position):
                    next(line_numbers)
                return f"{file}, line {next(line_numbers)}"
        except (csv.Error, StopIteration):
            pass
    return f"{file}, row {position + 1}"


@contextmanager
def read_errors(file: RawFile) -> Iterator[None]:
    """Translate errors while DuckDB reads ``file`` into an ``InputError`` of one line that names the file."""
    try:
        yield
    except (duckdb.InterruptException, duckdb.OutOfMemoryException):
        raise
    except duckdb.Error as error:
        if file.format == "parquet":
            raise InputError(
                f"{file}: cannot be read as Parquet, since it is corrupt or truncated ({first_line(error)}); write it "
                "again"
            ) from error
        raise InputError(f"{file}{_text_problem(str(error), file.format)}") from error
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}") from error


def column_names(file: RawFile) -> list[str]:
    """Return the names of the columns of a Parquet, CSV or TSV file.

    Raises:
        InputError: the file cannot be read.
    """
    with read_errors(file):
        return _read_schema(file).names if file.format == "parquet" else _read_header(file)


def _read_schema(file: RawFile) -> pa.Schema:
    try:
        return pq.read_schema(file.path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{file}: is not a readable Parquet file ({first_line(error).rstrip('.')}); expected a complete Parquet "
            "file, or give another format with --format"
        ) from error


def _open_parquet(
    connection: duckdb.DuckDBPyConnection, file: RawFile, columns: Mapping[str, str], lists: Collection[str]
) -> dict[str, Kind]:
    schema = _read_schema(file)
    _check_columns(file, schema.names, columns)
    for column in columns.values():
        twins = [name for name in schema.names if name.casefold() == column.casefold() and name != column]
        if twins:  # names are case-insensitive in DuckDB
            raise InputError(
                f"{file}: has the columns '{column}' and '{twins[0]}', which differ only in case; rename one"
            )
    kinds, selected = {}, ""
    for role, column in columns.items():
        field, value = schema.field(column), identifier(column)
        if role in lists and _is_list(field.type):
            field, value = field.with_type(field.type.value_type), f"unnest({value})"
        kinds[role] = _parquet_kind(file, field)
        selected += f", {value} AS {identifier(role)}"
    execute(
        connection,
        f"CREATE VIEW raw AS SELECT file_row_number AS position{selected} "
        f"FROM read_parquet({literal(exact_path(file.path))}, file_row_number = true)",
    )
    return kinds


def _is_list(data_type: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(data_type) or pa.types.is_large_list(data_type) or pa.types.is_fixed_size_list(data_type)
    )


def _parquet_kind(file: RawFile, field: pa.Field) -> Kind:
    data_type = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if pa.types.is_integer(data_type):
        return "integer"
    if pa.types.is_floating(data_type) or pa.types.is_decimal(data_type):
        return "number"
    if pa.types.is_string(data_type) or pa.types.is_large_string(data_type) or pa.types.is_string_view(data_type):
        return "string"
    if pa.types.is_timestamp(data_type) or pa.types.is_date(data_type):
        return "datetime"
    raise InputError(
        f"{file}: column '{field.name}' has the type {field.type}; expected integers, numbers, strings, "
        "timestamps or dates: cast it, or name another column"
    )


def _open_text(connection: duckdb.DuckDBPyConnection, file: RawFile, columns: Mapping[str, str]) -> dict[str, Kind]:
    names = _read_header(file)
    _check_columns(file, names, columns)
    selected = ", ".join(f"c{names.index(column)} AS {identifier(role)}" for role, column in columns.items())
    types = ", ".join(f"'c{index}': 'VARCHAR'" for index in range(len(names)))
    quote = '"' if file.format == "csv" else ""
    # Names and types are given, none is inferred: what DuckDB infers depends on the sample that it looks at.
    execute(
        connection,
        f"CREATE TABLE raw_rows AS SELECT {selected} FROM read_csv(?, columns = {{{types}}}, header = true, "
        f"auto_detect = false, delim = '{_DELIMITERS[file.format]}', quote = '{quote}', escape = '{quote}')",
        [exact_path(file.path)],
    )
    execute(connection, "CREATE VIEW raw AS SELECT *, rowid AS position FROM raw_rows")
    return dict.fromkeys(columns, "text")


def _read_header(file: RawFile) -> list[str]:
    try:
        with _open_rows(file) as rows:
            return next(rows)
    except StopIteration:
        raise InputError(f"{file}: is empty; expected a header line with the names of the columns") from None
    except csv.Error as error:
        raise InputError(f"{file}: the header line cannot be read: {error}") from error


class _Rows(Iterator[list[str]]):
    """A typed ``csv.reader``."""

    def __init__(self, lines: Iterator[str], delimiter: str, quoted: bool) -> None:
        self._reader = csv.reader(
            lines,
            delimiter=delimiter,
            quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
            quotechar='"' if quoted else None,
        )

    def __next__(self) -> list[str]:
        return next(self._reader)

    @property
    def line_num(self) -> int:
        return self._reader.line_num


@contextmanager
def _open_rows(file: RawFile) -> Iterator[_Rows]:
    # DuckDB reports bytes that are not UTF-8; here they must not hide the rows before them.
    with file.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        yield _Rows(lines, _DELIMITERS[file.format], quoted=file.format == "csv")


def _check_columns(file: RawFile, found: Sequence[str], columns: Mapping[str, str]) -> None:
    shown = format_names(found)
    for column in columns.values():
        if column not in found:
            raise InputError(f"{file}: has no column '{column}'; its columns are: {shown}")
        if found.count(column) > 1:
            raise InputError(f"{file}: has {found.count(column)} columns '{column}'; rename all but one")


def _describe_bad_line(file: RawFile) -> str:
    """Describe the first bad line of adjacency text, counting lines as an editor does, which DuckDB does not."""
    with file.path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            for word in re.split(rb"[ \t\r\n]+", line.strip(b" \t\r\n")):
                if word and not re.fullmatch(rb"[0-9]{1,18}", word):
                    found = word[:40].decode("utf-8", "surrogateescape")
                    return (
                        f"{file}, line {number}: found '{found}'; expected 'user item item …', non-negative integers "
                        "with spaces between: fix the line, or give another format with --format"
                    )
    raise CrossfadeError(f"{file}: changed while it was read; prepare again")


def _text_problem(message: str, file_format: Format) -> str:
    """Translate DuckDB's ``message`` about a text file into a text that follows the name of the file."""
    found = re.search(r"CSV Error on Line: (\d+)", message)
    where = f", line {found[1]}" if found else ""
    widths = re.search(r"Expected Number of Columns: (\d+) Found: (\d+)", message)
    if widths:
        hint = "; quote fields that hold the delimiter" if file_format == "csv" else ""
        return f"{where}: has {widths[2]} fields, but the header has {widths[1]}; fix the line{hint}"
    if "unterminated quote" in message:
        return f"{where}: a quote opens and does not close; double quotes inside fields, or use --format tsv"
    if "nicode" in message:
        return f"{where}: is not UTF-8; convert the file, for instance: iconv -f latin1 -t utf-8"
    if "Maximum line size" in message:
        return f"{where}: the line is too long; expected one record in each line: check --format"
    if "invalid state" in message:
        return f"{where}: mixes line endings, or has a carriage return inside a line; remove them: tr -d '\\r'"
    return f"{where}: cannot be read as {file_format}: {message.strip().partition(chr(10))[0]}"
