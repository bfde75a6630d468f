"""The check of a feature: its pairs are of rows that exist, each once, in order; and how often train meets values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from kvstore.arrays import BoolArray, IntArray
from kvstore.io.folder import Folder
from trainer.data.features import ROW, VALUE
from trainer.data.manifest import DataFile, DatasetManifest
from trainer.data.parquet import ParquetFiles
from trainer.data.reporter import ProgressReporter
from trainer.prepare.problems import Problems


class FeatureCheck:
    """The check of the feature ``name`` of ``entity``."""

    def __init__(
        self,
        folder: Folder,
        manifest: DatasetManifest,
        problems: Problems,
        entity: str,
        name: str,
        work: Path,
        counts_R: IntArray | None,
        part_rows: int,
    ) -> None:
        """``counts_R`` are how often the rows of ``entity`` are liked in train, None if that is not known.

        So many rows are read at a time.
        """
        self._part_rows = part_rows
        self._files = ParquetFiles(folder)
        self._problems = problems
        self._name = name
        self._feature = manifest.features[entity][name]
        self._sides = {ROW: (entity, manifest.entities[entity]), VALUE: (name, manifest.entities[name])}
        self._counts_R = counts_R
        self._counts_V: IntArray = np.memmap(
            work / f"{name}.counts", mode="w+", dtype=np.int64, shape=(manifest.entities[name].rows,)
        )
        self._last = (-1, -1)

    def run(self, progress: ProgressReporter) -> dict[str, IntArray]:
        """Read all of it. By name, how often train touches each value, if that can be known."""
        before = self._problems.count
        progress.phase(f"check {self._name}", self._feature.pairs, "row")
        for file in self._feature.files:
            with self._problems.catching():
                self._check_file(file, progress)
        known = self._counts_R is not None and self._problems.count == before
        return {self._name: self._counts_V} if known else {}

    def _check_file(self, file: DataFile, progress: ProgressReporter) -> None:
        columns = dict.fromkeys((ROW, VALUE), pa.int64())
        if self._problems.of_columns(self._files, file, columns):
            return
        for index in range(len(file.row_groups)):
            where, first = f"{self._files.uri(file)}, row group {index}", 0
            for table in self._files.iter_parts(file, index, list(columns), self._part_rows):
                if not sum(self._problems.of_nulls(table.column(name), name, where, first) for name in columns):
                    self._check_pairs(table.column(ROW).to_numpy(), table.column(VALUE).to_numpy(), where, first)
                first += table.num_rows
                progress.advance(table.num_rows)

    def _check_pairs(self, row_N: IntArray, value_N: IntArray, where: str, first: int) -> None:
        inside_N = self._check_rows(ROW, row_N, where, first) & self._check_rows(VALUE, value_N, where, first)
        earlier_row_N = np.concatenate([[self._last[0]], row_N[:-1]])
        earlier_value_N = np.concatenate([[self._last[1]], value_N[:-1]])
        behind_N = (row_N < earlier_row_N) | ((row_N == earlier_row_N) & (value_N <= earlier_value_N))
        said = "expected pairs sorted by 'row', then by 'value', each once"
        self._problems.of_values(behind_N, row_N, f"{where}, row {{}}: column '{ROW}' is {{}}; {said}", first)
        self._last = int(row_N[-1]), int(value_N[-1])
        if self._counts_R is not None:
            np.add.at(self._counts_V, value_N[inside_N], self._counts_R[row_N[inside_N]])

    def _check_rows(self, column: str, row_N: IntArray, where: str, first: int) -> BoolArray:
        """Which rows of an entity are within its vocabulary; the others are problems, and so are forgotten ones."""
        name, entity = self._sides[column]
        inside_N: BoolArray = (row_N >= 0) & (row_N < entity.rows)
        said = f"{where}, row {{}}: column '{column}' is {{}}, but {name} has rows 0 to {entity.rows - 1}"
        self._problems.of_values(~inside_N, row_N, said, first)
        said = f"{where}, row {{}}: column '{column}' is {{}}, a row of {name} that was forgotten; its pairs must go"
        self._problems.of_values(np.isin(row_N, np.array(entity.vacant_rows, np.int64)), row_N, said, first)
        return inside_N
