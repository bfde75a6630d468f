# ruff: noqa: S608  (what is put into SQL is quoted by `identifier` and `literal`, or is a number of this program)
"""Read the user's raw files (Parquet, CSV, TSV, JSON, adjacency text), each in turn as the DuckDB relation ``raw``.

    kinds = open_columns(connection, file, {"query": "user_id", "item": "track_id"})
    with read_errors(file):
        rows = count_rows(connection, "raw")
    close_raw(connection)

``raw`` has a column ``position`` (int64, counting the data rows of the file from 0, in the file's order) and one column
for each requested role. Values of structs of Parquet, and of objects of JSON, are columns by their path, as
``user.id``. Columns of text files are text; columns of Parquet keep their types. Lines that cannot be read are handed
to a function, which may raise an error or have them left out.

    format    contents
    parquet   any columns
    csv       a header line, commas or another delimiter, fields quoted with " where they hold it, quotes or line ends
    tsv       a header line, tabs, no quoting at all: a quote is a character like any other
    jsonl     a JSON object in each line, whose keys are the columns
    lightgcn  ``user item item …``: one line for each user, non-negative integers, spaces between; no header
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import duckdb
import numpy as np
import pyarrow as pa

from crossfade.base.errors import InputError
from crossfade.base.io.disk_errors import is_full_disk
from crossfade.trainer.prepare.database import (
    exact_path,
    execute_on,
    fetch_count,
    first_line,
    identifier,
    literal,
)
from crossfade.trainer.prepare.input_files import RawFile
from crossfade.trainer.prepare.parquet_columns import check_expansion, fields, read_parquet, value_sql
from crossfade.trainer.prepare.source_columns import check_columns
from crossfade.trainer.prepare.text_records import MAX_RECORD, Record, open_records

OnFault = Callable[[RawFile, Record], None]
"""Receives a line that cannot be read; if it returns, the line is left out."""
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

_SNIFFED_DELIMITERS = (",", ";", "\t", "|")
_LOADED_ROWS, _LOADED_BYTES = 50_000, 16 << 20
_ENCODINGS = {"utf-8": "utf-8", "iso8859-1": "latin-1"}
"""What DuckDB calls the encodings that it reads, of CSV and TSV files."""


def raise_fault(file: RawFile, record: Record) -> None:
    """Reject a line that cannot be read.

    Raises:
        InputError: always.
    """
    raise InputError(record.describe(file))


def open_columns(
    connection: duckdb.DuckDBPyConnection,
    file: RawFile,
    columns: Mapping[str, str],
    lists: Collection[str] = (),
    whole_lists: Collection[str] = (),
    on_fault: OnFault = raise_fault,
) -> dict[str, Kind]:
    """Create ``raw`` from ``columns`` (role to column name) of a file with columns; return the kinds by role.

    The columns of the roles in ``lists`` may hold lists, of which ``raw`` has one row per value, and those of the roles
    in ``whole_lists`` lists that stay as they are; their kind is that of the values.

    Raises:
        InputError: the file cannot be read, or lacks a column.
    """
    assert file.format != "lightgcn"
    with read_errors(file):
        close_raw(connection)
        if file.format == "parquet":
            return _open_parquet(connection, file, columns, lists, whole_lists)
        return _open_text(connection, find_delimiter(file, columns), columns, on_fault)


def open_adjacency(connection: duckdb.DuckDBPyConnection, file: RawFile, on_fault: OnFault = raise_fault) -> int:
    """Create ``raw`` from the pairs of adjacency text (``query``, ``item``: int64); return the lines without an item.

    A line is at fault if it holds something that is not a non-negative integer.

    Raises:
        InputError: the file cannot be read.
    """
    with read_errors(file):
        close_raw(connection)
        connection.execute("CREATE TABLE raw_lines (numbers BIGINT[])")
        for batch in _readable(file, on_fault):
            numbers = [np.fromstring(record.text, np.int64, sep=" ") for record in batch]
            part = pa.table({"numbers": pa.array(numbers, pa.list_(pa.int64()))})
            execute_on(connection, part, "INSERT INTO raw_lines SELECT * FROM part")
        connection.execute(
            "CREATE TABLE raw_rows AS SELECT numbers[1] AS query, unnest(numbers[2:]) AS item FROM raw_lines"
        )
        connection.execute("CREATE VIEW raw AS SELECT *, rowid AS position FROM raw_rows")
        return fetch_count(connection, "SELECT count(*) FILTER (len(numbers) = 1) FROM raw_lines")


def close_raw(connection: duckdb.DuckDBPyConnection) -> None:
    """Drop ``raw`` and the tables that it reads."""
    connection.execute("DROP VIEW IF EXISTS raw; DROP TABLE IF EXISTS raw_rows; DROP TABLE IF EXISTS raw_lines")


def counted_records(file: RawFile) -> str:
    """Return the relation with a row for each record of ``file``, which is open and of which bad ones are left out."""
    return "raw_lines" if file.format == "lightgcn" else "raw"


@contextmanager
def read_errors(file: RawFile) -> Iterator[None]:
    """Translate errors while DuckDB reads ``file`` into an ``InputError`` of one line that names the file."""
    try:
        yield
    except duckdb.Error as error:
        if not _is_of_file(error):
            raise
        if file.format == "parquet":
            raise InputError(
                f"{file}: cannot be read as Parquet, since it is corrupt or truncated ({first_line(error)}); write it "
                "again"
            ) from error
        raise InputError(f"{file}: cannot be read as {file.format}: {first_line(error)}") from error
    except OSError as error:
        if is_full_disk(error):
            raise
        raise InputError(f"{file}: cannot be read: {error.strerror or error}") from error


def _is_of_file(error: duckdb.Error) -> bool:
    """Return whether an error is about what DuckDB reads, rather than a signal, memory, or a full disk."""
    return not isinstance(error, duckdb.InterruptException | duckdb.OutOfMemoryException) and not is_full_disk(error)


def column_names(file: RawFile) -> list[str]:
    """Return the names of the columns of a file that has columns, without values in structs and objects.

    Raises:
        InputError: the file cannot be read.
    """
    with read_errors(file):
        if file.format == "parquet":
            return list(read_parquet(file).schema_arrow.names)
        return [path[0] for path in _read_paths(file) if len(path) == 1]


def find_delimiter(file: RawFile, columns: Mapping[str, str]) -> RawFile:
    """Return a CSV ``file`` with the delimiter whose header has most of the ``columns``, any other file as it is.

    Of several, it is the one that splits the header into the most fields, so that the error about a missing column
    lists the others as they are.

    Raises:
        InputError: the file cannot be read.
    """
    if file.format != "csv" or file.delimiter is not None:
        return file
    candidates = [replace(file, delimiter=delimiter) for delimiter in _SNIFFED_DELIMITERS]
    with read_errors(file):
        return max(candidates, key=lambda candidate: _header_match(candidate, columns))


def _header_match(file: RawFile, columns: Mapping[str, str]) -> tuple[int, int]:
    """Return how many of ``columns`` the header of ``file`` has, and how many fields; zeros if it cannot be split."""
    try:
        paths = _read_paths(file)
    except InputError:
        return 0, 0
    return sum((column,) in paths for column in columns.values()), len(paths)


def _open_parquet(
    connection: duckdb.DuckDBPyConnection,
    file: RawFile,
    columns: Mapping[str, str],
    lists: Collection[str],
    whole_lists: Collection[str],
) -> dict[str, Kind]:
    found = fields(read_parquet(file).schema_arrow)
    names = [field.name for _, field in found]
    check_columns(str(file), names, columns.values())
    for name in names:
        is_used = any(f"{column}.".startswith(f"{name}.") for column in columns.values())
        twins = [twin for twin in names if twin.casefold() == name.casefold() and twin != name] if is_used else []
        if twins:  # names are case-insensitive in DuckDB
            raise InputError(
                f"{file}: has the columns '{name}' and '{twins[0]}', which differ only in case; rename one"
            )
    check_expansion(connection, file, list(columns.values()))
    kinds, selected = {}, ""
    for role, column in columns.items():
        path, field = found[names.index(column)]
        value = value_sql(path)
        if (role in lists or role in whole_lists) and _is_list(field.type):
            field, value = field.with_type(field.type.value_type), f"unnest({value})" if role in lists else value
        kinds[role] = _parquet_kind(file, field)
        selected += f", {value} AS {identifier(role)}"
    rows = f"read_parquet({literal(exact_path(file.path))}, file_row_number = true)"
    connection.execute(f"CREATE VIEW raw AS SELECT file_row_number AS position{selected} FROM {rows}")
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


def _open_text(
    connection: duckdb.DuckDBPyConnection,
    file: RawFile,
    columns: Mapping[str, str],
    on_fault: OnFault,
) -> dict[str, Kind]:
    paths = _read_paths(file)
    names = [".".join(path) for path in paths]
    check_columns(str(file), names, columns.values())
    indexes = sorted({names.index(column) for column in columns.values()})
    if _ends_in_long_line(file) or not _load_text(connection, file, paths, indexes):
        connection.execute("DROP TABLE IF EXISTS raw_rows")
        _load_records(connection, file, indexes, on_fault)
    selected = ", ".join(f"c{names.index(column)} AS {identifier(role)}" for role, column in columns.items())
    connection.execute(f"CREATE VIEW raw AS SELECT {selected}, rowid AS position FROM raw_rows")
    return dict.fromkeys(columns, "text")


def _load_text(
    connection: duckdb.DuckDBPyConnection, file: RawFile, paths: Sequence[Sequence[str]], indexes: Sequence[int]
) -> bool:
    """Create ``raw_rows`` of the columns at ``indexes``; return False if DuckDB rejects a line."""
    encoding = _ENCODINGS.get(file.encoding)
    if encoding is None or (file.format == "jsonl" and encoding != "utf-8"):
        return False
    # Names and types are given, none is inferred: what DuckDB infers depends on the sample that it looks at.
    if file.format == "jsonl":
        used = _json_types([paths[index] for index in indexes])
        types = ", ".join(f"{literal(name)}: {literal(of)}" for name, of in used.items())
        selected = ", ".join(f"{value_sql(paths[index])} AS c{index}" for index in indexes)
        reader = f"read_json(?, columns = {{{types}}}, format = 'newline_delimited', {_compression(file)})"
    else:
        selected = ", ".join(f"c{index}" for index in indexes)
        types = ", ".join(f"'c{index}': 'VARCHAR'" for index in range(len(paths)))
        quote = '"' if file.format == "csv" else ""
        reader = (
            f"read_csv(?, columns = {{{types}}}, header = true, auto_detect = false, "
            f"delim = {literal(file.separator)}, quote = '{quote}', escape = '{quote}', {_compression(file)}, "
            f"encoding = '{encoding}', "
            # The parallel reader leaves out a last line of over 32 MiB, without an error.
            f"parallel = {not file.is_compressed()})"
        )
    try:
        connection.execute(f"CREATE TABLE raw_rows AS SELECT {selected} FROM {reader}", [exact_path(file.path)])
    except duckdb.Error as error:
        if not _is_of_file(error):
            raise
        return False
    return True


def _json_types(paths: Sequence[Sequence[str]]) -> dict[str, str]:
    """Return the type of each key of a JSON object of which DuckDB reads the values at ``paths``."""
    below: dict[str, list[Sequence[str]]] = {}
    for first, *rest in paths:
        below.setdefault(first, []).append(rest)
    structs = {
        name: ", ".join(f"{identifier(key)} {of}" for key, of in _json_types([path for path in inner if path]).items())
        for name, inner in below.items()
        if [] not in inner  # else it is text itself, of which DuckDB rejects parts
    }
    return {name: f"STRUCT({structs[name]})" if name in structs else "VARCHAR" for name in below}


def _ends_in_long_line(file: RawFile) -> bool:
    """Return whether the last line of a file without compression is above the limit."""
    if file.is_compressed() or file.bytes <= MAX_RECORD:
        return False
    with file.path.open("rb") as opened:
        opened.seek(file.bytes - MAX_RECORD)
        return len(opened.read().rstrip(b"\r\n").splitlines()) <= 1


def _load_records(
    connection: duckdb.DuckDBPyConnection, file: RawFile, indexes: Sequence[int], on_fault: OnFault
) -> None:
    """Create ``raw_rows`` as ``_load_text`` does, but of the records that can be read, and hand the others on."""
    connection.execute(f"CREATE TABLE raw_rows ({', '.join(f'c{index} VARCHAR' for index in indexes)})")
    is_json = file.format == "jsonl"
    for batch in _readable(file, on_fault):
        values_N = [record.values for record in batch]
        # DuckDB reads an empty field as null, but "" of JSON as text.
        texts = [[values[index] if is_json else values[index] or None for values in values_N] for index in indexes]
        part = pa.table([pa.array(column, pa.string()) for column in texts], names=[f"c{index}" for index in indexes])
        execute_on(connection, part, "INSERT INTO raw_rows SELECT * FROM part")


def _readable(file: RawFile, on_fault: OnFault) -> Iterator[list[Record]]:
    """Yield the records that can be read, many at a time, and hand the others on."""
    batch: list[Record] = []
    size = 0
    with open_records(file) as (_, records):
        for record in records:
            if record.problem:
                on_fault(file, record)
                continue
            batch.append(record)
            size += len(record.text)
            if len(batch) == _LOADED_ROWS or size >= _LOADED_BYTES:
                yield batch
                batch, size = [], 0
    yield batch


def _compression(file: RawFile) -> str:
    return f"compression = '{'gzip' if file.is_compressed() else 'none'}'"


def _read_paths(file: RawFile) -> list[Sequence[str]]:
    with open_records(file) as (paths, _):
        return paths
