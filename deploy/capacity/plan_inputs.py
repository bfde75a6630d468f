"""What a capacity plan is computed from: a job, its dataset, its model, and counts of its vocabularies.

The dataset may not exist yet: ``expected_inputs`` takes its size instead.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np

from crossfade.base.io.folder import Folder
from crossfade.deploy.capacity.traffic import CountHistogram, read_counts
from crossfade.trainer.config.schema import JobConfig, resolve
from crossfade.trainer.data.manifest import DataFile, DatasetManifest, Entity, Split
from crossfade.trainer.data.parquet import GROUP_ROWS_MAX
from crossfade.trainer.data.reader import row_groups
from crossfade.trainer.data.reporter import NullReporter, ProgressReporter
from crossfade.trainer.data.split_names import ALL_SPLITS
from crossfade.trainer.model.spec import ModelSpec, make_model
from crossfade.trainer.runs.job_inputs import RowSelection, dataset_size, open_inputs, open_lineage, select_rows


@dataclass(frozen=True)
class PlanInputs:
    """The inputs of a plan.

    ``counts`` has a histogram per table, or is None if the vocabularies have not been read. ``earlier_rows`` are the
    interactions of base datasets, which evaluations and histories read as well.
    """

    job: JobConfig
    folder: Folder
    manifest: DatasetManifest
    model: ModelSpec
    selection: RowSelection
    counts: dict[str, CountHistogram] | None
    earlier_rows: int = 0

    def with_job(self, job: JobConfig) -> PlanInputs:
        """Return the inputs of ``job`` on the same data."""
        job = resolve(job, dataset_size(self.manifest))
        return replace(self, job=job, model=make_model(job, self.manifest))

    def with_counts(self) -> PlanInputs:
        """Return the inputs with counts, read from the vocabularies piece by piece.

        Raises:
            InputError: a file of a vocabulary is missing or corrupt.
        """
        names = {table.name for table in (*self.model.tables, self.model.query, self.model.item)}
        counts = {name: read_counts(self.folder, self.manifest, name) for name in names}
        return replace(self, counts=counts)


def read_inputs(job: JobConfig, progress: ProgressReporter | None = None) -> PlanInputs:
    """Open the dataset of ``job`` and select its rows, without reading the vocabularies.

    Raises:
        InputError: the data, or a base dataset, cannot be used, or there are no interactions to train on.
        UnreachableError: storage stopped answering.
    """
    folder, manifest, model, job = open_inputs(job)
    selection = select_rows(job, folder, manifest, progress or NullReporter())
    with closing(open_lineage(job, folder, manifest)) as lineage:
        earlier_rows = lineage.known_rows(ALL_SPLITS) - sum(split.rows for split in manifest.splits.values())
    return PlanInputs(job, folder, manifest, model, selection, None, earlier_rows)


def expected_inputs(job: JobConfig, queries: int, items: int, interactions: int) -> PlanInputs:
    """Return the inputs of ``job`` on a dataset of this size, without features, as 'crossfade prepare' would write it.

    How often each row will occur is unknown, so the rows of a step are upper bounds. There is no valid split, so
    evaluations take no memory.

    Raises:
        InputError: the model of the job uses features.
    """
    full, rest = divmod(interactions, GROUP_ROWS_MAX)
    groups = [GROUP_ROWS_MAX] * full + [rest] * (rest > 0)
    train = Split(files=[DataFile(path="train", bytes=0, footer_crc32=0, row_groups=groups)])
    query, item = job.data.query or "query", job.data.item or "item"
    rows = {query: queries, item: items}
    entities = {name: Entity(rows=count, id_type="int64", files=[]) for name, count in rows.items()}
    manifest = DatasetManifest(query=query, item=item, entities=entities, splits={"train": train}, is_grouped=True)
    counts = {name: CountHistogram(np.zeros(1), np.array([count], np.int64)) for name, count in rows.items()}
    job = resolve(job, dataset_size(manifest))
    model = make_model(job, manifest)
    return PlanInputs(job, Folder(job.data.path), manifest, model, RowSelection(row_groups(train)), counts)
