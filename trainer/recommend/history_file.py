"""Read the histories of new queries from a file, by DuckDB.

found = read_histories("plays.csv", model)
found.ids, found.histories, found.unknown
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from crossfade.base.errors import OptionError
from crossfade.base.io.temporary_folder import temporary_folder
from crossfade.trainer.data.column_names import WEIGHT
from crossfade.trainer.prepare.database import execute, fetch_count, working_database
from crossfade.trainer.prepare.fetch import fetch_files
from crossfade.trainer.prepare.input_files import find_files
from crossfade.trainer.prepare.raw_files import column_names, open_columns, read_errors
from crossfade.trainer.recommend.history import Histories, make_sequences
from crossfade.trainer.recommend.trained_model import TrainedModel


@dataclass(frozen=True)
class FileHistories:
    """Histories from a file.

    Attributes:
        ids: the ID of each query, as text, sorted; a single empty one if the file has no column of queries.
        histories: their histories.
        unknown: interactions whose item has no row, which are left out.
    """

    ids: list[str]
    histories: Histories
    unknown: int


def read_histories(location: str, model: TrainedModel) -> FileHistories:
    """Read the histories of new queries in ``location``, a Parquet, CSV or TSV file with a line for each interaction.

    The columns are named as the entities: QUERY (optional: without it, the file is one history), ITEM, and ``weight``
    (optional, by default 1), as in the files that ``crossfade prepare`` reads. Items are named by ID. Lines of a query
    are in the order of time, for models to which the order matters.

    Raises:
        InputError: the file cannot be read, or has no column of items, or no item of the model.
    """
    query, item = model.spec.query.name, model.spec.item.name
    with (
        temporary_folder("history") as work,
        working_database(work, None, None) as connection,
        fetch_files(find_files("history_file", [location], None), work, None) as files,
    ):
        execute(connection, "CREATE TABLE plays (query VARCHAR, item VARCHAR, weight FLOAT)")
        for file in files:
            names = column_names(file)
            columns = {"item": item, **{role: role for role in (WEIGHT,) if role in names}}
            if query in names:
                columns["query"] = query
            open_columns(connection, file, columns)
            with read_errors(file):
                id_of_query = "CAST(query AS VARCHAR)" if query in names else "''"
                weight = f"CAST({WEIGHT} AS FLOAT)" if WEIGHT in names else "1"
                execute(
                    connection,
                    f"INSERT INTO plays SELECT {id_of_query}, CAST(item AS VARCHAR), {weight} FROM raw",  # noqa: S608
                )
        execute(connection, "CREATE TABLE known (row BIGINT, item VARCHAR)")
        for piece in model.vocabulary(item).iter_tables(["row", "id"]):
            connection.register("piece", piece)
            execute(connection, "INSERT INTO known SELECT row, CAST(id AS VARCHAR) FROM piece WHERE id IS NOT NULL")
            connection.unregister("piece")
        unknown = fetch_count(connection, "SELECT count(*) FROM plays ANTI JOIN known USING (item)")
        found = connection.sql(
            "SELECT dense_rank() OVER (ORDER BY query) - 1 AS number, query, row, weight FROM plays JOIN known "
            "USING (item) WHERE query IS NOT NULL AND isfinite(weight) ORDER BY number, plays.rowid"
        ).to_arrow_table()
    if not found.num_rows:
        raise OptionError(
            "history_file", found=location, problem=f"none of its lines names an ID of {item} in '{item}'"
        )
    number_N, row_N = (found.column(name).cast(pa.int64()).to_numpy() for name in ("number", "row"))
    ids = found.column("query").unique().to_pylist()
    weight_N = found.column("weight").to_numpy()
    return FileHistories(ids, make_sequences(number_N, row_N, weight_N, len(ids), model.spec.item.rows), unknown)
