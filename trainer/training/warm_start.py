"""TODO-DOC split from trainer/training/checkpointing.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvstore.arrays import IntArray
from kvstore.checkpoint.files import MANIFEST_NAME
from kvstore.checkpoint.lifecycle import latest_checkpoint
from kvstore.checkpoint.reader import Checkpoint, open_checkpoint
from kvstore.errors import CheckpointError, InputError
from kvstore.io.folder import Folder
from trainer.config.schema import JobConfig
from trainer.data.manifest import DatasetManifest as DataManifest
from trainer.data.manifest import data_fingerprint
from trainer.data.vocabulary import Vocabulary
from trainer.model.dense import DenseLayers
from trainer.model.spec import ModelSpec


@dataclass(frozen=True)
class WarmStart:
    """The ``checkpoint`` that a run takes its rows from, and whose ids had these when it was trained.

    ``rows`` are those of its tables, by name. ``place`` is that of its data in the lineage of the run's data: what lies
    after it has come since.
    """

    checkpoint: str
    rows: dict[str, int]
    lineage_index: int

    def rows_to_reset(self, data: Folder, manifest: DataManifest) -> dict[str, IntArray]:
        """The rows of each table that are not to be taken, sorted: ``manifest`` describes the run's ``data``.

        They are those that no id has, and those that another id has than when the checkpoint was trained.

        Raises:
            InputError: the vocabulary cannot be read.
        """
        afresh = {}
        for name, rows in self.rows.items():
            entity = manifest.entities[name]
            rows_R = np.array(entity.vacant_rows, dtype=np.int64)
            if entity.has_last_seen:
                handed_on_R = Vocabulary(data, manifest, name).rows_assigned_after(self.lineage_index)
                rows_R = np.union1d(rows_R, handed_on_R[handed_on_R < rows])
            if len(rows_R):
                afresh[name] = rows_R
        return afresh


def open_warm_start(job: JobConfig, model: ModelSpec, manifest: DataManifest) -> WarmStart | None:
    """The checkpoint that ``checkpoint.warm_start_from`` names, itself or as the newest whole one of a folder.

    Raises:
        InputError: there is none, its tables or dense layers do not fit, or nobody can tell whose its rows are.
    """
    start_from = job.checkpoint.warm_start_from
    if start_from is None:
        return None
    try:
        checkpoint, skipped = latest_checkpoint(start_from)
        if checkpoint is None and Folder(start_from).exists(MANIFEST_NAME):
            checkpoint = open_checkpoint(start_from)
        if checkpoint is None:
            why = f" ({'; '.join(skipped)})" if skipped else ""
            raise CheckpointError(
                f"{start_from}: holds no whole checkpoint and is none itself{why}; expected a folder of checkpoints, "
                "such as runs/NAME/checkpoints, or one of them"
            )
        checkpoint.check_fits(model.tables, job.optimizer_spec)
        DenseLayers.of(job, model).load(checkpoint)
        wanted = {table.name for table in model.tables}
        rows = {table.name: table.rows for table in checkpoint.manifest.tables if table.name in wanted}
        return WarmStart(checkpoint.uri, rows, _lineage_index(checkpoint, job, manifest, list(rows)))
    except (CheckpointError, InputError, OSError) as error:
        raise InputError(f"checkpoint.warm_start_from: {error}") from error


def _lineage_index(checkpoint: Checkpoint, job: JobConfig, manifest: DataManifest, tables: Sequence[str]) -> int:
    """Where in the lineage of the data of ``job`` those are that ``checkpoint`` was trained on: its length for its own.

    Raises:
        InputError: they are not there, and rows of ``tables`` may have gone from one id to another.
    """
    lineage = [*manifest.lineage, data_fingerprint(Folder(job.data.path))]
    trained_on = checkpoint.manifest.training.get("data")
    if trained_on in lineage:
        return lineage.index(trained_on)
    if any(manifest.entities[name].has_last_seen for name in tables):
        raise InputError(
            f"{checkpoint.uri}: was trained on data that {job.data.path} does not go on from, and rows of that may "
            "have gone from one id to another (--expire-after): expected a checkpoint of those data, or of those that "
            "'crossfade prepare --base' named, in a row"
        )
    return len(manifest.lineage)
