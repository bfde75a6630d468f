"""What a capacity plan is computed from: a job, its dataset, its model, and counts of its vocabularies."""

from __future__ import annotations

from dataclasses import dataclass, replace

from crossfade.deploy.capacity.traffic import CountHistogram, read_counts
from crossfade.kvstore.io.folder import Folder
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.data.manifest import DatasetManifest
from crossfade.trainer.data.reporter import NullReporter, ProgressReporter
from crossfade.trainer.model.spec import ModelSpec, make_model
from crossfade.trainer.runs.inputs import open_inputs
from crossfade.trainer.runs.row_selection import RowSelection, select_rows


@dataclass(frozen=True)
class PlanInputs:
    """The inputs of a plan. ``counts`` has a histogram per table, or is None if the vocabularies have not been read."""

    job: JobConfig
    folder: Folder
    manifest: DatasetManifest
    model: ModelSpec
    selection: RowSelection
    counts: dict[str, CountHistogram] | None

    def with_job(self, job: JobConfig) -> PlanInputs:
        """Return the inputs of ``job`` on the same data."""
        return replace(self, job=job, model=make_model(job, self.manifest))

    def with_counts(self) -> PlanInputs:
        """Return the inputs with counts, read from the vocabularies piece by piece.

        Raises:
            InputError: a file of a vocabulary is missing or corrupt.
        """
        names = {table.name for table in (*self.model.tables, self.model.query, self.model.item)}
        return replace(self, counts={name: read_counts(self.folder, self.manifest, name) for name in names})


def read_inputs(job: JobConfig, progress: ProgressReporter | None = None) -> PlanInputs:
    """Open the dataset of ``job`` and select its rows, without reading the vocabularies.

    Raises:
        InputError: the data cannot be used, or has no interactions to train on.
        UnreachableError: storage stopped answering.
    """
    folder, manifest, model = open_inputs(job)
    selection = select_rows(job, folder, manifest, progress or NullReporter())
    return PlanInputs(job, folder, manifest, model, selection, counts=None)
