# ruff: noqa: S608  (what is put into SQL is quoted by `identifier` and `literal`, or is a number of this program)
"""Read the user's raw files (Parquet, CSV, TSV, JSON, adjacency text), each in turn as the DuckDB relation ``raw``.

    kinds = open_columns(connection, file, {"query": "user_id", "item": "track_id"})
    with read_errors(file):
        rows = count_rows(connection, "raw")
    close_raw(connection)

``raw`` has a column ``position`` (int64, counting the data rows of the file from 0, in the file's order) and one column
for each requested role. Columns of text files are text; those of Parquet keep their types. Lines that cannot be read
are handed to a function, which may raise an error or have them left out.

    format    contents
    parquet   any columns
    csv       a header line, commas or another delimiter, fields quoted with " where they hold it, quotes or line ends
    tsv       a header line, tabs, no quoting at all: a quote is a character like any other
    jsonl     a JSON object in each line, whose keys are the columns
    lightgcn  ``user item item …``: one line for each user, non-negative integers, spaces between; no header
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Literal

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from crossfade.base.errors import InputError, Option
from crossfade.base.io.disk_errors import is_full_disk
from crossfade.trainer.prepare.database import (
    exact_path,
    execute,
    execute_on,
    fetch_count,
    first_line,
    identifier,
    literal,
)
from crossfade.trainer.prepare.input_files import RawFile
from crossfade.trainer.prepare.source_columns import check_columns, is_id_role, joined_sql, source_columns
from crossfade.trainer.prepare.text_records import (
    DELIMITERS,
    MAX_ADJACENCY_BYTES,
    MAX_RECORD_BYTES,
    Record,
    open_records,
    open_text,
)

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
_LOADED_ROWS = 50_000


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
    kept_texts: Collection[str] = (),
) -> dict[str, Kind]:
    """Create ``raw`` from ``columns`` (role to column name) of a file with columns; return the kinds by role.

    The columns of the roles in ``lists`` may hold lists, of which ``raw`` has one row per value, and those of the roles
    in ``whole_lists`` lists that stay as they are; their kind is that of the values. Those of IDs may join
    several (``source_columns.py``). IDs, times, and values of ``lists`` that are all written as 42.0 or missing become
    integers (``raw_files.py``), but not in text files those of ``kept_texts``.

    Raises:
        InputError: the file cannot be read, or lacks a column.
    """
    assert file.format != "lightgcn"
    with read_errors(file):
        close_raw(connection)
        if file.format == "parquet":
            return _open_parquet(connection, file, columns, lists, whole_lists)
        integers = [role for role in columns if _may_be_integers(role, lists) and role not in kept_texts]
        return _open_text(connection, find_delimiter(file, columns), columns, on_fault, integers)


def _may_be_integers(role: str, lists: Collection[str]) -> bool:
    return is_id_role(role) or role == "timestamp" or role in lists


def open_adjacency(connection: duckdb.DuckDBPyConnection, file: RawFile, on_fault: OnFault = raise_fault) -> int:
    """Create ``raw`` from the pairs of adjacency text (``query``, ``item``: int64); return the lines without an item.

    A line is at fault if it holds something that is not a non-negative integer.

    Raises:
        InputError: the file cannot be read.
    """
    with read_errors(file):
        close_raw(connection)
        try:
            _load_adjacency(connection, file)
        except duckdb.Error as error:
            if _may_be_of_line(file, error):
                _report_lines(file, raise_fault)  # unless it finds a line at fault, the error is DuckDB's
            raise
        if fetch_count(connection, "SELECT count(*) FILTER (bad) FROM raw_lines"):
            _report_lines(file, on_fault)
            connection.execute("DELETE FROM raw_lines WHERE bad")
        connection.execute(
            "CREATE TABLE raw_rows AS "
            "SELECT numbers[1]::BIGINT AS query, unnest(numbers[2:])::BIGINT AS item FROM raw_lines"
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


def _may_be_of_line(file: RawFile, error: duckdb.Error) -> bool:
    """Return whether a line may have caused ``error``: where no limit applies, one without an end takes all memory."""
    is_unlimited = file.format == "lightgcn" or file.compression() is not None
    return _is_of_file(error) or (is_unlimited and isinstance(error, duckdb.OutOfMemoryException))


def column_names(file: RawFile) -> list[str]:
    """Return the names of the columns of a file that has columns.

    Raises:
        InputError: the file cannot be read.
    """
    with read_errors(file):
        return _read_parquet(file).schema_arrow.names if file.format == "parquet" else _read_header(file)


def find_delimiter(file: RawFile, columns: Mapping[str, str]) -> RawFile:
    """Return a CSV or TSV ``file`` with its delimiter: of a CSV file, that whose header has most of the ``columns``.

    Of several, it is the one that splits the header into the most fields, so that the error about a missing column
    lists the others as they are.

    Raises:
        InputError: the file cannot be read.
    """
    if file.format not in DELIMITERS or file.delimiter is not None:
        return file
    candidates = [replace(file, delimiter=DELIMITERS[file.format])]
    if file.format == "csv":
        candidates = [replace(file, delimiter=delimiter) for delimiter in _SNIFFED_DELIMITERS]
    with read_errors(file):
        return max(candidates, key=lambda candidate: _header_match(candidate, columns))


def _header_match(file: RawFile, columns: Mapping[str, str]) -> tuple[int, int]:
    """Return how many of ``columns`` the header of ``file`` has, and how many fields; zeros if it cannot be split."""
    with open_records(file, any_header=True) as (names, _):
        parts = [part for role, column in columns.items() for part in source_columns(role, column, names)]
        return sum(part in names for part in parts), len(names)


def _read_parquet(file: RawFile) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file.path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{file}: is not a readable Parquet file ({first_line(error).rstrip('.')}); expected a complete Parquet "
            "file, or give another format with ",
            Option("format"),
        ) from error


def _open_parquet(
    connection: duckdb.DuckDBPyConnection,
    file: RawFile,
    columns: Mapping[str, str],
    lists: Collection[str],
    whole_lists: Collection[str],
) -> dict[str, Kind]:
    parquet = _read_parquet(file)
    schema = pa.schema(_nested_fields(parquet.schema_arrow))
    parts = {role: source_columns(role, column, schema.names) for role, column in columns.items()}
    used = [column for role_parts in parts.values() for column in role_parts]
    check_columns(str(file), schema.names, used)
    for column in used:
        twins = [name for name in schema.names if name.casefold() == column.casefold() and name != column]
        if twins:  # names are case-insensitive in DuckDB
            raise InputError(
                f"{file}: has the columns '{column}' and '{twins[0]}', which differ only in case; rename one"
            )
    rows = f"read_parquet({literal(exact_path(file.path))}, file_row_number = true)"
    nested = {column for column in used if column not in parquet.schema_arrow.names}
    if nested:
        paths = (
            ".".join(map(identifier, column.split("."))) + f" AS {identifier(column)}" for column in sorted(nested)
        )
        rows = f"(SELECT *, {', '.join(paths)} FROM {rows})"
    check_parquet(connection, file, parquet, schema, used, rows)
    floats = {
        column
        for role, role_parts in parts.items()
        for column in role_parts
        if _may_be_integers(role, lists) and pa.types.is_floating(schema.field(column).type)
    }
    whole = _whole_floats(connection, rows, sorted(floats))
    kinds, selected = {}, ""
    for role, role_parts in parts.items():
        values = [_integer_sql(column) if column in whole else identifier(column) for column in role_parts]
        field, value = schema.field(role_parts[0]), joined_sql(values)
        if role_parts[0] in whole:
            field = field.with_type(pa.int64())
        if len(role_parts) > 1:
            for column in role_parts:
                _parquet_kind(file, schema.field(column))
            field = field.with_type(pa.string())
        if (role in lists or role in whole_lists) and _is_list(field.type):
            field, value = field.with_type(field.type.value_type), f"unnest({value})" if role in lists else value
        kinds[role] = _parquet_kind(file, field)
        selected += f", {value} AS {identifier(role)}"
    connection.execute(f"CREATE VIEW raw AS SELECT file_row_number AS position{selected} FROM {rows}")
    return kinds


def _nested_fields(fields: Iterable[pa.Field], prefix: str = "") -> list[pa.Field]:
    """Return ``fields``, and the fields of structs in them by their path, as ``user.id``."""
    own = [field.with_name(prefix + field.name) for field in fields]
    structs = [field for field in own if pa.types.is_struct(field.type)]
    return own + [field for struct in structs for field in _nested_fields(struct.type, f"{struct.name}.")]


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
    integers: Collection[str],
) -> dict[str, Kind]:
    names = _read_header(file)
    check_text(file)
    parts = {role: source_columns(role, column, names) for role, column in columns.items()}
    used = [column for role_parts in parts.values() for column in role_parts]
    check_columns(str(file), names, used)
    indexes = sorted({names.index(column) for column in used})
    if _ends_in_long_line(file) or not _load_text(connection, file, names, indexes):
        connection.execute("DROP TABLE IF EXISTS raw_rows")
        _load_records(connection, file, indexes, on_fault)
    texts = {role: [f"c{names.index(column)}" for column in role_parts] for role, role_parts in parts.items()}
    whole = _whole_texts(connection, "raw_rows", sorted({text for role in integers for text in texts[role]}))
    numbers = {text: f"replace({text}, '.0', '')" for text in whole}
    selected = ", ".join(
        f"{joined_sql([numbers.get(text, text) for text in of_role])} AS {identifier(role)}"
        for role, of_role in texts.items()
    )
    connection.execute(f"CREATE VIEW raw AS SELECT {selected}, rowid AS position FROM raw_rows")
    return dict.fromkeys(columns, "text")


def _load_adjacency(connection: duckdb.DuckDBPyConnection, file: RawFile) -> None:
    """Create ``raw_lines`` of the numbers of each line, and whether the line is ``bad``."""
    # DuckDB requires a delimiter: \x01 does not occur in such files, so all of a line is in the first column.
    connection.execute(
        "CREATE TABLE raw_lines AS SELECT string_split_regex(trim(line, ' \t\r'), '[ \t]+') AS numbers, "
        "NOT regexp_full_match(trim(line, ' \t\r'), '[0-9]{1,18}([ \t]+[0-9]{1,18})*') OR rest IS NOT NULL AS bad "
        "FROM read_csv(?, columns = {'line': 'VARCHAR', 'rest': 'VARCHAR'}, header = false, auto_detect = false, "
        f"delim = '\x01', quote = '', escape = '', null_padding = true, strict_mode = false, {_compression(file)}, "
        f"max_line_size = {MAX_ADJACENCY_BYTES}, "
        f"buffer_size = {MAX_ADJACENCY_BYTES}) WHERE line IS NOT NULL AND trim(line, ' \t\r') <> ''",
        [exact_path(file.path)],
    )


def _report_lines(file: RawFile, on_fault: OnFault) -> None:
    with open_records(file) as (_, records):
        for record in records:
            if record.problem:
                on_fault(file, record)


def _load_text(
    connection: duckdb.DuckDBPyConnection, file: RawFile, names: Sequence[str], indexes: Sequence[int]
) -> bool:
    """Create ``raw_rows`` of the columns at ``indexes``; return False if DuckDB rejects a line."""
    # Names and types are given, none is inferred: what DuckDB infers depends on the sample that it looks at.
    if file.format == "jsonl":
        values = {names[index]: names[index].split(".") for index in indexes}
        nested = {name: path for name, path in values.items() if len(path) > 1 and path[0] in names}
        objects = {path[0] for path in nested.values()}
        columns = {nested[name][0] if name in nested else name for name in values}
        types = ", ".join(f"{literal(name)}: '{'JSON' if name in objects else 'VARCHAR'}'" for name in sorted(columns))
        selected = ", ".join(f"{_json_value(names[index], nested, objects)} AS c{index}" for index in indexes)
        reader = f"read_json(?, columns = {{{types}}}, format = 'newline_delimited', {_compression(file)})"
    else:
        assert file.delimiter is not None
        selected = ", ".join(f"c{index}" for index in indexes)
        types = ", ".join(f"'c{index}': 'VARCHAR'" for index in range(len(names)))
        quote = '"' if file.format == "csv" else ""
        reader = (
            f"read_csv(?, columns = {{{types}}}, header = true, auto_detect = false, "
            f"delim = {literal(file.delimiter)}, quote = '{quote}', escape = '{quote}', {_compression(file)}, "
            f"encoding = {literal(file.encoding)}, "
            # The parallel reader leaves out a last line of over 32 MiB, without an error.
            f"parallel = {file.compression() is None})"
        )
    try:
        connection.execute(f"CREATE TABLE raw_rows AS SELECT {selected} FROM {reader}", [exact_path(file.path)])
    except duckdb.Error as error:
        if not _may_be_of_line(file, error):
            raise
        return False
    return True


def _json_value(name: str, nested: Mapping[str, Sequence[str]], objects: Collection[str]) -> str:
    """Return SQL of the text of the key ``name``, which is a path if it is ``nested`` in one of the ``objects``."""
    if name not in nested and name not in objects:
        return identifier(name)
    column, *keys = nested.get(name, [name])
    path = "$" + "".join(f".{identifier(key)}" for key in keys)
    return f"json_extract_string({identifier(column)}, {literal(path)})"


def _ends_in_long_line(file: RawFile) -> bool:
    """Return whether the last line of a file without compression is above the limit."""
    if file.compression() is not None or file.bytes <= MAX_RECORD_BYTES:
        return False
    with file.path.open("rb") as opened:
        opened.seek(file.bytes - MAX_RECORD_BYTES)
        return len(opened.read().rstrip(b"\r\n").splitlines()) <= 1


def _load_records(
    connection: duckdb.DuckDBPyConnection, file: RawFile, indexes: Sequence[int], on_fault: OnFault
) -> None:
    """Create ``raw_rows`` as ``_load_text`` does, but of the records that can be read, and hand the others on."""
    connection.execute(f"CREATE TABLE raw_rows ({', '.join(f'c{index} VARCHAR' for index in indexes)})")
    is_json = file.format == "jsonl"

    def readable(records: Iterable[Record]) -> Iterator[Sequence[str | None]]:
        for record in records:
            if record.problem:
                on_fault(file, record)
            else:
                yield record.values

    with open_records(file) as (_, records):
        rows = readable(records)
        while batch := list(islice(rows, _LOADED_ROWS)):
            # DuckDB reads an empty field as null, but "" of JSON as text.
            texts = [[values[index] if is_json else values[index] or None for values in batch] for index in indexes]
            arrays = [pa.array(column, pa.string()) for column in texts]
            part = pa.table(arrays, names=[f"c{index}" for index in indexes])
            execute_on(connection, part, "INSERT INTO raw_rows SELECT * FROM part")


def _compression(file: RawFile) -> str:
    return f"compression = '{file.compression() or 'none'}'"


def _read_header(file: RawFile) -> list[str]:
    with open_records(file) as (names, _):
        return names


_EXACT_BELOW = 2**53
"""A double is one integer below this."""
_WHOLE_TEXT = r"-?[0-9]{1,15}\.0"


def _whole_floats(connection: duckdb.DuckDBPyConnection, relation: str, columns: Sequence[str]) -> set[str]:
    """Return those of the ``columns`` of floats, in a ``relation``, whose values are all integers or missing."""
    numbers = {column: identifier(column) for column in columns}
    rules = {column: f"isnan({n}) OR ({n} = trunc({n}) AND abs({n}) < {_EXACT_BELOW})" for column, n in numbers.items()}
    return {column for column, rule in rules.items() if not _is_broken(connection, relation, rule)}


def _integer_sql(column: str) -> str:
    """Return SQL of a column that ``_whole_floats`` has found as integers; NaN is a missing value."""
    return f"CAST(CASE WHEN NOT isnan({identifier(column)}) THEN {identifier(column)} END AS BIGINT)"


def _whole_texts(connection: duckdb.DuckDBPyConnection, relation: str, columns: Sequence[str]) -> set[str]:
    """Return those of the ``columns`` of text, in a ``relation``, whose values are all as "42.0" or empty."""
    rules = {column: f"{column} = '' OR regexp_full_match({column}, '{_WHOLE_TEXT}')" for column in columns}
    return {column for column, rule in rules.items() if not _is_broken(connection, relation, rule)}


def _is_broken(connection: duckdb.DuckDBPyConnection, relation: str, rule: str) -> bool:
    """Return whether a row breaks the ``rule``; the first one ends the search."""
    return bool(execute(connection, f"SELECT 1 FROM {relation} WHERE NOT ({rule}) LIMIT 1"))


MAX_EXPANSION = 1000
"""How many times as large as its file what it decodes to may be."""
_ALWAYS_ALLOWED = 1 << 30
"""Bytes that any file may decode to."""
_NUMBER_BYTES = 8
_CHUNK_BYTES = 1 << 20


def check_expansion(connection: duckdb.DuckDBPyConnection, file: RawFile, columns: Sequence[str]) -> None:
    """Check what ``columns`` of a file of any format decode to.

    Raises:
        InputError: it is more than the limit.
        OSError: it cannot be read.
    """
    if file.format == "parquet":
        parquet, rows = pq.ParquetFile(file.path), f"read_parquet({literal(exact_path(file.path))})"
        check_parquet(connection, file, parquet, parquet.schema_arrow, columns, rows)
    else:
        check_text(file)


def check_parquet(
    connection: duckdb.DuckDBPyConnection,
    file: RawFile,
    parquet: pq.ParquetFile,
    schema: pa.Schema,
    columns: Sequence[str],
    rows: str,
) -> None:
    """Check what ``columns``, of the ``schema`` of the relation ``rows`` of an opened Parquet file, decode to.

    Raises:
        InputError: it is more than the limit.
    """
    metadata, limit = parquet.metadata, _limit(file)
    values = pages = 0
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for chunk in map(group.column, range(group.num_columns)):
            name = chunk.path_in_schema
            if any(name == column or name.startswith(f"{column}.") for column in columns):
                values += chunk.num_values
                pages += chunk.total_uncompressed_size
    _check(file, max(values * _NUMBER_BYTES, pages), limit)
    if values * pages <= limit:  # no text is larger than all pages
        return
    texts = [_text_bytes(schema.field(column)) for column in columns if _holds_text(schema.field(column).type)]
    if texts:
        total = f"SELECT CAST(coalesce(sum({' + '.join(texts)}), 0) AS BIGINT) FROM {rows}"
        _check(file, fetch_count(connection, total), limit)


def check_text(file: RawFile) -> None:
    """Check what a text file decompresses to. (Only zstd can exceed the limit: gzip ends at about 1,030 times.)

    Raises:
        InputError: it is more than the limit.
        OSError: it cannot be read.
    """
    if file.compression() != "zstd":
        return
    limit, total = _limit(file), 0
    with open_text(file) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            total += len(chunk)
            _check(file, total, limit)


def _limit(file: RawFile) -> int:
    return max(_ALWAYS_ALLOWED, MAX_EXPANSION * file.bytes)


def _check(file: RawFile, decoded: int, limit: int) -> None:
    if decoded > limit:
        raise InputError(
            f"{file}: decodes to {decoded:,} bytes or more, but at most {limit:,} are read: {MAX_EXPANSION:,} times "
            f"the {file.bytes:,} bytes of the file, or 1 GiB; check what wrote it, or write it again without "
            "compression and dictionaries"
        )


def _holds_text(data_type: pa.DataType) -> bool:
    value = data_type.value_type if hasattr(data_type, "value_type") else data_type
    return bool(pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value))


def _text_bytes(field: pa.Field) -> str:
    """Return SQL of the bytes of the texts of a row."""
    column = identifier(field.name)
    if pa.types.is_dictionary(field.type) or not hasattr(field.type, "value_type"):
        return f"coalesce(strlen({column}), 0)"
    return f"coalesce(list_sum([strlen(x) FOR x IN {column}]), 0)"
