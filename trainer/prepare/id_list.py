"""Read files that list IDs: Parquet, CSV or TSV with a column of IDs, or text with one ID per line.

ids = read_ids("forget.csv", column="user_id", entity="customer")      # distinct, as text
"""

from __future__ import annotations

from contextlib import closing
from pathlib import PurePosixPath

import duckdb
import pyarrow as pa

from crossfade.base.errors import InputError, Option
from crossfade.base.io.temporary_folder import temporary_folder
from crossfade.trainer.prepare.fetch import fetch_files
from crossfade.trainer.prepare.input_files import EXTENSIONS, RawFile, find_files
from crossfade.trainer.prepare.raw_files import column_names, find_delimiter, open_columns, read_errors


def read_ids(location: str, column: str | None, entity: str, option: str = "ids") -> pa.StringArray:
    """Read the distinct IDs in the file ``location``, a path or URI, as text, without null and empty ones.

    They are in ``column``; if that is None, in the column named as the ``entity``, or in the only column. A file with
    another extension than those of Parquet, CSV and TSV has one ID per line. ``option`` names it in messages.

    Raises:
        InputError: the file cannot be read, has no such column, or no ID.
    """
    is_lines = PurePosixPath(location).suffix.lower() not in EXTENSIONS
    if is_lines and column is not None:
        raise InputError(
            f"{location}: has no columns; leave out ", Option("column"), ", or name a Parquet, CSV or TSV file"
        )
    found: dict[str, None] = {}
    files = find_files(option, [location], "tsv" if is_lines else None)
    with temporary_folder("ids") as work, fetch_files(files, work, None) as local_files:
        for file in local_files:
            found |= dict.fromkeys(_read_lines(file) if is_lines else _read_column(file, column, entity))
    found.pop("", None)
    if not found:
        raise InputError(f"{location}: holds no id; expected ids of {entity}, one per line or row")
    return pa.array(found, pa.string())


def _read_lines(file: RawFile) -> list[str]:
    try:
        return [line.rstrip("\r") for line in file.path.read_bytes().decode("utf-8-sig").split("\n")]
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: is not UTF-8; convert the file, for instance: iconv -f latin1 -t utf-8") from error


def _read_column(file: RawFile, column: str | None, entity: str) -> list[str]:
    names = column_names(find_delimiter(file, {"id": column or entity}))
    chosen = names[0] if column is None and len(names) == 1 else column or entity
    with closing(duckdb.connect()) as connection, read_errors(file):
        open_columns(connection, file, {"id": chosen})
        rows = connection.execute("SELECT CAST(id AS VARCHAR) FROM raw WHERE id IS NOT NULL ORDER BY position")
        return [text for (text,) in rows.fetchall()]


def typed_ids(ids: pa.StringArray, id_type: str) -> pa.Array:
    """Convert ``ids`` to ``id_type``. For int64, text that is not exactly an integer is left out: no ID equals it."""
    if id_type == "string":
        return ids
    numbers = (int(text) for text in ids.to_pylist() if text.removeprefix("-").isdecimal() and str(int(text)) == text)
    return pa.array([number for number in numbers if -(2**63) <= number < 2**63], pa.int64())
