"""Delete all that a prepared dataset holds of some IDs: their interactions, IDs, names, features and content.

    report = forget(ForgetOptions.of(data="data/day3", ids="ids.txt"), progress)

Their rows become vacant but stay in place, so that all other rows keep their numbers; the same holds for feature values
that only those IDs had. The dataset is written anew and replaces the one before
(``staging.py``), so it is complete at any moment, with the IDs or without them. Files that hold and count nothing of
the IDs are taken over unread: as hard links, or as copies by the server on S3.

Datasets that extend this one have files of their own, and are rewritten by themselves.

Shapes: N rows of a table, R forgotten rows (sorted), V rows of a vocabulary.
"""

from __future__ import annotations

import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crossfade.base.arrays import BoolArray, IntArray
from crossfade.base.errors import InputError
from crossfade.base.io.disk_errors import full_disk_errors
from crossfade.base.io.folder import Folder
from crossfade.base.io.writer_lock import LOCK_NAME
from crossfade.trainer.data.column_names import WEIGHT
from crossfade.trainer.data.features import iter_content, iter_pairs
from crossfade.trainer.data.manifest import (
    BASELINES_FILE,
    EARLIER,
    FILE_NAME,
    Content,
    DataFile,
    DatasetManifest,
    Entity,
    Feature,
    Split,
    data_fingerprint,
    read_manifest,
)
from crossfade.trainer.data.parquet import GROUP_ROWS_MAX, ParquetFiles, file_entry, write_options
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.data.vocabulary import Vocabulary, plain_strings
from crossfade.trainer.prepare.id_list import read_ids, typed_ids
from crossfade.trainer.prepare.options import ForgetOptions
from crossfade.trainer.prepare.staging import Staged, staged_output
from crossfade.trainer.prepare.summary import COUNTED

