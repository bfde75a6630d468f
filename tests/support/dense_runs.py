"""Jobs with dense layers, and what their runs leave."""

from pathlib import Path

import numpy as np

from crossfade.base.arrays import FloatArray
from crossfade.kvstore.checkpoint.lifecycle import latest_checkpoint
from crossfade.trainer.embeddings.files import EmbeddingFiles
from crossfade.trainer.model.dense import DENSE_FILE
from crossfade.trainer.model.spec import LayerSpec

MODEL = {"dim": 8, "dense": {"query": [16, 8], "item": [12, 10, 8], "learning_rate": 0.02}}
TRAIN = {"batch_size": 256, "epochs": 8, "patience": None}
CHECKPOINT = {"interval_steps": 5, "interval_seconds": None}
TOLERANCE = 2e-5


LAYERS = LayerSpec("track", (5, 7, 6, 5))


def newest(run: Path) -> Path:
    """Return the newest complete checkpoint of a run."""
    checkpoint, _ = latest_checkpoint(str(run / "checkpoints"))
    assert checkpoint is not None
    return Path(checkpoint.uri)


def final_layers(run: Path) -> dict[str, FloatArray]:
    """Read the dense layers of the newest checkpoint of a run, by name of the parameter."""
    with np.load(newest(run) / DENSE_FILE, allow_pickle=False) as arrays:
        return dict(arrays)


def vectors(embeddings: Path) -> dict[str, FloatArray]:
    """Read the vectors of both entities from a folder of embeddings."""
    files = EmbeddingFiles(embeddings)
    return {entity: files.vectors(entity, np.arange(files.rows(entity))) for entity in ("customer", "track")}


def assert_same_run(one: Path, other: Path) -> None:
    for ours, theirs in (
        (vectors(one / "embeddings"), vectors(other / "embeddings")),
        (final_layers(one), final_layers(other)),
    ):
        assert ours.keys() == theirs.keys()
        for name, values in ours.items():
            assert values.tobytes() == theirs[name].tobytes(), name
