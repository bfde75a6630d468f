# ruff: noqa: S608  (what is put into SQL is quoted by `identifier` and `literal`, or is a number of this program)
"""Content columns of an entity, from separate files: audio features of tracks, embeddings of their texts or images.

    read_content(connection, plans, work, progress)                 # given_content_0 (id, value: a list of floats), …
    column = write_content(connection, plans[0], base, staged)      # after the vocabulary of the entity

A value is a number, or a list of as many numbers in every row: Arrow lists, or ``[0.1, 0.2]`` in text. Nulls, empty
text, and NaN as a single number are missing values. With a base dataset, IDs that the files have no value for keep the
values that they have there, and the scaling is that of the base dataset, which its models were trained with.

Shapes: N values of a batch, D numbers of a value.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from crossfade.base.arrays import FloatArray
from crossfade.base.errors import InputError, Option, OptionError
from crossfade.trainer.data.column_names import MAX_CONTENT_WIDTH
from crossfade.trainer.data.features import content_group_rows, content_schema, content_values, iter_content
from crossfade.trainer.data.manifest import CONTENT, Content
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.prepare.database import count_rows, execute_on, fetch_one
from crossfade.trainer.prepare.extend import BaseDataset
from crossfade.trainer.prepare.feature_columns import ColumnPlan
from crossfade.trainer.prepare.fetch import fetch_files
from crossfade.trainer.prepare.input_files import RawFile
from crossfade.trainer.prepare.raw_files import KIND_NAMES, close_raw, open_columns, read_errors
from crossfade.trainer.prepare.staging import PartWriter, Staged, row_group_rows

ALL_CONTENT = "all_content"
"""The table of the working database with the values in the files of a column, some of them more than once."""
_BATCH_ROWS = 1 << 14


def read_content(
    connection: duckdb.DuckDBPyConnection, plans: Sequence[ColumnPlan], work: Path, progress: ProgressReporter
) -> None:
    """Create the table ``given_content_N`` (ID as text, value) of each column with files.

    Raises:
        InputError: a file cannot be read, lacks a column, or has values that are not numbers or lists of one length.
    """
    with_files = [plan for plan in plans if plan.source]
    if with_files:
        progress.phase("read content", sum(file.bytes for plan in with_files for file in plan.files), "B")
    for plan in with_files:
        assert plan.source is not None
        column = plan.source.columns[plan.name]
        with fetch_files(plan.files, work, [plan.source.id_column, column]) as local_files:
            for source, file in zip(plan.files, local_files, strict=True):
                append_content(connection, plan.source.id_column, column, file)
                progress.advance(source.bytes)
        check_given(plan, *create_given(connection, plan, ALL_CONTENT))
        connection.execute(f"DROP TABLE {ALL_CONTENT}")


def append_content(connection: duckdb.DuckDBPyConnection, id_column: str, column: str, file: RawFile) -> None:
    """Append the values of one file to the table ``ALL_CONTENT``.

    Raises:
        InputError: it cannot be read, or has values that are not numbers or lists of numbers.
    """
    connection.execute(f"CREATE TABLE IF NOT EXISTS {ALL_CONTENT} (id VARCHAR, value FLOAT[])")
    kind = open_columns(connection, file, {"id": id_column, "value": column}, whole_lists=("value",))["value"]
    if kind == "datetime":
        raise InputError(
            f"{file}: column '{column}' holds {KIND_NAMES[kind]}; expected numbers, or lists of numbers: cast it, or "
            "name another column"
        )
    missing, numbers = "isnan(TRY_CAST(value AS DOUBLE))", "[TRY_CAST(value AS FLOAT)]"
    if str(connection.sql("SELECT value FROM raw LIMIT 0").types[0]).endswith("]"):
        missing, numbers = "len(value) = 0", "TRY_CAST(value AS FLOAT[])"
    elif kind in ("text", "string"):
        missing = f"value IN ('', '[]') OR {missing}"
        numbers = f"CASE WHEN value LIKE '[%' THEN TRY_CAST(value AS FLOAT[]) ELSE {numbers} END"
    with read_errors(file):
        connection.execute(
            f"CREATE TABLE piece AS SELECT position, CAST(id AS VARCHAR) AS id, {numbers} AS value FROM raw "
            f"WHERE id IS NOT NULL AND CAST(id AS VARCHAR) <> '' AND NOT coalesce({missing}, value IS NULL)"
        )
    bad = "value IS NULL OR list_count(value) < len(value) OR NOT list_bool_and([isfinite(x) FOR x IN value])"
    found = connection.execute(
        "SELECT position + 1, left(CAST(value AS VARCHAR), 40) FROM raw "
        f"WHERE position = (SELECT min(position) FROM piece WHERE {bad})"
    ).fetchone()
    close_raw(connection)
    if found is not None:
        raise InputError(
            f"{file}, row {found[0]}: column '{column}' has '{found[1]}'; expected a number, or a list of numbers, all "
            "finite"
        )
    connection.execute(f"INSERT INTO {ALL_CONTENT} SELECT id, value FROM piece")
    connection.execute("DROP TABLE piece")


def create_given(connection: duckdb.DuckDBPyConnection, plan: ColumnPlan, source: str) -> tuple[list[int], str | None]:
    """Create the table ``given_content_N`` of all values of some IDs, in ``source``, each once.

    Returns the lengths of the values, and the first ID that has two.
    """
    connection.execute(f"CREATE TABLE {plan.given_table} AS SELECT DISTINCT id, value FROM {source}")
    found = connection.execute(f"SELECT DISTINCT len(value) FROM {plan.given_table} ORDER BY 1").fetchall()
    (twice,) = fetch_one(
        connection, f"SELECT min(id) FROM (SELECT id FROM {plan.given_table} GROUP BY id HAVING count(*) > 1)"
    )
    return [width for (width,) in found], None if twice is None else str(twice)


def check_given(plan: ColumnPlan, widths: Sequence[int], twice: str | None) -> None:
    """Check what ``create_given`` returns.

    Raises:
        InputError: there is no value, they differ in length, or an ID has two.
    """
    assert plan.source is not None
    where = (Option("content", f"{plan.entity}={plan.source.path}"), f": column '{plan.source.columns[plan.name]}'")
    if not widths:
        raise InputError(where, " has no value; leave it out")
    if len(widths) > 1 or widths[0] > MAX_CONTENT_WIDTH:
        raise InputError(
            where,
            f" has lists of {' and '.join(f'{width}' for width in widths[:2])} numbers; expected lists of one "
            f"length, at most {MAX_CONTENT_WIDTH}",
        )
    if twice is not None:
        raise InputError(where, f" has two different values of the id '{twice}'; expected one value of each id")


@dataclass
class Moments:
    """Sums of the values of a column, each added after the one before, so that they do not depend on batches."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, value_ND: FloatArray) -> None:
        """Add the values of some rows."""
        flat_N = value_ND.astype(np.float64).ravel()
        self.count += len(flat_N)
        self.total = float(np.cumsum(np.concatenate([[self.total], flat_N]))[-1])
        self.squares = float(np.cumsum(np.concatenate([[self.squares], flat_N * flat_N]))[-1])

    def scaling(self, width: int) -> tuple[float, float]:
        """Return what is subtracted from values, and what they are divided by."""
        mean = self.total / self.count if width == 1 else 0.0
        variance = self.squares / self.count - mean * mean
        # Numbers that are all equal leave only rounding errors.
        return mean, float(np.sqrt(variance)) if variance > 1e-12 * (self.squares / self.count) else 1.0


