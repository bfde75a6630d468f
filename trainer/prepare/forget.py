"""Delete all that a prepared dataset holds of some IDs: their interactions, IDs, names, features and content.

    reports = forget(ForgetOptions.of(data="data/day3", ids="ids.txt"), progress)       # of day3, day1, and day2

Their rows become vacant but stay in place, so that all other rows keep their numbers; the same holds for feature values
that only those IDs had. Only files that hold or count something of the IDs are rewritten, next to the old ones; then
the manifest is replaced, and the old files are deleted. ``forget.json`` lists old and new files from before the first
of these steps until after the last. After a crash, the old or the new dataset is complete, and the next call deletes
the other files. A lock keeps other processes from changing the dataset meanwhile, and the new manifest replaces only
the one that was read.

Base datasets hold what the IDs did before. Every dataset is locked, and everything in it that may change is read,
before the first is changed. The base datasets come first: as long as a deletion is incomplete, the newest dataset has
the IDs, and the same call continues.

Shapes: N rows of a table, R forgotten rows (sorted), V rows of a vocabulary.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel

from crossfade.base.arrays import BoolArray, IntArray
from crossfade.base.errors import CrossfadeError, InputError, Option, command
from crossfade.base.io.disk_errors import write_failure
from crossfade.base.io.folder import Folder
from crossfade.base.io.s3 import ChangedError
from crossfade.base.io.storage_errors import translate_storage_errors
from crossfade.base.io.writer_lock import WriterLock, folder_writer
from crossfade.base.json_text import validate_json
from crossfade.trainer.data.column_names import WEIGHT
from crossfade.trainer.data.features import ROW, iter_content, iter_pairs
from crossfade.trainer.data.lineage import open_bases
from crossfade.trainer.data.manifest import (
    FILE_NAME,
    JOURNAL,
    Content,
    DataFile,
    DatasetManifest,
    Feature,
    FilePath,
    Split,
    data_fingerprint,
    read_manifest,
)
from crossfade.trainer.data.parquet import GROUP_ROWS_MAX, ParquetFiles, file_entry, write_options
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.data.vocabulary import Vocabulary, plain_strings
from crossfade.trainer.prepare.id_list import read_ids, typed_ids
from crossfade.trainer.prepare.options import ForgetOptions
from crossfade.trainer.prepare.summary import COUNTED

_TAG = re.compile(r"-[0-9a-f]{12}$")
_NO_ROWS = np.empty(0, np.int64)

Change = Callable[[pa.Table], pa.Table]
Column = TypeVar("Column", Feature, Content)
_NEVER_NULL = {"count": 0, "former_count": 0, "warm": False, "lineage_index": 0}
"""Columns of a vocabulary that have a value in every row, with their value in vacant rows."""


class ValueUses:
    """Counts the uses of each value that are dropped, and those that are left.

    Values that nothing else uses become vacant too, since they could identify who had them.
    """

    def __init__(self, values: int) -> None:
        self._dropped_V, self._left_V = (np.zeros(values, np.int64) for _ in range(2))

    def add(self, value_N: IntArray, is_dropped_N: BoolArray) -> None:
        """Count the uses ``value_N``; below 0 there is no value."""
        np.add.at(self._dropped_V, value_N[is_dropped_N & (value_N >= 0)], 1)
        np.add.at(self._left_V, value_N[~is_dropped_N & (value_N >= 0)], 1)

    def vacant(self) -> IntArray:
        """Return the values of which all uses are dropped, sorted."""
        return np.flatnonzero((self._dropped_V > 0) & (self._left_V == 0))


def drop_rows(table: pa.Table, column: str, rows_R: IntArray) -> pa.Table:
    """Return ``table`` without the rows whose ``column`` is in ``rows_R``."""
    return table.filter(pa.array(np.isin(table.column(column).to_numpy(), rows_R, invert=True)))


def select_ids(table: pa.Table, ids: pa.Array) -> pa.Table:
    """Return the rows of ``table`` whose ID is in ``ids``."""
    return table.filter(pc.is_in(table.column("id"), value_set=ids))


def drop_ids(table: pa.Table, ids: pa.Array) -> pa.Table:
    """Return the rows of ``table`` whose ID is not in ``ids``."""
    return table.filter(pc.invert(pc.is_in(table.column("id"), value_set=ids)))


def reduce_counts(table: pa.Table, lost: tuple[IntArray, IntArray], vacant_R: IntArray) -> pa.Table:
    """Return a part of a vocabulary with lower counts, and the rows ``vacant_R`` emptied.

    ``lost`` are the rows whose counts are lower, sorted, and by how much.
    """
    index, first = table.schema.get_field_index("count"), table.column("row")[0].as_py()
    lost_N, lost_counts_N = lost
    begin, end = np.searchsorted(lost_N, [first, first + table.num_rows])
    count_N = table.column(index).to_numpy().copy()
    count_N[lost_N[begin:end] - first] -= lost_counts_N[begin:end]
    count_N = np.maximum(count_N, 0)
    table = table.set_column(index, table.schema.field(index), pa.chunked_array([count_N]))
    return _empty_rows(table, vacant_R) if len(vacant_R) else table


def reduce_overlay(table: pa.Table, lost_V: IntArray, vacant_R: IntArray) -> pa.Table:
    """Return a part of an overlay with counts lower by ``lost_V``, without the rows ``vacant_R``."""
    count_N = np.maximum(table.column("count").to_numpy() - lost_V[table.column(ROW).to_numpy()], 0)
    index = table.schema.get_field_index("count")
    return drop_rows(table.set_column(index, table.schema.field(index), pa.chunked_array([count_N])), ROW, vacant_R)


def replace_files(
    owners: Mapping[str, Mapping[str, Column]], replace: Callable[[list[DataFile]], list[DataFile]]
) -> dict[str, dict[str, Column]]:
    """Return the features or the content of entities, by name, with the files that ``replace`` returns for theirs."""
    return {
        owner: {name: column.model_copy(update={"files": replace(column.files)}) for name, column in columns.items()}
        for owner, columns in owners.items()
    }


def _empty_rows(table: pa.Table, rows_R: IntArray) -> pa.Table:
    """Return a part of a vocabulary in which ``rows_R`` have lost everything but their row number."""
    is_vacant = pa.array(np.isin(table.column("row").to_numpy(), rows_R))
    for index, column in enumerate(table.schema):
        if column.name == "row":
            continue
        empty = pa.scalar(_NEVER_NULL.get(column.name), column.type)
        values = pc.if_else(is_vacant, empty, table.column(index))
        nullable = column.name not in _NEVER_NULL
        table = table.set_column(index, pa.field(column.name, column.type, nullable=nullable), values)
    return table


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
        interactions: The number of deleted interactions by split, and of those of the replay.
        files_rewritten: The number of files that were rewritten.
    """

    folder: Folder
    manifest: DatasetManifest
    entity: str
    requested: int
    found: int
    pending: int
    interactions: dict[str, int]
    files_rewritten: int


