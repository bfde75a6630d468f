"""Validate the files of splits: columns, nulls, rows within the vocabularies, finite weights.

    check = SplitCheck(folder, manifest, problems, work, part_rows=1 << 20)
    check.run(progress)
    check.counts["track"]                   # interactions of train per row, to compare with the vocabulary

Shapes: N rows of a part of a row group.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from crossfade.base.arrays import BoolArray, IntArray
from crossfade.base.io.folder import Folder
from crossfade.base.text import counted
from crossfade.trainer.data.manifest import TIMESTAMP, WEIGHT, DataFile, DatasetManifest
from crossfade.trainer.data.parquet import ParquetFiles
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.prepare.context import NO_ROW
from crossfade.trainer.prepare.part_writer import GROUP_ROWS_MAX
from crossfade.trainer.prepare.problems import Problems

_LARGE_GROUP_ROWS = 8 * GROUP_ROWS_MAX
_FEW_GROUPS = 8


class SplitCheck:
    """Checks all splits of a dataset.

    ``counts`` has, by entity, the interactions of positive weight in train per row: int64 (R,), in files in ``work``.
    At most ``part_rows`` rows are in memory at a time.
    """

    def __init__(
        self, folder: Folder, manifest: DatasetManifest, problems: Problems, work: Path, part_rows: int
    ) -> None:
        self._uri = folder.uri
        self._files = ParquetFiles(folder)
        self._manifest = manifest
        self._problems = problems
        self._part_rows = part_rows
        self.counts: dict[str, IntArray] = {
            name: np.memmap(work / f"{number}.counts", mode="w+", dtype=np.int64, shape=(entity.rows,))
            for number, (name, entity) in enumerate(manifest.entities.items())
            if name in (manifest.query, manifest.item, *manifest.context)
        }
        self.train_is_valid = False
        self._vacant = {name: np.array(entity.vacant_rows, np.int64) for name, entity in manifest.entities.items()}
        self._columns = {manifest.query: pa.int64(), manifest.item: pa.int64(), WEIGHT: pa.float32()}
        if manifest.has_timestamp:
            self._columns[TIMESTAMP] = pa.int64()
        self._columns |= dict.fromkeys(manifest.context, pa.int64())
        self._groups_sorted, self._groups_mixed = 0, 0

    def run(self, progress: ProgressReporter) -> None:
        """Read and check all splits."""
        if "train" not in self._manifest.splits or not self._manifest.splits["train"].rows:
            self._problems.add(f"{self._uri}: train has no interaction; expected at least one")
        for split, described in self._manifest.splits.items():
            before = self._problems.count
            progress.phase(f"check {split}", described.rows, "row")
            for file in described.files:
                with self._problems.collect_errors():
                    self._check_file(split, file, progress)
            if split == "train":
                self.train_is_valid = self._problems.count == before

    def notes(self) -> list[str]:
        """Return what could be better about train: few or large row groups, or sorted rows."""
        notes = []
        train = self._manifest.splits.get("train")
        groups = [rows for file in train.files for rows in file.row_groups if rows] if train else []
        if len(groups) < _FEW_GROUPS and sum(groups) > GROUP_ROWS_MAX:
            notes.append(
                f"train has {counted(len(groups), 'row group')}, the most workers that can share it; 64 are better"
            )
        if max(groups, default=0) > _LARGE_GROUP_ROWS:
            notes.append(f"train has a row group of {max(groups):,} rows, read at once; {GROUP_ROWS_MAX:,} are enough")
        if self._groups_sorted > self._groups_mixed:
            notes.append(f"train is sorted by {self._manifest.query}; training works better on rows in random order")
        return notes

    def _check_file(self, split: str, file: DataFile, progress: ProgressReporter) -> None:
        if self._problems.check_columns(self._files, file, self._columns):
            return
        for index in range(len(file.row_groups)):
            where, first = f"{self._files.uri(file)}, row group {index}", 0
            for table in self._files.iter_parts(file, index, list(self._columns), self._part_rows):
                self._check_part(split, table, where, first)
                first += table.num_rows
                progress.advance(table.num_rows)

    def _check_part(self, split: str, table: pa.Table, where: str, first: int) -> None:
        """Check rows of a row group, which begin at its row ``first``."""
        if sum(self._problems.check_no_nulls(table.column(name), name, where, first) for name in self._columns):
            return
        weight_N = table.column(WEIGHT).to_numpy()
        template = f"{where}, row {{}}: the weight is {{}}; expected a finite one"
        self._problems.add_values(~np.isfinite(weight_N), weight_N, template, first)
        for name in self.counts:
            row_N = table.column(name).to_numpy()
            in_vocabulary_N = self._check_rows(name, row_N, where, first)
            if split == "train":
                np.add.at(self.counts[name], row_N[in_vocabulary_N & (weight_N > 0)], 1)
        if split == "train":
            self._count_sorted(table.column(self._manifest.query).to_numpy())

    def _check_rows(self, name: str, row_N: IntArray, where: str, first: int) -> BoolArray:
        """Check that rows are in the vocabulary and not vacant; return which are in it: bool (N,)."""
        rows = self._manifest.entities[name].rows
        in_vocabulary_N: BoolArray = (row_N >= 0) & (row_N < rows)
        template = f"{where}, row {{}}: column '{name}' is {{}}, but the vocabulary has rows 0 to {rows - 1}"
        is_none_N = (row_N == NO_ROW) & (name in self._manifest.context)
        self._problems.add_values(~in_vocabulary_N & ~is_none_N, row_N, template, first)
        template = f"{where}, row {{}}: column '{name}' is {{}}, a vacant row; delete its interactions"
        self._problems.add_values(np.isin(row_N, self._vacant[name]), row_N, template, first)
        return in_vocabulary_N

    def _count_sorted(self, row_N: IntArray) -> None:
        if len(row_N) and row_N[0] != row_N[-1]:
            if (row_N[1:] >= row_N[:-1]).all():
                self._groups_sorted += 1
            else:
                self._groups_mixed += 1
