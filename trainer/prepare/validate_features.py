"""Validate one feature: its pairs refer to existing rows, each once, in order. Count how often train has each value.

    counts = FeatureCheck(folder, manifest, problems, "track", "artist", work, count_R, part_rows=1 << 20).run(progress)

Shapes: N pairs of a part of a row group, R rows of the entity, V rows of the feature's values.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from crossfade.base.arrays import BoolArray, IntArray
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.features import ROW, VALUE
from crossfade.trainer.data.manifest import DataFile, DatasetManifest
from crossfade.trainer.data.parquet import ParquetFiles
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.prepare.problems import Problems


class FeatureCheck:
    """Checks the feature ``name`` of ``entity``.

    ``count_R`` are the interactions of positive weight in train per row of ``entity``, None if unknown. At most
    ``part_rows`` pairs are in memory at a time.
    """

    def __init__(
        self,
        folder: Folder,
        manifest: DatasetManifest,
        problems: Problems,
        entity: str,
        name: str,
        work: Path,
        count_R: IntArray | None,
        part_rows: int,
    ) -> None:
        self._part_rows = part_rows
        self._files = ParquetFiles(folder)
        self._problems = problems
        self._name = name
        self._feature = manifest.features[entity][name]
        self._entities = {ROW: (entity, manifest.entities[entity]), VALUE: (name, manifest.entities[name])}
        self._count_R = count_R
        self._count_V: IntArray = np.memmap(
            work / f"{name}.counts", mode="w+", dtype=np.int64, shape=(manifest.entities[name].rows,)
        )
        self._last_pair = (-1, -1)

    def run(self, progress: ProgressReporter) -> dict[str, IntArray]:
        """Read and check all pairs; return the interactions of each value by the feature's name, if they are known."""
        before = self._problems.count
        progress.phase(f"check {self._name}", self._feature.pairs, "row")
        for file in self._feature.files:
            with self._problems.collect_errors():
                self._check_file(file, progress)
        is_known = self._count_R is not None and self._problems.count == before
        return {self._name: self._count_V} if is_known else {}

    def _check_file(self, file: DataFile, progress: ProgressReporter) -> None:
        columns = dict.fromkeys((ROW, VALUE), pa.int64())
        if self._problems.check_columns(self._files, file, columns):
            return
        for index in range(len(file.row_groups)):
            where, first = f"{self._files.uri(file)}, row group {index}", 0
            for table in self._files.iter_parts(file, index, list(columns), self._part_rows):
                if not sum(self._problems.check_no_nulls(table.column(name), name, where, first) for name in columns):
                    self._check_pairs(table.column(ROW).to_numpy(), table.column(VALUE).to_numpy(), where, first)
                first += table.num_rows
                progress.advance(table.num_rows)

    def _check_pairs(self, row_N: IntArray, value_N: IntArray, where: str, first: int) -> None:
        exists_N = self._check_rows(ROW, row_N, where, first) & self._check_rows(VALUE, value_N, where, first)
        previous_row_N = np.concatenate([[self._last_pair[0]], row_N[:-1]])
        previous_value_N = np.concatenate([[self._last_pair[1]], value_N[:-1]])
        is_unsorted_N = (row_N < previous_row_N) | ((row_N == previous_row_N) & (value_N <= previous_value_N))
        expected = "expected pairs sorted by 'row', then by 'value', each once"
        template = f"{where}, row {{}}: column '{ROW}' is {{}}; {expected}"
        self._problems.add_values(is_unsorted_N, row_N, template, first)
        self._last_pair = int(row_N[-1]), int(value_N[-1])
        if self._count_R is not None:
            np.add.at(self._count_V, value_N[exists_N], self._count_R[row_N[exists_N]])

    def _check_rows(self, column: str, row_N: IntArray, where: str, first: int) -> BoolArray:
        """Check that rows exist and are not vacant; return which exist: bool (N,)."""
        name, entity = self._entities[column]
        exists_N: BoolArray = (row_N >= 0) & (row_N < entity.rows)
        template = f"{where}, row {{}}: column '{column}' is {{}}, but {name} has rows 0 to {entity.rows - 1}"
        self._problems.add_values(~exists_N, row_N, template, first)
        template = f"{where}, row {{}}: column '{column}' is {{}}, a vacant row of {name}; delete its pairs"
        self._problems.add_values(np.isin(row_N, np.array(entity.vacant_rows, np.int64)), row_N, template, first)
        return exists_N