@contextmanager
def plan_deletion(
    folder: Folder, ids: pa.StringArray, entity: str, progress: ProgressReporter
) -> Iterator[PlannedDeletion]:
    """Lock the dataset in ``folder`` and find what ``forget`` deletes, which reads everything and changes nothing.

    Raises:
        InputError: there is no dataset or no such entity, a file is missing or corrupt, or another process writes it.
        StorageUnavailableError: storage does not answer.
    """
    read_manifest(folder)  # Without a dataset, nothing can be locked.
    with ExitStack() as stack:
        with translate_storage_errors(folder.uri):
            lock = stack.enter_context(folder_writer(folder))
            version = folder.version(FILE_NAME)
        with explaining_failures(folder):
            manifest = read_manifest(folder)
            _check_entity(folder, manifest, entity)
            delete_leftovers(folder, manifest)
            planned = PlannedDeletion(folder, manifest, entity, progress, lock, version).plan(ids)
        yield planned


def _check_entity(folder: Folder, manifest: DatasetManifest, entity: str) -> None:
    if entity not in manifest.entities:
        raise InputError(f"{folder.uri}: has no entity '{entity}'; it has {', '.join(manifest.entities)}")
    if owner := manifest.feature_owners().get(entity):
        raise InputError(
            f"{folder.uri}: '{entity}' is a feature of {owner}; expected ids of {manifest.query} or {manifest.item}, "
            f"whose features are forgotten with them"
        )
    if entity in manifest.context:
        raise InputError(
            f"{folder.uri}: '{entity}' is context of events; expected ids of {manifest.query} or {manifest.item}, "
            "whose events are forgotten with them"
        )