_TAG = re.compile(r"-[0-9a-f]{12}$")
_COUNTS = {"train": "count", f"{EARLIER}/train": "earlier_count"}
"""The columns of a vocabulary that count interactions, by the folder of their files."""
_NEVER_NULL = {"count": 0, "earlier_count": 0, "lineage_index": 0}
"""Columns of a vocabulary that have a value in every row, with their value in vacant rows."""
_NO_ROWS = np.empty(0, np.int64)


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
        files_rewritten: The number of files that were rewritten or deleted.
    """

    folder: Folder
    manifest: DatasetManifest
    entity: str
    requested: int
    found: int
    pending: int
    interactions: Mapping[str, int]
    files_rewritten: int


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
    _check_entity(folder, read_manifest(folder), entity)
    # A link to the folder stays, and leads to the new one.
    location = folder.path.resolve() if folder.path is not None and folder.path.is_symlink() else folder.uri
    disk = folder.path or Path(tempfile.gettempdir())
    with full_disk_errors(disk, "move the dataset to a larger one"), staged_output(location, overwrite=True) as staged:
        deletion = StagedDeletion(staged, entity, progress)
        deletion.write(ids)
        yield deletion


def _check_entity(folder: Folder, manifest: DatasetManifest, entity: str) -> None:
    if entity not in manifest.entities:
        raise InputError(f"{folder.uri}: has no entity '{entity}'; it has {', '.join(manifest.entities)}")
    if entity not in (sides := (manifest.query, manifest.item)):
        owner = manifest.feature_owners().get(entity)
        kind = "context of events" if owner is None else f"a feature of {owner}"
        raise InputError(
            f"{folder.uri}: '{entity}' is {kind}; expected ids of {' or '.join(sides)}, with which it is forgotten"
        )


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
        self._files, self._rewritten = ParquetFiles(staged.out), 0
        sizes = {name: described.rows for name, described in self.manifest.entities.items()}
        # By column of vocabularies and entity: how much the count of each row drops.
        self._lost = {
            column: {name: np.zeros(rows, np.int64) for name, rows in sizes.items()} for column in _COUNTS.values()
        }
        self._context_uses = {name: ValueUses(sizes[name]) for name in self.manifest.context}
        # By path in the old dataset.
        self._places: dict[str, str] = {}
        # By entity: the rows that become vacant.
        self._vacant: dict[str, IntArray] = {}

    def write(self, ids: pa.StringArray) -> None:
        """Write the files of the dataset without ``ids``."""
        old = self.manifest
        _check_links(self._staged.out, old)
        targets = typed_ids(ids, old.entities[self._entity].id_type)
        rows_R = self._vacant[self._entity] = self._find_rows(targets)
        waiting = self._without_pending(targets)
        interactions = {name: self._without_rows_of(name, split) for name, split in old.interactions().items()}
        self._vacant |= {name: uses.vacant() for name, uses in self._context_uses.items()}
        features = {
            owner: {name: self._without_pairs(owner, name) for name in of} for owner, of in old.features.items()
        }
        content = {
            owner: {name: self._without_content(owner, name) for name in of} for owner, of in old.content.items()
        }
        entities = {name: self._without_ids(name, entity) for name, entity in old.entities.items()}
        entities[self._entity] = entities[self._entity].model_copy(update={"pending": waiting})
        left = {name: Split(files=files) for name, files in interactions.items()}
        replay = left.get("replay")
        changes = {
            "entities": entities,
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
        self.report = ForgetReport(
            folder=self._staged.out,
            manifest=old.model_copy(update=changes) if self._rewritten else old,
            entity=self._entity,
            requested=len(ids),
            found=len(rows_R),
            pending=_rows(old.entities[self._entity].pending) - _rows(waiting),
            interactions={name: split.rows - left[name].rows for name, split in old.interactions().items()},
            files_rewritten=self._rewritten,
        )

    def publish(self) -> ForgetReport:
        """Replace the dataset, if it holds anything of the IDs, and return the report.

        Raises:
            CrossfadeError: another process has written it meanwhile, or replacing it failed.
        """
        if self._rewritten:
            self._staged.publish(self.report.manifest)
        elif self._staged.out.on_s3:
            self._delete_leftovers()
        return self.report

    def _delete_leftovers(self) -> None:
        """Delete what a command that was killed has left: objects of the dataset that this one has replaced."""
        out = self._staged.out
        if self._staged.lock is not None:
            self._staged.lock.check()
        listed = {FILE_NAME, BASELINES_FILE, LOCK_NAME, *(file.path for file in read_manifest(out).files())}
        for name in out.sizes().keys() - listed:
            out.remove(name)

    def _find_rows(self, targets: pa.Array) -> IntArray:
        """Return the rows of the IDs ``targets``, sorted."""
        self._progress.phase(f"find {self._entity}", self.manifest.entities[self._entity].rows, "row")
        found = [_NO_ROWS]
        for table in Vocabulary(self._staged.out, self.manifest, self._entity).iter_tables(["row", "id"]):
            is_target = pc.is_in(table.column("id"), value_set=targets)
            found.append(table.column("row").filter(is_target).to_numpy())
            self._progress.advance(table.num_rows)
        return np.concatenate(found)

    def _without_pending(self, targets: pa.Array) -> list[DataFile]:
        dropped: dict[str, list[BoolArray]] = defaultdict(list)
        files = self.manifest.entities[self._entity].pending
        for file in files:
            for table in self._read(file, ["id"]):
                dropped[file.path].append(pc.is_in(table.column("id"), value_set=targets).to_numpy())
        return self._without(files, dropped)

    def _without_rows_of(self, name: str, split: Split) -> list[DataFile]:
        """Write interactions without the IDs, and count what vocabularies lose."""
        other = self.manifest.item if self._entity == self.manifest.query else self.manifest.query
        lost, rows_R, left = self._lost.get(_COUNTS.get(name, ""), {}), self._vacant[self._entity], []
        self._progress.phase(f"forget in {name}", split.rows, "row")
        for file in split.files:
            dropped = []
            for table in self._read(file, [self._entity, other, *self._context_uses, WEIGHT]):
                is_dropped_N = np.isin(table.column(self._entity).to_numpy(), rows_R)
                is_counted_N = is_dropped_N & (table.column(WEIGHT).to_numpy() > 0)
                for entity in {self._entity, other, *self._context_uses} & lost.keys():
                    row_N = table.column(entity).to_numpy()
                    np.add.at(lost[entity], row_N[is_counted_N & (row_N >= 0)], 1)
                for entity, uses in self._context_uses.items():
                    uses.add(table.column(entity).to_numpy(), is_dropped_N)
                dropped.append(is_dropped_N)
                self._progress.advance(table.num_rows)
            left += self._without([file], {file.path: dropped})
        return left

    def _without_pairs(self, owner: str, name: str) -> Feature:
        """Write a feature without the pairs of vacant rows, and find the values that no other row has."""
        feature, uses = self.manifest.features[owner][name], ValueUses(self.manifest.entities[name].rows)
        dropped: dict[str, list[BoolArray]] = defaultdict(list)
        self._progress.phase(f"forget in {name}", feature.pairs, "row")
        for file, row_N, value_N in iter_pairs(self._staged.out, self.manifest, owner, name):
            is_dropped_N = np.isin(row_N, self._vacant.get(owner, _NO_ROWS))
            for lost in self._lost.values():
                np.add.at(lost[name], value_N, lost[owner][row_N])
            uses.add(value_N, is_dropped_N)
            dropped[file.path].append(is_dropped_N)
            self._progress.advance(len(row_N))
        self._vacant[name] = uses.vacant()
        return feature.model_copy(update={"files": self._without(feature.files, dropped)})

    def _without_content(self, owner: str, name: str) -> Content:
        column, dropped = self.manifest.content[owner][name], defaultdict[str, list[BoolArray]](list)
        for file, row_N, _ in iter_content(self._staged.out, self.manifest, owner, name):
            dropped[file.path].append(np.isin(row_N, self._vacant.get(owner, _NO_ROWS)))
        return column.model_copy(update={"files": self._without(column.files, dropped)})

    def _without_ids(self, name: str, entity: Entity) -> Entity:
        """Write a vocabulary with lower counts, and vacant rows emptied."""
        vacant_R = self._vacant.get(name, _NO_ROWS)
        lost = [of[name] for of in self._lost.values()]
        changed_R = np.union1d(vacant_R, np.flatnonzero(np.logical_or.reduce(lost)))
        files, first = [], 0
        for file in entity.files:
            if np.searchsorted(changed_R, first) < np.searchsorted(changed_R, first + file.rows):
                change = partial(self._reduced, name=name, vacant_R=vacant_R)
                files += self._rewrite(file, map(change, self._read(file, self._columns(file))))
            else:
                files.append(self._take_over(file))
            first += file.rows
        vacant = np.union1d(np.array(entity.vacant_rows, np.int64), vacant_R)
        pending = [self._take_over(file) for file in entity.pending] if name != self._entity else []
        return entity.model_copy(update={"files": files, "vacant_rows": vacant.tolist(), "pending": pending})

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

    def _without(self, files: Sequence[DataFile], dropped: Mapping[str, Sequence[BoolArray]]) -> list[DataFile]:
        """Write ``files`` without the rows that are ``dropped``: by path, for each row group that has rows."""
        left = []
        for file in files:
            masks = dropped.get(file.path, ())
            if any(mask_N.any() for mask_N in masks):
                tables = self._read(file, self._columns(file))
                kept = (table.filter(pa.array(~mask_N)) for table, mask_N in zip(tables, masks, strict=True))
                left += self._rewrite(file, kept)
            else:
                left.append(self._take_over(file))
        return left

    def _rewrite(self, file: DataFile, tables: Iterable[pa.Table]) -> list[DataFile]:
        """Write the rows of ``tables`` in place of ``file``; return no file if there are none."""
        target, self._rewritten = self._place(file), self._rewritten + 1
        with ExitStack() as opened:
            writer: pq.ParquetWriter | None = None
            for table in (table.replace_schema_metadata() for table in tables if table.num_rows):
                if writer is None:
                    out = opened.enter_context(self._staged.folder.open_output(target))
                    options = write_options(table.schema)
                    writer = opened.enter_context(pq.ParquetWriter(out, table.schema, **options))
                writer.write_table(table, row_group_size=GROUP_ROWS_MAX)
        return [] if writer is None else [file_entry(self._staged.folder, target)]

    def _take_over(self, file: DataFile) -> DataFile:
        self._staged.folder.take_over(self._place(file), self._staged.out, file.path)
        return file.model_copy(update={"path": self._place(file)})

    def _place(self, file: DataFile) -> str:
        """Return the place of ``file`` in the new dataset: its own or, on S3, one with the tag of this deletion."""
        if not self._staged.tag:
            return file.path
        if file.path not in self._places:
            taken, whole = set(self._places.values()), file.path.removesuffix(".parquet")
            place = self._staged.file_name(_TAG.sub("", whole))
            while place in taken:
                place, whole = self._staged.file_name(whole), f"{whole}-"
            self._places[file.path] = place
        return self._places[file.path]

    def _columns(self, file: DataFile) -> list[str]:
        names: list[str] = self._files.footer(file).schema.to_arrow_schema().names
        return names

    def _read(self, file: DataFile, columns: list[str]) -> Iterator[pa.Table]:
        """Yield the row groups of ``file`` that have rows."""
        for index, rows in enumerate(file.row_groups):
            if rows:
                yield plain_strings(self._files.read(file, index, columns))


def _rows(files: Sequence[DataFile]) -> int:
    return sum(file.rows for file in files)


def _check_links(folder: Folder, manifest: DatasetManifest) -> None:
    """Reject files that links lead to: replacing the dataset would leave the data at their targets."""
    if folder.path is None:
        return
    for file in manifest.files():
        if (found := (folder.path / file.path).resolve()) != folder.path.resolve() / file.path:
            raise InputError(
                f"{folder.path / file.path}: a link leads to {found}, where nothing is deleted; run the command on the "
                "folder that holds the files, or move them into this one"
            )


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
