"""Carry the interactions of a base dataset into the dataset that extends it, so that this one needs no other.

    earlier = Carrying(base, manifest, staged, progress).run()

Files of datasets are never written in place, so they are carried as hard links on a file system, and as copies by the
server on S3. They are written anew, without the interactions of IDs that have just lost their row, where an ID expires:
rows of carried files always have the IDs that they had. They are also written anew where the base lacks timestamps or
context, and many small files, such as of hourly datasets, become a few.

Shapes: N interactions of a row group, R rows of an entity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from crossfade.base.arrays import BoolArray
from crossfade.trainer.data.column_names import NO_ROW
from crossfade.trainer.data.manifest import EARLIER, DataFile, DatasetManifest, Split
from crossfade.trainer.data.parquet import GROUP_ROWS_MAX
from crossfade.trainer.data.reader import InteractionReader, Interactions
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.data.split_names import ALL_SPLITS, SplitName
from crossfade.trainer.data.vocabulary import Vocabulary
from crossfade.trainer.prepare.extend import BaseDataset
from crossfade.trainer.prepare.split_files import interaction_schema
from crossfade.trainer.prepare.staging import GROUPS_PER_FILE, PartWriter, Staged, row_group_rows, take_over_files

BEFORE_ALL = int(np.iinfo(np.int64).min)
"""The time of interactions of a dataset without timestamps."""
_MAX_SMALL_FILES = 64
"""Files of a split with fewer rows than ``prepare`` writes to one, above which they are merged."""


@dataclass(frozen=True)
class Carrying:
    """Carries the interactions of ``base`` into the dataset that is ``staged``, which ``manifest`` describes.

    The vocabularies are written, and in ``manifest``.
    """

    base: BaseDataset
    manifest: DatasetManifest
    staged: Staged
    progress: ProgressReporter

    def run(self) -> dict[SplitName, Split]:
        """Carry the interactions; return the files of each split.

        Raises:
            InputError: a file of the base dataset is missing or corrupt.
            OSError: one cannot be read or written.
        """
        new, old = self.manifest, self.base.manifest
        lost = {name: self._lost_rows(name) for name in (new.query, new.item)}
        lacks_column = new.has_timestamp > old.has_timestamp or len(new.context) > len(old.context)
        is_changed = lacks_column or any(lost_R.any() for lost_R in lost.values())
        rows = sum(split.rows for split in (*old.earlier.values(), *old.splits.values()))
        self.progress.phase("earlier interactions", rows, "row")
        carried: dict[SplitName, Split] = {}
        for name in ALL_SPLITS:
            files = [file for of in (old.earlier, old.splits) if name in of for file in of[name].files]
            small = [file for file in files if file.rows < GROUPS_PER_FILE * GROUP_ROWS_MAX]
            rewritten = files if is_changed else small if len(small) > _MAX_SMALL_FILES else []
            paths = {file.path for file in rewritten}
            linked = [file for file in files if file.path not in paths]
            taken = take_over_files(self.staged, f"{EARLIER}/{name}", self.base.folder, linked)
            self.progress.advance(sum(file.rows for file in taken))
            written = self._rewrite(name, rewritten, lost, first_part=len(taken))
            if taken or written:
                carried[name] = Split(files=[*taken, *written])
        return carried

    def _lost_rows(self, name: str) -> BoolArray:
        """Return which rows of ``name`` in the base had an ID that has lost its row: bool (R,)."""
        old, new = self.base.manifest.entities[name], self.manifest.entities[name]
        lost_R = np.zeros(max(old.rows, new.rows), np.bool_)
        lost_R[new.vacant_rows] = True
        if new.has_last_seen:
            vocabulary = Vocabulary(self.staged.folder, self.manifest, name)
            lost_R[vocabulary.rows_assigned_after(len(self.base.lineage()) - 1)] = True
        lost_R[old.vacant_rows] = False
        return lost_R[: old.rows]

    def _rewrite(
        self, name: SplitName, files: Sequence[DataFile], lost: Mapping[str, BoolArray], first_part: int
    ) -> list[DataFile]:
        """Write the rows of ``files`` whose IDs are not ``lost`` to new files of the split ``name``."""
        new, split = self.manifest, Split(files=[*files])
        schema = interaction_schema(new.query, new.item, new.has_timestamp, new.context)
        writing = PartWriter(self.staged, f"{EARLIER}/{name}", schema, row_group_rows(split.rows), first_part)
        with writing as writer, closing(InteractionReader(self.base.folder, self.base.manifest)) as reader:
            timestamps = self.manifest.has_timestamp and self.base.manifest.has_timestamp
            for part in reader.read_all(split, self.base.manifest.context, timestamps=timestamps):
                is_lost_N = lost[self.manifest.query][part.query_N] | lost[self.manifest.item][part.item_N]
                writer.write(self._batch(part.take(~is_lost_N), schema))
                self.progress.advance(len(part))
            return writer.close()

    def _batch(self, part: Interactions, schema: pa.Schema) -> pa.RecordBatch:
        """Return the columns of ``part``: without times in the base, they are ``BEFORE_ALL``; new context is none."""
        columns = [part.query_N, part.item_N, part.weight_N]
        if self.manifest.has_timestamp:
            columns.append(np.full(len(part), BEFORE_ALL) if part.timestamp_N is None else part.timestamp_N)
        old = self.base.manifest.context
        for name in self.manifest.context:
            if part.context_NK is not None and name in old:
                columns.append(part.context_NK[:, old.index(name)])
            else:
                columns.append(np.full(len(part), NO_ROW))
        return pa.RecordBatch.from_arrays([pa.array(column_N) for column_N in columns], schema=schema)
