"""What a checkpoint records of its run in addition to the tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from crossfade.base.io.folder import Folder
from crossfade.kvstore.checkpoint.format import CheckpointManifest
from crossfade.kvstore.optimizer_spec import OptimizerSpec
from crossfade.kvstore.store import SaveResult, TableSpec
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.data.manifest import data_fingerprint


@dataclass(frozen=True)
class CheckpointMetadata:
    """The run, its job and its data, which a run that resumes must match, and what computed it.

    Attributes:
        run: ID of the run.
        data: fingerprint of its dataset.
        command: ID of the command that runs it; None if roles were started by hand.
        kernels: the CPU kernels of the first worker, as ``describe_kernels`` describes them.
    """

    run: str
    job: JobConfig
    tables: Sequence[TableSpec]
    optimizer: OptimizerSpec
    data: int
    command: str | None = None
    kernels: str = ""

    @staticmethod
    def of(
        job: JobConfig, run: str, tables: Sequence[TableSpec], command: str | None = None, kernels: str = ""
    ) -> CheckpointMetadata:
        """Describe the run ``run`` of ``job``, whose model has ``tables``, as run by ``command`` on ``kernels``.

        Raises:
            InputError: the dataset cannot be read.
        """
        return CheckpointMetadata(
            run, job, tables, job.optimizer_spec, data_fingerprint(Folder(job.data.path)), command, kernels
        )

    def manifest(self, saved: SaveResult, step: int, train_state: dict[str, Any]) -> CheckpointManifest:
        """Make the manifest of the checkpoint of ``step`` whose tables are ``saved``."""
        return CheckpointManifest(
            step=step,
            tables=[asdict(table) for table in self.tables],
            optimizer=asdict(self.optimizer),
            seed=self.job.train.seed,
            parts=[asdict(part) for part in saved.parts],
            training={
                "run": self.run,
                "job": self.job.with_absolute_paths().model_dump(mode="json"),
                "data": self.data,
                "kernels": self.kernels,
                "train_state": train_state,
            },
        )