@dataclass
class _RewritePlan:
    """The files to rewrite: how each is changed, and the name of its replacement."""

    changes: list[tuple[DataFile, Change]] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)

    def add(self, file: DataFile, change: Change) -> None:
        stem = _TAG.sub("", file.path.removesuffix(".parquet"))
        self.changes.append((file, change))
        self.names[file.path] = f"{stem}-{uuid.uuid4().hex[:12]}.parquet"


@dataclass
class PlannedDeletion:
    """One deletion: plan which files change, write them, replace the manifest."""

    folder: Folder
    manifest: DatasetManifest
    entity: str
    progress: ProgressReporter
    lock: WriterLock
    version: str | None

    def __post_init__(self) -> None:
        manifest = self.manifest
        self._files = ParquetFiles(self.folder)
        self._other = manifest.item if self.entity == manifest.query else manifest.query
        self._plan = _RewritePlan()
        # By entity: how much the count of each row drops.
        self._lost: dict[str, IntArray] = {
            name: np.zeros(described.rows, np.int64) for name, described in manifest.entities.items()
        }
        self._context_uses = {name: ValueUses(manifest.entities[name].rows) for name in manifest.context}
        # By entity: the rows that become vacant.
        self._vacant: dict[str, IntArray] = {}

    def plan(self, ids: pa.StringArray) -> PlannedDeletion:
        """Find what to delete of ``ids``; return self."""
        rows_R = self._find_rows(ids)
        pending = self._plan_pending(ids)
        dropped: dict[str, int] = dict.fromkeys(self.manifest.interactions(), 0)
        if len(rows_R):
            self._vacant[self.entity] = rows_R
            for split, described in self.manifest.interactions().items():
                dropped[split] = self._plan_split(split, described, rows_R)
            self._vacant |= {name: uses.vacant() for name, uses in self._context_uses.items()}
            for owner, features in self.manifest.features.items():
                for name, feature in features.items():
                    self._plan_feature(owner, name, feature)
            self._plan_content(rows_R)
            self._plan_vocabularies()
        self._lost.clear()
        self._check_links()
        self._report = ForgetReport(
            folder=self.folder,
            manifest=self.manifest,
            entity=self.entity,
            requested=len(ids),
            found=len(rows_R),
            pending=pending,
            interactions=dropped,
            files_rewritten=len(self._plan.changes),
        )
        return self

    @property
    def found(self) -> int:
        """How many of the IDs have a row."""
        return self._report.found

    @property
    def dropped(self) -> Mapping[str, int]:
        """How many interactions of each split are of the IDs."""
        return self._report.interactions

    def apply(self) -> ForgetReport:
        """Delete it, and return the report. Raises as ``forget`` does."""
        with explaining_failures(self.folder):
            return replace(self._report, manifest=self._apply()) if self._plan.changes else self._report

    def _find_rows(self, ids: pa.StringArray) -> IntArray:
        """Return the rows of ``ids``, sorted."""
        entity = self.manifest.entities[self.entity]
        targets = typed_ids(ids, entity.id_type)
        self.progress.phase(f"find {self.entity}", entity.rows, "row")
        row_R: IntArray = Vocabulary(self.folder, self.manifest, self.entity).find(targets).column("row").to_numpy()
        self.progress.advance(entity.rows)
        return row_R

    def _plan_pending(self, ids: pa.StringArray) -> int:
        """Plan the changes of files of pending IDs; return how many of ``ids`` are pending."""
        entity = self.manifest.entities[self.entity]
        targets = typed_ids(ids, entity.id_type)
        pending = 0
        for file in entity.pending:
            in_file = sum(len(select_ids(table, targets)) for table in self._read(file, ["id"]))
            if in_file:
                self._plan.add(file, partial(drop_ids, ids=targets))
            pending += in_file
        return pending

    def _plan_split(self, split: str, described: Split, rows_R: IntArray) -> int:
        """Plan the changes of files with interactions of ``rows_R``; return the number of these interactions."""
        dropped = 0
        self.progress.phase(f"scan {split}", described.rows, "row")
        for file in described.files:
            in_file = 0
            for table in self._read(file, [self.entity, self._other, *self._context_uses, WEIGHT]):
                is_dropped_N = np.isin(table.column(self.entity).to_numpy(), rows_R)
                in_file += int(is_dropped_N.sum())
                if split == "train" and is_dropped_N.any():
                    is_counted_N = is_dropped_N & (table.column(WEIGHT).to_numpy() > 0)
                    for name in (self.entity, self._other, *self._context_uses):
                        row_N = table.column(name).to_numpy()
                        np.add.at(self._lost[name], row_N[is_counted_N & (row_N >= 0)], 1)
                for name, uses in self._context_uses.items():
                    uses.add(table.column(name).to_numpy(), is_dropped_N)
                self.progress.advance(table.num_rows)
            if in_file:
                self._plan.add(file, partial(drop_rows, column=self.entity, rows_R=rows_R))
            dropped += in_file
        return dropped

    def _plan_feature(self, owner: str, name: str, feature: Feature) -> None:
        """Plan the changes of files with pairs of vacant rows, and find the values that no other row has."""
        rows_R = self._vacant.get(owner, _NO_ROWS)
        uses = ValueUses(self.manifest.entities[name].rows)
        self.progress.phase(f"scan {name}", feature.pairs, "row")
        for file, row_N, value_N in iter_pairs(self.folder, self.manifest, owner, name):
            is_dropped_N = np.isin(row_N, rows_R)
            np.add.at(self._lost[name], value_N, self._lost[owner][row_N])
            uses.add(value_N, is_dropped_N)
            if is_dropped_N.any() and file.path not in self._plan.names:
                self._plan.add(file, partial(drop_rows, column=ROW, rows_R=rows_R))
            self.progress.advance(len(row_N))
        self._vacant[name] = uses.vacant()

    def _plan_content(self, rows_R: IntArray) -> None:
        for name in self.manifest.content_of(self.entity):
            for file, row_N, _ in iter_content(self.folder, self.manifest, self.entity, name):
                if np.isin(row_N, rows_R).any() and file.path not in self._plan.names:
                    self._plan.add(file, partial(drop_rows, column=ROW, rows_R=rows_R))

    def _plan_vocabularies(self) -> None:
        for name, entity in self.manifest.entities.items():
            vacant_R, lost_V = self._vacant.get(name, _NO_ROWS), self._lost[name]
            changed_N = np.union1d(vacant_R, np.flatnonzero(lost_V))
            lost = np.flatnonzero(lost_V), lost_V[lost_V > 0]
            carried_rows, first = sum(file.rows for file in entity.carried), 0
            for file in entity.files:
                # The counts of carried files are those of a base dataset; the overlay has those of this one.
                is_carried = first < carried_rows
                of_file_N = vacant_R if is_carried else changed_N
                if np.searchsorted(of_file_N, first) < np.searchsorted(of_file_N, first + file.rows):
                    lost_here = (_NO_ROWS, _NO_ROWS) if is_carried else lost
                    self._plan.add(file, partial(reduce_counts, lost=lost_here, vacant_R=vacant_R))
                first += file.rows
            for file in entity.overlay.files if entity.overlay else []:
                if any(np.isin(table.column(ROW).to_numpy(), changed_N).any() for table in self._read(file, [ROW])):
                    self._plan.add(file, partial(reduce_overlay, lost_V=lost_V, vacant_R=vacant_R))

    def _check_links(self) -> None:
        """Reject files that links lead to: deleting the link would leave the data at its target."""
        if (root := self.folder.path) is None:
            return
        for name in self._plan.names:
            if (found := (root / name).resolve()) != root.resolve() / name:
                raise InputError(
                    f"{root / name}: a link leads to {found}, where nothing is deleted; run the command on the folder "
                    "that holds the files, or move them into this one"
                )

    def _apply(self) -> DatasetManifest:
        """Write the new files, then the manifest, then delete the old files."""
        write_journal(self.folder, [*self._plan.names, *self._plan.names.values()])
        try:
            self.progress.phase("rewrite", len(self._plan.changes), "file")
            replacements = {file.path: self._rewrite(file, change) for file, change in self._plan.changes}
            manifest = self._new_manifest(replacements)
            self.lock.check()
            manifest.write_over(self.folder, self.version)
        except BaseException as error:
            if self._is_overtaken(error):
                self._give_up(error)
            with suppress(OSError, InputError):  # the next call deletes them
                delete_leftovers(self.folder, read_manifest(self.folder))
            raise
        delete_leftovers(self.folder, manifest)
        return manifest

    def _is_overtaken(self, error: BaseException) -> bool:
        """Return whether another process has written the dataset, which may be the cause of ``error``."""
        try:
            self.lock.check()
        except ChangedError:
            return True
        except OSError:
            return False
        return isinstance(error, ChangedError)

    def _give_up(self, error: BaseException) -> None:
        """Delete the new files and no others: the journal may be that of the other process."""
        with suppress(OSError):
            for name in self._plan.names.values():
                self.folder.remove(name)
        if isinstance(error, Exception):
            raise CrossfadeError(
                f"{self.folder.uri}: another process has written it since this command began, so nothing was deleted; "
                f"run the command again ({error})"
            ) from error
        raise error

    def _rewrite(self, file: DataFile, change: Change) -> DataFile | None:
        """Write the replacement of ``file``; return None if nothing is left of it."""
        target = self._plan.names[file.path]
        columns = self._files.footer(file).schema.to_arrow_schema().names
        with ExitStack() as opened:
            writer: pq.ParquetWriter | None = None
            for table in self._read(file, columns):
                changed = change(table).replace_schema_metadata()
                if changed.num_rows == 0:
                    continue
                if writer is None:
                    out = opened.enter_context(self.folder.open_output(target))
                    options = write_options(changed.schema)
                    writer = opened.enter_context(pq.ParquetWriter(out, changed.schema, **options))
                writer.write_table(changed, row_group_size=GROUP_ROWS_MAX)
        self.progress.advance(1)
        return None if writer is None else file_entry(self.folder, target)

    def _new_manifest(self, replacements: dict[str, DataFile | None]) -> DatasetManifest:
        def replaced(files: list[DataFile]) -> list[DataFile]:
            return [left for file in files if (left := replacements.get(file.path, file))]

        entities, old_replay = {}, self.manifest.replay
        for name, entity in self.manifest.entities.items():
            vacant = np.union1d(np.array(entity.vacant_rows, np.int64), self._vacant.get(name, []))
            entities[name] = entity.model_copy(
                update={
                    "files": replaced(entity.files),
                    "vacant_rows": vacant.astype(int).tolist(),
                    "pending": replaced(entity.pending),
                    "overlay": entity.overlay
                    and entity.overlay.model_copy(update={"files": replaced(entity.overlay.files)}),
                }
            )
        changes = {
            "entities": entities,
            "splits": {split: Split(files=replaced(old.files)) for split, old in self.manifest.splits.items()},
            "replay": Split(files=left) if old_replay and (left := replaced(old_replay.files)) else None,
            "features": replace_files(self.manifest.features, replaced),
            "content": replace_files(self.manifest.content, replaced),
            # Checkpoints trained on the old data identify them by the old manifest.
            "lineage": [*self.manifest.lineage, data_fingerprint(self.folder)],
            "compacted": None,
            # Statistics of all interactions are no longer true.
            "source": {name: fact for name, fact in self.manifest.source.items() if not name.endswith(COUNTED)},
        }
        return self.manifest.model_copy(update=changes)

    def _read(self, file: DataFile, columns: list[str]) -> Iterator[pa.Table]:
        """Yield the row groups of ``file`` that have rows."""
        for index, rows in enumerate(file.row_groups):
            if rows:
                yield plain_strings(self._files.read(file, index, columns))