def write_content(
    connection: duckdb.DuckDBPyConnection, plan: ColumnPlan, base: BaseDataset | None, staged: Staged
) -> tuple[Content, int]:
    """Write the values of a column by row of ``vocabulary_SIDE``; return it, and the IDs that are in no row.

    Raises:
        InputError: the files have a value for none of the IDs, or values of another length than in the base dataset.
    """
    connection.execute("CREATE TABLE rows_of_content (row BIGINT, value FLOAT[])")
    ignored = 0
    if plan.source is not None:
        joined = f"{plan.given_table} g JOIN vocabulary_{plan.side} v ON CAST(v.id AS VARCHAR) = g.id"
        connection.execute(f"INSERT INTO rows_of_content SELECT v.row, g.value FROM {joined}")
        filled = count_rows(connection, "rows_of_content")
        given = count_rows(connection, plan.given_table)
        if not filled:
            raise plan.unmatched(given)
        ignored = given - filled
        connection.execute(f"DROP TABLE {plan.given_table}")
    old = base.manifest.content_of(plan.entity).get(plan.name) if base else None
    if base is not None and old is not None:
        width = fetch_one(connection, "SELECT max(len(value)) FROM rows_of_content")[0]
        if width not in (None, old.width):
            raise OptionError(
                "content",
                found=f"{plan.entity}=…",
                problem=f"'{plan.name}' has {width} numbers, but {old.width} in the base dataset",
                fix="give the column another name: NAME=COLUMN",
            )
        _carry(connection, base, plan)
    return _write(connection, plan, old, staged), ignored


