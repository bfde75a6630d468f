# ruff: noqa: S608  (what is put into SQL is a number or a name of this program)
"""Draw the replay of a dataset: earlier interactions of train, to train on beside the new ones.

    draw = ReplayDraw(connection, options, folder, manifest, progress)
    rows = draw.create(50_000)              # at most
    draw.relation()                         # them, with the columns of splits, in the order of train

A run that warm-starts and sees new events only forgets what it has learned of others. The draw is without replacement
from the earlier interactions that the dataset carries, and the same for the same seed and datasets.

All interactions of a query are drawn, or none, but for the last query: first of those that have new events, then of
others, each in random order. The vector of a query that is trained on its new events and a part of the others forgets
the rest (docs/fresh-models.md), while one that is not trained at all loses little.

The work follows the number of rows that are drawn, rather than the length of the history: of a long one, only some row
groups are read, chosen at random: at least ``_LEAST_ROWS``, and ``_READ_ROWS`` times as many rows as are drawn. Then
interactions of a query in the others are missing, and in datasets that are grouped, not every query takes part.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from functools import partial

import duckdb
import numpy as np
import pyarrow as pa

from crossfade.base.hashing import mix
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.manifest import DatasetManifest, Split
from crossfade.trainer.data.reader import InteractionReader, RowGroup, row_groups
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.prepare.database import count_rows, execute_on, identifier, shuffled
from crossfade.trainer.prepare.options import PrepareOptions

_READ_ROWS = 4
"""How many times as many rows are read as are drawn, if there are as many."""
_FEW_ROWS = 1 << 22
"""Rows that go on to the working database, if no more are read."""
_SPARE = 1.25
"""How many candidates are kept for each row to draw, beside the rows of queries with new events."""
_LEAST_ROWS = 1 << 25
"""Rows that are read, if there are as many, so that the histories of queries with new events are complete."""
_NEW_QUERIES = "SELECT p.row FROM places p JOIN counts_query c USING (number) WHERE c.count > 0"
"""The rows of the queries that have new events in train."""


@dataclass(frozen=True)
class ReplayDraw:
    """Draws earlier interactions in the working database of a preparation.

    Attributes:
        connection: The database, which has the tables of all vocabularies, and ``places``, the queries of new events.
        options: The options of the preparation.
        folder: Where the new dataset is written.
        manifest: Its manifest, with the earlier interactions.
        progress: Receives the rows that are read.
    """

    connection: duckdb.DuckDBPyConnection
    options: PrepareOptions
    folder: Folder
    manifest: DatasetManifest
    progress: ProgressReporter

    def create(self, rows: int) -> int:
        """Create the table ``replay`` of ``rows`` interactions, or fewer if there are not as many; return how many.

        Raises:
            InputError: a file is missing or corrupt.
            StorageUnavailableError: storage does not answer.
        """
        groups = self._chosen_groups(max(_READ_ROWS * rows, _LEAST_ROWS))
        read, number = sum(group.rows for group in groups), 0
        share = _SPARE * rows / read if read > _FEW_ROWS else 1.0
        new_Q = self.connection.sql(_NEW_QUERIES).fetchnumpy()["row"]
        columns = ", ".join(f"{name} {kind}" for name, kind in self._columns.items())
        self.connection.execute(f"CREATE TABLE replay_read ({columns}, number BIGINT)")
        self.progress.phase("read earlier interactions", read, "row")
        with closing(InteractionReader(self.folder, self.manifest)) as reader:
            for table in reader.map(partial(self._table, reader), groups):
                self.progress.advance(table.num_rows)
                chosen = table
                if share < 1:  # chosen here, since the database takes longer for a row than reading does
                    query_N = table.column("query").to_numpy()
                    draw_N = mix(query_N.astype(np.uint64) ^ mix(np.array([self._seed])))
                    chosen = table.filter(pa.array((draw_N < np.uint64(share * 2**64)) | np.isin(query_N, new_Q)))
                part = chosen.append_column("number", pa.array(np.arange(number, number + chosen.num_rows)))
                execute_on(self.connection, part, "INSERT INTO replay_read SELECT * FROM part")
                number += part.num_rows
        self.connection.execute(
            f"CREATE TABLE replay AS SELECT * FROM replay_read ORDER BY query NOT IN ({_NEW_QUERIES}), "
            f"{shuffled(self._seed, 'query')}, {shuffled(self._seed, 'number')} LIMIT {rows:d}"
        )
        self.connection.execute("DROP TABLE replay_read")
        return count_rows(self.connection, "replay")

    def relation(self) -> duckdb.DuckDBPyRelation:
        """Return the interactions of the table ``replay`` with the columns and in the order of train."""
        seed, plans = self.options.seed, self.options.context_plans()
        names = {"query": self.manifest.query, "item": self.manifest.item}
        names |= {plan.key: plan.name for plan in plans}
        columns = ", ".join(f"r.{column} AS {identifier(names.get(column, column))}" for column in self._columns)
        order = f"{shuffled(seed, 'r.query')}, {shuffled(seed, 'r.number')}"
        return self.connection.sql(f"SELECT {columns} FROM replay r ORDER BY {order}")

    @property
    def _columns(self) -> dict[str, str]:
        """The columns of the table ``replay``, and their types."""
        times = {"timestamp": "BIGINT"} if self.manifest.has_timestamp else {}
        context = {plan.key: "BIGINT" for plan in self.options.context_plans()}
        return {"query": "BIGINT", "item": "BIGINT", "weight": "FLOAT", **times, **context}

    @property
    def _seed(self) -> int:
        """The seed, which differs from dataset to dataset of a lineage, so that each replays others."""
        return self.options.seed + len(self.manifest.lineage)

    def _chosen_groups(self, least: int) -> list[RowGroup]:
        """Return row groups of earlier train, in random order, with at least ``least`` rows if there are as many."""
        groups = row_groups(self.manifest.earlier.get("train", Split(files=[])))
        random = np.random.default_rng((self.options.seed, len(self.manifest.lineage)))
        order = random.permutation(len(groups))
        rows_before_N = np.cumsum([0, *(groups[index].rows for index in order)])[:-1]
        return [groups[index] for index in order[rows_before_N < least]]

    def _table(self, reader: InteractionReader, group: RowGroup) -> pa.Table:
        found = reader.read(group, self.manifest.context, timestamps=self.manifest.has_timestamp)
        context = [] if found.context_NK is None else [*found.context_NK.T]
        times = [] if found.timestamp_N is None else [found.timestamp_N]
        columns = [found.query_N, found.item_N, found.weight_N, *times, *context]
        return pa.table({name: pa.array(column_N) for name, column_N in zip(self._columns, columns, strict=True)})