class _Journal(BaseModel):
    """The files of the dataset that may be left over: old and new ones."""

    files: list[FilePath]


def write_journal(folder: Folder, files: list[str]) -> None:
    """List ``files`` as possible leftovers."""
    folder.write(JOURNAL, _Journal(files=files).model_dump_json(indent=1).encode())


def delete_leftovers(folder: Folder, manifest: DatasetManifest) -> None:
    """Delete the files that the journal, if there is one, lists and ``manifest`` does not.

    Raises:
        InputError: the journal was not written by ``write_journal``.
    """
    try:
        listed = validate_json(_Journal, folder.read(JOURNAL)).files
    except FileNotFoundError:
        return
    except ValueError as error:
        raise InputError(
            f"{folder.uri}/{JOURNAL}: was not written by {command('forget')}: {error}; "
            f"delete it, and list what is left over with {command('validate', folder.uri)}"
        ) from error
    used = {FILE_NAME, *(file.path for file in manifest.files())}
    for path in listed:
        if path not in used:
            with translate_storage_errors(f"{folder.uri}/{path}", action="deleted"):
                folder.remove(path)
    folder.remove(JOURNAL)


@contextmanager
def explaining_failures(folder: Folder) -> Iterator[None]:
    """Add to an error of the operating system which dataset it is about, which disk is full, and what to do."""
    try:
        yield
    except OSError as error:
        reason = str(error) if folder.path is None else write_failure(error, folder.path)
        raise CrossfadeError(
            f"{folder.uri}: could not be rewritten: {reason}; the dataset is complete, before or after the deletion: "
            "run the command again"
        ) from error


