"""Deleting what a prepared data set has of some customers: their interactions, ids, names and features.

    forgotten = forget(Folder("s3://music/plays"), read_ids("forget.txt", None, "customer"), "customer", progress)

Their rows stay where they are, with nothing in them, so that all other rows keep theirs; so do the rows of values that
they alone had of a feature. Only files that hold something of theirs, or count it, are written anew, beside the old
ones; then the manifest is switched, and the old files are deleted. ``forget.json`` lists both from before the first of
these steps until after the last. So a crash leaves the old data set or the new one, whole, and whoever forgets next
deletes what is of neither.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ValidationError

from kvstore.arrays import IntArray
from kvstore.errors import InputError
from kvstore.io.folder import Folder
from kvstore.validation_errors import format_validation_error
from trainer.data.features import ROW, iter_pairs
from trainer.data.manifest import (
    FILE_NAME,
    JOURNAL,
    WEIGHT,
    DataFile,
    DatasetManifest,
    Feature,
    FilePath,
    Split,
    data_fingerprint,
    read_manifest,
)
from trainer.data.parquet import ParquetFiles, file_entry, write_options
from trainer.data.reporter import ProgressReporter
from trainer.data.vocabulary import plain_strings
from trainer.prepare.id_list import typed_ids
from trainer.prepare.part_writer import GROUP_ROWS_MAX
from trainer.prepare.summary import COUNTED

_NEVER_NULL = {"count": 0, "met": False}
"""Columns of a vocabulary that have a value in every row, and the one that they have of the forgotten."""
_TAG = re.compile(r"-[0-9a-f]{12}$")

Change = Callable[[pa.Table], pa.Table]


class _Journal(BaseModel):
    """Files of the data set that may be left over, old ones and new ones."""

    files: list[FilePath]


@dataclass(frozen=True)
class ForgetReport:
    """What was deleted: ``found`` of ``asked`` ids that have a row, and so many ``interactions`` of each split.

    ``waiting`` is how many of them waited for a row.
    ``rewritten`` files were written anew. ``finished`` says that files of an earlier call that broke off were deleted.
    """

    manifest: DatasetManifest
    entity: str
    requested: int
    found: int
    pending: int
    interactions: dict[str, int]
    files_rewritten: int
    leftovers_deleted: bool


def forget(folder: Folder, ids: pa.StringArray, entity: str, progress: ProgressReporter) -> ForgetReport:
    """Delete from the data set in ``folder`` what it has of ``ids``, which are ids of the ``entity`` of one side.

    Ids that it does not have are counted and passed over.

    Raises:
        InputError: there is no data set, it has no such entity, or a file of it is missing or damaged.
    """
    manifest = read_manifest(folder)
    if entity not in manifest.entities:
        raise InputError(f"{folder.uri}: has no entity '{entity}'; it has {', '.join(manifest.entities)}")
    if owner := manifest.feature_owners().get(entity):
        raise InputError(
            f"{folder.uri}: '{entity}' is a feature of {owner}; expected ids of {manifest.query} or {manifest.item}, "
            f"whose features are forgotten with them"
        )
    leftovers_deleted = _delete_leftovers(folder, manifest)
    return _Forgetting(folder, manifest, entity, progress).run(ids, leftovers_deleted)


@dataclass
class _RewritePlan:
    """What is to be written anew: which files, under which names and how changed."""

    changes: list[tuple[DataFile, Change]] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)

    def add(self, file: DataFile, change: Change) -> None:
        """Change ``file``."""
        stem = _TAG.sub("", file.path.removesuffix(".parquet"))
        self.changes.append((file, change))
        self.names[file.path] = f"{stem}-{uuid.uuid4().hex[:12]}.parquet"


class _Forgetting:
    """The steps, in order."""

    def __init__(self, folder: Folder, manifest: DatasetManifest, entity: str, progress: ProgressReporter) -> None:
        self._folder = folder
        self._files = ParquetFiles(folder)
        self._manifest = manifest
        self._entity = entity
        self._other = manifest.item if entity == manifest.query else manifest.query
        self._progress = progress
        self._plan = _RewritePlan()
        # How often each row of both entities was liked by them in train, and so the values of features.
        self._lost: dict[str, IntArray] = {
            name: np.zeros(described.rows, np.int64) for name, described in manifest.entities.items()
        }
        # The rows that are forgotten, of their entity and of its features.
        self._gone: dict[str, IntArray] = {}

    def run(self, ids: pa.StringArray, leftovers_deleted: bool) -> ForgetReport:
        """All of them; ``finished`` is to be told."""
        rows_R = self._find_rows(ids)
        pending = self._find_pending(ids)
        dropped: dict[str, int] = dict.fromkeys(self._manifest.splits, 0)
        manifest = self._manifest
        if len(rows_R):
            self._gone[self._entity] = rows_R
            for split, described in self._manifest.splits.items():
                dropped[split] = self._find_interactions(split, described, rows_R)
            for owner, features in self._manifest.features.items():
                for name, feature in features.items():
                    self._find_values(owner, name, feature)
            self._plan_vocabularies()
        if self._plan.changes:
            manifest = self._switch()
        return ForgetReport(
            manifest, self._entity, len(ids), len(rows_R), pending, dropped, len(self._plan.changes), leftovers_deleted
        )

    def _find_rows(self, ids: pa.StringArray) -> IntArray:
        """The rows of ``ids``, in order."""
        entity = self._manifest.entities[self._entity]
        wanted = typed_ids(ids, entity.id_type)
        found = [np.empty(0, np.int64)]
        self._progress.phase(f"find {self._entity}", entity.rows, "row")
        for file in entity.files:
            for table in self._read(file, ["row", "id"]):
                found.append(_of_ids(table, wanted).column("row").to_numpy())
                self._progress.advance(table.num_rows)
        return np.sort(np.concatenate(found))

    def _find_pending(self, ids: pa.StringArray) -> int:
        """How many of ``ids`` wait for a row; the files that have some are to be changed."""
        entity = self._manifest.entities[self._entity]
        wanted = typed_ids(ids, entity.id_type)
        pending = 0
        for file in entity.pending:
            in_file = sum(len(_of_ids(table, wanted)) for table in self._read(file, ["id"]))
            if in_file:
                self._plan.add(file, partial(_without_ids, ids=wanted))
            pending += in_file
        return pending

    def _find_interactions(self, split: str, described: Split, rows_R: IntArray) -> int:
        """How many interactions of a split are theirs; the files that hold some are to be changed."""
        dropped = 0
        self._progress.phase(f"look through {split}", described.rows, "row")
        for file in described.files:
            in_file = 0
            for table in self._read(file, [self._entity, self._other, WEIGHT]):
                theirs_N = _among(table.column(self._entity).to_numpy(), rows_R)
                in_file += int(theirs_N.sum())
                if split == "train" and theirs_N.any():
                    liked_N = theirs_N & (table.column(WEIGHT).to_numpy() > 0)
                    for name in (self._entity, self._other):
                        np.add.at(self._lost[name], table.column(name).to_numpy()[liked_N], 1)
                self._progress.advance(table.num_rows)
            if in_file:
                self._plan.add(file, partial(_drop_rows, column=self._entity, rows_R=rows_R))
            dropped += in_file
        return dropped

    def _find_values(self, owner: str, name: str, feature: Feature) -> None:
        """What a feature loses: pairs of theirs, values that nobody else has, and counts of the others."""
        rows_R = self._gone.get(owner, np.empty(0, np.int64))
        dropped_V, left_V = (np.zeros(self._manifest.entities[name].rows, np.int64) for _ in range(2))
        self._progress.phase(f"look through {name}", feature.pairs, "row")
        for file, row_N, value_N in iter_pairs(self._folder, self._manifest, owner, name):
            theirs_N = _among(row_N, rows_R) if len(rows_R) else np.zeros(len(row_N), np.bool_)
            np.add.at(self._lost[name], value_N, self._lost[owner][row_N])
            np.add.at(dropped_V, value_N[theirs_N], 1)
            np.add.at(left_V, value_N[~theirs_N], 1)
            if theirs_N.any() and file.path not in self._plan.names:
                self._plan.add(file, partial(_drop_rows, column=ROW, rows_R=rows_R))
            self._progress.advance(len(row_N))
        # Who had a value alone is known by it.
        self._gone[name] = np.flatnonzero((dropped_V > 0) & (left_V == 0))

    def _plan_vocabularies(self) -> None:
        for name, entity in self._manifest.entities.items():
            gone_R, lost_N = self._gone.get(name, np.empty(0, np.int64)), self._lost[name]
            affected_N = np.union1d(gone_R, np.flatnonzero(lost_N))
            first = 0
            for file in entity.files:
                if np.searchsorted(affected_N, first) < np.searchsorted(affected_N, first + file.rows):
                    self._plan.add(file, partial(_reduce_counts, lost_N=lost_N, gone_R=gone_R))
                first += file.rows

    def _switch(self) -> DatasetManifest:
        """Write the new files, then the manifest, then delete the old files."""
        journal = _Journal(files=[*self._plan.names, *self._plan.names.values()])
        self._folder.write(JOURNAL, journal.model_dump_json(indent=1).encode())
        try:
            self._progress.phase("rewrite", len(self._plan.changes), "file")
            written = {file.path: self._rewrite(file, change) for file, change in self._plan.changes}
            manifest = self._new_manifest(written)
            manifest.write(self._folder)
        except BaseException:
            with suppress(OSError, InputError):  # whoever forgets next tries again
                _delete_leftovers(self._folder, read_manifest(self._folder))
            raise
        _delete_leftovers(self._folder, manifest)
        return manifest

    def _rewrite(self, file: DataFile, change: Change) -> DataFile | None:
        """Write one file anew; None if nothing is left of it."""
        target = self._plan.names[file.path]
        columns = self._files.footer(file).schema.to_arrow_schema().names
        with ExitStack() as opened:
            writer: pq.ParquetWriter | None = None
            for table in self._read(file, columns):
                changed = change(table).replace_schema_metadata()
                if changed.num_rows == 0:
                    continue
                if writer is None:
                    out = opened.enter_context(self._folder.open_output(target))
                    options = write_options(changed.schema)
                    writer = opened.enter_context(pq.ParquetWriter(out, changed.schema, **options))
                writer.write_table(changed, row_group_size=GROUP_ROWS_MAX)
        self._progress.advance(1)
        return None if writer is None else file_entry(self._folder, target)

    def _new_manifest(self, written: dict[str, DataFile | None]) -> DatasetManifest:
        def kept(files: list[DataFile]) -> list[DataFile]:
            return [left for file in files if (left := written.get(file.path, file))]

        entities = {}
        for name, entity in self._manifest.entities.items():
            forgotten = np.union1d(np.array(entity.vacant_rows, np.int64), self._gone.get(name, []))
            entities[name] = entity.model_copy(
                update={
                    "files": kept(entity.files),
                    "vacant_rows": forgotten.astype(int).tolist(),
                    "pending": kept(entity.pending),
                }
            )
        changes = {
            "entities": entities,
            "splits": {split: Split(files=kept(described.files)) for split, described in self._manifest.splits.items()},
            "features": {
                owner: {name: Feature(files=kept(feature.files)) for name, feature in features.items()}
                for owner, features in self._manifest.features.items()
            },
            # Whoever was trained on the data as they were knows them by that manifest.
            "lineage": [*self._manifest.lineage, data_fingerprint(self._folder)],
            # What was counted of all interactions is no longer so.
            "source": {name: fact for name, fact in self._manifest.source.items() if not name.endswith(COUNTED)},
        }
        return self._manifest.model_copy(update=changes)

    def _read(self, file: DataFile, columns: list[str]) -> Iterator[pa.Table]:
        """The row groups of a file that have rows."""
        for index, rows in enumerate(file.row_groups):
            if rows:
                yield plain_strings(self._files.read(file, index, columns))


def _among(column_N: IntArray, rows_R: IntArray) -> IntArray:
    """Which of a column are one of ``rows_R``, which are sorted."""
    place_N = np.minimum(np.searchsorted(rows_R, column_N), len(rows_R) - 1)
    among_N: IntArray = rows_R[place_N] == column_N
    return among_N


def _drop_rows(table: pa.Table, column: str, rows_R: IntArray) -> pa.Table:
    """A piece of a file without what is of one of ``rows_R``."""
    return table.filter(pa.array(~_among(table.column(column).to_numpy(), rows_R)))


def _of_ids(table: pa.Table, ids: pa.Array) -> pa.Table:
    """The rows of a piece of a file whose id is one of ``ids``."""
    return table.filter(pc.is_in(table.column("id"), value_set=ids))


def _without_ids(table: pa.Table, ids: pa.Array) -> pa.Table:
    """The others."""
    return table.filter(pc.invert(pc.is_in(table.column("id"), value_set=ids)))


def _reduce_counts(table: pa.Table, lost_N: IntArray, gone_R: IntArray) -> pa.Table:
    """A piece of a vocabulary whose counts are ``lost_N`` less, and whose rows ``gone_R`` have nothing else left."""
    counted = _counted_down(table, lost_N)
    return _emptied(counted, gone_R) if len(gone_R) else counted


def _emptied(table: pa.Table, rows_R: IntArray) -> pa.Table:
    """A piece of a vocabulary whose rows ``rows_R`` have lost everything but their place."""
    gone = pa.array(_among(table.column("row").to_numpy(), rows_R))
    for index, described in enumerate(table.schema):
        if described.name == "row":
            continue
        nullable = described.name not in _NEVER_NULL
        empty = pa.scalar(_NEVER_NULL.get(described.name), described.type)
        kept = pc.if_else(gone, empty, table.column(index))
        table = table.set_column(index, pa.field(described.name, described.type, nullable=nullable), kept)
    return table


def _counted_down(table: pa.Table, lost_N: IntArray) -> pa.Table:
    """A piece of a vocabulary whose counts are ``lost_N`` less."""
    index = table.schema.get_field_index("count")
    left_N = np.maximum(table.column(index).to_numpy() - lost_N[table.column("row").to_numpy()], 0)
    return table.set_column(index, table.schema.field(index), pa.chunked_array([left_N]))


def _delete_leftovers(folder: Folder, manifest: DatasetManifest) -> bool:
    """Delete the files that a call, this one or one that broke off, has listed and that are not of ``manifest``."""
    try:
        listed = _Journal.model_validate_json(folder.read(JOURNAL)).files
    except FileNotFoundError:
        return False
    except ValidationError as error:
        raise InputError(
            f"{folder.uri}/{JOURNAL}: is not what 'crossfade forget' writes: {format_validation_error(error)}; "
            f"delete it, and see with 'crossfade validate {folder.uri}' what else is left over"
        ) from error
    used = {FILE_NAME, *(file.path for file in manifest.files())}
    for path in listed:
        if path not in used:
            folder.remove(path)
    folder.remove(JOURNAL)
    return True
