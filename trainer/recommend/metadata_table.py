# ruff: noqa: S608  (what is put into SQL is quoted by `identifier`)
"""The metadata of an entity's rows in DuckDB, for conditions and groups.

    with open_metadata(model, "track", "songs.csv", {"year"}) as table:
        kept_R = table.rows_where("year > 1990")
    write_metadata(model, "track", None, Path("metadata.duckdb"))               # to be opened more than once

Its columns:

    id, name                from the vocabulary
    count                   the number of interactions of positive weight in train, here and in base datasets
    FEATURE                 one for each feature of the dataset: the list of its values, by name or else by ID
    COLUMN                  those of the metadata file; null where it has no line for the ID

A file may have several lines of an ID: a row meets a condition if one of them does, and is in the groups of all.

Shapes: R rows, N values of all groups.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from crossfade.base.arrays import BoolArray, IntArray
from crossfade.base.errors import InputError, Option, Text, format_names
from crossfade.base.io.folder import Folder
from crossfade.base.io.temporary_folder import temporary_folder
from crossfade.trainer.data.features import iter_pairs
from crossfade.trainer.data.jagged_array import JaggedArray
from crossfade.trainer.data.manifest import DatasetManifest
from crossfade.trainer.data.vocabulary import Vocabulary
from crossfade.trainer.prepare.database import (
    default_memory_bytes,
    exact_path,
    execute,
    execute_on,
    first_line,
    identifier,
    literal,
    working_database,
)
from crossfade.trainer.prepare.fetch import fetch_files
from crossfade.trainer.prepare.input_files import RawFile, find_files
from crossfade.trainer.prepare.parquet_columns import check_expansion
from crossfade.trainer.prepare.raw_files import column_names, read_errors
from crossfade.trainer.recommend.trained_model import TrainedModel

COUNT = "count"
_READERS = {
    "parquet": "read_parquet(?)",
    # Types are inferred from all lines, so that numbers compare as numbers.
    "csv": "read_csv(?, header = true, delim = ',', quote = '\"', escape = '\"', sample_size = -1)",
    "tsv": "read_csv(?, header = true, delim = '\t', quote = '', escape = '', sample_size = -1)",
    "jsonl": "read_json(?, format = 'newline_delimited', sample_size = -1)",
}


@contextmanager
def open_metadata(
    model: TrainedModel, entity: str, file: str | None, columns: Collection[str]
) -> Iterator[MetadataTable]:
    """Load the columns of ``entity`` from the dataset and ``file``; of features and counts, only those in ``columns``.

    Raises:
        InputError: the metadata file or the dataset cannot be read.
    """
    with (
        temporary_folder("metadata") as work,
        working_database(work, _memory_bytes(), None) as connection,
    ):
        table = MetadataTable(connection, model.data, model.manifest, entity, has_file=file is not None)
        table.load(file, columns, work, model.counts(entity) if COUNT in map(str.lower, columns) else None)
        table.lock()
        yield table


def write_metadata(model: TrainedModel, entity: str, file: str | None, path: Path) -> None:
    """Write all columns of ``entity`` from the dataset and ``file`` to the DuckDB database ``path``.

    Raises:
        InputError: the metadata file or the dataset cannot be read.
    """
    advice = ("name a folder on a larger disk with ", Option("work_dir"))
    with (
        tempfile.TemporaryDirectory(prefix="metadata-", dir=path.parent) as work,
        working_database(Path(work), _memory_bytes(), None, advice) as connection,
    ):
        table = MetadataTable(connection, model.data, model.manifest, entity, has_file=file is not None)
        table.load(file, model.manifest.features_of(entity), Path(work), model.counts(entity))
        execute(connection, f"ATTACH {literal(str(path))} AS written")
        execute(connection, "CREATE TABLE written.items AS SELECT * FROM items ORDER BY row")
        execute(connection, "DETACH written")


def _memory_bytes() -> int:
    """Return what loading may take beside a server and its model."""
    return min(4 << 30, default_memory_bytes())


class MetadataTable:
    """The columns of an entity, as the relation ``items`` of a DuckDB database."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        data: Folder,
        manifest: DatasetManifest,
        entity: str,
        *,
        has_file: bool,
    ) -> None:
        self._connection = connection
        self._data = data
        self._manifest = manifest
        self._entity = entity
        self._rows = manifest.entities[entity].rows
        self._has_file = has_file

    def load(self, file: str | None, columns: Collection[str], work: Path, count_R: IntArray | None = None) -> None:
        """Create ``items``; ``count_R`` are the counts of the rows, None for those of this dataset."""
        self._add_vocabulary(self._entity, "vocabulary", count_R)
        relation = "vocabulary"
        for name in self._features():
            if name in columns:
                self._add_feature(name)
                relation += f" LEFT JOIN {identifier('feature ' + name)} USING (row)"
        if file is not None:
            self._add_metadata(file, work)
            relation += " LEFT JOIN metadata USING (row)"
        execute(self._connection, f"CREATE VIEW items AS SELECT * FROM {relation}")

    def lock(self) -> None:
        """Lock the database, so that a condition can read nothing else."""
        execute(self._connection, "SET enable_external_access = false")
        execute(self._connection, "SET lock_configuration = true")

    def rows_where(self, condition: str) -> BoolArray:
        """Return which rows meet ``condition``, bool (R,).

        Raises:
            InputError: it is not a condition on the columns.
        """
        kept_R = np.zeros(self._rows, np.bool_)
        rows = self._query("FROM items", Option("where", condition), condition)
        kept_R[rows.column("row").to_numpy()] = True
        return kept_R

    def groups(self, column: str) -> tuple[JaggedArray, list[str]]:
        """Group the rows by the values of ``column``, which may be a list; empty text is none.

        Returns:
            The groups of each row, possibly none, and the names of the groups.

        Raises:
            InputError: there is no such column.
        """
        what = f"the column '{column}'"
        if column not in self.columns():
            raise InputError(f"there is no column '{column}' to group by; ", self.columns_hint())
        quoted = identifier(column)
        is_list = self._query(f"SELECT typeof(any_value({quoted})) LIKE '%[]' AS l FROM items", what)
        value = f"unnest({quoted})" if is_list.column("l")[0].as_py() else quoted
        pairs = self._query(
            f"SELECT DISTINCT row, dense_rank() OVER (ORDER BY value) - 1 AS number, CAST(value AS VARCHAR) AS value "
            f"FROM (SELECT row, {value} AS value FROM items) "
            "WHERE value IS NOT NULL AND CAST(value AS VARCHAR) <> '' ORDER BY row, number",
            what,
        )
        row_N, value_N = (pairs.column(name).cast(pa.int64()).to_numpy() for name in ("row", "number"))
        names = dict(zip(value_N.tolist(), pairs.column("value").to_pylist(), strict=True))
        groups = JaggedArray(np.searchsorted(row_N, np.arange(self._rows + 1)), value_N)
        return groups, [names[number] for number in range(len(names))]

    def _query(self, sql: str, named: Text, condition: str | None = None) -> pa.Table:
        try:
            relation = self._connection.sql(sql)
            # DuckDB parses a filter as one expression, which cannot change the query around it.
            return (relation if condition is None else relation.filter(condition).project("row")).to_arrow_table()
        except duckdb.InterruptException:
            raise
        except (duckdb.Error, UnicodeError) as error:
            raise InputError(named, f": {first_line(error)}; ", self.columns_hint()) from error

    def columns(self) -> list[str]:
        """Return the columns that a condition may use."""
        names = list(self.types())
        return [*names, *(name for name in self._features() if name not in names)]

    def types(self, relation: str = "items") -> dict[str, str]:
        """Return the SQL types of the columns of ``relation``."""
        found = {str(name): str(kind) for name, kind, *_ in execute(self._connection, f"DESCRIBE {relation}")}
        return {name: kind for name, kind in found.items() if name != "row"}

    def _features(self) -> list[str]:
        return list(self._manifest.features_of(self._entity))

    def columns_hint(self) -> Text:
        """Return what a message adds about the columns that there are."""
        hint = "" if self._has_file else ("; further columns come from ", Option("metadata", "FILE"))
        return (f"the columns are {format_names(self.columns())}", hint)

    def _add_vocabulary(self, entity: str, table: str, count_R: IntArray | None = None) -> None:
        vocabulary = Vocabulary(self._data, self._manifest, entity)
        columns = [*vocabulary.columns, COUNT]
        for number, part in enumerate(vocabulary.iter_tables(columns)):
            piece = part
            if count_R is not None:
                count_N = count_R[part.column("row").to_numpy()]
                piece = part.set_column(columns.index(COUNT), COUNT, pa.array(count_N))
            how = f"INSERT INTO {table}" if number else f"CREATE TABLE {table} AS"
            execute_on(self._connection, piece, f"{how} SELECT * FROM part WHERE id IS NOT NULL")

    def _add_feature(self, name: str) -> None:
        self._add_vocabulary(name, "feature_values")
        execute(self._connection, "CREATE TABLE pairs (row BIGINT, value BIGINT)")
        for _, row_N, value_N in iter_pairs(self._data, self._manifest, self._entity, name):
            piece = pa.table({"row": row_N, "value": value_N})
            execute_on(self._connection, piece, "INSERT INTO pairs SELECT * FROM part")
        label = "coalesce(f.name, f.id::VARCHAR)" if self._manifest.entities[name].has_names else "f.id"
        execute(
            self._connection,
            f"CREATE TABLE {identifier('feature ' + name)} AS SELECT pairs.row AS row, "
            f"list({label} ORDER BY value) AS {identifier(name)} "
            "FROM pairs JOIN feature_values f ON f.row = pairs.value GROUP BY pairs.row",
        )
        execute(self._connection, "DROP TABLE pairs")
        execute(self._connection, "DROP TABLE feature_values")

    def _add_metadata(self, location: str, work: Path) -> None:
        with fetch_files(find_files("metadata", [location], None), work, None) as files:
            for number, file in enumerate(files):
                if number:
                    raise InputError(Option("metadata", location), ": matches several files; expected one")
                with read_errors(file):
                    self._add_file(file)

    def _add_file(self, file: RawFile) -> None:
        columns = column_names(file)
        candidates = [self._entity, f"{self._entity}_id", "id"]
        found = next((name for name in candidates if name in columns), None)
        if found is None:
            raise InputError(
                Option("metadata", file),
                f": has no column {' or '.join(map(repr, candidates))} of IDs, but {format_names(columns)}; rename one",
            )
        taken = {name.lower() for name in ["row", *self.types("vocabulary"), *self._features()]}
        chosen = [name for name in columns if name != found and name.lower() not in taken]
        selected = "".join(f", given.{identifier(name)}" for name in chosen)
        check_expansion(self._connection, file, [found, *chosen])
        execute(
            self._connection,
            f"CREATE TABLE metadata AS SELECT vocabulary.row AS row{selected} FROM {_READERS[file.format]} given "
            f"JOIN vocabulary ON CAST(given.{identifier(found)} AS VARCHAR) = CAST(vocabulary.id AS VARCHAR)",
            [exact_path(file.path)],
        )