def _carry(connection: duckdb.DuckDBPyConnection, base: BaseDataset, plan: ColumnPlan) -> None:
    """Add the values of the base dataset, except of rows that have new values or belong to another ID now."""
    connection.execute("CREATE TABLE base_content (row BIGINT, value FLOAT[])")
    for _, row_N, value_ND in iter_content(base.folder, base.manifest, plan.entity, plan.name):
        lists = pa.FixedSizeListArray.from_arrays(pa.array(value_ND.ravel()), value_ND.shape[1])
        part = pa.table({"row": row_N, "value": lists})
        execute_on(connection, part, "INSERT INTO base_content SELECT row, value FROM part")
    connection.execute(
        f"INSERT INTO rows_of_content SELECT b.row, b.value FROM base_content b JOIN base_{plan.side} old USING (row) "
        f"JOIN vocabulary_{plan.side} v ON v.row = b.row AND v.id = old.id "
        "WHERE b.row NOT IN (SELECT row FROM rows_of_content)"
    )
    connection.execute("DROP TABLE base_content")


def _write(connection: duckdb.DuckDBPyConnection, plan: ColumnPlan, old: Content | None, staged: Staged) -> Content:
    """Write ``rows_of_content``, with the scaling of ``old``, the column of the base dataset, if there is one."""
    rows, width = fetch_one(connection, "SELECT count(*), max(len(value)) FROM rows_of_content")
    assert isinstance(rows, int)
    assert isinstance(width, int)
    schema, moments = content_schema(width), Moments()
    group_rows = content_group_rows(row_group_rows(rows), width)
    with PartWriter(staged, f"{CONTENT}/{plan.entity}/{plan.name}", schema, group_rows) as writer:
        for batch in _batches(connection):
            value_ND = content_values(pa.chunked_array([batch.column(1)]), width, plan.name)
            moments.add(value_ND)
            lists = pa.FixedSizeListArray.from_arrays(pa.array(value_ND.ravel()), type=schema.field("value").type)
            writer.write(pa.RecordBatch.from_arrays([batch.column(0), lists], schema=schema))
        files = writer.close()
    connection.execute("DROP TABLE rows_of_content")
    mean, std = (old.mean, old.std) if old is not None else moments.scaling(width)
    return Content(width=width, mean=mean, std=std, files=files)


def _batches(connection: duckdb.DuckDBPyConnection) -> Iterator[pa.RecordBatch]:
    ordered = connection.sql("SELECT row, value FROM rows_of_content ORDER BY row")
    yield from (batch for batch in ordered.to_arrow_reader(_BATCH_ROWS) if batch.num_rows)
