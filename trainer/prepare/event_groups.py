# ruff: noqa: S608  (what is put into SQL is of this program)
"""The events of a preparation in groups, each with all events of some query entities, in a working database of its own.

    read, reports = groups.read()                                       # the table events of each group, and others
    reports = groups.apply([partial(sum_duplicates, cuts), count_events])    # in the database of each group
    total(reports, "merged_duplicates")
    groups.apply([partial(find_sightings, "item")], given=["pending_item"], found=["sighted_item"], changes=False)

What is known of IDs is in the database of the preparation: a step gets its ``given`` tables, and the tables that a step
has ``found`` in each group are put together there. Without Spark, there is one group, in that same database; on Spark,
there are many (``spark_events.py``). A step works the same in either, so that both engines give the same dataset.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb

from crossfade.base.errors import CrossfadeError
from crossfade.trainer.data.column_names import NO_ROW
from crossfade.trainer.data.manifest import DataFile, Split
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.data.split_names import ALL_SPLITS
from crossfade.trainer.prepare.database import fetch_one, identifier, shuffled
from crossfade.trainer.prepare.events import EventTable, read_events
from crossfade.trainer.prepare.extend import BaseDataset
from crossfade.trainer.prepare.faults import Faults
from crossfade.trainer.prepare.id_encoder import SIDES
from crossfade.trainer.prepare.input_files import Source
from crossfade.trainer.prepare.option_values import ContextPlan
from crossfade.trainer.prepare.options import PrepareOptions
from crossfade.trainer.prepare.split_files import SplitLayout
from crossfade.trainer.prepare.staging import Staged, write_relation

Report = dict[str, Any]
"""What a step has found in a group, as JSON."""
Step = Callable[[duckdb.DuckDBPyConnection], Report]


@dataclass
class EventGroups:
    """The events of ``files``, by split, of a preparation whose IDs are in the database ``connection``: one group."""

    connection: duckdb.DuckDBPyConnection
    options: PrepareOptions
    files: Mapping[str, Sequence[Source]]
    base: BaseDataset | None
    staged: Staged
    faults: Faults
    progress: ProgressReporter

    def read(self) -> tuple[EventTable, list[Report]]:
        """Read the files; return what they have, and reports as of ``count_events``.

        Raises:
            InputError: a file is wrong.
        """
        table = read_events(
            self.connection, self.files, self.staged.work, self.options, self.base, self.faults, self.progress
        )
        return table, [count_events(self.connection)]

    def apply(
        self, steps: Sequence[Step], *, given: Sequence[str] = (), found: Sequence[str] = (), changes: bool = True
    ) -> list[Report]:
        """Do the ``steps`` in each group, and return what the steps report of each.

        Args:
            steps: What to do.
            given: Tables of IDs that the steps read.
            found: Tables or views that the steps make; the tables of all groups become one.
            changes: Whether the steps change other tables of the group.

        Raises:
            InputError: a step did.
        """
        report: Report = {}
        for step in steps:
            report |= step(self.connection)
        return [report]

    def collect_ids(self) -> None:
        """Have the tables ``ids_SIDE`` and ``counts_SIDE`` of all events, after ``describe_interactions``."""

    def write(self, layout: SplitLayout, rows: Mapping[str, int]) -> dict[str, Split]:
        """Write the splits, with so many ``rows``, once vocabularies and the table ``places`` are made."""
        return {split: self._write_split(layout, split, rows[split]) for split in ALL_SPLITS if rows[split]}

    def _write_split(self, layout: SplitLayout, split: str, rows: int) -> Split:
        """Write one split.

        Raises:
            CrossfadeError: there are other rows than were counted.
        """
        context, joins = _context_columns_sql(self.options.context_plans())
        timestamp = ", timestamp" if layout.has_timestamp else ""
        source = "train_interactions" if split == "train" else "interactions"
        ordered = self.connection.sql(
            f"SELECT q.row AS query, i.row AS item, e.weight{timestamp}{context} FROM {source} e "
            f"JOIN places q ON q.number = e.query JOIN vocabulary_item i ON i.number = e.item{joins} "
            f"WHERE e.split = {ALL_SPLITS.index(split)} ORDER BY q.place, {shuffled(layout.seed, 'e.seq')}"
        )
        self.progress.phase(f"write {split}", rows, "row")
        files = write_relation(self.staged, split, layout.schema(), ordered, rows, self.progress)
        return checked_split(split, rows, files)


def checked_split(split: str, rows: int, files: Sequence[DataFile]) -> Split:
    """Return the ``files`` of a split, of which so many ``rows`` were counted.

    Raises:
        CrossfadeError: they have others.
    """
    written = Split(files=[*files])
    if written.rows != rows:
        raise CrossfadeError(
            f"{split}: {rows} interactions were counted, but {written.rows} were written; prepare again"
        )
    return written


def total(reports: Sequence[Report], name: str) -> int:
    """Return the sum of a number in ``reports``."""
    return sum(int(report[name]) for report in reports)


def earliest(reports: Sequence[Report], name: str) -> int | None:
    """Return the least number in ``reports``, of which some may have none."""
    return min((report[name] for report in reports if report[name] is not None), default=None)


def latest(reports: Sequence[Report], name: str) -> int | None:
    """Return the largest number in ``reports``, of which some may have none."""
    return max((report[name] for report in reports if report[name] is not None), default=None)


def count_events(connection: duckdb.DuckDBPyConnection, events: str = "events") -> Report:
    """Report how many ``events`` are in train, how many of these are positive, and the time of the newest one."""
    values = fetch_one(
        connection,
        f"SELECT count(*) FILTER (split = 0), count(*) FILTER (split = 0 AND weight > 0), max(timestamp) FROM {events}",
    )
    return dict(zip(("train", "positives", "newest"), values, strict=True))


def replace_events(connection: duckdb.DuckDBPyConnection, events: str) -> None:
    """Replace the table ``events`` by the result of a query; ``create_interactions`` counts them anew."""
    connection.execute(f"CREATE TABLE other_events AS {events}")
    connection.execute("DROP TABLE events")
    connection.execute("ALTER TABLE other_events RENAME TO events")
    for side in SIDES:
        connection.execute(f"DROP TABLE IF EXISTS all_counts_{side}")


def _context_columns_sql(plans: Sequence[ContextPlan]) -> tuple[str, str]:
    """Return SQL of the rows of each context entity, and of the joins to events ``e`` that they need."""
    if not plans:
        return "", ""
    columns = "".join(f", coalesce({plan.key}.row, {NO_ROW}) AS {identifier(plan.name)}" for plan in plans)
    joins = "".join(f" LEFT JOIN vocabulary_{plan.key} {plan.key} ON {plan.key}.id = x.{plan.key}" for plan in plans)
    return columns, f" JOIN event_values x ON x.seq = e.seq{joins}"
