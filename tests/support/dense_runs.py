"""Jobs with dense layers, and what their runs leave."""

from pathlib import Path

import numpy as np
from run_results import same_bits

from crossfade.base.arrays import FloatArray
from crossfade.kvstore.checkpoint.lifecycle import latest_checkpoint
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


def assert_same_run(one: Path, other: Path) -> None:
    assert same_bits(one / "embeddings", other / "embeddings")
    ours, theirs = final_layers(one), final_layers(other)
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        assert values.tobytes() == theirs[name].tobytes(), name
