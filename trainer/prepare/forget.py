"""Delete all that a prepared dataset holds of some IDs: their interactions, IDs, names, features and content.

    report = forget(ForgetOptions.of(data="data/day3", ids="ids.txt"), progress)

Their rows become vacant but stay in place, so that all other rows keep their numbers; the same holds for feature values
that only those IDs had. The dataset is written anew and replaces the one before
(``staging.py``), so it is complete at any moment, with the IDs or without them.

Datasets that extend this one have files of their own, and are rewritten by themselves.

Shapes: N rows of a table, R forgotten rows (sorted), V rows of a vocabulary.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crossfade.base.arrays import BoolArray, IntArray
from crossfade.base.errors import InputError
from crossfade.base.io.disk_errors import full_disk_errors
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.column_names import WEIGHT
from crossfade.trainer.data.features import ROW, VALUE
from crossfade.trainer.data.manifest import (
    CONTENT,
    EARLIER,
    FEATURES,
    PENDING,
    REPLAY,
    VOCABULARY,
    Content,
    DataFile,
    DatasetManifest,
    Entity,
    Feature,
    Split,
    data_fingerprint,
    read_manifest,
)
from crossfade.trainer.data.parquet import ParquetFiles
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.data.vocabulary import Vocabulary, plain_strings
from crossfade.trainer.prepare.id_list import read_ids, typed_ids
from crossfade.trainer.prepare.options import ForgetOptions
from crossfade.trainer.prepare.staging import PartWriter, Staged, staged_output
from crossfade.trainer.prepare.summary import COUNTED

_COUNTS = {"train": "count", f"{EARLIER}/train": "earlier_count"}
"""The columns of a vocabulary that count interactions, by the folder of their files."""
_NEVER_NULL = {"count": 0, "earlier_count": 0, "lineage_index": 0}
"""Columns of a vocabulary that have a value in every row, with their value in vacant rows."""


@dataclass(frozen=True)
class ForgetReport:
    """What a deletion has done.

    Attributes:
        folder: The folder of the dataset.
        manifest: The manifest of the dataset afterwards.
        entity: The entity whose IDs were forgotten.
        requested: The number of IDs to forget.
        found: How many of them had a row.
        pending: How many of them were pending (without a row yet).
        interactions: The number of deleted interactions by the folder of their files.
    """

    folder: Folder
    manifest: DatasetManifest
    entity: str
    requested: int
    found: int
    pending: int
    interactions: Mapping[str, int]


@contextmanager
def staged_deletion(
    folder: Folder, ids: pa.StringArray, entity: str, progress: ProgressReporter
) -> Iterator[StagedDeletion]:
    """Lock the dataset in ``folder``, and write it without ``ids`` beside it. Nothing changes until ``publish``.

    Raises:
        InputError: there is no dataset or no such entity, a file is missing or corrupt, or another process writes it.
        CrossfadeError: the disk is full.
        OSError: writing failed.
        StorageUnavailableError: storage does not answer.
    """
    manifest = read_manifest(folder)
    if entity not in (sides := (manifest.query, manifest.item)):
        raise InputError(
            f"{folder.uri}: has no ids of '{entity}' to forget; expected {' or '.join(sides)}, with which "
            "their features and context are forgotten"
        )
    # A link to the folder stays, and leads to the new one.
    location = folder.path.resolve() if folder.path is not None and folder.path.is_symlink() else folder.uri
    disk = folder.path or Path(tempfile.gettempdir())
    with full_disk_errors(disk, "move the dataset to a larger one"), staged_output(location, overwrite=True) as staged:
        deletion = StagedDeletion(staged, entity, progress)
        deletion.write(ids)
        yield deletion


class StagedDeletion:
    """A dataset without some IDs, which is written and can be published.

    Attributes:
        manifest: the manifest of the dataset as it is.
        report: what ``publish`` does; complete after ``write``.
    """

    report: ForgetReport

    def __init__(self, staged: Staged, entity: str, progress: ProgressReporter) -> None:
        self.manifest = read_manifest(staged.out)
        self._staged, self._entity, self._progress = staged, entity, progress
        self._files = ParquetFiles(staged.out)
        sizes = {name: described.rows for name, described in self.manifest.entities.items()}
        # By column of vocabularies and entity: how much the count of each row drops.
        self._lost = {
            column: {name: np.zeros(rows, np.int64) for name, rows in sizes.items()} for column in _COUNTS.values()
        }
        # By entity of context or of a feature: the uses of each row that stay, and those that go.
        of_values = (*self.manifest.context, *self.manifest.feature_owners())
        self._uses = {name: np.zeros((2, sizes[name]), np.int64) for name in of_values}
        self._rows_R = np.empty(0, np.int64)

    def write(self, ids: pa.StringArray) -> None:
        """Write the files of the dataset without ``ids``; nothing, if it has none of them."""
        old = self.manifest
        described = old.entities[self._entity]
        targets = typed_ids(ids, described.id_type)

        def is_target(table: pa.Table) -> BoolArray:
            found_N: BoolArray = pc.is_in(table.column("id"), value_set=targets).to_numpy()
            return found_N

        for table in Vocabulary(self._staged.out, old, self._entity).iter_tables(["row", "id"]):
            self._rows_R = np.append(self._rows_R, table.column("row").to_numpy()[is_target(table)])
        pending = sum(int(is_target(table).sum()) for file in described.pending for table in self._read(file))
        new = old.model_copy(update=self._changes(is_target)) if len(self._rows_R) or pending else old
        left = {name: split.rows for name, split in new.interactions().items()}
        self.report = ForgetReport(
            folder=self._staged.out,
            manifest=new,
            entity=self._entity,
            requested=len(ids),
            found=len(self._rows_R),
            pending=pending,
            interactions={name: split.rows - left.get(name, 0) for name, split in old.interactions().items()},
        )

    def _changes(self, is_target: Callable[[pa.Table], BoolArray]) -> dict[str, Any]:
        """Write all files, and return what changes in the manifest."""
        old = self.manifest
        left = {name: self._without_rows_of(name, split) for name, split in old.interactions().items()}
        features = {
            owner: {name: self._without_pairs(owner, name, feature) for name, feature in of.items()}
            for owner, of in old.features.items()
        }
        content = {
            owner: {name: self._without_content(owner, name, column) for name, column in of.items()}
            for owner, of in old.content.items()
        }
        replay = left.get(REPLAY)
        return {
            "entities": {name: self._without_ids(name, entity, is_target) for name, entity in old.entities.items()},
            "splits": {name: left[name] for name in old.splits},
            "earlier": {name: left[f"{EARLIER}/{name}"] for name in old.earlier},
            "replay": replay if replay and replay.files else None,
            "features": features,
            "content": content,
            # Checkpoints trained on the old data identify them by the old manifest.
            "lineage": [*old.lineage, data_fingerprint(self._staged.out)],
            # Statistics of all interactions are no longer true.
            "source": {name: fact for name, fact in old.source.items() if not name.endswith(COUNTED)},
        }

    def publish(self) -> ForgetReport:
        """Replace the dataset, if it holds anything of the IDs, and return the report.

        Raises:
            CrossfadeError: another process has written it meanwhile, or replacing it failed.
        """
        if self.report.found or self.report.pending:
            self._staged.publish(self.report.manifest)
        else:
            self._staged.delete_leftovers()
        return self.report

    def _without_rows_of(self, name: str, split: Split) -> Split:
        """Write interactions without the IDs, and count what vocabularies lose."""
        lost = self._lost.get(_COUNTS.get(name, ""), {})
        entities = [self.manifest.query, self.manifest.item, *self.manifest.context]

        def is_dropped(table: pa.Table) -> BoolArray:
            is_dropped_N = np.isin(table.column(self._entity).to_numpy(), self._rows_R)
            is_counted_N = is_dropped_N & (table.column(WEIGHT).to_numpy() > 0)
            for entity in entities:
                row_N = table.column(entity).to_numpy()
                if lost:
                    np.add.at(lost[entity], row_N[is_counted_N & (row_N >= 0)], 1)
                if entity in self._uses:
                    np.add.at(self._uses[entity], (is_dropped_N[row_N >= 0].astype(int), row_N[row_N >= 0]), 1)
            return is_dropped_N

        return Split(files=self._without(name, split.files, is_dropped))

    def _without_pairs(self, owner: str, name: str, feature: Feature) -> Feature:
        """Write a feature without the pairs of vacant rows, and count what its values lose."""

        def is_dropped(table: pa.Table) -> BoolArray:
            row_N, value_N = table.column(ROW).to_numpy(), table.column(VALUE).to_numpy()
            for lost in self._lost.values():
                np.add.at(lost[name], value_N, lost[owner][row_N])
            is_dropped_N = np.isin(row_N, self._vacant_rows(owner))
            np.add.at(self._uses[name], (is_dropped_N.astype(int), value_N), 1)
            return is_dropped_N

        return Feature(files=self._without(f"{FEATURES}/{owner}/{name}", feature.files, is_dropped))

    def _without_content(self, owner: str, name: str, column: Content) -> Content:
        def is_dropped(table: pa.Table) -> BoolArray:
            return np.isin(table.column(ROW).to_numpy(), self._vacant_rows(owner))

        files = self._without(f"{CONTENT}/{owner}/{name}", column.files, is_dropped)
        return column.model_copy(update={"files": files})

    def _vacant_rows(self, name: str) -> IntArray:
        """Return the rows of an entity that become vacant, sorted: values that only these IDs had may identify them."""
        if name in self._uses:
            stay_V, go_V = self._uses[name]
            return np.flatnonzero((go_V > 0) & (stay_V == 0))
        return self._rows_R if name == self._entity else self._rows_R[:0]

    def _without_ids(self, name: str, entity: Entity, is_target: Callable[[pa.Table], BoolArray]) -> Entity:
        """Write a vocabulary with lower counts, and vacant rows emptied; and pending IDs without the forgotten."""
        vacant_R = self._vacant_rows(name)
        is_pending_target = is_target if name == self._entity else lambda table: np.zeros(table.num_rows, bool)
        vacant = np.union1d(np.array(entity.vacant_rows, np.int64), vacant_R)
        return entity.model_copy(
            update={
                "files": self._write(
                    f"{VOCABULARY}/{name}", entity.files, partial(self._reduced, name=name, vacant_R=vacant_R)
                ),
                "vacant_rows": vacant.tolist(),
                "pending": self._without(f"{PENDING}/{name}", entity.pending, is_pending_target),
            }
        )

    def _reduced(self, table: pa.Table, name: str, vacant_R: IntArray) -> pa.Table:
        """Return a part of a vocabulary with lower counts, in which the rows ``vacant_R`` have only their number."""
        row_N = table.column("row").to_numpy()
        is_vacant = pa.array(np.isin(row_N, vacant_R))
        for index, column in enumerate(table.schema):
            field, values = column, table.column(index)
            if column.name in _COUNTS.values():
                values = pa.array(np.maximum(values.to_numpy() - self._lost[column.name][name][row_N], 0))
            if len(vacant_R) and column.name != "row":
                values = pc.if_else(is_vacant, pa.scalar(_NEVER_NULL.get(column.name), column.type), values)
                field = column.with_nullable(column.name not in _NEVER_NULL)
            table = table.set_column(index, field, values)
        return table

    def _without(
        self, folder: str, files: Sequence[DataFile], is_dropped: Callable[[pa.Table], BoolArray]
    ) -> list[DataFile]:
        """Write ``files`` to ``folder`` without the rows of each part of which ``is_dropped`` is true."""
        return self._write(folder, files, lambda table: table.filter(pa.array(~is_dropped(table))))

    def _write(self, folder: str, files: Sequence[DataFile], change: Callable[[pa.Table], pa.Table]) -> list[DataFile]:
        """Write ``files`` to ``folder``, each row group after a ``change``; no file if there are no rows."""
        self._progress.phase(f"forget in {folder}", sum(file.rows for file in files), "row")
        tables = (change(table) for file in files for table in self._read(file))
        if (first := next(tables, None)) is None:
            return []
        group_rows = max(rows for file in files for rows in file.row_groups)
        with PartWriter(self._staged, folder, first.schema.remove_metadata(), group_rows) as writer:
            for table in chain([first], tables):
                for batch in table.to_batches():
                    writer.write(batch)
                    self._progress.advance(batch.num_rows)
            return writer.close()

    def _read(self, file: DataFile) -> Iterator[pa.Table]:
        """Yield the row groups of ``file`` that have rows."""
        names = self._files.footer(file).schema.to_arrow_schema().names
        for index, rows in enumerate(file.row_groups):
            if rows:
                yield plain_strings(self._files.read(file, index, names))


def forget(options: ForgetOptions, progress: ProgressReporter) -> ForgetReport:
    """Delete IDs as ``options`` state, and return a report.

    Raises:
        InputError: an option or the dataset is wrong; nothing has been deleted.
        CrossfadeError: the disk is full, or another process has replaced the dataset meanwhile.
        OSError: writing failed; the dataset is complete, before or after the deletion.
        StorageUnavailableError: storage does not answer; likewise.
    """
    folder = Folder(options.data)
    entity = options.entity or read_manifest(folder).query
    with staged_deletion(folder, read_ids(options.ids, options.column, entity), entity, progress) as deletion:
        return deletion.publish()
