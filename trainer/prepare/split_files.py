# ruff: noqa: S608  (what is put into SQL is of this program)
"""The columns and the order of the files of interactions, which depends only on their rows, numbers, and a seed.

    layout = SplitLayout("customer", "track", has_timestamp=True, context=("hour",), seed=0)
    layout.place_groups(connection, "vocabulary_query WHERE number IS NOT NULL")        # the table places

Query entities are in random order, and so are the interactions of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from crossfade.trainer.data.column_names import TIMESTAMP, WEIGHT
from crossfade.trainer.prepare.database import shuffled


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
