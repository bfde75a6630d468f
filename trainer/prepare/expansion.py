# ruff: noqa: S608  (what is put into SQL is quoted by `identifier` and `literal`, or is a number of this program)
"""Reject files that decode to far more than they hold: a few kilobytes may stand for a full disk.

check_parquet(connection, file, parquet, ["user_id", "track_id"])
check_text(file)

The values of Parquet are counted by the metadata, which costs nothing; texts, of which a dictionary holds each once, by
one scan that does not copy them; text files by what is decompressed so far.
"""

from __future__ import annotations

from collections.abc import Sequence

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from crossfade.base.errors import InputError
from crossfade.trainer.prepare.database import exact_path, fetch_count, identifier, literal
from crossfade.trainer.prepare.input_files import RawFile
from crossfade.trainer.prepare.text_records import open_text

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
        check_parquet(connection, file, pq.ParquetFile(file.path), columns)
    else:
        check_text(file)


def check_parquet(
    connection: duckdb.DuckDBPyConnection, file: RawFile, parquet: pq.ParquetFile, columns: Sequence[str]
) -> None:
    """Check what ``columns`` of an opened Parquet file decode to.

    Raises:
        InputError: it is more than the limit.
    """
    metadata, schema, limit = parquet.metadata, parquet.schema_arrow, _limit(file)
    values = pages = 0
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for chunk in map(group.column, range(group.num_columns)):
            name = chunk.path_in_schema
            if any(name == column or name.startswith(f"{column}.") for column in columns):
                values += chunk.num_values
                pages += chunk.total_uncompressed_size
    _check(file, max(values * _NUMBER_BYTES, pages), limit)
    texts = [_text_bytes(schema.field(column)) for column in columns if _holds_text(schema.field(column).type)]
    if texts:
        source = f"read_parquet({literal(exact_path(file.path))})"
        _check(
            file,
            fetch_count(connection, f"SELECT CAST(coalesce(sum({' + '.join(texts)}), 0) AS BIGINT) FROM {source}"),
            limit,
        )


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
