# ruff: noqa: S608  (what is put into SQL is quoted by `identifier` and `literal`)
"""Find the columns of a Parquet file, values in structs among them, and check what they decode to.

schema = read_parquet(file).schema_arrow
for path, field in fields(schema):
    f"SELECT {value_sql(path)} AS {identifier(field.name)} FROM …"          # "user.id", of the path user, id
"""

from __future__ import annotations

from collections.abc import Sequence

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from crossfade.base.errors import InputError, Option
from crossfade.trainer.prepare.database import exact_path, fetch_count, first_line, identifier, literal
from crossfade.trainer.prepare.input_files import RawFile


def read_parquet(file: RawFile) -> pq.ParquetFile:
    """Open a Parquet file.

    Raises:
        InputError: it is none.
    """
    try:
        return pq.ParquetFile(file.path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{file}: is not a readable Parquet file ({first_line(error).rstrip('.')}); expected a complete Parquet "
            "file, or give another format with ",
            Option("format"),
        ) from error


def fields(schema: pa.Schema) -> list[tuple[Sequence[str], pa.Field]]:
    """Return the fields of a file, those in structs too, each with its path; joined by dots, that is its name."""
    found: list[tuple[Sequence[str], pa.Field]] = [((field.name,), field) for field in schema]
    for path, field in found:  # which grows
        if pa.types.is_struct(field.type):
            found += [((*path, of.name), of.with_name(f"{field.name}.{of.name}")) for of in field.type]
    return found


def value_sql(path: Sequence[str]) -> str:
    """Return SQL of the value at ``path``: a column, then what it has in structs."""
    value = identifier(path[0])
    for name in path[1:]:
        value = f"struct_extract({value}, {literal(name)})"
    return value


MAX_EXPANSION = 1000
"""How many times as large as its file what it decodes to may be."""
_ALWAYS_ALLOWED = 1 << 30
"""Bytes that any file may decode to."""
_NUMBER_BYTES = 8


def check_expansion(connection: duckdb.DuckDBPyConnection, file: RawFile, columns: Sequence[str]) -> None:
    """Check what ``columns`` of a Parquet file decode to; gzip makes text at most about 1,030 times as large.

    Raises:
        InputError: it is more than the limit.
        OSError: it cannot be read.
    """
    if file.format != "parquet":
        return
    parquet, limit = read_parquet(file), max(_ALWAYS_ALLOWED, MAX_EXPANSION * file.bytes)
    values = pages = 0
    for group in map(parquet.metadata.row_group, range(parquet.metadata.num_row_groups)):
        for chunk in map(group.column, range(group.num_columns)):
            name = chunk.path_in_schema
            if any(name == column or name.startswith(f"{column}.") for column in columns):
                values += chunk.num_values
                pages += chunk.total_uncompressed_size
    decoded = max(values * _NUMBER_BYTES, pages)
    found = [(path, field) for path, field in fields(parquet.schema_arrow) if field.name in columns]
    texts = [value_sql(path) for path, field in found if "string" in str(field.type)]
    if texts and decoded <= limit < values * pages:  # no text is larger than all pages
        lengths = " + ".join(f"coalesce(strlen(CAST({text} AS VARCHAR)), 0)" for text in texts)
        rows = f"read_parquet({literal(exact_path(file.path))})"
        decoded = fetch_count(connection, f"SELECT CAST(coalesce(sum({lengths}), 0) AS BIGINT) FROM {rows}")
    if decoded > limit:
        raise InputError(
            f"{file}: decodes to {decoded:,} bytes or more, but at most {limit:,} are read: {MAX_EXPANSION:,} times "
            f"the {file.bytes:,} bytes of the file, or 1 GiB; check what wrote it, or write it again without "
            "compression and dictionaries"
        )
