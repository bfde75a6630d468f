"""The events of a preparation in its own database: one group, which shares its tables of IDs with the preparation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import duckdb

from crossfade.trainer.data.manifest import Split
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.data.split_names import ALL_SPLITS
from crossfade.trainer.prepare.event_context import context_columns_sql
from crossfade.trainer.prepare.event_groups import EventGroups, Report, Step, count_events
from crossfade.trainer.prepare.events import EventTable, read_events
from crossfade.trainer.prepare.extend import BaseDataset
from crossfade.trainer.prepare.faults import Faults
from crossfade.trainer.prepare.input_files import Source
from crossfade.trainer.prepare.options import PrepareOptions
from crossfade.trainer.prepare.split_files import SplitLayout
from crossfade.trainer.prepare.staging import Staged


@dataclass
class LocalEvents(EventGroups):
    """The events of ``files``, by split, in the database ``connection``."""

    connection: duckdb.DuckDBPyConnection
    options: PrepareOptions
    files: Mapping[str, Sequence[Source]]
    base: BaseDataset | None
    staged: Staged
    faults: Faults
    progress: ProgressReporter

    def read(self) -> tuple[EventTable, list[Report]]:
        """Read the files."""
        table = read_events(
            self.connection, self.files, self.staged.work, self.options, self.base, self.faults, self.progress
        )
        return table, [count_events(self.connection)]

    def apply(
        self, steps: Sequence[Step], *, given: Sequence[str] = (), found: Sequence[str] = (), changes: bool = True
    ) -> list[Report]:
        """Do the ``steps``: what is ``given`` and ``found`` is in this database."""
        report: Report = {}
        for step in steps:
            report |= step(self.connection)
        return [report]

    def collect_ids(self) -> None:
        """Have them already."""

    def write(self, layout: SplitLayout, rows: Mapping[str, int]) -> dict[str, Split]:
        """Write the splits."""
        return {split: self._write_split(layout, split, rows[split]) for split in ALL_SPLITS if rows[split]}

    def _write_split(self, layout: SplitLayout, split: str, rows: int) -> Split:
        context, joins = context_columns_sql(self.options.context_plans())
        timestamp = ", timestamp" if layout.has_timestamp else ""
        source = "train_interactions" if split == "train" else "interactions"
        joined = (
            f"{source} e JOIN places q ON q.number = e.query JOIN vocabulary_item i ON i.number = e.item"
            f"{joins} WHERE e.split = {ALL_SPLITS.index(split)}"
        )
        columns = f"q.row AS query, i.row AS item, e.weight{timestamp}{context}"
        return layout.write(self.connection, self.staged, split, columns, joined, rows, self.progress)
