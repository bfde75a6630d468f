# ruff: noqa: S608  (what is put into SQL is of this program)
"""Write interactions as the files of a split, in an order that depends only on their rows, their numbers, and a seed.

    layout = SplitLayout("customer", "track", has_timestamp=True, context=("hour",), seed=0)
    layout.place_groups(connection, "vocabulary_query WHERE number IS NOT NULL")        # the table places
    columns, source = "q.row, i.row, e.weight, e.timestamp, e.hour", "interactions e JOIN places q …"
    split = layout.write(connection, staged, "train", columns, source, rows, progress)

Query entities are in random order, and so are the interactions of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from crossfade.base.errors import CrossfadeError
from crossfade.trainer.data.column_names import TIMESTAMP, WEIGHT
from crossfade.trainer.data.manifest import Split
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.prepare.database import shuffled
from crossfade.trainer.prepare.staging import Staged, write_relation


def interaction_schema(query: str, item: str, has_timestamp: bool, context: Sequence[str]) -> pa.Schema:
    """Return the schema of files of interactions."""
    fields = [(query, pa.int64()), (item, pa.int64()), (WEIGHT, pa.float32())]
    if has_timestamp:
        fields.append((TIMESTAMP, pa.int64()))
    fields += [(name, pa.int64()) for name in context]
    return pa.schema([pa.field(name, data_type, nullable=False) for name, data_type in fields])


@dataclass(frozen=True)
class SplitLayout:
    """The columns and the order of the interactions of a dataset.

    Attributes:
        query: the name of the querying entity.
        item: that of the item entity.
        has_timestamp: whether interactions have timestamps.
        context: the names of the context entities.
        seed: seeds the order.
    """

    query: str
    item: str
    has_timestamp: bool
    context: Sequence[str]
    seed: int

    def schema(self) -> pa.Schema:
        """Return the schema of the files."""
        return interaction_schema(self.query, self.item, self.has_timestamp, self.context)

    def place_groups(self, connection: duckdb.DuckDBPyConnection, queries: str) -> None:
        """Create the table ``places``: number, row, and place in the order of each of ``queries``.

        These are what follows FROM in a query: number and row of each query entity.
        """
        connection.execute(
            "CREATE TABLE places AS SELECT number, row, "
            f"row_number() OVER (ORDER BY {shuffled(self.seed, 'row')}) AS place FROM {queries}"
        )

    def write(
        self,
        connection: duckdb.DuckDBPyConnection,
        staged: Staged,
        split: str,
        columns: str,
        source: str,
        rows: int,
        progress: ProgressReporter,
    ) -> Split:
        """Write the ``rows`` interactions of ``split``.

        Args:
            connection: the working database.
            staged: where files are written.
            split: its name.
            columns: SQL of the columns of the schema, in order.
            source: what follows FROM: events ``e`` with a unique integer ``seq``, and the table ``places`` as ``q``.
            rows: how many there are.
            progress: receives a phase.

        Raises:
            CrossfadeError: there are other rows than were counted.
        """
        ordered = connection.sql(f"SELECT {columns} FROM {source} ORDER BY q.place, {shuffled(self.seed, 'e.seq')}")
        progress.phase(f"write {split}", rows, "row")
        written = Split(files=write_relation(staged, split, self.schema(), ordered, rows, progress))
        if written.rows != rows:
            raise CrossfadeError(
                f"{split}: {rows} interactions were counted, but {written.rows} were written; prepare again"
            )
        return written
