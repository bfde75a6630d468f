"""Checkpoints to export from, and the embeddings that were exported."""

from pathlib import Path
from typing import Any

from crossfade.kvstore.arrays import FloatArray
from crossfade.kvstore.io.folder import Folder
from crossfade.kvstore.optimizer_spec import OptimizerSpec
from crossfade.trainer.data.manifest import data_fingerprint
from crossfade.trainer.embeddings.files import EmbeddingFiles, vectors_of

OPTIMIZER = OptimizerSpec("adagrad")


def training_on(data: Path) -> dict[str, Any]:
    """Return the training record of a checkpoint of a run on ``data``."""
    return {
        "run": "0",
        "job": {"name": "planted", "data": {"path": str(data)}},
        "data": data_fingerprint(Folder(data)),
    }


def vectors(folder: Path, entity: str) -> FloatArray:
    """Read all vectors of ``entity``."""
    return vectors_of(EmbeddingFiles(folder).read(entity).column("vector"))
