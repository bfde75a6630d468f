"""Read files that list IDs: Parquet, CSV or TSV with a column of IDs, or text with one ID per line.

ids = read_ids("forget.csv", column="user_id", entity="customer")      # distinct, as text
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from csv import QUOTE_MINIMAL, QUOTE_NONE, reader

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from crossfade.base.errors import InputError, Option, format_names
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.parquet import open_parquet

_HEADER_BYTES = 1 << 20
_DELIMITERS = {".csv": ",", ".tsv": "\t", ".dat": "\t"}


def read_ids(location: str, column: str | None, entity: str) -> pa.StringArray:
    """Read the distinct IDs in the file ``location``, a path or URI, as text, without null and empty ones.

    They are in ``column``; if that is None, in the column named as the ``entity``, or in the only column. A file with
    another extension than those of Parquet, CSV and TSV has one ID per line.

    Raises:
        InputError: the file cannot be read, has no such column, or no ID.
    """
    parent, _, name = location.rpartition("/")
    folder = Folder(parent or ("/" if location.startswith("/") else "."))
    extension = os.path.splitext(name)[1].lower()  # noqa: PTH122  (it may be a URI)
    try:
        with folder.open_random(name) as source:
            ids = _READERS.get(extension, _read_lines)(source, location, column, entity)
    except FileNotFoundError:
        raise InputError(f"{location}: no such file; expected a list of ids of {entity}") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{location}: is not UTF-8; convert the file, for instance: iconv -f latin1 -t utf-8"
        ) from error
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{location}: cannot be read as a list of ids: {reason}; write it again") from error
    ids = ids.unique()
    ids = ids.filter(pc.not_equal(ids, ""))
    if len(ids) == 0:
        raise InputError(f"{location}: holds no id; expected ids of {entity}, one per line or row")
    return ids


def typed_ids(ids: pa.StringArray, id_type: str) -> pa.Array:
    """Convert ``ids`` to ``id_type``. For int64, text that is not exactly an integer is left out: no ID equals it."""
    if id_type == "string":
        return ids
    numbers = (int(text) for text in ids.to_pylist() if text.removeprefix("-").isdecimal() and str(int(text)) == text)
    return pa.array([number for number in numbers if -(2**63) <= number < 2**63], pa.int64())


def _read_parquet(source: pa.NativeFile, location: str, column: str | None, entity: str) -> pa.Array:
    with open_parquet(source) as file:
        name = _choose(location, file.schema_arrow.names, column, entity)
        return _combined(file.read(columns=[name], use_threads=False).column(0))


def _read_table(source: pa.NativeFile, location: str, column: str | None, entity: str) -> pa.Array:
    delimiter = _DELIMITERS[os.path.splitext(location)[1].lower()]  # noqa: PTH122
    parse = csv.ParseOptions(delimiter=delimiter, quote_char='"' if delimiter == "," else False)
    header = source.read(_HEADER_BYTES).decode("utf-8-sig", "replace").splitlines()[:1]
    quoted = delimiter == ","
    names = next(reader(header, delimiter=delimiter, quoting=QUOTE_MINIMAL if quoted else QUOTE_NONE), [])
    chosen = _choose(location, names, column, entity)
    source.seek(0)
    # Copied to memory that pyarrow owns, since its parser threads may be the last to release it (see open_parquet).
    content = pa.BufferOutputStream()
    content.write(source.readall())
    convert = csv.ConvertOptions(include_columns=[chosen], column_types={chosen: pa.string()})
    table = csv.read_csv(pa.BufferReader(content.getvalue()), parse_options=parse, convert_options=convert)
    return _combined(table.column(0))


def _read_lines(source: pa.NativeFile, location: str, column: str | None, _entity: str) -> pa.Array:
    if column is not None:
        raise InputError(
            f"{location}: has no columns; leave out ", Option("column"), ", or name a Parquet, CSV or TSV file"
        )
    return pa.array(line.rstrip("\r") for line in source.readall().decode("utf-8-sig").split("\n"))


_READERS = {".parquet": _read_parquet, **dict.fromkeys(_DELIMITERS, _read_table)}


def _combined(column: pa.ChunkedArray) -> pa.Array:
    texts = column.cast(pa.string()).combine_chunks()
    return texts.drop_null()


def _choose(location: str, names: Sequence[str], column: str | None, entity: str) -> str:
    if column is None and len(names) == 1:
        return names[0]
    chosen = column or entity
    if chosen not in names:
        raise InputError(
            f"{location}: has no column '{chosen}'; name the column of the ids with ",
            Option("column"),
            f": {format_names(names)}",
        )
    return chosen
