"""Checkpoints to export from, and the embeddings that were exported."""

from pathlib import Path
from typing import Any

import numpy as np

from crossfade.base.arrays import FloatArray
from crossfade.base.io.folder import Folder
from crossfade.kvstore.optimizer_spec import OptimizerSpec
from crossfade.trainer.config.auto_values import resolve
from crossfade.trainer.config.loading import check_job
from crossfade.trainer.data.manifest import data_fingerprint, read_manifest
from crossfade.trainer.embeddings.files import EmbeddingFiles
from crossfade.trainer.runs.job_inputs import dataset_size

OPTIMIZER = OptimizerSpec("adagrad")


def training_on(data: Path, dim: int = 4) -> dict[str, Any]:
    """Return the training record of a checkpoint of a run on ``data`` with vectors of ``dim`` columns."""
    job = check_job({"name": "planted", "data": {"path": str(data)}, "model": {"dim": dim}}, "a test")
    return {
        "run": "0",
        "job": resolve(job, dataset_size(read_manifest(Folder(data)))).model_dump(mode="json"),
        "data": data_fingerprint(Folder(data)),
    }


def vectors(folder: Path, entity: str) -> FloatArray:
    """Read all vectors of ``entity``."""
    files = EmbeddingFiles(folder)
    return files.vectors(entity, np.arange(files.rows(entity)))
