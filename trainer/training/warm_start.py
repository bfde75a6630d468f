"""Warm start: begin a run with the rows and dense layers of another run's checkpoint (``checkpoint.warm_start_from``).

The dataset may have grown since: entities have new rows, and rows of expired IDs may belong to other IDs. Those rows
are reset to random values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from crossfade.base.arrays import IntArray
from crossfade.base.errors import CheckpointError, InputError, command, option_named
from crossfade.base.io.folder import Folder
from crossfade.kvstore.checkpoint.files import MANIFEST_NAME
from crossfade.kvstore.checkpoint.lifecycle import latest_checkpoint
from crossfade.kvstore.checkpoint.reader import Checkpoint, open_checkpoint
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.data.manifest import DatasetManifest, data_fingerprint
from crossfade.trainer.data.vocabulary import Vocabulary
from crossfade.trainer.model.dense import DenseLayers
from crossfade.trainer.model.spec import ModelSpec


@dataclass(frozen=True)
class WarmStart:
    """A checkpoint to begin a run with.

    Attributes:
        checkpoint: path or URI of the checkpoint.
        rows: number of rows in the checkpoint, by table.
        entities: the entity whose rows a table has, by table.
        lineage_index: position of the checkpoint's dataset in the lineage of the run's; later datasets came since.
    """

    checkpoint: str
    rows: Mapping[str, int]
    entities: Mapping[str, str]
    lineage_index: int

    def rows_to_reset(self, data: Folder, manifest: DatasetManifest) -> dict[str, IntArray]:
        """Find the rows that must not come from the checkpoint: those without an ID, or whose ID has changed.

        Args:
            data: folder of the run's dataset.
            manifest: its manifest.

        Returns:
            By table, sorted row numbers, int64; tables without such rows are absent.

        Raises:
            InputError: the vocabulary cannot be read.
        """
        resets = {}
        for name, rows in self.rows.items():
            entity = manifest.entities[self.entities[name]]
            rows_R = np.array(entity.vacant_rows, dtype=np.int64)
            if entity.has_last_seen:
                reassigned_R = Vocabulary(data, manifest, self.entities[name]).rows_assigned_after(self.lineage_index)
                rows_R = np.union1d(rows_R, reassigned_R[reassigned_R < rows])
            if len(rows_R):
                resets[name] = rows_R
        return resets


def open_warm_start(job: JobConfig, model: ModelSpec, manifest: DatasetManifest) -> WarmStart | None:
    """Open the checkpoint that ``checkpoint.warm_start_from`` names, or the newest complete one of a folder.

    Returns None if the job has no warm start.

    Raises:
        InputError: there is no such checkpoint, its tables or dense layers do not fit the model, or the IDs of its rows
            are unknown.
    """
    source = job.checkpoint.warm_start_from
    if source is None:
        return None
    try:
        checkpoint = _find_checkpoint(source)
        checkpoint.check_fits(model.tables, job.optimizer_spec)
        DenseLayers.of(job, model).load(checkpoint)
        names = {table.name for table in model.tables}
        rows = {table.name: table.rows for table in checkpoint.manifest.tables if table.name in names}
        entities = {name: model.entity_of(name) for name in rows}
        return WarmStart(
            checkpoint.uri, rows, entities, _lineage_index(checkpoint, job, manifest, list(entities.values()))
        )
    except (CheckpointError, InputError, OSError) as error:
        raise InputError(f"checkpoint.warm_start_from: {error}") from error


def _find_checkpoint(source: str) -> Checkpoint:
    checkpoint, skipped = latest_checkpoint(source)
    if checkpoint is not None:
        return checkpoint
    if Folder(source).exists(MANIFEST_NAME):
        return open_checkpoint(source)
    reasons = f" ({'; '.join(skipped)})" if skipped else ""
    raise CheckpointError(
        f"{source}: found no complete checkpoint{reasons}; expected a checkpoint, or a folder of checkpoints such as "
        "runs/NAME/checkpoints"
    )


def _lineage_index(checkpoint: Checkpoint, job: JobConfig, manifest: DatasetManifest, entities: Sequence[str]) -> int:
    """Find the dataset of ``checkpoint`` in the lineage of the job's dataset, which itself comes last.

    Raises:
        InputError: it is not there, and rows of ``entities`` may have moved from one ID to another since.
    """
    lineage = [*manifest.lineage, data_fingerprint(Folder(job.data.path))]
    trained_on = checkpoint.manifest.training.get("data")
    if trained_on in lineage:
        return lineage.index(trained_on)
    if any(manifest.entities[name].has_last_seen for name in entities):
        raise InputError(
            f"{checkpoint.uri}: was trained on a dataset that {job.data.path} does not extend, so its rows may belong "
            f"to other ids there ({option_named('expire_after')}); expected a checkpoint trained on this dataset or on "
            f"one of its base datasets ({command('prepare', base=True)})"
        )
    return len(manifest.lineage)