def forget(options: ForgetOptions, progress: ProgressReporter) -> list[ForgetReport]:
    """Delete IDs as ``options`` state; see ``forget_in_lineage``."""
    folder = Folder(options.data)
    entity = options.entity or read_manifest(folder).query
    ids = read_ids(options.ids, options.column, entity)
    return forget_in_lineage(folder, ids, entity, progress, this_dataset_only=options.this_dataset_only)


def forget_in_lineage(
    folder: Folder, ids: pa.StringArray, entity: str, progress: ProgressReporter, *, this_dataset_only: bool = False
) -> list[ForgetReport]:
    """Delete ``ids`` of ``entity`` from the dataset in ``folder`` and from its base datasets; return a report of each.

    The report of ``folder`` comes first. ``this_dataset_only`` leaves the base datasets as they are.

    Raises:
        InputError: a base dataset cannot be reached, or as ``plan_deletion``; nothing has been deleted.
        CrossfadeError: another process has replaced a dataset meanwhile.
        StorageUnavailableError: storage does not answer; each dataset is complete, before or after its deletion.
    """
    bases = (
        []
        if this_dataset_only
        else open_bases(folder, read_manifest(folder), ("forget without it: ", Option("this_dataset_only")))
    )
    with ExitStack() as stack:
        planned = [
            stack.enter_context(plan_deletion(each, ids, entity, progress))
            for each in (*(base.folder for base in bases), folder)
        ]
        *of_bases, report = [deletion.apply() for deletion in planned]
    return [report, *of_bases]
