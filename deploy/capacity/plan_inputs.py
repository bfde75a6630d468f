"""What a capacity plan is computed from: a job, its dataset, and its model."""

from __future__ import annotations

from dataclasses import dataclass, replace

from crossfade.base.io.folder import Folder
from crossfade.trainer.config.auto_values import resolve
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.data.manifest import DatasetManifest
from crossfade.trainer.data.reporter import NullReporter, ProgressReporter
from crossfade.trainer.model.spec import ModelSpec, make_model
from crossfade.trainer.runs.job_inputs import RowSelection, dataset_size, open_inputs, select_rows


@dataclass(frozen=True)
class PlanInputs:
    """The inputs of a plan; evaluations and histories also read ``earlier_rows`` interactions of base datasets."""

    job: JobConfig
    folder: Folder
    manifest: DatasetManifest
    model: ModelSpec
    selection: RowSelection
    earlier_rows: int

    def with_job(self, job: JobConfig) -> PlanInputs:
        """Return the inputs of ``job`` on the same data."""
        job = resolve(job, dataset_size(self.manifest))
        return replace(self, job=job, model=make_model(job, self.manifest))


def read_inputs(job: JobConfig, progress: ProgressReporter | None = None) -> PlanInputs:
    """Open the dataset of ``job`` and select its rows, without reading the vocabularies.

    Raises:
        InputError: the data cannot be used, or there are no interactions to train on.
        UnreachableError: storage stopped answering.
    """
    folder, manifest, model, job = open_inputs(job)
    selection = select_rows(job, folder, manifest, progress or NullReporter())
    earlier_rows = sum(split.rows for split in manifest.earlier.values())
    return PlanInputs(job, folder, manifest, model, selection, earlier_rows)
