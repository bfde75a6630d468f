# ruff: noqa: S608  (what is put into SQL is a number or a name of this program)
"""Draw the replay of a dataset: interactions of its base datasets, to train on beside the new ones.

    draw = ReplayDraw(connection, options, find_replayed(base), manifest, progress)
    rows = draw.create(50_000)              # at most
    draw.relation()                         # them, with the columns of splits, in the order of train

A run that warm-starts and sees new events only forgets what it has learned of others. What is drawn was in train, and
its query and its item still have the rows that they had then. The draw is without replacement, and the same for the
same seed and datasets.

All interactions of a query are drawn, or none, but for the last query: first of those that have new events, then of
others, each in random order. The vector of a query that is trained on its new events and a part of the others forgets
the rest (docs/fresh-models.md), while one that is not trained at all loses little.

The work follows the number of rows that are drawn, rather than the size of the base datasets: of large ones, only some
row groups are read, at least ``_LEAST_ROWS``, and ``_READ_ROWS`` times as many rows as are drawn, and more only where
many IDs have expired. Of what is read, the interactions of queries with new events and of a random share of the others
go on to the working database. All row groups have the same chance, and so have all rows of those that are read. Unless
all are, the draw is approximate in two ways. Rows of one row group are drawn together: they are those of a random
sample of queries if the dataset is grouped, so that not every query takes part. And rows of large row groups are a
little less likely than others, since there is then more to draw from. Interactions of a query in row groups that are
not read are missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import groupby

import duckdb
import numpy as np
import pyarrow as pa

from crossfade.base.arrays import BoolArray, IntArray
from crossfade.base.errors import Option
from crossfade.base.hashing import mix
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.lineage import BEFORE_ALL, EarlierDataset, explaining_base, open_bases
from crossfade.trainer.data.manifest import DatasetManifest
from crossfade.trainer.data.reader import InteractionReader, RowGroup, row_groups
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.prepare.database import count_rows, execute_on, identifier, shuffled
from crossfade.trainer.prepare.event_context import NO_ROW
from crossfade.trainer.prepare.extend import BaseDataset
from crossfade.trainer.prepare.options import PrepareOptions

_WITHOUT = ("leave out ", Option("replay"))
_READ_ROWS = 4
"""How many times as many rows are read as are drawn, if there are as many."""
_SPARE = 1.25
"""How many times as many rows as are drawn go on to the working database, beside those of queries with new events."""
_LEAST_ROWS = 1 << 25
"""Rows that are read, if there are as many, so that the histories of queries with new events are complete."""
_NEW_QUERIES = "SELECT p.row FROM places p JOIN counts_query c USING (number) WHERE c.count > 0"
"""The rows of the queries that have new events in train."""
_THREADS = 4


def find_replayed(base: BaseDataset) -> list[EarlierDataset]:
    """Open the datasets to draw from: ``base`` and its base datasets, the oldest first.

    Raises:
        InputError: one cannot be reached, or is another one than was extended.
        StorageUnavailableError: storage does not answer.
    """
    earlier = open_bases(base.folder, base.manifest, _WITHOUT)
    return [*earlier, EarlierDataset(base.folder, base.manifest, base.fingerprint, len(base.manifest.lineage))]


@dataclass(frozen=True)
class _Place:
    """A row group of a base dataset."""

    base: EarlierDataset
    group: RowGroup


@dataclass(frozen=True)
class ReplayDraw:
    """Draws interactions of base datasets in the working database of a preparation.

    Attributes:
        connection: The database, which has the tables of all vocabularies, and ``places``, the queries of new events.
        options: The options of the preparation.
        replayed: The datasets to draw from, as ``find_replayed`` returns them.
        manifest: What is known of the new dataset.
        progress: Receives the rows that are read.
    """

    connection: duckdb.DuckDBPyConnection
    options: PrepareOptions
    replayed: Sequence[EarlierDataset]
    manifest: DatasetManifest
    progress: ProgressReporter

    def create(self, rows: int) -> int:
        """Create the table ``replay`` of ``rows`` interactions, or fewer if there are not as many; return how many.

        Raises:
            InputError: a file of a base dataset is missing or corrupt.
            StorageUnavailableError: storage does not answer.
        """
        contexts = [plan.key for plan in self.options.context_plans()]
        columns = ", ".join(["query BIGINT", "item BIGINT", "weight FLOAT", "timestamp BIGINT"])
        columns += "".join(f", {key} BIGINT" for key in contexts)
        for table in ("replay_read", "replay_kept"):
            self.connection.execute(f"CREATE TABLE {table} ({columns}, number BIGINT, lineage_index BIGINT)")
        self._read_groups(rows)
        seed = self.options.seed + len(self.replayed)  # so that each dataset of a lineage replays others
        self.connection.execute(
            f"CREATE TABLE replay AS SELECT * FROM replay_kept ORDER BY query NOT IN ({_NEW_QUERIES}), "
            f"{shuffled(seed, 'query')}, {shuffled(seed, 'number')} LIMIT {rows:d}"
        )
        for table in ("replay_read", "replay_kept"):
            self.connection.execute(f"DROP TABLE {table}")
        return count_rows(self.connection, "replay")

    def relation(self) -> duckdb.DuckDBPyRelation:
        """Return the interactions of the table ``replay`` with the columns and in the order of train."""
        seed, plans = self.options.seed, self.options.context_plans()
        names = {"query": self.manifest.query, "item": self.manifest.item, "weight": "weight"}
        names |= {"timestamp": "timestamp"} if self.manifest.has_timestamp else {}
        names |= {plan.key: plan.name for plan in plans}
        columns = ", ".join(f"r.{column} AS {identifier(name)}" for column, name in names.items())
        group = f"{shuffled(seed, 'r.query')}, " if self.options.order == "grouped" else ""
        return self.connection.sql(f"SELECT {columns} FROM replay r ORDER BY {group}{shuffled(seed, 'r.number')}")

    def _read_groups(self, rows: int) -> None:
        """Fill the table ``replay_kept`` from row groups in random order, until it has enough or all are read."""
        places = self._shuffled_places()
        read = min(sum(place.group.rows for place in places), max(_READ_ROWS * rows, _LEAST_ROWS))
        share = min(1.0, _SPARE * max(rows, 1) / max(read, 1))
        self.progress.phase("read base datasets", read, "row")
        if self._fill(places, rows, share) < rows and share < 1:
            # Most IDs have expired, so that the rows that were left out are needed.
            self.connection.execute("DELETE FROM replay_kept")
            self._fill(places, rows, 1.0)

    def _fill(self, places: Sequence[_Place], rows: int, share: float) -> int:
        """Fill the table ``replay_kept`` with a ``share`` of the queries of row groups, and those that have new events.

        Returns how many rows it has.
        """
        least = max(_READ_ROWS * rows, _LEAST_ROWS)
        groups, read, loaded, kept = 0, 0, 0, 0
        while groups < len(places) and (read < least or kept < rows):
            first, wanted = groups, max(least - read, (rows - kept) / share)
            while groups < len(places) and wanted > 0:
                wanted -= places[groups].group.rows
                groups += 1
            for part in self._read(places[first:groups], loaded, share):
                execute_on(self.connection, part, "INSERT INTO replay_read BY NAME SELECT * FROM part")
                loaded += part.num_rows
            read += sum(place.group.rows for place in places[first:groups])
            self._keep()
            kept = count_rows(self.connection, "replay_kept")
        return kept

    def _shuffled_places(self) -> list[_Place]:
        """Return the row groups of all train splits, in a random order that differs from dataset to dataset."""
        places = [
            _Place(base, group)
            for base in self.replayed
            if "train" in base.manifest.splits
            for group in row_groups(base.manifest.splits["train"])
        ]
        random = np.random.default_rng((self.options.seed, len(self.replayed)))
        return [places[index] for index in random.permutation(len(places))]

    def _read(self, places: Sequence[_Place], number: int, share: float) -> Iterator[pa.Table]:
        """Yield the rows of ``places`` that take part, numbered from ``number``, one dataset after the other.

        They are chosen here, since the database takes longer for a row than reading does.
        """
        ordered = sorted(places, key=lambda place: place.base.index)
        for _, of_base in groupby(ordered, key=lambda place: place.base.index):
            chosen = list(of_base)
            base, groups = chosen[0].base, [place.group for place in chosen]
            with (
                explaining_base(base.folder, Folder(self.options.out), _WITHOUT),
                closing(InteractionReader(base.folder, base.manifest, _THREADS)) as reader,
            ):
                parts = reader.map(partial(self._table, reader, base), groups)
                for read in parts:
                    self.progress.advance(read.num_rows)
                    part = read
                    if share < 1:
                        part = read.filter(pa.array(self._takes_part(read.column("query").to_numpy(), share)))
                    yield part.append_column("number", pa.array(np.arange(number, number + part.num_rows)))
                    number += part.num_rows

    def _takes_part(self, query_N: IntArray, share: float) -> BoolArray:
        """Return which rows are those of queries with new events, or of a random ``share`` of the others: bool (N,)."""
        seed = mix(np.array([self.options.seed + len(self.replayed)]))
        drawn_N = mix(query_N.astype(np.uint64) ^ seed) < np.uint64(share * 2**64)
        is_new_N: BoolArray = drawn_N | np.isin(query_N, self._new_queries)
        return is_new_N

    @cached_property
    def _new_queries(self) -> IntArray:
        """The rows of the queries that have new events, int64."""
        row_Q: IntArray = self.connection.sql(_NEW_QUERIES).fetchnumpy()["row"]
        return row_Q

    def _table(self, reader: InteractionReader, base: EarlierDataset, group: RowGroup) -> pa.Table:
        """Read a row group; what a base dataset has no column of is earlier than all else, or no context."""
        names = [plan.name for plan in self.options.context_plans() if plan.name in base.manifest.context]
        found = reader.read(group, names, timestamps=base.manifest.has_timestamp)
        timestamp_N = np.full(len(found), BEFORE_ALL) if found.timestamp_N is None else found.timestamp_N
        columns = {"query": found.query_N, "item": found.item_N, "weight": found.weight_N, "timestamp": timestamp_N}
        for plan in self.options.context_plans():
            columns[plan.key] = np.full(len(found), NO_ROW)
            if found.context_NK is not None and plan.name in names:
                columns[plan.key] = found.context_NK[:, names.index(plan.name)]
        columns["lineage_index"] = np.full(len(found), base.index)
        return pa.table({name: pa.array(column_N) for name, column_N in columns.items()})

    def _keep(self) -> None:
        """Move the rows of ``replay_read`` whose IDs have kept their rows to ``replay_kept``.

        As where a dataset is read with its base datasets (``trainer/data/lineage.py``), a row must have an ID, and not
        one that got it later. Context that is vacant now is none.
        """
        joins = ""
        for side, name in (("query", self.manifest.query), ("item", self.manifest.item)):
            vacant = pa.table({"row": pa.array(self.manifest.entities[name].vacant_rows, pa.int64())})
            execute_on(self.connection, vacant, f"CREATE OR REPLACE TABLE vacant_{side} AS SELECT row FROM part")
            joins += f" ANTI JOIN vacant_{side} ON vacant_{side}.row = r.{side}"
            if self.manifest.entities[name].has_last_seen:
                joins += f" JOIN vocabulary_{side} {side[0]} ON {side[0]}.row = r.{side}"
                joins += f" AND {side[0]}.lineage_index <= r.lineage_index"
        contexts = [plan.key for plan in self.options.context_plans()]
        replaced = [f"CASE WHEN {key}.id IS NULL THEN {NO_ROW} ELSE r.{key} END AS {key}" for key in contexts]
        joins += "".join(f" LEFT JOIN vocabulary_{key} {key} ON {key}.row = r.{key}" for key in contexts)
        columns = f"r.* REPLACE ({', '.join(replaced)})" if replaced else "r.*"
        self.connection.execute(f"INSERT INTO replay_kept SELECT {columns} FROM replay_read r{joins}")
        self.connection.execute("DELETE FROM replay_read")
